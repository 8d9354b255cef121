//! What can go wrong before a launched process runs.

use super::environment::{EnvironmentError, LauncherKind};
use crate::error::RuntimeError;
use std::io;
use std::time::Duration;

/// Why the processes of a launched world do not come together.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher's variables.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Processes on several hosts.
    #[error(
        "{kind} started {world} processes, of which {local_world} on this host; without MPI they share memory and must all run on one host: for several, start tpc, built with the feature `mpi`, with mpirun or `srun --mpi=pmix`, or use GPUs with NCCL"
    )]
    Hosts {
        /// The launcher.
        kind: LauncherKind,
        /// All processes.
        world: usize,
        /// Those of this host.
        local_world: usize,
    },
    /// More processes than a session has ranks.
    #[error("{world} processes were launched, more than the {most} ranks that a program can have here")]
    TooMany {
        /// Processes.
        world: usize,
        /// Ranks at most.
        most: usize,
    },
    /// The launcher's memory is not there.
    #[error(
        "the control block of `tpc launch` cannot be opened ({0}); its variables are set, but it has ended, runs as another user or in another container"
    )]
    Control(String),
    /// The meeting place cannot be used.
    #[error("rank {rank} cannot meet the others at {address}: {problem}; choose another with TPC_ADDRESS=HOST:PORT")]
    Address {
        /// This process.
        rank: usize,
        /// The address.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// Processes that did not come.
    #[error(
        "{} did not come to {address} within {deadline:?}{detail}; look whether {} started and what {} said. {why}",
        ranks(missing),
        it(missing),
        it(missing)
    )]
    Missing {
        /// The ranks.
        missing: Vec<usize>,
        /// Where they were to come.
        address: String,
        /// How long they were waited for.
        deadline: Duration,
        /// What else is known, in parentheses: the latest attempt, or who was turned away.
        detail: String,
        /// Why they were waited for.
        why: String,
    },
    /// Another job uses the address.
    #[error(
        "rank {rank} was turned away at {address}, and a rank 0 of its own did not come there: {reason}; start all processes of a job with the same command and files, and give each job an address of its own with MASTER_PORT or TPC_ADDRESS=HOST:PORT"
    )]
    TurnedAway {
        /// This process.
        rank: usize,
        /// The address.
        address: String,
        /// What the rank 0 there said.
        reason: String,
    },
    /// MPI does not start.
    #[error(
        "{kind} started this process, but MPI does not work: {problem}; tpc must be built with the MPI whose launcher starts it"
    )]
    Mpi {
        /// The launcher.
        kind: LauncherKind,
        /// What is wrong.
        problem: String,
    },
    /// MPI works, and another process has failed or is not heard of.
    #[error("{kind} started this process, but it does not meet the others: {source}")]
    Meeting {
        /// The launcher.
        kind: LauncherKind,
        /// What happened.
        source: Box<RuntimeError>,
    },
    /// All have come together, and do not do the same.
    #[error(transparent)]
    Settings(RuntimeError),
    /// Another process did not let this one in.
    #[error("rank 0 does not start: {0}")]
    Refused(String),
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Ranks by their numbers.
pub(super) fn ranks(ranks: &[usize]) -> String {
    let names: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, names.join(", "))
}

fn it(ranks: &[usize]) -> &'static str {
    if ranks.len() == 1 { "it" } else { "they" }
}
