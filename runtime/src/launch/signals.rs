//! Waiting for blocked signals.

use std::time::Duration;

/// Signals that are blocked in the calling thread, and in threads that it starts from then on.
pub(super) struct Signals {
    held: libc::sigset_t,
    /// The signals that were blocked before.
    pub(super) before: libc::sigset_t,
}

impl Signals {
    pub(super) fn block(signals: &[i32]) -> Self {
        // SAFETY: the calls initialize both sets before they are read.
        unsafe {
            let (mut held, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&raw mut held);
            for &signal in signals {
                libc::sigaddset(&raw mut held, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const held, &raw mut before);
            Signals { held, before }
        }
    }

    /// Waits for one of the signals, and returns it unless it only reports that a child has ended.
    pub(super) fn wait(&self, longest: Duration) -> Option<i32> {
        let (seconds, rest) = (longest.as_secs(), longest.subsec_nanos());
        let time = libc::timespec { tv_sec: seconds as libc::time_t, tv_nsec: i64::from(rest) };
        // SAFETY: the set and the time live through the call; no details are requested.
        let signal = unsafe { libc::sigtimedwait(&raw const self.held, std::ptr::null_mut(), &raw const time) };
        (signal > 0 && signal != libc::SIGCHLD).then_some(signal)
    }

    /// Restores the calling thread's blocked signals.
    pub(super) fn restore(&self) {
        // SAFETY: `block` initialized the set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
