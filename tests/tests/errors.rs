//! Messages to users, word for word.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamConfig;
use burn::tensor::{DType, Device, Int, Tensor};
use serde_json::json;
use std::path::{Path, PathBuf};
use tpc::{Mesh, OutputKind};
use tpc_compiler::capture::{Spec, capture_inference, capture_training, named};
use tpc_compiler::import::import;
use tpc_compiler::models::{ModelConfig, ModelDir, ModelError, Weights, presets, save_pretrained, weight_map};
use tpc_compiler::pretrained::{TokenBatch, capture_forward, load_weights, names};
use tpc_compiler::program::{CompileOptions, InferenceProgram, compile_inference};
use tpc_passes::options::OptionError;
use tpc_passes::styles::{ColwiseParallel, PairwiseParallel, Plan, RowwiseParallel};
use tpc_runtime::CheckpointError;
use tpc_runtime::LaunchOptions;
use tpc_tests::command::Scratch;
use tpc_tests::training::{config, mesh, plan};

fn says(error: impl std::fmt::Display, expected: &str) {
    assert_eq!(error.to_string(), expected);
}

fn tiny() -> ModelConfig {
    config(tiny_json())
}

fn tiny_json() -> serde_json::Value {
    json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 10, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    })
}

fn compiled(plan: &Plan, on: &str) -> Result<InferenceProgram, tpc_compiler::error::Error> {
    let captured = capture_forward(&tiny(), TokenBatch::new(2, 6), false).unwrap();
    let names = names(&tiny());
    let rename = |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
    compile_inference(&captured, &mesh(on), plan, &CompileOptions::for_cpu(), &rename)
}

fn refused(plan: Plan, on: &str, expected: &str) {
    match compiled(&plan, on) {
        Ok(_) => panic!("accepted, instead of: {expected}"),
        Err(e) => says(e, expected),
    }
}

#[test]
fn placements_that_do_not_fit() {
    let plan = |parameters: serde_json::Value| {
        Plan::from_json(&json!({ "placements": { "parameters": parameters } }).to_string()).unwrap()
    };
    refused(
        plan(json!({ "model.layers.*.self_attn.q.weight": ["tp", null] })),
        "tp=2",
        "plan entry `model.layers.*.self_attn.q.weight` of the placements matches no parameter; the nearest are model.layers.0.self_attn.q_proj.weight, model.layers.1.self_attn.q_proj.weight, model.layers.0.self_attn.k_proj.weight",
    );
    refused(
        plan(json!({ "model.norm.weight": ["tp", null] })),
        "tp=2",
        "plan entry `model.norm.weight` places 2 dimensions of `model.norm.weight`, which has the shape [8]: name the axes of each, [] for none",
    );
    refused(
        plan(json!({ "lm_head.weight": ["tp", "tp"] })),
        "tp=2",
        "plan entry `lm_head.weight` cuts two dimensions over the axis tp: an axis cuts one",
    );
    refused(
        plan(json!({ "lm_head.weight": ["tp", "x"] })),
        "tp=2",
        "the plan shards along the axis `x`, but the mesh has no such axis (mesh <tp=2>): add `x=N` to the mesh or change the plan's axis",
    );
    refused(
        plan(json!({ "lm_head.weight": ["tp", null] })).with("lm_head", ColwiseParallel::default()),
        "tp=2",
        "plan entry `lm_head.weight` places `lm_head.weight`, which another entry or the data mode places differently: remove one",
    );
    // The name of a tensor of the batch is no pattern, and a program that does not read the tensor ignores it.
    let named = Plan::from_json(&json!({ "placements": { "data": { "ids[": ["tp", null] } } }).to_string()).unwrap();
    assert!(compiled(&named, "tp=2").is_ok());
    for (text, expected) in [
        (
            r#"{"placements": {"parameters": {"a": "tp"}}}"#,
            "`a` in the plan must be a list with an axis, a list of axes or null for each dimension, found \"tp\"",
        ),
        (
            r#"{"placements": {"weights": {}}}"#,
            "the plan has an unknown key `weights` in `placements`: known are parameters, states, data",
        ),
        (
            r#"{"extends": "tpp"}"#,
            "there is no built-in plan `tpp` and no such file: built in are none, tp, tp-sp, ddp, fsdp, zero1, hsdp, 2d, tp-ddp, tp-sp-ddp, tp-fsdp, tp-sp-fsdp, tp-zero1, tp-sp-zero1, tp-hsdp, tp-sp-hsdp",
        ),
    ] {
        says(Plan::from_json(text).unwrap_err(), expected);
    }
}

#[test]
fn plans_that_do_not_fit_the_model() {
    refused(
        Plan::new().with("model.layers.*.self_atn", PairwiseParallel),
        "tp=2",
        "plan entry `model.layers.*.self_atn` matches no module; the nearest are model.layers.0.self_attn, model.layers.1.self_attn, model.layers.0.mlp",
    );
    refused(
        Plan::new()
            .with("model.layers.*.self_attn", PairwiseParallel)
            .with("model.layers.*.mpl.gate_proj", ColwiseParallel::default()),
        "tp=2",
        "plan entry `model.layers.*.mpl.gate_proj` matches no module; the nearest are model.layers.0.mlp.gate_proj, model.layers.1.mlp.gate_proj, model.layers.0.mlp.down_proj",
    );
    refused(
        Plan::new().with("model.norm", ColwiseParallel::default()),
        "tp=2",
        "plan entry `model.norm` (ColwiseParallel) finds nothing to parallelize in `model.norm`, which is a RmsNorm: it works on a linear, an embedding or a convolution",
    );
    refused(
        Plan::new().with("model.layers.0", RowwiseParallel::default()),
        "tp=2",
        "plan entry `model.layers.0` (RowwiseParallel) finds nothing to parallelize in `model.layers.0`, which is a DecoderLayer: it works on a linear, an embedding or a convolution",
    );
    refused(
        Plan::new().with("lm_head", PairwiseParallel),
        "tp=2",
        "plan entry `lm_head` (PairwiseParallel) finds nothing to parallelize in `lm_head`, which is a Linear: it works on pairs of linears that follow each other",
    );
    refused(
        Plan::new()
            .with("model.layers.*.mlp", PairwiseParallel)
            .with("model.layers.1.mlp.up_proj", RowwiseParallel::default()),
        "tp=2",
        "parameter `model.layers.1.mlp.up_proj.weight` is claimed by two plan entries, `plan \"model.layers.*.mlp\"` (by columns) and `plan \"model.layers.1.mlp.up_proj\"` (by rows): remove one of them",
    );
}

#[test]
fn plans_that_do_not_fit_the_mesh() {
    let head = || Plan::new().with("lm_head", ColwiseParallel::default());
    refused(
        plan("tp"),
        "dp=2",
        "the plan shards along the axis `tp`, but the mesh has no such axis (mesh <dp=2>): add `tp=N` to the mesh or change the plan's axis",
    );
    refused(
        plan("tp"),
        "tp=2,dp=2",
        "the mesh axis `dp` is not used by the plan: every rank along it would compute the same; remove it from the mesh or give it a data mode",
    );
    refused(
        plan("ddp"),
        "tp=2",
        "the plan shards along the axis `dp`, but the mesh has no such axis (mesh <tp=2>): add `dp=N` to the mesh or change the plan's axis",
    );
    refused(
        head(),
        "a=2,b=2",
        "the plan shards along the axis `tp`, but the mesh has no such axis (mesh <a=2, b=2>): add `tp=N` to the mesh or change the plan's axis",
    );
    refused(
        head().along("model"),
        "tp=2",
        "the plan shards along the axis `model`, but the mesh has no such axis (mesh <tp=2>): add `model=N` to the mesh or change the plan's axis",
    );
    refused(
        Plan::new(),
        "tp=2",
        "the mesh axis `tp` is not used by the plan: every rank along it would compute the same; remove it from the mesh or give it a data mode",
    );
}

#[test]
fn plan_files() {
    const STYLES: &str = "use ColwiseParallel, RowwiseParallel, PairwiseParallel, PairwiseSequenceParallel, SequenceParallel, PrepareModuleInput, PrepareModuleOutput, PrepareModuleInputOutput, TensorParallelMultiheadAttention";
    let cases = [
        ("{", "the plan is not JSON: EOF while parsing an object at line 1 column 1".to_string()),
        ("[]", "`the plan` in the plan must be an object, found []".into()),
        (
            r#"{"style": {}}"#,
            "the plan has an unknown key `style` in the plan: known are extends, axis, styles, data, loss_parallel, placements".into(),
        ),
        (r#"{"axis": true}"#, "`axis` in the plan must be the name or number of a mesh axis, found true".into()),
        (
            r#"{"styles": {"a": "ColumnParallel"}}"#,
            format!("plan entry `a` names the style `ColumnParallel`, which does not exist: {STYLES}"),
        ),
        (
            r#"{"styles": {"a": {"b": {"c": "Pairwise"}}}}"#,
            format!("plan entry `a.b.c` names the style `Pairwise`, which does not exist: {STYLES}"),
        ),
        (r#"{"styles": {"a": 1}}"#, "`a` in the plan must be a style or a map of styles, found 1".into()),
        (
            r#"{"data": {"axis": "dp"}}"#,
            "`data.mode` in the plan must be \"ddp\", \"fsdp\", \"zero1\" or \"hsdp\", found nothing".into(),
        ),
        (
            r#"{"data": {"mode": "fdsp"}}"#,
            "`data.mode` in the plan must be \"ddp\", \"fsdp\", \"zero1\" or \"hsdp\", found fdsp".into(),
        ),
        (
            r#"{"data": {"mode": "ddp", "axes": "dp"}}"#,
            "the plan has an unknown key `axes` in `data`: known are mode, axis, replicate_axis".into(),
        ),
    ];
    for (text, expected) in cases {
        says(Plan::from_json(text).unwrap_err(), &expected);
    }
    let unknown =
        Plan::from_json(r#"{"styles": {"a": {"ColwiseParallel": {"layouts": "x"}}}}"#).unwrap_err().to_string();
    assert!(unknown.starts_with("the plan has an unknown key `layouts` in `a`: known are "), "{unknown}");
    says(
        Plan::built_in("tpp").unwrap_err(),
        "there is no built-in plan `tpp` and no such file: built in are none, tp, tp-sp, ddp, fsdp, zero1, hsdp, 2d, tp-ddp, tp-sp-ddp, tp-fsdp, tp-sp-fsdp, tp-zero1, tp-sp-zero1, tp-hsdp, tp-sp-hsdp",
    );
}

#[test]
fn meshes() {
    for text in ["tp", "tp=x", "tp=-1", "=2", "tp=2;dp=2", "a b=2"] {
        let expected = format!("mesh `{text}` is not a list of axes: write it as `tp=2` or `dp=2,tp=4`");
        says(Mesh::parse(text).unwrap_err(), &expected);
    }
    says(Mesh::parse("tp=0").unwrap_err(), "mesh axis `tp` has size 0: an axis holds at least one rank");
    says(Mesh::parse("tp=2,tp=2").unwrap_err(), "mesh axis `tp` is named twice: every axis needs a name of its own");
    says(
        Mesh::parse("tp=100000").unwrap_err(),
        "mesh has 100000 ranks, more than 65536, the most that a program is planned for",
    );
    says(Mesh::new((0..33).map(|i| (format!("a{i}"), 1))).unwrap_err(), "mesh has 33 axes, more than 32");
    let program = compiled(&plan("none"), "tp=65").unwrap();
    let launched = program.launch(LaunchOptions::default()).map(|_| ());
    says(
        launched.unwrap_err(),
        "cannot launch: 65 ranks, but one process can run at most 64 as threads: start one process per rank (`tpc launch`, `mpirun`, `srun`)",
    );
}

fn config_error(key: &str, value: Option<serde_json::Value>) -> ModelError {
    let mut json = tiny_json();
    match value {
        Some(value) => json[key] = value,
        None => drop(json.as_object_mut().unwrap().remove(key)),
    }
    ModelConfig::from_json(&json, Path::new("config.json")).unwrap_err()
}

#[test]
fn configurations() {
    let cases = [
        (
            config_error("model_type", Some(json!("lama"))),
            "unknown model_type \"lama\"; supported are llama, mistral, qwen2, qwen3, gemma2, gemma3_text, phi3, olmo2, gpt2, bert, llama-interleaved",
        ),
        (config_error("model_type", None), "missing key \"model_type\" (needed for model_type \"any\")"),
        (
            config_error("hidden_size", Some(json!(null))),
            "key \"hidden_size\" should be a whole number from 1 up, but is null",
        ),
        (
            config_error("hidden_size", Some(json!("eight"))),
            "key \"hidden_size\" should be a whole number from 1 up, but is \"eight\"",
        ),
        (
            config_error("hidden_size", Some(json!(-8))),
            "key \"hidden_size\" should be a whole number from 1 up, but is -8",
        ),
        (
            config_error("num_key_value_heads", Some(json!(3))),
            "inconsistent configuration: num_attention_heads = 4 is not a multiple of num_key_value_heads = 3",
        ),
        (
            config_error("hidden_act", Some(json!("sigmoid"))),
            "key \"hidden_act\" should be one of silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu, but is \"sigmoid\"",
        ),
        (
            config_error("rope_scaling", Some(json!({ "rope_type": "ntk", "factor": 2.0 }))),
            "key \"rope_scaling.rope_type\" should be one of default, linear, dynamic, yarn, longrope, llama3, but is \"ntk\"",
        ),
    ];
    for (error, expected) in cases {
        says(error, &format!("config.json: {expected}"));
    }
    says(
        presets::named("llamma").unwrap_err(),
        "there is no preset \"llamma\"; the presets are llama, gpt, gpt-learned",
    );
    says(tiny().check_batch([2, 6], 10).unwrap_err(), "batch: token 10, but the vocabulary has 10 entries");
    says(tiny().check_batch([0, 6], 1).unwrap_err(), "batch: its shape [0, 6] is empty");
}

#[test]
fn directories() {
    let dir = Scratch::new("directories");
    let root = dir.0.clone();
    let says = |error: &dyn std::fmt::Display, expected: &str| {
        says(error.to_string().replace(root.to_str().unwrap(), "DIR"), expected);
    };
    let refused = |expected: &str| says(&ModelDir::open(&root).unwrap_err(), expected);
    let save = |to: &Path| {
        save_pretrained(to, &tiny_json(), &weight_map(&tiny()), |e| Ok(vec![0.5; e.shape.iter().product()]))
    };
    refused("DIR/config.json: No such file or directory (os error 2)");
    dir.write("config.json", "{");
    refused("DIR/config.json: not valid JSON: EOF while parsing an object at line 1 column 1");
    dir.write("config.json", tiny_json().to_string());
    refused("DIR: no weights: neither model.safetensors nor model.safetensors.index.json");
    save(&root).unwrap();
    let good = std::fs::read(root.join("model.safetensors")).unwrap();
    let bytes = good.len();
    dir.write("model.safetensors", &good[..bytes - 5]);
    refused(&format!(
        "DIR/model.safetensors: truncated: the header describes {bytes} bytes, the file has {}",
        bytes - 5
    ));
    dir.write("model.safetensors", "abc");
    refused("DIR/model.safetensors: truncated: the header describes 8 bytes, the file has 3");
    dir.write("model.safetensors", "\x08\0\0\0\0\0\0\0{abcdefg");
    refused(
        "DIR/model.safetensors: not a valid safetensors file: its header is not JSON: key must be a string at line 1 column 2",
    );
    dir.write("model.safetensors", &good);
    let mut other = tiny_json();
    other["intermediate_size"] = json!(16);
    dir.write("config.json", other.to_string());
    refused(
        "DIR/model.safetensors: tensor \"model.layers.0.mlp.gate_proj.weight\" has shape [12, 8], but the configuration says [16, 8]",
    );
    other = tiny_json();
    other["num_hidden_layers"] = json!(3);
    dir.write("config.json", other.to_string());
    refused(
        "DIR/model.safetensors: missing tensor \"model.layers.2.input_layernorm.weight\"; nearest are model.layers.0.input_layernorm.weight, model.layers.1.input_layernorm.weight, model.layers.0.mlp.down_proj.weight",
    );
    dir.write("config.json", tiny_json().to_string());
    let mut integers = good.clone();
    let at = good.windows(3).position(|w| w == b"F32").unwrap();
    integers[at..at + 3].copy_from_slice(b"I32");
    dir.write("model.safetensors", &integers);
    let opened = ModelDir::open(&root).unwrap();
    let mut session = compiled(&plan("none"), "").unwrap().launch(LaunchOptions::default()).unwrap();
    says(
        &load_weights(&mut session, &opened.weight_map(), &opened.weights).unwrap_err(),
        "DIR/model.safetensors: tensor \"model.embed_tokens.weight\" has element type I32, expected F32, F16, BF16 or F64",
    );
    let weights = Weights::open_file(&root.join("model.safetensors")).unwrap();
    says(
        &weights.read_f32_slice("model.norm.weight", std::slice::from_ref(&(0..9))).unwrap_err(),
        "DIR/model.safetensors: tensor \"model.norm.weight\" of shape [8] has no slice [0..9]",
    );
    let file = root.join("file");
    dir.write("file", "");
    says(&save(&file).unwrap_err(), "DIR/file: File exists (os error 17)");
    says(&save(&file.join("x")).unwrap_err(), "DIR/file/x: Not a directory (os error 20)");
    let half = root.join("half");
    says(
        &save_pretrained(&half, &tiny_json(), &weight_map(&tiny()), |_| Ok(vec![0.5; 3])).unwrap_err(),
        "parameter \"model.embed_tokens.weight\" should have 80 elements, but has 3",
    );
    assert!(
        std::fs::read_dir(&half).is_err() || std::fs::read_dir(&half).unwrap().next().is_none(),
        "something is left"
    );
}

#[derive(Module, Debug)]
struct Model {
    a: Linear,
}

fn model() -> Model {
    Model { a: LinearConfig::new(4, 4).init(&Device::flex()) }
}

fn x() -> Spec<2> {
    Spec::new([3, 4], DType::F32)
}

fn not_captured(loss: impl FnOnce(&Model, Tensor<2>) -> Tensor<1>, expected: &str) {
    let captured = capture_training(&model(), &AdamConfig::new().build(), x(), loss).map(|_| ());
    says(captured.unwrap_err(), expected);
}

#[test]
fn captures() {
    const READS: &str = "nothing is computed during a capture, so `into_data`, `into_scalar`, `argwhere`, `one_hot` and the like cannot be recorded; compute it outside and pass it as an input";
    not_captured(
        |m, x| {
            let y = m.a.forward(x);
            let _ = y.clone().into_data();
            y.mean()
        },
        &format!(
            "a computed value is readoutside any marked region (mark one with `tpc::scope` to see which module): {READS}"
        ),
    );
    not_captured(
        |m, x| {
            tpc::scope("model", x, |x| tpc::scope("head", x, |x| m.a.forward(x.clone() * x.sum().into_scalar::<f32>())))
                .mean()
        },
        &format!("a computed value is read in `model.head`: {READS}"),
    );
    not_captured(
        |m, x| tpc::scope("head", x, |x| m.a.forward(x.reshape([4, 3]))).mean(),
        "the model panicked in `head`: assert_shape!(input, [.., d_input]): axis 1 expected 4, got 3 (dims [4, 3]) (at burn-nn-0.22.1/src/modules/linear.rs:136:35)",
    );
    let nothing = "no parameter receives a gradient: all are frozen, or none of them is used by the loss";
    not_captured(|_, x| x.mean(), nothing);
    let frozen =
        capture_training(&model().no_grad(), &AdamConfig::new().build(), x(), |m: &Model, x| m.a.forward(x).mean());
    says(frozen.map(|_| ()).unwrap_err(), nothing);
    let twice = (named("x", x()), named("x", x()));
    says(
        capture_inference(&model(), twice, |m: &Model, (x, y)| m.a.forward(x + y)).unwrap_err(),
        "two inputs are named `x`: give each its own name with `tpc::named`",
    );
    says(
        capture_inference(&model(), x(), |m: &Model, x| (named("y", m.a.forward(x.clone())), named("y", x)))
            .unwrap_err(),
        "two outputs are named `y`: give each its own name with `tpc::named`",
    );
    let nested = capture_inference(&model(), x(), |m: &Model, outer: Tensor<2>| {
        let inner = capture_inference(&model(), x(), |m: &Model, x: Tensor<2>| m.a.forward(x));
        says(inner.unwrap_err(), "a capture is already running on this thread");
        m.a.forward(outer)
    });
    nested.unwrap();
}

#[test]
fn imports() {
    let short = Spec::<2, Int>::new([3, 4], DType::I16);
    let captured = capture_inference(&model(), short, |m: &Model, x: Tensor<2, Int>| m.a.forward(x.float())).unwrap();
    says(
        import(&captured).unwrap_err(),
        "element type I16 of input `input0` is not supported: use f32, f64, bf16, f16, i64, i32, u8 or bool",
    );
    let captured =
        capture_inference(&model(), x(), |m: &Model, x| tpc::scope("head", x, |x| m.a.forward(x).cumprod(1)));
    says(
        import(&captured.unwrap()).unwrap_err(),
        "the model (in `head`) uses `NumericFloat.CumProd`, which tpc cannot shard yet: there is no rule for it",
    );
}

#[test]
fn sizes() {
    let captured =
        capture_inference(&model(), Spec::<2>::new([1 << 60, 4], DType::F32), |m: &Model, x| m.a.forward(x)).unwrap();
    let options = CompileOptions::for_cpu();
    let compiled = compile_inference(&captured, &Mesh::single(), &Plan::new(), &options, &|p| p.to_string());
    says(
        compiled.map(|_| ()).unwrap_err(),
        "the tensor `input0` of type f32[1152921504606846976, 4] has more elements than can be addressed; use fewer sequences, shorter ones, or a smaller model",
    );
}

/// A message quotes only as much of a user's text as fits into a sentence, and only characters that cannot affect a
/// terminal.
#[test]
fn long_and_dangerous_texts() {
    let long = "x".repeat(1000);
    let cut = format!("{}… (1000 characters)", "x".repeat(200));
    let nothing = OptionError::NoEffect { pattern: long.clone(), why: "it matches nothing" };
    says(nothing, &format!("freezing `{cut}` changes nothing: it matches nothing; leave it out"));
    let none = CheckpointError::NoCheckpoint {
        dir: PathBuf::from(format!("\u{1b}[2J{long}")),
        partial: (0..12).map(|i| format!(".step-{i}.partial")).collect(),
    };
    let partial: Vec<String> = (0..10).map(|i| format!(".step-{i}.partial")).collect();
    says(
        none,
        &format!(
            "\\u{{1b}}[2J{}… (1004 characters): no checkpoint: no directory step-N with an index.json (only interrupted writes: {} and 2 more)",
            "x".repeat(196),
            partial.join(", ")
        ),
    );
    let mut session = compiled(&plan("none"), "").unwrap().launch(LaunchOptions::default()).unwrap();
    let unknown = session.write_f64(&long, &[0.0]).unwrap_err().to_string();
    assert!(unknown.starts_with(&format!("the program has no input `{cut}`; it has ")), "{unknown}");
    assert!(unknown.ends_with(" more") && unknown.matches(", ").count() == 9, "{unknown}");
}

#[test]
fn sessions() {
    let mut session = compiled(&plan("tp"), "tp=2").unwrap().launch(LaunchOptions::default()).unwrap();
    let unknown = session.write_f64("input_id", &[0.0]).unwrap_err().to_string();
    assert!(
        unknown.starts_with("the program has no input `input_id`; it has model.embed_tokens.weight, "),
        "{unknown}"
    );
    says(session.write_f64("input_ids", &[0.0]).unwrap_err(), "`input_ids` takes 96 bytes (i64[2, 6]), not 8");
    says(session.read_f64(&OutputKind::Loss).unwrap_err(), "the program has no output `loss`; it has result logits");
}
