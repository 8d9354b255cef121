//! The attention module that most families share.

use super::attend::{Context, Scores, attend, split_heads};
use super::decoder_config::DecoderConfig;
use super::layers::linear;
use super::norm::{QkNorm, RmsNorm};
use super::scope;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

/// Grouped-query attention with rotary embeddings.
#[derive(Module, Debug)]
pub struct Attention {
    /// The projection to queries, `[d, heads·hd]`.
    pub q_proj: Linear,
    /// The projection to keys, `[d, kv·hd]`.
    pub k_proj: Linear,
    /// The projection to values, `[d, kv·hd]`.
    pub v_proj: Linear,
    /// The output projection, `[heads·hd, d]`.
    pub o_proj: Linear,
    /// A norm of the queries, according to `qk_norm`.
    pub q_norm: Option<RmsNorm>,
    /// A norm of the keys.
    pub k_norm: Option<RmsNorm>,
    heads: usize,
    kv_heads: usize,
    #[module(skip)]
    qk_norm: QkNorm,
    #[module(skip)]
    scores: Scores,
}

impl Attention {
    /// Builds the module with lazily drawn weights.
    pub fn new(config: &DecoderConfig, device: &Device) -> Self {
        let (hidden, std) = (config.hidden_size, config.initializer_range);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (queries, keys) = (heads * config.head_dim, kv_heads * config.head_dim);
        let norm = |projection: usize| match config.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some(config.norm(config.head_dim, device)),
            QkNorm::Projection => Some(config.norm(projection, device)),
        };
        Self {
            q_proj: linear(hidden, queries, config.qkv_bias, std, device),
            k_proj: linear(hidden, keys, config.qkv_bias, std, device),
            v_proj: linear(hidden, keys, config.qkv_bias, std, device),
            o_proj: linear(queries, hidden, config.output_bias, std, device),
            q_norm: norm(queries),
            k_norm: norm(keys),
            heads,
            kv_heads,
            qk_norm: config.qk_norm,
            scores: config.scores,
        }
    }

    /// Self-attention of `x [b, s, d]`.
    pub fn forward(&self, x: Tensor<3>, at: &Context) -> Tensor<3> {
        let project = |projection: &Linear, norm: &Option<RmsNorm>, name: &str, heads: usize| {
            let projected = projection.forward(x.clone());
            let projected = match (norm, self.qk_norm) {
                (Some(norm), QkNorm::Projection) => scope(name, projected, |x| norm.forward(x)),
                _ => projected,
            };
            split_heads(projected, heads)
        };
        let each_head = |x: Tensor<4>, norm: &Option<RmsNorm>, name: &str| match (norm, self.qk_norm) {
            (Some(norm), QkNorm::Heads) => scope(name, x, |x| norm.forward(x)),
            _ => x,
        };
        let query = project(&self.q_proj, &self.q_norm, "q_norm", self.heads);
        let key = project(&self.k_proj, &self.k_norm, "k_norm", self.kv_heads);
        let value = project(&self.v_proj, &None, "", self.kv_heads);
        let query = each_head(query, &self.q_norm, "q_norm");
        let key = each_head(key, &self.k_norm, "k_norm");
        self.o_proj.forward(attend(query, key, value, self.scores, at))
    }
}
