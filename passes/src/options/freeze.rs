//! Freezing: some parameters are not trained.
//!
//! A frozen parameter has no gradient, no update and no optimizer state, as with
//! `requires_grad = False` in PyTorch. Its gradient output and the updates are dropped; what only
//! they needed is dead, and the state is no input any more. Buffers (running means) are not
//! parameters in this sense: they have no gradient to begin with, and keep being updated.
//!
//! Before: `gradient "up.weight" %7`, `update "up.weight" %9`, `update "up.weight/moment" %8`.
//! After: none of them; `input state "up.weight/moment"` and the product that gave `%7` are gone.

use super::{OptionError, trained};
use crate::rebuild::{copy, rebuild};
use crate::styles::pattern::{Pattern, nearest};
use std::collections::BTreeSet;
use tpc_ir::{Graph, InputId, InputKind, ModulePath, OutputKind};

/// Drops the training of the parameters that `patterns` match, in order: a pattern (globs per path
/// segment) freezes parameters of that name and everything in modules of that path, `""` and `*`
/// being the whole model; `!pattern` takes back what it matches, so that `["*", "!*.lora_a"]` trains
/// nothing but those.
///
/// # Errors
/// A text that is no pattern, a pattern that matches or changes nothing, a program without gradients, or nothing left to
/// train.
pub fn freeze(graph: &Graph, patterns: &[String]) -> Result<Graph, OptionError> {
    let trained = trained(graph);
    if trained.is_empty() {
        return Err(OptionError::NoGradients("freezing"));
    }
    let mut frozen: BTreeSet<&ModulePath> = BTreeSet::new();
    for pattern in patterns {
        let (path, back) = pattern.strip_prefix('!').map_or((pattern.as_str(), false), |path| (path, true));
        let matches =
            Pattern::new(path).map_err(|problem| OptionError::Pattern { pattern: pattern.clone(), problem })?;
        let matched: Vec<&ModulePath> = trained.iter().filter(|name| covers(&matches, name)).collect();
        if matched.is_empty() {
            let modules: BTreeSet<ModulePath> = trained.iter().flat_map(ModulePath::outward).collect();
            return Err(OptionError::NoParameter { pattern: pattern.clone(), nearest: nearest(path, &modules) });
        }
        let before = frozen.len();
        for name in matched {
            if back {
                frozen.remove(name)
            } else {
                frozen.insert(name)
            };
        }
        if frozen.len() == before {
            let why = match back {
                true => "nothing that it matches is frozen by a pattern before it",
                false => "all that it matches is frozen by the patterns before it",
            };
            return Err(OptionError::NoEffect { pattern: pattern.clone(), why });
        }
    }
    if frozen.len() == trained.iter().collect::<BTreeSet<_>>().len() {
        return Err(OptionError::AllFrozen);
    }
    let of_frozen = |id: &InputId| matches!(id, InputId::Parameter(path) | InputId::State { owner: path, .. } if frozen.contains(path));
    let mut kept = graph.clone();
    kept.outputs.retain(|o| match &o.kind {
        OutputKind::Gradient(path) => !frozen.contains(path),
        OutputKind::Update(id) => !of_frozen(id),
        OutputKind::Result(_) | OutputKind::Loss => true,
    });
    let gone: BTreeSet<_> =
        graph.inputs().filter(|(_, id)| id.kind() == InputKind::State && of_frozen(id)).map(|(node, _)| node).collect();
    let (rebuilt, _) = rebuild(&kept, graph.mesh.clone(), |new, node, operands| {
        // Nothing that lives reads it.
        if gone.contains(&node) { Vec::new() } else { copy(new, &kept, node, &operands) }
    });
    Ok(rebuilt)
}

/// Whether a pattern means a parameter or a module that contains it.
fn covers(pattern: &Pattern, parameter: &ModulePath) -> bool {
    parameter.outward().any(|path| pattern.matches(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_a_parameter_and_the_modules_around_it() {
        let covers = |pattern: &str, parameter: &str| super::covers(&Pattern::new(pattern).unwrap(), &parameter.into());
        for pattern in
            ["", "*", "model", "model.layers.0", "model.layers.*.up", "model.layers.?.up.weight", "model.layers.[!1]"]
        {
            assert!(covers(pattern, "model.layers.0.up.weight"), "{pattern}");
        }
        for pattern in ["layers", "model.layers.1", "model.layers.0.up.bias", "*.weight", "model.layers.[^0]"] {
            assert!(!covers(pattern, "model.layers.0.up.weight"), "{pattern}");
        }
    }
}
