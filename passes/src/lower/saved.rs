//! What the forward pass leaves in memory for the backward pass, according to the kernels of a program.
//!
//! A value is saved if a kernel of the forward pass computes it and a kernel of a later phase reads its memory. What
//! kernels compute where they read it, such as the scores of attention or the values that loops recompute, is not saved,
//! although the graph has operations of the backward pass that read it. A parameter that the forward pass gathers is saved
//! if the backward pass reads the same gather.

use super::depend::memory;
use super::kernel::Kernel;
use super::{LowerOptions, kernels};
use petgraph::graph::NodeIndex;
use std::collections::HashSet;
use tpc_ir::{Graph, Op, Phase};

/// What the forward pass leaves in memory for the backward pass.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// The nodes whose results are saved, in program order.
    pub nodes: Vec<NodeIndex>,
    /// The kernels of attention of the forward pass.
    pub attention: Vec<SavedAttention>,
}

/// A kernel of attention of the forward pass, whose backward pass reads the same values.
#[derive(Clone, Debug)]
pub struct SavedAttention {
    /// The nodes that it computes, in program order. They are computed together or not at all.
    pub nodes: Vec<NodeIndex>,
    /// The nodes whose results it reads.
    pub reads: Vec<NodeIndex>,
}

/// What the forward pass of a program leaves in memory for the backward pass.
pub fn saved(graph: &Graph, options: &LowerOptions) -> Saved {
    let kernels = kernels(graph, options);
    let phase = |kernel: &Kernel| graph.node(kernel.last()).origin.phase;
    let mut nodes: HashSet<NodeIndex> = HashSet::new();
    for kernel in kernels.iter().filter(|kernel| phase(kernel) != Phase::Forward) {
        let read = kernel.reads(graph).into_iter().map(|v| memory(graph, v.node));
        nodes.extend(read.filter(|&n| is_computed_forward(graph, n)));
    }
    let mut nodes: Vec<NodeIndex> = nodes.into_iter().collect();
    nodes.sort_unstable();
    let attention = kernels.iter().filter_map(|kernel| match kernel {
        Kernel::Attention { nodes, reads, .. } if phase(kernel) == Phase::Forward => {
            Some(SavedAttention { nodes: nodes.clone(), reads: reads.iter().map(|v| v.node).collect() })
        }
        _ => None,
    });
    Saved { nodes, attention: attention.collect() }
}

/// Whether a node computes a value of the forward pass that takes memory of its own.
fn is_computed_forward(graph: &Graph, node: NodeIndex) -> bool {
    let n = graph.node(node);
    n.origin.phase == Phase::Forward && !matches!(n.op, Op::Input { .. })
}
