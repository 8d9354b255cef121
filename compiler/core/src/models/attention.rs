//! Scaled dot-product attention in plain operations, and the module that most families share.

use super::cache::Cache;
use super::decoder_config::{DecoderConfig, QkNorm};
use super::layers::linear;
use super::mask::Mask;
use super::norm::RmsNorm;
use super::rope::RopeTables;
use super::scope;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, activation};

/// The parts of a call that attention needs in addition to its input: the positions of the tokens, and the keys that
/// they may see.
#[derive(Debug, Clone)]
pub struct Context {
    /// The rotation of the call's positions; `None` in models that learn their positions.
    pub rope: Option<RopeTables>,
    /// The keys that queries must not see; `None` if they see all keys.
    pub mask: Option<Mask>,
    /// The keys and values of earlier tokens, if the call does not read whole sequences.
    pub cache: Option<Cache>,
}

/// How scores are computed from queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// Factor of the products.
    pub scale: f64,
    /// The bound that scaled products approach, `cap · tanh(x / cap)`.
    pub cap: Option<f64>,
}

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

/// Splits the last dimension into heads: `[b, s, heads·hd]` to `[b, s, heads, hd]`.
pub fn split_heads(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, seq, width] = x.dims();
    x.reshape([batch, seq, heads, width / heads])
}

/// Repeats each of the `kv` heads of `[b, kv, s, hd]` consecutively, to `heads` heads.
pub fn repeat_heads(x: Tensor<4>, heads: usize) -> Tensor<4> {
    let [batch, kv, seq, head_dim] = x.dims();
    if kv == heads {
        return x;
    }
    x.unsqueeze_dim::<5>(2).expand([batch, kv, heads / kv, seq, head_dim]).reshape([batch, heads, seq, head_dim])
}

/// Attention of `query [b, s, h, hd]` over `key` and `value` `[b, s, kv, hd]`, merged to `[b, s, h·hd]`. Queries and
/// keys are rotated first. Every family uses this function.
pub fn attend(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, scores: Scores, at: &Context) -> Tensor<3> {
    let [batch, seq, heads, head_dim] = query.dims();
    let rotate = |x: Tensor<4>| match &at.rope {
        Some(rope) => rope.apply(x),
        None => x,
    };
    let (query, key) = (rotate(query), rotate(key));
    let (key, value) = match &at.cache {
        Some(cache) => cache.extend(key, value),
        None => (key, value),
    };
    let query = query.swap_dims(1, 2);
    // Keys and values are [b, kv, s, hd] here, before heads are repeated.
    let key = repeat_heads(key.swap_dims(1, 2), heads);
    let value = repeat_heads(value.swap_dims(1, 2), heads);
    let mut products = query.matmul(key.swap_dims(2, 3)) * scores.scale;
    if let Some(cap) = scores.cap {
        products = soft_cap(products, cap);
    }
    if let Some(mask) = &at.mask {
        products = mask.apply(products);
    }
    activation::softmax(products, 3).matmul(value).swap_dims(1, 2).reshape([batch, seq, heads * head_dim])
}

/// `cap · tanh(x / cap)`: close to `x` for small values, and never beyond the cap.
pub fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    (x / cap).tanh() * cap
}
