//! A first model: an ordinary burn module on two ranks.
//!
//! # The program
//!
//! The model below does not know about ranks. Training it sharded takes three additions: the batch is a structure that
//! derives [`Batch`](macro@crate::Batch), a [`Trainer`](crate::Trainer) replaces the optimizer's steps, and a
//! [`Plan`](crate::styles::Plan) says which weights are sharded.
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::optim::AdamWConfig;
//! use burn::tensor::{Device, Int, Tensor, activation::gelu};
//! use tpc::prelude::*;
//!
//! #[derive(Module, Debug)]
//! struct Mlp {
//!     up: Linear,
//!     down: Linear,
//! }
//!
//! impl Mlp {
//!     fn new(device: &Device) -> Self {
//!         Mlp { up: LinearConfig::new(8, 16).init(device), down: LinearConfig::new(16, 8).init(device) }
//!     }
//!
//!     fn loss(&self, batch: Pairs) -> Tensor<1> {
//!         let found = self.down.forward(gelu(self.up.forward(batch.x)));
//!         (found - batch.y).square().mean()
//!     }
//! }
//!
//! #[derive(Batch, Clone, Debug)]
//! struct Pairs {
//!     x: Tensor<2>,
//!     y: Tensor<2>,
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let device = Device::flex();
//!     let x = Tensor::<1, Int>::arange(0..32, &device).float().sin().reshape([4, 8]);
//!     let batch = Pairs { x: x.clone(), y: x };
//!
//!     let mut losses = Vec::new();
//!     for ranks in [1, 2] {
//!         let mut trainer = Trainer::new(Mlp::new, AdamWConfig::new().build())
//!             .mesh([("tp", ranks)])?
//!             .plan(Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default()))
//!             .lr(1e-2)
//!             .compile(&batch, |model, batch: Pairs| model.loss(batch))?
//!             .launch()?;
//!         let first = trainer.step(&batch)?.loss;
//!         for _ in 0..20 {
//!             trainer.step(&batch)?;
//!         }
//!         let trained: Mlp = trainer.into_module(&device)?;
//!         losses.push(trained.loss(batch.clone()).into_scalar::<f64>());
//!         assert!(losses[losses.len() - 1] < first / 2.0);
//!     }
//!     // Two ranks train the same model as one rank, from the same initial values to the same loss.
//!     assert!((losses[0] - losses[1]).abs() < 1e-5 * losses[0], "{losses:?}");
//!     Ok(())
//! }
//! ```
//!
//! # What happens
//!
//! 1. [`Trainer::new`](crate::Trainer::new) takes a function that builds the model. It is called on a device that
//!    records operations without computing anything, so the model may be larger than this machine's memory.
//!    [`Trainer::of`](crate::Trainer::of) takes a module that already has values.
//! 2. [`compile`](crate::Trainer::compile) records one training step as a graph: forward pass, loss, backward pass and
//!    the optimizer's update. Only the names, shapes and element types of the example batch matter.
//! 3. The plan places the weights `up` and `down`. The compiler places every other value, inserts the collectives,
//!    moves and merges them, and proves the result against the recording before it returns it.
//! 4. [`launch`](crate::CompiledTrainer::launch) starts a thread for each rank. Each rank draws only its own part of
//!    each parameter. Initial values depend on the seed and not on the mesh.
//! 5. [`step`](crate::RunningTrainer::step) sends the batch and returns the loss.
//!    [`into_module`](crate::RunningTrainer::into_module) returns the trained module with exactly the bits that the
//!    ranks hold.
//!
//! Ranks are threads of one process unless a launcher starts several processes: see [`processes`](super::processes).
//!
//! # Batches
//!
//! A field of a batch is a tensor of any rank and kind, an `Option`, `Vec` or tuple of such fields, or a structure that
//! derives `Batch`. A field that the closure does not read is not sent to the ranks. `#[batch(skip)]` leaves out a
//! field that is not a tensor. A batch with fewer rows than the example, such as the last one of an epoch, is not
//! padded: each new size gets its own program, compiled when the size first occurs.
//!
//! # What sharding adds to a program
//!
//! `examples/src/bin/vit.rs` trains a vision transformer with burn's data loader, optimizer and scheduler, and prints
//! the accuracy after each epoch. The mesh is given on the command line. `examples/src/bin/vit_burn.rs` is the same
//! program in burn alone, on one device. `tests/tests/documents.rs` counts their lines without comments and blank
//! lines:
//!
//! | | lines |
//! |---|---|
//! | the sharded program | 45 |
//! | the program in burn alone | 32 |
//! | difference | 13 |
//! | lines of the sharded program that mention the compiler, its mesh, its plan or its trainer | 21 |
//!
//! Both use the same modules for the model, the data and the loss (`examples/src/{vit,quarters}.rs`); deriving `Batch`
//! there is one more line. The lines that mention the compiler replace the optimizer, the gradients and the autodiff
//! device of the other program.
