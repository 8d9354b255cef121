//! Model directories with reference results: every plan on every mesh gives what PyTorch gives.

use burn::optim::AdamWConfig;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::path::PathBuf;
use tpc::models::{ModelDir, weight_map};
use tpc::pretrained::{TokenBatch, capture_step, load_weights, names};
use tpc::program::{CompileOptions, compile_training};
use tpc_ir::{Mesh, OutputKind};
use tpc_passes::options::StepOptions;
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

/// Loss of each of three AdamW steps, first gradients, final parameters: all as in API.md.
fn trains_as_expected(model: &str, plan: &str, mesh: &str) {
    in_micro_batches(model, plan, mesh, 1);
}

/// The same with the batch in parts: nothing else may change.
fn in_micro_batches(model: &str, plan: &str, mesh: &str, micro_batches: usize) {
    let dir = data(&format!("hf/{model}"));
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    let tensors = File::open(dir.join("expected.safetensors")).all();
    let inputs = File::open(dir.join("inputs.safetensors")).all();
    let model_dir = ModelDir::open(&dir).unwrap();
    let shape = &inputs["input_ids"].0;
    let tokens = TokenBatch {
        batch: shape[0],
        seq: shape[1],
        attention_mask: inputs.contains_key("attention_mask"),
        token_type_ids: inputs.contains_key("token_type_ids"),
    };
    let optimizer =
        AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(0.1).build();
    let capture = capture_step(&model_dir.config, tokens, &optimizer).unwrap();
    let names = names(&model_dir.config);
    let rename = |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
    let plan = Plan::built_in(plan).unwrap();
    let step = StepOptions { micro_batches, ..StepOptions::default() };
    let options = CompileOptions { gradients: true, step, ..CompileOptions::default() };
    let program = compile_training(capture, &Mesh::parse(mesh).unwrap(), &plan, &options, &rename).unwrap();
    let predicted: Vec<usize> = program.first.ranks.iter().map(|r| r.arena_bytes).collect();
    let mut training = program.launch(LaunchOptions::default()).unwrap();
    let map = weight_map(&model_dir.config);
    load_weights(training.session(), &map, &model_dir.weights).unwrap();
    let given: Vec<String> = training.session().program(0).inputs.iter().map(|i| i.name.clone()).collect();
    for (name, (_, values)) in &inputs {
        if given.contains(name) {
            training.session().write_f64(name, values).unwrap();
        }
    }
    let largest_anywhere = tensors
        .iter()
        .filter(|(n, _)| n.starts_with("grad."))
        .flat_map(|(_, (_, v))| v.iter())
        .fold(0f64, |m, v| m.max(v.abs()));
    for (i, loss) in expected["losses"].as_array().unwrap().iter().enumerate() {
        let loss = loss.as_f64().unwrap();
        let found = training.step(1e-3).unwrap();
        assert!((found - loss).abs() <= 1e-5 * loss, "{model} {mesh}: loss {i} is {found}, expected {loss}");
        if i == 0 {
            for entry in &map.entries {
                let Some((_, want)) = tensors.get(&format!("grad.{}", entry.hf_name)) else { continue };
                let Ok(found) = training.session().read_f64(&OutputKind::Gradient(entry.hf_name.clone())) else {
                    continue;
                };
                let found = entry.to_file_layout(found.into_iter().map(|v| v as f32).collect());
                // The gradient of a key's bias is zero in theory: its scale is that of all gradients.
                let own = want.iter().fold(0f64, |m, v| m.max(v.abs()));
                let scale = if own < 1e-6 * largest_anywhere { largest_anywhere } else { own };
                for (f, w) in found.iter().zip(want) {
                    let far = (f64::from(*f) - w).abs() / scale;
                    assert!(far <= 1e-4, "{model} {mesh}: gradient of {} is off by {far:e}", entry.hf_name);
                }
            }
        }
    }
    for entry in &map.entries {
        let Some((_, want)) = tensors.get(&format!("param_after.{}", entry.hf_name)) else { continue };
        let grad = &tensors[&format!("grad.{}", entry.hf_name)].1;
        let top = grad.iter().fold(0f64, |m, v| m.max(v.abs()));
        let found = training.session().read_input_f64(&entry.hf_name).unwrap();
        let found = entry.to_file_layout(found.into_iter().map(|v| v as f32).collect());
        for ((f, w), g) in found.iter().zip(want).zip(grad) {
            // Adam divides by the gradient's size: where that is rounding noise, so is the step.
            let noise = g.abs() < 1e-6 * top || top < 1e-6 * largest_anywhere;
            let off = (f64::from(*f) - w).abs();
            assert!(noise || off <= 2e-4, "{model} {mesh}: parameter {} is off by {off:e}", entry.hf_name);
        }
    }
    for (rank, bytes) in predicted.into_iter().enumerate() {
        assert_eq!(training.session().allocated_bytes(rank), bytes, "the arena is what was predicted");
    }
}

macro_rules! conformance {
    ($($name:ident $model:literal),+ $(,)?) => { $(
        mod $name {
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
            fn ddp() {
                for mesh in ["dp=2", "dp=4"] {
                    super::trains_as_expected($model, "ddp", mesh);
                }
            }

            #[test]
            fn fsdp() {
                for mesh in ["dp=2", "dp=4"] {
                    super::trains_as_expected($model, "fsdp", mesh);
                }
                super::trains_as_expected($model, "2d", "dp=2,tp=2");
                super::trains_as_expected($model, "tp-sp-fsdp", "dp=2,tp=2");
            }

            #[test]
            fn zero1() {
                for mesh in ["dp=2", "dp=4"] {
                    super::trains_as_expected($model, "zero1", mesh);
                }
                super::trains_as_expected($model, "tp-sp-zero1", "dp=2,tp=2");
            }

            #[test]
            fn hsdp() {
                super::trains_as_expected($model, "hsdp", "rep=2,dp=2");
                super::trains_as_expected($model, "tp-hsdp", "rep=2,dp=2,tp=2");
            }

            #[test]
            fn micro_batches() {
                for (plan, mesh) in
                    [("none", ""), ("tp", "tp=2"), ("tp", "tp=4"), ("ddp", "dp=2"), ("tp-sp", "tp=2"), ("tp-ddp", "dp=2,tp=2"), ("fsdp", "dp=2"), ("tp-zero1", "dp=2,tp=2")]
                {
                    super::in_micro_batches($model, plan, mesh, 2);
                }
            }

            #[test]
            fn tp_and_ddp() {
                super::trains_as_expected($model, "tp-ddp", "dp=2,tp=2");
            }
        }
    )+ };
}

conformance!(llama "llama-tiny", gpt2 "gpt2-tiny", bert "bert-tiny");
