//! Why no plan can be chosen.

/// Why no built-in plan can be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChoiceError {
    /// No built-in plan has a mesh of so many ranks.
    #[error("no built-in plan has a mesh of so many ranks")]
    NoMesh,
    /// Every plan needs more memory than a rank has.
    #[error(
        "none of {plans} plans fits into the {memory} bytes of a rank: {flags} needs the least, {least} bytes; use a smaller batch, micro-batches, or more ranks"
    )]
    TooLarge {
        /// Number of plans.
        plans: usize,
        /// Bytes of memory of a rank.
        memory: u64,
        /// The options of the plan that needs the least.
        flags: String,
        /// The bytes that it needs.
        least: usize,
    },
    /// No plan can be compiled.
    #[error("none of {plans} plans can be compiled; with {flags}: {problem}")]
    Impossible {
        /// Number of plans.
        plans: usize,
        /// The options of the first plan.
        flags: String,
        /// Why it cannot be compiled.
        problem: String,
    },
}
