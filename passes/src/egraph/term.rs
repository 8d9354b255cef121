//! Terms of the e-graph and the type of a class.

use crate::rules::{place, place_redistribution, rule};
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use tpc_ir::{DType, Mesh, Op, Origin, Sharding, Type};

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
    /// The result's placement where the operands do not determine it: constants, broadcasts, the
    /// rows of a scatter. The same local tensor can be different values. Dimensions that operands do
    /// determine are left empty, so that the operation can move to operands that lie elsewhere.
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
    /// Number of the provenance of the class's first term.
    pub origin: u32,
    /// Whether some term of the class is a redistribution: where rules find something to move.
    pub moves: bool,
}

/// The analysis: interned keys, the mesh, provenance.
#[derive(Debug)]
pub struct Typing {
    /// The mesh.
    pub mesh: Mesh,
    keys: Vec<Key>,
    numbers: HashMap<Key, KeyId>,
    origins: Vec<Origin>,
    /// Provenance and rule of every term that was added.
    made: HashMap<Term, (u32, u32)>,
    /// Provenance of the term being added now.
    current: RefCell<u32>,
}

impl Typing {
    /// An empty analysis.
    pub fn new(mesh: Mesh) -> Self {
        Typing {
            mesh,
            keys: Vec::new(),
            numbers: HashMap::new(),
            origins: Vec::new(),
            made: HashMap::new(),
            current: RefCell::new(0),
        }
    }

    /// The key of that number.
    pub fn key(&self, id: KeyId) -> &Key {
        &self.keys[id as usize]
    }

    /// Number of a key.
    pub fn intern(&mut self, key: Key) -> KeyId {
        if let Some(&id) = self.numbers.get(&key) {
            return id;
        }
        self.keys.push(key.clone());
        let id = (self.keys.len() - 1) as KeyId;
        self.numbers.insert(key, id);
        id
    }

    /// Number of a provenance.
    pub fn origin(&mut self, origin: &Origin) -> u32 {
        if self.origins.last() != Some(origin) {
            self.origins.push(origin.clone());
        }
        (self.origins.len() - 1) as u32
    }

    /// The rule that made a term, 0 if the program had it.
    pub fn rule_of(&self, term: &Term) -> u32 {
        self.made.get(term).map_or(0, |m| m.1)
    }

    /// Number of a term's provenance: its own, else that of its class.
    pub fn origin_number(&self, term: &Term, class: &ClassData) -> u32 {
        self.made.get(term).map_or(class.origin, |m| m.0)
    }

    /// Provenance of a term: its own, else that of its class.
    pub fn origin_of(&self, term: &Term, class: &ClassData) -> Origin {
        let (number, rule) = self.made.get(term).copied().unwrap_or((class.origin, 0));
        let mut origin = self.origins[number as usize].clone();
        if rule > 0 && self.key(term.key).op.is_redistribution() {
            let reason = if origin.why.is_empty() { String::new() } else { format!("{}; ", origin.why) };
            let marker = format!("rule {rule}");
            if !reason.contains(&marker) {
                origin.why = Arc::from(format!("{reason}{marker}"));
            }
        }
        origin
    }
}

impl Analysis<Term> for Typing {
    type Data = ClassData;

    fn make(egraph: &mut EGraph<Term, Self>, term: &Term, _id: Id) -> ClassData {
        let sharding = infer(egraph, term).expect("only typed terms are added");
        let key = egraph.analysis.key(term.key);
        let ty = Type { dtype: key.dtype, shape: key.shape.clone(), sharding };
        let moves = key.op.is_redistribution();
        ClassData { ty, origin: *egraph.analysis.current.borrow(), moves }
    }

    fn merge(&mut self, a: &mut ClassData, b: ClassData) -> DidMerge {
        // An unsound rule shows here before it shows in a number.
        assert_eq!(a.ty, b.ty, "a rule merged two classes of different type");
        let earlier = b.origin < a.origin;
        if earlier {
            a.origin = b.origin;
        }
        let (mine, other) = (a.moves, b.moves);
        a.moves |= b.moves;
        DidMerge(earlier || a.moves != mine, (!earlier && a.origin < b.origin) || a.moves != other)
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
    let mut row = rule(&key.op, &operands, &if key.several { vec![&result; 2] } else { vec![&result] });
    row.results = vec![row.results[key.result as usize].clone()];
    place(&row, &operands, key.given.as_ref()).ok()
}

/// Adds a term whose type is known to exist.
pub fn add(egraph: &mut EGraph<Term, Typing>, key: Key, children: Vec<Id>, origin: u32) -> Id {
    let key = egraph.analysis.intern(key);
    *egraph.analysis.current.borrow_mut() = origin;
    let term = Term { key, children };
    egraph.analysis.made.entry(term.clone()).or_insert((origin, 0));
    egraph.add(term)
}

/// Adds a term that a rule makes; `None` if its operands cannot be combined.
pub fn try_add(egraph: &mut EGraph<Term, Typing>, key: Key, children: Vec<Id>, origin: u32, rule: u32) -> Option<Id> {
    let key = egraph.analysis.intern(key);
    let term = canonical(egraph, Term { key, children });
    if let Some(id) = egraph.lookup(term.clone()) {
        return Some(id);
    }
    infer(egraph, &term)?;
    *egraph.analysis.current.borrow_mut() = origin;
    egraph.analysis.made.entry(term.clone()).or_insert((origin, rule));
    Some(egraph.add(term))
}

/// A term with canonical children.
pub fn canonical(egraph: &EGraph<Term, Typing>, mut term: Term) -> Term {
    for c in &mut term.children {
        *c = egraph.find(*c);
    }
    term
}
