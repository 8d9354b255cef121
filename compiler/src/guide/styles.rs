//! Writing a custom style.
//!
//! A style is a type that implements the trait [`ParallelStyle`](crate::styles::ParallelStyle), as the built-in styles
//! do. It inspects a [`Module`](crate::styles::Module) that a plan's path matches and fills in
//! [`Placements`](crate::styles::Placements): which weights are sharded and how, and in which layouts values cross the
//! module's boundary. The backward pass, the optimizer and the collectives follow from these.
//!
//! The style below shards every embedding below a module by its rows, independent of its name, and shards the
//! embedding's result along the sequence.
//!
//! ```
//! # use burn::{module::Module, nn::{Embedding, EmbeddingConfig, Linear, LinearConfig}, optim::SgdConfig};
//! # use burn::tensor::{Device, Int, Tensor};
//! # use tpc::prelude::*;
//! use tpc::error::StyleError;
//! use tpc::styles::{self, Placements, Prepare, Role, Direction};
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
//!     fn demand(&self, module: &styles::Module<'_>, placements: &mut Placements) -> Result<(), StyleError> {
//!         for table in module.all_parameters().filter(|weight| weight.role == Role::Embedding) {
//!             placements.cut(module, table, Direction::Rows);
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
//! // Each rank looks up the rows that it has; the sum is reduce-scattered along the sequence, not all-reduced and sliced.
//! assert!(program.contains("reduce_scatter tp sum dim=1"), "{program}");
//!
//! // A style that places nothing is an error, which quotes `name` and `accepts`.
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
//! A style distinguishes weights by their use in the forward pass, not by the type of their module:
//!
//! | role | use in the forward pass |
//! |---|---|
//! | [`Linear`](crate::styles::Role::Linear) | an operand of a product |
//! | [`Convolution`](crate::styles::Role::Convolution) | an operand of one product for each tap of a window |
//! | [`Embedding`](crate::styles::Role::Embedding) | the table of a lookup |
//! | [`Vector`](crate::styles::Role::Vector) | added to an activation or multiplied with one: biases, gains of norms |
//!
//! [`parameters`](crate::styles::Module::parameters) iterates over the weights of the module itself and
//! [`all_parameters`](crate::styles::Module::all_parameters) over all weights below it.
//! [`levels`](crate::styles::Module::levels) gives the linears in the order in which data reaches them, and
//! [`pairs`](crate::styles::Module::pairs) gives the pairs that the built-in styles shard together.
//!
//! # What a style can demand
//!
//! - [`cut`](crate::styles::Placements::cut) shards a weight by columns, together with its biases, or by rows.
//! - [`argument`](crate::styles::Placements::argument) and [`result`](crate::styles::Placements::result) demand a
//!   layout of a value at a module's boundary.
//! - [`leave`](crate::styles::Placements::leave) says that the module is intentionally left alone.
//!
//! A mistake in a style cannot change what the program computes, because every compilation is proven against the
//! recording. A mistake can only cost communication or be refused.
