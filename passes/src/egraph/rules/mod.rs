//! The equalities of RULES.md section 3, one function per number, grouped by family.
//!
//! A rule looks at one term of a class and returns classes that equal it. Conditions on operations
//! are read from the factor table, so an operation that gets a row there takes part in every rule
//! without being named here.

mod cancel;
mod gather;
mod merge;
mod reduction;
mod slice;

use super::term::{Key, KeyId, Term, Typing, try_add};
use crate::rules::{Rule, rule};
use egg::{Applier, EGraph, Id, PatternAst, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var};
use std::collections::HashMap;
use tpc_ir::{AxisId, AxisSet, Op, ReduceOp, Type};

/// What applying a rule does to floating-point results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Nothing.
    Exact,
    /// Sums are taken in another order.
    Reassociates,
}

/// A rule: its row in RULES.md section 3 and the function that applies it.
#[derive(Clone, Copy)]
pub struct RuleInfo {
    /// Row number.
    pub number: u32,
    /// The equality.
    pub equality: &'static str,
    /// What it does to results.
    pub tag: Tag,
    apply: fn(&mut Site, &Term) -> Vec<Id>,
}

impl std::fmt::Debug for RuleInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rule {}: {}", self.number, self.equality)
    }
}

/// Every rule, by number.
pub fn all_rules() -> &'static [RuleInfo] {
    use Tag::{Exact, Reassociates};
    const fn rule(number: u32, tag: Tag, equality: &'static str, apply: fn(&mut Site, &Term) -> Vec<Id>) -> RuleInfo {
        RuleInfo { number, equality, tag, apply }
    }
    const RULES: &[RuleInfo] = &[
        rule(1, Exact, "all_reduce(x) = all_gather_d(reduce_scatter_d(x))", reduction::split),
        rule(2, Exact, "slice_d(all_reduce(x)) = reduce_scatter_d(x)", reduction::scatter),
        rule(3, Exact, "slice_d(all_gather_d(x)) = x", cancel::slice_of_gather),
        rule(4, Exact, "all_gather_d(slice_d(x)) = x", cancel::gather_of_slice),
        rule(5, Exact, "slice_t(all_gather_s(x)) = all_to_all_{s->t}(x), and inverses", cancel::exchange),
        rule(6, Exact, "all_reduce(to_partial(x)) = x", cancel::reduce_of_invariant),
        rule(7, Reassociates, "all_reduce(x) + all_reduce(y) = all_reduce(x + y)", merge::sum_of_reductions),
        rule(8, Reassociates, "all_reduce(x) + y = all_reduce(x + to_partial(y))", merge::sum_with_invariant),
        rule(9, Reassociates, "f(all_reduce(x), c) = all_reduce(f(x, c)), f linear", reduction::linear),
        rule(10, Exact, "g(all_reduce_max(x)) = all_reduce_max(g(x)), g increasing", reduction::increasing),
        rule(11, Exact, "f(all_gather_d(x), all_gather_d(y)) = all_gather_d(f(x, y))", gather::elementwise_gathered),
        rule(12, Exact, "f(all_gather_d(x), y) = all_gather_d(f(x, slice_d(y)))", gather::elementwise_sliced),
        rule(13, Exact, "einsum(all_gather_d(x), w) = all_gather_d(einsum(x, w))", gather::product_kept),
        rule(
            14,
            Reassociates,
            "einsum(all_gather_k(x), all_gather_k(w)) = all_reduce(einsum(x, w))",
            gather::product_summed,
        ),
        rule(
            15,
            Reassociates,
            "einsum(x, all_gather_k(w)) = all_reduce(einsum(slice_k(x), w))",
            gather::product_summed_sliced,
        ),
        rule(
            16,
            Reassociates,
            "reduce_scatter_d(einsum(x, w)) = einsum(reduce_scatter_d(x), w)",
            reduction::scatter_operand,
        ),
        rule(17, Exact, "slice distributes over an operation's operands", slice::distribute),
        rule(18, Exact, "transpose commutes with every collective", gather::transposed),
        rule(19, Reassociates, "sum_d(all_gather_d(x)) = all_reduce(sum_d(x))", gather::reduced),
        rule(20, Exact, "a row-wise operation commutes with all_gather_d", gather::row_wise),
        rule(22, Exact, "take(all_gather_0(w), i) = all_reduce(masked local take)", gather::looked_up),
        rule(23, Reassociates, "all_reduce_X(all_reduce_Y(x)) = all_reduce_{X,Y}(x), gathers likewise", merge::nested),
        rule(24, Exact, "collectives on disjoint axes and dimensions commute", merge::commute),
        rule(
            25,
            Reassociates,
            "all_reduce_{X,Y}(x) = all_gather_Y(all_reduce_X(reduce_scatter_Y(x)))",
            reduction::hierarchical,
        ),
        rule(26, Exact, "all_gather(cast(x)) = cast(all_gather(x))", gather::cast),
    ];
    RULES
}

impl RuleInfo {
    /// The rule for egg's runner.
    pub fn rewrite(&self) -> Rewrite<Term, Typing> {
        Rewrite::new(format!("rule {}", self.number), Everywhere, *self).expect("the rule binds no variables")
    }
}

/// Matches every class in which there is something to move: a redistribution, or a term with an
/// operand that is one. Rules look at the terms themselves.
struct Everywhere;

fn worth_a_look(egraph: &EGraph<Term, Typing>, class: Id) -> bool {
    let class = &egraph[class];
    class.data.moves || class.nodes.iter().any(|t| t.children.iter().any(|&c| egraph[c].data.moves))
}

impl Searcher<Term, Typing> for Everywhere {
    fn search_eclass_with_limit(
        &self,
        egraph: &EGraph<Term, Typing>,
        eclass: Id,
        _: usize,
    ) -> Option<SearchMatches<'_, Term>> {
        worth_a_look(egraph, eclass).then(|| SearchMatches { eclass, substs: vec![Subst::default()], ast: None })
    }

    fn search_with_limit(&self, egraph: &EGraph<Term, Typing>, limit: usize) -> Vec<SearchMatches<'_, Term>> {
        egraph.classes().filter_map(|c| self.search_eclass_with_limit(egraph, c.id, limit)).collect()
    }

    fn vars(&self) -> Vec<Var> {
        Vec::new()
    }
}

impl Applier<Term, Typing> for RuleInfo {
    fn apply_one(
        &self,
        egraph: &mut EGraph<Term, Typing>,
        class: Id,
        _: &Subst,
        _: Option<&PatternAst<Term>>,
        _: Symbol,
    ) -> Vec<Id> {
        let mut changed = Vec::new();
        let mut alike: HashMap<KeyId, usize> = HashMap::new();
        for term in egraph[class].nodes.clone() {
            if egraph.analysis.key(term.key).op.is_redistribution() {
                let count = alike.entry(term.key).or_default();
                *count += 1;
                if *count > ALIKE {
                    continue;
                }
            }
            let origin = egraph.analysis.origin_number(&term, &egraph[class].data);
            let mut site = Site { egraph, class, origin, number: self.number };
            for id in (self.apply)(&mut site, &term) {
                if egraph.union(class, id) {
                    changed.push(class);
                }
            }
        }
        changed
    }
}

/// How many operands of one redistribution a rule looks at in one class. Different partial values
/// reduce to the same value, and every one that is moved makes more of them (on two axes by the
/// thousand); they have the same type, and the first are those of the program.
const ALIKE: usize = 4;

/// Where a rule is applied: the e-graph and how to add to it.
pub struct Site<'a> {
    egraph: &'a mut EGraph<Term, Typing>,
    class: Id,
    origin: u32,
    number: u32,
}

impl Site<'_> {
    fn op(&self, term: &Term) -> Op {
        self.egraph.analysis.key(term.key).op.clone()
    }

    fn ty(&self, id: Id) -> &Type {
        &self.egraph[id].data.ty
    }

    /// The operation of every term of a class with its operands.
    fn terms(&self, id: Id) -> Vec<(Op, Term)> {
        self.egraph[id].nodes.iter().map(|t| (self.op(t), t.clone())).collect()
    }

    /// The operand of a term of the class that is exactly this redistribution.
    fn under(&self, id: Id, op: &Op) -> Option<Id> {
        self.egraph[id].nodes.iter().find(|t| self.egraph.analysis.key(t.key).op == *op).map(|t| t.children[0])
    }

    /// The redistributions in a class with their operands, of each redistribution the first
    /// [`ALIKE`].
    fn redistributions(&self, id: Id) -> Vec<(Op, Id)> {
        let mut found: Vec<(Op, Id)> = Vec::new();
        let mut alike: HashMap<KeyId, usize> = HashMap::new();
        for term in &self.egraph[id].nodes {
            if !self.egraph.analysis.key(term.key).op.is_redistribution() {
                continue;
            }
            let count = alike.entry(term.key).or_default();
            *count += 1;
            if *count <= ALIKE {
                found.push((self.op(term), term.children[0]));
            }
        }
        found
    }

    /// The first [`ALIKE`] slices of a class that others read: dimension, axes, class.
    fn slices(&self, id: Id) -> Vec<(usize, Vec<AxisId>, Id)> {
        let mut found: Vec<(usize, Vec<AxisId>, Id)> = Vec::new();
        for reader in self.egraph[id].parents() {
            let reader = self.egraph.find(reader);
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
        if key.op.is_redistribution() || key.several || matches!(key.op, Op::Input { .. }) {
            return None;
        }
        let operands: Vec<&Type> = term.children.iter().map(|&c| self.ty(c)).collect();
        let result = Type::new(key.dtype, key.shape.clone());
        Some(rule(&key.op, &operands, &[&result]))
    }

    /// Adds a redistribution of a class.
    fn redistribute(&mut self, op: Op, operand: Id) -> Option<Id> {
        let ty = self.ty(operand).clone();
        let key = Key { op, result: 0, several: false, dtype: ty.dtype, shape: ty.shape, given: None };
        try_add(self.egraph, key, vec![operand], self.origin, self.number)
    }

    /// Adds the operation of `term` on other operands.
    fn again(&mut self, term: &Term, operands: Vec<Id>) -> Option<Id> {
        let key = self.egraph.analysis.key(term.key).clone();
        let number = self.number;
        try_add(self.egraph, key, operands, self.origin, number)
    }

    /// The same, where a dimension that only the result has is cut by `axes` more.
    fn again_cut(&mut self, term: &Term, operands: Vec<Id>, dim: usize, axes: &[AxisId]) -> Option<Id> {
        let mut key = self.egraph.analysis.key(term.key).clone();
        if let Some(given) = &mut key.given {
            given.dims[dim].extend_from_slice(axes);
        }
        let number = self.number;
        try_add(self.egraph, key, operands, self.origin, number)
    }

    /// Adds a sum of classes read with these letters.
    fn add_key(&mut self, key: Key, operands: Vec<Id>) -> Option<Id> {
        let number = self.number;
        try_add(self.egraph, key, operands, self.origin, number)
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
