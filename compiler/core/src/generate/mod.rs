//! Text generation: two programs over one set of weights and one cache.
//!
//! The first program reads a chunk of the prompts, the second one token of each sequence. Both are the same run, captured for
//! different numbers of tokens: it writes the keys and values of its tokens into the cache ([`crate::capture::Kept`]) and
//! attends to what the cache then holds. The cache lies on the mesh as the keys do, so it is sharded by heads under tensor
//! parallelism and by sequences under data parallelism, and the plan's memory counts it.
//!
//! Sequences of a batch stand in the same slots of the cache at the same time: shorter prompts begin later. What stands before
//! a sequence's first slot is hidden from it, and its positions count from there.
//!
//! | question | file |
//! |---|---|
//! | which chunks a batch of prompts is read in, and where each token stands | `prompts.rs` |
//! | what a run takes and gives | `program.rs` |
//! | compiling, loading, the loop over tokens | `generator.rs` |
//! | which token comes next | `sampling.rs` |

mod error;
mod generator;
mod program;
mod prompts;
mod sampling;

pub use error::GenerateError;
pub use generator::{Chosen, Generate, Generated, Generator, Limits, Why};
pub use prompts::Run;
pub use sampling::{Choice, Sampling};
