//! When in a step an operation has its turn.
//!
//! Kernels and buckets put operations together that the program has apart. That is free of charge only for operations
//! that run at the same time: one that waits for a later micro-batch would keep every reader waiting, and all memory
//! between the two alive.
//!
//! Phase and micro-batch of an operation do not say it all. The number of labels of the last micro-batch is counted
//! before the backward pass of the first one, because the loss of every micro-batch is divided by the sum of these
//! numbers. If the loop that counts labels also adds up the losses of its micro-batch, then the first backward pass
//! waits for the last forward pass, and the activations of all micro-batches are alive at once. So the first micro-batch
//! that waits for an operation belongs to its turn, too.

use tpc_ir::{Graph, Phase};

/// When an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// The part of the step.
    phase: Phase,
    /// The micro-batch that it belongs to; none for what there is once.
    micro_batch: Option<usize>,
    /// The first micro-batch that waits for it, its own included.
    pub(super) wanted_by: Option<usize>,
}

/// The turn of every node, by its index.
pub(super) fn turns(graph: &Graph) -> Vec<Turn> {
    let turn = |node| {
        let origin = &graph.node(node).origin;
        let micro_batch = origin.micro_batch;
        Turn { phase: origin.phase, micro_batch, wanted_by: micro_batch }
    };
    let mut turns: Vec<Turn> = graph.nodes().map(turn).collect();
    for node in graph.nodes().collect::<Vec<_>>().into_iter().rev() {
        let Some(reader) = turns[node.index()].wanted_by else { continue };
        for v in graph.operands(node) {
            let wanted_by = &mut turns[v.node.index()].wanted_by;
            *wanted_by = Some(wanted_by.map_or(reader, |first| first.min(reader)));
        }
    }
    turns
}
