//! How a caller names an input.
//!
//! An input is identified by its kind and its name. A name alone suffices if only one kind of input has it.

use crate::error::RuntimeError;
use tpc_ir::InputKind;
use tpc_ir::program::InputBinding;

/// The name of an input, with or without its kind.
#[derive(Clone, Copy, Debug)]
pub struct InputName<'a> {
    kind: Option<InputKind>,
    pub(super) name: &'a str,
}

impl<'a> From<&'a str> for InputName<'a> {
    fn from(name: &'a str) -> Self {
        InputName { kind: None, name }
    }
}

impl<'a> From<&'a String> for InputName<'a> {
    fn from(name: &'a String) -> Self {
        InputName { kind: None, name }
    }
}

impl<'a> From<(InputKind, &'a str)> for InputName<'a> {
    fn from((kind, name): (InputKind, &'a str)) -> Self {
        InputName { kind: Some(kind), name }
    }
}

impl<'a> From<&'a InputBinding> for InputName<'a> {
    fn from(input: &'a InputBinding) -> Self {
        (input.kind, &*input.name).into()
    }
}

impl InputName<'_> {
    /// The position of the input among those of a program.
    ///
    /// # Errors
    /// No such input, or several kinds of input with this name.
    pub(super) fn find(self, inputs: &[InputBinding]) -> Result<usize, RuntimeError> {
        let is_meant = |i: &InputBinding| i.name == self.name && self.kind.is_none_or(|kind| kind == i.kind);
        let mut found = inputs.iter().enumerate().filter(|(_, i)| is_meant(i));
        match (found.next(), found.next()) {
            (None, _) => Err(RuntimeError::Unknown {
                what: "input",
                name: self.name.into(),
                known: inputs.iter().map(|i| i.name.clone()).collect(),
            }),
            (Some((at, _)), None) => Ok(at),
            (Some((_, one)), Some((_, other))) => {
                Err(RuntimeError::Ambiguous { name: self.name.into(), kinds: [one.kind, other.kind] })
            }
        }
    }
}
