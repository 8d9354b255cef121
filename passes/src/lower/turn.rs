//! When an operation runs within a step.
//!
//! Kernels and buckets merge operations that are apart in the program. That has no cost only if the operations run at
//! about the same time: an operation that waits for a later micro-batch would delay the readers of all others, and keep
//! the memory in between alive.
//!
//! The phase and the micro-batch of an operation do not determine this. For example, the number of labels of the last
//! micro-batch is counted before the backward pass of the first one, because the loss of every micro-batch is divided
//! by the sum of these numbers. If the loop that counts labels also added up the losses of its micro-batch, the first
//! backward pass would wait for the last forward pass, and the activations of all micro-batches would be alive at once.
//! A turn therefore also has the first micro-batch that waits for the operation.

use tpc_ir::{Graph, Phase};

/// When an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// The phase of the step.
    phase: Phase,
    /// The micro-batch that it belongs to; `None` if it is not repeated per micro-batch.
    micro_batch: Option<usize>,
    /// The first micro-batch that waits for it, which may be its own.
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
