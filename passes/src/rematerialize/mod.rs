//! Computes values of the forward pass a second time for the backward pass, so that they need not stay in memory in
//! between (activation checkpointing: Griewank and Walther, "Revolve", 2000; Chen et al., "Training deep nets with
//! sublinear memory cost", 2016).
//!
//! The caller says which of the saved values ([`Saved`]) are *dropped*. Operations of the backward pass that read a
//! dropped value, or one that follows from it and is in no memory, read a copy. A copy reads what stays saved, inputs,
//! and other copies, and comes right before its first reader that depends on the backward pass. A kernel of attention
//! is copied as a whole. Which values are worth dropping is the question of [`candidates`].
//!
//! A copy is the same operation on equal values, collectives included, so the program denotes what it did, and random
//! numbers are the same, since they are functions of seed, stream and position. Results on a device are equal up to
//! rounding, because the kernels of the program are fused in other ways: a product and a sum in one loop are rounded
//! once, and a value that an epilogue reads from the product is not rounded to the element type of memory. Where the
//! backward pass gathers a parameter anyway ([`crate::reshard`]), copies read that gather, which then comes earlier.
//!
//! ```text
//! before                                            after, with %5 dropped
//! %3 = all_gather tp dim=0 %2  ; forward, saved     %3 = all_gather tp dim=0 %2  ; forward, saved
//! %5 = einsum %3, %w           ; forward, saved     %5 = einsum %3, %w           ; forward
//! %6 = sigmoid %5              ; forward            %6 = sigmoid %5              ; forward
//! …                                                 …
//! %9 = mul %8, %6              ; backward           %9 = einsum %3, %w           ; backward, why: recomputed
//!                                                   %10 = sigmoid %9             ; backward, why: recomputed
//!                                                   %11 = mul %8, %10            ; backward
//! ```

pub mod candidates;
pub mod report;

use crate::lower::kernel::{is_free, is_loop_op};
use crate::lower::saved::Saved;
use crate::rebuild::{copy, rebuild};
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use std::collections::HashSet;
use tpc_ir::reason::Cause;
use tpc_ir::{Boundary, Graph, MapFn, Op, Origin, Output, Phase, Region, Value};

/// Saved values that are dropped after the forward pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped(HashSet<NodeIndex>);

impl Dropped {
    /// These values and others.
    #[must_use]
    pub fn with(&self, others: impl Iterator<Item = NodeIndex>) -> Self {
        Dropped(self.0.iter().copied().chain(others).collect())
    }

    /// Whether the result of a node is dropped.
    pub fn has(&self, node: NodeIndex) -> bool {
        self.0.contains(&node)
    }
}

impl FromIterator<NodeIndex> for Dropped {
    fn from_iter<I: IntoIterator<Item = NodeIndex>>(nodes: I) -> Self {
        Dropped(nodes.into_iter().collect())
    }
}

/// Makes the backward pass compute dropped values a second time.
pub fn rematerialize(graph: &Graph, saved: &Saved, dropped: &Dropped) -> Graph {
    let mut copier = Copier {
        graph,
        copied: copied(graph, saved, dropped),
        floating: floating(graph),
        prepared: prepared(graph),
        originals: FxHashMap::default(),
        later: FxHashMap::default(),
        gathers: FxHashMap::default(),
    };
    let mut new = Graph::new(graph.mesh.clone());
    for node in graph.nodes().filter(|n| !copier.floating[n.index()]).collect::<Vec<_>>() {
        copier.add(&mut new, node);
    }
    let moved =
        |all: &[Boundary]| all.iter().map(|b| Boundary { value: copier.originals[&b.value], ..b.clone() }).collect();
    new.outputs = graph.outputs.iter().map(|o| Output { value: copier.originals[&o.value], ..o.clone() }).collect();
    new.regions = graph
        .regions
        .iter()
        .map(|r| Region { path: r.path.clone(), arguments: moved(&r.arguments), results: moved(&r.results) })
        .collect();
    // Operations of the forward pass that only the backward pass read are gone.
    rebuild(&new, new.mesh.clone(), |swept, node, operands| copy(swept, &new, node, &operands)).0
}

/// The operations of the backward pass that could run at any time after the forward pass, by index: they are
/// elementwise, reductions or views, and depend on the forward pass alone. They come right before the first other
/// operation that depends on them, and so do the copies that they read.
fn floating(graph: &Graph) -> Vec<bool> {
    let mut fixed = vec![false; graph.len()];
    for v in graph.outputs.iter().map(|o| o.value).chain(graph.regions.iter().flat_map(Region::values)) {
        fixed[v.node.index()] = true;
    }
    let mut floating = vec![false; graph.len()];
    for node in graph.nodes() {
        let n = graph.node(node);
        let is_early = |v: Value| floating[v.node.index()] || graph.node(v.node).origin.phase == Phase::Forward;
        let is_cheap = is_loop_op(&n.op) || is_free(&n.op) && !matches!(n.op, Op::Input { .. });
        let is_read_late = || graph.users(node).all(|(user, _)| graph.node(user).origin.phase == Phase::Backward);
        floating[node.index()] = n.origin.phase == Phase::Backward
            && is_cheap
            && !fixed[node.index()]
            && graph.operands(node).into_iter().all(is_early)
            && is_read_late();
    }
    floating
}

/// The nodes that are copied, by index.
fn copied(graph: &Graph, saved: &Saved, dropped: &Dropped) -> Vec<bool> {
    let stale = stale(graph, saved, dropped);
    let kept: HashSet<NodeIndex> = saved.nodes.iter().copied().filter(|n| !stale[n.index()]).collect();
    let mut attention: FxHashMap<NodeIndex, usize> = FxHashMap::default();
    for (i, kernel) in saved.attention.iter().enumerate() {
        attention.extend(kernel.nodes.iter().map(|&n| (n, i)));
    }
    let mut copied = vec![false; graph.len()];
    let read_later = |n: &NodeIndex| graph.users(*n).any(|(user, _)| graph.node(user).origin.phase != Phase::Forward);
    let mut open: Vec<NodeIndex> = graph.nodes().filter(|n| stale[n.index()]).filter(read_later).collect();
    while let Some(node) = open.pop() {
        if std::mem::replace(&mut copied[node.index()], true) {
            continue;
        }
        if let Some(&i) = attention.get(&node) {
            open.extend(&saved.attention[i].nodes);
        }
        let operands = graph.operands(node).into_iter().map(|v| v.node);
        open.extend(operands.filter(|n| !kept.contains(n) && !is_at_hand(graph, *n)));
    }
    copied
}

/// The values of the forward pass that the backward pass cannot have without copies, by index: dropped values, those
/// that follow from them and are not saved, and attention that computes or reads such a value.
fn stale(graph: &Graph, saved: &Saved, dropped: &Dropped) -> Vec<bool> {
    let mut kept: HashSet<NodeIndex> = saved.nodes.iter().copied().filter(|&n| !dropped.has(n)).collect();
    loop {
        let mut stale = vec![false; graph.len()];
        for node in graph.nodes() {
            let follows = || graph.operands(node).iter().any(|v| stale[v.node.index()]);
            let is_forward = graph.node(node).origin.phase == Phase::Forward && !is_at_hand(graph, node);
            stale[node.index()] = is_forward && !kept.contains(&node) && (dropped.has(node) || follows());
        }
        let partly = saved.attention.iter().filter(|kernel| {
            let mut touched = kernel.nodes.iter().chain(&kernel.reads);
            touched.any(|n| stale[n.index()])
        });
        let more: Vec<NodeIndex> =
            partly.flat_map(|kernel| &kernel.nodes).copied().filter(|n| kept.contains(n)).collect();
        if more.is_empty() {
            return stale;
        }
        more.iter().for_each(|n| _ = kept.remove(n));
    }
}

/// Whether a value is available at any time.
fn is_at_hand(graph: &Graph, node: NodeIndex) -> bool {
    matches!(graph.node(node).op, Op::Input { .. } | Op::Fill(_) | Op::Iota)
}

/// For every node, by index, whether it gathers, converts or transposes an input and nothing more, and the micro-batch
/// of its first other reader.
fn prepared(graph: &Graph) -> Vec<Option<Option<usize>>> {
    let mut prepares = vec![false; graph.len()];
    for node in graph.nodes() {
        let is_input = |v: &Value| matches!(graph.op(*v), Op::Input { .. }) || prepares[v.node.index()];
        prepares[node.index()] = match graph.node(node).op {
            Op::AllGather { .. } | Op::Map { f: MapFn::Cast(_) | MapFn::Identity, .. } => {
                graph.operands(node).iter().all(is_input)
            }
            _ => false,
        };
    }
    let mut found = vec![None; graph.len()];
    for node in graph.nodes().collect::<Vec<_>>().into_iter().rev().filter(|n| prepares[n.index()]) {
        let readers = graph.users(node).map(|(user, _)| user);
        let first = readers.min().map(|user| match found[user.index()] {
            Some(micro_batch) => micro_batch,
            None => graph.node(user).origin.micro_batch,
        });
        found[node.index()] = Some(first.flatten());
    }
    found
}

/// Builds the new program, and adds copies when they are first read.
struct Copier<'a> {
    graph: &'a Graph,
    copied: Vec<bool>,
    floating: Vec<bool>,
    /// The nodes that prepare an input, each with the micro-batch for which it does.
    prepared: Vec<Option<Option<usize>>>,
    /// The new value of every old one.
    originals: FxHashMap<Value, Value>,
    /// The copies and floating operations of every old node that was read.
    later: FxHashMap<NodeIndex, NodeIndex>,
    /// The new nodes of the backward pass that prepare an input for a micro-batch.
    gathers: FxHashMap<(Op, Vec<Value>, Option<usize>), NodeIndex>,
}

impl Copier<'_> {
    /// Adds a node that does not float, and what it reads.
    fn add(&mut self, new: &mut Graph, node: NodeIndex) {
        let n = self.graph.node(node);
        let mut operands = self.graph.operands(node);
        for v in &mut operands {
            let is_later = self.floating[v.node.index()] || self.copied[v.node.index()];
            *v = match n.origin.phase != Phase::Forward && is_later {
                true => self.later(new, *v),
                false => self.originals[v],
            };
        }
        let added = match n.origin.phase {
            Phase::Backward => self.prepare(new, node, &operands, n.origin.clone()),
            _ => new.add(n.op.clone(), &operands, n.types.clone(), n.origin.clone()),
        };
        let results = (0..n.types.len() as u32).map(|result| (Value { node, result }, Value { node: added, result }));
        self.originals.extend(results);
    }

    /// Adds a node of the backward pass, unless it prepares an input as an earlier one does.
    fn prepare(&mut self, new: &mut Graph, node: NodeIndex, operands: &[Value], origin: Origin) -> NodeIndex {
        let n = self.graph.node(node);
        let mut add = || new.add(n.op.clone(), operands, n.types.clone(), origin.clone());
        match self.prepared[node.index()] {
            Some(micro_batch) => {
                *self.gathers.entry((n.op.clone(), operands.to_vec(), micro_batch)).or_insert_with(add)
            }
            None => add(),
        }
    }

    /// The copy of a value of the forward pass, or a floating value.
    fn later(&mut self, new: &mut Graph, value: Value) -> Value {
        let mut open = vec![value.node];
        while let Some(&node) = open.last() {
            if self.later.contains_key(&node) {
                open.pop();
                continue;
            }
            let mut operands = self.graph.operands(node);
            let is_later = |v: &Value| self.floating[v.node.index()] || self.copied[v.node.index()];
            let before = open.len();
            open.extend(operands.iter().filter(|v| is_later(v) && !self.later.contains_key(&v.node)).map(|v| v.node));
            if open.len() > before {
                continue;
            }
            open.pop();
            for v in &mut operands {
                *v = match self.later.get(&v.node) {
                    Some(&later) => Value { node: later, result: v.result },
                    None => self.originals[v],
                };
            }
            let mut origin = self.graph.node(node).origin.clone();
            if self.copied[node.index()] {
                origin = Origin { phase: Phase::Backward, reason: origin.reason.and(Cause::Recomputed), ..origin };
            }
            let later = self.prepare(new, node, &operands, origin);
            self.later.insert(node, later);
        }
        Value { node: self.later[&value.node], result: value.result }
    }
}
