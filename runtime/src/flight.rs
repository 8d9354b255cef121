//! The flight record: the latest collectives of every rank, always recorded, and written after a failure.
//!
//! PyTorch's flight recorder keeps the same information for NCCL. Here a rank writes into a ring of fixed entries, with
//! plain stores and no lock. The ring may be in memory that outlives the rank's process, so that a launcher can read
//! the last collectives of a killed rank.

use super::comm::text::Text;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::Instant;
use tpc_ir::program::Collective;

/// Number of collectives that are kept per rank.
pub const OPERATIONS: usize = 64;

/// The description of a collective, prepared once, so that recording it is a copy.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Label {
    tag: AtomicU64,
    bytes: AtomicU64,
    name: Text<2>,
    axes: Text<4>,
    why: Text<26>,
}

impl Label {
    /// The label of a collective; long reasons are truncated.
    pub fn of(c: &Collective) -> Self {
        let label = Label::default();
        label.tag.store(u64::from(c.tag), Relaxed);
        label.bytes.store(c.full_bytes as u64, Relaxed);
        label.name.set(c.name());
        label.axes.set(&c.axes);
        label.why.set(&c.why);
        label
    }

    fn copy_from(&self, other: &Label) {
        self.tag.store(other.tag.load(Relaxed), Relaxed);
        self.bytes.store(other.bytes.load(Relaxed), Relaxed);
        self.name.copy_from(&other.name);
        self.axes.copy_from(&other.axes);
        self.why.copy_from(&other.why);
    }
}

const STARTED: u64 = 1;
const WAITED_FOR: u64 = 2;
const FINISHED: u64 = 3;

#[repr(C)]
#[derive(Debug)]
struct Entry {
    /// Number of operations that the rank had started, including this one; 0 for an empty entry.
    number: AtomicU64,
    state: AtomicU64,
    step: AtomicU64,
    started: AtomicU64,
    finished: AtomicU64,
    label: Label,
}

/// The ring of one rank. Zeroed memory is an empty ring.
#[repr(C)]
#[derive(Debug)]
pub struct Flight {
    steps: AtomicU64,
    started: AtomicU64,
    entries: [Entry; OPERATIONS],
}

/// The number of an operation in a [`Flight`]; 0 is none.
pub type Number = u64;

impl Flight {
    /// Begins another step; returns the number of previous steps.
    pub fn begin_step(&self) -> u64 {
        self.steps.fetch_add(1, Relaxed)
    }

    fn entry(&self, number: Number) -> &Entry {
        &self.entries[number as usize % OPERATIONS]
    }

    /// Records the start of a collective, at a time of a [`Clock`].
    pub fn start(&self, step: u64, now: u64, label: &Label) -> Number {
        let number = self.started.load(Relaxed) + 1;
        let entry = self.entry(number);
        entry.number.store(0, Relaxed);
        entry.label.copy_from(label);
        entry.step.store(step, Relaxed);
        entry.started.store(now, Relaxed);
        entry.finished.store(0, Relaxed);
        entry.state.store(STARTED, Relaxed);
        entry.number.store(number, Release);
        self.started.store(number, Release);
        number
    }

    /// Records that the rank now waits for a collective.
    pub fn wait(&self, number: Number) {
        let entry = self.entry(number);
        if entry.number.load(Relaxed) == number {
            entry.state.store(WAITED_FOR, Relaxed);
        }
    }

    /// Records the end of a collective, at a time of a [`Clock`].
    pub fn finish(&self, number: Number, now: u64) {
        let entry = self.entry(number);
        if entry.number.load(Relaxed) == number {
            entry.finished.store(now, Relaxed);
            entry.state.store(FINISHED, Release);
        }
    }

    /// The collective that the rank waits for, for error messages.
    pub fn waiting(&self) -> Option<String> {
        let all = self.operations();
        let o = all.iter().rev().find(|o| o.state == State::WaitedFor)?;
        let why = if o.why.is_empty() { String::new() } else { format!(" (why: {})", o.why) };
        Some(format!("waiting in `{} {}` #{}{why}", o.name, o.axes, o.tag))
    }

    /// The contents of the ring, from the earliest operation to the latest.
    pub fn operations(&self) -> Vec<Operation> {
        let started = self.started.load(Acquire);
        let first = started.saturating_sub(OPERATIONS as u64 - 1).max(1);
        (first..=started).filter_map(|number| self.operation(number)).collect()
    }

    fn operation(&self, number: Number) -> Option<Operation> {
        let e = self.entry(number);
        let mine = || e.number.load(Acquire) == number;
        if !mine() {
            return None;
        }
        let state = match e.state.load(Acquire) {
            FINISHED => State::Finished,
            WAITED_FOR => State::WaitedFor,
            _ => State::Started,
        };
        let operation = Operation {
            step: e.step.load(Relaxed),
            tag: e.label.tag.load(Relaxed),
            name: e.label.name.get(),
            axes: e.label.axes.get(),
            bytes: e.label.bytes.load(Relaxed),
            why: e.label.why.get(),
            state,
            started: e.started.load(Relaxed),
            finished: e.finished.load(Relaxed),
        };
        // It may have been overwritten in the meantime.
        mine().then_some(operation)
    }
}

/// The state of a collective on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The rank has published its buffers.
    Started,
    /// The rank is waiting for it.
    WaitedFor,
    /// It is finished on the rank.
    Finished,
}

/// A collective that a rank started.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Number of steps that the rank had finished before in its process.
    pub step: u64,
    /// Tag of the collective.
    pub tag: u64,
    /// Its mnemonic.
    pub name: String,
    /// Names of its axes.
    pub axes: String,
    /// Bytes of the whole value.
    pub bytes: u64,
    /// The plan entry that caused it.
    pub why: String,
    /// Its state.
    pub state: State,
    /// Time of its start, in nanoseconds of the host's monotonic clock.
    pub started: u64,
    /// Time of its end; 0 if it has not finished.
    pub finished: u64,
}

/// The latest operations of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct RankRecord {
    /// The rank.
    pub rank: usize,
    /// Its process.
    pub pid: u32,
    /// Its activity.
    pub state: String,
    /// Its latest collectives, in order.
    pub operations: Vec<Operation>,
}

/// The latest operations of all ranks, and the first failure.
#[derive(Clone, Debug, PartialEq)]
pub struct FlightRecord {
    /// The rank that failed first, and why.
    pub failure: Option<(usize, String)>,
    /// All ranks in order.
    pub ranks: Vec<RankRecord>,
}

impl FlightRecord {
    /// The record as JSON; times are microseconds of the host's monotonic clock.
    pub fn to_json(&self) -> String {
        let micro = |ns: u64| ns as f64 / 1e3;
        let operation = |o: &Operation| {
            let state = match o.state {
                State::Started => "started",
                State::WaitedFor => "waiting",
                State::Finished => "finished",
            };
            json!({
                "step": o.step, "tag": o.tag, "name": o.name, "axes": o.axes, "bytes": o.bytes, "why": o.why,
                "state": state, "started_us": micro(o.started),
                "finished_us": (o.state == State::Finished).then(|| micro(o.finished)),
            })
        };
        let ranks: Vec<Value> = self
            .ranks
            .iter()
            .map(|r| {
                let operations: Vec<Value> = r.operations.iter().map(operation).collect();
                json!({"rank": r.rank, "pid": r.pid, "state": r.state, "operations": operations})
            })
            .collect();
        let failure = self.failure.as_ref().map(|(rank, reason)| json!({"rank": rank, "reason": reason}));
        format!("{:#}\n", json!({"failure": failure, "ranks": ranks}))
    }
}

/// Converts instants to nanoseconds of the host's monotonic clock, which all processes of a host share.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    nanoseconds: u64,
}

impl Clock {
    /// Creates a clock.
    pub fn new() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time lives through the call.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        Clock { instant: Instant::now(), nanoseconds: time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64 }
    }

    /// The time of an instant after the creation of the clock.
    pub fn nanoseconds(&self, at: Instant) -> u64 {
        self.nanoseconds + (at - self.instant).as_nanos() as u64
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}
