//! Whether a redistribution brings every rank the part of the value that the type of its result says.
//!
//! The parts are boxes. What a rank holds afterwards is assembled from the boxes that the members of its group hold, as
//! the documentation of the operation says, and compared with the box of the declared type, for all coordinates on the axes
//! that matter. Terms are followed by axis: a reduction needs terms of its kind, and everything else must not
//! mix terms.

use super::flaw::Moved;
use super::terms::same_terms;
use tpc_ir::sharding::{Chunk, chunk};
use tpc_ir::{AxisId, AxisSet, Mesh, Op, Partial, ReduceOp, Type};

/// A part of a value: for every dimension, its indices.
type Part = Vec<Chunk>;

/// Whether a redistribution of a value gives a value with the declared type.
pub(super) fn judge_move(op: &Op, operand: &Type, result: &Type, mesh: &Mesh) -> Result<(), Moved> {
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
    let concerned = operand.sharding.sharded_axes().union(result.sharding.sharded_axes());
    let others: Vec<AxisId> = concerned.minus(op.axes()).iter().collect();
    for first in members(&vec![0; mesh.axes().len()], &others, mesh) {
        let group = members(&first, &moved, mesh);
        let held: Vec<Part> = group.iter().map(|coords| operand.local(mesh, coords)).collect();
        let piece = |part: &Part, dim: usize, coords: &[usize]| {
            let mut part = part.clone();
            let Chunk { offset, len } = chunk(part[dim].len, &moved, mesh, coords);
            part[dim] = Chunk { offset: part[dim].offset + offset, len };
            part
        };
        // What all members of the group hold, or get.
        let common = match op {
            Op::AllGather { dim, .. } => Some(join(held.iter().cloned(), *dim)?),
            Op::AllToAll { .. } => None,
            _ if held.iter().any(|part| !same_part(part, &held[0])) => return Err(Moved::DifferentParts),
            _ => Some(held[0].clone()),
        };
        for coords in &group {
            let part = match (op, &common) {
                (Op::ReduceScatter { dim, .. } | Op::ShardSlice { dim, .. }, Some(shared)) => {
                    piece(shared, *dim, coords)
                }
                (Op::AllToAll { from, to, .. }, _) => join(held.iter().map(|part| piece(part, *to, coords)), *from)?,
                (_, common) => common.clone().unwrap_or_default(),
            };
            if !same_part(&part, &result.local(mesh, coords)) {
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
