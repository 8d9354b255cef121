//! Execution on NVIDIA GPUs. Nothing here has run on one yet: what it executes (kernels, products,
//! collectives as calls) is checked on the CPU by `../emulate.rs`.
//!
//! | question | file |
//! |---|---|
//! | which device, its context, its driver's errors | `context` |
//! | how kernels become functions of the device | `module` |
//! | matrix products by cublasLt: plans, algorithms that are timed | `product` |
//! | collectives by NCCL: a table of its functions, non-blocking, aborted at a deadline | `nccl` |
//! | how ranks agree on an identifier | `rendezvous` |
//! | memory, streams, events, the graph of a step | `machine` |

mod context;
mod machine;
mod module;
mod nccl;
mod product;
mod rendezvous;

pub use context::Context;
pub use machine::{Compiled, Gpu, GpuOptions};
pub use nccl::{Nccl, Network};
pub use rendezvous::{Folder, Rendezvous};
