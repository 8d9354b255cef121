//! Model families against reference results of plain torch: eagerly, on burn's CPU backend.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tpc_compiler::capture::{Captured, InputKind, Spec, TrainingOptions, capture_training_shapes, named};
use tpc_compiler::models::{
    self, Documents, Head, MhaMlp, Mlp, Model, ModelConfig, ModelDir, ModelError, RopeConfig, SavedType, Saving,
    ShardSize, TokenInputs, WeightMap, Weights, presets,
};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("tpc-models-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn device() -> Device {
    Device::flex().autodiff()
}

/// Collects parameters or gradients by burn path.
struct Collect<'a> {
    path: Vec<String>,
    grads: Option<&'a GradientsParams>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let data = match self.grads {
            None => Some(param.val().into_data()),
            Some(grads) => grads.get::<D>(param.id).map(Tensor::into_data),
        };
        if let Some(data) = data {
            self.found.insert(self.path.join("."), data.try_to_vec::<f32>().unwrap());
        }
    }
}

fn collect<M: Module>(module: &M, grads: Option<&GradientsParams>) -> BTreeMap<String, Vec<f32>> {
    let mut collect = Collect { path: vec![], grads, found: BTreeMap::new() };
    module.visit(&mut collect);
    collect.found
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec::<f32>().unwrap()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, v| max.max(v.abs()))
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| {
        let difference = (a - b).abs();
        assert!(difference.is_finite());
        max.max(difference)
    })
}

fn ints(weights: &Weights, name: &str, device: &Device) -> Tensor<2, Int> {
    let shape = weights.info(name).unwrap().shape.clone();
    Tensor::from_data(TensorData::new(weights.read_i64(name).unwrap(), shape), device)
}

fn floats<const D: usize>(weights: &Weights, name: &str, device: &Device) -> Tensor<D> {
    let shape = weights.info(name).unwrap().shape.clone();
    Tensor::from_data(TensorData::new(weights.read_f32(name).unwrap(), shape), device)
}

/// Whether an element belongs to a key projection's bias: its true gradient is zero, and the computed one is noise.
fn is_key_bias(burn_path: &str, element: usize, elements: usize) -> bool {
    burn_path.ends_with("key.bias")
        || burn_path.ends_with("c_attn.bias") && (elements / 3..2 * elements / 3).contains(&element)
}

/// Trains, and compares every loss, the first gradients and the last parameters.
fn train<M: Module>(
    what: &str,
    mut model: M,
    map: &WeightMap,
    lr: f64,
    loss: impl Fn(&M) -> Tensor<1>,
    expected_losses: &[f64],
    expected: &Weights,
) {
    let mut optimizer =
        AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(0.1).init();
    let in_file = |prefix: &str, found: &BTreeMap<String, Vec<f32>>| -> Vec<(String, Vec<f32>, Vec<f32>)> {
        assert_eq!(found.len(), map.entries.len(), "{what}: every parameter has one");
        let compared = map.entries.iter().map(|entry| {
            let name = format!("{prefix}.{}", entry.hf_name);
            let mut want = expected.read_f32(&name).unwrap();
            if let Some(rows) = &entry.rows {
                let width = want.len() / expected.info(&name).unwrap().shape[0];
                want = want[rows.start * width..rows.end * width].to_vec();
            }
            (entry.burn_path.clone(), entry.to_file_layout(found[&entry.burn_path].clone()), want)
        });
        compared.collect()
    };
    for (step, want) in expected_losses.iter().enumerate() {
        let loss = loss(&model);
        let got = f64::from(values(loss.clone())[0]);
        println!("{what}: loss {step}: {got:.7}, off by {:.1e}", (got - want).abs());
        assert!((got - want).abs() < 5e-6 * want.abs().max(1.0), "{what} loss {step}: {got} {want}");
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        if step == 0 {
            let compared = in_file("grad", &collect(&model, Some(&grads)));
            let scale = compared.iter().map(|(_, _, want)| largest(want)).fold(0.0, f32::max);
            let mut worst: f32 = 0.0;
            for (name, got, want) in compared {
                let off = difference(&got, &want);
                // Relative to the tensor's own largest element, unless that is noise.
                let tolerance = (2e-5 * largest(&want)).max(1e-7 * scale);
                assert!(off <= tolerance, "{what}: gradient of {name} is off by {off:e}, largest {:e}", largest(&want));
                if !is_key_bias(&name, 0, 1) {
                    worst = worst.max(off / largest(&want));
                }
            }
            println!("{what}: gradients: worst {worst:.1e} of their tensor's largest");
        }
        model = optimizer.step(lr, model, grads);
    }
    // Adam turns a gradient of almost zero into a step of almost lr whose direction depends on rounding. For such
    // elements only the size of the step is known. (A gradient of exactly zero belongs to an embedding row that was not
    // read.)
    let (mut worst, mut loose, mut all) = (0.0f32, 0, 0);
    let gradients = in_file("grad", &collect(&model, None)); // of these, only the expected ones
    for ((name, got, want), (_, _, gradient)) in
        in_file("param_after", &collect(&model, None)).into_iter().zip(gradients)
    {
        let floor = 1e-4 * largest(&gradient);
        let elements = want.len();
        for (i, ((got, want), gradient)) in got.iter().zip(&want).zip(&gradient).enumerate() {
            let off = (got - want).abs();
            all += 1;
            if is_key_bias(&name, i, elements) || (*gradient != 0.0 && gradient.abs() < floor) {
                loose += 1;
                assert!(f64::from(off) < 6.0 * lr, "{what}: {name} after 3 steps is off by {off:e}");
            } else {
                worst = worst.max(off);
                assert!(f64::from(off) < 0.005 * lr, "{what}: {name} after 3 steps is off by {off:e}");
            }
        }
    }
    println!(
        "{what}: parameters after 3 steps: off by at most {:.1e} of the learning rate ({loose} of {all} elements of almost no gradient left out)",
        f64::from(worst) / lr
    );
    assert!(f64::from(loose) < 0.03 * f64::from(all));
}

fn against_torch(name: &str) {
    let device = device();
    let dir = ModelDir::open(data(name)).unwrap();
    assert_eq!(dir.warnings, []);
    let inputs = Weights::open_file(&dir.path.join("inputs.safetensors")).unwrap();
    let expected = Weights::open_file(&dir.path.join("expected.safetensors")).unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(dir.path.join("expected.json")).unwrap()).unwrap();
    let losses: Vec<f64> = file["losses"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let model = dir.load(&device).unwrap();
    let map = dir.weight_map();

    // The file contains a tensor for every parameter, and no others.
    let mut names: Vec<&str> = map.entries.iter().map(|e| e.hf_name.as_str()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names, dir.weights.names().collect::<Vec<_>>());

    let optional = |name: &str| inputs.contains(name).then(|| ints(&inputs, name, &device));
    let batch = TokenInputs {
        input_ids: ints(&inputs, "input_ids", &device),
        attention_mask: optional("attention_mask"),
        token_type_ids: optional("token_type_ids"),
        documents: None,
    };
    let labels = ints(&inputs, "labels", &device);
    let logits = values(model.forward(batch.clone()));
    let want = expected.read_f32("logits").unwrap();
    let off = difference(&logits, &want) / largest(&want);
    println!("{name}: logits: off by {off:.1e} of the largest");
    assert!(off < 1e-5);
    train(
        name,
        model,
        &map,
        file["optimizer"]["lr"].as_f64().unwrap(),
        |model: &Model| model.loss(model.forward(batch.clone()), labels.clone()),
        &losses,
        &expected,
    );
}

#[test]
fn llama_as_torch() {
    against_torch("hf/llama-tiny");
}

#[test]
fn gpt2_as_torch() {
    against_torch("hf/gpt2-tiny");
}

#[test]
fn bert_as_torch() {
    against_torch("hf/bert-tiny");
}

macro_rules! families {
    ($($test:ident $model:literal),+ $(,)?) => { $(
        #[test]
        fn $test() {
            against_torch(concat!("families/", $model));
        }
    )+ };
}

families!(
    llama3_rope_as_torch "llama",
    mistral_as_torch "mistral",
    qwen2_as_torch "qwen2",
    qwen3_as_torch "qwen3",
    gemma2_as_torch "gemma2",
    gemma3_as_torch "gemma3",
    phi3_as_torch "phi3",
    olmo2_as_torch "olmo2",
    gpt2_with_inner_width_as_torch "gpt2",
    yarn_as_torch "yarn",
    yarn_with_mscale_as_torch "yarn-mscale",
    dynamic_rope_as_torch "dynamic",
    longrope_within_the_original_context_as_torch "longrope-short",
    longrope_beyond_the_original_context_as_torch "longrope-long",
);

/// A golden model in the layout and under the names of torch's modules.
fn golden<M: Module>(name: &str, model: M, map: &WeightMap, forward: impl Fn(&M, &Weights) -> (Vec<f32>, Tensor<1>)) {
    // The f64 file: both precisions should approach it.
    let file = Weights::open_file(&data("goldens").join(format!("{name}_f64.safetensors"))).unwrap();
    let model = map.with_prefix("param.").load(model, &file).unwrap();
    let (output, _) = forward(&model, &file);
    let want = file.read_f32("out.y").unwrap();
    let off = difference(&output, &want) / largest(&want);
    println!("{name}: output: off by {off:.1e} of the largest");
    assert!(off < 1e-5);
    let losses = file.read_f64("losses").unwrap();
    train(name, model, map, 1e-2, |model| forward(model, &file).1, &losses, &file);
}

#[test]
fn mlp_golden() {
    let model = Mlp::new(64, 256, &device());
    let map = WeightMap::of(&model, true);
    let forward = |model: &Mlp, file: &Weights| {
        let output = model.forward(floats::<2>(file, "in.x", &device()));
        (values(output.clone()), model.loss(output, floats(file, "in.target", &device())))
    };
    golden("mlp", model, &map, forward);
}

#[test]
fn mha_mlp_golden() {
    let model = MhaMlp::new(64, 4, 128, &device());
    let map = model.weight_map();
    let forward = |model: &MhaMlp, file: &Weights| {
        let output = model.forward(floats::<3>(file, "in.x", &device()));
        (values(output.clone()), model.loss(output, floats(file, "in.target", &device())))
    };
    golden("mha_mlp", model, &map, forward);

    // Three parameters that are rows of one tensor become one tensor again when they are saved.
    let file = Weights::open_file(&data("goldens/mha_mlp.safetensors")).unwrap();
    let prefixed = map.with_prefix("param.");
    let path = scratch("mha").join("w.safetensors");
    let output = tpc_runtime::output::Output::at(&path).unwrap();
    models::write_weights(output, &map, |entry| prefixed.by_burn_path(&entry.burn_path).unwrap().read(&file)).unwrap();
    let saved = Weights::open_file(&path).unwrap();
    assert_eq!(saved.names().count(), 8);
    for name in saved.names() {
        assert_eq!(saved.read_f32(name).unwrap(), file.read_f32(&format!("param.{name}")).unwrap());
    }
}

fn small(family: &str, extra: Value) -> Value {
    let mut config = json!({
        "model_type": family, "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    });
    let object = config.as_object_mut().unwrap();
    for (key, value) in extra.as_object().unwrap() {
        object.insert(key.clone(), value.clone());
    }
    config
}

fn parse(config: &Value) -> Result<ModelConfig, ModelError> {
    ModelConfig::from_json(config, Path::new("dir/config.json"))
}

/// The logits of a small model with drawn weights.
fn logits(config: &Value, ids: &[i64]) -> Vec<f32> {
    let config = parse(config).unwrap();
    assert_eq!(parse(&config.to_json()).unwrap(), config, "to_json is read back");
    let device = Device::flex();
    device.seed(7);
    let model = models::build(&config, &device);
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &device);
    let logits = model.forward(ids.into());
    assert_eq!(logits.dims()[2], config.vocab_size());
    let logits = values(logits);
    assert!(logits.iter().all(|v| v.is_finite()));
    logits
}

fn llama_config(config: &Value) -> models::DecoderConfig {
    match parse(config).unwrap() {
        ModelConfig::Decoder(config) => config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn causality_and_windows() {
    let ids = [1, 2, 3, 4, 5, 6, 7, 8];
    let mut changed = ids;
    changed[0] = 30;
    let same =
        |a: &[f32], b: &[f32], position: usize| difference(&a[position * 40..][..40], &b[position * 40..][..40]) < 1e-6;
    let full = small("mistral", json!({ "sliding_window": null }));
    let (a, b) = (logits(&full, &ids), logits(&full, &changed));
    assert!((0..8).all(|position| !same(&a, &b, position)));
    let mut future = ids;
    future[7] = 30;
    let b = logits(&full, &future);
    assert!((0..7).all(|position| same(&a, &b, position)) && !same(&a, &b, 7));

    // With a window of 2 and three layers, the first token affects positions up to 3, and no further.
    let windowed = small("mistral", json!({ "sliding_window": 2 }));
    assert_eq!(llama_config(&windowed).windows, [Some(2); 3]);
    let (a, b) = (logits(&windowed, &ids), logits(&windowed, &changed));
    for position in 0..8 {
        assert_eq!(same(&a, &b, position), position > 3, "position {position}");
    }
    assert_eq!(llama_config(&small("mistral", json!({}))).windows, [Some(4096); 3]);
}

#[test]
fn qwen_families() {
    let qwen2 =
        small("qwen2", json!({ "sliding_window": 4, "use_sliding_window": false, "tie_word_embeddings": true }));
    let config = llama_config(&qwen2);
    assert_eq!(config.windows, [None; 3]);
    let map = models::weight_map(&parse(&qwen2).unwrap());
    assert!(map.by_hf_name("model.layers.0.self_attn.q_proj.bias").is_some());
    assert!(map.by_hf_name("model.layers.0.self_attn.o_proj.bias").is_none());
    assert!(map.by_hf_name("lm_head.weight").is_none());
    logits(&qwen2, &[1, 2, 3]);

    let windows = small("qwen2", json!({ "sliding_window": 4, "use_sliding_window": true, "max_window_layers": 1 }));
    assert_eq!(llama_config(&windows).windows, [None, Some(4), Some(4)]);
    logits(&windows, &[1, 2, 3, 4, 5, 6]);

    let qwen3 = small("qwen3", json!({ "head_dim": 16 }));
    let map = models::weight_map(&parse(&qwen3).unwrap());
    assert_eq!(map.by_hf_name("model.layers.2.self_attn.q_norm.weight").unwrap().shape, [16]);
    assert_eq!(map.by_hf_name("model.layers.2.self_attn.q_proj.weight").unwrap().file_shape(), [64, 32]);
    assert_eq!(map.by_hf_name("model.layers.2.self_attn.o_proj.weight").unwrap().shape, [64, 32]);
    assert!(map.by_hf_name("model.layers.0.self_attn.q_proj.bias").is_none());
    logits(&qwen3, &[1, 2, 3]);
}

#[test]
fn rope_types() {
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192 });
    // Both spellings mean the same.
    let old = small("llama", json!({ "rope_theta": 500000.0, "rope_scaling": llama3 }));
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(500000.0);
    let new = small("llama", json!({ "rope_parameters": parameters }));
    assert_eq!(parse(&old).unwrap(), parse(&new).unwrap());
    logits(&old, &[1, 2, 3]);
    // Llama 3.1's frequencies: the fast ones are kept, the slow ones are divided by 8, with a transition between them.
    let scaled = llama_config(&old).rope.frequencies(128, 8);
    let plain = RopeConfig::plain(500000.0).frequencies(128, 8);
    assert_eq!(scaled[0], 1.0);
    assert_eq!(scaled[10], plain[10]);
    assert!((scaled[63] * 8.0 / plain[63] - 1.0).abs() < 1e-12);
    let ratio = plain[32] / scaled[32];
    assert!(ratio > 1.0 && ratio < 8.0, "{ratio}");
    assert!((plain[1] - 500000f64.powf(-2.0 / 128.0)).abs() < 1e-15);

    let linear = small("llama", json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }));
    let frequencies = llama_config(&linear).rope.frequencies(8, 8);
    assert!((frequencies[0] - 0.25).abs() < 1e-12);
    logits(&linear, &[1, 2, 3]);
}

/// Interleaved rotation equals half-split rotation under a permutation of each head's elements.
#[test]
fn interleaved_rope_agrees_with_halves() {
    let device = Device::flex();
    let config = RopeConfig::plain(10000.0);
    let (seq, head_dim) = (5, 8);
    let input: Vec<f32> = (0..seq * head_dim).map(|i| (i as f32 * 0.37).sin()).collect();
    let to_pairs = |values: &[f32]| -> Vec<f32> {
        let half = head_dim / 2;
        let place = |i: usize| (i / head_dim) * head_dim + (i % head_dim) / 2 + half * (i % 2);
        (0..values.len()).map(|i| values[place(i)]).collect()
    };
    let rotate = |values: Vec<f32>, pairs| {
        let tables = models::RopeTables::new(&config, pairs, seq, head_dim, &device);
        let x = Tensor::from_data(TensorData::new(values, [1, seq, 1, head_dim]), &device);
        self::values(tables.apply(x))
    };
    let halves = rotate(input.clone(), models::RopePairs::Halves);
    let interleaved = rotate(to_pairs(&input), models::RopePairs::Interleaved);
    assert!(difference(&to_pairs(&halves), &interleaved) < 1e-6);
    // Position 1, pair 0: a rotation by one radian.
    let (a, b) = (input[head_dim], input[head_dim + 4]);
    assert!((halves[head_dim] - (a * 1f32.cos() - b * 1f32.sin())).abs() < 1e-6);
    assert!((halves[head_dim + 4] - (b * 1f32.cos() + a * 1f32.sin())).abs() < 1e-6);
}

#[test]
fn presets_run() {
    let config = presets::named("llama").unwrap();
    let map = models::weight_map(&config);
    assert_eq!(map.by_hf_name("layers.3.attention.wq.weight").unwrap().shape, [512, 512]);
    assert_eq!(map.by_hf_name("layers.0.feed_forward.w2.weight").unwrap().file_shape(), [512, 1408]);
    assert_eq!(map.parameters(), 2 * 8192 * 512 + 512 + 4 * (4 * 512 * 512 + 3 * 512 * 1408 + 2 * 512));
    assert_eq!(parse(&config.to_json()).unwrap(), config);
    for name in ["gpt", "gpt-learned"] {
        let config = presets::named(name).unwrap();
        config.validate().unwrap();
        logits(&config.to_json(), &[1, 2, 3]);
    }
    let error = presets::named("lama").unwrap_err().to_string();
    assert_eq!(error, "there is no preset \"lama\"; the presets are llama, gpt, gpt-learned");
    let bad = presets::SmallGpt { width: 100, heads: 6, ..Default::default() };
    assert_eq!(
        bad.config().unwrap_err().to_string(),
        "preset: inconsistent configuration: width = 100 is not a multiple of twice heads = 6"
    );
    assert!(presets::SmallGpt { kv_heads: 4, ..Default::default() }.config().is_err());
    let tiny = models::InterleavedConfig {
        dim: 16,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        ffn: 24,
        vocab: 40,
        seq: 8,
        eps: 1e-5,
        theta: 1e4,
        initializer_range: 0.5,
    };
    logits(&ModelConfig::Interleaved(tiny).to_json(), &[1, 2, 3]);
}

#[test]
fn all_padding_and_ignored_labels() {
    let device = Device::flex();
    let dir = ModelDir::open(data("hf/bert-tiny")).unwrap();
    let model = dir.load(&device).unwrap();
    let ids = Tensor::<2, Int>::ones([2, 4], &device);
    let inputs = TokenInputs { attention_mask: Some(ids.zeros_like()), ..ids.clone().into() };
    let out = model.forward(inputs);
    assert!(values(out.clone()).iter().all(|v| v.is_finite()));
    // Only the labels that count matter.
    let labels = |rows: [i64; 8]| Tensor::<2, Int>::from_data(TensorData::new(rows.to_vec(), [2, 4]), &device);
    let one = values(model.loss(out.clone(), labels([-100, 5, -100, -100, -100, -100, -100, -100])))[0];
    let logits = values(out);
    let row = &logits[256..512];
    let max = largest(row);
    let sum: f32 = row.iter().map(|v| (v - max).exp()).sum();
    assert!((one - (max + sum.ln() - row[5])).abs() < 1e-4);
}

#[test]
fn configuration_errors() {
    let text = |config: Value| parse(&config).unwrap_err().to_string();
    assert_eq!(
        text(json!({ "model_type": "mamba" })),
        "dir/config.json: unknown model_type \"mamba\"; supported are llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, gpt2, bert, llama-interleaved"
    );
    assert_eq!(text(json!({})), "dir/config.json: missing key \"model_type\" (needed for model_type \"any\")");
    assert_eq!(
        text(json!({ "model_type": "llama-interleaved", "dim": 8 })),
        "dir/config.json: missing key \"n_heads\" (needed for model_type \"llama-interleaved\")"
    );
    assert_eq!(
        text(small("llama", json!({ "num_key_value_heads": 3 }))),
        "dir/config.json: inconsistent configuration: num_attention_heads = 4 is not a multiple of num_key_value_heads = 3"
    );
    assert_eq!(
        text(small("llama", json!({ "hidden_size": 30 }))),
        "dir/config.json: inconsistent configuration: hidden_size = 30 is not a multiple of num_attention_heads = 4"
    );
    assert_eq!(
        text(small("llama", json!({ "num_hidden_layers": "two" }))),
        "dir/config.json: key \"num_hidden_layers\" should be a whole number from 1 up, but is \"two\""
    );
    assert_eq!(
        text(small("llama", json!({ "rope_scaling": { "rope_type": "proportional", "factor": 2.0 } }))),
        "dir/config.json: key \"rope_scaling.rope_type\" should be one of default, linear, dynamic, yarn, longrope, llama3, but is \"proportional\""
    );
    assert_eq!(
        text(small("llama", json!({ "hidden_act": "mish" }))),
        "dir/config.json: key \"hidden_act\" should be one of silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu, but is \"mish\""
    );
    assert!(
        text(small("llama", json!({ "quantization_config": { "bits": 4 } })))
            .contains("quantized weights are not supported")
    );
    assert_eq!(
        text(small("qwen3", json!({ "head_dim": null }))),
        "dir/config.json: key \"head_dim\" should be a whole number from 1 up, but is null"
    );
    let gpt2 = parse(
        &json!({ "model_type": "gpt2", "vocab_size": 10, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2 }),
    )
    .unwrap();
    assert_eq!(
        gpt2.check_batch([2, 9], 3).unwrap_err().to_string(),
        "batch: sequences of 9 tokens, but gpt2 has 8 learned positions"
    );
    assert_eq!(
        gpt2.check_batch([2, 8], 10).unwrap_err().to_string(),
        "batch: token 10, but the vocabulary has 10 entries"
    );
    gpt2.check_batch([2, 8], 9).unwrap();
}

/// The error text with only the last component of the path, so that it does not depend on where the test runs.
fn error_text(error: ModelError, dir: &Path) -> String {
    error.to_string().replace(&format!("{}/", dir.display()), "")
}

fn copy_model(name: &str) -> PathBuf {
    let dir = scratch(name);
    for file in ["config.json", "model.safetensors"] {
        // Written rather than copied, since the originals may be read-only.
        std::fs::write(dir.join(file), std::fs::read(data("hf/llama-tiny").join(file)).unwrap()).unwrap();
    }
    dir
}

#[test]
fn weight_errors() {
    let dir = copy_model("errors");
    let weights = dir.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();

    std::fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    assert_eq!(
        error_text(ModelDir::open(&dir).unwrap_err(), &dir),
        "model.safetensors: truncated: the header describes 503136 bytes, the file has 503036"
    );
    std::fs::write(&weights, &whole[..5]).unwrap();
    assert!(error_text(ModelDir::open(&dir).unwrap_err(), &dir).contains("truncated"));
    std::fs::write(&weights, b"not safetensors at all").unwrap();
    assert!(
        error_text(ModelDir::open(&dir).unwrap_err(), &dir)
            .starts_with("model.safetensors: not a valid safetensors file")
    );
    std::fs::remove_file(&weights).unwrap();
    assert!(error_text(ModelDir::open(&dir).unwrap_err(), &dir).contains("neither model.safetensors nor"));
    std::fs::write(&weights, &whole).unwrap();

    let config = dir.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"intermediate_size\": 176", "\"intermediate_size\": 170")).unwrap();
    assert_eq!(
        error_text(ModelDir::open(&dir).unwrap_err(), &dir),
        "model.safetensors: tensor \"model.layers.0.mlp.gate_proj.weight\" has shape [176, 64], but the configuration says [170, 64]"
    );
    std::fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")).unwrap();
    assert_eq!(
        error_text(ModelDir::open(&dir).unwrap_err(), &dir),
        "model.safetensors: missing tensor \"model.layers.2.input_layernorm.weight\"; nearest are \
         model.layers.0.input_layernorm.weight, model.layers.1.input_layernorm.weight, \
         model.layers.0.mlp.down_proj.weight"
    );
    std::fs::write(&config, "{").unwrap();
    assert!(error_text(ModelDir::open(&dir).unwrap_err(), &dir).starts_with("config.json: not valid JSON"));
    std::fs::remove_file(&config).unwrap();
    assert!(error_text(ModelDir::open(&dir).unwrap_err(), &dir).starts_with("config.json: No such file"));
}

#[test]
fn slices_and_layouts() {
    let dir = ModelDir::open(data("hf/llama-tiny")).unwrap();
    let map = dir.weight_map();
    let entry = map.by_hf_name("model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!((entry.shape.as_slice(), entry.transpose), (&[176, 64][..], true));
    let whole = entry.read(&dir.weights).unwrap();
    let file = dir.weights.read_f32(&entry.hf_name).unwrap();
    assert_eq!(whole[3 * 64 + 5], file[5 * 176 + 3]);
    assert_eq!(entry.to_file_layout(whole.clone()), file);
    assert_eq!(entry.to_burn_layout(file), whole);
    for (rows, columns) in [(0..176, 0..64), (7..100, 10..64), (170..176, 63..64), (4..4, 0..3)] {
        let part = entry.read_slice(&dir.weights, &[rows.clone(), columns.clone()]).unwrap();
        let want: Vec<f32> =
            rows.flat_map(|r| columns.clone().map(move |c| (r, c))).map(|(r, c)| whole[r * 64 + c]).collect();
        assert_eq!(part, want);
    }
    let error = entry.read_slice(&dir.weights, &[0..177, 0..64]).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "tensor \"model.layers.0.mlp.down_proj.weight\" of shape [64, 176] has no slice [0..64, 0..177]"
        ),
        "{error}"
    );

    let bert = models::weight_map(&ModelDir::open(data("hf/bert-tiny")).unwrap().config);
    let entry = bert.by_burn_path("bert.encoder.layer.1.attention.self_.query.weight").unwrap();
    assert_eq!(entry.hf_name, "bert.encoder.layer.1.attention.self.query.weight");
    assert_eq!(models::burn_path("bert.encoder.layer.1.attention.self"), "bert.encoder.layer.1.attention.self_");
    let gpt2 = models::weight_map(&ModelDir::open(data("hf/gpt2-tiny")).unwrap().config);
    assert!(gpt2.entries.iter().all(|entry| !entry.transpose));
}

/// Writes one safetensors file with tensors of raw bytes.
fn raw_file(path: &Path, tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::<u8>::new());
    for (name, dtype, shape, data) in tensors {
        let start = bytes.len();
        bytes.extend(data);
        header
            .insert(name.to_string(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, bytes.len()] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn element_types_and_indexed_files() {
    let dir = scratch("types");
    let bits = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    raw_file(
        &dir.join("a.safetensors"),
        &[
            ("half", "F16", vec![3], bits(&[0x3c00, 0xc100, 0x0001])),
            ("brain", "BF16", vec![2], bits(&[0x3f80, 0xc040])),
        ],
    );
    raw_file(
        &dir.join("b.safetensors"),
        &[
            ("double", "F64", vec![1, 2], [0.5f64, -3.25].iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("int", "I32", vec![2], [7i32, -7].iter().flat_map(|v| v.to_le_bytes()).collect()),
            ("flag", "BOOL", vec![1], vec![1]),
        ],
    );
    let index = dir.join("model.safetensors.index.json");
    let write_index = |map: Value| std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    write_index(
        json!({ "half": "a.safetensors", "brain": "a.safetensors", "double": "b.safetensors", "int": "b.safetensors" }),
    );
    let weights = Weights::open_dir(&dir).unwrap();
    assert_eq!(weights.read_f32("half").unwrap(), [1.0, -2.5, 2f32.powi(-24)]);
    assert_eq!(weights.read_f32("brain").unwrap(), [1.0, -3.0]);
    assert_eq!(weights.read_f32("double").unwrap(), [0.5, -3.25]);
    assert_eq!(weights.read_f64("double").unwrap(), [0.5, -3.25]);
    assert_eq!(weights.read_i64("int").unwrap(), [7, -7]);
    assert_eq!(
        error_text(weights.read_f32("flag").unwrap_err(), &dir),
        "b.safetensors: tensor \"flag\" has element type BOOL, expected F32, F16, BF16 or F64"
    );
    write_index(json!({ "half": "b.safetensors" }));
    assert_eq!(error_text(Weights::open_dir(&dir).unwrap_err(), &dir), "b.safetensors: missing tensor \"half\"");
    write_index(json!({ "half": "../a.safetensors" }));
    assert!(error_text(Weights::open_dir(&dir).unwrap_err(), &dir).contains("not a file name"));
    raw_file(&dir.join("c.safetensors"), &[("x", "F32", vec![3], vec![0; 8])]);
    assert_eq!(
        error_text(Weights::open_file(&dir.join("c.safetensors")).unwrap_err(), &dir),
        "c.safetensors: not a valid safetensors file: tensor \"x\": data_offsets [0, 8] do not match F32 [3]"
    );
}

#[test]
fn save_and_load() {
    for name in ["llama-tiny", "gpt2-tiny", "bert-tiny"] {
        let original = ModelDir::open(data("hf").join(name)).unwrap();
        let model = original.load(&Device::flex()).unwrap();
        let values = collect(&model, None);
        let dir = scratch(name);
        models::save_pretrained(&dir, &original.config_json, &original.weight_map(), |entry| {
            Ok(values[&entry.burn_path].clone())
        })
        .unwrap();
        let saved = ModelDir::open(&dir).unwrap();
        assert_eq!(saved.config, original.config);
        assert_eq!(saved.config_json, original.config_json);
        assert_eq!(saved.weights.names().collect::<Vec<_>>(), original.weights.names().collect::<Vec<_>>());
        for name in saved.weights.names() {
            assert_eq!(saved.weights.info(name).unwrap().shape, original.weights.info(name).unwrap().shape);
            assert_eq!(saved.weights.read_f32(name).unwrap(), original.weights.read_f32(name).unwrap());
        }
        // No temporary file remains, and the safetensors crate accepts the file.
        let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["config.json", "model.safetensors"]);
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), saved.weights.names().count());
        assert_eq!(parse(&original.config.to_json()).unwrap(), original.config);

        // A failure keeps the old files.
        let error = models::save_pretrained(&dir, &json!({}), &original.weight_map(), |_| Ok(vec![0.0])).unwrap_err();
        assert!(error.to_string().contains("but has 1"), "{error}");
        assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), bytes);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
    }
}

/// Older files have no prefix, and use LayerNorm's old names.
#[test]
fn older_names() {
    let original = ModelDir::open(data("hf/gpt2-tiny")).unwrap();
    let mut map = original.weight_map();
    for entry in &mut map.entries {
        entry.hf_name = entry.hf_name.replace("transformer.", "");
    }
    let dir = scratch("older");
    let read = |entry: &models::WeightEntry| {
        original.weight_map().by_burn_path(&entry.burn_path).unwrap().read(&original.weights)
    };
    models::save_pretrained(&dir, &original.config_json, &map, read).unwrap();
    let older = ModelDir::open(&dir).unwrap();
    let found = collect(&older.load(&Device::flex()).unwrap(), None);
    assert_eq!(found, collect(&original.load(&Device::flex()).unwrap(), None));
}

/// Captures a training step of a model from its shapes.
fn captured(config: &ModelConfig, batch: usize, seq: usize) -> Captured {
    let input = |name| named(name, Spec::<2, Int>::new([batch, seq], DType::I64));
    let inputs = (input("input_ids"), input("attention_mask"), input("labels"));
    let step = capture_training_shapes(
        |device| models::build(config, device),
        &AdamWConfig::new().build(),
        inputs,
        &TrainingOptions::default(),
        |model: &Model, (input_ids, mask, labels)| {
            let mut batch = TokenInputs::from(input_ids);
            if *model.head() == Head::MaskedLm {
                batch.attention_mask = Some(mask);
            }
            model.loss(model.forward(batch), labels)
        },
    );
    step.unwrap().steady
}

#[test]
fn families_can_be_captured() {
    let open = |name: &str| ModelDir::open(data("hf").join(name)).unwrap().config;
    let qwen3 = parse(&small(
        "qwen3",
        json!({ "head_dim": 16, "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1 }),
    ))
    .unwrap();
    let cases = [
        (open("llama-tiny"), "model.layers.1.self_attn"),
        (open("gpt2-tiny"), "transformer.h.1.attn"),
        (open("bert-tiny"), "bert.encoder.layer.1.attention.self"),
        (qwen3, "model.layers.2.self_attn.q_norm"),
        (presets::named("llama").unwrap(), "layers.3.feed_forward"),
    ];
    for (config, scope) in cases {
        let seq = 32;
        let captured = captured(&config, 2, seq);
        let largest = captured
            .inputs
            .iter()
            .filter_map(|input| match &input.kind {
                InputKind::Constant { .. } => Some(input.shape.iter().product::<usize>()),
                _ => None,
            })
            .max()
            .unwrap_or(0);
        println!(
            "{}: {} operations, {} scopes, largest constant {largest}",
            config.model_type(),
            captured.graph.operations.len(),
            captured.scopes.len()
        );
        // Nothing is larger than the rotary table of one head: neither masks nor rotation matrices are stored.
        assert!(largest <= seq * 64, "{largest}");
        let paths: Vec<String> = captured.scopes.iter().map(|scope| scope.path.to_string()).collect();
        for wanted in [scope, "loss"] {
            assert!(paths.iter().any(|path| path == wanted), "{wanted} in {paths:?}");
        }
        // Modules have the names of the weights.
        let map = models::weight_map(&config);
        for path in paths.iter().filter(|path| !["loss", "lm_head", "cls.predictions.decoder"].contains(&path.as_str()))
        {
            assert!(map.entries.iter().any(|entry| entry.hf_name.starts_with(&format!("{path}."))), "{path}");
        }
    }
}

/// The map of a model that is too large for any machine here is built without building the model.
#[test]
fn large_models_have_maps() {
    let config = parse(&json!({
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
    }))
    .unwrap();
    let map = models::weight_map(&config);
    assert_eq!(map.entries.len(), 80 * 9 + 3);
    assert_eq!(map.parameters(), 70_553_706_496);
}

/// The parameters of a directory's model, by burn path.
fn values_of(dir: &ModelDir) -> BTreeMap<String, Vec<f32>> {
    collect(&dir.load(&Device::flex()).unwrap(), None)
}

fn saved(dir: &Path, of: &ModelDir, saving: Saving) -> ModelDir {
    let values = values_of(of);
    let mut held: Option<(String, Vec<f32>)> = None;
    let strip = |entry: &models::WeightEntry, range: std::ops::Range<usize>, into: &mut [f32]| {
        if held.as_ref().is_none_or(|(path, _)| *path != entry.burn_path) {
            held = Some((entry.burn_path.clone(), entry.to_file_layout(values[&entry.burn_path].clone())));
        }
        into.copy_from_slice(&held.as_ref().unwrap().1[range]);
        Ok::<_, ModelError>(())
    };
    models::save_strips(dir, &of.config_json, &of.weight_map(), saving, strip).unwrap();
    ModelDir::open(dir).unwrap()
}

fn listed(dir: &Path) -> Vec<String> {
    let mut files: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    files
}

/// Fused, tied and transposed tensors, in one file or in several: what is read back equals what was saved, bit by bit.
#[test]
fn shards_are_read_back() {
    for name in ["families/phi3", "families/gemma3", "families/gpt2", "heads/bert-sequence"] {
        let original = ModelDir::open(data(name)).unwrap();
        let dir = scratch("shards");
        let limit = 8_000;
        let again = saved(&dir, &original, Saving { max_shard: ShardSize(limit), ..Saving::default() });
        assert_eq!(values_of(&again), values_of(&original), "{name}");
        assert_eq!((&again.config, &again.warnings), (&original.config, &original.warnings));
        let files = listed(&dir);
        let shards: Vec<&String> = files.iter().filter(|file| file.ends_with(".safetensors")).collect();
        assert!(shards.len() > 2, "{files:?}");
        assert_eq!(shards[0], &format!("model-00001-of-{:05}.safetensors", shards.len()));
        // No shard exceeds the limit unless it contains a single tensor.
        let index: Value =
            serde_json::from_slice(&std::fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap();
        let mut total = 0;
        for shard in &shards {
            let file = Weights::open_file(&dir.join(shard)).unwrap();
            let sizes = file.names().map(|name| 4 * file.info(name).unwrap().shape.iter().product::<usize>());
            let (count, bytes) = (file.names().count(), sizes.sum::<usize>());
            assert!(count == 1 || bytes as u64 <= limit, "{shard}: {count} tensors of {bytes} bytes");
            assert!(file.names().all(|name| index["weight_map"][name] == **shard));
            total += bytes;
        }
        assert_eq!(index["metadata"]["total_size"], total);
        assert_eq!(index["metadata"]["total_parameters"], total / 4);

        // One file, larger files, and several files again: no earlier file remains that a reader could take for
        // weights.
        let again = saved(&dir, &original, Saving::default());
        assert_eq!(values_of(&again), values_of(&original), "{name}");
        assert_eq!(listed(&dir), ["config.json", "model.safetensors"]);
        saved(&dir, &original, Saving { max_shard: ShardSize(limit), ..Saving::default() });
        let fewer = saved(&dir, &original, Saving { max_shard: ShardSize(2 * limit), ..Saving::default() });
        assert_eq!(values_of(&fewer), values_of(&original), "{name}");
        let index = std::fs::read_to_string(dir.join("model.safetensors.index.json")).unwrap();
        for file in listed(&dir).iter().filter(|file| file.ends_with(".safetensors")) {
            assert!(index.contains(file.as_str()), "{file}");
        }
        assert!(!dir.join("model.safetensors").exists());
    }
}

#[test]
fn weights_are_saved_in_the_type_that_is_asked_for() {
    let original = ModelDir::open(data("families/phi3")).unwrap();
    for (dtype, called, rounded) in [
        (SavedType::F32, "float32", (|x| x) as fn(f32) -> f32),
        (SavedType::Bf16, "bfloat16", |x| burn::tensor::bf16::from_f32(x).to_f32()),
        (SavedType::F16, "float16", |x| burn::tensor::f16::from_f32(x).to_f32()),
    ] {
        let dir = scratch("dtype");
        let again = saved(&dir, &original, Saving { dtype, ..Saving::default() });
        assert_eq!(again.config_json["dtype"], called);
        let expected: BTreeMap<String, Vec<f32>> =
            values_of(&original).into_iter().map(|(path, v)| (path, v.into_iter().map(rounded).collect())).collect();
        assert_eq!(values_of(&again), expected);
        let bytes = std::fs::metadata(dir.join("model.safetensors")).unwrap().len();
        let parameters = original.weight_map().parameters() as u64;
        assert!(
            (parameters * dtype.bytes() as u64..parameters * dtype.bytes() as u64 + 4000).contains(&bytes),
            "{bytes}"
        );
    }
    // A configuration of an older library has another key for the type, and a configuration without the key gets it.
    let (map, values) = (original.weight_map(), values_of(&original));
    let mut config = original.config_json.clone();
    config.as_object_mut().unwrap().remove("dtype");
    let dir = scratch("dtype-key");
    let keys = |config: &Value| {
        models::save_pretrained(&dir, config, &map, |entry| Ok(values[&entry.burn_path].clone())).unwrap();
        let saved = ModelDir::open(&dir).unwrap().config_json;
        (saved.get("dtype").cloned(), saved.get("torch_dtype").cloned())
    };
    assert_eq!(keys(&config), (Some(json!("float32")), None));
    config["torch_dtype"] = json!("bfloat16");
    assert_eq!(keys(&config), (None, Some(json!("float32"))));
}

#[test]
fn what_goes_along_with_a_model_is_copied() {
    let (from, to) = (scratch("companions"), scratch("companions-copied"));
    let write = |path: &str, text: &str| {
        let file = from.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    };
    let copied = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];
    copied.iter().for_each(|file| write(file, file));
    write("chat_template.jinja", "{{ messages }}");
    write(
        "modules.json",
        r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "../outside"}, {"path": "/etc"}, {"path": "2_Normalize"}]"#,
    );
    write("1_Pooling/config.json", "{}");
    write("optimizer.pt", "not part of the model");
    write("model.safetensors", "weights");
    std::fs::write(to.join("tokenizer.json"), "older").unwrap();
    let files = models::copy_companions(&from, &to).unwrap();
    assert_eq!(files.len(), 7, "{files:?}");
    for file in copied.iter().chain(&["chat_template.jinja", "modules.json", "1_Pooling/config.json"]) {
        assert_eq!(std::fs::read(from.join(file)).unwrap(), std::fs::read(to.join(file)).unwrap(), "{file}");
    }
    assert!(!to.join("optimizer.pt").exists() && !to.join("model.safetensors").exists());
    // Saving onto the directory itself copies nothing.
    assert!(models::copy_companions(&from, &from).unwrap().is_empty());
}

/// Each token that transformers generates greedily has the largest logit in a forward pass over the text before it.
#[test]
fn generated_tokens_have_the_best_logits() {
    let device = Device::flex();
    for name in ["llama", "mistral", "qwen3", "gemma3", "phi3", "gpt2"] {
        let file = data("generation").join(format!("{name}.json"));
        let generated: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let dir = ModelDir::open(data(generated["model"].as_str().unwrap())).unwrap();
        let model = dir.load(&device).unwrap();
        let ids = |list: &Value| list.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect::<Vec<_>>();
        let rows = |key: &str| generated[key].as_array().unwrap().iter().map(ids).collect::<Vec<_>>();
        for (prompt, expected) in rows("prompts").into_iter().zip(rows("expected")) {
            assert_eq!(expected.len(), 64);
            let text: Vec<i64> = prompt.iter().chain(&expected).copied().collect();
            let input = Tensor::<2, Int>::from_data(TensorData::new(text.clone(), [1, text.len()]), &device);
            let logits = values(model.forward(input.into()));
            let best = logits.chunks(dir.config.vocab_size()).map(|row| {
                (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as i64 //
            });
            let found: Vec<i64> = best.skip(prompt.len() - 1).take(64).collect();
            assert_eq!(found, expected, "{name}: {prompt:?}");
        }
    }
}

/// The defaults of `Config()` in transformers 5.24.
#[test]
fn defaults_of_newer_families() {
    let of = |family: &str| llama_config(&json!({ "model_type": family }));
    let sizes = |c: &models::DecoderConfig| {
        let heads = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        (c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, heads, c.max_position_embeddings)
    };
    let rest = |c: &models::DecoderConfig| (c.rms_norm_eps, c.tie_word_embeddings, c.padding_idx, c.rope.theta);
    let gemma2 = of("gemma2");
    assert_eq!(sizes(&gemma2), (256_000, 2304, 9216, 26, (8, 4, 256), 8192));
    assert_eq!(rest(&gemma2), (1e-6, true, Some(0), 1e4));
    assert_eq!(gemma2.windows[..3], [Some(4096), None, Some(4096)]);
    assert_eq!((gemma2.scores.scale, gemma2.scores.cap, gemma2.logit_cap), (0.0625, Some(50.0), Some(30.0)));
    assert_eq!((gemma2.embedding_scale, gemma2.local_rope), (Some(48.0), None));
    let gemma3 = of("gemma3_text");
    assert_eq!(sizes(&gemma3), (262_208, 2304, 9216, 26, (8, 4, 256), 131_072));
    assert_eq!(rest(&gemma3), (1e-6, true, Some(0), 1e6));
    assert_eq!(gemma3.windows[4..7], [Some(4096), None, Some(4096)]);
    assert_eq!((gemma3.scores.cap, gemma3.logit_cap, gemma3.local_rope), (None, None, Some(RopeConfig::plain(1e4))));
    let phi3 = of("phi3");
    assert_eq!(sizes(&phi3), (32_064, 3072, 8192, 32, (32, 32, 96), 4096));
    assert_eq!(rest(&phi3), (1e-5, false, Some(32_000), 1e4));
    assert_eq!(phi3.sliding_window(), None);
    let olmo2 = of("olmo2");
    assert_eq!(sizes(&olmo2), (50_304, 4096, 11_008, 32, (32, 32, 128), 2048));
    assert_eq!(rest(&olmo2), (1e-5, false, Some(1), 1e4));
}

#[test]
fn rotary_embeddings_of_layers_with_a_window() {
    // The spellings of versions 4 and 5.
    let older = small(
        "gemma3_text",
        json!({ "rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
            "sliding_window_pattern": 3, "num_hidden_layers": 4, "head_dim": 8 }),
    );
    let newer = small(
        "gemma3_text",
        json!({ "num_hidden_layers": 4, "head_dim": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": { "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 5e5 },
                "sliding_attention": { "rope_theta": 2e4 } } }),
    );
    let config = llama_config(&older);
    assert_eq!(config, llama_config(&newer));
    assert_eq!(config.local_rope, Some(RopeConfig::plain(2e4)));
    assert_eq!(config.rope.frequencies(8, 1)[0], 0.125);
    // Parameters without a kind of layer are ignored: the model has one set for each kind.
    let (_, warnings) = ModelConfig::from_json_warned(
        &small("gemma3_text", json!({ "rope_parameters": { "rope_theta": 3.0 } })),
        Path::new("config.json"),
    )
    .unwrap();
    let said: Vec<String> = warnings.iter().map(ToString::to_string).filter(|text| text.contains("rope")).collect();
    assert_eq!(said, ["config.json: key rope_parameters.rope_theta means nothing for gemma3_text: ignored"]);
}

#[test]
fn rotary_embeddings_that_are_refused() {
    let text = |config: Value| parse(&config).unwrap_err().to_string();
    assert_eq!(
        text(small("phi3", json!({ "pad_token_id": 0, "rope_scaling": { "type": "linear", "factor": 2.0 } }))),
        "dir/config.json: key \"rope_scaling.type\" should be default or longrope, but is \"linear\""
    );
    // An older name for it.
    let su = json!({ "type": "su", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 3.0, 4.0] });
    let config =
        small("phi3", json!({ "pad_token_id": 0, "rope_scaling": su, "original_max_position_embeddings": 32 }));
    let rope = llama_config(&config).rope;
    assert_eq!(rope.original_positions(), Some(32));
    assert!((rope.amplitude() - (1.0 + 2f64.ln() / 32f64.ln()).sqrt()).abs() < 1e-15);
    assert_eq!(rope.frequencies(8, 32)[3] / rope.frequencies(8, 33)[3], 4.0);
    logits(&config, &[1, 2, 3]);
    let mut short = su_with(json!([1.0, 2.0]));
    assert_eq!(
        text(small("phi3", json!({ "pad_token_id": 0, "rope_scaling": short }))),
        "dir/config.json: inconsistent configuration: long_factor has 2 entries, but 4 pairs are rotated"
    );
    short = su_with(json!([1.0, 2.0, 0.0, 1.0]));
    assert!(text(small("phi3", json!({ "pad_token_id": 0, "rope_scaling": short }))).starts_with(
        "dir/config.json: key \"rope_scaling.long_factor\" should be a list of numbers above 0, but is [1.0,"
    ));
    assert_eq!(
        text(small("llama", json!({ "partial_rotary_factor": 0.2 }))),
        "dir/config.json: inconsistent configuration: partial_rotary_factor = 0.2 rotates 1 of head_dim = 8 elements, but rotary \
         embeddings need pairs"
    );
    assert_eq!(
        text(small("llama", json!({ "partial_rotary_factor": 1.5 }))),
        "dir/config.json: key \"partial_rotary_factor\" should be a number above 0 and up to 1, but is 1.5"
    );
    assert_eq!(
        text(small("phi3", json!({}))),
        "dir/config.json: inconsistent configuration: pad_token_id is 32000 by default, but the vocabulary has 40 entries"
    );
}

fn su_with(long: Value) -> Value {
    json!({ "type": "su", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": long })
}

/// Documents that share a row give the results that each gives alone: a token sees only its own document, at that
/// document's positions.
#[test]
fn documents_in_a_row_are_apart() {
    let configs = [
        json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 16}),
        json!({"model_type": "mistral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 16, "sliding_window": 2}),
        json!({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 32, "n_positions": 16}),
    ];
    let device = device();
    let ints = |values: &[i64], rows: usize| {
        Tensor::<2, Int>::from_data(
            TensorData::new(values.to_vec(), [rows, values.len() / rows]),
            (&device, DType::I64),
        )
    };
    for json in configs {
        let config = ModelConfig::from_json(&json, Path::new("config.json")).unwrap();
        let model = tpc_tests::eager::filled(models::build(&config, &device), 1.0);
        let tokens: [i64; 14] = [5, 9, 2, 7, 7, 30, 1, 4, 8, 3, 3, 12, 0, 6];
        let documents = Documents {
            numbers: ints(&[0, 0, 0, 1, 1, 1, 2, 0, 1, 1, 1, 1, 1, 1], 2),
            positions: ints(&[0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 2, 3, 4, 5], 2),
        };
        let inputs = TokenInputs { documents: Some(documents), ..ints(&tokens, 2).into() };
        let together = values(model.forward(inputs));
        let alone = [0..3, 3..6, 6..7, 7..8, 8..14].map(|range| values(model.forward(ints(&tokens[range], 1).into())));
        let alone = alone.concat();
        assert_eq!(together.len(), alone.len());
        let far = together.iter().zip(&alone).fold(0f64, |most, (a, b)| most.max(f64::from(a - b).abs()));
        assert!(far < 1e-5, "{json}: {far}");
    }
}
