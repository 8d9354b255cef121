//! Checkpoints: parameters and optimizer state, written by all ranks at once and readable on any mesh and plan.
//!
//! ```text
//! run/                                the directory for `save` and `Checkpoint::latest`
//!   step-000100/                      complete: it got this name after all of it was on the disk
//!     index.json                      every tensor: kind, type, shape, and the boxes with their file, place and hashes
//!     rank-00000.safetensors          the boxes that rank 0 wrote, one tensor each
//!     rank-00001.safetensors
//!   .step-000200.4711.partial/        an interrupted write: never read, removed by the next save
//! ```
//!
//! A box that several ranks hold is written by one of them, chosen so that all write about the same amount. Stored
//! boxes refer to the dimensions of the writing program (`factors`); another program finds its own elements in them by
//! the row-major order that both share ([`crate::boxes::meet`]). Every rank reads only the blocks that hold its
//! elements, directly into its arena, and checks each block's hash before using it. In addition to the arenas, loading
//! holds the index and one block ([`BLOCK`]) per rank, and saving holds the index and one write buffer per rank.
//!
//! | question | file |
//! |---|---|
//! | names of directories, the latest checkpoint, leftovers | [`directory`] |
//! | the index | [`index`] |
//! | a safetensors file, written front to back | [`container`] |
//! | which rank writes which boxes, and the order in which the disk sees them | [`mod@write`] |
//! | reading on any mesh, checking hashes | [`read`] |
//! | the hash | [`mod@hash`] |
//! | errors | [`error`] |

pub mod container;
pub mod directory;
pub mod error;
pub mod hash;
pub mod index;
pub mod read;
pub mod write;

pub use error::CheckpointError;
pub use read::{Checkpoint, load};
pub use write::{FaultKind, SaveOptions, WriteFault, save};

/// Bytes of a box that share one hash; the last block of a box may be shorter.
pub const BLOCK: usize = 1 << 20;

// Files hold little-endian elements, arenas native ones.
#[cfg(target_endian = "big")]
compile_error!("checkpoints are written as they lie in memory, which must be little-endian");
