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
    /// What the built-in plan `tp` says of a whole model: pairwise linears, a last one without a
    /// partner column-wise (its logits stay sharded), and the largest embedding by rows.
    WholeModel,
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
    #[error("plan entry `{path}` names the style `{style}`, which does not exist: use ColwiseParallel, RowwiseParallel or PairwiseParallel")]
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
    #[error("there is no built-in plan `{0}` and no such file: built in are none, tp, ddp and tp-ddp")]
    BuiltIn(String),
}

impl Plan {
    /// An empty plan: every rank computes everything.
    pub fn new() -> Self {
        Plan::default()
    }

    /// The built-in plan of that name: `none`, `tp`, `ddp`, or `tp-ddp` for both on two axes.
    ///
    /// # Errors
    /// No plan has the name.
    pub fn built_in(name: &str) -> Result<Self, PlanError> {
        let tp = || Plan::new().with("", Style::WholeModel).along("tp");
        match name {
            "none" => Ok(Plan { allow_unused_axes: true, ..Plan::new() }),
            "tp" => Ok(tp()),
            "ddp" => Ok(Plan::new().ddp("dp")),
            "tp-ddp" => Ok(tp().ddp("dp")),
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
                    return Err(PlanError::Key { key: key.clone(), place: "the plan".into(), known: "axis, styles, data" });
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
                let style = named(name).ok_or_else(|| PlanError::Style { path: path.clone(), style: name.clone() })?;
                plan.styles.push((path, style));
            }
            Json::Object(map) => match map.iter().next() {
                Some((name, Json::Object(options))) if map.len() == 1 && named(name).is_some() => {
                    if let Some(key) = options.keys().next() {
                        return Err(PlanError::Key { key: key.clone(), place: format!("`{path}`"), known: "none" });
                    }
                    plan.styles.extend(named(name).map(|s| (path, s)));
                }
                _ => styles(plan, &path, value)?,
            },
            other => {
                return Err(PlanError::Kind { key: path, expected: "a style or a map of styles", found: other.to_string() });
            }
        }
    }
    Ok(())
}

fn named(name: &str) -> Option<Style> {
    match name {
        "ColwiseParallel" => Some(Style::Colwise),
        "RowwiseParallel" => Some(Style::Rowwise),
        "PairwiseParallel" => Some(Style::Pairwise),
        _ => None,
    }
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
