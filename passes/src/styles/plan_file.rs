//! The JSON form of plans. Its schema is `passes/src/styles/plan.schema.json`; a test checks that both agree.

use super::data::DataMode;
use super::layout::Layout;
use super::linear::{ColwiseParallel, RowwiseParallel};
use super::pairwise::{PairwiseParallel, PairwiseSequenceParallel, TensorParallelMultiheadAttention};
use super::pattern::Pattern;
use super::plan::{Entry, MeshDim, Plan, PlanError};
use super::prepare::{self, Prepare};
use super::prepare_module::{PrepareModuleInput, PrepareModuleInputOutput, PrepareModuleOutput};
use super::sequence::SequenceParallel;
use super::stored::{StoragePlan, StoredInputs};
use super::style::ParallelStyle;
use serde_json::{Map, Value as Json};
use std::collections::HashSet;
use std::sync::Arc;
use tpc_ir::Mesh;
use tpc_ir::mesh::{MeshError, is_name};
use tpc_ir::unique::{self, UniqueError};

/// The names of the styles, and the options of each.
const STYLES: [(&str, &str); 9] = [
    ("ColwiseParallel", "input_layouts, output_layouts, prepare_input, prepare_output"),
    ("RowwiseParallel", "input_layouts, output_layouts, prepare_input, prepare_output"),
    ("PairwiseParallel", "none"),
    ("PairwiseSequenceParallel", "sequence_dim"),
    ("SequenceParallel", "sequence_dim"),
    ("PrepareModuleInput", "input_layouts, desired_input_layouts"),
    ("PrepareModuleOutput", "output_layouts, desired_output_layouts"),
    ("PrepareModuleInputOutput", "input_layouts, desired_input_layouts, output_layouts, desired_output_layouts"),
    ("TensorParallelMultiheadAttention", "none"),
];

impl Plan {
    /// Parses the JSON form.
    ///
    /// # Errors
    /// A key or a style is unknown, a value has the wrong kind, or a key or a path occurs twice.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        let json = unique::parse(text).map_err(|error| match error {
            UniqueError::Syntax(problem) => PlanError::Json(problem),
            repeated => PlanError::RepeatedKey(repeated),
        })?;
        let json = object("the plan", &json)?;
        let mut plan = json.get("extends").map_or(Ok(Plan::new()), |name| Plan::built_in(&string("extends", name)?))?;
        for (key, value) in json {
            match key.as_str() {
                "extends" => {}
                "placements" => placements(&mut plan, value)?,
                "axis" => plan.axis = Some(axis(value)?),
                "styles" => styles(&mut plan, "", value)?,
                "data" => plan.data = Some(data(value)?),
                "loss_parallel" => {
                    let on = value.as_bool();
                    plan.loss_parallel = on.ok_or_else(|| wrong_kind("loss_parallel", "true or false", value))?;
                }
                _ => {
                    let known = "extends, axis, styles, data, loss_parallel, placements";
                    return Err(PlanError::Key { key: key.clone(), place: "the plan".into(), known });
                }
            }
        }
        // A nested map of styles can have a path that the outer map also has.
        let mut paths = HashSet::new();
        match plan.styles.iter().find(|entry| !paths.insert(&entry.path)) {
            Some(Entry { path, .. }) => Err(PlanError::RepeatedPath { path: path.clone() }),
            None => Ok(plan),
        }
    }
}

/// The error that a value of the file has another kind than expected.
fn wrong_kind(key: &str, expected: &'static str, found: &Json) -> PlanError {
    PlanError::Kind { entry: None, key: key.into(), expected, found: found.to_string() }
}

/// Checks that a text can name an axis.
fn axis_name(key: &'static str, name: &str) -> Result<String, PlanError> {
    let name = name.to_string();
    if is_name(&name) { Ok(name) } else { Err(PlanError::Axis { key, problem: MeshError::Name(name) }) }
}

fn object<'a>(key: &str, json: &'a Json) -> Result<&'a Map<String, Json>, PlanError> {
    json.as_object().ok_or_else(|| wrong_kind(key, "an object", json))
}

fn string(key: &str, json: &Json) -> Result<String, PlanError> {
    json.as_str().map(str::to_string).ok_or_else(|| wrong_kind(key, "a string", json))
}

/// Parses a name or a position of an axis.
fn axis(json: &Json) -> Result<MeshDim, PlanError> {
    match (json.as_str(), json.as_i64()) {
        (Some(name), _) => axis_name("axis", name).map(MeshDim::Name),
        (_, Some(index)) => Ok(MeshDim::Index(index as isize)),
        _ => Err(wrong_kind("axis", "the name or number of a mesh axis", json)),
    }
}

/// Adds styles by path. Values may be nested maps with relative paths.
fn styles(plan: &mut Plan, prefix: &str, json: &Json) -> Result<(), PlanError> {
    for (path, value) in object("styles", json)? {
        let path = match (prefix.is_empty(), path.is_empty()) {
            (true, _) => path.clone(),
            (false, true) => prefix.to_string(),
            (false, false) => format!("{prefix}.{path}"),
        };
        let mut add = |style| -> Result<(), PlanError> {
            Pattern::new(&path).map_err(|problem| PlanError::Pattern { path: path.clone(), problem })?;
            plan.styles.push(Entry { path: path.clone(), style });
            Ok(())
        };
        match value {
            Json::String(name) => match named(name, &Map::new(), &path)? {
                Some(style) => add(style)?,
                None => return Err(unknown_style(path, name)),
            },
            // A misspelled style with options also looks like a map of styles: `are_options` tells them apart.
            Json::Object(map) if map.is_empty() => return Err(wrong_kind(&path, "a style or a map of styles", value)),
            Json::Object(map) => match map.iter().next() {
                Some((name, Json::Object(options))) if map.len() == 1 => match named(name, options, &path)? {
                    Some(style) => add(style)?,
                    None if are_options(options) => return Err(unknown_style(path, name)),
                    None => styles(plan, &path, value)?,
                },
                _ => styles(plan, &path, value)?,
            },
            other => return Err(wrong_kind(&path, "a style or a map of styles", other)),
        }
    }
    Ok(())
}

fn unknown_style(path: String, style: &str) -> PlanError {
    PlanError::Style { path, style: style.into(), known: STYLES.map(|s| s.0).join(", ") }
}

/// Whether the keys of a map are names of options of styles, so that it is not a map of paths.
fn are_options(map: &Map<String, Json>) -> bool {
    let known = |key: &str| STYLES.iter().any(|(_, options)| options.split(", ").any(|o| o == key));
    !map.is_empty() && map.keys().all(|key| known(key) && key != "none")
}

/// The style with a name and its options; `None` if there is no such style.
fn named(name: &str, options: &Map<String, Json>, path: &str) -> Result<Option<Arc<dyn ParallelStyle>>, PlanError> {
    let Some((_, known)) = STYLES.iter().find(|s| s.0 == name) else { return Ok(None) };
    if let Some(key) = options.keys().find(|k| !known.split(", ").any(|o| o == k.as_str())) {
        return Err(PlanError::Key { key: key.clone(), place: format!("`{path}`"), known });
    }
    let o = Options { map: options, entry: path };
    let style: Arc<dyn ParallelStyle> = match name {
        "ColwiseParallel" => Arc::new(ColwiseParallel {
            input_layouts: o.layout("input_layouts")?,
            output_layouts: o.layout("output_layouts")?,
            prepare_input: o.prepare("prepare_input")?,
            prepare_output: o.prepare("prepare_output")?,
        }),
        "RowwiseParallel" => Arc::new(RowwiseParallel {
            input_layouts: o.layout("input_layouts")?,
            output_layouts: o.layout("output_layouts")?,
            prepare_input: o.prepare("prepare_input")?,
            prepare_output: o.prepare("prepare_output")?,
        }),
        "PairwiseParallel" => Arc::new(PairwiseParallel),
        "TensorParallelMultiheadAttention" => Arc::new(TensorParallelMultiheadAttention),
        // In PyTorch, the default is the first dimension for PairwiseSequenceParallel, and the second for
        // SequenceParallel.
        "PairwiseSequenceParallel" => Arc::new(PairwiseSequenceParallel { sequence_dim: o.dimension(0)? }),
        "SequenceParallel" => Arc::new(SequenceParallel { sequence_dim: o.dimension(1)? }),
        "PrepareModuleInput" => Arc::new(o.inputs()?),
        "PrepareModuleOutput" => Arc::new(o.outputs()?),
        _ => Arc::new(PrepareModuleInputOutput { inputs: o.inputs()?, outputs: o.outputs()? }),
    };
    Ok(Some(style))
}

/// The options of the style of one plan entry.
struct Options<'a> {
    map: &'a Map<String, Json>,
    entry: &'a str,
}

impl Options<'_> {
    /// [`wrong_kind`], in the options of a style.
    fn wrong_kind(&self, key: &str, expected: &'static str, found: &Json) -> PlanError {
        PlanError::Kind { entry: Some(self.entry.into()), key: key.into(), expected, found: found.to_string() }
    }

    fn dimension(&self, default: isize) -> Result<isize, PlanError> {
        let Some(value) = self.map.get("sequence_dim") else { return Ok(default) };
        let dim = value.as_i64().map(|d| d as isize);
        dim.ok_or_else(|| self.wrong_kind("sequence_dim", "a dimension number", value))
    }

    fn layout(&self, key: &str) -> Result<Option<Layout>, PlanError> {
        self.map.get(key).map_or(Ok(None), |json| self.one_layout(key, json))
    }

    fn prepare(&self, key: &str) -> Result<Option<Prepare>, PlanError> {
        let Some(json) = self.map.get(key) else { return Ok(None) };
        // A style works on one dimension of a mesh, for which a mesh of one rank stands here.
        let found = json.as_str().and_then(|name| prepare::named(name, &Mesh::single())).and_then(Result::ok);
        let expected = "the name of a prepare function, such as \"make_output_tensor\"";
        found.map(Some).ok_or_else(|| self.wrong_kind(key, expected, json))
    }

    /// A layout, or `null` for a tensor that is not constrained.
    fn one_layout(&self, key: &str, json: &Json) -> Result<Option<Layout>, PlanError> {
        if json.is_null() {
            return Ok(None);
        }
        let layout = json.as_str().and_then(Layout::parse);
        layout.map(Some).ok_or_else(|| self.wrong_kind(key, "\"Replicate\" or \"Shard(DIM)\"", json))
    }

    /// One layout, or a list with one per tensor.
    fn layouts(&self, key: &str) -> Result<Vec<Option<Layout>>, PlanError> {
        match self.map.get(key) {
            None => Ok(Vec::new()),
            Some(Json::Array(all)) => all.iter().map(|json| self.one_layout(key, json)).collect(),
            Some(json) => Ok(vec![self.one_layout(key, json)?]),
        }
    }

    fn inputs(&self) -> Result<PrepareModuleInput, PlanError> {
        Ok(PrepareModuleInput {
            input_layouts: self.layouts("input_layouts")?,
            desired_input_layouts: self.layouts("desired_input_layouts")?,
        })
    }

    fn outputs(&self) -> Result<PrepareModuleOutput, PlanError> {
        Ok(PrepareModuleOutput {
            output_layouts: self.layouts("output_layouts")?,
            desired_output_layouts: self.layouts("desired_output_layouts")?,
        })
    }
}

/// Adds the placements of inputs: for each dimension the axis that cuts it, a list of several, or `null`.
fn placements(plan: &mut Plan, json: &Json) -> Result<(), PlanError> {
    const EXPECTED: &str = "a list with an axis, a list of axes or null for each dimension";
    for (kind_of, entries) in object("placements", json)? {
        let inputs: fn(String) -> StoredInputs = match kind_of.as_str() {
            "parameters" => StoredInputs::Parameters,
            "states" => StoredInputs::States,
            "data" => StoredInputs::Data,
            _ => {
                let known = "parameters, states, data";
                return Err(PlanError::Key { key: kind_of.clone(), place: "`placements`".into(), known });
            }
        };
        for (path, value) in object(kind_of, entries)? {
            let axes = |dim: &Json| match dim {
                Json::Null => Ok(Vec::new()),
                Json::String(name) => Ok(vec![axis_name("placements", name)?]),
                Json::Array(names) => names.iter().map(|name| axis_name("placements", &string(path, name)?)).collect(),
                other => Err(wrong_kind(path, EXPECTED, other)),
            };
            let dims = value.as_array().ok_or_else(|| wrong_kind(path, EXPECTED, value))?;
            let dims = dims.iter().map(axes).collect::<Result<_, _>>()?;
            plan.storage.push(StoragePlan { inputs: inputs(path.clone()), dims });
        }
    }
    Ok(())
}

/// The placements of inputs in the form that [`Plan::from_json`] reads.
pub fn placements_json(storage: &[StoragePlan]) -> Json {
    let mut kinds: Map<String, Json> = Map::new();
    for entry in storage {
        let kind = match entry.inputs {
            StoredInputs::Parameters(_) => "parameters",
            StoredInputs::States(_) => "states",
            StoredInputs::Data(_) => "data",
        };
        let dim = |axes: &Vec<String>| match axes.as_slice() {
            [] => Json::Null,
            [only] => Json::from(only.as_str()),
            several => Json::from(several),
        };
        let dims: Vec<Json> = entry.dims.iter().map(dim).collect();
        kinds.entry(kind).or_insert_with(|| Map::new().into())[entry.path()] = dims.into();
    }
    kinds.into()
}

/// Parses the data mode and its axis: `{"mode": "hsdp", "axis": "dp", "replicate_axis": "rep"}`, or the mode alone,
/// whose axes then have these names.
fn data(json: &Json) -> Result<(DataMode, String), PlanError> {
    const MODES: &str = "\"ddp\", \"fsdp\", \"zero1\" or \"hsdp\"";
    let (mut mode, mut axis, mut replicas) = (None, "dp".to_string(), None);
    let keys = match json {
        Json::String(name) => &Map::from_iter([("mode".to_string(), Json::from(name.as_str()))]),
        Json::Object(keys) => keys,
        other => return Err(wrong_kind("data", "a mode or an object with the keys mode, axis, replicate_axis", other)),
    };
    for (key, value) in keys {
        match key.as_str() {
            "mode" => mode = Some(string("data.mode", value)?),
            "axis" => axis = axis_name("data.axis", &string("data.axis", value)?)?,
            "replicate_axis" => {
                replicas = Some(axis_name("data.replicate_axis", &string("data.replicate_axis", value)?)?);
            }
            _ => {
                let known = "mode, axis, replicate_axis";
                return Err(PlanError::Key { key: key.clone(), place: "`data`".into(), known });
            }
        }
    }
    let key = if json.is_string() { "data" } else { "data.mode" };
    let found = |text: &str| PlanError::Kind { entry: None, key: key.into(), expected: MODES, found: text.into() };
    let mode = match mode.as_deref() {
        Some("ddp") => DataMode::Ddp,
        Some("fsdp") => DataMode::Fsdp,
        Some("zero1") => DataMode::Zero1,
        Some("hsdp") => DataMode::Hsdp { replicate_axis: replicas.take().unwrap_or_else(|| "rep".into()) },
        Some(other) => return Err(found(other)),
        None => return Err(found("nothing")),
    };
    match replicas {
        Some(axis) => Err(PlanError::Kind {
            entry: None,
            key: "data.replicate_axis".into(),
            expected: "given with the mode \"hsdp\" only",
            found: axis,
        }),
        None => Ok((mode, axis)),
    }
}
