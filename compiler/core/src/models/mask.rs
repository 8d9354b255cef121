//! Masks of the keys that a query must not see.

use burn::tensor::{Bool, Device, Int, Tensor};

/// The value of masked scores: far below every real score, but finite, so that a row without visible keys becomes
/// uniform.
const MASKED: f64 = -1e30;

/// The keys that each query must not see.
#[derive(Debug, Clone)]
pub struct Mask {
    /// `[1 or batch, 1, 1 or seq, seq]`, true for masked keys.
    hidden: Tensor<4, Bool>,
    /// Whether a query may have no visible key: the mask depends on data, not only on positions.
    may_be_blind: bool,
}

impl Mask {
    /// A mask `[batch, 1, queries, keys]` of slots, true for masked keys.
    pub(super) fn of_slots(hidden: Tensor<4, Bool>) -> Self {
        Mask { hidden, may_be_blind: false }
    }

    /// Sets masked scores in `[batch, heads, seq, seq]` far below all others.
    ///
    /// A query without visible keys attends to all keys equally, and its scores have the corresponding gradient:
    /// transformers' eager attention adds the lowest number to masked scores, which erases their values but passes
    /// their gradients on. For all other queries a masked key has weight exactly 0 and gradient 0.
    pub(super) fn apply(&self, scores: Tensor<4>) -> Tensor<4> {
        let hidden = self.hidden.clone();
        if !self.may_be_blind {
            return scores.mask_fill(hidden, MASKED);
        }
        // The difference is 0, but has the gradient.
        let values = scores.clone().detach();
        values.clone().mask_fill(hidden, MASKED) + (scores - values)
    }
}

/// Builds the mask; `None` if every key is visible.
///
/// The causal part is a comparison of two position vectors, never a stored matrix. `window` limits a query to this many
/// keys up to and including its own position. `padding` is Hugging Face's `attention_mask`: 1 for a token, 0 for
/// padding. `documents [batch, seq]` has equal numbers for tokens that may see each other.
pub fn mask(
    seq: usize,
    causal: bool,
    window: Option<usize>,
    padding: Option<Tensor<2, Int>>,
    documents: Option<Tensor<2, Int>>,
    device: &Device,
) -> Option<Mask> {
    let may_be_blind = padding.is_some();
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
    if let Some(numbers) = documents {
        let [batch, seq] = numbers.dims();
        let own = numbers.clone().reshape([batch, 1, seq, 1]);
        let others = own.not_equal(numbers.reshape([batch, 1, 1, seq]));
        result = Some(match result {
            Some(hidden) => hidden.bool_or(others),
            None => others,
        });
    }
    result.map(|hidden| Mask { hidden, may_be_blind })
}
