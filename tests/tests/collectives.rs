//! How much is communicated: exactly what is predicted, in buckets, and at most what the reference decoder may send.
//! (`allowance.rs` states what every plan may cost.)

use serde_json::json;
use tpc::RankProgram;
use tpc_compiler::models::{ModelConfig, presets};
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::{CompileOptions, Stages, TrainingProgram};
use tpc_ir::program::{Action, Step};
use tpc_ir::{InputKind, Phase};
use tpc_passes::egraph::rules::RuleId;
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::targets::Target;
use tpc_runtime::LaunchOptions;
use tpc_tests::traffic::{counts_agree, halves, list};
use tpc_tests::training::{config, feed, language_model, plan};

const ACTIVATION: usize = 2 * 16 * 32 * 4;

// ---------------------------------------------------------------------------------------------------------------------
// Decoders

fn llama(layers: usize, heads: usize, kv_heads: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_hidden_layers": layers, "vocab_size": 96, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn gpt2(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": 96, "n_positions": 16, "n_embd": 32, "n_layer": layers, "n_head": 4,
        "n_inner": 64, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

fn tokens() -> TokenBatch {
    TokenBatch::new(2, 16)
}

#[test]
fn counts_agree_on_uneven_sizes_and_two_axes() {
    for (model, on) in [(llama(1, 4, 2), "tp=4"), (llama(1, 4, 4), "tp=3"), (llama(1, 4, 1), "tp=4")] {
        let program = language_model(&model, tokens(), &plan("tp"), on, &CompileOptions::for_cpu());
        counts_agree(program, |session| feed(session, 96));
    }
    for (name, on) in [("ddp", "dp=3"), ("tp-ddp", "dp=2,tp=2"), ("none", "tp=2")] {
        let program = language_model(&llama(1, 4, 2), tokens(), &plan(name), on, &CompileOptions::for_cpu());
        if name == "none" {
            assert_eq!(list(&program.steady), "");
        }
        counts_agree(program, |session| feed(session, 96));
    }
}

/// Data parallelism: gradients are sent in buckets, in the order in which they are computed, and the first buckets
/// while the backward pass is still running.
#[test]
fn gradients_of_data_parallelism_are_bucketed() {
    for (model, on) in [(llama(2, 4, 2), "dp=2"), (gpt2(2), "dp=4")] {
        let mut options = CompileOptions::for_cpu();
        let whole = language_model(&model, TokenBatch::new(4, 16), &plan("ddp"), on, &options);
        options.lower.bucket_bytes = 16 << 10;
        let small = language_model(&model, TokenBatch::new(4, 16), &plan("ddp"), on, &options);
        options.lower.bucket_bytes = 0;
        let alone = language_model(&model, TokenBatch::new(4, 16), &plan("ddp"), on, &options);
        let reduced = |program: &TrainingProgram| -> Vec<(usize, usize)> {
            let all = program.steady.ranks[0].collectives();
            let gradients = all.filter(|c| c.phase == Phase::Backward && c.name() == "all_reduce");
            gradients.map(|c| (c.values, c.full_bytes)).collect()
        };
        let total = |all: &[(usize, usize)]| all.iter().fold((0, 0), |t, c| (t.0 + c.0, t.1 + c.1));
        let [w, s, a] = [&whole, &small, &alone].map(reduced);
        assert_eq!(w.len(), 1, "{}", list(&whole.steady));
        assert!(a.iter().all(|c| c.0 == 1), "{a:?}");
        assert_eq!((total(&w), total(&s)), (total(&a), total(&a)));
        // A bucket is closed by the value that fills it.
        let largest = a.iter().map(|c| c.1).max().unwrap();
        let (_, full) = s.split_last().unwrap();
        assert!(full.len() > 1 && full.iter().all(|c| (16 << 10..(16 << 10) + largest).contains(&c.1)), "{s:?}");
        // Work of the backward pass after the first start.
        let steps = &small.steady.ranks[0].steps;
        let first = steps.iter().position(|s| s.phase == Phase::Backward && matches!(s.action, Action::Start(_)));
        let contracts =
            |steps: &[Step]| steps.iter().filter(|s| s.phase == Phase::Backward && &*s.label == "einsum").count();
        let (all, after) = (contracts(steps), contracts(&steps[first.unwrap()..]));
        assert!(after * 2 > all, "{after} of {all} products run after the first start");
        for program in [whole, small, alone] {
            counts_agree(program, |session| feed(session, 96));
        }
    }
}

#[test]
fn without_rule_7_every_input_gradient_is_reduced_alone() {
    let mut options = CompileOptions::for_cpu();
    options.search.disabled.insert(RuleId::try_from(7).unwrap());
    for layers in [1, 2, 4] {
        let program = language_model(&llama(layers, 4, 4), tokens(), &plan("tp"), "tp=2", &options);
        for stages in [&program.first, &program.steady] {
            assert_eq!(halves(stages, Phase::Forward, ACTIVATION), 2 * (2 * layers + 1), "{}", list(stages));
            assert_eq!(halves(stages, Phase::Backward, ACTIVATION), 2 * (5 * layers + 1), "{}", list(stages));
        }
    }
}

#[test]
fn the_reference_decoder_sends_at_most_its_target() {
    let program =
        language_model(&presets::llama(), TokenBatch::new(4, 256), &plan("tp"), "tp=2", &CompileOptions::for_cpu());
    for stages in [&program.first, &program.steady] {
        for rank in &stages.ranks {
            let sent: f64 = rank.collectives().map(|c| c.wire_bytes()).sum();
            println!("rank {}: {sent} bytes, arena {}", rank.rank, rank.arena_bytes);
            assert!(sent <= 37_800_000.0, "{sent} bytes:\n{}", list(stages));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

/// The cost of bucketing and overlap: the bytes sent stay the same, and the arena grows by at most what the options
/// allow.
#[test]
fn bucketing_and_overlap_of_the_reference_decoder() {
    for (name, on) in [("tp", "tp=2"), ("tp-sp", "tp=2"), ("ddp", "dp=2"), ("tp-ddp", "dp=2,tp=2")] {
        let options = CompileOptions::for_cpu();
        let program = language_model(&presets::llama(), TokenBatch::new(4, 256), &plan(name), on, &options);
        let placed = &program.steady.placed;
        let lowered = |options: LowerOptions| {
            let rank = lower_with(placed, Target::cpu(), &options).unwrap().swap_remove(0);
            let sent: f64 = rank.collectives().map(|c| c.wire_bytes()).sum();
            (rank.arena_bytes, rank.collectives().count(), sent)
        };
        let plain = lowered(LowerOptions::plain());
        let bucketed = lowered(LowerOptions { overlap: false, ..LowerOptions::default() });
        let overlapped = lowered(LowerOptions::default());
        println!(
            "{name} on {on}: (arena, collectives, bytes) {plain:?} alone, {bucketed:?} bucketed, {overlapped:?} overlapped"
        );
        assert_eq!(plain.2, bucketed.2, "{name}");
        assert_eq!((bucketed.1, bucketed.2), (overlapped.1, overlapped.2), "{name}");
        assert!(bucketed.0 <= plain.0 + LowerOptions::default().bucket_bytes, "{name}");
        assert!(overlapped.0 as f64 <= bucketed.0 as f64 * (1.0 + LowerOptions::default().memory_growth), "{name}");
    }
}

/// Parameters and optimizer state: the bytes that are sharded, the bytes that are not, and the names of the latter.
fn bytes(stages: &Stages) -> (usize, usize, Vec<String>) {
    let (mut sharded, mut replicated, mut names) = (0, 0, Vec::new());
    for (node, id) in stages.placed.inputs() {
        let ty = &stages.placed.node(node).types[0];
        match id.kind() {
            InputKind::Parameter | InputKind::State if ty.sharding.is_replicated() => {
                replicated += ty.bytes();
                if id.is_parameter() {
                    names.push(id.to_string());
                }
            }
            InputKind::Parameter | InputKind::State => sharded += ty.bytes(),
            _ => {}
        }
    }
    (sharded, replicated, names)
}

fn held(rank: &RankProgram) -> usize {
    let kept = rank.inputs.iter().filter(|i| matches!(i.kind, InputKind::Parameter | InputKind::State));
    kept.map(|i| i.binding.view.elements() * i.binding.view.dtype.bytes()).sum()
}

#[test]
fn parameters_and_optimizer_state_are_sharded() {
    for (model, on, n) in
        [(llama(2, 4, 2), "tp=2", 2), (llama(2, 8, 4), "tp=4", 4), (gpt2(2), "tp=2", 2), (gpt2(2), "tp=4", 4)]
    {
        let program = language_model(&model, tokens(), &plan("tp"), on, &CompileOptions::for_cpu());
        for stages in [&program.first, &program.steady] {
            let (sharded, replicated, names) = bytes(stages);
            for rank in &stages.ranks {
                assert!(held(rank) <= sharded / n + replicated, "{on}: {} of {sharded} and {replicated}", held(rank));
            }
            // Norms, learned positions, and biases that are added after a reduction.
            let plain =
                |n: &str| n.contains("norm") || n.contains("ln_") || n.contains("wpe") || n.ends_with("c_proj.bias");
            let rest: Vec<_> = names.iter().filter(|n| !plain(n)).collect();
            assert!(rest.is_empty(), "{on}: {rest:?} are replicated");
        }
    }
}

#[test]
fn the_arena_is_as_large_as_predicted() {
    for (name, on) in [("tp", "tp=2"), ("tp", "tp=3"), ("tp-ddp", "dp=2,tp=2"), ("none", "")] {
        let program = language_model(&llama(1, 4, 2), tokens(), &plan(name), on, &CompileOptions::for_cpu());
        let predicted: Vec<usize> = program.first.ranks.iter().map(|r| r.arena_bytes).collect();
        let mut training = program.launch(LaunchOptions::default()).unwrap();
        feed(training.session(), 96);
        for _ in 0..2 {
            training.step(1e-3).unwrap();
            let session = training.session();
            let found: Vec<usize> = (0..session.ranks()).map(|r| session.allocated_bytes(r)).collect();
            assert_eq!(found, predicted, "{name} on {on}");
        }
    }
}
