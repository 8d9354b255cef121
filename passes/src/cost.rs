//! What an operation costs: seconds of compute by a roofline, seconds of communication by α–β.
//!
//! The α–β model is Hockney's; ring bytes are those of Thakur et al. Defaults are this project's
//! measurements on two CPU ranks of one process.

use petgraph::graph::NodeIndex;
use std::collections::HashSet;
use tpc_ir::program::wire_bytes;
use tpc_ir::{AxisId, Graph, Mesh, Op, Phase, Type};

/// Rates of a device and its links.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostModel {
    /// Floating-point operations per second of matrix products.
    pub flops: f64,
    /// Bytes per second read and written by everything else.
    pub memory: f64,
    /// Seconds that starting a kernel costs.
    pub launch: f64,
    /// Seconds that a collective costs before its first byte (α).
    pub latency: f64,
    /// Bytes per second sent by each rank (1/β).
    pub link: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        CostModel { flops: 60e9, memory: 10e9, launch: 2e-7, latency: 5e-6, link: 4e9 }
    }
}

impl CostModel {
    /// Seconds that the slowest rank needs for an operation with these operand and result types.
    pub fn seconds(&self, op: &Op, operands: &[&Type], result: &Type, mesh: &Mesh) -> f64 {
        let local = |t: &Type| t.max_local_bytes(mesh) as f64;
        match op {
            Op::Input { .. } => 0.0,
            // Made where it is read.
            Op::Fill(_) | Op::Iota => 0.0,
            // A view or a mask: cheap, but not cheaper than not doing it.
            Op::ShardSlice { .. } | Op::Index { .. } => self.launch * 0.1,
            // A mask costs nothing, but what it is added to then waits for it: its reduction can no longer
            // be one with others that come before. It must save a reduction of its own.
            Op::ToPartial { .. } => self.latency * 0.5,
            op if op.is_collective() => {
                let bytes =
                    wire_bytes(&op.name(), full_bytes(op, operands[0], result, mesh), mesh.group_size(op.axes()));
                self.latency + bytes / self.link
            }
            Op::Einsum { subs } => {
                let left = operands[0].max_local_shape(mesh);
                let right = operands[1].max_local_shape(mesh);
                let sizes = subs.sizes(&[&left, &right], None).unwrap_or_default();
                2.0 * sizes.iter().map(|&n| n as f64).product::<f64>() / self.flops + self.launch
            }
            // Fused with its neighbours most of the time: count the write and a share of the reads.
            Op::Map { .. } => (local(result) + 0.25 * operands.iter().map(|t| local(t)).sum::<f64>()) / self.memory,
            _ => (local(result) + operands.iter().map(|t| local(t)).sum::<f64>()) / self.memory + self.launch,
        }
    }

    /// The same for a collective that begins together with others.
    pub fn bucketed(&self) -> CostModel {
        CostModel { latency: self.launch, ..*self }
    }

    /// Seconds of a whole placed graph on its slowest rank, nothing overlapped.
    pub fn graph_seconds(&self, graph: &Graph) -> f64 {
        let gradients = Gradients::as_lowered(graph);
        graph
            .nodes()
            .map(|node| {
                let n = graph.node(node);
                let operands = graph.operands(node);
                let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
                let together = gradients.travel_together(&n.op, gradients.values.contains(&node), false);
                let model = if together { self.bucketed() } else { *self };
                model.seconds(&n.op, &types, &n.types[0], &graph.mesh)
            })
            .sum()
    }
}

/// What only the optimizer reads: its reductions wait for each other and travel in buckets
/// (`lower/bucket.rs`), so that one more costs its bytes and no latency.
pub struct Gradients {
    /// Values before the optimizer, or their reductions, that only the optimizer reads, directly or behind further reductions.
    pub values: HashSet<NodeIndex>,
    /// The axes over which some of them are scattered.
    scattered: HashSet<Vec<AxisId>>,
    /// Terms whose sum, over all ranks, is one of the values.
    pub terms: HashSet<NodeIndex>,
}

impl Gradients {
    /// Those of a placed graph that is to be improved: what the optimizer slices had better be scattered, and is none.
    pub fn of(graph: &Graph) -> Self {
        Self::read_by(graph, |op| !op.is_redistribution())
    }

    /// Those of a placed graph as it is, sliced or not.
    fn as_lowered(graph: &Graph) -> Self {
        Self::read_by(graph, |_| true)
    }

    fn read_by(graph: &Graph, counts: fn(&Op) -> bool) -> Self {
        let mut values = HashSet::new();
        let nodes: Vec<NodeIndex> = graph.nodes().collect();
        let is_early = |n: NodeIndex| graph.node(n).origin.phase != Phase::Optimizer;
        let reduces = |n: NodeIndex| matches!(graph.node(n).op, Op::AllReduce { .. } | Op::ReduceScatter { .. });
        // A reduction that the optimizer asked for belongs to the value that it reduces.
        let is_value = |n: NodeIndex| is_early(n) || reduces(n) && is_early(graph.operands(n)[0].node);
        for &node in nodes.iter().rev().filter(|&&n| is_value(n)) {
            let mut users = graph.users(node).map(|(user, _)| user).peekable();
            let for_it = |user: NodeIndex| {
                let u = graph.node(user);
                let reads = u.origin.phase == Phase::Optimizer && counts(&u.op);
                reads || reduces(user) && values.contains(&user)
            };
            if graph.node(node).types.len() == 1 && users.peek().is_some() && users.all(for_it) {
                values.insert(node);
            }
        }
        let axes = |node: &NodeIndex| match &graph.node(*node).op {
            Op::ReduceScatter { axes, .. } => Some(axes.clone()),
            _ => None,
        };
        let scattered = values.iter().filter_map(axes).collect();
        let sums = values.iter().filter(|&&n| matches!(graph.node(n).op, Op::AllReduce { .. }));
        let terms = sums.map(|&n| graph.operands(n)[0].node).collect();
        Gradients { values, scattered, terms }
    }

    /// Whether an operation is a reduction with company; `gradient`: it makes one of the values; `term`: it
    /// reads one of the `terms`.
    pub fn travel_together(&self, op: &Op, gradient: bool, term: bool) -> bool {
        match op {
            Op::AllReduce { .. } => gradient,
            Op::ReduceScatter { axes, .. } => term || gradient && self.scattered.contains(axes),
            _ => false,
        }
    }
}

/// Bytes of the whole value that a collective works on: the side on which a rank holds most; for an
/// all-to-all what one rank holds.
pub fn full_bytes(op: &Op, operand: &Type, result: &Type, mesh: &Mesh) -> usize {
    // Exact, also for uneven chunks: the union of a group's chunks, as the group of rank 0 sees it.
    let local = |t: &Type| t.max_local_bytes(mesh);
    match op {
        Op::AllGather { .. } => local(result),
        _ => local(operand),
    }
}
