//! Which documents are trained on and which are held out, and their order in an epoch.

use super::draws::Purpose;
use super::permutation::Permutation;
use crate::error::DataError;
use crate::source::{Corpus, Unit};

/// Which documents of a corpus are read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Split {
    /// All documents.
    All,
    /// All documents except this share, which is drawn from the seed.
    But(f64),
    /// Only this share.
    Only(f64),
}

/// Some documents of a corpus, in an order for each epoch. The pieces of a plain text are drawn separately.
#[derive(Clone, Debug)]
pub struct Selection {
    drawn: Permutation,
    first: u64,
    len: u64,
    seed: u64,
    is_whole: bool,
    shuffled: bool,
}

impl Selection {
    /// A part of a corpus; in the order of the files unless it is `shuffled`.
    ///
    /// # Errors
    /// A share that leaves nothing.
    pub fn new(corpus: &Corpus, split: Split, seed: u64, shuffled: bool) -> Result<Self, DataError> {
        let units = corpus.units();
        let drawn = Permutation::new(units, seed, Purpose::HeldOut, 0);
        let held_out = |share: f64| match ((units as f64 * share).round() as u64).max(1) {
            held if held < units => Ok(held),
            _ => Err(DataError::HeldOut { share, units }),
        };
        let (first, len) = match split {
            Split::All => (0, units),
            Split::But(share) => held_out(share).map(|held| (held, units - held))?,
            Split::Only(share) => (0, held_out(share)?),
        };
        Ok(Selection { drawn, first, len, seed, is_whole: split == Split::All, shuffled })
    }

    /// Number of documents.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no documents.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The order of an epoch.
    pub(crate) fn epoch(&self, epoch: u64) -> impl Fn(u64) -> Unit + use<> {
        let selection = self.clone();
        let order = Permutation::new(self.len, self.seed, Purpose::Epoch, epoch);
        move |place| {
            let place = if selection.shuffled { order.at(place) } else { place };
            if selection.is_whole { place } else { selection.drawn.at(selection.first + place) }
        }
    }
}
