//! Parallel styles. A plan becomes placements of inputs and of values at module boundaries, and nothing else.
//!
//! | question | file |
//! |---|---|
//! | what a style is, and how to write one | [`style`], `direction` |
//! | column-wise and row-wise; pairs and attention; norms; module boundaries; whole models | `linear`, `pairwise`, `sequence`, `prepare_module`, `whole_model` |
//! | layouts, and the prepare functions of PyTorch's page | [`layout`], [`prepare`] |
//! | data modes: ddp, fsdp, zero1, hsdp; what they shard | [`data`], `data_placements` |
//! | what a plan is, and its JSON form | [`plan`], `plan_file` |
//! | which modules a path pattern matches | [`pattern`] |
//! | which weights a module has, and in which order data reaches them; which linears are pairs | [`modules`], [`pairs`] |
//! | what a value is computed from | [`dataflow`] |
//! | which values enter and leave a module; the same for a module that contains others | [`regions`], `subtree` |
//! | which index of a weight is cut, by whole heads | `cut` |
//! | which axes of the mesh a plan uses | `axes` |
//! | what the styles of a plan demand in the modules that it names | `demands` |
//! | constraints on values at boundaries; on the logits | `boundaries`, `loss_parallel` |
//! | inputs that a plan stores one by one: the entries, and where they store | [`stored`], [`storage`] |
//! | what is placed like a parameter | `like_parameters` |
//! | from a plan to placements; the demands of a plan | [`annotate()`], [`annotations`] |
//! | why a plan does not fit | `error` |

mod alike;
mod annotate;
pub mod annotations;
mod axes;
mod boundaries;
mod cut;
pub mod data;
mod data_placements;
pub mod dataflow;
mod demands;
mod direction;
mod error;
pub mod layout;
mod like_parameters;
mod linear;
mod loss_parallel;
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
pub mod storage;
pub mod stored;
pub mod style;
mod subtree;
mod whole_model;

pub use annotate::{annotate, boundary_regions, parallelize_module};
pub use annotations::Annotations;
pub use data::DataMode;
pub use direction::Direction;
pub use error::{Obstacle, StyleError, TiedNames};
pub use layout::Layout;
pub use linear::{ColwiseParallel, RowwiseParallel};
pub use pairwise::{PairwiseParallel, PairwiseSequenceParallel, TensorParallelMultiheadAttention};
pub use plan::{MeshDim, Plan, PlanError};
pub use plan_file::placements_json;
pub use prepare_module::{PrepareModuleInput, PrepareModuleInputOutput, PrepareModuleOutput};
pub use sequence::SequenceParallel;
pub use style::ParallelStyle;
pub use whole_model::WholeModel;
