//! A sharding compiler for burn models: a model and a closure become one graph of the whole training step, a plan says which
//! weights are cut along which mesh axis, and the compiler places every other value, inserts the collectives and makes one
//! program per rank.
//!
//! The [`guide`] is the place to start. A program begins with [`prelude`] and a [`Trainer`]; what it rarely names is in the
//! modules below. The crate only shows what is made elsewhere: capture, compilation and the trainer in `tpc-compiler`, the
//! command in `tpc-command`.

#[cfg(feature = "train")]
pub mod burn_train;
pub mod guide;
pub mod prelude;

#[doc(inline)]
pub use tpc_compiler::capture::{
    Batch, BatchData, Loss, Named, ResultValues, Results, Spec, Tensors, named, scope::scope,
};
#[doc(inline)]
pub use tpc_compiler::error::Error;
#[doc(inline)]
pub use tpc_compiler::optimizer::ByDimensions;
pub use tpc_compiler::program::Stages;
#[doc(inline)]
pub use tpc_compiler::trainer::{CompiledTrainer, Evaluation, RunningTrainer, Step, Trainer};
pub use tpc_derive::{Batch, Results};
#[doc(inline)]
pub use tpc_ir::program::RankProgram;
#[doc(inline)]
pub use tpc_ir::{Graph, InputId, InputKind, Mesh, ModulePath, OutputKind, Segment, text};
#[doc(inline)]
pub use tpc_passes::options::{Held, Precision, Reduction};
#[doc(inline)]
pub use tpc_passes::targets::Target;
#[doc(inline)]
pub use tpc_runtime::launch::join;
#[doc(inline)]
pub use tpc_runtime::{Backend, CollectiveCount, InputName, Processes, Session};

/// Parallel styles and plans, and what one's own style is made of.
pub mod styles {
    #[doc(inline)]
    pub use tpc_ir::reason::Side;
    #[doc(inline)]
    pub use tpc_passes::styles::modules::{Role, Weight};
    #[doc(inline)]
    pub use tpc_passes::styles::plan::{BUILT_IN, SCHEMA};
    #[doc(inline)]
    pub use tpc_passes::styles::prepare::Prepare;
    #[doc(inline)]
    pub use tpc_passes::styles::style::{Module, Placements};
    #[doc(inline)]
    pub use tpc_passes::styles::{
        ColwiseParallel, DataMode, Layout, MeshDim, PairwiseParallel, PairwiseSequenceParallel, ParallelStyle, Plan,
        PrepareModuleInput, PrepareModuleInputOutput, PrepareModuleOutput, RowwiseParallel, SequenceParallel,
        TensorParallelMultiheadAttention, Way, WholeModel,
    };
}

/// What programs are compiled for: the numbers of a [`Target`].
pub mod targets {
    #[doc(inline)]
    pub use tpc_passes::targets::{BUILT_IN, Device, DeviceKind, Link, Links, Node, Products, SCHEMA};
}

/// Model families, read from Hugging Face directories.
pub mod models {
    #[doc(inline)]
    pub use tpc_compiler::models::{
        Documents, Head, HeadKind, Labels, Model, ModelConfig, ModelDir, ModelWarning, Pooling, PoolingMode, Problem,
        SavedType, Saving, ShardSize, Targets, TokenInputs, loss::IGNORE,
    };
}

/// Text from a causal language model, with a cache of keys and values.
pub mod generate {
    #[doc(inline)]
    pub use tpc_compiler::generate::{Choice, Chosen, Generate, Generated, Generator, Limits, Sampling, Why};
}

/// The errors that [`Error`] is made of, and those of meshes and plans.
pub mod error {
    #[doc(inline)]
    pub use tpc_compiler::capture::CaptureError;
    #[doc(inline)]
    pub use tpc_compiler::generate::GenerateError;
    #[doc(inline)]
    pub use tpc_compiler::import::ImportError;
    #[doc(inline)]
    pub use tpc_compiler::models::ModelError;
    #[doc(inline)]
    pub use tpc_compiler::target::TargetMismatch;
    #[doc(inline)]
    pub use tpc_compiler::trainer::TrainerError;
    #[doc(inline)]
    pub use tpc_ir::mesh::MeshError;
    #[doc(inline)]
    pub use tpc_passes::options::OptionError;
    #[doc(inline)]
    pub use tpc_passes::styles::{PlanError, StyleError};
    #[doc(inline)]
    pub use tpc_passes::targets::TargetError;
    #[doc(inline)]
    pub use tpc_runtime::{CheckpointError, RuntimeError};
}

/// What the code of `#[derive(Batch)]` and `#[derive(Results)]` names.
#[doc(hidden)]
pub mod derived {
    pub use tpc_compiler::capture::{BatchFields, Inputs, KeptName, Leaf, LeafKind, field_name};
}
