//! The actions of all ranks over time, as trace events ([`Events`]).
//!
//! Each rank has its own track. An arrow leads from the rank that began a collective last, which all others waited for,
//! to the end of each other rank's wait. A slice around all actions of a step has the step's number.

use crate::events::Events;
use std::collections::BTreeMap;
use tpc_ir::program::{Action, RankProgram};

/// One executed action.
#[derive(Clone, Copy, Debug)]
struct Event {
    /// Its position in the program.
    action: u32,
    /// The number of the run of the program.
    run: u64,
    /// Nanoseconds since the session began.
    start: u64,
    end: u64,
}

/// The latest events of one rank, in memory that is allocated once.
#[derive(Debug)]
pub(crate) struct Trace {
    events: Vec<Event>,
    capacity: usize,
    next: usize,
}

impl Trace {
    pub(crate) fn new(capacity: usize) -> Self {
        Trace { events: Vec::with_capacity(capacity), capacity, next: 0 }
    }

    pub(crate) fn record(&mut self, action: usize, run: u64, start: u64, end: u64) {
        let event = Event { action: action as u32, run, start, end };
        if self.events.len() < self.capacity {
            self.events.push(event);
        } else if self.capacity > 0 {
            self.events[self.next % self.capacity] = event;
        }
        self.next += 1;
    }

    /// Nanoseconds of all actions of the latest run, if the trace contains all of them.
    pub(crate) fn latest(&self) -> Option<u64> {
        let run = self.ordered().last()?.run;
        let mut events = self.ordered().filter(|event| event.run == run).peekable();
        let whole = events.peek().is_some_and(|event| event.action == 0);
        let total = events.map(|event| event.end - event.start).sum();
        whole.then_some(total)
    }

    /// The events, the oldest first.
    fn ordered(&self) -> impl Iterator<Item = &Event> {
        let first = if self.next > self.capacity { self.next % self.capacity.max(1) } else { 0 };
        self.events[first..].iter().chain(&self.events[..first])
    }
}

/// The start and the end of a collective on one rank.
struct Met {
    rank: usize,
    started: u64,
    ended: Option<u64>,
}

/// The trace of ranks of one program, a line for each event.
pub(crate) fn json(ranks: &[(&RankProgram, &Trace)]) -> String {
    let mut events = Events::new();
    // Collectives by run, tag and members.
    let mut met: BTreeMap<(u64, u32, Vec<usize>), Vec<Met>> = BTreeMap::new();
    for (program, trace) in ranks {
        let rank = program.rank;
        events.rank(program, rank);
        let collective = |tag: u32| program.collectives().find(|c| c.tag == tag);
        let mut runs: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
        for event in trace.ordered() {
            let Some(step) = program.steps.get(event.action as usize) else { continue };
            let span = runs.entry(event.run).or_insert([event.start, event.end]);
            *span = [span[0].min(event.start), span[1].max(event.end)];
            events.action(program, event.action as usize, [event.start, event.end]);
            let of = match &step.action {
                Action::Start(c) => Some(&**c),
                Action::Wait { tag } => collective(*tag),
                _ => None,
            };
            if let Some(c) = of {
                let all = met.entry((event.run, c.tag, c.group.clone())).or_default();
                match &step.action {
                    Action::Start(_) => all.push(Met { rank, started: event.start, ended: None }),
                    _ => all.iter_mut().filter(|met| met.rank == rank).for_each(|met| met.ended = Some(event.end)),
                }
            }
        }
        for (run, span) in runs {
            events.step(program, run, span);
        }
    }
    for ranks in met.values() {
        let Some(last) = ranks.iter().max_by_key(|met| met.started) else { continue };
        for other in ranks.iter().filter(|met| met.rank != last.rank) {
            let Some(ended) = other.ended else { continue };
            // Within the slices that the arrow binds to.
            events.arrow("meets", (last.rank, last.started), (other.rank, ended.saturating_sub(1)));
        }
    }
    events.to_json()
}
