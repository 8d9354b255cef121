//! The rules of the e-graph, one function per number, grouped by family.
//!
//! A rule looks at one term of a class and returns classes that equal it. Conditions on operations
//! are read from the factor table, so an operation that gets a row there takes part in every rule
//! without being named here.
#![doc = ""]
#![doc = include_str!("RULES.md")]

mod cancel;
mod gather;
mod merge;
mod reduction;
mod slice;

use super::term::{ClassData, Heads, Key, KeyId, Term, Typing, try_add};
use crate::rules::{Rule, rule};
use egg::{EClass, EGraph, Id};
use std::rc::Rc;
use tpc_ir::{AxisId, AxisSet, Op, ReduceOp, Type};

/// What applying a rule does to floating-point results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Nothing.
    Exact,
    /// Sums are taken in another order.
    Reassociates,
}

/// A rule: its row in the table of this module's documentation, and the function that applies it.
#[derive(Clone, Copy)]
pub struct RuleInfo {
    /// Row number.
    pub number: u32,
    /// The equality.
    pub equality: &'static str,
    /// What it does to results.
    pub tag: Tag,
    /// On which terms it may find something: their kind, and the kinds of which an operand must have a term.
    on: &'static [(Heads, Heads)],
    apply: fn(&mut Site, &Term) -> Vec<Id>,
}

impl std::fmt::Debug for RuleInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rule {}: {}", self.number, self.equality)
    }
}

/// The number of the rule that takes a reduction apart along axes of different speeds: where all links are alike, it never fires.
pub const HIERARCHICAL: u32 = 25;

/// Every rule, by number.
pub fn all_rules() -> &'static [RuleInfo] {
    use Tag::{Exact, Reassociates};
    type Apply = fn(&mut Site, &Term) -> Vec<Id>;
    type On = &'static [(Heads, Heads)];
    const fn rule(number: u32, tag: Tag, on: On, equality: &'static str, apply: Apply) -> RuleInfo {
        RuleInfo { number, equality, tag, on, apply }
    }
    const COMPUTES: Heads = Heads::COMPUTES;
    const REDUCE: Heads = Heads::ALL_REDUCE;
    const GATHER: Heads = Heads::ALL_GATHER;
    const SCATTER: Heads = Heads::REDUCE_SCATTER;
    const EXCHANGE: Heads = Heads::ALL_TO_ALL;
    const SLICE: Heads = Heads::SLICE;
    const ANY: Heads = COMPUTES.and(Heads::MOVES).and(Heads::INPUT);
    /// A gather of an operand moves to the result.
    const OUT: On = &[(COMPUTES, GATHER)];
    /// And back.
    const BOTH: On = &[(COMPUTES, GATHER), (GATHER, COMPUTES)];
    const RULES: &[RuleInfo] = &[
        rule(1, Exact, &[(REDUCE, ANY)], "all_reduce(x) = all_gather_d(reduce_scatter_d(x))", reduction::split),
        rule(2, Exact, &[(SLICE, REDUCE)], "slice_d(all_reduce(x)) = reduce_scatter_d(x)", reduction::scatter),
        rule(3, Exact, &[(SLICE, GATHER)], "slice_d(all_gather_d(x)) = x", cancel::slice_of_gather),
        rule(4, Exact, &[(GATHER, SLICE)], "all_gather_d(slice_d(x)) = x", cancel::gather_of_slice),
        rule(
            5,
            Exact,
            &[(SLICE, GATHER), (EXCHANGE, EXCHANGE), (GATHER, EXCHANGE)],
            "slice_t(all_gather_s(x)) = all_to_all_{s->t}(x), and inverses",
            cancel::exchange,
        ),
        rule(
            6,
            Exact,
            &[(REDUCE.and(SCATTER), Heads::TO_PARTIAL)],
            "all_reduce(to_partial(x)) = x",
            cancel::reduce_of_invariant,
        ),
        rule(
            7,
            Reassociates,
            &[(COMPUTES, REDUCE.and(SCATTER))],
            "all_reduce(x) + all_reduce(y) = all_reduce(x + y)",
            merge::sum_of_reductions,
        ),
        rule(
            8,
            Reassociates,
            &[(COMPUTES, REDUCE)],
            "all_reduce(x) + y = all_reduce(x + to_partial(y))",
            merge::sum_with_invariant,
        ),
        rule(
            9,
            Reassociates,
            &[(COMPUTES, REDUCE), (REDUCE, COMPUTES)],
            "f(all_reduce(x), c) = all_reduce(f(x, c)), f linear",
            reduction::linear,
        ),
        rule(
            10,
            Exact,
            &[(COMPUTES, REDUCE)],
            "g(all_reduce_max(x)) = all_reduce_max(g(x)), g increasing",
            reduction::increasing,
        ),
        rule(
            11,
            Exact,
            BOTH,
            "f(all_gather_d(x), all_gather_d(y)) = all_gather_d(f(x, y))",
            gather::elementwise_gathered,
        ),
        rule(12, Exact, OUT, "f(all_gather_d(x), y) = all_gather_d(f(x, slice_d(y)))", gather::elementwise_sliced),
        rule(13, Exact, BOTH, "einsum(all_gather_d(x), w) = all_gather_d(einsum(x, w))", gather::product_kept),
        rule(
            14,
            Reassociates,
            OUT,
            "einsum(all_gather_k(x), all_gather_k(w)) = all_reduce(einsum(x, w))",
            gather::product_summed,
        ),
        rule(
            15,
            Reassociates,
            OUT,
            "einsum(x, all_gather_k(w)) = all_reduce(einsum(slice_k(x), w))",
            gather::product_summed_sliced,
        ),
        rule(
            16,
            Reassociates,
            &[(SCATTER, COMPUTES)],
            "reduce_scatter_d(einsum(x, w)) = einsum(reduce_scatter_d(x), w)",
            reduction::scatter_operand,
        ),
        rule(17, Exact, &[(SLICE, COMPUTES)], "slice distributes over an operation's operands", slice::distribute),
        rule(18, Exact, BOTH, "transpose(all_gather_d(x)) = all_gather_e(transpose(x))", gather::transposed),
        rule(19, Reassociates, &[(COMPUTES, ANY)], "sum_d(all_gather_d(x)) = all_reduce(sum_d(x))", gather::reduced),
        rule(20, Exact, BOTH, "a row-wise operation commutes with all_gather_d", gather::row_wise),
        rule(22, Exact, OUT, "take(all_gather_0(w), i) = all_reduce(masked local take)", gather::looked_up),
        rule(
            23,
            Reassociates,
            &[(REDUCE, REDUCE), (GATHER, GATHER)],
            "all_reduce_X(all_reduce_Y(x)) = all_reduce_{X,Y}(x), gathers likewise",
            merge::nested,
        ),
        rule(
            24,
            Exact,
            &[(Heads::MOVES, Heads::MOVES)],
            "collectives on disjoint axes and dimensions commute",
            merge::commute,
        ),
        rule(
            HIERARCHICAL,
            Reassociates,
            &[(REDUCE, ANY)],
            "all_reduce_{X,Y}(x) = all_gather_Y(all_reduce_X(reduce_scatter_Y(x)))",
            reduction::hierarchical,
        ),
        rule(26, Exact, BOTH, "all_gather(cast(x)) = cast(all_gather(x))", gather::cast),
    ];
    RULES
}

impl RuleInfo {
    /// Whether it may find something in a class.
    pub(super) fn concerns(&self, class: &ClassData) -> bool {
        self.on.iter().any(|(heads, _)| class.heads.meets(*heads))
    }

    /// Whether it may find something at a term.
    fn finds(&self, egraph: &EGraph<Term, Typing>, term: &Term) -> bool {
        let head = egraph.analysis.head(term.key);
        let below = |heads: Heads| term.children.iter().any(|&c| egraph[c].data.heads.meets(heads));
        self.on.iter().any(|(own, operands)| head.meets(*own) && below(*operands))
    }

    /// Applies it to every term of a class. The terms that it was applied to.
    pub(super) fn apply(&self, egraph: &mut EGraph<Term, Typing>, class: Id) -> usize {
        let terms: Vec<Term> = first_alike(egraph, &egraph[class]).filter(|t| self.finds(egraph, t)).cloned().collect();
        for term in &terms {
            let origin = egraph.analysis.origin_number(term, &egraph[class].data);
            let mut site = Site { egraph, class, origin, number: self.number };
            for id in (self.apply)(&mut site, term) {
                egraph.union(class, id);
            }
        }
        terms.len()
    }
}

/// How many operands of one redistribution a rule looks at in one class. Different partial values
/// reduce to the same value, and every one that is moved makes more of them (on two axes by the
/// thousand); they have the same type, and the first are those of the program.
const ALIKE: usize = 4;

/// The terms of a class; of each redistribution the first [`ALIKE`].
fn first_alike<'a>(
    egraph: &'a EGraph<Term, Typing>,
    class: &'a EClass<Term, ClassData>,
) -> impl Iterator<Item = &'a Term> {
    let mut alike: Vec<(KeyId, usize)> = Vec::new();
    class.nodes.iter().filter(move |term| {
        if !egraph.analysis.head(term.key).meets(Heads::MOVES) {
            return true;
        }
        let at = alike.iter().position(|a| a.0 == term.key).unwrap_or_else(|| {
            alike.push((term.key, 0));
            alike.len() - 1
        });
        alike[at].1 += 1;
        alike[at].1 <= ALIKE
    })
}

/// Where a rule is applied: the e-graph and how to add to it.
pub struct Site<'a> {
    egraph: &'a mut EGraph<Term, Typing>,
    class: Id,
    /// The provenance of what a rule makes: that of the term, or of the redistribution that it moves.
    origin: u32,
    number: u32,
}

/// A redistribution that a class is: its operation, its operand and its provenance.
struct Moved {
    key: Rc<Key>,
    operand: Id,
    origin: u32,
}

impl Site<'_> {
    fn key(&self, term: &Term) -> Rc<Key> {
        self.egraph.analysis.key(term.key).clone()
    }

    fn ty(&self, id: Id) -> &Type {
        &self.egraph[id].data.ty
    }

    /// The terms of a class that compute.
    fn computed(&self, id: Id) -> Vec<Term> {
        let computes = |t: &&Term| self.egraph.analysis.head(t.key) == Heads::COMPUTES;
        self.egraph[id].nodes.iter().filter(computes).cloned().collect()
    }

    /// The operand of a term of the class that is exactly this redistribution.
    fn under(&self, id: Id, op: &Op) -> Option<Id> {
        let class = &self.egraph[id];
        if !class.data.heads.meets(Heads::of(op)) {
            return None;
        }
        class.nodes.iter().find(|t| self.egraph.analysis.key(t.key).op == *op).map(|t| t.children[0])
    }

    /// The redistributions of these kinds in a class, of each the first [`ALIKE`].
    fn redistributions(&self, id: Id, kinds: Heads) -> Vec<Moved> {
        let class = &self.egraph[id];
        if !class.data.heads.meets(kinds) {
            return Vec::new();
        }
        let typing = &self.egraph.analysis;
        let found = first_alike(self.egraph, class).filter(|t| typing.head(t.key).meets(kinds));
        let moved = |t: &Term| Moved {
            key: typing.key(t.key).clone(),
            operand: t.children[0],
            origin: typing.origin_number(t, &class.data),
        };
        found.map(moved).collect()
    }

    /// What is made from here on is there because a redistribution is.
    fn because(&mut self, moved: &Moved) {
        self.origin = moved.origin;
    }

    /// The first [`ALIKE`] slices of a class that others read: dimension, axes, class.
    fn slices(&self, id: Id) -> Vec<(usize, Vec<AxisId>, Id)> {
        let mut found: Vec<(usize, Vec<AxisId>, Id)> = Vec::new();
        for reader in self.egraph[id].parents() {
            let reader = self.egraph.find(reader);
            if !self.egraph[reader].data.heads.meets(Heads::SLICE) {
                continue;
            }
            for term in self.egraph[reader].nodes.iter().filter(|t| t.children == [id]) {
                if let Op::ShardSlice { dim, axes } = &self.egraph.analysis.key(term.key).op {
                    let slice = (*dim, axes.clone(), reader);
                    if found.len() < ALIKE && !found.contains(&slice) {
                        found.push(slice);
                    }
                }
            }
        }
        found
    }

    /// The factor rule of a term that computes (neither redistributes nor comes from outside).
    fn row(&self, term: &Term) -> Option<Rule> {
        let key = self.egraph.analysis.key(term.key);
        if self.egraph.analysis.head(term.key) != Heads::COMPUTES || key.several {
            return None;
        }
        let operands: Vec<&Type> = term.children.iter().map(|&c| self.ty(c)).collect();
        let result = Type::new(key.dtype, key.shape.clone());
        Some(rule(&key.op, &operands, &[&result]))
    }

    /// Adds a redistribution of a class.
    fn redistribute(&mut self, op: Op, operand: Id) -> Option<Id> {
        let ty = self.ty(operand);
        let key = Key { op, result: 0, several: false, dtype: ty.dtype, shape: ty.shape.clone(), given: None };
        let key = self.egraph.analysis.intern(key);
        try_add(self.egraph, key, vec![operand], self.origin, self.number)
    }

    /// Adds the operation of `term` on other operands.
    fn again(&mut self, term: &Term, operands: Vec<Id>) -> Option<Id> {
        let origin = self.egraph.analysis.origin_number(term, &self.egraph[self.class].data);
        try_add(self.egraph, term.key, operands, origin, self.number)
    }

    /// The same, where a dimension that only the result has is cut by `axes` more.
    fn again_cut(&mut self, term: &Term, operands: Vec<Id>, dim: usize, axes: &[AxisId]) -> Option<Id> {
        let mut key = Key::clone(self.egraph.analysis.key(term.key));
        if let Some(given) = &mut key.given {
            given.dims[dim].extend_from_slice(axes);
        }
        let origin = self.egraph.analysis.origin_number(term, &self.egraph[self.class].data);
        let key = self.egraph.analysis.intern(key);
        try_add(self.egraph, key, operands, origin, self.number)
    }

    /// Adds a part of the sum `term`.
    fn part(&mut self, term: &Term, key: Key, operands: Vec<Id>) -> Option<Id> {
        let origin = self.egraph.analysis.origin_number(term, &self.egraph[self.class].data);
        let key = self.egraph.analysis.intern(key);
        try_add(self.egraph, key, operands, origin, self.number)
    }

    fn invariant(&self, id: Id, axes: AxisSet) -> bool {
        axes.iter().all(|a| self.ty(id).sharding.is_invariant(a))
    }
}

/// Whether an operation is an all-reduce with this operator.
fn all_reduce(op: &Op) -> Option<(ReduceOp, AxisSet)> {
    match op {
        Op::AllReduce { op, axes } => Some((*op, *axes)),
        _ => None,
    }
}
