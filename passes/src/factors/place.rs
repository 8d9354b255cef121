//! The placement of the result of an operation, given those of its operands. This is the only code that decides it;
//! propagation, the analysis of the e-graph, the planner and lowering all use it. The checker
//! ([`check`](mod@crate::check)) does not.

use super::{FactorKind, FactorRow};
use tpc_ir::{AxisId, AxisSet, Op, Partial, ReduceOp, Sharding, Type};

/// Why operands cannot be combined without communication as they are placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// Two operands shard one index differently.
    #[error("operands cut the same index differently: order and chunks must agree")]
    Disagree,
    /// An index that must stay whole is sharded.
    #[error("an index that the operation needs whole is sharded")]
    Whole,
    /// One axis shards two indices.
    #[error("one mesh axis cuts two different indices")]
    AxisTwice,
    /// A partial operand is combined with one that is not the same on every rank, or the operation is not linear in it.
    #[error("a partial operand may pass only where the operation is linear and all else is invariant")]
    Partial,
    /// The result would be partial under two reductions.
    #[error("the result would be partial under two reductions")]
    TwoReductions,
    /// The operand of a redistribution is not placed as it needs.
    #[error("the operand of the redistribution is not placed as it needs")]
    Redistribution,
}

/// The placement of the result of an operation with one result. `given` has the placement of dimensions that only the
/// result has (a broadcast, an iota, the rows of a scatter).
///
/// # Errors
/// The operands cannot be combined as they are placed.
pub fn result_sharding(row: &FactorRow, operands: &[&Type], given: Option<&Sharding>) -> Result<Sharding, Misplaced> {
    let mut cut: Vec<Option<&[AxisId]>> = vec![None; row.factors.len()];
    for (ty, dims) in operands.iter().zip(&row.operands) {
        for (d, &f) in dims.iter().enumerate() {
            let axes = ty.sharding.dims[d].as_slice();
            match cut[f] {
                Some(other) if other != axes => return Err(Misplaced::Disagree),
                _ => cut[f] = Some(axes),
            }
        }
    }
    if let Some(given) = given {
        for (d, &f) in row.results[0].iter().enumerate() {
            cut[f] = cut[f].or(Some(&given.dims[d]));
        }
    }
    let mut used = AxisSet::EMPTY;
    for (axes, factor) in cut.iter().zip(&row.factors) {
        for &a in axes.unwrap_or(&[]) {
            if factor.kind == FactorKind::Whole {
                return Err(Misplaced::Whole);
            }
            if used.contains(a) {
                return Err(Misplaced::AxisTwice);
            }
            used = used.union(AxisSet::one(a));
        }
    }
    let dims = row.results[0].iter().map(|&f| cut[f].unwrap_or(&[]).to_vec()).collect();
    let mut result = Sharding { dims, partial: passing(row, operands, used)? };
    for (axes, factor) in cut.iter().zip(&row.factors) {
        if let (FactorKind::Reduce(op), Some(axes)) = (factor.kind, axes) {
            let axes = axes.iter().copied().collect();
            result = result.with_partial(op, axes).ok_or(Misplaced::TwoReductions)?;
        }
    }
    Ok(result)
}

/// How the result is partial because operands are partial.
fn passing(row: &FactorRow, operands: &[&Type], used: AxisSet) -> Result<Option<Partial>, Misplaced> {
    let Some(first) = operands.iter().position(|t| t.sharding.partial.is_some()) else { return Ok(None) };
    let partial = operands[first].sharding.partial;
    let Some(Partial { op, axes }) = partial else { return Ok(None) };
    if !used.intersection(axes).is_empty() {
        return Err(Misplaced::Partial);
    }
    if op != ReduceOp::Sum {
        let alone = row.increasing && operands.len() == 1 && op != ReduceOp::Prod;
        return if alone { Ok(partial) } else { Err(Misplaced::Partial) };
    }
    let joint = row.linear_set(first).ok_or(Misplaced::Partial)?;
    for (i, ty) in operands.iter().enumerate() {
        let expected = if joint.contains(&i) { partial } else { None };
        if ty.sharding.partial != expected {
            return Err(Misplaced::Partial);
        }
    }
    Ok(partial)
}

/// The placement of the result of a redistribution.
///
/// # Errors
/// The operand does not have the axes where the operation needs them.
pub fn place_redistribution(op: &Op, operand: &Type) -> Result<Sharding, Misplaced> {
    let from = &operand.sharding;
    let bad = Misplaced::Redistribution;
    let is_partial = |reduce: ReduceOp, axes: AxisSet| {
        from.partial.is_some_and(|p| p.op == reduce && p.axes.is_superset(axes)) && !axes.is_empty()
    };
    let pop = |s: &Sharding, dim: usize, axes: &[AxisId]| -> Option<Sharding> {
        axes.iter().rev().try_fold(s.clone(), |s, &a| s.popped(dim, a))
    };
    let push = |s: &Sharding, dim: usize, axes: &[AxisId]| -> Option<Sharding> {
        axes.iter().try_fold(s.clone(), |s, &a| (dim < s.dims.len() && s.is_invariant(a)).then(|| s.pushed(dim, a)))
    };
    let placed = match op {
        Op::AllReduce { op, axes } => is_partial(*op, *axes).then(|| from.reduced(*axes)),
        Op::AllGather { dim, axes } => pop(from, *dim, axes),
        Op::ReduceScatter { op, dim, axes } => {
            let set = axes.iter().copied().collect();
            is_partial(*op, set).then(|| from.reduced(set)).and_then(|s| push(&s, *dim, axes))
        }
        Op::AllToAll { from: source, to, axes } => {
            (source != to).then(|| pop(from, *source, axes)).flatten().and_then(|s| push(&s, *to, axes))
        }
        Op::ShardSlice { dim, axes } => push(from, *dim, axes),
        Op::ToPartial { op, axes } => {
            let free = axes.iter().all(|a| from.is_invariant(a));
            free.then(|| from.with_partial(*op, *axes)).flatten()
        }
        _ => None,
    };
    placed.ok_or(bad)
}
