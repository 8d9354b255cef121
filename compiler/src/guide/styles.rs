//! Writing a style of one's own.
//!
//! A style is a type with the trait [`ParallelStyle`](crate::styles::ParallelStyle), which the built-in styles implement in the same way.
//! It looks at a [`Module`](crate::styles::Module), one that a plan's path matches, and makes
//! [`Placements`](crate::styles::Placements): which weights are cut and how, and in which layouts values cross the
//! module's boundary. It says nothing of the backward pass, the optimizer or collectives; those follow.
//!
//! The style below cuts every embedding below a module by its rows, whatever it is called, and hands its result on sharded along
//! the sequence.
//!
//! ```
//! # use burn::{module::Module, nn::{Embedding, EmbeddingConfig, Linear, LinearConfig}, optim::SgdConfig};
//! # use burn::tensor::{Device, Int, Tensor};
//! # use tpc::prelude::*;
//! use tpc::error::StyleError;
//! use tpc::styles::{self, Placements, Prepare, Role, Way};
//!
//! #[derive(Debug)]
//! struct RowsOfTables;
//!
//! impl ParallelStyle for RowsOfTables {
//!     fn name(&self) -> &str {
//!         "RowsOfTables"
//!     }
//!
//!     fn accepts(&self) -> &str {
//!         "embeddings"
//!     }
//!
//!     fn place(&self, module: &styles::Module<'_>, placements: &mut Placements) -> Result<(), StyleError> {
//!         for table in module.all_parameters().filter(|weight| weight.role == Role::Embedding) {
//!             placements.cut(module, table, Way::Rows);
//!             placements.result(&table.name.holder(), 0, Prepare::to(Layout::Shard(1)));
//!         }
//!         Ok(())
//!     }
//! }
//!
//! #[derive(Module, Debug)]
//! struct Model {
//!     table: Embedding,
//!     head: Linear,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let device = Device::flex();
//! let tokens = Tensor::<2, Int>::from_ints([[0, 5, 2, 9], [1, 1, 7, 3]], &device);
//! let compiled = |plan: Plan| {
//!     let build = |device: &Device| Model {
//!         table: EmbeddingConfig::new(10, 6).init(device),
//!         head: LinearConfig::new(6, 3).init(device),
//!     };
//!     let trainer = Trainer::new(build, SgdConfig::new().build()).on(Mesh::parse("tp=2").unwrap()).plan(plan).lr(0.1);
//!     trainer.compile(&tokens, |m, tokens: Tensor<2, Int>| m.head.forward(m.table.forward(tokens)).square().mean())
//! };
//! let program = tpc::text::print(&compiled(Plan::new().with("", RowsOfTables))?.stages().placed);
//! assert!(program.contains(r#"input parameter "table.weight"          : f32[10@tp, 6]"#), "{program}");
//! // Each rank looks up the rows that it has; the sum is scattered along the sequence, not reduced and sliced.
//! assert!(program.contains("reduce_scatter tp sum dim=1"), "{program}");
//!
//! // A style that places nothing is an error, with the words of `name` and `accepts`.
//! let refused = compiled(Plan::new().with("head", RowsOfTables)).map(drop).unwrap_err();
//! assert_eq!(
//!     refused.to_string(),
//!     "plan entry `head` (RowsOfTables) finds nothing to parallelize in `head`, which is a Linear: it works on embeddings"
//! );
//! # Ok(())
//! # }
//! ```
//!
//! # What a style sees
//!
//! Weights are known by what the forward pass does with them, and not by the type of their module:
//!
//! | role | use in the forward pass |
//! |---|---|
//! | [`Linear`](crate::styles::Role::Linear) | an operand of a product |
//! | [`Convolution`](crate::styles::Role::Convolution) | an operand of one product for each tap of a window |
//! | [`Embedding`](crate::styles::Role::Embedding) | the table of a look-up |
//! | [`Vector`](crate::styles::Role::Vector) | added to an activation or multiplied with one: biases, gains of norms |
//!
//! [`parameters`](crate::styles::Module::parameters) gives those of the module itself,
//! [`all_parameters`](crate::styles::Module::all_parameters) those of everything below it, and
//! [`levels`](crate::styles::Module::levels) the linears in the order in which data meets them, and
//! [`pairs`](crate::styles::Module::pairs) those that the built-in styles cut together.
//!
//! # What a style can say
//!
//! - [`cut`](crate::styles::Placements::cut) cuts a weight by columns, with the biases that belong to it, or by rows.
//! - [`argument`](crate::styles::Placements::argument) and [`result`](crate::styles::Placements::result) bring a
//!   value at a module's boundary into a layout.
//! - [`leave`](crate::styles::Placements::leave) says that the module is left alone on purpose.
//!
//! A mistake in a style cannot change what the program computes, which is proven against the recording on every compile. It can
//! cost communication, or be refused.
