//! The canonical redistribution from one placement to another.
//!
//! A partial value is reduced first. If the next axis that a dimension should get is one of the partial axes, the value
//! is reduce-scattered along that dimension; the other partial axes share one all-reduce. If the dimension should first
//! get axes over which the value is invariant, it is sliced by them before.
//!
//! Then dimensions are sliced by the axes over which the value is invariant. As long as a dimension has an axis that it
//! should not have, its last axis moves to the dimension whose next axis it should be (all-to-all), or is gathered if
//! there is no such dimension. The result must be correct, but not optimal, because the e-graph improves it.
//!
//! Before: a reader needs `f32[8@dp, 64]`, and the value is `f32[8, 64] +sum@tp`. After: `all_reduce tp sum`,
//! `shard_slice dp dim=0`. If the reader needs `f32[8@tp, 64]`, the value is scattered instead:
//! `reduce_scatter tp sum dim=0`.

use crate::factors::place_redistribution;
use tpc_ir::{AxisId, Graph, Op, Origin, Sharding, Value};

/// The steps that redistribute a value from one placement to another. `to` may only be partial over axes over which
/// `from` is partial or invariant.
pub fn steps(from: &Sharding, to: &Sharding) -> Vec<Op> {
    let mut steps = Vec::new();
    let mut at = from.clone();
    let stays_partial = at.partial_axes().intersection(to.partial_axes());
    let reduced = at.partial_axes().minus(stays_partial);
    if let (Some(p), false) = (at.partial, reduced.is_empty()) {
        // If axes over which the value is invariant come before an axis to scatter over, they are sliced first.
        for (dim, wanted) in to.dims.iter().enumerate() {
            let rest = wanted.strip_prefix(at.dims[dim].as_slice()).unwrap_or_default();
            let free: Vec<AxisId> = rest.iter().copied().take_while(|&a| at.is_invariant(a)).collect();
            if !free.is_empty() && rest.get(free.len()).is_some_and(|&a| reduced.contains(a)) {
                push(&mut steps, &mut at, Op::ShardSlice { dim, axes: free });
            }
        }
        let (mut whole, mut scattered) = (reduced, Vec::new());
        for (dim, wanted) in to.dims.iter().enumerate() {
            let has = &at.dims[dim];
            if wanted.starts_with(has) {
                let run: Vec<AxisId> =
                    wanted[has.len()..].iter().copied().take_while(|&a| reduced.contains(a)).collect();
                if !run.is_empty() {
                    whole = whole.minus(run.iter().copied().collect());
                    scattered.push((dim, run));
                }
            }
        }
        // Scatters come first, then the rest is reduced. All steps have the same operator.
        for (dim, axes) in scattered {
            push(&mut steps, &mut at, Op::ReduceScatter { op: p.op, dim, axes });
        }
        if !whole.is_empty() {
            push(&mut steps, &mut at, Op::AllReduce { op: p.op, axes: whole });
        }
    }
    loop {
        slices(&mut steps, &mut at, to);
        // The minor-most axis of a dimension that must not have it.
        let wrong = |d: &usize| !to.dims[*d].starts_with(&at.dims[*d]);
        let Some(dim) = (0..at.dims.len()).find(wrong) else { break };
        let Some(&axis) = at.dims[dim].last() else { break };
        let home = (0..at.dims.len()).find(|&d| {
            d != dim && to.dims[d].starts_with(&at.dims[d]) && to.dims[d].get(at.dims[d].len()) == Some(&axis)
        });
        let op = match home {
            Some(home) => Op::AllToAll { from: dim, to: home, axes: vec![axis] },
            None => Op::AllGather { dim, axes: vec![axis] },
        };
        push(&mut steps, &mut at, op);
    }
    if let Some(p) = to.partial {
        let missing = p.axes.minus(at.partial_axes());
        if !missing.is_empty() {
            push(&mut steps, &mut at, Op::ToPartial { op: p.op, axes: missing });
        }
    }
    merge_gathers(steps)
}

/// Slices every dimension by the wanted axes over which the value is invariant.
fn slices(steps: &mut Vec<Op>, at: &mut Sharding, to: &Sharding) {
    for dim in 0..at.dims.len() {
        let has = at.dims[dim].len();
        if !to.dims[dim].starts_with(&at.dims[dim]) {
            continue;
        }
        let axes: Vec<AxisId> = to.dims[dim][has..].iter().copied().take_while(|&a| at.is_invariant(a)).collect();
        if !axes.is_empty() {
            push(steps, at, Op::ShardSlice { dim, axes });
        }
    }
}

fn push(steps: &mut Vec<Op>, at: &mut Sharding, op: Op) {
    let ty = tpc_ir::Type { dtype: tpc_ir::DType::F32, shape: vec![0; at.dims.len()], sharding: at.clone() };
    if let Ok(next) = place_redistribution(&op, &ty) {
        *at = next;
        steps.push(op);
    } else {
        debug_assert!(false, "{op:?} does not apply to {at:?}");
    }
}

/// Merges consecutive gathers of one dimension into one gather over all their axes.
fn merge_gathers(steps: Vec<Op>) -> Vec<Op> {
    let mut merged: Vec<Op> = Vec::new();
    for op in steps {
        match (merged.last_mut(), op) {
            (Some(Op::AllGather { dim, axes }), Op::AllGather { dim: d, axes: minor }) if *dim == d => {
                // The later gather removes the axis that is major to the earlier one.
                axes.splice(0..0, minor);
            }
            (_, op) => merged.push(op),
        }
    }
    merged
}

/// Adds the steps that redistribute `value` to `to`.
pub fn redistribute(graph: &mut Graph, value: Value, to: &Sharding, origin: &Origin) -> Value {
    let mut value = value;
    for op in steps(&graph.ty(value).sharding.clone(), to) {
        let ty = graph.ty(value);
        let sharding = place_redistribution(&op, ty).expect("`steps` has tried each step on this placement");
        let ty = ty.placed(sharding);
        value = graph.push(op, &[value], ty, origin);
    }
    value
}

/// The placement after a partial value is reduced.
pub fn reduced(sharding: &Sharding) -> Sharding {
    sharding.reduced(sharding.partial_axes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::{AxisSet, Partial, ReduceOp};

    fn sharding(dims: &[&[u8]], partial: &[u8]) -> Sharding {
        let axes: AxisSet = partial.iter().map(|&a| AxisId(a)).collect();
        let partial = (!axes.is_empty()).then_some(Partial { op: ReduceOp::Sum, axes });
        Sharding { dims: dims.iter().map(|d| d.iter().map(|&a| AxisId(a)).collect()).collect(), partial }
    }

    /// All pairs of placements of two dimensions over two axes.
    #[test]
    fn every_placement_reaches_every_other() {
        let lists: [&[u8]; 5] = [&[], &[0], &[1], &[0, 1], &[1, 0]];
        let partials: [&[u8]; 4] = [&[], &[0], &[1], &[0, 1]];
        let mut all = Vec::new();
        for a in lists {
            for b in lists {
                for p in partials {
                    let mut used: Vec<u8> = [a, b, p].concat();
                    used.sort_unstable();
                    let n = used.len();
                    used.dedup();
                    if used.len() == n {
                        all.push(sharding(&[a, b], p));
                    }
                }
            }
        }
        for from in &all {
            for to in &all {
                if !to.partial_axes().minus(from.partial_axes()).is_empty() {
                    continue;
                }
                let mut at = tpc_ir::Type { sharding: from.clone(), ..tpc_ir::Type::new(tpc_ir::DType::F32, [8, 8]) };
                for op in steps(from, to) {
                    at.sharding =
                        place_redistribution(&op, &at).unwrap_or_else(|e| panic!("{from:?} {to:?} {op:?}: {e}"));
                }
                assert_eq!(at.sharding, *to);
            }
        }
    }
}
