//! Packs documents into rows of tokens.
//!
//! | packing | a row |
//! |---|---|
//! | packed | `seq` tokens from consecutive documents; a document continues in the next row. Only the last row of an epoch is shorter |
//! | apart | the same tokens, but a token only sees its own document |
//! | padded | one document, or a part of a document that is longer than a row |

use crate::encode::Token;
use crate::order::{Draws, Purpose};

/// How documents become rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Rows are full. Documents follow each other, and a token sees every token before it, including those of other
    /// documents.
    Packed,
    /// Rows are full. A token only sees its own document: documents are numbered within their row, positions restart
    /// with each document, and the first token of a document is not predicted.
    Apart,
    /// Each row is one document, followed by padding.
    Padded,
}

/// The training objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Predict each token from the tokens before it. The model shifts the labels itself.
    Next,
    /// Predict some tokens from all others, as in BERT (Devlin, Chang, Lee, Toutanova, 2019): of 15% of the tokens,
    /// eight in ten are replaced by the token `mask`, one by a random one, and one stays.
    Masked {
        /// The token that replaces others.
        mask: u32,
        /// The number of tokens that random replacements are drawn from.
        tokens: u32,
        /// Tokens that are never predicted: those around a text.
        special: [Option<u32>; 3],
    },
}

/// A row: at most `seq` tokens with their optional labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// The token to predict at each position, if any.
    pub labels: Vec<Option<u32>>,
}

/// Packs documents one after the other.
#[derive(Debug)]
pub(crate) struct Packer {
    seq: usize,
    packing: Packing,
    /// Tokens that wait for the rest of their row.
    pub(crate) carried: Vec<Token>,
}

impl Packer {
    pub(crate) fn new(seq: usize, packing: Packing, carried: Vec<Token>) -> Self {
        Packer { seq, packing, carried }
    }

    /// Adds a document, and appends the rows that it completes.
    pub(crate) fn push(&mut self, document: Vec<Token>, rows: &mut Vec<Vec<Token>>) {
        if self.packing == Packing::Padded {
            rows.extend(document.chunks(self.seq).map(<[Token]>::to_vec));
            return;
        }
        self.carried.extend(document);
        let full = self.carried.len() / self.seq * self.seq;
        let rest = self.carried.split_off(full);
        rows.extend(self.carried.chunks(self.seq).map(<[Token]>::to_vec));
        self.carried = rest;
    }

    /// The last row, which may be shorter.
    pub(crate) fn finish(&mut self, rows: &mut Vec<Vec<Token>>) {
        if !self.carried.is_empty() {
            rows.push(std::mem::take(&mut self.carried));
        }
    }
}

impl Row {
    /// A row with its labels; `None` if it has nothing to predict.
    pub(crate) fn new(tokens: Vec<Token>, packing: Packing, objective: Objective, draws: &mut Draws) -> Option<Self> {
        let mut row = Row { labels: tokens.iter().map(|t| t.counts.then_some(t.id)).collect(), tokens };
        match objective {
            Objective::Next => {
                // Nothing precedes the first token of a row or, if documents are apart, of a document.
                for (at, (token, label)) in row.tokens.iter().zip(&mut row.labels).enumerate() {
                    if at == 0 || packing == Packing::Apart && token.begins {
                        *label = None;
                    }
                }
            }
            Objective::Masked { mask, tokens, special } => row.mask(mask, tokens, special, draws),
        }
        row.labels.iter().any(Option::is_some).then_some(row)
    }

    fn mask(&mut self, mask: u32, tokens: u32, special: [Option<u32>; 3], draws: &mut Draws) {
        const OF: u64 = 1000;
        let guessed: Vec<usize> =
            (0..self.tokens.len()).filter(|&at| !special.contains(&Some(self.tokens[at].id))).collect();
        let mut chosen: Vec<usize> = guessed.iter().copied().filter(|_| draws.below(OF) < 150).collect();
        if chosen.is_empty() && !guessed.is_empty() {
            chosen.push(guessed[draws.below(guessed.len() as u64) as usize]);
        }
        self.labels.fill(None);
        for at in chosen {
            let token = &mut self.tokens[at];
            self.labels[at] = Some(token.id);
            match draws.below(10) {
                0..8 => token.id = mask,
                8 => token.id = draws.below(u64::from(tokens)) as u32,
                _ => {}
            }
        }
    }
}

/// The rows of a window, in order.
pub(crate) fn window(
    rows: Vec<Vec<Token>>,
    (packing, objective): (Packing, Objective),
    (seed, epoch, place): (u64, u64, u64),
    shuffled: bool,
) -> Vec<Row> {
    let mut masks = Draws::new(seed, Purpose::Masks, epoch, place);
    let mut rows: Vec<Row> =
        rows.into_iter().filter_map(|tokens| Row::new(tokens, packing, objective, &mut masks)).collect();
    if shuffled {
        Draws::new(seed, Purpose::Rows, epoch, place).shuffle(&mut rows);
    }
    rows
}
