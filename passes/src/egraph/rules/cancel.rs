//! Redistributions that undo each other: rules 3, 4, 5 and 6.

use super::site::Site;
use egg::Id;
use tpc_ir::Op;

/// Rule 3: `slice_d(all_gather_d(x)) = x`, where axes and order are the same.
pub fn slice_of_gather(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let Op::ShardSlice { dim, axes } = &key.op else { return vec![] };
    site.under(site.term.children[0], &Op::AllGather { dim: *dim, axes: axes.clone() }).into_iter().collect()
}

/// Rule 4: `all_gather_d(slice_d(x)) = x`. Here x is invariant, or it could not have been sliced.
pub fn gather_of_slice(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let Op::AllGather { dim, axes } = &key.op else { return vec![] };
    site.under(site.term.children[0], &Op::ShardSlice { dim: *dim, axes: axes.clone() }).into_iter().collect()
}

/// Rule 5: `slice_t(all_gather_s(x)) = all_to_all_{s→t}(x)`; an exchange and its inverse cancel; and
/// `all_gather_t(all_to_all_{s→t}(x)) = all_gather_s(x)`.
pub fn exchange(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let mut equal = Vec::new();
    for found in site.moves(site.term.children[0]) {
        let (inner, x) = (site.key_of(found.key), found.operand);
        site.follows(&found);
        match (&key.op, &inner.op) {
            (Op::ShardSlice { dim: t, axes }, Op::AllGather { dim: s, axes: a }) if s != t && a == axes => {
                equal.extend(site.redistribute(Op::AllToAll { from: *s, to: *t, axes: axes.clone() }, x));
            }
            (Op::AllToAll { from, to, axes }, Op::AllToAll { from: f, to: t, axes: a })
                if a == axes && from == t && to == f =>
            {
                equal.push(x);
            }
            (Op::AllGather { dim, axes }, Op::AllToAll { from, to, axes: a }) if dim == to && a == axes => {
                equal.extend(site.redistribute(Op::AllGather { dim: *from, axes: axes.clone() }, x));
            }
            _ => {}
        }
    }
    equal
}

/// Rule 6: `all_reduce(to_partial(x)) = x`, and scattered: `reduce_scatter_d(to_partial(x)) = slice_d(x)`.
pub fn reduce_of_invariant(site: &mut Site) -> Vec<Id> {
    match &site.key().op {
        Op::AllReduce { op, axes } => {
            site.under(site.term.children[0], &Op::ToPartial { op: *op, axes: *axes }).into_iter().collect()
        }
        Op::ReduceScatter { op, dim, axes } => {
            let made = Op::ToPartial { op: *op, axes: axes.iter().copied().collect() };
            let x = site.under(site.term.children[0], &made);
            let slice = Op::ShardSlice { dim: *dim, axes: axes.clone() };
            x.and_then(|x| site.redistribute(slice, x)).into_iter().collect()
        }
        _ => vec![],
    }
}
