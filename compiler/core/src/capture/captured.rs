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

/// A recorded program; the invariants are those of [the module](super).
#[derive(Clone, Debug)]
pub struct Captured {
    /// The operations, with `inputs` and `outputs` in the order of the fields below.
    pub graph: GraphIr,
    /// Everything that the graph reads and does not compute.
    pub inputs: Vec<CapturedInput>,
    /// What the graph is for.
    pub outputs: Vec<CapturedOutput>,
    /// Regions marked with [`scope`](super::scope::scope), in the order in which they were entered.
    pub scopes: Vec<ScopeRecord>,
    /// Number of operations of the forward pass, which come first.
    pub forward_end: usize,
    /// Number of operations of the forward and backward passes; the optimizer is what follows.
    pub backward_end: usize,
    /// Every module, in the order in which burn visits them; the root has the empty path.
    pub modules: Vec<ModuleInfo>,
    /// `(alias, path)`: places of the module tree that hold the parameter listed under `path`.
    pub aliases: Vec<(ModulePath, ModulePath)>,
    /// Initial values of parameters by the text of their paths; empty if the model was captured by its shapes.
    pub values: Arc<HashMap<String, TensorData>>,
    /// How parameters are initialized, by the text of their paths; empty unless the model was captured by its shapes.
    pub init: HashMap<String, Init>,
}

impl Captured {
    /// Names of the data that an operation reads, or that is a result itself.
    pub(crate) fn data_read(&self) -> Vec<String> {
        let read = self.read();
        let names = self.inputs.iter().filter_map(|input| match &input.kind {
            InputKind::Data { name } if read.contains(&input.id) => Some(name.clone()),
            _ => None,
        });
        names.collect()
    }

    /// Leaves out data by name, which nothing may read.
    pub(crate) fn retain_data(&mut self, keep: impl Fn(&str) -> bool) {
        self.retain(|_, kind| !matches!(kind, InputKind::Data { name } if !keep(name)));
    }

    /// Leaves out parameters that nothing reads.
    pub(crate) fn drop_unread_parameters(&mut self) {
        let read = self.read();
        self.retain(|id, kind| !matches!(kind, InputKind::Parameter { .. }) || read.contains(&id));
    }

    /// Everything that is read, that is a result, or that a region begins or ends with.
    fn read(&self) -> HashSet<TensorId> {
        let operands = self.graph.operations.iter().flat_map(|op| op.inputs().map(|tensor| tensor.id));
        let marked = self.scopes.iter().flat_map(|scope| scope.arguments.iter().chain(&scope.results).copied());
        operands.chain(self.graph.outputs.iter().copied()).chain(marked).collect()
    }

    /// Leaves out inputs; ids stay as they are.
    fn retain(&mut self, keep: impl Fn(TensorId, &InputKind) -> bool) {
        self.inputs.retain(|input| keep(input.id, &input.kind));
        self.graph.inputs = self.inputs.iter().map(|input| input.id).collect();
    }
}

/// A region marked with [`scope`](super::scope::scope).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeRecord {
    /// Path, including those of the enclosing regions.
    pub path: ModulePath,
    /// Ids of the arguments, in order.
    pub arguments: Vec<TensorId>,
    /// Ids of the results, in order.
    pub results: Vec<TensorId>,
    /// The operations recorded inside, all of the forward pass.
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
    /// Computed by several operations, whose names are given; none if it was made while the module was built, as a cast or
    /// scaled parameter is. [`initial_values`](super::initial_values) gives its values.
    Computed(Vec<String>),
}

/// A training step, as two programs.
///
/// The first step has no optimizer state to read and is another program than the later ones.
#[derive(Debug)]
pub struct TrainingCapture {
    /// The first step: gives the states.
    pub first: Captured,
    /// Every later step: takes the states and gives them back.
    pub steady: Captured,
    /// The numbers that both take as inputs.
    pub scalars: StepScalars,
    /// What the optimizer keeps of each parameter.
    pub states: OptimizerStates,
}
