//! The bytes that each rank sends and receives in a collective: pieces of operands and results, described as runs in
//! nested loops.
//!
//! A piece is packed in the order of its runs, which is the same for the sender and the receiver of a message.

use tpc_ir::program::{Collective, CollectiveKind, Part};

/// All-reduces of at most this many bytes take one exchange: every rank receives all operands and combines them itself.
/// In larger ones, each rank combines a part and sends the result to the others, which moves fewer bytes but takes two
/// exchanges.
const SMALL: usize = 16 << 10;

/// Runs of bytes of equal length, in up to three nested loops, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StridedRuns {
    start: usize,
    run: usize,
    /// The number of iterations and the distance in bytes between them.
    loops: [(usize, usize); 3],
}

impl StridedRuns {
    /// `None` if there are no bytes. Loops over adjacent runs become one longer run.
    fn new(start: usize, run: usize, loops: [(usize, usize); 3]) -> Option<Self> {
        let mut block = StridedRuns { start, run, loops: [(1, 0); 3] };
        let mut inner = 3;
        for &(times, distance) in loops.iter().rev().filter(|l| l.0 != 1) {
            if inner == 3 && distance == block.run {
                block.run *= times;
            } else {
                inner -= 1;
                block.loops[inner] = (times, distance);
            }
        }
        (block.bytes() > 0).then_some(block)
    }

    fn bytes(&self) -> usize {
        self.run * self.loops.iter().map(|l| l.0).product::<usize>()
    }

    fn each(&self, f: &mut impl FnMut(usize, usize)) {
        let [a, b, c] = self.loops;
        for i in 0..a.0 {
            for j in 0..b.0 {
                for k in 0..c.0 {
                    f(self.start + i * a.1 + j * b.1 + k * c.1, self.run);
                }
            }
        }
    }
}

/// Some bytes of a buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece(Vec<StridedRuns>);

impl Piece {
    fn run(start: usize, bytes: usize) -> Self {
        Piece(StridedRuns::new(start, bytes, [(1, 0); 3]).into_iter().collect())
    }

    /// Number of bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(StridedRuns::bytes).sum()
    }

    /// The offset of its first byte if it consists of one run; 0 if it is empty.
    pub(super) fn contiguous(&self) -> Option<usize> {
        match &self.0[..] {
            [] => Some(0),
            [one] => (one.bytes() == one.run).then_some(one.start),
            _ => None,
        }
    }

    /// Calls `f` with the offset and the length of every run, in order.
    pub(super) fn each(&self, f: &mut impl FnMut(usize, usize)) {
        self.0.iter().for_each(|block| block.each(f));
    }

    /// Copies the piece of the buffer `from` to `to`, without gaps.
    ///
    /// # Safety
    /// The runs must be inside `from`, which must be readable. They must fit into `to`, which must be writable and must
    /// not overlap `from`.
    pub(super) unsafe fn pack(&self, from: *const u8, to: *mut u8) {
        let mut packed = 0;
        self.each(&mut |at, n| {
            // SAFETY: the caller guarantees it.
            unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(packed), n) };
            packed += n;
        });
    }

    /// Copies the packed bytes in `from` to the piece of the buffer `to`.
    ///
    /// # Safety
    /// Those of [`Piece::pack`], with the roles of the buffers exchanged.
    pub(super) unsafe fn unpack(&self, from: *const u8, to: *mut u8) {
        let mut packed = 0;
        self.each(&mut |at, n| {
            // SAFETY: the caller guarantees it.
            unsafe { std::ptr::copy_nonoverlapping(from.add(packed), to.add(at), n) };
            packed += n;
        });
    }
}

/// The pieces that a rank sends and receives in a collective, by position in its group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transfers {
    /// The piece of the operand that goes to each position, including its own.
    pub(super) sends: Vec<Piece>,
    /// The piece of the result that comes from each position. In a reduction, all operands are combined into the piece
    /// at its own position.
    pub(super) receives: Vec<Piece>,
    /// The part of the result that each position then sends to all others.
    pub(super) shares: Option<Vec<Piece>>,
}

/// The pieces that the rank at the position of the collective sends and receives.
pub(super) fn transfers(c: &Collective) -> Transfers {
    let size = c.dtype.bytes();
    let (n, me) = (c.group.len(), c.position);
    let single = |mine: Piece| (0..n).map(|p| if p == me { mine.clone() } else { Piece::default() }).collect();
    match &c.kind {
        CollectiveKind::AllReduce(_) if c.from.elements() * size <= SMALL => {
            let whole = Piece::run(0, c.from.elements() * size);
            Transfers { sends: vec![whole.clone(); n], receives: single(whole), shares: None }
        }
        CollectiveKind::AllReduce(_) => {
            // Parts consist of whole cache lines.
            let elements = c.from.elements();
            let part = elements.div_ceil(n).next_multiple_of(64 / size);
            let piece = |p: usize| {
                let start = (part * p).min(elements);
                Piece::run(start * size, part.min(elements - start) * size)
            };
            let pieces: Vec<Piece> = (0..n).map(piece).collect();
            Transfers { receives: single(pieces[me].clone()), sends: pieces.clone(), shares: Some(pieces) }
        }
        CollectiveKind::AllGather { parts } => {
            let mine: usize = parts.iter().map(|part| part.shard(me)).sum();
            let sends = vec![Piece::run(0, mine * size); n];
            Transfers { sends, receives: (0..n).map(|p| of_parts(parts, p, size)).collect(), shares: None }
        }
        CollectiveKind::ReduceScatter { parts, .. } => {
            let mine: usize = parts.iter().map(|part| part.shard(me)).sum();
            let sends = (0..n).map(|p| of_parts(parts, p, size)).collect();
            Transfers { sends, receives: single(Piece::run(0, mine * size)), shares: None }
        }
        CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } => {
            let product = |range: std::ops::Range<usize>| shape[range].iter().product::<usize>();
            let (a, b) = (*cut.min(join), *cut.max(join));
            let (before, between, after) = (product(0..a), product(a + 1..b), product(b + 1..shape.len()) * size);
            let before_of = |lens: &[usize], p: usize| lens[..p].iter().sum::<usize>();
            // For both dimensions, in the order of the shape: length of the piece, total length, and offset.
            let block = |of_cut: (usize, usize, usize), of_join: (usize, usize, usize)| {
                let (first, second) = if cut < join { (of_cut, of_join) } else { (of_join, of_cut) };
                let row = second.1 * after;
                let loops = [(before, first.1 * between * row), (first.0, between * row), (between, row)];
                Piece(
                    StridedRuns::new(first.2 * between * row + second.2 * after, second.0 * after, loops)
                        .into_iter()
                        .collect(),
                )
            };
            let (cut_total, join_total) = (shape[*cut], join_lens.iter().sum());
            let send =
                |p: usize| block((cut_lens[p], cut_total, before_of(cut_lens, p)), (join_lens[me], join_lens[me], 0));
            let receive =
                |p: usize| block((cut_lens[me], cut_lens[me], 0), (join_lens[p], join_total, before_of(join_lens, p)));
            Transfers { sends: (0..n).map(send).collect(), receives: (0..n).map(receive).collect(), shares: None }
        }
    }
}

/// The piece that a position contributes to the concatenated whole values.
fn of_parts(parts: &[Part], position: usize, size: usize) -> Piece {
    let mut whole = 0;
    let blocks = parts.iter().filter_map(|part| {
        let Part { outer, lens, inner } = part;
        let (row, offset) = (lens.iter().sum::<usize>() * inner, lens[..position].iter().sum::<usize>() * inner);
        let start = whole + offset;
        whole += part.whole();
        StridedRuns::new(start * size, lens[position] * inner * size, [(1, 0), (1, 0), (*outer, row * size)])
    });
    Piece(blocks.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_runs_become_one() {
        let block = StridedRuns::new(8, 4, [(2, 24), (3, 8), (2, 4)]).unwrap();
        assert_eq!((block.run, block.loops), (48, [(1, 0); 3]));
        let block = StridedRuns::new(0, 4, [(2, 100), (1, 7), (3, 8)]).unwrap();
        assert_eq!((block.run, block.loops), (4, [(1, 0), (2, 100), (3, 8)]));
        assert!(StridedRuns::new(0, 4, [(0, 1), (1, 1), (1, 1)]).is_none());
        assert!(StridedRuns::new(0, 0, [(1, 1); 3]).is_none());
    }

    #[test]
    fn unpacking_inverts_packing() {
        let piece = Piece(
            [StridedRuns::new(1, 2, [(1, 0), (2, 10), (2, 4)]), StridedRuns::new(30, 3, [(1, 0); 3])]
                .into_iter()
                .flatten()
                .collect(),
        );
        assert_eq!((piece.bytes(), piece.contiguous()), (11, None));
        let from: Vec<u8> = (0..40).collect();
        let (mut packed, mut back) = ([0; 11], [0; 40]);
        // SAFETY: all runs are inside the buffers.
        unsafe {
            piece.pack(from.as_ptr(), packed.as_mut_ptr());
            piece.unpack(packed.as_ptr(), back.as_mut_ptr());
        }
        assert_eq!(packed, [1, 2, 5, 6, 11, 12, 15, 16, 30, 31, 32]);
        assert_eq!(back.iter().filter(|b| **b != 0).count(), 11);
        assert_eq!(Piece::run(5, 7).contiguous(), Some(5));
        assert_eq!(Piece::default().contiguous(), Some(0));
    }
}
