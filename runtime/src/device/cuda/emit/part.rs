//! The part of a fused loop that one kernel computes.

use super::body::LoopGraph;
use crate::device::nodes::Kind;
use std::collections::HashMap;
use tpc_ir::ReduceOp;

/// A store of a loop.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) walk: usize,
    /// The node whose value is stored.
    pub(super) value: usize,
    /// How it combines over the reduced dimensions; `None` overwrites.
    pub(super) accumulate: Option<ReduceOp>,
}

/// The part of a loop that one kernel computes.
#[derive(Clone, Debug, Default)]
pub(super) struct LoopPart {
    /// Bit set of the reduced dimensions.
    pub(super) reduced: u64,
    pub(super) ends: Vec<End>,
    /// Whether reductions of rows are computed here; otherwise other accesses read the results of another kernel.
    pub(super) reduces: bool,
    pub(super) stands_for: HashMap<usize, usize>,
}

/// The accesses that a part reads.
pub(super) fn reads(graph: &LoopGraph, part: &LoopPart) -> Vec<usize> {
    fn visit(graph: &LoopGraph, part: &LoopPart, node: usize, seen: &mut Vec<bool>, found: &mut Vec<usize>) {
        if std::mem::replace(&mut seen[node], true) {
            return;
        }
        if let Some(&w) = part.stands_for.get(&node) {
            return found.push(w);
        }
        if let Kind::Load(w) = graph.nodes[node].kind {
            found.push(w);
        }
        for &x in &graph.nodes[node].inputs {
            visit(graph, part, x, seen, found);
        }
    }
    let (mut seen, mut found) = (vec![false; graph.nodes.len()], Vec::new());
    part.ends.iter().for_each(|e| visit(graph, part, e.value, &mut seen, &mut found));
    found
}
