//! The text: its tokenizer, and batches of its tokens.

use burn::tensor::{Device, Int, Tensor, TensorData};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tpc::prelude::*;
use tpc_data::tokenizer::train;
use tpc_data::{Corpus, Format, LossOn, Objective, Packing, Recipe, Split, Stream, Tokenizer, piece};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/kjv-new-testament.txt");
/// Number of sequences in a batch, and of tokens in each.
pub const BATCH: usize = 8;
pub const SEQ: usize = 128;
/// Size of the vocabulary.
const VOCABULARY: usize = 2048;
/// The held-out share of the text.
const HELD_OUT: f64 = 0.05;
/// The seed of all random numbers.
pub const SEED: u64 = 1;

/// Sequences of tokens.
#[derive(Batch, Clone, Debug)]
pub struct Tokens {
    /// `[batch, sequence]`.
    pub ids: Tensor<2, Int>,
    /// The same tokens, with [`tpc::models::IGNORE`] for padding; the model shifts them itself.
    pub labels: Tensor<2, Int>,
}

impl From<tpc_data::Batch> for Tokens {
    fn from(batch: tpc_data::Batch) -> Self {
        let tensor = |numbers| Tensor::from_data(TensorData::new(numbers, [batch.rows, batch.seq]), &Device::flex());
        Tokens { ids: tensor(batch.input_ids), labels: tensor(batch.labels) }
    }
}

/// A text to train on, except for a held-out part.
pub struct Text {
    pub tokenizer: Arc<Tokenizer>,
    training: Recipe,
}

impl Text {
    /// Trains a tokenizer on the text and writes it into a directory.
    pub fn new(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let (corpus, begin) = (Corpus::open(&[FILE.into()], &Format::ByName, piece(SEQ))?, Instant::now());
        train(&corpus, VOCABULARY, &[], false)?.save(dir)?;
        let tokenizer = Arc::new(Tokenizer::of_dir(dir, 0)?.ok_or("the tokenizer was not written")?);
        println!(
            "a tokenizer of {} tokens, trained on {} bytes of text in {:.1} s",
            tokenizer.size(),
            corpus.bytes(),
            begin.elapsed().as_secs_f64()
        );
        let training = Recipe {
            corpus: Arc::new(corpus),
            tokenizer: tokenizer.clone(),
            split: Split::But(HELD_OUT),
            seq: SEQ,
            packing: Packing::Packed,
            objective: Objective::Next,
            loss: LossOn::All,
            table: tokenizer.size(),
            seed: SEED,
            now: 0,
            shuffled: true,
        };
        Ok(Text { tokenizer, training })
    }

    /// Training batches without end, which are the same for every run.
    pub fn batches(&self) -> Result<Stream, Box<dyn Error>> {
        Ok(Stream::start(self.training.clone(), None, None)?)
    }

    /// All batches of the held-out text.
    pub fn held_out(&self) -> Result<Vec<Tokens>, Box<dyn Error>> {
        let recipe = Recipe { split: Split::Only(HELD_OUT), shuffled: false, ..self.training.clone() };
        let (mut stream, mut batches) = (Stream::start(recipe, None, Some(1))?, Vec::new());
        while let Some(batch) = stream.next(BATCH)? {
            batches.push(batch);
        }
        // A partial last batch would count as much as the others, so it is left out.
        batches.retain(|batch| batch.tokens == BATCH * SEQ);
        Ok(batches.into_iter().map(Tokens::from).collect())
    }
}
