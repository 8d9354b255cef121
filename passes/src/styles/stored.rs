//! The entries of a plan that store inputs one by one.

use super::pattern::{Pattern, PatternError};
use tpc_ir::{InputId, ModulePath};

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

    /// What finds the inputs of the entry.
    ///
    /// # Errors
    /// A path that is not a pattern; the name of a tensor of the batch is none.
    pub(super) fn matcher(&self) -> Result<Matcher<'_>, PatternError> {
        Ok(match &self.inputs {
            StoredInputs::Parameters(path) => Matcher::Parameters(Pattern::new(path)?),
            StoredInputs::States(path) => Matcher::States(Pattern::new(path)?),
            StoredInputs::Data(name) => Matcher::Data(name),
        })
    }
}

/// Finds the inputs of an entry.
pub(super) enum Matcher<'a> {
    Parameters(Pattern),
    States(Pattern),
    Data(&'a str),
}

impl Matcher<'_> {
    /// Whether the entry may store an input.
    pub(super) fn stores(&self, id: &InputId) -> bool {
        match (self, id) {
            (Matcher::Parameters(pattern), InputId::Parameter(path))
            | (Matcher::States(pattern), InputId::State { owner: path, .. }) => pattern.matches(path),
            (Matcher::Data(name), InputId::Data(data)) => **name == **data,
            _ => false,
        }
    }

    /// Whether the entry is about parameters, and none of these is one of them.
    pub(super) fn misses(&self, parameters: &[&ModulePath]) -> bool {
        match self {
            Matcher::Parameters(pattern) | Matcher::States(pattern) => {
                !parameters.iter().any(|parameter| pattern.matches(parameter))
            }
            Matcher::Data(_) => false,
        }
    }
}
