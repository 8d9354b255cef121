//! Locks of what a rank that panics leaves as it was.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also one that a rank held when it panicked: such a rank's session is failed, and only its report is read.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
