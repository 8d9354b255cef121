//! Detects when waiting for ranks of other processes becomes pointless.

use crate::comm::Processes;
use crate::error::RuntimeError;
use std::time::{Duration, Instant};

/// How long a process may be gone before that is an error: the launcher may know the reason and report it first.
const GRACE: Duration = Duration::from_millis(400);
/// Interval at which processes are checked.
const LOOK: Duration = Duration::from_millis(100);

/// One wait of a rank.
pub(super) struct Watch<'a> {
    processes: Option<&'a dyn Processes>,
    rank: usize,
    looked: Instant,
    gone: Option<Instant>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(processes: Option<&'a dyn Processes>, rank: usize) -> Self {
        Watch { processes, rank, looked: Instant::now(), gone: None }
    }

    /// The reason why waiting is pointless, if it is; `operation` describes what is waited for.
    pub(super) fn trouble(&mut self, operation: impl Fn() -> String) -> Option<RuntimeError> {
        let (processes, rank) = (self.processes?, self.rank);
        if let Some((peer, reason)) = processes.failure() {
            return Some(RuntimeError::PeerFailed { rank, operation: operation(), peer, reason });
        }
        if self.looked.elapsed() < LOOK {
            return None;
        }
        self.looked = Instant::now();
        let missing = processes.gone();
        if missing.is_empty() {
            self.gone = None;
            return None;
        }
        let since = *self.gone.get_or_insert(self.looked);
        (since.elapsed() > GRACE).then(|| RuntimeError::Gone { rank, operation: operation(), missing })
    }
}
