//! Stores inputs as a plan says, input by input: what remains where no style and no data mode places them, as in plans that
//! the planner completed ([`planner::storage`](crate::planner::storage)).
//!
//! Before: `{"placements": {"parameters": {"layers.*.w1.weight": ["dp", "tp"]}}}`.
//! After: an annotation `f32[4096@dp, 11008@tp]` for the weight of every layer.

use super::annotations::{Annotation, Annotations};
use super::error::StyleError;
use super::layout::factored;
use super::pattern::nearest;
use super::plan::Plan;
use super::stored::{StoragePlan, StoredInputs};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::reason::{Demand, Entry};
use tpc_ir::{AxisId, Graph, InputId, Mesh, ModulePath, Op, Segment, Sharding};

/// Annotates the inputs that the plan stores.
///
/// # Errors
/// A pattern that matches no parameter, an input with another number of dimensions or that something else places, an
/// axis that the mesh does not have or that cuts two dimensions.
pub(super) fn store(graph: &Graph, mesh: &Mesh, plan: &Plan, found: &mut Annotations) -> Result<(), StyleError> {
    // A single rank has no axes and stores everything whole.
    let parameters: Vec<&ModulePath> = graph.inputs().filter_map(|(_, id)| id.parameter()).collect();
    for entry in plan.storage.iter().filter(|_| !mesh.axes().is_empty()) {
        let path = entry.path().to_string();
        let matcher = entry.matcher().map_err(|problem| StyleError::Pattern { path: path.clone(), problem })?;
        if matcher.misses(&parameters) {
            return Err(StyleError::NoParameter { nearest: nearest(&path, parameters.iter().copied()), path });
        }
        for (node, id) in graph.inputs().filter(|(_, id)| matcher.stores(id)) {
            let Op::Input { layout, .. } = &graph.node(node).op else { continue };
            if matches!(id, InputId::State { .. }) && layout.len() != entry.dims.len() {
                continue;
            }
            let wrong = || StyleError::Storage {
                path: path.clone(),
                input: id.shown(),
                shape: layout.clone(),
                dims: entry.dims.len(),
            };
            let shape = &graph.node(node).types[0].shape;
            let ranges = factored(layout, shape).filter(|ranges| ranges.len() == entry.dims.len()).ok_or_else(wrong)?;
            let mut sharding = Sharding::replicated(shape.len());
            let mut cutting: HashSet<AxisId> = HashSet::new();
            for (names, range) in entry.dims.iter().zip(&ranges) {
                for name in names {
                    let axis = mesh.axis(name);
                    let axis = axis.ok_or_else(|| StyleError::NoAxis { axis: name.clone(), mesh: mesh.to_string() })?;
                    if !cutting.insert(axis) {
                        return Err(StyleError::StorageAxis { path, axis: name.clone() });
                    }
                    // A dimension of one element has no part for a second rank.
                    if !range.is_empty() && mesh.size(axis) > 1 {
                        sharding.dims[range.start].extend(found.mesh.parts(name));
                    }
                }
            }
            if found.inputs.get(id).is_some_and(|placed| placed.sharding != sharding) {
                return Err(StyleError::StoredTwice { path, input: id.shown() });
            }
            let why = Demand::Plan(Entry::of(&path)).into();
            found.inputs.insert(id.clone(), Annotation { sharding, why });
        }
    }
    Ok(())
}

/// The entries that store inputs at the placements of a placed graph: one for all layers where these agree. An input that
/// every rank stores whole needs no entry.
pub fn listed(graph: &Graph, placements: &HashMap<InputId, Sharding>) -> Vec<StoragePlan> {
    let stored = |id: &InputId, node: NodeIndex| {
        let Op::Input { layout, .. } = &graph.node(node).op else { return Vec::new() };
        let whole = Sharding::replicated(graph.node(node).types[0].rank());
        let at = placements.get(id).unwrap_or(&whole);
        let ranges = factored(layout, &graph.node(node).types[0].shape).unwrap_or_default();
        let axes = |range: &std::ops::Range<usize>| at.dims.get(range.start).filter(|_| !range.is_empty());
        ranges.iter().map(|range| axes(range).map_or(Vec::new(), |axes| names(&graph.mesh, axes))).collect::<Vec<_>>()
    };
    let mut all: Vec<(&InputId, Vec<Vec<String>>)> = graph.inputs().map(|(node, id)| (id, stored(id, node))).collect();
    // The states of a parameter are stored like the first of them with as many dimensions.
    let mut first: HashMap<(&ModulePath, usize), Vec<Vec<String>>> = HashMap::new();
    for (id, dims) in &mut all {
        if let InputId::State { owner, .. } = id {
            dims.clone_from(first.entry((owner, dims.len())).or_insert_with(|| dims.clone()));
        }
    }
    let is_cut = |dims: &[Vec<String>]| dims.iter().any(|axes| !axes.is_empty());
    let mut entries: Vec<StoragePlan> = Vec::new();
    for (id, dims) in all.iter().filter(|(id, dims)| placements.contains_key(id) && is_cut(dims)) {
        let entry = |path: String| {
            let inputs = match id {
                InputId::Parameter(_) => StoredInputs::Parameters(path),
                InputId::State { .. } => StoredInputs::States(path),
                InputId::Data(name) => StoredInputs::Data(name.to_string()),
                _ => return None,
            };
            Some(StoragePlan { inputs, dims: dims.clone() })
        };
        let agrees = |entry: &StoragePlan| {
            let Ok(matcher) = entry.matcher() else { return false };
            let alike = |(other, at): &(&InputId, Vec<Vec<String>>)| {
                !matcher.stores(other) || at.len() != dims.len() || at == dims && placements.contains_key(other)
            };
            all.iter().all(alike)
        };
        let path = id.path().cloned().unwrap_or_default();
        let (Some(all_alike), Some(alone)) = (entry(any_index(&path)), entry(path.to_string())) else { continue };
        if entries.contains(&all_alike) {
            continue;
        }
        let found = if agrees(&all_alike) { all_alike } else { alone };
        if !entries.contains(&found) {
            entries.push(found);
        }
    }
    entries
}

/// The names by which a plan knows axes: of an axis that the compiler splits, if all of its parts are there.
fn names(mesh: &Mesh, axes: &[AxisId]) -> Vec<String> {
    let mut names: Vec<String> = axes.iter().map(|&axis| mesh.user_name(axis).to_string()).collect();
    names.dedup();
    names.retain(|name| mesh.parts(name).iter().all(|part| axes.contains(part)));
    names
}

/// The pattern of a path in which every index of a list may be another one.
fn any_index(path: &ModulePath) -> String {
    let segment = |segment: &Segment| match segment {
        Segment::Index(_) => "*".to_string(),
        name => ModulePath::default().with(name.clone()).to_string(),
    };
    path.segments().iter().map(segment).collect::<Vec<_>>().join(".")
}
