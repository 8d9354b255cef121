//! How a process joins an MPI world, and what its thread does from then on.

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

/// How often the thread takes what the others say, and tells them that this process is busy.
const BEAT: Duration = Duration::from_millis(100);

/// Initializes MPI and joins the processes that were launched with this one. If not all of them do so within the deadline, this
/// process ends with a message: MPI has no way back from there. A flight record goes into the directory `record` when something fails.
///
/// # Errors
/// A library that does not belong to the launcher; what MPI says; processes that do not come or fail before all have come.
pub fn join(launched: &Launched, record: PathBuf, deadline: Duration) -> Result<Arc<Mpi>, LaunchError> {
    let broken = |problem: String| LaunchError::Mpi { kind: launched.kind, problem };
    let library = watched(launched, deadline).map_err(broken)?;
    if (library.rank(), library.world()) != (launched.rank, launched.world) {
        return Err(broken(format!(
            "the library says that this is rank {} of {}, the launcher that it is {} of {}",
            library.rank(),
            library.world(),
            launched.rank,
            launched.world
        )));
    }
    let mpi = Arc::new(Mpi::new(library, launched, record)?);
    ending::prepare(&mpi);
    let beating = mpi.clone();
    let listener = std::thread::Builder::new().name("MPI".into()).spawn(move || beat(&beating));
    listener.map_err(|source| LaunchError::System { what: "no thread to listen to the others".into(), source })?;
    meet(&mpi, deadline).map_err(|e| LaunchError::Meeting { kind: launched.kind, source: Box::new(e) })?;
    Ok(mpi)
}

/// [`Library::init`], under a thread that ends the process if that takes too long.
fn watched(launched: &Launched, deadline: Duration) -> Result<Library, String> {
    let (sender, receiver) = mpsc::channel::<()>();
    let (kind, rank, world) = (launched.kind, launched.rank, launched.world);
    let watch = std::thread::Builder::new().spawn(move || {
        if receiver.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
            ending::say(&format!(
                "error: rank {rank}: not all of the {world} processes that {kind} started initialized MPI within {deadline:?}; \
                 look whether all of them run tpc\n"
            ));
            // SAFETY: ends the process at once; nothing that runs at exit may wait for MPI.
            unsafe { libc::_exit(1) };
        }
    });
    watch.map_err(|e| format!("no thread to watch over its start: {e}"))?;
    let library = Library::init();
    drop(sender);
    library
}

/// Tells all others on which host this process is, and under which process id.
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

/// Takes what the others say while no thread waits for them, and tells them when this process is busy.
fn beat(mpi: &Mpi) {
    let me = std::process::id();
    let mut used = cpu_time(me);
    while !mpi.is_ending() {
        std::thread::sleep(BEAT);
        mpi.listen();
        let now = cpu_time(me);
        if now > used && mpi.is_sent() {
            mpi.tell(&News::Busy(now - used));
            used = now;
        }
    }
}
