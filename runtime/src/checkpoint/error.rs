//! The errors of checkpoints.

use crate::error::{RuntimeError, few};
use std::io;
use std::path::{Path, PathBuf};
use tpc_ir::quote::cut;

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or directory could not be read or written. Earlier checkpoints are unchanged.
    #[error("{}: {what}: {source}", shown(file))]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// The failed operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// There is no complete checkpoint.
    #[error("{}: no checkpoint: no directory step-N with an index.json{}", shown(dir), left(partial))]
    NoCheckpoint {
        /// The directory that was searched.
        dir: PathBuf,
        /// Interrupted writes that were found there.
        partial: Vec<String>,
    },
    /// A file differs from what was written.
    #[error(
        "{}: damaged{}: {problem}; remove {} to resume from the checkpoint before it",
        shown(file),
        of(tensor),
        parent(file)
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The first affected tensor, unless all are affected.
        tensor: Option<String>,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint under the name of another step.
    #[error(
        "{}: its name says step {named}, but its index says step {step}: it was renamed or copied; rename it to {} or remove it",
        shown(dir),
        shown(own_name)
    )]
    Misnamed {
        /// The checkpoint.
        dir: PathBuf,
        /// The step of its name.
        named: u64,
        /// The step of its index.
        step: u64,
        /// The name that it should have.
        own_name: PathBuf,
    },
    /// The checkpoint was written by a version of the program that this version does not know.
    #[error(
        "{}: format version {found}, but this program reads version {known}: use the program that wrote it",
        shown(file)
    )]
    Version {
        /// The index file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// The version that this program reads.
        known: u64,
    },
    /// A tensor differs from the program's.
    #[error("{}: `{}` is {stored} in the checkpoint, but {wanted} in the program; {WAY_OUT}", shown(dir), cut(name))]
    Differs {
        /// The checkpoint.
        dir: PathBuf,
        /// The tensor.
        name: String,
        /// Kind, element type and shape in the checkpoint, or `missing`.
        stored: String,
        /// The same in the program, or `missing`.
        wanted: String,
    },
    /// A checkpoint of a later step already exists and would be mistaken for the latest.
    #[error(
        "{}: holds a checkpoint of step {found}, later than step {step} to be saved; save to another directory or remove the later checkpoints",
        shown(dir)
    )]
    Later {
        /// The directory.
        dir: PathBuf,
        /// The latest step there.
        found: u64,
        /// The step to be saved.
        step: u64,
    },
    /// An error of the session.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

const WAY_OUT: &str = "a checkpoint fits only the model and optimizer that it was written with: use those, or start from scratch in another directory";

impl CheckpointError {
    pub(super) fn io(file: &Path, what: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
        move |source| CheckpointError::Io { file: file.to_path_buf(), what, source }
    }

    pub(super) fn damaged(file: &Path, tensor: Option<&str>, problem: impl ToString) -> CheckpointError {
        CheckpointError::Damaged {
            file: file.to_path_buf(),
            tensor: tensor.map(str::to_string),
            problem: problem.to_string(),
        }
    }
}

fn of(tensor: &Option<String>) -> String {
    tensor.as_ref().map(|t| format!(" (tensor `{}`)", cut(t))).unwrap_or_default()
}

fn parent(file: &Path) -> String {
    shown(file.parent().unwrap_or(file))
}

fn shown(path: &Path) -> String {
    cut(&path.display().to_string()).to_string()
}

fn left(partial: &[String]) -> String {
    match partial {
        [] => String::new(),
        names => format!(" (only interrupted writes: {})", few(names)),
    }
}
