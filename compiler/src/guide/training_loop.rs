//! A custom training loop: results of a step, evaluation, options, counters and traces.
//!
//! The loop belongs to the program: it calls [`step`](crate::RunningTrainer::step) with each batch, and everything
//! between two steps is ordinary Rust.
//!
//! # Results of a step, and evaluation
//!
//! The closure of [`compile`](crate::Trainer::compile) returns the loss, or a pair of the loss and further results.
//! Each [`Step`](crate::Step) has the further results as tensors on the device of the batch. An *evaluation* is another
//! closure over the same parameters. It is compiled for the same mesh, runs on the same threads over the same memory,
//! and changes nothing. The model is in evaluation mode, without dropout.
//!
//! ```
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, optim::AdamWConfig, tensor::{Device, Int, Tensor}};
//! # use burn::nn::loss::CrossEntropyLossConfig;
//! # use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
//! # use tpc::prelude::*;
//! # #[derive(Module, Debug)]
//! # struct Classifier { hidden: Linear, head: Linear }
//! # impl Classifier {
//! #     fn new(device: &Device) -> Self {
//! #         Classifier { hidden: LinearConfig::new(6, 8).init(device), head: LinearConfig::new(8, 2).init(device) }
//! #     }
//! #     fn scores(&self, x: Tensor<2>) -> Tensor<2> {
//! #         self.head.forward(self.hidden.forward(x).tanh())
//! #     }
//! #     fn loss(&self, batch: Rows) -> (Tensor<1>, Tensor<2>) {
//! #         let scores = self.scores(batch.x);
//! #         (CrossEntropyLossConfig::new().init(&scores.device()).forward(scores.clone(), batch.labels), scores)
//! #     }
//! #     fn right(&self, batch: Rows) -> Tensor<1, Int> {
//! #         self.scores(batch.x).argmax(1).squeeze_dim::<1>(1).equal(batch.labels).int().sum()
//! #     }
//! # }
//! # #[derive(Batch, Clone, Debug)]
//! # struct Rows { x: Tensor<2>, labels: Tensor<1, Int> }
//! # impl Rows {
//! #     fn new(rows: usize, device: &Device) -> Self {
//! #         let x = Tensor::<1, Int>::arange(0..(rows * 6) as i64, device).float().sin().reshape([rows, 6]);
//! #         let labels = x.clone().slice([0..rows, 0..1]).greater_elem(0.0).int().squeeze_dim(1);
//! #         Rows { x, labels }
//! #     }
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! let batch = Rows::new(8, &device);
//! let mut trainer = Trainer::new(Classifier::new, AdamWConfig::new().build())
//!     .mesh([("tp", 2)])?
//!     .plan(PairwiseParallel)
//!     .lr(LinearLrSchedulerConfig::new(1e-1, 1e-2, 20).init()?)
//!     .clip_norm(1.0)
//!     .compile(&batch, |model, batch: Rows| model.loss(batch))?
//!     .launch()?;
//! let mut count = trainer.evaluation(|model, batch: Rows| model.right(batch), &batch)?;
//!
//! for _ in 0..20 {
//!     let step = trainer.step(&batch)?;
//!     assert_eq!(step.outputs.dims(), [8, 2]);
//! }
//! // The last batch of an epoch is smaller.
//! assert_eq!(trainer.step(&Rows::new(3, &device))?.outputs.dims(), [3, 2]);
//! assert_eq!(trainer.evaluate(&mut count, &batch)?.into_scalar::<i64>(), 8);
//! # Ok(())
//! # }
//! ```
//!
//! # Options
//!
//! All options are set before `compile` and apply to every step.
//!
//! | method | what it does |
//! |---|---|
//! | [`lr`](crate::Trainer::lr) | a number, or a scheduler of burn with its groups of parameters |
//! | [`lr_group`](crate::Trainer::lr_group) | a learning rate for a group of parameters; a group without parameters is an error |
//! | [`clip_norm`](crate::Trainer::clip_norm), [`clip_each`](crate::Trainer::clip_each) | clips the global norm of all gradients; clips each gradient separately |
//! | [`micro_batches`](crate::Trainer::micro_batches) | computes a batch in parts, one after the other; loss and gradients are those of the whole batch |
//! | [`freeze`](crate::Trainer::freeze) | does not train the parameters that a pattern matches; `!pattern` trains some of them after all |
//! | [`precision`](crate::Trainer::precision) | computes in bf16 from parameters in f32 |
//! | [`seed`](crate::Trainer::seed) | the seed of initial values and dropout; the numbers are the same on every mesh |
//! | [`deadline`](crate::Trainer::deadline) | how long a collective may take before it is an error |
//!
//! # Predicted and executed
//!
//! Before the first step, the compiler reports what the ranks will exchange and hold. The [session](crate::Session)
//! counts what they actually do, and the two are equal.
//!
//! ```
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, optim::SgdConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! # #[derive(Module, Debug)]
//! # struct Mlp { up: Linear, down: Linear }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! # let build = |device: &Device| Mlp { up: LinearConfig::new(8, 16).init(device), down: LinearConfig::new(16, 8).init(device) };
//! let x = Tensor::<2>::ones([4, 8], &device);
//! let compiled = Trainer::new(build, SgdConfig::new().build())
//!     .mesh([("tp", 2)])?
//!     .plan(PairwiseParallel)
//!     .lr(0.1)
//!     .trace(1000)
//!     .compile(&x, |m, x: Tensor<2>| m.down.forward(m.up.forward(x)).square().mean())?;
//! let program = &compiled.ranks()[0];
//! let predicted: f64 = program.collectives().map(|collective| collective.wire_bytes()).sum();
//! let arena = program.arena_bytes;
//!
//! let mut trainer = compiled.launch()?;
//! trainer.step(&x)?; // the first step has a separate program, which creates the optimizer's state
//! trainer.session().reset_counters();
//! for _ in 0..5 {
//!     trainer.step(&x)?;
//! }
//! let session = trainer.session();
//! assert_eq!(session.wire_bytes(0), 5.0 * predicted);
//! assert_eq!(session.allocated_bytes(0), arena);
//! let reduced: Vec<u64> = session.collectives(0).iter().map(|c: &CollectiveCount| c.count).collect();
//! assert_eq!(reduced, [5]);
//!
//! // The latest actions of every rank, for Perfetto or chrome://tracing.
//! let trace = session.trace_json();
//! assert!(trace.starts_with("{\"traceEvents\":[") && trace.contains("\"name\":\"start all_reduce\""));
//! # Ok(())
//! # }
//! ```
//!
//! [`trace`](crate::Trainer::trace) keeps the latest actions of each rank with their times; without it no times are
//! recorded. GPUs have no traces.
//!
//! # Model directories
//!
//! The language model of a Hugging Face directory is a burn module like any other, and a trainer can start from it.
//! Each rank reads its own part of each tensor when the trainer is launched, and writes its part when the model is
//! saved; no process holds the whole model.
//!
//! ```no_run
//! # use burn::{optim::AdamWConfig, tensor::{Device, Int, Tensor}};
//! # use std::rc::Rc;
//! # use tpc::models::ModelDir;
//! # use tpc::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let batches: Vec<Tensor<2, Int>> = Vec::new();
//! let dir = Rc::new(ModelDir::open("llama")?);
//! let mut trainer = Trainer::pretrained(dir.clone(), AdamWConfig::new().build())
//!     .mesh([("dp", 2), ("tp", 2)])?
//!     .plan(Plan::built_in("2d")?)
//!     .lr(1e-5)
//!     .compile(&batches[0], |model, ids: Tensor<2, Int>| model.loss(model.forward(ids.clone().into()), ids))?
//!     .launch()?;
//! for batch in &batches {
//!     trainer.step(batch)?;
//! }
//! trainer.save_pretrained(&dir, "tuned")?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/src/bin/finetune.rs` is the complete program. Under burn-train's loop, the feature `train` replaces burn's
//! own strategy by one that runs the ranks (`compiler/src/burn_train.rs`).
