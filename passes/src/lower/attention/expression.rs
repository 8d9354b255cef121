//! The bodies of an attention: the computation of one score, as a list of terms over the dimensions of the scores.
//!
//! A body is the same on all ranks; [`instructions`] adds the strides and offsets of one rank. Elementwise values that
//! have both rows and columns (masks, random numbers) are recomputed in the body, so they are never in memory as a
//! whole. Everything else is loaded.

use std::collections::{BTreeMap, HashMap};
use tpc_ir::op::Distribution;
use tpc_ir::program::{Instruction, View, dense_strides};
use tpc_ir::{DType, Graph, MapFn, Op, Scalar, Type, Value};

use petgraph::graph::NodeIndex;

/// The greatest depth of recomputed maps. Deeper ones are loaded.
const DEEPEST: usize = 24;

/// One term. Its operands are the positions of earlier terms.
#[derive(Clone, Debug, PartialEq)]
enum Term {
    Given(usize),
    Constant(Scalar),
    Index { value: Value, dim: usize },
    Load { value: Value, dims: Vec<usize> },
    Random { value: Value, dims: Vec<usize>, seed: usize, distribution: Distribution, stream: u64 },
    Map { f: MapFn, args: Vec<usize> },
}

/// A body: terms with their element types. The last one is the result.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Expression {
    terms: Vec<(Term, DType)>,
}

/// Builds bodies from the nodes of a graph.
pub(super) struct Making<'a> {
    pub(super) graph: &'a Graph,
    /// The nodes that the action provides to the body, with their numbers.
    pub(super) given: BTreeMap<NodeIndex, usize>,
    /// Whether a node belongs to the action, so that the body must compute it.
    pub(super) inside: &'a dyn Fn(NodeIndex) -> bool,
    /// The dimensions of the scores for rows and columns. A value that has all of them is recomputed if possible.
    pub(super) spanned: Vec<usize>,
    /// The element type of computed values.
    pub(super) real: DType,
}

impl Expression {
    /// The values that the body loads.
    pub(super) fn loads(&self) -> impl Iterator<Item = Value> + '_ {
        self.terms.iter().filter_map(|(term, _)| match term {
            Term::Load { value, .. } => Some(*value),
            _ => None,
        })
    }

    fn push(&mut self, term: Term, dtype: DType) -> usize {
        self.terms.push((term, dtype));
        self.terms.len() - 1
    }
}

impl Making<'_> {
    fn wide(&self, dtype: DType) -> DType {
        if dtype.is_float() && dtype != DType::F64 { self.real } else { dtype }
    }

    /// The body that computes `root`, whose dimensions are the dimensions `dims` of the scores. Adds the nodes that it
    /// recomputes to `made`.
    pub(super) fn body(&self, root: Value, dims: &[usize], made: &mut Vec<NodeIndex>) -> Option<Expression> {
        let mut expression = Expression::default();
        let mut known = HashMap::new();
        self.expand(&mut expression, &mut known, made, root, dims.to_vec(), 0)?;
        Some(expression)
    }

    /// The body that computes a product of powers of values, times a factor.
    pub(super) fn product<'b>(
        &self,
        factors: impl Iterator<Item = (&'b Value, &'b Vec<usize>, i32)>,
        factor: f64,
        made: &mut Vec<NodeIndex>,
    ) -> Option<Expression> {
        let mut expression = Expression::default();
        let mut known = HashMap::new();
        let mut all = None;
        if factor != 1.0 {
            all = Some(expression.push(Term::Constant(Scalar::float(factor)), self.real));
        }
        for (value, dims, power) in factors {
            let x = self.expand(&mut expression, &mut known, made, *value, dims.clone(), 0)?;
            let f = if power < 0 { MapFn::Div } else { MapFn::Mul };
            for _ in 0..power.unsigned_abs() {
                let left = match all {
                    Some(left) => left,
                    None => expression.push(Term::Constant(Scalar::float(1.0)), self.real),
                };
                all = Some(expression.push(Term::Map { f, args: vec![left, x] }, self.real));
            }
        }
        Some(expression)
    }

    fn expand(
        &self,
        expression: &mut Expression,
        known: &mut HashMap<(Value, Vec<usize>), usize>,
        made: &mut Vec<NodeIndex>,
        value: Value,
        dims: Vec<usize>,
        depth: usize,
    ) -> Option<usize> {
        if let Some(&at) = known.get(&(value, dims.clone())) {
            return Some(at);
        }
        let node = value.node;
        let dtype = self.graph.ty(value).dtype;
        let spans = self.spanned.iter().all(|d| dims.contains(d)) && depth < DEEPEST;
        let inside = (self.inside)(node);
        let at = match self.graph.op(value) {
            _ if self.given.contains_key(&node) => expression.push(Term::Given(self.given[&node]), self.real),
            Op::Fill(x) => expression.push(Term::Constant(*x), self.wide(dtype)),
            Op::Iota => expression.push(Term::Index { value, dim: dims[0] }, self.wide(dtype)),
            Op::Map { f, subs } if inside || spans => {
                let mut args = Vec::new();
                for (operand, row) in self.graph.operands(node).into_iter().zip(&subs.operands) {
                    let at = |l: &u8| subs.result.iter().position(|r| r == l).map(|d| dims[d]);
                    let of = row.iter().map(at).collect::<Option<Vec<usize>>>()?;
                    args.push(self.expand(expression, known, made, operand, of, depth + 1)?);
                }
                made.push(node);
                let f = match f {
                    MapFn::Cast(to) => MapFn::Cast(self.wide(*to)),
                    f => *f,
                };
                expression.push(Term::Map { f, args }, self.wide(dtype))
            }
            Op::Random { distribution, stream } if spans => {
                let seed = self.graph.operands(node)[0];
                let seed = self.expand(expression, known, made, seed, Vec::new(), depth + 1)?;
                made.push(node);
                let term =
                    Term::Random { value, dims: dims.clone(), seed, distribution: *distribution, stream: *stream };
                expression.push(term, self.wide(dtype))
            }
            _ if inside => return None,
            _ => expression.push(Term::Load { value, dims: dims.clone() }, dtype),
        };
        known.insert((value, dims), at);
        Some(at)
    }
}

/// The instructions of a body on one rank. `position` maps a dimension of the scores to that of the action, which has
/// `rank` dimensions; `view` gives the view of a value, and `offsets` those of the box of a type.
pub(super) fn instructions(
    expression: &Expression,
    graph: &Graph,
    rank: usize,
    position: &dyn Fn(usize) -> usize,
    view: &dyn Fn(Value) -> View,
    offsets: &dyn Fn(&Type) -> Vec<usize>,
) -> Vec<Instruction> {
    let made = expression.terms.iter().map(|(term, dtype)| {
        let dtype = *dtype;
        match term {
            Term::Given(index) => Instruction::Given { index: *index, dtype },
            Term::Constant(x) => Instruction::Constant(*x, dtype),
            Term::Index { value, dim } => {
                Instruction::Index { dim: position(*dim), offset: offsets(graph.ty(*value))[0], dtype }
            }
            Term::Load { value, dims } => {
                let view = view(*value);
                let mut strides = vec![0; rank];
                for (&dim, &stride) in dims.iter().zip(&view.strides) {
                    strides[position(dim)] += stride;
                }
                Instruction::Load { view, strides }
            }
            Term::Random { value, dims, seed, distribution, stream } => {
                let ty = graph.ty(*value);
                let global = dense_strides(&ty.shape);
                let index = dims.iter().zip(offsets(ty)).zip(global);
                let index = index.map(|((&d, offset), stride)| (position(d), offset, stride as usize)).collect();
                let (distribution, stream, seed) = (*distribution, *stream, *seed);
                Instruction::Random { distribution, stream, seed, index, dtype }
            }
            Term::Map { f, args } => Instruction::Map { f: *f, args: args.clone(), dtype },
        }
    });
    made.collect()
}
