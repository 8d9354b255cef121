//! What a rank executes, and when, by the simulation of a step.
//!
//! Equal steps of equal modules are one action with a count. The step is cut into stretches of time. A stretch in which a
//! block repeats shows the block in the middle of it, with everything that overlaps it, and says how often it repeats.

use super::modules::Modules;
use crate::summary::{Work, each_step};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use tpc_ir::block::{Line, Run, runs};
use tpc_ir::program::{self, RankProgram};
use tpc_ir::{Mesh, Phase};
use tpc_passes::simulate::{Lane, Slice, Timeline};
use tpc_passes::targets::DeviceKind;

/// The number of intervals of equal length into which the whole step is divided.
const BINS: usize = 240;

/// Steps that do the same in the same module and phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Action {
    /// The position of the module.
    pub module: usize,
    /// The phase.
    pub phase: &'static str,
    /// What is executed, in words: `einsum`, `loop rms_norm`, `all_gather`.
    pub label: String,
    /// The axes along which it communicates; none if it computes.
    pub axes: Option<Vec<String>>,
    /// The number of values that each of the collectives carries; 0 if it computes.
    pub values: usize,
    /// Why the first of the collectives exists; empty if it computes.
    pub why: String,
    /// The number of kernels or collectives.
    pub count: usize,
    /// Bytes that the rank sends for all of them.
    pub sent: f64,
    /// Seconds in which they run or are in flight.
    pub seconds: f64,
    /// Seconds that they add to the step.
    pub of_step: f64,
}

/// Seconds in which each lane is busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Busy {
    /// A kernel computes.
    pub compute: f64,
    /// A collective is in flight.
    pub communication: f64,
    /// No kernel can run until a collective is complete.
    pub waiting: f64,
}

impl Busy {
    fn lane(&mut self, lane: Lane) -> &mut f64 {
        match lane {
            Lane::Compute => &mut self.compute,
            Lane::Communication => &mut self.communication,
            Lane::Waiting => &mut self.waiting,
        }
    }
}

/// The share of a step that a block has to take, with all its repetitions, to get a stretch of its own.
const LEAST: f64 = 0.03;

/// Parts of a stretch that are shorter than this share of it are joined.
const FINEST: f64 = 1.0 / 300.0;

/// A part of an action in a stretch; in JSON, a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "(u8, f64, f64, usize, usize)")]
pub struct Drawn {
    /// 0 for kernels, 1 for collectives, 2 for waiting.
    pub lane: u8,
    /// Seconds from the beginning of what is drawn.
    pub at: f64,
    /// Duration in seconds.
    pub seconds: f64,
    /// The position of the action; of the longest, if there are several.
    pub action: usize,
    /// The number of others that are too short to be drawn.
    pub others: usize,
}

impl From<Drawn> for (u8, f64, f64, usize, usize) {
    fn from(Drawn { lane, at, seconds, action, others }: Drawn) -> Self {
        (lane, at, seconds, action, others)
    }
}

/// A stretch of the step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stretch {
    /// The position of the module, or of the element of a list, that takes most of its time.
    pub module: usize,
    /// The phase that takes most of its time.
    pub phase: &'static str,
    /// How often a block repeats in it.
    pub count: usize,
    /// Seconds from the beginning of the step.
    pub start: f64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Seconds in which each lane is busy.
    pub busy: Busy,
    /// Duration of what is drawn: of one block.
    pub drawn_seconds: f64,
    /// What overlaps the block.
    pub drawn: Vec<Drawn>,
}

/// The whole step in intervals of equal length: the share of each in which a lane is busy.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bins {
    /// A kernel computes.
    pub compute: Vec<f64>,
    /// A collective is in flight, by the axis of the mesh, or the first of several axes, along which it communicates.
    pub communication: Vec<Vec<f64>>,
    /// No kernel can run until a collective is complete.
    pub waiting: Vec<f64>,
}

/// What runs, and when.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Execution {
    /// The actions. Their seconds and bytes add up to those of the step.
    pub actions: Vec<Action>,
    /// Seconds in which each lane is busy.
    pub busy: Busy,
    /// The stretches, in order. They cover the step.
    pub stretches: Vec<Stretch>,
    /// The step in intervals.
    pub bins: Bins,
}

/// What makes two steps one action.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Look<'a> {
    module: usize,
    phase: Phase,
    label: &'a str,
    work: Work,
    values: usize,
    bytes: usize,
}

/// When each step begins, and the end of the last.
pub(crate) fn clock(program: &RankProgram, timeline: &Timeline, device: DeviceKind) -> Vec<f64> {
    let mut waits: HashMap<u32, usize> = HashMap::new();
    for (at, step) in program.steps.iter().enumerate() {
        if let program::Action::Wait { tag } = step.action {
            waits.insert(tag, at);
        }
    }
    let mut ends = vec![0.0; program.steps.len()];
    for &Slice { step, lane, start, seconds } in &timeline.slices {
        let step = match (lane, device, &program.steps[step].action) {
            // A stream of its own does not hold the program up.
            (Lane::Communication, DeviceKind::Cuda, _) => continue,
            (Lane::Communication, DeviceKind::Cpu, program::Action::Start(collective)) => {
                waits.get(&collective.tag).copied().unwrap_or(step)
            }
            _ => step,
        };
        ends[step] = start + seconds;
    }
    let mut clock = vec![0.0];
    for end in ends {
        let now = clock.last().copied().unwrap_or_default();
        clock.push(end.max(now));
    }
    clock
}

/// What a rank executes. The timeline is that of the program.
pub(super) fn execution(
    program: &RankProgram,
    timeline: &Timeline,
    device: DeviceKind,
    modules: &Modules,
) -> Execution {
    let mut known: HashMap<Look<'_>, usize> = HashMap::new();
    let mut actions: Vec<Action> = Vec::new();
    let mut started: HashMap<u32, usize> = HashMap::new();
    let mut of_steps = Vec::with_capacity(program.steps.len());
    for (step, (work, cost)) in program.steps.iter().zip(each_step(program, timeline, device)) {
        let (label, values, bytes, why) = match &step.action {
            program::Action::Start(c) => (c.name(), c.values, c.full_bytes, &*c.why),
            _ => (&*step.label, 0, 0, ""),
        };
        let waited = match &step.action {
            program::Action::Wait { tag } => started.remove(tag),
            _ => None,
        };
        let at = waited.unwrap_or_else(|| {
            let module = modules.at(&step.module);
            let axes = match &work {
                Work::Compute => None,
                Work::Collective { axes, .. } => Some(axes.clone()),
            };
            *known.entry(Look { module, phase: step.phase, label, work, values, bytes }).or_insert_with(|| {
                actions.push(Action {
                    module,
                    phase: step.phase.name(),
                    label: label.to_string(),
                    axes,
                    values,
                    why: why.to_string(),
                    count: 0,
                    sent: 0.0,
                    seconds: 0.0,
                    of_step: 0.0,
                });
                actions.len() - 1
            })
        });
        if let program::Action::Start(collective) = &step.action {
            started.insert(collective.tag, at);
        }
        let action = &mut actions[at];
        action.count += cost.count;
        action.sent += cost.sent;
        action.seconds += cost.seconds;
        action.of_step += cost.of_step;
        of_steps.push(at);
    }
    let clock = clock(program, timeline, device);
    let stretches = stretches(program, timeline, &clock, (&of_steps, &actions), modules);
    let busy = busy(&timeline.slices, 0.0..f64::INFINITY);
    let bins = bins(timeline, &program.mesh, (&of_steps, &actions));
    Execution { busy, stretches, bins, actions }
}

/// The part of a slice that lies in an interval of time: its start and its length.
fn within(slice: &Slice, time: &Range<f64>) -> Option<(f64, f64)> {
    let start = slice.start.max(time.start);
    let end = (slice.start + slice.seconds).min(time.end);
    (end > start).then_some((start, end - start))
}

fn busy(slices: &[Slice], time: Range<f64>) -> Busy {
    let mut busy = Busy::default();
    for slice in slices {
        if let Some((_, seconds)) = within(slice, &time) {
            *busy.lane(slice.lane) += seconds;
        }
    }
    busy
}

fn stretches(
    program: &RankProgram,
    timeline: &Timeline,
    clock: &[f64],
    (of_steps, actions): (&[usize], &[Action]),
    modules: &Modules,
) -> Vec<Stretch> {
    let line = |(step, &action): (&program::Step, &usize)| {
        let waits = matches!(step.action, program::Action::Wait { .. });
        Line { key: 2 * action + usize::from(waits), numbers: Vec::new() }
    };
    let lines: Vec<Line> = program.steps.iter().zip(of_steps).map(line).collect();
    let end = program.steps.len();
    let (mut all, mut at) = (Vec::new(), 0);
    let long = |run: &Run| clock[run.end()] - clock[run.start] >= LEAST * timeline.seconds;
    for run in runs(&lines).into_iter().filter(long) {
        all.extend((run.start > at).then(|| Run { start: at, period: run.start - at, count: 1 }));
        at = run.end();
        all.push(run);
    }
    all.extend((end > at).then(|| Run { start: at, period: end - at, count: 1 }));
    let last = all.len().saturating_sub(1);
    let of_run = |(i, run): (usize, &Run)| {
        let middle = run.start + run.count / 2 * run.period;
        // A collective may outlast the last kernel.
        let until = |step: usize| if i == last && step == end { timeline.seconds } else { clock[step] };
        let time = clock[run.start]..until(run.end());
        let shown = clock[middle]..until(middle + run.period);
        let drawn = drawn(&timeline.slices, &shown, of_steps);
        let (module, phase) = most(&drawn, actions, modules);
        Stretch {
            module,
            phase,
            count: run.count,
            start: time.start,
            seconds: time.end - time.start,
            busy: busy(&timeline.slices, time),
            drawn_seconds: shown.end - shown.start,
            drawn,
        }
    };
    all.iter().enumerate().map(of_run).filter(|stretch| stretch.seconds > 0.0).collect()
}

/// What overlaps an interval of time. Parts of one lane that are too short to be told apart are one.
fn drawn(slices: &[Slice], time: &Range<f64>, of_steps: &[usize]) -> Vec<Drawn> {
    let finest = FINEST * (time.end - time.start);
    let mut parts: Vec<Drawn> = Vec::new();
    // By lane: the last part and the length of the longest slice in it.
    let mut last: [Option<(usize, f64)>; 3] = [None; 3];
    for slice in slices {
        let Some((start, seconds)) = within(slice, time) else { continue };
        let (lane, at, action) = (slice.lane as u8, start - time.start, of_steps[slice.step]);
        if let Some((known, longest)) = &mut last[lane as usize] {
            let part = &mut parts[*known];
            let joined = at + seconds - part.at;
            if joined < finest {
                (part.seconds, part.others) = (joined, part.others + 1);
                if seconds > *longest {
                    (*longest, part.action) = (seconds, action);
                }
                continue;
            }
        }
        last[lane as usize] = Some((parts.len(), seconds));
        parts.push(Drawn { lane, at, seconds, action, others: 0 });
    }
    for part in &mut parts {
        (part.at, part.seconds) = (short(part.at), short(part.seconds));
    }
    parts
}

/// The module and the phase that take most of what is drawn. Modules of one element of a list count together.
fn most(drawn: &[Drawn], actions: &[Action], modules: &Modules) -> (usize, &'static str) {
    let element = |module: usize| {
        let outward = std::iter::successors(Some(module), |&at| modules.list[at].parent);
        outward.filter(|&at| modules.list[at].element).last().unwrap_or(module)
    };
    let mut times: BTreeMap<(usize, &str), f64> = BTreeMap::new();
    for part in drawn.iter().filter(|part| part.lane != Lane::Communication as u8) {
        let Action { module, phase, .. } = actions[part.action];
        *times.entry((element(module), phase)).or_default() += part.seconds;
    }
    let longest = times.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    longest.map_or((0, Phase::Forward.name()), |(of, _)| of)
}

/// The share of each interval in which the slices of a lane run.
fn shares<'a>(slices: impl Iterator<Item = &'a Slice>, seconds: f64) -> Vec<f64> {
    let width = seconds / BINS as f64;
    let mut bins = vec![0.0; BINS];
    for slice in slices {
        let first = ((slice.start / width) as usize).min(BINS - 1);
        let last = (((slice.start + slice.seconds) / width) as usize).min(BINS - 1);
        for (at, bin) in bins.iter_mut().enumerate().take(last + 1).skip(first) {
            let time = at as f64 * width..(at + 1) as f64 * width;
            *bin += within(slice, &time).map_or(0.0, |(_, seconds)| seconds) / width;
        }
    }
    bins.into_iter().map(|share| (share * 1e3).round() / 1e3).collect()
}

fn bins(timeline: &Timeline, mesh: &Mesh, (of_steps, actions): (&[usize], &[Action])) -> Bins {
    let of = |lane: Lane| timeline.slices.iter().filter(move |slice| slice.lane == lane);
    let along = |name: &String| {
        let first = |slice: &&Slice| actions[of_steps[slice.step]].axes.as_ref().and_then(|axes| axes.first());
        shares(of(Lane::Communication).filter(|slice| first(slice) == Some(name)), timeline.seconds)
    };
    Bins {
        compute: shares(of(Lane::Compute), timeline.seconds),
        communication: mesh.axes().iter().map(|axis| along(&axis.name)).collect(),
        waiting: shares(of(Lane::Waiting), timeline.seconds),
    }
}

/// A number with six digits, since the page shows three.
fn short(x: f64) -> f64 {
    format!("{x:.5e}").parse().unwrap_or(x)
}
