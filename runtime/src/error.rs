//! Errors, typed. Every message names the operation, who is missing or wrong, and what to do.

use std::time::Duration;
use tpc_ir::InputKind;
use tpc_ir::quote::cut;

/// Why a program could not be loaded or a step not be finished.
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
        /// Bytes asked for.
        bytes: usize,
    },
    /// No input or output of that name.
    #[error("the program has no {what} `{}`; it has {}", cut(name), few(known))]
    Unknown {
        /// `input` or `output`.
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// A name that inputs of several kinds have.
    #[error(
        "the program has a {} and a {} of the name `{}`: say which kind you mean, `(InputKind, name)`",
        kinds[0].name(), kinds[1].name(), cut(name)
    )]
    Ambiguous {
        /// The name asked for.
        name: String,
        /// Two of the kinds.
        kinds: [InputKind; 2],
    },
    /// Data of the wrong size.
    #[error("`{name}` takes {expected} bytes ({shape}), not {given}")]
    Size {
        /// Name of the input.
        name: String,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
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
        /// What the callback said.
        reason: String,
    },
    /// The boxes of all ranks do not make up the whole tensor.
    #[error(
        "`{name}`: the ranks hold {held} of {total} elements, so the whole tensor cannot be read; the rank program is broken, please report it"
    )]
    Incomplete {
        /// Name of the output.
        name: String,
        /// Elements held by all ranks together.
        held: usize,
        /// Elements of the tensor.
        total: usize,
    },
    /// A parameter or a tensor of the batch was never given.
    #[error(
        "input `{name}` has no value: write it before the first step (`write_f64` or `write_bytes`, or load or initialise the parameters)"
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
        /// The operation and its plan line.
        operation: String,
        /// The ranks that did not arrive or not finish.
        missing: Vec<usize>,
        /// What the missing ranks were last seen doing.
        states: String,
        /// How long it waited.
        deadline: Duration,
    },
    /// Ranks of one group came with different operations.
    #[error(
        "ranks are out of step: rank {rank} is in {mine}, but rank {peer} is in {theirs}; all ranks of a group must issue the same collectives in the same order"
    )]
    Desynchronized {
        /// The rank that found out.
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
        /// The operation and its plan line.
        operation: String,
        /// The ranks that left.
        missing: Vec<usize>,
    },
    /// Another rank failed, so this one cannot go on.
    #[error("rank {rank}: {operation} was given up because rank {peer} failed: {reason}")]
    PeerFailed {
        /// The rank that gave up.
        rank: usize,
        /// Where it was.
        operation: String,
        /// The rank that failed first.
        peer: usize,
        /// Why.
        reason: String,
    },
    /// The process of another rank has ended without a word.
    #[error(
        "rank {rank}: {operation} can never finish: {} ended without it; see what it said or why it was killed",
        processes(missing)
    )]
    Gone {
        /// The rank that waits.
        rank: usize,
        /// The operation and its plan line.
        operation: String,
        /// The ranks whose processes have ended.
        missing: Vec<usize>,
    },
    /// The library that carries messages between processes failed.
    #[error("rank {rank}: {operation} failed on the way: {reason}; see what the network or its library says")]
    Transport {
        /// The rank that noticed it.
        rank: usize,
        /// The operation and its plan line.
        operation: String,
        /// What the library said.
        reason: String,
    },
    /// Something that all processes do together did not work on one of them.
    #[error("{}", of_rank(*rank, ": ", reason))]
    Elsewhere {
        /// The rank on which it did not.
        rank: usize,
        /// Why.
        reason: String,
    },
    /// The processes do not make up the mesh.
    #[error(
        "the mesh has {ranks} ranks, but {processes} processes were launched, one for each rank; launch {ranks} processes or choose a mesh of {processes} ranks"
    )]
    Processes {
        /// Ranks of the mesh.
        ranks: usize,
        /// Processes of the world.
        processes: usize,
    },
    /// The processes run different programs.
    #[error(
        "the processes run different programs: {0}; start all of them with the same command, files and version of tpc"
    )]
    Programs(String),
    /// The processes were started with different options, data, seeds or weights.
    #[error("the processes do not do the same: {0}; start all of them with the same command and files")]
    Settings(String),
    /// A rank panicked.
    #[error("rank {rank} panicked in {operation}: {message}")]
    Panic {
        /// The rank.
        rank: usize,
        /// The label of the step it was in.
        operation: String,
        /// The panic message.
        message: String,
    },
    /// A GPU, its libraries, or what was asked of them.
    #[error(transparent)]
    Cuda(#[from] crate::device::cuda::error::CudaError),
    /// A device that is not a real one.
    #[error("emulated device: {0}")]
    Emulated(String),
    /// The session failed before.
    #[error("the session has failed and cannot go on: {0}; launch a new one")]
    Poisoned(String),
}

/// What a rank said, with its number if it did not say that itself.
pub(crate) fn of_rank(rank: usize, between: &str, reason: &str) -> String {
    let rank = format!("rank {rank}");
    let names_itself = reason.strip_prefix(&rank).is_some_and(|rest| rest.starts_with([':', ' ']));
    if names_itself { reason.to_string() } else { format!("{rank}{between}{reason}") }
}

/// Names of which there may be thousands: the first of them, and how many more there are.
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
