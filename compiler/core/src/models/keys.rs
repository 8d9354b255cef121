//! Typed access to a JSON object, with errors that name the file and the key.

use super::error::ModelError;
use super::layers::Activation;
use super::python_json;
use serde_json::{Map, Value};
use std::path::Path;

/// The largest size in a configuration: products of larger sizes would overflow.
const LARGEST_SIZE: u64 = 1 << 31;

/// An object of a configuration file.
pub(super) struct Keys<'a> {
    object: &'a Map<String, Value>,
    file: &'a Path,
    family: String,
    prefix: String,
}

/// Reads a text file; rejects a git-lfs pointer.
pub(super) fn read_text(file: &Path) -> Result<String, ModelError> {
    let text = std::fs::read_to_string(file).map_err(|source| ModelError::Io { file: file.to_path_buf(), source })?;
    check_lfs(file, text.as_bytes())?;
    Ok(text)
}

/// Reads and parses a JSON file, including Python's extensions.
pub(super) fn read_json(file: &Path) -> Result<Value, ModelError> {
    python_json::parse(&read_text(file)?).map_err(|source| ModelError::Json { file: file.to_path_buf(), source })
}

/// An error if a file begins like a git-lfs pointer; eight bytes suffice, because no safetensors header is that long.
pub(super) fn check_lfs(file: &Path, beginning: &[u8]) -> Result<(), ModelError> {
    match beginning.starts_with(b"version ") {
        true => Err(ModelError::LfsPointer { file: file.to_path_buf() }),
        false => Ok(()),
    }
}

impl<'a> Keys<'a> {
    pub(super) fn new(value: &'a Value, file: &'a Path) -> Result<Self, ModelError> {
        match value.as_object() {
            Some(object) => Ok(Self { object, file, family: "any".into(), prefix: String::new() }),
            None => Err(ModelError::WrongValue {
                file: file.to_path_buf(),
                key: String::new(),
                expected: "an object".into(),
                found: brief(value),
            }),
        }
    }

    pub(super) fn of_family(mut self, family: &str) -> Self {
        self.family = family.into();
        self
    }

    /// The keys in the file's order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.object.keys().map(String::as_str)
    }

    /// The value of a key, which may be null.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key)
    }

    pub(super) fn file(&self) -> &'a Path {
        self.file
    }

    /// The name of a key in errors.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The value of a key that is present and not null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether a key is present, even if its value is null.
    pub(super) fn mentions(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    pub(super) fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey { file: self.file.to_path_buf(), key: self.path(key), family: self.family.clone() }
    }

    pub(super) fn wrong(&self, key: &str, expected: &str) -> ModelError {
        ModelError::WrongValue {
            file: self.file.to_path_buf(),
            key: self.path(key),
            expected: expected.into(),
            found: brief(self.object.get(key).unwrap_or(&Value::Null)),
        }
    }

    pub(super) fn inconsistent(&self, problem: String) -> ModelError {
        ModelError::Inconsistent { file: self.file.to_path_buf(), problem }
    }

    /// A nonnegative integer.
    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| self.wrong(key, "a whole number"))
            }
        }
    }

    /// A positive integer.
    pub(super) fn opt_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) if (1..=LARGEST_SIZE).contains(&n) => Ok(Some(n as usize)),
                Some(n) if n > 0 => Err(self.wrong(key, &format!("a whole number up to {LARGEST_SIZE}"))),
                _ => Err(self.wrong(key, "a whole number from 1 up")),
            },
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.opt_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A size with a default if the key is absent; null is not a size.
    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        match self.opt_size(key)? {
            Some(size) => Ok(size),
            None if self.mentions(key) => Err(self.wrong(key, "a whole number from 1 up")),
            None => Ok(default),
        }
    }

    /// A size whose default depends on whether the key is absent or null.
    pub(super) fn size_or_null(&self, key: &str, absent: usize, null: usize) -> Result<usize, ModelError> {
        match self.opt_size(key)? {
            Some(size) => Ok(size),
            None => self.derived(key, if self.mentions(key) { null } else { absent }),
        }
    }

    /// Checks a derived size against the limit of given sizes.
    fn derived(&self, key: &str, size: usize) -> Result<usize, ModelError> {
        if size as u64 <= LARGEST_SIZE {
            return Ok(size);
        }
        Err(self.inconsistent(format!("{key} would be {size} by default, and a size is at most {LARGEST_SIZE}")))
    }

    /// A number, or null.
    pub(super) fn opt_number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.number(key)
    }

    /// A list of numbers above 0.
    pub(super) fn positives(&self, key: &str) -> Result<Vec<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Err(self.missing(key)) };
        let all = value.as_array().and_then(|values| values.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
        match all.filter(|all| all.iter().all(|x| *x > 0.0)) {
            Some(all) => Ok(all),
            None => Err(self.wrong(key, "a list of numbers above 0")),
        }
    }

    /// A fraction: above 0 and at most 1.
    pub(super) fn share_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.number(key)?.unwrap_or(default) {
            share if share > 0.0 && share <= 1.0 => Ok(share),
            _ => Err(self.wrong(key, "a number above 0 and up to 1")),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) if python_json::is_literal(value) => Err(self.wrong(key, "a finite number")),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    pub(super) fn positive(&self, key: &str) -> Result<f64, ModelError> {
        match self.number(key)? {
            None => Err(self.missing(key)),
            Some(number) if number > 0.0 => Ok(number),
            Some(_) => Err(self.wrong(key, "a number above 0")),
        }
    }

    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.has(key) {
            true => self.positive(key),
            false => Ok(default),
        }
    }

    /// A number above 0, or null.
    pub(super) fn opt_positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.has(key) {
            true => self.positive(key).map(Some),
            false => Ok(None),
        }
    }

    pub(super) fn probability_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.number(key)?.unwrap_or(if self.mentions(key) { 0.0 } else { default }) {
            p if (0.0..1.0).contains(&p) => Ok(p),
            _ => Err(self.wrong(key, "a number from 0 to below 1")),
        }
    }

    /// A signed integer.
    pub(super) fn opt_integer(&self, key: &str) -> Result<Option<i64>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_i64().map(Some).ok_or_else(|| self.wrong(key, "a whole number")),
        }
    }

    /// A row of a table with this many rows, as in PyTorch's `padding_idx`: counted from the end if negative. `absent`
    /// if the key is missing.
    pub(super) fn padding_row(
        &self,
        key: &str,
        rows: usize,
        absent: Option<usize>,
    ) -> Result<Option<usize>, ModelError> {
        let Some(id) = self.opt_integer(key)? else {
            return match absent.filter(|_| !self.mentions(key)) {
                Some(row) if row >= rows => {
                    Err(self.inconsistent(format!("{key} is {row} by default, but the vocabulary has {rows} entries")))
                }
                row => Ok(row),
            };
        };
        let row = if id < 0 { id.checked_add_unsigned(rows as u64) } else { Some(id) };
        match row.and_then(|row| usize::try_from(row).ok()).filter(|row| *row < rows) {
            Some(row) => Ok(Some(row)),
            None => Err(self.wrong(key, &format!("null or an entry of the vocabulary of {rows}"))),
        }
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.value(key) {
            None => Ok(default),
            // Null is not a default: versions of transformers differ in what it means.
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    pub(super) fn str(&self, key: &str) -> Result<String, ModelError> {
        match self.get(key) {
            None => Err(self.missing(key)),
            Some(value) => value.as_str().map(str::to_string).ok_or_else(|| self.wrong(key, "a string")),
        }
    }

    pub(super) fn str_or(&self, key: &str, default: &str) -> Result<String, ModelError> {
        match self.has(key) {
            true => self.str(key),
            false => Ok(default.into()),
        }
    }

    pub(super) fn opt_strings(&self, key: &str) -> Result<Option<Vec<String>>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let strings =
            value.as_array().and_then(|values| values.iter().map(|value| value.as_str().map(str::to_string)).collect());
        match strings {
            Some(strings) => Ok(Some(strings)),
            None => Err(self.wrong(key, "a list of strings")),
        }
    }

    pub(super) fn opt_object(&self, key: &str) -> Result<Option<Keys<'a>>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_object() {
            Some(object) => Ok(Some(Keys {
                object,
                file: self.file,
                family: self.family.clone(),
                prefix: format!("{}.", self.path(key)),
            })),
            None => Err(self.wrong(key, "an object")),
        }
    }

    pub(super) fn activation(&self, key: &str, default: Activation) -> Result<Activation, ModelError> {
        match self.has(key) {
            false => Ok(default),
            true => Activation::parse(&self.str(key)?).ok_or_else(|| self.wrong(key, Activation::NAMES)),
        }
    }

    /// The width of a head, if the width is a multiple of the heads.
    pub(super) fn head_dim(
        &self,
        width_key: &str,
        width: usize,
        heads_key: &str,
        heads: usize,
    ) -> Result<usize, ModelError> {
        match width.checked_rem(heads) {
            Some(0) => Ok(width / heads),
            _ => Err(self.inconsistent(format!("{width_key} = {width} is not a multiple of {heads_key} = {heads}"))),
        }
    }
}

fn brief(value: &Value) -> String {
    let text = python_json::print_brief(value);
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
