//! A trainer's model, and recording its programs.

use super::batch;
use super::rates::RateGroups;
use crate::capture::{
    BatchData, BatchFields, CaptureError, Captured, Defaults, Loss, Model, Results, TrainingCapture, TrainingOptions,
    output_names, parameter_values, record_inference, record_training,
};
use crate::models::ModelDir;
use burn::module::{Module, ParamId};
use burn::optim::Optimizer;
use burn::tensor::{Device, TensorData};
use std::collections::HashMap;
use std::rc::Rc;

/// The source of a model.
pub(super) enum Source<M> {
    /// The model is built for every use.
    Build(Box<dyn Fn(&Device) -> M>),
    /// The model exists, with its values.
    Module(M),
    /// The model of a directory: built for every use, while its values stay in files.
    Files(Rc<ModelDir>, Box<dyn Fn(&Device) -> M>),
}

impl<M: Module> Source<M> {
    /// The model's values, if it has any.
    pub(super) fn values(&self) -> Result<Option<HashMap<String, TensorData>>, CaptureError> {
        match self {
            Source::Build(_) | Source::Files(..) => Ok(None),
            Source::Module(model) => parameter_values(model).map(Some),
        }
    }

    fn model(&self) -> Model<'_, M> {
        match self {
            Source::Build(build) | Source::Files(_, build) => Model::Build(build),
            Source::Module(model) => Model::Module(model),
        }
    }

    /// The model on a device, with arbitrary values.
    pub(super) fn module(&self, device: &Device) -> M {
        match self {
            Source::Build(build) | Source::Files(_, build) => build(device),
            Source::Module(model) => model.clone().to_device(device),
        }
    }
}

/// The element types that a closure may rely on: the defaults of its batch's device.
fn defaults(batch: &impl BatchData) -> Defaults {
    Defaults::of(&batch::device(&BatchFields::of(batch)))
}

/// A recording, and the results of its closure.
pub(super) struct Recorded<C, F> {
    pub(super) capture: C,
    pub(super) results: Gives<F>,
}

/// The results of a closure: names of outputs, and how to assemble them.
pub(super) struct Gives<F> {
    pub(super) names: Vec<String>,
    pub(super) form: F,
}

impl<F> Gives<F> {
    fn of<R: Results<Form = F>>(results: &R) -> Self {
        Gives { names: output_names(results), form: results.form() }
    }
}

/// Records a program for the shapes of a batch.
pub(super) type Record<B, C, F> = Box<dyn Fn(&B) -> Result<Recorded<C, F>, CaptureError>>;

fn noted<C, F>(capture: C, results: Option<Gives<F>>) -> Result<Recorded<C, F>, CaptureError> {
    let results = results.ok_or_else(|| CaptureError::Inconsistent("the closure was not called".into()))?;
    Ok(Recorded { capture, results })
}

/// How to record the training step.
pub(super) fn training<M, O, B, L, F>(
    source: Rc<Source<M>>,
    optimizer: O,
    options: TrainingOptions,
    groups: Rc<RateGroups>,
    loss: F,
) -> Record<B, TrainingCapture, <L::Outputs as Results>::Form>
where
    M: Module + 'static,
    O: Optimizer + 'static,
    B: BatchData,
    L: Loss,
    L::Outputs: Results,
    F: Fn(&M, B::Tensors) -> L + 'static,
{
    Box::new(move |batch| {
        let mut results = None;
        let group = |id: ParamId, path: &str| groups.of(id, path);
        let forward = |model: &M, tensors: B::Tensors| {
            let (loss, outputs) = loss(model, tensors).split();
            results = Some(Gives::of(&outputs));
            (loss, outputs)
        };
        let mut capture =
            record_training(defaults(batch), source.model(), &optimizer, batch, (&options, &group), forward)?;
        drop_unread([&mut capture.first, &mut capture.steady]);
        noted(capture, results)
    })
}

/// How to record an evaluation.
pub(super) fn evaluation<M, B, R, F>(source: Rc<Source<M>>, closure: F) -> Record<B, Captured, R::Form>
where
    M: Module + 'static,
    B: BatchData,
    R: Results,
    F: Fn(&M, B::Tensors) -> R + 'static,
{
    Box::new(move |batch| {
        let mut results = None;
        let forward = |model: &M, tensors: B::Tensors| {
            let outputs = closure(model, tensors);
            results = Some(Gives::of(&outputs));
            outputs
        };
        let mut capture = record_inference(defaults(batch), source.model(), batch, forward)?;
        drop_unread([&mut capture]);
        capture.drop_unread_parameters();
        noted(capture, results)
    })
}

/// Removes data inputs that none of several recordings of one closure reads, so that they are not sent.
fn drop_unread<const N: usize>(captures: [&mut Captured; N]) {
    let read: Vec<String> = captures.iter().flat_map(|captured| captured.data_read()).collect();
    for captured in captures {
        captured.retain_data(|name| read.iter().any(|read| read == name));
    }
}
