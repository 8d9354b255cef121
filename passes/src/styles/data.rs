//! What the data axes do: plain data parallelism, and what of a training step is sharded over them.

use tpc_ir::reason::Mode;

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
