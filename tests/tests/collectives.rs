//! How much is communicated: executed as predicted, and at most what API.md section 6 allows.

use burn::module::{Module, ModuleDisplay};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, activation};
use serde_json::json;
use std::collections::BTreeMap;
use tpc::capture::{Spec, TrainingCapture, capture_training_shapes};
use tpc::models::{Mlp, ModelConfig, presets};
use tpc::pretrained::TokenBatch;
use tpc::program::{CompileOptions, Stages, TrainingProgram, compile_training};
use tpc::{
    ColwiseParallel, LaunchOptions, PairwiseParallel, PairwiseSequenceParallel, Plan, RankProgram, RowwiseParallel,
    SequenceParallel,
};
use tpc_ir::program::{Action, Step};
use tpc_ir::{InputKind, Phase};
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_runtime::Session;
use tpc_tests::training::{adamw, config, feed, language_model, mesh, plan};

// ---------------------------------------------------------------------------------------------------------------------
// Counting

/// Kind, axes, phase, bytes, ranks: how often, and bytes sent for all of them.
type Counts = BTreeMap<(String, String, Phase, usize, usize), (u64, f64)>;

fn predicted(rank: &RankProgram, steps: u64) -> Counts {
    let mut counts = Counts::new();
    for c in rank.collectives() {
        let entry =
            counts.entry((c.name().into(), c.axes.to_string(), c.phase, c.full_bytes, c.group.len())).or_default();
        entry.0 += steps;
        entry.1 += steps as f64 * c.wire_bytes();
    }
    counts
}

fn executed(session: &Session, rank: usize) -> Counts {
    let mut counts = Counts::new();
    for c in session.collectives(rank) {
        let entry = counts.entry((c.name.into(), c.axes.to_string(), c.phase, c.full_bytes, c.group)).or_default();
        entry.0 += c.count;
        entry.1 += c.wire_bytes;
    }
    counts
}

/// Values of at least a size that are reduced or gathered in a phase, in halves: an all-reduce is a
/// reduce-scatter and an all-gather. Values that share one collective count each.
fn halves(stages: &Stages, phase: Phase, at_least: usize) -> usize {
    let large = stages.ranks[0].collectives().filter(|c| c.phase == phase && c.full_bytes / c.values >= at_least);
    large.map(|c| if c.name() == "all_reduce" { 2 * c.values } else { c.values }).sum()
}

fn small(stages: &Stages, phase: Phase, below: usize) -> usize {
    stages.ranks[0].collectives().filter(|c| c.phase == phase && c.full_bytes < below).count()
}

fn list(stages: &Stages) -> String {
    let line = |c: &tpc_ir::program::Collective| {
        format!("{} {} {} {} bytes: {}", c.phase.name(), c.name(), c.axes, c.full_bytes, c.why)
    };
    stages.ranks[0].collectives().map(line).collect::<Vec<_>>().join("\n")
}

/// All-reduces of an activation in the forward and the backward pass; nothing else that large, and
/// nothing in the optimizer.
fn allows(program: &TrainingProgram, activation: usize, forward: usize, backward: usize) {
    for stages in [&program.first, &program.steady] {
        for (phase, allowed) in [(Phase::Forward, forward), (Phase::Backward, backward), (Phase::Optimizer, 0)] {
            let found = halves(stages, phase, activation);
            assert!(found <= 2 * allowed, "{found} halves of {allowed} in {}:\n{}", phase.name(), list(stages));
        }
        let largest = stages.ranks[0].collectives().map(|c| c.full_bytes).max().unwrap_or(0);
        assert!(largest <= activation, "{largest} bytes, an activation has {activation}:\n{}", list(stages));
        assert_eq!(small(stages, Phase::Optimizer, activation), 0, "{}", list(stages));
    }
}

/// Steps that count what the programs predict.
fn counts_agree(program: TrainingProgram, write: impl FnOnce(&mut Session)) {
    let [first, steady] = [&program.first, &program.steady].map(|s| s.ranks.clone());
    let mut training = program.launch(LaunchOptions::default()).unwrap();
    write(training.session());
    training.step(1e-3).unwrap();
    for (rank, program) in first.iter().enumerate() {
        assert_eq!(executed(training.session(), rank), predicted(program, 1), "rank {rank}, first step");
    }
    training.step(1e-3).unwrap();
    training.session().reset_counters();
    training.step(1e-3).unwrap();
    training.step(1e-3).unwrap();
    for (rank, program) in steady.iter().enumerate() {
        let found = executed(training.session(), rank);
        assert_eq!(found, predicted(program, 2), "rank {rank}");
        let sent: f64 = program.collectives().map(|c| c.wire_bytes()).sum();
        assert!((training.session().wire_bytes(rank) - 2.0 * sent).abs() < 1e-6);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Parts of a model

#[derive(Module, Debug)]
struct Normed<M: Module> {
    norm: LayerNorm,
    part: M,
}

#[derive(Module, Debug)]
struct SwiGlu {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl SwiGlu {
    fn new(d: usize, h: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        SwiGlu { gate: linear(d, h), up: linear(d, h), down: linear(h, d) }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.down.forward(activation::silu(self.gate.forward(x.clone())) * self.up.forward(x))
    }
}

const SHAPE: [usize; 3] = [2, 16, 32];
const ACTIVATION: usize = 2 * 16 * 32 * 4;

fn part<M: Module>(build: impl Fn(&Device) -> M, forward: impl Fn(&M, Tensor<3>) -> Tensor<3>) -> TrainingCapture {
    let x = || Spec::<3>::new(SHAPE, DType::F32);
    let loss = |m: &M, (x, y): (Tensor<3>, Tensor<3>)| (forward(m, x) - y).powi_scalar(2).mean();
    capture_training_shapes(build, &adamw(), (x(), x()), &Default::default(), loss).unwrap()
}

/// A part behind a norm and beside a residual, so that its input needs a gradient.
fn normed<M: Module + ModuleDisplay>(
    build: impl Fn(&Device) -> M,
    forward: impl Fn(&M, Tensor<3>) -> Tensor<3>,
) -> TrainingCapture {
    part(
        |device| Normed { norm: LayerNormConfig::new(SHAPE[2]).init(device), part: build(device) },
        |m: &Normed<M>, x| x.clone() + forward(&m.part, m.norm.forward(x)),
    )
}

fn compiled(capture: TrainingCapture, plan: &Plan, on: &str) -> TrainingProgram {
    compile_training(capture, &mesh(on), plan, &CompileOptions::default(), &|p| p.to_string()).unwrap()
}

fn part_allows(capture: impl Fn() -> TrainingCapture, plan: Plan, forward: usize, backward: usize) {
    for on in ["tp=2", "tp=4"] {
        let program = compiled(capture(), &plan, on);
        allows(&program, ACTIVATION, forward, backward);
        counts_agree(program, |session| feed(session, 1));
    }
}

#[test]
fn an_mlp_whose_input_needs_no_gradient() {
    let mlp = || part(|d| Mlp::new(32, 64, d), |m, x| m.forward(x));
    part_allows(mlp, Plan::new().with("", PairwiseParallel), 1, 0);
    part_allows(
        mlp,
        Plan::new().with("net1", ColwiseParallel::default()).with("net2", RowwiseParallel::default()),
        1,
        0,
    );
}

#[test]
fn an_mlp() {
    let mlp = || normed(|d| Mlp::new(32, 64, d), |m, x| m.forward(x));
    part_allows(mlp, Plan::new().with("part", PairwiseParallel), 1, 1);
}

/// A gather and a scatter each way, four halves. Here the norm may also run on the whole sequence,
/// which the data has, for a reduction instead: three halves in the backward pass, one in the forward.
#[test]
fn an_mlp_between_shards_of_the_sequence() {
    let plan = Plan::new()
        .with("norm", SequenceParallel { sequence_dim: 1 })
        .with("part", PairwiseSequenceParallel { sequence_dim: 1 });
    for on in ["tp=2", "tp=4"] {
        let capture = normed(|d| Mlp::new(32, 64, d), |m: &Mlp, x| m.forward(x));
        let program = compiled(capture, &plan, on);
        for stages in [&program.first, &program.steady] {
            let found: usize = Phase::ALL.iter().map(|&p| halves(stages, p, ACTIVATION)).sum();
            assert!(found <= 4, "{}", list(stages));
        }
        counts_agree(program, |session| feed(session, 1));
    }
}

#[test]
fn decoders_under_the_sequence_parallel_plan() {
    for layers in [1, 2, 4] {
        let program =
            language_model(&llama(layers, 4, 4), tokens(), &plan("tp-sp"), "tp=2", &CompileOptions::default());
        for stages in [&program.first, &program.steady] {
            for phase in [Phase::Forward, Phase::Backward] {
                assert!(halves(stages, phase, ACTIVATION) <= 2 * (2 * layers + 1), "{}", list(stages));
            }
            // Gradients of the 2L+1 norm gains: one reduction.
            let gain = |c: &&tpc_ir::program::Collective| c.phase == Phase::Backward && c.full_bytes < ACTIVATION;
            let gains: Vec<_> = stages.ranks[0].collectives().filter(gain).collect();
            assert_eq!(gains[0].full_bytes, (2 * layers + 1) * 32 * 4);
            assert_eq!(gains.iter().map(|c| c.values).collect::<Vec<_>>(), [2 * layers + 1], "{}", list(stages));
            assert!(gains[0].why.ends_with(&format!("(and {} more)", 2 * layers)), "{}", gains[0].why);
            assert_eq!(small(stages, Phase::Forward, ACTIVATION), 2, "loss statistics:\n{}", list(stages));
            assert_eq!(small(stages, Phase::Backward, ACTIVATION) + small(stages, Phase::Optimizer, ACTIVATION), 1);
        }
        if layers == 2 {
            counts_agree(program, |session| feed(session, 96));
        }
    }
}

#[test]
fn attention() {
    let build = |d: &Device| MultiHeadAttentionConfig::new(32, 4).with_dropout(0.0).init(d);
    let attention = || normed(build, |m: &MultiHeadAttention, x| m.forward(MhaInput::self_attn(x)).context);
    part_allows(attention, Plan::new().with("part", PairwiseParallel), 1, 1);
    let plan = Plan::new()
        .with("part.{query,key,value}", ColwiseParallel::default())
        .with("part.output", RowwiseParallel::default());
    part_allows(attention, plan, 1, 1);
}

#[test]
fn swiglu() {
    let swiglu = || normed(|d| SwiGlu::new(32, 64, d), |m, x| m.forward(x));
    part_allows(swiglu, Plan::new().with("part", PairwiseParallel), 1, 1);
    let plan =
        Plan::new().with("part.{gate,up}", ColwiseParallel::default()).with("part.down", RowwiseParallel::default());
    part_allows(swiglu, plan, 1, 1);
}

/// An attention and an MLP side by side, as in GPT-J: their partial results are added before one reduction.
#[derive(Module, Debug)]
struct Parallel {
    attention: MultiHeadAttention,
    mlp: SwiGlu,
}

#[test]
fn an_attention_beside_an_mlp() {
    let build = |d: &Device| Parallel {
        attention: MultiHeadAttentionConfig::new(32, 4).with_dropout(0.0).init(d),
        mlp: SwiGlu::new(32, 64, d),
    };
    let forward =
        |m: &Parallel, x: Tensor<3>| m.attention.forward(MhaInput::self_attn(x.clone())).context + m.mlp.forward(x);
    let plan = Plan::new().with("part.attention", PairwiseParallel).with("part.mlp", PairwiseParallel);
    part_allows(|| normed(build, forward), plan, 1, 1);
}

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
fn decoders_under_the_plain_plan() {
    for layers in [1, 2, 4] {
        for (model, on) in [
            (llama(layers, 4, 4), "tp=2"),
            (llama(layers, 4, 2), "tp=2"),
            (llama(layers, 4, 4), "tp=4"),
            (gpt2(layers), "tp=2"),
        ] {
            let program = language_model(&model, tokens(), &plan("tp"), on, &CompileOptions::default());
            // No collective is larger than an activation: the logits are never gathered.
            allows(&program, ACTIVATION, 2 * layers + 1, 2 * layers + 1);
            for stages in [&program.first, &program.steady] {
                // The largest logit; the sum of exponentials and the picked logit together.
                assert_eq!(small(stages, Phase::Forward, ACTIVATION), 2, "loss statistics:\n{}", list(stages));
                assert_eq!(small(stages, Phase::Backward, ACTIVATION), 0, "{}", list(stages));
            }
            if layers < 4 {
                counts_agree(program, |session| feed(session, 96));
            }
        }
    }
}

#[test]
fn counts_agree_on_uneven_sizes_and_two_axes() {
    for (model, on) in [(llama(1, 4, 2), "tp=4"), (llama(1, 4, 4), "tp=3"), (llama(1, 4, 1), "tp=4")] {
        let program = language_model(&model, tokens(), &plan("tp"), on, &CompileOptions::default());
        counts_agree(program, |session| feed(session, 96));
    }
    for (name, on) in [("ddp", "dp=3"), ("tp-ddp", "dp=2,tp=2"), ("none", "tp=2")] {
        let program = language_model(&llama(1, 4, 2), tokens(), &plan(name), on, &CompileOptions::default());
        if name == "none" {
            assert_eq!(list(&program.steady), "");
        }
        counts_agree(program, |session| feed(session, 96));
    }
}

/// Data parallelism: gradients travel in buckets, in the order in which they are ready, and the first
/// ones while the backward pass goes on.
#[test]
fn gradients_of_data_parallelism_are_bucketed() {
    for (model, on) in [(llama(2, 4, 2), "dp=2"), (gpt2(2), "dp=4")] {
        let mut options = CompileOptions::default();
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
        // Backward work behind the first start.
        let steps = &small.steady.ranks[0].steps;
        let first = steps.iter().position(|s| s.phase == Phase::Backward && matches!(s.action, Action::Start(_)));
        let contracts =
            |steps: &[Step]| steps.iter().filter(|s| s.phase == Phase::Backward && &*s.label == "einsum").count();
        let (all, behind) = (contracts(steps), contracts(&steps[first.unwrap()..]));
        assert!(behind * 2 > all, "{behind} of {all} products run behind the first start");
        for program in [whole, small, alone] {
            counts_agree(program, |session| feed(session, 96));
        }
    }
}

#[test]
fn without_rule_7_every_input_gradient_is_reduced_alone() {
    let mut options = CompileOptions::default();
    options.search.disabled.insert(7);
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
        language_model(&presets::llama(), TokenBatch::new(4, 256), &plan("tp"), "tp=2", &CompileOptions::default());
    for stages in [&program.first, &program.steady] {
        for rank in &stages.ranks {
            let sent: f64 = rank.collectives().map(|c| c.wire_bytes()).sum();
            println!("rank {}: {sent} bytes, arena {}", rank.rank, rank.arena_bytes);
            assert!(sent <= 37_800_000.0, "{sent} bytes:\n{}", list(stages));
        }
    }
    allows(&program, 4 * 256 * 512 * 4, 9, 9);
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

/// What bucketing and overlap cost: the bytes sent stay the same, and the arena grows by at most what the
/// options allow.
#[test]
fn bucketing_and_overlap_of_the_reference_decoder() {
    for (name, on) in [("tp", "tp=2"), ("tp-sp", "tp=2"), ("ddp", "dp=2"), ("tp-ddp", "dp=2,tp=2")] {
        let options = CompileOptions::default();
        let program = language_model(&presets::llama(), TokenBatch::new(4, 256), &plan(name), on, &options);
        let placed = &program.steady.placed;
        let lowered = |options: LowerOptions| {
            let rank = lower_with(placed, &options).swap_remove(0);
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

/// Parameters and optimizer state: bytes of what is sharded, of what is not, and names of the latter.
fn bytes(stages: &Stages) -> (usize, usize, Vec<String>) {
    let (mut sharded, mut replicated, mut names) = (0, 0, Vec::new());
    for (node, kind, name) in stages.placed.inputs() {
        let ty = &stages.placed.node(node).types[0];
        match kind {
            InputKind::Parameter | InputKind::State if ty.sharding.is_replicated() => {
                replicated += ty.bytes();
                if kind == InputKind::Parameter {
                    names.push(name.to_string());
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
        let program = language_model(&model, tokens(), &plan("tp"), on, &CompileOptions::default());
        for stages in [&program.first, &program.steady] {
            let (sharded, replicated, names) = bytes(stages);
            for rank in &stages.ranks {
                assert!(held(rank) <= sharded / n + replicated, "{on}: {} of {sharded} and {replicated}", held(rank));
            }
            // Norms, learned positions, and what is added after a reduction.
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
        let program = language_model(&llama(1, 4, 2), tokens(), &plan(name), on, &CompileOptions::default());
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
