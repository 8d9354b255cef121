//! The actions of all ranks over time, as Chrome trace events that Perfetto can open.
//!
//! Each rank has its own track. A slice is an action, with its module, its phase, the shapes and bytes of its operands
//! and results and, for a collective, the plan entry that caused it. An arrow leads from the rank that began a
//! collective last, which all others waited for, to the end of each other rank's wait. A slice around all actions of a
//! step has the step's number.
//!
//! Format: "Trace Event Format", the JSON that Chrome's `about:tracing` writes.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use tpc_ir::program::{Action, Collective, RankProgram, View};

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
    let mut lines: Vec<Value> = vec![json!({"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "tpc"}})];
    // Collectives by run, tag and members.
    let mut met: BTreeMap<(u64, u32, Vec<usize>), Vec<Met>> = BTreeMap::new();
    for (program, trace) in ranks {
        let rank = program.rank;
        let name = format!("rank {rank} {:?}", program.mesh.coords(rank));
        lines.push(json!({"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": name}}));
        lines
            .push(json!({"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": rank, "args": {"sort_index": rank}}));
        let collective = |tag: u32| program.collectives().find(|c| c.tag == tag);
        let mut runs: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
        for event in trace.ordered() {
            let Some(step) = program.steps.get(event.action as usize) else { continue };
            let span = runs.entry(event.run).or_insert([event.start, event.end]);
            *span = [span[0].min(event.start), span[1].max(event.end)];
            let of = match &step.action {
                Action::Start(c) => Some(&**c),
                Action::Wait { tag } => collective(*tag),
                _ => None,
            };
            let mut arguments = arguments(&step.action, of);
            arguments["module"] = json!(step.location());
            arguments["phase"] = json!(step.phase.name());
            arguments["action"] = json!(event.action);
            let category = if of.is_some() { "collective" } else { step.phase.name() };
            let name = match &step.action {
                Action::Start(c) => format!("start {}", c.name()),
                Action::Wait { .. } => format!("wait {}", step.label),
                _ => step.label.to_string(),
            };
            lines.push(slice(&name, category, rank, [event.start, event.end], arguments));
            if let Some(c) = of {
                let all = met.entry((event.run, c.tag, c.group.clone())).or_default();
                match &step.action {
                    Action::Start(_) => all.push(Met { rank, started: event.start, ended: None }),
                    _ => all.iter_mut().filter(|met| met.rank == rank).for_each(|met| met.ended = Some(event.end)),
                }
            }
        }
        for (run, span) in runs {
            lines.push(slice(&format!("step {run}"), "step", rank, span, json!({})));
        }
    }
    lines.extend(arrows(&met));
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    format!("{{\"traceEvents\":[\n{}\n]}}\n", lines.join(",\n"))
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

fn slice(name: &str, category: &str, rank: usize, [start, end]: [u64; 2], arguments: Value) -> Value {
    json!({
        "ph": "X", "name": name, "cat": category, "pid": 0, "tid": rank,
        "ts": microseconds(start), "dur": microseconds(end - start), "args": arguments,
    })
}

/// Arrows from the rank that began a collective last to the other ranks.
fn arrows(met: &BTreeMap<(u64, u32, Vec<usize>), Vec<Met>>) -> Vec<Value> {
    let mut arrows = Vec::new();
    for ranks in met.values() {
        let Some(last) = ranks.iter().max_by_key(|met| met.started) else { continue };
        for other in ranks.iter().filter(|met| met.rank != last.rank) {
            let Some(ended) = other.ended else { continue };
            let id = arrows.len();
            let arrow = |ph: &str, rank: usize, at: u64| {
                json!({
                    "ph": ph, "bp": "e", "name": "meets", "cat": "collective", "id": id, "pid": 0, "tid": rank,
                    "ts": microseconds(at),
                })
            };
            // Within the slices that they bind to.
            arrows.push(arrow("s", last.rank, last.started));
            arrows.push(arrow("f", other.rank, ended.saturating_sub(1)));
        }
    }
    arrows
}

fn view(view: &View) -> String {
    format!("{}{:?}", view.dtype, view.shape)
}

fn bytes(view: &View) -> usize {
    view.elements() * view.dtype.bytes()
}

/// The arguments of a slice: the operands and results of an action.
fn arguments(action: &Action, collective: Option<&Collective>) -> Value {
    if let Some(c) = collective {
        return json!({
            "axes": &*c.axes, "ranks": c.group, "operand": view(&c.from), "result": view(&c.to),
            "bytes": c.full_bytes, "sent_bytes": c.wire_bytes(), "values": c.values, "why": &*c.why,
        });
    }
    let table = |reads: &[&View], writes: &[&View]| {
        let all = reads.iter().chain(writes);
        json!({
            "reads": reads.iter().map(|v| view(v)).collect::<Vec<_>>(),
            "writes": writes.iter().map(|v| view(v)).collect::<Vec<_>>(),
            "bytes": all.map(|v| bytes(v)).sum::<usize>(),
        })
    };
    match action {
        Action::Loop(l) => json!({"dims": l.dims}),
        Action::Contract(c) => {
            let mut found = table(&[&c.left, &c.right], &[&c.out]);
            found["operations"] = json!(2 * c.dims().map(|d| d.size).product::<usize>());
            found
        }
        Action::Attention(a) => {
            let (mut reads, mut writes) = (Vec::new(), Vec::new());
            a.each_view(&mut |view, written| if written { writes.push(view) } else { reads.push(view) });
            table(&reads, &writes)
        }
        Action::Take { table: rows, index, out, .. } => table(&[rows, index], &[out]),
        Action::ScatterAdd { index, update, out, .. } => table(&[index, update], &[out]),
        Action::Put { table: out, index, rows, .. } => table(&[index, rows], &[out]),
        Action::Copy { from, to } | Action::CumSum { from, to, .. } => table(&[from], &[to]),
        Action::TopK { from, values, indices } => table(&[from], &[values, indices]),
        Action::Start(_) | Action::Wait { .. } => json!({}),
    }
}
