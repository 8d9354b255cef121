//! `config.json`: which family, which sizes.

use super::error::ModelError;
use super::keys::Keys;
use super::known;
use super::layers::Activation;
use super::rope::{RopeConfig, RopeScaling};
use super::size::check_layers;
use super::warning::ModelWarning;
use serde_json::{Map, Value, json};
use std::ops::Range;
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
    /// The row of the embedding that looking it up gives no gradient.
    pub padding_idx: Option<usize>,
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
    /// Whether the output weights' bias is that of the predictions; with two, that of the predictions is only kept.
    pub tie_decoder_bias: bool,
    /// The row of the word embedding that looking it up gives no gradient.
    pub padding_idx: Option<usize>,
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
    ///
    /// # Errors
    /// A file that cannot be read, or that [`ModelConfig::from_json`] refuses.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        Self::from_json(&super::keys::read_json(file)?, file)
    }

    /// The same, with what it says in vain.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn read_warned(file: &Path) -> Result<(Self, Vec<ModelWarning>), ModelError> {
        Self::from_json_warned(&super::keys::read_json(file)?, file)
    }

    /// Interprets a parsed `config.json`; `file` is named in errors.
    ///
    /// # Errors
    /// A family that is not supported, a key that is missing or would change the model, a value that is none.
    pub fn from_json(value: &Value, file: &Path) -> Result<Self, ModelError> {
        Self::from_json_warned(value, file).map(|(config, _)| config)
    }

    /// The same, with what it says in vain.
    ///
    /// # Errors
    /// As [`ModelConfig::from_json`].
    pub fn from_json_warned(value: &Value, file: &Path) -> Result<(Self, Vec<ModelWarning>), ModelError> {
        let keys = Keys::new(value, file)?;
        let model_type = keys.str("model_type")?;
        if !FAMILIES.contains(&model_type.as_str()) {
            let (file, supported) = (file.to_path_buf(), FAMILIES.to_vec());
            return Err(ModelError::UnknownFamily { file, found: model_type, supported });
        }
        let keys = keys.of_family(&model_type);
        let unknown = known::check(&keys, known::of_family(&model_type))?;
        let mut warnings: Vec<ModelWarning> = known::unknown(&keys, &model_type, unknown).into_iter().collect();
        let config = match model_type.as_str() {
            "llama" => LlamaConfig::read(&keys, Family::Llama, &mut warnings).map(Self::Llama),
            "mistral" => LlamaConfig::read(&keys, Family::Mistral, &mut warnings).map(Self::Llama),
            "qwen2" => LlamaConfig::read(&keys, Family::Qwen2, &mut warnings).map(Self::Llama),
            "qwen3" => LlamaConfig::read(&keys, Family::Qwen3, &mut warnings).map(Self::Llama),
            "gpt2" => Gpt2Config::read(&keys, &mut warnings).map(Self::Gpt2),
            "bert" => BertConfig::read(&keys).map(Self::Bert),
            _ => InterleavedConfig::read(&keys).map(Self::Interleaved),
        }?;
        Ok((config, warnings))
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
    ///
    /// # Errors
    /// Sizes that contradict each other, named with both keys.
    pub fn validate(&self) -> Result<(), ModelError> {
        Self::from_json(&self.to_json(), Path::new("configuration")).map(drop)
    }

    /// An error if a batch `[batch, seq]` of token numbers up to `largest` does not fit the model.
    ///
    /// # Errors
    /// A batch of no rows or tokens, of more tokens than the model has positions, or with a token outside of the vocabulary.
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

    /// The parameter that holds the token embedding and its elements that belong to the padding row, if it has one.
    pub fn padding_row(&self) -> Option<(&'static str, Range<usize>)> {
        let (name, row, width) = match self {
            Self::Llama(c) => ("model.embed_tokens.weight", c.padding_idx?, c.hidden_size),
            Self::Bert(c) => ("bert.embeddings.word_embeddings.weight", c.padding_idx?, c.hidden_size),
            Self::Gpt2(_) | Self::Interleaved(_) => return None,
        };
        Some((name, row * width..(row + 1) * width))
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

/// What transformers takes for a key that is absent.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    /// None if as many as heads.
    kv_heads: Option<usize>,
    /// None if the width divided by the heads.
    head_dim: Option<usize>,
}

impl Family {
    fn defaults(self) -> Defaults {
        let qwen = |head_dim| Defaults {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            max_position_embeddings: 32_768,
            kv_heads: Some(32),
            head_dim,
        };
        match self {
            Self::Llama => Defaults {
                vocab_size: 32_000,
                intermediate_size: 11_008,
                max_position_embeddings: 2048,
                kv_heads: None,
                head_dim: None,
            },
            Self::Mistral => Defaults {
                vocab_size: 32_000,
                intermediate_size: 14_336,
                max_position_embeddings: 4096 * 32,
                kv_heads: Some(8),
                head_dim: None,
            },
            Self::Qwen2 => qwen(None),
            Self::Qwen3 => qwen(Some(128)),
        }
    }
}

impl LlamaConfig {
    fn read(keys: &Keys, family: Family, warnings: &mut Vec<ModelWarning>) -> Result<Self, ModelError> {
        let defaults = family.defaults();
        let hidden_size = keys.size_or("hidden_size", 4096)?;
        let heads = keys.size_or("num_attention_heads", 32)?;
        let layers = keys.size_or("num_hidden_layers", 32)?;
        check_layers(keys.file(), "num_hidden_layers", layers)?;
        let kv_heads = keys.size_or_null("num_key_value_heads", defaults.kv_heads.unwrap_or(heads), heads)?;
        if heads % kv_heads != 0 {
            return Err(keys.inconsistent(format!(
                "num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
            )));
        }
        let head_dim = match (keys.opt_size("head_dim")?, defaults.head_dim) {
            (Some(head_dim), _) => head_dim,
            (None, Some(default)) => keys.size_or("head_dim", default)?,
            // Only Llama's configuration insists on a width that heads divide; the others round down.
            (None, None) if family != Family::Llama && hidden_size >= heads => hidden_size / heads,
            (None, None) => keys.head_dim("hidden_size", hidden_size, "num_attention_heads", heads)?,
        };
        if head_dim % 2 != 0 {
            return Err(keys.inconsistent(format!("head_dim = {head_dim} is odd, but rotary embeddings need pairs")));
        }
        let attention_bias =
            matches!(family, Family::Llama | Family::Qwen3) && keys.bool_or("attention_bias", false)?;
        let (qkv_bias, output_bias) = match family {
            Family::Llama | Family::Qwen3 => (attention_bias, attention_bias),
            Family::Qwen2 => (true, false),
            Family::Mistral => (false, false),
        };
        let max_position_embeddings = keys.size_or("max_position_embeddings", defaults.max_position_embeddings)?;
        let vocab_size = keys.size_or("vocab_size", defaults.vocab_size)?;
        Ok(Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: keys.size_or("intermediate_size", defaults.intermediate_size)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: keys.positive_or("rms_norm_eps", 1e-6)?,
            rope: read_rope(keys, max_position_embeddings, warnings)?,
            tie_word_embeddings: keys.bool_or("tie_word_embeddings", false)?,
            padding_idx: read_padding(keys, vocab_size, None)?,
            qkv_bias,
            output_bias,
            mlp_bias: family == Family::Llama && keys.bool_or("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            windows: read_windows(keys, family, layers)?,
            activation: keys.activation("hidden_act", Activation::Silu)?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            dropout: keys.probability_or("attention_dropout", 0.0)?,
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
            "pad_token_id": self.padding_idx,
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
    let window = |default| match keys.mentions("sliding_window") {
        true => keys.opt_size("sliding_window"),
        false => Ok(default),
    };
    let window = match family {
        Family::Llama => None,
        Family::Mistral => window(Some(4096))?,
        Family::Qwen2 | Family::Qwen3 => match keys.bool_or("use_sliding_window", false)? {
            true => window(Some(4096))?,
            false => None,
        },
    };
    if let Family::Llama | Family::Mistral = family {
        return Ok(vec![window; layers]);
    }
    let Some(types) = keys.opt_strings("layer_types")? else {
        let first = keys.count_or("max_window_layers", 28)?;
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        return Err(
            keys.inconsistent(format!("layer_types has {} entries, but num_hidden_layers = {layers}", types.len()))
        );
    }
    types
        .iter()
        .map(|kind| match (kind.as_str(), window) {
            // The second is the first's older name.
            ("full_attention" | "attention", _) => Ok(None),
            ("sliding_attention", Some(window)) => Ok(Some(window)),
            ("sliding_attention", None) => Err(keys.inconsistent(
                "layer_types has sliding_attention, but use_sliding_window and sliding_window give no window".into(),
            )),
            _ => Err(keys.wrong("layer_types", "full_attention or sliding_attention")),
        })
        .collect()
}

/// `pad_token_id` as PyTorch's `padding_idx`: counted from the end if negative.
fn read_padding(keys: &Keys, vocab: usize, absent: Option<usize>) -> Result<Option<usize>, ModelError> {
    let Some(id) = keys.opt_integer("pad_token_id")? else {
        return Ok(absent.filter(|_| !keys.mentions("pad_token_id")));
    };
    let row = if id < 0 { id.checked_add_unsigned(vocab as u64) } else { Some(id) };
    match row.and_then(|row| usize::try_from(row).ok()).filter(|row| *row < vocab) {
        Some(row) => Ok(Some(row)),
        None => Err(keys.wrong("pad_token_id", &format!("null or an entry of the vocabulary of {vocab}"))),
    }
}

/// Both spellings: `rope_parameters` (version 5) and `rope_theta` with `rope_scaling` (version 4).
///
/// Where both are given, transformers takes `rope_scaling`, even if it says less. What the taken one does not say of the base is taken from
/// the configuration itself, never from the other one.
fn read_rope(keys: &Keys, max_positions: usize, warnings: &mut Vec<ModelWarning>) -> Result<RopeConfig, ModelError> {
    let spelled = |key: &'static str| -> Result<Option<(&'static str, Keys)>, ModelError> {
        let object = keys.opt_object(key)?.filter(|object| object.names().next().is_some());
        Ok(object.map(|object| (key, object)))
    };
    let (older, newer) = (spelled("rope_scaling")?, spelled("rope_parameters")?);
    let theta = keys.positive_or("rope_theta", 10000.0)?;
    let Some((taken, nested)) = older.as_ref().or(newer.as_ref()) else {
        return Ok(RopeConfig { theta, scaling: RopeScaling::Default });
    };
    let rope = read_spelling(nested, theta, max_positions)?;
    let kind = nested.str_or("rope_type", &nested.str_or("type", "default")?)?;
    let unknown = known::check(nested, known::of_rope(&kind))?;
    warnings.extend(known::unknown(nested, &format!("rope_type {kind:?}"), unknown));
    if let (Some(_), Some((ignored, other))) = (&older, &newer)
        && !read_spelling(other, theta, max_positions).is_ok_and(|other| other == rope)
    {
        let (file, taken, ignored) = (keys.file().to_path_buf(), taken.to_string(), ignored.to_string());
        warnings.push(ModelWarning::Overruled { file, taken, ignored });
    }
    Ok(rope)
}

fn read_spelling(nested: &Keys, theta: f64, max_positions: usize) -> Result<RopeConfig, ModelError> {
    let theta = nested.positive_or("rope_theta", theta)?;
    let key = match nested.has("rope_type") {
        true => "rope_type",
        false => "type",
    };
    let scaling = match nested.str_or(key, "default")?.as_str() {
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
                original_max_position_embeddings: nested.size_or("original_max_position_embeddings", max_positions)?,
            }
        }
        _ => return Err(nested.wrong(key, "one of default, linear, llama3")),
    };
    Ok(RopeConfig { theta, scaling })
}

impl Gpt2Config {
    fn read(keys: &Keys, warnings: &mut Vec<ModelWarning>) -> Result<Self, ModelError> {
        // The general name of a size is set after GPT-2's own, and therefore taken.
        let mut size = |own: &str, general: &str, default| -> Result<usize, ModelError> {
            let (named, other) = (keys.opt_size(own)?, keys.opt_size(general)?);
            if let (Some(named), Some(other)) = (named, other)
                && named != other
            {
                let (file, taken, ignored) = (keys.file().to_path_buf(), general.to_string(), own.to_string());
                warnings.push(ModelWarning::Overruled { file, taken, ignored });
            }
            match other.or(named) {
                Some(size) => Ok(size),
                None => keys.size_or(own, default),
            }
        };
        let n_embd = size("n_embd", "hidden_size", 768)?;
        let n_head = size("n_head", "num_attention_heads", 12)?;
        let n_layer = size("n_layer", "num_hidden_layers", 12)?;
        let n_positions = size("n_positions", "max_position_embeddings", 1024)?;
        check_layers(keys.file(), "n_layer", n_layer)?;
        keys.head_dim("n_embd", n_embd, "n_head", n_head)?;
        let mut dropout: f64 = 0.0;
        for key in ["attn_pdrop", "embd_pdrop", "resid_pdrop"] {
            dropout = dropout.max(keys.probability_or(key, 0.1)?);
        }
        Ok(Self {
            vocab_size: keys.size_or("vocab_size", 50_257)?,
            n_positions,
            n_embd,
            n_layer,
            n_head,
            n_inner: keys.size_or_null("n_inner", 4 * n_embd, 4 * n_embd)?,
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
        let hidden_size = keys.size_or("hidden_size", 768)?;
        let heads = keys.size_or("num_attention_heads", 12)?;
        keys.head_dim("hidden_size", hidden_size, "num_attention_heads", heads)?;
        let num_hidden_layers = keys.size_or("num_hidden_layers", 12)?;
        check_layers(keys.file(), "num_hidden_layers", num_hidden_layers)?;
        let vocab_size = keys.size_or("vocab_size", 30_522)?;
        let tie_word_embeddings = keys.bool_or("tie_word_embeddings", true)?;
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size: keys.size_or("intermediate_size", 3072)?,
            num_hidden_layers,
            num_attention_heads: heads,
            max_position_embeddings: keys.size_or("max_position_embeddings", 512)?,
            type_vocab_size: keys.size_or("type_vocab_size", 2)?,
            layer_norm_eps: keys.positive_or("layer_norm_eps", 1e-12)?,
            activation: keys.activation("hidden_act", Activation::Gelu)?,
            tie_word_embeddings,
            tie_decoder_bias: tie_word_embeddings,
            padding_idx: read_padding(keys, vocab_size, Some(0))?,
            initializer_range: keys.positive_or("initializer_range", 0.02)?,
            dropout: keys
                .probability_or("attention_probs_dropout_prob", 0.1)?
                .max(keys.probability_or("hidden_dropout_prob", 0.1)?),
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
            // Two tensors that differ are kept whatever this says; without it, both are needed.
            "tie_word_embeddings": self.tie_word_embeddings || self.tie_decoder_bias,
            "pad_token_id": self.padding_idx,
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
        let n_layers = keys.size("n_layers")?;
        check_layers(keys.file(), "n_layers", n_layers)?;
        Ok(Self {
            dim,
            n_layers,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that no key may have: every reader refuses it.
    fn wrong() -> Value {
        json!([{ "wrong": true }])
    }

    fn read(config: &Value) -> Result<ModelConfig, ModelError> {
        ModelConfig::from_json(config, Path::new("config.json"))
    }

    #[test]
    fn the_tables_say_which_keys_are_read() {
        let interleaved = [("dim", 8), ("n_layers", 1), ("n_heads", 2), ("ffn", 8), ("vocab", 8)];
        for family in FAMILIES {
            let mut config = json!({ "model_type": family });
            if family == INTERLEAVED {
                interleaved.iter().for_each(|(key, value)| config[key] = json!(value));
            }
            if family.starts_with("qwen") {
                config["use_sliding_window"] = json!(true);
            }
            read(&config).unwrap();
            let tables = known::of_family(family);
            for (key, role) in tables.iter().copied().flatten() {
                let mut config = config.clone();
                config[key] = wrong();
                let refused = read(&config).map(drop).map_err(|e| e.to_string());
                match role {
                    known::Role::Harmless => assert_eq!(refused, Ok(()), "{family}: {key}"),
                    _ => assert!(refused.as_ref().is_err_and(|e| e.contains(key)), "{family}: {key}: {refused:?}"),
                }
            }
            // A key of any other family is not read, and is named.
            for other in FAMILIES {
                for (key, _) in known::of_family(other).iter().copied().flatten() {
                    if known::role(tables, key).is_none() {
                        let mut config = config.clone();
                        config[key] = wrong();
                        let (_, warnings) = ModelConfig::from_json_warned(&config, Path::new("config.json")).unwrap();
                        assert!(warnings.iter().any(|w| w.to_string().contains(key)), "{family}: {key}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for family in FAMILIES.into_iter().filter(|family| *family != INTERLEAVED) {
            let config = read(&json!({ "model_type": family, "pad_token_id": 3 })).unwrap();
            let (again, warnings) = ModelConfig::from_json_warned(&config.to_json(), Path::new("config.json")).unwrap();
            assert_eq!((again, warnings), (config, Vec::new()), "{family}");
        }
    }

    #[test]
    fn one_spelling_of_rotary_embeddings_is_taken_whole() {
        let rope = |older: Value, newer: Value, theta: Value| {
            let config = json!({
                "model_type": "llama", "rope_scaling": older, "rope_parameters": newer, "rope_theta": theta,
            });
            let (config, warnings) = ModelConfig::from_json_warned(&config, Path::new("config.json")).unwrap();
            let ModelConfig::Llama(config) = config else { unreachable!() };
            (config.rope, warnings.len())
        };
        let linear = |theta| RopeConfig { theta, scaling: RopeScaling::Linear { factor: 2.0 } };
        let plain = |theta| RopeConfig { theta, scaling: RopeScaling::Default };
        let (older, newer) = (json!({ "type": "linear", "factor": 2.0 }), json!({ "rope_theta": 5.0 }));
        // The base is not taken from the other spelling.
        assert_eq!(rope(older.clone(), newer.clone(), Value::Null), (linear(10000.0), 1));
        assert_eq!(rope(older.clone(), newer.clone(), json!(7.0)), (linear(7.0), 1));
        assert_eq!(rope(Value::Null, newer.clone(), json!(7.0)), (plain(5.0), 0));
        // An empty object says nothing; one that says `default` does.
        assert_eq!(rope(json!({}), newer.clone(), Value::Null), (plain(5.0), 0));
        assert_eq!(rope(json!({ "rope_type": "default" }), older.clone(), Value::Null), (plain(10000.0), 1));
        // Spellings that agree are no reason to say anything.
        assert_eq!(rope(older.clone(), older.clone(), json!(7.0)), (linear(7.0), 0));
        assert_eq!(rope(older, json!({ "rope_type": "yarn" }), Value::Null), (linear(10000.0), 1));
    }
}
