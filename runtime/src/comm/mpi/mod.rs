//! Ranks as processes of MPI, on one host or several: the same promises as everywhere, by messages.
//!
//! | question | file |
//! |---|---|
//! | the MPI library: sending, receiving, looking | `library` |
//! | joining; what hosts exchange ([`Processes`](super::Processes)) | `processes` |
//! | who failed, who left, who is busy | `news` |
//! | waiting with a deadline | `wait` |
//! | which bytes go to whom | `pieces` |
//! | a rank's end of the communication | `ranks` |
//! | how a process ends without leaving others behind | `ending` |
//!
//! Decisions:
//! - Only messages between two processes are used, all started and then looked after: MPI's own collectives neither combine in a fixed
//!   order nor can be given up, and making a communicator for a group blocks without a deadline. Groups are told apart by tags instead.
//!   Every element of a reduction is combined in the order of the ranks, by the project's own kernels for every element type.
//! - Every collective begins with a header of four words to every other rank of the group: which collective this is. It is compared before
//!   anything is made of the data, so ranks that are out of step are an error that names both collectives.
//! - Data that lies side by side is sent from and received into the arena; other pieces, and operands of reductions, go through memory
//!   beside it, which is kept from step to step.
//! - A process that fails tells all others, and whoever waits gives up at once. Processes then wait for each other to have said what there
//!   is to say, for a few seconds, and end all by `MPI_Abort`. One that is killed is noticed by `mpirun`, which ends the others.

mod ending;
mod library;
mod news;
mod pieces;
mod processes;
mod ranks;
mod wait;

pub use processes::{Mpi, join};
