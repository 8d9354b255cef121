//! `tpc launch`: a command as several processes, one for each rank, that share memory.

use super::{Failure, Outcome, Terminal, subcommands};
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tpc_runtime::comm::Processes;
use tpc_runtime::launch::{self, supervise};
use tpc_runtime::session::{Backend, MAX_RANKS};
use tpc_runtime::{LaunchOptions, RuntimeError};

/// Run a command as one process per rank, on this host: tpc launch --ranks 2 -- train MODEL_DIR --mesh tp=2 ...
///
/// If one process fails, all end, with its exit code.
#[derive(Debug, Args)]
pub struct Launch {
    /// Processes, as many as the mesh has ranks
    #[arg(long, value_name = "N")]
    ranks: NonZeroUsize,
    /// Seconds that a collective may take before it is an error [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds)]
    deadline: Option<Duration>,
    /// Seconds that the other processes may take to end when one has failed; then they are killed
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "5")]
    grace: Duration,
    /// Directory for the record of every rank's latest collectives when something fails [default: that for temporary files]
    #[arg(long, value_name = "DIR")]
    flight_dir: Option<PathBuf>,
    /// A program and its arguments, or a subcommand of tpc
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Launch {
    pub(super) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        if self.ranks.get() > MAX_RANKS {
            let ranks = self.ranks;
            return Err(Failure::new(format!("--ranks {ranks}: at most {MAX_RANKS} ranks can be launched here")));
        }
        let Some((first, rest)) = self.command.split_first() else { return Err(Failure::new("no command to launch")) };
        let is_ours = first.to_str().is_some_and(|name| subcommands().iter().any(|s| s == name));
        let (program, arguments) = match is_ours {
            true => (std::env::current_exe()?.into_os_string(), self.command.clone()),
            false => (first.clone(), rest.to_vec()),
        };
        let launch = supervise::Launch {
            ranks: self.ranks.get(),
            program,
            arguments,
            deadline: self.deadline,
            grace: self.grace,
            flight_dir: self.flight_dir.clone(),
        };
        let stderr: supervise::Output = Arc::new(Mutex::new(std::io::stderr()));
        let ended = supervise::launch(&launch, &stderr)?;
        if ended.code == 0 {
            if !ended.joined && self.ranks.get() > 1 {
                terminal.note(
                    "the processes did not join each other, each ran alone: a program joins with `tpc::launch::join`",
                );
            }
            return Ok(());
        }
        let record = ended.flight_record.map(|p| format!("; flight record: {}", p.display())).unwrap_or_default();
        let message = ended.message.unwrap_or_else(|| "a process failed".into());
        Err(Failure::Code(ended.code, format!("{message}{record}")))
    }
}

/// A number of seconds above 0.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("not a number of seconds above 0".into()),
    }
}

/// How ranks are run: the same for every command that runs any.
#[derive(Debug, Args)]
pub struct Running {
    /// Seconds that a collective may take before it is an error [default: 60, or that of tpc launch]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub deadline: Option<Duration>,
    /// What executes the ranks: threads or processes on the CPU, or NVIDIA GPUs (a process alone runs all ranks on the first one, launched processes one each)
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
}

/// What executes ranks, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// Threads or processes.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl Running {
    fn deadline(&self) -> Duration {
        let given = self.deadline.or_else(launch::deadline);
        given.unwrap_or_else(|| LaunchOptions::default().deadline)
    }

    /// Joins the processes that this one was launched with, if there are any.
    ///
    /// # Errors
    /// Processes that do not come together, or a mesh of another size.
    pub(super) fn join(&self) -> Outcome<Option<Arc<dyn Processes>>> {
        // Processes start at different times: a short deadline of collectives is none for that.
        Ok(launch::join(self.deadline().max(Duration::from_secs(30)))?)
    }

    /// Notes a deadline that nothing can miss.
    pub(super) fn note(&self, ranks: usize, terminal: &mut Terminal) {
        if self.deadline.is_some() && ranks == 1 {
            terminal.note("--deadline has no effect on one rank, which waits for no other");
        }
    }

    /// What a session is launched with.
    pub(super) fn options(&self) -> LaunchOptions {
        let backend = match self.device {
            Device::Cpu => Backend::Cpu,
            Device::Cuda => Backend::Cuda,
        };
        LaunchOptions { deadline: self.deadline(), processes: launch::joined(), backend, ..LaunchOptions::default() }
    }
}

/// An error if this process was launched with others that do not make up the ranks.
pub(super) fn check_ranks(ranks: usize) -> Result<(), RuntimeError> {
    match launch::joined() {
        Some(processes) => processes.local(ranks).map(drop),
        None => Ok(()),
    }
}

/// Whether this process writes files and tells how things go: the first of those that were launched together.
pub(super) fn leads() -> bool {
    launch::joined().is_none_or(|processes| processes.process() == 0)
}
