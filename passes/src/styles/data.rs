//! Data modes: which tensors of a training step are sharded over the data axis.

use tpc_ir::reason::Mode;

/// Which tensors of a training step are sharded over the data axis, in addition to the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataMode {
    /// No others: every rank has all parameters, and gradients are reduced
    /// (`torch.nn.parallel.DistributedDataParallel`).
    Ddp,
    /// Parameters, gradients and optimizer state (Rajbhandari et al., "ZeRO", stage 3;
    /// `torch.distributed.fsdp.fully_shard`).
    Fsdp,
    /// Optimizer state (ZeRO stage 1).
    Zero1,
    /// Like [`DataMode::Fsdp`] over the data axis, and replicated over a second axis, over which the batch is sharded
    /// too (hybrid sharding in FSDP).
    Hsdp {
        /// The name of the axis of the replicas.
        replicate_axis: String,
    },
}

impl DataMode {
    /// The mode as it appears in reasons.
    pub fn kind(&self) -> Mode {
        match self {
            DataMode::Ddp => Mode::Ddp,
            DataMode::Fsdp => Mode::Fsdp,
            DataMode::Zero1 => Mode::Zero1,
            DataMode::Hsdp { .. } => Mode::Hsdp,
        }
    }

    /// The name used in plan files.
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
