//! Errors of plans that do not fit a model or a mesh.

use super::direction::Direction;
use super::layout::Layout;
use super::pattern::{Nearest, PatternError};
use std::fmt;
use tpc_ir::input::Shown;
use tpc_ir::mesh::MeshError;
use tpc_ir::{ModulePath, quote};

/// Why a plan does not fit a model or a mesh.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StyleError {
    /// A path that matches no module.
    #[error("plan entry `{}` matches no module{}", quote::cut(.path), Nearest(.nearest))]
    NoModule {
        /// The path.
        path: String,
        /// Similar paths that exist.
        nearest: Vec<String>,
    },
    /// A path that is not a pattern.
    #[error("plan entry `{}` is not a path pattern: {problem}", quote::cut(.path))]
    Pattern {
        /// The path.
        path: String,
        /// The fault of the pattern.
        problem: PatternError,
    },
    /// An entry of the placements that matches no parameter.
    #[error("plan entry `{}` of the placements matches no parameter{}", quote::cut(.path), Nearest(.nearest))]
    NoParameter {
        /// The path.
        path: String,
        /// Similar paths that exist.
        nearest: Vec<String>,
    },
    /// An entry of the placements with another number of dimensions than the input has.
    #[error(
        "plan entry `{}` places {dims} dimensions of `{input}`, which has the shape {shape:?}: name the axes of each, [] for none",
        quote::cut(.path)
    )]
    Storage {
        /// The plan entry.
        path: String,
        /// The input.
        input: Shown,
        /// Its shape as the model knows it.
        shape: Vec<usize>,
        /// The number of dimensions of the entry.
        dims: usize,
    },
    /// An axis that cuts two dimensions of one input.
    #[error("plan entry `{}` cuts two dimensions over the axis {}: an axis cuts one", quote::cut(.path), quote::cut(.axis))]
    StorageAxis {
        /// The plan entry.
        path: String,
        /// The axis.
        axis: String,
    },
    /// An input that an entry of the placements and something else place differently.
    #[error("plan entry `{}` places `{input}`, which another entry or the data mode places differently: remove one", quote::cut(.path))]
    StoredTwice {
        /// The plan entry.
        path: String,
        /// The input.
        input: Shown,
    },
    /// A path that matches a module in which the style has nothing to place.
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
        /// The type of the module, if it is known.
        kind: Option<String>,
        /// Why it finds nothing.
        because: Box<Obstacle>,
    },
    /// A path that matches a module whose parameters belong to another module.
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
        /// The module that it matches.
        module: ModulePath,
        /// The type of the module, if it is known.
        kind: Option<String>,
        /// The parameter that it shares.
        same: Box<TiedNames>,
    },
    /// A path that matches a module of which the program has nothing.
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
        /// The type of the module, if it is known.
        kind: Option<String>,
        /// The parameters of the module.
        parameters: Vec<ModulePath>,
    },
    /// A mesh with more dimensions than a prepare function accepts.
    #[error("device_mesh has dims {dims} but expected to be 1 for {what}.")]
    MeshDims {
        /// The number of dimensions of the mesh.
        dims: usize,
        /// `input` or `output`.
        what: &'static str,
    },
    /// No logits are sharded over the vocabulary.
    #[error(
        "loss_parallel needs logits that are sharded over the vocabulary: give the model's last linear the style ColwiseParallel"
    )]
    LossParallel,
    /// A boundary that is neither marked nor can be inferred from parameters.
    #[error(
        "plan entry `{}` places {side} of `{module}`, but its boundaries cannot be inferred from its parameters: mark them in the model with `tpc::scope(\"{scope}\", inputs, |inputs| …)` around the module's call",
        quote::cut(.entry)
    )]
    Boundary {
        /// The plan entry.
        entry: String,
        /// `arguments` or `results`.
        side: &'static str,
        /// The module.
        module: ModulePath,
        /// The path to pass to `tpc::scope`.
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
        /// The index of the argument or result.
        position: usize,
        /// The module.
        module: ModulePath,
        /// The number that the module has.
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
        /// The argument or result, as in `argument 0`.
        tensor: String,
        /// The module.
        module: ModulePath,
        /// Its shape as the model knows it.
        shape: Vec<usize>,
    },
    /// Two entries that claim the same parameter.
    #[error(
        "parameter `{parameter}` is claimed by two plan entries, `{}` ({}) and `{}` ({}): remove one of them",
        quote::cut(.first), .directions[0], quote::cut(.second), .directions[1]
    )]
    Twice {
        /// The parameter.
        parameter: ModulePath,
        /// One of the entries.
        first: String,
        /// The other.
        second: String,
        /// The direction in which each of them cuts it.
        directions: [Direction; 2],
    },
    /// A text that cannot name an axis of a mesh.
    #[error("the plan: {0}")]
    AxisName(MeshError),
    /// The axis of the plan is not in the mesh.
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
        /// The position, negative from the end.
        index: isize,
        /// The number of dimensions of the mesh.
        dims: usize,
        /// The mesh.
        mesh: String,
    },
    /// One axis with two purposes.
    #[error("the plan uses the mesh axis `{axis}` twice, for {first} and for {second}: give each an axis of its own")]
    AxisTwice {
        /// The axis.
        axis: String,
        /// One of the purposes.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// An axis that the plan does not use.
    #[error(
        "the mesh axis `{axis}` is not used by the plan: every rank along it would compute the same; remove it from the mesh or give it a data mode"
    )]
    UnusedAxis {
        /// The axis.
        axis: String,
    },
}

/// Why a program has nothing of a module, and the fix.
fn absence(module: &ModulePath, parameters: &[ModulePath]) -> String {
    match parameters {
        [] => format!(
            "which has no parameters that show its boundaries: remove the entry, or mark the module's call in the model with `tpc::scope(\"{module}\", inputs, |inputs| …)`"
        ),
        some => format!("whose parameters ({}) the program does not use: remove the entry", listed(some)),
    }
}

/// The style of a table that cuts the outputs of a head with the same weights.
fn rows_of_table(is_table: bool) -> &'static str {
    match is_table {
        true => ": RowwiseParallel there cuts the rows of the embedding, which are the outputs of the head",
        false => "",
    }
}

/// The layouts that a tensor of a rank can have.
fn layouts_of(rank: usize) -> String {
    match rank {
        0 => "and a scalar can only be Replicate".into(),
        1 => "use Shard(0) or Replicate".into(),
        rank => format!("use Shard(0) to Shard({}) or Replicate", rank - 1),
    }
}

/// A parameter with two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TiedNames {
    /// The path of the parameter in the module that the plan names.
    pub parameter: ModulePath,
    /// The path of the same parameter in the program.
    pub shared: ModulePath,
    /// Whether it is the table of an embedding.
    pub table: bool,
}

/// Why a style finds nothing in a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The style accepts something else.
    WorksOn(String),
    /// The forward pass does not use the parameters of the module, which are listed.
    Unused(Vec<ModulePath>),
    /// A matrix that no product reads directly.
    NoProduct {
        /// The matrix.
        parameter: ModulePath,
        /// The operation that reads it.
        operation: String,
    },
    /// A convolution in which each output channel has one input channel.
    Depthwise,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::WorksOn(accepts) => write!(f, "it works on {accepts}"),
            Obstacle::Unused(parameters) => {
                write!(f, "the forward pass does not use its parameters ({}); remove the entry", listed(parameters))
            }
            Obstacle::NoProduct { parameter, operation } => write!(
                f,
                "`{parameter}` is read by `{operation}`, but the style cuts only weights that a product reads directly; remove the entry to keep it whole on every rank"
            ),
            Obstacle::Depthwise => write!(
                f,
                "each of its output channels has one input channel, so there are no input channels to cut; ColwiseParallel cuts its output channels"
            ),
        }
    }
}

/// The first few of some names.
fn listed(names: &[ModulePath]) -> String {
    const MOST: usize = 3;
    let shown = names.iter().take(MOST).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{shown} and {} more", names.len() - MOST) } else { shown }
}
