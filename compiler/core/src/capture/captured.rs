//! The result of a capture.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Distribution, TensorData};
use burn_ir::{GraphIr, TensorId};
use tpc_ir::ModulePath;

use super::interface::{CapturedInput, CapturedOutput, InputKind};
pub use super::params::ModuleInfo;
use super::scalars::StepScalars;
use super::states::OptimizerStates;

/// A recorded program. [The module](super) lists its invariants.
#[derive(Clone, Debug)]
pub struct Captured {
    /// The operations, with `inputs` and `outputs` in the order of the fields below.
    pub graph: GraphIr,
    /// Everything that the graph reads but does not compute.
    pub inputs: Vec<CapturedInput>,
    /// The results of the graph.
    pub outputs: Vec<CapturedOutput>,
    /// Regions marked with [`scope`](super::scope::scope), in the order in which they were entered.
    pub scopes: Vec<ScopeRecord>,
    /// Number of operations of the forward pass, which come first.
    pub forward_end: usize,
    /// Number of operations of the forward and backward passes; the rest belongs to the optimizer.
    pub backward_end: usize,
    /// All modules, in the order in which burn visits them; the root has the empty path.
    pub modules: Vec<ModuleInfo>,
    /// `(alias, path)`: further paths in the module tree that hold the parameter listed under `path`.
    pub aliases: Vec<(ModulePath, ModulePath)>,
    /// Initial values of the parameters, by the text of their paths; empty if only the shapes of the model were
    /// captured.
    pub values: Arc<HashMap<String, TensorData>>,
    /// How the parameters are initialized, by the text of their paths; empty unless only the shapes of the model were
    /// captured.
    pub init: HashMap<String, Init>,
}

impl Captured {
    /// The names of the data that an operation reads or that is itself a result.
    pub(crate) fn data_read(&self) -> Vec<String> {
        let read = self.read();
        let names = self.inputs.iter().filter_map(|input| match &input.kind {
            InputKind::Data { name } if read.contains(&input.id) => Some(name.clone()),
            _ => None,
        });
        names.collect()
    }

    /// Keeps only the data whose name satisfies `keep`. Nothing may read the rest.
    pub(crate) fn retain_data(&mut self, keep: impl Fn(&str) -> bool) {
        self.retain(|_, kind| !matches!(kind, InputKind::Data { name } if !keep(name)));
    }

    /// Drops parameters that nothing reads.
    pub(crate) fn drop_unread_parameters(&mut self) {
        let read = self.read();
        self.retain(|id, kind| !matches!(kind, InputKind::Parameter { .. }) || read.contains(&id));
    }

    /// All tensors that are read, are results of the program, or are arguments or results of a region.
    fn read(&self) -> HashSet<TensorId> {
        let operands = self.graph.operations.iter().flat_map(|op| op.inputs().map(|tensor| tensor.id));
        let marked = self.scopes.iter().flat_map(|scope| scope.arguments.iter().chain(&scope.results).copied());
        operands.chain(self.graph.outputs.iter().copied()).chain(marked).collect()
    }

    /// Keeps only the inputs that satisfy `keep`, without renumbering.
    fn retain(&mut self, keep: impl Fn(TensorId, &InputKind) -> bool) {
        self.inputs.retain(|input| keep(input.id, &input.kind));
        self.graph.inputs = self.inputs.iter().map(|input| input.id).collect();
    }
}

/// A region marked with [`scope`](super::scope::scope).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeRecord {
    /// The path, which includes those of the enclosing regions.
    pub path: ModulePath,
    /// Ids of the arguments, in order.
    pub arguments: Vec<TensorId>,
    /// Ids of the results, in order.
    pub results: Vec<TensorId>,
    /// The operations recorded inside the region, all of which belong to the forward pass.
    pub operations: Range<usize>,
    /// The ids of the tensors that these operations produce.
    pub tensors: Range<u64>,
}

/// How a parameter is initialized.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// Filled with one number.
    Constant(f64),
    /// Drawn at random.
    Random(Distribution),
    /// Computed by several operations, whose names are listed. The list is empty if the parameter was computed while
    /// the module was built, for example by casting or scaling it. [`initial_values`](super::initial_values) computes
    /// its values.
    Computed(Vec<String>),
}

/// A training step, as two programs.
///
/// The first step has no optimizer state to read, so its program differs from that of the later steps.
#[derive(Debug)]
pub struct TrainingCapture {
    /// The first step, which creates the optimizer states.
    pub first: Captured,
    /// Every later step, which reads the states and updates them.
    pub steady: Captured,
    /// The numbers that both programs take as inputs.
    pub scalars: StepScalars,
    /// The optimizer states of each parameter.
    pub states: OptimizerStates,
}
