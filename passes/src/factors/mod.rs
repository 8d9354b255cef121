//! How every operation behaves under sharding: the factor table.
//!
//! A row assigns *factors* to the dimensions of operands and results. Everything that the compiler knows about placing
//! an operation follows from it: which shardings need no communication, which results are partial, local shapes,
//! legality, the rewrites of the e-graph, and the cases of the brute-force validator (`passes/tests/rules.rs`). The
//! notation is Shardy's sharding rule.
//!
//! A dimension may be sharded by several axes, major to minor, each of which cuts the chunks of the axis before it.
//! Tensors that share a factor must agree on the whole list: the same axes in the same order (PyTorch issue 166598
//! shows what happens otherwise). No row requires equal shards; uneven and empty shards are supported.

mod alignment;
mod place;
mod table;

pub use alignment::aligned;
pub use place::{Misplaced, place_redistribution, result_sharding};
pub use table::row_of;

use tpc_ir::ReduceOp;

/// How a factor may be sharded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FactorKind {
    /// In operands and results. If it is sharded alike everywhere, nothing is communicated.
    Pass,
    /// In operands only. If it is sharded, the result is partial.
    Reduce(ReduceOp),
    /// Must not be sharded.
    Whole,
}

/// An index of an operation: its kind and extent in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor {
    /// How it may be sharded.
    pub kind: FactorKind,
    /// The extent in elements.
    pub size: usize,
}

/// The index of a factor in its row.
pub type FactorId = usize;

/// The row of the table for one operation with given shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FactorRow {
    /// The factors.
    pub factors: Vec<Factor>,
    /// For every operand, the factor of each dimension.
    pub operands: Vec<Vec<FactorId>>,
    /// For every result, the factor of each dimension.
    pub results: Vec<Vec<FactorId>>,
    /// The sets of operands in which the operation is jointly linear. Partial sums pass through exactly one such set,
    /// while all other operands are invariant.
    pub linear: Vec<Vec<usize>>,
    /// Whether a partial maximum or minimum may pass through (one operand, increasing function).
    pub increasing: bool,
}

impl FactorRow {
    /// The dimension of an operand with a factor.
    pub fn operand_dim(&self, operand: usize, factor: FactorId) -> Option<usize> {
        self.operands[operand].iter().position(|&f| f == factor)
    }

    /// The dimension of a result with a factor.
    pub fn result_dim(&self, result: usize, factor: FactorId) -> Option<usize> {
        self.results[result].iter().position(|&f| f == factor)
    }

    /// The row of an operation that has only one of the results, as [`result_sharding`] wants it.
    pub fn of_result(&self, result: usize) -> FactorRow {
        FactorRow { results: vec![self.results[result].clone()], ..self.clone() }
    }

    /// The linear set that contains `operand`, if there is one.
    pub fn linear_set(&self, operand: usize) -> Option<&[usize]> {
        self.linear.iter().find(|s| s.contains(&operand)).map(Vec::as_slice)
    }
}
