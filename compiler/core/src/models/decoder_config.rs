//! The configuration of the shared decoder, and reading it according to the facts of a family.

use super::attend::Scores;
use super::error::ModelError;
use super::families::Family;
use super::families::facts::{Biases, Facts, ScoreScale, Windows};
use super::heads::Head;
use super::keys::Keys;
use super::layers::Activation;
use super::norm::{Center, NormOrder, QkNorm, RmsNorm};
use super::room::check_layers;
use super::rope::RopeConfig;
use super::rope_config;
use super::warning::ModelWarning;
use burn::tensor::Device;
use serde_json::{Value, json};

/// The shared decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family.
    pub family: Family,
    /// The head, which determines the output.
    pub head: Head,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key-value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence of the training.
    pub max_position_embeddings: usize,
    /// The norms' epsilon.
    pub rms_norm_eps: f64,
    /// Which norms a block has.
    pub norms: NormOrder,
    /// The representation of the norms' weights in files.
    pub center: Center,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Rotary embeddings.
    pub rope: RopeConfig,
    /// Rotary embeddings of layers with a window, if they differ.
    pub local_rope: Option<RopeConfig>,
    /// How scores are computed.
    pub scores: Scores,
    /// The bound of the logits, see [`soft_cap`](super::soft_cap).
    pub logit_cap: Option<f64>,
    /// Factor of the embedded tokens.
    pub embedding_scale: Option<f64>,
    /// Whether the output weights are tied to the embedding.
    pub tie_word_embeddings: bool,
    /// The row of the embedding that gets no gradient from lookups.
    pub padding_idx: Option<usize>,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub output_bias: bool,
    /// Whether the MLP has biases.
    pub mlp_bias: bool,
    /// The sliding window of each layer, if it has one; all windows have the same size.
    pub windows: Vec<Option<usize>>,
    /// The MLP's activation.
    pub activation: Activation,
    /// Standard deviation of initial weights.
    pub initializer_range: f64,
    /// The dropout in the configuration; it is not applied.
    pub dropout: f64,
}

impl DecoderConfig {
    pub(super) fn read(keys: &Keys, family: Family, warnings: &mut Vec<ModelWarning>) -> Result<Self, ModelError> {
        let facts = family.facts();
        let hidden_size = keys.size_or("hidden_size", facts.hidden_size)?;
        let heads = keys.size_or("num_attention_heads", facts.heads)?;
        let layers = keys.size_or("num_hidden_layers", facts.layers)?;
        check_layers(keys.file(), "num_hidden_layers", layers)?;
        let kv_heads = keys.size_or_null("num_key_value_heads", facts.kv_heads.unwrap_or(heads), heads)?;
        if heads % kv_heads != 0 {
            return Err(keys.inconsistent(format!(
                "num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
            )));
        }
        let head_dim = head_dim(keys, facts, hidden_size, heads)?;
        let positions = keys.size_or("max_position_embeddings", facts.positions)?;
        let vocab_size = keys.size_or("vocab_size", facts.vocab_size)?;
        let (qkv_bias, output_bias) = match facts.biases {
            Biases::None => (false, false),
            Biases::Inputs => (true, false),
            Biases::Key => {
                let bias = keys.bool_or("attention_bias", false)?;
                (bias, bias)
            }
        };
        let cap = |key: &str, default: Option<Option<f64>>| match default {
            None => Ok(None),
            Some(_) if keys.mentions(key) => keys.opt_positive(key),
            Some(default) => Ok(default),
        };
        let scale = match facts.score_scale {
            ScoreScale::HeadDim => (head_dim as f64).powf(-0.5),
            ScoreScale::Key(default) => keys.positive_or("query_pre_attn_scalar", default)?.powf(-0.5),
        };
        let (rope, local_rope) = rope_config::read(keys, facts, positions, head_dim, warnings)?;
        let mut dropout = keys.probability_or("attention_dropout", 0.0)?;
        for key in facts.more_dropout {
            dropout = dropout.max(keys.probability_or(key, 0.0)?);
        }
        Ok(Self {
            family,
            head: Head::read(keys, facts.classes)?,
            vocab_size,
            hidden_size,
            intermediate_size: keys.size_or("intermediate_size", facts.intermediate_size)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: positions,
            rms_norm_eps: keys.positive_or("rms_norm_eps", facts.eps)?,
            norms: facts.norms,
            center: facts.center,
            qk_norm: facts.qk_norm,
            rope,
            local_rope,
            scores: Scores { scale, cap: cap("attn_logit_softcapping", facts.caps.map(|caps| caps.scores))? },
            logit_cap: cap("final_logit_softcapping", facts.caps.map(|caps| caps.logits))?,
            embedding_scale: facts.scaled_embedding.then(|| (hidden_size as f64).sqrt()),
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", facts.tied)?,
            padding_idx: keys.padding_row("pad_token_id", vocab_size, facts.padding)?,
            qkv_bias,
            output_bias,
            mlp_bias: facts.mlp_bias && keys.bool_or("mlp_bias", false)?,
            windows: windows(keys, facts, layers)?,
            activation: keys.activation(facts.activation_key, facts.activation)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            dropout,
        })
    }

    /// The sliding window, if any layer has one.
    pub fn sliding_window(&self) -> Option<usize> {
        self.windows.iter().flatten().next().copied()
    }

    /// A norm over `width` elements, as the model configures its norms.
    pub(super) fn norm(&self, width: usize, device: &Device) -> RmsNorm {
        RmsNorm::new(width, self.rms_norm_eps, self.center, device)
    }

    pub(super) fn to_json(&self) -> Value {
        let facts = self.family.facts();
        let mut value = json!({
            "model_type": facts.model_type,
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "pad_token_id": self.padding_idx,
            "attention_dropout": self.dropout,
            facts.activation_key: self.activation.name(),
            "initializer_range": self.initializer_range,
        });
        self.head.write(facts.classes, &mut value);
        rope_config::write(&self.rope, self.local_rope.as_ref(), &mut value);
        if facts.biases == Biases::Key {
            value["attention_bias"] = json!(self.qkv_bias);
        }
        if facts.mlp_bias {
            value["mlp_bias"] = json!(self.mlp_bias);
        }
        if let ScoreScale::Key(_) = facts.score_scale {
            value["query_pre_attn_scalar"] = json!(self.scores.scale.powi(-2));
        }
        if facts.caps.is_some() {
            value["attn_logit_softcapping"] = json!(self.scores.cap);
            value["final_logit_softcapping"] = json!(self.logit_cap);
        }
        if let Some(original) = facts.original_positions {
            value["original_max_position_embeddings"] = json!(self.rope.original_positions().unwrap_or(original));
        }
        let types = || -> Value {
            let kind = |window: &Option<usize>| match window {
                Some(_) => "sliding_attention",
                None => "full_attention",
            };
            self.windows.iter().map(kind).collect()
        };
        match facts.windows {
            Windows::None => {}
            Windows::Everywhere { .. } => value["sliding_window"] = json!(self.sliding_window()),
            Windows::OnRequest => {
                value["sliding_window"] = json!(self.sliding_window());
                value["use_sliding_window"] = json!(self.sliding_window().is_some());
                value["layer_types"] = types();
            }
            Windows::Alternating { .. } => {
                value["sliding_window"] = json!(self.sliding_window());
                value["layer_types"] = types();
            }
        }
        value
    }
}

/// The width of a head, given or derived.
fn head_dim(keys: &Keys, facts: &Facts, hidden_size: usize, heads: usize) -> Result<usize, ModelError> {
    let head_dim = match (keys.opt_size("head_dim")?, facts.head_dim) {
        (Some(head_dim), _) => head_dim,
        (None, Some(default)) => keys.size_or("head_dim", default)?,
        (None, None) if !facts.whole_heads && hidden_size >= heads => hidden_size / heads,
        (None, None) => keys.head_dim("hidden_size", hidden_size, "num_attention_heads", heads)?,
    };
    match head_dim % 2 {
        0 => Ok(head_dim),
        _ => Err(keys.inconsistent(format!("head_dim = {head_dim} is odd, but rotary embeddings need pairs"))),
    }
}

/// The window of each layer.
fn windows(keys: &Keys, facts: &Facts, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let given = |default| match keys.mentions("sliding_window") {
        true => keys.opt_size("sliding_window"),
        false => Ok(default),
    };
    match facts.windows {
        Windows::None => Ok(vec![None; layers]),
        Windows::Everywhere { default } => Ok(vec![given(default)?; layers]),
        Windows::OnRequest => {
            let window = match keys.bool_or("use_sliding_window", false)? {
                true => given(Some(4096))?,
                false => None,
            };
            let first = keys.count_or("max_window_layers", 28)?;
            let missing = "use_sliding_window and sliding_window give no window";
            by_type(keys, window, layers, missing, |layer| layer >= first)
        }
        Windows::Alternating { default, pattern_key, pattern } => {
            let pattern = match pattern_key {
                Some(key) => keys.size_or(key, pattern)?,
                None => pattern,
            };
            let missing = "sliding_window gives no window";
            by_type(keys, given(default)?, layers, missing, |layer| (layer + 1) % pattern != 0)
        }
    }
}

/// The windows according to `layer_types`; without that key, layers for which `has_window` holds have a window.
fn by_type(
    keys: &Keys,
    window: Option<usize>,
    layers: usize,
    missing: &str,
    has_window: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ModelError> {
    let Some(types) = keys.opt_strings("layer_types")? else {
        return Ok((0..layers).map(|layer| window.filter(|_| has_window(layer))).collect());
    };
    if types.len() != layers {
        return Err(
            keys.inconsistent(format!("layer_types has {} entries, but num_hidden_layers = {layers}", types.len()))
        );
    }
    let of = |kind: &String| match (kind.as_str(), window) {
        // The second is an older name of the first.
        ("full_attention" | "attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => {
            Err(keys.inconsistent(format!("layer_types has sliding_attention, but {missing}")))
        }
        _ => Err(keys.wrong("layer_types", "full_attention or sliding_attention")),
    };
    types.iter().map(of).collect()
}
