//! Gives every value a first placement, so that a valid program exists before any search.
//!
//! Nodes are visited in order, and an operation follows the placement of its operands. For each mesh axis, a parameter
//! that the plan has placed decides which index of the operation is sharded. Without such a parameter it is the cheapest
//! of the indices that some operand already shards, and if none does, every rank computes everything. The other operands
//! are redistributed. A partial result is reduced right after the operation, unless it is a term of a sum over
//! micro-batches. This is deliberately simple, because the e-graph then moves the redistributions. (Shardy, in contrast,
//! propagates factor by factor with priorities.)
//!
//! Before: `%2 = einsum "ab,bc->ac" %0, %1 : f32[16, 64]` with `%0 : f32[16, 256@tp]`.
//! After: `%3 = shard_slice tp dim=0 %1`, `%4 = einsum … %0, %3 : f32[16, 64] +sum@tp`,
//! `%5 = all_reduce tp sum %4 : f32[16, 64]`.

use crate::cost::seconds;
use crate::factors::{FactorKind, FactorRow, result_sharding, row_of};
use crate::reasons::{explain, explain_short};
use crate::rebuild::{Mapping, rebuild};
use crate::redistribute::{redistribute, reduced, steps};
use crate::shorten::Shortened;
use crate::styles::annotations::{Annotations, Storage};
use crate::targets::Target;
use rustc_hash::FxHashMap;
use std::collections::{HashMap, HashSet};
use tpc_ir::reason::{Cause, Reason};
use tpc_ir::{AxisId, Graph, MapFn, Mesh, ModulePath, Op, Origin, Output, Phase, ReduceOp, Sharding, Type, Value};

/// Places every value of a logical graph.
pub fn propagate(graph: &Graph, annotations: &Annotations, target: &Target) -> Graph {
    let mut placed = propagate_mapped(graph, annotations, target).0;
    explain(&mut placed);
    placed
}

/// [`propagate`] for a short program; `None` if its blocks are not found in the placed one.
pub fn propagate_short(short: &Shortened, annotations: &Annotations, target: &Target) -> Option<Graph> {
    let mut placed = propagate_mapped(&short.graph, annotations, target).0;
    explain_short(&mut placed, short)?;
    Some(placed)
}

/// Like [`propagate`], without reasons. Also returns the placed value of every value of the logical graph.
pub fn propagate_mapped(graph: &Graph, annotations: &Annotations, target: &Target) -> (Graph, Mapping) {
    // Regions are no longer needed, so values that only they name are dead.
    let graph = &graph.clone().with_regions(Vec::new());
    let mut cache = Moved::default();
    let mut stored: HashMap<Value, &Storage> = HashMap::new();
    // Parameters with an annotation, to which the other operands of their readers are moved. A stored parameter is also
    // here in its gathered form, if a style shards that.
    let mut pinned_parameters: HashSet<Value> = HashSet::new();
    let (mut placed, mapping) = rebuild(graph, annotations.mesh.clone(), |new, node, mut operands| {
        let n = graph.node(node);
        if let Op::Input { id, .. } = &n.op {
            let mut ty = n.types[0].clone();
            let mut origin = n.origin.clone();
            let annotation = annotations.inputs.get(id);
            if let Some(a) = annotation {
                ty.sharding = a.sharding.clone();
                origin.reason = a.why.clone();
            }
            let value = new.push(n.op.clone(), &[], ty, &origin);
            if let Some(storage) = annotations.gathered.get(id) {
                stored.insert(value, storage);
            }
            if id.is_parameter() && annotation.is_some() {
                pinned_parameters.insert(value);
            }
            return vec![value];
        }
        let because = |reason: Reason| Origin { reason, ..n.origin.clone() };
        let for_reason = |why: &Reason| because(why.clone());
        // A stored parameter is converted before it is gathered, so that the gather sends the smaller type.
        let converts = matches!(n.op, Op::Map { f: MapFn::Cast(_), .. });
        let shard = stored.get(&operands.first().copied().unwrap_or(Value::from(node))).copied().filter(|_| converts);
        for (i, v) in operands.iter_mut().enumerate() {
            let gathers = n.origin.phase != Phase::Optimizer && shard.is_none();
            if let Some(storage) = stored.get(v).filter(|_| gathers) {
                *v = moved_once(&mut cache, new, *v, &storage.compute, &for_reason(&storage.why));
                if storage.style {
                    pinned_parameters.insert(*v);
                }
            }
            for constraint in annotations.uses.get(&(node, i as u32)).into_iter().flatten() {
                let sharding = constraint.at.applied(&new.ty(*v).sharding);
                *v = moved_once(&mut cache, new, *v, &sharding, &for_reason(&constraint.why));
            }
        }
        let types: Vec<&Type> = operands.iter().map(|&v| new.ty(v)).collect();
        let row = row_of(&n.op, &types, &n.types.iter().collect::<Vec<_>>());
        // A pinned parameter keeps its placement, and the other operands are redistributed.
        let pinned: Vec<bool> = operands.iter().map(|&v| pinned_parameters.contains(&uncast(new, v))).collect();
        // A redistribution that already exists for another reader is free.
        let there = |i: usize, sharding: &Sharding| cache.contains_key(&(operands[i], sharding.clone()));
        let wanted = strategy(&row, &types, &pinned, &n.types[0], &new.mesh, target, &there);
        let shardings: Vec<Sharding> = row
            .operands
            .iter()
            .map(|dims| Sharding { dims: dims.iter().map(|&f| wanted[f].clone()).collect(), partial: None })
            .collect();
        let origin = because(Cause::Together(n.op.name().into()).into());
        let alike = types.windows(2).all(|w| w[0].sharding == w[1].sharding);
        let adds_terms = alike && annotations.sums.contains(&node) && is_partial_sum(&types[0].sharding);
        let moved: Vec<Value> = if adds_terms {
            operands
        } else {
            operands.iter().zip(&shardings).map(|(&v, s)| moved_once(&mut cache, new, v, s, &origin)).collect()
        };
        let types: Vec<&Type> = moved.iter().map(|&v| new.ty(v)).collect();
        let results: Vec<Type> = (0..n.types.len())
            .map(|r| {
                let s = result_sharding(&row.of_result(r), &types, None).expect("the strategy satisfies the rule");
                n.types[r].placed(s)
            })
            .collect();
        let id = new.add(n.op.clone(), &moved, results.clone(), n.origin.clone());
        stored.extend(shard.map(|storage| (Value::from(id), storage)));
        let mut readers = graph.users(node).map(|(reader, _)| reader).peekable();
        let is_term = readers.peek().is_some()
            && readers.all(|reader| annotations.sums.contains(&reader))
            && graph.outputs.iter().all(|o| o.value.node != node);
        results
            .iter()
            .enumerate()
            .map(|(r, ty)| {
                let mut v = Value { node: id, result: r as u32 };
                let stays = is_term && is_partial_sum(&ty.sharding);
                let mut at = if stays { ty.sharding.clone() } else { reduced(&ty.sharding) };
                let constraints = annotations.results.get(&node).map_or(&[][..], Vec::as_slice);
                for constraint in constraints {
                    let wanted = constraint.at.applied(&at);
                    if wanted == at {
                        continue;
                    }
                    at = wanted;
                    v = redistribute(new, v, &at, &for_reason(&constraint.why));
                }
                redistribute(new, v, &at, &because(Reason::default()))
            })
            .collect()
    });
    place_outputs(&mut placed);
    (placed, mapping)
}

/// Whether a value with a sharding is a term of a sum over ranks.
fn is_partial_sum(sharding: &Sharding) -> bool {
    sharding.partial.is_some_and(|p| p.op == ReduceOp::Sum)
}

/// Values that were already redistributed, by value and placement.
type Moved = FxHashMap<(Value, Sharding), Value>;

/// Redistributes a value to a placement, at most once.
fn moved_once(cache: &mut Moved, new: &mut Graph, v: Value, to: &Sharding, origin: &Origin) -> Value {
    *cache.entry((v, to.clone())).or_insert_with(|| redistribute(new, v, to, origin))
}

/// The value before conversions of its element type.
fn uncast(graph: &Graph, value: Value) -> Value {
    match graph.op(value) {
        Op::Map { f: MapFn::Cast(_), .. } => uncast(graph, graph.operands(value.node)[0]),
        _ => value,
    }
}

/// Places gradients like their parameters and updates like their inputs. Other outputs keep their placements.
fn place_outputs(graph: &mut Graph) {
    let inputs = graph.inputs_by_id();
    let wanted_sharding = |output: &Output| {
        let (id, parameter) = output.kind.trained()?;
        Some((graph.node(*inputs.get(&id)?).types[0].sharding.clone(), parameter))
    };
    let wanted: Vec<Option<(Sharding, ModulePath)>> = graph.outputs.iter().map(wanted_sharding).collect();
    for (i, wanted) in wanted.into_iter().enumerate() {
        let Some((to, parameter)) = wanted else { continue };
        let reason = Cause::Like(parameter).into();
        let origin = Origin { reason, ..graph.node(graph.outputs[i].value.node).origin.clone() };
        graph.outputs[i].value = redistribute(graph, graph.outputs[i].value, &to, &origin);
    }
}

/// For every factor, the axes that shard it.
fn strategy(
    row: &FactorRow,
    operands: &[&Type],
    pinned: &[bool],
    result: &Type,
    mesh: &Mesh,
    target: &Target,
    there: &dyn Fn(usize, &Sharding) -> bool,
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
        // If costs are equal, the first option that shards is taken, because each rank then computes less.
        let best = options
            .into_iter()
            .map(|o| (option_seconds(row, operands, result, axis, o, mesh, target, there), o))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.is_some().cmp(&a.1.is_some())));
        if let Some((_, Some(f))) = best {
            chosen[f].push(axis);
        }
    }
    // If several axes shard an index, they keep the order in which an operand already lists them.
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
fn second_reduction(row: &FactorRow, chosen: &[Vec<AxisId>], f: usize) -> bool {
    let reduction = |g: usize| match row.factors[g].kind {
        FactorKind::Reduce(op) => Some(op),
        _ => None,
    };
    let present: Option<ReduceOp> = (0..chosen.len()).filter(|&g| !chosen[g].is_empty()).find_map(reduction);
    matches!((present, reduction(f)), (Some(a), Some(b)) if a != b)
}

/// The estimated seconds if `axis` shards `factor` (or nothing): redistributing operands that are placed differently,
/// computing, and reducing.
#[allow(clippy::too_many_arguments)]
fn option_seconds(
    row: &FactorRow,
    operands: &[&Type],
    result: &Type,
    axis: AxisId,
    factor: Option<usize>,
    mesh: &Mesh,
    target: &Target,
    there: &dyn Fn(usize, &Sharding) -> bool,
) -> f64 {
    let mut total = 0.0;
    for (i, (ty, dims)) in operands.iter().zip(&row.operands).enumerate() {
        // Only this axis is considered, because the others are decided separately.
        let only = |keep: Option<usize>| {
            let mut s = Sharding::replicated(ty.rank());
            if let Some(d) = keep {
                s.dims[d].push(axis);
            }
            s
        };
        let to = factor.and_then(|f| dims.iter().position(|&g| g == f));
        let mut whole = ty.sharding.clone();
        whole.dims.iter_mut().for_each(|d| d.retain(|&a| a != axis));
        if there(i, &to.map_or(whole.clone(), |d| whole.pushed(d, axis))) {
            continue;
        }
        let (now, then) = (only(ty.sharding.dim_of(axis)), only(to));
        let mut at = Type { sharding: now.clone(), ..(*ty).clone() };
        for op in steps(&now, &then) {
            if let Ok(s) = crate::factors::place_redistribution(&op, &at) {
                let next = at.placed(s);
                total += seconds(target, &op, &[&at], &next, mesh);
                at = next;
            }
        }
    }
    let work = operands.iter().chain([&result]).map(|t| t.bytes() as f64).sum::<f64>() / target.device.memory;
    total += factor.map_or(work, |_| work / mesh.size(axis) as f64);
    if let Some(FactorKind::Reduce(op)) = factor.map(|f| row.factors[f].kind) {
        let all_reduce = Op::AllReduce { op, axes: [axis].into_iter().collect() };
        total += seconds(target, &all_reduce, &[result], result, mesh);
    }
    total
}
