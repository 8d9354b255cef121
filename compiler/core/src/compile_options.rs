//! The options of the compiler.

use crate::target;
use tpc_passes::egraph::SearchOptions;
use tpc_passes::lower::LowerOptions;
use tpc_passes::options::StepOptions;
use tpc_passes::targets::Target;
use tpc_runtime::session::Backend;

/// Options for compiling. They have no default, because the right target depends on the device that runs the ranks.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// The cost model: the rates of the device and of its links.
    pub target: Target,
    /// Options of the e-graph search.
    pub search: SearchOptions,
    /// Whether gradients are outputs; they then live to the end of the step.
    pub gradients: bool,
    /// Clipping, micro-batches, freezing, precision.
    pub step: StepOptions,
    /// Bucketing and overlap of collectives.
    pub lower: LowerOptions,
    /// Seed of the program's random operations, for example dropout.
    pub seed: u64,
}

impl CompileOptions {
    /// The default options for a target.
    pub fn new(target: Target) -> Self {
        CompileOptions {
            target,
            search: SearchOptions::default(),
            gradients: false,
            step: StepOptions::default(),
            lower: LowerOptions::default(),
            seed: 0,
        }
    }

    /// The default options for the target of a backend.
    pub fn for_backend(backend: Backend) -> Self {
        CompileOptions::new(target::of_backend(backend).clone())
    }

    /// The default options for ranks on the CPU.
    pub fn for_cpu() -> Self {
        CompileOptions::for_backend(Backend::Cpu)
    }
}
