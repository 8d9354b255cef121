//! Why a program could not be compiled, launched or run: the errors of all that takes part.

use crate::budget::BudgetError;
use crate::capture::CaptureError;
use crate::generate::GenerateError;
use crate::import::ImportError;
use crate::models::ModelError;
use crate::plans::ChoiceError;
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
    /// The sizes of the model or of its batch are too large.
    #[error(transparent)]
    Model(Box<ModelError>),
    /// The recording has an operation that the IR lacks.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The plan does not fit the model or the mesh.
    #[error(transparent)]
    Style(Box<StyleError>),
    /// No built-in plan can be chosen.
    #[error(transparent)]
    Choice(Box<ChoiceError>),
    /// No program that the planner finds fits into the memory of a rank.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// An option does not fit the program.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The compiler produced a program that its own checker rejects.
    #[error("internal error: the compiled program does not pass its check; please report it\n{0}")]
    Check(Box<CheckError>),
    /// The compiler produced a program that does not compute the model.
    #[error("internal error: the compiled program does not compute the model; please report it\n{0}")]
    Denote(Box<DenoteError>),
    /// The compiler produced rank programs that do not compute the placed program, or do not fit together.
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
    /// A trainer's batch, module or evaluation does not match what it was compiled for.
    #[error(transparent)]
    Trainer(Box<TrainerError>),
    /// Text cannot be generated from the prompts.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The program was compiled for other devices than those that run it.
    #[error(transparent)]
    Target(#[from] TargetMismatch),
    /// The values of the program have more bytes than a `usize` can count.
    #[error(transparent)]
    Size(Box<TooLarge>),
    /// The program needs more memory than this host has.
    #[error(
        "the arenas of {ranks} ranks take {needed} bytes, but {available} bytes of memory are available; use a smaller batch, --micro-batches, or a plan that shards more"
    )]
    Memory {
        /// Number of ranks on this host.
        ranks: usize,
        /// Number of bytes that they need.
        needed: u128,
        /// Number of available bytes.
        available: u128,
    },
    /// An input was never written.
    #[error("input `{name}` has no value: give it with {how}")]
    Missing {
        /// The input.
        name: String,
        /// The call that writes it.
        how: &'static str,
    },
}

/// Boxes large errors, so that results stay small.
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
    Choice(ChoiceError),
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
        const HOW: &str = "`session().write_f64`, or parameters with `load_weights`, `initialize` or `resume`";
        match error {
            RuntimeError::Missing { name } => Error::Missing { name, how: HOW },
            other => Error::Runtime(other),
        }
    }
}
