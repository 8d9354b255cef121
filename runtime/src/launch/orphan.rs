//! A process that `tpc launch` has started ends with it, also when the launcher is killed, whatever the process does then, and however
//! many shells and other programs are between the two.

use crate::comm::control::is_alive;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

/// How often is looked where the system has no descriptors of processes.
const LOOK: Duration = Duration::from_millis(200);

/// From now on this process is killed when that one ends. The system's own signal for it, `PR_SET_PDEATHSIG`, only knows the parent.
///
/// # Errors
/// A process that has ended already; no thread to wait for it.
pub(super) fn end_with(launcher: u32) -> io::Result<()> {
    // Before it is looked at, so that a number that is given to another process meanwhile is noticed.
    let watched = Watched::new(launcher)?;
    if !is_alive(launcher) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let wait = move || {
        watched.wait();
        // SAFETY: a system call without memory. Nothing of this process is of use without the launcher, and it may be anywhere.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    };
    std::thread::Builder::new().name("launcher".into()).spawn(wait).map(drop)
}

enum Watched {
    /// A descriptor that can be read when the process has ended.
    Descriptor(File),
    /// Only its number.
    Number(u32),
}

impl Watched {
    fn new(process: u32) -> io::Result<Self> {
        // SAFETY: a system call without memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) };
        if let Ok(fd @ 0..) = i32::try_from(fd) {
            // SAFETY: the descriptor is new and belongs to this value alone.
            return Ok(Watched::Descriptor(unsafe { File::from_raw_fd(fd) }));
        }
        match io::Error::last_os_error() {
            gone if gone.raw_os_error() == Some(libc::ESRCH) => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(Watched::Number(process)),
        }
    }

    fn wait(&self) {
        match self {
            Watched::Descriptor(file) => loop {
                let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one descriptor that is open, in memory that lives through the call.
                match unsafe { libc::poll(&raw mut poll, 1, -1) } {
                    1.. => return,
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            },
            Watched::Number(process) => {
                while is_alive(*process) {
                    std::thread::sleep(LOOK);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Instant;

    #[test]
    fn the_end_of_a_process_is_noticed_either_way() {
        for by_number in [false, true] {
            let mut child = Command::new("sleep").arg("60").spawn().unwrap();
            let watched = if by_number { Watched::Number(child.id()) } else { Watched::new(child.id()).unwrap() };
            let wait = std::thread::spawn(move || watched.wait());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!wait.is_finished());
            child.kill().unwrap();
            let start = Instant::now();
            // It is not reaped: a dead process whose parent does not care is an ended one.
            while !wait.is_finished() {
                assert!(start.elapsed() < Duration::from_secs(20), "by number: {by_number}");
                std::thread::sleep(Duration::from_millis(5));
            }
            child.wait().unwrap();
            assert!(end_with(child.id()).is_err(), "it has ended already");
        }
    }
}
