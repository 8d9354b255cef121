//! Qwen3: Qwen2 with norms of its query and key heads instead of biases.

use super::super::heads::HeadKind;
use super::super::known::Role::Read;
use super::super::norm::QkNorm;
use super::facts::{Biases, Facts};
use super::qwen2;

pub(super) const FACTS: Facts = Facts {
    model_type: "qwen3",
    classes: &[
        ("Qwen3ForCausalLM", HeadKind::CausalLm),
        ("Qwen3Model", HeadKind::Bare),
        ("Qwen3ForSequenceClassification", HeadKind::SequenceClassification),
        ("Qwen3ForTokenClassification", HeadKind::TokenClassification),
    ],
    keys: &[
        ("hidden_act", Read),
        ("attention_bias", Read),
        ("use_sliding_window", Read),
        ("sliding_window", Read),
        ("max_window_layers", Read),
        ("layer_types", Read),
    ],
    head_dim: Some(128),
    biases: Biases::Key,
    qk_norm: QkNorm::Heads,
    ..qwen2::FACTS
};
