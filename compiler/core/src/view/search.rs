//! What the search for a cheaper program bought.

use serde::Serialize;
use tpc_ir::Mesh;
use tpc_passes::egraph::rules::{Tag, all_rules};
use tpc_passes::egraph::{RuleWork, SearchReport};
use tpc_passes::planner::{AxesReport, PlannerReport};

/// A rule that was applied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ruled {
    /// Its number.
    pub rule: u32,
    /// Its name.
    pub name: &'static str,
    /// The equality that it states.
    pub equality: &'static str,
    /// Whether results keep every bit.
    pub exact: bool,
    /// The number of terms to which it was applied.
    pub applied: usize,
    /// The number of operations of the result that are due to it.
    pub paid: usize,
}

/// What was planned along some axes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AxesPlanned {
    /// The axes.
    pub axes: Vec<String>,
    /// The number of choices.
    pub variables: usize,
    /// The number of states of all choices.
    pub states: usize,
    /// Seconds of the solution.
    pub seconds: f64,
    /// No solution takes fewer seconds.
    pub bound: f64,
}

/// What the planner did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    /// Predicted seconds before.
    pub before: f64,
    /// Predicted seconds after.
    pub after: f64,
    /// Whether its solution was taken.
    pub taken: bool,
    /// The share by which other placements could be cheaper; none if it is not known.
    pub gap: Option<f64>,
    /// No placements take fewer seconds; none if it is not known.
    pub bound: Option<f64>,
    /// What it planned, in order.
    pub steps: Vec<AxesPlanned>,
}

/// What the search did. Seconds are those of the cost model, in which nothing overlaps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Searched {
    /// Predicted seconds of the program before.
    pub before: f64,
    /// Predicted seconds after.
    pub after: f64,
    /// Predicted seconds of what was found and declined, because it is slower than what came in.
    pub declined: Option<f64>,
    /// Why rewriting stopped.
    pub stop: &'static str,
    /// Why extraction stopped.
    pub extraction: &'static str,
    /// What ended the search before it was done, in words; none if nothing did.
    pub unfinished: Option<String>,
    /// Rounds of rewriting.
    pub rounds: usize,
    /// The number of e-nodes.
    pub nodes: usize,
    /// The number of terms to which a rule was applied.
    pub applications: usize,
    /// The rules that were applied.
    pub rules: Vec<Ruled>,
    /// The blocks that were searched once, and how often each occurs.
    pub blocks: Vec<(String, usize)>,
    /// What the planner did, if it chose placements.
    pub planner: Option<Planned>,
}

pub(super) fn searched(report: &SearchReport, mesh: &Mesh) -> Searched {
    let rules = all_rules().iter().filter_map(|rule| {
        let &RuleWork { applied, paid, .. } = report.rules.get(&rule.id)?;
        let exact = rule.tag == Tag::Exact;
        Some(Ruled { rule: rule.id.number(), name: rule.name, equality: rule.equality, exact, applied, paid })
    });
    Searched {
        before: report.before,
        after: report.after,
        declined: report.declined,
        stop: report.stop.name(),
        extraction: report.extraction.name(),
        unfinished: report.unfinished(),
        rounds: report.work.rounds,
        nodes: report.work.nodes,
        applications: report.work.applications,
        rules: rules.collect(),
        blocks: report.blocks.clone(),
        planner: report.planner.as_ref().map(|report| planned(report, mesh)),
    }
}

fn planned(report: &PlannerReport, mesh: &Mesh) -> Planned {
    let step = |step: &AxesReport| AxesPlanned {
        axes: step.axes.iter().map(|&axis| mesh.name(axis).to_string()).collect(),
        variables: step.variables,
        states: step.states,
        seconds: step.seconds,
        bound: step.bound,
    };
    Planned {
        before: report.before,
        after: report.after,
        taken: report.taken,
        gap: report.gap(),
        bound: report.bound,
        steps: report.steps.iter().map(step).collect(),
    }
}
