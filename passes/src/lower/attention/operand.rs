//! The operands and results of attention, with the dimensions of the scores that their dimensions are.

use std::collections::BTreeSet;
use tpc_ir::Value;

/// The meaning of a dimension of an operand or a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dim {
    /// A dimension of the scores.
    Score(usize),
    /// A dimension that the scores do not have, by its number among these.
    Own(usize),
}

/// An operand or a result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Operand {
    pub(super) value: Value,
    pub(super) dims: Vec<Dim>,
}

impl Operand {
    pub(super) fn has(&self, dim: usize) -> bool {
        self.dims.contains(&Dim::Score(dim))
    }

    /// The dimensions that are dimensions of the scores.
    pub(super) fn scores(&self) -> BTreeSet<usize> {
        let of = |p: &Dim| match p {
            Dim::Score(d) => Some(*d),
            Dim::Own(_) => None,
        };
        self.dims.iter().filter_map(of).collect()
    }
}
