//! Which types of a model can be sharded.

use crate::capture::{BatchData, Results};
use burn::train::{InferenceStep, LearnerModel, TrainStep};

/// A batch that is a structure of tensors: what `#[derive(tpc::Batch)]` makes of it.
#[diagnostic::on_unimplemented(
    message = "the tensors of `{Self}` are not known",
    note = "write `#[derive(tpc::Batch)]` at the structure"
)]
pub trait TensorBatch: BatchData<Tensors = Self> {}

impl<T: BatchData<Tensors = T>> TensorBatch for T {}

/// An output that is a structure of tensors: those of burn-train, and what `#[derive(tpc::Results)]` makes of others.
#[diagnostic::on_unimplemented(
    message = "the tensors of `{Self}` are not known",
    note = "write `#[derive(tpc::Results)]` at the structure"
)]
pub trait TensorOutput: Results<Values = Self> {}

impl<T: Results<Values = T>> TensorOutput for T {}

/// A model of burn-train whose batches and outputs are structures of tensors.
pub trait ShardedModel:
    LearnerModel
    + TrainStep<Input: TensorBatch, Output: TensorOutput>
    + InferenceStep<Input: TensorBatch, Output: TensorOutput>
{
}

impl<M> ShardedModel for M where
    M: LearnerModel
        + TrainStep<Input: TensorBatch, Output: TensorOutput>
        + InferenceStep<Input: TensorBatch, Output: TensorOutput>
{
}
