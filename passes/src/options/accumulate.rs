//! Gradient accumulation: micro-batches as a mesh axis in time.
//!
//! The graph of the whole batch is propagated over a mesh of one axis with as many ranks as there are micro-batches,
//! with the batch dimension of the data sharded over it. The program is that for so many ranks, so its result is
//! correct: losses are means over all labels that are not ignored, statistics are those of the batch, and random
//! numbers follow the global index. Then the axis is *unrolled*: a value that varies along it has a copy per
//! micro-batch, any other value has one, and collectives become local operations between copies (an all-reduce is a
//! sum, an all-gather a concatenation). Micro-batch i is complete before i + 1 begins, except for values that an
//! earlier one needs from all (the number of labels, which divides every loss), so only the activations of one
//! micro-batch are alive at a time.
//!
//! Micro-batch i has the rows i, i + K, i + 2K, …: a data input has the type `[B/K, K, …]`, and a data axis shards the
//! first of these dimensions, so every rank has rows of every micro-batch. If K does not divide a dimension, the
//! dimension is cut into runs of nearly equal length instead.
//!
//! Before: `%3 = einsum "ab,ac->bc" %0, %1 : f32[64, 256]` with `%0 : f32[8, 64]`. After, for two micro-batches: `%2 =
//! index dim=1 index=0 %0 : f32[4, 64]` with `%0 : f32[4, 2, 64]`, likewise `%3` of `%1`, `%4 = einsum "ab,ac->bc" %2,
//! %3 ; micro 0`, the same for index 1, and `%8 = add %4, %7`.
//!
//! A sum over the micro-batches is one operation with all terms. Under a data axis the terms stay partial and only the
//! sum is reduced ([`Annotations::sums`]), once per step and not once per micro-batch. When everything is placed,
//! [`running_sums`] splits it into a chain.

use super::OptionError;
use crate::propagate::propagate_mapped;
use crate::rebuild::{copy, live, rebuild};
use crate::styles::annotations::{Annotation, Annotations, Constraint};
use crate::styles::layout::OnAxes;
use crate::targets::{Device, Target};
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, HashMap, HashSet};
use tpc_ir::reason::{Demand, Reason};
use tpc_ir::{
    AxisId, Graph, InputId, InputKind, MapFn, Mesh, Op, Origin, Output, ReduceOp, Scalar, Sharding, Subscripts, Type,
    Value,
};

/// The mesh axis in time.
const MICRO: &str = "micro";

/// The origin of the copy of a node for a micro-batch.
fn of_micro_batch(origin: &Origin, copy: usize) -> Origin {
    Origin { micro_batch: Some(copy), ..origin.clone() }
}

/// Cuts the batch into `count` micro-batches that run one after the other.
///
/// The batch is the first dimension of the first data input. Data inputs whose first dimension has another size are
/// whole in every micro-batch.
///
/// # Errors
/// There are more micro-batches than rows, or none.
pub fn accumulate(graph: &Graph, annotations: &Annotations, count: usize) -> Result<(Graph, Annotations), OptionError> {
    let timed = over_time(graph, count)?;
    let Some((timed, mapping)) = timed else { return Ok((graph.clone(), annotations.clone())) };
    let mut unroll = Unroll {
        live: live(&timed),
        old: &timed,
        count,
        new: Graph::new(graph.mesh.clone()),
        made: HashMap::new(),
        factored: HashMap::new(),
        gathered: HashMap::new(),
        sums: HashSet::new(),
    };
    unroll.everything();
    let mut carried = Annotations { sums: std::mem::take(&mut unroll.sums), ..annotations.clone() };
    carried.results.clear();
    carried.uses.clear();
    for (&node, annotation) in &annotations.results {
        let Some(&value) = mapping.get(&node.into()) else { continue };
        for made in unroll.copies(value) {
            carried.results.insert(made.node, annotation.clone());
        }
    }
    for (&(node, operand), constraints) in &annotations.uses {
        let Some(&value) = mapping.get(&node.into()) else { continue };
        for made in unroll.copies(value) {
            carried.uses.insert((made.node, operand), constraints.clone());
        }
    }
    for (node, id) in timed.inputs() {
        let Some(dim) = batch_dim(&timed, node.into()) else { continue };
        let Some(annotation) = annotations.inputs.get(id) else { continue };
        if unroll.factored.contains_key(&node.into()) {
            if let Some(annotation) = carried.inputs.get_mut(id) {
                annotation.sharding.dims.insert(dim + 1, Vec::new());
            }
        } else {
            // The runs of rows are not the chunks of a data axis, so they are redistributed.
            let axes = annotation.sharding.sharded_axes().iter().collect();
            let at = OnAxes { axes, dims: annotation.sharding.dims.clone() };
            for made in unroll.copies(node.into()) {
                let constraint = Constraint { at: at.clone(), why: annotation.why.clone() };
                carried.results.insert(made.node, vec![constraint]);
            }
        }
    }
    Ok((unroll.new, carried))
}

/// A data input: its node, its shape as the model knows it, and its id.
type Data<'a> = (NodeIndex, &'a [usize], &'a InputId);

type Timed = (Graph, crate::rebuild::Mapping);

/// The graph on a mesh whose only axis is time; `None` if there is only one micro-batch.
fn over_time(graph: &Graph, count: usize) -> Result<Option<Timed>, OptionError> {
    let data: Vec<Data> = graph
        .inputs()
        .filter(|(node, id)| id.kind() == InputKind::Data && graph.node(*node).types[0].rank() > 0)
        .filter_map(|(node, id)| match &graph.node(node).op {
            Op::Input { layout, .. } => Some((node, layout.as_slice(), id)),
            _ => None,
        })
        .collect();
    let batch = data.first().and_then(|(_, layout, _)| layout.first()).copied().unwrap_or(1);
    let of_batch = |(_, layout, _): &&Data| layout.first() == Some(&batch);
    let rows = data.iter().filter(of_batch).map(|(node, _, _)| graph.node(*node).types[0].shape[0]).min();
    let refused = OptionError::MicroBatches { batch, micro_batches: count };
    if count == 1 {
        return Ok(None);
    }
    // If the model itself splits the batch, the first part must have enough rows.
    if count == 0 || count > batch || rows.is_none_or(|rows| count > rows) {
        return Err(refused);
    }
    let mesh = Mesh::new([(MICRO, count)]).map_err(|_| refused)?;
    let placed = |(node, _, id): &Data| {
        let sharding = Sharding::replicated(graph.node(*node).types[0].rank()).pushed(0, AxisId(0));
        ((*id).clone(), Annotation { sharding, why: Reason::default() })
    };
    let inputs = data.iter().filter(of_batch).map(placed).collect();
    let annotations = Annotations { mesh, inputs, ..Annotations::default() };
    Ok(Some(propagate_mapped(graph, &annotations, &in_time())))
}

/// The target of the axis in time. Nothing is sent along this axis, so its links do not matter. Memory is extremely
/// slow in this target, because nothing should be computed or kept for the whole batch.
fn in_time() -> Target {
    let any = Target::cpu();
    Target { device: Device { memory: 1.0, ..any.device.clone() }, ..any.clone() }
}

/// The dimension of a value that is split into micro-batches.
fn batch_dim(graph: &Graph, value: Value) -> Option<usize> {
    graph.ty(value).sharding.dim_of(AxisId(0))
}

/// A node in one micro-batch, or once for all.
type Instance = (NodeIndex, Option<usize>);

/// The state of unrolling the axis in time.
struct Unroll<'a> {
    live: Vec<bool>,
    old: &'a Graph,
    count: usize,
    new: Graph,
    /// The results of every instance; `None` for a term that is the neutral element in its micro-batch.
    made: HashMap<Instance, Option<Vec<Value>>>,
    /// Inputs and random tensors whose batch dimension is typed `[B/K, K]`.
    factored: HashMap<Value, Value>,
    /// The values for the whole batch that were assembled from copies.
    gathered: HashMap<Value, Value>,
    /// Sums over the micro-batches.
    sums: HashSet<NodeIndex>,
}

impl Unroll<'_> {
    fn everything(&mut self) {
        let old = self.old;
        for (node, _) in old.inputs() {
            self.demand((node, None));
        }
        for copy in 0..self.count {
            for node in old.nodes().filter(|n| self.live[n.index()]).collect::<Vec<_>>() {
                if !self.is_invariant(node.into()) {
                    self.demand((node, Some(copy)));
                }
            }
        }
        for node in old.nodes() {
            if self.live[node.index()] && self.is_invariant(node.into()) {
                self.demand((node, None));
            }
        }
        self.new.outputs = old.outputs.iter().map(|o| Output { value: self.gather(o.value), ..o.clone() }).collect();
    }

    fn is_invariant(&self, value: Value) -> bool {
        self.old.ty(value).sharding.is_replicated()
    }

    /// Whether a node whose result varies is computed for the whole batch, of which every micro-batch takes its part.
    /// That holds for nodes that move data between micro-batches and for nodes that depend on positions.
    fn is_whole(&self, node: NodeIndex) -> bool {
        let n = self.old.node(node);
        let counts = match &n.op {
            Op::Input { .. } | Op::Random { .. } => true,
            Op::Take | Op::Put => batch_dim(self.old, self.old.operands(node)[0]) == Some(0),
            Op::ScatterAdd => batch_dim(self.old, node.into()) == Some(0),
            op => op.is_redistribution(),
        };
        counts || self.is_invariant(node.into())
    }

    /// The instances that an instance needs.
    fn needs(&self, (node, copy): Instance) -> Vec<Instance> {
        if copy.is_some() && self.is_whole(node) {
            return vec![(node, None)];
        }
        let mut needs = Vec::new();
        for v in self.old.operands(node) {
            match copy {
                _ if self.is_invariant(v) => needs.push((v.node, None)),
                Some(_) => needs.push((v.node, copy)),
                None if self.is_whole(v.node) => needs.push((v.node, None)),
                None => needs.extend((0..self.count).map(|i| (v.node, Some(i)))),
            }
        }
        needs
    }

    /// Creates an instance after all those that it needs.
    fn demand(&mut self, wanted: Instance) {
        let mut open = vec![wanted];
        while let Some(&instance) = open.last() {
            if self.made.contains_key(&instance) {
                open.pop();
                continue;
            }
            let missing: Vec<Instance> =
                self.needs(instance).into_iter().filter(|n| !self.made.contains_key(n)).collect();
            if missing.is_empty() {
                open.pop();
                let results = match instance {
                    (node, None) => Some(self.once(node)),
                    (node, Some(copy)) => self.copy(node, copy),
                };
                self.made.insert(instance, results);
            } else {
                open.extend(missing.into_iter().rev());
            }
        }
    }

    /// Creates the instance of a node for all micro-batches together.
    fn once(&mut self, node: NodeIndex) -> Vec<Value> {
        let n = self.old.node(node);
        let operands: Vec<Value> = self.old.operands(node).into_iter().map(|v| self.gather(v)).collect();
        if n.op.is_redistribution() {
            return operands;
        }
        let mut types: Vec<Type> = n.types.iter().map(|t| Type::new(t.dtype, t.shape.clone())).collect();
        let split = batch_dim(self.old, node.into()).filter(|&d| types[0].shape[d].is_multiple_of(self.count));
        if let (Some(dim), Op::Input { .. } | Op::Random { .. }) = (split, &n.op) {
            let rows = types[0].shape[dim] / self.count;
            types[0].shape.splice(dim..=dim, [rows, self.count]);
            types[0] = Type::new(types[0].dtype, types[0].shape.clone());
            let value = self.new.push(n.op.clone(), &operands, types[0].clone(), &n.origin);
            self.factored.insert(node.into(), value);
            return vec![value];
        }
        let made = self.new.add(n.op.clone(), &operands, types, n.origin.clone());
        (0..n.types.len() as u32).map(|result| Value { node: made, result }).collect()
    }

    /// Creates the instance of a node for one micro-batch; `None` if it is the neutral element there.
    fn copy(&mut self, node: NodeIndex, copy: usize) -> Option<Vec<Value>> {
        let n = self.old.node(node);
        let origin = of_micro_batch(&n.origin, copy);
        if self.is_whole(node) {
            // The first micro-batch has all of a partial value.
            if n.types[0].sharding.partial.is_some() {
                return if copy == 0 { self.made[&(node, None)].clone() } else { None };
            }
            let results = 0..n.types.len() as u32;
            return Some(results.map(|result| self.part(Value { node, result }, copy, &origin)).collect());
        }
        let operands: Option<Vec<Value>> = self.old.operands(node).into_iter().map(|v| self.at(v, copy)).collect();
        let operands = match operands {
            Some(operands) => operands,
            None => self.with_identities(node, copy, &origin),
        };
        let types: Vec<Type> = n.types.iter().map(|ty| self.local(ty, copy)).collect();
        if n.op == Op::Iota {
            return Some(vec![self.iota(&n.types[0], &types[0], copy, &origin)]);
        }
        let made = self.new.add(n.op.clone(), &operands, types, origin);
        Some((0..n.types.len() as u32).map(|result| Value { node: made, result }).collect())
    }

    /// The value of an operand in a micro-batch; `None` if it is the neutral element there.
    fn at(&self, value: Value, copy: usize) -> Option<Value> {
        let copy = (!self.is_invariant(value)).then_some(copy);
        self.made[&(value.node, copy)].as_ref().map(|results| results[value.result as usize])
    }

    /// The operands of a node, with the neutral element of the reduction for terms that a micro-batch lacks.
    fn with_identities(&mut self, node: NodeIndex, copy: usize, origin: &Origin) -> Vec<Value> {
        let mut operands = Vec::new();
        for v in self.old.operands(node) {
            let ty = self.local(self.old.ty(v), copy);
            let op = self.old.ty(v).sharding.partial.map_or(ReduceOp::Sum, |p| p.op);
            let identity = Op::Fill(Scalar::of(ty.dtype, op.identity_of(ty.dtype)));
            let value = self.at(v, copy).unwrap_or_else(|| self.new.push(identity, &[], ty, origin));
            operands.push(value);
        }
        operands
    }

    /// The first row and the number of rows of a micro-batch, in a dimension that is cut into runs.
    fn run(&self, size: usize, copy: usize) -> (usize, usize) {
        let (short, longer) = (size / self.count, size % self.count);
        (copy * short + copy.min(longer), short + usize::from(copy < longer))
    }

    /// The type of the part of a value in a micro-batch.
    fn local(&self, ty: &Type, copy: usize) -> Type {
        let mut shape = ty.shape.clone();
        if let Some(dim) = ty.sharding.dim_of(AxisId(0)) {
            shape[dim] = self.run(shape[dim], copy).1;
        }
        Type::new(ty.dtype, shape)
    }

    /// The part of a micro-batch in a value that is computed for the whole batch.
    fn part(&mut self, value: Value, copy: usize, origin: &Origin) -> Value {
        let ty = self.old.ty(value).clone();
        let local = self.local(&ty, copy);
        let Some(whole) = self.at_once(value) else { unreachable!("made before its parts") };
        let Some(dim) = batch_dim(self.old, value) else { return whole };
        let (size, count) = (ty.shape[dim], self.count);
        if !size.is_multiple_of(count) {
            let start = self.run(size, copy).0;
            return self.new.push(Op::Slice { dim, start, step: 1 }, &[whole], local, origin);
        }
        let factored = match self.factored.get(&value) {
            Some(&factored) => factored,
            None => {
                let mut shape = ty.shape.clone();
                shape.splice(dim..=dim, [size / count, count]);
                let factored = self.new.push(Op::Reshape, &[whole], Type::new(ty.dtype, shape), origin);
                self.factored.insert(value, factored);
                factored
            }
        };
        self.new.push(Op::Index { dim: dim + 1, index: copy }, &[factored], local, origin)
    }

    /// The value of an operand that is computed for the whole batch.
    fn at_once(&self, value: Value) -> Option<Value> {
        self.made.get(&(value.node, None))?.as_ref().map(|results| results[value.result as usize])
    }

    /// The positions of the rows of a micro-batch.
    fn iota(&mut self, whole: &Type, local: &Type, copy: usize, origin: &Origin) -> Value {
        let even = whole.shape[0].is_multiple_of(self.count);
        let (stride, start) = if even { (self.count, copy) } else { (1, self.run(whole.shape[0], copy).0) };
        let mut value = self.new.push(Op::Iota, &[], local.clone(), origin);
        for (f, x, nothing) in [(MapFn::Mul, stride, 1), (MapFn::Add, start, 0)] {
            if x != nothing {
                let x = self.new.scalar(local.dtype, x as f64, origin);
                value = self.new.map(f, &[value, x], origin);
            }
        }
        value
    }

    /// A value for the whole batch.
    fn gather(&mut self, value: Value) -> Value {
        if let Some(&known) = self.gathered.get(&value) {
            return known;
        }
        let origin = self.old.node(value.node).origin.clone();
        let ty = Type::new(self.old.ty(value).dtype, self.old.ty(value).shape.clone());
        let gathered = match self.at_once(value) {
            Some(whole) if self.new.ty(whole).shape == ty.shape => whole,
            Some(factored) => self.new.push(Op::Reshape, &[factored], ty, &origin),
            None => {
                let parts: Vec<Value> = (0..self.count).filter_map(|copy| self.at(value, copy)).collect();
                match batch_dim(self.old, value) {
                    Some(dim) => self.joined(parts, ty, dim, &origin),
                    None => self.combined(value, &parts, ty, &origin),
                }
            }
        };
        self.gathered.insert(value, gathered);
        gathered
    }

    /// Joins the rows of all micro-batches in their order in the batch.
    fn joined(&mut self, parts: Vec<Value>, ty: Type, dim: usize, origin: &Origin) -> Value {
        let size = ty.shape[dim];
        if !size.is_multiple_of(self.count) {
            return self.new.push(Op::Concat { dim }, &parts, ty, origin);
        }
        let typed = |chunks: usize| {
            let mut shape = ty.shape.clone();
            shape.splice(dim..=dim, [size / self.count, chunks]);
            Type::new(ty.dtype, shape)
        };
        let (one, all) = (typed(1), typed(self.count));
        let rows: Vec<Value> =
            parts.into_iter().map(|v| self.new.push(Op::Reshape, &[v], one.clone(), origin)).collect();
        let joined = self.new.push(Op::Concat { dim: dim + 1 }, &rows, all, origin);
        self.new.push(Op::Reshape, &[joined], ty, origin)
    }

    /// Combines the terms of all micro-batches.
    fn combined(&mut self, value: Value, terms: &[Value], ty: Type, origin: &Origin) -> Value {
        let op = self.old.ty(value).sharding.partial.map_or(ReduceOp::Sum, |p| p.op);
        let origin = Origin { reason: Demand::MicroBatches.into(), ..origin.clone() };
        let f = match op {
            ReduceOp::Sum => MapFn::Add,
            ReduceOp::Max => MapFn::Max,
            ReduceOp::Min => MapFn::Min,
            ReduceOp::Prod => MapFn::Mul,
        };
        match terms {
            [] => self.new.push(Op::Fill(Scalar::of(ty.dtype, op.identity_of(ty.dtype))), &[], ty, &origin),
            [one] => *one,
            many if f == MapFn::Add => {
                let subs = Subscripts::elementwise(many.len(), ty.rank());
                let sum = self.new.push(Op::Map { f, subs }, many, ty, &origin);
                self.sums.insert(sum.node);
                sum
            }
            [first, rest @ ..] => rest.iter().fold(*first, |a, &b| self.new.map(f, &[a, b], &origin)),
        }
    }

    /// The values in the new graph that a value became: one, or one per micro-batch.
    fn copies(&self, value: Value) -> Vec<Value> {
        match self.is_invariant(value) {
            true => self.at_once(value).into_iter().collect(),
            false => (0..self.count).filter_map(|copy| self.at(value, copy)).collect(),
        }
    }
}

/// Splits sums over micro-batches into chains. Each link comes right after its term, so one accumulator is alive
/// instead of all terms.
///
/// Before: `%8 = einsum … ; micro 0`, `%18 = einsum … ; micro 1`, `%28 = einsum … ; micro 2`,
/// `%29 = add %8, %18, %28`.
/// After: `%8 = …`, `%18 = …`, `%19 = add %8, %18`, …, `%29 = …`, `%30 = add %19, %29`.
pub fn running_sums(graph: &Graph) -> Graph {
    let owner = |v: &Value| graph.node(v.node).origin.micro_batch;
    // For each node after which links come: the sums and the numbers of the terms that are added there.
    let mut links: BTreeMap<NodeIndex, Vec<(NodeIndex, usize)>> = BTreeMap::new();
    let mut terms: HashMap<NodeIndex, Vec<Value>> = HashMap::new();
    for node in graph.nodes() {
        let Op::Map { f: MapFn::Add, subs } = &graph.node(node).op else { continue };
        let mut operands = graph.operands(node);
        operands.sort();
        let several = operands.windows(2).any(|w| owner(&w[0]) != owner(&w[1]));
        if operands.len() > 2 && subs.is_elementwise() && several {
            for (i, v) in operands.iter().enumerate().skip(1) {
                links.entry(v.node).or_default().push((node, i));
            }
            terms.insert(node, operands);
        }
    }
    let mut map: HashMap<Value, Value> = HashMap::new();
    let mut sums: HashMap<NodeIndex, Value> = HashMap::new();
    rebuild(graph, graph.mesh.clone(), |new, node, operands| {
        let results = match sums.get(&node) {
            Some(&sum) => vec![sum],
            None => copy(new, graph, node, &operands),
        };
        for (result, &value) in results.iter().enumerate() {
            map.insert(Value { node, result: result as u32 }, value);
        }
        for &(sum, i) in links.get(&node).into_iter().flatten() {
            let terms = &terms[&sum];
            let so_far = sums.get(&sum).copied().unwrap_or_else(|| map[&terms[0]]);
            let n = graph.node(sum);
            let subs = Subscripts::elementwise(2, n.types[0].rank());
            let term = graph.node(terms[i].node).origin.clone();
            let origin = Origin { reason: n.origin.reason.clone(), ..term };
            let next = [so_far, map[&terms[i]]];
            let link = new.push(Op::Map { f: MapFn::Add, subs }, &next, n.types[0].clone(), &origin);
            sums.insert(sum, link);
        }
        results
    })
    .0
}
