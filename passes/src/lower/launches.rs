//! What all ranks execute, in which order.

use super::kernel::Kernel;
use petgraph::graph::NodeIndex;
use std::sync::Arc;
use tpc_ir::Graph;

/// One entry of the common order; kernels are named by their index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// Runs a kernel.
    Run(usize),
    /// Starts a collective.
    Start(usize),
    /// Waits for a collective.
    Wait(usize),
}

/// What all ranks execute, in this order; sizes and places are each rank's own.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Kernels and collectives; a collective of several values has several nodes.
    pub kernels: Vec<Kernel>,
    /// The order.
    pub order: Vec<Launch>,
}

impl Schedule {
    /// The collectives in the order in which they start: the values that each carries.
    pub fn collectives(&self) -> impl Iterator<Item = &[NodeIndex]> {
        self.order.iter().filter_map(|launch| match launch {
            Launch::Start(k) => self.kernels[*k].as_collective(),
            _ => None,
        })
    }
}

/// Why a collective exists: the first reason of its values, and how many more there are.
pub fn why(graph: &Graph, collective: &[NodeIndex]) -> Arc<str> {
    let values = collective.len();
    let reasons = || collective.iter().map(|&n| &graph.node(n).origin.reason);
    match (values, reasons().find(|w| !w.is_empty())) {
        (1, why) => why.map(ToString::to_string).unwrap_or_default().into(),
        (_, Some(why)) => format!("{why} (and {} more)", values - 1).into(),
        (_, None) => format!("{values} values together").into(),
    }
}
