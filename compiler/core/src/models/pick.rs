//! Selects the token by which a causal model classifies a sequence: the last one that is not padding.

use burn::tensor::{Int, Tensor};

/// 1 at the last token of each sequence of `ids [b, s]` that is not padding, 0 elsewhere: `[b, s, 1]`. A sequence of
/// padding only ends with its first token, as in transformers; without a padding token, a sequence ends with its last
/// token.
pub(super) fn ends(ids: Tensor<2, Int>, padding: Option<i64>) -> Tensor<3> {
    let [batch, seq] = ids.dims();
    let positions = Tensor::<1, Int>::arange(0..seq as i64, &ids.device()).reshape([1, seq]);
    let last = match padding {
        Some(padding) => (ids.not_equal_elem(padding).int() * positions.clone()).max_dim(1),
        None => Tensor::full([batch, 1], seq as i64 - 1, &ids.device()),
    };
    let shape = [batch, seq];
    positions.expand(shape).equal(last.expand(shape)).float().reshape([batch, seq, 1])
}

/// The scores `[b, s, n]` at the ends of the sequences: `[b, 1, n]`.
pub(super) fn pick(scores: Tensor<3>, ends: Tensor<3>) -> Tensor<3> {
    (scores * ends).sum_dim(1)
}
