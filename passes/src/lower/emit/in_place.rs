//! Decides which results overwrite the memory of another value.

use super::super::depend;
use super::super::events::{Event, Schedule};
use super::super::kernel::{Kernel, LoopDim, Nest, letters};
use super::emitter::Emitter;
use super::views::has_own_buffer;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::graph::Use;
use tpc_ir::{Graph, Op, OutputKind, Value};

/// The nodes of a kernel that overwrite an input, each with its input.
pub(super) type InPlace = HashMap<NodeIndex, NodeIndex>;

/// Whether each node's value is read by a kernel other than its own, or is an output.
pub(super) fn stored(graph: &Graph, kernels: &[Kernel]) -> Vec<bool> {
    let mut stored = vec![false; graph.len()];
    for kernel in kernels {
        let own: HashSet<NodeIndex> = kernel.nodes().into_iter().collect();
        for v in kernel.reads(graph) {
            stored[depend::source(graph, v.node).index()] |= !own.contains(&v.node);
        }
    }
    graph.outputs.iter().for_each(|o| stored[depend::source(graph, o.value.node).index()] = true);
    stored
}

/// For every kernel, the updates that may overwrite their inputs. Either the kernel replaces rows of the input, or it
/// is a loop over the elements of the input that reads each of them only where it writes it. All other readers of the
/// input must have run before.
pub(super) fn in_place(graph: &Graph, schedule: &Schedule, output_nodes: &HashSet<NodeIndex>) -> Vec<InPlace> {
    let kernels = &schedule.kernels;
    let mut kernel_of: Vec<Option<usize>> = vec![None; graph.len()];
    for (k, kernel) in kernels.iter().enumerate() {
        kernel.nodes().iter().for_each(|n| kernel_of[n.index()] = Some(k));
    }
    let mut position = vec![0usize; graph.len()];
    for (at, event) in (1..).zip(&schedule.order) {
        let (Event::Run(k) | Event::Start(k) | Event::Wait(k)) = *event;
        kernels[k].nodes().iter().for_each(|n| position[n.index()] = at);
    }
    let readers = Readers { graph, position, outputs: output_nodes };
    let position = |node: NodeIndex| readers.position[node.index()];
    // The last position at which a value is read in order to recompute another.
    let last = |readers: Vec<usize>| readers.iter().map(|&k| position(kernels[k].first())).max();
    let recomputing: HashMap<NodeIndex, Option<usize>> =
        depend::recomputing(graph, kernels).into_iter().map(|(node, readers)| (node, last(readers))).collect();
    let inputs = graph.inputs_by_id();
    let mut outputs: HashMap<Value, usize> = HashMap::new();
    graph.outputs.iter().for_each(|output| *outputs.entry(output.value).or_default() += 1);
    let mut all = vec![HashMap::new(); kernels.len()];
    for output in &graph.outputs {
        let (OutputKind::Update(id), node) = (&output.kind, output.value.node) else { continue };
        let (Some(k), Some(&input)) = (kernel_of[node.index()], inputs.get(id)) else { continue };
        let one_use = outputs[&output.value] == 1;
        let at = position(node);
        let is_read_later = recomputing.get(&input).is_some_and(|&read| read >= Some(at));
        if !one_use || is_read_later {
            continue;
        }
        let may_overwrite = match (&kernels[k], &graph.node(node).op) {
            (_, Op::Put) => graph.operands(node)[0] == Value::from(input) && readers.others_are_done(node, input),
            (Kernel::Loop(nest), Op::Map { .. }) => {
                let dims = &nest.dims[&node];
                // If the loop has another dimension, the value is written in every iteration of it and would be read
                // after it was written.
                dims.len() == nest.space.len() && readers.readers_are_done(nest, at, input, dims)
            }
            _ => false,
        };
        if may_overwrite {
            all[k].insert(node, input);
        }
    }
    all
}

/// When the nodes of a program are computed, and which of them are outputs.
struct Readers<'a> {
    graph: &'a Graph,
    /// For each node, the position in the order at which its value is available, counted from 1. For a collective, that
    /// is its wait. A node that no kernel computes has 0.
    position: Vec<usize>,
    outputs: &'a HashSet<NodeIndex>,
}

impl Readers<'_> {
    /// Whether every reader of an input has run before, except the node that replaces rows of it, whose first operand it
    /// is.
    fn others_are_done(&self, node: NodeIndex, input: NodeIndex) -> bool {
        let at = self.position[node.index()];
        let done = |(user, edge): (NodeIndex, Use)| match depend::is_alias(&self.graph.node(user).op) {
            true => self.alias_is_done(at, user),
            false if user == node => edge.operand == 0,
            false => self.position[user.index()] < at,
        };
        !self.outputs.contains(&input) && self.graph.users(input).all(done)
    }

    /// Whether every reader of a value has run before a position, or reads in a loop at this position only the elements that
    /// the loop writes.
    fn readers_are_done(&self, nest: &Nest, at: usize, source: NodeIndex, written: &[LoopDim]) -> bool {
        let done = |(user, edge): (NodeIndex, Use)| {
            if depend::is_alias(&self.graph.node(user).op) {
                // All readers of the alias must be earlier kernels.
                return self.alias_is_done(at, user);
            }
            if self.position[user.index()] < at {
                return true;
            }
            if self.position[user.index()] > at || !nest.letters.contains_key(&user) {
                return false;
            }
            let row = &letters(self.graph, user).operands[edge.operand as usize];
            nest.along(user, row) == written
        };
        !self.outputs.contains(&source) && self.graph.users(source).all(done)
    }

    /// Whether every kernel that reads a node, directly or through aliases, has run.
    fn alias_is_done(&self, at: usize, node: NodeIndex) -> bool {
        let done = |(user, _): (NodeIndex, Use)| match depend::is_alias(&self.graph.node(user).op) {
            true => self.alias_is_done(at, user),
            false => self.position[user.index()] < at,
        };
        !self.outputs.contains(&node) && self.graph.users(node).all(done)
    }
}

impl Emitter<'_> {
    /// Whether a value has exactly one reader and is not an output.
    pub(super) fn is_exclusive(&self, value: Value) -> bool {
        self.graph.users(value.node).count() == 1 && !self.output_nodes.contains(&value.node)
    }

    /// A value whose last reader is an epilogue that reads it element by element as it writes its result, so that the
    /// result may overwrite it. Gradients of a micro-batch are added to those of earlier ones in this way.
    pub(super) fn overwritable_operand(&self, nest: &Nest, result: NodeIndex) -> Option<Value> {
        let graph = self.graph;
        let ty = &graph.node(result).types[0];
        let reads = |&reader: &NodeIndex| {
            let rows = letters(graph, reader).operands;
            graph.operands(reader).into_iter().zip(rows).map(move |(v, row)| (reader, v, row)).collect::<Vec<_>>()
        };
        let candidates = nest.nodes.iter().flat_map(reads).filter(|(reader, v, row)| {
            let alone = has_own_buffer(graph.op(*v)) && self.is_exclusive(*v) && !self.recomputing.contains(&v.node);
            let fits = graph.ty(*v).dtype == ty.dtype && graph.ty(*v).sharding == ty.sharding;
            alone && fits && !self.in_buckets.contains_key(v) && nest.along(*reader, row) == nest.dims[&result]
        });
        candidates.map(|(_, v, _)| v).find(|v| self.views.contains_key(v) && !nest.dims.contains_key(&v.node))
    }
}
