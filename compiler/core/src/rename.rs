//! Under which names plans and files know a model's parameters.

use crate::capture::Captured;
use tpc_ir::ModulePath;

/// Renames parameters: maps the text of burn's module path to the name in plans and files, which is also the text of a
/// path.
pub type Rename<'a> = &'a dyn Fn(&str) -> String;

/// The path of a parameter in plans and files.
pub(crate) fn renamed_path(path: &ModulePath, rename: Rename) -> ModulePath {
    rename(&path.to_string()).into()
}

/// Renames the parameters of a captured program.
pub fn renamed(captured: &Captured, rename: Rename) -> Captured {
    use crate::capture::{InputKind as I, OutputKind as O};
    let mut c = captured.clone();
    for input in &mut c.inputs {
        match &mut input.kind {
            I::Parameter { path, .. } => *path = renamed_path(path, rename),
            I::State { parameter, .. } => *parameter = renamed_path(parameter, rename),
            _ => {}
        }
    }
    for output in &mut c.outputs {
        match &mut output.kind {
            O::Parameter { path } | O::Gradient { path } => *path = renamed_path(path, rename),
            O::State { parameter, .. } => *parameter = renamed_path(parameter, rename),
            _ => {}
        }
    }
    c.init = captured.init.iter().map(|(k, v)| (rename(k), v.clone())).collect();
    c.values = std::sync::Arc::new(captured.values.iter().map(|(k, v)| (rename(k), v.clone())).collect());
    c
}
