//! Replaces the step-dependent scalars that burn wrote into updates by inputs.

use std::collections::HashMap;

use burn::tensor::DType;
use burn_ir::{OperationIr, TensorId, TensorIr};

use super::assemble::{DraftInput, tensor};
use super::error::CaptureError;
use super::interface::InputKind;
use super::operation::{self, first_result};
use super::scalars::UpdatePlan;
use super::substitute::{adapt, substitute};
use super::trace::Trace;

/// The update of one parameter.
pub(super) struct UpdateIds {
    pub(super) ids: (u64, u64),
    pub(super) class: usize,
}

/// Replaces the step-dependent scalars of every update by inputs.
pub(super) fn insert_scalars<'a>(
    operations: Vec<OperationIr>,
    updates: &[UpdateIds],
    plan: impl Fn(usize) -> &'a UpdatePlan,
) -> Result<(Vec<OperationIr>, Vec<DraftInput>), CaptureError> {
    // Ids of the recording are below 2^48 (see `session`), so these are unused. They are out of order, which is
    // harmless because ids are compared with marks only before the first of them is inserted.
    let mut next = 1u64 << 60;
    let mut fresh = || {
        next += 1;
        next
    };
    let mut inputs: Vec<DraftInput> = Vec::new();
    let mut adapted: HashMap<(usize, usize, DType), TensorIr> = HashMap::new();
    let mut by_index: HashMap<usize, u64> = HashMap::new();
    let mut result = Vec::with_capacity(operations.len());
    let mut updates = updates.iter().peekable();
    let mut operations = operations.into_iter().peekable();
    while let Some(op) = operations.next() {
        let id = first_result(&op);
        while updates.peek().is_some_and(|update| update.ids.1 <= id) {
            updates.next();
        }
        let Some(update) = updates.peek().filter(|update| update.ids.0 <= id) else {
            result.push(op);
            continue;
        };
        let mut body = vec![op];
        while let Some(op) = operations.next_if(|op| first_result(op) < update.ids.1) {
            body.push(op);
        }
        let plan = plan(update.class);
        if Trace::of(&body).skeleton != plan.skeleton {
            return Err(CaptureError::Inconsistent("an update differs from the one it was compared with".into()));
        }
        for (position, op) in body.into_iter().enumerate() {
            let mut sites = plan.inputs.iter().filter(|(at, _)| at.operation == position);
            let Some((_, &index)) = sites.next() else {
                result.push(op);
                continue;
            };
            if sites.next().is_some() {
                return Err(CaptureError::StepDependent { operation: operation::name(&op) });
            }
            let input = *by_index.entry(index).or_insert_with(|| {
                let id = fresh();
                let kind = InputKind::StepScalar { index };
                inputs.push(DraftInput { id, shape: vec![1], dtype: DType::F32, kind });
                id
            });
            let rewritten = substitute(op, |rank, dtype| {
                let make = || {
                    let scalar = tensor(input, vec![1], DType::F32);
                    let (prepare, value) = adapt(scalar, rank, dtype, || TensorId::new(fresh()));
                    result.extend(prepare);
                    value
                };
                adapted.entry((index, rank, dtype)).or_insert_with(make).clone()
            })?;
            result.push(rewritten);
        }
    }
    inputs.sort_by_key(|input| match input.kind {
        InputKind::StepScalar { index } => index,
        _ => usize::MAX,
    });
    Ok((result, inputs))
}
