//! Reading the result of a plan: the printed program, and the explanation of a step.
//!
//! Every stage of the compiler can be printed. In Rust, [`stages`](crate::CompiledTrainer::stages) of a compiled
//! trainer holds the graphs, and [`tpc::text::print`](crate::text::print) prints one. On the command line, `tpc dump-ir
//! DIR --train --stage placed` prints a stage.
//!
//! | stage | what it is |
//! |---|---|
//! | `captured` | what burn recorded, nearly one to one |
//! | `logical` | the same in canonical form, without placements |
//! | `annotated` | the logical program with the placements that the plan demands of inputs and module boundaries |
//! | `placed` | every value has a placement and every collective is present: read this one first |
//! | `rank` | the same from the view of one rank: local shapes |
//! | `scheduled` | the actions of one rank: kernels, starts and waits of collectives, places in memory |
//!
//! # A line
//!
//! ```
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, optim::SgdConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! # #[derive(Module, Debug)]
//! # struct Mlp { up: Linear, down: Linear }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! let build = |device: &Device| Mlp {
//!     up: LinearConfig::new(8, 16).with_bias(false).init(device),
//!     down: LinearConfig::new(16, 8).with_bias(false).init(device),
//! };
//! let compiled = Trainer::new(build, SgdConfig::new().build())
//!     .mesh([("tp", 2)])?
//!     .plan(Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default()))
//!     .lr(0.1)
//!     .compile(&Tensor::<2>::ones([4, 8], &device), |m, x: Tensor<2>| m.down.forward(m.up.forward(x)).square().mean())?;
//! let program = tpc::text::print(&compiled.stages().placed);
//! for line in [
//!     r#"mesh <tp=2>"#,
//!     r#"%0 = input parameter "up.weight"             : f32[8, 16@tp]  ; why: plan "up""#,
//!     r#"%1 = input parameter "down.weight"           : f32[16@tp, 8]  ; why: plan "down""#,
//!     r#"%4 = einsum "ab,bc->ac" %2, %0               : f32[4, 16@tp]  ; forward"#,
//!     r#"%5 = einsum "ab,bc->ac" %4, %1               : f32[4, 8] +sum@tp  ; forward"#,
//!     r#"%6 = all_reduce tp sum %5                    : f32[4, 8]  ; forward in down why: down.weight is cut along the summed index (plan "down")"#,
//! ] {
//!     assert!(program.lines().any(|found| found == line), "{line}\n{program}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A line is `%number = operation attributes operands : types  ; phase in module why: reason`.
//!
//! - `"ab,bc->ac"` gives each dimension a letter, as in `einsum`. A letter that is missing from the result is summed.
//!   An elementwise operation shows letters only if its operands are broadcast or transposed.
//! - `f32:0.5` among the operands is a constant.
//! - `%3.1` is the second result of `%3`.
//! - Sizes are global: `f32[4, 16@tp]` is a value of 4 × 16 elements, and each rank along `tp` holds a part of it.
//!
//! # Placements
//!
//! | notation | meaning |
//! |---|---|
//! | `f32[4, 8]` | every rank holds the whole value |
//! | `f32[4, 16@tp]` | the second dimension is sharded along `tp`: with two ranks each holds `[4, 8]` |
//! | `f32[16@(tp,dp)]` | one dimension is sharded along both axes: first along `tp`, then each part along `dp` |
//! | `f32[4, 8] +sum@tp` | *partial*: each rank holds a term of the shape `[4, 8]`, and the value is their sum, which has yet to be reduced |
//! | `tp:2`, `tp:/2` | the major and the minor part of an axis that the compiler split, for example because there are fewer key-value heads than ranks |
//!
//! If the axis does not divide a size, the parts are rounded up: of 10 rows on 4 ranks, the ranks hold 3, 3, 3 and 1.
//!
//! `+sum@tp` is a debt: nothing has been communicated yet. The compiler decides where to pay it. It may add several
//! partial values and reduce once, scatter the sum, or scale the terms first. Most of its search is about these
//! choices.
//!
//! # Dimensions that the model does not have
//!
//! ```text
//! %2 = input parameter "model.layers.0.self_attn.q_proj.weight" : f32[64, 2@tp, 2, 2, 8] layout [64, 64]  ; why: plan tp
//! ```
//!
//! The model stores this query weight as a 64 × 64 matrix, which is the `layout`. The program knows what its columns
//! mean and has a dimension for each meaning: 2 key-value heads, 2 query heads for each key-value head, 2 halves of a
//! rotary embedding, 8 numbers. `2@tp` therefore gives each rank whole heads, and no plan can split a head. Files and
//! checkpoints keep the model's layout.
//!
//! ```
//! # use burn::{module::Module, nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig}, optim::SgdConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! let build = |device: &Device| MultiHeadAttentionConfig::new(8, 4).with_dropout(0.0).init(device);
//! let compiled = Trainer::new(build, SgdConfig::new().build())
//!     .mesh([("tp", 2)])?
//!     .plan(PairwiseParallel)
//!     .lr(0.1)
//!     .compile(&Tensor::<3>::ones([2, 3, 8], &device), |m: &MultiHeadAttention, x: Tensor<3>| {
//!         m.forward(MhaInput::self_attn(x)).context.square().mean()
//!     })?;
//! let program = tpc::text::print(&compiled.stages().placed);
//! // Four heads of two numbers each, two heads on each rank.
//! assert!(program.contains(r#"input parameter "query.weight"          : f32[8, 4@tp, 2] layout [8, 8]"#), "{program}");
//! assert!(program.contains(r#"input parameter "output.weight"         : f32[4@tp, 2, 8] layout [8, 8]"#), "{program}");
//! # Ok(())
//! # }
//! ```
//!
//! # Why a line exists
//!
//! Operations of the model have no reason. Operations that the compiler inserted have one; semicolons separate several
//! parts of a reason.
//!
//! | reason | meaning |
//! |---|---|
//! | `plan "up"`, `plan tp` | the plan entry with that path, or the built-in plan, demands this placement |
//! | ``fsdp: sharded over `dp` ``, ``the batch is sharded over `dp` `` | the data mode demands this placement |
//! | `W is cut along the summed index (plan "down")` | each rank sums over its part of W, so the result is partial and is reduced here |
//! | `W is cut (…)` | an operation needs the whole of W, or a part of it other than the one that the rank holds |
//! | `einsum wants its operands together` | the operands of the operation were placed differently |
//! | `lies like W` | a gradient is redistributed to the placement of its parameter |
//! | `gathered again` | FSDP gathers a parameter a second time, for the backward pass |
//! | `rule 7` | the search moved or merged the collective by that rule of the e-graph (`passes/src/egraph/rules/RULES.md`) |
//! | ``` `tp`: …; `dp`: … ``` | a tensor that two entries shard has a reason for each axis |
//!
//! # Names
//!
//! A module path is a sequence of names and of indices of lists: `model.layers.0.mlp`. A name that could be misread is
//! escaped with backslashes: `a\.b` is one name with a dot in it, `\0` is a name and `0` an index. A printed path can
//! be used in a plan unchanged. Names have no meaning to the compiler: a tensor of the batch may have the same name as
//! a parameter.
//!
//! Operations that belong to a micro-batch name it after the phase: `; forward micro 0 in model.layers.0`.
//!
//! # Blocks
//!
//! `tpc dump-ir` prints a block that occurs many times only once; `--full` prints every line. The following are the
//! first and the last parameter of a layer, from a llama of 80 layers:
//!
//! ```text
//! block @model.layers ×80 inputs {
//!   %{1..712} = input parameter "model.layers.{0..79}.input_layernorm.weight" : f32[64]
//!   …
//!   %{9..720} = input parameter "model.layers.{0..79}.mlp.down_proj.weight" : f32[96@tp, 64]  ; why: plan tp
//! }
//! ```
//!
//! The title says what repeats, how often, and which part of the step it belongs to: `inputs`, `forward`, `backward` or
//! `optimizer`. A number that changes from one occurrence to the next shows its first and its last value, so
//! `%{1..712}` is `%1` in layer 0 and `%712` in layer 79. In the backward pass the indices run in reverse,
//! `model.layers.{78..1}`. A layer that differs, often the first or the last one, is printed separately. The folded
//! text is the whole program: `tpc dump-ir FILE.tpc` parses it.
//!
//! # Checking a program
//!
//! The compiler checks every program that it places: each rank must compute what the types say, and the plan must hold.
//! `tpc dump-ir … --store program.json` writes a placed program together with what its plan demands of it: where inputs
//! and results lie, and the layouts inside that the search has kept. `tpc verify program.json` checks such a file, also
//! one that another program has changed. It does not use the code that places values, but what each operation means. It
//! says how much it has checked; otherwise it lists the first faults, each with its line, module and types and with what
//! the operands imply, and the exit code is 1. `tpc verify FILE.tpc` checks the text form, which says nothing of the plan.
//! That the program computes the model is another proof, which needs the model.
//!
//! # The explanation of a step
//!
//! [`explain`](crate::CompiledTrainer::explain) gives a summary in a dozen lines: each kind of collective with its
//! bytes, its part of the step and its reason, and what each rank holds. The command prints the same data with
//! `--json`.
//!
//! ```
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, optim::SgdConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! # #[derive(Module, Debug)]
//! # struct Mlp { up: Linear, down: Linear }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! # let build = |device: &Device| Mlp {
//! #     up: LinearConfig::new(8, 16).with_bias(false).init(device),
//! #     down: LinearConfig::new(16, 8).with_bias(false).init(device),
//! # };
//! # let compiled = Trainer::new(build, SgdConfig::new().build())
//! #     .mesh([("tp", 2)])?
//! #     .plan(Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default()))
//! #     .lr(0.1)
//! #     .compile(&Tensor::<2>::ones([4, 8], &device), |m, x: Tensor<2>| m.down.forward(m.up.forward(x)).square().mean())?;
//! let explained = compiled.explain();
//! let expected = "a training step on 2 ranks, mesh <tp=2>
//!   1 × all_reduce tp of 128 bytes, forward: down.weight is cut along the summed index (plan \"down\")
//!   sent by rank 0: 128 bytes
//!   memory of rank 0: parameters 512 bytes, optimizer state 0 bytes";
//! assert!(explained.starts_with(expected), "{explained}");
//! # Ok(())
//! # }
//! ```
//!
//! The bytes sent are those of the ring algorithm; a session counts the same bytes during execution
//! ([`training_loop`](super::training_loop)).
