//! Which bytes of a collective go to whom: pieces of operands and results, as runs in nested loops.
//!
//! A piece is packed in the order of its runs, and that order is the same on both sides of a message.

use tpc_ir::program::{Collective, CollectiveKind, Part};

/// All-reduces of at most so many bytes are done in one exchange: every rank gets all operands and combines them itself. Above, each
/// combines a part and hands the result to the others, which moves fewer bytes but takes two exchanges.
const SMALL: usize = 16 << 10;

/// Equally long runs of bytes, in up to three nested loops, the outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    start: usize,
    run: usize,
    /// How often, and how many bytes apart.
    loops: [(usize, usize); 3],
}

impl Block {
    /// `None` if it is empty. Loops whose runs lie side by side become one longer run.
    fn new(start: usize, run: usize, loops: [(usize, usize); 3]) -> Option<Self> {
        let mut block = Block { start, run, loops: [(1, 0); 3] };
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
pub(super) struct Piece(Vec<Block>);

impl Piece {
    fn run(start: usize, bytes: usize) -> Self {
        Piece(Block::new(start, bytes, [(1, 0); 3]).into_iter().collect())
    }

    /// How many bytes there are.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(Block::bytes).sum()
    }

    /// Where it begins, if it is one run or empty.
    pub(super) fn contiguous(&self) -> Option<usize> {
        match &self.0[..] {
            [] => Some(0),
            [one] => (one.bytes() == one.run).then_some(one.start),
            _ => None,
        }
    }

    /// Calls `f` with the place and the length of every run, in order.
    pub(super) fn each(&self, f: &mut impl FnMut(usize, usize)) {
        self.0.iter().for_each(|block| block.each(f));
    }

    /// Copies the piece of a buffer to a dense place.
    ///
    /// # Safety
    /// The runs must lie in `from`, which must be readable, and all of them fit into `to`, which must be writable and another place.
    pub(super) unsafe fn pack(&self, from: *const u8, to: *mut u8) {
        let mut packed = 0;
        self.each(&mut |at, n| {
            // SAFETY: passed on to the caller.
            unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(packed), n) };
            packed += n;
        });
    }

    /// Copies from a dense place to the piece of a buffer.
    ///
    /// # Safety
    /// As [`Piece::pack`], the other way round.
    pub(super) unsafe fn unpack(&self, from: *const u8, to: *mut u8) {
        let mut packed = 0;
        self.each(&mut |at, n| {
            // SAFETY: passed on to the caller.
            unsafe { std::ptr::copy_nonoverlapping(from.add(packed), to.add(at), n) };
            packed += n;
        });
    }
}

/// What a rank sends and receives in a collective; positions are those in its group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// What of the operand goes to each position, its own included.
    pub(super) sends: Vec<Piece>,
    /// Where what comes from each position lies in the result. In a reduction all of it is combined, and lies at its own position's place.
    pub(super) receives: Vec<Piece>,
    /// The parts of the result that each position then hands to all others.
    pub(super) shares: Option<Vec<Piece>>,
}

/// What the rank at the collective's position sends and receives.
pub(super) fn plan(c: &Collective) -> Plan {
    let size = c.dtype.bytes();
    let (n, me) = (c.group.len(), c.position);
    let single = |mine: Piece| (0..n).map(|p| if p == me { mine.clone() } else { Piece::default() }).collect();
    match &c.kind {
        CollectiveKind::AllReduce(_) if c.from.elements() * size <= SMALL => {
            let whole = Piece::run(0, c.from.elements() * size);
            Plan { sends: vec![whole.clone(); n], receives: single(whole), shares: None }
        }
        CollectiveKind::AllReduce(_) => {
            // Parts of whole cache lines.
            let elements = c.from.elements();
            let part = elements.div_ceil(n).next_multiple_of(64 / size);
            let piece = |p: usize| {
                let start = (part * p).min(elements);
                Piece::run(start * size, part.min(elements - start) * size)
            };
            let pieces: Vec<Piece> = (0..n).map(piece).collect();
            Plan { receives: single(pieces[me].clone()), sends: pieces.clone(), shares: Some(pieces) }
        }
        CollectiveKind::AllGather { parts } => {
            let mine: usize = parts.iter().map(|part| part.shard(me)).sum();
            let sends = vec![Piece::run(0, mine * size); n];
            Plan { sends, receives: (0..n).map(|p| of_parts(parts, p, size)).collect(), shares: None }
        }
        CollectiveKind::ReduceScatter { parts, .. } => {
            let mine: usize = parts.iter().map(|part| part.shard(me)).sum();
            let sends = (0..n).map(|p| of_parts(parts, p, size)).collect();
            Plan { sends, receives: single(Piece::run(0, mine * size)), shares: None }
        }
        CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } => {
            let product = |range: std::ops::Range<usize>| shape[range].iter().product::<usize>();
            let (a, b) = (*cut.min(join), *cut.max(join));
            let (before, between, behind) = (product(0..a), product(a + 1..b), product(b + 1..shape.len()) * size);
            let before_of = |lens: &[usize], p: usize| lens[..p].iter().sum::<usize>();
            // Length of the piece, size and offset of both dimensions, in the order in which they come in the shape.
            let block = |of_cut: (usize, usize, usize), of_join: (usize, usize, usize)| {
                let (first, second) = if cut < join { (of_cut, of_join) } else { (of_join, of_cut) };
                let row = second.1 * behind;
                let loops = [(before, first.1 * between * row), (first.0, between * row), (between, row)];
                Piece(
                    Block::new(first.2 * between * row + second.2 * behind, second.0 * behind, loops)
                        .into_iter()
                        .collect(),
                )
            };
            let (cut_total, join_total) = (shape[*cut], join_lens.iter().sum());
            let send =
                |p: usize| block((cut_lens[p], cut_total, before_of(cut_lens, p)), (join_lens[me], join_lens[me], 0));
            let receive =
                |p: usize| block((cut_lens[me], cut_lens[me], 0), (join_lens[p], join_total, before_of(join_lens, p)));
            Plan { sends: (0..n).map(send).collect(), receives: (0..n).map(receive).collect(), shares: None }
        }
    }
}

/// What a position holds of whole values that lie side by side.
fn of_parts(parts: &[Part], position: usize, size: usize) -> Piece {
    let mut whole = 0;
    let blocks = parts.iter().filter_map(|part| {
        let Part { outer, lens, inner } = part;
        let (row, offset) = (lens.iter().sum::<usize>() * inner, lens[..position].iter().sum::<usize>() * inner);
        let start = whole + offset;
        whole += part.whole();
        Block::new(start * size, lens[position] * inner * size, [(1, 0), (1, 0), (*outer, row * size)])
    });
    Piece(blocks.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_side_by_side_become_one() {
        let block = Block::new(8, 4, [(2, 24), (3, 8), (2, 4)]).unwrap();
        assert_eq!((block.run, block.loops), (48, [(1, 0); 3]));
        let block = Block::new(0, 4, [(2, 100), (1, 7), (3, 8)]).unwrap();
        assert_eq!((block.run, block.loops), (4, [(1, 0), (2, 100), (3, 8)]));
        assert!(Block::new(0, 4, [(0, 1), (1, 1), (1, 1)]).is_none());
        assert!(Block::new(0, 0, [(1, 1); 3]).is_none());
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        let piece = Piece(
            [Block::new(1, 2, [(1, 0), (2, 10), (2, 4)]), Block::new(30, 3, [(1, 0); 3])]
                .into_iter()
                .flatten()
                .collect(),
        );
        assert_eq!((piece.bytes(), piece.contiguous()), (11, None));
        let from: Vec<u8> = (0..40).collect();
        let (mut packed, mut back) = ([0; 11], [0; 40]);
        // SAFETY: all runs lie in the buffers.
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
