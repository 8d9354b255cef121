//! Ranks that fail, on purpose or not.

use super::options::{FaultKind, LaunchOptions};
use crate::comm::Processes;
use std::any::Any;
use std::time::{Duration, Instant};

/// Makes a rank fail if a fault is injected in this step.
pub(super) fn inject(options: &LaunchOptions, processes: &dyn Processes, rank: usize, step: u64) {
    let Some(fault) = options.fault.filter(|f| f.rank == rank && f.step == step) else { return };
    match fault.kind {
        FaultKind::Panic => panic!("injected fault"),
        FaultKind::Stall(time) => {
            let start = Instant::now();
            while start.elapsed() < time && processes.failure().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        FaultKind::Kill => signal(libc::SIGKILL),
        FaultKind::Stop => signal(libc::SIGSTOP),
        FaultKind::Exit(code) => std::process::exit(code),
    }
}

/// Sends a signal to this process.
fn signal(number: i32) {
    // SAFETY: a system call that accesses no memory.
    unsafe { libc::kill(libc::getpid(), number) };
}

/// The message of a panic.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
