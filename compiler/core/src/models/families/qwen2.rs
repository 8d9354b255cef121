//! Qwen2: Llama with biases of queries, keys and values, and optional windows.

use super::super::heads::HeadKind;
use super::super::known::Role::{Only, Read};
use super::super::known::Sole;
use super::facts::{Biases, Facts, Windows};
use super::llama;

pub(super) const FACTS: Facts = Facts {
    model_type: "qwen2",
    classes: &[
        ("Qwen2ForCausalLM", HeadKind::CausalLm),
        ("Qwen2Model", HeadKind::Bare),
        ("Qwen2ForSequenceClassification", HeadKind::SequenceClassification),
        ("Qwen2ForTokenClassification", HeadKind::TokenClassification),
    ],
    keys: &[
        ("hidden_act", Read),
        ("use_sliding_window", Read),
        ("sliding_window", Read),
        ("max_window_layers", Read),
        ("layer_types", Read),
        ("use_mrope", Only(Sole::False)),
    ],
    vocab_size: 151_936,
    intermediate_size: 22_016,
    kv_heads: Some(32),
    whole_heads: false,
    positions: 32_768,
    biases: Biases::Inputs,
    mlp_bias: false,
    windows: Windows::OnRequest,
    ..llama::FACTS
};
