//! The heart: an e-graph inserts, moves, merges and removes redistributions.
//!
//! An e-class is one local value per rank. Its type, with placement, is analysis data; merging two classes of different
//! type is a bug of a rule, which the analysis reports at once. The rules are the equalities in [`rules`], and each takes
//! its condition from the factor table. [`mod@extract`] picks one operation per class so that the whole graph costs least.
//! The input program is always a candidate, so the result is never worse. A program that repeats is searched with few
//! occurrences and made longer again (`blocks.rs`).
//!
//! Before, the input gradient of q, k and v: `%10 = all_reduce tp sum %7`, `%11 = all_reduce tp sum %8`, `%12 = all_reduce
//! tp sum %9`, `%13 = add %10, %11, %12`.
//! After: `%10 = add %7, %8, %9`, `%11 = all_reduce tp sum %10  why: … rule 7`.

mod blocks;
pub mod extract;
mod heads;
mod limits;
mod options;
mod provenance;
mod rebuild;
mod report;
pub mod rules;
mod saturate;
mod stop;
pub mod term;

use crate::cost::{Gradients, Role, graph_seconds, seconds_in};
use crate::reasons::explain;
use crate::targets::Target;
use egg::{EGraph, Id};
use extract::extract;
pub use heads::Heads;
pub use limits::Bounds;
pub use options::{FloatingPoint, SearchOptions};
use rebuild::rebuild;
pub use report::{RuleWork, SearchReport, Work};
use rules::RuleId;
pub use saturate::{Saturated, saturate};
use std::collections::{BTreeMap, HashSet};
pub use stop::{Extraction, Stop};
use term::{Term, Typing};
use tpc_ir::{Graph, Op, Type};

/// An optimized graph.
struct Found {
    graph: Graph,
    /// The rule that each node is due to.
    due: Vec<Option<RuleId>>,
    work: Work,
    bounds: Bounds,
    stop: Stop,
    extraction: Extraction,
    rules: BTreeMap<RuleId, RuleWork>,
    blocks: Vec<(String, usize)>,
}

/// Optimizes a placed graph for a target: never to one that costs more there.
pub fn optimize(graph: &Graph, target: &Target, options: &SearchOptions) -> (Graph, SearchReport) {
    let mut found = search(graph, target, options);
    explain(&mut found.graph);
    let (before, after) = (graph_seconds(target, graph), graph_seconds(target, &found.graph));
    let Found { work, bounds, stop, extraction, rules, blocks, .. } = found;
    let mut report =
        SearchReport { before, after, declined: None, work, bounds, stop, extraction, rules, blocks, planner: None };
    if after > before {
        // Extraction sums up what its moves change, under guesses about company; the whole program's cost decides.
        (report.after, report.declined) = (before, Some(after));
        return (graph.clone().with_regions(Vec::new()), report);
    }
    for rule in found.due.into_iter().flatten() {
        report.rules.entry(rule).or_default().paid += 1;
    }
    (found.graph, report)
}

/// Searches what repeats once, or everything if nothing does.
fn search(graph: &Graph, target: &Target, options: &SearchOptions) -> Found {
    let once = if options.blocks { blocks::search(graph, target, options) } else { None };
    once.unwrap_or_else(|| whole(graph, target, options))
}

fn whole(graph: &Graph, target: &Target, options: &SearchOptions) -> Found {
    let Saturated { egraph, class_of, first, mut work, bounds, stop, rules } = saturate(graph, target, options);
    let roots: Vec<Id> = graph.outputs.iter().map(|o| class_of[&o.value]).collect();
    let gradients = Gradients::of(graph);
    let mut classes: HashSet<Id> = gradients.values.iter().map(|&n| class_of[&n.into()]).collect();
    let reductions = classes.iter().flat_map(|&id| &egraph[id].nodes);
    let reductions = reductions.filter(|t| matches!(egraph.analysis.key(t.key).op, Op::AllReduce { .. }));
    let before: Vec<Id> = reductions.map(|t| egraph.find(t.children[0])).collect();
    // What only a rule found to be a term of a gradient is one, too, as the sum of the two gradients of a tied table.
    let mut terms: HashSet<Id> = gradients.terms.iter().map(|&n| class_of[&n.into()]).collect();
    terms.extend(&before);
    classes.extend(before);
    let sums = hierarchies(&egraph, &mut classes, &mut terms);
    let seconds = |op: &Op, operands: &[(Id, &Type)], result: (Id, &Type)| {
        let term = operands.iter().any(|o| terms.contains(&o.0));
        let (gradient, completes) = (classes.contains(&result.0), sums.contains(&result.0));
        let company = gradients.company(op, &Role { gradient, term, completes });
        let types: Vec<&Type> = operands.iter().map(|o| o.1).collect();
        seconds_in(company, target, op, &types, result.1, &graph.mesh)
    };
    let solution = extract(&egraph, &roots, &first, &seconds, bounds.moves);
    (work.moves, work.crowded) = (solution.moves, solution.crowded);
    let (mut graph, due) = rebuild(graph, &egraph, &solution.order, &class_of);
    explain(&mut graph);
    Found { graph, due, work, bounds, stop, extraction: solution.end, rules, blocks: Vec::new() }
}

/// Adds what gradients are made of where rule 25 may take their reductions apart: the reductions over the slow axes, and
/// the terms of these. Gives the classes of the sums that a gather may complete.
fn hierarchies(egraph: &EGraph<Term, Typing>, classes: &mut HashSet<Id>, terms: &mut HashSet<Id>) -> HashSet<Id> {
    let mut sums = HashSet::new();
    if !egraph.analysis.links_differ() {
        return sums;
    }
    let below = |id: Id, head: Heads| -> Vec<Id> {
        let found = egraph[id].nodes.iter().filter(|t| egraph.analysis.head(t.key) == head);
        found.map(|t| egraph.find(t.children[0])).collect()
    };
    let mut pending: Vec<Id> = classes.iter().copied().collect();
    while let Some(id) = pending.pop() {
        if !egraph[id].data.heads.meets(Heads::ALL_REDUCE) || !sums.insert(id) {
            continue;
        }
        terms.extend(below(id, Heads::ALL_REDUCE));
        for inner in below(id, Heads::ALL_GATHER) {
            if egraph[inner].data.heads.meets(Heads::ALL_REDUCE) {
                classes.insert(inner);
                pending.push(inner);
            }
        }
    }
    sums
}
