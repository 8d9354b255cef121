//! The speed of a run, compared with what the machine can do.

use crate::Outcome;
use crate::calibrate::products::cached_rate;
use crate::launch::{Device, Running};
use std::time::Duration;
use tpc_compiler::program::CompileOptions;
use tpc_ir::DType;
use tpc_ir::quote::cut;
use tpc_runtime::Session;

/// Duration of the measurement of products.
const LONG: Duration = Duration::from_millis(60);

/// The work of a step, and the rate that the machine could reach.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// Floating-point operations of all ranks in a step.
    flops: Option<f64>,
    /// Floating-point operations per second of all ranks, and the source of this number.
    rate: Option<(f64, String)>,
}

impl Work {
    /// The work of a step of this many ranks. The rate comes from the target if one was `named`. Otherwise it is
    /// measured within some milliseconds, on CPUs only, with products that fit into the caches.
    ///
    /// # Errors
    /// A host that cannot run this many ranks.
    pub(super) fn of(
        running: &Running,
        flops: Option<f64>,
        ranks: usize,
        (options, named): (&CompileOptions, bool),
    ) -> Outcome<Self> {
        let alone = tpc_runtime::launch::joined().is_none();
        let dtype = if options.step.precision.is_some() { DType::BF16 } else { DType::F32 };
        let target = &options.target;
        let rate = match running.device {
            _ if flops.is_none() => None,
            _ if named => {
                let rate = ranks as f64 * target.device.products.rate(dtype);
                Some((rate, format!("of the target {}", cut(&target.name))))
            }
            Device::Cpu if alone => Some((cached_rate(ranks, LONG)?, "measured".into())),
            Device::Cpu | Device::Cuda => None,
        };
        Ok(Work { flops, rate })
    }

    /// A line about a run: tokens per second, the share of time spent waiting for data, memory, and the model FLOPs
    /// utilization (MFU), which is the rate of the run's products relative to the rate of the machine.
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
            "{tokens} tokens in {seconds:.1} s: {:.0} tokens/s, {:.1}% of the time waiting for data, {:.1} MB per rank",
            tokens as f64 / seconds,
            waited * 100.0,
            bytes as f64 / 1e6
        );
        if let (Some(flops), Some((rate, whose))) = (self.flops, &self.rate) {
            let mfu = flops * steps as f64 / seconds / rate;
            text += &format!(", MFU {:.1}% of {:.1} GFLOP/s {whose}", mfu * 100.0, rate * 1e-9);
        }
        text
    }
}
