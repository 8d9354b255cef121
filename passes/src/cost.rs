//! The cost of an operation on a target: seconds of computation by the roofline model, and seconds of communication by
//! the α–β model.
//!
//! The α–β model is Hockney's, and the bytes of rings are those of Thakur et al. All numbers come from the [`Target`].

use crate::rebuild::live;
use crate::shorten::once;
use crate::targets::{Link, Target};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::program::wire_bytes;
use tpc_ir::{AxisId, Graph, Mesh, Op, Phase, Type};

/// Whether a collective begins alone or in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Company {
    /// It begins alone, so its latency counts.
    Alone,
    /// It begins together with others in one bucket, so only the cost of another part counts.
    Together,
}

/// The seconds that the slowest rank takes for an operation with the given types of operands and result.
pub fn seconds(target: &Target, op: &Op, operands: &[&Type], result: &Type, mesh: &Mesh) -> f64 {
    seconds_in(Company::Alone, target, op, operands, result, mesh)
}

/// Like [`seconds`], for an operation that begins alone or together with others.
pub fn seconds_in(company: Company, target: &Target, op: &Op, operands: &[&Type], result: &Type, mesh: &Mesh) -> f64 {
    let device = &target.device;
    let local = |t: &Type| t.max_local_bytes(mesh) as f64;
    let latency = |link: Link| match company {
        Company::Alone => link.latency,
        Company::Together => device.launch,
    };
    match op {
        Op::Input { .. } => 0.0,
        // It is computed where it is read.
        Op::Fill(_) | Op::Iota => 0.0,
        Op::ShardSlice { .. } | Op::Index { .. } => device.launch * device.view,
        Op::ToPartial { axes, .. } => latency(target.links.group(mesh, *axes)) * target.mask,
        op if op.is_collective() => {
            let bytes = wire_bytes(&op.name(), full_bytes(op, operands[0], result, mesh), mesh.group_size(op.axes()));
            let link = target.links.group(mesh, op.axes());
            latency(link) + bytes / link.bandwidth
        }
        Op::Einsum { subs } => {
            let left = operands[0].max_local_shape(mesh);
            let right = operands[1].max_local_shape(mesh);
            let sizes = subs.sizes(&[&left, &right], None).unwrap_or_default();
            let rate = device.products.rate(operands[0].dtype);
            2.0 * sizes.iter().map(|&n| n as f64).product::<f64>() / rate + device.launch
        }
        Op::Map { .. } => {
            let reads = operands.iter().map(|t| local(t)).sum::<f64>();
            (local(result) + device.fused_reads * reads) / device.memory
        }
        _ => (local(result) + operands.iter().map(|t| local(t)).sum::<f64>()) / device.memory + device.launch,
    }
}

/// The seconds of a whole placed graph on its slowest rank, without overlap.
pub fn graph_seconds(target: &Target, graph: &Graph) -> f64 {
    graph_seconds_counted(target, graph, &once(graph))
}

/// [`graph_seconds`] of a graph each node of which counts so many times.
pub(crate) fn graph_seconds_counted(target: &Target, graph: &Graph, times: &[f64]) -> f64 {
    let gradients = Gradients::as_lowered(graph);
    graph
        .nodes()
        .map(|node| {
            let n = graph.node(node);
            let operands = graph.operands(node);
            let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
            let company = gradients.company(&n.op, &gradients.role(node));
            times[node.index()] * seconds_in(company, target, &n.op, &types, &n.types[0], &graph.mesh)
        })
        .sum()
}

/// The floating-point operations of the products on which a graph's outputs depend, regardless of the mesh: two for each
/// term.
pub fn product_flops(graph: &Graph) -> f64 {
    let live = live(graph);
    let products = graph.nodes().filter(|node| live[node.index()]).filter_map(|node| {
        let Op::Einsum { subs } = &graph.node(node).op else { return None };
        let shapes: Vec<&[usize]> = graph.operands(node).iter().map(|&v| &*graph.ty(v).shape).collect();
        let sizes = subs.sizes(&shapes, None)?;
        Some(2.0 * sizes.iter().map(|&n| n as f64).product::<f64>())
    });
    products.sum()
}

/// The values that only the optimizer reads. Their reductions wait for each other and are merged into buckets
/// (`lower/bucket.rs`), so another reduction costs its bytes, but no latency.
pub struct Gradients {
    /// Values before the optimizer, or their reductions, that only the optimizer reads, directly or after further reductions.
    pub values: HashSet<NodeIndex>,
    /// The lists of axes over which some of the values are scattered.
    scattered: HashSet<Vec<AxisId>>,
    /// The summands, whose sum over ranks is one of the values.
    pub summands: HashSet<NodeIndex>,
    /// The gathers that complete hierarchical reductions.
    completing: HashSet<NodeIndex>,
}

/// How an operation relates to gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// It computes one of the values.
    pub gradient: bool,
    /// It reads a summand.
    pub summand: bool,
    /// It is the gather that completes a hierarchical reduction, if it is a gather.
    pub completes: bool,
}

impl Gradients {
    /// The gradients of a placed graph that the search will improve. A value that the optimizer slices does not count,
    /// because it should be scattered instead.
    pub fn of(graph: &Graph) -> Self {
        Self::read_by(graph, |op| !op.is_redistribution())
    }

    /// The gradients of a placed graph as it is lowered, sliced or not.
    pub(crate) fn as_lowered(graph: &Graph) -> Self {
        Self::read_by(graph, |_| true)
    }

    fn read_by(graph: &Graph, counts: fn(&Op) -> bool) -> Self {
        let mut values = HashSet::new();
        let nodes: Vec<NodeIndex> = graph.nodes().collect();
        let hierarchies = hierarchies(graph);
        let is_early = |n: NodeIndex| graph.node(n).origin.phase != Phase::Optimizer;
        let completes = |n: NodeIndex| matches!(graph.node(n).op, Op::AllGather { .. }) && hierarchies.contains_key(&n);
        let reduces =
            |n: NodeIndex| matches!(graph.node(n).op, Op::AllReduce { .. } | Op::ReduceScatter { .. }) || completes(n);
        let reduced = |n: NodeIndex| {
            let mut source = hierarchies.get(&n).copied().unwrap_or_else(|| graph.operands(n)[0].node);
            while let Some(&outer) = hierarchies.get(&source) {
                source = outer;
            }
            source
        };
        // A reduction in the optimizer belongs to the value that it reduces.
        let is_value = |n: NodeIndex| is_early(n) || reduces(n) && is_early(reduced(n));
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
        let summands = sums.map(|&n| graph.operands(n)[0].node).collect();
        let completing = nodes.into_iter().filter(|&n| completes(n)).collect();
        Gradients { values, scattered, summands, completing }
    }

    /// The role of an operation, as far as it follows from the graph.
    pub(crate) fn role(&self, node: NodeIndex) -> Role {
        Role { gradient: self.values.contains(&node), summand: false, completes: self.completing.contains(&node) }
    }

    /// Whether an operation with a role begins together with others.
    pub fn company(&self, op: &Op, role: &Role) -> Company {
        let together = match op {
            Op::AllReduce { .. } => role.gradient,
            Op::ReduceScatter { axes, .. } => role.summand || role.gradient && self.scattered.contains(axes),
            Op::AllGather { .. } => role.gradient && role.completes,
            _ => false,
        };
        if together { Company::Together } else { Company::Alone }
    }
}

/// The reductions that rule 25 split: for the scatter, the reduction and the gather of each, the value that it reduces.
/// The inner reduction may be split in turn.
fn hierarchies(graph: &Graph) -> HashMap<NodeIndex, NodeIndex> {
    let mut found: HashMap<NodeIndex, NodeIndex> = HashMap::new();
    for gather in graph.nodes() {
        let Op::AllGather { dim, axes } = &graph.node(gather).op else { continue };
        let sum = graph.operands(gather)[0].node;
        let scatter = match (&graph.node(sum).op, found.get(&sum)) {
            (Op::AllReduce { .. }, _) => graph.operands(sum)[0].node,
            (_, Some(&scatter)) => scatter,
            _ => continue,
        };
        if matches!(&graph.node(scatter).op, Op::ReduceScatter { dim: d, axes: a, .. } if (d, a) == (dim, axes)) {
            let source = graph.operands(scatter)[0].node;
            // The parts of an inner hierarchy keep the value that it reduces, which leads to this source.
            found.insert(gather, source);
            found.entry(sum).or_insert(source);
            found.insert(scatter, source);
        }
    }
    found
}

/// The bytes of the whole value of a collective, which is the side on which a rank holds more; for an all-to-all, the
/// bytes that one rank holds.
pub fn full_bytes(op: &Op, operand: &Type, result: &Type, mesh: &Mesh) -> usize {
    // This is exact even for uneven chunks: the union of the chunks of the group of rank 0.
    let local = |t: &Type| t.max_local_bytes(mesh);
    match op {
        Op::AllGather { .. } => local(result),
        _ => local(operand),
    }
}
