//! Lines, and the runs in a list of them.

use rustc_hash::FxHashMap;

/// The longest period of a run, in lines.
const LONGEST_PERIOD: usize = 4_000;

/// The number of later lines with the same key that are tried as the next occurrence of a line.
const OCCURRENCES: usize = 64;

/// A line as its key and the numbers in it that may move from occurrence to occurrence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Two lines have the same key if they differ in their numbers only.
    pub key: usize,
    /// The numbers.
    pub numbers: Vec<i64>,
}

/// A stretch of lines that occurs `count` times, one right after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first line.
    pub start: usize,
    /// The number of lines of one occurrence.
    pub period: usize,
    /// The number of occurrences.
    pub count: usize,
}

impl Run {
    /// The line after the last one of the run.
    pub fn end(&self) -> usize {
        self.start + self.period * self.count
    }
}

/// The lines `from..to`. From each line, its numbers move to those of the line `period` later by the same steps as from
/// that one to the next.
struct Stretch {
    from: usize,
    to: usize,
    period: usize,
}

/// The runs of a list of lines, in order and disjoint. The run that saves most lines is taken first, then the best ones
/// before and after it.
pub fn runs(lines: &[Line]) -> Vec<Run> {
    let stretches = stretches(lines);
    let mut found = Vec::new();
    let mut open = vec![(0, lines.len())];
    while let Some((from, to)) = open.pop() {
        let clipped = stretches.iter().filter_map(|s| {
            let (start, end) = (s.from.max(from), s.to.min(to));
            let count = end.saturating_sub(start) / s.period;
            let run = Run { start, period: s.period, count };
            // A run must be worth its braces when it is printed: a single line that occurs twice is not.
            (count > 2 && s.period * count > 3 || count == 2 && s.period > 7).then_some(run)
        });
        // Two occurrences may be a coincidence, so runs with more of them are preferred.
        let size = |r: &Run| (r.count > 2, r.period * (r.count - 1), std::cmp::Reverse((r.period, r.start)));
        if let Some(best) = clipped.max_by_key(size) {
            open.push((from, best.start));
            open.push((best.end(), to));
            found.push(best);
        }
    }
    found.sort_unstable();
    found
}

/// All stretches of at least two periods.
fn stretches(lines: &[Line]) -> Vec<Stretch> {
    let mut next: FxHashMap<usize, usize> = FxHashMap::default();
    let mut after: Vec<Option<usize>> = vec![None; lines.len()];
    for (i, line) in lines.iter().enumerate().rev() {
        after[i] = next.insert(line.key, i);
    }
    let mut pairs = vec![0; LONGEST_PERIOD + 1];
    for i in 0..lines.len() {
        let mut at = i;
        for _ in 0..OCCURRENCES {
            let Some(later) = after[at].filter(|l| l - i <= LONGEST_PERIOD) else { break };
            pairs[later - i] += 1;
            at = later;
        }
    }
    let mut found = Vec::new();
    for (period, _) in pairs.into_iter().enumerate().filter(|&(period, pairs)| pairs >= period.max(1)) {
        let equal = |i: usize| i + period < lines.len() && lines[i].key == lines[i + period].key;
        let even = |i: usize| {
            let (a, b) = (&lines[i].numbers, &lines[i + period].numbers);
            let c = &lines[i + 2 * period].numbers;
            (0..a.len()).all(|n| b[n] - a[n] == c[n] - b[n])
        };
        let mut from = 0;
        while from + period < lines.len() {
            let mut to = from;
            while equal(to) && (to < from + period || even(to - period)) {
                to += 1;
            }
            if to - from >= period {
                found.push(Stretch { from, to: to + period, period });
            }
            // The line that ended this stretch may belong to the next one, which starts at most one period before it.
            from = if to >= from + period { to - period + 1 } else { to + 1 };
        }
    }
    found
}
