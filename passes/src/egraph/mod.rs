//! The heart: an e-graph inserts, moves, merges and removes redistributions.
//!
//! An e-class is one local value per rank, and a *term* is an operation applied to classes: one way to compute it. The
//! type of a class, with placement, is analysis data; merging two classes of different type is a bug of a rule, which the
//! analysis reports at once. The rules are the equalities in [`rules`], and each takes its condition from the factor
//! table. [`mod@extract`] picks one term per class so that the whole graph costs least. The input program is always a
//! candidate, so the result is never worse. A program that repeats is searched
//! with few occurrences ([`shorten`](crate::shorten)).
//!
//! The cost of a collective depends on its *company* ([`Company`](crate::cost::Company)): the reductions of gradients
//! begin together in buckets, so each of them costs its bytes and a launch, but not the latency of its link. The operand
//! of a gradient's all-reduce is a *summand*, because the gradient is its sum over ranks. A gather *completes* a gradient
//! if it is the last step of a reduction that rule 25 split.
//!
//! Before, the input gradient of q, k and v: `%10 = all_reduce tp sum %7`, `%11 = all_reduce tp sum %8`, `%12 = all_reduce
//! tp sum %9`, `%13 = add %10, %11, %12`.
//! After: `%10 = add %7, %8, %9`, `%11 = all_reduce tp sum %10  why: … rule 7`.

pub mod extract;
mod heads;
mod limits;
mod options;
mod provenance;
mod report;
pub mod rules;
mod saturate;
mod stop;
pub mod term;
mod to_graph;

use crate::cost::{Gradients, Role, graph_seconds_counted, seconds_in};
use crate::reasons::explain;
use crate::shorten::Extent;
use crate::targets::Target;
use egg::{EGraph, Id};
use extract::extract;
pub use heads::Heads;
pub use limits::Bounds;
pub use options::{FloatingPoint, SearchOptions};
pub use report::{RuleWork, SearchReport, Work};
use rules::RuleId;
pub use saturate::{Saturated, saturate};
use std::collections::{BTreeMap, HashSet};
pub use stop::{Extraction, Stop};
use term::{Term, Typing};
use to_graph::to_graph;
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
}

/// Improves a placed graph for a target: never to one that costs more there.
pub fn improve(graph: &Graph, target: &Target, options: &SearchOptions) -> (Graph, SearchReport) {
    improve_as(graph, Extent::Whole, target, options).expect("a whole program stands for itself")
}

/// [`improve`] for a program that may stand for a longer one. `None` if the improved graph does not repeat as the graph does.
pub fn improve_as(
    graph: &Graph,
    extent: Extent,
    target: &Target,
    options: &SearchOptions,
) -> Option<(Graph, SearchReport)> {
    let mut found = search(graph, target, options);
    explain(&mut found.graph);
    let times = extent.times(&found.graph)?;
    let before = graph_seconds_counted(target, graph, &extent.times(graph)?);
    let after = graph_seconds_counted(target, &found.graph, &times);
    let Found { work, bounds, stop, extraction, rules, .. } = found;
    let mut report = SearchReport {
        before,
        after,
        declined: None,
        work,
        bounds,
        stop,
        extraction,
        rules,
        blocks: Vec::new(),
        planner: None,
        recomputed: None,
    };
    if after > before {
        // Extraction adds up the gain of each move and guesses which collectives will share a bucket. The guess may be
        // wrong, so the cost of the whole program decides.
        (report.after, report.declined) = (before, Some(after));
        return Some((graph.clone().with_regions(Vec::new()), report));
    }
    for (rule, times) in found.due.into_iter().zip(times).filter_map(|(rule, times)| Some((rule?, times))) {
        report.rules.entry(rule).or_default().paid += times as usize;
    }
    Some((found.graph, report))
}

fn search(graph: &Graph, target: &Target, options: &SearchOptions) -> Found {
    let Saturated { egraph, class_of, first, mut work, bounds, stop, rules } = saturate(graph, target, options);
    let roots: Vec<Id> = graph.outputs.iter().map(|o| class_of[&o.value]).collect();
    let gradients = Gradients::of(graph);
    let mut classes: HashSet<Id> = gradients.values.iter().map(|&n| class_of[&n.into()]).collect();
    let reductions = classes.iter().flat_map(|&id| &egraph[id].nodes);
    let reductions = reductions.filter(|t| matches!(egraph.analysis.key(t.key).op, Op::AllReduce { .. }));
    let before: Vec<Id> = reductions.map(|t| egraph.find(t.children[0])).collect();
    // Operands of all-reduces that a rule added to a gradient's class are summands of that gradient, too. Example: a tied
    // table, where a rule first adds its two gradients.
    let mut summands: HashSet<Id> = gradients.summands.iter().map(|&n| class_of[&n.into()]).collect();
    summands.extend(&before);
    classes.extend(before);
    let reduced = hierarchies(&egraph, &mut classes, &mut summands);
    let seconds = |op: &Op, operands: &[(Id, &Type)], result: (Id, &Type)| {
        let summand = operands.iter().any(|o| summands.contains(&o.0));
        let (gradient, completes) = (classes.contains(&result.0), reduced.contains(&result.0));
        let company = gradients.company(op, &Role { gradient, summand, completes });
        let types: Vec<&Type> = operands.iter().map(|o| o.1).collect();
        seconds_in(company, target, op, &types, result.1, &graph.mesh)
    };
    let solution = extract(&egraph, &roots, &first, &seconds, bounds.moves);
    (work.moves, work.crowded) = (solution.moves, solution.crowded);
    let (mut graph, due) = to_graph(graph, &egraph, &solution.order, &class_of);
    explain(&mut graph);
    Found { graph, due, work, bounds, stop, extraction: solution.end, rules }
}

/// If links differ, rule 25 may split a gradient's reduction. Adds the inner reductions over the slow axes to `classes`
/// and their operands to `summands`, and returns the reduced gradients, which may end in a gather.
fn hierarchies(egraph: &EGraph<Term, Typing>, classes: &mut HashSet<Id>, summands: &mut HashSet<Id>) -> HashSet<Id> {
    let mut reduced = HashSet::new();
    if !egraph.analysis.links_differ() {
        return reduced;
    }
    let below = |id: Id, head: Heads| -> Vec<Id> {
        let found = egraph[id].nodes.iter().filter(|t| egraph.analysis.head(t.key) == head);
        found.map(|t| egraph.find(t.children[0])).collect()
    };
    let mut pending: Vec<Id> = classes.iter().copied().collect();
    while let Some(id) = pending.pop() {
        if !egraph[id].data.heads.meets(Heads::ALL_REDUCE) || !reduced.insert(id) {
            continue;
        }
        summands.extend(below(id, Heads::ALL_REDUCE));
        for inner in below(id, Heads::ALL_GATHER) {
            if egraph[inner].data.heads.meets(Heads::ALL_REDUCE) {
                classes.insert(inner);
                pending.push(inner);
            }
        }
    }
    reduced
}
