//! An all-gather moves from an operation's operands to its result and back: rules 11 to 15, 18, 19, 20, 22 and 26.
//!
//! They are instances of one theorem. If every operand that has an index holds the chunk of one rank, the operation gives
//! that rank the chunk of its result if it keeps the index, and a term of its result if it reduces the index. So gathers of
//! operands along the index become a gather of the result, or a reduction of it.
//!
//! An instance has the kinds of operations of which it speaks, the condition that the operation keeps or reduces the
//! index, both in the table of rules, and what it says here. Every operation belongs to one instance for each case, so that
//! switching an instance off switches off what that instance says and nothing else.

use super::site::{Move, Site};
use crate::egraph::heads::Heads;
use crate::factors::{FactorKind, FactorRow as Row};
use egg::Id;
use tpc_ir::{AxisId, Op};

/// What an instance says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Of which operands it speaks.
    pub others: Others,
    /// Whether it also says that a gather of a result is the result of gathers.
    pub both_ways: bool,
}

/// How the other operands that have the index lie, if one of them is a gather along it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// All of them are such gathers.
    Gathered,
    /// Some of them are not, and are sliced.
    Sliced,
    /// Either.
    Any,
}

/// Applies an instance: to an operation on gathers, or to a gather of an operation's result.
pub fn theorem(site: &mut Site, instance: Instance) -> Vec<Id> {
    if !site.head().meets(Heads::ALL_GATHER) {
        outward(site, instance.others)
    } else if instance.both_ways {
        inward(site)
    } else {
        Vec::new()
    }
}

fn outward(site: &mut Site, others: Others) -> Vec<Id> {
    let Some(row) = site.row() else { return vec![] };
    let mut equal = Vec::new();
    let mut seen: Vec<(usize, Vec<AxisId>)> = Vec::new();
    for (i, child) in site.term.children.clone().into_iter().enumerate() {
        for found in site.moves(child) {
            let gather = site.key_of(found.key);
            let Op::AllGather { dim, axes } = &gather.op else { continue };
            let factor = row.operands[i][*dim];
            if !site.moves_along(&row, factor) || seen.iter().any(|(f, a)| *f == factor && a == axes) {
                continue;
            }
            seen.push((factor, axes.clone()));
            equal.extend(gathered(site, &row, factor, axes, others, &found));
        }
    }
    equal
}

/// The term without its gathers along an index, as a gather or a reduction of the result.
fn gathered(site: &mut Site, row: &Row, factor: usize, axes: &[AxisId], others: Others, found: &Move) -> Option<Id> {
    let children = site.term.children.clone();
    // By operand: none if it does not have the index, else the chunk under its gather if it is one.
    let chunk = |(j, &child): (usize, &Id)| {
        let dim = row.operand_dim(j, factor)?;
        Some((dim, site.under(child, &Op::AllGather { dim, axes: axes.to_vec() })))
    };
    let chunks: Vec<_> = children.iter().enumerate().map(chunk).collect();
    let is_sliced = chunks.iter().flatten().any(|(_, chunk)| chunk.is_none());
    if others != Others::Any && is_sliced != (others == Others::Sliced) {
        return None;
    }
    site.because(found);
    let mut operands = Vec::new();
    for (child, chunk) in children.into_iter().zip(chunks) {
        operands.extend(match chunk {
            None => Some(child),
            Some((_, Some(x))) => Some(x),
            Some((dim, None)) => site.redistribute(Op::ShardSlice { dim, axes: axes.to_vec() }, child),
        });
    }
    if operands.len() != site.term.children.len() {
        return None;
    }
    let local = site.again(operands)?;
    match row.factors[factor].kind {
        FactorKind::Reduce(op) => site.redistribute(Op::AllReduce { op, axes: axes.iter().copied().collect() }, local),
        _ => {
            let dim = row.result_dim(0, factor)?;
            site.redistribute(Op::AllGather { dim, axes: axes.to_vec() }, local)
        }
    }
}

fn inward(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let Op::AllGather { dim, axes } = &key.op else { return vec![] };
    let mut equal = Vec::new();
    for (inner, row) in site.computed(site.term.children[0]) {
        let factor = row.results[0][*dim];
        let has_index = (0..inner.children.len()).any(|j| row.operand_dim(j, factor).is_some());
        if !has_index || !site.moves_along(&row, factor) {
            continue;
        }
        site.through(&inner);
        let mut operands = Vec::new();
        for (j, &other) in inner.children.iter().enumerate() {
            operands.extend(match row.operand_dim(j, factor) {
                None => Some(other),
                Some(d) => site.redistribute(Op::AllGather { dim: d, axes: axes.clone() }, other),
            });
        }
        if operands.len() == inner.children.len() {
            equal.extend(site.again_inner(&inner, operands));
        }
    }
    equal
}

/// Rule 19: the instance for reductions, and the same for an operand whose slice exists, since the operand is a gather of
/// its slice by rule 4.
pub fn reduced(site: &mut Site) -> Vec<Id> {
    let mut equal = outward(site, Others::Any);
    let (Op::Reduce { .. }, &[child]) = (&site.key().op, &site.term.children[..]) else { return equal };
    let Some(row) = site.row() else { return equal };
    site.alone();
    for (dim, axes, slice) in site.slices(child) {
        let FactorKind::Reduce(op) = row.factors[row.operands[0][dim]].kind else { continue };
        let local = site.again(vec![slice]);
        let over = axes.iter().copied().collect();
        equal.extend(local.and_then(|x| site.redistribute(Op::AllReduce { op, axes: over }, x)));
    }
    equal
}
