//! Inside tpc: a burn model and a closure become one graph of the whole step, which is compiled for a mesh and launched.
//!
//! The crate `tpc` shows users the part of this one that they need.
//!
//! | question | file |
//! |---|---|
//! | train a burn model: compile, step, evaluate, get the model back | [`trainer`] |
//! | burn-train's own loop, with the feature `train` | `burn_train` |
//! | how a burn module and a closure become a graph | [`capture`] |
//! | how burn's operations become the IR's | [`import`] |
//! | compile, launch, step | [`program`] |
//! | why that failed | [`error`] |
//! | under which names plans and files know parameters | [`rename`] |
//! | what a session gets before its first step | `feed` |
//! | programs that share parameters | `beside` |
//! | elements as bytes | `data` |
//! | what a plan's errors say of the model | [`explain`] |
//! | which plans there are for so many ranks, and what each would cost | [`plans`] |
//! | programs from the process that compiles to the others | `together` |
//! | model families and their files | [`models`] |
//! | text from a model, with a cache of keys and values | [`generate`] |
//! | optimizers made of optimizers | [`optimizer`] |
//! | capture, load, initialize and save a model directory | [`pretrained`] |

mod beside;
#[cfg(feature = "train")]
pub mod burn_train;
pub mod capture;
mod data;
pub mod error;
pub mod explain;
mod feed;
pub mod generate;
pub mod import;
pub mod memory;
pub mod models;
pub mod optimizer;
pub mod plans;
pub mod pretrained;
pub mod program;
pub mod rename;
pub mod target;
mod together;
pub mod trainer;
