//! Random batches of token sequences, with and without padding and token types.

use super::dice::Dice;
use super::model::{Family, LONGEST, Model};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tpc_compiler::pretrained::TokenBatch;

/// The attention mask of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// None.
    Absent,
    /// One that hides nothing.
    Ones,
    /// Padding after the tokens.
    Right,
    /// Padding before the tokens: in a causal model the padding rows see no key.
    Left,
    /// Holes anywhere except at the first token.
    Holes,
}

/// The shape of a batch, and which inputs it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Sequences.
    pub rows: usize,
    /// Tokens in each.
    pub seq: usize,
    /// The attention mask.
    pub mask: Mask,
    /// Whether tokens have types.
    pub types: bool,
    /// Whether there are labels.
    pub labels: bool,
}

impl Batch {
    /// Draws a batch for a model.
    pub fn draw(dice: &mut Dice, model: &Model, labels: bool) -> Self {
        let masks = [Mask::Absent, Mask::Ones, Mask::Right, Mask::Left, Mask::Holes];
        let mut batch = Batch {
            rows: dice.pick(&[1, 2, 3, 4, 4, 5]),
            seq: dice.between(2, LONGEST),
            mask: dice.pick(&masks),
            types: dice.percent(50),
            labels,
        };
        batch.settle(model);
        batch
    }

    /// Drops the inputs that the model does not have.
    pub fn settle(&mut self, model: &Model) {
        if model.family == Family::Interleaved {
            self.mask = Mask::Absent;
        }
        self.types &= model.family == Family::Bert;
    }

    /// The shape that the program is captured with.
    pub fn tokens(&self) -> TokenBatch {
        TokenBatch {
            batch: self.rows,
            seq: self.seq,
            attention_mask: self.mask != Mask::Absent,
            token_type_ids: self.types,
            documents: false,
        }
    }

    /// The tensors of the batch by name.
    pub fn tensors(&self, model: &Model, dice: &mut Dice) -> BTreeMap<&'static str, Vec<i64>> {
        let count = self.rows * self.seq;
        let mut all = BTreeMap::new();
        all.insert("input_ids", (0..count).map(|_| dice.below(model.vocab) as i64).collect());
        if self.labels {
            let mut labels: Vec<i64> =
                (0..count).map(|_| if dice.percent(25) { -100 } else { dice.below(model.vocab) as i64 }).collect();
            // At least one label counts; in a causal model the first label of a sequence does not.
            labels[count - 1] = dice.below(model.vocab) as i64;
            all.insert("labels", labels);
        }
        if self.mask != Mask::Absent {
            let mut mask = Vec::new();
            for _ in 0..self.rows {
                let length = dice.between(1, self.seq);
                mask.extend((0..self.seq).map(|at| match self.mask {
                    Mask::Absent | Mask::Ones => 1,
                    Mask::Right => i64::from(at < length),
                    Mask::Left => i64::from(at + length >= self.seq),
                    Mask::Holes => i64::from(at == 0 || !dice.percent(30)),
                }));
            }
            all.insert("attention_mask", mask);
        }
        if self.types {
            all.insert("token_type_ids", (0..count).map(|_| dice.below(2) as i64).collect());
        }
        all
    }

    /// Simpler batches, for shrinking.
    pub fn simpler(&self) -> Vec<Batch> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Batch)| {
            let mut batch = self.clone();
            change(&mut batch);
            if batch != *self {
                all.push(batch);
            }
        };
        with(&|b| b.mask = Mask::Absent);
        with(&|b| b.mask = Mask::Ones);
        with(&|b| b.types = false);
        with(&|b| b.rows = 1);
        with(&|b| b.rows = (b.rows / 2).max(1));
        with(&|b| b.seq = 2);
        with(&|b| b.seq = (b.seq / 2).max(2));
        all
    }
}
