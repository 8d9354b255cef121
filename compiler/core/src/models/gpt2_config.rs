//! The configuration of GPT-2.

use super::error::ModelError;
use super::heads::{Classes, Head, HeadKind};
use super::keys::Keys;
use super::known::Role::{Harmless, Only, Read};
use super::known::{Sole, Table};
use super::layers::Activation;
use super::room::check_layers;
use super::warning::ModelWarning;
use serde_json::{Value, json};

/// GPT-2's classes and their heads.
pub(super) const CLASSES: Classes = &[
    ("GPT2LMHeadModel", HeadKind::CausalLm),
    ("GPT2Model", HeadKind::Bare),
    ("GPT2ForSequenceClassification", HeadKind::SequenceClassification),
    ("GPT2ForTokenClassification", HeadKind::TokenClassification),
];

/// GPT-2's keys.
pub(super) const KEYS: Table = &[
    ("vocab_size", Read),
    ("n_positions", Read),
    ("n_embd", Read),
    ("n_layer", Read),
    ("n_head", Read),
    // The names that transformers maps to the four above.
    ("max_position_embeddings", Read),
    ("hidden_size", Read),
    ("num_hidden_layers", Read),
    ("num_attention_heads", Read),
    ("n_inner", Read),
    ("activation_function", Read),
    ("layer_norm_epsilon", Read),
    ("scale_attn_weights", Read),
    ("scale_attn_by_inverse_layer_idx", Read),
    ("tie_word_embeddings", Read),
    ("initializer_range", Read),
    // Named in a note; dropout is not applied.
    ("attn_pdrop", Read),
    ("embd_pdrop", Read),
    ("resid_pdrop", Read),
    ("add_cross_attention", Only(Sole::False)),
    ("is_causal", Only(Sole::True)),
    ("pad_token_id", Read),
    // These make no difference in f32.
    ("reorder_and_upcast_attn", Harmless),
    ("n_ctx", Harmless),
    ("n_special", Harmless),
    ("predict_special_tokens", Harmless),
    ("summary_type", Harmless),
    ("summary_use_proj", Harmless),
    ("summary_activation", Harmless),
    ("summary_proj_to_labels", Harmless),
    ("summary_first_dropout", Harmless),
    ("summary_last_dropout", Harmless),
    ("hidden_dropout", Harmless),
];

/// GPT-2.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// The head, which determines the output.
    pub head: Head,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Heads.
    pub n_head: usize,
    /// Width of the MLP.
    pub n_inner: usize,
    /// The norms' epsilon.
    pub layer_norm_epsilon: f64,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether scores are divided by the square root of the head's width.
    pub scale_attn_weights: bool,
    /// Whether scores are also divided by the layer's number, counted from 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output weights are tied to the embedding.
    pub tie_word_embeddings: bool,
    /// The padding token, which a sequence classification looks for; its row of the embedding is trained like any
    /// other.
    pub pad_token_id: Option<i64>,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// The dropout in the configuration; it is not applied.
    pub dropout: f64,
}

impl Gpt2Config {
    pub(super) fn read(keys: &Keys, warnings: &mut Vec<ModelWarning>) -> Result<Self, ModelError> {
        // If both are given, the general name of a size takes precedence over GPT-2's own, because it is set last.
        let mut size = |own: &str, general: &str, default| -> Result<usize, ModelError> {
            let (named, other) = (keys.opt_size(own)?, keys.opt_size(general)?);
            if let (Some(named), Some(other)) = (named, other)
                && named != other
            {
                let (file, taken, ignored) = (keys.file().to_path_buf(), general.to_string(), own.to_string());
                warnings.push(ModelWarning::Overruled { file, taken, ignored });
            }
            match other.or(named) {
                Some(size) => Ok(size),
                None => keys.size_or(own, default),
            }
        };
        let n_embd = size("n_embd", "hidden_size", 768)?;
        let n_head = size("n_head", "num_attention_heads", 12)?;
        let n_layer = size("n_layer", "num_hidden_layers", 12)?;
        let n_positions = size("n_positions", "max_position_embeddings", 1024)?;
        check_layers(keys.file(), "n_layer", n_layer)?;
        keys.head_dim("n_embd", n_embd, "n_head", n_head)?;
        let mut dropout: f64 = 0.0;
        for key in ["attn_pdrop", "embd_pdrop", "resid_pdrop"] {
            dropout = dropout.max(keys.probability_or(key, 0.1)?);
        }
        Ok(Self {
            head: Head::read(keys, CLASSES)?,
            vocab_size: keys.size_or("vocab_size", 50_257)?,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner: keys.size_or_null("n_inner", 4 * n_embd, 4 * n_embd)?,
            layer_norm_epsilon: keys.positive_or("layer_norm_epsilon", 1e-5)?,
            activation: keys.activation("activation_function", Activation::GeluTanh)?,
            scale_attn_weights: keys.bool_or("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: keys.bool_or("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", true)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            pad_token_id: keys.opt_integer("pad_token_id")?,
            dropout,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value = json!({
            "model_type": "gpt2",
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "activation_function": self.activation.name(),
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attn_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "resid_pdrop": self.dropout,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": self.pad_token_id,
        });
        self.head.write(CLASSES, &mut value);
        value
    }
}
