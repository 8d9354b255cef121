//! A program becomes an e-graph, and rules find what is equal in it.
//!
//! Rounds: each applies every rule to every class in which there is something to move. A rule looks at
//! the terms of a class and of its operands, so it is not applied twice to classes in which both stayed
//! as they were. The bounds of [`limits`](super::limits) end the search between two applications; what
//! was found until then is an e-graph of equal programs like any other.

use super::SearchOptions;
use super::limits::{Bounds, Limit, Work};
use super::rules::{HIERARCHICAL, all_rules};
use super::term::{self, Heads, Key, Term, Typing};
use crate::targets::Target;
use egg::{EGraph, Id};
use std::collections::HashMap;
use tpc_ir::{Graph, Value};

/// The e-graph of a program after the search: everything that the rules found equal.
pub struct Saturated {
    /// The e-graph.
    pub egraph: EGraph<Term, Typing>,
    /// The canonical class of every value of the program.
    pub class_of: HashMap<Value, Id>,
    /// The program that came in: one of its terms for every class that has one. Of several terms that
    /// became equal it is the earliest, whose operands are earlier still: the program has no cycle.
    pub first: HashMap<Id, Term>,
    /// What was counted.
    pub work: Work,
    /// What might have been counted at most.
    pub bounds: Bounds,
    /// The bounds that were reached.
    pub limits: Vec<Limit>,
}

/// Puts a placed graph into an e-graph and applies the rules. The target says which axes are faster than others.
pub fn saturate(graph: &Graph, target: &Target, options: &SearchOptions) -> Saturated {
    let bandwidths = target.links.bandwidths(&graph.mesh);
    let mut egraph = EGraph::<Term, Typing>::new(Typing::new(graph.mesh.clone(), bandwidths));
    let mut class_of: HashMap<Value, Id> = HashMap::new();
    let mut program: Vec<(Id, Term)> = Vec::new();
    for node in graph.nodes() {
        let n = graph.node(node);
        let children: Vec<Id> = graph.operands(node).iter().map(|v| class_of[v]).collect();
        for (result, ty) in n.types.iter().enumerate() {
            let origin = egraph.analysis.origin(&n.origin);
            let key = Key::new(&n.op, result as u32, ty, n.types.len() > 1);
            let id = term::add(&mut egraph, key, children.clone(), origin);
            class_of.insert(Value { node, result: result as u32 }, id);
            program.push((id, egraph[id].nodes[0].clone()));
        }
    }
    let bounds = Bounds::of(graph, options);
    egraph.analysis.most = bounds.nodes;
    let (work, limits) = search(&mut egraph, options, &bounds);
    class_of.values_mut().for_each(|id| *id = egraph.find(*id));
    let mut first: HashMap<Id, Term> = HashMap::new();
    for (id, term) in program {
        first.entry(egraph.find(id)).or_insert_with(|| term::canonical(&egraph, term));
    }
    Saturated { egraph, class_of, first, work, bounds, limits }
}

/// Applies the rules until nothing changes or a bound is reached.
fn search(egraph: &mut EGraph<Term, Typing>, options: &SearchOptions, bounds: &Bounds) -> (Work, Vec<Limit>) {
    let is_on =
        |number: u32| !options.disabled.contains(&number) && (number != HIERARCHICAL || egraph.analysis.links_differ());
    let rules: Vec<_> = all_rules().iter().filter(|r| is_on(r.number)).collect();
    // By rule and class: when it was applied, counted in changes.
    let mut applied: Vec<Vec<u32>> = vec![Vec::new(); rules.len()];
    let mut work = Work::default();
    egraph.rebuild();
    loop {
        work.nodes = egraph.nodes().len();
        if work.rounds == options.rounds {
            return (work, vec![Limit::Rounds(work.rounds)]);
        }
        work.rounds += 1;
        let start = egraph.analysis.now();
        let classes: Vec<Id> = egraph.classes().map(|c| c.id).filter(|&id| is_worth_a_look(egraph, id)).collect();
        let mut reached = None;
        'round: for (rule, applied) in rules.iter().zip(&mut applied) {
            for &class in &classes {
                let class = egraph.find(class);
                if applied.len() <= usize::from(class) {
                    applied.resize(egraph.nodes().len(), 0);
                }
                let last = &mut applied[usize::from(class)];
                if !rule.concerns(&egraph[class].data) || *last > egraph.analysis.changed(class) {
                    continue;
                }
                *last = egraph.analysis.now() + 1;
                work.applications += rule.apply(egraph, class);
                reached = bounds.reached(egraph.nodes().len(), work.applications);
                if reached.is_some() {
                    break 'round;
                }
            }
        }
        egraph.rebuild();
        term::settle(egraph);
        if let Some(limit) = reached {
            work.nodes = egraph.nodes().len();
            return (work, vec![limit]);
        }
        if egraph.analysis.now() == start {
            work.nodes = egraph.nodes().len();
            return (work, Vec::new());
        }
    }
}

/// Whether there is something to move in a class: a redistribution, or a term with an operand that is one.
fn is_worth_a_look(egraph: &EGraph<Term, Typing>, class: Id) -> bool {
    let moves = |id: Id| egraph[id].data.heads.meets(Heads::MOVES);
    moves(class) || egraph[class].nodes.iter().any(|t| t.children.iter().any(|&c| moves(c)))
}
