//! Execution on NVIDIA GPUs. This code has not run on a real GPU yet; `../emulate.rs` checks what it executes (kernels,
//! products, collectives as calls) on the CPU.
//!
//! | question | file |
//! |---|---|
//! | the device, its context, and errors of the driver | `context` |
//! | kernels as functions of the device | `module` |
//! | matrix products by cublasLt: plans, and timing of algorithms | `product` |
//! | collectives by NCCL: a table of its functions, non-blocking calls, aborts at a deadline | `nccl` |
//! | agreement of ranks on an identifier | `rendezvous` |
//! | the GPU of a process, and settings for processes that share one | `share` |
//! | when waiting for other processes becomes pointless | `watch` |
//! | the progress of a step's collectives, for messages and the flight record | `progress` |
//! | memory, streams, events, the graph of a step | `machine` |
//! | small writes in one copy; host memory for it | `staging`, `pinned` |
//! | the duration of every action | `profile` |

mod context;
mod machine;
mod module;
mod nccl;
mod pinned;
mod product;
mod profile;
mod progress;
mod rendezvous;
mod share;
mod staging;
mod watch;

pub use context::Context;
pub use machine::{Compiled, Gpu, GpuOptions, ProductCounts};
pub use nccl::{Nccl, Network};
pub use profile::Timing;
pub use rendezvous::{Folder, Hosts, Left, Rendezvous};
pub use share::Share;
