//! Launching a world of processes on one host, and coming together in one.
//!
//! | question | file |
//! |---|---|
//! | what launchers say in environment variables | [`environment`] |
//! | which nodes and tasks a SLURM step has | `slurm` |
//! | how processes find each other that another launcher started | [`rendezvous`] |
//! | `tpc launch`: starting processes, watching them, ending them | [`supervise`] |
//! | what a process says when its launcher ends it because another was lost | `last_words` |
//! | how a process ends with `tpc launch` when that is killed | `orphan` |
//! | how a process that is told to end finishes what it does | [`stop`] |
//! | signals that are waited for | `signals` |
//! | what can go wrong before they run | [`error`] |

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
use crate::session::MAX_RANKS;
use crate::settings::{self, Settings};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The variable with the deadline of `tpc launch`, in seconds.
pub const DEADLINE: &str = "TPC_DEADLINE";
/// The variable with the directory for flight records, where no `tpc launch` writes them; the system's for temporary files by default.
pub const FLIGHT_DIR: &str = "TPC_FLIGHT_DIR";

/// The world that this process is in.
static JOINED: Mutex<Option<Arc<dyn Processes>>> = Mutex::new(None);

/// A variable that is set, and not to nothing.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    (!value.trim().is_empty()).then_some(value)
}

/// The deadline that `tpc launch` was given.
///
/// # Errors
/// A variable that is no number of seconds.
pub fn deadline() -> Result<Option<Duration>, EnvironmentError> {
    let Some(value) = variable(DEADLINE) else { return Ok(None) };
    let seconds = value.trim().parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    match seconds.filter(|seconds| !seconds.is_zero()) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(EnvironmentError::NoSeconds { name: DEADLINE.into(), value }),
    }
}

/// Which process of a launched world this is, as its environment says; `None` if it was launched alone.
///
/// # Errors
/// An environment that contradicts itself.
pub fn launched() -> Result<Option<Launched>, EnvironmentError> {
    environment::launched(&variable, &starter)
}

/// The nearest ancestor that does not have a variable: between a launcher and its process there may be shells, which have it, too.
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

/// How a world is joined.
pub struct Joining<'a> {
    /// How long the others are waited for.
    pub deadline: Duration,
    /// What all processes must have in common; none are compared if there are none. Every process gives some, or none does.
    pub settings: Settings,
    /// Is told what the user may want to know while this process waits: whom it waits for, and who was turned away.
    pub notes: &'a mut dyn FnMut(&str),
}

impl Joining<'_> {
    fn tell(&mut self, note: &str) {
        (self.notes)(note);
    }
}

/// Joins the world of processes that this one was launched in, as its environment says; `None` if it was launched alone, and its ranks
/// are threads. Later calls give the same world. To be called early, so that the others see that this process is there.
///
/// # Errors
/// An environment that contradicts itself; processes that do not come within the deadline, or run on other hosts.
pub fn join(deadline: Duration) -> Result<Option<Arc<dyn Processes>>, LaunchError> {
    join_with(Joining { deadline, settings: Settings::new(), notes: &mut |_| () })
}

/// [`join`] with settings that all processes must have in common.
///
/// # Errors
/// As [`join`]; settings that differ.
pub fn join_with(mut joining: Joining) -> Result<Option<Arc<dyn Processes>>, LaunchError> {
    let world = {
        let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(world) = &*joined {
            return Ok(Some(world.clone()));
        }
        let Some(launched) = launched()? else { return Ok(None) };
        // `tpc launch` may start one.
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
