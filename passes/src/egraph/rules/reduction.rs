//! Reductions split, scatter and move through linear operations: rules 1, 2, 9, 10, 16 and
//! 25.

use super::{Site, all_reduce};
use crate::egraph::term::{Heads, Term};
use crate::rules::FactorKind;
use egg::Id;
use tpc_ir::{AxisId, Op, ReduceOp};

/// Rule 1: `all_reduce(x) = all_gather_d(reduce_scatter_d(x))` where the axes divide dimension d.
pub fn split(site: &mut Site, term: &Term) -> Vec<Id> {
    let Some((op, axes)) = all_reduce(&site.key(term).op) else { return vec![] };
    let list: Vec<AxisId> = axes.iter().collect();
    let ty = site.ty(term.children[0]).clone();
    let mesh = &site.egraph.analysis.mesh;
    let cut: Vec<usize> = ty
        .sharding
        .dims
        .iter()
        .zip(&ty.shape)
        .map(|(axes, n)| {
            let parts: usize = axes.iter().map(|&a| mesh.size(a)).product::<usize>() * mesh.group_size(axes_of(&list));
            if n % parts == 0 && *n > 0 { parts } else { 0 }
        })
        .collect();
    let mut equal = Vec::new();
    for dim in (0..ty.rank()).filter(|&d| cut[d] > 0) {
        let scattered = site.redistribute(Op::ReduceScatter { op, dim, axes: list.clone() }, term.children[0]);
        equal.extend(scattered.and_then(|x| site.redistribute(Op::AllGather { dim, axes: list.clone() }, x)));
    }
    equal
}

fn axes_of(list: &[AxisId]) -> tpc_ir::AxisSet {
    list.iter().copied().collect()
}

/// Rule 2: `slice_d(all_reduce(x)) = reduce_scatter_d(x)`, same axes; of a reduction over more axes,
/// the others are reduced behind, when there is less (rule 23).
pub fn scatter(site: &mut Site, term: &Term) -> Vec<Id> {
    let key = site.key(term);
    let Op::ShardSlice { dim, axes } = &key.op else { return vec![] };
    let mut equal = Vec::new();
    for inner in site.redistributions(term.children[0], Heads::ALL_REDUCE) {
        if let Some((op, over)) = all_reduce(&inner.key.op)
            && over.is_superset(axes_of(axes))
        {
            let scatter = Op::ReduceScatter { op, dim: *dim, axes: axes.clone() };
            let scattered = site.redistribute(scatter, inner.operand);
            let rest = over.minus(axes_of(axes));
            equal.extend(match (scattered, rest.is_empty()) {
                (Some(x), false) => site.redistribute(Op::AllReduce { op, axes: rest }, x),
                (scattered, _) => scattered,
            });
        }
    }
    equal
}

/// Rule 25: `all_reduce_{X,Y}(x) = all_gather_Y(all_reduce_X(reduce_scatter_Y(x)))` where Y divides
/// dimension d and is faster than an axis of X: what crosses the slow link is 1/n of the value.
pub fn hierarchical(site: &mut Site, term: &Term) -> Vec<Id> {
    let Some((op, axes)) = all_reduce(&site.key(term).op) else { return vec![] };
    if axes.iter().count() < 2 {
        return vec![];
    }
    let ty = site.ty(term.children[0]).clone();
    let mut equal = Vec::new();
    for axis in axes.iter() {
        let rest = axes.minus(axes_of(&[axis]));
        if !rest.iter().any(|slow| site.egraph.analysis.is_faster(axis, slow)) {
            continue;
        }
        for dim in (0..ty.rank())
            .filter(|&d| ty.shape[d] > 0 && ty.divides(d, axis, &site.egraph.analysis.mesh))
            .collect::<Vec<_>>()
        {
            let scattered = site.redistribute(Op::ReduceScatter { op, dim, axes: vec![axis] }, term.children[0]);
            let reduced = scattered.and_then(|x| site.redistribute(Op::AllReduce { op, axes: rest }, x));
            equal.extend(reduced.and_then(|x| site.redistribute(Op::AllGather { dim, axes: vec![axis] }, x)));
        }
    }
    equal
}

/// Rule 9, both ways: `f(all_reduce(x), c) = all_reduce(f(x, c))` where f is linear in that operand
/// alone and everything else is the same on every rank.
pub fn linear(site: &mut Site, term: &Term) -> Vec<Id> {
    let mut equal = Vec::new();
    if let Some(row) = site.row(term) {
        for joint in row.linear.iter().filter(|s| s.len() == 1) {
            let i = joint[0];
            // A square: the reduction is needed for the other factor, and would only be waited for twice.
            if term.children.iter().filter(|&&c| c == term.children[i]).count() > 1 {
                continue;
            }
            for found in site.redistributions(term.children[i], Heads::ALL_REDUCE) {
                if !matches!(all_reduce(&found.key.op), Some((ReduceOp::Sum, _))) {
                    continue;
                }
                site.because(&found);
                let mut operands = term.children.clone();
                operands[i] = found.operand;
                let inner = site.again(term, operands);
                equal.extend(inner.and_then(|y| site.redistribute(found.key.op.clone(), y)));
            }
        }
    }
    let key = site.key(term);
    if let Some((ReduceOp::Sum, axes)) = all_reduce(&key.op) {
        for inner in site.computed(term.children[0]) {
            let Some(row) = site.row(&inner) else { continue };
            for i in row.linear.iter().filter(|s| s.len() == 1).map(|s| s[0]) {
                if site.ty(inner.children[i]).sharding.partial_axes().is_superset(axes) {
                    let mut operands = inner.children.clone();
                    let reduced = site.redistribute(key.op.clone(), operands[i]);
                    let Some(reduced) = reduced else { continue };
                    operands[i] = reduced;
                    equal.extend(site.again(&inner, operands));
                }
            }
        }
    }
    equal
}

/// Rule 10: `g(all_reduce_max(x)) = all_reduce_max(g(x))`, g increasing.
pub fn increasing(site: &mut Site, term: &Term) -> Vec<Id> {
    let Some(row) = site.row(term) else { return vec![] };
    if !row.increasing || term.children.len() != 1 {
        return vec![];
    }
    let mut equal = Vec::new();
    for found in site.redistributions(term.children[0], Heads::ALL_REDUCE) {
        if matches!(all_reduce(&found.key.op), Some((ReduceOp::Max | ReduceOp::Min, _))) {
            site.because(&found);
            let inner = site.again(term, vec![found.operand]);
            equal.extend(inner.and_then(|y| site.redistribute(found.key.op.clone(), y)));
        }
    }
    equal
}

/// Rule 16: `reduce_scatter_d(f(x, w)) = f(reduce_scatter_d(x), w)`, f linear in x; w is sliced where
/// it has the index too.
pub fn scatter_operand(site: &mut Site, term: &Term) -> Vec<Id> {
    let key = site.key(term);
    let Op::ReduceScatter { op: ReduceOp::Sum, dim, axes } = &key.op else { return vec![] };
    let mut equal = Vec::new();
    for inner in site.computed(term.children[0]) {
        let Some(row) = site.row(&inner) else { continue };
        let factor = row.results[0][*dim];
        if row.factors[factor].kind != FactorKind::Pass {
            continue;
        }
        for i in row.linear.iter().filter(|s| s.len() == 1).map(|s| s[0]) {
            let partial = site.ty(inner.children[i]).sharding.partial_axes();
            let Some(d) = row.operand_dim(i, factor).filter(|_| partial.is_superset(axes_of(axes))) else { continue };
            let mut operands = Vec::new();
            for (j, &other) in inner.children.iter().enumerate() {
                let op = match row.operand_dim(j, factor) {
                    _ if j == i => Op::ReduceScatter { op: ReduceOp::Sum, dim: d, axes: axes.clone() },
                    Some(e) => Op::ShardSlice { dim: e, axes: axes.clone() },
                    None => {
                        operands.push(other);
                        continue;
                    }
                };
                operands.extend(site.redistribute(op, other));
            }
            if operands.len() == inner.children.len() {
                equal.extend(site.again(&inner, operands));
            }
        }
    }
    equal
}
