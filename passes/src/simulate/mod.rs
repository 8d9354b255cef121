//! Simulates one rank's program on a target: the time of a step, and the part of it in which the rank waits for collectives.
//!
//! A kernel takes the time of its launch and then the longer of two times: its products at the device's rate, or one pass of
//! its operands through memory (the roofline model of Williams, Waterman and Patterson, 2009). A collective takes the latency
//! of its link plus the time for the bytes that a rank sends. A measured profile says more of a CPU: products are slower if
//! their operands are large, what was touched lately is in a cache, and the functions of loops take time of their own.
//!
//! | question | file |
//! |---|---|
//! | when each action of a rank begins and ends | this file |
//! | what a kernel computes and moves, and how long it computes | `work` |
//! | how long it takes to move that, given what the caches hold | `caches` |
//!
//! On a GPU, collectives run on a separate stream, one after the other, while kernels run. On a CPU, the rank itself adds and
//! copies when it waits for a collective, so nothing overlaps.
//!
//! All ranks are assumed to be equally fast. Blocks of attention that a mask hides are counted like the others.

mod caches;
mod work;

use crate::targets::Target;
use caches::Caches;
use std::collections::HashMap;
use tpc_ir::Mesh;
use tpc_ir::program::{Action, Collective, RankProgram, Step};
use work::Work;

/// One of the activities of a rank that may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// A kernel computes.
    Compute,
    /// A collective is in flight, or the rank itself executes it.
    Communication,
    /// No kernel can run until a collective is complete.
    Waiting,
}

/// An interval in which a lane is busy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    /// Index of the step in the program. For a collective it is the step that starts it.
    pub step: usize,
    /// The lane.
    pub lane: Lane,
    /// Start, in seconds from the start of the program.
    pub start: f64,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The simulated execution of one rank's program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// The slices, ordered by start within each lane. Slices of zero length are left out.
    pub slices: Vec<Slice>,
    /// Duration of the program in seconds.
    pub seconds: f64,
    /// Bytes that the rank sends with ring algorithms.
    pub sent: f64,
    /// Floating-point operations of its products.
    pub flops: f64,
}

impl Timeline {
    /// Seconds in which a lane is busy.
    pub fn busy(&self, lane: Lane) -> f64 {
        self.slices.iter().filter(|slice| slice.lane == lane).map(|slice| slice.seconds).sum()
    }

    /// Seconds in which no kernel runs.
    pub fn exposed(&self) -> f64 {
        self.seconds - self.busy(Lane::Compute)
    }
}

/// Simulates a rank's program on a target.
pub fn simulate(program: &RankProgram, target: &Target) -> Timeline {
    let mut timeline = Timeline::default();
    // The times at which the program continues and at which the communication stream is free. For each collective in
    // flight: the step that starts it, its duration, and the time at which it is complete.
    let (mut now, mut free): (f64, f64) = (0.0, 0.0);
    let mut in_flight: HashMap<u32, (usize, f64, f64)> = HashMap::new();
    let overlaps = target.device.kind.overlaps();
    let mut caches = Caches::new(&target.device, program.arena_bytes);
    if !target.device.caches.is_empty() {
        // The step before has left in the caches what it touched last.
        program.steps.iter().for_each(|step| caches.touch(Work::of(&step.action, &program.buffers).moved()));
    }
    for (step, Step { action, .. }) in program.steps.iter().enumerate() {
        match action {
            Action::Start(collective) => {
                let seconds = travel(collective, &program.mesh, target);
                timeline.sent += collective.wire_bytes();
                caches.touch(Work::of(action, &program.buffers).moved());
                if overlaps {
                    let start = now.max(free);
                    free = start + seconds;
                    timeline.add(step, Lane::Communication, start, seconds);
                }
                in_flight.insert(collective.tag, (step, seconds, free));
            }
            Action::Wait { tag } => {
                let Some((start, seconds, arrival)) = in_flight.remove(tag) else { continue };
                if overlaps {
                    timeline.add(step, Lane::Waiting, now, (arrival - now).max(0.0));
                    now = now.max(arrival);
                } else {
                    timeline.add(start, Lane::Communication, now, seconds);
                    now += seconds;
                }
            }
            action => {
                let work = Work::of(action, &program.buffers);
                let seconds = work.seconds(&target.device, caches.seconds(work.moved()));
                timeline.flops += work.flops;
                timeline.add(step, Lane::Compute, now, seconds);
                now += seconds;
            }
        }
    }
    timeline.seconds = now.max(free);
    timeline
}

impl Timeline {
    fn add(&mut self, step: usize, lane: Lane, start: f64, seconds: f64) {
        if seconds > 0.0 {
            self.slices.push(Slice { step, lane, start, seconds });
        }
    }
}

/// Duration of a collective in seconds.
fn travel(collective: &Collective, mesh: &Mesh, target: &Target) -> f64 {
    let link = target.links.group(mesh, mesh.spanned(&collective.group));
    link.latency + collective.wire_bytes() / link.bandwidth
}
