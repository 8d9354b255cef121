//! Which part of its sequences a forward pass reads.

use super::attention::Context;
use super::cache::Cache;
use super::mask::mask;
use super::rope::{RopeConfig, RopePairs, RopeTables};
use burn::tensor::{Device, Int, Tensor};

/// Which part of its sequences a forward pass reads.
#[derive(Debug, Clone)]
pub enum Span {
    /// All of them, from position 0: `attention_mask [b, s]` is 1 for tokens and 0 for padding, `None` for no padding.
    Whole {
        /// The padding.
        attention_mask: Option<Tensor<2, Int>>,
    },
    /// The tokens that follow those in a cache.
    Next(Cache),
}

impl Span {
    /// Whole sequences.
    pub fn whole(attention_mask: Option<Tensor<2, Int>>) -> Self {
        Span::Whole { attention_mask }
    }

    /// What a causal attention knows of `seq` tokens: their rotation if there is one, and the keys that they must not see, at
    /// most `window` of which they do.
    pub fn context(&self, seq: usize, rope: Option<RopeTables>, window: Option<usize>, device: &Device) -> Context {
        match self {
            Span::Whole { attention_mask } => {
                Context { rope, mask: mask(seq, true, window, attention_mask.clone(), device), cache: None }
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
        match self {
            Span::Whole { .. } => RopeTables::new(config, pairs, seq, head_dim, device),
            Span::Next(cache) => RopeTables::new(config, pairs, cache.slots(), head_dim, device).at(cache.positions()),
        }
    }

    /// The rows of a table of learned positions for `seq` tokens, `[1 or b, seq, d]`.
    pub fn rows(&self, table: Tensor<2>, seq: usize) -> Tensor<3> {
        match self {
            Span::Whole { .. } => table.narrow(0, 0, seq).unsqueeze::<3>(),
            Span::Next(cache) => {
                let positions = cache.positions();
                let [batch, _] = positions.dims();
                let [_, width] = table.dims();
                table.select(0, positions.reshape([batch * seq])).reshape([batch, seq, width])
            }
        }
    }

    /// The hidden states `[b, s, d]` that logits are wanted for: of whole sequences all, of the next tokens the last.
    pub fn wanted(&self, hidden: Tensor<3>) -> Tensor<3> {
        let [_, seq, _] = hidden.dims();
        match self {
            Span::Whole { .. } => hidden,
            Span::Next(_) => hidden.narrow(1, seq - 1, 1),
        }
    }
}
