//! Phi 3: Llama with files that store queries, keys and values as one tensor, and gate and up as another.

use super::super::heads::HeadKind;
use super::super::known::Role::Read;
use super::facts::{Biases, Facts, Windows};
use super::llama;

pub(super) const FACTS: Facts = Facts {
    model_type: "phi3",
    classes: &[
        ("Phi3ForCausalLM", HeadKind::CausalLm),
        ("Phi3Model", HeadKind::Bare),
        ("Phi3ForSequenceClassification", HeadKind::SequenceClassification),
        ("Phi3ForTokenClassification", HeadKind::TokenClassification),
    ],
    keys: &[
        ("hidden_act", Read),
        ("sliding_window", Read),
        // Mentioned in a note: dropout is not applied.
        ("resid_pdrop", Read),
        ("embd_pdrop", Read),
    ],
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    whole_heads: false,
    positions: 4096,
    original_positions: Some(4096),
    eps: 1e-5,
    padding: Some(32_000),
    biases: Biases::None,
    mlp_bias: false,
    windows: Windows::Everywhere { default: None },
    longrope_only: true,
    fused: true,
    more_dropout: &["resid_pdrop", "embd_pdrop"],
    ..llama::FACTS
};
