//! The operands and results of attention, and which dimension of the scores each of their dimensions is.

use std::collections::BTreeSet;
use tpc_ir::Value;

/// What a dimension of an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// That dimension of the scores.
    Score(usize),
    /// One of its own, which the scores do not have.
    Own(usize),
}

/// A value whose dimensions are known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Strand {
    pub(super) value: Value,
    pub(super) places: Vec<Place>,
}

impl Strand {
    pub(super) fn has(&self, dim: usize) -> bool {
        self.places.contains(&Place::Score(dim))
    }

    /// The dimensions of the scores that it has.
    pub(super) fn scores(&self) -> BTreeSet<usize> {
        let of = |p: &Place| match p {
            Place::Score(d) => Some(*d),
            Place::Own(_) => None,
        };
        self.places.iter().filter_map(of).collect()
    }
}
