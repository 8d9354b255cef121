//! Plans: which style each module gets, and what happens on the data axis.

use serde_json::Value as Json;

/// A parallel style of `torch.distributed.tensor.parallel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Style {
    /// A linear's output features, or an embedding's hidden dimension, are sharded.
    Colwise,
    /// A linear's input features, or an embedding's rows, are sharded; the result is reduced.
    Rowwise,
    /// The linears of the subtree alternate column- and row-wise in the order data meets them.
    Pairwise,
    /// The same, and the activations between pairs are sharded along the sequence: the last row-wise
    /// product of a pair is reduce-scattered, the next column-wise one gathers.
    PairwiseSequence {
        /// Which dimension of the program's data inputs is the sequence.
        sequence_dim: usize,
    },
    /// A norm (or any module of vectors) runs on a shard of the sequence; its parameters are
    /// replicated.
    Sequence {
        /// Which dimension of the program's data inputs is the sequence.
        sequence_dim: usize,
    },
    /// What the built-in plans `tp` and `tp-sp` say of a whole model: pairwise linears, a last one
    /// without a partner column-wise (its logits stay sharded), and the largest embedding by rows.
    WholeModel {
        /// With a sequence dimension of the data inputs, activations between pairs are sharded along
        /// it.
        sequence_dim: Option<usize>,
    },
}

impl Style {
    /// PyTorch's name of the style.
    pub fn name(&self) -> &'static str {
        match self {
            Style::Colwise => "ColwiseParallel",
            Style::Rowwise => "RowwiseParallel",
            Style::Pairwise => "PairwiseParallel",
            Style::PairwiseSequence { .. } => "PairwiseSequenceParallel",
            Style::Sequence { .. } => "SequenceParallel",
            Style::WholeModel { .. } => "the built-in plan",
        }
    }

    /// The sequence dimension along which the style shards activations.
    pub fn sequence_dim(&self) -> Option<usize> {
        match self {
            Style::PairwiseSequence { sequence_dim } | Style::Sequence { sequence_dim } => Some(*sequence_dim),
            Style::WholeModel { sequence_dim } => *sequence_dim,
            _ => None,
        }
    }
}

/// What the data axis does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataMode {
    /// Every rank has all parameters; gradients are reduced.
    Ddp,
}

/// A plan: styles by module path in order, along one axis, and a mode for the data axis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Name of the axis that styles shard along; by default the axis named `tp`, else the only one
    /// that the data mode does not use.
    pub axis: Option<String>,
    /// Path patterns with their styles, in order.
    pub styles: Vec<(String, Style)>,
    /// Mode and name of the data axis.
    pub data: Option<(DataMode, String)>,
    /// Whether axes that nothing uses are an error.
    pub allow_unused_axes: bool,
}

/// Why a plan file cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// Not JSON.
    #[error("the plan is not JSON: {0}")]
    Json(String),
    /// A key that means nothing.
    #[error("the plan has an unknown key `{key}` in {place}: known are {known}")]
    Key {
        /// The key.
        key: String,
        /// Where it stands.
        place: String,
        /// What may stand there.
        known: &'static str,
    },
    /// A style that does not exist.
    #[error(
        "plan entry `{path}` names the style `{style}`, which does not exist: use ColwiseParallel, RowwiseParallel, PairwiseParallel, PairwiseSequenceParallel or SequenceParallel"
    )]
    Style {
        /// The plan entry.
        path: String,
        /// What it says.
        style: String,
    },
    /// A value of the wrong kind.
    #[error("`{key}` in the plan must be {expected}, found {found}")]
    Kind {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// No built-in plan of that name.
    #[error(
        "there is no built-in plan `{0}` and no such file: built in are none, tp, tp-sp, ddp, tp-ddp and tp-sp-ddp"
    )]
    BuiltIn(String),
}

impl Plan {
    /// An empty plan: every rank computes everything.
    pub fn new() -> Self {
        Plan::default()
    }

    /// The built-in plan of that name: `none`, `tp`, `tp-sp` (with sequence parallelism), `ddp`, and
    /// `tp-ddp` and `tp-sp-ddp` for both on two axes.
    ///
    /// # Errors
    /// No plan has the name.
    pub fn built_in(name: &str) -> Result<Self, PlanError> {
        let whole = |sequence_dim| Plan::new().with("", Style::WholeModel { sequence_dim }).along("tp");
        let tp = || whole(None);
        match name {
            "none" => Ok(Plan { allow_unused_axes: true, ..Plan::new() }),
            "tp" => Ok(tp()),
            "ddp" => Ok(Plan::new().ddp("dp")),
            "tp-sp" => Ok(whole(Some(1))),
            "tp-ddp" => Ok(tp().ddp("dp")),
            "tp-sp-ddp" => Ok(whole(Some(1)).ddp("dp")),
            other => Err(PlanError::BuiltIn(other.into())),
        }
    }

    /// Adds a style for the modules that match a path pattern.
    #[must_use]
    pub fn with(mut self, path: impl Into<String>, style: Style) -> Self {
        self.styles.push((path.into(), style));
        self
    }

    /// Shards the batch over an axis and reduces gradients over it.
    #[must_use]
    pub fn ddp(mut self, axis: impl Into<String>) -> Self {
        self.data = Some((DataMode::Ddp, axis.into()));
        self
    }

    /// Styles shard along the axis of this name.
    #[must_use]
    pub fn along(mut self, axis: impl Into<String>) -> Self {
        self.axis = Some(axis.into());
        self
    }

    /// Reads the JSON form (API.md section 7).
    ///
    /// # Errors
    /// Unknown keys and styles, values of the wrong kind.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        let json: Json = serde_json::from_str(text).map_err(|e| PlanError::Json(e.to_string()))?;
        let mut plan = Plan::new();
        for (key, value) in object("the plan", &json)? {
            match key.as_str() {
                "axis" => plan.axis = Some(string(key, value)?),
                "styles" => styles(&mut plan, "", value)?,
                "data" => plan.data = Some(data(value)?),
                _ => {
                    return Err(PlanError::Key {
                        key: key.clone(),
                        place: "the plan".into(),
                        known: "axis, styles, data",
                    });
                }
            }
        }
        Ok(plan)
    }
}

fn object<'a>(key: &str, json: &'a Json) -> Result<&'a serde_json::Map<String, Json>, PlanError> {
    json.as_object().ok_or_else(|| PlanError::Kind { key: key.into(), expected: "an object", found: json.to_string() })
}

fn string(key: &str, json: &Json) -> Result<String, PlanError> {
    let text = json.as_str().map(str::to_string);
    text.ok_or_else(|| PlanError::Kind { key: key.into(), expected: "a string", found: json.to_string() })
}

/// Values may be maps again, with relative paths.
fn styles(plan: &mut Plan, prefix: &str, json: &Json) -> Result<(), PlanError> {
    for (path, value) in object("styles", json)? {
        let path = if prefix.is_empty() { path.clone() } else { format!("{prefix}.{path}") };
        match value {
            Json::String(name) => {
                let style = named(name, &serde_json::Map::new(), &path)?;
                let style = style.ok_or_else(|| PlanError::Style { path: path.clone(), style: name.clone() })?;
                plan.styles.push((path, style));
            }
            Json::Object(map) => match map.iter().next() {
                Some((name, Json::Object(options))) if map.len() == 1 => match named(name, options, &path)? {
                    Some(style) => plan.styles.push((path, style)),
                    None => styles(plan, &path, value)?,
                },
                _ => styles(plan, &path, value)?,
            },
            other => {
                return Err(PlanError::Kind {
                    key: path,
                    expected: "a style or a map of styles",
                    found: other.to_string(),
                });
            }
        }
    }
    Ok(())
}

/// The style of that name with its options; `None` if there is no such style.
fn named(name: &str, options: &serde_json::Map<String, Json>, path: &str) -> Result<Option<Style>, PlanError> {
    let sequence = matches!(name, "PairwiseSequenceParallel" | "SequenceParallel");
    let known: &'static str = if sequence { "sequence_dim" } else { "none" };
    let style = match name {
        "ColwiseParallel" => Style::Colwise,
        "RowwiseParallel" => Style::Rowwise,
        "PairwiseParallel" => Style::Pairwise,
        // The page's default is the first dimension; today's SequenceParallel has the second.
        "PairwiseSequenceParallel" => Style::PairwiseSequence { sequence_dim: dimension(options, 0)? },
        "SequenceParallel" => Style::Sequence { sequence_dim: dimension(options, 1)? },
        _ => return Ok(None),
    };
    match options.keys().find(|k| !sequence || *k != "sequence_dim") {
        Some(key) => Err(PlanError::Key { key: key.clone(), place: format!("`{path}`"), known }),
        None => Ok(Some(style)),
    }
}

fn dimension(options: &serde_json::Map<String, Json>, default: usize) -> Result<usize, PlanError> {
    let Some(value) = options.get("sequence_dim") else { return Ok(default) };
    let dim = value.as_u64().map(|d| d as usize);
    dim.ok_or_else(|| PlanError::Kind {
        key: "sequence_dim".into(),
        expected: "a dimension number",
        found: value.to_string(),
    })
}

fn data(json: &Json) -> Result<(DataMode, String), PlanError> {
    let (mut mode, mut axis) = (None, "dp".to_string());
    for (key, value) in object("data", json)? {
        match key.as_str() {
            "mode" => match string(key, value)?.as_str() {
                "ddp" => mode = Some(DataMode::Ddp),
                other => {
                    return Err(PlanError::Kind { key: "data.mode".into(), expected: "\"ddp\"", found: other.into() });
                }
            },
            "axis" => axis = string(key, value)?,
            _ => return Err(PlanError::Key { key: key.clone(), place: "`data`".into(), known: "mode, axis" }),
        }
    }
    let missing = PlanError::Kind { key: "data.mode".into(), expected: "\"ddp\"", found: "nothing".into() };
    Ok((mode.ok_or(missing)?, axis))
}
