//! Chooses one term per class so that the whole program costs least.
//!
//! The cost of a program is the sum over the *distinct* classes it uses (a DAG cost: egg's own tree
//! extractor counts a shared residual once per reader and loses all the gain). First a bottom-up
//! pass in the manner of extraction-gym's `faster-greedy-dag` gives every class the term whose
//! descendants cost least together; a second candidate is the program that came in. Both are then
//! improved by changing one class at a time while that helps, and the cheaper one wins.

use super::term::{Term, Typing};
use crate::cost::CostModel;
use egg::{EGraph, Id};
use std::collections::{BTreeMap, HashMap, HashSet};
use tpc_ir::Type;

/// The chosen program: classes with their terms, operands first.
pub struct Solution {
    /// Terms in an order in which operands come first.
    pub order: Vec<(Id, Term)>,
    /// Total predicted seconds.
    pub seconds: f64,
}

/// Choices for every class: index of the term among the class's nodes.
type Choice = HashMap<Id, usize>;

/// Extracts the cheapest program found for `roots`; `first` is the program that came in.
pub fn extract(egraph: &EGraph<Term, Typing>, roots: &[Id], first: &HashMap<Id, Term>, model: &CostModel) -> Solution {
    let costs = Costs::new(egraph, model);
    let greedy = greedy(egraph, &costs);
    let mut original = greedy.clone();
    for (id, term) in first {
        let nodes = &egraph[*id].nodes;
        if let Some(i) = nodes.iter().position(|n| super::term::canonical(egraph, n.clone()) == *term) {
            original.insert(*id, i);
        }
    }
    let candidates = [original, greedy].into_iter().filter_map(|c| improve(egraph, &costs, roots, c));
    let best = candidates.min_by(|a, b| a.1.total_cmp(&b.1));
    let (choice, seconds) = best.expect("the program that came in is acyclic");
    let order = walk(egraph, roots, &choice)
        .unwrap_or_default()
        .into_iter()
        .map(|id| (id, egraph[id].nodes[choice[&id]].clone()))
        .collect();
    Solution { order, seconds }
}

struct Costs(HashMap<Id, Vec<f64>>);

impl Costs {
    fn new(egraph: &EGraph<Term, Typing>, model: &CostModel) -> Self {
        let mesh = &egraph.analysis.mesh;
        let seconds = |class: &egg::EClass<Term, _>, term: &Term| {
            let op = &egraph.analysis.key(term.key).op;
            let operands: Vec<&Type> = term.children.iter().map(|&c| &egraph[c].data.ty).collect();
            let data: &super::term::ClassData = &class.data;
            // A tie goes to fewer operations.
            model.seconds(op, &operands, &data.ty, mesh) + 1e-12
        };
        Costs(egraph.classes().map(|c| (c.id, c.nodes.iter().map(|n| seconds(c, n)).collect())).collect())
    }

    fn of(&self, id: Id, term: usize) -> f64 {
        self.0[&id][term]
    }
}

/// Per class the set of classes below its best term, with the set's cost.
fn greedy(egraph: &EGraph<Term, Typing>, costs: &Costs) -> Choice {
    type Below = BTreeMap<Id, f64>;
    let mut best: HashMap<Id, (f64, Below, usize)> = HashMap::new();
    let ids: Vec<Id> = {
        let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        ids
    };
    let mut parents: HashMap<Id, Vec<Id>> = HashMap::new();
    for class in egraph.classes() {
        for term in &class.nodes {
            for &c in &term.children {
                parents.entry(egraph.find(c)).or_default().push(class.id);
            }
        }
    }
    let mut pending: std::collections::BTreeSet<Id> = ids.iter().copied().collect();
    // Each class is looked at again when one below it improved; bounded, since sets only get cheaper.
    let mut budget = ids.len() * 30;
    while let Some(id) = pending.pop_first() {
        if budget == 0 {
            break;
        }
        budget -= 1;
        let mut improved = false;
        for (i, term) in egraph[id].nodes.iter().enumerate() {
            let children: Vec<Id> = term.children.iter().map(|&c| egraph.find(c)).collect();
            let ready = children.iter().all(|c| best.get(c).is_some_and(|b| !b.1.contains_key(&id))) ;
            if !ready || children.contains(&id) {
                continue;
            }
            let mut below = Below::new();
            let mut total = costs.of(id, i);
            let mut widest: Vec<Id> = children.clone();
            widest.sort_by_key(|c| std::cmp::Reverse(best[c].1.len()));
            for (n, c) in widest.iter().enumerate() {
                if n == 0 {
                    below = best[c].1.clone();
                    total += best[c].0;
                } else {
                    for (&d, &cost) in &best[c].1 {
                        if below.insert(d, cost).is_none() {
                            total += cost;
                        }
                    }
                }
            }
            if best.get(&id).is_none_or(|b| total + 1e-15 < b.0) {
                below.insert(id, costs.of(id, i));
                best.insert(id, (total, below, i));
                improved = true;
            }
        }
        if improved {
            pending.extend(parents.get(&id).into_iter().flatten().copied());
        }
    }
    best.into_iter().map(|(id, (_, _, i))| (id, i)).collect()
}

/// Classes that a choice uses, operands first; `None` if the choice has a cycle or a gap.
fn walk(egraph: &EGraph<Term, Typing>, roots: &[Id], choice: &Choice) -> Option<Vec<Id>> {
    let mut order = Vec::new();
    let mut done: HashSet<Id> = HashSet::new();
    let mut open: HashSet<Id> = HashSet::new();
    for &root in roots {
        let mut stack = vec![(root, 0usize)];
        while let Some((id, next)) = stack.pop() {
            if done.contains(&id) {
                continue;
            }
            open.insert(id);
            let term = &egraph[id].nodes[*choice.get(&id)?];
            match term.children.get(next) {
                Some(&c) => {
                    let c = egraph.find(c);
                    stack.push((id, next + 1));
                    if !done.contains(&c) {
                        if open.contains(&c) {
                            return None;
                        }
                        stack.push((c, 0));
                    }
                }
                None => {
                    open.remove(&id);
                    done.insert(id);
                    order.push(id);
                }
            }
        }
    }
    Some(order)
}

/// Changes one class at a time while the total falls.
fn improve(egraph: &EGraph<Term, Typing>, costs: &Costs, roots: &[Id], mut choice: Choice) -> Option<(Choice, f64)> {
    let total = |order: &[Id], choice: &Choice| order.iter().map(|&id| costs.of(id, choice[&id])).sum::<f64>();
    let mut order = walk(egraph, roots, &choice)?;
    let mut best = total(&order, &choice);
    for _ in 0..6 {
        let before = best;
        // Readers first: a change near the outputs can make whole branches unused.
        for id in order.clone().into_iter().rev() {
            let nodes = &egraph[id].nodes;
            if nodes.len() == 1 || !choice.contains_key(&id) {
                continue;
            }
            let current = choice[&id];
            let mut chosen = current;
            for i in 0..nodes.len() {
                if i == chosen || !nodes[i].children.iter().all(|&c| choice.contains_key(&egraph.find(c))) {
                    continue;
                }
                choice.insert(id, i);
                let seconds = delta(egraph, costs, roots, &choice, id);
                match seconds {
                    Some(s) if s + 1e-15 < best => {
                        best = s;
                        chosen = i;
                    }
                    _ => {}
                }
                choice.insert(id, chosen);
            }
        }
        order = walk(egraph, roots, &choice)?;
        best = total(&order, &choice);
        if best >= before - 1e-12 {
            break;
        }
    }
    Some((choice, best))
}

/// The total cost of a choice, or `None` if it has a cycle.
fn delta(egraph: &EGraph<Term, Typing>, costs: &Costs, roots: &[Id], choice: &Choice, _changed: Id) -> Option<f64> {
    let order = walk(egraph, roots, choice)?;
    Some(order.iter().map(|&id| costs.of(id, choice[&id])).sum())
}
