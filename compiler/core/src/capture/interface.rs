//! What a recorded program takes and gives.

use burn::tensor::{DType, TensorData};
use burn_ir::TensorId;
use tpc_ir::{ModulePath, UnitId};

/// A tensor that is given to the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct CapturedInput {
    /// Its id in the graph, which is its position in [`Captured::inputs`](super::Captured::inputs).
    pub id: TensorId,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype.
    pub dtype: DType,
    /// What it is.
    pub kind: InputKind,
}

/// What an input is.
#[derive(Clone, Debug, PartialEq)]
pub enum InputKind {
    /// A parameter, or a buffer such as the running mean of a batch norm.
    Parameter {
        /// Path of the first place that holds it.
        path: ModulePath,
        /// The unit that it belongs to; none if it belongs to the model as a whole.
        unit: Option<UnitId>,
    },
    /// A tensor as the previous step left it: a state of the optimizer, or one that a closure keeps ([`Kept`](super::Kept)).
    State {
        /// Path of the parameter, or what a closure says whose tensor it is.
        parameter: ModulePath,
        /// Name in burn's own records, such as `momentum.moment_1`, or the name that a closure gives.
        name: String,
    },
    /// Data of the step.
    Data {
        /// Name given with `named`, or `input0`, `input1`, … by position.
        name: String,
    },
    /// A number that depends on the step or on the learning rate: a tensor `f32[1]`.
    StepScalar {
        /// Position in the result of [`StepScalars::values`](super::StepScalars::values).
        index: usize,
    },
    /// A tensor that was made from data: a table held by a module, or a literal in the closure.
    Constant {
        /// Its value.
        data: TensorData,
    },
}

/// A tensor that the graph gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedOutput {
    /// Its id in the graph.
    pub id: TensorId,
    /// What it is.
    pub kind: OutputKind,
}

/// What an output is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A result of the closure.
    Output {
        /// Name given with `named`, or `output0`, `output1`, … by position.
        name: String,
    },
    /// The loss, of shape `[1]`.
    Loss,
    /// The updated parameter.
    Parameter {
        /// Path of the parameter.
        path: ModulePath,
    },
    /// What a state becomes.
    State {
        /// Path of the parameter, or what a closure says whose tensor it is.
        parameter: ModulePath,
        /// Name of the state.
        name: String,
    },
    /// The gradient of the loss, before any clipping.
    Gradient {
        /// Path of the parameter.
        path: ModulePath,
    },
}

/// Which kept tensor of a program it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeptName {
    /// The module that it belongs to, by its path.
    pub owner: ModulePath,
    /// What it is to the module.
    pub name: String,
}
