//! What a program needs that trains a burn model sharded: `use tpc::prelude::*;`.
//!
//! burn's own names (tensors, modules, optimizers, schedulers, data loaders) come from burn.

pub use crate::capture::{Batch, BatchData, Named, Results, named, scope::scope};
pub use crate::program::Error;
pub use crate::trainer::{CompiledTrainer, Evaluation, RunningTrainer, Step, Trainer, TrainerError};
pub use tpc_derive::{Batch, Results};
pub use tpc_ir::Mesh;
pub use tpc_ir::mesh::MeshError;
pub use tpc_passes::options::{Precision, Reduction};
pub use tpc_passes::styles::{
    ColwiseParallel, DataMode, Layout, PairwiseParallel, PairwiseSequenceParallel, ParallelStyle, Plan,
    PrepareModuleInput, PrepareModuleInputOutput, PrepareModuleOutput, RowwiseParallel, SequenceParallel,
    TensorParallelMultiheadAttention,
};
pub use tpc_runtime::launch::join;
pub use tpc_runtime::{Backend, CheckpointError, CollectiveCount, Processes, RuntimeError};
