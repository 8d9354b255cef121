//! Launching a world of processes on one host, and coming together in one.
//!
//! | question | file |
//! |---|---|
//! | what launchers say in environment variables | [`environment`] |
//! | which nodes and tasks a SLURM step has | `slurm` |
//! | how processes find each other that somebody else launched | [`rendezvous`] |
//! | `tpc launch`: starting processes, watching them, ending them | [`supervise`] |
//! | what a process says when its launcher ends it because another was lost | `last_words` |
//! | signals that are waited for | `signals` |
//! | what can go wrong before they run | [`error`] |

pub mod environment;
pub mod error;
mod last_words;
pub mod rendezvous;
mod signals;
mod slurm;
pub mod supervise;

pub use environment::{Launched, LauncherKind};
pub use error::LaunchError;

use crate::comm::Processes;
use crate::comm::control::{Control, is_alive};
use crate::comm::local::Local;
use crate::comm::shared_memory::Handle;
use crate::session::MAX_RANKS;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The variable with the deadline of `tpc launch`, in seconds.
pub const DEADLINE: &str = "TPC_DEADLINE";
/// The variable with the directory for flight records, where no `tpc launch` writes them; the system's for temporary files by default.
pub const FLIGHT_DIR: &str = "TPC_FLIGHT_DIR";

/// The world that this process is in.
static JOINED: Mutex<Option<Arc<dyn Processes>>> = Mutex::new(None);

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The deadline that `tpc launch` was given.
pub fn deadline() -> Option<Duration> {
    let seconds = variable(DEADLINE)?.parse().ok().filter(|s: &f64| *s > 0.0)?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Joins the world of processes that this one was launched in, as its environment says; `None` if it was launched alone, and its ranks
/// are threads. Later calls give the same world. To be called early, so that the others see that this process is there.
///
/// # Errors
/// An environment that contradicts itself; processes that do not come within the deadline, or run on other hosts.
pub fn join(deadline: Duration) -> Result<Option<Arc<dyn Processes>>, LaunchError> {
    let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(world) = &*joined {
        return Ok(Some(world.clone()));
    }
    let Some(launched) = environment::launched(&variable, std::os::unix::process::parent_id())? else {
        return Ok(None);
    };
    let Launched { kind, rank, world, local_world, .. } = launched;
    if world == 1 {
        return Ok(None);
    }
    #[cfg(feature = "mpi")]
    if is_of_mpi(&launched) {
        let dir = variable(FLIGHT_DIR).map_or_else(std::env::temp_dir, PathBuf::from);
        if world > MAX_RANKS {
            return Err(LaunchError::TooMany { world, most: MAX_RANKS });
        }
        let world: Arc<dyn Processes> = crate::comm::mpi::join(&launched, dir, deadline)?;
        return Ok(Some(joined.insert(world).clone()));
    }
    if world != local_world {
        return Err(LaunchError::Hosts { kind, world, local_world });
    }
    if world > MAX_RANKS {
        return Err(LaunchError::TooMany { world, most: MAX_RANKS });
    }
    let (control, record) = match kind {
        LauncherKind::Tpc => (of_launcher(&launched)?, None),
        _ => {
            let dir = variable(FLIGHT_DIR).map_or_else(std::env::temp_dir, PathBuf::from);
            (rendezvous::meet(&launched, deadline)?, Some(dir))
        }
    };
    let world: Arc<dyn Processes> = Local::joined(control, rank, record);
    if kind != LauncherKind::Tpc {
        let no_thread = |source| LaunchError::System { what: "no thread to wait for SIGTERM".into(), source };
        last_words::allow(world.clone()).map_err(no_thread)?;
    }
    Ok(Some(joined.insert(world).clone()))
}

/// Whether an MPI library knows what the launcher has started: always of its own, of SLURM where memory cannot be shared and `srun` was
/// told to speak to MPI.
#[cfg(feature = "mpi")]
fn is_of_mpi(launched: &Launched) -> bool {
    match launched.kind {
        LauncherKind::OpenMpi | LauncherKind::Mpich => true,
        LauncherKind::Slurm => launched.world != launched.local_world && variable("PMIX_RANK").is_some(),
        LauncherKind::Tpc | LauncherKind::Torchrun => false,
    }
}

/// The world that this process has joined, if it has.
pub fn joined() -> Option<Arc<dyn Processes>> {
    JOINED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The control block of the `tpc launch` that started this process, which ends with it.
fn of_launcher(launched: &Launched) -> Result<Arc<Control>, LaunchError> {
    let broken = |problem: String| LaunchError::Control(problem);
    let handle = Handle::parse(&launched.address).ok_or_else(|| broken(format!("`{}`", launched.address)))?;
    // The launcher has done the same for the process that it started, but that may have started this one.
    // SAFETY: a system call without memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if !is_alive(handle.pid) {
        return Err(broken(format!("process {} is gone", handle.pid)));
    }
    let control = Control::of_peer(handle).map_err(|e| broken(e.to_string()))?;
    match control.ranks() == launched.world {
        true => Ok(control),
        false => Err(broken(format!("it is of {} ranks, not {}", control.ranks(), launched.world))),
    }
}
