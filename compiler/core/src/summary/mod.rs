//! What a compiled program costs one rank, by module: the kernels and collectives of each part of a step with their
//! simulated time, and what the arena holds when it is fullest.
//!
//! | question | file |
//! |---|---|
//! | what a row counts: parts of a step, and what they cost | `cost` |
//! | what the arena holds at its peak | `peak` |
//! | the module of operations of which the capture knows none | `modules` |
//! | rows of equal blocks as one row | `rows` |
//! | where two programs differ | `difference` |
//!
//! A loop belongs to the module of its last operation, and a product to its own module whatever its epilogue does.

mod cost;
mod difference;
mod modules;
mod peak;
mod rows;

pub(crate) use cost::each_step;
pub use cost::{Cost, Part, Work};
pub use difference::Difference;
pub(crate) use modules::attribute;
pub use peak::Content;
pub(crate) use peak::{contents, home, in_use};
pub use rows::{Amount, ByModule, Modules, Row, rows};

use tpc_ir::Mesh;
use tpc_ir::program::RankProgram;
use tpc_passes::rematerialize::report::RecomputeReport;
use tpc_passes::simulate::simulate;
use tpc_passes::targets::Target;

/// What a program costs one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The mesh.
    pub mesh: Mesh,
    /// Duration of a step in seconds.
    pub seconds: f64,
    /// What each module's part of a step costs. The times add up to that of the step, and the bytes to all that the rank
    /// sends.
    pub parts: ByModule<Part, Cost>,
    /// Size of the arena in bytes.
    pub arena_bytes: usize,
    /// The bytes of the arena when most of it is in use. They add up to its size.
    pub peak: ByModule<Content, usize>,
    /// What is computed a second time, so that the program fits into memory.
    pub recomputed: Option<RecomputeReport>,
}

impl Summary {
    /// The summary of a rank's program on a target. The memory is that of the program or of `first`, the program of the
    /// first step, which runs in the same arena: the one that needs more.
    pub fn of(program: &RankProgram, first: Option<&RankProgram>, target: &Target) -> Self {
        let larger = first.filter(|first| first.arena_bytes > program.arena_bytes).unwrap_or(program);
        let timeline = simulate(program, target);
        Summary {
            mesh: program.mesh.clone(),
            seconds: timeline.seconds,
            parts: cost::parts(program, &timeline, target.device.kind),
            arena_bytes: larger.arena_bytes,
            peak: peak::peak(larger),
            recomputed: None,
        }
    }

    /// The sum of the parts that are selected.
    pub fn total(&self, select: impl Fn(&Part) -> bool) -> Cost {
        let selected = self.parts.iter().filter(|((_, part), _)| select(part));
        selected.fold(Cost::default(), |total, (_, cost)| total.plus(cost))
    }
}
