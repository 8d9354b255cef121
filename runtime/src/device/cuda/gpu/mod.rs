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
//! | which GPU a process has, and what processes need that share one | `share` |
//! | when waiting for other processes is of no use any more | `watch` |
//! | how far the collectives of a step are, for messages and the flight record | `progress` |
//! | memory, streams, events, the graph of a step | `machine` |
//! | small writes in one copy; memory of the host for it | `staging`, `pinned` |
//! | how long every action takes | `profile` |

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
