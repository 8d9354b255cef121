//! The entry points: capture of inference and training, with or without values.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::AutodiffBackend;
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Module, ParamId};
use burn::optim::Optimizer;
use burn::tensor::{DType, Device, TensorData};
use burn_ir::OperationIr;
use tpc_ir::ModulePath;

use super::assemble::{Draft, DraftInput};
use super::captured::{Captured, Init, TrainingCapture};
use super::error::{CaptureError, guarded};
use super::forward::{Forward, outputs};
use super::initialization::{split_initialization, within};
use super::insert::{UpdateIds, insert_scalars};
use super::interface::{InputKind, OutputKind};
use super::kind::{self, Tracked};
use super::operation::first_result;
use super::optimizer::{self, Choices, Groups, Recorded as Recording, State, Update};
use super::params::{self, ParameterInfo, Parameters};
use super::scalars::{Probed, StepScalars};
use super::session::{self, Defaults, Recorded, Session};
use super::states::{OptimizerStates, ParameterStates, RecordedTensor};
use super::statistics;
use super::tensors::{Batch, Declared, Inputs, Loss, Tensors};

/// Options of [`capture_training`].
#[derive(Clone, Debug, Default)]
pub struct TrainingOptions {
    /// Clipping of each gradient before its update, which burn keeps outside the optimizer.
    pub clipping: Option<GradientClippingConfig>,
}

/// The options of a training step.
struct Options<'a> {
    training: &'a TrainingOptions,
    groups: Groups<'a>,
}

impl<'a> Options<'a> {
    /// Options with one learning rate for all parameters.
    fn of(training: &'a TrainingOptions) -> Self {
        Options { training, groups: &|_, _| 0 }
    }
}

/// Captures the forward pass of a model in evaluation mode.
///
/// `inputs` determines the shapes and dtypes; its values and device do not matter. It is a tensor, a
/// [`Spec`](super::Spec), a tuple, a list, a [`named`](super::named) value, or your own [`Batch`].
///
/// ```ignore
/// let captured = capture_inference(&model, named("tokens", tokens), |model, tokens| model.forward(tokens))?;
/// ```
pub fn capture_inference<M: Module, B: Batch, T: Tensors>(
    model: &M,
    inputs: B,
    forward: impl FnOnce(&M, B::Tensors) -> T,
) -> Result<Captured, CaptureError> {
    let (model, values) = materialize(model)?;
    let mut captured = inference(
        Defaults::default(),
        |device| params::with_placeholders(model, device, false),
        false,
        inputs,
        forward,
    )?;
    captured.values = Arc::new(values);
    Ok(captured)
}

/// Captures the forward pass of a model that is built without values, so that its size does not matter.
///
/// `build` must create the model on the given device.
pub fn capture_inference_shapes<M: Module, B: Batch, T: Tensors>(
    build: impl FnOnce(&Device) -> M,
    inputs: B,
    forward: impl FnOnce(&M, B::Tensors) -> T,
) -> Result<Captured, CaptureError> {
    inference(Defaults::default(), build, true, inputs, forward)
}

/// Captures a training step: the forward and backward passes and the update of every parameter.
///
/// The closure returns the loss, or a pair of the loss and further outputs.
///
/// ```ignore
/// let step = capture_training(&model, &AdamWConfig::new().build(), (tokens, targets), |model, (tokens, targets)| {
///     model.loss(tokens, targets)
/// })?;
/// ```
pub fn capture_training<M: Module, O: Optimizer, B: Batch, L: Loss>(
    model: &M,
    optimizer: &O,
    batch: B,
    forward: impl FnOnce(&M, B::Tensors) -> L,
) -> Result<TrainingCapture, CaptureError> {
    capture_training_with(model, optimizer, batch, &TrainingOptions::default(), forward)
}

/// [`capture_training`] with options.
pub fn capture_training_with<M: Module, O: Optimizer, B: Batch, L: Loss>(
    model: &M,
    optimizer: &O,
    batch: B,
    options: &TrainingOptions,
    forward: impl FnOnce(&M, B::Tensors) -> L,
) -> Result<TrainingCapture, CaptureError> {
    let (model, values) = materialize(model)?;
    let mut step = training(
        Defaults::default(),
        |device| params::with_placeholders(model, device, true),
        false,
        optimizer,
        batch,
        &Options::of(options),
        forward,
    )?;
    step.first.values = Arc::new(values);
    step.steady.values = step.first.values.clone();
    Ok(step)
}

/// Captures a training step of a model that is built without values, so that its size does not matter.
///
/// `build` must create the model on the given device. Only the shapes of its parameters are recorded;
/// [`Captured::init`] describes how they are initialized.
pub fn capture_training_shapes<M: Module, O: Optimizer, B: Batch, L: Loss>(
    build: impl FnOnce(&Device) -> M,
    optimizer: &O,
    batch: B,
    options: &TrainingOptions,
    forward: impl FnOnce(&M, B::Tensors) -> L,
) -> Result<TrainingCapture, CaptureError> {
    training(Defaults::default(), build, true, optimizer, batch, &Options::of(options), forward)
}

/// A copy of the model that may be modified, and the values of its parameters.
///
/// `valid` also copies the running states of batch norms, which clones share and mapping would change in place.
fn materialize<M: Module>(model: &M) -> Result<(M, HashMap<String, TensorData>), CaptureError> {
    guarded(|| {
        let model = model.valid();
        let values = params::values(&model);
        (model, values)
    })
}

/// The source of the model of a recording.
pub(crate) enum Model<'a, M> {
    /// A closure builds the model on the recording device.
    Build(&'a dyn Fn(&Device) -> M),
    /// The model already exists; its values are not captured.
    Module(&'a M),
}

/// Captures the forward pass of a model, for a batch on a device with the given defaults.
pub(crate) fn record_inference<M: Module, B: Batch, T: Tensors>(
    defaults: Defaults,
    model: Model<'_, M>,
    inputs: B,
    forward: impl FnOnce(&M, B::Tensors) -> T,
) -> Result<Captured, CaptureError> {
    match model {
        Model::Build(build) => inference(defaults, build, true, inputs, forward),
        Model::Module(model) => {
            let model = guarded(|| model.valid())?;
            inference(defaults, |device| params::with_placeholders(model, device, false), false, inputs, forward)
        }
    }
}

/// Captures a training step, for a batch on a device with the given defaults.
pub(crate) fn record_training<M: Module, O: Optimizer, B: Batch, L: Loss>(
    defaults: Defaults,
    model: Model<'_, M>,
    optimizer: &O,
    batch: B,
    (training_options, groups): (&TrainingOptions, Groups<'_>),
    forward: impl FnOnce(&M, B::Tensors) -> L,
) -> Result<TrainingCapture, CaptureError> {
    let options = &Options { training: training_options, groups };
    match model {
        Model::Build(build) => training(defaults, build, true, optimizer, batch, options, forward),
        Model::Module(model) => {
            let model = guarded(|| model.valid())?;
            let build = |device: &Device| params::with_placeholders(model, device, true);
            training(defaults, build, false, optimizer, batch, options, forward)
        }
    }
}

/// The values of the parameters of a model, by path.
pub(crate) fn parameter_values<M: Module>(model: &M) -> Result<HashMap<String, TensorData>, CaptureError> {
    Ok(materialize(model)?.1)
}

/// The initial values that are not drawn element by element ([`Init::Computed`]), by path. They are the values that
/// `build` computes on the CPU after seeding its generator with `seed`, and are the same in every process and on every
/// mesh.
///
/// The generator is global to the process: concurrent draws change the values, and later draws continue its sequence.
/// Other parameters take memory only if `build` itself computes them. If no parameter is of this kind, `build` is not
/// called.
///
/// # Errors
/// `build` fails.
pub fn initial_values<M: Module>(
    build: impl Fn(&Device) -> M,
    init: &HashMap<String, Init>,
    seed: u64,
) -> Result<HashMap<String, TensorData>, CaptureError> {
    static DRAWING: Mutex<()> = Mutex::new(());
    let computed = init.iter().filter(|(_, init)| matches!(init, Init::Computed(_)));
    let wanted: HashSet<&str> = computed.map(|(path, _)| path.as_str()).collect();
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let _one_at_a_time = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    guarded(|| {
        let device = Device::flex();
        device.seed(seed);
        params::values_of(&build(&device), &wanted)
    })
}

fn inference<M: Module, B: Batch, T: Tensors>(
    defaults: Defaults,
    build: impl FnOnce(&Device) -> M,
    by_shapes: bool,
    inputs: B,
    forward: impl FnOnce(&M, B::Tensors) -> T,
) -> Result<Captured, CaptureError> {
    let (forward, recorded) = session::record(defaults, |session| {
        let begin = session.mark();
        let (model, replaced) = params::make_leaves(build(&session.device), &session.device);
        let built = (begin, session.mark());
        let parameters = params::list(&model, replaced, session);
        let mut declared = Inputs::new(session.device.clone(), false);
        let batch = inputs.record(None, &mut declared);
        let results = forward(&model, batch);
        let outputs = outputs(&results);
        Forward { parameters, built, by_shapes, data: declared.declared, outputs, end: session.mark() }
    })?;
    let (operations, init) = split_initialization(recorded.operations, &forward, &recorded.scopes);
    let Forward { parameters, data, outputs, end, .. } = forward;
    let draft = Draft {
        operations,
        inputs: parameter_inputs(&parameters).chain(data_inputs(data)).collect(),
        outputs,
        scopes: recorded.scopes,
        forward_end: end,
        backward_end: end,
    };
    let mut captured = draft.finish(&recorded.values)?;
    describe(&mut captured, parameters, init);
    Ok(captured)
}

fn training<M: Module, O: Optimizer, B: Batch, L: Loss>(
    defaults: Defaults,
    build: impl FnOnce(&Device) -> M,
    by_shapes: bool,
    optimizer: &O,
    batch: B,
    options: &Options<'_>,
    forward: impl FnOnce(&M, B::Tensors) -> L,
) -> Result<TrainingCapture, CaptureError> {
    let mut norms = Vec::new();
    let recorded = session::record(defaults, |session| {
        let begin = session.mark();
        // A lazy parameter tracks gradients only if it is built on the autodiff side of the device.
        let device = if by_shapes { session.device.clone().autodiff() } else { session.device.clone() };
        // The model of `capture_training` already consists of placeholders.
        let model = build(&device);
        let (model, replaced) = match by_shapes {
            true => params::make_leaves(model, &session.device),
            false => (model, HashMap::new()),
        };
        norms = statistics::training(&model);
        record_step(session, (begin, by_shapes), (&model, replaced), optimizer, batch, options, forward)
    });
    let (step, recorded) = recorded.map_err(|error| error.with_norms(&norms))?;
    step.assemble(recorded, &norms)
}

/// A recorded training step.
struct Step {
    forward: Forward,
    /// The tensors of the module before the closure ran.
    held: statistics::Tensors,
    /// The running states that the closure updated, by path, with their new tensors.
    running: BTreeMap<ModulePath, u64>,
    backward_end: u64,
    updates: Vec<Update>,
    probes: Vec<Probed>,
}

fn record_step<M: Module, O: Optimizer, B: Batch, L: Loss>(
    session: &Session,
    (begin, by_shapes): (u64, bool),
    (model, replaced): (&M, HashMap<u64, u64>),
    optimizer: &O,
    batch: B,
    options: &Options<'_>,
    forward: impl FnOnce(&M, B::Tensors) -> L,
) -> Step {
    let built = (begin, session.mark());
    let parameters = params::list(model, replaced, session);
    let mut declared = Inputs::new(session.device.clone(), true);
    let batch = batch.record(None, &mut declared);
    let held = statistics::Tensors::of(model);
    let (loss, results) = forward(model, batch).split();
    let running = held.updated(model);
    let mut outputs = outputs(&results);
    outputs.insert(0, (kind::id(&loss), OutputKind::Loss));
    let forward = Forward { parameters, built, by_shapes, data: declared.declared, outputs, end: session.mark() };
    // A loss that does not depend on a tracked tensor is not an autodiff tensor and has no gradients; `assemble`
    // reports this.
    let backward = loss.try_into_primitive::<Tracked>().map(Tracked::backward);
    let backward_end = session.mark();
    let (updates, probes) = match backward {
        Ok(mut gradients) => {
            let clipping = options.training.clipping.as_ref().map(GradientClippingConfig::init);
            let choices = Choices { clipping: clipping.as_ref(), groups: options.groups };
            optimizer::record(model, optimizer, choices, &mut gradients, session, begin)
        }
        Err(_) => Default::default(),
    };
    Step { forward, held, running, backward_end, updates, probes }
}

impl Step {
    /// Assembles the two programs. `training` lists the norms that normalize with the statistics of the batch.
    fn assemble(self, recorded: Recorded, training: &[ModulePath]) -> Result<TrainingCapture, CaptureError> {
        let Step { forward, held, running, backward_end, updates, probes } = self;
        if updates.is_empty() {
            return Err(CaptureError::NothingToTrain);
        }
        let (scalars, plans) = StepScalars::find(probes)?;
        let states =
            OptimizerStates { list: updates.iter().map(|update| states(update, &forward.parameters)).collect() };
        let updates = updates
            .into_iter()
            .map(|update| merge_equal_states(update, &forward.parameters))
            .collect::<Result<Vec<_>, _>>()?;
        let Recorded { operations, values, scopes } = recorded;
        let read = operations.iter().flat_map(OperationIr::inputs).map(|tensor| tensor.id.value()).collect();
        let hidden = held.missed(training, &running, &read);
        if !hidden.is_empty() {
            return Err(CaptureError::StatisticsHidden { modules: hidden });
        }
        let (recorded, init) = split_initialization(operations, &forward, &scopes);
        let paths: HashMap<ParamId, &ModulePath> =
            forward.parameters.list.iter().map(|info| (info.param, &info.path)).collect();
        let program = |steady: bool| -> Result<Captured, CaptureError> {
            let chosen = |update: &Update| -> ((u64, u64), UpdateIds) {
                let (this, other) =
                    if steady { (&update.steady, &update.first) } else { (&update.first, &update.steady) };
                (other.ids, UpdateIds { ids: this.ids, class: update.class })
            };
            let mut left_out: Vec<(u64, u64)> = updates.iter().map(|update| update.scaffold).collect();
            let mut kept = Vec::new();
            for (other, this) in updates.iter().map(chosen) {
                left_out.push(other);
                kept.push(this);
            }
            left_out.sort_unstable();
            let operations: Vec<OperationIr> =
                recorded.iter().filter(|op| !within(&left_out, first_result(op))).cloned().collect();
            let plan = |class: usize| {
                if steady { &plans[class].steady } else { &plans[class].first }
            };
            let (operations, scalar_inputs) = insert_scalars(operations, &kept, plan)?;

            let mut inputs: Vec<DraftInput> = parameter_inputs(&forward.parameters).collect();
            if steady {
                inputs.extend(state_inputs(&updates, &paths, &recorded)?);
            }
            inputs.extend(data_inputs(forward.data.clone()));
            inputs.extend(scalar_inputs);
            let draft = Draft {
                operations,
                inputs,
                outputs: step_outputs(&forward, &running, &updates, &paths, steady),
                scopes: scopes.clone(),
                forward_end: forward.end,
                backward_end,
            };
            let mut captured = draft.finish(&values)?;
            describe(&mut captured, forward.parameters.clone(), init.clone());
            Ok(captured)
        };
        Ok(TrainingCapture { first: program(false)?, steady: program(true)?, scalars, states })
    }
}

fn parameter_inputs(parameters: &Parameters) -> impl Iterator<Item = DraftInput> + '_ {
    parameters.list.iter().map(|ParameterInfo { path, tensor, shape, dtype, unit, .. }| DraftInput {
        id: *tensor,
        shape: shape.clone(),
        dtype: *dtype,
        kind: InputKind::Parameter { path: path.clone(), unit: *unit },
    })
}

fn data_inputs(data: Vec<Declared>) -> impl Iterator<Item = DraftInput> {
    data.into_iter().map(|Declared { id, kind, shape, dtype }| DraftInput { id, shape, dtype, kind })
}

/// The optimizer states of a parameter.
fn states(update: &Update, parameters: &Parameters) -> ParameterStates {
    let info = parameters.list.iter().find(|info| info.param == update.param);
    let (path, rank) = info.map(|info| (info.path.clone(), info.shape.len())).unwrap_or_default();
    ParameterStates { path, rank, class: update.class, tensors: RecordedTensor::all(&update.before) }
}

/// Keeps only one name of states that are always the same tensor (RMSProp without centering), and checks that a step
/// returns the states that the next step reads.
fn merge_equal_states(mut update: Update, parameters: &Parameters) -> Result<Update, CaptureError> {
    let info = parameters.list.iter().find(|info| info.param == update.param);
    let (path, shape) = info.map(|info| (info.path.clone(), info.shape.clone())).unwrap_or_default();
    let names = |state: &State| state.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let changes = CaptureError::OptimizerChanges { step: 2, shape };
    if names(&update.before) != names(&update.steady.state) || names(&update.before) != names(&update.first.state) {
        return Err(changes);
    }
    let mut first: HashMap<u64, usize> = HashMap::new();
    let mut kept = Vec::new();
    for (index, (name, id)) in update.before.iter().enumerate() {
        let other = *first.entry(*id).or_insert(index);
        let same = |state: &State| state[index].1 == state[other].1;
        if other == index {
            kept.push(index);
        } else if !same(&update.steady.state) || !same(&update.first.state) {
            let (parameter, first) = (path, update.before[other].0.clone());
            return Err(CaptureError::SharedState { parameter, first, second: name.clone() });
        }
    }
    for state in [&mut update.before, &mut update.first.state, &mut update.steady.state] {
        *state = kept.iter().map(|&index| state[index].clone()).collect();
    }
    Ok(update)
}

/// The states that the steady update reads.
fn state_inputs(
    updates: &[Update],
    paths: &HashMap<ParamId, &ModulePath>,
    operations: &[OperationIr],
) -> Result<Vec<DraftInput>, CaptureError> {
    let wanted: HashSet<u64> = updates.iter().flat_map(|update| &update.before).map(|(_, id)| *id).collect();
    let tensors = operations.iter().flat_map(OperationIr::outputs);
    let types: HashMap<u64, (Vec<usize>, DType)> = tensors
        .filter(|tensor| wanted.contains(&tensor.id.value()))
        .map(|tensor| (tensor.id.value(), (tensor.shape.to_vec(), tensor.dtype)))
        .collect();
    let mut inputs = Vec::new();
    for update in updates {
        let parameter = paths[&update.param].clone();
        for (name, id) in &update.before {
            let Some((shape, dtype)) = types.get(id).cloned() else {
                return Err(CaptureError::Inconsistent(format!("the state `{name}` of `{parameter}` is not computed")));
            };
            let kind = InputKind::State { parameter: parameter.clone(), name: name.clone() };
            inputs.push(DraftInput { id: *id, shape, dtype, kind });
        }
    }
    Ok(inputs)
}

fn step_outputs(
    forward: &Forward,
    running: &BTreeMap<ModulePath, u64>,
    updates: &[Update],
    paths: &HashMap<ParamId, &ModulePath>,
    steady: bool,
) -> Vec<(u64, OutputKind)> {
    let path = |update: &Update| paths[&update.param].clone();
    let recording = |update: &'_ Update| -> (u64, State) {
        let Recording { parameter, state, .. } = if steady { &update.steady } else { &update.first };
        (*parameter, state.clone())
    };
    let gradients = updates.iter().map(|update| (update.gradient, OutputKind::Gradient { path: path(update) }));
    let parameters = updates.iter().map(|update| (recording(update).0, OutputKind::Parameter { path: path(update) }));
    let states = updates.iter().flat_map(|update| {
        let named = |(name, id)| (id, OutputKind::State { parameter: path(update), name });
        recording(update).1.into_iter().map(named).collect::<Vec<_>>()
    });
    // A state that two modules share is a single parameter, under its first path.
    let is_parameter = |path: &&ModulePath| forward.parameters.list.iter().any(|info| info.path == **path);
    let running = running.iter().filter(|(path, _)| is_parameter(path));
    let running = running.map(|(path, id)| (*id, OutputKind::Parameter { path: path.clone() }));
    forward.outputs.iter().cloned().chain(gradients).chain(parameters).chain(running).chain(states).collect()
}

fn describe(captured: &mut Captured, parameters: Parameters, init: HashMap<String, Init>) {
    captured.modules = parameters.modules;
    captured.aliases = parameters.aliases;
    captured.init = init;
}
