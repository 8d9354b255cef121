//! Why a program could not be compiled, launched or run: the errors of all that takes part.

use crate::capture::CaptureError;
use crate::generate::GenerateError;
use crate::import::ImportError;
use crate::models::ModelError;
use crate::pretrained::{InitError, LoadError};
use crate::target::TargetMismatch;
use crate::trainer::TrainerError;
use tpc_ir::size::TooLarge;
use tpc_passes::check::CheckError;
use tpc_passes::denotes::DenoteError;
use tpc_passes::lower::LowerError;
use tpc_passes::options::OptionError;
use tpc_passes::styles::StyleError;
use tpc_runtime::{CheckpointError, RuntimeError};

/// Why a program could not be compiled or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be recorded.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The model's sizes, or those of its batch, are too large.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// The recording has an operation without a counterpart.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The plan does not fit the model or the mesh.
    #[error(transparent)]
    Style(Box<StyleError>),
    /// An option does not fit the program.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The compiler made a program that its own checker rejects.
    #[error("internal error: the compiled program does not pass its check; please report it\n{0}")]
    Check(Box<CheckError>),
    /// The compiler made a program that computes something else than the model.
    #[error("internal error: the compiled program does not compute the model; please report it\n{0}")]
    Denote(Box<DenoteError>),
    /// The compiler made rank programs that do not compute the placed program, or do not fit together.
    #[error("internal error: the lowered program does not pass its check; please report it\n{0}")]
    Lower(Box<LowerError>),
    /// The program failed while loading or running.
    #[error(transparent)]
    Runtime(RuntimeError),
    /// Parameters that could not be initialized.
    #[error(transparent)]
    Init(InitError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A trainer's batch, module or evaluation is not what it was compiled for.
    #[error(transparent)]
    Trainer(Box<TrainerError>),
    /// Prompts that cannot be generated from.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The program was compiled for other devices than those that run it.
    #[error(transparent)]
    Target(#[from] TargetMismatch),
    /// Its values have more bytes than can be counted.
    #[error(transparent)]
    Size(Box<TooLarge>),
    /// The program is larger than the memory of this host.
    #[error(
        "the arenas of {ranks} ranks take {needed} bytes, but {available} bytes of memory are available; use a smaller batch, --micro-batches, or a plan that shards more"
    )]
    Memory {
        /// Ranks of this host.
        ranks: usize,
        /// The bytes that they take.
        needed: u128,
        /// The bytes that there are.
        available: u128,
    },
    /// An input was never given.
    #[error("input `{name}` has no value: give it with {how}")]
    Missing {
        /// The input.
        name: String,
        /// What to call.
        how: &'static str,
    },
}

/// Large errors are boxed, so that results stay small.
macro_rules! boxed {
    ($($variant:ident($error:ty)),+ $(,)?) => { $(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::$variant(Box::new(error))
            }
        }
    )+ };
}

boxed!(
    Trainer(TrainerError),
    Model(ModelError),
    Style(StyleError),
    Check(CheckError),
    Denote(DenoteError),
    Lower(LowerError),
    Size(TooLarge),
);
impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Model(error) => error.into(),
            LoadError::Runtime(error) => error.into(),
        }
    }
}

impl From<InitError> for Error {
    fn from(error: InitError) -> Self {
        match error {
            InitError::Runtime(error) => error.into(),
            other => Error::Init(other),
        }
    }
}

impl From<RuntimeError> for Error {
    fn from(error: RuntimeError) -> Self {
        const HOW: &str = "`session().write_f64`, or parameters with `load_weights`, `initialise` or `resume`";
        match error {
            RuntimeError::Missing { name } => Error::Missing { name, how: HOW },
            other => Error::Runtime(other),
        }
    }
}
