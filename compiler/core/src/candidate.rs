//! A program that the planner made for one of its aims: as it was optimized, which may be with few occurrences of what
//! repeats, then as long as the model, and then proven.

use crate::budget::Taken;
use crate::compile_options::CompileOptions;
use crate::error::Error;
use std::borrow::Cow;
use tpc_ir::Graph;
use tpc_ir::size::addressable;
use tpc_passes::check::check;
use tpc_passes::check::obligations::Obligations;
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::SearchReport;
use tpc_passes::lower::{LowerOptions, lower_rank, schedule};
use tpc_passes::optimize::{optimize_short, optimize_whole};
use tpc_passes::options::accumulate::running_sums;
use tpc_passes::planner::Aim;
use tpc_passes::propagate::{propagate, propagate_short};
use tpc_passes::reshard::{reshard_after_forward, reshard_short};
use tpc_passes::short_model::ShortModel;
use tpc_passes::shorten::Shortened;
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

/// A program for an aim of the planner, optimized but not proven.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) aim: Aim,
    form: Form,
    /// The program of a step ([`of_step`]), unless it is short.
    graph: Graph,
    pub(crate) report: SearchReport,
    /// What it takes on the first rank, once it was measured.
    pub(crate) taken: Option<Taken>,
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
pub(crate) fn improved(start: &Start<'_>, aim: Aim) -> Candidate {
    let CompileOptions { target, search, .. } = start.options;
    let short = start.short.as_ref().and_then(|short| optimize_short(short, target, search, aim));
    match short {
        Some((graph, report)) => {
            let graph = regathered(graph, aim, &report);
            Candidate { aim, form: Form::Short, graph, report, taken: None }
        }
        None => improved_whole(start, aim),
    }
}

fn improved_whole(start: &Start<'_>, aim: Aim) -> Candidate {
    let CompileOptions { target, search, .. } = start.options;
    let (graph, report) = optimize_whole(&start.propagated, target, search, aim);
    let graph = of_step(start, &regathered(graph, aim, &report));
    Candidate { aim, form: Form::Whole, graph, report, taken: None }
}

/// Where memory has a price, a parameter that the planner does not keep gathered is gathered for each part of the step.
fn regathered(graph: Graph, aim: Aim, report: &SearchReport) -> Graph {
    match report.planner.as_ref().filter(|_| aim.prices_memory()) {
        Some(planner) => reshard_after_forward(&graph, &planner.regathered.iter().collect()),
        None => graph,
    }
}

impl Candidate {
    /// The candidate as long as the model.
    fn repeated(mut self, start: &Start<'_>) -> Candidate {
        let Some(short) = start.short.as_ref().filter(|_| self.form == Form::Short) else { return self };
        match short.lengthened(&self.graph, &start.propagated) {
            Some(graph) => (self.form, self.graph) = (Form::Repeated, of_step(start, &graph)),
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
        let taken = taken(start, &self.graph, &start.options.lower)?;
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
    Ok(Taken::of(&lower_rank(graph, &schedule(graph, target, lower), 0)?, target))
}

/// An optimized program with what a step of several micro-batches adds up, and with the parameters gathered twice that the
/// plan says.
fn of_step(start: &Start<'_>, optimized: &Graph) -> Graph {
    let gathered = start.annotations.gathered.keys().collect();
    reshard_after_forward(&with_running_sums(start.options, optimized), &gathered)
}

/// An optimized program with what a step of several micro-batches adds up.
fn with_running_sums<'g>(options: &CompileOptions, optimized: &'g Graph) -> Cow<'g, Graph> {
    match options.step.micro_batches > 1 {
        true => Cow::Owned(running_sums(optimized)),
        false => Cow::Borrowed(optimized),
    }
}

/// A candidate as long as the model, with both proofs and what the plan obliges it to.
///
/// # Errors
/// A program that fails its check.
pub(crate) fn finished(start: &Start<'_>, candidate: Candidate) -> Result<Placed, Error> {
    let Candidate { aim, form, graph, report, .. } = candidate.repeated(start);
    match proven(start, graph, report) {
        Err(_) if form == Form::Repeated => finished(start, improved_whole(start, aim)),
        placed => placed,
    }
}

/// The placements that follow from the plan for a short program, with the proofs of it and of one that is longer by one
/// occurrence. `None` if what is found does not repeat as the short program does, or a proof fails.
pub(crate) fn placed_short(
    logical: &ShortModel,
    annotations: &Annotations,
    options: &CompileOptions,
) -> Option<Placed> {
    let CompileOptions { target, search, .. } = options;
    let program = logical.short();
    let propagated = propagate_short(&program, annotations, target)?;
    check(&propagated).ok()?;
    let short = logical.with(propagated.clone()).short().further();
    let (optimized, report) = optimize_short(&short, target, search, Aim::AsGiven)?;
    let optimized = short.with_cuts(&optimized, 1)?;
    let summed = with_running_sums(options, &optimized);
    let placed = reshard_short(&program, &summed, &annotations.gathered.keys().collect())?;
    let start = Start { logical: &logical.graph, annotations, options, propagated, short: None };
    let placed = proven(&start, placed, report).ok()?;
    let longer = logical.longer(&placed.placed, |longer| longer.graph)?;
    check(&longer).ok()?;
    denotes(&longer, &logical.grown()?.graph).ok()?;
    Some(placed)
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
