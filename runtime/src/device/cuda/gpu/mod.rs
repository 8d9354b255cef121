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

use crate::device::session::DeviceSession;
use crate::error::RuntimeError;
use tpc_ir::program::RankProgram;

/// Programs on a GPU, with the words of [`crate::Session`].
pub type GpuSession = DeviceSession<Gpu>;

/// Launches programs on a GPU: all ranks of a mesh in this process, or one of them with a network.
///
/// # Errors
/// As [`Gpu::new`].
pub fn launch(programs: Vec<RankProgram>, options: GpuOptions) -> Result<GpuSession, RuntimeError> {
    Ok(DeviceSession::new(Gpu::new(programs, options)?))
}
