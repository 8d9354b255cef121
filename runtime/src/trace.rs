//! What a rank did when, as Chrome trace events (`chrome://tracing`, Perfetto).

use std::fmt::Write as _;
use tpc_ir::program::{Action, RankProgram};

/// One executed action.
#[derive(Clone, Copy, Debug)]
struct Event {
    step: u32,
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

    pub(crate) fn record(&mut self, step: usize, start: u64, end: u64) {
        let event = Event { step: step as u32, start, end };
        if self.events.len() < self.capacity {
            self.events.push(event);
        } else if self.capacity > 0 {
            self.events[self.next % self.capacity] = event;
        }
        self.next += 1;
    }

    pub(crate) fn write_json(&self, program: &RankProgram, out: &mut String) {
        let first = if self.next > self.capacity { self.next % self.capacity.max(1) } else { 0 };
        for i in 0..self.events.len() {
            let e = self.events[(first + i) % self.events.len()];
            let step = &program.steps[e.step as usize];
            let collective = matches!(step.action, Action::Start(_) | Action::Wait { .. });
            let label = step.label.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(
                out,
                "{}{{\"name\":\"{label}\",\"cat\":\"{}{}\",\"ph\":\"X\",\"pid\":0,\"tid\":{},\"ts\":{:.3},\"dur\":{:.3},\"args\":{{\"step\":{}}}}}",
                if out.ends_with('[') { "\n" } else { ",\n" },
                step.phase.name(),
                if collective { ",collective" } else { "" },
                program.rank,
                e.start as f64 / 1e3,
                (e.end - e.start) as f64 / 1e3,
                e.step,
            );
        }
    }
}
