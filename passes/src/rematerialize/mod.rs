//! Computes values of the forward pass a second time for the backward pass, so that they need not stay in memory in between
//! (activation checkpointing: Griewank and Walther, "Revolve", 2000; Chen et al., "Training deep nets with sublinear
//! memory cost", 2016).
//!
//! The caller says which of the saved values ([`Saved`]) are *dropped*. Operations of the backward pass that read a dropped
//! value, or one that follows from it and is in no memory, read a copy. A copy reads what stays saved, inputs, and other
//! copies, and comes right before its first reader. A kernel of attention is copied as a whole. Which values are worth
//! dropping is the question of [`candidates`].
//!
//! A copy is the same operation on equal values, collectives included, so the program denotes what it did, and random
//! numbers are the same, since they are functions of seed, stream and position. Where the backward pass gathers a parameter
//! anyway ([`crate::reshard`]), copies read that gather, which then comes earlier.
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

use self::candidates::Candidate;
use crate::lower::saved::Saved;
use crate::rebuild::{copy, rebuild};
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use std::collections::HashSet;
use tpc_ir::reason::Cause;
use tpc_ir::{Graph, MapFn, Op, Origin, Phase, Value};

/// Saved values that are dropped after the forward pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped(HashSet<NodeIndex>);

impl Dropped {
    /// These values and the first occurrences of a candidate.
    #[must_use]
    pub fn with(&self, candidate: &Candidate, occurrences: usize) -> Self {
        Dropped(self.0.iter().copied().chain(candidate.nodes(occurrences)).collect())
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
    let copied = copied(graph, saved, dropped);
    let mut copier = Copier {
        graph,
        copied,
        prepared: prepared(graph),
        originals: FxHashMap::default(),
        copies: FxHashMap::default(),
        gathers: FxHashMap::default(),
    };
    let (rewritten, _) = rebuild(graph, graph.mesh.clone(), |new, node, mut operands| {
        let phase = graph.node(node).origin.phase;
        if phase != Phase::Forward {
            for (v, old) in operands.iter_mut().zip(graph.operands(node)) {
                if copier.copied[old.node.index()] {
                    *v = copier.copy(new, old);
                }
            }
        }
        let known = (phase == Phase::Backward).then(|| copier.gathered(node, &operands)).flatten();
        let values = known.map_or_else(|| copy(new, graph, node, &operands), |known| vec![known.into()]);
        if phase == Phase::Backward {
            copier.note(node, &operands, values[0].node);
        }
        let results = (0u32..).map(|result| Value { node, result });
        copier.originals.extend(results.zip(values.iter().copied()));
        values
    });
    // Operations of the forward pass that only the backward pass read are gone.
    rebuild(&rewritten, rewritten.mesh.clone(), |new, node, operands| copy(new, &rewritten, node, &operands)).0
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

/// The values of the forward pass that the backward pass cannot have without copies, by index: dropped values, those that
/// follow from them and are not saved, and attention that computes or reads such a value.
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

/// For every node, by index, whether it gathers, converts or transposes an input and nothing more, and the micro-batch of its first
/// other reader.
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

/// Copies nodes when they are first read.
struct Copier<'a> {
    graph: &'a Graph,
    copied: Vec<bool>,
    /// The nodes that prepare an input, each with the micro-batch for which it does.
    prepared: Vec<Option<Option<usize>>>,
    /// The new value of every old one.
    originals: FxHashMap<Value, Value>,
    /// The copy of every old node that was read.
    copies: FxHashMap<NodeIndex, NodeIndex>,
    /// The new nodes of the backward pass that prepare an input for a micro-batch.
    gathers: FxHashMap<(Op, Vec<Value>, Option<usize>), NodeIndex>,
}

impl Copier<'_> {
    /// The new node of the backward pass that prepares an input like an old node does.
    fn gathered(&self, node: NodeIndex, operands: &[Value]) -> Option<NodeIndex> {
        let micro_batch = self.prepared[node.index()]?;
        self.gathers.get(&(self.graph.node(node).op.clone(), operands.to_vec(), micro_batch)).copied()
    }

    /// Records a new node of the backward pass, if it prepares an input.
    fn note(&mut self, node: NodeIndex, operands: &[Value], new: NodeIndex) {
        if let Some(micro_batch) = self.prepared[node.index()] {
            self.gathers.insert((self.graph.node(node).op.clone(), operands.to_vec(), micro_batch), new);
        }
    }

    /// The copy of a value.
    fn copy(&mut self, new: &mut Graph, value: Value) -> Value {
        let mut open = vec![value.node];
        while let Some(&node) = open.last() {
            if self.copies.contains_key(&node) {
                open.pop();
                continue;
            }
            let operands = self.graph.operands(node);
            let missing = |v: &&Value| self.copied[v.node.index()] && !self.copies.contains_key(&v.node);
            let before = open.len();
            open.extend(operands.iter().filter(missing).map(|v| v.node));
            if open.len() > before {
                continue;
            }
            let translated = |v: &Value| match self.copies.get(&v.node) {
                Some(&copy) => Value { node: copy, result: v.result },
                None => self.originals[v],
            };
            let operands: Vec<Value> = operands.iter().map(translated).collect();
            open.pop();
            let copy = self.gathered(node, &operands).unwrap_or_else(|| {
                let n = self.graph.node(node);
                let reason = n.origin.reason.and(Cause::Recomputed);
                let origin = Origin { phase: Phase::Backward, reason, ..n.origin.clone() };
                new.add(n.op.clone(), &operands, n.types.clone(), origin)
            });
            self.note(node, &operands, copy);
            self.copies.insert(node, copy);
        }
        Value { node: self.copies[&value.node], result: value.result }
    }
}
