//! From a plan to placements: of the program's inputs, and of the values at module boundaries.

use super::cut::{Cuts, Indices, Part};
use super::data::{DataMode, sharded};
use super::layout::{Layout, OnAxes, factored};
use super::modules::{Role, Weight, paths, weights};
use super::pattern::{Nearest, Pattern, PatternError, nearest};
use super::plan::{Entry, MeshDim, Plan};
use super::prepare::Prepare;
use super::regions::{Regions, ancestors};
use super::style::{Module, Placements, Side, Way};
use crate::canonicalize::canonicalize;
use crate::propagate::{Annotation, Annotations, Constraint, Storage};
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use tpc_ir::mesh::{MeshError, is_name};
use tpc_ir::quote;
use tpc_ir::reason::{Axes, Cause, Demand, Reason};
use tpc_ir::{
    AxisId, Boundary, Graph, InputId, InputKind, MapFn, Mesh, ModulePath, Op, OutputKind, Phase, Region, Sharding,
    Type, Value,
};

/// Why a plan does not fit a model or a mesh.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StyleError {
    /// A path that matches no module.
    #[error("plan entry `{}` matches no module{}", quote::cut(.path), Nearest(.nearest))]
    NoModule {
        /// The path.
        path: String,
        /// Existing ones like it.
        nearest: Vec<String>,
    },
    /// A path that is no pattern.
    #[error("plan entry `{}` is no path pattern: {problem}", quote::cut(.path))]
    Pattern {
        /// The path.
        path: String,
        /// What is wrong with it.
        problem: PatternError,
    },
    /// A path that matches modules without anything the style can work on.
    #[error(
        "plan entry `{}` ({style}) finds nothing to parallelize in `{module}`{}: {because}",
        quote::cut(.path),
        .kind.as_ref().map_or(String::new(), |k| format!(", which is {k}"))
    )]
    Nothing {
        /// The plan entry.
        path: String,
        /// The style.
        style: String,
        /// The module.
        module: ModulePath,
        /// The module's type, where it is known.
        kind: Option<String>,
        /// What is in the way.
        because: Box<Because>,
    },
    /// A path that matches a module whose parameters belong to another one.
    #[error(
        "plan entry `{}` names `{module}`{}, which shares its weights: `{}` is `{}` under another name (tied), and one style places both; remove this entry and name `{}`{}",
        quote::cut(.path),
        .kind.as_ref().map_or(String::new(), |k| format!(", {k}")),
        .same.parameter,
        .same.shared,
        .same.shared.holder(),
        rows_of_table(.same.table)
    )]
    Tied {
        /// The plan entry.
        path: String,
        /// The module that it names.
        module: ModulePath,
        /// The module's type, where it is known.
        kind: Option<String>,
        /// What it shares.
        same: Box<Same>,
    },
    /// A path that matches a module that the program has nothing of.
    #[error(
        "plan entry `{}` names `{module}`{}, {}",
        quote::cut(.path),
        .kind.as_ref().map_or(String::new(), |k| format!(", {k}")),
        absence(.module, .parameters)
    )]
    Absent {
        /// The plan entry.
        path: String,
        /// The module.
        module: ModulePath,
        /// The module's type, where it is known.
        kind: Option<String>,
        /// The parameters that it holds.
        parameters: Vec<ModulePath>,
    },
    /// A mesh of more dimensions than a prepare function takes.
    #[error("device_mesh has dims {dims} but expected to be 1 for {what}.")]
    MeshDims {
        /// Dimensions of the mesh.
        dims: usize,
        /// `input` or `output`.
        what: &'static str,
    },
    /// No logits that are sharded over the vocabulary.
    #[error(
        "loss_parallel needs logits that are sharded over the vocabulary: give the model's last linear the style ColwiseParallel"
    )]
    LossParallel,
    /// A boundary that is neither marked nor shown by parameters.
    #[error(
        "plan entry `{}` places {side} of `{module}`, but where that module begins and ends cannot be seen from its parameters: mark it in the model, `tpc::scope(\"{scope}\", inputs, |inputs| …)` around the module's call",
        quote::cut(.entry)
    )]
    Boundary {
        /// The plan entry.
        entry: String,
        /// `arguments` or `results`.
        side: &'static str,
        /// The module.
        module: ModulePath,
        /// The path to give to `tpc::scope`.
        scope: ModulePath,
    },
    /// A layout for an argument or result that the module does not have.
    #[error(
        "plan entry `{}` gives a layout to {side} {position} of `{module}`, which has {count}: leave that layout out",
        quote::cut(.entry)
    )]
    Position {
        /// The plan entry.
        entry: String,
        /// `argument` or `result`.
        side: &'static str,
        /// Which, from 0.
        position: usize,
        /// The module.
        module: ModulePath,
        /// How many there are.
        count: usize,
    },
    /// A layout that shards a dimension that the tensor does not have.
    #[error(
        "plan entry `{}` wants {layout} for {tensor} of `{module}`, which has the shape {shape:?}: there is no such dimension, {}",
        quote::cut(.entry),
        layouts_of(.shape.len())
    )]
    Dimension {
        /// The plan entry.
        entry: String,
        /// The layout.
        layout: Layout,
        /// Which, from 0: `argument 0`, `result 1`.
        tensor: String,
        /// The module.
        module: ModulePath,
        /// Its shape as the model knows it.
        shape: Vec<usize>,
    },
    /// One parameter under two styles.
    #[error(
        "parameter `{parameter}` is claimed by two plan entries, `{}` ({}) and `{}` ({}): remove one of them",
        quote::cut(.first), .ways[0], quote::cut(.second), .ways[1]
    )]
    Twice {
        /// The parameter.
        parameter: ModulePath,
        /// One entry.
        first: String,
        /// The other.
        second: String,
        /// How each of them cuts it.
        ways: [Way; 2],
    },
    /// A text that names no axis of any mesh.
    #[error("the plan: {0}")]
    AxisName(MeshError),
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
    /// A position that the mesh does not have.
    #[error("the plan shards along dimension `{index}` of the mesh, which has {dims} ({mesh})")]
    NoDimension {
        /// The position; negative from the end.
        index: isize,
        /// Dimensions of the mesh.
        dims: usize,
        /// The mesh.
        mesh: String,
    },
    /// One axis for two purposes.
    #[error("the plan uses the mesh axis `{axis}` twice, for {first} and for {second}: give each an axis of its own")]
    AxisTwice {
        /// The axis.
        axis: String,
        /// One purpose.
        first: &'static str,
        /// The other.
        second: &'static str,
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

/// Why a program has nothing of a module, and what to do.
fn absence(module: &ModulePath, parameters: &[ModulePath]) -> String {
    match parameters {
        [] => format!(
            "which has no parameters, and nothing shows where it begins and ends: remove the entry, or mark the module's call in the model with `tpc::scope(\"{module}\", inputs, |inputs| …)`"
        ),
        some => format!("whose parameters ({}) the program does not use: remove the entry", listed(some)),
    }
}

/// Which style of a table cuts what a head with the same weights computes.
fn rows_of_table(is_table: bool) -> &'static str {
    match is_table {
        true => ": RowwiseParallel there cuts the rows of the embedding, which are the outputs of the head",
        false => "",
    }
}

/// The layouts that a tensor of that rank can have.
fn layouts_of(rank: usize) -> String {
    match rank {
        0 => "and a single number is only ever Replicate".into(),
        1 => "use Shard(0) or Replicate".into(),
        rank => format!("use Shard(0) to Shard({}) or Replicate", rank - 1),
    }
}

/// A parameter that has two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Same {
    /// The parameter as the module that a plan names calls it.
    pub parameter: ModulePath,
    /// The same parameter as the program calls it.
    pub shared: ModulePath,
    /// Whether it is the table of an embedding.
    pub table: bool,
}

/// Why a style finds nothing in a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// The style works on something else.
    WorksOn(String),
    /// The forward pass does not use any of these parameters, which are all that the module has.
    Unused(Vec<ModulePath>),
    /// A matrix that the program does not multiply with as it is, and the operation that reads it.
    NoProduct {
        /// The matrix.
        parameter: ModulePath,
        /// The operation.
        operation: String,
    },
    /// A convolution whose output channels have one input channel each.
    Depthwise,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Because::WorksOn(accepts) => write!(f, "it works on {accepts}"),
            Because::Unused(parameters) => {
                write!(f, "the forward pass does not use its parameters ({}); remove the entry", listed(parameters))
            }
            Because::NoProduct { parameter, operation } => write!(
                f,
                "`{parameter}` is read by `{operation}`, and the style cuts only what enters a product as it is; remove the entry, and every rank keeps the whole of it"
            ),
            Because::Depthwise => write!(
                f,
                "each of its output channels has one input channel, so there are no input channels to cut; ColwiseParallel cuts its output channels"
            ),
        }
    }
}

impl Because {
    /// What is in the way of a style that accepts something.
    fn of(graph: &Graph, all: &BTreeMap<ModulePath, Weight>, module: &ModulePath, accepts: &str) -> Self {
        let parameters = graph.inputs().filter_map(|(_, id)| id.parameter()).filter(|name| name.is_below(module));
        let parameters: Vec<ModulePath> = parameters.cloned().collect();
        if !parameters.is_empty() && !parameters.iter().any(|name| all.contains_key(name)) {
            return Because::Unused(parameters);
        }
        let own = || all.values().filter(|w| w.name.holder() == *module);
        let is_matrix = |w: &&Weight| matches!(graph.op(w.input.into()), Op::Input { layout, .. } if layout.len() > 1);
        if let Some(matrix) = own().filter(|w| w.role == Role::Vector).find(is_matrix) {
            let operation = graph.node(matrix.user).op.name();
            return Because::NoProduct { parameter: matrix.name.clone(), operation };
        }
        if own().any(|w| w.role == Role::Convolution && w.inner.is_empty()) {
            return Because::Depthwise;
        }
        Because::WorksOn(accepts.into())
    }
}

/// The first of some names.
fn listed(names: &[ModulePath]) -> String {
    const MOST: usize = 3;
    let shown = names.iter().take(MOST).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{shown} and {} more", names.len() - MOST) } else { shown }
}

/// The placements that a plan gives a logical graph on a mesh. Boundaries at which the plan places
/// values are among the graph's regions ([`boundary_regions`]).
///
/// # Errors
/// If the plan does not fit the model or the mesh.
pub fn annotate(graph: &Graph, mesh: &Mesh, plan: &Plan) -> Result<Annotations, StyleError> {
    let axis = style_axis(mesh, plan)?;
    let data = data_axes(mesh, plan)?;
    if let Some(both) = axis.filter(|a| data.batch.contains(a)) {
        let axis = mesh.name(both).into();
        return Err(StyleError::AxisTwice { axis, first: "its styles", second: "its data mode" });
    }
    if !plan.allow_unused_axes
        && let Some(unused) = mesh.axis_ids().find(|a| Some(*a) != axis && !data.batch.contains(a))
    {
        return Err(StyleError::UnusedAxis { axis: mesh.name(unused).into() });
    }
    let all = weights(graph);
    let claims = claims(graph, plan, &all, &graph.regions)?;
    let mut found = Annotations { mesh: mesh.clone(), ..Annotations::default() };
    // An axis of one rank cuts nothing: no collective of one.
    if let Some(axis) = axis.filter(|&a| mesh.size(a) > 1) {
        let mut groups: Vec<(NodeIndex, Vec<usize>)> =
            claims.ways.iter().map(|(name, (way, _))| (all[name].input, features(&all[name], *way))).collect();
        groups.sort_unstable();
        let mut indices = Indices::of(graph);
        let cuts = Cuts::new(graph, &mut indices, mesh.size(axis), &groups);
        if let Some(refined) = cuts.split.and_then(|major| mesh.split(axis, major)) {
            found.mesh = refined;
        }
        let parts = found.mesh.parts(mesh.name(axis));
        for (parameter, (way, entry)) in &claims.ways {
            let sharding = cut(graph, &all[parameter], *way, &cuts, &parts);
            let why = Demand::Plan(entry.clone()).into();
            found.inputs.insert(InputId::Parameter(parameter.clone()), Annotation { sharding, why });
        }
        let site = Site { graph, cuts: &cuts, parts: &parts, claims: &claims, all: &all };
        for wanted in &claims.boundaries {
            site.constrain(wanted, &mut found)?;
        }
        if plan.loss_parallel {
            site.loss_parallel(&mut found)?;
        }
    }
    states_like_parameters(graph, &mut found.inputs);
    data_placements(graph, mesh, plan, &data, &mut found);
    let stored = data.shard.filter(|_| plan.data.as_ref().is_some_and(|(mode, _)| mode.shards_parameters()));
    let split = |axis: AxisId| found.mesh.parts(mesh.name(axis));
    let cutting = axis.into_iter().chain(stored).filter(|&a| mesh.size(a) > 1).flat_map(split).collect();
    gradients_like_parameters(graph, cutting, &mut found);
    Ok(found)
}

/// Applies a plan, or one style to the whole module, to a captured program along one dimension of a
/// device mesh: PyTorch's entry point. Gives the canonical program and what the plan demands of it.
/// `tp_mesh_dim` is a name or a position (negative from the end); without it styles shard along the
/// plan's axis, else the axis named `tp`, else the only one.
///
/// Module boundaries at which the plan places values keep a value of their own in the canonical
/// program; all others dissolve.
///
/// # Errors
/// As [`annotate`] and [`boundary_regions`]; a mesh without that dimension.
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

/// The regions at whose boundaries a plan places values; empty for plans that only cut parameters.
/// `captured` is the program as it was recorded, whose shapes are the model's own; canonicalizing it
/// with these regions keeps their values.
///
/// # Errors
/// If the plan does not fit the model; a boundary that cannot be inferred.
pub fn boundary_regions(captured: &Graph, logical: &Graph, plan: &Plan) -> Result<Vec<Region>, StyleError> {
    let all = weights(logical);
    let claims = claims(logical, plan, &all, &captured.regions)?;
    if claims.boundaries.is_empty() {
        return Ok(Vec::new());
    }
    let regions = Regions::of(captured);
    let (mut needed, mut seen) = (Vec::new(), HashSet::new());
    for wanted in &claims.boundaries {
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

/// The data axes of a plan on a mesh.
#[derive(Default)]
struct DataAxes {
    /// Those that shard the batch, major to minor.
    batch: Vec<AxisId>,
    /// The one that parameters or their states are sharded over.
    shard: Option<AxisId>,
}

fn data_axes(mesh: &Mesh, plan: &Plan) -> Result<DataAxes, StyleError> {
    let Some((mode, name)) = plan.data.as_ref().filter(|_| !mesh.axes().is_empty()) else {
        return Ok(DataAxes::default());
    };
    let shard = find_axis(mesh, name)?;
    let mut batch = vec![shard];
    if let DataMode::Hsdp { replicate_axis } = mode {
        let replicas = find_axis(mesh, replicate_axis)?;
        if replicas == shard {
            return Err(StyleError::AxisTwice { axis: name.clone(), first: "its replicas", second: "its shards" });
        }
        batch.insert(0, replicas);
    }
    Ok(DataAxes { batch, shard: Some(shard) })
}

/// Shards the batch, and parameters and states where the mode says so.
fn data_placements(graph: &Graph, mesh: &Mesh, plan: &Plan, data: &DataAxes, found: &mut Annotations) {
    let Some((mode, _)) = &plan.data else { return };
    let fine = |axis: &AxisId| found.mesh.parts(mesh.name(*axis));
    let batch: Vec<AxisId> = data.batch.iter().filter(|&&a| mesh.size(a) > 1).flat_map(fine).collect();
    let shard: Vec<AxisId> = data.shard.iter().filter(|&&a| mesh.size(a) > 1).flat_map(fine).collect();
    let names = |axes: &[AxisId]| Axes(axes.iter().map(|&a| mesh.name(a).into()).collect());
    let shapes = parameter_shapes(graph);
    let stored = names(&data.shard.into_iter().collect::<Vec<_>>());
    let why: Reason = Demand::Mode(mode.kind(), stored).into();
    let mut storage: HashMap<&ModulePath, Sharding> = HashMap::new();
    for (node, id) in graph.inputs() {
        let ty = &graph.node(node).types[0];
        let now = placement(found, id, ty);
        match id {
            InputId::Data(_) if !batch.is_empty() => {
                let Op::Input { layout, .. } = &graph.node(node).op else { continue };
                let rows = factored(layout, &ty.shape).and_then(|r| r.first().cloned()).filter(|r| !r.is_empty());
                let Some(rows) = rows else { continue };
                let mut sharding = now;
                // The data axes are the major ones: a style may shard the batch too.
                sharding.dims[rows.start].splice(0..0, batch.iter().copied());
                let placed = also(found, id, sharding, &Demand::Batch(names(&data.batch)).into());
                found.inputs.insert(id.clone(), placed);
            }
            InputId::Parameter(path) if !shard.is_empty() && mode.shards_state() => {
                let at = sharded(ty, &now, &shard, &found.mesh);
                if mode.shards_parameters() && at != now {
                    let placed = also(found, id, at.clone(), &why);
                    let style = found.inputs.insert(id.clone(), placed).is_some();
                    found.gathered.insert(id.clone(), Storage { compute: now, why: why.clone(), style });
                }
                storage.insert(path, at);
            }
            _ => {}
        }
    }
    if shard.is_empty() || !mode.shards_state() {
        return;
    }
    for (node, id) in graph.inputs() {
        let ty = &graph.node(node).types[0];
        let InputId::State { owner: parameter, .. } = id else { continue };
        if !shapes.contains_key(parameter) {
            continue; // kept by a module, and placed by what is written into it
        }
        let like = storage.get(parameter).filter(|_| shapes.get(parameter) == Some(&&ty.shape)).cloned();
        let sharding = like.unwrap_or_else(|| {
            let now = placement(found, id, ty);
            sharded(ty, &now, &shard, &found.mesh)
        });
        let placed = also(found, id, sharding, &why);
        found.inputs.insert(id.clone(), placed);
    }
}

/// The shapes of the parameters.
fn parameter_shapes(graph: &Graph) -> HashMap<&ModulePath, &Vec<usize>> {
    graph.inputs().filter_map(|(n, id)| Some((id.parameter()?, &graph.node(n).types[0].shape))).collect()
}

/// A placement that cuts an input along more axes than so far, and why: each axis has the entry that cuts along it.
fn also(found: &Annotations, id: &InputId, sharding: Sharding, why: &Reason) -> Annotation {
    let before = found.inputs.get(id).filter(|a| !a.sharding.is_replicated());
    let Some(before) = before else { return Annotation { sharding, why: why.clone() } };
    let on = |axis: AxisId| {
        let named = found.mesh.user_name(axis);
        let entry = if before.sharding.dim_of(axis).is_some() { &before.why } else { why };
        Some(Cause::On { axis: named.into(), demand: entry.demand(named)?.clone() })
    };
    let causes = sharding.sharded_axes().iter().filter_map(on).collect::<Vec<_>>();
    let why = causes.into_iter().fold(Reason::default(), |why, cause| why.and(cause));
    Annotation { sharding, why }
}

/// Where an input of that type lies so far.
fn placement(found: &Annotations, id: &InputId, ty: &Type) -> Sharding {
    found.inputs.get(id).map_or_else(|| Sharding::replicated(ty.rank()), |a| a.sharding.clone())
}

/// The part of a placement that speaks of some axes.
fn only(sharding: &Sharding, axes: &[AxisId]) -> Vec<Vec<AxisId>> {
    sharding.dims.iter().map(|d| d.iter().copied().filter(|a| axes.contains(a)).collect()).collect()
}

fn find_axis(mesh: &Mesh, name: &str) -> Result<AxisId, StyleError> {
    check_name(name)?;
    mesh.axis(name).ok_or_else(|| StyleError::NoAxis { axis: name.into(), mesh: mesh.to_string() })
}

/// A plan names the axes that a user made; their parts are the compiler's.
fn check_name(name: &str) -> Result<(), StyleError> {
    if is_name(name) { Ok(()) } else { Err(StyleError::AxisName(MeshError::Name(name.into()))) }
}

/// The axis that styles shard along: named by the plan, else `tp`, else the only one left.
fn style_axis(mesh: &Mesh, plan: &Plan) -> Result<Option<AxisId>, StyleError> {
    if plan.styles.is_empty() {
        return Ok(None);
    }
    if let Some(dim) = &plan.axis {
        if let MeshDim::Name(name) = dim {
            check_name(name)?;
        }
        // One rank needs no axes, but a position must exist even there.
        if mesh.axes().is_empty() && matches!(dim, MeshDim::Name(_)) {
            return Ok(None);
        }
        let missing = || match dim {
            MeshDim::Name(axis) => StyleError::NoAxis { axis: axis.clone(), mesh: mesh.to_string() },
            &MeshDim::Index(index) => {
                StyleError::NoDimension { index, dims: mesh.axes().len(), mesh: mesh.to_string() }
            }
        };
        return dim.of(mesh).ok_or_else(missing).map(Some);
    }
    if mesh.axes().is_empty() {
        return Ok(None);
    }
    let mut used: Vec<&str> = plan.data.iter().map(|(_, name)| name.as_str()).collect();
    if let Some((DataMode::Hsdp { replicate_axis }, _)) = &plan.data {
        used.push(replicate_axis);
    }
    let free: Vec<AxisId> = mesh.axis_ids().filter(|&a| !used.contains(&mesh.name(a))).collect();
    match (mesh.axis("tp"), free.as_slice()) {
        (Some(tp), _) => Ok(Some(tp)),
        (None, [only]) => Ok(Some(*only)),
        _ => Err(StyleError::NoAxis { axis: "tp".into(), mesh: mesh.to_string() }),
    }
}

/// What a plan wants of a value at a boundary.
#[derive(Clone, Copy)]
enum Want {
    Layouts(Prepare),
    /// Sharded along this dimension, or the one before the features if there are fewer.
    Sequence(isize),
}

/// A value at a boundary and what a plan entry wants of it.
struct Wanted {
    path: ModulePath,
    side: Side,
    position: usize,
    want: Want,
    entry: tpc_ir::reason::Entry,
    pattern: String,
}

impl Wanted {
    fn unmarked(&self) -> StyleError {
        StyleError::Boundary {
            entry: self.pattern.clone(),
            side: if self.side == Side::Arguments { "arguments" } else { "results" },
            module: self.path.clone(),
            scope: self.path.clone(),
        }
    }
}

/// Everything that the plan's styles say.
#[derive(Default)]
struct Claims {
    ways: BTreeMap<ModulePath, (Way, tpc_ir::reason::Entry)>,
    boundaries: Vec<Wanted>,
}

fn claims(
    graph: &Graph,
    plan: &Plan,
    all: &BTreeMap<ModulePath, Weight>,
    regions: &[Region],
) -> Result<Claims, StyleError> {
    let holders = paths(graph);
    let mut modules = holders.clone();
    for region in regions {
        if !modules.contains(&region.path) {
            modules.push(region.path.clone());
        }
    }
    let mut claims = Claims::default();
    // Which entry claims a parameter; two entries may have one path.
    let mut claimed: HashMap<ModulePath, usize> = HashMap::new();
    for (index, entry) in plan.styles.iter().enumerate() {
        let Entry { path: pattern, style } = entry;
        let matches =
            Pattern::new(pattern).map_err(|problem| StyleError::Pattern { path: pattern.clone(), problem })?;
        let matched: Vec<&ModulePath> = modules.iter().filter(|m| matches.matches(m)).collect();
        if matched.is_empty() {
            let nearest = nearest(pattern, &modules);
            return Err(StyleError::NoModule { path: pattern.clone(), nearest });
        }
        let name = entry_name(entry);
        let several = matched.len() > 1;
        for module in matched {
            let mut placements = Placements::default();
            style.place(&Module::new(graph, all, module), &mut placements)?;
            if placements.is_empty() {
                if several && !holders.contains(module) {
                    continue; // a region without parameters that a glob happens to match
                }
                return Err(StyleError::Nothing {
                    path: pattern.clone(),
                    style: style.name().into(),
                    module: module.clone(),
                    kind: None,
                    because: Box::new(Because::of(graph, all, module, style.accepts())),
                });
            }
            for (parameter, way) in placements.cuts {
                let other = claimed.insert(parameter.clone(), index).filter(|&other| other != index);
                let before = claims.ways.insert(parameter.clone(), (way, name.clone()));
                if let (Some(_), Some((earlier, first))) = (other, before) {
                    let (first, second) = (first.to_string(), name.to_string());
                    return Err(StyleError::Twice { parameter, first, second, ways: [earlier, way] });
                }
            }
            let boundaries =
                placements.boundaries.into_iter().map(|(p, s, i, prepare)| (p, s, i, Want::Layouts(prepare)));
            let sequences = placements.sequences.into_iter().map(|(p, dim)| (p, Side::Results, 0, Want::Sequence(dim)));
            claims.boundaries.extend(boundaries.chain(sequences).map(|(path, side, position, want)| Wanted {
                path,
                side,
                position,
                want,
                entry: name.clone(),
                pattern: pattern.clone(),
            }));
        }
    }
    Ok(claims)
}

/// How a plan entry is called in reasons and errors.
fn entry_name(entry: &Entry) -> tpc_ir::reason::Entry {
    match entry.style.built_in() {
        Some(name) => tpc_ir::reason::Entry::BuiltIn(name.into()),
        None => tpc_ir::reason::Entry::of(&entry.path),
    }
}

/// What is needed to place values at boundaries.
struct Site<'a> {
    graph: &'a Graph,
    cuts: &'a Cuts<'a>,
    parts: &'a [AxisId],
    claims: &'a Claims,
    all: &'a BTreeMap<ModulePath, Weight>,
}

impl Site<'_> {
    /// Turns what a plan entry wants into constraints on uses and results.
    fn constrain(&self, wanted: &Wanted, found: &mut Annotations) -> Result<(), StyleError> {
        let regions: Vec<&Region> = self.graph.regions.iter().filter(|r| r.path == wanted.path).collect();
        let side = |r: &Region| match wanted.side {
            Side::Arguments => r.arguments.clone(),
            Side::Results => r.results.clone(),
        };
        let mut met = false;
        for region in regions {
            let boundaries = side(region);
            if boundaries.is_empty() {
                continue; // known from its other side
            }
            met = true;
            let Some(boundary) = boundaries.get(wanted.position) else {
                return Err(StyleError::Position {
                    entry: wanted.pattern.clone(),
                    side: wanted.side.one(),
                    position: wanted.position,
                    module: wanted.path.clone(),
                    count: boundaries.len(),
                });
            };
            for layout in self.layouts(wanted, boundary) {
                self.place(wanted, region, boundary, layout, found)?;
            }
        }
        if met || matches!(wanted.want, Want::Sequence(_)) { Ok(()) } else { Err(wanted.unmarked()) }
    }

    fn layouts(&self, wanted: &Wanted, boundary: &Boundary) -> Vec<Layout> {
        match wanted.want {
            Want::Layouts(prepare) => prepare.chain().collect(),
            Want::Sequence(dim) => {
                let rank = boundary.layout.len() as isize;
                if rank < 2 { Vec::new() } else { vec![Layout::Shard(dim.min(rank - 2))] }
            }
        }
    }

    fn place(
        &self,
        wanted: &Wanted,
        region: &Region,
        boundary: &Boundary,
        layout: Layout,
        found: &mut Annotations,
    ) -> Result<(), StyleError> {
        let no_dimension = |_| StyleError::Dimension {
            entry: wanted.pattern.clone(),
            layout,
            tensor: format!("{} {}", wanted.side.one(), wanted.position),
            module: wanted.path.clone(),
            shape: boundary.layout.clone(),
        };
        let dim = layout.dim(boundary.layout.len()).map_err(no_dimension)?;
        let value = boundary.value;
        let mut dims = vec![Vec::new(); self.graph.ty(value).rank()];
        if let Some(dim) = dim {
            let runs = factored(&boundary.layout, &self.graph.ty(value).shape);
            let run = runs.map_or(0..0, |r| r[dim].clone());
            // Whole heads where the features are heads; a dimension of extent 1 stays whole.
            let decided: Vec<usize> = run.clone().filter(|&d| !self.cuts.parts(value.node, d).is_empty()).collect();
            if decided.is_empty() {
                run.take(1).for_each(|d| dims[d].extend(self.parts));
            }
            for d in decided {
                let axes = parts(self.cuts.parts(value.node, d), self.parts);
                if !axes.iter().any(|axis| dims.iter().flatten().any(|other| other == axis)) {
                    dims[d] = axes;
                }
            }
        }
        let dim = match layout {
            Layout::Replicate => None,
            Layout::Shard(dim) => Some(dim),
        };
        let (entry, side, position) = (wanted.entry.clone(), wanted.side, wanted.position);
        let why = Demand::Layout { entry, side, position, dim }.into();
        let at = OnAxes { axes: self.parts.to_vec(), dims };
        match wanted.side {
            Side::Results => self.result(value, &at, &why, found),
            Side::Arguments => self.argument(region, value, &at, &why, found),
        }
        Ok(())
    }

    fn result(&self, value: Value, at: &OnAxes, why: &Reason, found: &mut Annotations) {
        let (source, seen) = through_view(self.graph, value);
        let read = self.graph.users(value.node).next().is_some()
            || self.graph.outputs.iter().any(|o| o.value.node == value.node);
        let (node, at) = if read || source == value { (value.node, at.clone()) } else { (source.node, seen(at)) };
        // The product of a row-wise linear is reduced to where the result is wanted; its bias follows.
        if let Op::Map { f: MapFn::Add, subs } = &self.graph.node(node).op {
            for (operand, letters) in self.graph.operands(node).iter().zip(&subs.operands) {
                let rows = |w: &Weight| {
                    w.user == operand.node && self.claims.ways.get(&w.name).is_some_and(|(way, _)| *way == Way::Rows)
                };
                if self.all.values().any(rows) {
                    let of =
                        |l: &u8| subs.result.iter().position(|r| r == l).map_or(Vec::new(), |d| at.dims[d].clone());
                    let at = OnAxes { axes: at.axes.clone(), dims: letters.iter().map(of).collect() };
                    found.results.entry(operand.node).or_default().push(Constraint { at, why: why.clone() });
                }
            }
        }
        found.results.entry(node).or_default().push(Constraint { at, why: why.clone() });
    }

    fn argument(&self, region: &Region, value: Value, at: &OnAxes, why: &Reason, found: &mut Annotations) {
        let graph = self.graph;
        if let Op::Input { id, .. } = graph.op(value)
            && id.kind() == InputKind::Data
            && !found.inputs.contains_key(id)
        {
            let sharding = Sharding { dims: at.dims.clone(), partial: None };
            found.inputs.insert(id.clone(), Annotation { sharding, why: why.clone() });
        }
        let mut inside = vec![region.results.is_empty(); graph.len()];
        for result in &region.results {
            for (i, above) in ancestors(graph, result.value.node).into_iter().enumerate() {
                inside[i] |= above;
            }
        }
        let (source, seen) = through_view(graph, value);
        let views =
            if source == value { vec![(value, at.clone())] } else { vec![(value, at.clone()), (source, seen(at))] };
        for (read, at) in views {
            for (user, edge) in graph.users(read.node).filter(|(_, e)| e.result == read.result) {
                if graph.node(user).origin.phase == Phase::Forward && inside[user.index()] && user != value.node {
                    let constraint = Constraint { at: at.clone(), why: why.clone() };
                    found.uses.entry((user, edge.operand)).or_default().push(constraint);
                }
            }
        }
    }
}

impl Site<'_> {
    /// Cross entropy reads the logits where the column-wise last linears leave them, also if a layout
    /// gathers what leaves the model.
    fn loss_parallel(&self, found: &mut Annotations) -> Result<(), StyleError> {
        let graph = self.graph;
        // Every product with a weight; a tied table's second use is one too.
        let products: Vec<(NodeIndex, u32, &Weight)> = self
            .all
            .values()
            .flat_map(|w| graph.users(w.input).map(move |(user, edge)| (user, edge.operand, w)))
            .filter(|(user, ..)| {
                let n = graph.node(*user);
                n.origin.phase == Phase::Forward && matches!(n.op, Op::Einsum { .. })
            })
            .collect();
        let mut heads = 0;
        for &(product, operand, weight) in &products {
            let followed = products.iter().any(|p| p.0 != product && ancestors(graph, p.0)[product.index()]);
            let Op::Einsum { subs } = &graph.node(product).op else { continue };
            let id = InputId::Parameter(weight.name.clone());
            let Some(cut) = found.inputs.get(&id).filter(|_| !followed) else { continue };
            let mut dims = vec![Vec::new(); subs.result.len()];
            for (letter, axes) in subs.operands[operand as usize].iter().zip(&cut.sharding.dims) {
                if let Some(d) = subs.result.iter().position(|l| l == letter) {
                    dims[d].clone_from(axes);
                }
            }
            if dims.iter().all(Vec::is_empty) {
                continue;
            }
            heads += 1;
            // The bias is part of the logits.
            let (mut node, mut at) = (product, OnAxes { axes: self.parts.to_vec(), dims });
            let bias = super::modules::biases(graph, self.all, weight).first().map(|b| self.all[b].user);
            if let Some(sum) = bias
                && let Op::Map { subs, .. } = &graph.node(sum).op
                && let Some(i) = graph.operands(sum).iter().position(|v| v.node == node)
            {
                let of =
                    |l: &u8| subs.operands[i].iter().position(|r| r == l).map_or(Vec::new(), |d| at.dims[d].clone());
                (node, at) = (sum, OnAxes { axes: at.axes.clone(), dims: subs.result.iter().map(of).collect() });
            }
            for (user, edge) in graph.users(node).filter(|(user, _)| graph.node(*user).origin.phase == Phase::Forward) {
                let constraint = Constraint { at: at.clone(), why: Demand::LossParallel.into() };
                found.uses.entry((user, edge.operand)).or_default().push(constraint);
            }
        }
        if heads == 0 { Err(StyleError::LossParallel) } else { Ok(()) }
    }
}

/// The value below transposes and broadcasts, and what a placement of the view says of it.
fn through_view(graph: &Graph, value: Value) -> (Value, impl Fn(&OnAxes) -> OnAxes + use<>) {
    let mut source = value;
    let mut dims: Vec<usize> = (0..graph.ty(value).rank()).collect();
    while let Op::Map { f: MapFn::Identity, subs } = graph.op(source) {
        let of = |l: &u8| subs.result.iter().position(|r| r == l);
        let Some(read) = subs.operands[0].iter().map(of).collect::<Option<Vec<usize>>>() else { break };
        dims = read.into_iter().map(|d| dims[d]).collect();
        source = graph.operands(source.node)[0];
    }
    let seen =
        move |at: &OnAxes| OnAxes { axes: at.axes.clone(), dims: dims.iter().map(|&d| at.dims[d].clone()).collect() };
    (source, seen)
}

/// The feature dimensions that a way cuts: of a linear its outputs or inputs, of a table its hidden
/// dimensions or its rows.
fn features(weight: &Weight, way: Way) -> Vec<usize> {
    match (weight.role, way) {
        (Role::Linear | Role::Convolution | Role::Embedding, Way::Rows) => weight.inner.clone(),
        (_, Way::Columns) | (Role::Vector, _) => weight.outer.clone(),
    }
}

/// The parts of an axis as axes of the mesh.
fn parts(parts: &[Part], axes: &[AxisId]) -> Vec<AxisId> {
    let one = |part: &Part| match part {
        Part::Whole => axes.to_vec(),
        Part::Major(_) => axes.first().copied().into_iter().collect(),
        Part::Minor(_) => axes.last().copied().into_iter().collect(),
    };
    parts.iter().flat_map(one).collect()
}

fn cut(graph: &Graph, weight: &Weight, way: Way, cuts: &Cuts, axes: &[AxisId]) -> Sharding {
    let mut sharding = Sharding::replicated(graph.node(weight.input).types[0].rank());
    for dim in features(weight, way) {
        let taken = |axis: &AxisId| sharding.dims.iter().flatten().any(|other| other == axis);
        let axes = parts(cuts.parts(weight.input, dim), axes);
        if !axes.iter().any(taken) {
            sharding.dims[dim] = axes;
        }
    }
    sharding
}

/// On the axes that cut parameters a gradient is brought to where its parameter lies: it is reduced to
/// that shard, and moved once instead of the parameter and every state in the optimizer.
fn gradients_like_parameters(graph: &Graph, axes: Vec<AxisId>, found: &mut Annotations) {
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
        let sharding = placement(found, &InputId::Parameter(name.clone()), ty);
        let at = OnAxes { axes: axes.clone(), dims: only(&sharding, &axes) };
        found.results.entry(output.value.node).or_default().push(Constraint { at, why });
    }
}

/// Optimizer state of a parameter's shape lies like the parameter.
fn states_like_parameters(graph: &Graph, inputs: &mut HashMap<InputId, Annotation>) {
    let shapes = parameter_shapes(graph);
    for (node, id) in graph.inputs() {
        let InputId::State { owner, .. } = id else { continue };
        let same = shapes.get(owner) == Some(&&graph.node(node).types[0].shape);
        if let Some(annotation) = inputs.get(&InputId::Parameter(owner.clone())).filter(|_| same).cloned() {
            inputs.insert(id.clone(), annotation);
        }
    }
}
