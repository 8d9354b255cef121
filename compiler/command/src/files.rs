//! The files that a command reads and writes. Before anything is computed, the command checks that no output is another
//! output or an input, and that each output can be written.

use crate::{Failure, Outcome};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use tpc_compiler::models::ModelDir;
use tpc_ir::quote::cut;
use tpc_runtime::output::{self, Identity, Output};

/// A file or directory of a command, and the option that names it.
#[derive(Debug)]
struct Named {
    option: String,
    path: PathBuf,
    identity: Identity,
}

/// The files that a command reads and writes.
#[derive(Debug, Default)]
pub struct Files {
    inputs: Vec<Named>,
    outputs: Vec<Named>,
}

impl Files {
    /// Adds a file that is read.
    #[must_use]
    pub fn reads(mut self, option: &str, path: &Path) -> Self {
        self.inputs.extend(named(option, path));
        self
    }

    /// Adds the files of a model that are read.
    #[must_use]
    pub fn reads_model(mut self, dir: &ModelDir) -> Self {
        let config = dir.path.join("config.json");
        for file in dir.weights.files().chain([&*config]) {
            self.inputs.extend(named("MODEL_DIR", file));
        }
        self
    }

    /// Adds a file or a directory that is written.
    #[must_use]
    pub fn writes<'a>(mut self, option: &str, path: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        self.outputs.extend(path.into_iter().filter_map(|path| named(option, path)));
        self
    }

    /// An error if an output is also an input, or is written twice.
    ///
    /// # Errors
    /// The first such pair.
    pub fn check(&self) -> Outcome {
        for (i, written) in self.outputs.iter().enumerate() {
            let same = |other: &&Named| other.identity == written.identity;
            if let Some(read) = self.inputs.iter().find(same) {
                return Err(Failure::new(format!(
                    "{written} is also read, as {read}: give another path; nothing was written"
                )));
            }
            if let Some(other) = self.outputs[..i].iter().find(same) {
                return Err(Failure::new(format!("{other} and {written} are the same file: give different paths")));
            }
        }
        Ok(())
    }
}

impl Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.option, cut(&self.path.display().to_string()))
    }
}

/// Resolves a path for comparison. `None` for character devices, which several readers and writers may share.
fn named(option: &str, path: &Path) -> Option<Named> {
    let identity = Identity::of(path)?;
    Some(Named { option: option.into(), path: path.to_path_buf(), identity })
}

/// Opens the place of an output before its contents are computed.
///
/// # Errors
/// A place that cannot hold a file, with the reason.
pub fn output(path: &Path) -> Outcome<Output> {
    Output::at(path).map_err(|e| unwritable(path, e))
}

/// Writes an output's contents.
///
/// # Errors
/// A disk, pipe or device that rejects them.
pub fn write(output: Output, contents: &[u8]) -> Outcome {
    let path = output.path().to_path_buf();
    output.write(contents).map_err(|e| unwritable(&path, e))
}

/// Checks that files can be written in a directory, which need not exist yet. The check leaves no file.
///
/// # Errors
/// The reason why they cannot.
pub fn check_dir(dir: &Path) -> Outcome {
    output::check_dir(dir).map_err(|e| unwritable(dir, e))
}

/// A failure to write a file or a directory.
pub fn unwritable(path: &Path, why: impl Display) -> Failure {
    Failure::at(path, format!("cannot be written: {why}"))
}
