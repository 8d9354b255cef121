//! Which batches a program accepts: those with its example's shape, and smaller ones.

use super::error::TrainerError;
use crate::capture::{BatchField, BatchFields};
use crate::data;
use crate::error::Error;
use burn::tensor::{DType, Device};
use tpc_ir::InputKind;
use tpc_runtime::Session;

/// The fields of an example.
pub(super) struct Example {
    /// The compiled program, for messages.
    program: &'static str,
    fields: Vec<FieldType>,
}

struct FieldType {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
}

/// The shapes of all fields of a batch.
pub(super) type Shapes = Vec<Vec<usize>>;

impl Example {
    pub(super) fn of(program: &'static str, fields: &BatchFields<'_>) -> Self {
        let ty = |f: &BatchField<'_>| FieldType { name: f.name.clone(), shape: f.shape.clone(), dtype: f.dtype };
        Example { program, fields: fields.list.iter().map(ty).collect() }
    }

    /// Number of rows of a batch: the size of the first dimension of the first field that has one.
    pub(super) fn rows(shapes: &[Vec<usize>]) -> Option<usize> {
        shapes.iter().find_map(|shape| shape.first().copied())
    }

    /// The shapes of a batch if it is smaller than the example; `None` if it has the example's shapes.
    pub(super) fn smaller(&self, batch: &BatchFields<'_>) -> Result<Option<Shapes>, TrainerError> {
        let program = self.program;
        let extra = |f: &&BatchField<'_>| !self.fields.iter().any(|own| own.name == f.name);
        if let Some(field) = batch.list.iter().find(extra) {
            return Err(TrainerError::ExtraField { field: field.name.clone(), program });
        }
        let mut rows: Option<(usize, usize)> = None;
        let mut shapes = Vec::with_capacity(self.fields.len());
        for own in &self.fields {
            let Some(field) = batch.list.iter().find(|f| f.name == own.name) else {
                return Err(TrainerError::MissingField { field: own.name.clone(), program });
            };
            let differs = || TrainerError::Shape {
                field: own.name.clone(),
                program,
                compiled: ty(own.dtype, &own.shape),
                found: ty(field.dtype, &field.shape),
            };
            if field.dtype != own.dtype || field.shape.len() != own.shape.len() {
                return Err(differs());
            }
            if let (Some((&now, inner)), Some((&then, compiled))) = (field.shape.split_first(), own.shape.split_first())
            {
                let (most, found) = *rows.get_or_insert((then, now));
                if inner != compiled || found == 0 {
                    return Err(differs());
                }
                if then == most && now == found && found > most {
                    let field = own.name.clone();
                    return Err(TrainerError::Rows { field, program, compiled: most, found });
                }
                // A dimension as long as the batch may have another meaning.
                if now != then && (then != most || now != found) {
                    return Err(differs());
                }
            }
            shapes.push(field.shape.clone());
        }
        let is_like = shapes.iter().zip(&self.fields).all(|(shape, own)| *shape == own.shape);
        Ok((!is_like).then_some(shapes))
    }
}

/// Formats a type, for example `f32[8, 16]`.
fn ty(dtype: DType, shape: &[usize]) -> String {
    let name = data::name(dtype).map_or_else(|| format!("{dtype:?}"), str::to_owned);
    format!("{name}{shape:?}")
}

/// Writes the fields that the selected program reads.
pub(super) fn write(session: &mut Session, batch: &BatchFields<'_>) -> Result<(), Error> {
    let inputs = session.interface().inputs.iter().filter(|i| i.kind == InputKind::Data);
    let inputs: Vec<_> = inputs.map(|i| (i.name.clone(), i.binding.view.dtype)).collect();
    for (name, dtype) in inputs {
        let Some(field) = batch.list.iter().find(|field| field.name == name) else { continue };
        let read = field.read().map_err(|reason| TrainerError::Unreadable { field: name.clone(), reason })?;
        session.write_bytes((InputKind::Data, &*name), &data::to_bytes(&read, dtype))?;
    }
    Ok(())
}

/// The device of a batch, where its results are returned.
pub(super) fn device(batch: &BatchFields<'_>) -> Device {
    batch.list.first().map_or_else(Device::default, |field| field.device.clone())
}
