//! A stable text form of a captured graph, for tests and human readers.

use std::fmt::Write;

use burn::tensor::DType;
use burn_ir::{OperationIr, TensorIr};
use serde_json::Value;
use tpc_ir::UnitId;

use super::captured::Captured;
use super::interface::{InputKind, OutputKind};
use super::operation;

impl Captured {
    /// One line for each input, operation, output and scope.
    ///
    /// Equal captures have equal texts in every process. Of constants, only the type is shown.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for input in &self.inputs {
            let what = match &input.kind {
                InputKind::Parameter { path, unit: None } => format!("parameter {path}"),
                InputKind::Parameter { path, unit: Some(UnitId(unit)) } => format!("parameter {path} unit={unit}"),
                InputKind::State { parameter, name } => format!("state {parameter} {name}"),
                InputKind::Data { name } => format!("data {name}"),
                InputKind::StepScalar { index } => format!("step_scalar {index}"),
                InputKind::Constant { .. } => "constant".into(),
            };
            line(&mut text, format_args!("input %{} : {} ; {what}", input.id.value(), kind(input.dtype, &input.shape)));
        }
        for (position, op) in self.graph.operations.iter().enumerate() {
            for (end, phase) in [(self.forward_end, "backward"), (self.backward_end, "optimizer")] {
                if position == end && position > 0 {
                    line(&mut text, format_args!("; {phase}"));
                }
            }
            line(&mut text, format_args!("{}", operation_text(op)));
        }
        for output in &self.outputs {
            let what = match &output.kind {
                OutputKind::Output { name } => format!("output {name}"),
                OutputKind::Loss => "loss".into(),
                OutputKind::Parameter { path } => format!("parameter {path}"),
                OutputKind::State { parameter, name } => format!("state {parameter} {name}"),
                OutputKind::Gradient { path } => format!("gradient {path}"),
            };
            line(&mut text, format_args!("output %{} ; {what}", output.id.value()));
        }
        for scope in &self.scopes {
            let list = |ids: &[burn_ir::TensorId]| {
                ids.iter().map(|id| format!("%{}", id.value())).collect::<Vec<_>>().join(", ")
            };
            let (arguments, results) = (list(&scope.arguments), list(&scope.results));
            let operations = &scope.operations;
            line(
                &mut text,
                format_args!(
                    "scope {} ({arguments}) -> ({results}) ; operations {}..{}",
                    scope.path, operations.start, operations.end
                ),
            );
        }
        text
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}

/// Formats an operation: `%5 = NumericFloat.MulScalar %4 rhs=0.5 : f32[2, 3]`.
fn operation_text(op: &OperationIr) -> String {
    let list = |tensors: &mut dyn Iterator<Item = &TensorIr>, show: fn(&TensorIr) -> String| {
        tensors.map(show).collect::<Vec<_>>().join(", ")
    };
    let results = list(&mut op.outputs(), |tensor| format!("%{}", tensor.id.value()));
    let types = list(&mut op.outputs(), |tensor| kind(tensor.dtype, &tensor.shape));
    let operands = list(&mut op.inputs(), |tensor| format!("%{}", tensor.id.value()));
    let mut attributes = String::new();
    // The serialized form is the only view of an operation's fields that covers all of them.
    if let Ok(value) = serde_json::to_value(op) {
        collect(&value, None, &mut attributes);
    }
    let operands = if operands.is_empty() { operands } else { format!(" {operands}") };
    format!("{results} = {}{operands}{attributes} : {types}", operation::name(op))
}

/// Appends ` name=value` for every field that is not a tensor, sorted by name.
fn collect(value: &Value, name: Option<&str>, out: &mut String) {
    match value {
        Value::Object(fields) if fields.contains_key("status") => {}
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by_key(|(field, _)| *field);
            for (field, value) in sorted {
                // Names of variants are capitalized; only the names of fields are names of attributes.
                let named = field.starts_with(char::is_lowercase);
                collect(value, if named { Some(field) } else { name }, out);
            }
        }
        // The dtype next to a variant repeats that of the result. A list of tensors holds the operands.
        Value::Array(items) if name.is_none() => items.iter().for_each(|item| collect(item, None, out)),
        Value::Array(items) if items.iter().any(|item| item.get("status").is_some()) => {}
        Value::Null => {}
        other => {
            if let Some(name) = name {
                let _ = write!(out, " {name}={other}");
            }
        }
    }
}

fn kind(dtype: DType, shape: &[usize]) -> String {
    let dtype = match dtype {
        DType::Bool(_) => "bool".into(),
        other => format!("{other:?}").to_lowercase(),
    };
    format!("{dtype}{shape:?}")
}
