//! The progress of a rank's collectives within a step. The device writes it into words that the host can read, and from
//! there it goes into the flight record, so that a failure can name the collective and the missing ranks.

use super::context::failed;
use super::pinned::Pinned;
use crate::comm::{Processes, describe};
use crate::device::cuda::error::CudaError;
use crate::error::RuntimeError;
use crate::flight::{Clock, Label, Number, State};
use cudarc::driver::sys;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tpc_ir::program::Collective;

/// Words: how many collectives of the step have begun, and how many have ended. They run one after the other, in
/// program order.
const BEGUN: usize = 0;
const ENDED: usize = 1;

/// What the host has seen of the current step.
#[derive(Default)]
struct Seen {
    step: u64,
    begun: usize,
    ended: usize,
    numbers: VecDeque<Number>,
}

/// The words of one rank, and the collectives that they count.
pub(super) struct Progress {
    rank: usize,
    processes: Arc<dyn Processes>,
    words: Pinned,
    at: sys::CUdeviceptr,
    collectives: Vec<Collective>,
    labels: Vec<Label>,
    clock: Clock,
    seen: Mutex<Seen>,
    /// Whether the device can write them.
    pub(super) works: bool,
}

impl Progress {
    /// Allocates words for the collectives of a rank, and tries them on a stream.
    pub(super) fn new(
        rank: usize,
        processes: Arc<dyn Processes>,
        collectives: Vec<Collective>,
        stream: sys::CUstream,
    ) -> Result<Self, CudaError> {
        let words = Pinned::new(8)?;
        let at = words.on_device()?;
        let labels = collectives.iter().map(Label::of).collect();
        let (clock, seen) = (Clock::new(), Mutex::default());
        let mut made = Progress { rank, processes, words, at, collectives, labels, clock, seen, works: true };
        // If the device or driver lacks such operations, messages are only less precise.
        made.works = made.write(BEGUN, 0, stream).is_ok();
        Ok(made)
    }

    fn write(&self, word: usize, value: usize, stream: sys::CUstream) -> Result<(), CudaError> {
        // SAFETY: the word is in this object's mapped memory.
        unsafe { sys::cuStreamWriteValue32_v2(stream, self.at + 4 * word as u64, value as u32, 0) }
            .result()
            .map_err(failed("cuStreamWriteValue32"))
    }

    /// Enqueues a mark that the collective with this index begins here.
    pub(super) fn begin(&self, index: usize, stream: sys::CUstream) -> Result<(), CudaError> {
        if self.works { self.write(BEGUN, index + 1, stream) } else { Ok(()) }
    }

    /// Enqueues a mark that it has ended.
    pub(super) fn end(&self, index: usize, stream: sys::CUstream) -> Result<(), CudaError> {
        if self.works { self.write(ENDED, index + 1, stream) } else { Ok(()) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets the words at the beginning of a step.
    pub(super) fn begin_step(&self) {
        self.words.store(BEGUN, 0);
        self.words.store(ENDED, 0);
        *self.seen() = Seen { step: self.processes.flight(self.rank).begin_step(), ..Seen::default() };
    }

    /// Records what has begun and ended since the last look; returns whether anything has.
    pub(super) fn look(&self) -> bool {
        // In this order, because what has ended has begun.
        let ended = self.words.load(ENDED) as usize;
        let begun = (self.words.load(BEGUN) as usize).max(ended).min(self.labels.len());
        let (flight, now) = (self.processes.flight(self.rank), self.clock.nanoseconds(Instant::now()));
        let mut seen = self.seen();
        let moved = begun > seen.begun || ended > seen.ended;
        for label in &self.labels[seen.begun.min(begun)..begun] {
            let number = flight.start(seen.step, now, label);
            flight.wait(number);
            seen.numbers.push_back(number);
        }
        for _ in seen.ended..ended {
            if let Some(number) = seen.numbers.pop_front() {
                flight.finish(number, now);
            }
        }
        (seen.begun, seen.ended) = (begun.max(seen.begun), ended.max(seen.ended));
        moved
    }

    /// Whether the rank no longer waits for any other rank in this step.
    pub(super) fn is_alone(&self) -> bool {
        self.works && self.seen().ended == self.labels.len()
    }

    /// The collective that the rank waits in, or will reach next.
    fn current(&self) -> Option<(&Collective, bool)> {
        let seen = self.seen();
        let collective = self.collectives.get(seen.ended)?;
        Some((collective, seen.begun > seen.ended))
    }

    /// What the rank waits for, for error messages.
    pub(super) fn operation(&self) -> String {
        match self.current() {
            Some((collective, true)) => describe(collective),
            Some((collective, false)) => format!("the step before {}", describe(collective)),
            None => "the end of the step".into(),
        }
    }

    /// The error of a rank that has waited too long in a collective; `None` if it is not in one.
    pub(super) fn late(&self, deadline: Duration) -> Option<RuntimeError> {
        let (collective, true) = self.current()? else { return None };
        let step = self.seen().step;
        let record = self.processes.flight_record();
        let of = |rank: usize| record.ranks.iter().find(|r| r.rank == rank);
        let has = |rank: usize, ended: bool| {
            let operations = of(rank).map_or(&[][..], |r| &r.operations);
            operations.iter().any(|o| {
                let is_it = o.step == step && o.tag == u64::from(collective.tag);
                o.step > step || (is_it && (!ended || o.state == State::Finished))
            })
        };
        let peers = || collective.group.iter().copied().filter(|&r| r != self.rank);
        let mut missing: Vec<usize> = peers().filter(|&r| !has(r, false)).collect();
        if missing.is_empty() {
            missing = peers().filter(|&r| !has(r, true)).collect();
        }
        let states = missing.iter().filter_map(|&r| Some(format!("rank {r} is {}", of(r)?.state)));
        let states = states.collect::<Vec<_>>().join(", ");
        let states = if states.is_empty() { states } else { format!(" ({states})") };
        Some(RuntimeError::Deadline { rank: self.rank, operation: describe(collective), missing, states, deadline })
    }
}
