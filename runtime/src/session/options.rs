//! How programs are launched.

use crate::comm::Processes;
use std::sync::Arc;
use std::time::Duration;

/// What executes the ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// A thread for every rank.
    #[default]
    Cpu,
    /// NVIDIA GPUs, with the feature `cuda`: a single process runs all ranks on the first GPU. Processes that were
    /// launched together use the GPUs with their numbers on the host, and communicate over NCCL. This has not run on a
    /// real GPU yet, see `GPU.md`.
    ///
    /// If processes share a GPU, launching sets the environment variables that NCCL needs for that, unless they are
    /// set: during the launch, other threads may only read the environment through Rust's library.
    Cuda,
}

/// How programs are launched.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// Deadline of a collective, or of another operation that all processes perform together.
    pub deadline: Duration,
    /// Whether every rank is bound to its own core; has no effect if there are fewer cores than ranks.
    pub pin: bool,
    /// How many of the latest actions each rank keeps for [`Session::trace_json`](super::Session::trace_json); 0
    /// disables recording.
    pub trace: usize,
    /// Injects a failure, to test the reaction of the other ranks.
    pub fault: Option<Fault>,
    /// The processes of the world that this one was launched in ([`crate::launch::join`]); without them, all ranks are
    /// threads of this process. Every process must launch the same sessions in the same order, and make the same calls.
    pub processes: Option<Arc<dyn Processes>>,
    /// What executes the ranks. A device records no traces and no times of collectives.
    pub backend: Backend,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        LaunchOptions {
            deadline: Duration::from_secs(60),
            pin: true,
            trace: 0,
            fault: None,
            processes: None,
            backend: Backend::Cpu,
        }
    }
}

/// An injected failure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// The rank that fails.
    pub rank: usize,
    /// The step in which it fails, counted from 0.
    pub step: u64,
    /// How it fails, before its first action.
    pub kind: FaultKind,
}

/// How an injected failure behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// The rank panics.
    Panic,
    /// The rank does nothing for a while, or until a peer gives up.
    Stall(Duration),
    /// Its process is killed.
    Kill,
    /// Its process is stopped, as by a debugger or a batch system.
    Stop,
    /// Its process exits with this code.
    Exit(i32),
}
