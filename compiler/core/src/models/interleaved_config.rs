//! The configuration of the Llama repository's model, under its own names.

use super::error::ModelError;
use super::heads::Classes;
use super::keys::Keys;
use super::known::Role::Read;
use super::known::Table;
use super::room::check_layers;
use serde_json::{Map, Value, json};

/// The `model_type` of [`InterleavedConfig`], which is not one of Hugging Face's.
pub const INTERLEAVED: &str = "llama-interleaved";

/// transformers has no class for the model.
pub(super) const CLASSES: Classes = &[];

/// The model's keys.
pub(super) const KEYS: Table = &[
    ("dim", Read),
    ("n_layers", Read),
    ("n_heads", Read),
    ("n_kv_heads", Read),
    ("ffn", Read),
    ("vocab", Read),
    ("seq", Read),
    ("eps", Read),
    ("theta", Read),
    ("initializer_range", Read),
];

/// The Llama repository's model, under its own names.
#[derive(Debug, Clone, PartialEq)]
pub struct InterleavedConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key-value heads.
    pub n_kv_heads: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence.
    pub seq: usize,
    /// The norms' epsilon.
    pub eps: f64,
    /// The rotary base.
    pub theta: f64,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
}

impl InterleavedConfig {
    pub(super) fn read(keys: &Keys) -> Result<Self, ModelError> {
        // No class of transformers reads it; a value that a program wrote must still be a list of names.
        keys.opt_strings("architectures")?;
        let (dim, n_heads) = (keys.size("dim")?, keys.size("n_heads")?);
        let n_kv_heads = keys.size_or("n_kv_heads", n_heads)?;
        let head_dim = keys.head_dim("dim", dim, "n_heads", n_heads)?;
        if head_dim % 2 != 0 || n_heads % n_kv_heads != 0 {
            return Err(keys.inconsistent(format!(
                "dim = {dim}, n_heads = {n_heads}, n_kv_heads = {n_kv_heads}: the width of a head must be even, \
                 and n_heads a multiple of n_kv_heads"
            )));
        }
        let n_layers = keys.size("n_layers")?;
        check_layers(keys.file(), "n_layers", n_layers)?;
        Ok(Self {
            dim,
            n_layers,
            n_heads,
            n_kv_heads,
            ffn: keys.size("ffn")?,
            vocab: keys.size("vocab")?,
            seq: keys.size_or("seq", 2048)?,
            eps: keys.positive_or("eps", 1e-5)?,
            theta: keys.positive_or("theta", 10000.0)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("model_type".into(), json!(INTERLEAVED));
        for (key, value) in [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("ffn", self.ffn),
            ("vocab", self.vocab),
            ("seq", self.seq),
        ] {
            map.insert(key.into(), json!(value));
        }
        map.insert("eps".into(), json!(self.eps));
        map.insert("theta".into(), json!(self.theta));
        map.insert("initializer_range".into(), json!(self.initializer_range));
        Value::Object(map)
    }
}
