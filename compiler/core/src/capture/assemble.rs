//! Turns a recording into a [`Captured`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use burn::tensor::{DType, Shape, TensorData};
use burn_ir::{GraphIr, OperationIr, TensorId, TensorIr, TensorStatus};

use super::captured::{Captured, ScopeRecord};
use super::error::CaptureError;
use super::interface::{CapturedInput, CapturedOutput, InputKind, OutputKind};
use super::operation::{first_result, for_each_tensor, name};
use super::scope::RawScope;

/// A program whose tensors still have the ids of the recording.
pub(super) struct Draft {
    pub(super) operations: Vec<OperationIr>,
    pub(super) inputs: Vec<DraftInput>,
    pub(super) outputs: Vec<(u64, OutputKind)>,
    pub(super) scopes: Vec<RawScope>,
    pub(super) forward_end: u64,
    pub(super) backward_end: u64,
}

pub(super) struct DraftInput {
    pub(super) id: u64,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    pub(super) kind: InputKind,
}

impl Draft {
    /// Checks the program, finds its constants and renumbers its tensors.
    pub(super) fn finish(mut self, values: &BTreeMap<u64, TensorData>) -> Result<Captured, CaptureError> {
        self.refuse_unsupported()?;
        self.drop_placeholders();
        self.add_constants(values)?;
        unique(
            "input",
            self.inputs.iter().filter_map(|input| match &input.kind {
                InputKind::Data { name } => Some(name),
                _ => None,
            }),
        )?;
        unique(
            "output",
            self.outputs.iter().filter_map(|(_, kind)| match kind {
                OutputKind::Output { name } => Some(name),
                _ => None,
            }),
        )?;
        let before = |id: u64| self.operations.partition_point(|op| first_result(op) < id);
        let (forward_end, backward_end) = (before(self.forward_end), before(self.backward_end));
        let regions: Vec<Range<usize>> =
            self.scopes.iter().map(|scope| before(scope.ids.0)..before(scope.ids.1)).collect();
        self.renumber(forward_end, backward_end, regions)
    }

    fn refuse_unsupported(&self) -> Result<(), CaptureError> {
        for op in &self.operations {
            let reason = match op {
                OperationIr::Custom(_) => "a custom operation has no known meaning",
                OperationIr::Distributed(_) => {
                    "collectives are inserted by the compiler; capture the program of a single device"
                }
                _ if op.nodes().iter().any(|tensor| matches!(tensor.dtype, DType::QFloat(_))) => {
                    "quantized tensors are not supported"
                }
                _ => continue,
            };
            let id = first_result(op);
            let inside = self.scopes.iter().rfind(|scope| (scope.ids.0..scope.ids.1).contains(&id));
            return Err(CaptureError::Unsupported {
                operation: name(op),
                reason: reason.into(),
                scope: inside.map(|scope| scope.path.to_string()),
            });
        }
        Ok(())
    }

    /// Drops the operations that were recorded only to obtain a tensor that stands for an input.
    fn drop_placeholders(&mut self) {
        let inputs: HashSet<u64> = self.inputs.iter().map(|input| input.id).collect();
        self.operations.retain(|op| !op.outputs().any(|tensor| inputs.contains(&tensor.id.value())));
    }

    fn add_constants(&mut self, values: &BTreeMap<u64, TensorData>) -> Result<(), CaptureError> {
        let mut known: HashSet<u64> = self.inputs.iter().map(|input| input.id).collect();
        let mut wanted = Vec::new();
        for op in &self.operations {
            wanted.extend(op.inputs().map(|tensor| tensor.id.value()).filter(|id| known.insert(*id)));
            known.extend(op.outputs().map(|tensor| tensor.id.value()));
        }
        let boundary = self.outputs.iter().map(|(id, _)| *id);
        let marked = self.scopes.iter().flat_map(|scope| scope.arguments.iter().chain(&scope.results).copied());
        wanted.extend(boundary.chain(marked).filter(|id| known.insert(*id)));
        for id in wanted {
            let Some(data) = values.get(&id) else {
                return Err(CaptureError::Inconsistent(format!("tensor {id} is read but neither given nor computed")));
            };
            self.inputs.push(DraftInput {
                id,
                shape: data.shape().to_vec(),
                dtype: data.dtype(),
                kind: InputKind::Constant { data: data.clone() },
            });
        }
        Ok(())
    }

    /// Numbers the inputs first, in order, and then the results as they are computed. Every operand becomes read-only.
    fn renumber(
        mut self,
        forward_end: usize,
        backward_end: usize,
        regions: Vec<Range<usize>>,
    ) -> Result<Captured, CaptureError> {
        let mut ids: HashMap<u64, u64> = HashMap::new();
        for input in &self.inputs {
            let next = ids.len() as u64;
            if ids.insert(input.id, next).is_some() {
                return Err(CaptureError::Inconsistent(format!("tensor {} occurs twice as an input", input.id)));
            }
        }
        let mut results = Vec::with_capacity(self.operations.len() + 1);
        for op in &mut self.operations {
            results.push(ids.len() as u64);
            let inputs: HashSet<TensorId> = op.inputs().map(|tensor| tensor.id).collect();
            for_each_tensor(op, |tensor| {
                let next = ids.len() as u64;
                tensor.status = match inputs.contains(&tensor.id) {
                    true => TensorStatus::ReadOnly,
                    false => TensorStatus::NotInit,
                };
                tensor.id = TensorId::new(*ids.entry(tensor.id.value()).or_insert(next));
            });
        }
        results.push(ids.len() as u64);
        let id = |id: &u64| TensorId::new(ids[id]);
        let inputs: Vec<CapturedInput> = self
            .inputs
            .into_iter()
            .map(|input| CapturedInput { id: id(&input.id), shape: input.shape, dtype: input.dtype, kind: input.kind })
            .collect();
        let outputs: Vec<CapturedOutput> =
            self.outputs.into_iter().map(|(raw, kind)| CapturedOutput { id: id(&raw), kind }).collect();
        let scopes = self.scopes.into_iter().zip(regions);
        let scopes = scopes.map(|(scope, operations)| ScopeRecord {
            path: scope.path,
            arguments: scope.arguments.iter().map(id).collect(),
            results: scope.results.iter().map(id).collect(),
            tensors: results[operations.start]..results[operations.end],
            operations,
        });
        Ok(Captured {
            scopes: scopes.collect(),
            graph: GraphIr {
                operations: self.operations,
                inputs: inputs.iter().map(|input| input.id).collect(),
                outputs: outputs.iter().map(|output| output.id).collect(),
            },
            inputs,
            outputs,
            forward_end,
            backward_end,
            modules: Vec::new(),
            aliases: Vec::new(),
            values: Default::default(),
            init: HashMap::new(),
        })
    }
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), CaptureError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(CaptureError::DuplicateName { what, name: name.clone() });
        }
    }
    Ok(())
}

/// A tensor of the program that burn did not record.
pub(super) fn tensor(id: u64, shape: Vec<usize>, dtype: DType) -> TensorIr {
    TensorIr::uninit(TensorId::new(id), Shape::from(shape), dtype)
}
