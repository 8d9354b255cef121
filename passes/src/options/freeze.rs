//! Freezes parameters, so that they are not trained.
//!
//! A frozen parameter has no gradient, no update and no optimizer state, as with `requires_grad = False` in PyTorch.
//! The pass removes its gradient and its updates from the outputs, its state from the inputs, and the operations that
//! only they needed. Buffers (running means) are not parameters in this sense: they have no gradient, and they are
//! still updated.
//!
//! Before: `gradient "up.weight" %7`, `update "up.weight" %9`, `update "up.weight/moment" %8`. After: none of these,
//! and neither `input state "up.weight/moment"` nor the product that computed `%7`.

use super::{OptionError, trained};
use crate::rebuild::{copy, rebuild};
use crate::styles::pattern::{Pattern, nearest};
use std::collections::BTreeSet;
use tpc_ir::{Graph, InputId, InputKind, ModulePath, OutputKind};

/// Freezes the parameters that `patterns` match. A pattern (globs per path segment) freezes the parameter at a path and
/// every parameter in the module at a path; `""` and `*` match the whole model. `!pattern` unfreezes what it matches,
/// so `["*", "!*.lora_a"]` trains only parameters and modules called `lora_a`. Patterns apply in order.
///
/// # Errors
/// A text is not a pattern, a pattern matches or changes nothing, the program has no gradients, or nothing is left to
/// train.
pub fn freeze(graph: &Graph, patterns: &[String]) -> Result<Graph, OptionError> {
    let trained = trained(graph);
    if trained.is_empty() {
        return Err(OptionError::NoGradients("freezing"));
    }
    let mut frozen: BTreeSet<&ModulePath> = BTreeSet::new();
    for pattern in patterns {
        let (path, back) = read(pattern);
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
                true => "no earlier pattern freezes anything that it matches",
                false => "everything that it matches is already frozen by earlier patterns",
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
        // No live node reads it.
        if gone.contains(&node) { Vec::new() } else { copy(new, &kept, node, &operands) }
    });
    Ok(rebuilt)
}

/// The path pattern of a text, and whether it unfreezes.
fn read(pattern: &str) -> (&str, bool) {
    pattern.strip_prefix('!').map_or((pattern, false), |path| (path, true))
}

/// The path patterns of some texts, whether they freeze or unfreeze.
pub fn paths(patterns: &[String]) -> Vec<&str> {
    patterns.iter().map(|pattern| read(pattern).0).collect()
}

/// Whether a pattern matches a parameter or a module that contains it.
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
