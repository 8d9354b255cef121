//! The terms that extraction chose become a graph again.

use super::rules::RuleId;
use super::term::{Term, Typing};
use egg::{EGraph, Id};
use petgraph::graph::NodeIndex;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use tpc_ir::{DType, Graph, Op, Origin, Output, Type, Value};

/// The terms in the order of the program that came in: what the search made stands right after its last operand.
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

/// The chosen terms as a graph, and the rule that each node is due to.
pub fn to_graph(
    old: &Graph,
    egraph: &EGraph<Term, Typing>,
    order: &[(Id, Term)],
    class_of: &HashMap<Value, Id>,
) -> (Graph, Vec<Option<RuleId>>) {
    let mut new = Graph::with_room_for(old.mesh.clone(), old);
    let mut value_of: HashMap<Id, Value> = HashMap::new();
    // Inputs come first and in their order, used or not: they are the program's signature.
    for (node, _) in old.inputs() {
        let n = old.node(node);
        let value = new.push(n.op.clone(), &[], n.types[0].clone(), &n.origin);
        value_of.insert(egraph.find(class_of[&node.into()]), value);
    }
    let mut rules = vec![None; new.len()];
    let mut pairs: HashMap<(Op, Vec<usize>, Vec<Value>), NodeIndex> = HashMap::new();
    for (id, term) in &in_program_order(old, egraph, order, class_of) {
        if value_of.contains_key(id) {
            continue;
        }
        let operands: Vec<Value> = term.children.iter().map(|c| value_of[&egraph.find(*c)]).collect();
        let key = egraph.analysis.key(term.key);
        let origin: Origin = egraph.analysis.origin_of(term);
        let ty = egraph[*id].data.ty.clone();
        let value = if key.several {
            // All results of one operation are one node. A result without readers has a type, too: a top-k gives values
            // and indices.
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
