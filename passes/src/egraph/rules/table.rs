//! The rules as data: a record for each row of `RULES.md`.

use super::condition::Condition::{self, Increasing, JointlyLinear, Keeps, Linear, Reduces};
use super::gather::Others::{self, Any, Gathered, Sliced};
use super::gather::{self, Instance};
use super::id::RuleId;
use super::site::Site;
use super::{cancel, merge, reduction, slice};
use crate::egraph::heads::Heads;
use egg::Id;
use std::fmt;

/// What a rule does to floating-point results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// Every bit stays.
    Exact,
    /// Sums are taken in another order.
    Reassociates,
    /// Something is computed in another precision. No rule does that yet.
    Precision,
}

/// A rule.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Its number.
    pub id: RuleId,
    /// Its name.
    pub name: &'static str,
    /// The equality that it states.
    pub equality: &'static str,
    /// What it does to results.
    pub tag: Tag,
    /// The left sides: the kinds of the outer operation, and the kinds to one of which an operand must belong.
    on: &'static [(Heads, Heads)],
    /// What the factor table must confirm about the operation that computes.
    conditions: &'static [Condition],
    apply: Apply,
}

/// How a rule finds what equals a term.
#[derive(Clone, Copy)]
enum Apply {
    /// By a function of its own.
    Own(fn(&mut Site) -> Vec<Id>),
    /// As an instance of the theorem of gathers.
    Gather(Instance),
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}, {}: {}", self.id, self.name, self.equality)
    }
}

impl Rule {
    /// The kinds of operands that the rule rewrites below an outer operation of a kind; empty if it does not apply there.
    pub(super) fn inner(&self, outer: Heads) -> Heads {
        let of = |all: Heads, on: &(Heads, Heads)| if outer.meets(on.0) { all.or(on.1) } else { all };
        self.on.iter().fold(Heads::NONE, of)
    }

    /// What equals the term of a site.
    pub(super) fn apply(&self, site: &mut Site) -> Vec<Id> {
        site.begin(self.id, self.conditions, self.inner(site.head()));
        match self.apply {
            Apply::Own(apply) => apply(site),
            Apply::Gather(instance) => gather::theorem(site, instance),
        }
    }

    const fn new(number: u8, name: &'static str, tag: Tag, equality: &'static str) -> Rule {
        let apply = Apply::Own(|_| Vec::new());
        Rule { id: RuleId(number), name, equality, tag, on: &[], conditions: &[], apply }
    }

    const fn on(self, on: &'static [(Heads, Heads)]) -> Rule {
        Rule { on, ..self }
    }

    const fn when(self, conditions: &'static [Condition]) -> Rule {
        Rule { conditions, ..self }
    }

    const fn by(self, apply: fn(&mut Site) -> Vec<Id>) -> Rule {
        Rule { apply: Apply::Own(apply), ..self }
    }

    /// Gathers of operands become a gather or a reduction of the result.
    const fn outward(self, others: Others) -> Rule {
        Rule { apply: Apply::Gather(Instance { others, both_ways: false }), ..self }
    }

    /// The same, and a gather of the result becomes gathers of the operands.
    const fn both_ways(self, others: Others) -> Rule {
        Rule { apply: Apply::Gather(Instance { others, both_ways: true }), ..self }
    }
}

/// Every rule, by number.
pub fn all_rules() -> &'static [Rule] {
    use Tag::{Exact, Reassociates};
    type H = Heads;
    /// Operations whose gathers only rule 20 covers.
    const REST: Heads = H::REDUCE.or(H::SCATTER_ADD).or(H::TAKE).or(H::OTHER);
    const RULES: &[Rule] = &[
        Rule::new(1, "split a reduction", Exact, "all_reduce(x) = all_gather_d(reduce_scatter_d(x))")
            .on(&[(H::ALL_REDUCE, H::ANY)])
            .by(reduction::split),
        Rule::new(2, "slice of a reduction", Exact, "slice_d(all_reduce(x)) = reduce_scatter_d(x)")
            .on(&[(H::SHARD_SLICE, H::ALL_REDUCE)])
            .by(reduction::scatter),
        Rule::new(3, "slice of a gather", Exact, "slice_d(all_gather_d(x)) = x")
            .on(&[(H::SHARD_SLICE, H::ALL_GATHER)])
            .by(cancel::slice_of_gather),
        Rule::new(4, "gather of a slice", Exact, "all_gather_d(slice_d(x)) = x")
            .on(&[(H::ALL_GATHER, H::SHARD_SLICE)])
            .by(cancel::gather_of_slice),
        Rule::new(5, "exchange", Exact, "slice_t(all_gather_s(x)) = all_to_all_{s->t}(x), and inverses")
            .on(&[(H::SHARD_SLICE, H::ALL_GATHER), (H::ALL_TO_ALL, H::ALL_TO_ALL), (H::ALL_GATHER, H::ALL_TO_ALL)])
            .by(cancel::exchange),
        Rule::new(6, "reduction of an invariant", Exact, "all_reduce(to_partial(x)) = x")
            .on(&[(H::ALL_REDUCE.or(H::REDUCE_SCATTER), H::TO_PARTIAL)])
            .by(cancel::reduce_of_invariant),
        Rule::new(7, "sum of reductions", Reassociates, "all_reduce(x) + all_reduce(y) = all_reduce(x + y)")
            .on(&[(H::COMPUTES, H::ALL_REDUCE.or(H::REDUCE_SCATTER))])
            .when(&[JointlyLinear])
            .by(merge::sum_of_reductions),
        Rule::new(8, "sum with an invariant", Reassociates, "all_reduce(x) + y = all_reduce(x + to_partial(y))")
            .on(&[(H::ELEMENTWISE, H::ALL_REDUCE)])
            .by(merge::sum_with_invariant),
        Rule::new(9, "linear", Reassociates, "f(all_reduce(x), c) = all_reduce(f(x, c)), f linear")
            .on(&[(H::COMPUTES, H::ALL_REDUCE), (H::ALL_REDUCE, H::COMPUTES)])
            .when(&[Linear])
            .by(reduction::linear),
        Rule::new(10, "increasing", Exact, "g(all_reduce_max(x)) = all_reduce_max(g(x)), g increasing")
            .on(&[(H::COMPUTES, H::ALL_REDUCE)])
            .when(&[Increasing])
            .by(reduction::increasing),
        Rule::new(11, "elementwise, gathered", Exact, "f(all_gather_d(x), all_gather_d(y)) = all_gather_d(f(x, y))")
            .on(&[(H::ELEMENTWISE, H::ALL_GATHER), (H::ALL_GATHER, H::ELEMENTWISE)])
            .when(&[Keeps])
            .both_ways(Gathered),
        Rule::new(12, "elementwise, sliced", Exact, "f(all_gather_d(x), y) = all_gather_d(f(x, slice_d(y)))")
            .on(&[(H::ELEMENTWISE, H::ALL_GATHER)])
            .when(&[Keeps])
            .outward(Sliced),
        Rule::new(13, "product, kept index", Exact, "einsum(all_gather_d(x), w) = all_gather_d(einsum(x, w))")
            .on(&[(H::EINSUM, H::ALL_GATHER), (H::ALL_GATHER, H::EINSUM)])
            .when(&[Keeps])
            .both_ways(Any),
        Rule::new(
            14,
            "product, summed index, gathered",
            Reassociates,
            "einsum(all_gather_k(x), all_gather_k(w)) = all_reduce(einsum(x, w))",
        )
        .on(&[(H::EINSUM, H::ALL_GATHER)])
        .when(&[Reduces])
        .outward(Gathered),
        Rule::new(
            15,
            "product, summed index, sliced",
            Reassociates,
            "einsum(x, all_gather_k(w)) = all_reduce(einsum(slice_k(x), w))",
        )
        .on(&[(H::EINSUM, H::ALL_GATHER)])
        .when(&[Reduces])
        .outward(Sliced),
        Rule::new(
            16,
            "scatter of a linear result",
            Reassociates,
            "reduce_scatter_d(einsum(x, w)) = einsum(reduce_scatter_d(x), w)",
        )
        .on(&[(H::REDUCE_SCATTER, H::COMPUTES)])
        .when(&[Linear, Keeps])
        .by(reduction::scatter_operand),
        Rule::new(17, "slice of a result", Exact, "slice distributes over an operation's operands")
            .on(&[(H::SHARD_SLICE, H::COMPUTES)])
            .when(&[Keeps])
            .by(slice::distribute),
        Rule::new(18, "transpose", Exact, "transpose(all_gather_d(x)) = all_gather_e(transpose(x))")
            .on(&[(H::TRANSPOSE, H::ALL_GATHER), (H::ALL_GATHER, H::TRANSPOSE)])
            .when(&[Keeps])
            .both_ways(Any),
        Rule::new(19, "reduced dimension", Reassociates, "sum_d(all_gather_d(x)) = all_reduce(sum_d(x))")
            .on(&[(H::REDUCE.or(H::SCATTER_ADD), H::ANY)])
            .when(&[Reduces])
            .by(gather::reduced),
        Rule::new(20, "other operation, kept index", Exact, "f(all_gather_d(x)) = all_gather_d(f(x)), f keeps d")
            .on(&[(REST, H::ALL_GATHER), (H::ALL_GATHER, REST)])
            .when(&[Keeps])
            .both_ways(Any),
        Rule::new(22, "look-up", Exact, "take(all_gather_0(w), i) = all_reduce(masked local take)")
            .on(&[(H::TAKE, H::ALL_GATHER)])
            .when(&[Reduces])
            .outward(Any),
        Rule::new(23, "nested", Reassociates, "all_reduce_X(all_reduce_Y(x)) = all_reduce_{X,Y}(x), gathers likewise")
            .on(&[(H::ALL_REDUCE, H::ALL_REDUCE), (H::ALL_GATHER, H::ALL_GATHER)])
            .by(merge::nested),
        Rule::new(24, "commute", Exact, "collectives on disjoint axes and dimensions commute")
            .on(&[(H::MOVES, H::MOVES)])
            .by(merge::commute),
        Rule::new(
            RuleId::HIERARCHICAL.0,
            "hierarchical",
            Reassociates,
            "all_reduce_{X,Y}(x) = all_gather_Y(all_reduce_X(reduce_scatter_Y(x)))",
        )
        .on(&[(H::ALL_REDUCE, H::ANY)])
        .by(reduction::hierarchical),
        Rule::new(26, "cast", Exact, "all_gather(cast(x)) = cast(all_gather(x))")
            .on(&[(H::CAST, H::ALL_GATHER), (H::ALL_GATHER, H::CAST)])
            .when(&[Keeps])
            .both_ways(Any),
    ];
    RULES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_record() {
        assert!(all_rules().iter().map(|rule| rule.id).eq(RuleId::all()));
    }

    /// An operation that computes belongs to one instance of the theorem of gathers for each case: the index is kept or
    /// reduced, the other operands are gathered or sliced. Products are the only reductions with several operands.
    #[test]
    fn the_instances_of_the_theorem_overlap_nowhere_and_leave_nothing_out() {
        let instances = |head: Heads, condition: Condition, others: Others| -> Vec<u32> {
            let speaks = |rule: &&Rule| {
                let says = match rule.apply {
                    Apply::Gather(instance) => instance.others == others || instance.others == Any,
                    Apply::Own(_) => rule.id == RuleId(19),
                };
                says && rule.inner(head).meets(H::ALL_GATHER) && rule.conditions.contains(&condition)
            };
            all_rules().iter().filter(speaks).map(|rule| rule.id.number()).collect()
        };
        type H = Heads;
        for others in [Gathered, Sliced] {
            let is_gathered = others == Gathered;
            for (head, kept, reduced) in [
                (H::ELEMENTWISE, if is_gathered { 11 } else { 12 }, vec![]),
                (H::CAST, 26, vec![]),
                (H::TRANSPOSE, 18, vec![]),
                (H::EINSUM, 13, vec![if is_gathered { 14 } else { 15 }]),
                (H::REDUCE, 20, vec![19]),
                (H::SCATTER_ADD, 20, vec![19]),
                (H::TAKE, 20, vec![22]),
                (H::OTHER, 20, vec![]),
            ] {
                assert_eq!(instances(head, Keeps, others), [kept], "{head:?}, {others:?}");
                assert_eq!(instances(head, Reduces, others), reduced, "{head:?}, {others:?}");
            }
        }
    }
}
