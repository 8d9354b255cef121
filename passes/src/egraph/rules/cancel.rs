//! Redistributions that undo each other: rules 3, 4, 5 and 6.

use super::Site;
use crate::egraph::term::Term;
use egg::Id;
use tpc_ir::Op;

/// Rule 3: `slice_d(all_gather_d(x)) = x`, same axes and order.
pub fn slice_of_gather(site: &mut Site, term: &Term) -> Vec<Id> {
    let Op::ShardSlice { dim, axes } = site.op(term) else { return vec![] };
    site.under(term.children[0], &Op::AllGather { dim, axes }).into_iter().collect()
}

/// Rule 4: `all_gather_d(slice_d(x)) = x`; x is invariant, or it could not have been sliced.
pub fn gather_of_slice(site: &mut Site, term: &Term) -> Vec<Id> {
    let Op::AllGather { dim, axes } = site.op(term) else { return vec![] };
    site.under(term.children[0], &Op::ShardSlice { dim, axes }).into_iter().collect()
}

/// Rule 5: `slice_t(all_gather_s(x)) = all_to_all_{s→t}(x)`; an exchange and its inverse cancel; and
/// `all_gather_t(all_to_all_{s→t}(x)) = all_gather_s(x)`.
pub fn exchange(site: &mut Site, term: &Term) -> Vec<Id> {
    let op = site.op(term);
    let mut equal = Vec::new();
    for (inner, x) in site.redistributions(term.children.first().copied().unwrap_or(site.class)) {
        match (&op, &inner) {
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
pub fn reduce_of_invariant(site: &mut Site, term: &Term) -> Vec<Id> {
    match site.op(term) {
        Op::AllReduce { op, axes } => site.under(term.children[0], &Op::ToPartial { op, axes }).into_iter().collect(),
        Op::ReduceScatter { op, dim, axes } => {
            let made = Op::ToPartial { op, axes: axes.iter().copied().collect() };
            let x = site.under(term.children[0], &made);
            x.and_then(|x| site.redistribute(Op::ShardSlice { dim, axes }, x)).into_iter().collect()
        }
        _ => vec![],
    }
}
