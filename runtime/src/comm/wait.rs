//! Waiting for others without waiting for ever: spin for a moment, then yield, then sleep, and see who is late, failed or gone.

use super::control::Control;
use std::time::{Duration, Instant};

/// Why waiting ended without what was waited for.
pub(crate) enum Stop<E> {
    /// The wait makes no sense any more.
    Error(E),
    /// A rank has failed.
    Failed,
    /// The deadline has passed.
    Late,
    /// These ranks have lost their processes.
    Gone(Vec<usize>),
}

/// Whoever is waited for.
pub(crate) trait Awaited<E> {
    /// Of which world.
    fn control(&self) -> &Control;
    /// What was waited for, if it is there.
    fn look(&mut self) -> Result<Option<()>, E>;
    /// After some time without it: whether it can still come.
    fn is_hopeless(&mut self) -> Option<E>;
    /// Who has not come.
    fn missing(&mut self) -> Vec<usize>;
    /// A number that grows as long as those who are missing do something that takes its time: the deadline begins anew.
    fn progress(&mut self) -> u64;
}

/// How long the processes of a world are seen as gone before that is an error: the launcher may know why, and say so first.
const GRACE: Duration = Duration::from_millis(400);
/// Even those who do something that takes its time are not waited for longer.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How often processes are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Waits; `spin` if every rank has a core of its own.
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
            // What was complete before the failure counts: whoever fails later has left it behind.
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
            // Whoever was late may have come meanwhile.
            return match awaited.look().map_err(Stop::Error)? {
                Some(()) => Ok(()),
                None => Err(stop),
            };
        }
        if idle < spins + yields {
            std::thread::yield_now();
        } else {
            // Counted before the last look, so that whoever publishes after it rings.
            bell = Some(awaited.control().lie_down());
        }
    }
}

struct Slow {
    began: Instant,
    /// The beginning, or when progress was last seen.
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
