//! The visible range of a block of owners, as formulas in its first index.

use crate::device::visible::Visible;
use std::ops::Range;

/// One end of the visible range.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The same for all blocks.
    Fixed(usize),
    /// At this distance from the block's own end.
    Shifted(i64),
}

/// The range of streamed indices that each block of owners sees: at least what [`Visible`] says for the block.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    from: End,
    to: End,
    /// The largest score outside of the range.
    masked: f64,
    streamed: usize,
}

impl Seen {
    /// The visible ranges of `owners` in blocks of this size.
    pub(super) fn of(owners: usize, block: usize, streamed: usize, visible: &dyn Fn(Range<usize>) -> Visible) -> Seen {
        let blocks: Vec<Range<usize>> = (0..owners).step_by(block).map(|i| i..(i + block).min(owners)).collect();
        let all: Vec<Visible> = blocks.iter().map(|b| visible(b.clone())).collect();
        let masked = all.iter().map(|v| v.masked).fold(f64::NEG_INFINITY, f64::max);
        // Blocks that see nothing have no ends.
        let some: Vec<(&Range<usize>, &Range<usize>)> =
            blocks.iter().zip(&all).map(|(b, v)| (b, &v.seen)).filter(|(_, s)| !s.is_empty()).collect();
        let first = some.iter().map(|(_, s)| s.start).min().unwrap_or(0);
        let last = some.iter().map(|(_, s)| s.end).max().unwrap_or(0);
        let least = some.iter().filter(|(_, s)| s.start > 0).map(|(b, s)| s.start as i64 - b.start as i64).min();
        let most = some.iter().filter(|(_, s)| s.end < streamed).map(|(b, s)| s.end as i64 - b.end as i64).max();
        let (from, to) = (least.map(End::Shifted), most.map(End::Shifted));
        let at = |end: End, of: usize| end.at(of, streamed);
        // Takes the one of the two formulas that hides more; both hold for all blocks.
        let hidden = |end: End| some.iter().map(|(b, _)| at(end, b.start)).sum::<usize>();
        let holds = |end: &End| some.iter().all(|(b, s)| at(*end, b.start) <= s.start);
        let from = from.filter(holds).filter(|&f| hidden(f) > hidden(End::Fixed(first))).unwrap_or(End::Fixed(first));
        let shown = |end: End| some.iter().map(|(b, _)| at(end, b.end)).sum::<usize>();
        let holds = |end: &End| some.iter().all(|(b, s)| at(*end, b.end) >= s.end);
        let to = to.filter(holds).filter(|&t| shown(t) < shown(End::Fixed(last))).unwrap_or(End::Fixed(last));
        Seen { from, to, masked, streamed }
    }

    /// Whether later blocks see more than earlier ones.
    pub(super) fn grows(&self) -> bool {
        matches!((self.from, self.to), (End::Fixed(_), End::Shifted(_)))
    }

    /// Declares `order` and `masked` for the block of `owners` that begins at `first`.
    pub(super) fn text(&self, own: usize, owners: usize, size: usize) -> String {
        let n = self.streamed;
        let end = |end: End, of: &str| match end {
            End::Fixed(i) => format!("{i}"),
            End::Shifted(shift) => format!("clamped((i64){of} + {shift}ll, {n})"),
        };
        let (from, to) = (end(self.from, "first"), end(self.to, "last"));
        let masked = if self.masked.is_finite() { format!("{:?}", self.masked) } else { "-(double)INF".into() };
        format!(
            "    const int last = first + {own} < {owners} ? first + {own} : {owners};\n    \
             const Order order({from}, {to}, {n}, {size});\n    const R masked = (R){masked};\n"
        )
    }
}

impl End {
    fn at(self, of: usize, streamed: usize) -> usize {
        match self {
            End::Fixed(i) => i,
            End::Shifted(shift) => (of as i64 + shift).clamp(0, streamed as i64) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(owners: usize, block: usize, n: usize, of: impl Fn(usize) -> Range<usize>) -> Seen {
        let visible = |b: Range<usize>| {
            let ranges = b.map(&of).filter(|r| !r.is_empty());
            let seen = ranges.fold(n..0, |a, r| a.start.min(r.start)..a.end.max(r.end));
            Visible { seen: if seen.is_empty() { 0..0 } else { seen }, masked: -1.0 }
        };
        let s = Seen::of(owners, block, n, &visible);
        // Either formula must hold.
        for first in (0..owners).step_by(block) {
            let last = (first + block).min(owners);
            let exact = visible(first..last).seen;
            assert!(exact.is_empty() || s.from.at(first, n) <= exact.start && s.to.at(last, n) >= exact.end);
        }
        s
    }

    #[test]
    fn masks_are_formulas() {
        let causal = seen(300, 64, 300, |r| 0..r + 1);
        assert_eq!((causal.from, causal.to), (End::Fixed(0), End::Shifted(0)));
        assert!(causal.grows());
        let transposed = seen(300, 64, 300, |c| c..300);
        assert_eq!((transposed.from, transposed.to), (End::Shifted(0), End::Fixed(300)));
        let window = seen(300, 64, 300, |r| r.saturating_sub(40)..(r + 5).min(300));
        assert_eq!((window.from, window.to), (End::Shifted(-40), End::Shifted(4)));
        let outside = seen(300, 64, 100, |r| r.saturating_sub(40).min(100)..(r + 5).min(100));
        assert_eq!((outside.from, outside.to), (End::Shifted(-40), End::Shifted(4)));
        let all = seen(300, 64, 100, |_| 0..100);
        assert_eq!((all.from, all.to), (End::Fixed(0), End::Fixed(100)));
        let nothing = seen(300, 64, 100, |_| 0..0);
        assert_eq!((nothing.from, nothing.to), (End::Fixed(0), End::Fixed(0)));
        // A case that no shift describes.
        let doubled = seen(300, 64, 700, |r| 0..2 * r + 1);
        assert_eq!(doubled.from, End::Fixed(0));
    }
}
