//! The most that a step may communicate under each plan, and what its ranks execute, as golden tables. Each is a row of
//! `compiler/src/guide/costs.rs`; `documents.rs` checks that the two are equal.

use burn::module::{Module, ModuleDisplay};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor, activation};
use serde_json::json;
use std::fmt::Write;
use tpc_compiler::capture::{Spec, TrainingCapture, capture_training_shapes};
use tpc_compiler::models::{Mlp, ModelConfig};
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::{CompileOptions, TrainingProgram, compile_training};
use tpc_ir::Phase;
use tpc_passes::options::StepOptions;
use tpc_passes::styles::{
    ColwiseParallel, Layout, PairwiseParallel, PairwiseSequenceParallel, Plan, PrepareModuleInput, RowwiseParallel,
};
use tpc_tests::traffic::{Sent, counts_agree, list};
use tpc_tests::training::{adamw, config, feed, language_model, mesh, plan};

/// A program of a row, and the most that it may send in the forward pass, the backward pass and the optimizer.
struct Case {
    row: &'static str,
    what: String,
    on: &'static str,
    program: TrainingProgram,
    /// Bytes of an activation on a rank's group.
    activation: usize,
    /// By axis and phase: the number of large collectives in halves (an all-reduce is two), and of small ones.
    most: Vec<(&'static str, [(usize, usize); 3])>,
}

impl Case {
    /// The case of a plan.
    fn new(row: &'static str, what: impl Into<String>, on: &'static str, program: TrainingProgram) -> Self {
        Case { row, what: what.into(), on, program, activation: ACTIVATION, most: Vec::new() }
    }

    /// Sets the limits over an axis.
    fn over(mut self, axis: &'static str, forward: (usize, usize), backward: (usize, usize)) -> Self {
        self.most.push((axis, [forward, backward, (0, 0)]));
        self
    }
}

/// Checks that every limit holds, that nothing is sent over other axes, that no value is larger than an activation
/// (except parameters under FSDP), and that the ranks execute what is counted. Gives the table.
fn met(cases: Vec<Case>) -> String {
    let mut table = String::new();
    let mut last = "";
    for case in cases {
        if case.row != last {
            writeln!(table, "{}", case.row).unwrap();
            last = case.row;
        }
        for stages in [&case.program.first, &case.program.steady] {
            let what = format!("{}, {} on {}:\n{}", case.row, case.what, case.on, list(stages));
            for (axis, limits) in &case.most {
                for (phase, (large, small)) in Phase::ALL.into_iter().zip(limits) {
                    let sent = Sent::of(stages, axis, phase, case.activation);
                    let kept = sent.halves() <= *large && sent.small <= *small;
                    assert!(
                        kept,
                        "{} over {axis}: {sent}, at most {large} halves and {small} small\n{what}",
                        phase.name()
                    );
                }
            }
            for c in stages.ranks[0].collectives() {
                let known =
                    c.axes.split(',').all(|a| case.most.iter().any(|(axis, _)| tpc_tests::traffic::over(a, axis)));
                assert!(known, "{} over {}\n{what}", c.name(), c.axes);
                assert!(
                    &*c.axes == "dp" || c.full_bytes / c.values <= case.activation,
                    "{} bytes\n{what}",
                    c.full_bytes
                );
            }
        }
        let mut line = format!("  {} on {}:", case.what, case.on);
        for (axis, _) in &case.most {
            let sent = Phase::ALL.map(|p| Sent::of(&case.program.steady, axis, p, case.activation));
            write!(line, " {axis} {} | {}", sent[0], sent[1]).unwrap();
            if sent[2] != Sent::default() {
                write!(line, " | {}", sent[2]).unwrap();
            }
        }
        writeln!(table, "{line}").unwrap();
        counts_agree(case.program, |session| feed(session, VOCAB));
    }
    table
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

/// An attention and an MLP side by side, as in GPT-J: their partial results are added before one reduction.
#[derive(Module, Debug)]
struct Parallel {
    attention: MultiHeadAttention,
    mlp: SwiGlu,
}

/// Query, key and value from one product, in thirds; heads of 8 elements.
#[derive(Module, Debug)]
struct Fused {
    qkv: Linear,
    out: Linear,
}

impl Fused {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [b, s, d] = x.dims();
        let heads = |t: Tensor<3>| t.reshape([b, s, d / 8, 8]).swap_dims(1, 2);
        let parts = self.qkv.forward(x).chunk(3, 2);
        let [q, k, v]: [Tensor<4>; 3] = std::array::from_fn(|i| heads(parts[i].clone()));
        let scores = activation::softmax(q.matmul(k.transpose()) * 0.35, 3);
        self.out.forward(scores.matmul(v).swap_dims(1, 2).reshape([b, s, d]))
    }
}

#[derive(Module, Debug)]
struct Head {
    norm: LayerNorm,
    head: Linear,
}

#[derive(Module, Debug)]
struct Table {
    table: Embedding,
    norm: LayerNorm,
}

const SHAPE: [usize; 3] = [2, 16, 32];
const ACTIVATION: usize = 2 * 16 * 32 * 4;
const VOCAB: usize = 96;

fn part<M: Module>(build: impl Fn(&Device) -> M, forward: impl Fn(&M, Tensor<3>) -> Tensor<3>) -> TrainingCapture {
    let x = || Spec::<3>::new(SHAPE, DType::F32);
    let loss = |m: &M, (x, y): (Tensor<3>, Tensor<3>)| (forward(m, x) - y).powi_scalar(2).mean();
    capture_training_shapes(build, &adamw(), (x(), x()), &Default::default(), loss).unwrap()
}

/// A part between a norm and a residual, so that its input needs a gradient.
fn normed<M: Module + ModuleDisplay>(
    build: impl Fn(&Device) -> M,
    forward: impl Fn(&M, Tensor<3>) -> Tensor<3>,
) -> TrainingCapture {
    part(
        |device| Normed { norm: LayerNormConfig::new(SHAPE[2]).init(device), part: build(device) },
        |m: &Normed<M>, x| x.clone() + forward(&m.part, tpc::scope("norm", x, |x| m.norm.forward(x))),
    )
}

fn compiled(capture: TrainingCapture, plan: &Plan, on: &str) -> TrainingProgram {
    compile_training(capture, &mesh(on), plan, &CompileOptions::for_cpu(), &|p| p.to_string()).unwrap()
}

/// One case for each plan and mesh, over `tp`, without small collectives.
fn part_cases(
    row: &'static str,
    capture: impl Fn() -> TrainingCapture,
    plans: &[(&str, Plan)],
    forward: usize,
    backward: usize,
) -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, plan) in plans {
        for on in ["tp=2", "tp=4"] {
            let case = Case::new(row, *what, on, compiled(capture(), plan, on));
            cases.push(case.over("tp", (forward, 0), (backward, 0)));
        }
    }
    cases
}

/// A plan whose pairs are found, and the same plan written out.
fn plans(path: &str, columns: &str, rows: &str) -> [(&'static str, Plan); 2] {
    let at = |pattern: &str| if path.is_empty() { pattern.to_string() } else { format!("{path}.{pattern}") };
    let written = Plan::new().with(at(columns), ColwiseParallel::default()).with(at(rows), RowwiseParallel::default());
    [("pairwise", Plan::new().with(path, PairwiseParallel)), ("col, row", written)]
}

#[test]
fn parts_of_a_model() {
    let row = "MLP col→row, replicated in and out: 1 AR | 1 AR, 0 if the input needs no gradient";
    let mlp = |d: &Device| Mlp::new(32, 64, d);
    let first = || part(mlp, |m, x| m.forward(x));
    let mut cases = part_cases(row, first, &plans("", "net1", "net2"), 2, 0);
    let inner = || normed(mlp, |m: &Mlp, x| m.forward(x));
    cases.extend(part_cases(row, inner, &plans("part", "net1", "net2"), 2, 2));

    let row = "MLP col→row, token-sharded in and out: 1 AG + 1 RS | 1 AG + 1 RS";
    let plan = Plan::new()
        .with("norm", PrepareModuleInput { input_layouts: vec![Some(Layout::Shard(1))], ..Default::default() })
        .with("part", PairwiseSequenceParallel { sequence_dim: 1 });
    for on in ["tp=2", "tp=4"] {
        let case = Case::new(row, "sequence pairs", on, compiled(inner(), &plan, on));
        // The loss is the mean over shards; gradients of replicated parameters are reduced together.
        cases.push(case.over("tp", (2, 1), (2, 1)));
    }

    let row = "attention: q, k, v column-wise, out row-wise: 1 AR | 1 AR";
    let attention = |d: &Device| MultiHeadAttentionConfig::new(32, 4).with_dropout(0.0).init(d);
    let capture = || normed(attention, |m: &MultiHeadAttention, x| m.forward(MhaInput::self_attn(x)).context);
    cases.extend(part_cases(row, capture, &plans("part", "{query,key,value}", "output"), 2, 2));

    let row = "SwiGLU: gate, up column-wise, down row-wise: 1 AR | 1 AR";
    let swiglu = |d: &Device| SwiGlu::new(32, 64, d);
    let capture = || normed(swiglu, |m: &SwiGlu, x| m.forward(x));
    cases.extend(part_cases(row, capture, &plans("part", "{gate,up}", "down"), 2, 2));

    let row = "fused q|k|v linear: 1 AR | 1 AR";
    let fused = |d: &Device| Fused { qkv: LinearConfig::new(32, 96).init(d), out: LinearConfig::new(32, 32).init(d) };
    let capture = || normed(fused, |m: &Fused, x| m.forward(x));
    cases.extend(part_cases(row, capture, &plans("part", "qkv", "out"), 2, 2));

    let row = "parallel attention + MLP block: 1 AR | 1 AR";
    let parallel = |d: &Device| Parallel { attention: attention(d), mlp: swiglu(d) };
    let capture = || {
        normed(parallel, |m: &Parallel, x: Tensor<3>| {
            m.attention.forward(MhaInput::self_attn(x.clone())).context + m.mlp.forward(x)
        })
    };
    let pairs = Plan::new().with("part.attention", PairwiseParallel).with("part.mlp", PairwiseParallel);
    let written = Plan::new()
        .with("part.attention.{query,key,value}", ColwiseParallel::default())
        .with("part.mlp.{gate,up}", ColwiseParallel::default())
        .with("part.attention.output", RowwiseParallel::default())
        .with("part.mlp.down", RowwiseParallel::default());
    cases.extend(part_cases(row, capture, &[("pairwise", pairs), ("col, row", written)], 2, 2));

    insta::assert_snapshot!("parts", met(cases));
}

/// The ends of a language model: what produces the first activation, and the loss.
#[test]
fn ends_of_a_model() {
    let tokens = || Spec::<2, Int>::new([SHAPE[0], SHAPE[1]], DType::I64);
    let row = "vocab-parallel cross entropy: 2 small AR | 0";
    let head = || {
        let x = Spec::<3>::new(SHAPE, DType::F32);
        let build = |d: &Device| Head {
            norm: LayerNormConfig::new(SHAPE[2]).init(d),
            head: LinearConfig::new(SHAPE[2], VOCAB).init(d),
        };
        let loss = |m: &Head, (x, labels): (Tensor<3>, Tensor<2, Int>)| {
            let logits = m.head.forward(m.norm.forward(x)).reshape([SHAPE[0] * SHAPE[1], VOCAB]);
            CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, labels.reshape([SHAPE[0] * SHAPE[1]]))
        };
        capture_training_shapes(build, &adamw(), (x, tokens()), &Default::default(), loss).unwrap()
    };
    let mut cases = Vec::new();
    for (what, plan) in [
        ("col", Plan::new().with("head", ColwiseParallel::default())),
        ("col, loss_parallel", Plan::new().with("head", ColwiseParallel::default()).loss_parallel()),
    ] {
        for on in ["tp=2", "tp=4"] {
            // The gradient of the head's input is one all-reduce of an activation; logits are not sent.
            cases.push(Case::new(row, what, on, compiled(head(), &plan, on)).over("tp", (0, 2), (2, 0)));
        }
    }

    let row = "vocab-parallel embedding → R: 1 AR (rows) or 1 AG (hidden) | 0";
    let table = || {
        let y = Spec::<3>::new(SHAPE, DType::F32);
        let build = |d: &Device| Table {
            table: EmbeddingConfig::new(VOCAB, SHAPE[2]).init(d),
            norm: LayerNormConfig::new(SHAPE[2]).init(d),
        };
        let loss = |m: &Table, (ids, y): (Tensor<2, Int>, Tensor<3>)| {
            (m.norm.forward(m.table.forward(ids)) - y).powi_scalar(2).mean()
        };
        capture_training_shapes(build, &adamw(), (tokens(), y), &Default::default(), loss).unwrap()
    };
    let replicated = Some(Layout::Replicate);
    for (what, plan, halves) in [
        ("rows", Plan::new().with("table", RowwiseParallel { output_layouts: replicated, ..Default::default() }), 2),
        ("hidden", Plan::new().with("table", ColwiseParallel { output_layouts: replicated, ..Default::default() }), 1),
    ] {
        for on in ["tp=2", "tp=4"] {
            cases.push(Case::new(row, what, on, compiled(table(), &plan, on)).over("tp", (halves, 0), (0, 0)));
        }
    }
    insta::assert_snapshot!("ends", met(cases));
}

// ---------------------------------------------------------------------------------------------------------------------
// Decoders

fn llama(layers: usize, kv_heads: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": kv_heads, "num_hidden_layers": layers, "vocab_size": VOCAB, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn gpt2(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": 16, "n_embd": 32, "n_layer": layers, "n_head": 4,
        "n_inner": 64, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

/// A decoder's step. Each data rank has a batch of the size that a single rank would have.
fn decoder(model: &ModelConfig, name: &str, on: &str, step: StepOptions) -> TrainingProgram {
    let data: usize = ["dp", "rep"].iter().filter_map(|a| mesh(on).axis(a).map(|i| mesh(on).size(i))).product();
    let options = CompileOptions { step, ..CompileOptions::for_cpu() };
    language_model(model, TokenBatch::new(SHAPE[0] * data, SHAPE[1]), &plan(name), on, &options)
}

#[test]
fn decoders() {
    let mut cases = Vec::new();
    let row = "decoder, plain plan: (2L+1) AR + small loss statistics | (2L+1) AR, logits never gathered";
    for layers in [1, 2, 4] {
        let halves = 2 * (2 * layers + 1);
        for (what, model, on) in [
            ("llama", llama(layers, 4), "tp=2"),
            ("llama, grouped heads", llama(layers, 2), "tp=2"),
            ("llama", llama(layers, 4), "tp=4"),
            ("gpt2", gpt2(layers), "tp=2"),
            ("gpt2", gpt2(layers), "tp=4"),
        ] {
            let program = decoder(&model, "tp", on, StepOptions::default());
            cases.push(Case::new(row, format!("{what}, L={layers}"), on, program).over("tp", (halves, 2), (halves, 0)));
        }
    }

    let row = "decoder, sequence-parallel plan: (2L+1) RS + (2L+1) AG | (2L+1) AG + (2L+1) RS | 1 small";
    for layers in [1, 2, 4] {
        let halves = 2 * (2 * layers + 1);
        for on in ["tp=2", "tp=4"] {
            for (what, model) in [("llama", llama(layers, 4)), ("gpt2", gpt2(layers))] {
                let program = decoder(&model, "tp-sp", on, StepOptions::default());
                // The gradients of all norms are reduced at once.
                let case = Case::new(row, format!("{what}, L={layers}"), on, program);
                cases.push(case.over("tp", (halves, 2), (halves, 1)));
            }
        }
    }

    let row = "clip by norm on a sequence-parallel plan: 1";
    for (on, layers) in [("tp=2", 2), ("tp=4", 3)] {
        let step = StepOptions { clip_norm: Some(1.0), ..StepOptions::default() };
        let halves = 2 * (2 * layers + 1);
        for (what, model) in [("llama", llama(layers, 4)), ("gpt2", gpt2(layers))] {
            let program = decoder(&model, "tp-sp", on, step.clone());
            // The norms' gradients and the squares of all others are one reduction.
            let case = Case::new(row, format!("{what}, L={layers}"), on, program);
            cases.push(case.over("tp", (halves, 2), (halves, 1)));
        }
    }
    insta::assert_snapshot!("decoders", met(cases));
}

/// A table that counts collectives, however many values they carry: a unit is gathered and scattered at once.
#[test]
fn fsdp_by_tp() {
    let row = "FSDP × TP: L+1 AG | L−1 AG + (L+1) RS, + TP";
    let mut table = format!("{row}\n");
    for (what, config) in [("llama", llama as fn(usize, usize) -> ModelConfig), ("gpt2", |l, _| gpt2(l))] {
        for (name, on) in [
            ("2d", "dp=2,tp=2"),
            ("fsdp", "dp=2"),
            ("fsdp", "dp=4"),
            ("hsdp", "rep=2,dp=2"),
            ("tp-sp-fsdp", "dp=2,tp=2"),
            ("tp-hsdp", "rep=2,dp=2,tp=2"),
        ] {
            for layers in [1, 2, 4] {
                let program = decoder(&config(layers, 4), name, on, StepOptions::default());
                let halves = if name.contains("tp") || name == "2d" { 2 * (2 * layers + 1) } else { 0 };
                let sequence = usize::from(name.contains("sp-"));
                for stages in [&program.first, &program.steady] {
                    let count = |axes: &str, phase: Phase, kind: &str| {
                        let all = stages.ranks[0].collectives();
                        all.filter(|c| &*c.axes == axes && c.phase == phase && c.name() == kind).count()
                    };
                    // A table as small as this one is reduced over both axes at once, not scattered.
                    let table = if what == "gpt2" { count("rep,dp", Phase::Backward, "all_reduce") } else { 0 };
                    let root = layers + 1 + table;
                    let found = [
                        count("dp", Phase::Forward, "all_gather"),
                        count("dp", Phase::Backward, "all_gather"),
                        count("dp", Phase::Backward, "reduce_scatter") + table,
                        count("rep", Phase::Backward, "all_reduce"),
                    ];
                    let most = [layers + 1, layers - 1, root, if on.contains("rep") { layers + 1 } else { 0 }];
                    let what = format!("{what}, L={layers}, {name} on {on}:\n{}", list(stages));
                    assert!(found.iter().zip(&most).all(|(f, m)| f <= m), "{found:?}, at most {most:?}: {what}");
                    let tp = Phase::ALL.map(|p| Sent::of(stages, "tp", p, ACTIVATION));
                    assert!(tp[0].halves() <= halves && tp[1].halves() <= halves && tp[2] == Sent::default(), "{what}");
                    assert!(tp[0].small <= 2 && tp[1].small <= sequence, "{what}");
                    // The remaining reduction is that of the loss's token count and sum, in one collective over all
                    // data axes.
                    let all = stages.ranks[0].collectives().filter(|c| !c.axes.contains("tp")).count();
                    assert_eq!(all, found.iter().sum::<usize>() + 1, "{what}");
                }
                let text = |phase: Phase| {
                    let mut counts: Vec<(String, usize)> = Vec::new();
                    for c in program.steady.ranks[0].collectives().filter(|c| c.phase == phase) {
                        let large = c.full_bytes >= ACTIVATION || c.axes.contains("dp") && c.values > 2;
                        let name = format!("{}{} {}", if large { "" } else { "small " }, c.name(), c.axes);
                        match counts.iter_mut().find(|(n, _)| *n == name) {
                            Some((_, n)) => *n += 1,
                            None => counts.push((name, 1)),
                        }
                    }
                    counts.sort();
                    counts.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(" + ")
                };
                let texts = [Phase::Forward, Phase::Backward].map(text).join(" | ");
                writeln!(table, "  {what}, L={layers}, {name} on {on}: {texts}").unwrap();
                if layers < 4 {
                    counts_agree(program, |session| feed(session, VOCAB));
                }
            }
        }
    }
    insta::assert_snapshot!("fsdp", table);
}
