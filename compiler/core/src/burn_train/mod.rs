//! burn-train's own loop on a mesh of ranks; the crate `tpc` documents its use.
//!
//! The step is recorded once per shape, with placeholder tensors for the batch. The alternative is to record every step
//! and look up its program by content. That takes milliseconds per step, and the recording would include how the batch
//! was made, whose values would become constants of the program. `loss.backward()` cannot be recorded: burn refuses it
//! on a recording device, and a step that unwinds loses its output. A step therefore ends in [`backward`], which tells
//! the capture which tensor is the loss. The cost of a step is that of
//! [`RunningTrainer::step`](crate::trainer::RunningTrainer::step), the loop and its events.
//!
//! | question | file |
//! |---|---|
//! | the strategy: epochs, batches, events | `sharded` |
//! | which types of a model can be sharded | `model` |
//! | how a step reports its loss | `step` |
//! | burn-train's outputs | `outputs` |
//! | private parts of the learner: its scheduler, its optimizer's state | `learner` |
//! | the check that the learner's optimizer is the one that trains | `agree` |

mod agree;
mod learner;
mod model;
mod outputs;
mod sharded;
mod step;

pub use model::{ShardedModel, TensorBatch, TensorOutput};
pub use sharded::Sharded;
pub use step::backward;
