//! Parts of a model directory without effect, or with another effect than it seems.

use std::fmt;
use std::path::PathBuf;

/// A part of a model directory that is not read, or not read as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelWarning {
    /// Keys without a meaning for the family.
    UnknownKeys {
        /// The configuration file.
        file: PathBuf,
        /// The family.
        family: String,
        /// The keys, with dots for nested objects.
        keys: Vec<String>,
    },
    /// A setting is given twice, and only one of the values is used.
    Overruled {
        /// The configuration file.
        file: PathBuf,
        /// The key that is used.
        taken: String,
        /// The key that is ignored.
        ignored: String,
    },
    /// The configuration ties weights, but the files hold two different tensors: both are kept.
    NotTied {
        /// The file of weights, or its index.
        file: PathBuf,
        /// The tensor that would be tied.
        copy: String,
        /// The tensor that it would be tied to.
        source: String,
    },
    /// A tensor is missing, and another one replaces it.
    Replaced {
        /// The file of weights, or its index.
        file: PathBuf,
        /// The missing tensor.
        missing: String,
        /// The tensor that is read instead.
        taken: String,
    },
    /// Unused tensors.
    Unused {
        /// The file of weights, or its index.
        file: PathBuf,
        /// Their names.
        tensors: Vec<String>,
    },
    /// Parameters of a head that no file has, so they are initialized.
    Drawn {
        /// The file of weights, or its index.
        file: PathBuf,
        /// Their names.
        tensors: Vec<String>,
    },
    /// Copies of tensors that the index assigns to another file.
    Copies {
        /// The file that holds the copies.
        file: PathBuf,
        /// Their names.
        tensors: Vec<String>,
    },
}

/// Maximum number of names that are listed separately; in longer lists, names that only differ in numbers are listed
/// once.
const LISTED: usize = 24;

impl fmt::Display for ModelWarning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::UnknownKeys { file, family, keys } => {
                let (key, means) = if keys.len() == 1 { ("key", "means") } else { ("keys", "mean") };
                write!(f, "{}: {key} {} {means} nothing for {family}: ignored", file.display(), keys.join(", "))
            }
            Self::Overruled { file, taken, ignored } => {
                write!(f, "{}: {taken} and {ignored} have different values: {taken} is used", file.display())
            }
            Self::NotTied { file, copy, source } => write!(
                f,
                "{}: tie_word_embeddings is true, but {copy} and {source} differ: both are kept and trained, not tied",
                file.display()
            ),
            Self::Replaced { file, missing, taken } => {
                write!(f, "{}: {missing} is missing: {taken} takes its place", file.display())
            }
            Self::Unused { file, tensors } => {
                let what = if tensors.len() == 1 { "tensor is" } else { "tensors are" };
                write!(f, "{}: {} {what} not used by the model: {}", file.display(), tensors.len(), listed(tensors))
            }
            Self::Drawn { file, tensors } => {
                let what = if tensors.len() == 1 {
                    "tensor is missing and initialized"
                } else {
                    "tensors are missing and initialized"
                };
                write!(
                    f,
                    "{}: {} {what}, as for a head that has yet to be trained: {}",
                    file.display(),
                    tensors.len(),
                    listed(tensors)
                )
            }
            Self::Copies { file, tensors } => {
                let what = if tensors.len() == 1 { "tensor is a copy" } else { "tensors are copies" };
                write!(
                    f,
                    "{}: {} {what} of tensors that the index assigns to another file, and ignored: {}",
                    file.display(),
                    tensors.len(),
                    listed(tensors)
                )
            }
        }
    }
}

/// A list of names. In a long list, `*` replaces numbers, with the number of names in parentheses.
fn listed(names: &[String]) -> String {
    if names.len() <= LISTED {
        return names.join(", ");
    }
    let mut kinds: Vec<(String, usize)> = Vec::new();
    let mut untold = 0;
    for name in names {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect();
        let kind = parts.join(".");
        if let Some((_, count)) = kinds.iter_mut().find(|(known, _)| *known == kind) {
            *count += 1;
        } else if kinds.len() < LISTED {
            kinds.push((kind, 1));
        } else {
            untold += 1;
        }
    }
    let mut text: Vec<String> =
        kinds.into_iter().map(|(kind, count)| if count > 1 { format!("{kind} ({count})") } else { kind }).collect();
    if untold > 0 {
        text.push(format!("and {untold} more"));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn long_lists_are_short() {
        let names: Vec<String> =
            (0..80).flat_map(|i| ["k", "q"].map(|p| format!("model.layers.{i}.{p}_proj.bias"))).collect();
        assert_eq!(listed(&names), "model.layers.*.k_proj.bias (80), model.layers.*.q_proj.bias (80)");
        assert_eq!(listed(&names[..2]), "model.layers.0.k_proj.bias, model.layers.0.q_proj.bias");
        let names: Vec<String> = (0..30).map(|i| format!("x{i}")).collect();
        assert!(listed(&names).ends_with("x23, and 6 more"));
    }
}
