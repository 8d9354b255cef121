//! Mutexes whose data stay valid when a rank panics.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, even if a rank held it when it panicked: such a rank's session has failed, and only its report is
/// read.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
