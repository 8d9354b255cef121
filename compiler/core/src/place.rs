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

use crate::budget::{BudgetError, Taken, within};
use crate::error::Error;
use crate::fit::{fitted, or_fitted};
use crate::program::CompileOptions;
use std::cell::RefCell;
use std::collections::HashSet;
use tpc_ir::size::addressable;
use tpc_ir::{Graph, InputId};
use tpc_passes::check::check;
use tpc_passes::check::obligations::Obligations;
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::SearchReport;
use tpc_passes::lower::{lower_rank, schedule};
use tpc_passes::optimize::optimize;
use tpc_passes::options::accumulate::running_sums;
use tpc_passes::planner::{Aim, PlacementSource, Weights};
use tpc_passes::propagate::propagate;
use tpc_passes::reshard::reshard_after_forward;
use tpc_passes::simulate::simulate;
use tpc_passes::styles::Annotations;

/// A program whose values all have placements.
#[derive(Clone)]
pub struct Placed {
    /// The program with the initial placements.
    pub propagated: Graph,
    /// The optimized SPMD program.
    pub placed: Graph,
    /// What the plan obliges the optimized program to, which meets it.
    pub obligations: Obligations,
    /// The report of the search.
    pub report: SearchReport,
}

/// Places every value of a logical program and optimizes its collectives for a target, checking each resulting program.
///
/// # Errors
/// A program that fails its check, which is a bug of the compiler; a program whose sizes overflow; no program that fits into
/// the memory of a rank.
pub fn place(logical: &Graph, annotations: &Annotations, options: &CompileOptions) -> Result<Placed, Error> {
    let start = Start::of(logical, annotations, options)?;
    match (options.search.placements, options.lower.memory) {
        (PlacementSource::Planned, memory) if annotations.mesh.ranks() > 1 => place_planned(&start, memory),
        (_, None) => place_for(&start, Aim::AsGiven),
        (_, Some(limit)) => {
            let placed = place_for(&start, Aim::AsGiven)?;
            fitted(&start, placed, limit).map(|(placed, _)| placed)
        }
    }
}

/// What all candidates for a program begin with.
pub(crate) struct Start<'a> {
    logical: &'a Graph,
    annotations: &'a Annotations,
    pub(crate) options: &'a CompileOptions,
    /// The program with the initial placements, which is checked.
    pub(crate) propagated: Graph,
}

impl<'a> Start<'a> {
    /// The initial placements of a logical program.
    ///
    /// # Errors
    /// A program that fails its check; a program whose sizes overflow.
    pub(crate) fn of(
        logical: &'a Graph,
        annotations: &'a Annotations,
        options: &'a CompileOptions,
    ) -> Result<Self, Error> {
        addressable(logical)?;
        let propagated = propagate(logical, annotations, &options.target);
        check(&propagated)?;
        Ok(Start { logical, annotations, options, propagated })
    }
}

/// The weights of the planner's candidates on a target: the share of a hidden collective that counts.
pub(crate) fn shares(options: &CompileOptions) -> &'static [f64] {
    let overlaps = options.target.device.kind.overlaps() && options.lower.overlap;
    if overlaps { &[1.0, 0.3, 0.05] } else { &[1.0] }
}

/// A program for an aim of the planner, and what it takes on the first rank.
///
/// # Errors
/// A program that fails its check.
pub(crate) fn candidate(start: &Start<'_>, aim: Aim) -> Result<(Placed, Taken), Error> {
    let options = start.options;
    let placed = place_for(start, aim)?;
    let schedule = schedule(&placed.placed, &options.target, &options.lower);
    let program = lower_rank(&placed.placed, &schedule, 0)?;
    let seconds = simulate(&program, &options.target).seconds;
    Ok((placed, Taken { bytes: program.arena_bytes, seconds }))
}

/// Of what `find` finds for each of some weights, and of what `last` adds to these, the one that takes the least time and
/// fits into `memory`, and what it takes. Of equally fast ones, what `find` finds for the first weights is taken.
///
/// # Errors
/// None fits; the errors of `find`.
pub(crate) fn fastest<P>(
    options: &CompileOptions,
    memory: Option<usize>,
    find: impl Fn(Weights) -> Result<(P, Taken), Error>,
    last: impl FnOnce(&[(P, Taken)]) -> Result<Option<(P, Taken)>, Error>,
) -> Result<(P, Taken), Error> {
    let limit = memory.unwrap_or(usize::MAX);
    let mut least = usize::MAX;
    let mut found: Vec<(P, Taken)> = Vec::new();
    for &hidden in shares(options) {
        match within(limit, |byte| find(Weights { byte, hidden })) {
            Ok(one) => found.push(one),
            Err(Error::Budget(error)) => least = least.min(error.least),
            Err(error) => return Err(error),
        }
    }
    let last = last(&found)?;
    least = last.iter().fold(least, |least, (_, taken)| least.min(taken.bytes));
    found.extend(last);
    let fits = found.into_iter().filter(|(_, taken)| taken.bytes <= limit);
    let best = fits.min_by(|(_, a), (_, b)| a.seconds.total_cmp(&b.seconds));
    best.ok_or_else(|| BudgetError { limit, least }.into())
}

fn place_planned(start: &Start<'_>, memory: Option<usize>) -> Result<Placed, Error> {
    let limit = memory.unwrap_or(usize::MAX);
    // The programs for which memory has no price.
    let whole = RefCell::new(Vec::new());
    let find = |aim: Aim| {
        let (placed, taken) = candidate(start, aim)?;
        if memory.is_some() && !aim.prices_memory() {
            whole.borrow_mut().push(((placed.clone(), aim), taken));
        }
        Ok(((placed, aim), taken))
    };
    let mut given = None;
    let last = |found: &[((Placed, Aim), Taken)]| {
        // Even if other work hid as much as it could, the placements of the plan would take at least half of their time.
        let is_slower = |((placed, _), _): &((Placed, Aim), Taken)| {
            placed.report.planner.as_ref().is_some_and(|report| report.before > 2.0 * report.after)
        };
        if found.iter().any(is_slower) {
            return Ok(None);
        }
        let (candidate, taken) = find(Aim::AsGiven)?;
        given = Some(taken.seconds);
        Ok(Some((candidate, taken)))
    };
    let found = fastest(start.options, memory, |weights| find(Aim::Apart(weights)), last);
    let ((best, aim), taken) = or_fitted(start, found, whole.into_inner(), limit)?;
    let weights = match aim {
        Aim::Apart(weights) => weights,
        _ => Weights::TIME,
    };
    let (complete, takes) = candidate(start, Aim::Together(weights))?;
    let bound = complete.report.planner.as_ref().and_then(|report| report.bound);
    let is_better = takes.bytes <= limit && takes.seconds <= taken.seconds;
    let (mut placed, taken) = if is_better { (complete, takes) } else { (best, taken) };
    if let Some(report) = &mut placed.report.planner {
        report.bound = bound;
        report.simulated = given.map(|given| [given, taken.seconds]);
    }
    Ok(placed)
}

/// Places a program for one aim of the planner.
fn place_for(start: &Start<'_>, aim: Aim) -> Result<Placed, Error> {
    let Start { annotations, options, propagated, .. } = start;
    let CompileOptions { target, search, step, .. } = options;
    let (mut optimized, report) = optimize(propagated, target, search, aim);
    if step.micro_batches > 1 {
        optimized = running_sums(&optimized);
    }
    check(&optimized)?;
    // Where memory has a price, a parameter that the planner does not keep gathered is gathered for each part of the step.
    let regathered = report.planner.iter().filter(|_| aim.prices_memory()).flat_map(|planner| &planner.regathered);
    let gathered: HashSet<&InputId> = annotations.gathered.keys().chain(regathered).collect();
    checked(start, reshard_after_forward(&optimized, &gathered), report)
}

/// The stages of a program that was placed.
///
/// # Errors
/// A program that fails its check.
pub(crate) fn checked(start: &Start<'_>, placed: Graph, report: SearchReport) -> Result<Placed, Error> {
    let Start { logical, annotations, propagated, .. } = start;
    check(&placed)?;
    let same = denotes(&placed, logical)?;
    let obligations = Obligations::of(logical, annotations).with_values(&placed, logical, annotations, &same);
    obligations.check(&placed)?;
    addressable(&placed)?;
    Ok(Placed { propagated: propagated.clone(), placed, obligations, report })
}
