//! What each operation adds to the time of the kernel that it runs in.
//!
//! Lowering makes one kernel of many operations: a norm, the update of a parameter, the whole of attention. Such a kernel
//! passes what it reads and its results through memory once, and nothing in between. The planner must know that.
//! Otherwise every elementwise operation of an optimizer looks like a pass through memory of its own, and cutting the
//! update looks cheaper than it is.
//!
//! Which operations run together is asked of lowering itself ([`lower::group`](crate::lower::group)), for the program
//! without redistributions. A redistribution within a kernel splits it in two, so it costs two more passes
//! ([`Kernels::pass`]).
//!
//! Before: `%5 = mul %m, 0.9`, `%6 = mul %g, 0.1`, `%7 = add %5, %6`, three passes.
//! After: `%5` reads `%m` and begins the kernel, `%6` reads `%g`, and `%7` writes its result.

use crate::lower::fused;
use crate::lower::kernel::{Kernel, is_free};
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use std::collections::HashSet;
use tpc_ir::{Graph, Mesh, Op, Type, Value};

/// A backward kernel of attention computes the scores once more than the graph does: five products instead of four.
const SCORES_TWICE: f64 = 1.25;

/// What an operation adds to its kernel.
#[derive(Clone, Debug)]
struct Share {
    /// The operands that it is the first of its kernel to read from memory.
    reads: Vec<usize>,
    /// The results that it writes to memory.
    writes: Vec<usize>,
    /// Whether it is the first operation of its kernel.
    begins: bool,
    /// How many times its product is computed.
    products: f64,
}

/// What the operations of a program add to their kernels.
#[derive(Debug)]
pub struct Kernels {
    /// For every node its share; none of one that needs no kernel.
    shares: Vec<Option<Share>>,
}

impl Kernels {
    /// The kernels of a program without redistributions.
    pub fn of(graph: &Graph) -> Self {
        let mut shares = vec![None; graph.len()];
        let results: HashSet<Value> = graph.outputs.iter().map(|output| viewed(graph, output.value)).collect();
        for kernel in fused(graph) {
            let nodes = kernel.nodes();
            let members: HashSet<NodeIndex> = nodes.iter().copied().collect();
            let products = match &kernel {
                Kernel::Attention { attention, .. } if attention.is_backward() => SCORES_TWICE,
                _ => 1.0,
            };
            let mut read: HashSet<Value> = HashSet::new();
            for &node in &nodes {
                let operands = graph.operands(node);
                let from_memory = |&(_, &v): &(usize, &Value)| {
                    !members.contains(&v.node) && !matches!(graph.op(v), Op::Fill(_) | Op::Iota) && read.insert(v)
                };
                let reads = operands.iter().enumerate().filter(from_memory).map(|(i, _)| i).collect();
                let is_read = |result: Value| {
                    let read_elsewhere = |reader: NodeIndex| !members.contains(&reader);
                    results.contains(&result) || readers(graph, result).into_iter().any(read_elsewhere)
                };
                let values = (0..graph.node(node).types.len()).map(|i| Value { node, result: i as u32 });
                let writes = values.enumerate().filter(|&(_, v)| is_read(v)).map(|(i, _)| i).collect();
                let begins = node == kernel.first();
                shares[node.index()] = Some(Share { reads, writes, begins, products });
            }
        }
        Kernels { shares }
    }

    /// The seconds that the slowest rank takes for a node of the program, whose operands and results have these types.
    pub fn seconds(
        &self,
        target: &Target,
        node: usize,
        op: &Op,
        operands: &[&Type],
        results: &[&Type],
        mesh: &Mesh,
    ) -> f64 {
        let (Some(share), device) = (&self.shares[node], &target.device) else { return 0.0 };
        let local = |ty: &Type| ty.max_local_bytes(mesh) as f64;
        let sum = |types: &[&Type], which: &[usize]| which.iter().map(|&i| local(types[i])).sum::<f64>();
        let launch = if share.begins { device.launch } else { 0.0 };
        let bytes = match op {
            // Only some rows of the table are touched, and each row that is read is written elsewhere.
            Op::Take => 2.0 * local(results[0]) + local(operands[1]),
            Op::Put => 2.0 * local(operands[2]) + local(operands[1]),
            _ => sum(operands, &share.reads) + sum(results, &share.writes),
        };
        let products = match op {
            Op::Einsum { subs } => {
                let [left, right] = [operands[0], operands[1]].map(|ty| ty.max_local_shape(mesh));
                let terms = subs.sizes(&[&left, &right], None).unwrap_or_default();
                2.0 * share.products * terms.iter().map(|&n| n as f64).product::<f64>()
            }
            _ => 0.0,
        };
        let rate = device.products.rate(operands.first().unwrap_or(&results[0]).dtype);
        launch + (products / rate).max(bytes / device.memory)
    }

    /// The seconds that a redistribution of a result of a node adds to its kernels at one of its ends, where the result has this
    /// type: a value that the kernel does not have in memory is written there before, and read after.
    pub fn pass(&self, target: &Target, node: usize, result: usize, end: &Type, mesh: &Mesh) -> f64 {
        let inside = |share: &Share| !share.writes.contains(&result);
        if !self.shares[node].as_ref().is_some_and(inside) {
            return 0.0;
        }
        end.max_local_bytes(mesh) as f64 / target.device.memory
    }
}

/// The value that a value is a view of.
fn viewed(graph: &Graph, value: Value) -> Value {
    match graph.operands(value.node).first() {
        Some(&source) if is_free(graph.op(value)) => viewed(graph, source),
        _ => value,
    }
}

/// The operations that read a value, or a view of it.
fn readers(graph: &Graph, value: Value) -> Vec<NodeIndex> {
    let mut found = Vec::new();
    for (user, _) in graph.users(value.node).filter(|&(user, _)| graph.operands(user).contains(&value)) {
        match is_free(&graph.node(user).op) {
            true => found.extend(readers(graph, user.into())),
            false => found.push(user),
        }
    }
    found
}
