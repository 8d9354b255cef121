//! The forward pass that a closure recorded.

use super::interface::{KeptName, OutputKind};
use super::params::Parameters;
use super::tensors::{Declared, Leaf, LeafKind, Tensors};

/// The forward pass that a closure recorded.
pub(super) struct Forward {
    pub(super) parameters: Parameters,
    /// The ids that were recorded while the model was built.
    pub(super) built: (u64, u64),
    /// Whether the model was built without values.
    pub(super) by_shapes: bool,
    /// The inputs that the closure received.
    pub(super) data: Vec<Declared>,
    /// The results of the closure.
    pub(super) outputs: Vec<(u64, OutputKind)>,
    /// The first id after the closure.
    pub(super) end: u64,
}

/// The results of a closure; those without a name are named by position.
pub(super) fn outputs(results: &impl Tensors) -> Vec<(u64, OutputKind)> {
    let mut leaves = Vec::new();
    results.leaves(None, &mut leaves);
    let output = |(index, leaf): (usize, Leaf)| {
        let kind = match leaf.kind {
            LeafKind::Result(name) => OutputKind::Output { name: name.unwrap_or_else(|| format!("output{index}")) },
            LeafKind::Kept(KeptName { owner, name }) => OutputKind::State { parameter: owner, name },
        };
        leaf.id.map(|id| (id.value(), kind))
    };
    leaves.into_iter().enumerate().filter_map(output).collect()
}

/// The names of the outputs that the results of a closure become.
pub(crate) fn output_names(results: &impl Tensors) -> Vec<String> {
    let name = |(_, kind)| match kind {
        OutputKind::Output { name } => Some(name),
        _ => None,
    };
    outputs(results).into_iter().filter_map(name).collect()
}
