//! Ranks as MPI processes on one host or several. This communicator gives the same guarantees as the others, by
//! exchanging messages.
//!
//! | question | file |
//! |---|---|
//! | calls of the MPI library | `library` |
//! | joining a world, and listening while no thread waits | `join` |
//! | the state of a process and what it knows of the others | `process` |
//! | coordination of the hosts ([`Processes`](super::Processes)), and their exchange of bytes | `processes`, `exchange` |
//! | news: which processes have failed, have left or are busy | `news` |
//! | waiting with a deadline | `wait` |
//! | which bytes of a collective each rank sends and receives | `pieces` |
//! | the communicator of a rank | `ranks` |
//! | how a process ends without leaving others waiting | `ending` |
//!
//! Decisions:
//! - Only nonblocking point-to-point messages are used. MPI's own collectives do not combine in a fixed order and
//!   cannot be canceled, and creating a communicator for a group blocks without a deadline. Tags distinguish groups
//!   instead. Every element of a reduction is combined in the order of the ranks, by the project's own kernels, which
//!   support every element type.
//! - Every collective begins with a header of four words, which identifies the collective, to every other rank of the
//!   group. It is compared before the data is used, so ranks that are out of step cause an error that names both
//!   collectives.
//! - Contiguous data is sent from and received into the arena. Other pieces and operands of reductions go through
//!   staging memory outside the arena, which is kept from step to step.
//! - A process that fails notifies all others, and those that wait fail at once. The processes then wait a few seconds
//!   for each other's error messages, and `MPI_Abort` ends all. If a process is killed, `mpirun` detects it and ends
//!   the others.

mod ending;
mod exchange;
mod join;
mod library;
mod news;
mod pieces;
mod process;
mod processes;
mod ranks;
mod wait;

pub use join::join;
pub use process::Mpi;
