//! How a process of MPI ends: all say that they leave and wait for each other; where something failed, they are ended by `MPI_Abort`.
//!
//! It happens when the process exits, for any reason and with any code: MPI wants to be finalized by all, and a process that
//! exits early would leave the others waiting.

use super::news::News;
use super::process::Mpi;
use std::ffi::{c_int, c_void};
use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long the others may take to say what they have to, after a failure.
const GRACE: Duration = Duration::from_secs(5);
/// How long the launcher may take to pass on what was said: MPICH's drops what it has not read when it hears of the abort.
const HEARD: Duration = Duration::from_millis(100);
/// How long they may take to finish, without a failure.
const LONGEST: Duration = Duration::from_secs(600);

static WORLD: OnceLock<Arc<Mpi>> = OnceLock::new();

unsafe extern "C" {
    /// glibc's: calls a function when the process exits, with its exit code.
    safe fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

/// Lets the process leave the world when it exits.
pub(super) fn prepare(mpi: &Arc<Mpi>) {
    if WORLD.set(mpi.clone()).is_ok() {
        on_exit(end, std::ptr::null_mut());
    }
}

/// Writes a line to standard error in one piece, so that a launcher that puts the rank before each piece does it once.
pub(super) fn say(line: &str) {
    // There is no one left to tell that this cannot be written.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The world that this process has joined.
pub(super) fn joined() -> Option<Arc<Mpi>> {
    WORLD.get().cloned()
}

extern "C" fn end(code: c_int, _: *mut c_void) {
    if let Some(mpi) = WORLD.get() {
        leave(mpi, code);
    }
}

fn leave(mpi: &Mpi, code: i32) {
    let rank = mpi.rank();
    // The launcher sees the signal in the exit code; the other processes have been told too.
    let code = if mpi.ends_as_told() { 0 } else { code };
    mpi.begin_to_end();
    mpi.listen();
    if code != 0 && mpi.failed().is_none() {
        mpi.note_failure(rank, &format!("its process exited with code {code}"));
    }
    mpi.tell(&News::Leaves);
    let start = Instant::now();
    let mut failed: Option<Instant> = None;
    loop {
        mpi.listen();
        // A stopped process says nothing any more.
        let missing: Vec<usize> = (0..mpi.world()).filter(|&r| r != rank && !mpi.has_left(r)).collect();
        let all_stopped = missing.iter().all(|&r| mpi.is_stopped(r));
        if missing.is_empty() && mpi.is_sent() {
            break;
        }
        if code != 0 || mpi.failed().is_some() {
            let since = *failed.get_or_insert_with(Instant::now);
            if since.elapsed() > GRACE || all_stopped && mpi.is_sent() {
                break;
            }
        } else if start.elapsed() > LONGEST {
            say(&format!(
                "error: rank {rank} has finished, but others did not within {LONGEST:?}{}; all are ended\n",
                mpi.states(&missing)
            ));
            return abort(mpi, 1);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    match (code, mpi.failed()) {
        (0, None) => mpi.finalize(),
        (0, Some(_)) => abort(mpi, 1),
        (code, _) => abort(mpi, code),
    }
}

fn abort(mpi: &Mpi, code: i32) {
    std::thread::sleep(HEARD);
    mpi.abort(code);
}
