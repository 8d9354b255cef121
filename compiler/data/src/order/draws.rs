//! Random numbers for a purpose, the same wherever they are drawn.

use tpc_ir::random::philox;

/// The purpose of random numbers; each purpose has separate numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Which documents are held out.
    HeldOut = 1,
    /// The order of the documents in an epoch.
    Epoch = 2,
    /// The order of the rows of a window.
    Rows = 3,
    /// Which tokens of a row are masked, and by what.
    Masks = 4,
}

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    key: u64,
    stream: u64,
    drawn: u64,
}

/// The seed for one purpose of one epoch.
pub(crate) fn key(seed: u64, purpose: Purpose, epoch: u64) -> u64 {
    word(philox(seed, purpose as u64, epoch))
}

fn word([a, b, ..]: [u32; 4]) -> u64 {
    (u64::from(a) << 32) | u64::from(b)
}

impl Draws {
    /// The stream for a purpose in an epoch, at a place in the epoch.
    pub(crate) fn new(seed: u64, purpose: Purpose, epoch: u64, place: u64) -> Self {
        Draws { key: key(seed, purpose, epoch), stream: place, drawn: 0 }
    }

    /// A number below `n`, which is at least 1.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        let word = word(philox(self.key, self.stream, self.drawn));
        self.drawn += 1;
        // Lemire's multiplication: the bias is below n / 2^64.
        ((u128::from(word) * u128::from(n)) >> 64) as u64
    }

    /// Shuffles items (Fisher and Yates).
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
