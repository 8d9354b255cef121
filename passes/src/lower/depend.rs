//! The dependences between kernels: which kernels read what other kernels write.
//!
//! A view has no kernel. A kernel that reads a view reads the memory of the viewed value.

use super::kernel::{Kernel, is_free};
use petgraph::graph::NodeIndex;
use std::collections::{BTreeSet, HashMap};
use tpc_ir::{Graph, MapFn, Op, OutputKind, Value};

/// The dependences between kernels, by their indices in the list.
pub(super) struct Dependences {
    /// The kernels that must run before each kernel: those whose results it reads, and for an update of an input those
    /// that read the old value, so that it can be overwritten.
    pub(super) needs: Vec<Vec<usize>>,
    /// The kernels that read what each kernel writes, in order.
    pub(super) readers: Vec<Vec<usize>>,
    /// The kernel of every node that has one.
    of: Vec<Option<usize>>,
}

impl Dependences {
    /// The dependences of kernels, which are in an order that respects them.
    pub(super) fn new(graph: &Graph, kernels: &[Kernel]) -> Self {
        let mut of = vec![None; graph.len()];
        for (k, kernel) in kernels.iter().enumerate() {
            kernel.nodes().iter().for_each(|n| of[n.index()] = Some(k));
        }
        let mut found = Dependences { needs: Vec::new(), readers: vec![Vec::new(); kernels.len()], of };
        let mut needs: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); kernels.len()];
        for (k, kernel) in kernels.iter().enumerate() {
            for v in kernel.reads(graph) {
                needs[k].extend(found.of[source(graph, v.node).index()].filter(|&p| p != k));
            }
            needs[k].iter().for_each(|&p| found.readers[p].push(k));
        }
        let recomputing = recomputing(graph, kernels);
        for (input, node) in updates(graph) {
            let Some(update) = found.of[node.index()] else { continue };
            let mut old = Vec::new();
            found.readers_of(graph, input, &mut old);
            old.extend(recomputing.get(&input).into_iter().flatten());
            needs[update].extend(old.into_iter().filter(|&r| r < update));
        }
        found.needs = needs.into_iter().map(|n| n.into_iter().collect()).collect();
        found
    }

    /// Adds the kernels that read the memory of a node, including those that read it through views.
    pub(super) fn readers_of(&self, graph: &Graph, node: NodeIndex, into: &mut Vec<usize>) {
        for (user, _) in graph.users(node) {
            into.extend(self.of[user.index()]);
            if is_alias(&graph.node(user).op) {
                self.readers_of(graph, user, into);
            }
        }
    }
}

/// The kernels, other than those of the users of a node, that read its memory in order to recompute a value.
pub(super) fn recomputing(graph: &Graph, kernels: &[Kernel]) -> HashMap<NodeIndex, Vec<usize>> {
    let mut readers: HashMap<NodeIndex, Vec<usize>> = HashMap::new();
    for (k, kernel) in kernels.iter().enumerate() {
        let read: Vec<Value> = match kernel {
            Kernel::Attention { reads, .. } => reads.clone(),
            _ => kernel.nest().into_iter().flat_map(|nest| &nest.recomputed).flat_map(|&n| graph.operands(n)).collect(),
        };
        for v in read {
            readers.entry(memory(graph, v.node)).or_default().push(k);
        }
    }
    readers
}

/// The inputs that a step updates, and the nodes of their updates.
pub(super) fn updates(graph: &Graph) -> impl Iterator<Item = (NodeIndex, NodeIndex)> {
    let inputs = graph.inputs_by_id();
    graph.outputs.iter().filter_map(move |o| match &o.kind {
        OutputKind::Update(id) => Some((*inputs.get(id)?, o.value.node)),
        _ => None,
    })
}

/// The node whose memory a node views; the node itself if it is not a view.
pub(super) fn source(graph: &Graph, node: NodeIndex) -> NodeIndex {
    match &graph.node(node).op {
        op if is_free(op) => graph.operands(node).first().map_or(node, |v| source(graph, v.node)),
        _ => node,
    }
}

/// Whether the result of an operation may use the memory of its operand.
pub(super) fn is_alias(op: &Op) -> bool {
    is_free(op) || matches!(op, Op::Reshape)
}

/// The node whose memory a node may use: like [`source`], but also through reshapes.
pub(super) fn memory(graph: &Graph, node: NodeIndex) -> NodeIndex {
    match &graph.node(node).op {
        op if is_alias(op) => graph.operands(node).first().map_or(node, |v| memory(graph, v.node)),
        _ => node,
    }
}

/// Whether a node is an input, converted to another element type or transposed, or not.
pub(super) fn is_converted_input(graph: &Graph, node: NodeIndex) -> bool {
    match graph.node(node).op {
        Op::Map { f: MapFn::Cast(_) | MapFn::Identity, .. } => is_converted_input(graph, graph.operands(node)[0].node),
        _ => is_input(graph, node),
    }
}

/// Whether a node is an input or a view of one.
pub(super) fn is_input(graph: &Graph, node: NodeIndex) -> bool {
    matches!(graph.node(source(graph, node)).op, Op::Input { .. })
}
