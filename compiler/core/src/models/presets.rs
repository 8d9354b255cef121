//! Models without a directory: those of the comparisons, and a small one for training from scratch.

use super::attend::Scores;
use super::config::ModelConfig;
use super::decoder_config::DecoderConfig;
use super::error::ModelError;
use super::families::Family;
use super::gpt2_config::Gpt2Config;
use super::heads::Head;
use super::interleaved_config::InterleavedConfig;
use super::layers::Activation;
use super::mlp::Mlp;
use super::norm::{Center, NormOrder, QkNorm};
use super::rope::RopeConfig;
use burn::tensor::Device;

/// The names that [`named`] accepts.
pub const NAMES: [&str; 3] = ["llama", "gpt", "gpt-learned"];

/// The comparisons' MLP, 1024 to 4096 to 1024.
pub fn mlp(device: &Device) -> Mlp {
    Mlp::new(1024, 4096, device)
}

/// The comparisons' Llama: 4 layers, width 512, 8 heads, vocabulary 8192, sequences of 256 (in batches of 4).
pub fn llama() -> ModelConfig {
    ModelConfig::Interleaved(InterleavedConfig {
        dim: 512,
        n_layers: 4,
        n_heads: 8,
        n_kv_heads: 8,
        ffn: 1408,
        vocab: 8192,
        seq: 256,
        eps: 1e-5,
        theta: 10000.0,
        initializer_range: 0.02,
    })
}

/// The style of a [`SmallGpt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GptStyle {
    /// Rotary positions, RMS norms, SwiGLU, no biases, as in Llama.
    Rotary,
    /// Learned positions, layer norms, GELU, biases, as in GPT-2.
    Learned,
}

/// A small decoder with norms before each part; it is saved as an ordinary Llama or GPT-2 directory.
#[derive(Debug, Clone, PartialEq)]
pub struct SmallGpt {
    /// The style.
    pub style: GptStyle,
    /// Number of rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream, a multiple of twice the heads.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key-value heads (rotary style only).
    pub kv_heads: usize,
    /// Longest sequence.
    pub seq: usize,
    /// Whether the output weights are tied to the embedding.
    pub tied: bool,
}

impl Default for SmallGpt {
    fn default() -> Self {
        Self {
            style: GptStyle::Rotary,
            vocab: 256,
            width: 192,
            layers: 6,
            heads: 6,
            kv_heads: 6,
            seq: 256,
            tied: false,
        }
    }
}

impl SmallGpt {
    /// The configuration, or an error if the sizes do not fit together.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let Self { width, heads, .. } = *self;
        if heads == 0 || width % (2 * heads) != 0 {
            return Err(ModelError::Inconsistent {
                file: "preset".into(),
                problem: format!("width = {width} is not a multiple of twice heads = {heads}"),
            });
        }
        let config = match self.style {
            GptStyle::Rotary => ModelConfig::Decoder(DecoderConfig {
                family: Family::Llama,
                head: Head::CausalLm,
                vocab_size: self.vocab,
                hidden_size: self.width,
                // SwiGLU with 8/3 of the width, rounded to a multiple of 64.
                intermediate_size: (self.width * 8 / 3).next_multiple_of(64),
                num_hidden_layers: self.layers,
                num_attention_heads: self.heads,
                num_key_value_heads: self.kv_heads,
                head_dim: width / heads,
                max_position_embeddings: self.seq,
                rms_norm_eps: 1e-5,
                norms: NormOrder::Before,
                center: Center::One,
                qk_norm: QkNorm::None,
                rope: RopeConfig::plain(10000.0),
                local_rope: None,
                scores: Scores { scale: ((width / heads) as f64).powf(-0.5), cap: None },
                logit_cap: None,
                embedding_scale: None,
                tie_word_embeddings: self.tied,
                padding_idx: None,
                qkv_bias: false,
                output_bias: false,
                mlp_bias: false,
                windows: vec![None; self.layers],
                activation: Activation::Silu,
                initializer_range: 0.02,
                dropout: 0.0,
            }),
            GptStyle::Learned => ModelConfig::Gpt2(Gpt2Config {
                head: Head::CausalLm,
                pad_token_id: None,
                vocab_size: self.vocab,
                n_positions: self.seq,
                n_embd: self.width,
                n_layer: self.layers,
                n_head: self.heads,
                n_inner: 4 * self.width,
                layer_norm_epsilon: 1e-5,
                activation: Activation::GeluTanh,
                scale_attn_weights: true,
                scale_attn_by_inverse_layer_idx: false,
                tie_word_embeddings: self.tied,
                initializer_range: 0.02,
                dropout: 0.0,
            }),
        };
        config.validate()?;
        Ok(config)
    }
}

/// A preset by name: `llama` (of the comparisons), `gpt` and `gpt-learned` ([`SmallGpt`] with its default sizes). The
/// MLP of the comparisons takes no tokens; [`mlp`] builds it.
pub fn named(name: &str) -> Result<ModelConfig, ModelError> {
    match name {
        "llama" => Ok(llama()),
        "gpt" => SmallGpt::default().config(),
        "gpt-learned" => SmallGpt { style: GptStyle::Learned, tied: true, ..SmallGpt::default() }.config(),
        _ => Err(ModelError::UnknownPreset { found: name.into(), known: NAMES.to_vec() }),
    }
}
