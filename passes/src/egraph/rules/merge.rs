//! Several reductions become one, and collectives pass each other: rules 7, 8, 23 and 24.

use super::site::{Site, all_reduce};
use crate::egraph::term::{Key, KeyId};
use egg::Id;
use tpc_ir::{AxisSet, MapFn, Op, ReduceOp, Subscripts};

/// Rule 7: `all_reduce(x) + all_reduce(y) = all_reduce(x + y)`, also for some terms of a longer sum, for differences and
/// selections, and for reduce-scatters of one dimension.
pub fn sum_of_reductions(site: &mut Site) -> Vec<Id> {
    let Some(row) = site.row() else { return vec![] };
    let mut equal = Vec::new();
    for joint in row.linear.iter().filter(|set| set.len() > 1) {
        let mut seen: Vec<KeyId> = Vec::new();
        for &i in joint {
            for found in site.moves(site.term.children[i]) {
                let key = site.key_of(found.key);
                let is_sum = matches!(
                    key.op,
                    Op::AllReduce { op: ReduceOp::Sum, .. } | Op::ReduceScatter { op: ReduceOp::Sum, .. }
                );
                if is_sum && !seen.iter().any(|&seen| site.key_of(seen).op == key.op) {
                    seen.push(found.key);
                    site.because(&found);
                    equal.extend(joined(site, joint, &key.op));
                }
            }
        }
    }
    equal
}

fn joined(site: &mut Site, joint: &[usize], op: &Op) -> Vec<Id> {
    let children = site.term.children.clone();
    let mut equal = Vec::new();
    let under: Vec<Option<Id>> = joint.iter().map(|&i| site.under(children[i], op)).collect();
    let count = under.iter().flatten().count();
    if count < 2 {
        return equal;
    }
    let of = site.key();
    if count == joint.len() {
        let mut operands = children.clone();
        for (&i, x) in joint.iter().zip(under.iter().flatten()) {
            operands[i] = *x;
        }
        if let (Op::ReduceScatter { .. }, Op::Map { subs, .. }) = (op, &of.op)
            && !subs.is_elementwise()
        {
            return equal; // the number of the dimension would differ
        }
        let partial = site.again(operands);
        equal.extend(partial.and_then(|x| site.redistribute(op.clone(), x)));
    }
    // Some terms of a sum: they form a sum of their own under one reduction.
    let Op::Map { f: MapFn::Add, subs } = &of.op else { return equal };
    let is_whole = |i: usize| subs.operands[i] == subs.result;
    let (merged, rest): (Vec<usize>, Vec<usize>) = (0..under.len()).partition(|&i| under[i].is_some() && is_whole(i));
    if merged.len() < 2 || rest.is_empty() {
        return equal;
    }
    let sum = |rows: Vec<Vec<u8>>| Key {
        op: Op::Map { f: MapFn::Add, subs: Subscripts::new(&rows, &subs.result) },
        result: 0,
        several: false,
        dtype: of.dtype,
        shape: of.shape.clone(),
        given: None,
    };
    let inner = sum(vec![subs.result.clone(); merged.len()]);
    let inner = site.part(inner, merged.iter().filter_map(|&i| under[i]).collect());
    let Some(reduced) = inner.and_then(|x| site.redistribute(op.clone(), x)) else { return equal };
    let mut rows = vec![subs.result.clone()];
    rows.extend(rest.iter().map(|&i| subs.operands[i].clone()));
    let operands = std::iter::once(reduced).chain(rest.iter().map(|&i| children[i])).collect();
    equal.extend(site.part(sum(rows), operands));
    equal
}

/// Rule 8: `all_reduce(x) + y = all_reduce(x + to_partial(y))`, y invariant.
pub fn sum_with_invariant(site: &mut Site) -> Vec<Id> {
    let Op::Map { f: MapFn::Add, .. } = &site.key().op else { return vec![] };
    let children = site.term.children.clone();
    let mut seen: Vec<AxisSet> = Vec::new();
    let mut equal = Vec::new();
    for &child in &children {
        for found in site.moves(child) {
            let key = site.key_of(found.key);
            let Some((ReduceOp::Sum, axes)) = all_reduce(&key.op) else { continue };
            if seen.contains(&axes) {
                continue;
            }
            seen.push(axes);
            site.because(&found);
            let under: Vec<Option<Id>> = children.iter().map(|&x| site.under(x, &key.op)).collect();
            // Two reductions that become one are the matter of rule 7.
            let alone = under.iter().flatten().count() == 1;
            let is_fit = |(x, under): (&Id, &Option<Id>)| under.is_some() || site.is_invariant(*x, axes);
            if !alone || !children.iter().zip(&under).all(is_fit) {
                continue;
            }
            let mut operands = Vec::new();
            for (&child, under) in children.iter().zip(under) {
                let to_partial = Op::ToPartial { op: ReduceOp::Sum, axes };
                operands.extend(under.or_else(|| site.redistribute(to_partial, child)));
            }
            if operands.len() == children.len() {
                let partial = site.again(operands);
                equal.extend(partial.and_then(|x| site.redistribute(key.op.clone(), x)));
            }
        }
    }
    equal
}

/// Rule 23: nested reductions are one over both sets of axes; nested gathers of one dimension are one over both lists, the
/// inner axes minor.
pub fn nested(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let mut equal = Vec::new();
    for found in site.moves(site.term.children[0]) {
        let both = match (&key.op, &site.key_of(found.key).op) {
            (Op::AllReduce { op: a, axes: x }, Op::AllReduce { op: b, axes: y }) if a == b => {
                Op::AllReduce { op: *a, axes: x.union(*y) }
            }
            (Op::AllGather { dim: d, axes: major }, Op::AllGather { dim: e, axes: minor }) if d == e => {
                Op::AllGather { dim: *d, axes: [major.clone(), minor.clone()].concat() }
            }
            _ => continue,
        };
        site.follows(&found);
        equal.extend(site.redistribute(both, found.operand));
    }
    equal
}

/// Rule 24: a collective and a slice or collective under it on other axes and another dimension change places. Two
/// reductions change places only if they have one operator.
pub fn commute(site: &mut Site) -> Vec<Id> {
    let (outer, own) = (site.key(), site.origin);
    let mut equal = Vec::new();
    for found in site.moves(site.term.children[0]) {
        let inner = site.key_of(found.key);
        let (outer, inner) = (&outer.op, &inner.op);
        let apart = outer.axes().intersection(inner.axes()).is_empty();
        let dims_apart = dims(outer).iter().all(|d| !dims(inner).contains(d));
        let one_operator = match (reduction(outer), reduction(inner)) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if apart && dims_apart && one_operator {
            site.follows(&found);
            site.origin = own;
            let below = site.redistribute_alike(site.term.key, found.operand);
            site.because(&found);
            equal.extend(below.and_then(|y| site.redistribute_alike(found.key, y)));
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
