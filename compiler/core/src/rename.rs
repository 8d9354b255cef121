//! Under which names plans and files know a model's parameters.

use crate::capture::Captured;
use tpc_ir::ModulePath;

/// How parameters are called: the text of burn's module path to the name that plans and files use, which is the text of a
/// path, too.
pub type Rename<'a> = &'a dyn Fn(&str) -> String;

/// The path under which plans and files know a parameter.
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
