//! burn-train's own loop on a mesh of ranks: metrics, the dashboard, early stopping, interruption and checkpoints stay what they are.
//!
//! A project that trains with [`SupervisedTraining`](burn::train::SupervisedTraining) gives it the strategy [`Sharded`]. Its batches and
//! outputs derive what puts their tensors into a program, and its [`TrainStep`](burn::train::TrainStep) ends in [`backward`] instead of
//! `TrainOutput::new(self, loss.backward(), output)`, which does the same under every other strategy. The feature `train` of this crate is
//! needed; of burn-train it turns on nothing, so that the terminal dashboard is burn's own feature `tui`.
//!
//! ```no_run
//! use burn::data::dataloader::DataLoader;
//! use burn::nn::{Linear, LinearConfig, loss::CrossEntropyLossConfig};
//! use burn::tensor::{Device, Int, Tensor, activation::gelu};
//! use burn::train::metric::{AccuracyMetric, LossMetric};
//! use burn::train::{ClassificationOutput, InferenceStep, Learner, SupervisedTraining, TrainOutput, TrainStep};
//! use burn::{module::Module, optim::AdamWConfig};
//! use std::sync::Arc;
//! use tpc::burn_train::{Sharded, backward};
//! use tpc::prelude::*;
//!
//! #[derive(Module, Debug)]
//! struct Mlp {
//!     up: Linear,
//!     down: Linear,
//! }
//!
//! #[derive(Batch, Clone, Debug)]
//! struct Points {
//!     positions: Tensor<2>,
//!     classes: Tensor<1, Int>,
//! }
//!
//! impl Mlp {
//!     fn classify(&self, points: Points) -> ClassificationOutput {
//!         let output = self.down.forward(gelu(self.up.forward(points.positions)));
//!         let loss = CrossEntropyLossConfig::new().init(&output.device());
//!         let loss = loss.forward(output.clone(), points.classes.clone());
//!         ClassificationOutput { loss, output, targets: points.classes }
//!     }
//! }
//!
//! impl TrainStep for Mlp {
//!     type Input = Points;
//!     type Output = ClassificationOutput;
//!     fn step(&self, points: Points) -> TrainOutput<ClassificationOutput> {
//!         let output = self.classify(points);
//!         backward(self, output.loss.clone(), output)
//!     }
//! }
//!
//! impl InferenceStep for Mlp {
//!     type Input = Points;
//!     type Output = ClassificationOutput;
//!     fn step(&self, points: Points) -> ClassificationOutput {
//!         self.classify(points)
//!     }
//! }
//!
//! fn train(loader: Arc<dyn DataLoader<Points>>, held_out: Arc<dyn DataLoader<Points>>) -> Result<(), MeshError> {
//!     let device = Device::flex().autodiff();
//!     let model = Mlp { up: LinearConfig::new(2, 64).init(&device), down: LinearConfig::new(64, 3).init(&device) };
//!     let optimizer = AdamWConfig::new();
//!     let mesh = Mesh::new([("tp", 2)])?;
//!     let plan = Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default());
//!     let sharded = Sharded::new(optimizer.build(), move |trainer| trainer.on(mesh.clone()).plan(plan.clone()));
//!     let training = SupervisedTraining::new("artifacts", loader, held_out)
//!         .metrics((AccuracyMetric::new(), LossMetric::new()))
//!         .with_default_checkpointers()
//!         .with_training_strategy(sharded.into()) // the one line
//!         .num_epochs(10);
//!     let result = training.launch(Learner::new(model, optimizer.init(), 1e-3));
//!     println!("{}", result.model);
//!     Ok(())
//! }
//! ```
//!
//! # What is respected
//! - **The learner's scheduler**, with its groups: it is asked once before each step, as burn's own strategy does, and its record is in the
//!   checkpoints.
//! - **The learner's optimizer.** burn shows neither it nor its clipping, so the strategy is given the same optimizer once more, and clipping
//!   with [`Trainer::clip_each`](crate::Trainer::clip_each). Before the first step both update all parameters with made-up gradients; where
//!   they differ is an error. Optimizers by group, and a [`TrainStep::optimize`](burn::train::TrainStep::optimize) of the model's own, are
//!   such a difference.
//! - **Checkpoints.** Model, optimizer and scheduler are burn's records, with every bit that the ranks hold. Each mesh and burn's own strategy
//!   go on from them. A record does not say how many steps were done, but by what the optimizer counts; one that counts nothing (SGD, Lion)
//!   draws the dropout of a resumed run as after its first step.
//! - **Interruption, early stopping, events**: as in burn's own strategy, in the same order.
//! - **Validation** is a program over the same arenas ([`RunningTrainer::evaluation`](crate::prelude::RunningTrainer::evaluation)).
//!
//! # What is not
//! - **Accumulation of gradients** over several batches is refused. [`Trainer::micro_batches`](crate::Trainer::micro_batches) bounds the
//!   memory of activations instead: it cuts one batch, and gives the gradient of that batch, where accumulation gives the sum of the gradients
//!   of several batches, and an update only after the last.
//! - **`gradient_checkpointing`** is not told to strategies other than burn's, and has no effect.
//! - A batch may be smaller than the first one, and is otherwise like it.
//! - With [`Trainer::processes`](crate::Trainer::processes) each process writes metrics and checkpoints: give each a directory of its own. An
//!   [`Interrupter`](burn::train::Interrupter) has to stop all of them after the same batch.
//!
//! An error of the compiler or of a rank ends the training; [`LearningResult::error`](burn::train::LearningResult) has its text and
//! [`Sharded::failure`] the error.
//!
//! # Why it is made so
//! `loss.backward()` cannot be recorded: burn refuses it on a recording device, and an unwound step has lost its output. Recording each
//! batch anew, to look programs up by content, takes milliseconds a step, and would record the making of the batch, too, whose values are then
//! constants of the program. So the step is recorded once for each shape, with tensors that stand for those of the batch, and [`backward`]
//! says which one the loss is. A step costs what [`RunningTrainer::step`](crate::prelude::RunningTrainer::step) costs, and some 50 µs for the
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
