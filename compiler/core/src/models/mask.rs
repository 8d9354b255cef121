//! Which keys a query must not see.

use burn::tensor::{Bool, Device, Int, Tensor};

/// What a masked score is set to: far below every real score, and still a number, so that a row with no visible key becomes uniform.
const MASKED: f64 = -1e30;

/// Which keys each query must not see.
#[derive(Debug, Clone)]
pub struct Mask {
    /// `[1 or batch, 1, 1 or seq, seq]`, true where a key must not be seen.
    hidden: Tensor<4, Bool>,
    /// Whether a query may see no key at all: the mask has to do with the data, not with positions alone.
    may_be_blind: bool,
}

impl Mask {
    /// A mask `[batch, 1, queries, keys]` of slots, true where a key must not be seen.
    pub(super) fn of_slots(hidden: Tensor<4, Bool>) -> Self {
        Mask { hidden, may_be_blind: false }
    }

    /// The scores `[batch, heads, seq, seq]` with those of hidden keys far below all others.
    ///
    /// A query that sees no key attends to all keys alike, and its scores have the gradient of that: transformers' eager attention adds
    /// the lowest number to hidden scores, which leaves nothing of them but passes their gradients on. Elsewhere a hidden
    /// key's weight is exactly 0, and so is its gradient.
    pub(super) fn apply(&self, scores: Tensor<4>) -> Tensor<4> {
        let hidden = self.hidden.clone();
        if !self.may_be_blind {
            return scores.mask_fill(hidden, MASKED);
        }
        // The difference is 0, and has the gradient.
        let values = scores.clone().detach();
        values.clone().mask_fill(hidden, MASKED) + (scores - values)
    }
}

/// Builds the mask; `None` when every key may be seen.
///
/// The causal part is a comparison of two position vectors, never a stored matrix.
/// `window` limits a query to that many keys up to and including its own position.
/// `padding` is Hugging Face's `attention_mask`: 1 for a token, 0 for padding.
/// `documents [batch, seq]` has equal numbers for tokens that may see each other.
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
