//! The errors that can occur before a launched process runs.

use super::environment::{EnvironmentError, LauncherKind};
use crate::error::RuntimeError;
use std::io;
use std::time::Duration;

/// Why the processes of a launched world do not join.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher's variables are invalid.
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    /// Processes on several hosts without MPI.
    #[error(
        "{kind} started {world} processes, of which {local_world} on this host; without MPI they share memory and must all run on one host: for several hosts, start tpc, built with the feature `mpi`, with mpirun or `srun --mpi=pmix`, or use GPUs with NCCL"
    )]
    Hosts {
        /// The launcher.
        kind: LauncherKind,
        /// Number of processes.
        world: usize,
        /// Number of processes on this host.
        local_world: usize,
    },
    /// More processes than a mesh has ranks.
    #[error("{world} processes were launched, but a mesh has at most {most} ranks")]
    TooMany {
        /// Number of processes.
        world: usize,
        /// Maximum number of ranks.
        most: usize,
    },
    /// The launcher's control block does not exist.
    #[error(
        "the control block of `tpc launch` cannot be opened ({0}); its variables are set, but the launcher has ended, or runs as another user or in another container"
    )]
    Control(String),
    /// The address for the rendezvous cannot be used.
    #[error(
        "rank {rank} cannot join the others at {address}: {problem}; choose another address with TPC_ADDRESS=HOST:PORT"
    )]
    Address {
        /// The rank of this process.
        rank: usize,
        /// The address.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// Processes that did not join.
    #[error(
        "{} did not join at {address} within {deadline:?}{detail}; check whether {} started and what {} printed. {why}",
        ranks(missing),
        it(missing),
        it(missing)
    )]
    Missing {
        /// The missing ranks.
        missing: Vec<usize>,
        /// The address of the rendezvous.
        address: String,
        /// The deadline.
        deadline: Duration,
        /// Further details in parentheses: the latest attempt, or a process that was rejected.
        detail: String,
        /// Why this process waited for them.
        why: String,
    },
    /// Another job uses the address.
    #[error(
        "rank {rank} was rejected at {address}, and its own rank 0 did not join there: {reason}; start all processes of a job with the same command and files, and give each job its own address with MASTER_PORT or TPC_ADDRESS=HOST:PORT"
    )]
    TurnedAway {
        /// The rank of this process.
        rank: usize,
        /// The address.
        address: String,
        /// The reason that the other job's rank 0 gave.
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
    /// MPI works, but another process has failed or does not respond.
    #[error("{kind} started this process, but it does not meet the others: {source}")]
    Meeting {
        /// The launcher.
        kind: LauncherKind,
        /// The error.
        source: Box<RuntimeError>,
    },
    /// All processes have joined, but their settings differ.
    #[error(transparent)]
    Settings(RuntimeError),
    /// Rank 0 refused to start.
    #[error("rank 0 does not start: {0}")]
    Refused(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A list of ranks.
pub(super) fn ranks(ranks: &[usize]) -> String {
    let names: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, names.join(", "))
}

fn it(ranks: &[usize]) -> &'static str {
    if ranks.len() == 1 { "it" } else { "they" }
}
