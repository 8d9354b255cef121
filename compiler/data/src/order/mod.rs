//! In which order documents are read, and how that order is left and taken up again.
//!
//! Everything is a function of the files, the seed and the options: which documents are held out, where each of the others comes in an epoch,
//! and where the rows that they make come. So a place in the data is a few numbers ([`Position`]), and every process of a job sees the
//! same batches, whatever its mesh.

mod draws;
mod permutation;
mod position;
mod select;

pub(crate) use draws::{Draws, Purpose};
pub use permutation::Permutation;
pub(crate) use position::Beginning;
pub use position::{Made, Position};
pub use select::{Part, Selection};
