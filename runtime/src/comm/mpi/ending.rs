//! How an MPI process ends. All processes announce that they leave and wait for each other; after a failure,
//! `MPI_Abort` ends them.
//!
//! This happens whenever the process exits, for any reason and with any code: all processes must finalize MPI, and a
//! process that exited early would leave the others waiting.

use super::news::News;
use super::process::Mpi;
use std::ffi::{c_int, c_void};
use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long the other processes may take to report their errors after a failure.
const GRACE: Duration = Duration::from_secs(5);
/// How long the launcher may take to forward the output: MPICH's launcher drops output that it has not read when it
/// learns of the abort.
const FORWARDING: Duration = Duration::from_millis(100);
/// How long the other processes may take to finish if nothing failed.
const FINISH_LIMIT: Duration = Duration::from_secs(600);

static WORLD: OnceLock<Arc<Mpi>> = OnceLock::new();

unsafe extern "C" {
    /// A function of glibc that registers a function to call with the exit code when the process exits.
    safe fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

/// Makes the process leave the world when it exits.
pub(super) fn prepare(mpi: &Arc<Mpi>) {
    if WORLD.set(mpi.clone()).is_ok() {
        on_exit(end, std::ptr::null_mut());
    }
}

/// Writes a line to standard error in one write, so that a launcher that prefixes each write with the rank does so
/// once.
pub(super) fn say(line: &str) {
    // An error cannot be reported anywhere else.
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
    // The launcher sees the signal in the exit code, and the other processes know of it too.
    let code = if mpi.ends_on_request() { 0 } else { code };
    mpi.begin_to_end();
    mpi.listen();
    if code != 0 && mpi.failed().is_none() {
        mpi.record_failure(rank, &format!("its process exited with code {code}"));
    }
    mpi.tell(&News::Leaves);
    let start = Instant::now();
    let mut failed: Option<Instant> = None;
    loop {
        mpi.listen();
        // A stopped process no longer sends messages.
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
        } else if start.elapsed() > FINISH_LIMIT {
            say(&format!(
                "error: rank {rank} has finished, but other ranks did not finish within {FINISH_LIMIT:?}{}; all processes are ended\n",
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
    std::thread::sleep(FORWARDING);
    mpi.abort(code);
}
