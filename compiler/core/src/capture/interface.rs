//! The inputs and outputs of a recorded program.

use burn::tensor::{DType, TensorData};
use burn_ir::TensorId;
use tpc_ir::{ModulePath, UnitId};

/// An input of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct CapturedInput {
    /// Its id in the graph, which is its position in [`Captured::inputs`](super::Captured::inputs).
    pub id: TensorId,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype.
    pub dtype: DType,
    /// What the input stands for.
    pub kind: InputKind,
}

/// What an input stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum InputKind {
    /// A parameter, or a buffer such as the running mean of a batch norm.
    Parameter {
        /// The first path under which the module tree holds it.
        path: ModulePath,
        /// The unit that it belongs to; `None` if it belongs to the model as a whole.
        unit: Option<UnitId>,
    },
    /// A tensor that the previous step left: a state of the optimizer, or a tensor that a closure keeps
    /// ([`Kept`](super::Kept)).
    State {
        /// Path of the parameter, or the owner that the closure names.
        parameter: ModulePath,
        /// Name in burn's records, such as `momentum.moment_1`, or the name that the closure chose.
        name: String,
    },
    /// An input of the closure.
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

/// An output of the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedOutput {
    /// Its id in the graph.
    pub id: TensorId,
    /// What the output stands for.
    pub kind: OutputKind,
}

/// What an output stands for.
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
    /// The updated state.
    State {
        /// Path of the parameter, or the owner that the closure names.
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

/// Identifies a kept tensor of a program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeptName {
    /// Path of the module that it belongs to.
    pub owner: ModulePath,
    /// Its name within the module.
    pub name: String,
}
