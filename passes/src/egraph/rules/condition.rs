//! What the factor table has to say of an operation before a rule moves a redistribution through it.

use crate::factors::{FactorKind, FactorRow as Row};

/// A condition on the row of an operation in the factor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The operation is linear in several operands jointly.
    JointlyLinear,
    /// The operation is linear in one operand alone.
    Linear,
    /// The operation is an increasing function of one operand.
    Increasing,
    /// The operation keeps the index along which the redistribution moves.
    Keeps,
    /// The operation reduces the index along which the redistribution moves.
    Reduces,
}

impl Condition {
    /// Whether the condition holds of an operation, whatever the index.
    pub fn admits_operation(self, row: &Row) -> bool {
        match self {
            Condition::JointlyLinear => row.linear.iter().any(|set| set.len() > 1),
            Condition::Linear => row.linear.iter().any(|set| set.len() == 1),
            Condition::Increasing => row.increasing && row.operands.len() == 1,
            Condition::Keeps | Condition::Reduces => true,
        }
    }

    /// Whether the condition holds of an index of this kind, whatever the operation.
    pub fn admits_index(self, kind: FactorKind) -> bool {
        match self {
            Condition::Keeps => kind == FactorKind::Pass,
            Condition::Reduces => matches!(kind, FactorKind::Reduce(_)),
            Condition::JointlyLinear | Condition::Linear | Condition::Increasing => true,
        }
    }
}
