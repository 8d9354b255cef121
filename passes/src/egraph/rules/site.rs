//! Where a rule is applied: a term of a class, and how to look around and to add what equals it.

use super::condition::Condition;
use super::id::RuleId;
use crate::egraph::heads::Heads;
use crate::egraph::provenance::TermId;
use crate::egraph::term::{ClassData, Key, KeyId, Made, Term, Typing, try_add};
use crate::factors::{FactorId, FactorRow as Row, row_of as row};
use egg::{EClass, EGraph, Id};
use std::cell::OnceCell;
use std::rc::Rc;
use tpc_ir::{AxisId, AxisSet, Op, ReduceOp, Type};

/// A term to which rules are applied, and the rule that is applied now.
pub struct Site<'a> {
    pub(super) egraph: &'a mut EGraph<Term, Typing>,
    pub(super) term: Term,
    own: Made,
    /// The rule.
    rule: RuleId,
    conditions: &'static [Condition],
    /// The kinds of operands of which the rule says something.
    inner: Heads,
    /// The terms that the rule has matched: the outer one and, once it is known, the inner one.
    premises: [TermId; 2],
    /// The origin of redistributions that the rule makes: that of the term, or of the redistribution that it moves.
    pub(super) origin: u32,
    /// The row of the term in the factor table, the same for every rule.
    row: OnceCell<Option<Rc<Row>>>,
}

/// A redistribution among the terms of a class.
pub struct Move {
    pub key: KeyId,
    pub operand: Id,
    number: TermId,
    origin: u32,
}

impl<'a> Site<'a> {
    /// The site of a term.
    pub fn new(egraph: &'a mut EGraph<Term, Typing>, term: Term) -> Self {
        let made = egraph.analysis.made(&term);
        Site {
            egraph,
            term,
            own: made,
            rule: RuleId::SPLIT,
            conditions: &[],
            inner: Heads::ANY,
            premises: [made.number; 2],
            origin: made.origin,
            row: OnceCell::new(),
        }
    }

    /// Begins to apply a rule that says something of operands of these kinds.
    pub fn begin(&mut self, rule: RuleId, conditions: &'static [Condition], inner: Heads) {
        (self.rule, self.conditions, self.inner) = (rule, conditions, inner);
        self.origin = self.own.origin;
        self.alone();
    }

    /// The kind of the term.
    pub fn head(&self) -> Heads {
        self.egraph.analysis.head(self.term.key)
    }

    /// The operation of the term.
    pub fn key(&self) -> Rc<Key> {
        self.key_of(self.term.key)
    }

    /// The key of that number.
    pub fn key_of(&self, key: KeyId) -> Rc<Key> {
        self.egraph.analysis.key(key).clone()
    }

    /// The type of a class.
    pub fn ty(&self, id: Id) -> &Type {
        &self.egraph[id].data.ty
    }

    /// Whether all ranks along these axes hold the same value of a class.
    pub fn is_invariant(&self, id: Id, axes: AxisSet) -> bool {
        axes.iter().all(|a| self.ty(id).sharding.is_invariant(a))
    }

    /// The row of the term, if it computes and the rule's conditions hold of it.
    pub fn row(&self) -> Option<Rc<Row>> {
        let row = self.row.get_or_init(|| self.find_row(&self.term)).clone()?;
        self.conditions.iter().all(|c| c.admits_operation(&row)).then_some(row)
    }

    /// Whether the rule may move something along an index of an operation.
    pub fn moves_along(&self, row: &Row, factor: FactorId) -> bool {
        self.conditions.iter().all(|c| c.admits_index(row.factors[factor].kind))
    }

    fn find_row(&self, term: &Term) -> Option<Rc<Row>> {
        let key = self.egraph.analysis.key(term.key);
        if !self.egraph.analysis.head(term.key).meets(Heads::COMPUTES) || key.several {
            return None;
        }
        let operands: Vec<&Type> = term.children.iter().map(|&c| self.ty(c)).collect();
        let result = Type::new(key.dtype, key.shape.clone());
        Some(Rc::new(row(&key.op, &operands, &[&result])))
    }

    /// The terms of a class that compute and are of the kinds of which the rule says something, with their rows. Only
    /// those of which the rule's conditions hold.
    pub fn computed(&self, id: Id) -> Vec<(Term, Rc<Row>)> {
        let admitted = |row: &Row| self.conditions.iter().all(|c| c.admits_operation(row));
        let is_inner = |t: &&Term| self.egraph.analysis.head(t.key).meets(self.inner);
        let terms = self.egraph[id].nodes.iter().filter(is_inner);
        terms.filter_map(|t| Some((t.clone(), self.find_row(t).filter(|row| admitted(row))?))).collect()
    }

    /// The redistributions in a class of the kinds of which the rule says something, of each operation the first [`ALIKE`].
    pub fn moves(&self, id: Id) -> Vec<Move> {
        let (typing, class) = (&self.egraph.analysis, &self.egraph[id]);
        let kinds = self.inner.common(Heads::MOVES);
        if !class.data.heads.meets(kinds) {
            return Vec::new();
        }
        let found = first_alike(self.egraph, class).filter(|t| typing.head(t.key).meets(kinds));
        let of = |t: &Term| {
            let made = typing.made(t);
            Move { key: t.key, operand: t.children[0], number: made.number, origin: made.origin }
        };
        found.map(of).collect()
    }

    /// The operand of a term of the class that is exactly this redistribution.
    pub fn under(&self, id: Id, op: &Op) -> Option<Id> {
        let class = &self.egraph[id];
        if !class.data.heads.meets(Heads::of(op)) {
            return None;
        }
        class.nodes.iter().find(|t| self.egraph.analysis.key(t.key).op == *op).map(|t| t.children[0])
    }

    /// The first [`ALIKE`] slices of a class that others read: dimension, axes, class.
    pub fn slices(&self, id: Id) -> Vec<(usize, Vec<AxisId>, Id)> {
        let mut found: Vec<(usize, Vec<AxisId>, Id)> = Vec::new();
        for reader in self.egraph[id].parents() {
            let reader = self.egraph.find(reader);
            if !self.egraph[reader].data.heads.meets(Heads::SHARD_SLICE) {
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

    /// What is added from here on follows from the term alone.
    pub fn alone(&mut self) {
        self.premises = [self.own.number; 2];
    }

    /// What is added from here on follows from this redistribution, too.
    pub fn follows(&mut self, found: &Move) {
        self.premises[1] = found.number;
    }

    /// What is added from here on follows from this redistribution and has its origin.
    pub fn because(&mut self, found: &Move) {
        self.follows(found);
        self.origin = found.origin;
    }

    /// What is added from here on follows from this term of an operand, too.
    pub fn through(&mut self, inner: &Term) {
        self.premises[1] = self.egraph.analysis.made(inner).number;
    }

    /// Adds a redistribution of a class.
    pub fn redistribute(&mut self, op: Op, operand: Id) -> Option<Id> {
        let ty = self.ty(operand);
        let key = Key { op, result: 0, several: false, dtype: ty.dtype, shape: ty.shape.clone(), given: None };
        let key = self.egraph.analysis.intern(key);
        self.add(key, vec![operand], self.origin)
    }

    /// Adds the redistribution of this key on another operand, of the same element type and shape.
    pub fn redistribute_alike(&mut self, key: KeyId, operand: Id) -> Option<Id> {
        self.add(key, vec![operand], self.origin)
    }

    /// Adds the operation of the term on other operands.
    pub fn again(&mut self, operands: Vec<Id>) -> Option<Id> {
        self.add(self.term.key, operands, self.own.origin)
    }

    /// Adds the operation of an inner term on other operands.
    pub fn again_inner(&mut self, inner: &Term, operands: Vec<Id>) -> Option<Id> {
        self.add(inner.key, operands, self.egraph.analysis.made(inner).origin)
    }

    /// Adds the operation of an inner term with a dimension that only its result has cut by `axes` more.
    pub fn again_cut(&mut self, inner: &Term, dim: usize, axes: &[AxisId]) -> Option<Id> {
        let mut key = Key::clone(self.egraph.analysis.key(inner.key));
        if let Some(given) = &mut key.given {
            given.dims[dim].extend_from_slice(axes);
        }
        let key = self.egraph.analysis.intern(key);
        self.add(key, inner.children.clone(), self.egraph.analysis.made(inner).origin)
    }

    /// Adds a part of the sum that the term is.
    pub fn part(&mut self, key: Key, operands: Vec<Id>) -> Option<Id> {
        let key = self.egraph.analysis.intern(key);
        self.add(key, operands, self.own.origin)
    }

    fn add(&mut self, key: KeyId, children: Vec<Id>, origin: u32) -> Option<Id> {
        try_add(self.egraph, Term { key, children }, origin, self.rule, self.premises)
    }
}

/// How many terms with one redistribution a rule looks at in one class. Different partial values reduce to the same
/// value, and every one that is moved makes more of them, on two axes by the thousand. They have the same type, and the
/// first are those of the program.
pub const ALIKE: usize = 4;

/// The terms of a class; of each redistribution the first [`ALIKE`].
pub fn first_alike<'a>(
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

/// How many terms of a class rules leave out.
pub fn left_out(egraph: &EGraph<Term, Typing>, class: &EClass<Term, ClassData>) -> usize {
    class.nodes.len() - first_alike(egraph, class).count()
}

/// The operator and the axes of an all-reduce.
pub fn all_reduce(op: &Op) -> Option<(ReduceOp, AxisSet)> {
    match op {
        Op::AllReduce { op, axes } => Some((*op, *axes)),
        _ => None,
    }
}
