//! Text generation: two programs with shared weights and a shared cache.
//!
//! The first program reads a chunk of the prompts, the second reads one token of each sequence. Both are the same run,
//! captured for different numbers of tokens: it writes the keys and values of its tokens into the cache
//! ([`crate::capture::Kept`]) and attends to the contents of the cache. The cache is placed on the mesh like the keys:
//! sharded by heads under tensor parallelism and by sequences under data parallelism. The plan's memory includes it.
//!
//! All sequences of a batch use the same slots of the cache at the same time: shorter prompts begin later. The slots
//! before a sequence's first slot are masked for it, and its positions count from there.
//!
//! | question | file |
//! |---|---|
//! | the chunks in which prompts are read, and the slot of each token | `prompts.rs` |
//! | inputs and results of a run | `program.rs` |
//! | compiling, loading, the loop over tokens | `generator.rs` |
//! | choosing the next token | `sampling.rs` |

mod error;
mod generator;
mod program;
mod prompts;
mod sampling;

pub use error::GenerateError;
pub use generator::{Chosen, Generate, Generated, Generator, Limits, Why};
pub use prompts::Run;
pub use sampling::{Choice, Sampling};
