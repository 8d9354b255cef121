//! The errors of a trainer.

use std::path::PathBuf;

/// A batch, a module or an evaluation does not match what a trainer was compiled for.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// No learning rate was set.
    #[error(
        "the trainer has no learning rate: call `lr` with a number or with one of burn's schedulers before `compile`"
    )]
    NoLearningRate,
    /// A scheduler whose groups diverge too late.
    #[error(
        "the scheduler gives `{first}` and `{second}` different learning rates in step {step}, after it gave them the same ones in the first {ahead}: these steps determine the groups of parameters; make their rates differ slightly from the beginning"
    )]
    RatesComeApart {
        /// A parameter.
        first: String,
        /// Another one.
        second: String,
        /// The step in which they differ.
        step: usize,
        /// The number of steps that determine the groups.
        ahead: usize,
    },
    /// A learning-rate group without parameters.
    #[error(
        "group {number} of the learning rates matches no trained parameter: a group matches parameters by their paths, such as {}",
        some(.trained)
    )]
    EmptyRateGroup {
        /// The number of the call of `lr_group`, counted from 1.
        number: usize,
        /// The trained parameters.
        trained: Vec<String>,
    },
    /// A batch without a field that the example has.
    #[error(
        "the batch has no field `{field}`, but the example that {program} was compiled for has one: an optional field must be present in all batches or in none"
    )]
    MissingField {
        /// The field.
        field: String,
        /// The compiled program.
        program: &'static str,
    },
    /// A batch with a field that the example does not have.
    #[error(
        "the batch has a field `{field}`, but the example that {program} was compiled for has none: an optional field must be present in all batches or in none"
    )]
    ExtraField {
        /// The field.
        field: String,
        /// The compiled program.
        program: &'static str,
    },
    /// A batch with another shape or element type.
    #[error(
        "field `{field}` of the batch is {found}, but {program} was compiled for {compiled}: a batch may have fewer rows in the first dimension, but must otherwise have the example's shape"
    )]
    Shape {
        /// The field.
        field: String,
        /// The compiled program.
        program: &'static str,
        /// Its type in the example.
        compiled: String,
        /// Its type in the batch.
        found: String,
    },
    /// A batch that is larger than the example.
    #[error(
        "the batch has {found} rows in field `{field}`, but {program} was compiled for at most {compiled}: compile it with an example of the largest batch"
    )]
    Rows {
        /// The field.
        field: String,
        /// The compiled program.
        program: &'static str,
        /// Number of rows of the example.
        compiled: usize,
        /// Number of rows of the batch.
        found: usize,
    },
    /// A tensor of a batch whose elements cannot be read.
    #[error("field `{field}` of the batch cannot be read: {reason}")]
    Unreadable {
        /// The field.
        field: String,
        /// The backend's error.
        reason: String,
    },
    /// An evaluation of another trainer.
    #[error("the evaluation was compiled by another trainer: use the trainer whose `evaluation` made it")]
    ForeignEvaluation,
    /// A module that differs from the trained one.
    #[error("the module differs from the trained one: {0}")]
    Architecture(String),
    /// A parameter that a program needs with another placement.
    #[error(
        "`{parameter}` would have to be sharded differently than in the training step: add a plan entry for its module, or compute both in the same way"
    )]
    Placement {
        /// The parameter.
        parameter: String,
    },
    /// The optimizer computes other numbers when it is recorded a second time.
    #[error(
        "the optimizer's numbers for a step have changed since the trainer was compiled; this is a defect of tpc, please report it"
    )]
    OtherScalars,
    /// A record of an optimizer other than the one that trains.
    #[error("the record belongs to another optimizer or model: {0}")]
    OptimizerRecord(String),
    /// Accumulation of gradients over several batches.
    #[error(
        "gradients cannot be accumulated over {batches} batches: a step is one program, which includes the update. `micro_batches` splits one batch instead, so that a batch with {batches} times the rows needs no more memory for activations; its gradient is that of the larger batch, not the sum of {batches} gradients"
    )]
    Accumulation {
        /// Number of batches.
        batches: usize,
    },
    /// A learning rate in the options of a burn-train strategy.
    #[error("burn-train's learner provides the learning rate: do not call `lr` in the options of the strategy")]
    LearnersRates,
    /// A learner's model that burn's own strategies could not train either.
    #[error(
        "the learner's model is on a device without autodiff: build it on `device.autodiff()`, which burn-train requires"
    )]
    NotAutodiff,
    /// A learner whose optimizer differs from the strategy's.
    #[error(
        "the learner's optimizer updates `{parameter}` differently than the strategy's optimizer: use the same optimizer with the same settings for both, and set clipping in the strategy with `clip_each`. Optimizers by group and a custom `TrainStep::optimize` cannot be sharded"
    )]
    OtherOptimizer {
        /// The first parameter whose update differs.
        parameter: String,
    },
    /// There is no training data.
    #[error("there is nothing to validate, because the training data has no batch to compile a step for")]
    NoBatch,
    /// A file that cannot be written.
    #[error("{}: {source}", .file.display())]
    Save {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The first, the middle and the last of several paths.
fn some(paths: &[String]) -> String {
    let mut at = vec![0, paths.len() / 2, paths.len().saturating_sub(1)];
    at.dedup();
    let shown: Vec<String> = at.into_iter().filter_map(|at| Some(format!("`{}`", paths.get(at)?))).collect();
    shown.join(", ")
}
