//! Plans: the styles of modules, and the mode of the data axes.

use super::data::DataMode;
use super::pattern::PatternError;
use super::stored::StoragePlan;
use super::style::ParallelStyle;
use super::whole_model::WholeModel;
use std::fmt;
use std::sync::Arc;
use tpc_ir::mesh::MeshError;
use tpc_ir::quote::cut;
use tpc_ir::unique::UniqueError;
use tpc_ir::{AxisId, Mesh};

/// An axis of a mesh, by name or by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeshDim {
    /// The name.
    Name(String),
    /// The position, negative from the end.
    Index(isize),
}

impl MeshDim {
    /// The axis of a mesh; `None` if there is no such axis.
    pub fn of(&self, mesh: &Mesh) -> Option<AxisId> {
        match self {
            MeshDim::Name(name) => mesh.axis(name),
            MeshDim::Index(i) => {
                let axes: Vec<AxisId> = mesh.axis_ids().collect();
                let at = if *i < 0 { i + axes.len() as isize } else { *i };
                usize::try_from(at).ok().and_then(|at| axes.get(at).copied())
            }
        }
    }
}

impl fmt::Display for MeshDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MeshDim::Name(name) => write!(f, "{name}"),
            MeshDim::Index(i) => write!(f, "{i}"),
        }
    }
}

impl From<&str> for MeshDim {
    fn from(name: &str) -> Self {
        MeshDim::Name(name.into())
    }
}

impl From<String> for MeshDim {
    fn from(name: String) -> Self {
        MeshDim::Name(name)
    }
}

impl From<isize> for MeshDim {
    fn from(index: isize) -> Self {
        MeshDim::Index(index)
    }
}

/// A path pattern and the style of the modules that match it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The pattern.
    pub path: String,
    /// The style.
    pub style: Arc<dyn ParallelStyle>,
}

/// A plan: styles for patterns of module paths, along one axis, and a mode for the data axis.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The axis along which styles shard; by default the axis named `tp`, otherwise the only one that the data mode
    /// does not use.
    pub axis: Option<MeshDim>,
    /// Path patterns with their styles, in order.
    pub styles: Vec<Entry>,
    /// The mode and the name of the data axis.
    pub data: Option<(DataMode, String)>,
    /// Where inputs are stored that neither a style nor the data mode places.
    pub storage: Vec<StoragePlan>,
    /// Whether cross entropy must read logits that are sharded over the vocabulary.
    pub loss_parallel: bool,
    /// Whether the mesh may have axes that the plan does not use.
    pub allow_unused_axes: bool,
}

/// Why a plan file cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The file is not valid JSON.
    #[error("the plan is not JSON: {0}")]
    Json(String),
    /// A key that occurs twice in one object.
    #[error("the plan is ambiguous: {0}; merge both values under one key")]
    RepeatedKey(UniqueError),
    /// Two entries with the same path, one of them in a nested map of styles.
    #[error("the plan has two entries for the path `{}`: merge them", cut(.path))]
    RepeatedPath {
        /// The path.
        path: String,
    },
    /// An unknown key.
    #[error("the plan has an unknown key `{}` in {}: known are {known}", cut(.key), cut(.place))]
    Key {
        /// The key.
        key: String,
        /// The object that has it.
        place: String,
        /// The keys that the object may have.
        known: &'static str,
    },
    /// A style that does not exist.
    #[error("plan entry `{}` names the style `{}`, which does not exist: use {known}", cut(.path), cut(.style))]
    Style {
        /// The plan entry.
        path: String,
        /// The style.
        style: String,
        /// The names that exist.
        known: String,
    },
    /// A path that is not a pattern.
    #[error("plan entry `{}` is not a path pattern: {problem}", cut(.path))]
    Pattern {
        /// The plan entry.
        path: String,
        /// The fault of the pattern.
        problem: PatternError,
    },
    /// A text that cannot name an axis of a mesh.
    #[error("`{key}` in the plan: {problem}")]
    Axis {
        /// The key.
        key: &'static str,
        /// The fault of the axis.
        problem: MeshError,
    },
    /// A value of the wrong kind.
    #[error("{}`{}` in the plan must be {expected}, found {}", of_entry(.entry), cut(.key), cut(.found))]
    Kind {
        /// The plan entry, if the key is an option of a style.
        entry: Option<String>,
        /// The key.
        key: String,
        /// The expected kind of value.
        expected: &'static str,
        /// The value that was found.
        found: String,
    },
    /// No built-in plan has the name.
    #[error("there is no built-in plan `{}` and no such file: built in are {known}", cut(.name))]
    BuiltIn {
        /// The name.
        name: String,
        /// The names that exist.
        known: String,
    },
}

fn of_entry(entry: &Option<String>) -> String {
    entry.as_ref().map_or(String::new(), |entry| format!("plan entry `{}`: ", cut(entry)))
}

/// The JSON Schema of plan files.
pub const SCHEMA: &str = include_str!("plan.schema.json");

/// The names of the built-in plans.
pub const BUILT_IN: [&str; 16] = [
    "none",
    "tp",
    "tp-sp",
    "ddp",
    "fsdp",
    "zero1",
    "hsdp",
    "2d",
    "tp-ddp",
    "tp-sp-ddp",
    "tp-fsdp",
    "tp-sp-fsdp",
    "tp-zero1",
    "tp-sp-zero1",
    "tp-hsdp",
    "tp-sp-hsdp",
];

/// The plan of one style for the whole model.
impl<S: ParallelStyle + 'static> From<S> for Plan {
    fn from(style: S) -> Self {
        Plan::new().with("", style)
    }
}

impl Plan {
    /// An empty plan, under which every rank computes everything.
    pub fn new() -> Self {
        Plan::default()
    }

    /// The built-in plan with a name: `none`; `tp` and `tp-sp` (with sequence parallelism); the data modes `ddp`,
    /// `fsdp`, `zero1` and `hsdp`; and combinations of both on two or three axes, such as `tp-ddp` and `tp-sp-fsdp`.
    /// `2d` is `tp-fsdp`.
    ///
    /// # Errors
    /// No plan has the name.
    pub fn built_in(name: &str) -> Result<Self, PlanError> {
        let unknown = || PlanError::BuiltIn { name: name.into(), known: BUILT_IN.join(", ") };
        if !BUILT_IN.contains(&name) {
            return Err(unknown());
        }
        let name = if name == "2d" { "tp-fsdp" } else { name };
        if name == "none" {
            return Ok(Plan { allow_unused_axes: true, ..Plan::new() });
        }
        let whole = |sequence_dim| Plan::new().with("", WholeModel { sequence_dim }).along("tp");
        let (plan, data) = match (name.strip_prefix("tp-sp"), name.strip_prefix("tp")) {
            (Some(data), _) => (whole(Some(1)), data.trim_start_matches('-')),
            (None, Some(data)) => (whole(None), data.trim_start_matches('-')),
            (None, None) => (Plan::new(), name),
        };
        match data {
            "" => Ok(plan),
            "ddp" => Ok(plan.ddp("dp")),
            "fsdp" => Ok(plan.enable_2d_with_fsdp("dp")),
            "zero1" => Ok(plan.zero1("dp")),
            "hsdp" => Ok(plan.hsdp("rep", "dp")),
            _ => Err(unknown()),
        }
    }

    /// Adds a style for the modules that match a path pattern.
    #[must_use]
    pub fn with(mut self, path: impl Into<String>, style: impl ParallelStyle + 'static) -> Self {
        self.styles.push(Entry { path: path.into(), style: Arc::new(style) });
        self
    }

    /// Shards the batch over an axis and reduces gradients over it.
    #[must_use]
    pub fn ddp(mut self, axis: impl Into<String>) -> Self {
        self.data = Some((DataMode::Ddp, axis.into()));
        self
    }

    /// Shards the batch and every parameter, with its gradient and its optimizer state, over an axis, in addition to
    /// the styles.
    #[must_use]
    pub fn enable_2d_with_fsdp(mut self, axis: impl Into<String>) -> Self {
        self.data = Some((DataMode::Fsdp, axis.into()));
        self
    }

    /// Shards the batch and the optimizer state over an axis.
    #[must_use]
    pub fn zero1(mut self, axis: impl Into<String>) -> Self {
        self.data = Some((DataMode::Zero1, axis.into()));
        self
    }

    /// Shards the batch over two axes, and parameters, gradients and optimizer state over the second.
    #[must_use]
    pub fn hsdp(mut self, replicate_axis: impl Into<String>, axis: impl Into<String>) -> Self {
        self.data = Some((DataMode::Hsdp { replicate_axis: replicate_axis.into() }, axis.into()));
        self
    }

    /// The axes over which the data mode shards the batch.
    pub fn data_axes(&self) -> Vec<&str> {
        match &self.data {
            Some((DataMode::Hsdp { replicate_axis }, axis)) => vec![replicate_axis, axis],
            Some((_, axis)) => vec![axis],
            None => Vec::new(),
        }
    }

    /// Demands that logits stay sharded over the vocabulary through the loss.
    #[must_use]
    pub fn loss_parallel(mut self) -> Self {
        self.loss_parallel = true;
        self
    }

    /// Sets the axis along which styles shard, by name or position.
    #[must_use]
    pub fn along(mut self, axis: impl Into<MeshDim>) -> Self {
        self.axis = Some(axis.into());
        self
    }
}
