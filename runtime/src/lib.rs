//! Executes tpc rank programs: ranks as threads or processes, shared-memory collectives, CPU kernels.
//!
//! | question | file |
//! |---|---|
//! | launching programs, writing inputs, stepping, reading outputs | [`session`] |
//! | errors and their messages | [`error`] |
//! | which elements of a tensor a rank holds, and which of them two programs share | [`boxes`] |
//! | writing parameters and state to disk, and reading them on other meshes and plans | [`checkpoint`] |
//! | communicators; ranks as threads and as processes | [`comm`] |
//! | launching processes, and how they find each other | [`launch`] |
//! | the check that the programs of all processes fit together | [`fingerprint`] |
//! | the check that all processes have the same options, data, seeds and weights | [`settings`], [`digest`] |
//! | preparing and executing one rank's program | [`device::cpu`] |
//! | the kernels of a program on a GPU, and how they are checked and run | [`device::cuda`] |
//! | the interface of a device with separate memory | [`device::attached`] |
//! | storing elements, and converting them to bytes | [`element`] |
//! | what was executed and how long it took | [`counters`], [`trace`] |
//! | the format of traces, executed or simulated | [`events`] |
//! | the latest collectives of every rank, for failures | [`flight`] |
//! | resolving a path to write, and replacing a file | [`output`] |
#![warn(missing_docs)]

pub mod boxes;
pub mod checkpoint;
pub mod comm;
pub mod counters;
pub mod device;
pub mod digest;
pub mod element;
pub mod error;
pub mod events;
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
