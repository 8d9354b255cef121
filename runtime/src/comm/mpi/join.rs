//! How a process joins an MPI world, and the thread that listens to other processes from then on.

use super::ending;
use super::library::Library;
use super::news::News;
use super::process::Mpi;
use crate::comm::Processes;
use crate::comm::control::cpu_time;
use crate::error::RuntimeError;
use crate::launch::rendezvous::host;
use crate::launch::{LaunchError, Launched};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// The interval at which the thread receives news and reports that this process is busy.
const INTERVAL: Duration = Duration::from_millis(100);

/// Initializes MPI and joins the processes that were launched with this one. If not all of them do so within the
/// deadline, this process prints a message and exits, because MPI cannot recover from that. After a failure, a flight
/// record is written to the directory `record`.
///
/// # Errors
/// The library does not belong to the launcher, MPI fails, or a process does not join or fails before all have joined.
pub fn join(launched: &Launched, record: PathBuf, deadline: Duration) -> Result<Arc<Mpi>, LaunchError> {
    let broken = |problem: String| LaunchError::Mpi { kind: launched.kind, problem };
    let library = init_with_deadline(launched, deadline).map_err(broken)?;
    if (library.rank(), library.world()) != (launched.rank, launched.world) {
        return Err(broken(format!(
            "this is rank {} of {} according to the MPI library, but rank {} of {} according to the launcher",
            library.rank(),
            library.world(),
            launched.rank,
            launched.world
        )));
    }
    let mpi = Arc::new(Mpi::new(library, launched, record)?);
    ending::prepare(&mpi);
    let listening = mpi.clone();
    let listener = std::thread::Builder::new().name("MPI".into()).spawn(move || listen_until_ending(&listening));
    listener
        .map_err(|source| LaunchError::System { what: "no thread to listen to the other processes".into(), source })?;
    meet(&mpi, deadline).map_err(|e| LaunchError::Meeting { kind: launched.kind, source: Box::new(e) })?;
    Ok(mpi)
}

/// Calls [`Library::init`] while a thread ends the process if it takes too long.
fn init_with_deadline(launched: &Launched, deadline: Duration) -> Result<Library, String> {
    let (sender, receiver) = mpsc::channel::<()>();
    let (kind, rank, world) = (launched.kind, launched.rank, launched.world);
    let watch = std::thread::Builder::new().spawn(move || {
        if receiver.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
            ending::say(&format!(
                "error: rank {rank}: not all of the {world} processes that {kind} started initialized MPI within {deadline:?}; \
                 check that all of them run tpc\n"
            ));
            // SAFETY: ends the process at once, without exit handlers, which might wait for MPI.
            unsafe { libc::_exit(1) };
        }
    });
    watch.map_err(|e| format!("no thread to supervise the initialization: {e}"))?;
    let library = Library::init();
    drop(sender);
    library
}

/// Exchanges the host and the process id of every process.
fn meet(mpi: &Mpi, deadline: Duration) -> Result<(), RuntimeError> {
    let mine = host();
    let message = format!("{} {mine}", std::process::id());
    let all = mpi.exchange("launch: meet", message.as_bytes(), deadline)?;
    let pid = |bytes: &Vec<u8>| {
        let text = String::from_utf8_lossy(bytes);
        text.split_once(' ').filter(|(_, host)| *host == mine).and_then(|(pid, _)| pid.parse().ok()).unwrap_or(0)
    };
    mpi.meet(all.iter().map(pid).collect());
    Ok(())
}

/// Receives news from the other processes while no thread waits for them, and reports when this process is busy.
fn listen_until_ending(mpi: &Mpi) {
    let me = std::process::id();
    let mut used = cpu_time(me);
    while !mpi.is_ending() {
        std::thread::sleep(INTERVAL);
        mpi.listen();
        let now = cpu_time(me);
        if now > used && mpi.is_sent() {
            mpi.tell(&News::Busy(now - used));
            used = now;
        }
    }
}
