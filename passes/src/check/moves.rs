//! Whether a redistribution brings every rank the part of the value that the type of its result says.
//!
//! The parts are boxes. What a rank holds afterwards is assembled from the boxes that the members of its group hold, as
//! the documentation of the operation says. It is compared with the box of the declared type, in the dimensions that are
//! moved and for all coordinates on their axes. Terms are followed by axis: a reduction needs terms of its kind, and
//! everything else must not mix terms.

use super::flaw::Moved;
use super::parts::same_parts;
use super::terms::same_terms;
use tpc_ir::sharding::{Chunk, chunk};
use tpc_ir::{AxisId, AxisSet, Mesh, Op, Partial, ReduceOp, Type};

/// A part of a value: its indices in each of the dimensions that are moved.
type Part = Vec<Chunk>;

/// Whether a redistribution of a value gives a value with the declared type.
pub(super) fn judge_move(op: &Op, operand: &Type, result: &Type, mesh: &Mesh) -> Result<(), Moved> {
    if (operand.dtype, &operand.shape) != (result.dtype, &result.shape) {
        return Err(Moved::OtherValue(result.display(mesh)));
    }
    let dims = match op {
        Op::AllGather { dim, .. } | Op::ReduceScatter { dim, .. } | Op::ShardSlice { dim, .. } => vec![*dim],
        Op::AllToAll { from, to, .. } => vec![*from, *to],
        _ => Vec::new(),
    };
    if let Some(&dim) = dims.iter().find(|&&dim| dim >= operand.rank()) {
        return Err(Moved::NoDimension(dim));
    }
    let terms = terms(op, operand, mesh)?;
    if !same_terms(result.sharding.partial, terms, mesh) {
        return Err(Moved::OtherTerms(result.display(mesh)));
    }
    let moved: Vec<AxisId> = match op {
        Op::AllGather { axes, .. }
        | Op::ReduceScatter { axes, .. }
        | Op::AllToAll { axes, .. }
        | Op::ShardSlice { axes, .. } => axes.clone(),
        other => other.axes().iter().collect(),
    };
    let (from, to) = (&operand.sharding.dims, &result.sharding.dims);
    // The other dimensions stay as they are, and all members of a group have the same part of them.
    for d in (0..operand.rank()).filter(|d| !dims.contains(d)) {
        if from[d].iter().any(|&a| moved.contains(&a) && mesh.size(a) > 1) {
            return Err(Moved::DifferentParts);
        }
        if !same_parts(&from[d], &to[d], mesh) {
            return Err(Moved::OtherPart(result.display(mesh)));
        }
    }
    if dims.is_empty() {
        return Ok(());
    }
    let part = |ty: &Type, coords: &[usize]| -> Part {
        dims.iter().map(|&d| chunk(ty.shape[d], &ty.sharding.dims[d], mesh, coords)).collect()
    };
    let concerned: AxisSet = dims.iter().flat_map(|&d| from[d].iter().chain(&to[d]).copied()).collect();
    let others: Vec<AxisId> = concerned.minus(op.axes()).iter().collect();
    for first in members(&vec![0; mesh.axes().len()], &others, mesh) {
        let group = members(&first, &moved, mesh);
        let held: Vec<Part> = group.iter().map(|coords| part(operand, coords)).collect();
        // The piece of a dimension for a rank, the first or the second of those that are moved.
        let piece = |part: &Part, dim: usize, coords: &[usize]| {
            let mut part = part.clone();
            let Chunk { offset, len } = chunk(part[dim].len, &moved, mesh, coords);
            part[dim] = Chunk { offset: part[dim].offset + offset, len };
            part
        };
        // What all members of the group hold, or get.
        let common = match op {
            Op::AllGather { .. } => Some(join(held.iter().cloned(), 0)?),
            Op::AllToAll { .. } => None,
            _ if held.iter().any(|part| !same_part(part, &held[0])) => return Err(Moved::DifferentParts),
            _ => Some(held[0].clone()),
        };
        for coords in &group {
            let gets = match (op, &common) {
                (Op::AllGather { .. }, Some(whole)) => whole.clone(),
                (_, Some(shared)) => piece(shared, 0, coords),
                (_, None) => join(held.iter().map(|part| piece(part, 1, coords)), 0)?,
            };
            if !same_part(&gets, &part(result, coords)) {
                return Err(Moved::OtherPart(result.display(mesh)));
            }
        }
    }
    Ok(())
}

/// How the value is partial afterwards.
fn terms(op: &Op, operand: &Type, mesh: &Mesh) -> Result<Option<Partial>, Moved> {
    let held = operand.sharding.partial;
    let over = held.map_or(AxisSet::EMPTY, |p| p.axes);
    let name = |axis: AxisId| mesh.name(axis).to_string();
    let several = |axes: AxisSet| axes.iter().filter(|&axis| mesh.size(axis) > 1);
    match op {
        Op::AllReduce { op: reduction, .. } | Op::ReduceScatter { op: reduction, .. } => {
            let is_term = |axis: &AxisId| over.contains(*axis) && held.is_some_and(|p| p.op == *reduction);
            if let Some(axis) = several(op.axes()).find(|axis| !is_term(axis)) {
                return Err(Moved::NoTerms { axis: name(axis), op: reduction.name() });
            }
            let axes = over.minus(op.axes());
            Ok(held.filter(|_| !axes.is_empty()).map(|p| Partial { axes, ..p }))
        }
        _ => {
            if let Some(axis) = several(op.axes()).find(|&axis| over.contains(axis)) {
                return Err(Moved::Terms { axis: name(axis) });
            }
            let Op::ToPartial { op: reduction, axes } = op else { return Ok(held) };
            joined_terms(held, *reduction, *axes)
        }
    }
}

/// The terms of a value of which all ranks but the first now hold the neutral element.
fn joined_terms(held: Option<Partial>, op: ReduceOp, axes: AxisSet) -> Result<Option<Partial>, Moved> {
    match held {
        Some(p) if p.op != op => Err(Moved::OtherReduction),
        held => Ok(Some(Partial { op, axes: held.map_or(axes, |p| p.axes.union(axes)) })),
    }
}

/// The coordinates of the ranks that differ from `coords` along some axes only, in the order of the axes, the first of
/// which is the major one.
fn members(coords: &[usize], axes: &[AxisId], mesh: &Mesh) -> Vec<Vec<usize>> {
    let mut all = vec![coords.to_vec()];
    for &axis in axes {
        let along = |c: Vec<usize>| {
            (0..mesh.size(axis)).map(move |i| {
                let mut c = c.clone();
                c[axis.0 as usize] = i;
                c
            })
        };
        all = all.into_iter().flat_map(along).collect();
    }
    all
}

/// The part that consists of parts one after the other along a dimension.
fn join(parts: impl Iterator<Item = Part>, dim: usize) -> Result<Part, Moved> {
    let mut joined: Option<Part> = None;
    for part in parts {
        let Some(whole) = &mut joined else {
            joined = Some(part);
            continue;
        };
        let rows = |p: &Part| p.iter().enumerate().filter(|(d, _)| *d != dim).map(|(_, c)| *c).collect::<Part>();
        let (end, next) = (whole[dim].offset + whole[dim].len, part[dim]);
        if !same_part(&rows(whole), &rows(&part)) || next.len > 0 && whole[dim].len > 0 && next.offset != end {
            return Err(Moved::NotAdjacent);
        }
        if whole[dim].len == 0 {
            whole[dim] = next;
        } else {
            whole[dim].len += next.len;
        }
    }
    joined.ok_or(Moved::NotAdjacent)
}

/// Whether two parts have the same elements. Where there are none, the position does not matter.
fn same_part(a: &[Chunk], b: &[Chunk]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.len == b.len && (a.len == 0 || a.offset == b.offset))
}
