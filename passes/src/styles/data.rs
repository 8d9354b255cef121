//! What the data axes do: plain data parallelism, and what of a training step is sharded over them.
//!
//! A dimension that a style already cuts simply gets the data axis as its minor one: parallelism in two
//! dimensions needs no code of its own. The dimension of a parameter that is cut is the one whose
//! largest shard is smallest; of several the outermost, whose shards are contiguous.

use tpc_ir::reason::Mode;
use tpc_ir::{AxisId, Mesh, Sharding, Type};

/// What of a training step is sharded over the data axis, besides the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataMode {
    /// Nothing: every rank has all parameters, gradients are reduced
    /// (`torch.nn.parallel.DistributedDataParallel`).
    Ddp,
    /// Parameters, gradients and optimizer state (Rajbhandari et al., "ZeRO", stage 3;
    /// `torch.distributed.fsdp.fully_shard`).
    Fsdp,
    /// Optimizer state (ZeRO stage 1).
    Zero1,
    /// As [`DataMode::Fsdp`] over the data axis, and replicated over a second axis, over which the
    /// batch is sharded too (FSDP's hybrid sharding).
    Hsdp {
        /// Name of the axis of the replicas.
        replicate_axis: String,
    },
}

impl DataMode {
    /// Which mode it is, as a reason says it.
    pub fn kind(&self) -> Mode {
        match self {
            DataMode::Ddp => Mode::Ddp,
            DataMode::Fsdp => Mode::Fsdp,
            DataMode::Zero1 => Mode::Zero1,
            DataMode::Hsdp { .. } => Mode::Hsdp,
        }
    }

    /// The name in plan files.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Whether parameters are sharded.
    pub fn shards_parameters(&self) -> bool {
        matches!(self, DataMode::Fsdp | DataMode::Hsdp { .. })
    }

    /// Whether optimizer state is sharded.
    pub fn shards_state(&self) -> bool {
        *self != DataMode::Ddp
    }
}

/// A placement cut by `axes` in addition, where the largest shard becomes smallest.
pub fn sharded(ty: &Type, at: &Sharding, axes: &[AxisId], mesh: &Mesh) -> Sharding {
    let cut = |dim: usize| axes.iter().fold(at.clone(), |s, &a| s.pushed(dim, a));
    let size = |s: &Sharding| ty.placed(s.clone()).max_local_shape(mesh).iter().product::<usize>();
    let best = (0..ty.rank()).map(|d| (size(&cut(d)), d)).min();
    match best {
        Some((smallest, dim)) if smallest < size(at) => cut(dim),
        _ => at.clone(),
    }
}
