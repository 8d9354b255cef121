//! Counts what the communicators executed, to compare it with the compiler's predictions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tpc_ir::program::{Collective, RankProgram};
use tpc_ir::{DType, Phase};

/// How often one rank executed a kind of collective.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectiveCount {
    /// The mnemonic, for example `all_reduce`.
    pub name: &'static str,
    /// Names of the axes.
    pub axes: Arc<str>,
    /// Part of the step.
    pub phase: Phase,
    /// Element type.
    pub dtype: DType,
    /// Bytes of the whole value.
    pub full_bytes: usize,
    /// Number of ranks in the group.
    pub group: usize,
    /// Number of executions.
    pub count: u64,
    /// Bytes that this rank sends for all of them under the ring algorithm.
    pub wire_bytes: f64,
    /// Time that this rank spent in them, including waiting.
    pub seconds: f64,
}

/// The counters of one rank: one pair for each collective of its program.
#[derive(Debug)]
pub(crate) struct Counters {
    executed: Vec<(AtomicU64, AtomicU64)>,
}

impl Counters {
    pub(crate) fn new(program: &RankProgram) -> Self {
        Counters { executed: program.collectives().map(|_| Default::default()).collect() }
    }

    pub(crate) fn add_time(&self, index: usize, nanoseconds: u64) {
        self.executed[index].1.fetch_add(nanoseconds, Relaxed);
    }

    pub(crate) fn count(&self, index: usize) {
        self.executed[index].0.fetch_add(1, Relaxed);
    }

    pub(crate) fn reset(&self) {
        for (count, time) in &self.executed {
            count.store(0, Relaxed);
            time.store(0, Relaxed);
        }
    }

    /// Sums equal collectives, in the order of their first occurrence.
    pub(crate) fn summary<'a>(&self, collectives: impl Iterator<Item = &'a Collective>) -> Vec<CollectiveCount> {
        let mut out: Vec<CollectiveCount> = Vec::new();
        for (c, (count, time)) in collectives.zip(&self.executed) {
            let count = count.load(Relaxed);
            if count == 0 {
                continue;
            }
            let wire_bytes = c.wire_bytes() * count as f64;
            let seconds = time.load(Relaxed) as f64 * 1e-9;
            let same = out.iter_mut().find(|o| {
                (o.name, &o.axes, o.phase, o.dtype, o.full_bytes, o.group)
                    == (c.name(), &c.axes, c.phase, c.dtype, c.full_bytes, c.group.len())
            });
            if let Some(o) = same {
                o.count += count;
                o.wire_bytes += wire_bytes;
                o.seconds += seconds;
            } else {
                out.push(CollectiveCount {
                    name: c.name(),
                    axes: c.axes.clone(),
                    phase: c.phase,
                    dtype: c.dtype,
                    full_bytes: c.full_bytes,
                    group: c.group.len(),
                    count,
                    wire_bytes,
                    seconds,
                });
            }
        }
        out
    }
}
