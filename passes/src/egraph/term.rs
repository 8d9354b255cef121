//! Terms of the e-graph and the type of a class.

use super::heads::Heads;
use super::provenance::{Derivations, TermId};
use super::rules::RuleId;
use crate::factors::{place_redistribution, result_sharding, row_of};
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::hash::Hash;
use std::rc::Rc;
use tpc_ir::reason::Cause;
use tpc_ir::{AxisId, DType, Mesh, Op, Origin, Sharding, Type};

/// Number of an interned [`Key`].
pub type KeyId = u32;

/// An operation applied to classes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    /// The operation and what it says about its result.
    pub key: KeyId,
    /// Operands.
    pub children: Vec<Id>,
}

impl Language for Term {
    type Discriminant = KeyId;

    fn discriminant(&self) -> KeyId {
        self.key
    }

    fn matches(&self, other: &Self) -> bool {
        self.key == other.key && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// What identifies an operation apart from its operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The operation.
    pub op: Op,
    /// Which of its results.
    pub result: u32,
    /// Whether it has several results.
    pub several: bool,
    /// Element type of the result.
    pub dtype: DType,
    /// Global shape of the result.
    pub shape: Vec<usize>,
    /// The placement of the result where operands do not determine it: of constants, broadcasts and the rows of a scatter.
    /// The same local tensor can be different values. Dimensions that operands determine are empty here, so that the
    /// operation can move to operands that lie elsewhere.
    pub given: Option<Sharding>,
}

impl Key {
    /// The key of one result of an operation.
    pub fn new(op: &Op, result: u32, ty: &Type, several: bool) -> Self {
        let free: Vec<usize> = match op {
            Op::Map { subs, .. } => {
                let own = |l: &u8| !subs.operands.iter().any(|o| o.contains(l));
                (0..ty.rank()).filter(|&d| own(&subs.result[d])).collect()
            }
            Op::ScatterAdd => vec![0],
            op if op.carries_type() || matches!(op, Op::Input { .. }) => (0..ty.rank()).collect(),
            _ => Vec::new(),
        };
        let always = op.carries_type() || matches!(op, Op::Input { .. });
        let given = (always || !free.is_empty()).then(|| {
            let mut given = Sharding::replicated(ty.rank());
            free.iter().for_each(|&d| given.dims[d].clone_from(&ty.sharding.dims[d]));
            given
        });
        Key { op: op.clone(), result, several, dtype: ty.dtype, shape: ty.shape.clone(), given }
    }
}

/// What is known of a class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassData {
    /// The type, with placement; all terms of the class have it.
    pub ty: Type,
    /// The kinds of its terms.
    pub heads: Heads,
}

/// What is known of a term.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    /// Its number.
    pub number: TermId,
    /// The number of its origin.
    pub origin: u32,
}

/// The analysis: the mesh, interned keys, the origins of terms, and when each class last changed.
#[derive(Debug)]
pub struct Typing {
    /// The mesh.
    pub mesh: Mesh,
    /// Bytes per second of the link of each axis.
    bandwidths: Vec<f64>,
    keys: Vec<(Rc<Key>, Heads)>,
    numbers: FxHashMap<Rc<Key>, KeyId>,
    origins: Vec<Origin>,
    made: FxHashMap<Term, Made>,
    /// How terms are derived from the program.
    pub(super) derivations: Derivations,
    /// Most terms; beyond them rules make nothing.
    pub(super) most: usize,
    /// How many changes of classes there were.
    clock: Cell<u32>,
    /// For every class, the last change of its terms or of those of one of their operands.
    changed: Vec<Cell<u32>>,
}

impl Typing {
    /// An empty analysis.
    pub fn new(mesh: Mesh, bandwidths: Vec<f64>) -> Self {
        Typing {
            mesh,
            bandwidths,
            keys: Vec::new(),
            numbers: FxHashMap::default(),
            origins: Vec::new(),
            made: FxHashMap::default(),
            derivations: Derivations::default(),
            most: usize::MAX,
            clock: Cell::new(0),
            changed: Vec::new(),
        }
    }

    /// Whether groups along one axis have a faster link than groups along the other.
    pub fn is_faster(&self, axis: AxisId, other: AxisId) -> bool {
        let connects = |axis: AxisId| self.mesh.size(axis) > 1;
        let [a, b] = [axis, other].map(|axis| self.bandwidths[axis.0 as usize]);
        connects(axis) && connects(other) && a > b
    }

    /// Whether some axis is faster than another.
    pub fn links_differ(&self) -> bool {
        self.mesh.axis_ids().any(|a| self.mesh.axis_ids().any(|b| self.is_faster(a, b)))
    }

    /// The key of that number.
    pub fn key(&self, id: KeyId) -> &Rc<Key> {
        &self.keys[id as usize].0
    }

    /// The kind of the operation of that number.
    pub fn head(&self, id: KeyId) -> Heads {
        self.keys[id as usize].1
    }

    /// Number of a key.
    pub fn intern(&mut self, key: Key) -> KeyId {
        if let Some(&id) = self.numbers.get(&key) {
            return id;
        }
        let key = Rc::new(key);
        self.keys.push((key.clone(), Heads::of(&key.op)));
        let id = (self.keys.len() - 1) as KeyId;
        self.numbers.insert(key, id);
        id
    }

    /// Number of an origin.
    pub fn origin(&mut self, origin: &Origin) -> u32 {
        if self.origins.last() != Some(origin) {
            self.origins.push(origin.clone());
        }
        (self.origins.len() - 1) as u32
    }

    /// What is known of a term that was added.
    pub(super) fn made(&self, term: &Term) -> Made {
        self.made[term]
    }

    /// The rule that a term is due to; none if the program has it.
    pub fn rule_of(&self, term: &Term) -> Option<RuleId> {
        self.derivations.due_to(self.made.get(term)?.number)
    }

    /// The origin of a term, with the rule that it is due to if it redistributes.
    pub(super) fn origin_of(&self, term: &Term) -> Origin {
        let mut origin = self.origins[self.made(term).origin as usize].clone();
        if let Some(rule) = self.rule_of(term).filter(|_| self.key(term.key).op.is_redistribution()) {
            origin.reason = origin.reason.and(Cause::Rule(rule.number()));
        }
        origin
    }

    /// The time: how many changes there were.
    pub fn now(&self) -> u32 {
        self.clock.get()
    }

    /// When the terms of a class, or of one of their operands, last changed.
    pub fn changed(&self, class: Id) -> u32 {
        self.changed.get(usize::from(class)).map_or(0, Cell::get)
    }
}

/// Notes that the terms of a class have changed, so that rules may find something in the class and in its readers.
fn touch(egraph: &EGraph<Term, Typing>, class: Id) {
    let typing = &egraph.analysis;
    let now = typing.now() + 1;
    typing.clock.set(now);
    let mark = |id: Id| {
        if let Some(changed) = typing.changed.get(usize::from(egraph.find(id))) {
            changed.set(now);
        }
    };
    mark(class);
    egraph[class].parents().for_each(mark);
}

/// Knows terms by their operands as they are after a rebuild. Terms that have become equal are one term from here on.
pub fn settle(egraph: &mut EGraph<Term, Typing>) {
    for (term, made) in std::mem::take(&mut egraph.analysis.made) {
        let term = canonical(egraph, term);
        let Typing { made: all, derivations, .. } = &mut egraph.analysis;
        let known = all.entry(term).or_insert(made);
        if known.number != made.number {
            // What the program says comes first, then what stands earlier in it.
            let order = |made: &Made| (!derivations.is_given(made.number), made.origin);
            let origin = if order(&made) < order(known) { made.origin } else { known.origin };
            *known = Made { number: derivations.merge(known.number, made.number), origin };
        }
    }
}

impl Analysis<Term> for Typing {
    type Data = ClassData;

    fn make(egraph: &mut EGraph<Term, Self>, term: &Term, _id: Id) -> ClassData {
        let sharding = infer(egraph, term).expect("only typed terms are added");
        let key = egraph.analysis.key(term.key);
        let ty = Type { dtype: key.dtype, shape: key.shape.clone(), sharding };
        ClassData { ty, heads: egraph.analysis.head(term.key) }
    }

    /// Nothing of it concerns the readers: a class keeps its type and has kinds of its own.
    fn merge(&mut self, a: &mut ClassData, b: ClassData) -> DidMerge {
        // An unsound rule shows here before it shows in a number.
        assert_eq!(a.ty, b.ty, "a rule merged two classes of different type");
        a.heads = a.heads.or(b.heads);
        DidMerge(false, false)
    }

    fn modify(egraph: &mut EGraph<Term, Self>, class: Id) {
        let needed = usize::from(class) + 1;
        if egraph.analysis.changed.len() < needed {
            egraph.analysis.changed.resize(needed, Cell::new(0));
        }
        touch(egraph, class);
    }
}

/// The placement of a term's result; `None` if its operands cannot be combined.
pub fn infer(egraph: &EGraph<Term, Typing>, term: &Term) -> Option<Sharding> {
    let key = egraph.analysis.key(term.key);
    let operands: Vec<&Type> = term.children.iter().map(|&c| &egraph[c].data.ty).collect();
    if key.op.is_redistribution() {
        return place_redistribution(&key.op, operands[0]).ok();
    }
    let result = Type::new(key.dtype, key.shape.clone());
    if operands.is_empty() {
        return key.given.clone();
    }
    let mut row = row_of(&key.op, &operands, &if key.several { vec![&result; 2] } else { vec![&result] });
    row.results = vec![row.results[key.result as usize].clone()];
    result_sharding(&row, &operands, key.given.as_ref()).ok()
}

/// Adds a term of the program.
pub fn add(egraph: &mut EGraph<Term, Typing>, key: Key, children: Vec<Id>, origin: u32) -> Id {
    let term = Term { key: egraph.analysis.intern(key), children };
    let Typing { made, derivations, .. } = &mut egraph.analysis;
    made.entry(term.clone()).or_insert_with(|| Made { number: derivations.given(), origin });
    egraph.add(term)
}

/// Adds a term that follows from other terms by a rule; `None` if its operands cannot be combined, or if there are enough
/// terms.
pub(super) fn try_add(
    egraph: &mut EGraph<Term, Typing>,
    term: Term,
    origin: u32,
    rule: RuleId,
    premises: [TermId; 2],
) -> Option<Id> {
    let term = canonical(egraph, term);
    if let Some(id) = egraph.lookup(term.clone()) {
        let product = egraph.analysis.made(&term).number;
        egraph.analysis.derivations.derive(product, rule, premises);
        return Some(id);
    }
    if egraph.nodes().len() >= egraph.analysis.most {
        return None;
    }
    infer(egraph, &term)?;
    let Typing { made, derivations, .. } = &mut egraph.analysis;
    let product = made.entry(term.clone()).or_insert_with(|| Made { number: derivations.new_term(), origin }).number;
    derivations.derive(product, rule, premises);
    let sliced = (egraph.analysis.head(term.key) == Heads::SHARD_SLICE).then(|| term.children[0]);
    let id = egraph.add(term);
    // A sum of the value may be one of the slice: rule 19 looks at the readers of its operand.
    sliced.into_iter().for_each(|operand| touch(egraph, operand));
    Some(id)
}

/// A term with canonical children.
pub fn canonical(egraph: &EGraph<Term, Typing>, mut term: Term) -> Term {
    for c in &mut term.children {
        *c = egraph.find(*c);
    }
    term
}
