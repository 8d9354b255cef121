//! Why a plan does not fit a model or a mesh, in words.

use super::layout::Layout;
use super::pattern::{Nearest, PatternError};
use super::way::Way;
use std::fmt;
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
        /// Existing ones like it.
        nearest: Vec<String>,
    },
    /// A path that is no pattern.
    #[error("plan entry `{}` is no path pattern: {problem}", quote::cut(.path))]
    Pattern {
        /// The path.
        path: String,
        /// What is wrong with the line.
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

/// The first of some names.
fn listed(names: &[ModulePath]) -> String {
    const MOST: usize = 3;
    let shown = names.iter().take(MOST).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{shown} and {} more", names.len() - MOST) } else { shown }
}
