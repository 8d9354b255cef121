//! The heart: an e-graph inserts, moves, merges and removes redistributions.
//!
//! An e-class is one local value per rank. Its type (with placement) is analysis data, and merging
//! two classes of different type is a bug of a rule that the analysis reports at once. The rules are
//! the equalities in [`rules`]; each takes its condition from the factor table.
//! [`mod@extract`] picks one operation per class so that the whole graph costs least. The input program
//! is always a candidate, so the result is never worse. A program that repeats is searched with few
//! occurrences and made longer again (`blocks.rs`).
//!
//! Before, the input gradient of q, k and v: `%10 = all_reduce tp sum %7`, `%11 = all_reduce tp sum
//! %8`, `%12 = all_reduce tp sum %9`, `%13 = add %10, %11, %12`.
//! After: `%10 = add %7, %8, %9`, `%11 = all_reduce tp sum %10  why: … rule 7`.

mod blocks;
pub mod extract;
mod limits;
pub mod rules;
mod saturate;
pub mod term;

use crate::cost::{Gradients, Role, graph_seconds, seconds_in};
use crate::reasons::explain;
use crate::targets::Target;
use egg::{EGraph, Id};
use extract::extract;
pub use limits::{Bounds, Limit, Work};
pub use saturate::{Saturated, saturate};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use term::{Heads, Term, Typing};
use tpc_ir::{DType, Graph, Op, Origin, Output, Type, Value};

/// What the search may do.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// Rules that are switched off, by their numbers in [`rules`].
    pub disabled: BTreeSet<u32>,
    /// Most e-nodes, if that is less than what the program's size allows ([`Bounds`]).
    pub node_limit: usize,
    /// Most rounds of rewriting.
    pub rounds: usize,
    /// Whether a block that occurs many times is searched with few occurrences.
    pub blocks: bool,
}

impl Default for SearchOptions {
    fn default() -> Self {
        // Rule 1 multiplies the search by every dimension that could be scattered. It only pays when
        // a whole residual stream follows, which one change at a time does not find: off for now.
        SearchOptions { disabled: BTreeSet::from([1]), node_limit: 1_000_000, rounds: 8, blocks: true }
    }
}

/// What the search bought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SearchReport {
    /// Predicted seconds of the program before.
    pub before: f64,
    /// Predicted seconds after.
    pub after: f64,
    /// Predicted seconds of what was found, if that is slower than what came in and was declined.
    pub declined: Option<f64>,
    /// What the search counted; of a program that repeats, in the short one that was searched.
    pub work: Work,
    /// What it might have counted at most.
    pub bounds: Bounds,
    /// The bounds that it reached: with larger ones it might have found more.
    pub limits: Vec<Limit>,
    /// Operations in the result that a rule put there, by rule number.
    pub paid: Vec<(u32, usize)>,
    /// The blocks that were searched once, and how often each occurs.
    pub blocks: Vec<(String, usize)>,
}

/// An optimized graph.
struct Found {
    graph: Graph,
    /// For every node the rule that put it there; 0 if none did.
    rules: Vec<u32>,
    work: Work,
    bounds: Bounds,
    limits: Vec<Limit>,
    blocks: Vec<(String, usize)>,
}

/// Optimizes a placed graph for a target: never to one that costs more there.
pub fn optimize(graph: &Graph, target: &Target, options: &SearchOptions) -> (Graph, SearchReport) {
    let mut found = search(graph, target, options);
    explain(&mut found.graph);
    let (before, after) = (graph_seconds(target, graph), graph_seconds(target, &found.graph));
    let Found { work, bounds, limits, blocks, .. } = found;
    let report = SearchReport { before, after, declined: None, work, bounds, limits, paid: Vec::new(), blocks };
    if after > before {
        // Extraction sums up what its moves change, under guesses about company; the whole program's cost decides.
        return (
            graph.clone().with_regions(Vec::new()),
            SearchReport { after: before, declined: Some(after), ..report },
        );
    }
    let mut paid: BTreeMap<u32, usize> = BTreeMap::new();
    for rule in found.rules.into_iter().filter(|&r| r > 0) {
        *paid.entry(rule).or_default() += 1;
    }
    (found.graph, SearchReport { paid: paid.into_iter().collect(), ..report })
}

/// Searches what repeats once, or everything if nothing does.
fn search(graph: &Graph, target: &Target, options: &SearchOptions) -> Found {
    let once = if options.blocks { blocks::search(graph, target, options) } else { None };
    once.unwrap_or_else(|| whole(graph, target, options))
}

fn whole(graph: &Graph, target: &Target, options: &SearchOptions) -> Found {
    let Saturated { egraph, class_of, first, mut work, bounds, mut limits } = saturate(graph, target, options);
    let roots: Vec<Id> = graph.outputs.iter().map(|o| class_of[&o.value]).collect();
    let gradients = Gradients::of(graph);
    let mut classes: HashSet<Id> = gradients.values.iter().map(|&n| class_of[&n.into()]).collect();
    let reductions = classes.iter().flat_map(|&id| &egraph[id].nodes);
    let reductions = reductions.filter(|t| matches!(egraph.analysis.key(t.key).op, Op::AllReduce { .. }));
    let before: Vec<Id> = reductions.map(|t| egraph.find(t.children[0])).collect();
    // What only a rule found to be a term of a gradient is one, too: the sum of the two gradients of a tied table.
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
    work.moves = solution.moves;
    limits.extend(solution.stopped.then_some(Limit::Moves(bounds.moves)));
    let (mut graph, rules) = rebuild(graph, &egraph, &solution.order, &class_of);
    explain(&mut graph);
    Found { graph, rules, work, bounds, limits, blocks: Vec::new() }
}

/// Adds what gradients are made of where rule 25 may take their reductions apart: the reductions over the slow axes, and the terms
/// of these. Gives the classes of the sums that a gather may complete.
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

/// The terms in the order of the program that came in: what the search made stands right behind its
/// last operand.
fn in_program_order(
    old: &Graph,
    egraph: &EGraph<Term, Typing>,
    order: &[(Id, Term)],
    class_of: &HashMap<Value, Id>,
) -> Vec<(Id, Term)> {
    let mut earliest: HashMap<Id, usize> = HashMap::new();
    for node in old.nodes() {
        for result in 0..old.node(node).types.len() as u32 {
            let id = egraph.find(class_of[&Value { node, result }]);
            earliest.entry(id).or_insert(node.index());
        }
    }
    let index: HashMap<Id, usize> = order.iter().enumerate().map(|(i, (id, _))| (*id, i)).collect();
    let mut key: Vec<(usize, usize)> = Vec::new();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); order.len()];
    let mut missing: Vec<usize> = vec![0; order.len()];
    for (i, (id, term)) in order.iter().enumerate() {
        let below: Vec<usize> = term.children.iter().map(|c| index[&egraph.find(*c)]).collect();
        let made = below.iter().map(|&b| key[b].0).max().unwrap_or(0);
        key.push((earliest.get(id).copied().unwrap_or(made), i));
        missing[i] = below.len();
        below.into_iter().for_each(|b| users[b].push(i));
    }
    let mut ready: BinaryHeap<Reverse<(usize, usize)>> =
        (0..order.len()).filter(|&i| missing[i] == 0).map(|i| Reverse(key[i])).collect();
    let mut sorted = Vec::new();
    while let Some(Reverse((_, i))) = ready.pop() {
        sorted.push(order[i].clone());
        for &u in &users[i] {
            missing[u] -= 1;
            if missing[u] == 0 {
                ready.push(Reverse(key[u]));
            }
        }
    }
    sorted
}

/// The chosen terms as a graph again, and the rule of every node.
fn rebuild(
    old: &Graph,
    egraph: &EGraph<Term, Typing>,
    order: &[(Id, Term)],
    class_of: &HashMap<Value, Id>,
) -> (Graph, Vec<u32>) {
    let mut new = Graph::new(old.mesh.clone());
    let mut value_of: HashMap<Id, Value> = HashMap::new();
    // Inputs first and in their order, used or not: they are the program's signature.
    for (node, _) in old.inputs() {
        let n = old.node(node);
        let value = new.push(n.op.clone(), &[], n.types[0].clone(), &n.origin);
        value_of.insert(egraph.find(class_of[&node.into()]), value);
    }
    let mut rules = vec![0; new.len()];
    let mut pairs: HashMap<(tpc_ir::Op, Vec<usize>, Vec<Value>), petgraph::graph::NodeIndex> = HashMap::new();
    for (id, term) in &in_program_order(old, egraph, order, class_of) {
        if value_of.contains_key(id) {
            continue;
        }
        let operands: Vec<Value> = term.children.iter().map(|c| value_of[&egraph.find(*c)]).collect();
        let key = egraph.analysis.key(term.key);
        let origin: Origin = egraph.analysis.origin_of(term, &egraph[*id].data);
        let ty = egraph[*id].data.ty.clone();
        let value = if key.several {
            // All results of one operation are one node, and one that nobody reads has a type too:
            // a top-k's are values and indices.
            let node = *pairs.entry((key.op.clone(), ty.shape.clone(), operands.clone())).or_insert_with(|| {
                let dtypes = [new.ty(operands[0]).dtype, DType::I64];
                let types = dtypes.map(|dtype| Type { dtype, ..ty.clone() }).to_vec();
                new.add(key.op.clone(), &operands, types, origin.clone())
            });
            new.node_mut(node).types[key.result as usize] = ty;
            Value { node, result: key.result }
        } else {
            new.push(key.op.clone(), &operands, ty, &origin)
        };
        value_of.insert(*id, value);
        rules.resize(new.len(), egraph.analysis.rule_of(term));
    }
    new.outputs =
        old.outputs.iter().map(|o| Output { value: value_of[&egraph.find(class_of[&o.value])], ..o.clone() }).collect();
    (new, rules)
}
