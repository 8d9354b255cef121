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
use crate::error::Error;
use crate::fit::{fitted, or_fitted};
use crate::parallel::in_parallel;
use crate::program::CompileOptions;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use tpc_ir::size::addressable;
use tpc_ir::{Graph, InputId};
use tpc_passes::check::check;
use tpc_passes::check::obligations::Obligations;
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::SearchReport;
use tpc_passes::lower::{LowerOptions, lower_rank, schedule};
use tpc_passes::optimize::{optimize_short, optimize_whole};
use tpc_passes::options::accumulate::running_sums;
use tpc_passes::planner::{Aim, PlacementSource, Weights};
use tpc_passes::propagate::propagate;
use tpc_passes::reshard::reshard_after_forward;
use tpc_passes::shorten::Shortened;
use tpc_passes::simulate::simulate;
use tpc_passes::styles::Annotations;

/// By what share overlap may enlarge an arena where memory does not limit it. No arena grows that much.
const UNLIMITED: f64 = 1e3;

/// A program whose values all have placements.
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

/// What all candidates for a program begin with.
pub(crate) struct Start<'a> {
    logical: &'a Graph,
    annotations: &'a Annotations,
    pub(crate) options: &'a CompileOptions,
    /// The program with the initial placements, which is checked.
    pub(crate) propagated: Graph,
    /// The same with few occurrences of what repeats.
    short: Option<Shortened>,
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
        let short = options.search.blocks.then(|| Shortened::of(&propagated)).flatten();
        Ok(Start { logical, annotations, options, propagated, short })
    }
}

/// The weights of the planner's candidates on a target: the share of a hidden collective that counts.
pub(crate) fn shares(options: &CompileOptions) -> &'static [f64] {
    let overlaps = options.target.device.kind.overlaps() && options.lower.overlap;
    if overlaps { &[1.0, 0.3, 0.05] } else { &[1.0] }
}

/// A program for an aim of the planner, optimized but not proven.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) aim: Aim,
    form: Form,
    graph: Graph,
    report: SearchReport,
    /// What it takes on the first rank, once it was measured.
    taken: Option<Taken>,
}

/// How a candidate was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// It is short.
    Short,
    /// It was short, and its occurrences were repeated.
    Repeated,
    /// It was optimized as a whole.
    Whole,
}

/// The program for an aim of the planner, short if the program to begin with is.
fn improved(start: &Start<'_>, aim: Aim) -> Candidate {
    let CompileOptions { target, search, .. } = start.options;
    let short = start.short.as_ref().and_then(|short| optimize_short(short, target, search, aim));
    match short {
        Some((graph, report)) => Candidate::new(aim, Form::Short, graph, report),
        None => improved_whole(start, aim),
    }
}

fn improved_whole(start: &Start<'_>, aim: Aim) -> Candidate {
    let CompileOptions { target, search, .. } = start.options;
    let (graph, report) = optimize_whole(&start.propagated, target, search, aim);
    Candidate::new(aim, Form::Whole, graph, report)
}

impl Candidate {
    fn new(aim: Aim, form: Form, mut graph: Graph, report: SearchReport) -> Candidate {
        // Where memory has a price, a parameter that the planner does not keep gathered is gathered for each part of the step.
        if let Some(planner) = report.planner.as_ref().filter(|_| aim.prices_memory()) {
            graph = reshard_after_forward(&graph, &planner.regathered.iter().collect());
        }
        Candidate { aim, form, graph, report, taken: None }
    }

    /// The candidate as long as the model.
    fn repeated(mut self, start: &Start<'_>) -> Candidate {
        let Some(short) = start.short.as_ref().filter(|_| self.form == Form::Short) else { return self };
        match short.lengthened(&self.graph, &start.propagated) {
            Some(graph) => (self.form, self.graph) = (Form::Repeated, graph),
            // What repeats may be placed in a way that does not; then the whole program is placed.
            None => self = improved_whole(start, self.aim),
        }
        self
    }

    /// What the candidate takes on the first rank, which is measured once.
    ///
    /// # Errors
    /// A program that fails the check of its lowering.
    pub(crate) fn measured(mut self, start: &Start<'_>) -> Result<(Candidate, Taken), Error> {
        if let Some(taken) = self.taken {
            return Ok((self, taken));
        }
        self = self.repeated(start);
        let taken = taken(start, &of_step(start, &self.graph), &start.options.lower)?;
        self.taken = Some(taken);
        Ok((self, taken))
    }
}

/// A program for an aim of the planner, and the seconds that it takes on the first rank if memory does not limit overlap.
///
/// # Errors
/// A program that fails the check of its lowering.
pub(crate) fn candidate(start: &Start<'_>, aim: Aim) -> Result<(Candidate, f64), Error> {
    let candidate = improved(start, aim);
    if let Some(short) = start.short.as_ref().filter(|_| candidate.form == Form::Short) {
        let lower = LowerOptions { memory_growth: UNLIMITED, memory: None, ..start.options.lower };
        let seconds = |graph: &Graph| taken(start, graph, &lower).map(|taken| taken.seconds);
        if let Some(seconds) = short.extrapolated(&of_step(start, &candidate.graph), seconds)? {
            return Ok((candidate, seconds));
        }
    }
    let (candidate, taken) = candidate.measured(start)?;
    Ok((candidate, taken.seconds))
}

/// What the first rank takes for a placed program.
fn taken(start: &Start<'_>, graph: &Graph, lower: &LowerOptions) -> Result<Taken, Error> {
    let target = &start.options.target;
    let program = lower_rank(graph, &schedule(graph, target, lower), 0)?;
    Ok(Taken { bytes: program.arena_bytes, seconds: simulate(&program, target).seconds })
}

/// An optimized program with what a step of several micro-batches adds up, and with the parameters gathered twice that the
/// plan says.
fn of_step(start: &Start<'_>, optimized: &Graph) -> Graph {
    let gathered: HashSet<&InputId> = start.annotations.gathered.keys().collect();
    match start.options.step.micro_batches > 1 {
        true => reshard_after_forward(&running_sums(optimized), &gathered),
        false => reshard_after_forward(optimized, &gathered),
    }
}

/// A candidate as long as the model, with both proofs and what the plan obliges it to.
///
/// # Errors
/// A program that fails its check.
pub(crate) fn finished(start: &Start<'_>, candidate: Candidate) -> Result<Placed, Error> {
    let Candidate { aim, form, graph, report, .. } = candidate.repeated(start);
    match proven(start, of_step(start, &graph), report) {
        Err(_) if form == Form::Repeated => finished(start, improved_whole(start, aim)),
        placed => placed,
    }
}

/// A placed program with both proofs and what the plan obliges it to.
///
/// # Errors
/// A program that fails its check.
pub(crate) fn proven(start: &Start<'_>, placed: Graph, report: SearchReport) -> Result<Placed, Error> {
    let Start { logical, annotations, propagated, .. } = start;
    check(&placed)?;
    let same = denotes(&placed, logical)?;
    let obligations = Obligations::of(logical, annotations).with_values(&placed, logical, annotations, &same);
    obligations.check(&placed)?;
    addressable(&placed)?;
    Ok(Placed { propagated: propagated.clone(), placed, obligations, report })
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

/// What was found to be the best.
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
        let (candidate, taken) = improved(start, aim).measured(start)?;
        if fits(taken) {
            return finished(start, candidate);
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
    let find = |weights| candidate(start, Aim::Apart(weights));
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
