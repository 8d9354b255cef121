//! What a program computes a second time, and what that takes and saves.

use super::Dropped;
use super::candidates::Candidate;
use petgraph::graph::NodeIndex;
use tpc_ir::{Graph, ModulePath};

/// Values of the forward pass that are alike and are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recomputed {
    /// The module of the first of them.
    pub module: ModulePath,
    /// The operation that computes them.
    pub operation: String,
    /// How many of them are not kept.
    pub values: usize,
    /// The bytes that they take on the first rank.
    pub bytes: usize,
}

/// What a program computes a second time for the backward pass so that it takes less memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecomputeReport {
    /// The values that are not kept, in the order in which they were chosen.
    pub values: Vec<Recomputed>,
    /// Bytes of memory on the first rank before and after.
    pub bytes: [usize; 2],
    /// Simulated seconds of a step before and after.
    pub seconds: [f64; 2],
}

impl Recomputed {
    /// The values of a candidate that are dropped; none if all are kept.
    pub fn of(graph: &Graph, candidate: &Candidate, dropped: &Dropped) -> Option<Self> {
        let nodes: Vec<NodeIndex> = candidate.nodes(usize::MAX).filter(|&node| dropped.has(node)).collect();
        let n = graph.node(*nodes.first()?);
        let bytes = nodes.iter().map(|&node| graph.ty(node.into()).max_local_bytes(&graph.mesh)).sum();
        Some(Recomputed { module: n.origin.module.clone(), operation: n.op.name(), values: nodes.len(), bytes })
    }
}
