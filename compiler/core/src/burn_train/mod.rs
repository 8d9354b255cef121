//! burn-train's own loop on a mesh of ranks; the front door says how it is used.
//!
//! `loss.backward()` cannot be recorded: burn refuses it on a recording device, and an unwound step has lost its output. Recording each
//! batch anew, to look programs up by content, takes milliseconds a step, and would record the making of the batch, too, whose values are then
//! constants of the program. So the step is recorded once for each shape, with tensors that stand for those of the batch, and [`backward`]
//! says which one the loss is. A step costs what [`RunningTrainer::step`](crate::trainer::RunningTrainer::step) costs, and some 50 µs for the
//! loop and its events (release build, 2 cores of an EPYC).
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
