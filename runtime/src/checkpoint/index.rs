//! The index of a checkpoint, `index.json`: where each tensor is stored.
//!
//! The file is one JSON object with two members, `hash` and `index`, each on its own line; the hash is that of the
//! second line.

use super::error::CheckpointError;
use super::hash::{hash, text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The file's name.
pub const FILE: &str = "index.json";
/// The version of the format that this program reads and writes.
pub const VERSION: u64 = 1;
const FORMAT: &str = "tpc-checkpoint";

/// The contents of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Always `tpc-checkpoint`.
    pub format: String,
    /// Format version.
    pub version: u64,
    /// Number of steps done.
    pub step: u64,
    /// Seed of the run's random operations.
    pub seed: u64,
    /// The alphabet of a character model, token 0 first, if the run was trained on characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alphabet: Option<String>,
    /// The state that the training program keeps of its run in addition to the tensors, for example the position in its
    /// data. Only that program reads this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Axes and sizes of the mesh that wrote the checkpoint, for information.
    pub mesh: Vec<(String, usize)>,
    /// The rank files.
    pub files: Vec<FileEntry>,
    /// The tensors, in the order of the writing program's inputs.
    pub tensors: Vec<TensorEntry>,
}

/// A rank file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes before the first tensor.
    pub head: u64,
    /// The hash of these bytes.
    pub hash: String,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Its name in the program.
    pub name: String,
    /// `parameter` or `state`.
    pub kind: String,
    /// Element type, for example `f32`.
    pub dtype: String,
    /// Shape in the model.
    pub shape: Vec<usize>,
    /// Shape in the writing program, with the same row-major elements; boxes refer to this shape.
    pub factors: Vec<usize>,
    /// The boxes, which together cover the whole tensor.
    pub boxes: Vec<BoxEntry>,
}

/// A stored box.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoxEntry {
    /// Index in [`Index::files`].
    pub file: usize,
    /// Offset of the first byte in the file.
    pub place: u64,
    /// First index in every dimension of the factors.
    pub start: Vec<usize>,
    /// Shape.
    pub shape: Vec<usize>,
    /// The hash of every block.
    pub hashes: Vec<String>,
}

impl TensorEntry {
    /// Kind, type and shape, for messages.
    pub fn describe(&self) -> String {
        format!("{} {}{:?}", self.kind, self.dtype, self.shape)
    }
}

impl Index {
    /// An index without contents.
    pub fn new(step: u64, seed: u64, mesh: Vec<(String, usize)>) -> Self {
        Index {
            format: FORMAT.into(),
            version: VERSION,
            step,
            seed,
            alphabet: None,
            run: None,
            mesh,
            files: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// The text of the file.
    pub fn to_text(&self) -> String {
        // Numbers, texts and lists of them always have a JSON form.
        let body = serde_json::to_string(self).unwrap_or_default();
        format!("{{\"hash\":\"{}\",\"index\":\n{body}\n}}\n", text(hash(body.as_bytes())))
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// A text that differs from what was written, or another version.
    pub fn from_text(file: &Path, contents: &[u8]) -> Result<Self, CheckpointError> {
        let damaged = |problem: String| CheckpointError::damaged(file, None, problem);
        let contents = std::str::from_utf8(contents).map_err(|e| damaged(e.to_string()))?;
        let lines: Vec<&str> = contents.split('\n').collect();
        let [first, body, "}", ""] = lines[..] else {
            return Err(damaged("not the index of a checkpoint, or incomplete".into()));
        };
        if first != format!("{{\"hash\":\"{}\",\"index\":", text(hash(body.as_bytes()))) {
            return Err(damaged("its contents do not match its hash".into()));
        }
        let value: Value = serde_json::from_str(body).map_err(|e| damaged(e.to_string()))?;
        match (value.get("format").and_then(Value::as_str), value.get("version").and_then(Value::as_u64)) {
            (Some(FORMAT), Some(VERSION)) => {}
            (Some(FORMAT), Some(found)) => {
                return Err(CheckpointError::Version { file: file.to_path_buf(), found, known: VERSION });
            }
            _ => return Err(damaged("not the index of a checkpoint".into())),
        }
        let index: Index = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        index.check().map_err(damaged)?;
        Ok(index)
    }

    /// Checks that boxes lie within their tensors and files, and have as many elements as their tensor.
    fn check(&self) -> Result<(), String> {
        let product = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        for t in &self.tensors {
            let wrong = |what: &str| format!("tensor `{}`: {what}", t.name);
            let dtype = tpc_ir::DType::from_name(&t.dtype).ok_or_else(|| wrong("unknown element type"))?;
            let total = product(&t.factors)
                .filter(|n| Some(*n) == product(&t.shape))
                .ok_or_else(|| wrong("its shapes do not match"))?;
            let mut held = 0;
            for b in &t.boxes {
                let same = b.start.len() == t.factors.len() && b.shape.len() == t.factors.len();
                let inside = |d: usize| b.start[d].checked_add(b.shape[d]).is_some_and(|end| end <= t.factors[d]);
                if !same || !(0..t.factors.len()).all(inside) {
                    return Err(wrong("a box is outside of it"));
                }
                let elements: usize = b.shape.iter().product();
                let bytes = elements.checked_mul(dtype.bytes()).ok_or_else(|| wrong("a box is too large"))?;
                let file = self.files.get(b.file).ok_or_else(|| wrong("a box is in no file"))?;
                if b.place < file.head || b.place.checked_add(bytes as u64).is_none_or(|end| end > file.bytes) {
                    return Err(wrong("a box is outside of its file"));
                }
                if b.hashes.len() != bytes.div_ceil(super::BLOCK) {
                    return Err(wrong("hashes are missing"));
                }
                held += elements;
            }
            if held != total {
                return Err(wrong("the boxes do not cover it"));
            }
        }
        Ok(())
    }
}
