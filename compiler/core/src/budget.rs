//! Keeps a planned program within the memory of a rank.
//!
//! The planner minimizes the time of a step plus a price for every byte that a rank keeps from the forward to the backward
//! pass. With a price of nothing the program is the fastest; the higher the price, the less memory the program takes and
//! the slower it is. The size of a program is exact: its arena, which holds everything that the rank ever needs. So the
//! price is raised until the program fits, and then lowered as far as it still does.

use tpc_ir::program::RankProgram;
use tpc_passes::simulate::simulate;
use tpc_passes::targets::Target;

/// Most times that the price is raised. The last price is far beyond what any move costs.
const RAISED: usize = 10;

/// The factor by which it is raised.
const STEP: f64 = 8.0;

/// How often the interval that holds the lowest price is halved.
const HALVED: usize = 4;

/// The first price, as a share of the time of a step divided by the memory that the step takes.
const FIRST: f64 = 1e-3;

/// No program that the planner finds fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the smallest program that was found needs {least} bytes of memory on a rank, {} more than the limit of {limit}: use more \
     ranks, a plan that shards more, a smaller batch or more micro-batches",
    .least - .limit
)]
pub struct BudgetError {
    /// Bytes that a rank may use.
    pub limit: usize,
    /// Bytes that the smallest program that was found needs.
    pub least: usize,
}

/// What a program takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Bytes of memory on a rank.
    pub(crate) bytes: usize,
    /// Predicted seconds of a step.
    pub(crate) seconds: f64,
}

impl Taken {
    /// What a rank's program takes on a target.
    pub(crate) fn of(program: &RankProgram, target: &Target) -> Self {
        Taken { bytes: program.arena_bytes, seconds: simulate(program, target).seconds }
    }
}

/// The fastest program that was found and takes at most `limit` bytes, and what it takes. `place` makes a program for a price
/// in seconds for each byte.
///
/// # Errors
/// No program fits; the errors of `place`.
pub(crate) fn within<P, E: From<BudgetError>>(
    limit: usize,
    place: impl Fn(f64) -> Result<(P, Taken), E>,
) -> Result<(P, Taken), E> {
    let (program, free) = place(0.0)?;
    if free.bytes <= limit {
        return Ok((program, free));
    }
    let mut least = free.bytes;
    let mut price = FIRST * free.seconds / free.bytes as f64;
    let mut low = price / STEP;
    for _ in 0..RAISED {
        let (program, taken) = place(price)?;
        least = least.min(taken.bytes);
        if taken.bytes > limit {
            (low, price) = (price, price * STEP);
            continue;
        }
        let mut best = (program, taken);
        for _ in 0..HALVED {
            let middle = (low * price).sqrt();
            let (program, taken) = place(middle)?;
            if taken.bytes > limit {
                low = middle;
                continue;
            }
            price = middle;
            if taken.seconds <= best.1.seconds {
                best = (program, taken);
            }
        }
        return Ok(best);
    }
    Err(BudgetError { limit, least }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that takes 100 bytes and a second for nothing, and fewer bytes and more seconds the higher the price is,
    /// but no fewer than 60.
    fn sized(price: f64) -> Result<Taken, BudgetError> {
        let bytes = 100 - (1000.0 * price).min(40.0) as usize;
        Ok(Taken { bytes, seconds: 1.0 + price })
    }

    #[test]
    fn the_fastest_program_that_fits_is_taken() {
        let within = |limit| within(limit, |price| sized(price).map(|taken| ((), taken))).map(|(_, taken)| taken);
        let free = within(100).unwrap();
        assert_eq!((free.bytes, free.seconds), (100, 1.0));
        let smaller = within(80).unwrap();
        assert!(smaller.bytes <= 80 && smaller.bytes >= 77, "{smaller:?}");
        assert_eq!(within(60).unwrap().bytes, 60);
        let error = within(50).unwrap_err();
        assert_eq!(error, BudgetError { limit: 50, least: 60 });
        let says = "the smallest program that was found needs 60 bytes of memory on a rank, 10 more than the limit of 50: use \
                    more ranks, a plan that shards more, a smaller batch or more micro-batches";
        assert_eq!(error.to_string(), says);
    }
}
