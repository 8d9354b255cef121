//! A sharding compiler for burn models: a model and a closure become one graph of the whole step, a plan
//! says which weights are cut along which mesh axis, and the compiler places every other value, inserts
//! the collectives and makes one program per rank.
//!
//! | question | file |
//! |---|---|
//! | train a burn model: compile, step, evaluate, get the model back | [`trainer`] |
//! | everything that such a program names | [`prelude`] |
//! | burn-train's own loop, with the feature `train` | `burn_train` |
//! | how a burn module and a closure become a graph | [`capture`] |
//! | how burn's operations become the IR's | [`import`] |
//! | compile, launch, step | [`program`] |
//! | programs that share parameters | `beside` |
//! | elements as bytes | `data` |
//! | what a plan's errors say of the model | `explain` |
//! | programs from the process that compiles to the others | `together` |
//! | model families and their files | [`models`] |
//! | capture, load, initialize and save a model directory | [`pretrained`] |
//! | the command line | [`command`] |

mod beside;
#[cfg(feature = "train")]
pub mod burn_train;
pub mod capture;
pub mod command;
mod data;
mod explain;
pub mod import;
mod memory;
pub mod models;
pub mod prelude;
pub mod pretrained;
pub mod program;
mod together;
pub mod trainer;
pub use capture::scope::scope;
pub use capture::{Batch, BatchData, Results};
pub use program::Error;
pub use tpc_derive::{Batch, Results};
pub use trainer::Trainer;

pub use tpc_ir::program::RankProgram;
pub use tpc_ir::{Graph, InputKind, Mesh, OutputKind, text};
pub use tpc_passes::styles;
pub use tpc_passes::styles::{
    ColwiseParallel, Layout, PairwiseParallel, PairwiseSequenceParallel, ParallelStyle, Plan, PrepareModuleInput,
    PrepareModuleInputOutput, PrepareModuleOutput, RowwiseParallel, SequenceParallel, TensorParallelMultiheadAttention,
};
pub use tpc_runtime::{LaunchOptions, Session, launch};
