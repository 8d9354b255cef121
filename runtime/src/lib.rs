//! Executes tpc rank programs: ranks as threads or processes, shared-memory collectives, CPU kernels.
//!
//! | question | file |
//! |---|---|
//! | how programs are launched, fed, stepped and read | [`session`] |
//! | which errors exist, and what they say | [`error`] |
//! | which elements of a tensor a rank holds, and which of them two programs have in common | [`boxes`] |
//! | how parameters and state are written to disk, and read by other meshes and plans | [`checkpoint`] |
//! | what a communicator is; ranks as threads and as processes | [`comm`] |
//! | how processes are launched and find each other | [`launch`] |
//! | whether all processes run the same programs | [`fingerprint`] |
//! | whether all processes have the same options, data, seeds and weights | [`settings`], [`digest`] |
//! | how one rank's program is prepared and executed | [`device::cpu`] |
//! | which kernels a program is on a GPU, and how they are checked and run | [`device::cuda`] |
//! | what a session needs of a device with memory of its own | [`device::attached`] |
//! | how elements are stored, and converted to bytes | [`element`] |
//! | what was executed and how long it took | [`counters`], [`trace`] |
//! | what every rank did last, for failures | [`flight`] |
//! | where a path leads that a user wants written, and how a file is replaced | [`output`] |
#![warn(missing_docs)]

pub mod boxes;
pub mod checkpoint;
pub mod comm;
pub mod counters;
pub mod device;
pub mod digest;
pub mod element;
pub mod error;
pub mod fingerprint;
pub mod flight;
pub mod launch;
pub mod output;
pub mod session;
pub mod settings;
pub mod trace;

pub use boxes::{BoxRequest, Run, Runs};
pub use checkpoint::CheckpointError;
pub use comm::Processes;
pub use counters::CollectiveCount;
pub use error::RuntimeError;
pub use session::{
    Backend, BoxReader, BoxWriter, Fault, FaultKind, InputName, LaunchOptions, ProgramId, RankInputs, Session,
    StepReport,
};
pub use settings::Settings;
