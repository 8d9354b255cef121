//! The implementation of tpc: a burn model and a closure become one graph of the whole step, which is compiled for a
//! mesh and launched.
//!
//! The crate `tpc` re-exports the part of this crate that users need.
//!
//! | question | file |
//! |---|---|
//! | training a burn model: compile, step, evaluate, get the model back | [`trainer`] |
//! | burn-train's own loop, with the feature `train` | `burn_train` |
//! | recording a burn module and a closure as a graph | [`capture`] |
//! | translating burn's operations to the IR | [`import`] |
//! | compile, launch, step | [`program`] |
//! | why that failed | [`error`] |
//! | whether a program fits into the memory of a rank, and what it computes a second time so that it does | [`budget`], `fit` |
//! | under which names plans and files know parameters | [`rename`] |
//! | what a session gets before its first step | `feed` |
//! | programs of one session that share parameters | `shared_session` |
//! | elements as bytes | `data` |
//! | facts about the model in the errors of a plan | [`explain`] |
//! | which plans there are for so many ranks, and what each would cost | [`plans`] |
//! | what a plan's program costs, by module; where two plans differ | [`summary`] |
//! | a simulated step of all ranks, and its trace | [`simulation`] |
//! | what the compiler made of a program, as data for a page | [`view`] |
//! | why a value lies where it does, and what the best program without it costs | [`why`] |
//! | independent work on all cores | `parallel` |
//! | sending compiled programs to the other processes | `together` |
//! | model families and their files | [`models`] |
//! | text generation with a cache of keys and values | [`generate`] |
//! | optimizers composed of other optimizers | [`optimizer`] |
//! | capturing, loading, initializing and saving a model directory | [`pretrained`] |

pub mod budget;
#[cfg(feature = "train")]
pub mod burn_train;
mod candidate;
pub mod capture;
mod compile_options;
mod data;
pub mod error;
pub mod explain;
mod feed;
mod fit;
pub mod generate;
pub mod import;
pub mod memory;
pub mod models;
pub mod optimizer;
pub mod parallel;
mod place;
pub mod plans;
mod prepare;
pub mod pretrained;
pub mod program;
pub mod rename;
mod shared_session;
pub mod short;
pub mod simulation;
pub mod summary;
pub mod target;
mod together;
pub mod trainer;
pub mod view;
pub mod why;
