//! The JSON form of plans (API.md section 7).

use super::data::DataMode;
use super::layout::Layout;
use super::linear::{ColwiseParallel, RowwiseParallel};
use super::pairwise::{PairwiseParallel, PairwiseSequenceParallel, TensorParallelMultiheadAttention};
use super::plan::{Entry, MeshDim, Plan, PlanError};
use super::prepare::{self, Prepare};
use super::prepare_module::{PrepareModuleInput, PrepareModuleInputOutput, PrepareModuleOutput};
use super::sequence::SequenceParallel;
use super::style::ParallelStyle;
use serde_json::{Map, Value as Json};
use std::sync::Arc;
use tpc_ir::Mesh;

/// Names of the styles and the options that each knows.
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
    /// Reads the JSON form.
    ///
    /// # Errors
    /// Unknown keys and styles, values of the wrong kind.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        let json: Json = serde_json::from_str(text).map_err(|e| PlanError::Json(e.to_string()))?;
        let mut plan = Plan::new();
        for (key, value) in object("the plan", &json)? {
            match key.as_str() {
                "axis" => plan.axis = Some(axis(value)?),
                "styles" => styles(&mut plan, "", value)?,
                "data" => plan.data = Some(data(value)?),
                "loss_parallel" => {
                    let on = value.as_bool();
                    plan.loss_parallel = on.ok_or_else(|| kind("loss_parallel", "true or false", value))?;
                }
                _ => {
                    let known = "axis, styles, data, loss_parallel";
                    return Err(PlanError::Key { key: key.clone(), place: "the plan".into(), known });
                }
            }
        }
        Ok(plan)
    }
}

fn kind(key: &str, expected: &'static str, found: &Json) -> PlanError {
    PlanError::Kind { key: key.into(), expected, found: found.to_string() }
}

fn object<'a>(key: &str, json: &'a Json) -> Result<&'a Map<String, Json>, PlanError> {
    json.as_object().ok_or_else(|| kind(key, "an object", json))
}

fn string(key: &str, json: &Json) -> Result<String, PlanError> {
    json.as_str().map(str::to_string).ok_or_else(|| kind(key, "a string", json))
}

/// A name, or a position.
fn axis(json: &Json) -> Result<MeshDim, PlanError> {
    match (json.as_str(), json.as_i64()) {
        (Some(name), _) => Ok(MeshDim::Name(name.into())),
        (_, Some(index)) => Ok(MeshDim::Index(index as isize)),
        _ => Err(kind("axis", "the name or number of a mesh axis", json)),
    }
}

/// Values may be maps again, with relative paths.
fn styles(plan: &mut Plan, prefix: &str, json: &Json) -> Result<(), PlanError> {
    for (path, value) in object("styles", json)? {
        let path = match (prefix.is_empty(), path.is_empty()) {
            (true, _) => path.clone(),
            (false, true) => prefix.to_string(),
            (false, false) => format!("{prefix}.{path}"),
        };
        let mut add = |style| plan.styles.push(Entry { path: path.clone(), style });
        match value {
            Json::String(name) => match named(name, &Map::new(), &path)? {
                Some(style) => add(style),
                None => {
                    let known = STYLES.map(|s| s.0).join(", ");
                    return Err(PlanError::Style { path, style: name.clone(), known });
                }
            },
            // A misspelt style with options is such a map too: it must not pass in silence.
            Json::Object(map) if map.is_empty() => return Err(kind(&path, "a style or a map of styles", value)),
            Json::Object(map) => match map.iter().next() {
                Some((name, Json::Object(options))) if map.len() == 1 => match named(name, options, &path)? {
                    Some(style) => add(style),
                    None => styles(plan, &path, value)?,
                },
                _ => styles(plan, &path, value)?,
            },
            other => return Err(kind(&path, "a style or a map of styles", other)),
        }
    }
    Ok(())
}

/// The style of that name with its options; `None` if there is no such style.
fn named(name: &str, options: &Map<String, Json>, path: &str) -> Result<Option<Arc<dyn ParallelStyle>>, PlanError> {
    let Some((_, known)) = STYLES.iter().find(|s| s.0 == name) else { return Ok(None) };
    if let Some(key) = options.keys().find(|k| !known.split(", ").any(|o| o == k.as_str())) {
        return Err(PlanError::Key { key: key.clone(), place: format!("`{path}`"), known });
    }
    let o = Options(options);
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
        // The page's default is the first dimension; today's SequenceParallel has the second.
        "PairwiseSequenceParallel" => Arc::new(PairwiseSequenceParallel { sequence_dim: o.dimension(0)? }),
        "SequenceParallel" => Arc::new(SequenceParallel { sequence_dim: o.dimension(1)? }),
        "PrepareModuleInput" => Arc::new(o.inputs()?),
        "PrepareModuleOutput" => Arc::new(o.outputs()?),
        _ => Arc::new(PrepareModuleInputOutput { inputs: o.inputs()?, outputs: o.outputs()? }),
    };
    Ok(Some(style))
}

struct Options<'a>(&'a Map<String, Json>);

impl Options<'_> {
    fn dimension(&self, default: isize) -> Result<isize, PlanError> {
        let Some(value) = self.0.get("sequence_dim") else { return Ok(default) };
        let dim = value.as_i64().map(|d| d as isize);
        dim.ok_or_else(|| kind("sequence_dim", "a dimension number", value))
    }

    fn layout(&self, key: &str) -> Result<Option<Layout>, PlanError> {
        self.0.get(key).map_or(Ok(None), |json| one_layout(key, json))
    }

    fn prepare(&self, key: &str) -> Result<Option<Prepare>, PlanError> {
        let Some(json) = self.0.get(key) else { return Ok(None) };
        // The style's axis is one dimension of the mesh, so the functions always apply.
        let found = json.as_str().and_then(|name| prepare::named(name, &Mesh::single())).and_then(Result::ok);
        found.map(Some).ok_or_else(|| kind(key, "the name of a prepare function, such as \"make_output_tensor\"", json))
    }

    /// One layout, or a list with one per tensor.
    fn layouts(&self, key: &str) -> Result<Vec<Option<Layout>>, PlanError> {
        match self.0.get(key) {
            None => Ok(Vec::new()),
            Some(Json::Array(all)) => all.iter().map(|json| one_layout(key, json)).collect(),
            Some(json) => Ok(vec![one_layout(key, json)?]),
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

/// A layout, or `null` for a tensor that is left alone.
fn one_layout(key: &str, json: &Json) -> Result<Option<Layout>, PlanError> {
    if json.is_null() {
        return Ok(None);
    }
    let layout = json.as_str().and_then(Layout::parse);
    layout.map(Some).ok_or_else(|| kind(key, "\"Replicate\" or \"Shard(DIM)\"", json))
}

fn data(json: &Json) -> Result<(DataMode, String), PlanError> {
    const MODES: &str = "\"ddp\", \"fsdp\", \"zero1\" or \"hsdp\"";
    let (mut mode, mut axis, mut replicas) = (None, "dp".to_string(), None);
    for (key, value) in object("data", json)? {
        match key.as_str() {
            "mode" => mode = Some(string("data.mode", value)?),
            "axis" => axis = string("data.axis", value)?,
            "replicate_axis" => replicas = Some(string("data.replicate_axis", value)?),
            _ => {
                let known = "mode, axis, replicate_axis";
                return Err(PlanError::Key { key: key.clone(), place: "`data`".into(), known });
            }
        }
    }
    let found = |text: &str| PlanError::Kind { key: "data.mode".into(), expected: MODES, found: text.into() };
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
            key: "data.replicate_axis".into(),
            expected: "given with the mode \"hsdp\" only",
            found: axis,
        }),
        None => Ok((mode, axis)),
    }
}
