//! What can go wrong with a checkpoint.

use crate::error::{RuntimeError, few};
use std::io;
use std::path::{Path, PathBuf};
use tpc_ir::quote::cut;

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or directory could not be read or written. Earlier checkpoints are as they were.
    #[error("{}: {what}: {source}", shown(file))]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no whole checkpoint.
    #[error("{}: no checkpoint: no directory step-N with an index.json{}", shown(dir), left(partial))]
    NoCheckpoint {
        /// The directory that was searched.
        dir: PathBuf,
        /// Interrupted writes that were found there.
        partial: Vec<String>,
    },
    /// A file is not what was written.
    #[error(
        "{}: damaged{}: {problem}; remove {} to go on from the checkpoint before it",
        shown(file),
        of(tensor),
        parent(file)
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The first tensor that suffers, if it is not all of them.
        tensor: Option<String>,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint under the name of another step.
    #[error(
        "{}: its name is that of step {named}, but its index says step {step}: it was renamed or copied; give it its own name, {}, or remove it",
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
    /// The checkpoint was written by a version of the program that this one does not know.
    #[error(
        "{}: format version {found}, but this program reads version {known}: use the program that wrote it",
        shown(file)
    )]
    Version {
        /// The index file.
        file: PathBuf,
        /// Its version.
        found: u64,
        /// The version that is read.
        known: u64,
    },
    /// A tensor is another one than the program's.
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
    /// A checkpoint of a later step is already there, and would be taken for the latest.
    #[error(
        "{}: holds a checkpoint of step {found}, later than step {step} that is to be saved; save to another directory or remove the later ones",
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
    /// The session.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

const WAY_OUT: &str = "a checkpoint fits only the model and optimizer that it was written with: use those, or begin anew with another directory";

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
