//! Llama: the basic decoder, of which the other families are variations.

use super::super::heads::HeadKind;
use super::super::known::Role::{Harmless, Read};
use super::super::layers::Activation;
use super::super::norm::{Center, NormOrder, QkNorm};
use super::facts::{Biases, Facts, ScoreScale, Windows};

pub(super) const FACTS: Facts = Facts {
    model_type: "llama",
    classes: &[
        ("LlamaForCausalLM", HeadKind::CausalLm),
        ("LlamaModel", HeadKind::Bare),
        ("LlamaForSequenceClassification", HeadKind::SequenceClassification),
        ("LlamaForTokenClassification", HeadKind::TokenClassification),
    ],
    keys: &[
        ("hidden_act", Read),
        ("attention_bias", Read),
        ("mlp_bias", Read),
        // Only splits the same sums into parts.
        ("pretraining_tp", Harmless),
    ],
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    whole_heads: true,
    positions: 2048,
    eps: 1e-6,
    theta: 10_000.0,
    local_theta: None,
    original_positions: None,
    longrope_only: false,
    tied: false,
    padding: None,
    activation_key: "hidden_act",
    activation: Activation::Silu,
    biases: Biases::Key,
    mlp_bias: true,
    qk_norm: QkNorm::None,
    norms: NormOrder::Before,
    center: Center::One,
    windows: Windows::None,
    score_scale: ScoreScale::HeadDim,
    caps: None,
    scaled_embedding: false,
    fused: false,
    more_dropout: &[],
};
