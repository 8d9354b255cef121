//! A process that `tpc launch` started ends with the launcher, even if the launcher is killed, whatever the process is
//! doing, and with any number of shells and other programs between the two.

use crate::comm::control::is_alive;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

/// Polling interval if the system has no process descriptors.
const LOOK: Duration = Duration::from_millis(200);

/// From now on this process is killed when the launcher ends. The system's own mechanism, `PR_SET_PDEATHSIG`, only
/// works for the parent.
///
/// # Errors
/// The launcher has already ended; the thread cannot be started.
pub(super) fn end_with(launcher: u32) -> io::Result<()> {
    // Before the check, in order to notice a number that is meanwhile reused by another process.
    let watched = Watched::new(launcher)?;
    if !is_alive(launcher) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let wait = move || {
        watched.wait();
        // SAFETY: a system call that accesses no memory. Nothing in this process matters without the launcher, and any
        // thread may be anywhere.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    };
    std::thread::Builder::new().name("launcher".into()).spawn(wait).map(drop)
}

enum Watched {
    /// A descriptor that becomes readable when the process ends.
    Descriptor(File),
    /// Only its process id.
    Number(u32),
}

impl Watched {
    fn new(process: u32) -> io::Result<Self> {
        // SAFETY: a system call that accesses no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process as libc::pid_t, 0) };
        if let Ok(fd @ 0..) = i32::try_from(fd) {
            // SAFETY: the descriptor is new and has no other owner.
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
                // SAFETY: one open descriptor, in memory that lives through the call.
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
            // The child is not reaped: a zombie counts as ended.
            while !wait.is_finished() {
                assert!(start.elapsed() < Duration::from_secs(20), "by number: {by_number}");
                std::thread::sleep(Duration::from_millis(5));
            }
            child.wait().unwrap();
            assert!(end_with(child.id()).is_err(), "it has ended already");
        }
    }
}
