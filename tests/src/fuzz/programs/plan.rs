//! Random plans and the meshes that they are for. Every plan is well formed; a few do not fit the model.

use super::dice::Dice;
use super::modules::{Kind, Modules};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tpc_passes::styles::plan::BUILT_IN;
use tpc_passes::styles::{Plan, PlanError};

/// A plan in the form in which the command takes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanChoice {
    /// The name of a built-in plan.
    BuiltIn(String),
    /// A plan file.
    File(PlanFile),
}

/// The contents of a plan file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanFile {
    /// The axis of the styles, if the plan names one.
    pub axis: Option<Value>,
    /// Styles by path, in order.
    pub styles: Vec<(String, Value)>,
    /// Whether logits must stay sharded over the vocabulary.
    pub loss_parallel: bool,
    /// The data mode and its axes.
    pub data: Option<Value>,
}

/// Axes with their sizes, in order.
pub type Axes = Vec<(String, usize)>;

/// The mesh as a command-line argument.
pub fn mesh_text(axes: &Axes) -> String {
    let axes: Vec<String> = axes.iter().map(|(name, size)| format!("{name}={size}")).collect();
    axes.join(",")
}

impl PlanFile {
    /// The text of the file.
    pub fn text(&self) -> String {
        let mut all = Map::new();
        if let Some(axis) = &self.axis {
            all.insert("axis".into(), axis.clone());
        }
        if !self.styles.is_empty() {
            all.insert("styles".into(), Value::Object(self.styles.iter().cloned().collect()));
        }
        if self.loss_parallel {
            all.insert("loss_parallel".into(), json!(true));
        }
        if let Some(data) = &self.data {
            all.insert("data".into(), data.clone());
        }
        Value::Object(all).to_string()
    }
}

impl PlanChoice {
    /// The plan as a value of the API.
    ///
    /// # Errors
    /// Never for a plan that was drawn.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        match self {
            PlanChoice::BuiltIn(name) => Plan::built_in(name),
            PlanChoice::File(file) => Plan::from_json(&file.text()),
        }
    }

    /// Draws a plan for a model, and a mesh for the plan.
    pub fn draw(dice: &mut Dice, modules: &Modules) -> (Self, Axes) {
        if dice.percent(22) {
            let name = dice.pick(&BUILT_IN);
            let (tensor, data) = match name {
                "none" => (dice.percent(50), None),
                "2d" => (true, Some("fsdp")),
                _ => (name.starts_with("tp"), ["ddp", "fsdp", "zero1", "hsdp"].into_iter().find(|d| name.ends_with(d))),
            };
            let axes = axes(dice, tensor.then_some("tp"), data);
            return (PlanChoice::BuiltIn(name.into()), axes);
        }
        let mut file = PlanFile { styles: styles(dice, modules), ..PlanFile::default() };
        file.loss_parallel = match modules.head() {
            Some(head) => {
                let columns = |(path, style): &(String, Value)| path == head && style.to_string().contains("Colwise");
                file.styles.iter().any(columns) && dice.percent(40)
            }
            None => false,
        };
        let data = dice.percent(30).then(|| dice.pick(&["ddp", "fsdp", "fsdp", "zero1", "hsdp"]));
        file.data = data.map(|mode| json!({ "mode": mode }));
        let name = if dice.percent(90) { "tp" } else { "model" };
        let axes = axes(dice, Some(name), data);
        let at = axes.iter().position(|(axis, _)| axis == name).unwrap_or(0);
        file.axis = match dice.below(10) {
            0 => Some(json!(at)),
            1 => Some(json!(at as i64 - axes.len() as i64)),
            2 => Some(json!(name)),
            // Without a name the styles use the axis `tp`, or the only axis that is left.
            _ => None,
        };
        if name != "tp" && axes.len() > 1 {
            file.axis = Some(json!(name));
        }
        (PlanChoice::File(file), axes)
    }

    /// Simpler plans, each with the axes that it needs no longer.
    pub fn simpler(&self) -> Vec<PlanChoice> {
        let PlanChoice::File(file) = self else { return Vec::new() };
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut PlanFile)| {
            let mut plan = file.clone();
            change(&mut plan);
            if plan != *file {
                all.push(PlanChoice::File(plan));
            }
        };
        with(&|p| p.data = None);
        with(&|p| p.loss_parallel = false);
        let half = file.styles.len() / 2;
        if half > 1 {
            with(&|p| _ = p.styles.drain(..half));
            with(&|p| p.styles.truncate(half));
        }
        for at in 0..file.styles.len() {
            with(&|p| _ = p.styles.remove(at));
        }
        for (at, (_, style)) in file.styles.iter().enumerate() {
            let Some((name, options)) = style.as_object().and_then(|o| o.iter().next()) else { continue };
            with(&|p| p.styles[at].1 = json!(name));
            for key in options.as_object().into_iter().flat_map(Map::keys) {
                with(&|p| {
                    if let Some(options) = p.styles[at].1[name].as_object_mut() {
                        options.remove(key);
                    }
                });
            }
        }
        all
    }
}

/// The largest number of ranks in a mesh.
const MOST: usize = 16;

/// Draws the sizes of the axis of the styles and of the data axes, in any order.
fn axes(dice: &mut Dice, tensor: Option<&str>, data: Option<&str>) -> Axes {
    let mut axes = Axes::new();
    let mut left = MOST;
    for name in match data {
        Some("hsdp") => &["rep", "dp"][..],
        Some(_) => &["dp"],
        None => &[],
    } {
        let size = dice.pick(&[2, 2, 2, 3, 3, 4, 1]).min(left);
        left /= size;
        axes.push(((*name).to_string(), size));
    }
    if let Some(name) = tensor {
        let size = dice.pick(&[2, 2, 2, 3, 3, 3, 4, 4, 5, 6, 7, 8, 8, 1, 9, 11, 12, 16]).min(left);
        let at = dice.below(axes.len() + 1);
        axes.insert(at, (name.to_string(), size));
    }
    axes
}

fn styles(dice: &mut Dice, modules: &Modules) -> Vec<(String, Value)> {
    let mut styles: Vec<(String, Value)> = Vec::new();
    // Modules whose linears already belong to a pair.
    let mut paired: Vec<String> = Vec::new();
    let containers = |dice: &mut Dice, styles: &mut Vec<(String, Value)>, paired: &mut Vec<String>, many: usize| {
        for _ in 0..many {
            let path = dice.pick(&modules.containers);
            let below = |a: &str, b: &str| a.is_empty() || b == a || b.starts_with(&format!("{a}."));
            let style = if dice.percent(55) {
                if paired.iter().any(|p| below(p, &path) || below(&path, p)) {
                    continue;
                }
                paired.push(path.clone());
                pair(dice)
            } else {
                boundary(dice, 3)
            };
            add(styles, path, style);
        }
    };
    match dice.below(10) {
        // A few single modules.
        0..=4 => {
            if dice.percent(30) {
                containers(dice, &mut styles, &mut paired, 1);
            }
            for _ in 0..dice.between(1, 4) {
                let (path, kind) = dice.pick(&modules.leaves);
                leaf(dice, &mut styles, &paired, path, kind);
            }
        }
        // Many of them.
        5 | 6 => {
            let share = dice.pick(&[20, 50, 80]);
            for (path, kind) in &modules.leaves {
                if dice.percent(share) {
                    leaf(dice, &mut styles, &paired, path.clone(), *kind);
                }
            }
        }
        // Whole blocks.
        7 => {
            let many = dice.between(1, 3);
            containers(dice, &mut styles, &mut paired, many);
            if dice.percent(50) {
                let (path, kind) = dice.pick(&modules.leaves);
                leaf(dice, &mut styles, &paired, path, kind);
            }
        }
        // The usual plan, with some modules missing or with another style.
        _ => {
            let missing = dice.pick(&[0, 10, 30]);
            for (path, kind) in &modules.leaves {
                if dice.percent(missing) {
                    continue;
                }
                if dice.percent(10) {
                    leaf(dice, &mut styles, &paired, path.clone(), *kind);
                    continue;
                }
                let last = path.rsplit('.').next().unwrap_or(path);
                let rows = matches!(last, "o_proj" | "down_proj" | "c_proj" | "wo" | "w2" | "dense")
                    && !path.contains("intermediate");
                let style = match kind {
                    Kind::Norm if dice.percent(50) => json!("SequenceParallel"),
                    Kind::Norm | Kind::Embedding => continue,
                    Kind::Linear if rows => json!("RowwiseParallel"),
                    Kind::Linear => json!("ColwiseParallel"),
                };
                add(&mut styles, path.clone(), style);
            }
        }
    }
    if styles.is_empty() {
        // An axis that no style uses is an error.
        styles.push((String::new(), json!("PairwiseParallel")));
    }
    if dice.percent(25) {
        globs(dice, &mut styles);
    }
    styles
}

fn add(styles: &mut Vec<(String, Value)>, path: String, style: Value) {
    if !styles.iter().any(|(p, _)| *p == path) {
        styles.push((path, style));
    }
}

/// Gives a style to a module with parameters, unless a pair already contains it.
fn leaf(dice: &mut Dice, styles: &mut Vec<(String, Value)>, paired: &[String], path: String, kind: Kind) {
    let taken = paired.iter().any(|p| p.is_empty() || path.starts_with(&format!("{p}.")));
    let style = match kind {
        Kind::Norm if dice.percent(70) => sequence(dice),
        Kind::Norm => boundary(dice, 3),
        Kind::Linear | Kind::Embedding if taken => return,
        Kind::Linear => weight(dice, 3),
        Kind::Embedding => weight(dice, 2),
    };
    add(styles, path, style);
}

fn layout(dice: &mut Dice, dims: usize) -> Value {
    match dice.below(dims + 3) {
        0 | 1 => json!("Replicate"),
        2 => json!("Shard(-1)"),
        n => json!(format!("Shard({})", n - 3)),
    }
}

fn weight(dice: &mut Dice, dims: usize) -> Value {
    let name = if dice.percent(55) { "ColwiseParallel" } else { "RowwiseParallel" };
    let mut options = Map::new();
    if dice.percent(20) {
        options.insert("input_layouts".into(), layout(dice, dims));
    }
    if dice.percent(25) {
        options.insert("output_layouts".into(), layout(dice, 3));
    }
    const INPUTS: [&str; 4] =
        ["make_input_replicate_1d", "make_input_reshard_replicate", "make_input_shard_1d:1", "make_input_shard_1d"];
    const OUTPUTS: [&str; 5] = [
        "make_output_replicate_1d",
        "make_output_reshard_tensor",
        "make_output_shard_1d:1",
        "make_output_shard_1d:-1",
        "make_output_tensor",
    ];
    if dice.percent(8) {
        options.insert("prepare_input".into(), json!(dice.pick(&INPUTS)));
    }
    if dice.percent(8) {
        options.insert("prepare_output".into(), json!(dice.pick(&OUTPUTS)));
    }
    if options.is_empty() { json!(name) } else { json!({ name: options }) }
}

fn sequence(dice: &mut Dice) -> Value {
    match dice.below(5) {
        0 => json!({ "SequenceParallel": { "sequence_dim": 0 } }),
        1 => json!({ "SequenceParallel": { "sequence_dim": -2 } }),
        _ => json!("SequenceParallel"),
    }
}

fn pair(dice: &mut Dice) -> Value {
    match dice.below(6) {
        0 => json!("PairwiseSequenceParallel"),
        1 => json!({ "PairwiseSequenceParallel": { "sequence_dim": 1 } }),
        2 => json!("TensorParallelMultiheadAttention"),
        _ => json!("PairwiseParallel"),
    }
}

/// Layouts of a module's arguments or results.
fn boundary(dice: &mut Dice, dims: usize) -> Value {
    let side = |dice: &mut Dice, options: &mut Map<String, Value>, name: &str| {
        if dice.percent(40) {
            options.insert(format!("{name}_layouts"), layout(dice, dims));
        }
        if options.is_empty() || dice.percent(70) {
            options.insert(format!("desired_{name}_layouts"), layout(dice, dims));
        }
    };
    let mut options = Map::new();
    match dice.below(3) {
        0 => {
            side(dice, &mut options, "input");
            json!({ "PrepareModuleInput": options })
        }
        1 => {
            side(dice, &mut options, "output");
            json!({ "PrepareModuleOutput": options })
        }
        _ => {
            side(dice, &mut options, "input");
            let mut outputs = Map::new();
            side(dice, &mut outputs, "output");
            options.extend(outputs);
            json!({ "PrepareModuleInputOutput": options })
        }
    }
}

/// Replaces layer numbers by globs in some entries.
fn globs(dice: &mut Dice, styles: &mut Vec<(String, Value)>) {
    let mut globbed: Vec<(String, Value)> = Vec::new();
    for (path, style) in styles.drain(..) {
        let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let glob = dice.pick(&["*", "*", "?", "[0-9]", "{0,1,2}"]);
        let path: Vec<&str> = path.split('.').map(|s| if is_number(s) { glob } else { s }).collect();
        let path = path.join(".");
        // A second glob for the same layers would be a duplicate claim.
        let plain = |p: &str| ["*", "?", "[0-9]", "{0,1,2}"].iter().fold(p.to_string(), |p, g| p.replace(g, "*"));
        if !globbed.iter().any(|(p, _)| plain(p) == plain(&path)) {
            globbed.push((path, style));
        }
    }
    *styles = globbed;
}
