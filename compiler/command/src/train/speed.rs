//! How fast a run was, beside what the machine can do.

use crate::Outcome;
use crate::calibrate::products::cached_rate;
use crate::launch::{Device, Running};
use std::time::Duration;
use tpc_compiler::program::CompileOptions;
use tpc_ir::DType;
use tpc_ir::quote::cut;
use tpc_runtime::Session;

/// How long products are measured.
const LONG: Duration = Duration::from_millis(60);

/// What a step computes, and what the machine could.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// Floating-point operations of all ranks in a step.
    flops: Option<f64>,
    /// Floating-point operations a second of all ranks, and where the number comes from.
    rate: Option<(f64, String)>,
}

impl Work {
    /// The work of a step of so many ranks. What they could do is what the target says that was `named`. Without a name it is measured in
    /// some milliseconds, on CPUs only: products that fit into the caches.
    ///
    /// # Errors
    /// A host that cannot run so many ranks.
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
        if let (Some(flops), Some((rate, whose))) = (self.flops, &self.rate) {
            let mfu = flops * steps as f64 / seconds / rate;
            text += &format!(", MFU {:.1}% of {:.1} GFLOP/s {whose}", mfu * 100.0, rate * 1e-9);
        }
        text
    }
}
