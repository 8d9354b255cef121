//! The families of decoders: what distinguishes each is data, in a file of its own.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;

use super::decoder_config::{NormOrder, QkNorm};
use super::heads::Classes;
use super::known::Table;
use super::layers::Activation;
use super::norm::Center;

/// Which family of causal models a configuration of the shared decoder is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `llama`
    Llama,
    /// `mistral`
    Mistral,
    /// `qwen2`
    Qwen2,
    /// `qwen3`
    Qwen3,
    /// `gemma2`
    Gemma2,
    /// `gemma3_text`
    Gemma3,
    /// `phi3`
    Phi3,
    /// `olmo2`
    Olmo2,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Gemma3, Self::Phi3, Self::Olmo2];

    /// The `model_type`.
    pub fn name(self) -> &'static str {
        self.facts().model_type
    }

    /// What distinguishes the family.
    pub(super) fn facts(self) -> &'static Facts {
        match self {
            Self::Llama => &llama::FACTS,
            Self::Mistral => &mistral::FACTS,
            Self::Qwen2 => &qwen2::FACTS,
            Self::Qwen3 => &qwen3::FACTS,
            Self::Gemma2 => &gemma2::FACTS,
            Self::Gemma3 => &gemma3::FACTS,
            Self::Phi3 => &phi3::FACTS,
            Self::Olmo2 => &olmo2::FACTS,
        }
    }
}

/// What distinguishes a family of decoders. Sizes and numbers are what transformers takes for a key that is absent.
pub(super) struct Facts {
    /// The `model_type`.
    pub model_type: &'static str,
    /// The classes of transformers and their heads.
    pub classes: Classes,
    /// The family's keys beside those of all decoders.
    pub keys: Table,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// `None` if as many as heads.
    pub kv_heads: Option<usize>,
    /// `None` if the width divided by the heads.
    pub head_dim: Option<usize>,
    /// Whether the width has to be a multiple of the heads; otherwise the width of a head is rounded down.
    pub whole_heads: bool,
    pub positions: usize,
    pub eps: f64,
    pub theta: f64,
    /// The base of layers with a window, if they have rotary embeddings of their own.
    pub local_theta: Option<f64>,
    /// `original_max_position_embeddings` beside the rotary embeddings, if there always is one.
    pub original_positions: Option<usize>,
    /// Whether there are no other rotary embeddings than `default` and `longrope`.
    pub longrope_only: bool,
    pub tied: bool,
    pub padding: Option<usize>,
    /// The key that names the activation.
    pub activation_key: &'static str,
    pub activation: Activation,
    pub biases: Biases,
    /// Whether there is a key `mlp_bias`.
    pub mlp_bias: bool,
    pub qk_norm: QkNorm,
    pub norms: NormOrder,
    pub center: Center,
    pub windows: Windows,
    pub score_scale: ScoreScale,
    /// The bounds of scores and logits, if there are keys for them.
    pub caps: Option<Caps>,
    /// Whether embedded tokens are multiplied by the root of the width.
    pub scaled_embedding: bool,
    /// Whether files hold q, k and v as one tensor, and gate and up as one.
    pub fused: bool,
    /// Keys of dropout beside `attention_dropout`.
    pub more_dropout: &'static [&'static str],
}

/// The biases of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Biases {
    /// There are none.
    None,
    /// Queries, keys and values have one.
    Inputs,
    /// `attention_bias` says whether all four projections have one.
    Key,
}

/// Which layers have a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// None has one.
    None,
    /// Every layer has that of `sliding_window`, if that is not null.
    Everywhere {
        /// The window without the key.
        default: Option<usize>,
    },
    /// Those of `layer_types` or from `max_window_layers` on, if `use_sliding_window` says so.
    Asked,
    /// Those of `layer_types`, or all but the last of every `pattern` layers.
    Alternating {
        /// The window without the key.
        default: Option<usize>,
        /// The key of the pattern, if there is one.
        pattern_key: Option<&'static str>,
        /// The pattern without the key.
        pattern: usize,
    },
}

/// What scores are divided by the root of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ScoreScale {
    /// The width of a head.
    HeadDim,
    /// `query_pre_attn_scalar`; this without the key.
    Key(f64),
}

/// The bounds without their keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Caps {
    pub scores: Option<f64>,
    pub logits: Option<f64>,
}
