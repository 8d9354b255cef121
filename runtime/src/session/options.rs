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
    /// NVIDIA GPUs, with the feature `cuda`: a process alone runs all ranks on the first one, processes that were launched together
    /// run theirs on that of their number on the host, and communicate by NCCL. Has not run on a real one yet, see `GPU.md`.
    ///
    /// Where processes share a GPU, launching sets the variables of the environment that NCCL needs for that, unless they are set:
    /// other threads must not read the environment meanwhile except through Rust's library.
    Cuda,
}

/// How programs are launched.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// How long a collective, or something that all processes do together, may take before it is an error.
    pub deadline: Duration,
    /// Whether every rank is bound to a core of its own; without effect if there are fewer cores
    /// than ranks.
    pub pin: bool,
    /// How many of the latest actions each rank keeps for [`Session::trace_json`](super::Session::trace_json); 0 records none.
    pub trace: usize,
    /// Makes a rank fail, for tests of what the others do.
    pub fault: Option<Fault>,
    /// The processes of the world that this one was launched in ([`crate::launch::join`]); without them, all ranks are threads of this
    /// process. Every process launches the same sessions in the same order, and makes the same calls.
    pub processes: Option<Arc<dyn Processes>>,
    /// What executes the ranks. On a device there are no traces, and no times of collectives.
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

/// A failure on purpose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// The rank that fails.
    pub rank: usize,
    /// The step in which it does, counted from 0.
    pub step: u64,
    /// How it fails, before its first action.
    pub kind: FaultKind,
}

/// How a rank fails on purpose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// It panics.
    Panic,
    /// It does nothing for a while, or until a peer gives up.
    Stall(Duration),
    /// Its process is killed.
    Kill,
    /// Its process is stopped, as by a debugger or a batch system.
    Stop,
    /// Its process exits with this code.
    Exit(i32),
}
