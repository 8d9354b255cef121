//! How every operation behaves under sharding: the factor table.
//!
//! A row says of which *factors* the dimensions of operands and results are made. From it follow
//! everything the compiler knows about placing an operation: which shardings need no communication,
//! which results are partial, local shapes, legality, the rewrites of the e-graph, and the grid of
//! the brute-force validator (`passes/tests/rules.rs`). The notation is Shardy's sharding rule.
//!
//! A dimension may be sharded by several axes, major to minor, each of which cuts the chunks of the one
//! before it. Tensors that share a factor must agree on the whole list: the same axes in the same order
//! (PyTorch issue 166598 shows what happens otherwise). No row needs equal shards; uneven and empty ones are right.

mod alignment;
mod place;
mod table;

pub use alignment::aligned;
pub use place::{Misplaced, place, place_redistribution};
pub use table::rule;

use tpc_ir::ReduceOp;

/// What may happen to a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactorKind {
    /// Appears in operands and result: shard it alike everywhere and nothing is communicated.
    Pass,
    /// Only in operands: sharded, the result is partial.
    Reduce(ReduceOp),
    /// Must not be sharded.
    Whole,
}

/// An index of an operation: its kind and extent in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    /// What may happen to it.
    pub kind: FactorKind,
    /// Extent in elements.
    pub size: usize,
}

/// Index of a factor in its rule.
pub type FactorId = usize;

/// The row of the table that belongs to one operation with its operand shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The factors.
    pub factors: Vec<Factor>,
    /// For every operand the factor of each dimension.
    pub operands: Vec<Vec<FactorId>>,
    /// For every result the factor of each dimension.
    pub results: Vec<Vec<FactorId>>,
    /// Sets of operands in which the operation is jointly linear: partial sums may pass through
    /// exactly those while all other operands are invariant.
    pub linear: Vec<Vec<usize>>,
    /// Whether a partial maximum or minimum may pass through (one operand, increasing function).
    pub increasing: bool,
}

impl Rule {
    /// Dimension of an operand that is the factor.
    pub fn operand_dim(&self, operand: usize, factor: FactorId) -> Option<usize> {
        self.operands[operand].iter().position(|&f| f == factor)
    }

    /// Dimension of a result that is the factor.
    pub fn result_dim(&self, result: usize, factor: FactorId) -> Option<usize> {
        self.results[result].iter().position(|&f| f == factor)
    }

    /// The linear set that holds `operand`, if any.
    pub fn linear_set(&self, operand: usize) -> Option<&[usize]> {
        self.linear.iter().find(|s| s.contains(&operand)).map(Vec::as_slice)
    }
}
