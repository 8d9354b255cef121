//! A program becomes an e-graph, and rules find what is equal in it.
//!
//! Each round goes through the classes in which there is something to move and applies to every term the rules that concern
//! its operation. Rules look at the terms of a class and of its operands, so a class is left out as long as neither
//! change. The bounds of [`limits`](super::limits) end the search between two classes; what was found until then is an
//! e-graph of equal programs like any other.

use super::heads::Heads;
use super::limits::Bounds;
use super::options::SearchOptions;
use super::report::{RuleWork, Stop, Tally, Work};
use super::rules::{Dispatch, Rule, RuleId, left_out};
use super::term::{self, Key, Term, Typing};
use crate::targets::Target;
use egg::{EGraph, Id};
use std::collections::{BTreeMap, HashMap};
use tpc_ir::{Graph, Value};

/// The e-graph of a program after the search: everything that the rules found equal.
pub struct Saturated {
    /// The e-graph.
    pub egraph: EGraph<Term, Typing>,
    /// The canonical class of every value of the program.
    pub class_of: HashMap<Value, Id>,
    /// The program that came in: one of its terms for every class that has one. Of several terms that became equal it is
    /// the earliest, whose operands are earlier still, so this program has no cycle.
    pub first: HashMap<Id, Term>,
    /// What was counted.
    pub work: Work,
    /// What might have been counted at most.
    pub bounds: Bounds,
    /// Why it stopped.
    pub stop: Stop,
    /// What each rule did.
    pub rules: BTreeMap<RuleId, RuleWork>,
}

/// Puts a placed graph into an e-graph and applies the rules. The target says which axes are faster than others.
pub fn saturate(graph: &Graph, target: &Target, options: &SearchOptions) -> Saturated {
    saturate_by(&options.rules(), graph, target, options)
}

fn saturate_by(rules: &[&'static Rule], graph: &Graph, target: &Target, options: &SearchOptions) -> Saturated {
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
    let links_differ = egraph.analysis.links_differ();
    let rules: Vec<&Rule> = rules.iter().copied().filter(|r| r.id != RuleId::HIERARCHICAL || links_differ).collect();
    let mut tally = Tally::default();
    let (rounds, stop) = search(&mut egraph, &Dispatch::of(&rules), options.rounds, &bounds, &mut tally);
    egraph.analysis.derivations.conclude();
    let left_out = egraph.classes().map(|class| left_out(&egraph, class)).sum();
    let nodes = egraph.nodes().len();
    let work = Work { rounds, nodes, applications: tally.applications, left_out, moves: 0 };
    class_of.values_mut().for_each(|id| *id = egraph.find(*id));
    let mut first: HashMap<Id, Term> = HashMap::new();
    for (id, term) in program {
        first.entry(egraph.find(id)).or_insert_with(|| term::canonical(&egraph, term));
    }
    Saturated { egraph, class_of, first, work, bounds, stop, rules: tally.rules }
}

/// Applies the rules until nothing changes or a bound is reached. The number of rounds and why it stopped.
fn search(
    egraph: &mut EGraph<Term, Typing>,
    rules: &Dispatch,
    most_rounds: usize,
    bounds: &Bounds,
    tally: &mut Tally,
) -> (usize, Stop) {
    // By class: when the rules were applied to it, counted in changes.
    let mut applied: Vec<u32> = Vec::new();
    egraph.rebuild();
    for round in 1..=most_rounds {
        let start = egraph.analysis.now();
        let classes: Vec<Id> = egraph.classes().map(|c| c.id).filter(|&id| is_worth_a_look(egraph, id)).collect();
        let mut reached = None;
        for class in classes {
            let class = egraph.find(class);
            applied.resize(egraph.nodes().len(), 0);
            if applied[usize::from(class)] > egraph.analysis.changed(class) {
                continue;
            }
            applied[usize::from(class)] = egraph.analysis.now() + 1;
            rules.apply(egraph, class, tally);
            reached = bounds.reached(egraph.nodes().len(), tally.applications);
            if reached.is_some() {
                break;
            }
        }
        egraph.rebuild();
        term::settle(egraph);
        if reached.is_some() || egraph.analysis.now() == start {
            return (round, reached.unwrap_or_default());
        }
    }
    (most_rounds, Stop::Rounds(most_rounds))
}

/// Whether there is something to move in a class: a redistribution, or a term with an operand that is one.
fn is_worth_a_look(egraph: &EGraph<Term, Typing>, class: Id) -> bool {
    let moves = |id: Id| egraph[id].data.heads.meets(Heads::MOVES);
    moves(class) || egraph[class].nodes.iter().any(|t| t.children.iter().any(|&c| moves(c)))
}
