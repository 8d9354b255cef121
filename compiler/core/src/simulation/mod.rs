//! A simulated step of all ranks: how long it takes, how much of that time ranks wait, and what they hold.
//!
//! Thousands of ranks run few different programs: only the first rank of each kind is lowered and simulated
//! ([`kinds`](tpc_passes::kinds)).
//!
//! The step takes as long as that of the slowest kind, for which all others wait in the collectives of the step or at its end.
//! This neglects that the slowest kind may be another in each part of the step, so that ranks wait for each other several times;
//! it is exact if one kind is the slowest between any two collectives, as the one with the largest shards is. It also neglects
//! that ranks of one kind differ in speed, which the target does not know.

mod trace;

pub use trace::trace;

use crate::summary::{Amount, Cost, Summary, Work};
use std::collections::BTreeMap;
use tpc_ir::Mesh;
use tpc_ir::program::RankProgram;
use tpc_passes::simulate::{Timeline, simulate};
use tpc_passes::targets::{DeviceKind, Target};

/// A simulated step of all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulation {
    /// The mesh.
    pub mesh: Mesh,
    /// The kinds of ranks, by their first ranks; at least one.
    pub kinds: Vec<Kind>,
    /// Floating-point operations of the model's products in a step, independent of the mesh.
    pub flops: f64,
    /// The backends that the target's device stands for.
    pub device: DeviceKind,
}

/// The ranks whose programs take the same sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// The ranks, in order.
    pub ranks: Vec<usize>,
    /// The program of the first of them.
    pub program: RankProgram,
    /// Its simulated execution.
    pub timeline: Timeline,
    /// Its cost by module, and its memory.
    pub summary: Summary,
}

impl Kind {
    /// The kind of these ranks, where `program` is that of the first of them, and `first` its program of the first step.
    pub(crate) fn of(ranks: Vec<usize>, program: RankProgram, first: Option<&RankProgram>, target: &Target) -> Self {
        let summary = Summary::of(&program, first, target);
        Kind { ranks, timeline: simulate(&program, target), summary, program }
    }

    /// What the collectives cost, by the axes along which they communicate.
    pub fn communication(&self) -> BTreeMap<Vec<String>, Cost> {
        let mut sums: BTreeMap<Vec<String>, Cost> = BTreeMap::new();
        for ((_, part), cost) in &self.summary.parts {
            if let Work::Collective { axes, .. } = &part.work {
                let sum = sums.entry(axes.clone()).or_default();
                *sum = sum.plus(cost);
            }
        }
        sums
    }
}

impl Simulation {
    /// Seconds of a step: those of the slowest kind.
    pub fn seconds(&self) -> f64 {
        self.kinds.iter().map(|kind| kind.timeline.seconds).fold(0.0, f64::max)
    }
}
