//! The errors of a GPU, its libraries or a program on it, each with a remedy.

use std::path::PathBuf;
use std::time::Duration;

/// Why a program cannot be prepared or executed on a GPU.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    /// A CUDA library was not found.
    #[error(
        "{library} was not found: install CUDA 13, or `pip install {wheel}` and set TPC_CUDA_LIBRARIES to the directory of its libraries; searched {}",
        folders(searched)
    )]
    NoLibrary {
        /// The library.
        library: &'static str,
        /// The Python wheel that contains it.
        wheel: &'static str,
        /// The searched directories, in addition to the system's.
        searched: Vec<PathBuf>,
    },
    /// A library was found but cannot be used.
    #[error("{library} cannot be used: {reason}; install the version that this driver supports")]
    BrokenLibrary {
        /// The library.
        library: &'static str,
        /// The error from the loader or the library.
        reason: String,
    },
    /// There is no GPU.
    #[error("no CUDA device: {0}; run on the CPU, or on a machine with an NVIDIA GPU and its driver")]
    NoDevice(String),
    /// The generated kernels were rejected.
    #[error("the generated kernels do not compile for {arch}: {log}; this is a fault of tpc, please report it")]
    Compile {
        /// The architecture, for example `sm_90`.
        arch: String,
        /// The compiler's log.
        log: String,
    },
    /// The device has too little memory.
    #[error(
        "{bytes} bytes of device memory could not be allocated, {free} are free; use more ranks or a plan that shards more"
    )]
    OutOfMemory {
        /// Bytes that were requested.
        bytes: usize,
        /// Bytes that are free.
        free: usize,
    },
    /// A call of the driver or of a library failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// The function, and the purpose of the call.
        call: String,
        /// The error of the call.
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
        /// The deadline.
        deadline: Duration,
    },
}

fn folders(searched: &[PathBuf]) -> String {
    if searched.is_empty() {
        return "the system's directories".into();
    }
    let names: Vec<String> = searched.iter().map(|f| f.display().to_string()).collect();
    names.join(", ")
}
