//! CUDA: rank programs as generated kernels.
//!
//! | question | file |
//! |---|---|
//! | the kernels of a program, and the order in which they run | `emit` |
//! | the matrix products that a library can compute, and its calls | `gemm` |
//! | the epilogues that the library can apply | `epilogue` |
//! | the meaning of kernels and of the library's products, executed on the CPU | `emulate`, its header `shim.h`, `reference` |
//! | compiling kernels, and the resources that they use; a cache on disk | `nvrtc`, `usage`; `cache` |
//! | finding and loading CUDA's libraries | `search`, `library` |
//! | errors | `error` |
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
