//! Proves that a placed program computes the model: it denotes the logical graph from which it was derived.
//!
//! The proof shares nothing with the rewriting. A redistribution changes the placement of a value but not the value, so
//! it is erased. What remains is compared with the logical graph as expressions: equal operations on equal operands are
//! one expression, with global types and without placements. Sums are an exception, because rules 7 and 8 of the
//! e-graph regroup them: a sum is the multiset of its terms, each read with its own subscripts, where inner sums are
//! replaced by their terms. If the ranks compute what the types say, an erased redistribution is the identity, and an
//! operation on chunks is the operation on the whole; [`check`](mod@crate::check) proves this condition. The
//! proof takes one hash per operation and one merge per sum.
//!
//! Before: `%3 = all_reduce tp sum %1`, `%4 = all_reduce tp sum %2`, `%5 = add %3, %4, %0` and, after
//! the search, `%3 = add %1, %2`, `%4 = all_reduce tp sum %3`, `%5 = add %4, %0`: both denote
//! `{%0, %1, %2}` of the logical graph.

use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use std::collections::hash_map::Entry;
use tpc_ir::{DType, Graph, MapFn, Op, Subscripts, Type, Value, text};

/// A difference between a placed program and its logical graph.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DenoteError {
    /// The inputs are not those of the logical graph.
    #[error("input {position} is {found}, but the model has {expected}")]
    Input {
        /// The position among the inputs.
        position: usize,
        /// The input of the program at this position.
        found: String,
        /// The input of the logical graph at this position.
        expected: String,
    },
    /// The outputs are not those of the logical graph.
    #[error("output {position} is {found}, but the model has {expected}")]
    Output {
        /// The position among the outputs.
        position: usize,
        /// The output of the program at this position.
        found: String,
        /// The output of the logical graph at this position.
        expected: String,
    },
    /// An output is computed differently. The error has the first operation on the path to it that differs.
    #[error(
        "output {output} does not denote that of the model: %{node} {op} in `{module}`\n  found:    {found}\n  expected: {expected}"
    )]
    Value {
        /// The output that is wrong.
        output: String,
        /// The number of the node in the placed graph.
        node: usize,
        /// Its operation.
        op: Box<str>,
        /// Its module path.
        module: Box<str>,
        /// The operation in the program, without redistributions.
        found: String,
        /// The operation in the logical graph, and its location.
        expected: String,
    },
}

/// Which values of a placed program are which of its logical graph.
#[derive(Debug)]
pub struct SameValues {
    logical: FxHashMap<Value, Id>,
    placed: FxHashMap<Value, Id>,
}

impl SameValues {
    /// A function from a value of the logical graph to all values of the placed program that denote it, in order.
    pub fn by_value(&self) -> impl Fn(Value) -> Vec<Value> + '_ {
        let mut placed: FxHashMap<Id, Vec<Value>> = FxHashMap::default();
        self.placed.iter().for_each(|(&value, &id)| placed.entry(id).or_default().push(value));
        placed.values_mut().for_each(|values| values.sort_unstable());
        move |value| self.logical.get(&value).and_then(|id| placed.get(id)).cloned().unwrap_or_default()
    }
}

/// Proves that the outputs of `placed` denote those of `logical`. Returns which other values denote each other.
///
/// # Errors
/// The first output that differs, with the first operation that differs.
pub fn denotes(placed: &Graph, logical: &Graph) -> Result<SameValues, DenoteError> {
    signature(placed, logical)?;
    let mut known = Expressions::default();
    let expected = Denotation::of(logical, &mut known);
    let found = Denotation::of(placed, &mut known);
    for (p, l) in placed.outputs.iter().zip(&logical.outputs) {
        let (f, e) = (found.values[&p.value], expected.values[&l.value]);
        if f != e {
            return Err(known.difference(text::output_name(&p.kind), &found, f, &expected, e));
        }
    }
    Ok(SameValues { logical: expected.values, placed: found.values })
}

/// Checks that both graphs have the same inputs and outputs in the same order.
fn signature(placed: &Graph, logical: &Graph) -> Result<(), DenoteError> {
    let nothing = || "nothing".to_string();
    let inputs = |g: &Graph| -> Vec<String> {
        let shown = |n: NodeIndex| {
            let node = g.node(n);
            let layout = if let Op::Input { layout, .. } = &node.op { layout.clone() } else { Vec::new() };
            format!("{} {} layout {layout:?}", text::operation(node, &g.mesh), global(&node.types[0]))
        };
        g.inputs().map(|(n, _)| shown(n)).collect()
    };
    let outputs = |g: &Graph| -> Vec<String> {
        g.outputs.iter().map(|o| format!("{} layout {:?}", text::output_name(&o.kind), o.layout)).collect()
    };
    let differ = |found: &[String], expected: &[String]| {
        let count = found.len().max(expected.len());
        let position = (0..count).find(|&i| found.get(i) != expected.get(i))?;
        let at = |list: &[String]| list.get(position).cloned().unwrap_or_else(nothing);
        Some((position, at(found), at(expected)))
    };
    if let Some((position, found, expected)) = differ(&inputs(placed), &inputs(logical)) {
        return Err(DenoteError::Input { position, found, expected });
    }
    if let Some((position, found, expected)) = differ(&outputs(placed), &outputs(logical)) {
        return Err(DenoteError::Output { position, found, expected });
    }
    Ok(())
}

/// A type without its placement.
fn global(ty: &Type) -> String {
    Type::new(ty.dtype, ty.shape.clone()).display(&tpc_ir::Mesh::single())
}

/// The number of an expression.
type Id = u32;

/// The number of a term of a sum, which is an expression that is read with subscripts.
type TermId = u32;

/// The meaning of a value, independent of its placement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Expression {
    /// A result of an operation.
    Result { op: Op, operands: Vec<Id>, types: Vec<(DType, Vec<usize>)>, result: u32 },
    /// A sum. Its terms are ordered by number and repeated as often as they occur.
    Sum { terms: Vec<TermId>, dtype: DType, shape: Vec<usize> },
}

/// The distinct expressions of both graphs.
#[derive(Default)]
struct Expressions {
    list: Vec<Expression>,
    ids: FxHashMap<Expression, Id>,
    /// For each term, its expression and, for each dimension of the expression, the dimension of the sum.
    terms: Vec<(Id, Vec<u8>)>,
    term_ids: FxHashMap<(Id, Vec<u8>), TermId>,
}

/// The expressions of the values of a graph.
struct Denotation<'a> {
    graph: &'a Graph,
    values: FxHashMap<Value, Id>,
    /// The first operation that computes each expression, other than a redistribution.
    first: FxHashMap<Id, NodeIndex>,
}

impl<'a> Denotation<'a> {
    fn of(graph: &'a Graph, known: &mut Expressions) -> Self {
        let mut found = Denotation { graph, values: FxHashMap::default(), first: FxHashMap::default() };
        for node in graph.nodes() {
            let n = graph.node(node);
            let operands: Vec<Id> = graph.operands(node).iter().map(|v| found.values[v]).collect();
            if n.op.is_redistribution() {
                found.values.insert(node.into(), operands[0]);
                continue;
            }
            let types: Vec<(DType, Vec<usize>)> = n.types.iter().map(|t| (t.dtype, t.shape.clone())).collect();
            for result in 0..n.types.len() as u32 {
                let id = match &n.op {
                    Op::Map { f: MapFn::Add, subs } => known.sum(subs, &operands, &types[0]),
                    op => {
                        let (op, operands) = (op.clone(), operands.clone());
                        known.number(Expression::Result { op, operands, types: types.clone(), result })
                    }
                };
                found.values.insert(Value { node, result }, id);
                found.first.entry(id).or_insert(node);
            }
        }
        found
    }
}

impl Expressions {
    fn number(&mut self, e: Expression) -> Id {
        match self.ids.entry(e) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let id = self.list.len() as Id;
                self.list.push(new.key().clone());
                *new.insert(id)
            }
        }
    }

    fn term(&mut self, id: Id, dims: Vec<u8>) -> TermId {
        let next = self.terms.len() as TermId;
        match self.term_ids.entry((id, dims)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.terms.push(new.key().clone());
                *new.insert(next)
            }
        }
    }

    /// The sum of expressions. Those that are sums of the same element type are replaced by their terms.
    fn sum(&mut self, subs: &Subscripts, operands: &[Id], (dtype, shape): &(DType, Vec<usize>)) -> Id {
        let mut terms: Vec<TermId> = Vec::new();
        for (&id, letters) in operands.iter().zip(&subs.operands) {
            // Each letter becomes its dimension in the result of the sum.
            let dims: Vec<u8> =
                letters.iter().filter_map(|l| subs.result.iter().position(|r| r == l)).map(|d| d as u8).collect();
            let added = match &self.list[id as usize] {
                Expression::Sum { terms: inner, dtype: d, .. } if d == dtype => {
                    let inner = inner.clone();
                    let straight = dims.len() == shape.len() && dims.iter().enumerate().all(|(i, &d)| i == d as usize);
                    if straight { inner } else { self.reread(&inner, &dims) }
                }
                _ => vec![self.term(id, dims)],
            };
            terms = merged(terms, added);
        }
        self.number(Expression::Sum { terms, dtype: *dtype, shape: shape.clone() })
    }

    /// The terms of a sum whose dimension `d` is the dimension `dims[d]` of an outer sum.
    fn reread(&mut self, terms: &[TermId], dims: &[u8]) -> Vec<TermId> {
        let read = |known: &mut Self, t: TermId| {
            let (id, own) = known.terms[t as usize].clone();
            let own = own.iter().map(|&d| dims[d as usize]).collect();
            known.term(id, own)
        };
        let mut read: Vec<TermId> = terms.iter().map(|&t| read(self, t)).collect();
        read.sort_unstable();
        read
    }

    /// The error for two different expressions: the first operation on the path to them that differs.
    fn difference(
        &self,
        output: String,
        found: &Denotation,
        mut f: Id,
        expected: &Denotation,
        mut e: Id,
    ) -> DenoteError {
        // The nodes that compute them. For a sum that is not a value of the graph, it is the node of its reader.
        let (mut at, mut like) = (found.first[&f], expected.first[&e]);
        while let Some((down, other)) = self.below(f, e) {
            (f, e) = (down, other);
            at = found.first.get(&f).copied().unwrap_or(at);
            like = expected.first.get(&e).copied().unwrap_or(like);
        }
        let node = found.graph.node(at);
        let line = text::number(expected.graph).get(&like).map_or(String::new(), |i| format!(" (%{i} of the model)"));
        DenoteError::Value {
            output,
            node: text::number(found.graph).get(&at).copied().unwrap_or(at.index()),
            op: node.op.name().into(),
            module: node.origin.location().into(),
            found: self.shown(f, e, found),
            expected: format!("{}{line}", self.shown(e, f, expected)),
        }
    }

    /// The first pair of operands in which two expressions of the same operation differ. `None` if the expressions
    /// themselves differ.
    fn below(&self, f: Id, e: Id) -> Option<(Id, Id)> {
        use Expression::{Result, Sum};
        match (&self.list[f as usize], &self.list[e as usize]) {
            (
                Result { op: a, operands: x, types: s, result: i },
                Result { op: b, operands: y, types: t, result: j },
            ) if (a, s, i) == (b, t, j) && x.len() == y.len() => {
                let mut pairs = x.iter().zip(y).filter(|(x, y)| x != y);
                let first = pairs.next()?;
                // If operands are only swapped, this operation is wrong and not its operands.
                let swapped = pairs.any(|(x, y)| (x, y) == (first.1, first.0));
                (!swapped).then_some((*first.0, *first.1))
            }
            (Sum { terms: x, .. }, Sum { terms: y, .. }) => match (&self.without(x, y)[..], &self.without(y, x)[..]) {
                ([(a, dims)], [(b, other)]) if dims == other => Some((*a, *b)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The terms of `x` that `y` lacks.
    fn without(&self, x: &[TermId], y: &[TermId]) -> Vec<(Id, Vec<u8>)> {
        let mut rest = y.iter().peekable();
        let mut lacking = Vec::new();
        for t in x {
            while rest.next_if(|r| *r < t).is_some() {}
            if rest.next_if_eq(&t).is_none() {
                lacking.push(self.terms[*t as usize].clone());
            }
        }
        lacking
    }

    /// The text of an expression in terms of the lines of its graph; for a sum, only the terms that `other` lacks.
    fn shown(&self, id: Id, other: Id, side: &Denotation) -> String {
        let names = text::number(side.graph);
        let name = |id: &Id| match side.first.get(id) {
            Some(n) => text::value_text(side.graph, (*n).into(), &names),
            None => "a value that is not there".into(),
        };
        match &self.list[id as usize] {
            Expression::Result { op, operands, types, .. } => {
                let node = tpc_ir::Node { op: op.clone(), types: Vec::new(), origin: Default::default() };
                let types: Vec<_> = types.iter().map(|(d, s)| global(&Type::new(*d, s.clone()))).collect();
                let operands = operands.iter().map(name).collect::<Vec<_>>().join(", ");
                format!("{} {operands} : {}", text::operation(&node, &side.graph.mesh), types.join(", "))
            }
            Expression::Sum { terms, dtype, shape } => {
                let others =
                    if let Expression::Sum { terms, .. } = &self.list[other as usize] { &terms[..] } else { &[] };
                let own: Vec<String> = self.without(terms, others).iter().map(|(id, _)| name(id)).collect();
                let ty = global(&Type::new(*dtype, shape.clone()));
                let own = if own.is_empty() { "nothing else".into() } else { own.join(", ") };
                format!("a sum of {} terms, of which only here: {own} : {ty}", terms.len())
            }
        }
    }
}

/// Merges two ordered lists.
fn merged(a: Vec<TermId>, b: Vec<TermId>) -> Vec<TermId> {
    if a.is_empty() {
        return b;
    }
    let mut all = a;
    let sorted = all.last() <= b.first();
    all.extend(b);
    if !sorted {
        // The sort detects the two runs and takes linear time.
        all.sort();
    }
    all
}
