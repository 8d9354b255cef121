//! Ranks as processes of MPI, on one host or several: the same promises as everywhere, by messages.
//!
//! | question | file |
//! |---|---|
//! | the MPI library: sending, receiving, looking | `library` |
//! | joining, and listening while no thread waits | `join` |
//! | what a process knows of the others, and tells them | `process` |
//! | what the hosts do together ([`Processes`](super::Processes)); bytes that they exchange | `processes`, `exchange` |
//! | news: who failed, who left, who is busy | `news` |
//! | waiting with a deadline | `wait` |
//! | which bytes go to whom | `pieces` |
//! | a rank's end of the communication | `ranks` |
//! | how a process ends without leaving others behind | `ending` |
//!
//! Decisions:
//! - Only messages between two processes are used, all of them started without blocking: MPI's own collectives neither combine in a
//!   fixed order nor can be given up, and making a communicator for a group blocks without a deadline. Tags tell groups apart instead.
//!   Every element of a reduction is combined in the order of the ranks, by the project's own kernels for every element type.
//! - Every collective begins with a header of four words to every other rank of the group: which collective this is. It is compared before
//!   the data is used, so ranks that are out of step are an error that names both collectives.
//! - Data that lies side by side is sent from and received into the arena; other pieces, and operands of reductions, go through memory
//!   beside it, which is kept from step to step.
//! - A process that fails tells all others, and each that waits gives up at once. The processes then wait a few seconds for each other's
//!   last words, and `MPI_Abort` ends all. Where a process is killed, `mpirun` notices it and ends the others.

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
