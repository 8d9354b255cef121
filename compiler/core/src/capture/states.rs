//! The optimizer states of each parameter, under the names of burn's records.

use super::optimizer::State;
use tpc_ir::ModulePath;

/// The states of all parameters that a training step updates.
#[derive(Clone, Debug, Default)]
pub struct OptimizerStates {
    pub(crate) list: Vec<ParameterStates>,
}

/// The states of one parameter.
#[derive(Clone, Debug)]
pub(crate) struct ParameterStates {
    /// Path of the parameter.
    pub(crate) path: ModulePath,
    /// Rank of the parameter.
    pub(crate) rank: usize,
    /// The class of the parameter in [`StepScalars`](super::StepScalars), whose members are all updated in the same
    /// way.
    pub(crate) class: usize,
    /// The tensors of burn's record, each with the state of the program that holds its value.
    pub(crate) tensors: Vec<RecordedTensor>,
}

/// A tensor of a record.
#[derive(Clone, Debug)]
pub(crate) struct RecordedTensor {
    /// Its name in the record.
    pub(crate) name: String,
    /// The name of the program's state. It differs from `name` only for states that are always the same tensor, of
    /// which the program has only the first.
    pub(crate) state: String,
}

impl RecordedTensor {
    /// The tensors of a state before deduplication.
    pub(super) fn all(state: &State) -> Vec<RecordedTensor> {
        let first = |id: &u64| state.iter().find(|(_, other)| other == id).map(|(name, _)| name.clone());
        let recorded = |(name, id): &(String, u64)| Some(RecordedTensor { name: name.clone(), state: first(id)? });
        state.iter().filter_map(recorded).collect()
    }
}
