//! What a trainer is told that does not fit it.

use std::path::PathBuf;

/// A batch, a module or an evaluation that is not what a trainer was compiled for.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// Nothing says how far a step goes.
    #[error(
        "the trainer has no learning rate: call `lr` with a number or with one of burn's schedulers before `compile`"
    )]
    NoLearningRate,
    /// A scheduler whose groups differ too late.
    #[error(
        "the scheduler gives `{first}` and `{second}` different learning rates in step {step}, after it gave them the same ones in the first {ahead}: groups of parameters are told apart by these; let their rates differ a little from the beginning"
    )]
    RatesComeApart {
        /// A parameter.
        first: String,
        /// Another one.
        second: String,
        /// The step.
        step: usize,
        /// The steps that are looked at.
        ahead: usize,
    },
    /// A group of learning rates that no parameter is in.
    #[error(
        "group {number} of the learning rates names no parameter that is trained: a group matches parameters by their paths, such as {}",
        some(.trained)
    )]
    EmptyRateGroup {
        /// Which call of `lr_group` it is, counted from 1.
        number: usize,
        /// The parameters that are trained.
        trained: Vec<String>,
    },
    /// A batch without a field that the program was compiled with.
    #[error(
        "the batch has no field `{field}`, but the example that {program} was compiled for has one: an optional field is there in every batch or in none"
    )]
    MissingField {
        /// The field.
        field: String,
        /// What it was compiled for.
        program: &'static str,
    },
    /// A batch with a field that the program was compiled without.
    #[error(
        "the batch has a field `{field}`, but the example that {program} was compiled for has none: an optional field is there in every batch or in none"
    )]
    ExtraField {
        /// The field.
        field: String,
        /// What it was compiled for.
        program: &'static str,
    },
    /// A batch of another shape or element type.
    #[error(
        "field `{field}` of the batch is {found}, but {program} was compiled for {compiled}: a batch may have fewer rows, in the first dimension, and is otherwise like the example"
    )]
    Shape {
        /// The field.
        field: String,
        /// What was compiled for it.
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
        /// What was compiled for it.
        program: &'static str,
        /// Rows of the example.
        compiled: usize,
        /// Rows of the batch.
        found: usize,
    },
    /// A tensor of a batch whose elements cannot be had.
    #[error("field `{field}` of the batch cannot be read: {reason}")]
    Unreadable {
        /// The field.
        field: String,
        /// What its backend says.
        reason: String,
    },
    /// An evaluation of another trainer.
    #[error("the evaluation was compiled by another trainer: use the trainer whose `evaluation` made it")]
    ForeignEvaluation,
    /// A module that is not the one that was trained.
    #[error("the module is another one than was trained: {0}")]
    Architecture(String),
    /// A parameter that one program cannot use where another one has it.
    #[error(
        "`{parameter}` would have to be cut in another way than in the training step: give its module a plan entry of its own, or compute the two in the same way"
    )]
    Placement {
        /// The parameter.
        parameter: String,
    },
    /// The optimizer is another one when it is recorded again.
    #[error(
        "the optimizer's numbers of a step are others than when the trainer was compiled; this is a defect of tpc, please report it"
    )]
    OtherScalars,
    /// A record of an optimizer that is not the one that trains.
    #[error("the record is of another optimizer or model: {0}")]
    OptimizerRecord(String),
    /// An accumulation of gradients over several batches.
    #[error(
        "gradients cannot be accumulated over {batches} batches: a step is one program, which updates. `micro_batches` cuts one batch instead, so that a batch of {batches} times the rows takes no more memory for activations; its gradient is that of the larger batch, not the sum of {batches} gradients"
    )]
    Accumulation {
        /// The batches.
        batches: usize,
    },
    /// A strategy of burn-train that is told a learning rate.
    #[error("the learning rate is that of burn-train's learner: do not call `lr` in the options of the strategy")]
    LearnersRates,
    /// A learner's model that burn's own strategies could not train either.
    #[error(
        "the learner's model is on a device without autodiff: build it on `device.autodiff()`, as burn-train needs it"
    )]
    NotAutodiff,
    /// A learner whose optimizer is not the one of the strategy.
    #[error(
        "the learner's optimizer updates `{parameter}` in another way than the optimizer that the strategy was given: give both the same one with the same settings, and clipping to the strategy with `clip_each`. Optimizers by group, and a `TrainStep::optimize` of the model's own, cannot be sharded"
    )]
    OtherOptimizer {
        /// The first parameter that differs.
        parameter: String,
    },
    /// Nothing to train on.
    #[error("there is nothing to validate, because the training data gives no batch to compile a step for")]
    NoBatch,
    /// A file that cannot be written.
    #[error("{}: {source}", .file.display())]
    Save {
        /// The file.
        file: PathBuf,
        /// Why.
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
