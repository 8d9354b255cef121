//! A place in the data, to go on from.

use crate::encode::Token;
use crate::error::DataError;
use serde::{Deserialize, Serialize};

/// A place in the data: what comes next, and of which data it is a place. A checkpoint keeps it; it has a few numbers, and the tokens that
/// wait for the rest of their row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// What the data is.
    pub made: Made,
    /// Where the next window begins or the current one began.
    pub(crate) window: Beginning,
    /// Rows of it that are done.
    pub(crate) rows: u64,
}

/// Where a window of documents begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Beginning {
    /// Times that all documents were read before.
    pub(crate) epoch: u64,
    /// The place in the order of the epoch.
    pub(crate) place: u64,
    /// Tokens that are left from before.
    pub(crate) carried: Vec<Token>,
}

/// What data and options a position belongs to. Batches are a function of this, the position and the number of rows in a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// The files, by [`crate::Corpus::fingerprint`].
    pub data: String,
    /// The tokenizer, by [`crate::Tokenizer::fingerprint`].
    pub tokenizer: String,
    /// The time that chat templates are told, in seconds since 1970.
    pub now: u64,
    /// Seed of the order.
    pub seed: u64,
    /// Tokens in a row.
    pub seq: usize,
    /// How rows are made, in words.
    pub rows: String,
    /// The share that is held out; 0 for none.
    pub held_out: f64,
}

impl Position {
    /// The epoch that comes next, counted from 0.
    pub fn epoch(&self) -> u64 {
        self.window.epoch
    }

    /// An error if this is a place in other data.
    ///
    /// # Errors
    /// The first thing that differs.
    pub fn check(&self, now: &Made) -> Result<(), DataError> {
        let Made { data, tokenizer, seed, seq, rows, held_out, now: _ } = now;
        let kept = &self.made;
        let pairs = [
            ("the text of --data", kept.data.clone(), data.clone()),
            ("the tokenizer", kept.tokenizer.clone(), tokenizer.clone()),
            ("the seed", kept.seed.to_string(), seed.to_string()),
            ("the length of a sequence", kept.seq.to_string(), seq.to_string()),
            ("the way rows are made", kept.rows.clone(), rows.clone()),
            ("the held-out share", kept.held_out.to_string(), held_out.to_string()),
        ];
        match pairs.into_iter().find(|(_, kept, now)| kept != now) {
            Some((what, kept, now)) => Err(DataError::OtherData { what, kept, now }),
            None => Ok(()),
        }
    }
}
