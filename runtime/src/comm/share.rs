//! One rank's share of a collective: what it computes or copies once all ranks of the group have arrived.
//!
//! For an all-reduce, a rank combines one piece in rank order and writes it to every rank's result. For the other
//! collectives it fills its own result from its peers' operands. Each element is combined once, by one rank, in a fixed
//! order, so results are bitwise equal everywhere.

use super::reduce::Combine;
use tpc_ir::program::{Collective, CollectiveKind, Part};

/// One rank's share of a collective.
///
/// # Safety
/// The pointers are those of all ranks of the group, for the sizes of the collective. Only the other ranks' shares may
/// write the sources or read the targets during the call.
pub(super) unsafe fn share(c: &Collective, combine: Option<Combine>, sources: &[*const u8], targets: &[*mut u8]) {
    let size = c.dtype.bytes();
    let (n, me) = (sources.len(), c.position);
    match &c.kind {
        CollectiveKind::AllReduce(_) => {
            // Pieces of whole cache lines.
            let elements = c.from.elements();
            let piece = elements.div_ceil(n).next_multiple_of(64 / size);
            let start = (piece * me).min(elements);
            let len = piece.min(elements - start);
            if let Some(combine) = combine {
                // SAFETY: the piece is within all buffers, and belongs to this rank.
                unsafe { combine(len, sources, targets, start * size, start * size) }
            }
        }
        CollectiveKind::AllGather { parts } => {
            // The shards of all ranks are adjacent, so each peer has a separate range for a part.
            let mut result = 0;
            for (p, Part { outer, lens, inner }) in parts.iter().enumerate() {
                let total: usize = lens.iter().sum();
                let mut offset = 0;
                for (peer, (source, &len)) in sources.iter().zip(lens).enumerate() {
                    let operand: usize = parts[..p].iter().map(|before| before.shard(peer)).sum();
                    let run = len * inner;
                    for o in 0..*outer {
                        let (from, to) = (operand + o * run, result + (o * total + offset) * inner);
                        // SAFETY: the run is within the peer's operand and this rank's result.
                        unsafe {
                            let to = targets[me].add(to * size);
                            std::ptr::copy_nonoverlapping(source.add(from * size), to, run * size);
                        }
                    }
                    offset += len;
                }
                result += parts[p].whole();
            }
        }
        CollectiveKind::ReduceScatter { parts, .. } => {
            let (mut operand, mut result) = (0, 0);
            for part in parts {
                let Part { outer, lens, inner } = part;
                let total: usize = lens.iter().sum();
                let offset: usize = lens[..me].iter().sum();
                let len = lens[me] * inner;
                for o in 0..*outer {
                    if let Some(combine) = combine {
                        let (from, to) = (operand + (o * total + offset) * inner, result + o * len);
                        // SAFETY: the piece is within all operands and this rank's result.
                        unsafe { combine(len, sources, &targets[me..=me], from * size, to * size) }
                    }
                }
                operand += part.whole();
                result += part.shard(me);
            }
        }
        CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } => {
            let product = |range: std::ops::Range<usize>| shape[range].iter().product::<usize>();
            let (a, b) = (*cut.min(join), *cut.max(join));
            let (before, between, after) = (product(0..a), product(a + 1..b), product(b + 1..shape.len()));
            let (cut_total, join_total) = (shape[*cut], join_lens.iter().sum::<usize>());
            let cut_offset: usize = cut_lens[..me].iter().sum();
            let mut join_offset = 0;
            for (source, &joined) in sources.iter().zip(join_lens) {
                // (length of the piece, size and offset in the source, size and offset in the target)
                let of_cut = (cut_lens[me], cut_total, cut_offset, cut_lens[me], 0);
                let of_join = (joined, joined, 0, join_total, join_offset);
                let (first, second) = if cut < join { (of_cut, of_join) } else { (of_join, of_cut) };
                let run = second.0 * after * size;
                for i in 0..before {
                    for x in 0..first.0 {
                        for j in 0..between {
                            let from = (((i * first.1 + first.2 + x) * between + j) * second.1 + second.2) * after;
                            let to = (((i * first.3 + first.4 + x) * between + j) * second.3 + second.4) * after;
                            // SAFETY: the run is within the peer's operand and this rank's result.
                            unsafe {
                                std::ptr::copy_nonoverlapping(source.add(from * size), targets[me].add(to * size), run);
                            }
                        }
                    }
                }
                join_offset += joined;
            }
        }
    }
}
