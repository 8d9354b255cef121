//! Parallel styles: what a plan says becomes placements of inputs and of values at module boundaries,
//! and nothing else.
//!
//! | question | file |
//! |---|---|
//! | what a style is, and how to write one | [`style`] |
//! | column-wise and row-wise; pairs and attention; norms; module boundaries; whole models | `linear`, `pairwise`, `sequence`, `prepare_module`, `whole_model` |
//! | layouts, and the prepare functions of PyTorch's page | [`layout`], [`prepare`] |
//! | what the data axes do: ddp, fsdp, zero1, hsdp | [`data`] |
//! | what a plan is, and its JSON form | [`plan`], `plan_file` |
//! | which modules a path pattern means | [`pattern`] |
//! | which linears and embeddings a module holds, and in which order data meets them; which linears are pairs | [`modules`], [`pairs`] |
//! | which values enter and leave a module; one that holds others | [`regions`], `subtree` |
//! | which index of a weight is cut, by whole heads | `cut` |
//! | from plan to placements | [`annotate()`] |

mod annotate;
mod cut;
pub mod data;
pub mod layout;
mod linear;
pub mod modules;
pub mod pairs;
mod pairwise;
pub mod pattern;
pub mod plan;
mod plan_file;
pub mod prepare;
mod prepare_module;
pub mod regions;
mod sequence;
pub mod style;
mod subtree;
mod whole_model;

pub use annotate::{Because, Same, StyleError, annotate, boundary_regions, parallelize_module};
pub use data::DataMode;
pub use layout::Layout;
pub use linear::{ColwiseParallel, RowwiseParallel};
pub use pairwise::{PairwiseParallel, PairwiseSequenceParallel, TensorParallelMultiheadAttention};
pub use plan::{MeshDim, Plan, PlanError};
pub use prepare_module::{PrepareModuleInput, PrepareModuleInputOutput, PrepareModuleOutput};
pub use sequence::SequenceParallel;
pub use style::{ParallelStyle, Way};
pub use whole_model::WholeModel;
