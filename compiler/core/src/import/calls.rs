//! Calls of convolutions: which tensors enter and leave the module that holds the weight.
//!
//! After the import, a convolution is a set of slices, products and sums, which look like the model's own slices and
//! pads. burn records a convolution as one operation, so its boundary is known here, and becomes a region like a marked
//! one.

use super::Builder;
use burn_ir::{TensorId, TensorIr};
use std::collections::HashSet;
use tpc_ir::{Boundary, Graph, MapFn, ModulePath, Op, Phase, Region, Value};

/// One recorded convolution of the forward pass.
pub(super) struct Call {
    weight: Value,
    bias: Option<Value>,
    argument: TensorId,
    result: TensorId,
}

impl Builder {
    /// Records a convolution.
    pub(super) fn called(&mut self, x: &TensorIr, weight: &TensorIr, bias: &Option<TensorIr>, out: &TensorIr) {
        if self.origin.phase == Phase::Forward {
            let (weight, bias) = (self.get(weight), bias.as_ref().map(|b| self.get(b)));
            self.calls.push(Call { weight, bias, argument: x.id, result: out.id });
        }
    }

    /// The regions of modules that consist of one convolution: they hold its weight and bias, and nothing else. Marked
    /// modules are left out.
    pub(super) fn regions_of_calls(&self, marked: &[Region]) -> Vec<Region> {
        let marked: HashSet<&ModulePath> = marked.iter().map(|r| &r.path).collect();
        let region = |call: &Call| {
            let weight = parameter(&self.graph, call.weight)?;
            let path = weight.holder();
            let mut own = vec![weight];
            if let Some(bias) = call.bias {
                own.push(parameter(&self.graph, bias)?);
            }
            let mut held = self.graph.inputs().filter_map(|(_, id)| id.parameter());
            let alone = held.all(|parameter| own.contains(&parameter) || parameter.holder() != path);
            let boundary = |id: &TensorId| Some(Boundary::of(&self.graph, *self.values.get(&id.value())?));
            let (argument, result) = (boundary(&call.argument)?, boundary(&call.result)?);
            let unmarked = alone && !marked.contains(&path);
            unmarked.then(|| Region { path, arguments: vec![argument], results: vec![result] })
        };
        self.calls.iter().filter_map(region).collect()
    }
}

/// The parameter that a value is, up to a reshape.
fn parameter(graph: &Graph, value: Value) -> Option<&ModulePath> {
    match graph.op(value) {
        Op::Input { id, .. } => id.parameter(),
        Op::Reshape | Op::Map { f: MapFn::Identity, .. } => parameter(graph, graph.operands(value.node)[0]),
        _ => None,
    }
}
