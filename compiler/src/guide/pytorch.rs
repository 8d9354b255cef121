//! From PyTorch: the same program in PyTorch and in tpc.
//!
//! # Tensor parallelism and FSDP
//!
//! PyTorch, one process per GPU under `torchrun`:
//!
//! ```python
//! mesh = init_device_mesh("cuda", (2, 2), mesh_dim_names=("dp", "tp"))
//! with torch.device("meta"):
//!     model = Transformer(config)
//! for layer in model.layers:
//!     parallelize_module(layer, mesh["tp"], {
//!         "attention.wq": ColwiseParallel(),
//!         "attention.wk": ColwiseParallel(),
//!         "attention.wv": ColwiseParallel(),
//!         "attention.wo": RowwiseParallel(),
//!         "feed_forward.w1": ColwiseParallel(),
//!         "feed_forward.w3": ColwiseParallel(),
//!         "feed_forward.w2": RowwiseParallel(),
//!     })
//!     layer.attention.n_heads //= mesh["tp"].size()
//!     fully_shard(layer, mesh=mesh["dp"])
//! fully_shard(model, mesh=mesh["dp"])
//! model.to_empty(device="cuda")
//! model.init_weights()
//! optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
//!
//! for x, y in loader:                                   # this rank's rows
//!     optimizer.zero_grad()
//!     loss = model.loss(x, y)
//!     loss.backward()
//!     clip_grad_norm_(model.parameters(), 1.0)
//!     optimizer.step()
//! dist_checkpoint.save({"model": model.state_dict()}, checkpoint_id="run")
//! ```
//!
//! In tpc, as threads of one process or as processes:
//!
//! ```
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::optim::AdamWConfig;
//! use burn::tensor::activation::{silu, softmax};
//! use burn::tensor::{Device, Tensor};
//! use tpc::prelude::*;
//!
//! #[derive(Module, Debug)]
//! struct Attention { wq: Linear, wk: Linear, wv: Linear, wo: Linear }
//! #[derive(Module, Debug)]
//! struct FeedForward { w1: Linear, w2: Linear, w3: Linear }
//! #[derive(Module, Debug)]
//! struct Layer { attention: Attention, feed_forward: FeedForward }
//! #[derive(Module, Debug)]
//! struct Transformer { layers: Vec<Layer> }
//! # impl Transformer {
//! #     fn new(d: &Device) -> Self {
//! #         let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(d);
//! #         let layer = |_| Layer {
//! #             attention: Attention { wq: linear(8, 8), wk: linear(8, 8), wv: linear(8, 8), wo: linear(8, 8) },
//! #             feed_forward: FeedForward { w1: linear(8, 12), w2: linear(12, 8), w3: linear(8, 12) },
//! #         };
//! #         Transformer { layers: (0..2).map(layer).collect() }
//! #     }
//! #     fn loss(&self, Pairs { x, y }: Pairs) -> Tensor<1> {
//! #         let [b, s, d] = x.dims();
//! #         let heads = |t: Tensor<3>| t.reshape([b, s, 4, d / 4]).swap_dims(1, 2);
//! #         let mut x = x;
//! #         for Layer { attention: a, feed_forward: f } in &self.layers {
//! #             let [q, k, v] = [&a.wq, &a.wk, &a.wv].map(|w| heads(w.forward(x.clone())));
//! #             let found = softmax(q.matmul(k.transpose()), 3).matmul(v).swap_dims(1, 2).reshape([b, s, d]);
//! #             x = x + a.wo.forward(found);
//! #             x = x.clone() + f.w2.forward(silu(f.w1.forward(x.clone())) * f.w3.forward(x));
//! #         }
//! #         (x - y).square().mean()
//! #     }
//! # }
//! #
//! # #[derive(Batch, Clone, Debug)]
//! # struct Pairs { x: Tensor<3>, y: Tensor<3> }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     # let device = Device::flex();
//!     # let batch = Pairs { x: Tensor::ones([4, 3, 8], &device), y: Tensor::zeros([4, 3, 8], &device) };
//!     # let (loader, run) = ([batch.clone(), batch.clone()], std::env::temp_dir().join(format!("tpc-guide-{}", std::process::id())));
//!     let plan = Plan::new()
//!         .with("layers.*.attention.{wq,wk,wv}", ColwiseParallel::default())
//!         .with("layers.*.attention.wo", RowwiseParallel::default())
//!         .with("layers.*.feed_forward.{w1,w3}", ColwiseParallel::default())
//!         .with("layers.*.feed_forward.w2", RowwiseParallel::default())
//!         .enable_2d_with_fsdp("dp");
//!     let mut trainer = Trainer::new(Transformer::new, AdamWConfig::new().build())
//!         .mesh([("dp", 2), ("tp", 2)])?
//!         .plan(plan)
//!         .lr(3e-4)
//!         .clip_norm(1.0)
//!         .compile(&batch, |model, batch: Pairs| model.loss(batch))?
//!         .launch()?;
//!
//!     for batch in &loader {
//!         trainer.step(batch)?; // the whole batch
//!     }
//!     trainer.checkpoint(&run)?;
//!
//!     // Each layer has one all-reduce for the attention and one for the feed-forward part, forward and backward. The
//!     // attention of the first layer has none backward, because the gradient of the model's input is not computed.
//!     # trainer.session().reset_counters();
//!     # trainer.step(&batch)?;
//!     let reductions = trainer.session().collectives(0).into_iter().filter(|c| c.name == "all_reduce" && &*c.axes == "tp" && c.full_bytes > 4);
//!     assert_eq!(reductions.map(|c| c.count).sum::<u64>(), 4 + 3);
//!     # std::fs::remove_dir_all(&run)?;
//!     Ok(())
//! }
//! ```
//!
//! # Line by line
//!
//! | PyTorch | tpc |
//! |---|---|
//! | `init_device_mesh("cuda", (2, 2), mesh_dim_names=("dp", "tp"))` | `.mesh([("dp", 2), ("tp", 2)])`: the same order, the last axis varies fastest |
//! | `mesh["tp"]` | the axis named `tp`; [`along`](crate::styles::Plan::along) selects another one |
//! | `with torch.device("meta")`, `to_empty`, `init_weights` | [`Trainer::new`](crate::Trainer::new): the model is built on a device that only records, and each rank draws its own part of each parameter |
//! | a loaded model | [`Trainer::of`](crate::Trainer::of); for a model directory [`Trainer::pretrained`](crate::Trainer::pretrained) or `tpc train` |
//! | `parallelize_module(layer, mesh, {…})` for each layer | one plan with patterns: `layers.*.attention.wo` |
//! | `layer.attention.n_heads //= tp` | nothing: the model keeps its global shapes, and whole heads are distributed, evenly or not |
//! | `ColwiseParallel(output_layouts=Replicate())` | `ColwiseParallel { output_layouts: Some(Layout::Replicate), ..Default::default() }` |
//! | `use_local_output` | nothing: the model has no local tensors |
//! | `SequenceParallel()`, `PrepareModuleInput(…)`, `loss_parallel()` | the styles of the same names; the plan's [`loss_parallel`](crate::styles::Plan::loss_parallel) |
//! | `fully_shard(layer)`, `fully_shard(model)` | `.enable_2d_with_fsdp("dp")`, with or without styles |
//! | `DistributedDataParallel(model)` | `.ddp("dp")` |
//! | `ZeroRedundancyOptimizer` | `.zero1("dp")` |
//! | `DistributedSampler` | nothing: `step` takes the global batch, and each rank gets its rows |
//! | `loss.backward()`, `optimizer.step()`, `zero_grad()` | [`step`](crate::RunningTrainer::step): they are one compiled program |
//! | `clip_grad_norm_(parameters, 1.0)` | `.clip_norm(1.0)` |
//! | `scheduler.step()` | `.lr(scheduler)`; the trainer asks the scheduler before each step |
//! | `autocast(dtype=torch.bfloat16)`, `MixedPrecisionPolicy` | [`precision`](crate::Trainer::precision) |
//! | gradient accumulation, with the loss divided by the number of parts | [`micro_batches`](crate::Trainer::micro_batches), with nothing to divide |
//! | `p.requires_grad_(False)` | [`freeze`](crate::Trainer::freeze) |
//! | `dist.all_reduce(loss)` to print it | nothing: the loss is that of the whole batch, on every rank |
//! | `model.eval()`, `torch.no_grad()` | [`evaluation`](crate::RunningTrainer::evaluation) |
//! | `dist_checkpoint.save`, `load` | [`checkpoint`](crate::RunningTrainer::checkpoint), [`resume`](crate::RunningTrainer::resume) |
//! | `torchrun --nproc_per_node 4 train.py` | the program alone, or any launcher: [`processes`](super::processes) |
//!
//! # Differences in the implementation
//!
//! - PyTorch's DTensor decides for each operation, while the model runs, how to redistribute the operands. In tpc the
//!   whole step is one graph that is placed before it runs. The three partial gradients that reach the input of `wq`,
//!   `wk` and `wv` are added before they are reduced, once; the model contains no code for that.
//! - A parameter is never a local tensor in the model. `Linear` with 64 inputs has 64 inputs on every mesh.
//! - burn's linear stores its weight as `[in, out]`. Styles refer to inputs and outputs, so only printed programs show
//!   the difference.
//! - PyTorch assumes some layouts by default, such as a replicated input of `ColwiseParallel`. tpc demands only the
//!   layouts that the plan gives.
//! - The graph is recorded once. Control flow that depends on values of tensors cannot be recorded; the error says
//!   where it occurs.
