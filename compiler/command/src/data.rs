//! Batches from files of tensors.

use crate::{Failure, Outcome};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;
use tpc_compiler::models::{ModelConfig, Weights, loss::IGNORE};
use tpc_compiler::pretrained::TokenBatch;
use tpc_ir::InputKind;
use tpc_runtime::{RuntimeError, Session};

/// The tensors that an inputs file may hold, all of shape `[batch, seq]` except for the labels of sequences.
const NAMES: [&str; 4] = ["input_ids", "labels", "attention_mask", "token_type_ids"];

/// One global batch, checked against its model.
#[derive(Debug)]
pub struct Batch {
    /// Its shape and contents.
    pub tokens: TokenBatch,
    /// Its tensors by name.
    pub tensors: HashMap<&'static str, Vec<i64>>,
    /// Its labels, if they are numbers with a fraction.
    pub values: Option<Vec<f64>>,
}

impl Batch {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// A file that cannot be read, unknown or missing tensors, wrong shapes, numbers out of range.
    pub fn read(file: &Path, config: &ModelConfig) -> Outcome<Self> {
        let weights = Weights::open_file(file)?;
        if let Some(unknown) = weights.names().find(|name| !NAMES.contains(name)) {
            let known = NAMES.join(", ");
            return Err(Failure::at(
                file,
                format!("tensor {unknown:?} is not an input of the model; inputs are {known}"),
            ));
        }
        let shape = weights.info("input_ids")?.shape.clone();
        let [batch, seq] = shape[..] else {
            return Err(Failure::at(file, format!("tensor \"input_ids\" has shape {shape:?}, expected [batch, seq]")));
        };
        let mut tensors = HashMap::new();
        let mut values = None;
        for name in NAMES.into_iter().filter(|name| weights.contains(name)) {
            let found = &weights.info(name)?.shape;
            if name == "labels" && config.head().is_per_sequence() {
                let wanted = config.head().labels_shape([batch, seq]);
                // The column dimension may be left out, as in PyTorch.
                if *found != wanted && !(wanted[1] == 1 && *found == [batch]) {
                    let problem = format!("tensor \"labels\" has shape {found:?}, expected {wanted:?}");
                    return Err(Failure::at(file, problem));
                }
                match config.head().takes_values() {
                    true => values = Some(weights.read_f64(name)?),
                    false => _ = tensors.insert(name, weights.read_i64(name)?),
                }
                continue;
            }
            if *found != shape {
                let problem = format!("tensor {name:?} has shape {found:?}, but \"input_ids\" has {shape:?}");
                return Err(Failure::at(file, problem));
            }
            tensors.insert(name, weights.read_i64(name)?);
        }
        let tokens = TokenBatch {
            batch,
            seq,
            attention_mask: tensors.contains_key("attention_mask"),
            token_type_ids: tensors.contains_key("token_type_ids"),
            documents: false,
        };
        let batch = Batch { tokens, tensors, values };
        batch.check(config).map_err(|Problem(problem)| Failure::at(file, problem))?;
        Ok(batch)
    }

    /// Whether there are labels.
    pub fn has_labels(&self) -> bool {
        self.values.is_some() || self.tensors.contains_key("labels")
    }

    /// Checks every number against the model.
    fn check(&self, config: &ModelConfig) -> Result<(), Problem> {
        let vocab = config.vocab_size() as i64;
        let ids = &self.tensors["input_ids"];
        self.inside("input_ids", "token", 0..vocab)?;
        let largest = ids.iter().copied().max().unwrap_or(0);
        config.check_batch([self.tokens.batch, self.tokens.seq], largest).map_err(|e| Problem(e.to_string()))?;
        self.inside("attention_mask", "value", 0..2)?;
        let types = match config {
            ModelConfig::Bert(bert) => bert.type_vocab_size as i64,
            _ if self.tensors.contains_key("token_type_ids") => {
                return Err(Problem(format!("tensor \"token_type_ids\" is not an input of {}", config.model_type())));
            }
            _ => 0,
        };
        if matches!(config, ModelConfig::Interleaved(_)) && self.tensors.contains_key("attention_mask") {
            return Err(Problem(format!("tensor \"attention_mask\" is not an input of {}", config.model_type())));
        }
        self.inside("token_type_ids", "type", 0..types)?;
        match config.head().labels() {
            Some(labels) => self.classes(config, labels.names.len() as i64),
            None => self.labels(config, vocab),
        }
    }

    /// Checks labels that are class numbers, of sequences or of tokens.
    fn classes(&self, config: &ModelConfig, count: i64) -> Result<(), Problem> {
        let Some(labels) = self.tensors.get("labels") else { return Ok(()) };
        match labels.iter().find(|label| **label != IGNORE && !(0..count).contains(*label)) {
            Some(label) => Err(Problem(format!(
                "labels has {label}, but the {} has {count} labels (and {IGNORE} ignores one)",
                config.head().kind().name()
            ))),
            None if labels.iter().all(|label| *label == IGNORE) => {
                Err(Problem(format!("labels: all are {IGNORE} (ignored), so there is no loss")))
            }
            None => Ok(()),
        }
    }

    fn labels(&self, config: &ModelConfig, vocab: i64) -> Result<(), Problem> {
        let Some(labels) = self.tensors.get("labels") else { return Ok(()) };
        let wrong = labels.iter().position(|l| *l != IGNORE && !(0..vocab).contains(l));
        if let Some(at) = wrong {
            let (row, column) = (at / self.tokens.seq, at % self.tokens.seq);
            return Err(Problem(format!(
                "labels[{row}, {column}] is {}, but the vocabulary has {vocab} entries (and {IGNORE} ignores a position)",
                labels[at]
            )));
        }
        // Causal models predict the next label, so the first label of a sequence is never predicted.
        let first = usize::from(config.is_causal());
        let counted = labels.chunks(self.tokens.seq).flat_map(|row| &row[first..]).any(|l| *l != IGNORE);
        if counted { Ok(()) } else { Err(Problem(format!("labels: all are {IGNORE} (ignored), so there is no loss"))) }
    }

    fn inside(&self, name: &str, what: &str, range: std::ops::Range<i64>) -> Result<(), Problem> {
        let Some(values) = self.tensors.get(name) else { return Ok(()) };
        match values.iter().position(|v| !range.contains(v)) {
            None => Ok(()),
            Some(at) => Err(Problem(format!(
                "{name}[{}, {}] is {}, but a {what} must be in 0..{}",
                at / self.tokens.seq,
                at % self.tokens.seq,
                values[at],
                range.end
            ))),
        }
    }

    /// Writes the tensors that the session's program reads.
    ///
    /// # Errors
    /// A tensor whose size differs from the one that the program was compiled for.
    pub fn feed(&self, session: &mut Session) -> Result<(), RuntimeError> {
        for (name, values) in &self.tensors {
            feed(session, name, values)?;
        }
        match &self.values {
            Some(values)
                if session.interface().inputs.iter().any(|i| i.kind == InputKind::Data && i.name == "labels") =>
            {
                session.write_f64((InputKind::Data, "labels"), values)
            }
            _ => Ok(()),
        }
    }
}

/// Writes an integer input, if the program has it.
///
/// # Errors
/// The wrong number of elements.
pub fn feed(session: &mut Session, name: &str, values: &[i64]) -> Result<(), RuntimeError> {
    if !session.interface().inputs.iter().any(|i| i.kind == InputKind::Data && i.name == name) {
        return Ok(());
    }
    let values: Vec<f64> = values.iter().map(|v| *v as f64).collect();
    session.write_f64((InputKind::Data, name), &values)
}

struct Problem(String);

/// Named float tensors as the bytes of a safetensors file.
///
/// # Errors
/// A shape that does not fit its values.
pub fn safetensors(tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Outcome<Vec<u8>> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let mut views = Vec::new();
    for ((name, shape, _), data) in tensors.iter().zip(&bytes) {
        views.push((*name, TensorView::new(Dtype::F32, shape.clone(), data)?));
    }
    Ok(safetensors::serialize(views, None)?)
}
