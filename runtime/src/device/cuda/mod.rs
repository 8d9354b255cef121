//! CUDA: rank programs as generated kernels.
//!
//! | question | file |
//! |---|---|
//! | which kernels a program becomes, and in which order they run | `emit` |
//! | which matrix products a library takes, and how | `gemm` |
//! | what the kernels mean, executed on the CPU | `emulate`, its header `shim.h` |
//! | how shared libraries are loaded | `library` |

pub mod emit;
#[cfg(unix)]
pub mod emulate;
pub mod gemm;
#[cfg(unix)]
pub(crate) mod library;
