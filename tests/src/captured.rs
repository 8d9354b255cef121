//! Runs captured programs on the reference interpreter: the meaning of a model before anything is sharded.

use burn::tensor::TensorData;
use std::collections::HashMap;
use tpc_compiler::capture::{Captured, TrainingCapture};
use tpc_compiler::import::{ImportError, Imported, Signature, import_with, seed};
use tpc_ir::interpret::{Options, Tensor, interpret};
use tpc_ir::{DType, Graph, InputId, InputKind, Op, OutputKind};

/// Values of inputs.
pub type Values = HashMap<InputId, Tensor>;

/// Converts burn's data to the interpreter's tensors.
///
/// # Panics
/// On an element type that the IR lacks.
pub fn tensor(data: &TensorData) -> Tensor {
    let dtype = tpc_compiler::import::dtype(data.dtype()).unwrap_or_else(|e| panic!("{e}"));
    let elements = data.clone().convert::<f64>().try_into_vec().expect("converted to f64");
    Tensor::new(dtype, data.shape().to_vec(), elements)
}

/// The inputs of a program before its first step: initial parameters, states of zeros (which no first step reads) and
/// constants.
pub fn initial(captured: &Captured, imported: &Imported) -> Values {
    let states = imported.graph.inputs().filter(|(_, id)| id.kind() == InputKind::State).map(|(node, id)| {
        let ty = &imported.graph.node(node).types[0];
        (id.clone(), Tensor::from_fn(ty.dtype, ty.shape.clone(), |_| 0.0))
    });
    let of = |kind| move |(name, data): (&String, &TensorData)| (InputId::read(kind, name), tensor(data));
    let given = captured.values.iter().map(of(InputKind::Parameter));
    states.chain(given).chain(imported.constants.iter().map(of(InputKind::Constant))).collect()
}

/// Imports both programs of a training step with the inputs of both.
///
/// # Errors
/// An operation or element type that the IR lacks.
pub fn import_training(step: &TrainingCapture) -> Result<[Imported; 2], ImportError> {
    let signature = Signature::of([&step.first, &step.steady])?;
    Ok([import_with(&step.first, &signature)?, import_with(&step.steady, &signature)?])
}

/// The scalars of a step (the first is 1) as returned by
/// [`StepScalars::values`](tpc_compiler::capture::StepScalars::values), and the seed.
pub fn step(number: usize, scalars: &[f64]) -> Values {
    let named = scalars.iter().enumerate();
    let id = |i: usize| InputId::read(InputKind::Scalar, &format!("step.{i}"));
    let mut values: Values =
        named.map(|(i, &x)| (id(i), Tensor::new(DType::F32, [1], vec![DType::F32.round(x)]))).collect();
    values.insert(seed(), Tensor::scalar(DType::I64, number as f64));
    values
}

/// Runs a program on its inputs among `values`, in double precision; returns its outputs by kind.
///
/// # Panics
/// If an input is missing or an operation fails.
pub fn run(graph: &Graph, values: &Values) -> HashMap<OutputKind, Tensor> {
    let mut inputs = Values::new();
    for (node, id) in graph.inputs() {
        let Op::Input { layout, .. } = &graph.node(node).op else { continue };
        let value = values.get(id).unwrap_or_else(|| panic!("no {id:?}"));
        // A number may be given without extents.
        let value = match id.kind() {
            InputKind::Scalar => Tensor { shape: layout.clone(), ..value.clone() },
            _ => value.clone(),
        };
        inputs.insert(id.clone(), value);
    }
    let outputs = interpret(graph, &inputs, &Options::exact()).unwrap_or_else(|e| panic!("{e}"));
    graph.outputs.iter().map(|o| o.kind.clone()).zip(outputs).collect()
}

/// Replaces parameters and states by their next values.
pub fn advance(values: &mut Values, outputs: &HashMap<OutputKind, Tensor>) {
    for (kind, value) in outputs {
        if let OutputKind::Update(id) = kind {
            values.insert(id.clone(), value.clone());
        }
    }
}

/// Renames parameters to their names in files.
pub fn rename(captured: &mut tpc_compiler::capture::Captured, rename: &dyn Fn(&str) -> String) {
    use tpc_compiler::capture::{InputKind as I, OutputKind as O};
    for input in &mut captured.inputs {
        match &mut input.kind {
            I::Parameter { path, .. } => *path = rename(&path.to_string()).into(),
            I::State { parameter, .. } => *parameter = rename(&parameter.to_string()).into(),
            _ => {}
        }
    }
    for output in &mut captured.outputs {
        match &mut output.kind {
            O::Parameter { path } | O::Gradient { path } => *path = rename(&path.to_string()).into(),
            O::State { parameter, .. } => *parameter = rename(&parameter.to_string()).into(),
            _ => {}
        }
    }
}
