//! Trace events: what ranks do over time, as JSON that Perfetto can open.
//!
//! Each rank has its own track. A slice is an action, with its module, its phase, the shapes and bytes of its operands
//! and results and, for a collective, the plan entry that caused it. Executed and simulated steps are written in the same way.
//!
//! Format: "Trace Event Format", the JSON that Chrome's `about:tracing` writes. Times are in nanoseconds here.

use serde_json::{Value, json};
use tpc_ir::program::{Action, Collective, RankProgram, View};

/// Events, a line of JSON for each.
#[derive(Clone, Debug)]
pub struct Events {
    lines: Vec<Value>,
    arrows: usize,
}

impl Default for Events {
    fn default() -> Self {
        Events::new()
    }
}

impl Events {
    /// No events yet.
    pub fn new() -> Self {
        let process = json!({"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "tpc"}});
        Events { lines: vec![process], arrows: 0 }
    }

    /// Names a track. Tracks are shown in the order of their positions.
    pub fn track(&mut self, track: usize, position: usize, name: &str) {
        self.lines.push(json!({"ph": "M", "name": "thread_name", "pid": 0, "tid": track, "args": {"name": name}}));
        self.lines.push(
            json!({"ph": "M", "name": "thread_sort_index", "pid": 0, "tid": track, "args": {"sort_index": position}}),
        );
    }

    /// Names the track of a rank, which has the rank's number.
    pub fn rank(&mut self, program: &RankProgram, position: usize) {
        let rank = program.rank;
        self.track(rank, position, &format!("rank {rank} {:?}", program.mesh.coords(rank)));
    }

    /// A slice: on the track of a rank, the step of its program with this number.
    pub fn action(&mut self, program: &RankProgram, number: usize, span: [u64; 2]) {
        let step = &program.steps[number];
        let (name, of) = match &step.action {
            Action::Start(c) => (format!("start {}", c.name()), Some(&**c)),
            Action::Wait { tag } => (format!("wait {}", step.label), program.collectives().find(|c| c.tag == *tag)),
            _ => (step.label.to_string(), None),
        };
        self.work(program.rank, &name, program, (number, of), span);
    }

    /// A slice: on a track, the collective that the step with this number starts.
    pub fn collective(&mut self, track: usize, program: &RankProgram, number: usize, span: [u64; 2]) {
        let step = &program.steps[number];
        let of = match &step.action {
            Action::Start(c) => Some(&**c),
            _ => None,
        };
        self.work(track, &step.label, program, (number, of), span);
    }

    /// A slice for a step of a program, which is a part of a collective if there is one.
    fn work(
        &mut self,
        track: usize,
        name: &str,
        program: &RankProgram,
        (number, of): (usize, Option<&Collective>),
        span: [u64; 2],
    ) {
        let step = &program.steps[number];
        let mut arguments = arguments(&step.action, of);
        arguments["module"] = json!(step.location());
        arguments["phase"] = json!(step.phase.name());
        arguments["action"] = json!(number);
        let category = if of.is_some() { "collective" } else { step.phase.name() };
        self.slice(track, name, category, span, arguments);
    }

    /// A slice: on the track of a rank, all actions of a run of its program.
    pub fn step(&mut self, program: &RankProgram, run: u64, span: [u64; 2]) {
        self.slice(program.rank, &format!("step {run}"), "step", span, json!({}));
    }

    fn slice(&mut self, track: usize, name: &str, category: &str, [start, end]: [u64; 2], arguments: Value) {
        self.lines.push(json!({
            "ph": "X", "name": name, "cat": category, "pid": 0, "tid": track,
            "ts": microseconds(start), "dur": microseconds(end - start), "args": arguments,
        }));
    }

    /// The values of a counter from a time on, by their names.
    pub fn counter(&mut self, name: &str, at: u64, values: &[(&str, usize)]) {
        let values: serde_json::Map<String, Value> =
            values.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        self.lines.push(json!({"ph": "C", "name": name, "pid": 0, "ts": microseconds(at), "args": values}));
    }

    /// An arrow between two slices, each given by its track and a time within it.
    pub fn arrow(&mut self, name: &str, from: (usize, u64), to: (usize, u64)) {
        let id = self.arrows;
        self.arrows += 1;
        for (ph, (track, at)) in [("s", from), ("f", to)] {
            self.lines.push(json!({
                "ph": ph, "bp": "e", "name": name, "cat": "collective", "id": id, "pid": 0, "tid": track,
                "ts": microseconds(at),
            }));
        }
    }

    /// The events as JSON.
    pub fn to_json(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(Value::to_string).collect();
        format!("{{\"traceEvents\":[\n{}\n]}}\n", lines.join(",\n"))
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
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
            found["operations"] = json!(2 * c.dims().chain(&c.k).map(|d| d.size).product::<usize>());
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
