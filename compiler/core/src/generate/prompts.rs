//! Placing the tokens of prompts into the slots of the cache.
//!
//! Before: prompts `[7, 8, 9]` and `[5]`, runs of two tokens.
//! After: all prompts end at the same slot, which is the last slot of a run. Slots before a prompt are filled with
//! token 0, which no token of the sequence sees.
//! ```text
//! slot        0 1 | 2 3
//! sequence 0  0 7 | 8 9   first 1
//! sequence 1  0 0 | 0 5   first 3
//! ```

/// The inputs of a run: `t` tokens of each of `b` sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Token numbers, `[b, t]`.
    pub tokens: Vec<i64>,
    /// The position of each token in its sequence, `[b, t]`.
    pub positions: Vec<i64>,
    /// The slot of the cache for each column, `[t]`.
    pub slots: Vec<i64>,
    /// The first slot of each sequence, `[b]`.
    pub first: Vec<i64>,
}

/// A batch of prompts in the cache.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    first: Vec<usize>,
    /// Number of filled slots.
    filled: usize,
}

/// Number of slots that prompts up to this length fill, read in runs of `chunk` tokens.
pub(super) fn filled(longest: usize, chunk: usize) -> usize {
    longest.max(1).next_multiple_of(chunk)
}

impl Placed {
    /// The runs that read prompts, one for each sequence of the programs, and the resulting slots.
    pub(super) fn read(prompts: &[&[i64]], chunk: usize) -> (Self, Vec<Run>) {
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let filled = filled(longest, chunk);
        let first: Vec<usize> = prompts.iter().map(|prompt| filled - prompt.len()).collect();
        let placed = Placed { first, filled };
        let runs = (0..filled).step_by(chunk).map(|start| {
            let slots = start..start + chunk;
            let token = |(sequence, prompt): (usize, &&[i64])| -> Vec<i64> {
                let at = |slot: usize| slot.checked_sub(placed.first[sequence]).and_then(|at| prompt.get(at));
                slots.clone().map(|slot| at(slot).copied().unwrap_or(0)).collect()
            };
            placed.run(prompts.iter().enumerate().flat_map(token).collect(), slots)
        });
        let runs = runs.collect();
        (placed, runs)
    }

    /// The run that reads one more token of each sequence.
    pub(super) fn next(&mut self, tokens: Vec<i64>) -> Run {
        let slot = self.filled;
        self.filled += 1;
        self.run(tokens, slot..slot + 1)
    }

    fn run(&self, tokens: Vec<i64>, slots: std::ops::Range<usize>) -> Run {
        let position = |first: &usize| slots.clone().map(|slot| slot.saturating_sub(*first) as i64).collect::<Vec<_>>();
        Run {
            tokens,
            positions: self.first.iter().flat_map(position).collect(),
            slots: slots.clone().map(|slot| slot as i64).collect(),
            first: self.first.iter().map(|first| *first as i64).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_end_together() {
        let (mut placed, runs) = Placed::read(&[&[7, 8, 9], &[5]], 2);
        let first = vec![1, 3];
        let expected = [
            Run { tokens: vec![0, 7, 0, 0], positions: vec![0, 0, 0, 0], slots: vec![0, 1], first: first.clone() },
            Run { tokens: vec![8, 9, 0, 5], positions: vec![1, 2, 0, 0], slots: vec![2, 3], first: first.clone() },
        ];
        assert_eq!(runs, expected);
        let next = Run { tokens: vec![1, 2], positions: vec![3, 1], slots: vec![4], first };
        assert_eq!(placed.next(vec![1, 2]), next);
        assert_eq!(placed.next(vec![3, 4]).slots, [5]);
    }

    #[test]
    fn an_empty_sequence_takes_no_room() {
        let (_, runs) = Placed::read(&[&[], &[5]], 1);
        assert_eq!(runs, [Run { tokens: vec![0, 5], positions: vec![0, 0], slots: vec![0], first: vec![1, 0] }]);
    }
}
