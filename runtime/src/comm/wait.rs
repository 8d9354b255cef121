//! Waiting with a deadline: spins for a moment, then yields, then sleeps, and detects ranks that are late, failed or
//! gone.

use super::control::Control;
use std::time::{Duration, Instant};

/// Why waiting ended without success.
pub(crate) enum Stop<E> {
    /// The wait became pointless.
    Error(E),
    /// A rank has failed.
    Failed,
    /// The deadline has passed.
    Late,
    /// These ranks have lost their processes.
    Gone(Vec<usize>),
}

/// An event that a rank waits for.
pub(crate) trait Awaited<E> {
    /// The control block of its world.
    fn control(&self) -> &Control;
    /// Whether the event has occurred.
    fn look(&mut self) -> Result<Option<()>, E>;
    /// Called after some time: an error if the event can no longer occur.
    fn is_hopeless(&mut self) -> Option<E>;
    /// The ranks that are missing.
    fn missing(&mut self) -> Vec<usize>;
    /// A number that increases while the missing ranks do long work: the deadline then restarts.
    fn progress(&mut self) -> u64;
}

/// How long a process may be gone before that is an error: the launcher may know the reason and report it first.
const GRACE: Duration = Duration::from_millis(400);
/// The longest wait, even for ranks that report progress.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Interval at which processes are checked.
const LOOK: Duration = Duration::from_millis(100);

/// Waits; `spin` if every rank has its own core.
pub(crate) fn wait<E>(deadline: Duration, spin: bool, awaited: &mut impl Awaited<E>) -> Result<(), Stop<E>> {
    let (spins, yields) = if spin { (2000, 200) } else { (0, 20) };
    let mut idle = 0u32;
    let mut bell = None;
    let mut slow: Option<Slow> = None;
    loop {
        let found = awaited.look();
        if let Some(bell) = bell.take() {
            let control = awaited.control();
            control.sleep(bell, matches!(found, Ok(None)) && !control.has_failed());
        }
        if found.map_err(Stop::Error)?.is_some() {
            return Ok(());
        }
        if awaited.control().has_failed() {
            // An event that completed before the failure counts: a rank that fails later has already passed it.
            return match awaited.look().map_err(Stop::Error)? {
                Some(()) => Ok(()),
                None => Err(Stop::Failed),
            };
        }
        idle = idle.saturating_add(1);
        if idle < spins {
            std::hint::spin_loop();
            continue;
        }
        if let Some(error) = awaited.is_hopeless() {
            return Err(Stop::Error(error));
        }
        let now = Instant::now();
        let slow = slow.get_or_insert_with(|| Slow::new(now, awaited.progress()));
        if let Err(stop) = slow.check(now, deadline, awaited) {
            // A late rank may have arrived in the meantime.
            return match awaited.look().map_err(Stop::Error)? {
                Some(()) => Ok(()),
                None => Err(stop),
            };
        }
        if idle < spins + yields {
            std::thread::yield_now();
        } else {
            // Counted before the last look, so that a rank that publishes after it rings the bell.
            bell = Some(awaited.control().lie_down());
        }
    }
}

struct Slow {
    began: Instant,
    /// The beginning of the wait, or the last time that progress was seen.
    since: Instant,
    progress: u64,
    looked: Instant,
    gone: Option<Instant>,
}

impl Slow {
    fn new(now: Instant, progress: u64) -> Self {
        Slow { began: now, since: now, progress, looked: now, gone: None }
    }

    fn check<E>(&mut self, now: Instant, deadline: Duration, awaited: &mut impl Awaited<E>) -> Result<(), Stop<E>> {
        if now - self.since > deadline {
            let progress = awaited.progress();
            if progress == self.progress || now - self.began > PATIENCE.max(deadline) {
                return Err(Stop::Late);
            }
            (self.progress, self.since) = (progress, now);
        }
        if awaited.control().is_shared() && now - self.looked > LOOK {
            self.looked = now;
            let missing = awaited.missing();
            let gone = awaited.control().gone(&missing);
            if gone.is_empty() {
                self.gone = None;
            } else if now - *self.gone.get_or_insert(now) > GRACE {
                return Err(Stop::Gone(gone));
            }
        }
        Ok(())
    }
}
