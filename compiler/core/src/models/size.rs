//! Lower bounds on a model's memory, checked before anything is allocated.
//!
//! The sizes in a configuration are at most 2^31, and the blocks of a configuration in memory are few, so 128 bits hold
//! every product of them. The batch of a command may be any number, so its products are checked for overflow.

use super::config::ModelConfig;
use super::error::{ADDRESSABLE, ModelError};
use super::room::{LAYER_BYTES, enough};

/// Bytes per element of the rotary tables, cosine and sine in f32, which both the recording and the program hold.
const TABLE_BYTES: u128 = 2 * 4 * 2;

/// The use of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It is compiled and printed: only shapes and constants are in memory.
    Plan,
    /// It is executed, with this many of all ranks on this host.
    Execute {
        /// Number of ranks on this host.
        here: usize,
        /// Total number of ranks.
        ranks: usize,
        /// Number of tensors of a parameter's size per parameter: the parameter and the optimizer's states.
        copies: usize,
    },
}

impl ModelConfig {
    /// An error if a program for a batch `[batch, seq]` is impossible: its sizes exceed the address space, or its
    /// minimum memory exceeds the available memory.
    ///
    /// # Errors
    /// The needed and the available memory.
    pub fn check_memory(&self, [batch, seq]: [usize; 2], plan: Use) -> Result<(), ModelError> {
        let sizes = Sizes::of(self);
        let name = self.model_type();
        let parameters = 4 * sizes.parameters();
        let what = format!("{name} of {} parameters", sizes.parameters());
        addressable(&what, parameters * 4)?;
        let what = format!("{name} on batches of {batch} x {seq} tokens");
        let tokens = batch as u128 * seq as u128;
        // Scores are the only values whose size grows with the square of a length.
        let value = (tokens.checked_mul(sizes.widest.max(sizes.heads.saturating_mul(seq as u128))))
            .and_then(|elements| elements.checked_mul(8 * sizes.layers));
        addressable(&what, value.unwrap_or(u128::MAX))?;
        let tables = TABLE_BYTES * sizes.table * seq as u128;
        match plan {
            Use::Plan => enough(what, LAYER_BYTES * sizes.layers + tables),
            Use::Execute { here, ranks, copies } => {
                let share = |bytes: u128| bytes * here as u128 / ranks.max(1) as u128;
                let held = share(parameters * copies as u128);
                let whole = format!("{name} of {} parameters", sizes.parameters());
                enough(whole, held)?;
                // Token numbers are 8-byte integers; logits are 4-byte floats that leave the program.
                enough(what, held + tables + share(tokens * 2 * 8 + tokens * sizes.vocab * 4))
            }
        }
    }
}

fn addressable(what: &str, needed: u128) -> Result<(), ModelError> {
    match needed <= ADDRESSABLE {
        true => Ok(()),
        false => Err(ModelError::Unaddressable { what: what.into(), needed }),
    }
}

/// The sizes that memory depends on.
struct Sizes {
    layers: u128,
    heads: u128,
    vocab: u128,
    hidden: u128,
    /// Number of elements in a block's matrices.
    block: u128,
    /// Number of rows of all embeddings and of the head, each of the hidden width.
    rows: u128,
    /// The width of a token's widest value.
    widest: u128,
    /// The width of the rotary tables.
    table: u128,
}

impl Sizes {
    fn of(config: &ModelConfig) -> Self {
        let wide = |x: usize| x as u128;
        let head = |tied: bool| if tied { 1 } else { 2 };
        match config {
            ModelConfig::Decoder(c) => {
                let (hidden, inner, vocab) = (wide(c.hidden_size), wide(c.intermediate_size), wide(c.vocab_size));
                let queries = wide(c.num_attention_heads) * wide(c.head_dim);
                let keys = wide(c.num_key_value_heads) * wide(c.head_dim);
                Self {
                    layers: wide(c.num_hidden_layers),
                    heads: wide(c.num_attention_heads),
                    vocab,
                    hidden,
                    block: hidden * (2 * queries + 2 * keys + 3 * inner),
                    rows: vocab * head(c.tie_word_embeddings),
                    widest: hidden.max(inner).max(vocab).max(queries),
                    table: wide(c.head_dim),
                }
            }
            ModelConfig::Gpt2(c) => {
                let (hidden, inner, vocab) = (wide(c.n_embd), wide(c.n_inner), wide(c.vocab_size));
                Self {
                    layers: wide(c.n_layer),
                    heads: wide(c.n_head),
                    vocab,
                    hidden,
                    block: hidden * (4 * hidden + 2 * inner),
                    rows: vocab * head(c.tie_word_embeddings) + wide(c.n_positions),
                    widest: (3 * hidden).max(inner).max(vocab),
                    table: 0,
                }
            }
            ModelConfig::Bert(c) => {
                let (hidden, inner, vocab) = (wide(c.hidden_size), wide(c.intermediate_size), wide(c.vocab_size));
                Self {
                    layers: wide(c.num_hidden_layers),
                    heads: wide(c.num_attention_heads),
                    vocab,
                    hidden,
                    block: hidden * (4 * hidden + 2 * inner),
                    rows: vocab * head(c.tie_word_embeddings)
                        + wide(c.max_position_embeddings)
                        + wide(c.type_vocab_size)
                        + hidden,
                    widest: hidden.max(inner).max(vocab),
                    table: 0,
                }
            }
            ModelConfig::Interleaved(c) => {
                let (hidden, inner, vocab) = (wide(c.dim), wide(c.ffn), wide(c.vocab));
                let head_dim = hidden / wide(c.n_heads).max(1);
                Self {
                    layers: wide(c.n_layers),
                    heads: wide(c.n_heads),
                    vocab,
                    hidden,
                    block: hidden * (2 * hidden + 2 * wide(c.n_kv_heads) * head_dim + 3 * inner),
                    rows: 2 * vocab,
                    widest: hidden.max(inner).max(vocab),
                    table: head_dim,
                }
            }
        }
    }

    /// Number of elements in all matrices, without norms and biases.
    fn parameters(&self) -> u128 {
        self.layers * self.block + self.rows * self.hidden
    }
}
