//! Scaled dot-product attention in plain operations, and its masks.

use burn::tensor::{Bool, Device, Int, Tensor, activation};

/// What a masked score is set to: far below every real score, and still a number, so that a row with no visible key becomes uniform.
const MASKED: f64 = -1e30;

/// Builds the mask `[1 or batch, 1, 1 or seq, seq]`, true where a key must not be seen; `None` when every key may be seen.
///
/// The causal part is a comparison of two position vectors, never a stored matrix.
/// `window` limits a query to that many keys up to and including its own position.
/// `padding` is Hugging Face's `attention_mask`: 1 for a token, 0 for padding.
pub fn mask(
    seq: usize,
    causal: bool,
    window: Option<usize>,
    padding: Option<Tensor<2, Int>>,
    device: &Device,
) -> Option<Tensor<4, Bool>> {
    let mut result: Option<Tensor<4, Bool>> = None;
    if causal {
        let positions = Tensor::<1, Int>::arange(0..seq as i64, device);
        let keys = positions.clone().reshape([1, 1, 1, seq]);
        let queries = positions.reshape([1, 1, seq, 1]);
        let mut hidden = keys.clone().greater(queries.clone());
        if let Some(window) = window.filter(|window| *window < seq) {
            hidden = hidden.bool_or(keys.lower_equal(queries.sub_scalar(window as i64)));
        }
        result = Some(hidden);
    }
    if let Some(padding) = padding {
        let [batch, keys] = padding.dims();
        let padded = padding.equal_elem(0).reshape([batch, 1, 1, keys]);
        result = Some(match result {
            Some(hidden) => hidden.bool_or(padded),
            None => padded,
        });
    }
    result
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

/// Attention of `query [b, s, h, hd]` over `key` and `value` `[b, s, kv, hd]`, merged to `[b, s, h·hd]`.
pub fn attend(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    scale: f64,
    mask: Option<&Tensor<4, Bool>>,
) -> Tensor<3> {
    let [batch, seq, heads, head_dim] = query.dims();
    let query = query.swap_dims(1, 2);
    let key = repeat_heads(key.swap_dims(1, 2), heads);
    let value = repeat_heads(value.swap_dims(1, 2), heads);
    let mut scores = query.matmul(key.swap_dims(2, 3)) * scale;
    if let Some(mask) = mask {
        scores = scores.mask_fill(mask.clone(), MASKED);
    }
    activation::softmax(scores, 3).matmul(value).swap_dims(1, 2).reshape([batch, seq, heads * head_dim])
}
