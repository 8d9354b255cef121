//! `config.json`: which family, which sizes.

use super::error::ModelError;
use super::keys::Keys;
use super::layers::Activation;
use super::rope::{RopeConfig, RopeScaling};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The `model_type`s that can be read.
pub const FAMILIES: [&str; 7] = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "bert", INTERLEAVED];

/// The `model_type` of [`InterleavedConfig`], which is not one of Hugging Face's.
pub const INTERLEAVED: &str = "llama-interleaved";

/// A model's configuration, of any family.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// Llama, Mistral, Qwen2, Qwen3.
    Llama(LlamaConfig),
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// BERT for masked language modelling.
    Bert(BertConfig),
    /// The Llama repository's model.
    Interleaved(InterleavedConfig),
}

/// Which model the parametrized decoder is.
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
}

/// The parametrized decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// The family.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence of the training.
    pub max_position_embeddings: usize,
    /// The norms' epsilon.
    pub rms_norm_eps: f64,
    /// Rotary embeddings.
    pub rope: RopeConfig,
    /// Whether the output weights are the embedding's.
    pub tie_word_embeddings: bool,
    /// Biases of query, key and value.
    pub qkv_bias: bool,
    /// Bias of the attention's output.
    pub output_bias: bool,
    /// Biases of the MLP.
    pub mlp_bias: bool,
    /// Norms of query and key heads.
    pub qk_norm: bool,
    /// The sliding window of each layer, if it has one; all windows are the same.
    pub windows: Vec<Option<usize>>,
    /// The MLP's activation.
    pub activation: Activation,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Dropout that the file asks for; it is not applied.
    pub dropout: f64,
}

/// GPT-2.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub n_positions: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Heads.
    pub n_head: usize,
    /// Width of the MLP.
    pub n_inner: usize,
    /// The norms' epsilon.
    pub layer_norm_epsilon: f64,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether scores are divided by the square root of the head's width.
    pub scale_attn_weights: bool,
    /// Whether scores are divided by the layer's number as well.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output weights are the embedding's.
    pub tie_word_embeddings: bool,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Dropout that the file asks for; it is not applied.
    pub dropout: f64,
}

/// BERT for masked language modelling.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Number of token types.
    pub type_vocab_size: usize,
    /// The norms' epsilon.
    pub layer_norm_eps: f64,
    /// The activation of the MLP and the head.
    pub activation: Activation,
    /// Whether the output weights are the embedding's.
    pub tie_word_embeddings: bool,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Dropout that the file asks for; it is not applied.
    pub dropout: f64,
}

/// The Llama repository's model, under its own names.
#[derive(Debug, Clone, PartialEq)]
pub struct InterleavedConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence.
    pub seq: usize,
    /// The norms' epsilon.
    pub eps: f64,
    /// The rotary base.
    pub theta: f64,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
}

impl ModelConfig {
    /// Reads a `config.json`.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        Self::from_json(&super::keys::read_json(file)?, file)
    }

    /// Interprets a parsed `config.json`; `file` is named in errors.
    pub fn from_json(value: &Value, file: &Path) -> Result<Self, ModelError> {
        let keys = Keys::new(value, file)?;
        let model_type = keys.str("model_type")?;
        let keys = keys.of_family(&model_type);
        if keys.has("quantization_config") {
            return Err(keys.wrong("quantization_config", "absent (quantized weights are not supported)"));
        }
        match model_type.as_str() {
            "llama" => LlamaConfig::read(&keys, Family::Llama).map(Self::Llama),
            "mistral" => LlamaConfig::read(&keys, Family::Mistral).map(Self::Llama),
            "qwen2" => LlamaConfig::read(&keys, Family::Qwen2).map(Self::Llama),
            "qwen3" => LlamaConfig::read(&keys, Family::Qwen3).map(Self::Llama),
            "gpt2" => Gpt2Config::read(&keys).map(Self::Gpt2),
            "bert" => BertConfig::read(&keys).map(Self::Bert),
            INTERLEAVED => InterleavedConfig::read(&keys).map(Self::Interleaved),
            _ => Err(ModelError::UnknownFamily {
                file: file.to_path_buf(),
                found: model_type,
                supported: FAMILIES.to_vec(),
            }),
        }
    }

    /// The configuration as a `config.json` that [`ModelConfig::from_json`] and Hugging Face's libraries read.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Llama(c) => c.to_json(),
            Self::Gpt2(c) => c.to_json(),
            Self::Bert(c) => c.to_json(),
            Self::Interleaved(c) => c.to_json(),
        }
    }

    /// The checks of [`ModelConfig::from_json`] for a configuration made by a program.
    pub fn validate(&self) -> Result<(), ModelError> {
        Self::from_json(&self.to_json(), Path::new("configuration")).map(drop)
    }

    /// An error if a batch `[batch, seq]` of token numbers up to `largest` does not fit the model.
    pub fn check_batch(&self, shape: [usize; 2], largest: i64) -> Result<(), ModelError> {
        let [batch, seq] = shape;
        let learned = matches!(self, Self::Gpt2(_) | Self::Bert(_));
        let (positions, vocab) = (self.max_positions(), self.vocab_size());
        if batch == 0 || seq == 0 {
            return Err(ModelError::Batch(format!("its shape {shape:?} is empty")));
        }
        if learned && seq > positions {
            return Err(ModelError::Batch(format!(
                "sequences of {seq} tokens, but {} has {positions} learned positions",
                self.model_type()
            )));
        }
        if usize::try_from(largest).is_ok_and(|largest| largest >= vocab) {
            return Err(ModelError::Batch(format!("token {largest}, but the vocabulary has {vocab} entries")));
        }
        Ok(())
    }

    /// The `model_type`.
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::Llama(c) => c.family.name(),
            Self::Gpt2(_) => "gpt2",
            Self::Bert(_) => "bert",
            Self::Interleaved(_) => INTERLEAVED,
        }
    }

    /// Rows of the token embedding.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Llama(c) => c.vocab_size,
            Self::Gpt2(c) => c.vocab_size,
            Self::Bert(c) => c.vocab_size,
            Self::Interleaved(c) => c.vocab,
        }
    }

    /// The longest sequence that the model can take, or was made for.
    pub fn max_positions(&self) -> usize {
        match self {
            Self::Llama(c) => c.max_position_embeddings,
            Self::Gpt2(c) => c.n_positions,
            Self::Bert(c) => c.max_position_embeddings,
            Self::Interleaved(c) => c.seq,
        }
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        match self {
            Self::Llama(c) => c.num_hidden_layers,
            Self::Gpt2(c) => c.n_layer,
            Self::Bert(c) => c.num_hidden_layers,
            Self::Interleaved(c) => c.n_layers,
        }
    }

    /// Whether labels are the next tokens (and shifted by the model) instead of the positions' own.
    pub fn is_causal(&self) -> bool {
        !matches!(self, Self::Bert(_))
    }

    /// Dropout that the configuration asks for and that is not applied; 0 if none.
    pub fn ignored_dropout(&self) -> f64 {
        match self {
            Self::Llama(c) => c.dropout,
            Self::Gpt2(c) => c.dropout,
            Self::Bert(c) => c.dropout,
            Self::Interleaved(_) => 0.0,
        }
    }
}

impl Family {
    /// The `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

impl LlamaConfig {
    fn read(keys: &Keys, family: Family) -> Result<Self, ModelError> {
        let hidden_size = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let layers = keys.size("num_hidden_layers")?;
        let kv_heads = match family {
            Family::Llama => keys.size_or("num_key_value_heads", heads)?,
            _ => keys.size("num_key_value_heads")?,
        };
        if heads % kv_heads != 0 {
            return Err(keys.inconsistent(format!(
                "num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
            )));
        }
        let head_dim = match (keys.opt_size("head_dim")?, family) {
            (Some(head_dim), _) => head_dim,
            (None, Family::Qwen3) => return Err(keys.missing("head_dim")),
            (None, _) => keys.head_dim("hidden_size", hidden_size, "num_attention_heads", heads)?,
        };
        if head_dim % 2 != 0 {
            return Err(keys.inconsistent(format!("head_dim = {head_dim} is odd, but rotary embeddings need pairs")));
        }
        let attention_bias = keys.bool_or("attention_bias", false)?;
        let (qkv_bias, output_bias) = match family {
            Family::Llama | Family::Qwen3 => (attention_bias, attention_bias),
            Family::Qwen2 => (true, false),
            Family::Mistral => (false, false),
        };
        let max_position_embeddings = keys.size_or("max_position_embeddings", 2048)?;
        Ok(Self {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: keys.positive_or("rms_norm_eps", 1e-6)?,
            rope: read_rope(keys, max_position_embeddings)?,
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", false)?,
            qkv_bias,
            output_bias,
            mlp_bias: family == Family::Llama && keys.bool_or("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            windows: read_windows(keys, family, layers)?,
            activation: keys.activation("hidden_act", Activation::Silu)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            dropout: keys.probability("attention_dropout")?,
        })
    }

    /// The sliding window, if any layer has one.
    pub fn sliding_window(&self) -> Option<usize> {
        self.windows.iter().flatten().next().copied()
    }

    fn to_json(&self) -> Value {
        let mut rope = json!({ "rope_theta": self.rope.theta });
        let mut rope_scaling = Value::Null;
        match &self.rope.scaling {
            RopeScaling::Default => rope["rope_type"] = json!("default"),
            RopeScaling::Linear { factor } => {
                rope_scaling = json!({ "rope_type": "linear", "factor": factor });
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                rope_scaling = json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                });
            }
        }
        if let (Value::Object(rope), Value::Object(scaling)) = (&mut rope, &rope_scaling) {
            rope.extend(scaling.clone());
        }
        let (architecture, dtype) = (
            match self.family {
                Family::Llama => "LlamaForCausalLM",
                Family::Mistral => "MistralForCausalLM",
                Family::Qwen2 => "Qwen2ForCausalLM",
                Family::Qwen3 => "Qwen3ForCausalLM",
            },
            "float32",
        );
        let mut value = json!({
            "architectures": [architecture],
            "model_type": self.family.name(),
            "dtype": dtype,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            // Both spellings: version 5 reads rope_parameters, version 4 the other two.
            "rope_parameters": rope,
            "rope_theta": self.rope.theta,
            "rope_scaling": rope_scaling,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_dropout": self.dropout,
            "hidden_act": self.activation.name(),
            "initializer_range": self.initializer_range,
        });
        match self.family {
            Family::Llama => {
                value["attention_bias"] = json!(self.qkv_bias);
                value["mlp_bias"] = json!(self.mlp_bias);
            }
            Family::Mistral => value["sliding_window"] = json!(self.sliding_window()),
            Family::Qwen2 | Family::Qwen3 => {
                if self.family == Family::Qwen3 {
                    value["attention_bias"] = json!(self.qkv_bias);
                }
                value["sliding_window"] = json!(self.sliding_window());
                value["use_sliding_window"] = json!(self.sliding_window().is_some());
                let kind = |window: &Option<usize>| match window {
                    Some(_) => "sliding_attention",
                    None => "full_attention",
                };
                value["layer_types"] = self.windows.iter().map(kind).collect();
            }
        }
        value
    }
}

fn read_windows(keys: &Keys, family: Family, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let window = match family {
        Family::Llama => None,
        // Hugging Face's default for a missing key; null means none.
        Family::Mistral if !keys.mentions("sliding_window") => Some(4096),
        Family::Mistral => keys.opt_size("sliding_window")?,
        Family::Qwen2 | Family::Qwen3 => match keys.bool_or("use_sliding_window", false)? {
            true => keys.opt_size("sliding_window")?,
            false => None,
        },
    };
    let Some(window) = window else {
        return Ok(vec![None; layers]);
    };
    if let Some(types) = keys.opt_strings("layer_types")? {
        if types.len() != layers {
            return Err(
                keys.inconsistent(format!("layer_types has {} entries, but num_hidden_layers = {layers}", types.len()))
            );
        }
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(Some(window)),
                _ => Err(keys.wrong("layer_types", "full_attention or sliding_attention")),
            })
            .collect();
    }
    let first = match family {
        Family::Qwen2 | Family::Qwen3 => keys.count_or("max_window_layers", 28)?,
        _ => 0,
    };
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
}

/// Both spellings: `rope_parameters` (version 5) and `rope_theta` with `rope_scaling` (version 4).
fn read_rope(keys: &Keys, max_positions: usize) -> Result<RopeConfig, ModelError> {
    let nested = match keys.opt_object("rope_parameters")? {
        Some(nested) => Some(nested),
        None => keys.opt_object("rope_scaling")?,
    };
    let mut theta = keys.positive_or("rope_theta", 10000.0)?;
    let mut scaling = RopeScaling::Default;
    if let Some(nested) = nested {
        theta = nested.positive_or("rope_theta", theta)?;
        if nested.positive_or("partial_rotary_factor", 1.0)? != 1.0 {
            return Err(nested.wrong("partial_rotary_factor", "1"));
        }
        let key = match nested.has("rope_type") {
            true => "rope_type",
            false => "type",
        };
        let kind = nested.str_or(key, "default")?;
        scaling = match kind.as_str() {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: nested.positive("factor")? },
            "llama3" => {
                let (low, high) = (nested.positive("low_freq_factor")?, nested.positive("high_freq_factor")?);
                if low >= high {
                    return Err(
                        nested.inconsistent(format!("low_freq_factor = {low} is not below high_freq_factor = {high}"))
                    );
                }
                RopeScaling::Llama3 {
                    factor: nested.positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: nested
                        .size_or("original_max_position_embeddings", max_positions)?,
                }
            }
            _ => return Err(nested.wrong(key, "one of default, linear, llama3")),
        };
    }
    if keys.positive_or("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(keys.wrong("partial_rotary_factor", "1"));
    }
    Ok(RopeConfig { theta, scaling })
}

impl Gpt2Config {
    fn read(keys: &Keys) -> Result<Self, ModelError> {
        let n_embd = keys.size("n_embd")?;
        let n_head = keys.size("n_head")?;
        keys.head_dim("n_embd", n_embd, "n_head", n_head)?;
        if keys.bool_or("add_cross_attention", false)? {
            return Err(keys.wrong("add_cross_attention", "false"));
        }
        let mut dropout: f64 = 0.0;
        for key in ["attn_pdrop", "embd_pdrop", "resid_pdrop"] {
            dropout = dropout.max(keys.probability(key)?);
        }
        Ok(Self {
            vocab_size: keys.size("vocab_size")?,
            n_positions: keys.size("n_positions")?,
            n_embd,
            n_layer: keys.size("n_layer")?,
            n_head,
            n_inner: keys.size_or("n_inner", 4 * n_embd)?,
            layer_norm_epsilon: keys.positive_or("layer_norm_epsilon", 1e-5)?,
            activation: keys.activation("activation_function", Activation::GeluTanh)?,
            scale_attn_weights: keys.bool_or("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: keys.bool_or("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", true)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            dropout,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "activation_function": self.activation.name(),
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attn_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "resid_pdrop": self.dropout,
            "bos_token_id": 0,
            "eos_token_id": 0,
        })
    }
}

impl BertConfig {
    fn read(keys: &Keys) -> Result<Self, ModelError> {
        let hidden_size = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        keys.head_dim("hidden_size", hidden_size, "num_attention_heads", heads)?;
        let positions = keys.str_or("position_embedding_type", "absolute")?;
        if positions != "absolute" {
            return Err(keys.wrong("position_embedding_type", "absolute"));
        }
        if keys.bool_or("is_decoder", false)? {
            return Err(keys.wrong("is_decoder", "false"));
        }
        Ok(Self {
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: keys.size("num_hidden_layers")?,
            num_attention_heads: heads,
            max_position_embeddings: keys.size("max_position_embeddings")?,
            type_vocab_size: keys.size_or("type_vocab_size", 2)?,
            layer_norm_eps: keys.positive_or("layer_norm_eps", 1e-12)?,
            activation: keys.activation("hidden_act", Activation::Gelu)?,
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", true)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            dropout: keys.probability("attention_probs_dropout_prob")?.max(keys.probability("hidden_dropout_prob")?),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "architectures": ["BertForMaskedLM"],
            "model_type": "bert",
            "dtype": "float32",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_act": self.activation.name(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attention_probs_dropout_prob": self.dropout,
            "hidden_dropout_prob": self.dropout,
        })
    }
}

impl InterleavedConfig {
    fn read(keys: &Keys) -> Result<Self, ModelError> {
        let (dim, n_heads) = (keys.size("dim")?, keys.size("n_heads")?);
        let n_kv_heads = keys.size_or("n_kv_heads", n_heads)?;
        let head_dim = keys.head_dim("dim", dim, "n_heads", n_heads)?;
        if head_dim % 2 != 0 || n_heads % n_kv_heads != 0 {
            return Err(keys.inconsistent(format!(
                "dim = {dim}, n_heads = {n_heads}, n_kv_heads = {n_kv_heads}: the width of a head must be even, \
                 and n_heads a multiple of n_kv_heads"
            )));
        }
        Ok(Self {
            dim,
            n_layers: keys.size("n_layers")?,
            n_heads,
            n_kv_heads,
            ffn: keys.size("ffn")?,
            vocab: keys.size("vocab")?,
            seq: keys.size_or("seq", 2048)?,
            eps: keys.positive_or("eps", 1e-5)?,
            theta: keys.positive_or("theta", 10000.0)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
        })
    }

    fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("model_type".into(), json!(INTERLEAVED));
        for (key, value) in [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("ffn", self.ffn),
            ("vocab", self.vocab),
            ("seq", self.seq),
        ] {
            map.insert(key.into(), json!(value));
        }
        map.insert("eps".into(), json!(self.eps));
        map.insert("theta".into(), json!(self.theta));
        map.insert("initializer_range".into(), json!(self.initializer_range));
        Value::Object(map)
    }
}
