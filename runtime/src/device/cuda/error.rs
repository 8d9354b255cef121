//! What can be wrong with a GPU, its libraries or a program on it, and what to do.

use std::path::PathBuf;
use std::time::Duration;

/// Why a program cannot be prepared or executed on a GPU.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    /// A library of CUDA's was not found.
    #[error(
        "{library} was not found: install CUDA 13, or `pip install {wheel}` and set TPC_CUDA_LIBRARIES to the folder of its libraries; looked in {}",
        folders(searched)
    )]
    NoLibrary {
        /// The library.
        library: &'static str,
        /// The Python wheel that has it.
        wheel: &'static str,
        /// The folders that were looked in, besides the system's.
        searched: Vec<PathBuf>,
    },
    /// A library that is there but cannot be used.
    #[error("{library} cannot be used: {reason}; install the version that this driver supports")]
    BrokenLibrary {
        /// The library.
        library: &'static str,
        /// What the loader or the library says.
        reason: String,
    },
    /// There is no GPU.
    #[error("no CUDA device: {0}; run on the CPU, or on a machine with an NVIDIA GPU and its driver")]
    NoDevice(String),
    /// The generated kernels were refused.
    #[error("the generated kernels do not compile for {arch}: {log}; this is a fault of tpc, please report it")]
    Compile {
        /// The architecture, `sm_90` for example.
        arch: String,
        /// What the compiler says.
        log: String,
    },
    /// The device has too little memory.
    #[error(
        "{bytes} bytes of device memory could not be allocated, {free} are free; use more ranks or a plan that shards more"
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// A call of the driver or of a library failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// The function, and what it was called for.
        call: String,
        /// What it says.
        reason: String,
    },
    /// Collectives did not finish in time and were aborted.
    #[error(
        "rank {rank}: {operation} did not finish within {deadline:?} and was aborted; look at what its peers do, or raise the deadline if they are only slow"
    )]
    Deadline {
        /// The rank.
        rank: usize,
        /// The collective, or the step.
        operation: String,
        /// How long it had.
        deadline: Duration,
    },
}

fn folders(searched: &[PathBuf]) -> String {
    if searched.is_empty() {
        return "the system's folders".into();
    }
    let names: Vec<String> = searched.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}
