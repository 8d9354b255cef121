//! burn-train's own loop on a mesh of ranks. Metrics, the dashboard, early stopping, interruption and checkpoints are
//! still burn-train's.
//!
//! A project that trains with `SupervisedTraining` gives it the strategy [`Sharded`]. Its batches derive `Batch`, and
//! outputs of custom types derive `Results`. Its `TrainStep` ends in [`backward`] instead of `TrainOutput::new(self,
//! loss.backward(), output)`; under every other strategy both do the same. This module needs the feature `train`, which
//! enables none of burn-train's own features; the terminal dashboard is burn's feature `tui`.
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
//! # What is supported
//! - **The learner's scheduler**, with its groups. It is asked once before each step, as in burn's own strategy, and its record is in the
//!   checkpoints.
//! - **The learner's optimizer.** burn keeps the optimizer and its clipping private, so the strategy takes the same optimizer once more, and
//!   clipping with [`Trainer::clip_each`](crate::Trainer::clip_each). Before the first step, both optimizers update all parameters with
//!   made-up gradients, and a difference is an error. Optimizers by group and a model's own `TrainStep::optimize` are such differences.
//! - **Checkpoints.** Model, optimizer and scheduler are burn's records and hold every bit that the ranks hold. A run continues from them
//!   on any mesh and in burn's own strategy. A record tells the number of steps only through what the optimizer counts. SGD and Lion count
//!   nothing: a run that continues from their record draws its dropout as after the first step.
//! - **Interruption, early stopping and events**, in the order of burn's own strategy.
//! - **Validation**, as a program over the same arenas ([`RunningTrainer::evaluation`](crate::RunningTrainer::evaluation)).
//!
//! # What is not
//! - **Accumulation of gradients** over several batches is an error. [`Trainer::micro_batches`](crate::Trainer::micro_batches) bounds the
//!   memory of activations instead: it cuts one batch and gives the gradient of that batch. Accumulation gives the sum of the gradients of
//!   several batches and one update after the last of them.
//! - **`gradient_checkpointing`** has no effect, because burn passes it to its own strategies only.
//! - A batch may be smaller than the first one, but not larger.
//! - With [`Trainer::processes`](crate::Trainer::processes), each process writes metrics and checkpoints, so each needs its own directory,
//!   and an `Interrupter` has to stop all processes after the same batch.
//!
//! An error of the compiler or of a rank ends the training. `LearningResult::error` has its text, [`Sharded::failure`] the error itself.

#[doc(inline)]
pub use tpc_compiler::burn_train::{Sharded, ShardedModel, TensorBatch, TensorOutput, backward};
