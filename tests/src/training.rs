//! Training runs on ranks, and the tolerances within which two runs are equal.

use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use tpc_compiler::capture::TrainingCapture;
use tpc_compiler::models::{ModelConfig, presets};
use tpc_compiler::pretrained::{TokenBatch, capture_step, names};
use tpc_compiler::program::{CompileOptions, TrainingProgram, compile_training};
use tpc_ir::{InputKind, Mesh, OutputKind};
use tpc_passes::styles::Plan;
use tpc_runtime::{LaunchOptions, Session};

/// Values by name, in a fixed order.
pub type Named = BTreeMap<String, Vec<f64>>;

/// The results of a run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// The loss of every step, before its update.
    pub losses: Vec<f64>,
    /// The gradients of the first step.
    pub gradients: Named,
    /// The parameters after the last step.
    pub parameters: Named,
}

/// Reproducible numbers, uniform in [0, 1), with a separate stream for every name.
pub fn uniform(name: &str) -> impl FnMut() -> f64 {
    let mut state = name.bytes().fold(1469598103934665603u64, |h, b| (h ^ u64::from(b)).wrapping_mul(1099511628211));
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// Parses a configuration from the JSON of a `config.json`.
///
/// # Panics
/// If it is rejected.
pub fn config(json: serde_json::Value) -> ModelConfig {
    ModelConfig::from_json(&json, Path::new("config.json")).unwrap_or_else(|e| panic!("{e}"))
}

/// A small llama of some layers.
pub fn llama(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": 10, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

/// A small GPT-2 of some layers, with tied weights.
pub fn gpt2(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": 10, "n_positions": 16, "n_embd": 8, "n_layer": layers, "n_head": 2,
        "n_inner": 16, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

/// A small BERT of some layers.
pub fn bert(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "bert", "vocab_size": 10, "hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 16, "hidden_act": "gelu", "max_position_embeddings": 16, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }))
}

/// The built-in plan with this name.
///
/// # Panics
/// If no such plan exists.
pub fn plan(name: &str) -> Plan {
    Plan::built_in(name).unwrap_or_else(|e| panic!("{e}"))
}

/// Parses a mesh. The empty text means one rank.
///
/// # Panics
/// If it is rejected.
pub fn mesh(text: &str) -> Mesh {
    Mesh::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

/// A training step of the preset gpt on 4 × 16 tokens, and the name of each parameter in plans.
///
/// # Panics
/// If it cannot be captured.
pub fn gpt_step() -> (TrainingCapture, impl Fn(&str) -> String) {
    let config = presets::named("gpt").unwrap();
    let known = names(&config);
    let capture = capture_step(&config, TokenBatch::new(4, 16), &adamw()).unwrap();
    (capture, move |path: &str| known.get(path).cloned().unwrap_or_else(|| path.to_string()))
}

/// The optimizer of all runs.
pub fn adamw() -> impl burn::optim::Optimizer {
    let config = burn::optim::AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.95);
    config.with_epsilon(1e-8).with_weight_decay(0.1).build()
}

/// Compiles a language model's training step.
///
/// # Panics
/// If it cannot be compiled.
pub fn language_model(
    config: &ModelConfig,
    tokens: TokenBatch,
    plan: &Plan,
    on: &str,
    options: &CompileOptions,
) -> TrainingProgram {
    let capture = capture_step(config, tokens, &adamw()).unwrap_or_else(|e| panic!("{e}"));
    let names = names(config);
    let rename = |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
    compile_training(capture, &mesh(on), plan, options, &rename).unwrap_or_else(|e| panic!("{on}: {e}"))
}

/// Writes random parameters that are large enough for every gradient to matter, and a batch in which some labels are
/// ignored, unevenly over the batch.
///
/// # Panics
/// If an input is rejected.
pub fn feed(session: &mut Session, vocab: usize) {
    let inputs: Vec<_> =
        session.program(0).inputs.iter().map(|i| (i.name.clone(), i.kind, i.binding.global.clone())).collect();
    for (name, kind, shape) in inputs {
        let (count, mut draw) = (shape.iter().product(), uniform(&name));
        let norm = name.contains("norm") || name.contains("ln_") || name.contains("LayerNorm");
        let value = |i: usize, x: f64| match (kind, name.as_str()) {
            (InputKind::Parameter, _) if norm && name.ends_with("weight") => 0.8 + 0.4 * x,
            (InputKind::Parameter, _) => 0.4 * (x - 0.5),
            (InputKind::Data, "labels") if (i * i) % 7 == 4 || i % count < 5 => -100.0,
            (InputKind::Data, "attention_mask") => f64::from(u8::from(i % 5 != 4)),
            (InputKind::Data, "token_type_ids") => f64::from(u8::from(i % 3 == 1)),
            (InputKind::Data, _) => (x * vocab as f64).floor(),
            _ => 0.0,
        };
        if matches!(kind, InputKind::Parameter | InputKind::Data) {
            let values: Vec<f64> = (0..count).map(|i| value(i, draw())).map(|v| f64::from(v as f32)).collect();
            session.write_f64(&name, &values).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// Runs one step for each learning rate, on the inputs that `write` writes.
///
/// # Panics
/// If a rank fails, or the size of its arena differs from that of its program.
pub fn run(program: TrainingProgram, rates: &[f64], write: impl FnOnce(&mut Session)) -> Run {
    run_and_see(program, rates, write, |_| {})
}

/// Like [`run`], and calls `see` after the first step.
///
/// # Panics
/// Under the conditions of [`run`].
pub fn run_and_see(
    program: TrainingProgram,
    rates: &[f64],
    write: impl FnOnce(&mut Session),
    see: impl FnOnce(&mut Session),
) -> Run {
    let mut see = Some(see);
    let predicted: Vec<usize> = program.first.ranks.iter().map(|r| r.arena_bytes).collect();
    let mut training = program.launch(LaunchOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    write(training.session());
    let mut run = Run::default();
    for (i, &rate) in rates.iter().enumerate() {
        run.losses.push(training.step(rate).unwrap_or_else(|e| panic!("step {i}: {e}")));
        let session = training.session();
        for (rank, &bytes) in predicted.iter().enumerate() {
            assert_eq!(session.allocated_bytes(rank), bytes, "rank {rank}");
        }
        if let Some(see) = see.take() {
            see(session);
            let kinds: Vec<OutputKind> = session.program(0).outputs.iter().map(|o| o.kind.clone()).collect();
            for kind in kinds {
                if let OutputKind::Gradient(name) = &kind {
                    run.gradients.insert(name.to_string(), session.read_f64(&kind).unwrap_or_else(|e| panic!("{e}")));
                }
            }
        }
    }
    let session = training.session();
    let inputs = session.program(0).inputs.iter().filter(|i| i.kind == InputKind::Parameter);
    for name in inputs.map(|i| i.name.clone()).collect::<Vec<_>>() {
        run.parameters.insert(name.clone(), session.read_input_f64(&name).unwrap_or_else(|e| panic!("{e}")));
    }
    run
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Describes what differs by more than the tolerance: losses by 1e-5, gradients by 1e-4 of the tensor's largest element
/// (or of the largest element of all gradients, where they are zero in theory), parameters by 2e-4 except where the
/// gradient is below 1e-6 of the largest.
pub fn differences(found: &Run, expected: &Run) -> Vec<String> {
    let mut wrong = Vec::new();
    for (i, (f, e)) in found.losses.iter().zip(&expected.losses).enumerate() {
        if !((f - e).abs() <= 1e-5 * e.abs()) {
            wrong.push(format!("loss {i}: {f}, expected {e}"));
        }
    }
    let keys = |m: &Named| m.keys().cloned().collect::<Vec<_>>();
    if found.losses.len() != expected.losses.len()
        || keys(&found.gradients) != keys(&expected.gradients)
        || keys(&found.parameters) != keys(&expected.parameters)
    {
        wrong.push("other outputs".into());
        return wrong;
    }
    let anywhere = expected.gradients.values().map(|g| largest(g)).fold(0.0, f64::max);
    for (name, e) in &expected.gradients {
        let own = largest(e);
        let scale = if own < 1e-6 * anywhere { anywhere } else { own };
        let off = found.gradients[name].iter().zip(e).map(|(f, e)| (f - e).abs() / scale);
        let off = off.fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
        if !(off <= 1e-4) {
            wrong.push(format!("gradient of {name}: off by {off:e} of {scale:e}"));
        }
    }
    for (name, e) in &expected.parameters {
        let gradient = expected.gradients.get(name);
        let own = gradient.map_or(0.0, |g| largest(g));
        let top = if own < 1e-6 * anywhere { anywhere } else { own };
        let mut off = 0.0f64;
        for (i, (f, e)) in found.parameters[name].iter().zip(e).enumerate() {
            if gradient.is_none_or(|g| g[i].abs() >= 1e-6 * top) {
                let d = (f - e).abs();
                off = if d.is_nan() { f64::INFINITY } else { off.max(d) };
            }
        }
        if !(off <= 2e-4) {
            wrong.push(format!("parameter {name}: off by {off:e}"));
        }
    }
    wrong
}
