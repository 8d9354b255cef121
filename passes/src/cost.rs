//! What an operation costs: seconds of compute by a roofline, seconds of communication by α–β.
//!
//! The α–β model is Hockney's; ring bytes are those of Thakur et al. Defaults are this project's
//! measurements on two CPU ranks of one process (RUNTIME.md section 1).

use tpc_ir::program::wire_bytes;
use tpc_ir::{Graph, Mesh, Op, Type};

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
            Op::ShardSlice { .. } | Op::ToPartial { .. } | Op::Index { .. } => self.launch * 0.1,
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

    /// Seconds of a whole placed graph on its slowest rank, nothing overlapped.
    pub fn graph_seconds(&self, graph: &Graph) -> f64 {
        graph
            .nodes()
            .map(|node| {
                let operands = graph.operands(node);
                let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
                self.seconds(&graph.node(node).op, &types, &graph.node(node).types[0], &graph.mesh)
            })
            .sum()
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
