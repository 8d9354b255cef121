//! Model directories with reference results: every plan computes on every mesh what PyTorch computes.

use burn::optim::AdamWConfig;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::PathBuf;
use tpc_compiler::models::{ModelDir, weight_map};
use tpc_compiler::pretrained::{TokenBatch, capture_step, load_weights, names};
use tpc_compiler::program::{CompileOptions, compile_training};
use tpc_ir::{Mesh, OutputKind};
use tpc_passes::options::StepOptions;
use tpc_passes::options::clip::GRAD_NORM;
use tpc_passes::styles::Plan;
use tpc_runtime::LaunchOptions;

fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

struct File(Vec<u8>);

impl File {
    fn open(path: PathBuf) -> Self {
        File(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn all(&self) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let values = |t: &safetensors::tensor::TensorView| -> Vec<f64> {
            match t.dtype() {
                safetensors::Dtype::F32 => {
                    t.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
                }
                safetensors::Dtype::I64 => {
                    t.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect()
                }
                other => panic!("{other:?}"),
            }
        };
        tensors.iter().map(|(n, t)| (n.to_string(), (t.shape().to_vec(), values(&t)))).collect()
    }
}

/// How a run differs from the reference run.
#[derive(Clone, Copy, Debug, Default)]
struct Variation {
    /// How often the batch is repeated, which changes no mean; 0 means once.
    tiles: usize,
    /// The number of micro-batches; 0 means one.
    micro_batches: usize,
    /// The gradient norm to clip to, as a fraction of the norm of the first gradients.
    clip: Option<f64>,
}

/// The results of a run, under the names and layouts of the weight files.
struct Trained {
    losses: Vec<f64>,
    norms: Vec<f64>,
    gradients: HashMap<String, Vec<f32>>,
    parameters: HashMap<String, Vec<f32>>,
}

/// A model directory with reference results.
struct Reference {
    model: &'static str,
    dir: ModelDir,
    losses: Vec<f64>,
    tensors: HashMap<String, (Vec<usize>, Vec<f64>)>,
    inputs: HashMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Reference {
    fn open(model: &'static str) -> Self {
        let dir = data(model);
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        Reference {
            model,
            losses: expected["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect(),
            tensors: File::open(dir.join("expected.safetensors")).all(),
            inputs: File::open(dir.join("inputs.safetensors")).all(),
            dir: ModelDir::open(&dir).unwrap(),
        }
    }

    /// The L2 norm of all gradients of the first step.
    fn norm(&self) -> f64 {
        let gradients = self.tensors.iter().filter(|(n, _)| n.starts_with("grad."));
        gradients.flat_map(|(_, (_, v))| v).map(|g| g * g).sum::<f64>().sqrt()
    }

    /// Runs three AdamW steps.
    fn train(&self, plan: &str, mesh: &str, vary: Variation) -> Trained {
        let tiles = vary.tiles.max(1);
        let shape = &self.inputs["input_ids"].0;
        let tokens = TokenBatch {
            batch: shape[0] * tiles,
            seq: shape[1],
            attention_mask: self.inputs.contains_key("attention_mask"),
            token_type_ids: self.inputs.contains_key("token_type_ids"),
            documents: false,
        };
        let optimizer =
            AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(0.1).build();
        let capture = capture_step(&self.dir.config, tokens, &optimizer).unwrap();
        let names = names(&self.dir.config);
        let rename = |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
        let plan = Plan::built_in(plan).unwrap();
        let step = StepOptions {
            micro_batches: vary.micro_batches.max(1),
            clip_norm: vary.clip.map(|part| part * self.norm()),
            ..StepOptions::default()
        };
        let options = CompileOptions { gradients: true, step, ..CompileOptions::for_cpu() };
        let program = compile_training(capture, &Mesh::parse(mesh).unwrap(), &plan, &options, &rename).unwrap();
        assert_eq!([&program.first, &program.steady].map(|s| s.report.declined), [None; 2]);
        let predicted: Vec<usize> = program.first.ranks.iter().map(|r| r.arena_bytes).collect();
        let mut training = program.launch(LaunchOptions::default()).unwrap();
        let map = weight_map(&self.dir.config);
        load_weights(training.session(), &map, &self.dir.weights).unwrap();
        let given: Vec<String> = training.session().program(0).inputs.iter().map(|i| i.name.clone()).collect();
        for (name, (_, values)) in self.inputs.iter().filter(|(name, _)| given.contains(name)) {
            training.session().write_f64(name, &values.repeat(tiles)).unwrap();
        }
        let mut found =
            Trained { losses: Vec::new(), norms: Vec::new(), gradients: HashMap::new(), parameters: HashMap::new() };
        let short = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect::<Vec<f32>>();
        for i in 0..self.losses.len() {
            found.losses.push(training.step(1e-3).unwrap());
            let session = training.session();
            if vary.clip.is_some() {
                found.norms.extend(session.read_f64(&OutputKind::Result(GRAD_NORM.into())).unwrap());
            }
            for entry in map.entries.iter().filter(|_| i == 0) {
                if let Ok(values) = session.read_f64(&OutputKind::Gradient(entry.name().into())) {
                    // Parameters that are rows of one tensor follow each other.
                    let rows = entry.to_file_layout(short(values));
                    found.gradients.entry(entry.hf_name.clone()).or_default().extend(rows);
                }
            }
        }
        for entry in &map.entries {
            let values = training.session().read_input_f64(entry.name()).unwrap();
            found.parameters.entry(entry.hf_name.clone()).or_default().extend(entry.to_file_layout(short(values)));
        }
        for (rank, bytes) in predicted.into_iter().enumerate() {
            assert_eq!(training.session().allocated_bytes(rank), bytes, "the arena is what was predicted");
        }
        found
    }

    /// Compares losses to 1e-5, gradients of the first step to 1e-4 of each tensor's largest element, and parameters to
    /// 2e-4. `losses` and `parameters` are the expected results of the steps.
    fn agrees(&self, found: &Trained, losses: &[f64], parameters: &dyn Fn(&str) -> Option<Vec<f64>>, what: &str) {
        let what = format!("{} {what}", self.model);
        let gradients: Vec<(&str, &Vec<f64>)> =
            self.tensors.iter().filter_map(|(n, (_, v))| Some((n.strip_prefix("grad.")?, v))).collect();
        let largest_anywhere = gradients.iter().flat_map(|(_, v)| v.iter()).fold(0f64, |m, v| m.max(v.abs()));
        assert_eq!(found.losses.len(), losses.len());
        for (i, (found, loss)) in found.losses.iter().zip(losses).enumerate() {
            assert!((found - loss).abs() <= 1e-5 * loss, "{what}: loss {i} is {found}, expected {loss}");
        }
        let mut compared = 0;
        for (name, want) in gradients {
            let own = want.iter().fold(0f64, |m, v| m.max(v.abs()));
            // The gradient of a key's bias is zero in theory: its scale is that of all gradients.
            let scale = if own < 1e-6 * largest_anywhere { largest_anywhere } else { own };
            let gradient = found.gradients.get(name).unwrap_or_else(|| panic!("{what}: no gradient of {name}"));
            assert_eq!(gradient.len(), want.len(), "{what}: gradient of {name}");
            for (f, w) in gradient.iter().zip(want) {
                let far = (f64::from(*f) - w).abs() / scale;
                assert!(far <= 1e-4, "{what}: gradient of {name} is off by {far:e}");
            }
            let Some(after) = parameters(name) else { continue };
            for ((f, w), g) in found.parameters[name].iter().zip(after).zip(want) {
                // Adam divides by the size of the gradient: where that is rounding noise, the step is noise, too.
                let noise = g.abs() < 1e-6 * own || own < 1e-6 * largest_anywhere;
                let off = (f64::from(*f) - w).abs();
                assert!(noise || off <= 2e-4, "{what}: parameter {name} is off by {off:e}");
            }
            compared += 1;
        }
        assert!(compared > 10, "{what}: only {compared} parameters were compared");
    }
}

/// Checks for the numbers of PyTorch.
fn trains_as_expected(model: &'static str, plan: &str, mesh: &str) {
    varied(model, plan, mesh, Variation::default());
}

/// Checks for the same numbers with the batch in parts or repeated: nothing else may change.
fn varied(model: &'static str, plan: &str, mesh: &str, vary: Variation) {
    let reference = Reference::open(model);
    let found = reference.train(plan, mesh, vary);
    let after = |name: &str| reference.tensors.get(&format!("param_after.{name}")).map(|t| t.1.clone());
    reference.agrees(&found, &reference.losses, &after, &format!("{plan} on {mesh}, {vary:?}"));
}

/// The data modes, alone and with the tensor-parallel plans, on two, four and eight ranks.
const DATA: [(&str, &str); 14] = [
    ("ddp", "dp=2"),
    ("ddp", "dp=4"),
    ("tp-ddp", "dp=2,tp=2"),
    ("fsdp", "dp=2"),
    ("fsdp", "dp=4"),
    ("2d", "dp=2,tp=2"),
    ("tp-sp-fsdp", "dp=2,tp=2"),
    ("zero1", "dp=2"),
    ("zero1", "dp=4"),
    ("tp-zero1", "dp=2,tp=2"),
    ("hsdp", "rep=2,dp=2"),
    ("tp-hsdp", "rep=2,dp=2,tp=2"),
    ("tp-sp-hsdp", "rep=2,dp=2,tp=2"),
    ("2d", "dp=2,tp=4"),
];

/// The plans for clipping and accumulation together: every mode once.
const BOTH: [(&str, &str); 5] =
    [("ddp", "dp=2"), ("fsdp", "dp=4"), ("zero1", "dp=2"), ("2d", "dp=2,tp=2"), ("tp-hsdp", "rep=2,dp=2,tp=2")];

/// With and without accumulation, the gradients are clipped so far that Adam's epsilon matters. The norm must be
/// PyTorch's, and the steps those of one rank, whose clipping `options.rs` compares with the formula.
fn clipped(model: &'static str) {
    let reference = Reference::open(model);
    let clip = Variation { clip: Some(1e-6), ..Variation::default() };
    let expected = reference.train("none", "", clip);
    let after = |name: &str| expected.parameters.get(name).map(|v| v.iter().map(|&x| f64::from(x)).collect());
    // Ineffective clipping would be noticed.
    let change = (expected.losses[2] / reference.losses[2] - 1.0).abs();
    assert!(change > 1e-3, "{model}: {change:e}, norms {:?} of {}", expected.norms, reference.norm());
    for (plan, mesh) in DATA {
        let parts = Variation { tiles: 8, micro_batches: 4, ..clip };
        let times = if BOTH.contains(&(plan, mesh)) { 2 } else { 1 };
        for vary in [clip, parts].into_iter().take(times) {
            let found = reference.train(plan, mesh, vary);
            let what = format!("{plan} on {mesh}, {vary:?}");
            reference.agrees(&found, &expected.losses, &after, &what);
            let norm = reference.norm();
            assert!((found.norms[0] - norm).abs() <= 1e-5 * norm, "{what}: {} for {norm}", found.norms[0]);
        }
    }
}

macro_rules! conformance {
    ($($name:ident $model:literal),+ $(,)?) => { $(
        mod $name {
            use super::Variation;

            #[test]
            fn none() {
                super::trains_as_expected($model, "none", "");
                super::trains_as_expected($model, "none", "tp=2");
            }

            #[test]
            fn tp() {
                for mesh in ["tp=1", "tp=2", "tp=4"] {
                    super::trains_as_expected($model, "tp", mesh);
                }
            }

            #[test]
            fn tp_sp() {
                for mesh in ["tp=2", "tp=4"] {
                    super::trains_as_expected($model, "tp-sp", mesh);
                }
                super::trains_as_expected($model, "tp-sp-ddp", "dp=2,tp=2");
            }

            #[test]
            fn data_modes() {
                for (plan, mesh) in super::DATA {
                    super::trains_as_expected($model, plan, mesh);
                }
            }

            #[test]
            fn micro_batches() {
                for (plan, mesh) in super::DATA {
                    super::varied($model, plan, mesh, Variation { tiles: 8, micro_batches: 4, clip: None });
                }
                for (plan, mesh) in [("none", ""), ("tp", "tp=2"), ("tp", "tp=4"), ("ddp", "dp=2"), ("tp-sp", "tp=2")] {
                    super::varied($model, plan, mesh, Variation { micro_batches: 2, ..Variation::default() });
                }
            }

            #[test]
            fn clipping() {
                super::clipped($model);
            }
        }
    )+ };
}

conformance!(llama "hf/llama-tiny", gpt2 "hf/gpt2-tiny", bert "hf/bert-tiny");

/// The plans for every family and every kind of rotary embedding: one rank, heads on two and on four ranks, sharded
/// sequences, sharded parameters.
const EVERY: [(&str, &str); 7] = [
    ("none", ""),
    ("tp", "tp=2"),
    ("tp", "tp=4"),
    ("tp-sp", "tp=2"),
    ("fsdp", "dp=2"),
    ("2d", "dp=2,tp=2"),
    ("zero1", "dp=2"),
];

macro_rules! every {
    ($module:ident, $directory:literal, $($name:ident $model:literal),+ $(,)?) => { mod $module { $(
        #[test]
        fn $name() {
            for (plan, mesh) in super::EVERY {
                super::trains_as_expected(concat!($directory, $model), plan, mesh);
            }
        }
    )+ } };
}

every!(
    families, "families/",
    llama "llama",
    mistral "mistral",
    qwen2 "qwen2",
    qwen3 "qwen3",
    gemma2 "gemma2",
    gemma3 "gemma3",
    phi3 "phi3",
    olmo2 "olmo2",
    gpt2 "gpt2",
    yarn "yarn",
    yarn_with_mscale "yarn-mscale",
    dynamic "dynamic",
    longrope_within "longrope-short",
    longrope_beyond "longrope-long",
);

every!(
    heads, "heads/",
    bert_sequence "bert-sequence",
    bert_regression "bert-regression",
    bert_multi_label "bert-multi-label",
    bert_token "bert-token",
    llama_sequence "llama-sequence",
    qwen3_regression "qwen3-regression",
    gemma3_sequence "gemma3-sequence",
    phi3_token "phi3-token",
    gpt2_sequence "gpt2-sequence",
    gpt2_token "gpt2-token",
);
