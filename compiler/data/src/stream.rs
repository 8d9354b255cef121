//! Batches of a corpus, tokenized by a separate thread while the model works.
//!
//! Documents are taken in the order of the epoch until they have a certain amount of text: a window. Its rows are
//! shuffled, so that those of a long text are not consecutive. The thread is at most two windows ahead.

use crate::batch::Batch;
use crate::encode::{self, LossOn};
use crate::error::DataError;
use crate::order::{Beginning, Made, Position, Selection, Split};
use crate::pack::{self, Objective, Packer, Packing, Row};
use crate::source::Corpus;
use crate::tokenizer::Tokenizer;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What batches are made of, and how.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The documents.
    pub corpus: Arc<Corpus>,
    /// Their tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Which documents to read.
    pub split: Split,
    /// Number of tokens in a row.
    pub seq: usize,
    /// How documents become rows.
    pub packing: Packing,
    /// The training objective.
    pub objective: Objective,
    /// Which tokens count toward the loss.
    pub loss: LossOn,
    /// Number of rows of the model's embedding.
    pub table: usize,
    /// Seed of the order, of the held-out share and of masks.
    pub seed: u64,
    /// The current time for chat templates, in seconds since 1970.
    pub now: u64,
    /// Whether the order is random.
    pub shuffled: bool,
}

/// Minimum bytes of text in a window.
const WINDOW: u64 = 1 << 20;

/// Bytes of a piece of a plain text per token of a row: about 16 rows.
const PIECE: usize = 64;

/// The size of the pieces of a plain text in bytes, for rows with this many tokens.
pub fn piece(seq: usize) -> usize {
    seq.saturating_mul(PIECE)
}

impl Recipe {
    /// The data and options that positions in these batches belong to.
    pub fn made(&self) -> Made {
        let rows = format!("{:?}, {:?}, loss on {:?}", self.packing, self.objective, self.loss).to_lowercase();
        let share = match self.split {
            Split::All => 0.0,
            Split::But(share) | Split::Only(share) => share,
        };
        Made {
            data: format!("{:016x}", self.corpus.fingerprint()),
            tokenizer: format!("{:016x}", self.tokenizer.fingerprint()),
            now: self.now,
            seed: self.seed,
            seq: self.seq,
            rows,
            held_out: share,
        }
    }

    /// The number of rows in this many epochs; reads the documents. Tokenizes one epoch, or all of them if rows differ
    /// between epochs.
    ///
    /// # Errors
    /// A document that fails.
    pub fn count(&self, epochs: u64) -> Result<u64, DataError> {
        let is_same = self.packing == Packing::Padded || self.loss == LossOn::All;
        let read = if is_same { 1 } else { epochs };
        let mut windows = Windows::new(self, Beginning::default(), Some(read))?;
        let mut rows = 0;
        while let Some(window) = windows.next()? {
            rows += window.rows.len() as u64;
        }
        Ok(if is_same { rows * epochs } else { rows })
    }
}

/// Documents that are tokenized together.
#[derive(Debug)]
struct Window {
    beginning: Beginning,
    rows: VecDeque<Row>,
    /// Where the next window begins.
    after: Beginning,
}

/// The windows of a recipe, in sequence.
struct Windows<'a> {
    recipe: &'a Recipe,
    selection: Selection,
    next: Beginning,
    epochs: Option<u64>,
    /// Number of rows of this epoch so far, or since it was resumed.
    rows: u64,
    /// Whether the epoch was read from its beginning.
    is_whole: bool,
}

impl<'a> Windows<'a> {
    fn new(recipe: &'a Recipe, next: Beginning, epochs: Option<u64>) -> Result<Self, DataError> {
        let selection = Selection::new(&recipe.corpus, recipe.split, recipe.seed, recipe.shuffled)?;
        let is_whole = next.place == 0;
        Ok(Windows { recipe, selection, next, epochs, rows: 0, is_whole })
    }

    fn next(&mut self) -> Result<Option<Window>, DataError> {
        let Recipe { corpus, tokenizer, seq, packing, objective, loss, table, seed, shuffled, .. } = self.recipe;
        if self.epochs.is_some_and(|epochs| self.next.epoch >= epochs) {
            return Ok(None);
        }
        let beginning = self.next.clone();
        let unit_at = self.selection.epoch(beginning.epoch);
        let mut packer = Packer::new(*seq, *packing, beginning.carried.clone());
        let (mut place, mut bytes, mut rows) = (beginning.place, 0, Vec::new());
        while place < self.selection.len() && bytes < WINDOW {
            let unit = unit_at(place);
            let content = corpus.read(unit)?;
            let document = encode::document(tokenizer, &content, *loss, *table).map_err(|problem| {
                let (file, place) = corpus.place(unit);
                DataError::Document { file, place, problem }
            })?;
            packer.push(document, &mut rows);
            bytes += corpus.size(unit);
            place += 1;
        }
        let is_end = place == self.selection.len();
        if is_end {
            packer.finish(&mut rows);
        }
        let source = (*seed, beginning.epoch, beginning.place);
        let rows = pack::window(rows, (*packing, *objective), source, *shuffled);
        self.rows += rows.len() as u64;
        if is_end && self.is_whole && self.rows == 0 {
            let problem = match loss {
                LossOn::Answers => {
                    "no conversation has an answer within the first tokens of a row; --seq makes rows longer"
                }
                LossOn::All => "it has a single token",
            };
            return Err(DataError::NoLoss { file: corpus.first_file().into(), problem });
        }
        self.next = match is_end {
            true => Beginning { epoch: beginning.epoch + 1, ..Beginning::default() },
            false => Beginning { epoch: beginning.epoch, place, carried: packer.carried },
        };
        if is_end {
            (self.rows, self.is_whole) = (0, true);
        }
        Ok(Some(Window { beginning, rows: rows.into(), after: self.next.clone() }))
    }
}

/// A sequence of batches.
#[derive(Debug)]
pub struct Stream {
    made: Made,
    seq: usize,
    pad: u32,
    windows: Option<Receiver<Result<Window, DataError>>>,
    thread: Option<JoinHandle<()>>,
    window: Option<Window>,
    /// Number of finished rows of the window.
    done: u64,
    /// Where the next window begins.
    after: Beginning,
    waited: Duration,
}

impl Stream {
    /// The batches of a recipe from its beginning or from a position, up to the given total number of epochs, or
    /// without end.
    ///
    /// # Errors
    /// A position in other data, or a held-out share that leaves nothing.
    pub fn start(recipe: Recipe, from: Option<&Position>, epochs: Option<u64>) -> Result<Self, DataError> {
        let made = recipe.made();
        if let Some(position) = from {
            position.check(&made)?;
        }
        let (beginning, done) = from.map_or((Beginning::default(), 0), |p| (p.window.clone(), p.rows));
        // Errors in the options are reported here, not by the thread.
        Selection::new(&recipe.corpus, recipe.split, recipe.seed, recipe.shuffled)?;
        let (seq, pad) = (recipe.seq, recipe.tokenizer.pad());
        let (sender, windows) = sync_channel(1);
        let first = beginning.clone();
        let thread = thread::Builder::new()
            .name("tpc-data".into())
            .spawn(move || produce(&recipe, first, epochs, &sender))
            .map_err(|source| DataError::Io { file: "the thread that reads the data".into(), source })?;
        Ok(Stream {
            made,
            seq,
            pad,
            windows: Some(windows),
            thread: Some(thread),
            window: None,
            done,
            after: beginning,
            waited: Duration::ZERO,
        })
    }

    /// The next batch with this many rows; `None` after the last epoch. If the epochs end within a batch, its remaining
    /// rows are padding.
    ///
    /// # Errors
    /// A document that fails, or a file that can no longer be read.
    pub fn next(&mut self, rows: usize) -> Result<Option<Batch>, DataError> {
        let begun = Instant::now();
        let mut taken = Vec::with_capacity(rows);
        let mut epoch = self.after.epoch;
        while taken.len() < rows {
            if let Some(row) = self.row()? {
                if taken.is_empty() {
                    epoch = self.window.as_ref().map_or(epoch, |window| window.beginning.epoch);
                }
                taken.push(row);
            } else {
                break;
            }
        }
        self.waited += begun.elapsed();
        Ok((!taken.is_empty()).then(|| Batch::new(&taken, rows, self.seq, self.pad, epoch)))
    }

    /// The position of the next batch.
    pub fn position(&self) -> Position {
        let (window, rows) = match &self.window {
            Some(window) if !window.rows.is_empty() => (window.beginning.clone(), self.done),
            Some(window) => (window.after.clone(), 0),
            // Nothing has been read yet.
            None => (self.after.clone(), self.done),
        };
        Position { made: self.made.clone(), window, rows }
    }

    /// Total time that [`Stream::next`] has waited: the cost of tokenizing in addition to the model's work.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn row(&mut self) -> Result<Option<Row>, DataError> {
        loop {
            if let Some(row) = self.window.as_mut().and_then(|window| window.rows.pop_front()) {
                self.done += 1;
                return Ok(Some(row));
            }
            let Some(windows) = &self.windows else { return Ok(None) };
            match windows.recv() {
                Ok(window) => {
                    let mut window = window?;
                    // A position within a window: its first rows are finished.
                    let skipped = if self.window.is_none() { self.done } else { 0 };
                    window.rows.drain(..(skipped as usize).min(window.rows.len()));
                    self.done = skipped;
                    self.after = window.after.clone();
                    self.window = Some(window);
                }
                Err(_) => {
                    self.windows = None;
                    let panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
                    return if panicked { Err(DataError::Ended) } else { Ok(None) };
                }
            }
        }
    }
}

fn produce(recipe: &Recipe, from: Beginning, epochs: Option<u64>, to: &SyncSender<Result<Window, DataError>>) {
    let mut windows = match Windows::new(recipe, from, epochs) {
        Ok(windows) => windows,
        Err(error) => {
            // Without a receiver the error does not matter.
            let _ = to.send(Err(error));
            return;
        }
    };
    loop {
        let (result, ends) = match windows.next() {
            Ok(None) => return,
            Ok(Some(window)) => (Ok(window), false),
            Err(error) => (Err(error), true),
        };
        // Without a receiver the thread ends.
        if to.send(result).is_err() || ends {
            return;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(self.windows.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
