//! Random models: every family, with odd and prime sizes, few and many heads.

use super::dice::Dice;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use tpc_compiler::models::{INTERLEAVED, ModelConfig};

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `llama`
    Llama,
    /// `mistral`
    Mistral,
    /// `qwen2`
    Qwen2,
    /// `qwen3`
    Qwen3,
    /// `gpt2`
    Gpt2,
    /// `bert`
    Bert,
    /// The Llama repository's model, with interleaved rotary pairs.
    Interleaved,
}

/// How the frequencies of rotary embeddings are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rope {
    /// As they are.
    Default,
    /// By a factor.
    Linear,
    /// As in Llama 3.
    Llama3,
}

/// The sizes and switches of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The family.
    pub family: Family,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the residual stream; `heads · head_dim` in the families that do not choose it freely.
    pub width: usize,
    /// Width of the MLP.
    pub inner: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Learned positions.
    pub positions: usize,
    /// Whether the output weights are the embedding's.
    pub tied: bool,
    /// Biases where they are a choice.
    pub biases: bool,
    /// The sliding window of attention.
    pub window: Option<usize>,
    /// Scaling of rotary embeddings.
    pub rope: Rope,
    /// The activation of the MLP.
    pub activation: String,
}

impl Family {
    const ALL: [Family; 7] =
        [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3, Family::Gpt2, Family::Bert, Family::Interleaved];

    /// Whether positions are rotations, which need heads of an even width.
    pub fn is_rotary(self) -> bool {
        !matches!(self, Family::Gpt2 | Family::Bert)
    }

    /// Whether this is a decoder family that uses Hugging Face's llama names.
    fn is_llama(self) -> bool {
        matches!(self, Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3)
    }
}

/// The largest number of tokens in a sequence.
pub const LONGEST: usize = 12;

impl Model {
    /// Draws a model.
    pub fn draw(dice: &mut Dice) -> Self {
        let family = dice.pick(&Family::ALL);
        let heads = dice.between(1, 8);
        let divisors: Vec<usize> = (1..=heads).filter(|n| heads.is_multiple_of(*n)).collect();
        let grouped = family.is_rotary();
        let kv_heads = if grouped { dice.pick(&divisors) } else { heads };
        let head_dim = if family.is_rotary() { dice.pick(&[2, 2, 4, 4, 6, 8]) } else { dice.between(1, 6) };
        let mut model = Model {
            family,
            layers: dice.pick(&[1, 1, 2, 2, 2, 3]),
            heads,
            kv_heads,
            head_dim,
            width: if dice.percent(50) { heads * head_dim } else { dice.between(2, 24) },
            inner: dice.between(1, 32),
            vocab: dice.between(2, 40),
            positions: dice.between(LONGEST, LONGEST + 5),
            tied: dice.percent(40),
            biases: dice.percent(40),
            window: dice.percent(30).then(|| dice.between(1, 6)),
            rope: dice.pick(&[Rope::Default, Rope::Default, Rope::Linear, Rope::Llama3]),
            activation: dice.pick(&["silu", "gelu", "gelu_new", "relu"]).into(),
        };
        model.settle();
        model
    }

    /// Adjusts the sizes and switches that depend on others.
    fn settle(&mut self) {
        if !self.family.is_rotary() {
            self.kv_heads = self.heads;
            self.rope = Rope::Default;
        } else if self.head_dim % 2 == 1 {
            self.head_dim += 1;
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            self.kv_heads = 1;
        }
        if !self.family.is_llama() {
            // A norm over a single element maps everything to the same value.
            if self.heads * self.head_dim < 2 {
                self.head_dim = 2;
            }
            self.width = self.heads * self.head_dim;
        }
        match self.family {
            Family::Mistral | Family::Qwen2 | Family::Qwen3 => {}
            _ => self.window = None,
        }
        if !matches!(self.family, Family::Llama | Family::Qwen3) {
            self.biases = false;
        }
        if self.family == Family::Interleaved {
            (self.tied, self.rope) = (false, Rope::Default);
            self.activation = "silu".into();
        }
    }

    /// The model's `config.json`.
    pub fn json(&self) -> Value {
        match self.family {
            Family::Gpt2 => json!({
                "model_type": "gpt2", "vocab_size": self.vocab, "n_positions": self.positions, "n_embd": self.width,
                "n_layer": self.layers, "n_head": self.heads, "n_inner": self.inner, "layer_norm_epsilon": 1e-5,
                "activation_function": self.activation, "tie_word_embeddings": self.tied,
            }),
            Family::Bert => json!({
                "model_type": "bert", "vocab_size": self.vocab, "max_position_embeddings": self.positions,
                "hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "intermediate_size": self.inner, "hidden_act": self.activation, "type_vocab_size": 2,
                "layer_norm_eps": 1e-5, "tie_word_embeddings": self.tied,
            }),
            Family::Interleaved => json!({
                "model_type": INTERLEAVED, "dim": self.width, "n_layers": self.layers, "n_heads": self.heads,
                "n_kv_heads": self.kv_heads, "ffn": self.inner, "vocab": self.vocab, "seq": LONGEST, "eps": 1e-5,
            }),
            _ => self.llama(),
        }
    }

    fn llama(&self) -> Value {
        let name = match self.family {
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            _ => "llama",
        };
        let mut value = json!({
            "model_type": name, "hidden_size": self.width, "intermediate_size": self.inner,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "num_hidden_layers": self.layers, "vocab_size": self.vocab, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "hidden_act": self.activation, "tie_word_embeddings": self.tied,
            "rope_theta": 10000.0,
        });
        match self.rope {
            Rope::Default => {}
            Rope::Linear => value["rope_scaling"] = json!({ "rope_type": "linear", "factor": 2.0 }),
            Rope::Llama3 => {
                value["rope_scaling"] = json!({
                    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                });
            }
        }
        match self.family {
            Family::Llama => {
                value["attention_bias"] = json!(self.biases);
                value["mlp_bias"] = json!(self.biases);
            }
            Family::Mistral => value["sliding_window"] = json!(self.window),
            Family::Qwen2 | Family::Qwen3 => {
                value["use_sliding_window"] = json!(self.window.is_some());
                value["sliding_window"] = json!(self.window);
                value["max_window_layers"] = json!(self.layers / 2);
                if self.family == Family::Qwen3 {
                    value["attention_bias"] = json!(self.biases);
                }
            }
            _ => {}
        }
        value
    }

    /// The parsed configuration.
    ///
    /// # Errors
    /// If the configuration is rejected.
    pub fn config(&self) -> Result<ModelConfig, String> {
        ModelConfig::from_json(&self.json(), Path::new("config.json")).map_err(|e| e.to_string())
    }

    /// Simpler models, the simplest first.
    pub fn simpler(&self) -> Vec<Model> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Model)| {
            let mut model = self.clone();
            change(&mut model);
            model.settle();
            if model != *self {
                all.push(model);
            }
        };
        with(&|m| m.layers = 1);
        with(&|m| m.layers = (m.layers - 1).max(1));
        with(&|m| m.tied = false);
        with(&|m| m.biases = false);
        with(&|m| m.window = None);
        with(&|m| m.rope = Rope::Default);
        with(&|m| m.activation = "silu".into());
        with(&|m| m.kv_heads = m.heads);
        with(&|m| m.kv_heads = 1);
        for heads in [1, 2, self.heads / 2, self.heads - 1] {
            if heads > 0 && heads < self.heads {
                with(&|m| (m.heads, m.kv_heads) = (heads, m.kv_heads.min(heads)));
                with(&|m| (m.heads, m.kv_heads) = (heads, heads));
            }
        }
        with(&|m| m.head_dim = (m.head_dim / 2).max(1));
        with(&|m| m.width = m.heads * m.head_dim);
        with(&|m| m.width = (m.width / 2).max(2));
        with(&|m| m.inner = 1);
        with(&|m| m.inner = (m.inner / 2).max(1));
        with(&|m| m.vocab = 2);
        with(&|m| m.vocab = (m.vocab / 2).max(2));
        with(&|m| m.positions = LONGEST);
        all
    }
}
