//! One of the lists of a program as lines, with the runs among them.

use super::keys::{Key, Number};
use super::runs::{Line, Run, runs};
use rustc_hash::FxHashMap;
use std::hash::Hash;

/// A list of lines.
#[derive(Debug)]
pub(super) struct List<K> {
    keys: Vec<K>,
    pub(super) lines: Vec<Line>,
    pub(super) runs: Vec<Run>,
}

impl<K: Key + Clone + Eq + Hash> List<K> {
    /// The list of lines with these keys and numbers, whose runs are not known yet.
    pub(super) fn of(lines: impl Iterator<Item = (K, Vec<i64>)>) -> Self {
        let (mut known, mut keys) = (FxHashMap::default(), Vec::new());
        let mut number = |key: K| match known.get(&key) {
            Some(&id) => id,
            None => {
                keys.push(key.clone());
                known.insert(key, keys.len() - 1);
                keys.len() - 1
            }
        };
        let lines: Vec<Line> = lines.map(|(key, numbers)| Line { key: number(key), numbers }).collect();
        List { keys, lines, runs: Vec::new() }
    }

    /// Whether another list has the same lines.
    pub(super) fn has_the_lines_of(&self, other: &Self) -> bool {
        // Keys are numbered in the order of their first lines, so equal lists have equal numbers.
        self.keys == other.keys && self.lines == other.lines
    }
}

impl<K: Key> List<K> {
    /// Finds the runs among the lines.
    pub(super) fn find_runs(&mut self) {
        self.runs = runs(&self.lines);
    }

    pub(super) fn key(&self, line: usize) -> &K {
        &self.keys[self.lines[line].key]
    }

    /// By how much the numbers of a line move from one occurrence to the next.
    pub(super) fn steps(&self, run: &Run, line: usize) -> Vec<i64> {
        let (now, next) = (&self.lines[line], &self.lines[line + run.period]);
        now.numbers.iter().zip(&next.numbers).map(|(now, next)| next - now).collect()
    }

    /// Calls `look` with every moving number of every run that has more than two occurrences: the index of the run, what
    /// the number stands for, its step, and its value in the middle occurrence.
    pub(super) fn each_moving<'s>(&'s self, mut look: impl FnMut(usize, Number<'s>, i64, i64)) {
        for (i, run) in self.runs.iter().enumerate().filter(|(_, run)| run.count > 2) {
            for line in run.start..run.start + run.period {
                let middle = &self.lines[line + run.count / 2 * run.period].numbers;
                let numbers = self.key(line).kinds().into_iter().zip(self.steps(run, line)).zip(middle);
                for ((kind, step), &middle) in numbers.filter(|((_, step), _)| *step != 0) {
                    look(i, kind, step, middle);
                }
            }
        }
    }
}
