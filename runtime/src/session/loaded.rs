//! The state of a program that a rank has loaded.

use crate::counters::Counters;
use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use crate::trace::Trace;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// The state that a session and the thread of a rank share.
pub(super) struct RankShared {
    pub(super) counters: Counters,
    pub(super) trace: Mutex<Trace>,
    pub(super) result: Mutex<Result<(), RuntimeError>>,
    pub(super) current: AtomicUsize,
    /// The result of loading the program, until the session takes it.
    pub(super) loaded: Mutex<Option<Result<Loaded, RuntimeError>>>,
}

/// A loaded program of a rank.
pub(super) struct Loaded {
    /// `None` on a device.
    pub(super) arena: Option<Arc<Arena>>,
    pub(super) scratch_bytes: usize,
    /// For every input, whether its box has been written. Programs that share an input share this.
    pub(super) written: Vec<Written>,
}

/// Whether the box of an input has been written.
#[derive(Debug, Default)]
pub(super) struct Written(OnceLock<Arc<AtomicBool>>);

impl Written {
    fn flag(&self) -> &AtomicBool {
        self.0.get_or_init(Arc::default)
    }

    pub(super) fn is_set(&self) -> bool {
        self.flag().load(Ordering::Relaxed)
    }

    pub(super) fn set(&self) {
        self.flag().store(true, Ordering::Relaxed);
    }

    /// Makes this the same flag as another one. Must happen before this one is used.
    pub(super) fn share(&self, other: &Written) {
        // If several programs have the input, all of them already share it.
        let _ = self.0.set(other.0.get_or_init(Arc::default).clone());
    }
}
