//! The properties in which families of decoders differ.

use super::super::heads::Classes;
use super::super::known::Table;
use super::super::layers::Activation;
use super::super::norm::{Center, NormOrder, QkNorm};

/// The properties of a family of decoders. Sizes and numbers are the defaults of transformers for absent keys.
pub(in super::super) struct Facts {
    /// The `model_type`.
    pub model_type: &'static str,
    /// The classes in transformers and their heads.
    pub classes: Classes,
    /// The keys of the family, in addition to those of all decoders.
    pub keys: Table,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// `None` if there are as many as query heads.
    pub kv_heads: Option<usize>,
    /// `None` if it is the width divided by the number of heads.
    pub head_dim: Option<usize>,
    /// Whether the width must be a multiple of the number of heads. Otherwise the width of a head is rounded down.
    pub whole_heads: bool,
    pub positions: usize,
    pub eps: f64,
    pub theta: f64,
    /// The base of the rotary embeddings of layers with a window, if it differs from that of other layers.
    pub local_theta: Option<f64>,
    /// The default of the key `original_max_position_embeddings` outside the rotary parameters, if the family has one.
    pub original_positions: Option<usize>,
    /// Whether `default` and `longrope` are the only rotary embeddings.
    pub longrope_only: bool,
    pub tied: bool,
    pub padding: Option<usize>,
    /// The key that names the activation.
    pub activation_key: &'static str,
    pub activation: Activation,
    pub biases: Biases,
    /// Whether the key `mlp_bias` exists.
    pub mlp_bias: bool,
    pub qk_norm: QkNorm,
    pub norms: NormOrder,
    pub center: Center,
    pub windows: Windows,
    pub score_scale: ScoreScale,
    /// The default bounds of scores and logits, if the family has keys for them.
    pub caps: Option<Caps>,
    /// Whether embedded tokens are multiplied by the square root of the width.
    pub scaled_embedding: bool,
    /// Whether files store q, k and v as one tensor, and gate and up as another.
    pub fused: bool,
    /// Keys of dropout other than `attention_dropout`.
    pub more_dropout: &'static [&'static str],
}

/// Which projections of attention have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Biases {
    /// None of them.
    None,
    /// Those of queries, keys and values.
    Inputs,
    /// All four if `attention_bias` is true, otherwise none.
    Key,
}

/// Which layers have a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Windows {
    /// No layer has one.
    None,
    /// Every layer has the window `sliding_window`, unless that is null.
    Everywhere {
        /// The window if the key is absent.
        default: Option<usize>,
    },
    /// If `use_sliding_window` is true: the layers that `layer_types` lists, or those from `max_window_layers` on.
    OnRequest,
    /// The layers that `layer_types` lists, or all but the last of every `pattern` layers.
    Alternating {
        /// The window if the key is absent.
        default: Option<usize>,
        /// The key of the pattern, if there is one.
        pattern_key: Option<&'static str>,
        /// The pattern if the key is absent.
        pattern: usize,
    },
}

/// The number by whose square root scores are divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) enum ScoreScale {
    /// The width of a head.
    HeadDim,
    /// `query_pre_attn_scalar`, or this number if the key is absent.
    Key(f64),
}

/// The bounds of scores and logits if their keys are absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Caps {
    pub scores: Option<f64>,
    pub logits: Option<f64>,
}
