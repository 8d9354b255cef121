//! Reductions are split, are scattered and move through linear operations: rules 1, 2, 9, 10, 16 and 25.

use super::site::{Site, all_reduce};
use crate::egraph::heads::Heads;
use egg::Id;
use tpc_ir::{AxisId, AxisSet, Op, ReduceOp};

fn set(axes: &[AxisId]) -> AxisSet {
    axes.iter().copied().collect()
}

/// Rule 1: `all_reduce(x) = all_gather_d(reduce_scatter_d(x))` where the axes divide dimension d.
pub fn split(site: &mut Site) -> Vec<Id> {
    let Some((op, axes)) = all_reduce(&site.key().op) else { return vec![] };
    let (list, x): (Vec<AxisId>, Id) = (axes.iter().collect(), site.term.children[0]);
    let (ty, mesh) = (site.ty(x), &site.egraph.analysis.mesh);
    let divides = |d: &usize| {
        let cut: usize = ty.sharding.dims[*d].iter().map(|&a| mesh.size(a)).product();
        ty.shape[*d] > 0 && ty.shape[*d].is_multiple_of(cut * mesh.group_size(axes))
    };
    let dims: Vec<usize> = (0..ty.rank()).filter(divides).collect();
    let mut equal = Vec::new();
    for dim in dims {
        let scattered = site.redistribute(Op::ReduceScatter { op, dim, axes: list.clone() }, x);
        equal.extend(scattered.and_then(|x| site.redistribute(Op::AllGather { dim, axes: list.clone() }, x)));
    }
    equal
}

/// Rule 2: `slice_d(all_reduce(x)) = reduce_scatter_d(x)`, over the same axes. If the all-reduce has more axes, the others
/// are reduced after the scatter, when there is less of the value.
pub fn scatter(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let Op::ShardSlice { dim, axes } = &key.op else { return vec![] };
    let mut equal = Vec::new();
    for found in site.moves(site.term.children[0]) {
        let Some((op, over)) = all_reduce(&site.key_of(found.key).op) else { continue };
        if !over.is_superset(set(axes)) {
            continue;
        }
        site.follows(&found);
        let scattered = site.redistribute(Op::ReduceScatter { op, dim: *dim, axes: axes.clone() }, found.operand);
        let rest = over.minus(set(axes));
        equal.extend(match (scattered, rest.is_empty()) {
            (Some(x), false) => site.redistribute(Op::AllReduce { op, axes: rest }, x),
            (scattered, _) => scattered,
        });
    }
    equal
}

/// Rule 25: `all_reduce_{X,Y}(x) = all_gather_Y(all_reduce_X(reduce_scatter_Y(x)))` where Y divides dimension d and is
/// faster than an axis of X: 1/n of the value crosses the slow link.
pub fn hierarchical(site: &mut Site) -> Vec<Id> {
    let Some((op, axes)) = all_reduce(&site.key().op) else { return vec![] };
    let x = site.term.children[0];
    let mut equal = Vec::new();
    for axis in axes.iter() {
        let rest = axes.minus(set(&[axis]));
        if !rest.iter().any(|slow| site.egraph.analysis.is_faster(axis, slow)) {
            continue;
        }
        let (ty, mesh) = (site.ty(x), &site.egraph.analysis.mesh);
        let dims: Vec<usize> = (0..ty.rank()).filter(|&d| ty.shape[d] > 0 && ty.divides(d, axis, mesh)).collect();
        for dim in dims {
            let scattered = site.redistribute(Op::ReduceScatter { op, dim, axes: vec![axis] }, x);
            let reduced = scattered.and_then(|x| site.redistribute(Op::AllReduce { op, axes: rest }, x));
            equal.extend(reduced.and_then(|x| site.redistribute(Op::AllGather { dim, axes: vec![axis] }, x)));
        }
    }
    equal
}

/// Rule 9, both ways: `f(all_reduce(x), c) = all_reduce(f(x, c))` where f is linear in that operand alone and everything
/// else is the same on every rank.
pub fn linear(site: &mut Site) -> Vec<Id> {
    if site.head().meets(Heads::ALL_REDUCE) { linear_inward(site) } else { linear_outward(site) }
}

fn linear_outward(site: &mut Site) -> Vec<Id> {
    let Some(row) = site.row() else { return vec![] };
    let children = site.term.children.clone();
    let mut equal = Vec::new();
    for i in row.linear.iter().filter(|set| set.len() == 1).map(|set| set[0]) {
        // A square: the reduction is needed for the other factor, and would only be waited for twice.
        if children.iter().filter(|&&c| c == children[i]).count() > 1 {
            continue;
        }
        for found in site.moves(children[i]) {
            let inner = site.key_of(found.key);
            if !matches!(all_reduce(&inner.op), Some((ReduceOp::Sum, _))) {
                continue;
            }
            site.because(&found);
            let mut operands = children.clone();
            operands[i] = found.operand;
            let partial = site.again(operands);
            equal.extend(partial.and_then(|y| site.redistribute(inner.op.clone(), y)));
        }
    }
    equal
}

fn linear_inward(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let Some((ReduceOp::Sum, axes)) = all_reduce(&key.op) else { return vec![] };
    let mut equal = Vec::new();
    for (inner, row) in site.computed(site.term.children[0]) {
        site.through(&inner);
        for i in row.linear.iter().filter(|set| set.len() == 1).map(|set| set[0]) {
            if !site.ty(inner.children[i]).sharding.partial_axes().is_superset(axes) {
                continue;
            }
            let Some(reduced) = site.redistribute(key.op.clone(), inner.children[i]) else { continue };
            let mut operands = inner.children.clone();
            operands[i] = reduced;
            equal.extend(site.again_inner(&inner, operands));
        }
    }
    equal
}

/// Rule 10: `g(all_reduce_max(x)) = all_reduce_max(g(x))`, g increasing; also for minima.
pub fn increasing(site: &mut Site) -> Vec<Id> {
    if site.row().is_none() {
        return vec![];
    }
    let mut equal = Vec::new();
    for found in site.moves(site.term.children[0]) {
        let inner = site.key_of(found.key);
        if matches!(all_reduce(&inner.op), Some((ReduceOp::Max | ReduceOp::Min, _))) {
            site.because(&found);
            let partial = site.again(vec![found.operand]);
            equal.extend(partial.and_then(|y| site.redistribute(inner.op.clone(), y)));
        }
    }
    equal
}

/// Rule 16: `reduce_scatter_d(f(x, w)) = f(reduce_scatter_d(x), w)`, f linear in x; w is sliced where it has the index, too.
pub fn scatter_operand(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let Op::ReduceScatter { op: ReduceOp::Sum, dim, axes } = &key.op else { return vec![] };
    let mut equal = Vec::new();
    for (inner, row) in site.computed(site.term.children[0]) {
        let factor = row.results[0][*dim];
        if !site.moves_along(&row, factor) {
            continue;
        }
        site.through(&inner);
        for i in row.linear.iter().filter(|set| set.len() == 1).map(|set| set[0]) {
            let partial = site.ty(inner.children[i]).sharding.partial_axes();
            let Some(d) = row.operand_dim(i, factor).filter(|_| partial.is_superset(set(axes))) else { continue };
            let mut operands = Vec::new();
            for (j, &other) in inner.children.iter().enumerate() {
                operands.extend(match row.operand_dim(j, factor) {
                    _ if j == i => {
                        let scatter = Op::ReduceScatter { op: ReduceOp::Sum, dim: d, axes: axes.clone() };
                        site.redistribute(scatter, other)
                    }
                    Some(e) => site.redistribute(Op::ShardSlice { dim: e, axes: axes.clone() }, other),
                    None => Some(other),
                });
            }
            if operands.len() == inner.children.len() {
                equal.extend(site.again_inner(&inner, operands));
            }
        }
    }
    equal
}
