//! The part of its sequences that a forward pass reads.

use super::attend::Context;
use super::cache::Cache;
use super::mask::mask;
use super::rope::{RopeConfig, RopePairs, RopeTables};
use burn::tensor::{Device, Int, Tensor};

/// Documents that share the rows of a batch: a token only sees its own document.
#[derive(Debug, Clone)]
pub struct Documents {
    /// The number of each token's document, `[b, s]`: equal for tokens of one document, and different for other
    /// documents in the row.
    pub numbers: Tensor<2, Int>,
    /// The position of each token in its document, `[b, s]`.
    pub positions: Tensor<2, Int>,
}

/// The part of its sequences that a forward pass reads.
#[derive(Debug, Clone)]
pub enum Span {
    /// Whole sequences.
    Whole {
        /// 1 for tokens and 0 for padding, `[b, s]`; `None` for no padding.
        attention_mask: Option<Tensor<2, Int>>,
        /// The documents that share rows; `None` if each row is one sequence, from position 0.
        documents: Option<Documents>,
    },
    /// The tokens after those in a cache.
    Next(Cache),
}

impl Span {
    /// Whole sequences.
    pub fn whole(attention_mask: Option<Tensor<2, Int>>) -> Self {
        Span::Whole { attention_mask, documents: None }
    }

    /// The position of each token, if it differs from its index in the row.
    fn positions(&self) -> Option<Tensor<2, Int>> {
        match self {
            Span::Whole { documents, .. } => documents.as_ref().map(|documents| documents.positions.clone()),
            Span::Next(cache) => Some(cache.positions()),
        }
    }

    /// The context of a causal attention for `seq` tokens: their rotation if there is one, and the masked keys; at most
    /// `window` keys are visible.
    pub fn context(&self, seq: usize, rope: Option<RopeTables>, window: Option<usize>, device: &Device) -> Context {
        match self {
            Span::Whole { attention_mask, documents } => {
                let numbers = documents.as_ref().map(|documents| documents.numbers.clone());
                Context { rope, mask: mask(seq, true, window, attention_mask.clone(), numbers, device), cache: None }
            }
            Span::Next(cache) => Context { rope, mask: Some(cache.mask(window)), cache: Some(cache.clone()) },
        }
    }

    /// The rotation of `seq` tokens.
    pub fn rope(
        &self,
        config: &RopeConfig,
        pairs: RopePairs,
        seq: usize,
        head_dim: usize,
        device: &Device,
    ) -> RopeTables {
        let all = match self {
            Span::Whole { .. } => seq,
            Span::Next(cache) => cache.slots(),
        };
        let tables = RopeTables::new(config, pairs, all, head_dim, device);
        match self.positions() {
            Some(positions) => tables.at(positions),
            None => tables,
        }
    }

    /// The rows of a table of learned positions for `seq` tokens, `[1 or b, seq, d]`.
    pub fn rows(&self, table: Tensor<2>, seq: usize) -> Tensor<3> {
        let Some(positions) = self.positions() else { return table.narrow(0, 0, seq).unsqueeze::<3>() };
        let ([batch, _], [_, width]) = (positions.dims(), table.dims());
        table.select(0, positions.reshape([batch * seq])).reshape([batch, seq, width])
    }

    /// The hidden states `[b, s, d]` whose logits are needed: all for whole sequences, the last for next tokens.
    pub fn wanted(&self, hidden: Tensor<3>) -> Tensor<3> {
        let [_, seq, _] = hidden.dims();
        match self {
            Span::Whole { .. } => hidden,
            Span::Next(_) => hidden.narrow(1, seq - 1, 1),
        }
    }
}
