//! The simulated step as trace events, in the form in which executed steps are traced.
//!
//! The first rank of each kind has a track with its kernels and with the starts and waits of its collectives, as in the trace of
//! an executed step, and a track for the collectives along each axis, or along each set of axes. On a GPU these overlap with
//! kernels; on a CPU the rank itself executes a collective while it waits. An arrow leads from a collective to the first kernel
//! after its wait, which reads its result. A counter has the bytes of the arena that are in use, by what they hold.

use super::{Kind, Simulation};
use crate::view::{Held, clock, in_steps};
use std::collections::BTreeMap;
use tpc_ir::program::{Action, Step};
use tpc_passes::simulate::Lane;
use tpc_passes::targets::DeviceKind;
use tpc_runtime::events::Events;

/// The trace of a simulated step, which begins at time 0.
pub fn trace(simulation: &Simulation) -> String {
    let mut events = Events::new();
    let mut tracks = Tracks { free: simulation.mesh.ranks(), shown: 0 };
    for kind in &simulation.kinds {
        add(&mut events, &mut tracks, kind, simulation.device);
    }
    events.to_json()
}

/// The numbers of tracks that no rank has, and how many tracks are shown.
struct Tracks {
    free: usize,
    shown: usize,
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn add(events: &mut Events, tracks: &mut Tracks, kind: &Kind, device: DeviceKind) {
    let Kind { program, timeline, .. } = kind;
    let mut position = || {
        tracks.shown += 1;
        tracks.shown - 1
    };
    events.rank(program, position());
    // The collectives along some axes, by the text of the axes in the program.
    let mut links: BTreeMap<&str, usize> = program.collectives().map(|c| (&*c.axes, 0)).collect();
    for (axes, track) in &mut links {
        *track = tracks.free;
        tracks.free += 1;
        events.track(*track, position(), &format!("rank {} along {axes}", program.rank));
    }
    let clock: Vec<u64> = clock(program, timeline, device).into_iter().map(nanoseconds).collect();
    let end = nanoseconds(timeline.seconds);
    events.step(program, 0, [0, end]);
    for number in 0..program.steps.len() {
        events.action(program, number, [clock[number], clock[number + 1]]);
    }
    let computes = |step: &Step| !matches!(step.action, Action::Start(_) | Action::Wait { .. });
    // For each step, the first kernel from it on.
    let mut reader = None;
    let mut readers: Vec<Option<usize>> = Vec::with_capacity(program.steps.len());
    for (number, step) in program.steps.iter().enumerate().rev() {
        reader = if computes(step) { Some(number) } else { reader };
        readers.push(reader);
    }
    readers.reverse();
    let waits = |(number, step): (usize, &Step)| match step.action {
        Action::Wait { tag } => Some((tag, number)),
        _ => None,
    };
    let waits: BTreeMap<u32, usize> = program.steps.iter().enumerate().filter_map(waits).collect();
    for slice in timeline.slices.iter().filter(|slice| slice.lane == Lane::Communication) {
        let Action::Start(collective) = &program.steps[slice.step].action else { continue };
        let track = links[&*collective.axes];
        let span = [nanoseconds(slice.start), nanoseconds(slice.start + slice.seconds)];
        events.collective(track, program, slice.step, span);
        // What only the caller reads is read at the end of its wait.
        if let Some(reader) = waits.get(&collective.tag).map(|&wait| readers[wait].unwrap_or(wait)) {
            // Within the slices that the arrow binds to.
            events.arrow("is read by", (track, span[1].saturating_sub(1)), (program.rank, clock[reader]));
        }
    }
    let name = format!("memory of rank {}", program.rank);
    let names = Held::ALL.map(Held::name);
    let mut before = None;
    for (step, held) in in_steps(program).into_iter().enumerate() {
        if before != Some(held) {
            let values: Vec<(&str, usize)> = names.into_iter().zip(held).collect();
            events.counter(&name, clock[step.min(clock.len() - 1)], &values);
            before = Some(held);
        }
    }
}
