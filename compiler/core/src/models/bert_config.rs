//! The configuration of BERT.

use super::error::ModelError;
use super::heads::{Classes, Head, HeadKind};
use super::keys::Keys;
use super::known::Role::{Harmless, Only, Read};
use super::known::{Sole, Table};
use super::layers::Activation;
use super::room::check_layers;
use serde_json::{Value, json};

/// BERT's classes and their heads.
pub(super) const CLASSES: Classes = &[
    ("BertForMaskedLM", HeadKind::MaskedLm),
    ("BertModel", HeadKind::Bare),
    ("BertForSequenceClassification", HeadKind::SequenceClassification),
    ("BertForTokenClassification", HeadKind::TokenClassification),
];

/// BERT's keys.
pub(super) const KEYS: Table = &[
    ("vocab_size", Read),
    ("hidden_size", Read),
    ("intermediate_size", Read),
    ("num_hidden_layers", Read),
    ("num_attention_heads", Read),
    ("max_position_embeddings", Read),
    ("type_vocab_size", Read),
    ("layer_norm_eps", Read),
    ("hidden_act", Read),
    ("tie_word_embeddings", Read),
    ("pad_token_id", Read),
    ("initializer_range", Read),
    // Named in a note; dropout is not applied.
    ("attention_probs_dropout_prob", Read),
    ("hidden_dropout_prob", Read),
    ("position_embedding_type", Only(Sole::Text("absolute"))),
    ("is_decoder", Only(Sole::False)),
    ("add_cross_attention", Only(Sole::False)),
    // Settings of the pooler that transformers' code does not read.
    ("directionality", Harmless),
    ("pooler_fc_size", Harmless),
    ("pooler_num_attention_heads", Harmless),
    ("pooler_num_fc_layers", Harmless),
    ("pooler_size_per_head", Harmless),
    ("pooler_type", Harmless),
];

/// BERT.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// The head.
    pub head: Head,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Number of token types.
    pub type_vocab_size: usize,
    /// The norms' epsilon.
    pub layer_norm_eps: f64,
    /// The activation of the MLP and the head.
    pub activation: Activation,
    /// Whether the output weights are tied to the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the output weights' bias is tied to the bias of the predictions; if there are two, the bias of the
    /// predictions is only stored.
    pub tie_decoder_bias: bool,
    /// The row of the word embedding that gets no gradient from lookups.
    pub padding_idx: Option<usize>,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// The dropout in the configuration; it is not applied.
    pub dropout: f64,
}

impl BertConfig {
    pub(super) fn read(keys: &Keys) -> Result<Self, ModelError> {
        let hidden_size = keys.size_or("hidden_size", 768)?;
        let heads = keys.size_or("num_attention_heads", 12)?;
        keys.head_dim("hidden_size", hidden_size, "num_attention_heads", heads)?;
        let num_hidden_layers = keys.size_or("num_hidden_layers", 12)?;
        check_layers(keys.file(), "num_hidden_layers", num_hidden_layers)?;
        let vocab_size = keys.size_or("vocab_size", 30_522)?;
        let tie_word_embeddings = keys.bool_or("tie_word_embeddings", true)?;
        Ok(Self {
            head: Head::read(keys, CLASSES)?,
            vocab_size,
            hidden_size,
            intermediate_size: keys.size_or("intermediate_size", 3072)?,
            num_hidden_layers,
            num_attention_heads: heads,
            max_position_embeddings: keys.size_or("max_position_embeddings", 512)?,
            type_vocab_size: keys.size_or("type_vocab_size", 2)?,
            layer_norm_eps: keys.positive_or("layer_norm_eps", 1e-12)?,
            activation: keys.activation("hidden_act", Activation::Gelu)?,
            tie_word_embeddings,
            tie_decoder_bias: tie_word_embeddings,
            padding_idx: keys.padding_row("pad_token_id", vocab_size, Some(0))?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            dropout: keys
                .probability_or("attention_probs_dropout_prob", 0.1)?
                .max(keys.probability_or("hidden_dropout_prob", 0.1)?),
        })
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value = json!({
            "model_type": "bert",
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_act": self.activation.name(),
            // Two tensors that differ are kept regardless of this key; without it, both are required.
            "tie_word_embeddings": self.tie_word_embeddings || self.tie_decoder_bias,
            "pad_token_id": self.padding_idx,
            "initializer_range": self.initializer_range,
            "attention_probs_dropout_prob": self.dropout,
            "hidden_dropout_prob": self.dropout,
        });
        self.head.write(CLASSES, &mut value);
        value
    }
}
