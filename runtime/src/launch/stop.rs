//! Handles signals that ask a process to end after it has finished its work: SIGINT, SIGTERM and SIGHUP are recorded,
//! and the program asks for them between steps. All processes of a world get the same answer.
//!
//! A terminal, `tpc launch` and other launchers signal all processes of a world, but at different moments of their
//! work, and a user may signal a single process. After each step every process therefore tells the others which signal
//! it has received, and all stop after the same step.

use crate::comm::processes::{Ending, Processes};
use crate::error::RuntimeError;
use std::cell::Cell;
use std::fmt::{self, Display};
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::time::Duration;

/// A signal that ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

/// The signals that are caught.
const CAUGHT: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

impl Signal {
    /// The exit code of a process that this signal ends.
    pub fn exit_code(self) -> u8 {
        128 + self.0 as u8
    }

    fn of_byte(byte: u8) -> Option<Self> {
        CAUGHT.into_iter().find(|signal| *signal == i32::from(byte)).map(Signal)
    }
}

impl Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            libc::SIGINT => "SIGINT",
            libc::SIGTERM => "SIGTERM",
            _ => "SIGHUP",
        })
    }
}

/// The first signal that was received; 0 for none.
static CAME: AtomicI32 = AtomicI32::new(0);
/// The time when it was received, in nanoseconds.
static CAME_AT: AtomicI64 = AtomicI64::new(0);
/// Signals within this many nanoseconds count as one: service managers and batch systems signal all processes, and the
/// launcher also passes on the signal that it receives.
const ONE: i64 = 250_000_000;

/// Nanoseconds of a monotonic clock.
fn now() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time lives through the call, which may be made in a handler.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// Records the first signal. The second one ends the process: the signal's default action runs when this returns.
extern "C" fn note(signal: libc::c_int) {
    if CAME.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        CAME_AT.store(now(), Ordering::SeqCst);
    } else if now() - CAME_AT.load(Ordering::SeqCst) > ONE {
        // SAFETY: both calls may be made in a handler. The signal is blocked until the handler returns.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

/// While this exists, a signal does not end the process immediately.
pub struct Stop<'a> {
    processes: &'a dyn Processes,
    /// The caught signals, with their previous actions.
    before: Vec<(i32, libc::sigaction)>,
    /// Whether a process was asked to end.
    told: Cell<bool>,
}

impl<'a> Stop<'a> {
    /// Starts catching signals, except those that the process was started to ignore.
    pub fn catch(processes: &'a dyn Processes) -> Self {
        CAME.store(0, Ordering::SeqCst);
        let mut before = Vec::new();
        for signal in CAUGHT {
            // SAFETY: both actions live through the calls; zeroed ones are valid, and the handler only makes calls that
            // handlers may make.
            unsafe {
                let (mut old, mut new): (libc::sigaction, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
                libc::sigaction(signal, std::ptr::null(), &raw mut old);
                if old.sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                new.sa_sigaction = note as extern "C" fn(libc::c_int) as libc::sighandler_t;
                new.sa_flags = libc::SA_RESTART;
                if libc::sigaction(signal, &raw const new, std::ptr::null_mut()) == 0 {
                    before.push((signal, old));
                }
            }
        }
        processes.set_ending(Ending::AfterStep);
        Stop { processes, before, told: Cell::new(false) }
    }

    /// The signal that asks any of the processes to end, the same on all of them. All processes have to call this.
    ///
    /// # Errors
    /// A process that does not respond.
    pub fn asked(&self, deadline: Duration) -> Result<Option<Signal>, RuntimeError> {
        let mine = [CAME.load(Ordering::SeqCst) as u8];
        let all = self.processes.exchange("end after this step?", &mine, deadline)?;
        let signal = all.iter().find_map(|byte| Signal::of_byte(*byte.first()?));
        if signal.is_some() {
            self.told.set(true);
            self.processes.set_ending(Ending::AsTold);
        }
        Ok(signal)
    }
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        if !self.told.get() {
            self.processes.set_ending(Ending::AtOnce);
        }
        for (signal, before) in &self.before {
            // SAFETY: the action is the one that the system returned.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::local::Local;

    /// A single test, because signals concern the whole process.
    #[test]
    fn a_signal_is_noted_and_told_until_the_end() {
        let alone = Local::alone(2).unwrap();
        let asked = |stop: &Stop| stop.asked(Duration::from_secs(1)).unwrap();
        let action = |signal: i32| {
            // SAFETY: the action lives through the call.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, std::ptr::null(), &raw mut action);
                action.sa_sigaction
            }
        };
        // SAFETY: no handler is installed.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        let before = CAUGHT.map(action);
        let stop = Stop::catch(&*alone);
        assert_eq!(asked(&stop), None);
        assert_eq!(action(libc::SIGHUP), libc::SIG_IGN, "nohup stays in effect");
        // SAFETY: the signal is caught.
        unsafe { libc::raise(libc::SIGTERM) };
        let signal = asked(&stop).unwrap();
        assert_eq!((signal.to_string().as_str(), signal.exit_code()), ("SIGTERM", 143));
        drop(stop);
        assert_eq!(CAUGHT.map(action), before);
        assert_eq!(asked(&Stop::catch(&*alone)), None, "a signal to an earlier run no longer counts");
    }
}
