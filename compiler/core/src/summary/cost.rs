//! What a row of a summary counts: a part of a step, and what it costs.

use super::rows::{Amount, ByModule};
use std::collections::HashMap;
use std::fmt;
use tpc_ir::program::{Action, Collective, CollectiveOp, RankProgram, Step};
use tpc_ir::{Mesh, Phase};
use tpc_passes::simulate::{Lane, Timeline};
use tpc_passes::targets::DeviceKind;

/// A part of a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// The phase.
    pub phase: Phase,
    /// What the rank does.
    pub work: Work,
}

/// What a rank does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// It runs kernels.
    Compute,
    /// It communicates.
    Collective {
        /// The operation.
        op: CollectiveOp,
        /// The names of the mesh axes, since another mesh may number its axes differently.
        axes: Vec<String>,
    },
}

impl Work {
    fn of(collective: &Collective, mesh: &Mesh) -> Self {
        let axes = mesh.spanned(&collective.group).iter().map(|axis| mesh.name(axis).to_string()).collect();
        Work::Collective { op: collective.op(), axes }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Compute => f.write_str("compute"),
            Work::Collective { op, axes } => write!(f, "{} {}", op.name(), axes.join(",")),
        }
    }
}

/// What a part of a step costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Number of kernels or of collectives.
    pub count: usize,
    /// Bytes that the rank sends.
    pub sent: f64,
    /// Seconds in which kernels run or collectives are in flight.
    pub seconds: f64,
    /// What it adds to the duration of a step: the seconds of its kernels, or those in which the rank waits for its
    /// collectives.
    pub of_step: f64,
}

impl Cost {
    /// Whether two costs differ by more than rounding.
    pub fn differs(&self, other: &Self) -> bool {
        !self.alike(other) || !close(self.of_step, other.of_step)
    }
}

/// Costs are alike even if a rank waits longer for one of two equal collectives, which depends on the work around it.
impl Amount for Cost {
    fn alike(&self, other: &Self) -> bool {
        self.count == other.count && close(self.sent, other.sent) && close(self.seconds, other.seconds)
    }

    fn plus(&self, other: &Self) -> Self {
        Cost {
            count: self.count + other.count,
            sent: self.sent + other.sent,
            seconds: self.seconds + other.seconds,
            of_step: self.of_step + other.of_step,
        }
    }
}

/// Whether two sums of the same numbers are equal, whatever the order of the numbers.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// What each step of a program does, and what it costs. A wait belongs to its collective, which is counted where it starts.
pub(crate) fn each_step(program: &RankProgram, timeline: &Timeline, device: DeviceKind) -> Vec<(Work, Cost)> {
    let mut started: HashMap<u32, Work> = HashMap::new();
    let of = |step: &Step| {
        let (work, count, sent) = match &step.action {
            Action::Start(collective) => {
                let work = Work::of(collective, &program.mesh);
                started.insert(collective.tag, work.clone());
                (work, 1, collective.wire_bytes())
            }
            Action::Wait { tag } => (started.remove(tag).unwrap_or(Work::Compute), 0, 0.0),
            _ => (Work::Compute, 1, 0.0),
        };
        (work, Cost { count, sent, ..Cost::default() })
    };
    let mut steps: Vec<(Work, Cost)> = program.steps.iter().map(of).collect();
    for slice in &timeline.slices {
        let (seconds, of_step) = match (slice.lane, device) {
            // On a CPU the rank itself executes the collective.
            (Lane::Compute, _) | (Lane::Communication, DeviceKind::Cpu) => (slice.seconds, slice.seconds),
            (Lane::Communication, DeviceKind::Cuda) => (slice.seconds, 0.0),
            (Lane::Waiting, _) => (0.0, slice.seconds),
        };
        let cost = &mut steps[slice.step].1;
        *cost = cost.plus(&Cost { seconds, of_step, ..Cost::default() });
    }
    steps
}

/// What each module's part of a step costs.
pub(super) fn parts(program: &RankProgram, timeline: &Timeline, device: DeviceKind) -> ByModule<Part, Cost> {
    let mut parts: ByModule<Part, Cost> = ByModule::new();
    for (step, (work, cost)) in program.steps.iter().zip(each_step(program, timeline, device)) {
        let sum = parts.entry((step.module.clone(), Part { phase: step.phase, work })).or_default();
        *sum = sum.plus(&cost);
    }
    parts
}
