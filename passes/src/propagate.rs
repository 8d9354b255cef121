//! Gives every value a first placement: a valid program exists before any search.
//!
//! Nodes are visited in order. An operation goes where its operands already are: for each mesh axis
//! it takes the index that some operand has sharded there and that costs least, moving the other
//! operands; with nothing sharded, every rank computes everything. A partial result is reduced at
//! once. Nothing clever happens here (Shardy propagates factor by factor with priorities; the
//! e-graph then moves what this leaves).
//!
//! Before: `%2 = einsum "ab,bc->ac" %0, %1 : f32[16, 64]` with `%0 : f32[16, 256@tp]`.
//! After: `%3 = shard_slice tp dim=0 %1`, `%4 = einsum … %0, %3 : f32[16, 64] +sum@tp`,
//! `%5 = all_reduce tp sum %4 : f32[16, 64]`.

use crate::cost::CostModel;
use crate::rebuild::{Mapping, rebuild};
use crate::redistribute::{redistribute, reduced, steps};
use crate::rules::{FactorKind, Rule, place, rule};
use petgraph::graph::NodeIndex;
use std::collections::HashMap;
use std::sync::Arc;
use tpc_ir::{AxisId, Graph, InputKind, MapFn, Mesh, Op, Origin, OutputKind, ReduceOp, Sharding, Type, Value};

/// A placement that a plan demands, and the plan entry that demands it.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// The placement.
    pub sharding: Sharding,
    /// The plan entry.
    pub why: Arc<str>,
}

/// Placements of inputs by name; inputs that are not listed are replicated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Annotations {
    /// The mesh, with the axes split as far as the placements need.
    pub mesh: Mesh,
    /// By input name.
    pub inputs: HashMap<String, Annotation>,
    /// By node of the logical graph: where its result must lie on the axes that the annotation
    /// names; on other axes it is free.
    pub results: HashMap<NodeIndex, Annotation>,
}

/// Places every value of a logical graph.
pub fn propagate(graph: &Graph, annotations: &Annotations, cost: &CostModel) -> Graph {
    propagate_mapped(graph, annotations, cost).0
}

/// [`propagate`], and where every value of the logical graph lies then.
pub fn propagate_mapped(graph: &Graph, annotations: &Annotations, cost: &CostModel) -> (Graph, Mapping) {
    let mut cache: HashMap<(Value, Sharding), Value> = HashMap::new();
    let (mut placed, mapping) = rebuild(graph, annotations.mesh.clone(), |new, node, operands| {
        let n = graph.node(node);
        if let Op::Input { name, .. } = &n.op {
            let mut ty = n.types[0].clone();
            let mut origin = n.origin.clone();
            if let Some(a) = annotations.inputs.get(name) {
                ty.sharding = a.sharding.clone();
                origin.why = a.why.clone();
            }
            return vec![new.push(n.op.clone(), &[], ty, &origin)];
        }
        let types: Vec<&Type> = operands.iter().map(|&v| new.ty(v)).collect();
        let row = rule(&n.op, &types, &n.types.iter().collect::<Vec<_>>());
        // A style's parameter stays where it is: the other operands come to it.
        let pinned: Vec<bool> = operands
            .iter()
            .map(|&v| match new.op(uncast(new, v)) {
                Op::Input { kind: InputKind::Parameter, name, .. } => annotations.inputs.contains_key(name),
                _ => false,
            })
            .collect();
        let wanted = strategy(&row, &types, &pinned, &n.types[0], &new.mesh, cost);
        let shardings: Vec<Sharding> = row
            .operands
            .iter()
            .map(|dims| Sharding { dims: dims.iter().map(|&f| wanted[f].clone()).collect(), partial: None })
            .collect();
        let why: Arc<str> = format!("{} wants its operands together", n.op.name()).into();
        let moved: Vec<Value> = operands
            .iter()
            .zip(&shardings)
            .map(|(&v, s)| {
                let key = (v, s.clone());
                *cache.entry(key).or_insert_with(|| {
                    let origin = Origin { why: why.clone(), ..n.origin.clone() };
                    redistribute(new, v, s, &origin)
                })
            })
            .collect();
        let types: Vec<&Type> = moved.iter().map(|&v| new.ty(v)).collect();
        let results: Vec<Type> = (0..n.types.len())
            .map(|r| {
                let one = Rule { results: vec![row.results[r].clone()], ..row.clone() };
                let s = place(&one, &types, None).expect("the strategy satisfies the rule");
                n.types[r].placed(s)
            })
            .collect();
        let id = new.add(n.op.clone(), &moved, results.clone(), n.origin.clone());
        results
            .iter()
            .enumerate()
            .map(|(r, ty)| {
                let v = Value { node: id, result: r as u32 };
                let origin = Origin { why: partial_reason(new, v), ..n.origin.clone() };
                match annotations.results.get(&node) {
                    Some(a) => {
                        let to = constrained(&reduced(&ty.sharding), &a.sharding);
                        redistribute(new, v, &to, &Origin { why: a.why.clone(), ..origin })
                    }
                    None => redistribute(new, v, &reduced(&ty.sharding), &origin),
                }
            })
            .collect()
    });
    place_outputs(&mut placed);
    (placed, mapping)
}

/// What a value was before it was converted to another element type.
fn uncast(graph: &Graph, value: Value) -> Value {
    match graph.op(value) {
        Op::Map { f: MapFn::Cast(_), .. } => uncast(graph, graph.operands(value.node)[0]),
        _ => value,
    }
}

/// Why a partial is reduced: which sharded operands made it one.
fn partial_reason(graph: &Graph, value: Value) -> Arc<str> {
    if graph.ty(value).sharding.partial.is_none() {
        return "".into();
    }
    let operands = graph.operands(value.node);
    let named = operands.iter().map(|&v| uncast(graph, v)).find_map(|v| match graph.op(v) {
        Op::Input { name, .. } => Some((name.clone(), graph.node(v.node).origin.why.clone())),
        _ => None,
    });
    match named {
        Some((name, why)) if !why.is_empty() => format!("{name} is cut along the summed index ({why})").into(),
        _ => "the summed index is sharded".into(),
    }
}

/// Gradients lie like their parameters and updates like their inputs; other outputs as they are.
fn place_outputs(graph: &mut Graph) {
    for i in 0..graph.outputs.len() {
        let name = match &graph.outputs[i].kind {
            OutputKind::Update(name) | OutputKind::Gradient(name) => name.clone(),
            _ => continue,
        };
        let Some((input, _, _)) = graph.inputs().find(|(_, _, n)| *n == name) else { continue };
        let to = graph.node(input).types[0].sharding.clone();
        let origin =
            Origin { why: "lies like its parameter".into(), ..graph.node(graph.outputs[i].value.node).origin.clone() };
        graph.outputs[i].value = redistribute(graph, graph.outputs[i].value, &to, &origin);
    }
}

/// A placement moved to where an annotation wants it on the annotation's axes.
fn constrained(from: &Sharding, wanted: &Sharding) -> Sharding {
    let axes = wanted.sharded_axes();
    let mut to = from.clone();
    for (dim, want) in to.dims.iter_mut().zip(&wanted.dims) {
        dim.retain(|a| !axes.contains(*a));
        dim.extend(want);
    }
    to
}

/// For every factor the axes that cut it.
fn strategy(
    row: &Rule,
    operands: &[&Type],
    pinned: &[bool],
    result: &Type,
    mesh: &Mesh,
    cost: &CostModel,
) -> Vec<Vec<AxisId>> {
    let mut chosen: Vec<Vec<AxisId>> = vec![Vec::new(); row.factors.len()];
    for axis in mesh.axis_ids() {
        let mut options: Vec<Option<usize>> = vec![None];
        for (ty, dims) in operands.iter().zip(&row.operands) {
            if let Some(d) = ty.sharding.dim_of(axis) {
                let f = dims[d];
                let free = row.factors[f].kind != FactorKind::Whole && !options.contains(&Some(f));
                if free && !second_reduction(row, &chosen, f) {
                    options.push(Some(f));
                }
            }
        }
        let fixed = operands.iter().zip(&row.operands).zip(pinned).find_map(|((ty, dims), &pinned)| {
            let d = ty.sharding.dim_of(axis).filter(|_| pinned)?;
            options.contains(&Some(dims[d])).then_some(Some(dims[d]))
        });
        if let Some(fixed) = fixed {
            options = vec![fixed];
        }
        // Ties go to the first sharded option: less compute.
        let best = options
            .into_iter()
            .map(|o| (option_seconds(row, operands, result, axis, o, mesh, cost), o))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.is_some().cmp(&a.1.is_some())));
        if let Some((_, Some(f))) = best {
            chosen[f].push(axis);
        }
    }
    // The order of axes on an index is the one that an operand already has.
    for (f, axes) in chosen.iter_mut().enumerate().filter(|(_, axes)| axes.len() > 1) {
        let existing = operands.iter().zip(&row.operands).find_map(|(ty, dims)| {
            let d = dims.iter().position(|&g| g == f)?;
            let list = &ty.sharding.dims[d];
            (list.len() == axes.len() && list.iter().all(|a| axes.contains(a))).then(|| list.clone())
        });
        if let Some(list) = existing {
            *axes = list;
        }
    }
    chosen
}

/// Whether sharding `f` would make the result partial under a second operator.
fn second_reduction(row: &Rule, chosen: &[Vec<AxisId>], f: usize) -> bool {
    let reduction = |g: usize| match row.factors[g].kind {
        FactorKind::Reduce(op) => Some(op),
        _ => None,
    };
    let present: Option<ReduceOp> = (0..chosen.len()).filter(|&g| !chosen[g].is_empty()).find_map(reduction);
    matches!((present, reduction(f)), (Some(a), Some(b)) if a != b)
}

/// Estimated seconds when `axis` cuts `factor` (or nothing): moving operands, computing, reducing.
fn option_seconds(
    row: &Rule,
    operands: &[&Type],
    result: &Type,
    axis: AxisId,
    factor: Option<usize>,
    mesh: &Mesh,
    cost: &CostModel,
) -> f64 {
    let mut seconds = 0.0;
    for (ty, dims) in operands.iter().zip(&row.operands) {
        // Look at this axis alone: the others are decided on their own.
        let only = |keep: Option<usize>| {
            let mut s = Sharding::replicated(ty.rank());
            if let Some(d) = keep {
                s.dims[d].push(axis);
            }
            s
        };
        let now = only(ty.sharding.dim_of(axis));
        let then = only(factor.and_then(|f| dims.iter().position(|&g| g == f)));
        let mut at = Type { sharding: now.clone(), ..(*ty).clone() };
        for op in steps(&now, &then) {
            if let Ok(s) = crate::rules::place_redistribution(&op, &at) {
                let next = at.placed(s);
                seconds += cost.seconds(&op, &[&at], &next, mesh);
                at = next;
            }
        }
    }
    let work = operands.iter().chain([&result]).map(|t| t.bytes() as f64).sum::<f64>() / cost.memory;
    seconds += factor.map_or(work, |_| work / mesh.size(axis) as f64);
    if let Some(FactorKind::Reduce(op)) = factor.map(|f| row.factors[f].kind) {
        let all_reduce = Op::AllReduce { op, axes: [axis].into_iter().collect() };
        seconds += cost.seconds(&all_reduce, &[result], result, mesh);
    }
    seconds
}
