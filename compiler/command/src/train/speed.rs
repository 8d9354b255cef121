//! How fast a run was, beside what the machine can do.

use crate::launch::{Device, Running};
use tpc_ir::{Graph, Op};
use tpc_runtime::Session;
use tpc_runtime::measure::product_rate;

/// Floating-point operations of the products of a program, whatever its mesh: two for each term.
pub(super) fn flops(logical: &Graph) -> f64 {
    let products = logical.nodes().filter_map(|node| {
        let Op::Einsum { subs } = &logical.node(node).op else { return None };
        let shapes: Vec<&[usize]> = logical.operands(node).iter().map(|&v| &*logical.ty(v).shape).collect();
        let sizes = subs.sizes(&shapes, None)?;
        Some(2.0 * sizes.iter().map(|&n| n as f64).product::<f64>())
    });
    products.sum()
}

/// What a step computes, and what the machine could.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Floating-point operations of all ranks in a step.
    flops: Option<f64>,
    /// Floating-point operations a second of all ranks of this host in products that fit into the caches.
    rate: Option<f64>,
}

impl Work {
    /// The work of a step of so many ranks; what the machine can do is measured on CPUs only, in some milliseconds.
    pub(super) fn of(running: &Running, flops: Option<f64>, ranks: usize) -> Self {
        let alone = tpc_runtime::launch::joined().is_none();
        let rate = (running.device == Device::Cpu && alone && flops.is_some()).then(|| product_rate(ranks));
        Work { flops, rate }
    }

    /// A line about a run: tokens a second, the share of the time in which it waited for data, memory, and the share of what the machine can
    /// do that its products were (MFU).
    pub(super) fn summary(
        &self,
        session: &Session,
        (steps, tokens): (u64, usize),
        seconds: f64,
        waited: f64,
    ) -> String {
        let ranks = session.local_ranks();
        let bytes = ranks.map(|rank| session.allocated_bytes(rank) + session.scratch_bytes(rank)).max().unwrap_or(0);
        let mut text = format!(
            "{tokens} tokens in {seconds:.1} s: {:.0} tokens/s, {:.1}% of the time waiting for data, {:.1} MB a rank",
            tokens as f64 / seconds,
            waited * 100.0,
            bytes as f64 / 1e6
        );
        if let (Some(flops), Some(rate)) = (self.flops, self.rate) {
            let mfu = flops * steps as f64 / seconds / rate;
            text += &format!(", MFU {:.1}% of {:.1} GFLOP/s measured", mfu * 100.0, rate * 1e-9);
        }
        text
    }
}
