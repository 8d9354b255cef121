//! The schedule that all ranks share: kernels, and the events of running, starting and waiting in their order.

use super::kernel::Kernel;
use petgraph::graph::NodeIndex;
use std::sync::Arc;
use tpc_ir::Graph;

/// One entry of the schedule, with the index of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Runs a kernel.
    Run(usize),
    /// Starts a collective.
    Start(usize),
    /// Waits for a collective.
    Wait(usize),
}

/// The kernels that all ranks execute, and their order. Sizes and offsets differ between ranks.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// The kernels, including collectives.
    pub kernels: Vec<Kernel>,
    /// The order.
    pub order: Vec<Event>,
}

impl Schedule {
    /// The nodes of each collective, in the order in which collectives start.
    pub fn collectives(&self) -> impl Iterator<Item = &[NodeIndex]> {
        self.order.iter().filter_map(|event| match event {
            Event::Start(k) => self.kernels[*k].as_collective(),
            _ => None,
        })
    }
}

/// Why a collective exists: the first reason of its values, and the number of other values.
pub fn why(graph: &Graph, collective: &[NodeIndex]) -> Arc<str> {
    let values = collective.len();
    let reasons = || collective.iter().map(|&n| &graph.node(n).origin.reason);
    match (values, reasons().find(|w| !w.is_empty())) {
        (1, why) => why.map(ToString::to_string).unwrap_or_default().into(),
        (_, Some(why)) => format!("{why} (and {} more)", values - 1).into(),
        (_, None) => format!("{values} values together").into(),
    }
}
