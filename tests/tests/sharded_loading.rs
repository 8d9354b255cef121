//! Weight files are read into the ranks' boxes and written back strip by strip: the values are the same, and no whole
//! tensor is in memory.

#[path = "../../runtime/tests/support/counting.rs"]
mod counting;

use counting::{alone, peak};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tpc_compiler::capture::Init;
use tpc_compiler::models::{
    ModelConfig, ModelDir, STRIP, WeightEntry, WeightMap, Weights, read_box, save_pretrained, weight_map, write_strips,
};
use tpc_compiler::pretrained::{LoadError, TokenBatch, capture_forward, initialize, load_weights, names, save};
use tpc_compiler::program::{CompileOptions, InferenceProgram, compile_inference};
use tpc_ir::{DType, InputKind, random};
use tpc_runtime::{BoxRequest, LaunchOptions, Session, element};
use tpc_tests::command::Scratch;
use tpc_tests::training::{mesh, plan, uniform};

fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

fn forward(config: &ModelConfig, on: &str, by: &str) -> InferenceProgram {
    let captured = capture_forward(config, TokenBatch::new(4, 8), true).unwrap();
    let names = names(config);
    let rename = |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
    compile_inference(&captured, &mesh(on), &plan(by), &CompileOptions::for_cpu(), &rename).unwrap()
}

fn launch(config: &ModelConfig, on: &str, by: &str) -> Session {
    forward(config, on, by).launch(LaunchOptions::default()).unwrap()
}

#[test]
fn directories_load_on_every_mesh_and_are_saved_again() {
    let _alone = alone();
    let meshes =
        [("", "none"), ("tp=2", "tp"), ("tp=3", "tp"), ("tp=4", "tp-sp"), ("dp=2", "ddp"), ("dp=2,tp=2", "tp-ddp")];
    for model in ["llama-tiny", "gpt2-tiny", "bert-tiny"] {
        let dir = ModelDir::open(data(&format!("hf/{model}"))).unwrap();
        let map = dir.weight_map();
        for (on, by) in meshes {
            let mut session = launch(&dir.config, on, by);
            load_weights(&mut session, &map, &dir.weights).unwrap();
            let mut seen = 0;
            for entry in &map.entries {
                let expected = entry.read(&dir.weights).unwrap();
                let found = session.read_input(&entry.hf_name).unwrap();
                assert_eq!(
                    found,
                    element::encode(DType::F32, &expected.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
                );
                seen += 1;
            }
            assert!(seen > 10);
            let scratch = Scratch::new("again");
            save(&session, &map, &dir.config_json, &scratch.0).unwrap();
            let again = ModelDir::open(&scratch.0).unwrap();
            assert_eq!(again.config, dir.config);
            assert_eq!(again.weights.names().collect::<Vec<_>>(), dir.weights.names().collect::<Vec<_>>());
            for name in dir.weights.names() {
                assert_eq!(again.weights.info(name).unwrap().shape, dir.weights.info(name).unwrap().shape);
                assert_eq!(
                    again.weights.read_f32(name).unwrap(),
                    dir.weights.read_f32(name).unwrap(),
                    "{model} {on} {name}"
                );
            }
        }
    }
}

#[test]
fn initial_values_are_those_of_the_global_index_on_every_mesh() {
    let _alone = alone();
    let dir = ModelDir::open(data("hf/llama-tiny")).unwrap();
    let init: HashMap<String, Init> = [
        ("model.norm.weight".to_string(), Init::Constant(0.75)),
        ("lm_head.weight".to_string(), Init::Random(burn::tensor::Distribution::Uniform(-0.25, 0.5))),
    ]
    .into();
    for (on, by) in [("", "none"), ("tp=3", "tp"), ("dp=2,tp=2", "tp-ddp")] {
        let mut session = launch(&dir.config, on, by);
        initialize(&mut session, &init, 11).unwrap();
        let inputs = session.program(0).inputs.clone();
        for (stream, input) in inputs.iter().filter(|i| i.kind == InputKind::Parameter).enumerate() {
            use tpc_ir::op::Distribution;
            let float = tpc_ir::Scalar::float;
            let distribution = match input.name.as_str() {
                "lm_head.weight" => Distribution::Uniform(float(-0.25), float(0.5)),
                _ => Distribution::Normal(float(0.0), float(0.02)),
            };
            let value = |i: usize| match input.name.as_str() {
                "model.norm.weight" => 0.75,
                _ => random::element(distribution, random::philox(11, stream as u64, i as u64)),
            };
            let count = input.binding.layout.iter().product();
            let expected = element::encode(DType::F32, &(0..count).map(value).collect::<Vec<_>>());
            assert_eq!(session.read_input(&input.name).unwrap(), expected, "{on} {}", input.name);
        }
    }
}

/// Merges neighboring dimensions that are not cut.
fn merged(dims: &[usize], cuts: &[bool]) -> Vec<usize> {
    let mut all: Vec<usize> = Vec::new();
    for (&d, &cut) in dims.iter().zip(cuts) {
        match all.last_mut() {
            Some(last) if !cut => *last *= d,
            _ => all.push(d),
        }
    }
    all
}

const TYPES: [(DType, Dtype); 4] =
    [(DType::F32, Dtype::F32), (DType::F64, Dtype::F64), (DType::BF16, Dtype::BF16), (DType::F16, Dtype::F16)];

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Reads any box in any dimensions of a transposed or straight parameter, of all rows or some, from any type into
    /// any type.
    #[test]
    fn boxes_are_read_as_slices_of_the_whole(
        left in proptest::collection::vec(1usize..5, 1..3),
        right in proptest::collection::vec(1usize..5, 1..3),
        scale in prop_oneof![Just(1usize), Just(300usize)],
        cuts in proptest::collection::vec(any::<bool>(), 4),
        at in proptest::collection::vec((0usize..10_000, 0usize..10_000), 4),
        transpose in any::<bool>(),
        skipped in 0usize..3,
        types in (0usize..4, 0usize..4),
    ) {
        let _alone = alone();
        let scratch = Scratch::new("box");
        // Large tensors need several strips.
        let mut dims: Vec<usize> = left.iter().chain(&right).copied().collect();
        let split = left.len();
        dims[split] *= scale;
        let shape = vec![dims[..split].iter().product::<usize>(), dims[split..].iter().product::<usize>()];
        let global = merged(&dims, &cuts);
        let start: Vec<usize> = global.iter().zip(&at).map(|(g, a)| a.0 % g).collect();
        let size: Vec<usize> = global.iter().zip(&start).zip(&at).map(|((g, s), a)| a.1 % (g - s + 1)).collect();
        let mut file_shape = shape.clone();
        if transpose { file_shape.reverse() }
        let rows = (skipped > 0).then(|| skipped..skipped + file_shape[0]);
        let of_all = [file_shape[0] + 2 * skipped, file_shape[1]];
        let (stored, wanted) = (TYPES[types.0], TYPES[types.1]);
        let values: Vec<f64> = (0..of_all[0] * of_all[1]).map(|i| ((i * 7 + i / 3) % 509) as f64 / 4.0).collect();
        let bytes = element::encode(stored.0, &values);
        let view = TensorView::new(stored.1, of_all.to_vec(), &bytes).unwrap();
        let path = scratch.0.join("w.safetensors");
        std::fs::write(&path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
        let weights = Weights::open_file(&path).unwrap();
        let entry = WeightEntry { burn_path: "w".into(), hf_name: "w".into(), transpose, shape: shape.clone(), rows, drawable: false, stands_for: vec![] };
        let request = BoxRequest { dtype: wanted.0, global, start, shape: size, layout: shape };
        let mut found = vec![0xff; request.elements() * wanted.0.bytes()];
        read_box(&entry, &weights, &request, &mut found).unwrap();
        let whole: Vec<f64> = entry.read(&weights).unwrap().into_iter().map(f64::from).collect();
        let mut expected = Vec::new();
        request.element_runs().for_each(|r| expected.extend_from_slice(&whole[r.first..r.end()]));
        prop_assert_eq!(found, element::encode(wanted.0, &expected));
    }
}

/// A model of a few large tensors: 8192 × 512 embeddings, 16 MiB each.
fn large() -> (ModelConfig, serde_json::Value) {
    let json = json!({
        "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4,
        "num_hidden_layers": 1, "vocab_size": 8192, "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "hidden_act": "silu",
        "tie_word_embeddings": false, "rope_theta": 1e4
    });
    (ModelConfig::from_json(&json, Path::new("config.json")).unwrap(), json)
}

#[test]
fn loading_initializing_and_saving_hold_a_strip_per_rank() {
    let _alone = alone();
    let (config, json) = large();
    let scratch = Scratch::new("memory");
    let map: WeightMap = weight_map(&config);
    save_pretrained(&scratch.0.join("model"), &json, &map, |entry| {
        let mut draw = uniform(&entry.hf_name);
        Ok((0..entry.shape.iter().product::<usize>()).map(|_| draw() as f32).collect())
    })
    .unwrap();
    let dir = ModelDir::open(scratch.0.join("model")).unwrap();
    let largest = 4 * 8192 * 512;
    for (on, by) in [("tp=4", "tp"), ("dp=4", "ddp")] {
        let mut session = launch(&config, on, by);
        let loading = peak(|| load_weights(&mut session, &map, &dir.weights).unwrap());
        // Each rank needs a strip, the box that is gathered from it, and the column ranges of the box.
        let bound = 4 * (2 * STRIP) + (128 << 10);
        assert!(loading < bound && bound < largest / 4, "{on}: loading held {loading} bytes");
        let saving = peak(|| save(&session, &map, &json, &scratch.0.join("saved")).unwrap());
        // A strip as bytes, as f64, as f32 and transposed, and the buffer of the file.
        assert!(saving < 6 * STRIP + (3 << 19), "{on}: saving held {saving} bytes");
        for name in dir.weights.names() {
            let saved = Weights::open_dir(&scratch.0.join("saved")).unwrap();
            assert_eq!(saved.read_f32(name).unwrap(), dir.weights.read_f32(name).unwrap());
        }
        let drawing = peak(|| initialize(&mut session, &HashMap::new(), 1).unwrap());
        assert!(drawing < 512 << 10, "{on}: initializing held {drawing} bytes");
        println!("{on}: loading {loading}, saving {saving}, initializing {drawing} of {largest} bytes");
    }
}

#[test]
fn a_failing_strip_leaves_no_file() {
    let _alone = alone();
    let scratch = Scratch::new("failing");
    let (config, _) = large();
    let path = scratch.0.join("w.safetensors");
    let mut strips = 0;
    let output = tpc_runtime::output::Output::at(&path).unwrap();
    let failed: Result<(), LoadError> = write_strips(output, &weight_map(&config), |_, range, into| {
        assert_eq!(range.len(), into.len());
        assert!(range.len() * 4 <= STRIP);
        strips += 1;
        match strips {
            100 => Err(tpc_runtime::RuntimeError::Poisoned("enough".into()).into()),
            _ => Ok(()),
        }
    });
    assert!(matches!(failed, Err(LoadError::Runtime(_))));
    assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 0);
}
