//! The position of a visitor in a burn module.
//!
//! burn calls a visitor with the name of the field or element that it enters and the type of the module that contains
//! it. An element of a list becomes an index, everything else a name, whatever its characters.

use tpc_ir::{ModulePath, Segment};

/// The path of the visited field or element, updated by `enter_module` and `exit_module` of a visitor.
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

    /// The path of the visited field or element.
    pub(crate) fn path(&self) -> ModulePath {
        self.segments.iter().cloned().collect()
    }

    /// The name of the visited field in the module that contains it; `None` for an element of a list.
    pub(super) fn name(&self) -> Option<&str> {
        match self.segments.last() {
            Some(Segment::Name(name)) => Some(name),
            _ => None,
        }
    }
}

/// Splits burn's description of the type of a module, such as `Struct:Linear` or `Vec`, into the sort of container and
/// its name.
pub(super) fn container(container_type: &str) -> (&str, &str) {
    container_type.split_once(':').unwrap_or((container_type, container_type))
}

/// Whether a module is a list, whose elements have indices.
pub(super) fn is_list(container_type: &str) -> bool {
    matches!(container(container_type).0, "Vec" | "Array" | "Tuple")
}
