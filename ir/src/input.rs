//! What comes into a program: its kind, and which one of that kind.
//!
//! An input is identified by kind and path, or by kind and name. Its text is for people: a data tensor that is called
//! like a parameter is another input.
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

/// What an input of a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InputKind {
    /// A trained parameter, named by its module path.
    Parameter,
    /// A tensor of optimizer state, named `parameter/state`, or one that a program keeps from run to run.
    State,
    /// A tensor of the batch.
    Data,
    /// A scalar that changes from step to step: a learning rate, a bias correction.
    Scalar,
    /// The number from which a step draws its random elements.
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

    /// The kind of that name.
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

/// Which input of a program: two inputs are the same if and only if these are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InputId {
    /// The parameter at that place of the model.
    Parameter(ModulePath),
    /// A tensor that a step leaves to the next one.
    State {
        /// The parameter or the module that it belongs to.
        owner: ModulePath,
        /// Which of its states; empty if it has no name of its own.
        name: Arc<str>,
    },
    /// The tensor of the batch of that name.
    Data(Arc<str>),
    /// A number of the step.
    Scalar(ModulePath),
    /// A seed of random operations.
    Seed(ModulePath),
    /// A captured tensor.
    Constant(ModulePath),
}

impl InputId {
    /// The input of that kind whose text is `text`, as [`Display`](fmt::Display) writes it.
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

    /// The input whose next value an output is called after: a state if the text names one after a slash, otherwise the
    /// parameter.
    pub fn kept(text: &str) -> Self {
        match InputId::read(InputKind::State, text) {
            InputId::State { owner, name } if name.is_empty() => InputId::Parameter(owner),
            state => state,
        }
    }

    /// The same among the inputs of a program, of which some states have no name of their own.
    pub(crate) fn kept_in(text: &str, states: &HashSet<InputId>) -> Self {
        let state = InputId::read(InputKind::State, text);
        if states.contains(&state) { state } else { InputId::kept(text) }
    }

    /// What it is.
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

    /// Whether it is a parameter.
    pub fn is_parameter(&self) -> bool {
        matches!(self, InputId::Parameter(_))
    }

    /// Whether a step may leave another value of it to the next one.
    pub fn is_kept(&self) -> bool {
        matches!(self, InputId::Parameter(_) | InputId::State { .. })
    }

    /// The path of a parameter.
    pub fn parameter(&self) -> Option<&ModulePath> {
        match self {
            InputId::Parameter(path) => Some(path),
            _ => None,
        }
    }

    /// The path that names it; data has none.
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

    /// The same with what `change` makes of its path.
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

    /// What a sentence calls it.
    pub fn shown(&self) -> Shown {
        let of = |path: &ModulePath, state: &Arc<str>| Shown { of: path.clone(), state: state.clone() };
        match self {
            InputId::State { owner, name } => of(owner, name),
            InputId::Data(name) => of(&ModulePath::showing(name), &Arc::default()),
            other => of(&other.path().cloned().unwrap_or_default(), &Arc::default()),
        }
    }
}

/// What a sentence calls a tensor: words for people, which identify nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shown {
    /// A parameter, a module or the name of data.
    pub of: ModulePath,
    /// Which of its states; empty if it is the tensor itself.
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
