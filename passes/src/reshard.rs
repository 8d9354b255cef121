//! Frees parameters that FSDP gathers after the forward pass, and gathers them a second time for the backward pass
//! (`reshard_after_forward` of `torch.distributed.fsdp.fully_shard`).
//!
//! The search merges all gathers of a parameter into one value, which would then live from the forward pass to the
//! backward pass, so the parameters of all layers would be in memory at once. Here the backward pass gets a separate
//! gather right before its first use. Parameters are grouped in *units*, which the inputs of the program name
//! ([`UnitId`]). The unit that the forward pass uses last is not gathered twice, because the backward pass uses it
//! next; nor are parameters outside any unit (the root of FSDP). Every micro-batch has its own gathers.
//!
//! Before: `%9 = all_gather dp dim=0 %w`, `%20 = einsum … %9 ; forward`, `%70 = einsum … %9 ; backward`.
//! After: `%9 = all_gather dp dim=0 %w`, `%20 = einsum … %9 ; forward`, `%69 = all_gather dp dim=0 %w`,
//! `%70 = einsum … %69 ; backward`.

use crate::reasons::{explain, explain_short};
use crate::rebuild::{copy, rebuild};
use crate::shorten::Shortened;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::reason::Cause;
use tpc_ir::{Graph, InputId, MapFn, Op, Origin, Phase, UnitId, Value};

/// A part of the step during which a gathered parameter stays in memory: the micro-batch, and whether it is the
/// backward pass.
type Stretch = (usize, bool);

/// Gathers some parameters separately for the backward pass and for every micro-batch.
pub fn reshard_after_forward(graph: &Graph, parameters: &HashSet<&InputId>) -> Graph {
    let mut regathered = regather(graph, parameters);
    explain(&mut regathered);
    regathered
}

/// [`reshard_after_forward`] for a program that was made from a short one; `None` if the blocks of the short one are not found
/// in the result.
pub fn reshard_short(short: &Shortened, graph: &Graph, parameters: &HashSet<&InputId>) -> Option<Graph> {
    let mut regathered = regather(graph, parameters);
    explain_short(&mut regathered, short)?;
    Some(regathered)
}

fn regather(graph: &Graph, parameters: &HashSet<&InputId>) -> Graph {
    let roots = prologues(graph, parameters);
    let twice = gathered_twice(graph, &roots);
    let stretch = |user: NodeIndex, value: NodeIndex| -> Stretch {
        let origin = &graph.node(user).origin;
        (origin.micro_batch.unwrap_or(0), origin.phase == Phase::Backward && twice.contains(&value))
    };
    // A gather belongs to the first stretch that uses it.
    let readers = |node: NodeIndex| graph.users(node).map(|(user, _)| user).filter(|user| !roots.contains_key(user));
    let first: HashMap<NodeIndex, Stretch> = roots
        .keys()
        .filter(|&&node| gathers(graph, &roots, node))
        .filter_map(|&node| Some((node, readers(node).map(|user| stretch(user, node)).min()?)))
        .collect();
    let mut inputs: HashMap<NodeIndex, Value> = HashMap::new();
    let mut copies: HashMap<(NodeIndex, Stretch), Value> = HashMap::new();
    rebuild(graph, graph.mesh.clone(), |new, node, mut operands| {
        let n = graph.node(node);
        if !roots.contains_key(&node) {
            for (v, old) in operands.iter_mut().zip(graph.operands(node)) {
                let Some(own) = first.get(&old.node) else { continue };
                let at = stretch(node, old.node);
                if at != *own {
                    let origin = (n.origin.phase, at);
                    *v = copied(graph, new, old.node, origin, &inputs, &mut copies);
                }
            }
        }
        let values = copy(new, graph, node, &operands);
        if matches!(n.op, Op::Input { .. }) {
            inputs.insert(node, values[0]);
        }
        values
    })
    .0
}

/// The gathers, casts and transposes that depend only on one of the parameters, each with the input of the parameter.
fn prologues(graph: &Graph, parameters: &HashSet<&InputId>) -> HashMap<NodeIndex, NodeIndex> {
    let named: HashSet<NodeIndex> =
        graph.inputs().filter(|(_, id)| parameters.contains(id)).map(|(node, _)| node).collect();
    let mut roots: HashMap<NodeIndex, NodeIndex> = HashMap::new();
    for node in graph.nodes() {
        let n = graph.node(node);
        let prepares = matches!(n.op, Op::AllGather { .. } | Op::Map { f: MapFn::Cast(_) | MapFn::Identity, .. });
        if !prepares || n.origin.phase == Phase::Optimizer {
            continue;
        }
        let operand = graph.operands(node)[0].node;
        let root = if named.contains(&operand) { Some(operand) } else { roots.get(&operand).copied() };
        roots.extend(root.map(|root| (node, root)));
    }
    roots
}

/// Whether a prologue node is a gather or follows one.
fn gathers(graph: &Graph, roots: &HashMap<NodeIndex, NodeIndex>, node: NodeIndex) -> bool {
    let mut at = node;
    loop {
        if matches!(graph.node(at).op, Op::AllGather { .. }) {
            return true;
        }
        match graph.operands(at).first() {
            Some(v) if roots.contains_key(&v.node) => at = v.node,
            _ => return false,
        }
    }
}

/// The prologue nodes that the backward pass recomputes: those of all units except the last.
fn gathered_twice(graph: &Graph, roots: &HashMap<NodeIndex, NodeIndex>) -> HashSet<NodeIndex> {
    let mut first_use: HashMap<UnitId, NodeIndex> = HashMap::new();
    for (&node, &root) in roots {
        let Some(unit) = graph.unit_of(root) else { continue };
        let readers = graph.users(node).map(|(user, _)| user).filter(|user| !roots.contains_key(user));
        if let Some(user) = readers.filter(|&user| graph.node(user).origin.phase == Phase::Forward).min() {
            let first = first_use.entry(unit).or_insert(user);
            *first = user.min(*first);
        }
    }
    let last = first_use.iter().max_by_key(|(_, first)| **first).map(|(unit, _)| *unit);
    let twice = |root: NodeIndex| graph.unit_of(root).is_some_and(|unit| Some(unit) != last);
    roots.iter().filter(|&(_, &root)| twice(root)).map(|(&node, _)| node).collect()
}

/// The copy of a prologue node for another stretch.
fn copied(
    graph: &Graph,
    new: &mut Graph,
    node: NodeIndex,
    (phase, stretch): (Phase, Stretch),
    inputs: &HashMap<NodeIndex, Value>,
    copies: &mut HashMap<(NodeIndex, Stretch), Value>,
) -> Value {
    if let Some(&v) = inputs.get(&node).or_else(|| copies.get(&(node, stretch))) {
        return v;
    }
    let operand = copied(graph, new, graph.operands(node)[0].node, (phase, stretch), inputs, copies);
    let n = graph.node(node);
    let reason = match n.op {
        Op::AllGather { .. } => n.origin.reason.and(Cause::SecondGather),
        _ => n.origin.reason.clone(),
    };
    let value = new.push(n.op.clone(), &[operand], n.types[0].clone(), &Origin { phase, reason, ..n.origin.clone() });
    copies.insert((node, stretch), value);
    value
}
