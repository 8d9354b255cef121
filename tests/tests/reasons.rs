//! Every collective of a placed program states its reason, its phase of the step, and its module. Each answer is
//! derived a second time, from the program alone ([`tpc_tests::reasons`]).

use serde_json::json;
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::{CompileOptions, Stages};
use tpc_passes::options::StepOptions;
use tpc_passes::options::precision::{Precision, Reduction};
use tpc_tests::reasons::check;
use tpc_tests::training::{config, language_model, plan};

fn llama(layers: usize) -> ModelConfig {
    config(json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 20, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512, "tie_word_embeddings": false}))
}

fn gpt2(layers: usize) -> ModelConfig {
    config(json!({"model_type": "gpt2", "n_embd": 16, "n_layer": layers, "n_head": 4, "n_positions": 512,
        "vocab_size": 20, "layer_norm_epsilon": 1e-5, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}))
}

fn bert(layers: usize) -> ModelConfig {
    config(json!({"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 4, "vocab_size": 20, "max_position_embeddings": 512, "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
}

/// Built-in plans and meshes for them.
const PLANS: [(&str, &str); 6] = [
    ("tp", "tp=2"),
    ("tp-sp", "tp=2"),
    ("fsdp", "dp=2"),
    ("2d", "dp=2,tp=2"),
    ("hsdp", "rep=2,dp=2"),
    ("zero1", "dp=2"),
];

fn explained(what: &str, config: &ModelConfig, tokens: TokenBatch) {
    explained_on(&PLANS, what, config, tokens);
}

fn explained_on(plans: &[(&str, &str)], what: &str, config: &ModelConfig, tokens: TokenBatch) {
    explained_with(plans, what, config, tokens, StepOptions::default());
}

fn explained_with(plans: &[(&str, &str)], what: &str, config: &ModelConfig, tokens: TokenBatch, step: StepOptions) {
    let options = CompileOptions { gradients: true, step, ..CompileOptions::for_cpu() };
    for &(name, on) in plans {
        let program = language_model(config, tokens, &plan(name), on, &options);
        for (step, stages) in [("first", &program.first), ("steady", &program.steady)] {
            let Stages { propagated, placed, .. } = stages;
            for (stage, graph) in [("propagated", propagated), ("placed", placed)] {
                let what = format!("{what} under {name}, {step}, {stage}");
                assert!(check(graph, &what) > 0, "{what}: no collective");
            }
        }
    }
}

#[test]
fn two_layers() {
    for (name, config) in [("llama", llama(2)), ("gpt2", gpt2(2)), ("bert", bert(2))] {
        explained(&format!("{name}, 2 layers, few tokens"), &config, TokenBatch::new(4, 6));
    }
    explained("llama, 2 layers, many tokens", &llama(2), TokenBatch::new(8, 256));
}

#[test]
fn twenty_layers() {
    explained("llama, 20 layers, few tokens", &llama(20), TokenBatch::new(2, 4));
    // Blocks are searched once, however many layers there are.
    for (name, config) in [("gpt2", gpt2(20)), ("bert", bert(20))] {
        explained_on(&PLANS[3..4], &format!("{name}, 20 layers, few tokens"), &config, TokenBatch::new(2, 4));
    }
    explained_on(&PLANS[3..4], "llama, 20 layers, many tokens", &llama(20), TokenBatch::new(8, 256));
}

/// Options rewrite the program before it is placed, and create operations that belong to no module of the model.
#[test]
fn with_options() {
    let step = StepOptions::default;
    for (name, step) in [
        ("clipping", StepOptions { clip_norm: Some(1.0), ..step() }),
        ("micro-batches", StepOptions { micro_batches: 2, ..step() }),
        ("clipping and micro-batches", StepOptions { clip_norm: Some(1.0), micro_batches: 2, ..step() }),
        ("frozen layers", StepOptions { freeze: vec!["model.layers.0".into(), "transformer.h.0".into()], ..step() }),
        ("bf16", StepOptions { precision: Some(Precision::default()), ..step() }),
        (
            "bf16, reduced in f32",
            StepOptions { precision: Some(Precision { reduce: Reduction::F32, ..Precision::default() }), ..step() },
        ),
    ] {
        for (family, config) in [("llama", llama(2)), ("gpt2", gpt2(2))] {
            let mut step = step.clone();
            step.freeze.retain(|pattern| pattern.starts_with("transformer") == (family == "gpt2"));
            explained_with(&PLANS, &format!("{family} with {name}"), &config, TokenBatch::new(4, 6), step);
        }
    }
}
