//! Losses with Hugging Face's conventions.

use super::scope;
use burn::tensor::{Int, Tensor, activation};

/// The label of positions that the loss ignores.
pub const IGNORE: i64 = -100;

/// Shifts labels one position to the left, as causal models do, and ignores the last position.
///
/// The labels are shifted instead of the logits, so that logits sharded over the vocabulary or the sequence stay in
/// place.
pub fn shift_labels(labels: Tensor<2, Int>) -> Tensor<2, Int> {
    let [batch, seq] = labels.dims();
    let last = Tensor::<2, Int>::full([batch, 1], IGNORE, &labels.device());
    if seq < 2 {
        return last;
    }
    Tensor::cat(vec![labels.narrow(1, 1, seq - 1), last], 1)
}

/// Mean cross entropy of `logits [b, s, v]` and `labels [b, s]`, over the labels other than [`IGNORE`].
///
/// The program counts the labels, because their number depends on the data. If every label is ignored, the mean is NaN,
/// as in Hugging Face's models. Labels other than [`IGNORE`] must be in `0..v`.
pub fn cross_entropy(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    let counted = labels.clone().not_equal_elem(IGNORE).float();
    let picked = labels.clamp_min(0).unsqueeze_dim::<3>(2);
    let largest = logits.clone().detach().max_dim(2);
    let shifted = logits - largest;
    let log_sum = shifted.clone().exp().sum_dim(2).log();
    let negative_log_likelihood = (log_sum - shifted.gather(2, picked)).squeeze_dim::<2>(2);
    (negative_log_likelihood * counted.clone()).sum() / counted.sum()
}

/// The loss of a causal language model: each position predicts the next label.
pub fn causal_lm(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    scope("loss", (logits, labels), |(logits, labels)| cross_entropy(logits, shift_labels(labels)))
}

/// The loss of a masked language model and of a classification: each position predicts its own label.
pub fn masked_lm(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    scope("loss", (logits, labels), |(logits, labels)| cross_entropy(logits, labels))
}

/// The regression loss: the mean of the squared differences between `output [b, 1, n]` and `values [b, n]`.
pub fn regression(output: Tensor<3>, values: Tensor<2>) -> Tensor<1> {
    mean_squared_error(output, values.unsqueeze_dim::<3>(1))
}

/// The multi-label loss: the mean binary cross entropy of `logits [b, 1, n]` and `values [b, n]` from 0 to 1.
pub fn multi_label(logits: Tensor<3>, values: Tensor<2>) -> Tensor<1> {
    scope("loss", (logits, values.unsqueeze_dim::<3>(1)), |(logits, values)| {
        // max(x, 0) - x y + log(1 + exp(-|x|)), which never overflows.
        let log = (logits.clone().abs().neg().exp() + 1.0).log();
        (activation::relu(logits.clone()) - logits * values + log).mean()
    })
}

/// The mean of the squared differences.
pub fn mean_squared_error<const D: usize>(output: Tensor<D>, target: Tensor<D>) -> Tensor<1> {
    scope("loss", (output, target), |(output, target)| (output - target).square().mean())
}
