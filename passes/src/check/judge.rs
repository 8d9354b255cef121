//! Whether the ranks compute what the types of an operation say.
//!
//! Every rank applies the operation to the parts that it holds. For every index of the operation ([`meaning`]) the
//! operands must hold the same values of the index on every rank, and each axis may divide the values of one index only:
//! then a rank has all that it needs for its part of the results, or, along an index that is folded, for a term of them.
//! Along an axis over which operands are partial, each rank has terms, and the operation must be one that may be applied
//! before they are combined ([`combine_later`]).

use super::flaw::Flaw;
use super::meaning::{Access, Body, Meaning, Role, meaning};
use super::moves::judge_move;
use super::parts::{dividing, same_parts};
use super::terms::{combine_later, combines_to_itself, same_terms};
use tpc_ir::{AxisId, AxisSet, Mesh, Op, Partial, ReduceOp, Sharding, Type};

/// Whether the results of an operation are what their types say, if its operands are. The shapes fit the operation.
///
/// # Errors
/// The first thing that is wrong.
pub fn judge(op: &Op, operands: &[&Type], results: &[Type], mesh: &Mesh) -> Result<(), Flaw> {
    let Some(meaning) = meaning(op, operands, results) else {
        return judge_move(op, operands[0], &results[0], mesh).map_err(Flaw::Moved);
    };
    let cuts = Cuts::of(&meaning, operands, results, mesh)?;
    let terms = terms(&meaning, &cuts, operands, mesh)?;
    for (result, (ty, dims)) in results.iter().zip(&meaning.results).enumerate() {
        // A constant that combines to itself may be a copy or a term.
        let is_either = match (&meaning.body, ty.sharding.partial) {
            (Body::Made(Some(x)), Some(p)) => combines_to_itself(*x, p.op),
            (Body::Made(None), Some(p)) => matches!(p.op, ReduceOp::Max | ReduceOp::Min),
            _ => false,
        };
        let is_partial = is_either || same_terms(ty.sharding.partial, terms, mesh);
        let same = |(axes, access): (&Vec<AxisId>, &Access)| same_parts(axes, cuts.axes(*access), mesh);
        if !is_partial || !ty.sharding.dims.iter().zip(dims).all(same) {
            let dims = dims.iter().map(|&access| cuts.axes(access).to_vec()).collect();
            let implied = ty.placed(Sharding { dims, partial: terms }).display(mesh);
            return Err(Flaw::Declared { result, declared: ty.display(mesh), implied });
        }
    }
    Ok(())
}

/// How the values of each index are divided among the ranks.
struct Cuts<'a> {
    /// For every index, the axes that divide it, major to minor.
    axes: Vec<&'a [AxisId]>,
    /// All these axes, and those that divide an index that is folded, with the reduction.
    used: AxisSet,
    folded: Vec<(AxisId, ReduceOp)>,
}

impl<'a> Cuts<'a> {
    fn of(meaning: &Meaning, operands: &[&'a Type], results: &'a [Type], mesh: &Mesh) -> Result<Self, Flaw> {
        let mut cut: Vec<Option<(&'a [AxisId], usize)>> = vec![None; meaning.indices.len()];
        for (i, (ty, dims)) in operands.iter().zip(&meaning.operands).enumerate() {
            for (dim, (axes, access)) in ty.sharding.dims.iter().zip(dims).enumerate() {
                match access {
                    Access::Whole if !same_parts(axes, &[], mesh) => return Err(Flaw::Whole { operand: i, dim }),
                    Access::Whole => {}
                    Access::At(index) => match cut[*index] {
                        Some((other, first)) if !same_parts(axes, other, mesh) => {
                            return Err(Flaw::Apart { first, second: i });
                        }
                        Some(_) => {}
                        None => cut[*index] = Some((axes, i)),
                    },
                }
            }
        }
        // The ranks choose the values of an index that no operand has, which are those that the results say.
        for (ty, dims) in results.iter().zip(&meaning.results) {
            for (axes, access) in ty.sharding.dims.iter().zip(dims) {
                if let Access::At(index) = access {
                    cut[*index].get_or_insert((axes, operands.len()));
                }
            }
        }
        let axes: Vec<&[AxisId]> = cut.into_iter().map(|c| c.map_or(&[][..], |(axes, _)| axes)).collect();
        let (mut used, mut folded) = (AxisSet::EMPTY, Vec::new());
        for (list, role) in axes.iter().zip(&meaning.indices) {
            for axis in dividing(list, mesh) {
                if used.contains(axis) {
                    return Err(Flaw::AxisTwice { axis: mesh.name(axis).into() });
                }
                used = used.union(AxisSet::one(axis));
                if let Role::Folded(op) = role {
                    folded.push((axis, *op));
                }
            }
        }
        Ok(Cuts { axes, used, folded })
    }

    /// The axes that divide a dimension.
    fn axes(&self, access: Access) -> &'a [AxisId] {
        match access {
            Access::At(index) => self.axes[index],
            Access::Whole => &[],
        }
    }
}

/// How the results are partial.
fn terms(meaning: &Meaning, cuts: &Cuts, operands: &[&Type], mesh: &Mesh) -> Result<Option<Partial>, Flaw> {
    let mut found: Option<Partial> = None;
    let mut add = |op: ReduceOp, axis: AxisId| {
        let known = found.get_or_insert(Partial { op, axes: AxisSet::EMPTY });
        known.axes = known.axes.union(AxisSet::one(axis));
        if known.op == op { Ok(()) } else { Err(Flaw::TwoReductions) }
    };
    for &(axis, op) in &cuts.folded {
        add(op, axis)?;
    }
    for axis in mesh.axis_ids().filter(|&axis| mesh.size(axis) > 1) {
        let over = |t: &Type| t.sharding.partial.filter(|p| p.axes.contains(axis));
        let partial: Vec<usize> = (0..operands.len()).filter(|&i| over(operands[i]).is_some()).collect();
        let Some((&operand, first)) = partial.first().and_then(|i| Some((i, over(operands[*i])?))) else { continue };
        if partial.iter().any(|&i| over(operands[i]).is_some_and(|p| p.op != first.op)) {
            return Err(Flaw::TwoReductions);
        }
        let dtype = operands[operand].dtype;
        if cuts.used.contains(axis) || !combine_later(&meaning.body, first.op, &partial, operands.len(), dtype) {
            return Err(Flaw::Partial { operand, axis: mesh.name(axis).into() });
        }
        add(first.op, axis)?;
    }
    Ok(found)
}
