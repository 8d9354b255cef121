//! OLMo 2: norms after attention and MLP, and norms over all queries and all keys.

use super::super::heads::HeadKind;
use super::super::known::Role::Read;
use super::super::norm::{NormOrder, QkNorm};
use super::facts::Facts;
use super::llama;

pub(super) const FACTS: Facts = Facts {
    model_type: "olmo2",
    classes: &[
        ("Olmo2ForCausalLM", HeadKind::CausalLm),
        ("Olmo2Model", HeadKind::Bare),
        ("Olmo2ForSequenceClassification", HeadKind::SequenceClassification),
    ],
    keys: &[("hidden_act", Read), ("attention_bias", Read)],
    vocab_size: 50_304,
    whole_heads: false,
    eps: 1e-5,
    padding: Some(1),
    mlp_bias: false,
    qk_norm: QkNorm::Projection,
    norms: NormOrder::After,
    ..llama::FACTS
};
