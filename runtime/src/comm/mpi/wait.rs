//! Waiting for messages with a deadline.

use super::process::Mpi;
use crate::error::RuntimeError;
use std::time::{Duration, Instant};

/// Something that a process waits for.
pub(super) trait Awaited {
    /// Makes progress on everything that has been started, and returns whether this is complete.
    fn poll(&mut self) -> Result<bool, RuntimeError>;
    /// A description for error messages.
    fn operation(&self) -> String;
    /// The ranks that have not contributed yet.
    fn missing(&self) -> Vec<usize>;
    /// Whether the deadline is extended while a missing process is busy, and whether completion is awaited for a short
    /// time after a process has failed.
    fn is_patient(&self) -> bool;
}

/// How long to wait for messages after a process has failed or left, because earlier messages may still arrive. MPI
/// preserves order only within a channel between two processes, so news of a failure may overtake messages that were
/// sent long before.
const GRACE: Duration = Duration::from_millis(200);
/// How long to wait for a busy process.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How long a thread polls without sleeping.
const AWAKE: Duration = Duration::from_millis(3);

/// Waits until `awaited` is complete. Every poll lets MPI make progress, so that other processes do not have to wait
/// for this one.
pub(super) fn wait(mpi: &Mpi, deadline: Duration, awaited: &mut impl Awaited) -> Result<(), RuntimeError> {
    let rank = mpi.rank();
    let mut idle = 0u32;
    let mut slow: Option<(Instant, Instant, u64)> = None;
    let (mut failed, mut gone) = (None::<Instant>, None::<Instant>);
    loop {
        if awaited.poll()? {
            return Ok(());
        }
        idle = idle.saturating_add(1);
        if idle < mpi.spins() && !idle.is_multiple_of(64) {
            std::hint::spin_loop();
            continue;
        }
        mpi.listen();
        if let Some((peer, reason)) = mpi.failed() {
            // An operation that was complete before the failure succeeds.
            if awaited.poll()? {
                return Ok(());
            }
            if !awaited.is_patient() || failed.get_or_insert_with(Instant::now).elapsed() > GRACE {
                return Err(RuntimeError::PeerFailed { rank, operation: awaited.operation(), peer, reason });
            }
        }
        if idle < mpi.spins() {
            continue;
        }
        let now = Instant::now();
        let (began, since, progress) = slow.get_or_insert_with(|| {
            let seen = if awaited.is_patient() { mpi.progress_of(&awaited.missing()) } else { 0 };
            (now, now, seen)
        });
        if now - *since > deadline {
            let missing = awaited.missing();
            let seen = mpi.progress_of(&missing).max(*progress);
            // As for processes that share memory: a process that computes for at least a tenth of the time is busy, one
            // that computes less hangs.
            let busy = (deadline.as_millis() as u64 / 100).max(1);
            if !awaited.is_patient() || seen - *progress < busy || now - *began > PATIENCE.max(deadline) {
                let (operation, states) = (awaited.operation(), mpi.states(&missing));
                return Err(RuntimeError::Deadline { rank, operation, missing, states, deadline });
            }
            (*progress, *since) = (seen, now);
        }
        if mpi.any_has_left() {
            let missing: Vec<usize> = awaited.missing().into_iter().filter(|&r| mpi.has_left(r)).collect();
            if !missing.is_empty() && now - *gone.get_or_insert(now) > GRACE {
                return Err(RuntimeError::Gone { rank, operation: awaited.operation(), missing });
            }
        }
        if now - *began < AWAKE {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
