//! Turns a plan into placements of the inputs of a program and of values at module boundaries.
//!
//! The graph does not change: the placements are a table beside it ([`Annotations`]), which
//! [`propagate`](mod@crate::propagate) reads.
//!
//! Before: `{"styles": {"layers.*.attention.wo": "RowwiseParallel"}}`. After, for each layer: the sharding `[256@tp, 64]` of
//! the input `layers.0.attention.wo.weight`, because of the entry.

use super::annotations::{Annotation, Annotations};
use super::axes::PlanAxes;
use super::boundaries::Site;
use super::cut::{Cuts, Indices};
use super::data_placements::data_placements;
use super::demands::{Demands, Want};
use super::direction::Direction;
use super::error::StyleError;
use super::like_parameters::{gradients_like_parameters, states_like_parameters};
use super::loss_parallel::loss_parallel;
use super::modules::{Role, Weight, weights};
use super::plan::{MeshDim, Plan};
use super::regions::Regions;
use super::storage::store;
use crate::canonicalize::canonicalize;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeSet, HashSet};
use tpc_ir::reason::Demand;
use tpc_ir::{AxisId, Graph, InputId, Mesh, Region, Sharding};

/// The placements that a plan demands of a logical graph on a mesh. The regions of the graph must include those at
/// whose boundaries the plan places values ([`boundary_regions`]).
///
/// # Errors
/// The plan does not fit the model or the mesh.
pub fn annotate(graph: &Graph, mesh: &Mesh, plan: &Plan) -> Result<Annotations, StyleError> {
    let PlanAxes { style: axis, data } = PlanAxes::of(mesh, plan)?;
    let weights = weights(graph);
    let demands = Demands::of(graph, plan, &weights, &graph.regions)?;
    let mut found = Annotations { mesh: mesh.clone(), ..Annotations::default() };
    // An axis of one rank is ignored; otherwise there would be collectives with a single member.
    if let Some(axis) = axis.filter(|&a| mesh.size(a) > 1) {
        let mut wanted_dims: Vec<(NodeIndex, Vec<usize>)> = demands
            .directions
            .iter()
            .map(|(name, (direction, _))| (weights[name].input, features(&weights[name], *direction)))
            .collect();
        wanted_dims.sort_unstable();
        let mut indices = Indices::of(graph);
        let cuts = Cuts::new(graph, &mut indices, mesh.size(axis), &wanted_dims);
        if let Some(refined) = cuts.split.and_then(|major| mesh.split(axis, major)) {
            found.mesh = refined;
        }
        let parts = found.mesh.parts(mesh.name(axis));
        for (parameter, (direction, entry)) in &demands.directions {
            let sharding = parameter_sharding(graph, &weights[parameter], *direction, &cuts, &parts);
            let why = Demand::Plan(entry.clone()).into();
            found.inputs.insert(InputId::Parameter(parameter.clone()), Annotation { sharding, why });
        }
        let site = Site { graph, cuts: &cuts, parts: &parts, demands: &demands, weights: &weights };
        for wanted in &demands.boundaries {
            site.constrain(wanted, &mut found)?;
        }
        if plan.loss_parallel {
            loss_parallel(graph, &weights, &parts, &mut found)?;
        }
    }
    states_like_parameters(graph, &mut found.inputs);
    if let Some((mode, _)) = &plan.data {
        data_placements(graph, mesh, mode, &data, &mut found);
    }
    store(graph, mesh, plan, &mut found)?;
    let stored = data.shard.filter(|_| plan.data.as_ref().is_some_and(|(mode, _)| mode.shards_parameters()));
    let split = |axis: AxisId| found.mesh.parts(mesh.name(axis));
    let listed = plan.storage.iter().flat_map(|entry| entry.dims.iter().flatten()).filter_map(|name| mesh.axis(name));
    let cutting: BTreeSet<AxisId> = axis.into_iter().chain(stored).chain(listed).collect();
    let cutting: Vec<AxisId> = cutting.into_iter().filter(|&a| mesh.size(a) > 1).flat_map(split).collect();
    gradients_like_parameters(graph, &cutting, &mut found);
    Ok(found)
}

/// Applies a plan, or one style for the whole module, to a captured program along one dimension of a device mesh, as in
/// PyTorch. Returns the canonical program and the placements that the plan demands. `tp_mesh_dim` is a name or a
/// position (negative from the end). Without it, styles shard along the axis of the plan, otherwise along the axis
/// named `tp`, otherwise along the only axis.
///
/// The canonical program keeps the values at module boundaries at which the plan places values. It drops all other
/// boundaries.
///
/// # Errors
/// Those of [`annotate`] and [`boundary_regions`]. In addition, the mesh does not have the dimension.
pub fn parallelize_module(
    module: &Graph,
    device_mesh: &Mesh,
    parallelize_plan: impl Into<Plan>,
    tp_mesh_dim: Option<MeshDim>,
) -> Result<(Graph, Annotations), StyleError> {
    let mut plan: Plan = parallelize_plan.into();
    plan.axis = tp_mesh_dim.or(plan.axis);
    let canonical = |regions| canonicalize(&module.clone().with_regions(regions));
    let mut logical = canonical(Vec::new());
    let regions = boundary_regions(module, &logical, &plan)?;
    if !regions.is_empty() {
        logical = canonical(regions);
    }
    let annotations = annotate(&logical, device_mesh, &plan)?;
    Ok((logical, annotations))
}

/// The regions at whose boundaries a plan places values; empty for plans that only shard parameters. `captured` is the
/// program as it was recorded, whose shapes are those of the model, and `logical` is its canonical form. Canonicalizing
/// drops the boundaries that no region names, so the caller canonicalizes `captured` a second time, with these regions.
///
/// # Errors
/// The plan does not fit the model, or a boundary cannot be inferred.
pub fn boundary_regions(captured: &Graph, logical: &Graph, plan: &Plan) -> Result<Vec<Region>, StyleError> {
    let weights = weights(logical);
    let demands = Demands::of(logical, plan, &weights, &captured.regions)?;
    if demands.boundaries.is_empty() {
        return Ok(Vec::new());
    }
    let regions = Regions::of(captured);
    let (mut needed, mut seen) = (Vec::new(), HashSet::new());
    for wanted in &demands.boundaries {
        if !seen.insert((&wanted.path, wanted.side)) {
            continue;
        }
        let found = regions.find(&wanted.path, wanted.side);
        if found.is_empty() && matches!(wanted.want, Want::Layouts(_)) {
            return Err(wanted.unmarked());
        }
        needed.extend(found);
    }
    let mut unique: Vec<Region> = Vec::new();
    for region in needed {
        if !unique.contains(&region) {
            unique.push(region);
        }
    }
    Ok(unique)
}

/// The feature dimensions that are cut in a direction. By columns: the outputs of a linear, the hidden dimensions of a
/// table. By rows: the inputs of a linear, over which its product sums, or the rows of a table.
fn features(weight: &Weight, direction: Direction) -> Vec<usize> {
    match (weight.role, direction) {
        (Role::Linear | Role::Convolution | Role::Embedding, Direction::Rows) => weight.inner.clone(),
        (_, Direction::Columns) | (Role::Vector, _) => weight.outer.clone(),
    }
}

/// The placement of a weight that is cut in a direction.
fn parameter_sharding(graph: &Graph, weight: &Weight, direction: Direction, cuts: &Cuts, axes: &[AxisId]) -> Sharding {
    let mut sharding = Sharding::replicated(graph.node(weight.input).types[0].rank());
    for dim in features(weight, direction) {
        let taken = |axis: &AxisId| sharding.dims.iter().flatten().any(|other| other == axis);
        let axes = cuts.axes(weight.input, dim, axes);
        if !axes.iter().any(taken) {
            sharding.dims[dim] = axes;
        }
    }
    sharding
}
