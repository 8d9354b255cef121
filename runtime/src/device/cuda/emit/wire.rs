//! Collectives between devices as calls of a library (NCCL), and the kernels that reorder values for the library.
//!
//! The library concatenates the ranks' data. Where that is not the meaning of a collective (because a dimension other
//! than the outermost is split, or pieces are uneven), values are staged: packed before or unpacked after the call. All
//! work of collectives runs on one stream, one collective after the other, so that they share one staging area.

use super::copy::strided;
use super::kernels::Launch;
use super::rank::Rank;
use super::space::Axis;
use tpc_ir::program::{Collective, CollectiveKind, Part, dense_strides};

/// A call of the library. `from` and `to` are offsets in the device allocation, counts are elements, and ranks are
/// positions in the group.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Call {
    /// Combines the elements of all ranks, for all ranks.
    AllReduce { from: i64, to: i64, count: usize },
    /// Concatenates `count` elements of every rank.
    AllGather { from: i64, to: i64, count: usize },
    /// Combines the elements of all ranks, and gives each rank its `count` elements.
    ReduceScatter { from: i64, to: i64, count: usize },
    /// Copies the root's elements to all ranks.
    Broadcast { from: i64, to: i64, count: usize, root: usize },
    /// Combines the elements of all ranks, for the root.
    Reduce { from: i64, to: i64, count: usize, root: usize },
    /// Sends to another rank, or to itself.
    Send { from: i64, count: usize, peer: usize },
    /// Receives from another rank, or from itself.
    Receive { to: i64, count: usize, peer: usize },
}

/// A collective as calls, all of them in one group, between kernels on the same stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wire {
    /// Kernels that pack.
    pub before: Vec<Launch>,
    /// The calls.
    pub calls: Vec<Call>,
    /// Kernels that unpack.
    pub after: Vec<Launch>,
}

/// A staging area from some offset on, and the most bytes used of it.
struct Stage {
    at: i64,
    used: usize,
}

impl Stage {
    fn take(&mut self, bytes: usize) -> i64 {
        let at = self.at + self.used as i64;
        self.used += bytes.next_multiple_of(256);
        at
    }
}

/// The calls of a collective with operands at these offsets; `stage` is the offset of the staging area. Also returns
/// the number of bytes used there.
pub(super) fn emit(
    rank: &mut Rank<'_>,
    c: &Collective,
    (from, to): (i64, i64),
    stage: i64,
) -> Result<(Wire, usize), String> {
    let mut wire = Wire::default();
    let mut stage = Stage { at: stage, used: 0 };
    let size = c.dtype.bytes();
    match &c.kind {
        CollectiveKind::AllReduce(_) => {
            let count = c.from.elements();
            wire.calls.push(Call::AllReduce { from, to, count });
        }
        CollectiveKind::AllGather { parts } => {
            let (mut from, mut to) = (from, to);
            for part in parts {
                all_gather(rank, &mut wire, &mut stage, c, part, (from, to))?;
                from += (part.shard(c.position) * size) as i64;
                to += (part.whole() * size) as i64;
            }
        }
        CollectiveKind::ReduceScatter { parts, .. } => {
            let (mut from, mut to) = (from, to);
            for part in parts {
                reduce_scatter(rank, &mut wire, &mut stage, c, part, (from, to))?;
                from += (part.whole() * size) as i64;
                to += (part.shard(c.position) * size) as i64;
            }
        }
        CollectiveKind::AllToAll { .. } => all_to_all(rank, &mut wire, &mut stage, c, (from, to))?,
    }
    // A call that moves nothing is left out, on all ranks equally.
    wire.calls.retain(|call| count(call) > 0);
    Ok((wire, stage.used))
}

fn count(call: &Call) -> usize {
    match call {
        Call::AllReduce { count, .. }
        | Call::AllGather { count, .. }
        | Call::ReduceScatter { count, .. }
        | Call::Broadcast { count, .. }
        | Call::Reduce { count, .. }
        | Call::Send { count, .. }
        | Call::Receive { count, .. } => *count,
    }
}

fn is_even(part: &Part) -> bool {
    part.lens.windows(2).all(|w| w[0] == w[1])
}

/// The number of elements in the shards before each rank's shard.
fn starts(part: &Part) -> Vec<usize> {
    (0..part.lens.len()).map(|r| (0..r).map(|p| part.shard(p)).sum()).collect()
}

/// The axes of a rank's shard, with its strides in the whole value and in a dense shard; and the shard's first element
/// in the whole.
fn piece(part: &Part, r: usize) -> (Vec<Axis>, usize) {
    let total: usize = part.lens.iter().sum();
    let run = part.lens[r] * part.inner;
    let axes = [(part.outer, total * part.inner, run), (run, 1, 1)];
    let axes = axes.into_iter().filter(|a| a.0 != 1);
    let axes = axes.map(|(size, whole, shard)| Axis { size, strides: vec![whole as isize, shard as isize] }).collect();
    (axes, part.lens[..r].iter().sum::<usize>() * part.inner)
}

fn reversed(axes: Vec<Axis>) -> Vec<Axis> {
    axes.into_iter().map(|a| Axis { size: a.size, strides: a.strides.into_iter().rev().collect() }).collect()
}

fn all_gather(
    rank: &mut Rank<'_>,
    wire: &mut Wire,
    stage: &mut Stage,
    c: &Collective,
    part: &Part,
    (from, to): (i64, i64),
) -> Result<(), String> {
    let size = c.dtype.bytes();
    let joined = if part.outer == 1 { to } else { stage.take(part.whole() * size) };
    if is_even(part) {
        wire.calls.push(Call::AllGather { from, to: joined, count: part.shard(0) });
    } else {
        for (root, start) in starts(part).into_iter().enumerate() {
            let to = joined + (start * size) as i64;
            wire.calls.push(Call::Broadcast { from, to, count: part.shard(root), root });
        }
    }
    if part.outer != 1 {
        for (r, start) in starts(part).into_iter().enumerate() {
            let (axes, first) = piece(part, r);
            let places = (joined + (start * size) as i64, to + (first * size) as i64);
            wire.after.extend(strided(rank, size, reversed(axes), places)?);
        }
    }
    Ok(())
}

fn reduce_scatter(
    rank: &mut Rank<'_>,
    wire: &mut Wire,
    stage: &mut Stage,
    c: &Collective,
    part: &Part,
    (from, to): (i64, i64),
) -> Result<(), String> {
    let size = c.dtype.bytes();
    let packed = if part.outer == 1 { from } else { stage.take(part.whole() * size) };
    if part.outer != 1 {
        for (r, start) in starts(part).into_iter().enumerate() {
            let (axes, first) = piece(part, r);
            let places = (from + (first * size) as i64, packed + (start * size) as i64);
            wire.before.extend(strided(rank, size, axes, places)?);
        }
    }
    if is_even(part) {
        wire.calls.push(Call::ReduceScatter { from: packed, to, count: part.shard(0) });
    } else {
        for (root, start) in starts(part).into_iter().enumerate() {
            let from = packed + (start * size) as i64;
            wire.calls.push(Call::Reduce { from, to, count: part.shard(root), root });
        }
    }
    Ok(())
}

/// The axes of a box, with its strides in the tensor and in a dense box; and the first element of the box in the
/// tensor.
fn box_axes(tensor: &[usize], shape: &[usize], start: &[usize]) -> (Vec<Axis>, usize) {
    let (outer, inner) = (dense_strides(tensor), dense_strides(shape));
    let first = start.iter().zip(&outer).map(|(&s, &d)| s * d as usize).sum();
    let axes = (0..shape.len()).filter(|&d| shape[d] != 1);
    (axes.map(|d| Axis { size: shape[d], strides: vec![outer[d], inner[d]] }).collect(), first)
}

fn all_to_all(
    rank: &mut Rank<'_>,
    wire: &mut Wire,
    stage: &mut Stage,
    c: &Collective,
    (from, to): (i64, i64),
) -> Result<(), String> {
    let CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } = &c.kind else { return Ok(()) };
    let size = c.dtype.bytes();
    let mut result = shape.clone();
    result[*cut] = cut_lens[c.position];
    result[*join] = join_lens.iter().sum();
    let (mut cut_at, mut join_at) = (0, 0);
    for peer in 0..cut_lens.len() {
        let (mut sent, mut received) = (shape.clone(), result.clone());
        sent[*cut] = cut_lens[peer];
        received[*join] = join_lens[peer];
        let (mut at, mut into) = (vec![0; shape.len()], vec![0; shape.len()]);
        at[*cut] = cut_at;
        into[*join] = join_at;
        cut_at += cut_lens[peer];
        join_at += join_lens[peer];
        let (axes, first) = box_axes(shape, &sent, &at);
        let count: usize = sent.iter().product();
        let packed = stage.take(count * size);
        wire.before.extend(strided(rank, size, axes, (from + (first * size) as i64, packed))?);
        wire.calls.push(Call::Send { from: packed, count, peer });
        let (axes, first) = box_axes(&result, &received, &into);
        let count: usize = received.iter().product();
        let arrived = stage.take(count * size);
        wire.calls.push(Call::Receive { to: arrived, count, peer });
        wire.after.extend(strided(rank, size, reversed(axes), (arrived, to + (first * size) as i64))?);
    }
    Ok(())
}
