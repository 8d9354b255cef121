//! The entries of a plan that store inputs one by one.

use super::pattern::Pattern;
use tpc_ir::InputId;

/// The inputs that an entry stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredInputs {
    /// The parameters whose paths match a pattern.
    Parameters(String),
    /// The states of these parameters that have as many dimensions as the entry.
    States(String),
    /// The tensor of the batch with a name. Programs that do not read it ignore the entry, because the programs of a model
    /// read different tensors.
    Data(String),
}

/// Where a plan stores some inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoragePlan {
    /// The inputs.
    pub inputs: StoredInputs,
    /// For each dimension that the model knows, the names of the axes that cut it, major to minor. JAX calls such a list a
    /// `PartitionSpec`.
    pub dims: Vec<Vec<String>>,
}

impl StoragePlan {
    /// The pattern or name of the entry.
    pub fn path(&self) -> &str {
        match &self.inputs {
            StoredInputs::Parameters(path) | StoredInputs::States(path) | StoredInputs::Data(path) => path,
        }
    }

    /// Whether the entry may store an input; the pattern is that of its path.
    pub(super) fn stores(&self, pattern: &Pattern, id: &InputId) -> bool {
        match (&self.inputs, id) {
            (StoredInputs::Parameters(_), InputId::Parameter(path))
            | (StoredInputs::States(_), InputId::State { owner: path, .. }) => pattern.matches(path),
            (StoredInputs::Data(name), InputId::Data(data)) => **data == **name,
            _ => false,
        }
    }
}
