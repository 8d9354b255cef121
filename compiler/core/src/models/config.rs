//! `config.json`: the family and the sizes of a model.

use super::bert_config::{self, BertConfig};
use super::cache::CacheShape;
use super::decoder_config::DecoderConfig;
use super::error::ModelError;
use super::families::Family;
use super::gpt2_config::{self, Gpt2Config};
use super::heads::{Classes, Head, HeadKind};
use super::interleaved_config::{self, INTERLEAVED, InterleavedConfig};
use super::keys::Keys;
use super::known::{self, COMMON, DECODER, Table};
use super::warning::ModelWarning;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// The supported `model_type`s.
pub const FAMILIES: [&str; 11] =
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "bert", INTERLEAVED];

/// The family that a `model_type` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelType {
    Decoder(Family),
    Gpt2,
    Bert,
    Interleaved,
}

impl ModelType {
    /// All model types, in the order of [`FAMILIES`].
    fn all() -> impl Iterator<Item = Self> {
        Family::ALL.into_iter().map(Self::Decoder).chain([Self::Gpt2, Self::Bert, Self::Interleaved])
    }

    /// The `model_type`.
    fn name(self) -> &'static str {
        match self {
            Self::Decoder(family) => family.name(),
            Self::Gpt2 => "gpt2",
            Self::Bert => "bert",
            Self::Interleaved => INTERLEAVED,
        }
    }

    /// The keys of its `config.json`.
    fn keys(self) -> Vec<Table> {
        match self {
            Self::Decoder(family) => vec![COMMON, DECODER, family.facts().keys],
            Self::Gpt2 => vec![COMMON, gpt2_config::KEYS],
            Self::Bert => vec![COMMON, bert_config::KEYS],
            Self::Interleaved => vec![COMMON, interleaved_config::KEYS],
        }
    }
}

/// A model's configuration, of any family.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // a program has only one
pub enum ModelConfig {
    /// The decoder that families of causal models share.
    Decoder(DecoderConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// BERT.
    Bert(BertConfig),
    /// The Llama repository's model.
    Interleaved(InterleavedConfig),
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// A file that cannot be read, or that [`ModelConfig::from_json`] rejects.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        Self::from_json(&super::keys::read_json(file)?, file)
    }

    /// Like [`ModelConfig::read`], with warnings about keys that have no effect.
    ///
    /// # Errors
    /// The errors of [`ModelConfig::read`].
    pub fn read_warned(file: &Path) -> Result<(Self, Vec<ModelWarning>), ModelError> {
        Self::from_json_warned(&super::keys::read_json(file)?, file)
    }

    /// Interprets a parsed `config.json`; `file` is named in errors.
    ///
    /// # Errors
    /// A family that is not supported, a key that is missing or would change the model, an invalid value.
    pub fn from_json(value: &Value, file: &Path) -> Result<Self, ModelError> {
        Self::from_json_warned(value, file).map(|(config, _)| config)
    }

    /// Like [`ModelConfig::from_json`], with warnings about keys that have no effect.
    ///
    /// # Errors
    /// The errors of [`ModelConfig::from_json`].
    pub fn from_json_warned(value: &Value, file: &Path) -> Result<(Self, Vec<ModelWarning>), ModelError> {
        let keys = Keys::new(value, file)?;
        let model_type = keys.str("model_type")?;
        let Some(kind) = ModelType::all().find(|kind| kind.name() == model_type) else {
            let (file, supported) = (file.to_path_buf(), FAMILIES.to_vec());
            return Err(ModelError::UnknownFamily { file, found: model_type, supported });
        };
        let keys = keys.of_family(&model_type);
        let unknown = known::check(&keys, &kind.keys())?;
        let mut warnings: Vec<ModelWarning> = known::unknown(&keys, &model_type, unknown).into_iter().collect();
        let config = match kind {
            ModelType::Decoder(family) => DecoderConfig::read(&keys, family, &mut warnings).map(Self::Decoder),
            ModelType::Gpt2 => Gpt2Config::read(&keys, &mut warnings).map(Self::Gpt2),
            ModelType::Bert => BertConfig::read(&keys).map(Self::Bert),
            ModelType::Interleaved => InterleavedConfig::read(&keys).map(Self::Interleaved),
        }?;
        Ok((config, warnings))
    }

    /// The configuration as a `config.json` that [`ModelConfig::from_json`] and Hugging Face's libraries can read.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Decoder(c) => c.to_json(),
            Self::Gpt2(c) => c.to_json(),
            Self::Bert(c) => c.to_json(),
            Self::Interleaved(c) => c.to_json(),
        }
    }

    /// The checks of [`ModelConfig::from_json`] for a configuration that a program made.
    ///
    /// # Errors
    /// Sizes that contradict each other; the error names both keys.
    pub fn validate(&self) -> Result<(), ModelError> {
        Self::from_json(&self.to_json(), Path::new("configuration")).map(drop)
    }

    /// An error if a batch `[batch, seq]` of token numbers up to `largest` does not fit the model.
    ///
    /// # Errors
    /// A batch without rows or tokens, with more tokens than the model has positions, or with a token outside of the
    /// vocabulary.
    pub fn check_batch(&self, shape: [usize; 2], largest: i64) -> Result<(), ModelError> {
        let [batch, seq] = shape;
        let learned = self.learns_positions();
        let (positions, vocab) = (self.max_positions(), self.vocab_size());
        if batch == 0 || seq == 0 {
            return Err(ModelError::Batch(format!("its shape {shape:?} is empty")));
        }
        if learned && seq > positions {
            return Err(ModelError::Batch(format!(
                "sequences of {seq} tokens, but {} has {positions} learned positions",
                self.model_type()
            )));
        }
        if let (Head::SequenceClassification(_), None) = (self.head(), self.padding_token())
            && batch > 1
            && !self.takes_token_types()
        {
            return Err(ModelError::Batch(format!(
                "{batch} sequences, but the configuration has no pad_token_id, so the end of each one is unknown; set it, or \
                 classify one sequence at a time"
            )));
        }
        if usize::try_from(largest).is_ok_and(|largest| largest >= vocab) {
            return Err(ModelError::Batch(format!("token {largest}, but the vocabulary has {vocab} entries")));
        }
        Ok(())
    }

    /// The `model_type`.
    pub fn model_type(&self) -> &'static str {
        let kind = match self {
            Self::Decoder(c) => ModelType::Decoder(c.family),
            Self::Gpt2(_) => ModelType::Gpt2,
            Self::Bert(_) => ModelType::Bert,
            Self::Interleaved(_) => ModelType::Interleaved,
        };
        kind.name()
    }

    /// The head, which determines the output.
    pub fn head(&self) -> &Head {
        match self {
            Self::Decoder(c) => &c.head,
            Self::Gpt2(c) => &c.head,
            Self::Bert(c) => &c.head,
            Self::Interleaved(_) => &Head::CausalLm,
        }
    }

    /// The same model with another head, whose weights may have to be initialized.
    ///
    /// # Errors
    /// A head that the family does not have.
    pub fn with_head(mut self, head: Head) -> Result<Self, ModelError> {
        let classes = self.classes();
        if !classes.iter().any(|(_, kind)| *kind == head.kind()) {
            return Err(ModelError::NoHead {
                family: self.model_type(),
                head: head.kind().name(),
                supported: classes.iter().map(|(class, _)| *class).collect(),
            });
        }
        match &mut self {
            Self::Decoder(c) => c.head = head,
            Self::Gpt2(c) => c.head = head,
            Self::Bert(c) => c.head = head,
            Self::Interleaved(_) => {}
        }
        Ok(self)
    }

    /// Writes the keys of a `config.json` that describe the head.
    pub(super) fn write_head(&self, config: &mut Value) {
        self.head().write(self.classes(), config);
    }

    /// The classes of the family and their heads.
    fn classes(&self) -> Classes {
        match self {
            Self::Decoder(c) => c.family.facts().classes,
            Self::Gpt2(_) => gpt2_config::CLASSES,
            Self::Bert(_) => bert_config::CLASSES,
            Self::Interleaved(_) => interleaved_config::CLASSES,
        }
    }

    /// An error if the model has no loss to train with.
    ///
    /// # Errors
    /// A model without a head, or a sentence embedding model.
    pub fn check_loss(&self) -> Result<(), ModelError> {
        match self.head().has_loss() {
            true => Ok(()),
            false => Err(ModelError::NoLoss {
                family: self.model_type(),
                output: self.head().output(),
                supported: self.classes().iter().filter(|(_, kind)| *kind != HeadKind::Bare).map(|c| c.0).collect(),
            }),
        }
    }

    /// Number of query heads.
    pub fn heads(&self) -> usize {
        match self {
            Self::Decoder(c) => c.num_attention_heads,
            Self::Gpt2(c) => c.n_head,
            Self::Bert(c) => c.num_attention_heads,
            Self::Interleaved(c) => c.n_heads,
        }
    }

    /// Inner width of the MLP.
    pub fn inner_width(&self) -> usize {
        match self {
            Self::Decoder(c) => c.intermediate_size,
            Self::Gpt2(c) => c.n_inner,
            Self::Bert(c) => c.intermediate_size,
            Self::Interleaved(c) => c.ffn,
        }
    }

    /// Number of rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Decoder(c) => c.vocab_size,
            Self::Gpt2(c) => c.vocab_size,
            Self::Bert(c) => c.vocab_size,
            Self::Interleaved(c) => c.vocab,
        }
    }

    /// The longest sequence that the model supports, or was trained for.
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Decoder(c) => c.max_position_embeddings,
            Self::Gpt2(c) => c.n_positions,
            Self::Bert(c) => c.max_position_embeddings,
            Self::Interleaved(c) => c.seq,
        }
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        match self {
            Self::Decoder(c) => c.num_hidden_layers,
            Self::Gpt2(c) => c.n_layer,
            Self::Bert(c) => c.num_hidden_layers,
            Self::Interleaved(c) => c.n_layers,
        }
    }

    /// The same model with another number of blocks; `None` if its blocks differ from each other.
    pub fn with_layers(&self, layers: usize) -> Option<Self> {
        match self {
            Self::Decoder(c) => {
                let window = *c.windows.first()?;
                let alike = c.windows.iter().all(|other| *other == window);
                let config = DecoderConfig { num_hidden_layers: layers, windows: vec![window; layers], ..c.clone() };
                alike.then_some(Self::Decoder(config))
            }
            Self::Gpt2(c) if c.scale_attn_by_inverse_layer_idx => None,
            Self::Gpt2(c) => Some(Self::Gpt2(Gpt2Config { n_layer: layers, ..c.clone() })),
            Self::Bert(c) => Some(Self::Bert(BertConfig { num_hidden_layers: layers, ..c.clone() })),
            Self::Interleaved(c) => Some(Self::Interleaved(InterleavedConfig { n_layers: layers, ..c.clone() })),
        }
    }

    /// The parameter that holds the token embedding, and its elements in the padding row, if it has one.
    pub fn padding_row(&self) -> Option<(&'static str, Range<usize>)> {
        let bare = self.head().kind() == HeadKind::Bare;
        let (name, row, width) = match self {
            Self::Decoder(c) if bare => ("embed_tokens.weight", c.padding_idx?, c.hidden_size),
            Self::Decoder(c) => ("model.embed_tokens.weight", c.padding_idx?, c.hidden_size),
            Self::Bert(c) if bare => ("embeddings.word_embeddings.weight", c.padding_idx?, c.hidden_size),
            Self::Bert(c) => ("bert.embeddings.word_embeddings.weight", c.padding_idx?, c.hidden_size),
            Self::Gpt2(_) | Self::Interleaved(_) => return None,
        };
        Some((name, row * width..(row + 1) * width))
    }

    /// The token that pads sequences, if the configuration names one.
    fn padding_token(&self) -> Option<i64> {
        match self {
            Self::Decoder(c) => c.padding_idx.map(|row| row as i64),
            Self::Gpt2(c) => c.pad_token_id,
            Self::Bert(c) => c.padding_idx.map(|row| row as i64),
            Self::Interleaved(_) => None,
        }
    }

    /// Whether positions are learned, so that sequences cannot exceed [`ModelConfig::max_positions`].
    pub fn learns_positions(&self) -> bool {
        matches!(self, Self::Gpt2(_) | Self::Bert(_))
    }

    /// The cache of each attention, in the order of the layers; empty for a model that does not generate.
    pub(crate) fn caches(&self) -> Vec<CacheShape> {
        if !self.is_causal() {
            return Vec::new();
        }
        let (module, kv_heads, head_dim) = match self {
            Self::Decoder(c) => (["model.layers", "self_attn"], c.num_key_value_heads, c.head_dim),
            Self::Gpt2(c) => (["transformer.h", "attn"], c.n_head, c.n_embd / c.n_head),
            Self::Interleaved(c) => (["layers", "attention"], c.n_kv_heads, c.dim / c.n_heads),
            Self::Bert(_) => return Vec::new(),
        };
        let [layers, attention] = module;
        let owner = |layer| format!("{layers}.{layer}.{attention}");
        (0..self.layers()).map(|layer| CacheShape { owner: owner(layer), kv_heads, head_dim }).collect()
    }

    /// Whether this is a causal language model: its labels are the next tokens, which the model shifts.
    pub fn is_causal(&self) -> bool {
        *self.head() == Head::CausalLm
    }

    /// Whether this is an encoder, whose tokens have types and whose batches usually have a mask.
    pub fn takes_token_types(&self) -> bool {
        matches!(self, Self::Bert(_))
    }

    /// The dropout in the configuration, which is not applied; 0 if there is none.
    pub fn ignored_dropout(&self) -> f64 {
        match self {
            Self::Decoder(c) => c.dropout,
            Self::Gpt2(c) => c.dropout,
            Self::Bert(c) => c.dropout,
            Self::Interleaved(_) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rope::{RopeConfig, RopeScaling};
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    /// A value that is invalid for every key, so that every reader rejects it.
    fn wrong() -> Value {
        json!([{ "wrong": true }])
    }

    fn read(config: &Value) -> Result<ModelConfig, ModelError> {
        ModelConfig::from_json(config, Path::new("config.json"))
    }

    #[test]
    fn the_tables_say_which_keys_are_read() {
        let interleaved = [("dim", 8), ("n_layers", 1), ("n_heads", 2), ("ffn", 8), ("vocab", 8)];
        assert_eq!(ModelType::all().map(ModelType::name).collect::<Vec<_>>(), FAMILIES);
        for kind in ModelType::all() {
            let family = kind.name();
            let mut config = json!({ "model_type": family });
            if family == INTERLEAVED {
                interleaved.iter().for_each(|(key, value)| config[key] = json!(value));
            }
            if family.starts_with("qwen") {
                config["use_sliding_window"] = json!(true);
            }
            read(&config).unwrap();
            let tables = kind.keys();
            for (key, role) in tables.iter().copied().flatten() {
                let mut config = config.clone();
                config[key] = wrong();
                let refused = read(&config).map(drop).map_err(|e| e.to_string());
                match role {
                    known::Role::Harmless => assert_eq!(refused, Ok(()), "{family}: {key}"),
                    _ => assert!(refused.as_ref().is_err_and(|e| e.contains(key)), "{family}: {key}: {refused:?}"),
                }
            }
            // A key of another family is not read, and gives a warning.
            for other in ModelType::all() {
                for (key, _) in other.keys().into_iter().flatten() {
                    if known::role(&tables, key).is_none() {
                        let mut config = config.clone();
                        config[key] = wrong();
                        let (_, warnings) = ModelConfig::from_json_warned(&config, Path::new("config.json")).unwrap();
                        assert!(warnings.iter().any(|w| w.to_string().contains(key)), "{family}: {key}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_key_has_one_role() {
        for kind in ModelType::all() {
            let mut seen = HashSet::new();
            for (name, _) in kind.keys().into_iter().flatten() {
                assert!(seen.insert(name), "{}: {name}", kind.name());
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for family in FAMILIES.into_iter().filter(|family| *family != INTERLEAVED) {
            let config = read(&json!({ "model_type": family, "pad_token_id": 3 })).unwrap();
            let (again, warnings) = ModelConfig::from_json_warned(&config.to_json(), Path::new("config.json")).unwrap();
            assert_eq!((again, warnings), (config, Vec::new()), "{family}");
        }
    }

    #[test]
    fn one_spelling_of_rotary_embeddings_is_taken_whole() {
        let rope = |older: Value, newer: Value, theta: Value| {
            let config = json!({
                "model_type": "llama", "rope_scaling": older, "rope_parameters": newer, "rope_theta": theta,
            });
            let (config, warnings) = ModelConfig::from_json_warned(&config, Path::new("config.json")).unwrap();
            let ModelConfig::Decoder(config) = config else { unreachable!() };
            (config.rope, warnings.len())
        };
        let linear = |theta| RopeConfig { theta, scaling: RopeScaling::Linear { factor: 2.0 }, partial: 1.0 };
        let plain = RopeConfig::plain;
        let (older, newer) = (json!({ "type": "linear", "factor": 2.0 }), json!({ "rope_theta": 5.0 }));
        // The base is not taken from the other spelling.
        assert_eq!(rope(older.clone(), newer.clone(), Value::Null), (linear(10000.0), 1));
        assert_eq!(rope(older.clone(), newer.clone(), json!(7.0)), (linear(7.0), 1));
        assert_eq!(rope(Value::Null, newer.clone(), json!(7.0)), (plain(5.0), 0));
        // An empty object has no effect; one with `default` does.
        assert_eq!(rope(json!({}), newer.clone(), Value::Null), (plain(5.0), 0));
        assert_eq!(rope(json!({ "rope_type": "default" }), older.clone(), Value::Null), (plain(10000.0), 1));
        // Spellings that agree give no warning.
        assert_eq!(rope(older.clone(), older.clone(), json!(7.0)), (linear(7.0), 0));
        assert_eq!(rope(older, json!({ "rope_type": "yarn" }), Value::Null), (linear(10000.0), 1));
    }
}
