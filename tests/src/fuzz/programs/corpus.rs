//! Cases that once had a fault, kept as files.

use super::case::Case;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A kept case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// What was wrong.
    pub fault: String,
    /// The case.
    pub case: Case,
}

/// The directory of kept cases.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/fuzz/programs")
}

/// All kept cases with the names of their files.
///
/// # Panics
/// If a file does not contain a case.
pub fn kept() -> Vec<(String, Kept)> {
    let entries = std::fs::read_dir(directory()).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let mut files: Vec<PathBuf> = entries.into_iter().map(|e| e.path()).collect();
    files.sort();
    files.iter().map(|file| (file.display().to_string(), read(file))).collect()
}

/// One kept case.
///
/// # Panics
/// If the file does not contain a case.
pub fn read(file: &Path) -> Kept {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Keeps a case as a file.
///
/// # Errors
/// If the file cannot be written.
pub fn write(file: &Path, kept: &Kept) -> std::io::Result<()> {
    std::fs::write(file, serde_json::to_string_pretty(kept)? + "\n")
}
