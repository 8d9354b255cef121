//! The text model of Gemma 3: Gemma 2 with norms of its query and key heads instead of bounds. Five layers with a
//! window precede each layer without one, and their rotary embeddings have a different base.

use super::super::heads::HeadKind;
use super::super::known::Role::{Harmless, Only, Read};
use super::super::known::Sole;
use super::super::norm::QkNorm;
use super::facts::{Caps, Facts, Windows};
use super::gemma2;

pub(super) const FACTS: Facts = Facts {
    model_type: "gemma3_text",
    classes: &[
        ("Gemma3ForCausalLM", HeadKind::CausalLm),
        ("Gemma3TextModel", HeadKind::Bare),
        ("Gemma3TextForSequenceClassification", HeadKind::SequenceClassification),
    ],
    keys: &[
        ("hidden_activation", Read),
        ("attention_bias", Read),
        ("query_pre_attn_scalar", Read),
        ("attn_logit_softcapping", Read),
        ("final_logit_softcapping", Read),
        ("sliding_window", Read),
        ("sliding_window_pattern", Read),
        ("layer_types", Read),
        ("rope_local_base_freq", Read),
        ("use_bidirectional_attention", Only(Sole::False)),
        // The name under which transformers saves `sliding_window_pattern` next to `layer_types`.
        ("_sliding_window_pattern", Harmless),
        ("hidden_act", Harmless),
        ("cache_implementation", Harmless),
    ],
    vocab_size: 262_208,
    positions: 131_072,
    theta: 1_000_000.0,
    local_theta: Some(10_000.0),
    qk_norm: QkNorm::Heads,
    windows: Windows::Alternating { default: Some(4096), pattern_key: Some("sliding_window_pattern"), pattern: 6 },
    caps: Some(Caps { scores: None, logits: None }),
    ..gemma2::FACTS
};
