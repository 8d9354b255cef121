//! Simplifies a program by local algebra: constants, views, sums and repeated expressions.
//!
//! | before | after |
//! |---|---|
//! | `identity "ab->ba"` read by a map, product or reduction | the reader's subscripts are permuted |
//! | `identity "a->ab"` (a broadcast) read by these | the reader's operand loses the letter |
//! | `fill` read by a map | the scalar |
//! | `x + 0`, `x − 0`, `x · 1`, `x / 1`, `−(−x)`, a cast to the same type | `x` |
//! | a map of scalars | the scalar |
//! | `x ^ 2`, `x ^ ½`, `x ^ −½`, `x ^ −1` | `x · x`, `sqrt`, `rsqrt`, `recip` |
//! | a map whose result repeats along a letter that no operand has | the map without the letter, then a broadcast |
//! | one index of a map that is read only by index | the map of that index of its operands |
//! | a product with no summed letter | an elementwise `mul` |
//! | a product along a summed letter that both operands repeat | the product without the letter, times its extent |
//! | a product whose result repeats along a letter that no operand has | the product without the letter, then a broadcast |
//! | a sum over letters of a product that has no other reader | a product that sums over them |
//! | `(a + b) + c` if the inner sum is read once | `a + b + c` with operands in program order |
//! | a pick from differences (`pick.rs`) | a pick, minus the shared term |
//! | the same operation on the same operands twice | one operation |

use super::pick::pick;
use crate::rebuild::{copy, rebuild};
use petgraph::graph::NodeIndex;
use rustc_hash::{FxBuildHasher, FxHashMap};
use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use tpc_ir::subscripts::Letter;
use tpc_ir::{Graph, MapFn, Op, Origin, ReduceOp, Region, Scalar, Subscripts, Type, Value};

/// A sum that its only reader may absorb.
struct Sum {
    /// The terms and the letters with which each is read.
    terms: Vec<(Value, Vec<Letter>)>,
    /// The letters of the result.
    result: Vec<Letter>,
}

/// The terms of a sum with more terms than this are not copied: its reader takes them, and the sum itself is added to
/// the new graph unchanged. Otherwise, in a chain of sums, each link would hold a copy of the terms of all links before
/// it.
const COPIED: usize = 64;

/// One round of simplification.
pub fn simplify(graph: &Graph) -> Graph {
    let mut known = Known::default();
    let named = named(graph);
    let (single, indexed) = (single_use_sums(graph, &named), indexed_maps(graph, &named));
    let mut flatten: FxHashMap<Value, Sum> = FxHashMap::default();
    rebuild(graph, graph.mesh.clone(), |new, node, operands| {
        let n = graph.node(node);
        let results = match &n.op {
            Op::Map { f, subs } => {
                let (operands, subs) = fold_views(new, operands, subs.clone());
                if !f.is_sum() {
                    vec![map(new, *f, operands, subs, &n.types[0], &n.origin)]
                } else {
                    let sum = join_sums(&operands, &subs, &mut flatten);
                    let is_link = single[node.index()];
                    let (operands, subs) = match is_link && sum.terms.len() > COPIED {
                        true => (operands, subs),
                        false => sum.read(),
                    };
                    let value = map(new, *f, operands, subs, &n.types[0], &n.origin);
                    if is_link {
                        flatten.insert(value, sum);
                    }
                    vec![value]
                }
            }
            Op::Einsum { subs } => {
                let (operands, folded) = fold_views(new, operands, subs.clone());
                // If both operands only repeat along a summed letter, the sum has as many equal terms as the extent of
                // the letter.
                let kept = |l: &Letter| folded.result.contains(l) || folded.operands.iter().any(|row| row.contains(l));
                let shapes = graph.operands(node).into_iter().map(|v| &graph.ty(v).shape);
                let extents = subs.operands.iter().zip(shapes).flat_map(|(row, shape)| row.iter().zip(shape));
                let lost: BTreeMap<Letter, usize> = extents.filter(|(l, _)| !kept(l)).map(|(&l, &n)| (l, n)).collect();
                vec![einsum(new, operands, folded, lost.values().product(), &n.types[0], &n.origin)]
            }
            Op::Reduce { op: ReduceOp::Sum, subs } if sums_product(graph, node, new, operands[0], &named) => {
                let Op::Einsum { subs: inner } = new.op(operands[0]).clone() else { return operands };
                let outer = |l: &Letter| subs.operands[0][inner.result.iter().position(|r| r == l).unwrap_or(0)];
                // Letters of the product that its result lacks get new names.
                let named = |l: &Letter| if inner.result.contains(l) { outer(l) } else { FREE + *l };
                let rows: Vec<Vec<Letter>> = inner.operands.iter().map(|row| row.iter().map(named).collect()).collect();
                let product = Subscripts::new(&rows, &subs.result);
                vec![einsum(new, new.operands(operands[0].node), product, 1, &n.types[0], &n.origin)]
            }
            Op::Reduce { op, subs } => {
                let (operands, subs) = fold_views(new, operands, subs.clone());
                let picked = match op {
                    ReduceOp::Sum => pick(new, operands[0], &subs, &n.types[0], &n.origin),
                    _ => None,
                };
                vec![picked.unwrap_or_else(|| {
                    reduce(
                        new,
                        *op,
                        operands[0],
                        subs,
                        graph.ty(graph.operands(node)[0]),
                        graph_subs(graph, node),
                        &n.types[0],
                        &n.origin,
                    )
                })]
            }
            Op::Index { .. } if new.fill_of(operands[0]).is_some() => {
                vec![fill(new, new.fill_of(operands[0]).unwrap_or(0.0), &n.types[0], &n.origin)]
            }
            Op::Index { dim, index } if indexed[graph.operands(node)[0].node.index()] => {
                vec![index_of(new, operands[0], (*dim, *index), &n.types[0], &n.origin)]
            }
            Op::Reshape => vec![reshape(new, operands[0], &n.types[0], &n.origin)],
            _ => copy(new, graph, node, &operands),
        };
        // Common subexpressions: if the new node is a duplicate, it is left without users.
        let Some(&first) = results.first() else { return results };
        let fresh = new.node(first.node);
        if matches!(fresh.op, Op::Input { .. }) || results.len() != fresh.types.len() {
            return results;
        }
        match known.earlier(new, first.node) {
            Some(node) => (0..results.len() as u32).map(|result| Value { node, result }).collect(),
            None => results,
        }
    })
    .0
}

/// The operations of a graph, by the hash of operation, operands and types. If a hash is taken, the next free number is the
/// key.
#[derive(Default)]
struct Known(FxHashMap<u64, NodeIndex>);

impl Known {
    /// An earlier node that computes the same as a node, if there is one.
    fn earlier(&mut self, graph: &Graph, node: NodeIndex) -> Option<NodeIndex> {
        let (n, operands) = (graph.node(node), graph.operands(node));
        let is_equal = |other: NodeIndex| {
            let o = graph.node(other);
            o.op == n.op && o.types == n.types && graph.operands(other) == operands
        };
        let mut hash = FxBuildHasher.hash_one((&n.op, &operands, &n.types));
        loop {
            match self.0.entry(hash) {
                Entry::Vacant(free) => {
                    free.insert(node);
                    return None;
                }
                Entry::Occupied(other) if *other.get() == node => return None,
                Entry::Occupied(other) if is_equal(*other.get()) => return Some(*other.get()),
                Entry::Occupied(_) => hash = hash.wrapping_add(1),
            }
        }
    }
}

fn graph_subs(graph: &Graph, node: NodeIndex) -> Subscripts {
    match &graph.node(node).op {
        Op::Reduce { subs, .. } => subs.clone(),
        _ => Subscripts::elementwise(1, 0),
    }
}

/// A number above every letter of an operation.
const FREE: Letter = 128;

/// Whether a product can take over a sum: only the sum reads the product, and both operands of the product have all letters
/// that are summed. (It is cheaper to sum a letter of only one operand before or after the product.)
fn sums_product(graph: &Graph, node: NodeIndex, new: &Graph, operand: Value, named: &[bool]) -> bool {
    let source = graph.operands(node)[0].node;
    let (Op::Einsum { subs: inner }, Op::Reduce { subs, .. }) = (new.op(operand), &graph.node(node).op) else {
        return false;
    };
    let summed = (0..inner.result.len()).filter(|&d| !subs.result.contains(&subs.operands[0][d]));
    summed.map(|d| inner.result[d]).all(|l| inner.operands.iter().all(|row| row.contains(&l)))
        && matches!(graph.node(source).op, Op::Einsum { .. })
        && graph.users(source).count() == 1
        && !named[source.index()]
}

/// For each node, whether its values are outputs, or cross the boundary of a region.
fn named(graph: &Graph) -> Vec<bool> {
    let mut named = vec![false; graph.len()];
    let values = graph.outputs.iter().map(|o| o.value).chain(graph.regions.iter().flat_map(Region::values));
    values.for_each(|v| named[v.node.index()] = true);
    named
}

/// For each node, whether it is a sum whose only reader is another sum of the same phase, so that the chain is one sum.
/// A residual stream has further readers and is not such a chain.
fn single_use_sums(graph: &Graph, named: &[bool]) -> Vec<bool> {
    let mut single = vec![false; graph.len()];
    for node in graph.nodes() {
        let is_sum = |n: NodeIndex| matches!(&graph.node(n).op, Op::Map { f, .. } if f.is_sum());
        let mut users = graph.users(node);
        if let (true, Some((user, _)), None) = (is_sum(node), users.next(), users.next()) {
            single[node.index()] =
                is_sum(user) && graph.node(user).origin.phase == graph.node(node).origin.phase && !named[node.index()];
        }
    }
    single
}

/// For each node, whether it is a map of which maps and reductions read only single indices of a dimension (halves of a
/// rotary embedding), so that it need not be in memory. A value that a product reads (thirds of a fused q|k|v) must be
/// in memory anyway.
fn indexed_maps(graph: &Graph, named: &[bool]) -> Vec<bool> {
    let mut indexed = vec![false; graph.len()];
    let is_map = |n: &NodeIndex| matches!(graph.node(*n).op, Op::Map { .. }) && !named[n.index()];
    for node in graph.nodes().filter(is_map) {
        let is_index = |n: NodeIndex| matches!(graph.node(n).op, Op::Index { .. });
        let computes = |n: NodeIndex| matches!(graph.node(n).op, Op::Map { .. } | Op::Reduce { .. });
        let through = |n: NodeIndex| is_index(n) && graph.users(n).all(|(user, _)| computes(user) || is_index(user));
        let mut users = graph.users(node).peekable();
        indexed[node.index()] = users.peek().is_some() && users.all(|(user, _)| through(user));
    }
    indexed
}

/// One index of a value. For a map, it is the map of that index of its operands.
fn index_of(new: &mut Graph, v: Value, (dim, index): (usize, usize), ty: &Type, origin: &Origin) -> Value {
    let Op::Map { f, subs } = new.op(v).clone() else {
        return new.push(Op::Index { dim, index }, &[v], ty.clone(), origin);
    };
    let letter = subs.result[dim];
    let mut rows = subs.operands.clone();
    let mut operands = new.operands(v.node);
    for (operand, row) in operands.iter_mut().zip(&mut rows) {
        let Some(at) = row.iter().position(|&l| l == letter) else { continue };
        row.remove(at);
        let before = new.ty(*operand).clone();
        let mut shape = before.shape.clone();
        shape.remove(at);
        let ty = Type::new(before.dtype, shape);
        *operand = match new.op(*operand) {
            Op::Iota => fill(new, index as f64, &ty, origin),
            Op::Fill(x) => fill(new, x.as_f64(), &ty, origin),
            _ => new.push(Op::Index { dim: at, index }, &[*operand], ty, origin),
        };
    }
    let result: Vec<Letter> = subs.result.iter().copied().filter(|&l| l != letter).collect();
    let subs = Subscripts::new(&rows, &result);
    map(new, f, operands, subs, ty, origin)
}

/// Operands and the subscripts with which they are read.
type Read = (Vec<Value>, Subscripts);

/// Replaces operands that are transposes, broadcasts or constants by what they view, with other subscripts.
fn fold_views(new: &mut Graph, mut operands: Vec<Value>, mut subs: Subscripts) -> Read {
    for (v, letters) in operands.iter_mut().zip(&mut subs.operands) {
        loop {
            match new.op(*v) {
                Op::Map { f: MapFn::Identity, subs: view } => {
                    let source = &view.operands[0];
                    let read = |l: &Letter| view.result.iter().position(|r| r == l).map(|i| letters[i]);
                    let Some(through) = source.iter().map(read).collect::<Option<Vec<_>>>() else { break };
                    *letters = through;
                    *v = new.operands(v.node)[0];
                }
                Op::Fill(s) if new.ty(*v).rank() > 0 => {
                    let dtype = new.ty(*v).dtype;
                    let (s, origin) = (s.as_f64(), new.node(v.node).origin.clone());
                    *v = new.scalar(dtype, s, &origin);
                    letters.clear();
                }
                _ => break,
            }
        }
    }
    (operands, subs)
}

/// The sum in which operands that are single-use sums are replaced by their terms.
fn join_sums(operands: &[Value], subs: &Subscripts, flatten: &mut FxHashMap<Value, Sum>) -> Sum {
    let mut terms: Vec<(Value, Vec<Letter>)> = Vec::new();
    for (&v, letters) in operands.iter().zip(&subs.operands) {
        let inner = match flatten.get(&v) {
            None => {
                terms.push((v, letters.clone()));
                continue;
            }
            Some(inner) if inner.terms.len() > COPIED => flatten.remove(&v),
            Some(Sum { terms, result }) => Some(Sum { terms: terms.clone(), result: result.clone() }),
        };
        let Some(Sum { terms: mut inner, result }) = inner else { continue };
        if result != *letters {
            let read = |l: &Letter| letters[result.iter().position(|r| r == l).unwrap_or(0)];
            inner.iter_mut().for_each(|(_, row)| *row = row.iter().map(read).collect());
        }
        if inner.len() > COPIED.max(terms.len()) {
            std::mem::swap(&mut terms, &mut inner);
        }
        terms.append(&mut inner);
    }
    Sum { terms, result: subs.result.clone() }
}

impl Sum {
    fn read(&self) -> Read {
        let (operands, rows): (Vec<_>, Vec<_>) = self.terms.iter().cloned().unzip();
        let subs = Subscripts::new(&rows, &self.result);
        (operands, subs)
    }
}

fn fill(new: &mut Graph, x: f64, ty: &Type, origin: &Origin) -> Value {
    new.push(Op::Fill(Scalar::of(ty.dtype, x)), &[], ty.clone(), origin)
}

/// The value with dimensions `letters`, transposed and repeated to `result`.
fn view(new: &mut Graph, v: Value, letters: &[Letter], result: &[Letter], ty: &Type, origin: &Origin) -> Value {
    if letters == result {
        return v;
    }
    if let Some(x) = new.fill_of(v) {
        return fill(new, x, ty, origin);
    }
    let subs = Subscripts::new(&[letters.to_vec()], result);
    new.push(Op::Map { f: MapFn::Identity, subs }, &[v], ty.clone(), origin)
}

fn map(new: &mut Graph, f: MapFn, mut operands: Vec<Value>, mut subs: Subscripts, ty: &Type, origin: &Origin) -> Value {
    let scalars: Vec<Option<f64>> = operands.iter().map(|&v| new.fill_of(v)).collect();
    if let Some(xs) = scalars.iter().copied().collect::<Option<Vec<f64>>>() {
        let x = f.eval(&xs);
        // Floats are rounded where they are used, so that folding loses no precision that a run in a wider type would
        // keep.
        return fill(new, if ty.dtype.is_float() { x } else { ty.dtype.round(x) }, ty, origin);
    }
    let keep = |new: &mut Graph, i: usize| view(new, operands[i], &subs.operands[i], &subs.result, ty, origin);
    let same_type = |new: &Graph, i: usize| new.ty(operands[i]).dtype == ty.dtype;
    let is = |i: usize, x: f64| scalars.get(i).copied().flatten() == Some(x);
    match f {
        MapFn::Identity => return keep(new, 0),
        MapFn::Cast(d) if new.ty(operands[0]).dtype == d => return keep(new, 0),
        MapFn::Sub if is(1, 0.0) => return keep(new, 0),
        MapFn::Mul | MapFn::Div if is(1, 1.0) => return keep(new, 0),
        MapFn::Mul if is(0, 1.0) && same_type(new, 1) => return keep(new, 1),
        // `x − x` is 0. It occurs where a program adds such a difference only for its gradient. For an infinite `x` it
        // would be NaN, which no program intends.
        MapFn::Sub if operands[0] == operands[1] && subs.operands[0] == subs.operands[1] => {
            return fill(new, 0.0, ty, origin);
        }
        MapFn::Select if operands[1] == operands[2] && subs.operands[1] == subs.operands[2] => return keep(new, 1),
        MapFn::Select if scalars[0].is_some() => return keep(new, if is(0, 0.0) { 2 } else { 1 }),
        MapFn::Neg => {
            if let Op::Map { f: MapFn::Neg, subs: inner } = new.op(operands[0])
                && inner.is_elementwise()
            {
                let source = new.operands(operands[0].node)[0];
                return view(new, source, &subs.operands[0], &subs.result, ty, origin);
            }
        }
        MapFn::Pow => {
            let unary = |new: &mut Graph, f: MapFn| {
                let subs = Subscripts::new(&subs.operands[..1], &subs.result);
                new.push(Op::Map { f, subs }, &operands[..1], ty.clone(), origin)
            };
            match scalars[1] {
                Some(1.0) => return keep(new, 0),
                Some(2.0) => {
                    let rows = [subs.operands[0].clone(), subs.operands[0].clone()];
                    let subs = Subscripts::new(&rows, &subs.result);
                    return new.push(Op::Map { f: MapFn::Mul, subs }, &[operands[0]; 2], ty.clone(), origin);
                }
                Some(0.5) => return unary(new, MapFn::Sqrt),
                Some(-0.5) => return unary(new, MapFn::Rsqrt),
                Some(-1.0) => return unary(new, MapFn::Recip),
                _ => {}
            }
        }
        MapFn::Add => {
            let rows: Vec<(Value, Vec<Letter>)> = operands
                .iter()
                .copied()
                .zip(subs.operands.iter().cloned())
                .zip(&scalars)
                .filter(|(_, s)| **s != Some(0.0))
                .map(|(row, _)| row)
                .collect();
            match rows.as_slice() {
                [] => return fill(new, 0.0, ty, origin),
                [(v, letters)] => return view(new, *v, letters, &subs.result, ty, origin),
                _ => {}
            }
            let mut rows = rows;
            // Sums are n-ary. Their terms are in program order, with constants last.
            rows.sort_by_cached_key(|row| (new.fill_of(row.0).is_some(), row.clone()));
            (operands, subs.operands) = rows.into_iter().unzip();
        }
        _ => {}
    }
    let read = |l: &Letter| subs.operands.iter().any(|row| row.contains(l));
    if !subs.result.iter().all(read) {
        let kept = subs.result.iter().zip(&ty.shape).filter(|(l, _)| read(l));
        let (letters, shape): (Vec<Letter>, Vec<usize>) = kept.map(|(&l, &n)| (l, n)).unzip();
        let (rows, result) = (subs.operands.clone(), subs.result.clone());
        let narrow = Subscripts { operands: rows, result: letters.clone() };
        let value = map(new, f, operands, narrow, &Type::new(ty.dtype, shape), origin);
        return view(new, value, &letters, &result, ty, origin);
    }
    // The operands of a commutative function of two are in program order, with constants last.
    if f.is_commutative() && operands.len() == 2 && f != MapFn::Add {
        let key = |i: usize| (new.fill_of(operands[i]).is_some(), operands[i], subs.operands[i].clone());
        if key(1) < key(0) {
            operands.swap(0, 1);
            subs.operands.swap(0, 1);
        }
    }
    let subs = Subscripts::new(&subs.operands, &subs.result);
    new.push(Op::Map { f, subs }, &operands, ty.clone(), origin)
}

/// A product, multiplied by `times`. Letters of the result that no operand has are a broadcast.
fn einsum(
    new: &mut Graph,
    mut operands: Vec<Value>,
    mut subs: Subscripts,
    times: usize,
    ty: &Type,
    origin: &Origin,
) -> Value {
    // A summed letter that only one operand has is a reduction of that operand.
    for (i, operand) in operands.iter_mut().enumerate() {
        let (own, other) = (&subs.operands[i], &subs.operands[1 - i]);
        let alone = |l: &Letter| !subs.result.contains(l) && !other.contains(l);
        let dims: Vec<usize> = (0..own.len()).filter(|&d| alone(&own[d])).collect();
        let kept: Vec<Letter> = own.iter().copied().filter(|l| !alone(l)).collect();
        if !dims.is_empty() {
            *operand = new.reduce(ReduceOp::Sum, *operand, &dims, origin);
            subs.operands[i] = kept;
        }
    }
    let present = |l: &Letter| subs.operands.iter().any(|o| o.contains(l));
    let result = subs.result.clone();
    let kept = subs.result.iter().zip(&ty.shape).filter(|(l, _)| present(l));
    let (letters, shape): (Vec<Letter>, Vec<usize>) = kept.map(|(&l, &n)| (l, n)).unzip();
    let narrow = Type::new(ty.dtype, shape);
    let product = if subs.operands[0].iter().chain(&subs.operands[1]).all(|l| letters.contains(l)) {
        let subs = Subscripts { operands: subs.operands, result: letters.clone() };
        map(new, MapFn::Mul, operands, subs, &narrow, origin)
    } else {
        let subs = Subscripts::new(&subs.operands, &letters);
        new.push(Op::Einsum { subs }, &operands, narrow, origin)
    };
    let product = scaled(new, ReduceOp::Sum, product, times, origin);
    view(new, product, &letters, &result, ty, origin)
}

#[allow(clippy::too_many_arguments)]
fn reduce(
    new: &mut Graph,
    op: ReduceOp,
    operand: Value,
    subs: Subscripts,
    before: &Type,
    before_subs: Subscripts,
    ty: &Type,
    origin: &Origin,
) -> Value {
    // The extents of letters that folding a broadcast removed; a sum is multiplied by them.
    let letters = &subs.operands[0];
    let lost: usize = before_subs.operands[0]
        .iter()
        .zip(&before.shape)
        .filter(|(l, _)| !before_subs.result.contains(l) && !letters.contains(l))
        .map(|(_, &n)| n)
        .product();
    let broadcast = before_subs.result.iter().any(|l| !letters.contains(l));
    let kept: Vec<Letter> = letters.iter().copied().filter(|l| subs.result.contains(l)).collect();
    let narrow: Vec<usize> =
        letters.iter().zip(&new.ty(operand).shape).filter(|(l, _)| kept.contains(l)).map(|(_, &n)| n).collect();
    let mut value = operand;
    if kept.len() != letters.len() || (!broadcast && lost == 1 && kept != subs.result) {
        let order: Vec<Letter> = if broadcast { kept.clone() } else { subs.result.clone() };
        let shape = if broadcast { narrow } else { ty.shape.clone() };
        let subs = Subscripts::new(std::slice::from_ref(letters), &order);
        value = new.push(Op::Reduce { op, subs }, &[operand], Type::new(ty.dtype, shape), origin);
        if !broadcast && lost == 1 {
            return value;
        }
        if !broadcast {
            return scaled(new, op, value, lost, origin);
        }
    }
    let value = scaled(new, op, value, lost, origin);
    view(new, value, &kept, &subs.result, ty, origin)
}

/// The reduction of `n` equal values: a sum is a multiple, a product is a power, and a maximum is the value itself.
fn scaled(new: &mut Graph, op: ReduceOp, value: Value, n: usize, origin: &Origin) -> Value {
    if n == 1 {
        return value;
    }
    let dtype = new.ty(value).dtype;
    match op {
        ReduceOp::Max | ReduceOp::Min => value,
        _ => {
            let n = new.scalar(dtype, n as f64, origin);
            let f = if op == ReduceOp::Sum { MapFn::Mul } else { MapFn::Pow };
            match new.fill_of(value).zip(new.fill_of(n)) {
                Some((a, b)) => {
                    let ty = new.ty(value).clone();
                    fill(new, f.eval(&[a, b]), &ty, origin)
                }
                None => new.map(f, &[value, n], origin),
            }
        }
    }
}

fn reshape(new: &mut Graph, v: Value, ty: &Type, origin: &Origin) -> Value {
    if new.ty(v).shape == ty.shape {
        return v;
    }
    if let Some(x) = new.fill_of(v) {
        return fill(new, x, ty, origin);
    }
    if *new.op(v) == Op::Reshape {
        let source = new.operands(v.node)[0];
        return reshape(new, source, ty, origin);
    }
    new.push(Op::Reshape, &[v], ty.clone(), origin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonicalize::canonicalize;
    use tpc_ir::DType;
    use tpc_ir::interpret::{Options, Tensor, interpret};
    use tpc_ir::{parse::parse, text, verify::verify};

    /// The canonical form of a program, after checking that both compute the same.
    fn canonical(body: &str) -> Graph {
        let graph = parse(&format!("mesh <>\n{body}")).unwrap_or_else(|e| panic!("{e}\n{body}"));
        let canonical = canonicalize(&graph);
        assert_eq!(verify(&canonical), Ok(()), "{}", text::print(&canonical));
        let input = |node: NodeIndex| {
            let ty = &graph.node(node).types[0];
            Tensor::from_fn(DType::F32, ty.shape.clone(), |i| 1.0 + i as f64)
        };
        let inputs = graph.inputs().map(|(node, id)| (id.clone(), input(node))).collect();
        let run = |graph: &Graph| interpret(graph, &inputs, &Options::exact()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(run(&canonical), run(&graph), "{}", text::print(&canonical));
        canonical
    }

    /// A sum along a dimension that both operands only repeat has as many equal terms as its extent, and a result may
    /// repeat along a dimension that neither operand has.
    #[test]
    fn products_of_broadcasts_keep_their_meaning() {
        let two = "%0 = input data \"x\" : f32[4, 6]\n%1 = input data \"z\" : f32[5]\n";
        for body in [
            "%2 = identity \"ab->abc\" %0 : f32[4, 6, 3]\n%3 = identity \"a->ba\" %1 : f32[3, 5]\n%4 = einsum \"abc,cd->abd\" %2, %3 : f32[4, 6, 5]\n",
            "%2 = identity \"ab->abc\" %0 : f32[4, 6, 3]\n%3 = fill 2.0 : f32[3, 4, 5]\n%4 = einsum \"abc,cad->bd\" %2, %3 : f32[6, 5]\n",
            "%2 = fill 3.0 : f32[4, 7]\n%3 = fill 2.0 : f32[7, 5]\n%4 = einsum \"ab,bc->ac\" %2, %3 : f32[4, 5]\n",
            "%2 = identity \"a->bca\" %1 : f32[4, 6, 5]\n%4 = einsum \"ab,abc->c\" %0, %2 : f32[5]\n",
            "%2 = reduce_sum \"ab->a\" %0 : f32[4]\n%3 = identity \"a->abc\" %2 : f32[4, 6, 5]\n%4 = einsum \"ab,abc->bc\" %0, %3 : f32[6, 5]\n",
            "%2 = reduce_sum \"ab->b\" %0 : f32[6]\n%3 = identity \"b->abc\" %2 : f32[4, 6, 5]\n%4 = einsum \"ab,abc->ac\" %0, %3 : f32[4, 5]\n",
        ] {
            canonical(&format!("{two}{body}output result \"y\" %4\n"));
        }
    }

    /// A chain of sums becomes one sum, even if a link of it has very many terms.
    #[test]
    fn chains_of_sums_are_one_sum() {
        for terms in [3, COPIED, COPIED + 1, COPIED + 2, 5 * COPIED] {
            let chain: String = (1..terms).map(|i| format!("%{} = add %{}, %{} : f32[3]\n", i + 1, i, i % 2)).collect();
            let inputs = "%0 = input data \"x\" : f32[3]\n%1 = input data \"z\" : f32[3]\n";
            let canonical = canonical(&format!("{inputs}{chain}output result \"y\" %{terms}\n"));
            let sums = canonical.nodes().filter(|&n| matches!(canonical.node(n).op, Op::Map { .. })).count();
            assert_eq!(sums, 1, "{}", text::print(&canonical));
        }
    }
}
