//! Rules are dispatched on the operations of terms: a rule is tried where the outer operation is one of which it says something
//! and an operand is.

use super::site::{Site, first_alike};
use super::table::Rule;
use crate::egraph::heads::Heads;
use crate::egraph::report::Tally;
use crate::egraph::term::{Term, Typing};
use egg::{EGraph, Id};

/// A rule of a search, with the kinds of operations on which it is dispatched.
pub struct Dispatched {
    rule: &'static Rule,
    outer: Heads,
    /// For every kind of outer operation, the kinds of which an operand has to be.
    inner: [Heads; Heads::COUNT],
}

impl Dispatched {
    /// Prepares a rule.
    pub fn new(rule: &'static Rule) -> Self {
        let (mut outer, mut inner) = (Heads::NONE, [Heads::NONE; Heads::COUNT]);
        for kind in Heads::each() {
            inner[kind.index()] = rule.inner(kind);
            if rule.inner(kind) != Heads::NONE {
                outer = outer.or(kind);
            }
        }
        Dispatched { rule, outer, inner }
    }

    /// Whether the rule says something of a term of a class.
    pub fn concerns(&self, egraph: &EGraph<Term, Typing>, class: Id) -> bool {
        egraph[class].data.heads.meets(self.outer)
    }

    /// Applies the rule to every term of a class.
    pub fn apply(&self, egraph: &mut EGraph<Term, Typing>, class: Id, tally: &mut Tally) {
        let concerns = |term: &&Term| {
            let inner = self.inner[egraph.analysis.head(term.key).index()];
            inner != Heads::NONE && term.children.iter().any(|&c| egraph[c].data.heads.meets(inner))
        };
        let terms: Vec<Term> = first_alike(egraph, &egraph[class]).filter(concerns).cloned().collect();
        for term in terms {
            let before = egraph.nodes().len();
            let equal = self.rule.apply(&mut Site::new(egraph, term));
            let unions = equal.into_iter().filter(|&id| egraph.union(class, id)).count();
            tally.count(self.rule.id, egraph.nodes().len() - before, unions);
        }
    }
}
