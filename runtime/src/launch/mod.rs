//! Launching the processes of a world on one host, and joining a world.
//!
//! | question | file |
//! |---|---|
//! | environment variables of launchers | [`environment`] |
//! | nodes and tasks of a SLURM step | `slurm` |
//! | how processes of another launcher find each other | [`rendezvous`] |
//! | `tpc launch`: starting processes, watching them, ending them | [`supervise`] |
//! | reporting an error before the launcher ends the process | `last_words` |
//! | how a process ends when `tpc launch` is killed | `orphan` |
//! | finishing a step when a signal asks the process to end | [`stop`] |
//! | waiting for signals | `signals` |
//! | errors before the processes run | [`error`] |

pub mod environment;
pub mod error;
mod last_words;
mod orphan;
pub mod rendezvous;
mod signals;
mod slurm;
pub mod stop;
pub mod supervise;

pub use environment::{EnvironmentError, Job, Launched, LauncherKind};
pub use error::LaunchError;

use crate::comm::Processes;
use crate::comm::control::{Control, parent_of};
use crate::comm::local::Local;
use crate::comm::shared_memory::Handle;
use crate::settings::{self, Settings};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tpc_ir::mesh::MAX_RANKS;

/// The environment variable with the deadline of `tpc launch`, in seconds.
pub const DEADLINE: &str = "TPC_DEADLINE";
/// The environment variable with the directory for flight records without `tpc launch`; by default the system's
/// directory for temporary files.
pub const FLIGHT_DIR: &str = "TPC_FLIGHT_DIR";

/// The world that this process has joined.
static JOINED: Mutex<Option<Arc<dyn Processes>>> = Mutex::new(None);

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    (!value.trim().is_empty()).then_some(value)
}

/// The deadline that was passed to `tpc launch`.
///
/// # Errors
/// A variable that is not a number of seconds.
pub fn deadline() -> Result<Option<Duration>, EnvironmentError> {
    let Some(value) = variable(DEADLINE) else { return Ok(None) };
    let seconds = value.trim().parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    match seconds.filter(|seconds| !seconds.is_zero()) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(EnvironmentError::NoSeconds { name: DEADLINE.into(), value }),
    }
}

/// The process of a launched world that this is, according to its environment; `None` if it was launched alone.
///
/// # Errors
/// An environment that contradicts itself.
pub fn launched() -> Result<Option<Launched>, EnvironmentError> {
    environment::launched(&variable, &starter)
}

/// The nearest ancestor without a variable: there may be shells between a launcher and its process, which have the
/// variable as well.
fn starter(variable: &str) -> u32 {
    let begin = format!("{variable}=").into_bytes();
    let has = |process: u32| {
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(&begin))
    };
    let mut ancestor = std::os::unix::process::parent_id();
    while has(ancestor) {
        match parent_of(ancestor) {
            Some(parent) => ancestor = parent,
            None => break,
        }
    }
    ancestor
}

/// The options for joining a world.
pub struct Joining<'a> {
    /// How long to wait for the other processes.
    pub deadline: Duration,
    /// Settings that must be the same for all processes; either every process gives some or none does. Without settings
    /// nothing is compared.
    pub settings: Settings,
    /// Called with notes for the user while this process waits: which processes it waits for, and which were rejected.
    pub notes: &'a mut dyn FnMut(&str),
}

impl Joining<'_> {
    fn tell(&mut self, note: &str) {
        (self.notes)(note);
    }
}

/// Joins the world of processes that this one was launched in, according to its environment; `None` if it was launched
/// alone, so that its ranks are threads. Later calls return the same world. Call this early, because the other
/// processes wait for this one.
///
/// # Errors
/// A contradictory environment; processes that do not join within the deadline, or run on other hosts.
pub fn join(deadline: Duration) -> Result<Option<Arc<dyn Processes>>, LaunchError> {
    join_with(Joining { deadline, settings: Settings::new(), notes: &mut |_| () })
}

/// Like [`join`], with settings that must be the same for all processes.
///
/// # Errors
/// The errors of [`join`]; settings that differ.
pub fn join_with(mut joining: Joining) -> Result<Option<Arc<dyn Processes>>, LaunchError> {
    let world = {
        let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(world) = &*joined {
            return Ok(Some(world.clone()));
        }
        let Some(launched) = launched()? else { return Ok(None) };
        // `tpc launch` may start a single process.
        if launched.world == 1 {
            return Ok(None);
        }
        let world = meet(&launched, &mut joining)?;
        joined.insert(world).clone()
    };
    if !joining.settings.is_empty() {
        settings::compare(&*world, &joining.settings, joining.deadline).map_err(LaunchError::Settings)?;
    }
    Ok(Some(world))
}

fn meet(launched: &Launched, joining: &mut Joining) -> Result<Arc<dyn Processes>, LaunchError> {
    let Launched { kind, rank, world, local_world, .. } = *launched;
    if world > MAX_RANKS {
        return Err(LaunchError::TooMany { world, most: MAX_RANKS });
    }
    let dir = || variable(FLIGHT_DIR).map_or_else(std::env::temp_dir, PathBuf::from);
    #[cfg(feature = "mpi")]
    if is_of_mpi(launched) {
        return Ok(crate::comm::mpi::join(launched, dir(), joining.deadline)?);
    }
    if world != local_world {
        return Err(LaunchError::Hosts { kind, world, local_world });
    }
    if kind == LauncherKind::Tpc {
        return Ok(Local::joined(of_launcher(launched)?, rank, None));
    }
    let world: Arc<dyn Processes> = Local::joined(rendezvous::meet(launched, joining)?, rank, Some(dir()));
    let no_thread = |source| LaunchError::System { what: "no thread to wait for SIGTERM".into(), source };
    last_words::allow(world.clone()).map_err(no_thread)?;
    Ok(world)
}

/// Whether an MPI library knows the launched processes: always for MPI's own launchers, and for SLURM if memory cannot
/// be shared and `srun` was told to use MPI.
#[cfg(feature = "mpi")]
fn is_of_mpi(launched: &Launched) -> bool {
    match launched.kind {
        LauncherKind::OpenMpi | LauncherKind::Mpich => true,
        LauncherKind::Slurm => launched.world != launched.local_world && variable("PMIX_RANK").is_some(),
        LauncherKind::Tpc | LauncherKind::Torchrun => false,
    }
}

/// The world that this process has joined, if any.
pub fn joined() -> Option<Arc<dyn Processes>> {
    JOINED.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The control block of the `tpc launch` that started this process, which ends together with it.
fn of_launcher(launched: &Launched) -> Result<Arc<Control>, LaunchError> {
    let broken = |problem: String| LaunchError::Control(problem);
    let handle = Handle::parse(&launched.address).ok_or_else(|| broken(format!("`{}`", launched.address)))?;
    orphan::end_with(handle.pid).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => broken(format!("process {} is gone", handle.pid)),
        _ => LaunchError::System { what: "the launcher cannot be watched".into(), source: e },
    })?;
    let control = Control::of_peer(handle).map_err(|e| broken(e.to_string()))?;
    match control.ranks() == launched.world {
        true => Ok(control),
        false => Err(broken(format!("it is of {} ranks, not {}", control.ranks(), launched.world))),
    }
}
