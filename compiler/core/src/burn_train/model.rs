//! Traits of the types of a model that can be sharded.

use crate::capture::{BatchData, Results};
use burn::train::{InferenceStep, LearnerModel, TrainStep};

/// A batch that is a structure of tensors, as derived by `#[derive(tpc::Batch)]`.
#[diagnostic::on_unimplemented(
    message = "the tensors of `{Self}` are unknown",
    note = "add `#[derive(tpc::Batch)]` to the structure"
)]
pub trait TensorBatch: BatchData<Tensors = Self> {}

impl<T: BatchData<Tensors = T>> TensorBatch for T {}

/// An output that is a structure of tensors: burn-train's outputs, and others with `#[derive(tpc::Results)]`.
#[diagnostic::on_unimplemented(
    message = "the tensors of `{Self}` are unknown",
    note = "add `#[derive(tpc::Results)]` to the structure"
)]
pub trait TensorOutput: Results<Values = Self> {}

impl<T: Results<Values = T>> TensorOutput for T {}

/// A burn-train model whose batches and outputs are structures of tensors.
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
