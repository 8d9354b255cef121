//! An all-gather moves from an operation's operands to its result and back: rules 11 to 15, 18, 19,
//! 20, 22 and 26. They are one theorem: if a factor is sharded alike on every operand that has it, the
//! operation works on the chunks; a factor that the result keeps is gathered there, a factor that
//! is reduced leaves a partial. Which number it is depends on the operation only.

use super::Site;
use crate::egraph::term::{Heads, Term};
use crate::rules::FactorKind;
use egg::Id;
use tpc_ir::{AxisId, MapFn, Op};

/// The number of the row that speaks of this operation; `sliced`: an operand had to be sliced,
/// `summed`: the gathered factor is reduced.
fn number(op: &Op, sliced: bool, summed: bool) -> u32 {
    match op {
        Op::Map { f: MapFn::Cast(_), .. } => 26,
        Op::Map { f: MapFn::Identity, .. } => 18,
        Op::Map { .. } if sliced => 12,
        Op::Map { .. } => 11,
        Op::Einsum { .. } => match (summed, sliced) {
            (false, _) => 13,
            (true, false) => 14,
            (true, true) => 15,
        },
        Op::Reduce { .. } | Op::ScatterAdd if summed => 19,
        Op::Take if summed => 22,
        _ => 20,
    }
}

/// Whether the row of that number may speak of this operation.
fn speaks(of: u32, op: &Op) -> bool {
    [(false, false), (true, false), (false, true), (true, true)].iter().any(|&(s, r)| number(op, s, r) == of)
}

/// Gathers of operands become a gather (or reduction) of the result, and a gather of a result
/// becomes gathers of the operands.
fn moved(site: &mut Site, term: &Term) -> Vec<Id> {
    let mut equal = outward(site, term);
    equal.extend(inward(site, term));
    equal
}

fn outward(site: &mut Site, term: &Term) -> Vec<Id> {
    let key = site.key(term);
    let op = &key.op;
    if !speaks(site.number, op) {
        return vec![];
    }
    let Some(row) = site.row(term) else { return vec![] };
    let mut equal = Vec::new();
    let mut seen: Vec<(usize, Vec<AxisId>)> = Vec::new();
    for (i, &child) in term.children.iter().enumerate() {
        for gather in site.redistributions(child, Heads::ALL_GATHER) {
            let Op::AllGather { dim, axes } = &gather.key.op else { continue };
            let factor = row.operands[i][*dim];
            if row.factors[factor].kind == FactorKind::Whole || seen.contains(&(factor, axes.clone())) {
                continue;
            }
            seen.push((factor, axes.clone()));
            let summed = matches!(row.factors[factor].kind, FactorKind::Reduce(_));
            let gathered = |site: &Site, j: usize| {
                let d = row.operand_dim(j, factor)?;
                Some(site.under(term.children[j], &Op::AllGather { dim: d, axes: axes.clone() }).is_none())
            };
            let sliced = (0..term.children.len()).any(|j| gathered(site, j) == Some(true));
            if number(op, sliced, summed) != site.number {
                continue;
            }
            site.because(&gather);
            let mut operands = Vec::new();
            for (j, &other) in term.children.iter().enumerate() {
                let chunk = match row.operand_dim(j, factor) {
                    None => Some(other),
                    Some(d) => site
                        .under(other, &Op::AllGather { dim: d, axes: axes.clone() })
                        .or_else(|| site.redistribute(Op::ShardSlice { dim: d, axes: axes.clone() }, other)),
                };
                operands.extend(chunk);
            }
            if operands.len() != term.children.len() {
                continue;
            }
            let Some(local) = site.again(term, operands) else { continue };
            let whole = match row.factors[factor].kind {
                FactorKind::Reduce(op) => {
                    site.redistribute(Op::AllReduce { op, axes: axes.iter().copied().collect() }, local)
                }
                _ => row
                    .result_dim(0, factor)
                    .and_then(|dim| site.redistribute(Op::AllGather { dim, axes: axes.clone() }, local)),
            };
            equal.extend(whole);
        }
    }
    equal
}

fn inward(site: &mut Site, term: &Term) -> Vec<Id> {
    let key = site.key(term);
    let Op::AllGather { dim, axes } = &key.op else { return vec![] };
    let mut equal = Vec::new();
    for inner in site.computed(term.children[0]) {
        if number(&site.key(&inner).op, false, false) != site.number || inner.children.is_empty() {
            continue;
        }
        let Some(row) = site.row(&inner) else { continue };
        let factor = row.results[0][*dim];
        let mut operands = Vec::new();
        for (j, &other) in inner.children.iter().enumerate() {
            let whole = match row.operand_dim(j, factor) {
                None => Some(other),
                Some(d) => site.redistribute(Op::AllGather { dim: d, axes: axes.clone() }, other),
            };
            operands.extend(whole);
        }
        let in_operands = (0..inner.children.len()).any(|j| row.operand_dim(j, factor).is_some());
        if in_operands && operands.len() == inner.children.len() {
            equal.extend(site.again(&inner, operands));
        }
    }
    equal
}

/// Rule 11.
pub fn elementwise_gathered(site: &mut Site, term: &Term) -> Vec<Id> {
    moved(site, term)
}

/// Rule 12.
pub fn elementwise_sliced(site: &mut Site, term: &Term) -> Vec<Id> {
    outward(site, term)
}

/// Rule 13.
pub fn product_kept(site: &mut Site, term: &Term) -> Vec<Id> {
    moved(site, term)
}

/// Rule 14.
pub fn product_summed(site: &mut Site, term: &Term) -> Vec<Id> {
    outward(site, term)
}

/// Rule 15.
pub fn product_summed_sliced(site: &mut Site, term: &Term) -> Vec<Id> {
    outward(site, term)
}

/// Rule 18.
pub fn transposed(site: &mut Site, term: &Term) -> Vec<Id> {
    moved(site, term)
}

/// Rule 19; also of a value whose slice is there anyway, which is a gather of that by rule 4.
pub fn reduced(site: &mut Site, term: &Term) -> Vec<Id> {
    let mut equal = outward(site, term);
    let (Op::Reduce { .. }, &[child]) = (&site.key(term).op, &term.children[..]) else { return equal };
    let Some(row) = site.row(term) else { return equal };
    for (dim, axes, slice) in site.slices(child) {
        let FactorKind::Reduce(op) = row.factors[row.operands[0][dim]].kind else { continue };
        let local = site.again(term, vec![slice]);
        let over = axes.iter().copied().collect();
        equal.extend(local.and_then(|x| site.redistribute(Op::AllReduce { op, axes: over }, x)));
    }
    equal
}

/// Rule 20.
pub fn row_wise(site: &mut Site, term: &Term) -> Vec<Id> {
    moved(site, term)
}

/// Rule 22: the rows that another rank has are zero in the local look-up.
pub fn looked_up(site: &mut Site, term: &Term) -> Vec<Id> {
    outward(site, term)
}

/// Rule 26.
pub fn cast(site: &mut Site, term: &Term) -> Vec<Id> {
    moved(site, term)
}
