//! A directory of checkpoints: names, the latest checkpoint, leftovers.
//!
//! `step-000100` is complete, `.step-000100.PID.partial` is not. If a step is saved a second time, the new checkpoint
//! gets a new name, `step-000100.1`, before the older one is removed, so that one of them exists at any moment.

use super::error::CheckpointError;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A complete checkpoint in a directory of checkpoints; ordered from the earliest to the latest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Saved {
    /// Its step.
    pub step: u64,
    /// How many times this step had been saved before.
    pub again: u64,
    /// Its directory.
    pub path: PathBuf,
}

impl Saved {
    /// The checkpoint with this step and number in a directory.
    pub fn at(dir: &Path, step: u64, again: u64) -> Self {
        let name = match again {
            0 => format!("step-{step:06}"),
            n => format!("step-{step:06}.{n}"),
        };
        Saved { step, again, path: dir.join(name) }
    }

    /// The checkpoint that a path names, if any.
    pub fn named(path: &Path) -> Option<Self> {
        Saved::parse(path.parent()?, path.file_name()?.to_str()?)
    }

    fn parse(dir: &Path, name: &str) -> Option<Self> {
        let rest = name.strip_prefix("step-")?;
        let (step, again) = rest.split_once('.').unwrap_or((rest, "0"));
        let saved = Saved::at(dir, step.parse().ok()?, again.parse().ok()?);
        (saved.path.file_name()?.to_str()? == name).then_some(saved)
    }

    /// The path where this process writes the checkpoint, or moves it before removing it.
    pub fn partial(&self) -> PathBuf {
        self.partial_of(std::process::id())
    }

    /// The path where a process writes the checkpoint.
    pub fn partial_of(&self, process: u32) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{process}{PARTIAL}"))
    }
}

const PARTIAL: &str = ".partial";

fn names(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if let (true, Ok(name)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    };
    match read() {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(CheckpointError::io(dir, "cannot be searched for checkpoints")),
    }
}

/// The complete checkpoints in a directory, from the earliest to the latest; none if there is no such directory.
///
/// # Errors
/// A directory that cannot be read.
pub fn saved(dir: &Path) -> Result<Vec<Saved>, CheckpointError> {
    let mut all: Vec<Saved> = names(dir)?.iter().filter_map(|name| Saved::parse(dir, name)).collect();
    all.sort();
    Ok(all)
}

/// The names of interrupted writes.
///
/// # Errors
/// A directory that cannot be read.
pub fn partial(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let is_partial = |name: &String| name.starts_with(".step-") && name.ends_with(PARTIAL);
    Ok(names(dir)?.into_iter().filter(is_partial).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let dir = Path::new("run");
        for saved in [Saved::at(dir, 0, 0), Saved::at(dir, 12, 3), Saved::at(dir, 123_456_789, 0)] {
            let name = saved.path.file_name().unwrap().to_str().unwrap();
            assert_eq!(Saved::parse(dir, name), Some(saved.clone()));
        }
        for other in ["step-12", "step-000012.0", "step-", "step-+00012", "step-000012.partial", "latest"] {
            assert_eq!(Saved::parse(dir, other), None, "{other}");
        }
        assert!(Saved::at(dir, 9, 5) < Saved::at(dir, 10, 0) && Saved::at(dir, 9, 0) < Saved::at(dir, 9, 1));
    }
}
