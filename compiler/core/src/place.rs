//! Places every value of a program and makes its collectives cheap, checking each program on the way.
//!
//! With planned placements there are several candidates: the placements that follow from the plan, and for each of some
//! weights those that the planner finds. The planner's cost model does not know the schedule, so it cannot know which
//! collectives other work hides. A simulation of the first rank's program knows it, and chooses. The program that is
//! chosen is therefore never slower, by the simulation, than the one that follows from the plan.
//!
//! Planning one axis after the other is fast, and planning all of them together proves how much cheaper other placements
//! could be. So only the best candidate is planned completely.

use crate::budget::{BudgetError, Taken, within};
use crate::error::Error;
use crate::program::CompileOptions;
use std::collections::HashSet;
use tpc_ir::size::addressable;
use tpc_ir::{Graph, InputId};
use tpc_passes::check::check;
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
use tpc_passes::targets::DeviceKind;

/// A program whose values all have placements.
pub struct Placed {
    /// The program with the initial placements.
    pub propagated: Graph,
    /// The optimized SPMD program.
    pub placed: Graph,
    /// The report of the search.
    pub report: SearchReport,
}

/// Places every value of a logical program and optimizes its collectives for a target, checking each resulting program.
///
/// # Errors
/// A program that fails its check, which is a bug of the compiler; a program whose sizes overflow; no program that fits into
/// the memory of a rank.
pub fn place(logical: &Graph, annotations: &Annotations, options: &CompileOptions) -> Result<Placed, Error> {
    match options.search.placements {
        PlacementSource::Planned { memory } if annotations.mesh.ranks() > 1 => {
            place_planned(logical, annotations, options, memory)
        }
        _ => place_for(logical, annotations, options, Aim::AsGiven),
    }
}

/// The share of a hidden collective that counts, for each candidate of the planner.
fn shares(kind: DeviceKind, overlap: bool) -> &'static [f64] {
    if kind.overlaps() && overlap { &[1.0, 0.3, 0.05] } else { &[1.0] }
}

/// A program, what it was made for, and what it takes.
struct Candidate {
    placed: Placed,
    aim: Aim,
    taken: Taken,
}

fn place_planned(
    logical: &Graph,
    annotations: &Annotations,
    options: &CompileOptions,
    memory: Option<usize>,
) -> Result<Placed, Error> {
    let candidate = |aim: Aim| -> Result<Candidate, Error> {
        let placed = place_for(logical, annotations, options, aim)?;
        let schedule = schedule(&placed.placed, &options.target, &options.lower);
        let program = lower_rank(&placed.placed, &schedule, 0)?;
        let seconds = simulate(&program, &options.target).seconds;
        eprintln!("{aim:?}: {seconds} {}", program.arena_bytes);
        Ok(Candidate { placed, aim, taken: Taken { bytes: program.arena_bytes, seconds } })
    };
    let limit = memory.unwrap_or(usize::MAX);
    let given = candidate(Aim::AsGiven)?;
    if std::env::var("TPC_GIVEN").is_ok() {
        return Ok(given.placed);
    }
    let mut least = given.taken.bytes;
    let mut fitting: Vec<Candidate> = Vec::new();
    for &hidden in shares(options.target.device.kind, options.lower.overlap) {
        match within(limit, |byte| candidate(Aim::Apart(Weights { byte, hidden })), |found| found.taken) {
            Ok(found) => fitting.push(found),
            Err(Error::Budget(error)) => least = least.min(error.least),
            Err(error) => return Err(error),
        }
    }
    // Of equally fast programs the first is taken.
    fitting.push(given);
    let fits = |found: &Candidate| found.taken.bytes <= limit;
    let faster = |a: &Candidate, b: &Candidate| a.taken.seconds.total_cmp(&b.taken.seconds);
    let Some(best) = fitting.into_iter().filter(fits).min_by(faster) else {
        return Err(BudgetError { limit, least }.into());
    };
    let Aim::Apart(weights) = best.aim else { return Ok(best.placed) };
    let complete = candidate(Aim::Together(weights))?;
    let found = [complete, best].into_iter().filter(fits).min_by(faster);
    Ok(found.expect("the best candidate fits").placed)
}

/// Places a program for one aim of the planner.
fn place_for(logical: &Graph, annotations: &Annotations, options: &CompileOptions, aim: Aim) -> Result<Placed, Error> {
    let CompileOptions { target, search, step, .. } = options;
    addressable(logical)?;
    let propagated = propagate(logical, annotations, target);
    check(&propagated)?;
    let (mut optimized, report) = optimize(&propagated, target, search, aim);
    if step.micro_batches > 1 {
        optimized = running_sums(&optimized);
    }
    check(&optimized)?;
    // Where memory has a price, a parameter that the planner does not keep gathered is gathered for each part of the step.
    let regathered = report.planner.iter().filter(|_| aim.prices_memory()).flat_map(|planner| &planner.regathered);
    let gathered: HashSet<&InputId> = annotations.gathered.keys().chain(regathered).collect();
    let placed = reshard_after_forward(&optimized, &gathered);
    check(&placed)?;
    denotes(&placed, logical)?;
    addressable(&placed)?;
    Ok(Placed { propagated, placed, report })
}
