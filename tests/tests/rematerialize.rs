//! Values of the forward pass that are computed a second time so that a program fits into memory: the results are those
//! of the program that keeps them, a limit is met exactly, and what is impossible says by how much.
// `!(x <= tolerance)` is intended: a NaN is wrong.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, activation};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use tpc_compiler::budget::BudgetError;
use tpc_compiler::capture::{Spec, TrainingCapture, capture_training_shapes, named};
use tpc_compiler::error::Error;
use tpc_compiler::models::{ModelConfig, presets};
use tpc_compiler::plans::{Prediction, Workload};
use tpc_compiler::pretrained::{TokenBatch, capture_step, names};
use tpc_compiler::program::{CompileOptions, TrainingProgram, compile_training};
use tpc_compiler::summary::Content;
use tpc_ir::reason::Cause;
use tpc_ir::{Graph, InputKind, Op, interpret, text};
use tpc_passes::denotes::denotes;
use tpc_passes::lower::saved::saved;
use tpc_passes::lower::{LowerOptions, lower};
use tpc_passes::options::{Precision, StepOptions};
use tpc_passes::planner::PlacementSource;
use tpc_passes::rematerialize::{Dropped, rematerialize};
use tpc_passes::targets::Target;
use tpc_tests::command::tpc;
use tpc_tests::named::{inputs, program};
use tpc_tests::training::{Run, adamw, config, differences, feed, mesh, plan, run};
use tpc_tests::{executed_programs, means_the_same, on_ranks};

/// A gradient below this share of the largest element of all gradients is zero in theory.
const ZERO: f64 = 1e-4;

/// A step to compile.
struct Case {
    name: &'static str,
    capture: fn() -> TrainingCapture,
    names: fn(&str) -> String,
    vocab: usize,
}

fn llama() -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 64, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn gpt2() -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "n_inner": 64, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

fn bert() -> ModelConfig {
    config(json!({
        "model_type": "bert", "vocab_size": 64, "max_position_embeddings": 32, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu",
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "tie_word_embeddings": true,
    }))
}

fn captured(config: &ModelConfig) -> TrainingCapture {
    capture_step(config, TokenBatch::new(8, 32), &adamw()).unwrap()
}

/// Two linears with dropout before and after the activation.
#[derive(Module, Debug)]
struct Dropping {
    up: Linear,
    down: Linear,
    dropout: Dropout,
}

impl Dropping {
    fn new(device: &Device) -> Self {
        let linear = |a, b| LinearConfig::new(a, b).init(device);
        Dropping { up: linear(16, 64), down: linear(64, 16), dropout: DropoutConfig::new(0.3).init() }
    }

    fn loss(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
        let hidden = self.dropout.forward(activation::gelu(self.dropout.forward(self.up.forward(x))));
        (self.down.forward(hidden) - y).square().mean()
    }
}

fn dropping() -> TrainingCapture {
    let spec = || Spec::<2>::new([64, 16], DType::F32);
    let batch = (named("x", spec()), named("y", spec()));
    let loss = |m: &Dropping, (x, y)| m.loss(x, y);
    capture_training_shapes(Dropping::new, &adamw(), batch, &Default::default(), loss).unwrap()
}

const LLAMA: Case = Case {
    name: "llama",
    capture: || captured(&llama()),
    names: |p| names(&llama()).get(p).cloned().unwrap_or_else(|| p.into()),
    vocab: 64,
};

const GPT2: Case = Case {
    name: "gpt2",
    capture: || captured(&gpt2()),
    names: |p| names(&gpt2()).get(p).cloned().unwrap_or_else(|| p.into()),
    vocab: 64,
};

const BERT: Case = Case {
    name: "bert",
    capture: || captured(&bert()),
    names: |p| names(&bert()).get(p).cloned().unwrap_or_else(|| p.into()),
    vocab: 64,
};

const DROPOUT: Case = Case { name: "dropout", capture: dropping, names: |p| p.into(), vocab: 2 };

impl Case {
    fn compile(&self, name: &str, on: &str, options: &CompileOptions) -> Result<TrainingProgram, Error> {
        compile_training((self.capture)(), &mesh(on), &plan(name), options, &self.names)
    }

    fn workload(&self) -> Workload {
        Workload::of_training(&(self.capture)(), &self.names).unwrap()
    }

    /// The smallest program. What a step takes is known without a capture, of which a process can make a few hundred only.
    fn smallest(&self, workload: &Workload, name: &str, on: &str, options: &CompileOptions) -> TrainingProgram {
        let mut options = options.clone();
        options.lower.memory = Some(1);
        let error = predicted(workload, (name, on), &options).err();
        let Some(Error::Budget(BudgetError { least, .. })) = error else { panic!("{}: {error:?}", self.name) };
        options.lower.memory = Some(least);
        match self.compile(name, on, &options) {
            // The first step takes more than a later one.
            Err(Error::Budget(BudgetError { least, .. })) => {
                options.lower.memory = Some(least);
                self.compile(name, on, &options).unwrap()
            }
            compiled => compiled.unwrap(),
        }
    }

    fn run(&self, program: TrainingProgram) -> Run {
        run(program, &[1e-3, 2e-3], |session| feed(session, self.vocab))
    }
}

fn arena(program: &TrainingProgram) -> usize {
    program.steady.ranks.iter().map(|rank| rank.arena_bytes).max().unwrap()
}

/// The operations of a program that are computed a second time.
fn recomputed(graph: &Graph) -> Vec<&Op> {
    let copies = graph.nodes().filter(|&n| graph.node(n).origin.reason.causes().contains(&Cause::Recomputed));
    copies.map(|n| &graph.node(n).op).collect()
}

/// The outputs of which two runs of the reference executor give other bits.
fn other_bits(graph: &Graph, found: &[interpret::Tensor], expected: &[interpret::Tensor]) -> Vec<String> {
    let bits = |values: &interpret::Tensor| -> Vec<u64> {
        assert!(values.data.iter().all(|v| v.is_finite()));
        values.data.iter().map(|v| v.to_bits()).collect()
    };
    let pairs = graph.outputs.iter().zip(found.iter().zip(expected));
    pairs.filter(|(_, (f, e))| bits(f) != bits(e)).map(|(output, _)| format!("{:?}", output.kind)).collect()
}

/// What differs between two runs by more than rounding: losses by `loss`, gradients by `gradient` of the largest element
/// of the tensor, or of all gradients where they are zero in theory.
fn beyond_rounding(found: &Run, expected: &Run, loss: f64, gradient: f64) -> Vec<String> {
    let largest = |values: &[f64]| values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let mut wrong = Vec::new();
    for (f, e) in found.losses.iter().zip(&expected.losses) {
        if !((f - e).abs() <= loss * e.abs()) {
            wrong.push(format!("loss {f} instead of {e}"));
        }
    }
    assert_eq!(found.gradients.len(), expected.gradients.len());
    let anywhere = expected.gradients.values().map(|g| largest(g)).fold(0.0, f64::max);
    for (name, e) in &expected.gradients {
        let own = largest(e);
        let scale = if own < ZERO * anywhere { anywhere } else { own };
        let off = found.gradients[name].iter().zip(e).map(|(f, e)| (f - e).abs() / scale);
        let off = off.fold(0.0f64, |m, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
        if !(off <= gradient) {
            wrong.push(format!("gradient of {name}: off by {off:e} of {scale:e}"));
        }
    }
    wrong
}

/// The smallest program under every plan computes the values of the program that keeps every value: on the reference
/// executor bit by bit; on a CPU up to the rounding of kernels that are fused in other ways, where a product and a sum
/// in one loop are rounded once, and what stays in a kernel is not rounded to bf16. It allocates what is predicted.
/// Returns the operations that are computed a second time.
fn smallest_computes_the_same(case: &Case) -> BTreeSet<String> {
    let places = [("none", ""), ("tp", "tp=2"), ("tp-sp", "tp=2"), ("fsdp", "dp=2"), ("tp-sp-fsdp", "dp=2,tp=2")];
    let workload = case.workload();
    let mut table = String::new();
    let mut operations = BTreeSet::new();
    for (name, on) in places.into_iter().filter(|(name, _)| case.name != "dropout" || !name.contains("tp")) {
        for (micro_batches, precision) in [(1, None), (2, None), (1, Some(Precision::default()))] {
            let step = StepOptions { micro_batches, precision, ..StepOptions::default() };
            let options = CompileOptions { gradients: true, step, ..CompileOptions::for_cpu() };
            let whole = case.compile(name, on, &options).unwrap();
            let small = case.smallest(&workload, name, on, &options);
            let copies = recomputed(&small.steady.placed);
            operations.extend(copies.iter().map(|op| op.name()));
            let dtype = if precision.is_some() { "bf16" } else { "f32" };
            let shown = format!("{name} on {on:?}, {micro_batches} micro-batches, {dtype}");
            let (before, after) = (arena(&whole), arena(&small));
            writeln!(table, "{shown}: {before} bytes, {after} with {} operations more", copies.len()).unwrap();
            assert!(after <= before && copies.is_empty() == small.steady.report.recomputed.is_none(), "{shown}");
            for (small, whole) in [(&small.first, &whole.first), (&small.steady, &whole.steady)] {
                let feed = tpc_tests::inputs(&small.placed, case.vocab, &HashMap::new());
                let (found, expected) = (on_ranks(&small.placed, &feed), on_ranks(&whole.placed, &feed));
                let others = other_bits(&small.placed, &found, &expected);
                assert!(others.is_empty(), "{shown}: {others:?}");
            }
            if micro_batches == 2 {
                let feed = tpc_tests::inputs(&small.steady.placed, case.vocab, &HashMap::new());
                means_the_same(&small.steady.placed, &small.steady.ranks, &feed);
            }
            let (found, expected) = (case.run(small), case.run(whole));
            let wrong = match precision {
                None => [differences(&found, &expected), beyond_rounding(&found, &expected, 1e-6, 2e-6)].concat(),
                Some(_) => beyond_rounding(&found, &expected, 1e-3, 4e-2),
            };
            assert!(wrong.is_empty(), "{shown}\n{}", wrong.join("\n"));
        }
    }
    insta::assert_snapshot!(format!("smallest_{}", case.name), table);
    operations
}

fn assert_recomputed(case: &Case, wanted: &[&str]) {
    let operations = smallest_computes_the_same(case);
    for &wanted in wanted {
        assert!(operations.contains(wanted), "no {wanted} is computed a second time: {operations:?}");
    }
}

#[test]
fn the_smallest_llama_computes_the_same() {
    assert_recomputed(&LLAMA, &["einsum", "all_gather"]);
}

#[test]
fn the_smallest_gpt2_computes_the_same() {
    assert_recomputed(&GPT2, &["einsum", "tanh"]);
}

#[test]
fn the_smallest_bert_computes_the_same() {
    assert_recomputed(&BERT, &["einsum", "erf"]);
}

#[test]
fn the_smallest_model_with_dropout_computes_the_same() {
    assert_recomputed(&DROPOUT, &["random"]);
}

/// What a step takes under a plan within a limit.
fn predicted(workload: &Workload, (name, on): (&str, &str), options: &CompileOptions) -> Result<Prediction, Error> {
    workload.predict(&mesh(on), &plan(name), options)
}

/// The memory and time of a step where its activations are limited to shares of what they take without a limit.
/// Everything but `kept` bytes are activations.
fn table(workload: &Workload, place: (&str, &str), options: &CompileOptions, kept: usize, shares: &[usize]) -> String {
    let free = predicted(workload, place, options).unwrap();
    let activations = free.arena_bytes - kept;
    let mut table =
        format!("{} bytes, {activations} of them activations, {:.6} s\n", free.arena_bytes, free.timeline.seconds);
    let mut last = free.timeline.seconds;
    for share in shares {
        let limit = kept + activations * share / 100;
        let mut options = options.clone();
        options.lower.memory = Some(limit);
        match predicted(workload, place, &options) {
            Ok(found) => {
                assert!(found.arena_bytes <= limit, "{} bytes where {limit} are allowed", found.arena_bytes);
                let seconds = found.timeline.seconds;
                assert!(seconds >= last * (1.0 - 1e-9), "{share}%: {seconds} s instead of {last} s with more memory");
                last = seconds;
                let values = found.recomputed.iter().flat_map(|report| &report.values);
                let list: Vec<String> = values
                    .map(|v| format!("{} × {} {} ({} bytes)", v.values, v.operation, v.module, v.bytes))
                    .collect();
                writeln!(table, "{share}%: {} bytes, {seconds:.6} s; {}", found.arena_bytes, list.join(", ")).unwrap();
            }
            Err(Error::Budget(error)) => {
                writeln!(table, "{share}%: {error}").unwrap();
                // A program that fits into the least is found, which may even be smaller.
                options.lower.memory = Some(error.least);
                assert!(predicted(workload, place, &options).unwrap().arena_bytes <= error.least);
            }
            Err(error) => panic!("{error}"),
        }
    }
    table
}

fn workload(config: &ModelConfig, tokens: TokenBatch) -> Workload {
    let names = names(config);
    let rename = move |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
    Workload::of_training(&capture_step(config, tokens, &adamw()).unwrap(), &rename).unwrap()
}

/// A product whose operand is gathered, and a gate that the backward pass needs.
const GATED: &str = "mesh <tp=2>
%x = input data \"x\" : f32[4@tp, 8]
%w = input parameter \"w\" : f32[8, 6]
%g = input data \"g\" : f32[4, 6]
%all = all_gather tp dim=0 %x : f32[4, 8] ; forward
%y = einsum \"ab,bc->ac\" %all, %w : f32[4, 6] ; forward
%s = sigmoid %y : f32[4, 6] ; forward
%z = mul %y, %s : f32[4, 6] ; forward
%d = mul %g, %s : f32[4, 6] ; backward
%dw = einsum \"ab,ac->bc\" %all, %d : f32[8, 6] ; backward
output result \"z\" %z
output gradient \"w\" %dw";

/// What the pass makes of a program when nothing, the product, the gather, and both are dropped.
#[test]
fn golden_text() {
    let graph = program(GATED);
    let kept = saved(&graph, &LowerOptions::default());
    let named = |wanted: fn(&Op) -> bool| -> Dropped {
        kept.nodes.iter().copied().filter(|&n| wanted(&graph.node(n).op)).collect()
    };
    assert_eq!(kept.nodes.len(), 2);
    let mut shown = String::new();
    let values = inputs(&graph);
    let expected = executed_programs(&graph, lower(&graph, Target::cpu()).unwrap(), &values);
    for (what, wanted) in [
        ("nothing", (|_| false) as fn(&Op) -> bool),
        ("the product", |op| matches!(op, Op::Einsum { .. })),
        ("the gather", |op| matches!(op, Op::AllGather { .. })),
        ("both", |_| true),
    ] {
        let small = rematerialize(&graph, &kept, &named(wanted));
        denotes(&small, &graph).unwrap();
        assert_eq!(executed_programs(&small, lower(&small, Target::cpu()).unwrap(), &values), expected, "{what}");
        writeln!(shown, "{what} is dropped\n{}", text::print(&small)).unwrap();
    }
    insta::assert_snapshot!("dropped", shown);
}

/// Bytes of parameters and state on the first rank, which no program can do without.
fn kept(workload: &Workload, (name, on): (&str, &str), options: &CompileOptions) -> usize {
    let summary = workload.summarize(&mesh(on), &plan(name), options).unwrap();
    let is_kept =
        |content: &Content| matches!(content, Content::Input(InputKind::Parameter) | Content::Input(InputKind::State));
    summary.peak.iter().filter(|((_, content), _)| is_kept(content)).map(|(_, bytes)| bytes).sum()
}

/// The llama preset on two ranks: with less memory, more is computed a second time, cheap values before products, and a
/// step takes longer.
#[test]
fn limits_of_the_llama_preset_are_met() {
    let workload = workload(&presets::named("llama").unwrap(), TokenBatch::new(8, 256));
    let mut shown = String::new();
    for (place, target) in [
        (("tp", "tp=2"), Target::cpu()),
        (("tp-sp-fsdp", "dp=2,tp=2"), Target::cpu()),
        (("tp-sp-fsdp", "dp=2,tp=2"), Target::h100_node()),
    ] {
        let options = CompileOptions::new(target.clone());
        writeln!(shown, "{} on {} of {}", place.0, place.1, target.name).unwrap();
        let least = kept(&workload, place, &options);
        shown += &table(&workload, place, &options, least, &[100, 90, 80, 70, 60, 50, 1]);
    }
    insta::assert_snapshot!("llama", shown);
}

/// One layer of the 70B shape of Llama 2 and 3 on 64 ranks.
#[test]
fn limits_of_a_large_layer_are_met() {
    let llama = json!({
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "num_hidden_layers": 1, "vocab_size": 128256, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 500000.0,
    });
    let tokens = TokenBatch { attention_mask: false, ..TokenBatch::new(8, 8192) };
    let workload = workload(&config(llama), tokens);
    let place = ("tp-sp-fsdp", "dp=8,tp=8");
    let mut options = CompileOptions::new(Target::h100_node().clone());
    options.step.precision = Some(Precision::default());
    options.search.placements = PlacementSource::Planned;
    let least = kept(&workload, place, &options);
    insta::assert_snapshot!("layer", table(&workload, place, &options, least, &[100, 70, 50]));
}

/// What the command says of a limit that is met and of one that is not; the stored program passes the independent check.
#[test]
fn the_command_says_what_is_computed_twice() {
    let run = |arguments: &str| tpc(&arguments.split(' ').collect::<Vec<_>>());
    let step = "--preset llama --train --plan tp --mesh tp=2 --batch 8 --seq 256 --target cpu";
    let (code, _, refused) = run(&format!("dump-ir {step} --memory-limit 1MB"));
    assert_eq!(code, 1);
    let bytes = refused.split("that was found needs ").nth(1).and_then(|rest| rest.split(' ').next());
    let least: usize = bytes.and_then(|bytes| bytes.parse().ok()).expect(&refused);
    let dir = std::env::temp_dir().join(format!("tpc-rematerialize-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("program.json");
    let stored = file.to_str().unwrap();
    let (code, out, said) = run(&format!("dump-ir {step} --memory-limit {least} --json --store {stored}"));
    assert_eq!(code, 0, "{said}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["search"]["recomputed"]["bytes"], json!(least));
    let (code, verified, error) = run(&format!("verify {stored}"));
    assert_eq!(code, 0, "{error}");
    let (_, costs, _) = run(&format!("costs {step} --memory-limit {least}"));
    let memory = costs.lines().find(|line| line.starts_with("memory")).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    insta::assert_snapshot!("said", format!("{refused}\n{said}\n{verified}\n{memory}\n"));
}
