//! What a process says when its launcher ends it because another one was lost.
//!
//! torchrun (which looks ten times a second) and srun end all processes with SIGTERM when one ends. Whoever waits for the lost one
//! knows a moment later whom it misses, in which operation, and must not end before it has said so.

use super::signals::Signals;
use crate::comm::Processes;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long a process goes on: several times what it takes to miss another. torchrun and srun wait for thirty seconds before they kill.
const MOMENT: Duration = Duration::from_secs(2);

/// From now on SIGTERM ends this process after a moment if another one of its world has ended, and at once otherwise. To be called
/// before threads are started: those that are there already end the process at once.
///
/// # Errors
/// No thread for it.
pub(super) fn allow(world: Arc<dyn Processes>) -> io::Result<()> {
    let signals = Signals::block(&[libc::SIGTERM]);
    let watch = move || {
        let signal = std::iter::repeat_with(|| signals.wait(MOMENT)).find_map(|s| s).unwrap_or(libc::SIGTERM);
        if !world.gone().is_empty() {
            // Usually the process ends by itself meanwhile.
            std::thread::sleep(MOMENT);
        }
        signals.restore();
        // SAFETY: a system call without memory.
        unsafe { libc::kill(libc::getpid(), signal) };
        // A process that finishes a step first goes on. Its other threads hold the signal back: the next one is this thread's, too.
        loop {
            std::thread::park();
        }
    };
    std::thread::Builder::new().name("SIGTERM".into()).spawn(watch).map(drop)
}
