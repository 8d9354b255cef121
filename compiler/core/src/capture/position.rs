//! Where a visitor of a burn module is.
//!
//! burn calls a visitor with the name of what it enters and the type of the module that holds it. An element of a list is
//! an index; everything else is a name, whatever its characters are.

use tpc_ir::{ModulePath, Segment};

/// The path of what is visited, kept by the `enter_module` and `exit_module` of a visitor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position {
    segments: Vec<Segment>,
}

impl Position {
    /// Called by `enter_module` with its arguments.
    pub(crate) fn enter(&mut self, name: &str, container_type: &str) {
        let index = name.parse().ok().filter(|_| is_list(container_type));
        self.segments.push(index.map_or_else(|| Segment::Name(name.into()), Segment::Index));
    }

    /// Called by `exit_module`.
    pub(crate) fn exit(&mut self) {
        self.segments.pop();
    }

    /// The path of what is visited.
    pub(crate) fn path(&self) -> ModulePath {
        self.segments.iter().cloned().collect()
    }

    /// The name of what is visited in the module that holds it.
    pub(super) fn name(&self) -> Option<&str> {
        match self.segments.last() {
            Some(Segment::Name(name)) => Some(name),
            _ => None,
        }
    }
}

/// What burn says of the type of a module, `Struct:Linear` or `Vec`: what sort of container it is, and its name.
pub(super) fn container(container_type: &str) -> (&str, &str) {
    container_type.split_once(':').unwrap_or((container_type, container_type))
}

/// Whether a module is a list, whose elements have positions.
pub(super) fn is_list(container_type: &str) -> bool {
    matches!(container(container_type).0, "Vec" | "Array" | "Tuple")
}
