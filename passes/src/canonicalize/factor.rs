//! Factors dimensions, so that every index with a meaning of its own is a dimension and reshapes disappear.
//!
//! Dimensions that an operation relates are the same *index* (found by union-find over the factor table). A reshape
//! relates products of indices: `[b·s, d] = [b, s, d]` splits the index `b·s` in two, in every tensor that has it. A
//! slice, pad or concatenation at chunk boundaries (the thirds of a fused q|k|v, the halves of a rotary embedding)
//! splits its index too, and becomes an `index` or a `select`. Extents of 1 are dropped. A reshape that factors cannot
//! express (`[6]` to `[4, …]`, or through a dimension that an operation needs whole) remains.
//!
//! Before: `%1 = reshape %0 : f32[2, 4, 96]`, `%2 = slice dim=2 start=32 %1 : f32[2, 4, 32]`.
//! After: `%1 = index dim=2 index=1 %0 : f32[2, 4, 32]` with `%0 : f32[2, 4, 3, 32]`.

use crate::factors::{FactorKind, aligned, row_of};
use crate::rebuild::rebuild;
use petgraph::graph::NodeIndex;
use petgraph::unionfind::UnionFind;
use std::collections::{HashMap, HashSet};
use tpc_ir::{Graph, MapFn, Op, Origin, OutputKind, Scalar, Subscripts, Type, Value};

/// The greatest number of pieces of a concatenation that becomes a chain of selects. The chain reads every piece for
/// every element.
const MOST_SELECTED: usize = 4;

/// Splits dimensions as far as the reshapes of the program require.
pub fn factor_dimensions(graph: &Graph) -> Graph {
    let indices = Indices::infer(graph);
    let mesh = graph.mesh.clone();
    rebuild(graph, mesh, |new, node, operands| indices.rewrite(graph, new, node, &operands)).0
}

/// The indices of a program and their factors. Each dimension of each value has a variable, and variables of the same index
/// have the same representative.
struct Indices {
    /// The variable of the first dimension of every value; those of its other dimensions follow.
    first: HashMap<Value, usize>,
    /// The representative of every variable.
    root: Vec<usize>,
    /// The factors of every representative, major to minor, without factors of 1.
    factors: Vec<Vec<usize>>,
    /// The operations that cannot be expressed by factors and remain.
    barriers: HashSet<NodeIndex>,
}

impl Indices {
    fn infer(graph: &Graph) -> Self {
        let (mut first, mut sizes) = (HashMap::new(), Vec::new());
        for node in graph.nodes() {
            for (result, ty) in graph.node(node).types.iter().enumerate() {
                first.insert(Value { node, result: result as u32 }, sizes.len());
                sizes.extend(&ty.shape);
            }
        }
        let mut classes = UnionFind::<usize>::new(sizes.len());
        let mut whole = Vec::new();
        let mut cuts: Vec<(usize, usize)> = Vec::new(); // (variable, minor extent to split off)
        for node in graph.nodes() {
            let n = graph.node(node);
            if n.op == Op::Reshape {
                continue;
            }
            let operands = graph.operands(node);
            let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
            let row = row_of(&n.op, &types, &n.types.iter().collect::<Vec<_>>());
            let cut = chunked(graph, node);
            let mut of_factor: HashMap<usize, usize> = HashMap::new();
            let results = (0..n.types.len() as u32).map(|result| Value { node, result });
            let tensors = operands.iter().copied().chain(results);
            for (tensor, dims) in tensors.zip(row.operands.iter().chain(&row.results)) {
                for (d, &f) in dims.iter().enumerate() {
                    let var = first[&tensor] + d;
                    if row.factors[f].kind == FactorKind::Whole {
                        if matches!(n.op, Op::Index { .. }) {
                            continue; // It picks one index, however many factors there are.
                        }
                        // A cut at chunk boundaries splits the index of the long side, and the short side is not split.
                        // Any other cut needs the index as it is.
                        match cut {
                            Some((_, extent)) if sizes[var] != extent => cuts.push((var, extent)),
                            Some(_) => {}
                            None => whole.push(var),
                        }
                        continue;
                    }
                    let reduced_rows = matches!(n.op, Op::Take) && tensor == operands[0] && d == 0;
                    let put = matches!(n.op, Op::Put) && (tensor == operands[0] || tensor.node == node) && d == 0;
                    if reduced_rows || put || (matches!(n.op, Op::ScatterAdd) && tensor.node == node && d == 0) {
                        whole.push(var); // It is indexed by row numbers.
                    }
                    match of_factor.get(&f) {
                        Some(&other) => {
                            classes.union(var, other);
                        }
                        None => {
                            of_factor.insert(f, var);
                        }
                    }
                }
            }
        }
        // An update replaces an input, even one that the step does not read.
        let inputs = graph.inputs_by_id();
        for output in &graph.outputs {
            let OutputKind::Update(id) = &output.kind else { continue };
            let Some(&input) = inputs.get(id) else { continue };
            for d in 0..graph.ty(output.value).rank() {
                classes.union(first[&output.value] + d, first[&Value::from(input)] + d);
            }
        }
        // An update has the indices of its input and a gradient those of its parameter, even where no operation relates
        // them (the first step does not read the state that it creates).
        for output in &graph.outputs {
            let Some(&input) = output.kind.trained().and_then(|(id, _)| inputs.get(&id)) else { continue };
            if graph.ty(output.value).shape == graph.node(input).types[0].shape {
                for d in 0..graph.ty(output.value).rank() {
                    classes.union(first[&output.value] + d, first[&input.into()] + d);
                }
            }
        }
        let root = classes.into_labeling();
        let whole: HashSet<usize> = whole.into_iter().map(|v| root[v]).collect();
        let initial = |(v, &n): (usize, &usize)| if n == 1 && !whole.contains(&root[v]) { vec![] } else { vec![n] };
        let mut factors: Vec<Vec<usize>> = sizes.iter().enumerate().map(initial).collect();
        for (var, extent) in cuts {
            if !whole.contains(&root[var]) {
                let of = &mut factors[root[var]];
                if let Some(split) = refine(of, &[extent]) {
                    *of = split;
                }
            }
        }
        let mut this = Indices { first, root, factors, barriers: HashSet::new() };
        this.solve(graph, &whole);
        this
    }

    /// Refines both sides of every relation until they agree.
    fn solve(&mut self, graph: &Graph, whole: &HashSet<usize>) {
        let mut relations: Vec<(NodeIndex, Vec<usize>, Vec<usize>, usize)> = Vec::new();
        for node in graph.nodes() {
            let operands = graph.operands(node);
            if graph.node(node).op == Op::Reshape {
                let (from, to) = (operands[0], Value::from(node));
                for (a, b) in aligned(&graph.ty(from).shape, &graph.ty(to).shape) {
                    relations.push((node, self.vars(from, a), self.vars(to, b), 1));
                }
            } else if let Some((dim, extent)) = chunked(graph, node) {
                let result = Value::from(node);
                for &v in &operands {
                    // The short side equals the minor part (extent) of the long side.
                    let (long, short) = if graph.ty(v).shape[dim] == extent { (result, v) } else { (v, result) };
                    if graph.ty(short).rank() == graph.ty(long).rank() {
                        relations.push((node, self.vars(long, dim..dim + 1), self.vars(short, dim..dim + 1), extent));
                    }
                }
            }
        }
        loop {
            let mut changed = false;
            for (node, from, to, extent) in &relations {
                if self.barriers.contains(node) {
                    continue;
                }
                let flat = |this: &Self, side: &[usize]| -> Vec<usize> {
                    side.iter().flat_map(|&v| this.factors[v].clone()).collect()
                };
                let (a, b) = (flat(self, from), flat(self, to));
                let minor: usize = b.iter().product();
                let is_chunk = *extent > 1 || a.iter().product::<usize>() != minor;
                let wanted_a = boundaries(&b);
                let wanted_b: Vec<usize> =
                    boundaries(&a).into_iter().filter(|&x| !is_chunk || minor.is_multiple_of(x)).collect();
                if a == b {
                    continue;
                }
                let refined = (self.refine_side(from, &wanted_a, whole), self.refine_side(to, &wanted_b, whole));
                match refined {
                    (Some(x), Some(y)) => {
                        changed |= self.apply(from, x);
                        changed |= self.apply(to, y);
                    }
                    _ => {
                        self.barriers.insert(*node);
                        changed = true;
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn vars(&self, value: Value, dims: std::ops::Range<usize>) -> Vec<usize> {
        dims.map(|d| self.root[self.first[&value] + d]).collect()
    }

    /// The factors of the indices of one side, refined so that they have every wanted boundary. `None` if a boundary is
    /// inside an index that must stay whole, or does not divide.
    fn refine_side(&self, side: &[usize], wanted: &[usize], whole: &HashSet<usize>) -> Option<Vec<Vec<usize>>> {
        let mut below = 1; // The product of the extents of all minor indices.
        let mut refined = Vec::new();
        for &v in side.iter().rev() {
            let extent: usize = self.factors[v].iter().product();
            let inside: Option<Vec<usize>> = wanted
                .iter()
                .filter(|&&w| w > below && w < below * extent)
                .map(|&w| w.is_multiple_of(below).then_some(w / below))
                .collect();
            let split = refine(&self.factors[v], &inside?)?;
            if split.len() > self.factors[v].len() && whole.contains(&v) {
                return None;
            }
            refined.push(split);
            below *= extent;
        }
        refined.reverse();
        Some(refined)
    }

    /// Stores the refined factors of one side. Returns whether anything changed.
    fn apply(&mut self, side: &[usize], refined: Vec<Vec<usize>>) -> bool {
        let mut changed = false;
        for (&v, split) in side.iter().zip(refined) {
            // The same index may occur twice on one side. The finer split wins.
            if split.len() > self.factors[v].len() {
                self.factors[v] = split;
                changed = true;
            }
        }
        changed
    }

    /// The factors of each dimension of a value.
    fn dims(&self, value: Value, rank: usize) -> Vec<&[usize]> {
        (0..rank).map(|d| self.factors[self.root[self.first[&value] + d]].as_slice()).collect()
    }

    fn factored(&self, value: Value, ty: &Type) -> Type {
        Type::new(ty.dtype, self.dims(value, ty.rank()).concat())
    }

    fn rewrite(&self, old: &Graph, new: &mut Graph, node: NodeIndex, operands: &[Value]) -> Vec<Value> {
        let n = old.node(node);
        let sources = old.operands(node);
        let ty = self.factored(node.into(), &n.types[0]);
        // The position of the first factor of dimension `dim` of an old value.
        let position = |v: Value, dim: usize| self.dims(v, dim).iter().map(|f| f.len()).sum::<usize>();
        let expand = |letters: &[Vec<u8>], values: &[Value]| -> Vec<Vec<(u8, usize)>> {
            let row = |(ls, &v): (&Vec<u8>, &Value)| {
                let dims = self.dims(v, ls.len());
                ls.iter().zip(dims).flat_map(|(&l, f)| (0..f.len()).map(move |i| (l, i))).collect()
            };
            letters.iter().zip(values).map(row).collect()
        };
        let subscripts = |subs: &Subscripts| {
            let result = expand(std::slice::from_ref(&subs.result), &[node.into()]).remove(0);
            Subscripts::new(&expand(&subs.operands, &sources), &result)
        };
        let one = |new: &mut Graph, op: Op| vec![new.push(op, operands, ty.clone(), &n.origin)];
        match &n.op {
            Op::Map { f, subs } => one(new, Op::Map { f: *f, subs: subscripts(subs) }),
            Op::Einsum { subs } => one(new, Op::Einsum { subs: subscripts(subs) }),
            Op::Reduce { op, subs } => one(new, Op::Reduce { op: *op, subs: subscripts(subs) }),
            Op::Reshape if new.ty(operands[0]).shape == ty.shape => vec![operands[0]],
            Op::Iota => vec![iota(new, &ty, &n.origin)],
            Op::Slice { dim, start, step } => match chunked(old, node) {
                Some((_, extent)) if self.splits(sources[0], *dim, extent) => {
                    let at = position(sources[0], *dim);
                    let chunk =
                        pick(new, operands[0], at, self.majors(sources[0], *dim, extent), start / extent, &n.origin);
                    // A chunk of extent 1 that is needed whole (the only row of a table) keeps its dimension.
                    vec![reshape(new, chunk, &ty.shape, &n.origin)]
                }
                _ => {
                    let op = Op::Slice { dim: position(sources[0], *dim), start: *start, step: *step };
                    vec![self.unfactored(old, new, node, op, *dim, operands)]
                }
            },
            Op::Index { dim, index } => {
                let majors = self.dims(sources[0], *dim + 1)[*dim];
                vec![pick(new, operands[0], position(sources[0], *dim), majors, *index, &n.origin)]
            }
            Op::Concat { dim } | Op::Pad { dim, .. } => {
                let at = position(node.into(), *dim);
                match chunked(old, node) {
                    Some((_, extent)) if self.splits(node.into(), *dim, extent) => {
                        let majors = self.majors(node.into(), *dim, extent);
                        let fill =
                            if let Op::Pad { low, value, .. } = &n.op { Some((low / extent, *value)) } else { None };
                        let inner = [&ty.shape[..at], &ty.shape[at + majors.len()..]].concat();
                        let chunks: Vec<Value> = operands.iter().map(|&v| reshape(new, v, &inner, &n.origin)).collect();
                        vec![assemble(new, &chunks, fill, at, majors, &ty, &n.origin)]
                    }
                    _ => vec![self.unfactored(old, new, node, with_dim(&n.op, at), *dim, operands)],
                }
            }
            Op::CumSum { dim } => one(new, Op::CumSum { dim: position(node.into(), *dim) }),
            op => {
                let types = (0..n.types.len() as u32).zip(&n.types);
                let types = types.map(|(result, t)| self.factored(Value { node, result }, t)).collect();
                let id = new.add(op.clone(), operands, types, n.origin.clone());
                (0..n.types.len() as u32).map(|result| Value { node: id, result }).collect()
            }
        }
    }

    /// Adds a slice, pad or concatenation that does not cut at chunk boundaries. The factors of its dimension are
    /// merged before it and split after it.
    fn unfactored(
        &self,
        old: &Graph,
        new: &mut Graph,
        node: NodeIndex,
        op: Op,
        dim: usize,
        operands: &[Value],
    ) -> Value {
        let n = old.node(node);
        let merged = |this: &Self, v: Value, ty: &Type| -> Vec<usize> {
            let dims = this.dims(v, ty.rank());
            (0..ty.rank()).flat_map(|d| if d == dim { vec![ty.shape[d]] } else { dims[d].to_vec() }).collect()
        };
        let sources = old.operands(node);
        let wide: Vec<Value> = operands
            .iter()
            .zip(&sources)
            .map(|(&v, &source)| reshape(new, v, &merged(self, source, old.ty(source)), &n.origin))
            .collect();
        let ty = Type::new(n.types[0].dtype, merged(self, node.into(), &n.types[0]));
        let cut = new.push(op, &wide, ty, &n.origin);
        reshape(new, cut, &self.factored(node.into(), &n.types[0]).shape, &n.origin)
    }

    /// Whether the factors of a dimension have a boundary at `extent`.
    fn splits(&self, value: Value, dim: usize, extent: usize) -> bool {
        let factors = self.dims(value, dim + 1)[dim];
        extent == 1 || boundaries(factors).contains(&extent)
    }

    /// The factors of a dimension that count its chunks of `extent`.
    fn majors(&self, value: Value, dim: usize, extent: usize) -> &[usize] {
        let factors = self.dims(value, dim + 1)[dim];
        let count = (0..=factors.len()).find(|&i| factors[i..].iter().product::<usize>() <= extent).unwrap_or(0);
        &factors[..count]
    }
}

/// The dimension and the extent of a chunk, for a slice, pad or concatenation at chunk boundaries.
fn chunked(graph: &Graph, node: NodeIndex) -> Option<(usize, usize)> {
    let n = graph.node(node);
    let operands = graph.operands(node);
    let size = |v: Value, d: usize| graph.ty(v).shape[d];
    let out = |d: usize| n.types[0].shape[d];
    let (dim, extent, long, at) = match n.op {
        Op::Slice { dim, start, step: 1 } => (dim, out(dim), size(operands[0], dim), start),
        Op::Pad { dim, low, .. } => (dim, size(operands[0], dim), out(dim), low),
        Op::Concat { dim } if operands.len() <= MOST_SELECTED => {
            let extent = size(operands[0], dim);
            if operands.iter().any(|&v| size(v, dim) != extent) {
                return None;
            }
            (dim, extent, out(dim), 0)
        }
        _ => return None,
    };
    (extent > 0 && extent < long && long.is_multiple_of(extent) && at.is_multiple_of(extent)).then_some((dim, extent))
}

/// The products of the minor-most 1, 2, … factors, except that of all factors.
fn boundaries(factors: &[usize]) -> Vec<usize> {
    let mut product = 1;
    let mut all: Vec<usize> = factors
        .iter()
        .rev()
        .map(|&f| {
            product *= f;
            product
        })
        .collect();
    all.pop();
    all
}

/// Splits `factors` so that every wanted minor product is a boundary. `None` if that is impossible.
fn refine(factors: &[usize], wanted: &[usize]) -> Option<Vec<usize>> {
    let total: usize = factors.iter().product();
    if total == 0 {
        return wanted.is_empty().then(|| factors.to_vec());
    }
    let mut all: Vec<usize> = boundaries(factors).into_iter().chain(wanted.iter().copied()).collect();
    all.retain(|&b| b > 1 && b < total);
    all.push(total);
    all.sort_unstable();
    all.dedup();
    let mut below = 1;
    let mut split = Vec::new();
    for b in all {
        if b % below != 0 {
            return None;
        }
        if b / below > 1 {
            split.push(b / below);
        }
        below = b;
    }
    split.reverse();
    Some(split)
}

/// An iota over factored dimensions: the sum of each factor's index times its stride.
fn iota(new: &mut Graph, ty: &Type, origin: &Origin) -> Value {
    if ty.rank() <= 1 {
        let flat = Type::new(ty.dtype, ty.shape.clone());
        return match ty.rank() {
            1 => new.push(Op::Iota, &[], flat, origin),
            _ => new.push(Op::Fill(Scalar::of(ty.dtype, 0.0)), &[], flat, origin),
        };
    }
    let letters: Vec<u8> = (0..ty.rank() as u8).collect();
    let mut terms = Vec::new();
    for (d, &n) in ty.shape.iter().enumerate() {
        let index = new.push(Op::Iota, &[], Type::new(ty.dtype, [n]), origin);
        let stride: usize = ty.shape[d + 1..].iter().product();
        let stride = new.scalar(ty.dtype, stride as f64, origin);
        terms.push(new.map(MapFn::Mul, &[index, stride], origin));
    }
    let rows: Vec<Vec<u8>> = letters.iter().map(|&l| vec![l]).collect();
    new.push(Op::Map { f: MapFn::Add, subs: Subscripts::new(&rows, &letters) }, &terms, ty.clone(), origin)
}

fn reshape(new: &mut Graph, v: Value, shape: &[usize], origin: &Origin) -> Value {
    if new.ty(v).shape == shape {
        return v;
    }
    let ty = Type::new(new.ty(v).dtype, shape);
    new.push(Op::Reshape, &[v], ty, origin)
}

/// The chunk with the number `chunk`, counted by the factors `majors`, which begin at dimension `at`.
fn pick(new: &mut Graph, mut value: Value, at: usize, majors: &[usize], chunk: usize, origin: &Origin) -> Value {
    let mut rest: usize = majors.iter().product();
    for &m in majors {
        rest /= m;
        let mut ty = new.ty(value).clone();
        ty.shape.remove(at);
        let ty = Type::new(ty.dtype, ty.shape);
        value = new.push(Op::Index { dim: at, index: chunk / rest % m }, &[value], ty, origin);
    }
    value
}

/// The inverse of [`pick`]: operand i becomes chunk i (or the only operand becomes chunk `fill.0`, and the others are
/// constant). Selects compare the number of the chunk.
fn assemble(
    new: &mut Graph,
    operands: &[Value],
    fill: Option<(usize, Scalar)>,
    at: usize,
    majors: &[usize],
    ty: &Type,
    origin: &Origin,
) -> Value {
    let int = tpc_ir::DType::I64;
    let number = iota(new, &Type::new(int, majors.to_vec()), origin);
    let chunk_letters: Vec<u8> = (at..at + majors.len()).map(|l| l as u8).collect();
    let all: Vec<u8> = (0..ty.rank() as u8).collect();
    let inner: Vec<u8> = all.iter().copied().filter(|l| !chunk_letters.contains(l)).collect();
    let is_chunk = |new: &mut Graph, i: usize| {
        let i = new.scalar(int, i as f64, origin);
        new.map(MapFn::Eq, &[number, i], origin)
    };
    let select = |new: &mut Graph, cond: Value, a: Value, rest: Value, rest_letters: &[u8]| {
        let rows = [chunk_letters.clone(), inner.clone(), rest_letters.to_vec()];
        let subs = Subscripts::new(&rows, &all);
        new.push(Op::Map { f: MapFn::Select, subs }, &[cond, a, rest], ty.clone(), origin)
    };
    if let Some((chunk, value)) = fill {
        let constant = new.scalar(ty.dtype, value.as_f64(), origin);
        let cond = is_chunk(new, chunk);
        return select(new, cond, operands[0], constant, &[]);
    }
    let last = operands.len() - 1;
    let (mut value, mut letters) = (operands[last], inner.clone());
    for i in (0..last).rev() {
        let cond = is_chunk(new, i);
        value = select(new, cond, operands[i], value, &letters);
        letters = all.clone();
    }
    value
}

fn with_dim(op: &Op, dim: usize) -> Op {
    match op {
        Op::Pad { low, value, .. } => Op::Pad { dim, low: *low, value: *value },
        _ => Op::Concat { dim },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refining_keeps_products() {
        assert_eq!(refine(&[8], &[4]), Some(vec![2, 4]));
        assert_eq!(refine(&[2, 6], &[3]), Some(vec![2, 2, 3]));
        assert_eq!(refine(&[6], &[4]), None);
        assert_eq!(boundaries(&[2, 3, 4]), [4, 12]);
    }
}
