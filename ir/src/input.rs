//! The identity of an input of a program: its kind, and its path or name.
//!
//! An input is identified by its kind and a path, or by its kind and a name. Its text alone does not identify it: a
//! data tensor may be called like a parameter.
//!
//! ```
//! use tpc_ir::input::{InputId, InputKind};
//! let state = InputId::read(InputKind::State, "up.weight/moment_1");
//! assert_eq!(state, InputId::State { owner: "up.weight".into(), name: "moment_1".into() });
//! assert_ne!(InputId::read(InputKind::Data, "up.weight"), InputId::read(InputKind::Parameter, "up.weight"));
//! ```

use crate::path::{ModulePath, escape, unescaped};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// The kind of an input of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InputKind {
    /// A trained parameter, named by its module path.
    Parameter,
    /// A tensor of optimizer state, named `parameter/state`, or another tensor that a program keeps from run to run.
    State,
    /// A tensor of the batch.
    Data,
    /// A scalar that changes from step to step: a learning rate, a bias correction.
    Scalar,
    /// The seed of a step's random elements.
    Seed,
    /// A tensor that never changes, captured with the model.
    Constant,
}

impl InputKind {
    /// Every kind.
    pub const ALL: [InputKind; 6] = [
        InputKind::Parameter,
        InputKind::State,
        InputKind::Data,
        InputKind::Scalar,
        InputKind::Seed,
        InputKind::Constant,
    ];

    /// The kind with a name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        InputKind::ALL.into_iter().find(|k| k.name() == name)
    }

    /// The name used in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            InputKind::Parameter => "parameter",
            InputKind::State => "state",
            InputKind::Data => "data",
            InputKind::Scalar => "scalar",
            InputKind::Seed => "seed",
            InputKind::Constant => "constant",
        }
    }
}

/// Identifies an input of a program: two inputs are the same if and only if their ids are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InputId {
    /// The parameter at a path of the model.
    Parameter(ModulePath),
    /// A tensor whose value a step passes on to the next one.
    State {
        /// The parameter or module that the state belongs to.
        owner: ModulePath,
        /// The name of the state; empty if it is the only one of its owner and has no name.
        name: Arc<str>,
    },
    /// A tensor of the batch, by name.
    Data(Arc<str>),
    /// A scalar of the step.
    Scalar(ModulePath),
    /// A seed of random elements.
    Seed(ModulePath),
    /// A captured tensor.
    Constant(ModulePath),
}

impl InputId {
    /// The input of a kind whose text, as [`Display`](fmt::Display) writes it, is `text`.
    pub fn read(kind: InputKind, text: &str) -> Self {
        match kind {
            InputKind::Parameter => InputId::Parameter(text.into()),
            InputKind::State => {
                let Shown { of, state } = Shown::read(text);
                InputId::State { owner: of, name: state }
            }
            InputKind::Data => InputId::Data(text.into()),
            InputKind::Scalar => InputId::Scalar(text.into()),
            InputKind::Seed => InputId::Seed(text.into()),
            InputKind::Constant => InputId::Constant(text.into()),
        }
    }

    /// The input that an output updates, given the text of the output: a state if the text has a name after a slash,
    /// otherwise a parameter.
    pub fn kept(text: &str) -> Self {
        match InputId::read(InputKind::State, text) {
            InputId::State { owner, name } if name.is_empty() => InputId::Parameter(owner),
            state => state,
        }
    }

    /// Like [`InputId::kept`], for a program that may have states without names.
    pub(crate) fn kept_in(text: &str, states: &HashSet<InputId>) -> Self {
        let state = InputId::read(InputKind::State, text);
        if states.contains(&state) { state } else { InputId::kept(text) }
    }

    /// The kind of the input.
    pub fn kind(&self) -> InputKind {
        match self {
            InputId::Parameter(_) => InputKind::Parameter,
            InputId::State { .. } => InputKind::State,
            InputId::Data(_) => InputKind::Data,
            InputId::Scalar(_) => InputKind::Scalar,
            InputId::Seed(_) => InputKind::Seed,
            InputId::Constant(_) => InputKind::Constant,
        }
    }

    /// Whether the input is a parameter.
    pub fn is_parameter(&self) -> bool {
        matches!(self, InputId::Parameter(_))
    }

    /// Whether a step may pass on a new value of the input to the next step.
    pub fn is_kept(&self) -> bool {
        matches!(self, InputId::Parameter(_) | InputId::State { .. })
    }

    /// The path, if the input is a parameter.
    pub fn parameter(&self) -> Option<&ModulePath> {
        match self {
            InputId::Parameter(path) => Some(path),
            _ => None,
        }
    }

    /// The path of the input; data has none.
    pub fn path(&self) -> Option<&ModulePath> {
        match self {
            InputId::Parameter(path)
            | InputId::State { owner: path, .. }
            | InputId::Scalar(path)
            | InputId::Seed(path)
            | InputId::Constant(path) => Some(path),
            InputId::Data(_) => None,
        }
    }

    /// The same input with its path replaced by the result of `change`.
    #[must_use]
    pub fn map_path(&self, change: impl FnOnce(&ModulePath) -> ModulePath) -> Self {
        match self {
            InputId::Parameter(path) => InputId::Parameter(change(path)),
            InputId::State { owner, name } => InputId::State { owner: change(owner), name: name.clone() },
            InputId::Data(name) => InputId::Data(name.clone()),
            InputId::Scalar(path) => InputId::Scalar(change(path)),
            InputId::Seed(path) => InputId::Seed(change(path)),
            InputId::Constant(path) => InputId::Constant(change(path)),
        }
    }

    /// How a message refers to the input.
    pub fn shown(&self) -> Shown {
        let of = |path: &ModulePath, state: &Arc<str>| Shown { of: path.clone(), state: state.clone() };
        match self {
            InputId::State { owner, name } => of(owner, name),
            InputId::Data(name) => of(&ModulePath::showing(name), &Arc::default()),
            other => of(&other.path().cloned().unwrap_or_default(), &Arc::default()),
        }
    }
}

/// How a message refers to a tensor. It is text for people and identifies nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shown {
    /// A parameter, a module, or the name of a data tensor.
    pub of: ModulePath,
    /// The name of one of its states; empty for the tensor itself.
    pub state: Arc<str>,
}

impl Shown {
    /// Reads the text form.
    pub fn read(text: &str) -> Self {
        let mut escaped = false;
        let slash = text.char_indices().find(|&(_, c)| {
            let found = c == '/' && !escaped;
            escaped = c == '\\' && !escaped;
            found
        });
        let (of, rest) = slash.map_or((text, ""), |(at, _)| (&text[..at], &text[at + 1..]));
        let mut state = String::new();
        let mut chars = rest.chars().peekable();
        while let Some(c) = chars.next() {
            if c == '\\' { state.extend(unescaped(&mut chars)) } else { state.push(c) }
        }
        Shown { of: of.into(), state: state.into() }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.of.fmt(f)?;
        if self.state.is_empty() {
            return Ok(());
        }
        f.write_char('/')?;
        self.state.chars().try_for_each(|c| escape(f, c))
    }
}

impl fmt::Display for InputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputId::Data(name) => f.write_str(name),
            other => other.shown().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_is_read_back() {
        for owner in ["", "a", "a/b", "a.b", "0", "\\", " "] {
            let path = ModulePath::default().named("m").named(owner);
            let state = |name: &str| InputId::State { owner: path.clone(), name: name.into() };
            let ids = ["", "moment_1", "a.0", "a/b", "\\", "\n"].map(state).into_iter();
            let others =
                [InputId::Parameter, InputId::Scalar, InputId::Seed, InputId::Constant].map(|of| of(path.clone()));
            for id in ids.chain(others).chain([InputId::Data(owner.into())]) {
                assert_eq!(InputId::read(id.kind(), &id.to_string()), id, "{id}");
            }
        }
    }
}
