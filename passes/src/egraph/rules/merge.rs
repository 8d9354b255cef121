//! Several reductions become one, and collectives pass each other: rules 7, 8, 23 and 24.

use super::{Site, all_reduce};
use crate::egraph::term::{Heads, Key, Term};
use egg::Id;
use tpc_ir::{AxisSet, MapFn, Op, ReduceOp, Subscripts};

/// Rule 7: `all_reduce(x) + all_reduce(y) = all_reduce(x + y)`, also for some terms of a longer sum,
/// for differences and selections, and for reduce-scatters of one dimension.
pub fn sum_of_reductions(site: &mut Site, term: &Term) -> Vec<Id> {
    let Some(row) = site.row(term) else { return vec![] };
    let mut equal = Vec::new();
    for joint in row.linear.iter().filter(|s| s.len() > 1) {
        let mut seen: Vec<Op> = Vec::new();
        for &i in joint {
            for found in site.redistributions(term.children[i], Heads::ALL_REDUCE.and(Heads::REDUCE_SCATTER)) {
                let op = &found.key.op;
                if !matches!(op, Op::AllReduce { op: ReduceOp::Sum, .. } | Op::ReduceScatter { op: ReduceOp::Sum, .. })
                {
                    continue;
                }
                if !seen.contains(op) {
                    seen.push(op.clone());
                    site.because(&found);
                    equal.extend(joined(site, term, joint, op));
                }
            }
        }
    }
    equal
}

fn joined(site: &mut Site, term: &Term, joint: &[usize], op: &Op) -> Vec<Id> {
    let mut equal = Vec::new();
    let under: Vec<Option<Id>> = joint.iter().map(|&i| site.under(term.children[i], op)).collect();
    let count = under.iter().flatten().count();
    if count < 2 {
        return equal;
    }
    if count == joint.len() {
        let mut operands = term.children.clone();
        for (&i, x) in joint.iter().zip(under.iter().flatten()) {
            operands[i] = *x;
        }
        if let (Op::ReduceScatter { .. }, Op::Map { subs, .. }) = (op, &site.key(term).op)
            && !subs.is_elementwise()
        {
            return equal; // the dimension's number would differ
        }
        let inner = site.again(term, operands);
        equal.extend(inner.and_then(|x| site.redistribute(op.clone(), x)));
    }
    // Some terms of a sum: they form a sum of their own below one reduction.
    let of = site.key(term);
    let Op::Map { f: MapFn::Add, subs } = &of.op else { return equal };
    let whole = |i: usize| subs.operands[i] == subs.result;
    let merged: Vec<usize> = (0..under.len()).filter(|&i| under[i].is_some() && whole(i)).collect();
    if merged.len() < 2 || merged.len() == under.len() {
        return equal;
    }
    let key = |rows: Vec<Vec<u8>>, site: &Site| {
        let ty = site.ty(site.class).clone();
        let subs = Subscripts::new(&rows, &subs.result);
        Key {
            op: Op::Map { f: MapFn::Add, subs },
            result: 0,
            several: false,
            dtype: ty.dtype,
            shape: ty.shape,
            given: None,
        }
    };
    let inner_key = key(vec![subs.result.clone(); merged.len()], site);
    let inner = site.part(term, inner_key, merged.iter().filter_map(|&i| under[i]).collect());
    let Some(reduced) = inner.and_then(|x| site.redistribute(op.clone(), x)) else { return equal };
    let rest: Vec<usize> = (0..under.len()).filter(|i| !merged.contains(i)).collect();
    let mut rows = vec![subs.result.clone()];
    rows.extend(rest.iter().map(|&i| subs.operands[i].clone()));
    let outer_key = key(rows, site);
    let operands = std::iter::once(reduced).chain(rest.iter().map(|&i| term.children[i])).collect();
    equal.extend(site.part(term, outer_key, operands));
    equal
}

/// Rule 8: `all_reduce(x) + y = all_reduce(x + to_partial(y))`, y invariant.
pub fn sum_with_invariant(site: &mut Site, term: &Term) -> Vec<Id> {
    let Op::Map { f: MapFn::Add, .. } = &site.key(term).op else { return vec![] };
    let mut seen: Vec<AxisSet> = Vec::new();
    let mut equal = Vec::new();
    for &child in &term.children {
        for found in site.redistributions(child, Heads::ALL_REDUCE) {
            let op = &found.key.op;
            let Some((ReduceOp::Sum, axes)) = all_reduce(op) else { continue };
            if seen.contains(&axes) {
                continue;
            }
            seen.push(axes);
            site.because(&found);
            // Two reductions becoming one is rule 7's business.
            let reduced = |site: &Site, x: Id| site.under(x, op).is_some();
            let others = term.children.iter().filter(|&&x| !reduced(site, x));
            let (count, mut others) = (others.clone().count(), others);
            if count + 1 != term.children.len() || !others.all(|&x| site.invariant(x, axes)) {
                continue;
            }
            let mut operands = Vec::new();
            for &other in &term.children {
                operands.extend(match site.under(other, op) {
                    Some(x) => Some(x),
                    None => site.redistribute(Op::ToPartial { op: ReduceOp::Sum, axes }, other),
                });
            }
            if operands.len() == term.children.len() {
                let inner = site.again(term, operands);
                equal.extend(inner.and_then(|x| site.redistribute(op.clone(), x)));
            }
        }
    }
    equal
}

/// Rule 23: nested reductions are one over both sets of axes, nested gathers of one dimension one
/// over both lists, the inner axes minor.
pub fn nested(site: &mut Site, term: &Term) -> Vec<Id> {
    let key = site.key(term);
    let mut equal = Vec::new();
    for inner in site.redistributions(term.children[0], Heads::ALL_REDUCE.and(Heads::ALL_GATHER)) {
        let both = match (&key.op, &inner.key.op) {
            (Op::AllReduce { op: a, axes: x }, Op::AllReduce { op: b, axes: y }) if a == b => {
                Some(Op::AllReduce { op: *a, axes: x.union(*y) })
            }
            (Op::AllGather { dim: d, axes: major }, Op::AllGather { dim: e, axes: minor }) if d == e => {
                Some(Op::AllGather { dim: *d, axes: [major.clone(), minor.clone()].concat() })
            }
            _ => None,
        };
        equal.extend(both.and_then(|op| site.redistribute(op, inner.operand)));
    }
    equal
}

/// Rule 24: a collective and a slice or collective below it on other axes and another dimension
/// change places. Two reductions change places only with one operator.
pub fn commute(site: &mut Site, term: &Term) -> Vec<Id> {
    let key = site.key(term);
    let outer = &key.op;
    let origin = site.origin;
    let mut equal = Vec::new();
    for found in site.redistributions(term.children[0], Heads::MOVES) {
        let inner = &found.key.op;
        let apart = outer.axes().intersection(inner.axes()).is_empty();
        let dims_apart = dims(outer).iter().all(|d| !dims(inner).contains(d));
        let one_operator = match (reduction(outer), reduction(inner)) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if apart && dims_apart && one_operator {
            let below = site.redistribute(outer.clone(), found.operand);
            site.because(&found);
            equal.extend(below.and_then(|y| site.redistribute(inner.clone(), y)));
            site.origin = origin;
        }
    }
    equal
}

fn dims(op: &Op) -> Vec<usize> {
    match op {
        Op::AllGather { dim, .. } | Op::ReduceScatter { dim, .. } | Op::ShardSlice { dim, .. } => vec![*dim],
        Op::AllToAll { from, to, .. } => vec![*from, *to],
        _ => vec![],
    }
}

fn reduction(op: &Op) -> Option<ReduceOp> {
    match op {
        Op::AllReduce { op, .. } | Op::ReduceScatter { op, .. } | Op::ToPartial { op, .. } => Some(*op),
        _ => None,
    }
}
