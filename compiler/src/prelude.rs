//! The names that a program needs to train a burn model sharded: `use tpc::prelude::*;`.
//!
//! burn's own names (tensors, modules, optimizers, schedulers, data loaders) come from burn.

pub use crate::error::{CheckpointError, MeshError, RuntimeError, TrainerError};
pub use crate::styles::{
    ColwiseParallel, DataMode, Layout, PairwiseParallel, PairwiseSequenceParallel, ParallelStyle, Plan,
    PrepareModuleInput, PrepareModuleInputOutput, PrepareModuleOutput, RowwiseParallel, SequenceParallel,
    TensorParallelMultiheadAttention,
};
pub use crate::{
    Backend, Batch, BatchData, CollectiveCount, CompiledTrainer, Error, Evaluation, Mesh, Named, Precision, Processes,
    Reduction, Results, RunningTrainer, Step, Target, Trainer, join, named, scope,
};
