//! How a step reports its loss.
//!
//! A `TrainStep` returns a value that is made by `loss.backward()`, which burn refuses to record. While a step is
//! recorded, [`backward`] remembers the loss instead, and the capture differentiates it.

use super::model::ShardedModel;
use crate::capture::{Kind, NO_LOSS};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Float, Tensor};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use std::cell::RefCell;

thread_local! {
    /// The loss of the step that is being recorded.
    static LOSS: RefCell<Option<Tensor<1>>> = const { RefCell::new(None) };
}

/// Ends a [`TrainStep::step`]: returns the gradients of the loss with the step's output.
///
/// This is `TrainOutput::new(model, loss.backward(), output)`, except while [`Sharded`](super::Sharded) records the
/// step.
pub fn backward<M: Module, T>(model: &M, loss: Tensor<1>, output: T) -> TrainOutput<T> {
    if Float::id(&loss).is_none() {
        return TrainOutput::new(model, loss.backward(), output);
    }
    LOSS.set(Some(loss));
    TrainOutput { grads: GradientsParams::new(), item: output }
}

/// Runs a step that is being recorded, and returns its loss and output.
pub(super) fn train<M: ShardedModel>(
    model: &M,
    batch: <M as TrainStep>::Input,
) -> (Tensor<1>, <M as TrainStep>::Output) {
    LOSS.take();
    let TrainOutput { item, .. } = TrainStep::step(model, batch);
    // The capture turns the panic into its error.
    let loss = LOSS.take().unwrap_or_else(|| panic!("{NO_LOSS}"));
    (loss, item)
}

/// Runs an inference that is being recorded, and returns its output.
pub(super) fn infer<M: ShardedModel>(model: &M, batch: <M as InferenceStep>::Input) -> <M as InferenceStep>::Output {
    InferenceStep::step(model, batch)
}
