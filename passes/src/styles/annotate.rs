//! From a plan to placements of the program's inputs.

use super::cut::{Cuts, Indices, Part};
use super::modules::{Role, Weight, levels, module_of, paths, weights};
use super::pattern::{matches, nearest};
use super::plan::{DataMode, Plan, Style};
use crate::propagate::{Annotation, Annotations};
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tpc_ir::{AxisId, Graph, InputKind, MapFn, Mesh, Op, Sharding, Value};

/// Why a plan does not fit a model or a mesh.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StyleError {
    /// A path that matches no module.
    #[error("plan entry `{path}` matches no module; the nearest are {}", .nearest.join(", "))]
    NoModule {
        /// The path.
        path: String,
        /// Existing ones like it.
        nearest: Vec<String>,
    },
    /// A path that matches modules without anything the style can work on.
    #[error("plan entry `{path}` ({style}) finds nothing to parallelize in `{module}`: it works on {accepts}")]
    Nothing {
        /// The plan entry.
        path: String,
        /// The style.
        style: String,
        /// The module.
        module: String,
        /// What the style accepts.
        accepts: &'static str,
    },
    /// One parameter under two styles.
    #[error("parameter `{parameter}` is claimed by two plan entries, `{first}` and `{second}`: remove one of them")]
    Twice {
        /// The parameter.
        parameter: String,
        /// One entry.
        first: String,
        /// The other.
        second: String,
    },
    /// The plan's axis is not in the mesh.
    #[error(
        "the plan shards along the axis `{axis}`, but the mesh has no such axis ({mesh}): add `{axis}=N` to the mesh or change the plan's axis"
    )]
    NoAxis {
        /// The axis.
        axis: String,
        /// The mesh.
        mesh: String,
    },
    /// An axis that nothing uses.
    #[error(
        "the mesh axis `{axis}` is not used by the plan: every rank along it would compute the same; remove it from the mesh or give it a data mode"
    )]
    UnusedAxis {
        /// The axis.
        axis: String,
    },
}

/// How a weight is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Columns,
    Rows,
}

/// The placements that a plan gives a logical graph's inputs on a mesh.
///
/// # Errors
/// If the plan does not fit the model or the mesh.
pub fn annotate(graph: &Graph, mesh: &Mesh, plan: &Plan) -> Result<Annotations, StyleError> {
    let axis = style_axis(mesh, plan)?;
    let data = match &plan.data {
        Some((DataMode::Ddp, name)) if !mesh.axes().is_empty() => Some(find_axis(mesh, name)?),
        _ => None,
    };
    if !plan.allow_unused_axes
        && let Some(unused) = mesh.axis_ids().find(|a| Some(*a) != axis && Some(*a) != data)
    {
        return Err(StyleError::UnusedAxis { axis: mesh.name(unused).into() });
    }
    let all = weights(graph);
    let ways = ways(graph, plan, &all)?;
    let mut inputs: HashMap<String, Annotation> = HashMap::new();
    let mut fine = mesh.clone();
    let mut results = HashMap::new();
    // An axis of one rank cuts nothing: no collective of one.
    if let Some(axis) = axis.filter(|&a| mesh.size(a) > 1) {
        let groups: Vec<(NodeIndex, Vec<usize>)> =
            ways.iter().map(|(name, (way, _))| (all[name].input, features(&all[name], *way))).collect();
        let mut indices = Indices::of(graph);
        let cuts = Cuts::new(graph, &mut indices, mesh.size(axis), &groups);
        if let Some(refined) = cuts.split.and_then(|major| mesh.split(axis, major)) {
            fine = refined;
        }
        let name = mesh.name(axis);
        let parts = fine.parts(name);
        results = sequence_results(graph, plan, &all, &ways, cuts.indices(), &parts);
        for (parameter, (way, entry)) in &ways {
            let weight = &all[parameter];
            let sharding = cut(graph, weight, *way, &cuts, &fine, name);
            inputs.insert(parameter.clone(), Annotation { sharding, why: entry.clone() });
        }
    }
    states_like_parameters(graph, &mut inputs);
    if let Some(data) = data.filter(|&a| mesh.size(a) > 1) {
        let axes = fine.parts(mesh.name(data));
        for (node, kind, name) in graph.inputs() {
            let ty = &graph.node(node).types[0];
            if kind == InputKind::Data && ty.rank() > 0 {
                let mut sharding = Sharding::replicated(ty.rank());
                sharding.dims[0].clone_from(&axes);
                let why = format!("the batch is sharded over `{}`", mesh.name(data));
                inputs.insert(name.to_string(), Annotation { sharding, why: why.into() });
            }
        }
    }
    Ok(Annotations { mesh: fine, inputs, results })
}

fn find_axis(mesh: &Mesh, name: &str) -> Result<AxisId, StyleError> {
    mesh.axis(name).ok_or_else(|| StyleError::NoAxis { axis: name.into(), mesh: mesh.to_string() })
}

/// The axis that styles shard along: named by the plan, else `tp`, else the only one left.
fn style_axis(mesh: &Mesh, plan: &Plan) -> Result<Option<AxisId>, StyleError> {
    if plan.styles.is_empty() {
        return Ok(None);
    }
    if mesh.ranks() == 1 && mesh.axes().is_empty() {
        return Ok(None); // one rank needs no axes
    }
    if let Some(name) = &plan.axis {
        return find_axis(mesh, name).map(Some);
    }
    let data = plan.data.as_ref().map(|(_, name)| name.as_str());
    let free: Vec<AxisId> = mesh.axis_ids().filter(|&a| Some(mesh.name(a)) != data).collect();
    match (mesh.axis("tp"), free.as_slice()) {
        (Some(tp), _) => Ok(Some(tp)),
        (None, [only]) => Ok(Some(*only)),
        _ => Err(StyleError::NoAxis { axis: "tp".into(), mesh: mesh.to_string() }),
    }
}

type Ways = BTreeMap<String, (Way, Arc<str>)>;

/// For every weight that a style claims: how it is cut and which entry says so.
fn ways(graph: &Graph, plan: &Plan, all: &BTreeMap<String, Weight>) -> Result<Ways, StyleError> {
    let modules = paths(graph);
    let mut claimed = Ways::new();
    for (pattern, style) in &plan.styles {
        let matched: Vec<&String> = modules.iter().filter(|m| matches(pattern, m)).collect();
        if matched.is_empty() {
            let nearest = nearest(pattern, modules.iter().map(String::as_str));
            return Err(StyleError::NoModule { path: pattern.clone(), nearest });
        }
        for module in matched {
            if matches!(style, Style::Sequence { .. }) && all.values().any(|w| vector_of(w, module)) {
                continue;
            }
            let mut found = claims(graph, module, style, all).into_iter().peekable();
            if found.peek().is_none() {
                let accepts = match style {
                    Style::Colwise | Style::Rowwise => "a linear, an embedding or a convolution",
                    Style::Pairwise | Style::PairwiseSequence { .. } => "pairs of linears that follow each other",
                    Style::Sequence { .. } => "norms and other modules of vectors",
                    Style::WholeModel { .. } => "linears and embeddings",
                };
                return Err(StyleError::Nothing {
                    path: pattern.clone(),
                    style: style.name().into(),
                    module: module.clone(),
                    accepts,
                });
            }
            let entry = entry(pattern, style);
            for (name, way) in found {
                if let Some((_, first)) = claimed.insert(name.clone(), (way, entry.clone()))
                    && first != entry
                {
                    let (first, second) = (first.to_string(), entry.to_string());
                    return Err(StyleError::Twice { parameter: name, first, second });
                }
            }
        }
    }
    Ok(claimed)
}

/// How a plan entry is called in reasons and errors.
fn entry(pattern: &str, style: &Style) -> Arc<str> {
    match style {
        Style::WholeModel { sequence_dim: None } => "plan tp".into(),
        Style::WholeModel { .. } => "plan tp-sp".into(),
        _ => format!("plan \"{pattern}\"").into(),
    }
}

/// Whether a weight is a vector of the module, a norm's gain for example.
fn vector_of(weight: &Weight, module: &str) -> bool {
    weight.role == Role::Vector && module_of(&weight.name) == module
}

/// The results that sequence styles shard along the sequence: what row-wise products and look-ups of
/// their pairs give, and what norms give.
fn sequence_results(
    graph: &Graph,
    plan: &Plan,
    all: &BTreeMap<String, Weight>,
    ways: &Ways,
    indices: &Indices,
    axes: &[AxisId],
) -> HashMap<NodeIndex, Annotation> {
    let modules = paths(graph);
    let mut results = HashMap::new();
    for (pattern, style) in &plan.styles {
        let Some(dim) = style.sequence_dim() else { continue };
        let why: Arc<str> = format!("{}: sharded along the sequence", entry(pattern, style)).into();
        let data = graph.inputs().filter(|(_, kind, _)| *kind == InputKind::Data);
        let sequence: Vec<usize> = data.filter_map(|(n, _, _)| layout_index(graph, n, dim, indices)).collect();
        let matched: Vec<&String> = modules.iter().filter(|m| matches(pattern, m)).collect();
        for weight in all.values() {
            let entry = entry(pattern, style);
            let rows = ways.get(&weight.name).is_some_and(|w| w.0 == Way::Rows && w.1 == entry);
            let norm = matches!(style, Style::Sequence { .. }) && matched.iter().any(|m| vector_of(weight, m));
            let ty = &graph.node(weight.user).types[0];
            let at = (0..ty.rank()).find(|&d| sequence.contains(&indices.of_dim(weight.user, d)));
            if let (true, Some(at)) = (rows || norm, at) {
                let mut sharding = Sharding::replicated(ty.rank());
                sharding.dims[at].extend(axes);
                results.insert(weight.user, Annotation { sharding, why: why.clone() });
            }
        }
    }
    results
}

/// The index of a dimension as the model counts it; extents of 1 have none.
fn layout_index(graph: &Graph, input: NodeIndex, dim: usize, indices: &Indices) -> Option<usize> {
    let tpc_ir::Op::Input { layout, .. } = &graph.node(input).op else { return None };
    let shape = &graph.node(input).types[0].shape;
    let (mut at, mut d) = (0, 0);
    while d < layout.len() {
        let (start, mut extent) = (at, 1);
        while extent < layout[d] {
            extent *= shape.get(at)?;
            at += 1;
        }
        if d == dim {
            return (at > start).then(|| indices.of_dim(input, start));
        }
        d += 1;
    }
    None
}

/// The parameters of a module that a style cuts.
fn claims(graph: &Graph, module: &str, style: &Style, all: &BTreeMap<String, Weight>) -> Vec<(String, Way)> {
    let with_bias = |weight: &Weight, way: Way| {
        let home = module_of(&weight.name).to_string();
        let bias = all.values().filter(move |b| {
            way == Way::Columns && b.role == Role::Vector && module_of(&b.name) == home && adds_to(graph, b, weight)
        });
        let mut both = vec![(weight.name.clone(), way)];
        both.extend(bias.map(|b| (b.name.clone(), Way::Columns)));
        both
    };
    let direct = |way: Way| {
        let own = all.values().filter(|w| w.role != Role::Vector && module_of(&w.name) == module);
        own.flat_map(|w| with_bias(w, way)).collect()
    };
    match style {
        Style::Colwise => direct(Way::Columns),
        Style::Rowwise => direct(Way::Rows),
        Style::Sequence { .. } => Vec::new(),
        Style::WholeModel { .. } => {
            let mut found = claims(graph, "", &Style::Pairwise, all);
            let linears: Vec<&Weight> = all.values().filter(|w| w.role == Role::Linear).collect();
            let levelled = levels(graph, &linears);
            let last = levelled.iter().map(|l| l.1).max().unwrap_or(0);
            let logits = levelled.iter().filter(|l| l.1 == last && last % 2 == 1 && last > 1);
            found.extend(logits.flat_map(|(w, _)| with_bias(w, Way::Columns)));
            let rows = |w: &&Weight| (graph.node(w.input).types[0].shape[0], std::cmp::Reverse(w.input));
            let table = all.values().filter(|w| w.role == Role::Embedding).max_by_key(rows);
            found.extend(table.map(|w| (w.name.clone(), Way::Rows)));
            found
        }
        Style::Pairwise | Style::PairwiseSequence { .. } => {
            let below = |name: &str| module.is_empty() || name.strip_prefix(module).is_some_and(|r| r.starts_with('.'));
            let linears: Vec<&Weight> = all.values().filter(|w| w.role == Role::Linear && below(&w.name)).collect();
            let levelled = levels(graph, &linears);
            let last = levelled.iter().map(|l| l.1).max().unwrap_or(0);
            let ways = levelled.into_iter().filter(|&(_, level)| level % 2 == 0 || level < last);
            ways.flat_map(|(w, level)| with_bias(w, if level % 2 == 1 { Way::Columns } else { Way::Rows })).collect()
        }
    }
}

/// Whether a vector is added to the product of a weight, or to the sum of its taps' products.
fn adds_to(graph: &Graph, vector: &Weight, weight: &Weight) -> bool {
    let mut open = vec![vector.user];
    while let Some(node) = open.pop() {
        let operands = graph.operands(node);
        if operands.iter().any(|v| v.node == weight.user) {
            return true;
        }
        let sum = |v: &&Value| matches!(graph.op(**v), Op::Map { f: MapFn::Add, .. });
        if weight.role == Role::Convolution {
            open.extend(operands.iter().filter(sum).map(|v| v.node));
        }
    }
    false
}

/// The feature dimensions that a way cuts: of a linear its outputs or inputs, of a table its hidden
/// dimensions or its rows.
fn features(weight: &Weight, way: Way) -> Vec<usize> {
    match (weight.role, way) {
        (Role::Linear | Role::Convolution | Role::Embedding, Way::Rows) => weight.inner.clone(),
        (_, Way::Columns) | (Role::Vector, _) => weight.outer.clone(),
    }
}

fn cut(graph: &Graph, weight: &Weight, way: Way, cuts: &Cuts, mesh: &Mesh, axis: &str) -> Sharding {
    let mut sharding = Sharding::replicated(graph.node(weight.input).types[0].rank());
    let parts = mesh.parts(axis);
    for dim in features(weight, way) {
        for part in cuts.parts(weight.input, dim) {
            match part {
                Part::Whole => sharding.dims[dim].extend(&parts),
                Part::Major(_) => sharding.dims[dim].extend(parts.first()),
                Part::Minor(_) => sharding.dims[dim].extend(parts.last()),
            }
        }
    }
    sharding
}

/// Optimizer state of a parameter's shape lies like the parameter.
fn states_like_parameters(graph: &Graph, inputs: &mut HashMap<String, Annotation>) {
    let shapes: HashMap<&str, &Vec<usize>> =
        graph.inputs().map(|(n, _, name)| (name, &graph.node(n).types[0].shape)).collect();
    for (node, kind, name) in graph.inputs() {
        let Some((parameter, _)) = name.rsplit_once('/').filter(|_| kind == InputKind::State) else { continue };
        let same = shapes.get(parameter) == Some(&&graph.node(node).types[0].shape);
        if let Some(annotation) = inputs.get(parameter).filter(|_| same).cloned() {
            inputs.insert(name.to_string(), annotation);
        }
    }
}
