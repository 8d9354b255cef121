//! In what the families of decoders may differ.

use super::super::heads::Classes;
use super::super::known::Table;
use super::super::layers::Activation;
use super::super::norm::{Center, NormOrder, QkNorm};

/// What distinguishes a family of decoders. Sizes and numbers are what transformers takes for a key that is absent.
pub(in super::super) struct Facts {
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
    /// `None` if there are as many as heads.
    pub kv_heads: Option<usize>,
    /// `None` if it is the width divided by the heads.
    pub head_dim: Option<usize>,
    /// Whether the width must be a multiple of the heads. Otherwise the width of a head is rounded down.
    pub whole_heads: bool,
    pub positions: usize,
    pub eps: f64,
    pub theta: f64,
    /// The base of the rotary embeddings of layers with a window, if it differs from that of the others.
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
pub(in super::super) enum Biases {
    /// There are none.
    None,
    /// Queries, keys and values have one.
    Inputs,
    /// `attention_bias` says whether all four projections have one.
    Key,
}

/// Which layers have a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Windows {
    /// None has one.
    None,
    /// Every layer has the window of `sliding_window`, unless that is null.
    Everywhere {
        /// The window if the key is absent.
        default: Option<usize>,
    },
    /// The layers of `layer_types`, or those from `max_window_layers` on, if `use_sliding_window` is true.
    Asked,
    /// The layers of `layer_types`, or all but the last of every `pattern` layers.
    Alternating {
        /// The window if the key is absent.
        default: Option<usize>,
        /// The key of the pattern, if there is one.
        pattern_key: Option<&'static str>,
        /// The pattern if the key is absent.
        pattern: usize,
    },
}

/// What scores are divided by the root of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum ScoreScale {
    /// The width of a head.
    HeadDim,
    /// `query_pre_attn_scalar`, or this number if the key is absent.
    Key(f64),
}

/// The bounds where their keys are absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Caps {
    pub scores: Option<f64>,
    pub logits: Option<f64>,
}
