//! `tpc launch`: runs a command as several processes that share memory, one for each rank.

use crate::{Failure, Outcome, Terminal, subcommands};
use clap::{Args, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tpc_ir::mesh::MAX_RANKS;
use tpc_runtime::launch::{self, Joining, LaunchError, LauncherKind, supervise};
use tpc_runtime::session::Backend;
use tpc_runtime::{LaunchOptions, RuntimeError, Settings};

/// Run a command as one process per rank, on this host: tpc launch --ranks 2 -- train MODEL_DIR --mesh tp=2 ...
///
/// If one process fails, all of them end with its exit code.
#[derive(Debug, Args)]
pub struct Launch {
    /// Number of processes, which is the number of ranks of the mesh
    #[arg(long, value_name = "N")]
    ranks: NonZeroUsize,
    /// Deadline of a collective, in seconds [default: 60]
    #[arg(long, value_name = "S", value_parser = seconds)]
    deadline: Option<Duration>,
    /// Seconds that the other processes may take to end after one has failed; then they are killed
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "5")]
    grace: Duration,
    /// Directory for the flight record, the latest collectives of every rank, after a failure [default: the directory
    /// for temporary files]
    #[arg(long, value_name = "DIR")]
    flight_dir: Option<PathBuf>,
    /// A program and its arguments, or a subcommand of tpc
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Launch {
    pub(crate) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        if self.ranks.get() > MAX_RANKS {
            let ranks = self.ranks;
            return Err(Failure::new(format!("--ranks {ranks}: a mesh has at most {MAX_RANKS} ranks")));
        }
        let Some((first, rest)) = self.command.split_first() else { return Err(Failure::new("no command to launch")) };
        if let Some(around) = launch::launched()? {
            let (kind, world) = (around.kind, around.world);
            if kind == LauncherKind::Tpc {
                return Err(Failure::new(
                    "tpc launch starts the processes of one world, and cannot start another tpc launch",
                ));
            }
            terminal.note(format!(
                "{kind} has started {world} processes, each of which runs tpc launch and starts a separate world; \
                 without tpc launch they form one world"
            ));
        }
        let is_ours = first.to_str().is_some_and(|name| subcommands().iter().any(|s| s == name));
        let (program, arguments) = match is_ours {
            true => (std::env::current_exe()?.into_os_string(), self.command.clone()),
            false => (first.clone(), rest.to_vec()),
        };
        let launch = supervise::LaunchSpec {
            ranks: self.ranks.get(),
            program,
            arguments,
            deadline: self.deadline,
            grace: self.grace,
            flight_dir: self.flight_dir.clone(),
        };
        let stderr: supervise::Output = Arc::new(Mutex::new(std::io::stderr()));
        let ended = supervise::launch(&launch, &stderr).map_err(|e| not_started(e, first))?;
        if ended.code == 0 {
            if !ended.joined && self.ranks.get() > 1 {
                terminal.note("the processes did not join: each ran alone; a program joins with `tpc::join`");
            }
            return Ok(());
        }
        let record = ended.flight_record.map(|p| format!("; flight record: {}", p.display())).unwrap_or_default();
        match ended.message {
            Some(message) => Err(Failure::Code(ended.code, format!("{message}{record}"))),
            // The processes have already reported what they kept.
            None => Err(Failure::Stopped(ended.code, String::new())),
        }
    }
}

/// Explains why the processes could not be started; a name that is not a program may be a misspelled subcommand.
fn not_started(error: LaunchError, program: &OsStr) -> Failure {
    let is_missing = matches!(&error, LaunchError::System { source, .. } if source.kind() == ErrorKind::NotFound);
    match is_missing && !program.to_string_lossy().contains('/') {
        true => Failure::new(format!("{error}; the subcommands of tpc are {}", subcommands().join(", "))),
        false => error.into(),
    }
}

/// A hint for a `tpc launch` command line that does not parse, where usually `--` is missing.
pub(crate) fn hint(arguments: &[OsString]) -> Option<String> {
    let words: Vec<String> = arguments.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let (first, words) = words.split_first()?;
    if first != "launch" || words.iter().any(|word| word == "--") {
        return None;
    }
    let takes_value = |word: &str| {
        let of_launch = Launch::augment_args(clap::Command::new("launch"));
        let mut options = of_launch.get_arguments().filter(|a| a.get_action().takes_values());
        options.any(|a| a.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long)))
    };
    let (mut options, mut command): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        // The command has an option for the deadline as well.
        let is_own = takes_value(word) && (command.is_empty() || word != "--deadline");
        let is_own = is_own || command.is_empty() && word.starts_with('-');
        let to = if is_own { &mut options } else { &mut command };
        to.push(word);
        to.extend(takes_value(word).then(|| words.next()).flatten());
    }
    if !options.iter().any(|option| option.starts_with("--ranks")) {
        options.extend(["--ranks", "N"]);
    }
    if command.is_empty() {
        command.extend(["train", "…"]);
    }
    Some(format!("the command comes after `--`: tpc launch {} -- {}", options.join(" "), command.join(" ")))
}

/// Parses a positive number of seconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_string())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("not a number of seconds above 0".into()),
    }
}

/// How ranks are run; every command that runs ranks has these arguments.
#[derive(Debug, Args)]
pub struct Running {
    /// Deadline of a collective, in seconds [default: 60, or the deadline of tpc launch]
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub deadline: Option<Duration>,
    /// Device that executes the ranks: threads or processes on the CPU, or NVIDIA GPUs (a single process runs all ranks
    /// on the first GPU; launched processes use one GPU each)
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
}

/// The device that executes ranks, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// Threads or processes.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl Device {
    /// The backend of this device.
    pub(crate) fn backend(self) -> Backend {
        match self {
            Device::Cpu => Backend::Cpu,
            Device::Cuda => Backend::Cuda,
        }
    }
}

impl Running {
    fn deadline(&self) -> Outcome<Duration> {
        let given = self.deadline.map_or_else(launch::deadline, |deadline| Ok(Some(deadline)))?;
        Ok(given.unwrap_or_else(|| LaunchOptions::default().deadline))
    }

    /// Joins the processes that this one was launched with, if any, after checking that all have the same settings.
    ///
    /// # Errors
    /// Processes that do not join, or whose settings differ.
    pub(crate) fn join(&self, settings: impl FnOnce() -> Settings, terminal: &mut Terminal) -> Outcome {
        let Some(launched) = launch::launched()? else { return Ok(()) };
        // Processes start at different times, so a short deadline of collectives does not apply here. The processes of
        // `tpc launch` start together.
        let least = if launched.kind == LauncherKind::Tpc { 10 } else { 30 };
        let deadline = self.deadline()?.max(Duration::from_secs(least));
        launch::join_with(Joining { deadline, settings: settings(), notes: &mut |note| terminal.note(note) })?;
        Ok(())
    }

    /// Notes that a deadline has no effect on one rank.
    pub(crate) fn note(&self, ranks: usize, terminal: &mut Terminal) {
        if self.deadline.is_some() && ranks == 1 {
            terminal.note("--deadline has no effect on one rank, which never waits for another rank");
        }
    }

    /// The backend that executes the ranks.
    pub(crate) fn backend(&self) -> Backend {
        self.device.backend()
    }

    /// The launch options of a session.
    pub(crate) fn options(&self) -> Outcome<LaunchOptions> {
        let backend = self.backend();
        let (deadline, processes) = (self.deadline()?, launch::joined());
        Ok(LaunchOptions { deadline, processes, backend, ..LaunchOptions::default() })
    }
}

/// The ranks that this process runs: all of them, unless it was launched with others.
///
/// # Errors
/// The number of processes is not that of the ranks.
pub(crate) fn local_ranks(ranks: usize) -> Result<Range<usize>, RuntimeError> {
    match launch::joined() {
        Some(processes) => processes.local(ranks),
        None => Ok(0..ranks),
    }
}

/// Whether this process writes files and reports progress: the first of the launched processes does.
pub(crate) fn leads() -> bool {
    launch::joined().is_none_or(|processes| processes.process() == 0)
}
