//! Sleeping on a word of memory until another thread or process changes it.

use std::ptr::null;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while the word has this value, at most for the given time; may also wake spuriously. Works between processes
/// that share the word's memory.
pub fn wait(word: &AtomicU32, value: u32, longest: Duration) {
    let time = libc::timespec {
        tv_sec: longest.as_secs().min(3600) as libc::time_t,
        tv_nsec: libc::c_long::from(longest.subsec_nanos() as i32),
    };
    // SAFETY: the word and the time live through the call. Without FUTEX_PRIVATE_FLAG the kernel identifies the word by
    // its page, not its address.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const time, null::<u32>(), 0)
    };
}

/// Wakes all sleepers on the word.
pub fn wake_all(word: &AtomicU32) {
    // SAFETY: the word lives through the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
