//! Places the optimizer states and the gradient of a parameter like the parameter.

use super::annotations::{Annotation, Annotations, Constraint};
use super::layout::OnAxes;
use std::collections::HashMap;
use tpc_ir::reason::Cause;
use tpc_ir::{AxisId, Graph, InputId, ModulePath, OutputKind, Sharding};

/// The shapes of the parameters.
pub(super) fn parameter_shapes(graph: &Graph) -> HashMap<&ModulePath, &Vec<usize>> {
    graph.inputs().filter_map(|(n, id)| Some((id.parameter()?, &graph.node(n).types[0].shape))).collect()
}

/// Places optimizer state like its parameter, if both have the same shape.
pub(super) fn states_like_parameters(graph: &Graph, inputs: &mut HashMap<InputId, Annotation>) {
    let shapes = parameter_shapes(graph);
    for (node, id) in graph.inputs() {
        let InputId::State { owner, .. } = id else { continue };
        let same = shapes.get(owner) == Some(&&graph.node(node).types[0].shape);
        if let Some(annotation) = inputs.get(&InputId::Parameter(owner.clone())).filter(|_| same).cloned() {
            inputs.insert(id.clone(), annotation);
        }
    }
}

/// Places gradients like their parameters, on the axes that shard parameters. A gradient is then reduced to the shard,
/// and it is moved once instead of the parameter and every state in the optimizer.
pub(super) fn gradients_like_parameters(graph: &Graph, axes: &[AxisId], found: &mut Annotations) {
    if axes.is_empty() {
        return;
    }
    let shapes = parameter_shapes(graph);
    for output in &graph.outputs {
        let OutputKind::Gradient(name) = &output.kind else { continue };
        let ty = graph.ty(output.value);
        if shapes.get(name).is_none_or(|shape| **shape != ty.shape) {
            continue;
        }
        let why = Cause::Like(name.clone()).into();
        let sharding = found.placement(&InputId::Parameter(name.clone()), ty);
        let at = OnAxes { axes: axes.to_vec(), dims: only(&sharding, axes) };
        found.results.entry(output.value.node).or_default().push(Constraint { at, why });
    }
}

/// The part of a placement that concerns some axes.
fn only(sharding: &Sharding, axes: &[AxisId]) -> Vec<Vec<AxisId>> {
    sharding.dims.iter().map(|d| d.iter().copied().filter(|a| axes.contains(a)).collect()).collect()
}
