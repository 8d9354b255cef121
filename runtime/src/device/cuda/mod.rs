//! CUDA: rank programs as generated kernels.
//!
//! | question | file |
//! |---|---|
//! | which kernels a program becomes, and in which order they run | `emit` |
//! | which matrix products a library takes, and how | `gemm` |
//! | what it can do with their elements besides | `epilogue` |
//! | what the kernels and the library's products mean, executed on the CPU | `emulate`, its header `shim.h`, `reference` |
//! | how kernels are compiled, and what they take of a device | `nvrtc`, `usage`; kept on disk: `cache` |
//! | where CUDA's libraries are, and how they are loaded | `search`, `library` |
//! | what can be wrong | `error` |
//! | execution on a GPU, with the feature `cuda` | `gpu/` |

pub mod emit;
pub mod epilogue;
pub mod error;
pub mod gemm;
pub mod usage;

#[cfg(unix)]
pub mod cache;
#[cfg(unix)]
pub mod emulate;
#[cfg(all(unix, feature = "cuda"))]
pub mod gpu;
#[cfg(unix)]
pub(crate) mod library;
#[cfg(unix)]
pub mod nvrtc;
#[cfg(unix)]
mod reference;
#[cfg(unix)]
pub mod search;
