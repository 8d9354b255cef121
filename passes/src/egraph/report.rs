//! What a search did and what it bought.

use super::limits::Bounds;
use super::rules::RuleId;
use std::collections::BTreeMap;

/// Why the rules were no longer applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stop {
    /// They found nothing more.
    #[default]
    Saturated,
    /// So many rounds were made.
    Rounds(usize),
    /// There are so many e-nodes.
    Nodes(usize),
    /// So many terms had a rule applied to them.
    Applications(usize),
}

impl Stop {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Stop::Saturated => "saturated",
            Stop::Rounds(_) => "rounds",
            Stop::Nodes(_) => "nodes",
            Stop::Applications(_) => "applications",
        }
    }

    /// The bound that was reached, in words.
    fn bound(self) -> Option<String> {
        match self {
            Stop::Saturated => None,
            Stop::Rounds(n) => Some(counted(n, "round")),
            Stop::Nodes(n) => Some(counted(n, "e-node")),
            Stop::Applications(n) => Some(counted(n, "application") + " of rules"),
        }
    }
}

/// Why extraction ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extraction {
    /// No change that it looks for made the program cheaper.
    #[default]
    Settled,
    /// So many rounds of changes were made.
    Rounds(usize),
    /// So many classes were looked at.
    Moves(usize),
}

impl Extraction {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Extraction::Settled => "settled",
            Extraction::Rounds(_) => "rounds",
            Extraction::Moves(_) => "moves",
        }
    }

    /// The bound that was reached, in words.
    fn bound(self) -> Option<String> {
        match self {
            Extraction::Settled => None,
            Extraction::Rounds(n) => Some(counted(n, "round") + " of extraction"),
            Extraction::Moves(n) => Some(counted(n, "look") + " of extraction"),
        }
    }
}

fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

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
}

impl SearchReport {
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
