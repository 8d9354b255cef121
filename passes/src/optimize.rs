//! Makes a placed program cheap: the planner chooses placements if it may, and the rules of the e-graph improve the
//! redistributions between them.
//!
//! Before: the first placement of every value ([`propagate`](crate::propagate)).
//! After: the cheapest program that was found, which never costs more than the one that came in.

use crate::egraph::{SearchOptions, SearchReport, optimize as rewrite};
use crate::planner::{PlacementSource, plan};
use crate::targets::Target;
use tpc_ir::Graph;

/// Optimizes a placed graph for a target: never to one that costs more there, unless memory has a price, in seconds for
/// each byte that a rank keeps from the forward to the backward pass.
pub fn optimize(graph: &Graph, target: &Target, options: &SearchOptions, price: f64) -> (Graph, SearchReport) {
    if options.placements == PlacementSource::Given {
        return rewrite(graph, target, options);
    }
    let (planned, planner) = plan(graph, target, price);
    let (optimized, mut report) = rewrite(planned.as_ref().unwrap_or(graph), target, options);
    report.before = planner.before;
    report.planner = Some(planner);
    (optimized, report)
}
