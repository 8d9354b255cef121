//! Every stage of every kind of model as text, and that every stage means the same on 1, 2 and 4
//! ranks, simulated and real.
//!
//! After an intended change: `INSTA_UPDATE=always cargo test -p tpc-tests --test golden_ir`, then read
//! the difference.

use burn::tensor::DType;
use serde_json::json;
use std::collections::HashMap;
use tpc::capture::{Captured, Spec, capture_inference_shapes, capture_training_shapes, named};
use tpc::import::{Signature, import};
use tpc::models::{Mlp, ModelConfig};
use tpc::pretrained::{TokenBatch, capture_forward, capture_step, names};
use tpc::program::{CompileOptions, Stages, compile_inference, compile_training};
use tpc_ir::interpret::Tensor;
use tpc_ir::text::print;
use tpc_passes::propagate::Annotations;
use tpc_tests::captured::tensor;
use tpc_tests::training::{adamw, config, mesh, plan};
use tpc_tests::{difference, executed, inputs, on_ranks, reference, wrong};

/// The annotated stage: what the plan demands.
fn demands(annotations: &Annotations) -> String {
    let mut lines: Vec<String> = annotations
        .inputs
        .iter()
        .map(|(name, a)| {
            let dims: Vec<String> = a
                .sharding
                .dims
                .iter()
                .map(|axes| {
                    let axes: Vec<&str> = axes.iter().map(|&x| annotations.mesh.name(x)).collect();
                    if axes.is_empty() { "-".into() } else { axes.join("+") }
                })
                .collect();
            format!("{name} [{}]  why: {}", dims.join(", "), a.why)
        })
        .collect();
    lines.sort();
    format!("{}\n{}\n", annotations.mesh, lines.join("\n"))
}

fn snapshot(name: &str, stages: &Stages, everything: bool) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        let model = name.split('@').next().unwrap_or(name);
        if everything {
            insta::assert_snapshot!(format!("{model}.1_captured"), print(&stages.captured));
            insta::assert_snapshot!(format!("{model}.2_logical"), print(&stages.logical));
        }
        insta::assert_snapshot!(format!("{name}.3_annotated"), demands(&stages.annotations));
        insta::assert_snapshot!(format!("{name}.4_propagated"), print(&stages.propagated));
        insta::assert_snapshot!(format!("{name}.5_placed"), print(&stages.placed));
        insta::assert_snapshot!(format!("{name}.6_scheduled"), stages.ranks[0].to_text());
    });
}

type Feed = HashMap<String, Tensor>;

/// Every stage against the captured one, on the interpreter.
fn same(stages: &Stages, feed: &Feed, what: &str) {
    let expected = reference(&stages.captured, feed);
    assert!(difference(&expected, &reference(&stages.logical, feed)) < 1e-9, "{what}: logical");
    assert!(difference(&expected, &on_ranks(&stages.propagated, feed)) < 1e-9, "{what}: propagated");
    assert!(difference(&expected, &on_ranks(&stages.placed, feed)) < 1e-9, "{what}: placed");
    assert_eq!(
        wrong(&stages.placed, &expected, &executed(&stages.placed, feed), 1e-4),
        Vec::<String>::new(),
        "{what}: executed"
    );
}

/// Compiles a model for a plan and a mesh: its stages, and inputs to run them on.
type Compile<'a> = &'a dyn Fn(&str, &str) -> (Stages, HashMap<String, Tensor>);

/// Snapshots on some meshes, equality on all.
fn golden(name: &str, compile: Compile, snapshots: &[(&str, &str)]) {
    let others =
        [("tp", "tp=1"), ("tp", "tp=2"), ("tp", "tp=4"), ("ddp", "dp=4"), ("tp-ddp", "dp=2,tp=2"), ("none", "")];
    let others = others.iter().filter(|o| !snapshots.contains(o));
    for (plan, on) in snapshots.iter().chain(others) {
        let (stages, constants) = compile(plan, on);
        let feed = inputs(&stages.captured, 8, &constants);
        same(&stages, &feed, &format!("{name} {plan} on {on:?}"));
    }
    // After the meaning: a wrong program should not be accepted as a golden.
    for (i, (plan, on)) in snapshots.iter().enumerate() {
        let file = format!("{name}@{}", on.replace('=', "").replace(',', "_"));
        snapshot(&file, &compile(plan, on).0, i == 0);
    }
}

fn constants(captured: &Captured) -> HashMap<String, Tensor> {
    import(captured).unwrap().constants.iter().map(|(n, d)| (n.clone(), tensor(d))).collect()
}

fn mlp_forward(plan_name: &str, on: &str) -> (Stages, Feed) {
    let x = named("x", Spec::<2>::new([4, 6], DType::F32));
    let captured = capture_inference_shapes(|d| Mlp::new(6, 8, d), x, |m, x| named("y", m.forward(x))).unwrap();
    let program =
        compile_inference(&captured, &mesh(on), &plan(plan_name), &CompileOptions::default(), &|p| p.to_string());
    (program.unwrap().stages, constants(&captured))
}

fn mlp_step(plan_name: &str, on: &str) -> (Stages, Feed) {
    let x = || Spec::<2>::new([4, 6], DType::F32);
    let batch = (named("x", x()), named("target", x()));
    let loss = |m: &Mlp, (x, y)| m.loss(m.forward(x), y);
    let step = capture_training_shapes(|d| Mlp::new(6, 8, d), &adamw(), batch, &Default::default(), loss).unwrap();
    let program = compile_training(step, &mesh(on), &plan(plan_name), &CompileOptions::default(), &|p| p.to_string());
    (program.unwrap().steady, Feed::new())
}

fn renamed(config: &ModelConfig) -> impl Fn(&str) -> String {
    let names = names(config);
    move |p| names.get(p).cloned().unwrap_or_else(|| p.to_string())
}

fn forward(config: &ModelConfig, plan_name: &str, on: &str) -> (Stages, Feed) {
    let captured = capture_forward(config, TokenBatch::new(2, 6), false).unwrap();
    let program =
        compile_inference(&captured, &mesh(on), &plan(plan_name), &CompileOptions::default(), &renamed(config));
    (program.unwrap().stages, constants(&captured))
}

fn step(config: &ModelConfig, plan_name: &str, on: &str) -> (Stages, Feed) {
    // Fewer lines than AdamW, whose are in the MLP's snapshots.
    let optimizer =
        burn::optim::SgdConfig::new().with_momentum(Some(burn::optim::momentum::MomentumConfig::new())).build();
    let step = capture_step(config, TokenBatch::new(2, 6), &optimizer).unwrap();
    // Constants are named once for both programs.
    let signature = Signature::of([&step.first, &step.steady]).unwrap();
    let imported = tpc::import::import_with(&step.steady, &signature).unwrap();
    let constants = imported.constants.iter().map(|(n, d)| (n.clone(), tensor(d))).collect();
    let program = compile_training(step, &mesh(on), &plan(plan_name), &CompileOptions::default(), &renamed(config));
    (program.unwrap().steady, constants)
}

fn llama(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": 10, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn gpt2() -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": 10, "n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 4,
        "n_inner": 12, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

fn bert() -> ModelConfig {
    config(json!({
        "model_type": "bert", "vocab_size": 10, "max_position_embeddings": 6, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 12, "hidden_act": "gelu", "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "tie_word_embeddings": true,
    }))
}

#[test]
fn mlp() {
    golden("mlp", &mlp_forward, &[("tp", "tp=2"), ("ddp", "dp=2")]);
}

#[test]
fn mlp_training() {
    golden("mlp_training", &mlp_step, &[("tp", "tp=2"), ("ddp", "dp=2")]);
}

#[test]
fn llama_inference() {
    golden("llama", &|p, m| forward(&llama(2), p, m), &[("tp", "tp=2"), ("tp-ddp", "dp=2,tp=2")]);
}

#[test]
fn llama_training() {
    golden("llama_training", &|p, m| step(&llama(1), p, m), &[("tp", "tp=2"), ("tp-ddp", "dp=2,tp=2")]);
}

#[test]
fn gpt2_inference() {
    golden("gpt2", &|p, m| forward(&gpt2(), p, m), &[("tp", "tp=2")]);
}

#[test]
fn bert_inference() {
    golden("bert", &|p, m| forward(&bert(), p, m), &[("tp", "tp=2")]);
}

/// The snapshots say nothing about the machine.
#[test]
fn the_text_is_the_same_everywhere() {
    for compile in [mlp_forward, mlp_step] {
        let texts = || {
            let (s, _) = compile("tp", "tp=2");
            [print(&s.captured), print(&s.logical), print(&s.propagated), print(&s.placed), s.ranks[0].to_text()]
        };
        let other = std::thread::spawn(move || {
            let (s, _) = compile("tp", "tp=2");
            [print(&s.captured), print(&s.logical), print(&s.propagated), print(&s.placed), s.ranks[0].to_text()]
        });
        let text = texts();
        assert_eq!(text, other.join().unwrap());
        assert!(text.iter().all(|t| !t.contains("/root") && !t.contains(".rs:") && !t.contains("0x")));
    }
    let texts = || print(&step(&llama(1), "tp", "tp=2").0.placed);
    assert_eq!(texts(), texts());
}
