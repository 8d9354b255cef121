//! What a search may do.

use super::rules::{Rule, RuleId, Tag, all_rules};
use crate::planner::PlacementSource;
use std::collections::BTreeSet;

/// What rules may do to floating-point results. A plan that cuts a summed index takes sums in parts whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FloatingPoint {
    /// Rules that keep every bit.
    Exact,
    /// Also rules that take sums in another order.
    #[default]
    Reassociate,
    /// Also rules that compute in another precision.
    Relaxed,
}

impl FloatingPoint {
    /// Whether rules with this tag may be applied.
    pub fn allows(self, tag: Tag) -> bool {
        match tag {
            Tag::Exact => true,
            Tag::Reassociates => self != FloatingPoint::Exact,
            Tag::Precision => self == FloatingPoint::Relaxed,
        }
    }
}

/// What the search may do.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// What rules may do to floating-point results.
    pub fp: FloatingPoint,
    /// Rules that are switched off.
    pub disabled: BTreeSet<RuleId>,
    /// What decides the placements that the plan leaves open.
    pub placements: PlacementSource,
    /// Most e-nodes, if that is less than what the program's size allows ([`Bounds`](super::Bounds)).
    pub node_limit: usize,
    /// Most rounds of rewriting.
    pub rounds: usize,
    /// Whether a block that occurs many times is searched with few occurrences.
    pub blocks: bool,
}

impl Default for SearchOptions {
    fn default() -> Self {
        SearchOptions {
            fp: FloatingPoint::default(),
            // It multiplies the search by every dimension that could be scattered, and only pays when a whole residual
            // stream follows, which changing few classes at a time does not find.
            disabled: BTreeSet::from([RuleId::SPLIT]),
            placements: PlacementSource::default(),
            node_limit: 1_000_000,
            rounds: 8,
            blocks: true,
        }
    }
}

impl SearchOptions {
    /// Whether a rule may be applied.
    pub fn allows(&self, rule: &Rule) -> bool {
        self.fp.allows(rule.tag) && !self.disabled.contains(&rule.id)
    }

    /// The rules that may be applied, by number.
    pub fn rules(&self) -> Vec<&'static Rule> {
        all_rules().iter().filter(|rule| self.allows(rule)).collect()
    }
}
