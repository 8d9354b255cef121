//! Plans and layouts: how to say what is sharded.
//!
//! A plan has two halves, either of which may be missing: *styles* by module path, which shard along one axis of the
//! mesh, and a *data mode* for the axis that shards the batch. The model is never changed.
//!
//! ```
//! # use tpc::prelude::*;
//! let plan = Plan::new()
//!     .with("layers.*.attention", PairwiseParallel)
//!     .with("layers.*.mlp.{gate,up}", ColwiseParallel::default())
//!     .with("layers.*.mlp.down", RowwiseParallel::default())
//!     .with("head", ColwiseParallel::default())
//!     .enable_2d_with_fsdp("dp");
//! assert_eq!(plan.styles.len(), 4);
//! assert_eq!(plan.data, Some((DataMode::Fsdp, "dp".to_string())));
//! ```
//!
//! # Paths
//!
//! A path consists of the field names of the burn module, with indices for the elements of a `Vec`: `layers.0.mlp.up`.
//! For a model directory it consists of the names in the weight files. The empty path is the model itself. Each segment
//! may be a pattern:
//!
//! | pattern | matches |
//! |---|---|
//! | `*` | any run of characters within a segment |
//! | `?` | one character |
//! | `[0-3x]`, `[!0-3x]` | one of these characters, one character other than these |
//! | `{up,mlp.gate}` | one of these patterns |
//!
//! An entry that matches no module is an error that lists the nearest paths. A parameter that two entries claim is also
//! an error. A misspelled plan therefore cannot silently train unsharded.
//!
//! # Styles
//!
//! Layouts use PyTorch's vocabulary. burn stores the weight of a linear as `[in, out]`, so PyTorch's `Shard(0)` of a
//! weight is its second dimension here; a plan never has to mention this.
//!
//! | style | what it shards | input, output |
//! |---|---|---|
//! | [`ColwiseParallel`](crate::styles::ColwiseParallel) | output features of a linear, and its bias; the hidden dimension of an embedding; output channels of a convolution | the input stays as it is; the output stays sharded on its last dimension |
//! | [`RowwiseParallel`](crate::styles::RowwiseParallel) | input features of a linear; the rows of an embedding; input channels of a convolution | the output is a sum over ranks, which is reduced once; the bias is added once |
//! | [`PairwiseParallel`](crate::styles::PairwiseParallel) | the linears below a module in pairs along the flow of data: column-wise, then row-wise. Query, key and value by whole heads, with the output by rows | |
//! | [`PairwiseSequenceParallel`](crate::styles::PairwiseSequenceParallel) | the same | sharded along the sequence on both sides of a pair |
//! | [`SequenceParallel`](crate::styles::SequenceParallel) | nothing; it is for norms and dropout | the output is sharded along the sequence |
//! | [`TensorParallelMultiheadAttention`](crate::styles::TensorParallelMultiheadAttention) | an attention, by whole heads | |
//! | [`PrepareModuleInput`](crate::styles::PrepareModuleInput), [`PrepareModuleOutput`](crate::styles::PrepareModuleOutput), [`PrepareModuleInputOutput`](crate::styles::PrepareModuleInputOutput) | nothing | layouts of arguments and results, by position |
//!
//! Styles shard along the axis named `tp`, or along the only axis that the data mode does not use;
//! [`along`](crate::styles::Plan::along) names another axis.
//!
//! # Layouts
//!
//! A [`Layout`](crate::styles::Layout) is `Replicate` or `Shard(dim)`. The dimension is that of the model's tensor;
//! negative dimensions count from the end. A layout in a plan constrains the value at the module's boundary. Without
//! one, the compiler chooses the cheapest layout. The layouts of `ColwiseParallel` and `RowwiseParallel` therefore
//! default to `None`, not to `Replicate` and `Shard(-1)` as in PyTorch.
//!
//! ```
//! # use burn::{module::Module, nn::{Linear, LinearConfig}, optim::SgdConfig, tensor::{Device, Tensor}};
//! # use tpc::prelude::*;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! let x = Tensor::<2>::ones([4, 8], &device);
//! let placed = |output_layouts: Option<Layout>| -> Result<String, Error> {
//!     let compiled = Trainer::new(|device: &Device| LinearConfig::new(8, 6).init(device), SgdConfig::new().build())
//!         .on(Mesh::parse("tp=2").unwrap())
//!         .plan(ColwiseParallel { output_layouts, ..Default::default() })
//!         .lr(0.1)
//!         .compile(&x, |model: &Linear, x: Tensor<2>| (model.forward(x.clone()).square().mean(), model.forward(x)))?;
//!     Ok(tpc::text::print(&compiled.stages().placed))
//! };
//! // Without a layout, the output stays where it is computed, in columns.
//! let columns = placed(None)?;
//! assert!(columns.contains("f32[4, 6@tp]") && !columns.contains("all_gather"), "{columns}");
//! // With `Replicate`, the columns are gathered.
//! let whole = placed(Some(Layout::Replicate))?;
//! assert!(whole.contains("all_gather tp dim=1"), "{whole}");
//! # Ok(())
//! # }
//! ```
//!
//! The compiler infers where a module begins and ends from the uses of its parameters. If a module has no parameters,
//! or its boundary cannot be inferred, the model marks it with [`tpc::scope`](crate::scope()); the error says so and
//! shows the call.
//!
//! # Built-in plans
//!
//! [`Plan::built_in`](crate::styles::Plan::built_in) and `--plan` accept these names: `none`; `tp` and `tp-sp` (with
//! sequence parallelism) on the axis `tp`; `ddp`, `fsdp` and `zero1` on `dp`; `hsdp` on `rep` and `dp`; and the
//! combinations `tp-ddp`, `tp-fsdp` (also called `2d`), `tp-zero1`, `tp-hsdp`, `tp-sp-ddp`, `tp-sp-fsdp`, `tp-sp-zero1`
//! and `tp-sp-hsdp`. A mesh axis that the plan does not use is an error, except with `none`.
//!
//! ```
//! # use tpc::prelude::*;
//! assert_eq!(tpc::styles::BUILT_IN.len(), 16);
//! for name in tpc::styles::BUILT_IN {
//!     assert!(Plan::built_in(name).is_ok());
//! }
//! ```
//!
//! # Plan files
//!
//! A plan is also a JSON file: `--plan FILE`, or [`Plan::from_json`](crate::styles::Plan::from_json).
//!
//! ```
//! # use tpc::prelude::*;
//! let plan = Plan::from_json(
//!     r#"{
//!         "axis": "tp",
//!         "styles": {
//!             "layers.*": {
//!                 "attention": "PairwiseParallel",
//!                 "mlp.{gate,up}": { "ColwiseParallel": { "input_layouts": "Replicate" } },
//!                 "mlp.down": "RowwiseParallel",
//!                 "norm": { "SequenceParallel": { "sequence_dim": 1 } }
//!             },
//!             "head": { "ColwiseParallel": { "prepare_output": "make_output_tensor" } }
//!         },
//!         "loss_parallel": false,
//!         "data": { "mode": "hsdp", "replicate_axis": "rep", "axis": "dp" }
//!     }"#,
//! )?;
//! let paths: Vec<&str> = plan.styles.iter().map(|entry| entry.path.as_str()).collect();
//! assert_eq!(
//!     paths,
//!     ["layers.*.attention", "layers.*.mlp.{gate,up}", "layers.*.mlp.down", "layers.*.norm", "head"]
//! );
//!
//! let misspelled = Plan::from_json(r#"{ "styles": { "head": { "ColwiseParallel": { "layouts": "Replicate" } } } }"#);
//! assert_eq!(
//!     misspelled.unwrap_err().to_string(),
//!     "the plan has an unknown key `layouts` in `head`: known are input_layouts, output_layouts, prepare_input, prepare_output"
//! );
//! # Ok::<(), tpc::error::PlanError>(())
//! ```
//!
//! - A style is its name, or an object with its name as the only key and its options as the value. An object whose keys
//!   are not style names is a map of further paths below its path.
//! - A layout is `"Replicate"` or `"Shard(DIM)"`. The styles that prepare a module take a list with one layout per
//!   tensor, with `null` for a tensor that keeps its layout.
//! - `"prepare_input"` and `"prepare_output"` name a function from PyTorch's documentation of 2023
//!   (`make_input_replicate_1d`, `make_output_reshard_tensor`, …); a dimension follows a colon, as in
//!   `"make_output_shard_1d:1"`.
//! - `"data"` is a mode alone (`"fsdp"`), whose axes are then `dp` and, for `"hsdp"`, `rep`; or it is an object with
//!   `mode`, `axis` and `replicate_axis`.
//! - Unknown keys, repeated keys and two entries for one path are errors.
//!
//! The JSON Schema of plan files is `passes/src/styles/plan.schema.json`, and [`SCHEMA`](crate::styles::SCHEMA) holds
//! its text. An editor that has the schema completes and checks a plan as you type.
