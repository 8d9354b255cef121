//! Converts the optimizer's state to burn's record and back.
//!
//! burn stores the state of a parameter under the parameter's id: its tensors as `ID.NAME`, its numbers next to them,
//! `ID.__rank` for the parameter's number of dimensions, and the parameter's path. A program has the tensors as inputs.
//! The numbers are those that the optimizer reaches after some number of steps, so they determine that number.

use super::error::TrainerError;
use super::module::known;
use crate::capture::{OptimizerStates, ParameterStates, Position};
use crate::data;
use crate::error::Error;
use crate::import::state;
use crate::program::TrainingSession;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::OptimizerRecord;
use burn::tensor::{Tensor, TensorData};
use burn_pack::{Reader, Scalar, Writer};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use tpc_ir::{DType, InputKind, ModulePath};

/// The name of the number in a record that is the parameter's number of dimensions.
const RANK: &str = "__rank";

/// The current state.
pub(super) fn write(
    training: &mut TrainingSession,
    states: &OptimizerStates,
    aliases: &[(ModulePath, ModulePath)],
    model: &impl Module,
) -> Result<OptimizerRecord, Error> {
    let steps = training.steps_done();
    if steps == 0 {
        return Ok(OptimizerRecord::default());
    }
    let ids = ids(model, aliases);
    let held = held(training);
    let (mut tensors, mut numbers, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for own in states.list.iter().filter(|own| is_kept(own, &held)) {
        let id = id(&ids, own)?;
        for tensor in &own.tensors {
            let name = state(&own.path, &tensor.state).to_string();
            let Some((dtype, layout)) = held.get(&name) else { continue };
            let value =
                data::of_bytes(*dtype, layout, training.session().read_input((InputKind::State, name.as_str()))?);
            let (bytes, shape, dtype) = value.into_parts();
            let name = format!("{id}.{}", tensor.name);
            tensors.push(burn_pack::Tensor::new(name, dtype, shape, Some(id), bytes));
        }
        numbers.push((format!("{id}.{RANK}"), Scalar::from(own.rank)));
        let own_numbers = training.state_numbers(own.class, steps)?;
        numbers.extend(own_numbers.into_iter().map(|(name, number)| (format!("{id}.{name}"), number)));
        paths.push((id.to_string(), own.path.to_string()));
    }
    let mut writer = Writer::new(tensors);
    for (name, number) in &numbers {
        writer = writer.with_scalar(name, *number);
    }
    for (id, path) in paths {
        writer = writer.with_metadata(&id, &path);
    }
    let bytes = writer.into_bytes().map_err(|error| unreadable(&error))?;
    OptimizerRecord::from_bytes(bytes).map_err(|error| unreadable(&error))
}

/// Continues from a state; returns the number of finished steps.
pub(super) fn read(
    training: &mut TrainingSession,
    states: &OptimizerStates,
    aliases: &[(ModulePath, ModulePath)],
    model: &impl Module,
    record: OptimizerRecord,
) -> Result<usize, Error> {
    let mut given = Given::of(record)?;
    let ids = ids(model, aliases);
    let held = held(training);
    let mut written: Vec<(String, Cow<'static, [u8]>)> = Vec::new();
    let mut counted: Vec<(&ParameterStates, BTreeMap<String, Scalar>)> = Vec::new();
    for own in states.list.iter().filter(|own| is_kept(own, &held)) {
        let id = id(&ids, own)?;
        for tensor in &own.tensors {
            let name = state(&own.path, &tensor.state).to_string();
            let Some((dtype, layout)) = held.get(&name) else { continue };
            let Some(value) = given.tensors.remove(&format!("{id}.{}", tensor.name)) else {
                return other(format!("it has no state `{}` of `{}`", tensor.name, own.path));
            };
            if value.shape().to_vec() != *layout {
                let (found, expected) = (value.shape().to_vec(), layout);
                return other(format!("state `{}` of `{}` is {found:?}, not {expected:?}", tensor.name, own.path));
            }
            if tensor.name == tensor.state {
                written.push((name, Cow::Owned(data::to_bytes(&value, *dtype).into_owned())));
            }
        }
        counted.push((own, given.numbers(id)));
    }
    if let Some(name) = given.tensors.keys().next() {
        return other(format!("it has a state `{name}` that this training lacks"));
    }
    if counted.is_empty() {
        return Ok(training.steps_done());
    }
    let steps = steps(training, &counted)?;
    training.go_on(steps, &written)?;
    Ok(steps)
}

/// The state inputs of the training step: their element types and whole shapes.
fn held(training: &mut TrainingSession) -> HashMap<String, (DType, Vec<usize>)> {
    let inputs = training.session().interface().inputs.iter().filter(|input| input.kind == InputKind::State);
    inputs.map(|input| (input.name.clone(), (input.binding.view.dtype, input.binding.layout.clone()))).collect()
}

/// Whether a state of a parameter is kept; the states of frozen parameters are not.
fn is_kept(own: &ParameterStates, held: &HashMap<String, (DType, Vec<usize>)>) -> bool {
    own.tensors.iter().any(|tensor| held.contains_key(&state(&own.path, &tensor.state).to_string()))
}

/// The number of steps after which the optimizer has the numbers of a record.
fn steps(
    training: &mut TrainingSession,
    counted: &[(&ParameterStates, BTreeMap<String, Scalar>)],
) -> Result<usize, Error> {
    let numbers = |(_, numbers): &(&ParameterStates, BTreeMap<String, Scalar>)| numbers.clone();
    let mut candidates: Vec<usize> =
        counted.iter().flat_map(numbers).filter_map(|(_, number)| usize::try_from(number).ok()).collect();
    if candidates.is_empty() {
        candidates.push(training.steps_done().max(1));
    }
    candidates.retain(|steps| *steps > 0);
    candidates.sort_unstable();
    candidates.dedup();
    for steps in candidates {
        let mut fits = true;
        for (own, given) in counted {
            let reached: BTreeMap<String, Scalar> = training.state_numbers(own.class, steps)?.into_iter().collect();
            fits &= reached == *given;
        }
        if fits {
            return Ok(steps);
        }
    }
    other("its counters do not match this optimizer after any number of steps".into())
}

/// The contents of a record.
struct Given {
    tensors: HashMap<String, TensorData>,
    numbers: BTreeMap<String, Scalar>,
}

impl Given {
    fn of(record: OptimizerRecord) -> Result<Self, Error> {
        let bytes = record.into_bytes().map_err(|error| unreadable(&error))?;
        let reader = Reader::from_bytes(bytes).map_err(|error| unreadable(&error))?;
        let numbers = reader.scalars().clone();
        let mut tensors = HashMap::new();
        for tensor in reader.into_tensors().map_err(|error| unreadable(&error))? {
            let (name, dtype, shape, _, bytes) = tensor.into_parts().map_err(|error| unreadable(&error))?;
            let value = TensorData::try_from_bytes(bytes, shape, dtype).map_err(|error| unreadable(&error))?;
            tensors.insert(name, value);
        }
        Ok(Given { tensors, numbers })
    }

    /// The numbers of a parameter's state.
    fn numbers(&self, id: u64) -> BTreeMap<String, Scalar> {
        let prefix = format!("{id}.");
        let own = self.numbers.iter().filter_map(|(name, number)| Some((name.strip_prefix(&prefix)?, number)));
        own.filter(|(name, _)| *name != RANK).map(|(name, number)| (name.to_owned(), *number)).collect()
    }
}

fn other<T>(problem: String) -> Result<T, Error> {
    Err(TrainerError::OptimizerRecord(problem).into())
}

fn unreadable(error: &dyn std::error::Error) -> Error {
    TrainerError::OptimizerRecord(format!("it cannot be read: {error}")).into()
}

/// The id of a parameter.
fn id(ids: &HashMap<ModulePath, u64>, own: &ParameterStates) -> Result<u64, Error> {
    let missing =
        || TrainerError::Architecture(format!("it has no parameter `{}`, which the trained one has", own.path));
    Ok(*ids.get(&own.path).ok_or_else(missing)?)
}

/// The ids of a model's parameters, by their paths in the program.
fn ids(model: &impl Module, aliases: &[(ModulePath, ModulePath)]) -> HashMap<ModulePath, u64> {
    let mut ids = Ids { aliases, position: Position::default(), found: HashMap::new() };
    model.visit(&mut ids);
    ids.found
}

struct Ids<'a> {
    aliases: &'a [(ModulePath, ModulePath)],
    position: Position,
    found: HashMap<ModulePath, u64>,
}

impl ModuleVisitor for Ids<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.position.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.position.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.position.path();
        self.found.entry(known(self.aliases, &path).clone()).or_insert(param.id.val());
    }
}
