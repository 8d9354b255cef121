//! The errors of model directories.

use std::path::PathBuf;
use tpc_ir::quote::{cut, quoted};

/// An error of reading, building, loading or saving a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is not the expected JSON.
    #[error("{}: not valid JSON: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// `model_type` names a family that is not supported.
    #[error("{}: unknown model_type {}; supported are {}", file.display(), quoted(.found), supported.join(", "))]
    UnknownFamily {
        /// The configuration file.
        file: PathBuf,
        /// The name found.
        found: String,
        /// The names that are supported.
        supported: Vec<&'static str>,
    },
    /// `architectures` names a class of the family that is not supported.
    #[error("{}: unknown architecture {}; supported are {}", file.display(), quoted(.found), supported.join(", "))]
    UnknownArchitecture {
        /// The configuration file.
        file: PathBuf,
        /// The name found.
        found: String,
        /// The names that are supported for the family.
        supported: Vec<&'static str>,
    },
    /// A family has no head of this kind.
    #[error("{family} has no head for {head}; its heads are {}", supported.join(", "))]
    NoHead {
        /// The family.
        family: &'static str,
        /// The requested kind.
        head: &'static str,
        /// The family's classes.
        supported: Vec<&'static str>,
    },
    /// A model has no loss.
    #[error("this {family} gives its {output} and has no loss to train with; \"architectures\" in config.json selects a head: {}", supported.join(", "))]
    NoLoss {
        /// The family.
        family: &'static str,
        /// The name of the output.
        output: &'static str,
        /// The family's classes that have a loss.
        supported: Vec<&'static str>,
    },
    /// A required key is missing.
    #[error("{}: missing key {} (needed for model_type {family:?})", file.display(), quoted(.key))]
    MissingKey {
        /// The configuration file.
        file: PathBuf,
        /// The key, with dots for nested objects.
        key: String,
        /// The family that needs it.
        family: String,
    },
    /// A key has a value of the wrong kind.
    #[error("{}: key {} should be {expected}, but is {}", file.display(), quoted(.key), cut(.found))]
    WrongValue {
        /// The configuration file.
        file: PathBuf,
        /// The key, with dots for nested objects.
        key: String,
        /// The accepted values.
        expected: String,
        /// The value found.
        found: String,
    },
    /// Values that contradict each other.
    #[error("{}: inconsistent configuration: {problem}", file.display())]
    Inconsistent {
        /// The configuration file.
        file: PathBuf,
        /// The keys with their values, and the contradiction.
        problem: String,
    },
    /// A file is a git-lfs pointer to a file that was not fetched.
    #[error("{}: is a git-lfs pointer, not the file itself; fetch it with `git lfs pull` in its directory", file.display())]
    LfsPointer {
        /// The file.
        file: PathBuf,
    },
    /// The directory holds no weights.
    #[error("{}: no weights: neither model.safetensors nor model.safetensors.index.json{}", dir.display(), other_text(*other))]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// A file of weights in an unsupported format.
        other: Option<&'static str>,
    },
    /// A safetensors file is invalid.
    #[error("{}: not a valid safetensors file: {problem}", file.display())]
    BadFile {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A safetensors file ends too early.
    #[error("{}: truncated: the header describes {expected} bytes, the file has {found}", file.display())]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The number of bytes according to the header.
        expected: u64,
        /// The number of bytes in the file.
        found: u64,
    },
    /// A tensor is missing.
    #[error("{}: missing tensor {}{}", file.display(), quoted(.tensor), nearest_text(nearest))]
    MissingTensor {
        /// The file, or the index file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The nearest existing names.
        nearest: Vec<String>,
    },
    /// A tensor's shape differs from the configuration.
    #[error("{}: tensor {} has shape {found:?}, but the configuration says {expected:?}", file.display(), quoted(.tensor))]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The expected shape.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has an element type that cannot be converted.
    #[error("{}: tensor {} has element type {found}, expected {expected}", file.display(), quoted(.tensor))]
    WrongType {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The accepted types.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },
    /// A slice of a tensor exceeds its bounds.
    #[error("{}: tensor {} of shape {shape:?} has no slice {slice}", file.display(), quoted(.tensor))]
    BadSlice {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The requested slice.
        slice: String,
    },
    /// A module has a parameter that the weight map does not know, or the reverse.
    #[error("the weight map has no entry for parameter {}", quoted(.0))]
    Unmapped(String),
    /// A tensor to be saved does not match its entry in the weight map.
    #[error("parameter {} should have {expected} elements, but has {found}", quoted(.path))]
    WrongLength {
        /// The parameter's path.
        path: String,
        /// The number of elements expected.
        expected: usize,
        /// The number found.
        found: usize,
    },
    /// More memory is needed than available.
    #[error("{what} needs at least {}, but {} is available", bytes_text(*needed), bytes_text(*available))]
    Memory {
        /// What needs the memory.
        what: String,
        /// The minimum number of bytes needed.
        needed: u128,
        /// The number of available bytes.
        available: u128,
    },
    /// Sizes whose product exceeds the address space.
    #[error("{what} needs {}, more than the {} that can be addressed", bytes_text(*needed), bytes_text(ADDRESSABLE))]
    Unaddressable {
        /// What needs the memory.
        what: String,
        /// The minimum number of bytes needed.
        needed: u128,
    },
    /// A batch does not fit the model.
    #[error("batch: {0}")]
    Batch(String),
    /// There is no preset with that name.
    #[error("there is no preset {}; the presets are {}", quoted(.found), known.join(", "))]
    UnknownPreset {
        /// The requested name.
        found: String,
        /// The existing names.
        known: Vec<&'static str>,
    },
}

/// A number of bytes whose offsets are far from overflowing.
pub(super) const ADDRESSABLE: u128 = 1 << 60;

/// Formats a number of bytes: `93 GB`, `512 bytes`.
fn bytes_text(bytes: u128) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, None);
    for name in UNITS {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1e3, Some(name));
    }
    match unit {
        None => format!("{bytes} bytes"),
        Some(unit) if value < 9.95 => format!("{value:.1} {unit}"),
        Some(unit) => format!("{value:.0} {unit}"),
    }
}

fn other_text(other: Option<&str>) -> String {
    match other {
        None => String::new(),
        Some(name) => format!("; {name} is not read: save the model as safetensors (transformers: `save_pretrained`)"),
    }
}

fn nearest_text(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("; nearest are {}", names.iter().map(|n| cut(n).to_string()).collect::<Vec<_>>().join(", ")),
    }
}
