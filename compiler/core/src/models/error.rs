//! What can go wrong with a model directory.

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
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{}: not valid JSON: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser said.
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
    /// `architectures` names a class that the family does not have here.
    #[error("{}: unknown architecture {}; supported are {}", file.display(), quoted(.found), supported.join(", "))]
    UnknownArchitecture {
        /// The configuration file.
        file: PathBuf,
        /// The name found.
        found: String,
        /// The names that are supported for the family.
        supported: Vec<&'static str>,
    },
    /// A family has no head of that kind.
    #[error("{family} has no head for {head}; there are {}", supported.join(", "))]
    NoHead {
        /// The family.
        family: &'static str,
        /// The kind asked for.
        head: &'static str,
        /// The family's classes.
        supported: Vec<&'static str>,
    },
    /// A model has no loss.
    #[error("this {family} gives its {output} and has no loss to train by; \"architectures\" of config.json chooses a head: {}", supported.join(", "))]
    NoLoss {
        /// The family.
        family: &'static str,
        /// What the output is called.
        output: &'static str,
        /// The family's classes that have a loss.
        supported: Vec<&'static str>,
    },
    /// A key that is needed is missing.
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
        /// What is accepted.
        expected: String,
        /// The value found.
        found: String,
    },
    /// Values that contradict each other.
    #[error("{}: inconsistent configuration: {problem}", file.display())]
    Inconsistent {
        /// The configuration file.
        file: PathBuf,
        /// Which keys, with their values, and why.
        problem: String,
    },
    /// A file is a pointer of git-lfs, which stands for a file that was not fetched.
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
        /// A file of weights in a format that is not read.
        other: Option<&'static str>,
    },
    /// A safetensors file is broken.
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
        /// The bytes that the header promises.
        expected: u64,
        /// The bytes there are.
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
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor {} has shape {found:?}, but the configuration says {expected:?}", file.display(), quoted(.tensor))]
    WrongShape {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape expected.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A tensor has an element type that cannot be converted.
    #[error("{}: tensor {} has element type {found}, expected {expected}", file.display(), quoted(.tensor))]
    WrongType {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The types accepted.
        expected: &'static str,
        /// The type found.
        found: String,
    },
    /// A slice of a tensor reaches outside of it.
    #[error("{}: tensor {} of shape {shape:?} has no slice {slice}", file.display(), quoted(.tensor))]
    BadSlice {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The slice asked for.
        slice: String,
    },
    /// A module has a parameter that the weight map does not know, or the reverse.
    #[error("the weight map has no entry for parameter {}", quoted(.0))]
    Unmapped(String),
    /// A tensor handed over for saving does not fit its entry in the weight map.
    #[error("parameter {} should have {expected} elements, but has {found}", quoted(.path))]
    WrongLength {
        /// The parameter's path.
        path: String,
        /// The number of elements expected.
        expected: usize,
        /// The number found.
        found: usize,
    },
    /// More memory is needed than there is.
    #[error("{what} needs at least {}, but {} is available", bytes_text(*needed), bytes_text(*available))]
    Memory {
        /// What needs it.
        what: String,
        /// The bytes that are needed at least.
        needed: u128,
        /// The bytes that there are.
        available: u128,
    },
    /// Sizes whose product no address reaches.
    #[error("{what} needs {}, more than the {} that can be addressed", bytes_text(*needed), bytes_text(ADDRESSABLE))]
    Unaddressable {
        /// What needs it.
        what: String,
        /// The bytes that are needed at least.
        needed: u128,
    },
    /// A batch does not fit the model.
    #[error("batch: {0}")]
    Batch(String),
    /// There is no preset with that name.
    #[error("there is no preset {}; the presets are {}", quoted(.found), known.join(", "))]
    UnknownPreset {
        /// The name asked for.
        found: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
}

/// Bytes of which offsets are still far from an overflow.
pub(super) const ADDRESSABLE: u128 = 1 << 60;

/// Bytes for a reader: `93 GB`, `512 bytes`.
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
