//! Rules are dispatched on the outer operation of a term: those that say something of its kind are tried, by number.

use super::site::{Site, first_alike};
use super::table::Rule;
use crate::egraph::heads::Heads;
use crate::egraph::report::Tally;
use crate::egraph::term::{Term, Typing};
use egg::{EGraph, Id};

/// The rules of a search, by the kind of the outer operation.
pub struct Dispatch {
    rules: [Vec<&'static Rule>; Heads::COUNT],
}

impl Dispatch {
    /// Dispatches to these rules.
    pub fn of(rules: &[&'static Rule]) -> Self {
        let mut by_kind: [Vec<&'static Rule>; Heads::COUNT] = Default::default();
        for kind in Heads::each() {
            by_kind[kind.index()].extend(rules.iter().filter(|rule| rule.inner(kind) != Heads::NONE));
        }
        Dispatch { rules: by_kind }
    }

    /// Applies the rules to every term of a class.
    pub fn apply(&self, egraph: &mut EGraph<Term, Typing>, class: Id, tally: &mut Tally) {
        let terms: Vec<Term> = first_alike(egraph, &egraph[class]).cloned().collect();
        for term in terms {
            let outer = egraph.analysis.head(term.key);
            let mut site = Site::new(egraph, term);
            for rule in &self.rules[outer.index()] {
                if !site.has_operand(rule.inner(outer)) {
                    continue;
                }
                let before = site.egraph.nodes().len();
                let equal = rule.apply(&mut site);
                let unions = equal.into_iter().filter(|&id| site.egraph.union(class, id)).count();
                tally.count(rule.id, site.egraph.nodes().len() - before, unions);
            }
        }
    }
}
