//! What a search did and what it bought.

use super::limits::Bounds;
use super::rules::RuleId;
use super::stop::{Extraction, Stop};
use crate::planner::{Aim, PlannerReport};
use crate::rematerialize::report::RecomputeReport;
use std::collections::BTreeMap;

/// What a search counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rounds of rewriting.
    pub rounds: usize,
    /// E-nodes.
    pub nodes: usize,
    /// Terms to which a rule was applied.
    pub applications: usize,
    /// E-nodes that rules left out, because their class has enough of the same redistribution.
    pub left_out: usize,
    /// Classes that extraction looked at.
    pub moves: usize,
    /// Collectives in the result that have more readers than extraction changes at once.
    pub crowded: usize,
}

/// What a rule did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleWork {
    /// Terms to which it was applied.
    pub applied: usize,
    /// E-nodes that it added.
    pub added: usize,
    /// Classes that it found equal to another.
    pub unions: usize,
    /// Operations of the result that are due to it.
    pub paid: usize,
}

/// What the search bought. Of a program that repeats, everything but seconds and `paid` is counted in the short program
/// that was searched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchReport {
    /// Predicted seconds of the program before.
    pub before: f64,
    /// Predicted seconds after.
    pub after: f64,
    /// Predicted seconds of what was found, if that is slower than what came in and was declined.
    pub declined: Option<f64>,
    /// What the search counted.
    pub work: Work,
    /// What it might have counted at most.
    pub bounds: Bounds,
    /// Why rewriting stopped.
    pub stop: Stop,
    /// Why extraction stopped.
    pub extraction: Extraction,
    /// What each rule did that was applied.
    pub rules: BTreeMap<RuleId, RuleWork>,
    /// The blocks that were searched once, and how often each occurs.
    pub blocks: Vec<(String, usize)>,
    /// What the planner did, if it chose placements.
    pub planner: Option<PlannerReport>,
    /// What is computed a second time, so that the program fits into memory.
    pub recomputed: Option<RecomputeReport>,
}

impl SearchReport {
    /// What the planner was to do, if it chose placements.
    pub fn aim(&self) -> Option<Aim> {
        self.planner.as_ref().map(|planner| planner.aim)
    }

    /// What ended the search before it was done, in words: with larger bounds it might have found more.
    pub fn unfinished(&self) -> Option<String> {
        let reached: Vec<String> = self.stop.bound().into_iter().chain(self.extraction.bound()).collect();
        (!reached.is_empty()).then(|| reached.join(" and "))
    }
}

/// Counts what rules do.
#[derive(Debug, Default)]
pub struct Tally {
    /// Terms to which a rule was applied.
    pub applications: usize,
    /// The same and more, by rule.
    pub rules: BTreeMap<RuleId, RuleWork>,
}

impl Tally {
    /// How many e-nodes were added and classes found equal.
    pub fn changes(&self) -> usize {
        self.rules.values().map(|work| work.added + work.unions).sum()
    }

    /// Counts one application.
    pub fn count(&mut self, rule: RuleId, added: usize, unions: usize) {
        self.applications += 1;
        let work = self.rules.entry(rule).or_default();
        work.applied += 1;
        work.added += added;
        work.unions += unions;
    }
}
