//! Which rule a term is due to.
//!
//! A term of the program that came in is due to no rule. Every other term has derivations: an application of a rule to
//! terms that are derived themselves. The shortest derivation counts, and among derivations of one length the rule with
//! the smallest number. So the answer depends on which derivations there are, and neither on the order in which they were
//! found nor on merged classes: terms that become equal are one term, with the derivations of both.
//!
//! A step that leads back to what it was made of never counts, since the way there was longer.

use super::rules::RuleId;

/// The number of a term. Terms of the program have the first numbers.
pub type TermId = u32;

/// An application of a rule that made a term or found that there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Step {
    product: TermId,
    rule: RuleId,
    /// The terms to which the rule was applied: the outer one and one of its operands.
    premises: [TermId; 2],
}

/// The terms of an e-graph and how they can be derived.
#[derive(Debug, Default)]
pub struct Derivations {
    /// How many terms the program has.
    program: TermId,
    /// For every term the term that it has become equal to, or itself. Of equal terms, the one with the least number stays.
    same: Vec<TermId>,
    steps: Vec<Step>,
    /// What every term is due to, once that is known.
    due: Vec<Option<RuleId>>,
}

impl Derivations {
    /// A new term of the program. All of them come before those of rules.
    pub fn given(&mut self) -> TermId {
        self.program += 1;
        self.new_term()
    }

    /// A new term that a rule makes.
    pub fn new_term(&mut self) -> TermId {
        self.same.push(self.same.len() as TermId);
        (self.same.len() - 1) as TermId
    }

    /// Whether the program has a term.
    pub fn is_given(&self, term: TermId) -> bool {
        term < self.program
    }

    /// Notes that a rule leads from the premises to a term.
    pub fn derive(&mut self, product: TermId, rule: RuleId, premises: [TermId; 2]) {
        if !self.is_given(product) {
            self.steps.push(Step { product, rule, premises });
        }
    }

    /// Notes that two terms have become equal; gives the one that stays.
    pub fn merge(&mut self, a: TermId, b: TermId) -> TermId {
        let (a, b) = (self.find(a), self.find(b));
        self.same[a.max(b) as usize] = a.min(b);
        a.min(b)
    }

    fn find(&self, mut term: TermId) -> TermId {
        while self.same[term as usize] != term {
            term = self.same[term as usize];
        }
        term
    }

    /// Finds out what every term is due to: terms one step from the program first, then those two steps from it.
    pub fn conclude(&mut self) {
        let mut steps = std::mem::take(&mut self.steps);
        for step in &mut steps {
            step.product = self.find(step.product);
            step.premises = step.premises.map(|premise| self.find(premise));
        }
        let mut known: Vec<bool> = (0..self.same.len()).map(|i| self.is_given(i as TermId)).collect();
        self.due = vec![None; self.same.len()];
        loop {
            let mut reached = Vec::new();
            steps.retain(|step| {
                let is_open = !known[step.product as usize];
                let follows = is_open && step.premises.iter().all(|&premise| known[premise as usize]);
                if follows {
                    let due = &mut self.due[step.product as usize];
                    *due = Some(due.map_or(step.rule, |rule| rule.min(step.rule)));
                    reached.push(step.product);
                }
                is_open && !follows
            });
            if reached.is_empty() {
                return;
            }
            reached.into_iter().for_each(|term| known[term as usize] = true);
        }
    }

    /// The rule that a term is due to; none if the program has it. Known after [`Derivations::conclude`].
    pub fn due_to(&self, term: TermId) -> Option<RuleId> {
        self.due.get(self.find(term) as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(number: u32) -> RuleId {
        RuleId::try_from(number).unwrap()
    }

    #[test]
    fn the_shortest_derivation_counts_and_then_the_smallest_number() {
        let mut d = Derivations::default();
        let x = d.given();
        let [a, b, c] = [(); 3].map(|()| d.new_term());
        // b is found by a detour first, and a again from b.
        d.derive(a, rule(9), [x, x]);
        d.derive(c, rule(2), [a, x]);
        d.derive(b, rule(3), [c, a]);
        d.derive(b, rule(24), [a, x]);
        d.derive(b, rule(17), [x, a]);
        d.derive(a, rule(1), [b, x]);
        d.derive(x, rule(1), [a, a]);
        d.conclude();
        assert_eq!([x, a, b, c].map(|t| d.due_to(t)), [None, Some(rule(9)), Some(rule(17)), Some(rule(2))]);
    }

    #[test]
    fn a_term_that_becomes_equal_to_one_of_the_program_is_due_to_no_rule() {
        let mut d = Derivations::default();
        let x = d.given();
        let (a, b) = (d.new_term(), d.new_term());
        d.derive(a, rule(7), [x, x]);
        d.derive(b, rule(9), [a, a]);
        assert_eq!(d.merge(a, x), x);
        d.conclude();
        assert_eq!([a, b].map(|t| d.due_to(t)), [None, Some(rule(9))]);
    }

    /// Random derivations, noted in an order and in the opposite one, with the merges before and after them.
    #[test]
    fn the_order_in_which_derivations_are_found_does_not_matter() {
        let mut state = 7u64;
        let mut below = |n: u32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32 % n
        };
        for _ in 0..100 {
            let rules: Vec<RuleId> = RuleId::all().collect();
            let steps: Vec<(TermId, RuleId, [TermId; 2])> =
                (0..80).map(|_| (below(30), rules[below(25) as usize], [below(30), below(30)])).collect();
            let merges: Vec<(TermId, TermId)> = (0..5).map(|_| (below(30), below(30))).collect();
            let due = |is_reversed: bool| {
                let mut d = Derivations::default();
                (0..4).for_each(|_| assert!(d.given() < 4));
                (4..30).for_each(|term| assert_eq!(d.new_term(), term));
                let merge = |d: &mut Derivations| merges.iter().for_each(|&(a, b)| assert!(d.merge(a, b) <= a.min(b)));
                if is_reversed {
                    steps.iter().rev().for_each(|&(product, rule, premises)| d.derive(product, rule, premises));
                    merge(&mut d);
                } else {
                    merge(&mut d);
                    steps.iter().for_each(|&(product, rule, premises)| d.derive(product, rule, premises));
                }
                d.conclude();
                (0..30).map(|term| d.due_to(term)).collect::<Vec<_>>()
            };
            assert_eq!(due(true), due(false));
        }
    }
}
