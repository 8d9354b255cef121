//! The order in which documents are read, and resuming from a position in it.
//!
//! All of this is a function of the files, the seed and the options: which documents are held out, the place of the
//! others in an epoch, and the order of the rows that they form. A position in the data therefore consists of a few
//! numbers ([`Position`]), and every process of a job sees the same batches, on any mesh.

mod draws;
mod permutation;
mod position;
mod select;

pub(crate) use draws::{Draws, Purpose};
pub use permutation::Permutation;
pub(crate) use position::Beginning;
pub use position::{Made, Position};
pub use select::{Selection, Split};
