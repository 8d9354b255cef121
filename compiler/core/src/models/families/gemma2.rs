//! Gemma 2: norms before and after attention and MLP, bounded scores and logits, and a window in every other layer.

use super::super::heads::HeadKind;
use super::super::known::Role::{Harmless, Only, Read};
use super::super::known::Sole;
use super::super::layers::Activation;
use super::super::norm::{Center, NormOrder};
use super::facts::{Biases, Caps, Facts, ScoreScale, Windows};
use super::llama;

pub(super) const FACTS: Facts = Facts {
    model_type: "gemma2",
    classes: &[
        ("Gemma2ForCausalLM", HeadKind::CausalLm),
        ("Gemma2Model", HeadKind::Bare),
        ("Gemma2ForSequenceClassification", HeadKind::SequenceClassification),
        ("Gemma2ForTokenClassification", HeadKind::TokenClassification),
    ],
    keys: &[
        ("hidden_activation", Read),
        ("attention_bias", Read),
        ("query_pre_attn_scalar", Read),
        ("attn_logit_softcapping", Read),
        ("final_logit_softcapping", Read),
        ("sliding_window", Read),
        ("layer_types", Read),
        ("use_bidirectional_attention", Only(Sole::False)),
        // `hidden_activation` determines the activation.
        ("hidden_act", Harmless),
        ("cache_implementation", Harmless),
    ],
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    layers: 26,
    heads: 8,
    kv_heads: Some(4),
    head_dim: Some(256),
    positions: 8192,
    tied: true,
    padding: Some(0),
    activation_key: "hidden_activation",
    activation: Activation::GeluTanh,
    biases: Biases::Key,
    mlp_bias: false,
    norms: NormOrder::Around,
    center: Center::Zero,
    windows: Windows::Alternating { default: Some(4096), pattern_key: None, pattern: 2 },
    score_scale: ScoreScale::Key(256.0),
    caps: Some(Caps { scores: Some(50.0), logits: Some(30.0) }),
    scaled_embedding: true,
    ..llama::FACTS
};
