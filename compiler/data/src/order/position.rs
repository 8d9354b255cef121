//! A position in the data to resume from.

use crate::encode::Token;
use crate::error::DataError;
use serde::{Deserialize, Serialize};

/// A position in the data: what comes next, and the data that it belongs to. A checkpoint keeps it; it consists of a
/// few numbers, and the tokens that wait for the rest of their row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The data and options that it belongs to.
    pub made: Made,
    /// Where the next window begins or the current one began.
    pub(crate) window: Beginning,
    /// Number of finished rows of the window.
    pub(crate) rows: u64,
}

/// Where a window of documents begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Beginning {
    /// Number of finished epochs.
    pub(crate) epoch: u64,
    /// The place in the order of the epoch.
    pub(crate) place: u64,
    /// Tokens left over from the previous window.
    pub(crate) carried: Vec<Token>,
}

/// The data and options that a position belongs to. Batches are a function of these, the position and the number of
/// rows per batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// The fingerprint of the files, from [`crate::Corpus::fingerprint`].
    pub data: String,
    /// The fingerprint of the tokenizer, from [`crate::Tokenizer::fingerprint`].
    pub tokenizer: String,
    /// The current time for chat templates, in seconds since 1970.
    pub now: u64,
    /// Seed of the order.
    pub seed: u64,
    /// Number of tokens in a row.
    pub seq: usize,
    /// How rows are made, as text.
    pub rows: String,
    /// The held-out share; 0 for none.
    pub held_out: f64,
}

impl Position {
    /// The next epoch, counted from 0.
    pub fn epoch(&self) -> u64 {
        self.window.epoch
    }

    /// An error if this is a position in other data.
    ///
    /// # Errors
    /// The first difference.
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
