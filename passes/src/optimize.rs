//! Makes a placed program cheap: the planner chooses placements if it may, and the rules of the e-graph improve the
//! redistributions between them.
//!
//! The rules change one value at a time and keep what is cheaper. Where many ways cost nearly the same, as with few tokens
//! and large weights on two axes, they end up in another one in every layer. Such a program is as long as the model and
//! costs more than one whose layers are alike, so the planner then chooses placements, as it does when it is asked.
//!
//! Before: the first placement of every value ([`propagate`](crate::propagate)).
//! After: the cheapest program that was found, which never costs more than the one that came in.

use crate::egraph::{SearchOptions, SearchReport, improve_as};
use crate::planner::{Aim, PlacementSource, PlannerCause, Weights, plan_as, seconds_counted};
use crate::shorten::{Extent, Shortened};
use crate::targets::Target;
use tpc_ir::Graph;

/// Optimizes a placed graph for a target: never to one that costs more there, unless the planner weighs more than time.
pub fn optimize_whole(graph: &Graph, target: &Target, options: &SearchOptions, aim: Aim) -> (Graph, SearchReport) {
    optimize_as(graph, Extent::Whole, target, options, aim).expect("a whole program stands for itself")
}

/// Optimizes a short program that stands for a long one, whose seconds are those in the report. `None` if what is found does
/// not repeat as the short program does.
pub fn optimize_short(
    short: &Shortened,
    target: &Target,
    options: &SearchOptions,
    aim: Aim,
) -> Option<(Graph, SearchReport)> {
    let optimized = |options: &SearchOptions, aim: Aim| {
        let found = optimize_as(&short.graph, Extent::Short(short), target, options, aim);
        found.filter(|(optimized, _)| short.is_repeated_by(optimized))
    };
    let (optimized, mut report) = match optimized(options, aim) {
        None if options.placements == PlacementSource::Given => {
            let asking = SearchOptions { placements: PlacementSource::Planned, ..options.clone() };
            let (planned, mut report) = optimized(&asking, Aim::Apart(Weights::TIME))?;
            report.planner.iter_mut().for_each(|planner| planner.cause = PlannerCause::UnlikeLayers);
            (planned, report)
        }
        found => found?,
    };
    report.blocks = short.blocks();
    Some((optimized, report))
}

fn optimize_as(
    graph: &Graph,
    extent: Extent,
    target: &Target,
    options: &SearchOptions,
    aim: Aim,
) -> Option<(Graph, SearchReport)> {
    if options.placements == PlacementSource::Given {
        return improve_as(graph, extent, target, options);
    }
    let planned = plan_as(graph, extent, target, aim)?;
    let (optimized, mut report) = improve_as(planned.graph.as_ref().unwrap_or(graph), extent, target, options)?;
    let mut planner = planned.report;
    if aim == Aim::AsGiven {
        // What the rules gain counts as well when the planner is asked how much cheaper other placements are.
        planner.cost = seconds_counted(&optimized, extent.times(&optimized)?, target);
    }
    report.planner = Some(planner);
    Some((optimized, report))
}
