//! What the arena of a rank holds over time.
//!
//! The step is divided into intervals of equal length. Each shows the moment at which most of the arena is in use, so the
//! peak of the whole step is exact.

use super::modules::Modules;
use super::timeline::clock;
use crate::summary::{Content, Summary, contents, in_use};
use serde::Serialize;
use tpc_ir::InputKind;
use tpc_ir::program::{Action, RankProgram};
use tpc_passes::lower::lives;
use tpc_passes::simulate::Timeline;
use tpc_passes::targets::DeviceKind;

/// The number of intervals.
const BINS: usize = 240;

/// What a piece of the arena holds, as the curve distinguishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// Parameters.
    Parameters,
    /// States of the optimizer.
    State,
    /// Gradients that the backward pass leaves to the optimizer, or to the caller.
    Gradients,
    /// What the forward pass leaves to a later phase.
    Saved,
    /// What a collective sends or receives within one phase.
    Communication,
    /// What kernels use within one phase.
    Temporaries,
    /// Data, scalars, constants, results.
    Others,
}

impl Held {
    /// All of them, in the order in which bytes are listed.
    pub const ALL: [Held; 7] = [
        Held::Parameters,
        Held::State,
        Held::Gradients,
        Held::Saved,
        Held::Communication,
        Held::Temporaries,
        Held::Others,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Held::Parameters => "parameters",
            Held::State => "state",
            Held::Gradients => "gradients",
            Held::Saved => "saved",
            Held::Communication => "communication",
            Held::Temporaries => "temporaries",
            Held::Others => "others",
        }
    }

    fn of(content: Content, communicates: bool) -> Self {
        match content {
            Content::Input(InputKind::Parameter) => Held::Parameters,
            Content::Input(InputKind::State) => Held::State,
            Content::Gradient => Held::Gradients,
            Content::Saved => Held::Saved,
            Content::Temporary if communicates => Held::Communication,
            Content::Temporary => Held::Temporaries,
            Content::Input(_) | Content::Result | Content::Gap => Held::Others,
        }
    }
}

/// The bytes in use at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Seconds from the beginning of the step.
    pub at: f64,
    /// The bytes by what they hold, in the order of [`Held::ALL`].
    pub bytes: Vec<usize>,
}

/// Bytes of one module at the peak.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Holding {
    /// The position of the module.
    pub module: usize,
    /// What they hold, in words.
    pub content: String,
    /// The bytes.
    pub bytes: usize,
}

/// What the arena holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Arena {
    /// Its size in bytes, which is the memory of the rank.
    pub bytes: usize,
    /// The size that the program of later steps takes. The first step may take more, since it creates states.
    pub steady_bytes: usize,
    /// What bytes may hold.
    pub kinds: [Held; 7],
    /// The fullest moment of each interval.
    pub moments: Vec<Moment>,
    /// The fullest moment of all.
    pub peak: Moment,
    /// The bytes at the peak by module, of the program that takes more. They add up to the size of the arena.
    pub holdings: Vec<Holding>,
}

/// What the arena holds during a step. The timeline is that of the program.
pub(super) fn arena(
    program: &RankProgram,
    timeline: &Timeline,
    device: DeviceKind,
    summary: &Summary,
    modules: &Modules,
) -> Arena {
    let clock = clock(program, timeline, device);
    let (moments, peak) = moments(&in_steps(program), &clock, timeline.seconds);
    let mut holdings: Vec<Holding> = Vec::new();
    for ((path, content), &bytes) in &summary.peak {
        let (module, content) = (modules.at(path), content.to_string());
        match holdings.iter_mut().find(|known| known.module == module && known.content == content) {
            Some(known) => known.bytes += bytes,
            None => holdings.push(Holding { module, content, bytes }),
        }
    }
    let (bytes, steady_bytes) = (summary.arena_bytes, program.arena_bytes);
    Arena { bytes, steady_bytes, kinds: Held::ALL, moments, peak, holdings }
}

/// The bytes in use at each step, and after the last, by what they hold.
pub(crate) fn in_steps(program: &RankProgram) -> Vec<[usize; 7]> {
    let lives = lives(program);
    let mut communicates = vec![false; program.buffers.len()];
    for step in &program.steps {
        if let Action::Start(collective) = &step.action {
            communicates[collective.from.buffer.0 as usize] = true;
            communicates[collective.to.buffer.0 as usize] = true;
        }
    }
    let mut changes = vec![[0isize; 7]; program.steps.len() + 2];
    for (buffer, content) in contents(program, &lives).into_iter().enumerate() {
        let Some((first, last)) = in_use(program, &lives, buffer) else { continue };
        let held = content.map_or(Held::Others, |(_, content)| Held::of(content, communicates[buffer]));
        let bytes = program.buffers[buffer].bytes as isize;
        changes[first][held as usize] += bytes;
        changes[last + 1][held as usize] -= bytes;
    }
    let mut now = [0isize; 7];
    let mut add = |change: &[isize; 7]| {
        now.iter_mut().zip(change).for_each(|(now, change)| *now += change);
        now.map(|bytes| bytes.max(0) as usize)
    };
    changes[..=program.steps.len()].iter().map(&mut add).collect()
}

/// The fullest moment of each interval, and of all.
fn moments(steps: &[[usize; 7]], clock: &[f64], seconds: f64) -> (Vec<Moment>, Moment) {
    let total = |step: usize| steps[step].iter().sum::<usize>();
    let moment = |step: usize, at: f64| Moment { at, bytes: steps[step].to_vec() };
    let fullest = |steps: std::ops::RangeInclusive<usize>| steps.rev().max_by_key(|&step| total(step)).unwrap_or(0);
    let width = seconds / BINS as f64;
    let moments = (0..BINS).map(|bin| {
        let (from, to) = (bin as f64 * width, (bin + 1) as f64 * width);
        // The step that runs when the interval begins, up to the last one that begins in it.
        let first = clock.partition_point(|&at| at <= from).saturating_sub(1);
        let last = clock.partition_point(|&at| at < to).saturating_sub(1);
        let last = if bin + 1 == BINS { steps.len() - 1 } else { last };
        let step = fullest(first.min(last)..=last);
        moment(step, (bin as f64 + 0.5) * width)
    });
    let peak = fullest(0..=steps.len() - 1);
    (moments.collect(), moment(peak, clock[peak]))
}
