//! Typed errors. Every message names the operation, the rank that is missing or wrong, and a remedy.

use std::time::Duration;
use tpc_ir::InputKind;
use tpc_ir::quote::cut;

/// Why a program could not be loaded or a step could not be finished.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RuntimeError {
    /// The rank programs do not fit together.
    #[error("cannot launch: {0}")]
    Launch(String),
    /// An action of a rank program cannot be executed.
    #[error(
        "rank {rank}: step {step} `{label}` cannot be loaded: {reason}; the rank program is broken, please report it"
    )]
    Load {
        /// The rank.
        rank: usize,
        /// Index in the program's list of steps.
        step: usize,
        /// Label of the step.
        label: String,
        /// What is wrong.
        reason: String,
    },
    /// The arena of a rank could not be allocated.
    #[error("rank {rank}: {bytes} bytes of memory could not be allocated; use more ranks or a plan that shards more")]
    OutOfMemory {
        /// The rank.
        rank: usize,
        /// Bytes that were requested.
        bytes: usize,
    },
    /// There is no input or output with this name.
    #[error("the program has no {what} `{}`; it has {}", cut(name), few(known))]
    Unknown {
        /// `input` or `output`.
        what: &'static str,
        /// The requested name.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// A name that is shared by inputs of several kinds.
    #[error(
        "the program has a {} and a {} named `{}`: give the kind, too, as `(InputKind, name)`",
        kinds[0].name(), kinds[1].name(), cut(name)
    )]
    Ambiguous {
        /// The requested name.
        name: String,
        /// Two of the kinds.
        kinds: [InputKind; 2],
    },
    /// Data of the wrong size.
    #[error("`{name}` takes {expected} bytes ({shape}), not {given}")]
    Size {
        /// Name of the input.
        name: String,
        /// Number of bytes needed.
        expected: usize,
        /// Number of bytes given.
        given: usize,
        /// Element type and shape.
        shape: String,
    },
    /// A loader or saver failed.
    #[error("`{name}`, rank {rank}: {reason}")]
    Transfer {
        /// Name of the input or output.
        name: String,
        /// Rank whose box was transferred.
        rank: usize,
        /// The callback's error.
        reason: String,
    },
    /// The boxes of all ranks do not cover the whole tensor.
    #[error(
        "`{name}`: the ranks hold {held} of {total} elements, so the whole tensor cannot be read; the rank program is broken, please report it"
    )]
    Incomplete {
        /// Name of the output.
        name: String,
        /// Elements that all ranks hold together.
        held: usize,
        /// Number of elements of the tensor.
        total: usize,
    },
    /// A parameter or a tensor of the batch was never written.
    #[error(
        "input `{name}` has no value: write it before the first step (`write_f64` or `write_bytes`, or load or initialize the parameters)"
    )]
    Missing {
        /// The input.
        name: String,
    },
    /// A collective did not finish in time.
    #[error(
        "rank {rank}: {operation} did not finish within {deadline:?}: missing {}{states}; look at what those ranks do, or raise the deadline if they are only slow",
        ranks(missing)
    )]
    Deadline {
        /// The rank that waited.
        rank: usize,
        /// The operation and its plan entry.
        operation: String,
        /// The ranks that did not arrive or did not finish.
        missing: Vec<usize>,
        /// The last known activities of the missing ranks.
        states: String,
        /// The deadline of the wait.
        deadline: Duration,
    },
    /// Ranks of one group started different operations.
    #[error(
        "ranks are out of step: rank {rank} is in {mine}, but rank {peer} is in {theirs}; all ranks of a group must issue the same collectives in the same order"
    )]
    Desynchronized {
        /// The rank that noticed it.
        rank: usize,
        /// Its operation.
        mine: String,
        /// The other rank.
        peer: usize,
        /// The other rank's operation.
        theirs: String,
    },
    /// A rank finished its step while another waits for it in a collective.
    #[error(
        "rank {rank}: {operation} can never finish: {} finished the step without it; all ranks of a group must issue the same collectives",
        ranks(missing)
    )]
    Left {
        /// The rank that waits.
        rank: usize,
        /// The operation and its plan entry.
        operation: String,
        /// The ranks that finished.
        missing: Vec<usize>,
    },
    /// Another rank failed, so this one cannot continue.
    #[error("rank {rank}: {operation} was given up because rank {peer} failed: {reason}")]
    PeerFailed {
        /// The rank that gave up.
        rank: usize,
        /// The operation that it gave up.
        operation: String,
        /// The rank that failed first.
        peer: usize,
        /// The reason of the failure.
        reason: String,
    },
    /// The process of another rank has ended without reporting an error.
    #[error(
        "rank {rank}: {operation} can never finish: {} ended without it; check its output, or why it was killed",
        processes(missing)
    )]
    Gone {
        /// The rank that waits.
        rank: usize,
        /// The operation and its plan entry.
        operation: String,
        /// The ranks whose processes have ended.
        missing: Vec<usize>,
    },
    /// The library that carries messages between processes failed.
    #[error("rank {rank}: {operation} failed in transit: {reason}; check the network and its library")]
    Transport {
        /// The rank that noticed it.
        rank: usize,
        /// The operation and its plan entry.
        operation: String,
        /// The library's error.
        reason: String,
    },
    /// An operation of all processes failed on one of them.
    #[error("{}", of_rank(*rank, ": ", reason))]
    Elsewhere {
        /// The rank on which it failed.
        rank: usize,
        /// The reason of the failure.
        reason: String,
    },
    /// The number of processes does not match the mesh.
    #[error(
        "the mesh has {ranks} ranks, but {processes} processes were launched, one for each rank; launch {ranks} processes or choose a mesh of {processes} ranks"
    )]
    Processes {
        /// Number of ranks of the mesh.
        ranks: usize,
        /// Number of launched processes.
        processes: usize,
    },
    /// The processes run different programs.
    #[error(
        "the processes run different programs: {0}; start all of them with the same command, files and version of tpc"
    )]
    Programs(String),
    /// The processes were started with different options, data, seeds or weights.
    #[error("the processes differ: {0}; start all of them with the same command and files")]
    Settings(String),
    /// A rank panicked.
    #[error("rank {rank} panicked in {operation}: {message}")]
    Panic {
        /// The rank.
        rank: usize,
        /// The label of the step that it was executing.
        operation: String,
        /// The panic message.
        message: String,
    },
    /// An error of a GPU, of its libraries, or of their use.
    #[error(transparent)]
    Cuda(#[from] crate::device::cuda::error::CudaError),
    /// An error of the emulated device.
    #[error("emulated device: {0}")]
    Emulated(String),
    /// The session failed earlier.
    #[error("the session has failed and cannot continue: {0}; launch a new one")]
    Poisoned(String),
}

/// A rank's message, prefixed with its number unless the message contains it.
pub(crate) fn of_rank(rank: usize, between: &str, reason: &str) -> String {
    let rank = format!("rank {rank}");
    let names_itself = reason.strip_prefix(&rank).is_some_and(|rest| rest.starts_with([':', ' ']));
    if names_itself { reason.to_string() } else { format!("{rank}{between}{reason}") }
}

/// A list of names that may be very long: the first few, and the number of the others.
pub(crate) fn few(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| cut(name).to_string()).collect();
    match names.len().saturating_sub(SHOWN) {
        0 if names.is_empty() => "none".into(),
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn ranks(ranks: &[usize]) -> String {
    let names: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, names.join(", "))
}

fn processes(ranks: &[usize]) -> String {
    let names: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    match &names[..] {
        [one] => format!("the process of rank {one}"),
        _ => format!("the processes of ranks {}", names.join(", ")),
    }
}
