//! Makes a placed program cheap: the planner chooses placements if it may, and the rules of the e-graph improve the
//! redistributions between them.
//!
//! Before: the first placement of every value ([`propagate`](crate::propagate)).
//! After: the cheapest program that was found, which never costs more than the one that came in.

use crate::egraph::{SearchOptions, SearchReport, improve};
use crate::planner::{Aim, PlacementSource, plan, seconds};
use crate::targets::Target;
use tpc_ir::Graph;

/// Optimizes a placed graph for a target: never to one that costs more there, unless the planner weighs more than time.
pub fn optimize(graph: &Graph, target: &Target, options: &SearchOptions, aim: Aim) -> (Graph, SearchReport) {
    if options.placements == PlacementSource::Given {
        return improve(graph, target, options);
    }
    let (planned, mut planner) = plan(graph, target, aim);
    let (optimized, mut report) = improve(planned.as_ref().unwrap_or(graph), target, options);
    if aim == Aim::AsGiven {
        // What the rules gain counts as well when the planner is asked how much cheaper other placements are.
        planner.cost = seconds(&optimized, target);
    }
    report.planner = Some(planner);
    (optimized, report)
}
