//! Scaled dot-product attention in plain operations, through which every family comes.

use super::cache::Cache;
use super::mask::Mask;
use super::rope::RopeTables;
use burn::tensor::{Tensor, activation};

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

/// Attention of `query [b, s, h, hd]` over `key` and `value` `[b, s, kv, hd]`, merged to `[b, s, h·hd]`. Queries and keys are
/// rotated first.
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
