//! Lets a process report an error before its launcher ends it because another process was lost.
//!
//! torchrun (which checks ten times a second) and srun end all processes with SIGTERM when one ends. A process that
//! waits for the lost one finds out a moment later which process it misses, and in which operation, and must not end
//! before it has reported this.

use super::signals::Signals;
use crate::comm::Processes;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long a process continues: several times the time to notice a missing process. torchrun and srun wait thirty
/// seconds before they kill.
const MOMENT: Duration = Duration::from_secs(2);

/// From now on SIGTERM ends this process after a moment if another one of its world has ended, and immediately
/// otherwise. Must be called before threads are started, because the signal ends the process immediately if an existing
/// thread receives it.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn allow(world: Arc<dyn Processes>) -> io::Result<()> {
    let signals = Signals::block(&[libc::SIGTERM]);
    let watch = move || {
        let signal = std::iter::repeat_with(|| signals.wait(MOMENT)).find_map(|s| s).unwrap_or(libc::SIGTERM);
        if !world.gone().is_empty() {
            // Usually the process ends by itself in the meantime.
            std::thread::sleep(MOMENT);
        }
        signals.restore();
        // SAFETY: a system call without memory.
        unsafe { libc::kill(libc::getpid(), signal) };
        // A process that finishes a step first continues. Its other threads block the signal, so this thread also
        // receives the next one.
        loop {
            std::thread::park();
        }
    };
    std::thread::Builder::new().name("SIGTERM".into()).spawn(watch).map(drop)
}
