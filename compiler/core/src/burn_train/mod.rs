//! burn-train's own loop on a mesh of ranks; the front door says how it is used.
//!
//! The step is recorded once for each shape, with tensors that stand for those of the batch. The alternative is to record every step and to
//! look its program up by content. That takes milliseconds a step, and the recording then includes how the batch was made, whose values
//! become constants of the program. `loss.backward()` cannot be recorded: burn refuses it on a recording device, and a step that unwinds
//! loses its output. A step therefore ends in [`backward`], which says which tensor is the loss. A step costs what
//! [`RunningTrainer::step`](crate::trainer::RunningTrainer::step) costs, and the loop and its events.
//!
//! | question | file |
//! |---|---|
//! | the strategy: epochs, batches, events | `sharded` |
//! | which types of a model can be sharded | `model` |
//! | how a step says its loss | `step` |
//! | outputs of burn-train | `outputs` |
//! | what the learner keeps to itself: its scheduler, its optimizer's state | `learner` |
//! | whether the learner's optimizer is the one that trains | `agree` |

mod agree;
mod learner;
mod model;
mod outputs;
mod sharded;
mod step;

pub use model::{ShardedModel, TensorBatch, TensorOutput};
pub use sharded::Sharded;
pub use step::backward;
