//! Data parallelism, and checkpoints for any mesh.
//!
//! # Modes
//!
//! A data mode shards the batch along an axis, in addition to whatever the styles shard along theirs.
//!
//! | mode | in PyTorch | sharded in addition to the batch | communication per step |
//! |---|---|---|---|
//! | [`ddp`](crate::styles::Plan::ddp) | `DistributedDataParallel` | nothing | gradients are reduced |
//! | [`zero1`](crate::styles::Plan::zero1) | `ZeroRedundancyOptimizer` | optimizer state | gradients are scattered, updated parameters gathered |
//! | [`enable_2d_with_fsdp`](crate::styles::Plan::enable_2d_with_fsdp) | `fully_shard` | parameters, gradients, optimizer state | parameters are gathered before they are used, gradients scattered |
//! | [`hsdp`](crate::styles::Plan::hsdp) | `fully_shard` on a mesh of two dimensions | the same over one axis, replicated over the other | the same, and gradients are reduced over the replicas |
//!
//! Loss and gradients are those of the whole batch, on every rank: a mean is taken over all rows, even where the ranks
//! hold different numbers of rows. Nothing has to be scaled by the number of ranks.
//!
//! ```
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, optim::AdamWConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! # #[derive(Module, Debug)]
//! # struct Mlp { up: Linear, down: Linear }
//! # impl Mlp {
//! #     fn new(device: &Device) -> Self {
//! #         Mlp {
//! #             up: LinearConfig::new(8, 16).with_bias(false).init(device),
//! #             down: LinearConfig::new(16, 8).with_bias(false).init(device),
//! #         }
//! #     }
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! // Bytes of parameters and of optimizer state that rank 0 holds, and the loss of the second step.
//! let held = |plan: Plan| -> Result<(usize, usize, f64), Box<dyn std::error::Error>> {
//!     let x = Tensor::<2>::ones([5, 8], &device);
//!     let mut trainer = Trainer::new(Mlp::new, AdamWConfig::new().build())
//!         .mesh([("dp", 2)])?
//!         .plan(plan)
//!         .lr(1e-2)
//!         .compile(&x, |m, x: Tensor<2>| m.down.forward(m.up.forward(x)).square().mean())?
//!         .launch()?;
//!     trainer.step(&x)?;
//!     let loss = trainer.step(&x)?.loss;
//!     let bytes = |kind: tpc::InputKind, program: &tpc::RankProgram| {
//!         let inputs = program.inputs.iter().filter(|input| input.kind == kind);
//!         inputs.map(|input| input.binding.view.elements() * 4).sum::<usize>()
//!     };
//!     let program = trainer.session().interface();
//!     Ok((bytes(tpc::InputKind::Parameter, program), bytes(tpc::InputKind::State, program), loss))
//! };
//! let (parameters, state, loss) = held(Plan::new().ddp("dp"))?;
//! assert_eq!((parameters, state), (1024, 2048));
//! let zero1 = held(Plan::new().zero1("dp"))?;
//! assert_eq!((zero1.0, zero1.1), (1024, 1024));
//! let fsdp = held(Plan::new().enable_2d_with_fsdp("dp"))?;
//! assert_eq!((fsdp.0, fsdp.1), (512, 1024));
//! // Five rows on two ranks: one has three, the other two.
//! for other in [zero1.2, fsdp.2] {
//!     assert!((loss - other).abs() < 1e-6 * loss);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Two dimensions
//!
//! The two halves of a plan are independent. On a mesh `dp=2,tp=2`, a weight that `tp` shards by columns and that FSDP
//! shards as well is `f32[64@dp, 256@tp]`, or `f32[64, 256@(tp,dp)]` if both shard the same dimension. FSDP takes the
//! dimension whose largest shard becomes smallest. The order of the axes in the mesh determines which ranks are
//! neighbors: the last axis varies fastest, so in `dp=2,tp=4` the ranks 0 to 3 are one tensor-parallel group. Put `tp`
//! last to keep its collectives within a host.
//!
//! # Checkpoints
//!
//! [`checkpoint`](crate::RunningTrainer::checkpoint) writes parameters, optimizer state, step and seed. All ranks write
//! at once. The files hold the ranks' parts of each tensor with their positions in the whole tensor, so a checkpoint
//! can be resumed on any mesh and under any plan: each rank reads the parts that it needs.
//!
//! ```
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, optim::AdamWConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! # #[derive(Module, Debug)]
//! # struct Mlp { up: Linear, down: Linear }
//! # impl Mlp {
//! #     fn new(device: &Device) -> Self {
//! #         Mlp { up: LinearConfig::new(8, 16).init(device), down: LinearConfig::new(16, 8).init(device) }
//! #     }
//! # }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! # let dir = std::env::temp_dir().join(format!("tpc-guide-{}", std::process::id()));
//! let x = Tensor::<2>::ones([4, 8], &device);
//! let started = |mesh: &str, plan: Plan, seed: u64| -> Result<RunningTrainer<Mlp, Tensor<2>, ()>, Box<dyn std::error::Error>> {
//!     let trainer = Trainer::new(Mlp::new, AdamWConfig::new().build()).on(Mesh::parse(mesh)?).plan(plan).lr(1e-2).seed(seed);
//!     let compiled = trainer.compile(&x, |m, x: Tensor<2>| m.down.forward(m.up.forward(x)).square().mean())?;
//!     Ok(compiled.launch()?)
//! };
//! let mut four = started("dp=2,tp=2", Plan::built_in("2d")?, 1)?;
//! for _ in 0..3 {
//!     four.step(&x)?;
//! }
//! four.checkpoint(&dir)?;
//!
//! let mut two = started("tp=2", Plan::built_in("tp")?, 2)?;
//! assert_eq!(two.resume(&dir)?, 3);
//! let (a, b) = (four.step(&x)?, two.step(&x)?);
//! assert_eq!((a.number, b.number), (4, 4));
//! assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{} and {}", a.loss, b.loss);
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok(())
//! # }
//! ```
//!
//! - A directory holds one checkpoint per step, for example `step-000003`. Each is written under a temporary name and
//!   renamed when it is complete, so a run that is killed leaves the earlier ones intact.
//!   [`resume`](crate::RunningTrainer::resume) takes the latest.
//! - Every tensor has a checksum; a damaged file is an error that names the tensor and the checkpoint to remove.
//! - The scheduler of the learning rate continues from the step of the checkpoint.
//! - Each checkpoint also holds `model.safetensors` with whole tensors under their module paths, which burn's store and
//!   other programs can read. [`save`](crate::RunningTrainer::save) writes only that file.
