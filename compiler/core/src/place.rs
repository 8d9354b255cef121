//! Places every value of a program and makes its collectives cheap, checking each program on the way.
//!
//! With planned placements there are several candidates: the placements that follow from the plan, and for each of some
//! weights those that the planner finds. The planner's cost model does not know the schedule, so it cannot know which
//! collectives other work hides. A simulation of the first rank's program knows it, and chooses. The program that is
//! chosen is therefore never slower, by the simulation, than the one that follows from the plan. The latter is left out
//! where the planner halves the predicted time, because overlap cannot make up for that.
//!
//! Planning one axis after the other is fast, and planning all of them together proves how much cheaper other placements
//! could be. So only the best candidate is planned completely.
//!
//! What repeats is placed with few occurrences ([`shorten`](tpc_passes::shorten)). What a candidate takes if memory does not
//! limit its overlap is extrapolated from short programs, and only a candidate that may be the fastest by that is made as long
//! as the model and simulated. Only the one that is chosen is proven.

use crate::budget::{BudgetError, Taken, within};
pub use crate::candidate::Placed;
use crate::candidate::{Candidate, Start, candidate, finished, improved};
use crate::compile_options::CompileOptions;
use crate::error::Error;
use crate::fit::{fitted, or_fitted};
use crate::parallel::{both, in_parallel};
use std::sync::{Mutex, PoisonError};
use tpc_ir::Graph;
use tpc_passes::planner::{Aim, PlacementSource, Weights};
use tpc_passes::styles::Annotations;

/// Places every value of a logical program and optimizes its collectives for a target, and proves the resulting program.
///
/// # Errors
/// A program that fails its check, which is a bug of the compiler; a program whose sizes overflow; no program that fits into
/// the memory of a rank.
pub fn place(logical: &Graph, annotations: &Annotations, options: &CompileOptions) -> Result<Placed, Error> {
    place_for(logical, annotations, options, None)
}

/// [`place`], for what the planner was to do in another program of the same session, if there is one.
///
/// # Errors
/// As [`place`].
pub fn place_for(
    logical: &Graph,
    annotations: &Annotations,
    options: &CompileOptions,
    aim: Option<Aim>,
) -> Result<Placed, Error> {
    let start = Start::of(logical, annotations, options)?;
    let memory = options.lower.memory;
    if options.search.placements == PlacementSource::Planned && annotations.mesh.ranks() > 1 {
        return place_planned(&start, memory, aim);
    }
    let placed = finished(&start, improved(&start, Aim::AsGiven))?;
    match memory {
        Some(limit) => fitted(&start, placed, limit).map(|(placed, _)| placed),
        None => Ok(placed),
    }
}

/// Compiles two programs of a session at the same time, unless placements are planned: the second program is then planned for
/// what the planner was to do in the first.
///
/// # Errors
/// Those of `compile`.
pub fn compile_both<P: Send, T: Send, E: Send>(
    placements: PlacementSource,
    (first, second): (P, P),
    compile: impl Fn(P, Option<Aim>) -> Result<T, E> + Sync,
    aim: impl Fn(&T) -> Option<Aim>,
) -> Result<(T, T), E> {
    match placements {
        PlacementSource::Given => {
            let (first, second) = both(|| compile(first, None), || compile(second, None));
            Ok((first?, second?))
        }
        PlacementSource::Planned => {
            let first = compile(first, None)?;
            let second = compile(second, aim(&first))?;
            Ok((first, second))
        }
    }
}

/// The weights of the planner's candidates on a target: the share of a hidden collective that counts.
pub(crate) fn shares(options: &CompileOptions) -> &'static [f64] {
    let overlaps = options.target.device.kind.overlaps() && options.lower.overlap;
    if overlaps { &[1.0, 0.3, 0.05] } else { &[1.0] }
}

/// Of what `find` finds for each of some weights, and of what `last` adds to these, the one that takes the least time and
/// fits into `memory`, and what it takes. All come with seconds that they take at least, which say which of them need to be
/// measured. Of equally fast ones, what `find` finds for the first weights is taken.
///
/// # Errors
/// None fits; the errors of the functions.
pub(crate) fn fastest<P: Send>(
    options: &CompileOptions,
    memory: Option<usize>,
    find: impl Fn(Weights) -> Result<(P, f64), Error> + Sync,
    last: impl FnOnce(&[(P, f64)]) -> Result<Option<(P, f64)>, Error>,
    measure: impl Fn(P) -> Result<(P, Taken), Error> + Sync,
) -> Result<(P, Taken), Error> {
    let limit = memory.unwrap_or(usize::MAX);
    let mut least = usize::MAX;
    let of_weights = |&hidden: &f64| match memory {
        None => find(Weights { byte: 0.0, hidden }),
        Some(limit) => {
            let found = within(limit, |byte| measure(find(Weights { byte, hidden })?.0))?;
            Ok((found.0, found.1.seconds))
        }
    };
    let mut found: Vec<(P, f64)> = Vec::new();
    for one in in_parallel(shares(options), of_weights) {
        match one {
            Ok(one) => found.push(one),
            Err(Error::Budget(error)) => least = least.min(error.least),
            Err(error) => return Err(error),
        }
    }
    let last = last(&found)?;
    found.extend(last);
    // The sort is stable.
    found.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut best: Option<(P, Taken)> = None;
    for (one, seconds) in found {
        if best.as_ref().is_some_and(|(_, best)| best.seconds <= seconds) {
            break;
        }
        let (one, taken) = measure(one)?;
        least = least.min(taken.bytes);
        if taken.bytes <= limit && best.as_ref().is_none_or(|(_, best)| taken.seconds < best.seconds) {
            best = Some((one, taken));
        }
    }
    best.ok_or_else(|| BudgetError { limit, least }.into())
}

/// The best program so far.
enum Best {
    Candidate(Box<Candidate>),
    /// A program that may compute values a second time.
    Placed(Box<Placed>, Aim),
}

/// The best candidate. If there is an aim, and its program fits into `memory`, that is the best, and it is not asked how much
/// cheaper others could be.
///
/// # Errors
/// No candidate fits; a program that fails its check.
fn place_planned(start: &Start<'_>, memory: Option<usize>, aim: Option<Aim>) -> Result<Placed, Error> {
    let fits = |taken: Taken| memory.is_none_or(|limit| taken.bytes <= limit);
    // The programs for which memory has no price.
    let whole: Mutex<Vec<(Candidate, Taken)>> = Mutex::default();
    let measured = |candidate: Candidate| {
        let is_new = candidate.taken.is_none();
        let (candidate, taken) = candidate.measured(start)?;
        if is_new && memory.is_some() && !candidate.aim.prices_memory() {
            whole.lock().unwrap_or_else(PoisonError::into_inner).push((candidate.clone(), taken));
        }
        Ok::<_, Error>((candidate, taken))
    };
    if let Some(aim) = aim {
        let mut like = improved(start, aim);
        if memory.is_some() {
            like = like.measured(start)?.0;
        }
        if like.taken.is_none_or(fits) {
            return finished(start, like);
        }
    }
    let mut given = None;
    let last = |found: &[(Candidate, f64)]| {
        // Even if other work hid as much as it could, the placements of the plan would take at least half of their time.
        let is_slower = |(candidate, _): &(Candidate, f64)| {
            candidate.report.planner.as_ref().is_some_and(|report| report.before > 2.0 * report.after)
        };
        if found.iter().any(is_slower) {
            return Ok(None);
        }
        let (candidate, taken) = measured(improved(start, Aim::AsGiven))?;
        given = Some(taken.seconds);
        Ok(Some((candidate, taken.seconds)))
    };
    // Where memory has a limit, every candidate is measured as it is.
    let find = |weights| match memory {
        None => candidate(start, Aim::Apart(weights)),
        Some(_) => Ok((improved(start, Aim::Apart(weights)), 0.0)),
    };
    let found = fastest(start.options, memory, find, last, measured);
    let (mut best, mut taken) = match memory {
        None => found.map(|(candidate, taken)| (Best::Candidate(candidate.into()), taken))?,
        Some(limit) => {
            let found = found.and_then(|(candidate, taken)| {
                let aim = candidate.aim;
                Ok(((finished(start, candidate)?, aim), taken))
            });
            let mut whole = whole.into_inner().unwrap_or_else(PoisonError::into_inner);
            // They were measured on several threads, so their order says nothing.
            let share = |aim: Aim| if let Aim::Apart(weights) = aim { weights.hidden } else { 0.0 };
            whole.sort_by(|(a, _), (b, _)| share(b.aim).total_cmp(&share(a.aim)));
            let ((placed, aim), taken) = or_fitted(start, found, whole, limit)?;
            (Best::Placed(placed.into(), aim), taken)
        }
    };
    let aim = match &best {
        Best::Candidate(candidate) => candidate.aim,
        Best::Placed(_, aim) => *aim,
    };
    let weights = if let Aim::Apart(weights) = aim { weights } else { Weights::TIME };
    let (complete, seconds) = candidate(start, Aim::Together(weights))?;
    let bound = complete.report.planner.as_ref().and_then(|report| report.bound);
    if seconds <= taken.seconds {
        let (complete, takes) = complete.measured(start)?;
        if fits(takes) && takes.seconds <= taken.seconds {
            (best, taken) = (Best::Candidate(complete.into()), takes);
        }
    }
    let mut placed = match best {
        Best::Candidate(candidate) => finished(start, *candidate)?,
        Best::Placed(placed, _) => *placed,
    };
    if let Some(report) = &mut placed.report.planner {
        report.bound = bound;
        report.simulated = given.map(|given| [given, taken.seconds]);
    }
    Ok(placed)
}
