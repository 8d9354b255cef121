//! Mistral: Llama without biases and with a sliding window in every layer.

use super::super::heads::HeadKind;
use super::super::known::Role::Read;
use super::facts::{Biases, Facts, Windows};
use super::llama;

pub(super) const FACTS: Facts = Facts {
    model_type: "mistral",
    classes: &[
        ("MistralForCausalLM", HeadKind::CausalLm),
        ("MistralModel", HeadKind::Bare),
        ("MistralForSequenceClassification", HeadKind::SequenceClassification),
        ("MistralForTokenClassification", HeadKind::TokenClassification),
    ],
    keys: &[("hidden_act", Read), ("sliding_window", Read)],
    intermediate_size: 14_336,
    kv_heads: Some(8),
    whole_heads: false,
    positions: 4096 * 32,
    biases: Biases::None,
    mlp_bias: false,
    windows: Windows::Everywhere { default: Some(4096) },
    ..llama::FACTS
};
