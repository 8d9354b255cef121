//! Program options of a training step: each computes what a training loop would do by hand, under every plan and mesh.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, activation};
use serde_json::json;
use std::collections::BTreeSet;
use tpc::RankProgram;
use tpc_compiler::capture::{Spec, capture_training_shapes, named};
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::{CompileOptions, TrainingProgram};
use tpc_ir::{InputKind, OutputKind, Phase};
use tpc_passes::lower::LowerOptions;
use tpc_passes::options::clip::GRAD_NORM;
use tpc_passes::options::{OptionError, Precision, Reduction, StepOptions};
use tpc_runtime::LaunchOptions;
use tpc_tests::command::tpc;
use tpc_tests::switches::most_bytes;
use tpc_tests::training::{Named, Run, config, differences, feed, language_model, plan, run};

fn llama(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": 128, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn gpt2() -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": 128, "n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 4,
        "n_inner": 64, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

fn bert() -> ModelConfig {
    config(json!({
        "model_type": "bert", "vocab_size": 128, "max_position_embeddings": 32, "hidden_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu",
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "tie_word_embeddings": true,
    }))
}

const RATES: [f64; 3] = [1e-3, 2e-3, 1e-3];

const PLACES: [(&str, &str); 6] =
    [("none", ""), ("tp", "tp=2"), ("tp", "tp=4"), ("ddp", "dp=2"), ("ddp", "dp=4"), ("tp-ddp", "dp=2,tp=2")];

fn tokens(batch: usize) -> TokenBatch {
    TokenBatch { attention_mask: false, ..TokenBatch::new(batch, 16) }
}

fn compiled(model: &ModelConfig, batch: usize, (name, mesh): (&str, &str), step: &StepOptions) -> TrainingProgram {
    let options = CompileOptions { gradients: true, step: step.clone(), ..CompileOptions::for_cpu() };
    language_model(model, tokens(batch), &plan(name), mesh, &options)
}

fn trained(model: &ModelConfig, batch: usize, place: (&str, &str), step: &StepOptions) -> Run {
    run(compiled(model, batch, place, step), &RATES, |session| feed(session, model.vocab_size()))
}

fn all_reduces(rank: &RankProgram, phase: Option<Phase>) -> Vec<usize> {
    let wanted = |p: Phase| phase.is_none_or(|phase| phase == p);
    rank.collectives().filter(|c| wanted(c.phase)).map(|c| c.full_bytes).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Clipping

/// The optimizer of the tests' runs, AdamW, in f64: one first step.
fn adamw_step(parameter: f64, gradient: f64, rate: f64) -> f64 {
    let (b1, b2, eps, decay) = (0.9, 0.95, 1e-8, 0.1);
    let (m, v) = ((1.0 - b1) * gradient / (1.0 - b1), (1.0 - b2) * gradient * gradient / (1.0 - b2));
    parameter * (1.0 - rate * decay) - rate * m / (v.sqrt() + eps)
}

struct Clipped {
    norm: f64,
    gradients: Named,
    before: Named,
    states: Named,
    after: Named,
}

/// The first step of a program, with its state.
fn first_step(program: TrainingProgram, vocab: usize) -> Clipped {
    let mut training = program.launch(LaunchOptions::default()).unwrap();
    feed(training.session(), vocab);
    let inputs: Vec<(String, InputKind)> =
        training.session().program(0).inputs.iter().map(|i| (i.name.clone(), i.kind)).collect();
    let named = |session: &tpc_runtime::Session, wanted: InputKind| -> Named {
        let names = inputs.iter().filter(|(_, kind)| *kind == wanted);
        names.map(|(n, kind)| (n.clone(), session.read_input_f64((*kind, n.as_str())).unwrap())).collect()
    };
    let before = named(training.session(), InputKind::Parameter);
    training.step(1e-3).unwrap();
    let session = training.session();
    let kinds: Vec<OutputKind> = session.program(0).outputs.iter().map(|o| o.kind.clone()).collect();
    let mut gradients = Named::new();
    for kind in &kinds {
        if let OutputKind::Gradient(name) = kind {
            gradients.insert(name.to_string(), session.read_f64(kind).unwrap());
        }
    }
    let norm = OutputKind::Result(GRAD_NORM.into());
    let norm = if kinds.contains(&norm) { session.read_f64(&norm).unwrap()[0] } else { f64::NAN };
    let (states, after) = (named(session, InputKind::State), named(session, InputKind::Parameter));
    Clipped { norm, gradients, before, states, after }
}

fn global_norm(gradients: &Named) -> f64 {
    gradients.values().flatten().map(|g| g * g).sum::<f64>().sqrt()
}

#[test]
fn clipping_is_that_of_torch_under_every_plan() {
    for model in [llama(1), gpt2(), bert()] {
        let vocab = model.vocab_size();
        let plain = first_step(compiled(&model, 4, ("none", ""), &StepOptions::default()), vocab);
        let norm = global_norm(&plain.gradients);
        let limit = norm / 4.0;
        let coefficient = limit / (norm + 1e-6);
        let step = StepOptions { clip_norm: Some(limit), ..StepOptions::default() };
        for place in PLACES {
            let clipped = first_step(compiled(&model, 4, place, &step), vocab);
            assert!((clipped.norm - norm).abs() <= 1e-5 * norm, "{place:?}: {} for {norm}", clipped.norm);
            let largest = plain.gradients.values().flatten().fold(0.0f64, |m, g| m.max(g.abs()));
            for (name, expected) in &plain.gradients {
                for (i, (f, e)) in clipped.gradients[name].iter().zip(expected).enumerate() {
                    assert!((f - e).abs() <= 1e-4 * largest, "{place:?}: gradient {name}[{i}] is before clipping");
                }
                // After one step the first moment is a tenth of the gradient that the optimizer received.
                let moment = &clipped.states[&format!("{name}/momentum.moment_1")];
                for (i, (m, e)) in moment.iter().zip(expected).enumerate() {
                    let expected = 0.1 * e * coefficient;
                    assert!((m - expected).abs() <= 1e-5 * largest, "{place:?}: moment {name}[{i}]");
                }
                for (i, (f, e)) in clipped.after[name].iter().zip(expected).enumerate() {
                    if e.abs() > 1e-3 * largest {
                        let expected = adamw_step(plain.before[name][i], e * coefficient, 1e-3);
                        assert!((f - expected).abs() <= 2e-5, "{place:?}: {name}[{i}] is {f}, expected {expected}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_large_limit_changes_nothing_and_a_small_one_holds_in_every_step() {
    let model = llama(1);
    let plain = trained(&model, 4, ("none", ""), &StepOptions::default());
    let loose = StepOptions { clip_norm: Some(1e9), ..StepOptions::default() };
    assert_eq!(trained(&model, 4, ("none", ""), &loose).losses, plain.losses);
    let tight = StepOptions { clip_norm: Some(0.01), ..StepOptions::default() };
    let expected = trained(&model, 4, ("none", ""), &tight);
    assert_ne!(expected.losses, plain.losses);
    for place in &PLACES[1..] {
        let wrong = differences(&trained(&model, 4, *place, &tight), &expected);
        assert!(wrong.is_empty(), "{place:?}\n{}", wrong.join("\n"));
    }
}

#[test]
fn the_norm_is_one_small_all_reduce() {
    let model = llama(2);
    for (place, expected) in
        [(("none", ""), 0), (("ddp", "dp=2"), 0), (("tp", "tp=2"), 1), (("tp-ddp", "dp=2,tp=2"), 1)]
    {
        let step = StepOptions { clip_norm: Some(1.0), ..StepOptions::default() };
        let (with, without) = (compiled(&model, 4, place, &step), compiled(&model, 4, place, &StepOptions::default()));
        for (with, without) in [(with.first, without.first), (with.steady, without.steady)] {
            let more = all_reduces(&with.ranks[0], None).len() - all_reduces(&without.ranks[0], None).len();
            let small = all_reduces(&with.ranks[0], Some(Phase::Optimizer));
            assert_eq!(more, expected, "{place:?}: {small:?}");
            assert_eq!(small.iter().filter(|b| **b == 4).count(), expected, "{place:?}: {small:?}");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Micro-batches

fn micro(count: usize) -> StepOptions {
    StepOptions { micro_batches: count, ..StepOptions::default() }
}

#[test]
fn micro_batches_equal_the_whole_batch_under_every_plan() {
    for model in [llama(1), gpt2(), bert()] {
        let expected = trained(&model, 8, ("none", ""), &micro(1));
        for place in PLACES {
            let wrong = differences(&trained(&model, 8, place, &micro(4)), &expected);
            assert!(wrong.is_empty(), "{place:?}\n{}", wrong.join("\n"));
        }
    }
}

#[test]
fn micro_batches_need_not_divide_the_batch() {
    let model = llama(1);
    for (batch, count) in [(5, 2), (5, 4), (7, 3), (3, 3)] {
        let expected = trained(&model, batch, ("none", ""), &micro(1));
        for place in [("none", ""), ("ddp", "dp=2"), ("tp", "tp=2")] {
            let wrong = differences(&trained(&model, batch, place, &micro(count)), &expected);
            assert!(wrong.is_empty(), "{count} of {batch}, {place:?}\n{}", wrong.join("\n"));
        }
    }
}

#[test]
fn one_micro_batch_is_alive_at_a_time() {
    let temporaries = |count: usize| {
        let model = llama(2);
        let options = CompileOptions { step: micro(count), ..CompileOptions::for_cpu() };
        let tokens = TokenBatch { attention_mask: false, ..TokenBatch::new(16, 32) };
        let program = language_model(&model, tokens, &plan("none"), "", &options);
        let rank = &program.steady.ranks[0];
        let kept: usize = rank.buffers.iter().filter(|b| b.persistent).map(|b| b.bytes).sum();
        rank.arena_bytes - kept
    };
    let (whole, quarters) = (temporaries(1), temporaries(4));
    assert!(quarters * 2 < whole, "{quarters} bytes of temporaries for quarters, {whole} for the whole batch");
}

/// Where gradients are larger than activations, more micro-batches do not keep more of them.
#[test]
fn one_accumulator_per_gradient_is_alive() {
    let temporaries = |count: usize| {
        let options = CompileOptions { step: micro(count), ..CompileOptions::for_cpu() };
        let tokens = TokenBatch { attention_mask: false, ..TokenBatch::new(8, 2) };
        let program = language_model(&llama(2), tokens, &plan("none"), "", &options);
        let rank = &program.steady.ranks[0];
        rank.arena_bytes - rank.buffers.iter().filter(|b| b.persistent).map(|b| b.bytes).sum::<usize>()
    };
    let (two, eight) = (temporaries(2), temporaries(8));
    assert!(eight <= two + two / 4, "{eight} bytes of temporaries for eight micro-batches, {two} for two");
}

/// Every micro-batch gathers the sharded parameters of one block at a time, and adds its gradients to those of the
/// previous micro-batches in place. The test counts the bytes in use at once; the memory plan leaves gaps of a few
/// percent between buffers.
#[test]
fn micro_batches_hold_what_one_holds_and_the_gradients() {
    let model = llama(3);
    // The number is that of the ranks that share a parameter which the forward pass needs whole.
    for (plan_name, on, shards) in [
        ("fsdp", "dp=4", 4),
        ("hsdp", "rep=2,dp=2", 2),
        ("fsdp", "dp=2", 2),
        ("2d", "dp=2,tp=2", 2),
        ("tp", "tp=2", 1),
        ("tp-sp", "tp=4", 1),
        ("ddp", "dp=2", 1),
        ("zero1", "dp=2", 1),
    ] {
        let place = (plan_name, on);
        let program = |rows: usize, count: usize| {
            // Overlap may enlarge an arena, but that is a separate bound.
            let lower = LowerOptions { memory_growth: 0.0, ..LowerOptions::default() };
            let options = CompileOptions { step: micro(count), lower, ..CompileOptions::for_cpu() };
            let tokens = TokenBatch { attention_mask: false, ..TokenBatch::new(rows, 32) };
            language_model(&model, tokens, &plan(place.0), place.1, &options).steady.ranks.into_vec().remove(0)
        };
        let (quarters, one) = (program(32, 4), program(8, 1));
        let most = |rank: &RankProgram| rank.collectives().map(|c| c.values).max().unwrap_or(0);
        assert!(most(&quarters) <= most(&one), "{place:?}: {} values, {} in one", most(&quarters), most(&one));
        let bytes = |kind: InputKind| -> usize {
            let of_kind = quarters.inputs.iter().filter(|i| i.kind == kind);
            of_kind.map(|i| quarters.buffers[i.binding.view.buffer.0 as usize].bytes).sum()
        };
        // Labels are shifted and counted once for the whole batch.
        let (gradients, labels) = (bytes(InputKind::Parameter) * shards, 2 * bytes(InputKind::Data));
        let (held, allowed) = (most_bytes(&quarters), most_bytes(&one) + gradients + labels);
        assert!(held <= allowed, "{place:?}: {held} bytes, {allowed} are those of one micro-batch and the gradients");
    }
}

#[test]
fn gradients_are_reduced_once_per_step() {
    let model = llama(2);
    let bytes = |count| {
        let program = compiled(&model, 8, ("ddp", "dp=2"), &micro(count));
        let mut all = all_reduces(&program.steady.ranks[0], None);
        all.sort_unstable();
        all
    };
    let (whole, quarters) = (bytes(1), bytes(4));
    let large = |all: &[usize]| all.iter().copied().filter(|b| *b > 64).collect::<Vec<_>>();
    assert_eq!(large(&quarters), large(&whole));
    // The number of labels comes before the first micro-batch and the loss after the last, so the two are not combined.
    assert_eq!(quarters.len(), whole.len() + 1, "{quarters:?} for {whole:?}");
    assert_eq!(quarters.iter().sum::<usize>(), whole.iter().sum::<usize>());
    // The rows of a micro-batch are on the rank that reads them.
    let program = compiled(&model, 8, ("ddp", "dp=2"), &micro(4));
    assert!(program.steady.ranks[0].collectives().all(|c| c.name() == "all_reduce"));
}

#[test]
fn more_micro_batches_than_rows_are_refused() {
    let error = |count| {
        let program =
            tpc_compiler::pretrained::capture_step(&llama(1), tokens(4), &tpc_tests::training::adamw()).unwrap();
        let options = CompileOptions { step: micro(count), ..CompileOptions::for_cpu() };
        let mesh = tpc_tests::training::mesh("");
        match tpc_compiler::program::compile_training(program, &mesh, &plan("none"), &options, &str::to_string) {
            Err(tpc_compiler::error::Error::Option(error)) => error,
            _ => panic!("{count} micro-batches of 4 rows"),
        }
    };
    assert_eq!(error(5), OptionError::MicroBatches { batch: 4, micro_batches: 5 });
    assert_eq!(error(0), OptionError::MicroBatches { batch: 4, micro_batches: 0 });
    assert_eq!(error(5).to_string(), "a batch of 4 cannot be cut into 5 micro-batches: use 1 to 4");
}

// ---------------------------------------------------------------------------------------------------------------------
// Freezing

fn frozen(patterns: &[&str]) -> StepOptions {
    StepOptions { freeze: patterns.iter().map(|p| p.to_string()).collect(), ..StepOptions::default() }
}

#[test]
fn frozen_parameters_stay_and_the_others_train_as_before() {
    let model = llama(2);
    let step = frozen(&["*", "!model.layers.*.self_attn.{q,v}_proj", "!lm_head.weight"]);
    let plain = first_step(compiled(&model, 4, ("none", ""), &StepOptions::default()), 128);
    let some = |name: &str| name.contains("q_proj") || name.contains("v_proj") || name.contains("lm_head");
    for place in PLACES {
        let program = compiled(&model, 4, place, &step);
        for (stages, whole) in [(&program.first, &plain), (&program.steady, &plain)] {
            let trained: BTreeSet<String> = stages
                .placed
                .outputs
                .iter()
                .filter_map(|o| match &o.kind {
                    OutputKind::Gradient(name) => Some(name.to_string()),
                    _ => None,
                })
                .collect();
            let expected: BTreeSet<String> = whole.gradients.keys().filter(|n| some(n)).cloned().collect();
            assert_eq!(trained, expected);
            let states = stages.placed.inputs().filter(|(_, id)| id.kind() == InputKind::State);
            let states: Vec<String> = states.map(|(_, id)| id.to_string()).collect();
            assert!(!states.is_empty());
            assert!(states.iter().all(|name| some(name)), "states of frozen parameters are gone");
        }
        let found = first_step(program, 128);
        for (name, before) in &plain.before {
            match some(name) {
                true => {
                    let off = found.after[name].iter().zip(&plain.after[name]).map(|(a, b)| (a - b).abs());
                    // Adam's first step has the size of the learning rate, whatever the gradient.
                    assert!(off.fold(0.0, f64::max) <= 2e-4, "{place:?}: {name}");
                    assert_ne!(found.after[name], *before);
                }
                false => assert_eq!(found.after[name], *before, "{place:?}: {name}"),
            }
        }
    }
}

#[test]
fn freezing_removes_work_and_the_frozen_are_not_in_the_norm() {
    let model = llama(2);
    let whole = compiled(&model, 4, ("none", ""), &StepOptions::default());
    let step = StepOptions { clip_norm: Some(1e9), ..frozen(&["model"]) };
    let head = compiled(&model, 4, ("none", ""), &step);
    let backward = |p: &TrainingProgram| {
        let products =
            |n: &tpc_ir::Node| matches!(n.op, tpc_ir::Op::Einsum { .. }) && n.origin.phase == Phase::Backward;
        p.steady.placed.nodes().filter(|&n| products(p.steady.placed.node(n))).count()
    };
    assert_eq!(backward(&head), 1, "only the head's own gradient is left of {}", backward(&whole));
    let found = first_step(head, 128);
    assert_eq!(found.gradients.keys().collect::<Vec<_>>(), ["lm_head.weight"]);
    let norm = global_norm(&found.gradients);
    assert!((found.norm - norm).abs() <= 1e-5 * norm);
}

#[test]
fn a_pattern_that_freezes_nothing_names_the_nearest() {
    let refused = |patterns: &[&str]| {
        let capture =
            tpc_compiler::pretrained::capture_step(&gpt2(), tokens(4), &tpc_tests::training::adamw()).unwrap();
        let options = CompileOptions { step: frozen(patterns), ..CompileOptions::for_cpu() };
        let names = tpc_compiler::pretrained::names(&gpt2());
        let rename = |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
        let mesh = tpc_tests::training::mesh("");
        match tpc_compiler::program::compile_training(capture, &mesh, &plan("none"), &options, &rename) {
            Err(tpc_compiler::error::Error::Option(error)) => error,
            _ => panic!("{patterns:?}"),
        }
    };
    match refused(&["transformer.h.0.attn.c_atn"]) {
        OptionError::NoParameter { pattern, nearest } => {
            assert_eq!(pattern, "transformer.h.0.attn.c_atn");
            assert_eq!(nearest[0], "transformer.h.0.attn.c_attn");
        }
        other => panic!("{other}"),
    }
    assert_eq!(refused(&["*"]), OptionError::AllFrozen);
}

// ---------------------------------------------------------------------------------------------------------------------
// Precision

fn bf16(reduce: Reduction) -> StepOptions {
    StepOptions { precision: Some(Precision { reduce, ..Precision::default() }), ..StepOptions::default() }
}

#[test]
fn bf16_trains_like_f32_under_every_plan() {
    for model in [llama(2), gpt2(), bert()] {
        let expected = trained(&model, 4, ("none", ""), &StepOptions::default());
        for place in PLACES {
            for reduce in [Reduction::Compute, Reduction::F32] {
                let found = trained(&model, 4, place, &bf16(reduce));
                for (f, e) in found.losses.iter().zip(&expected.losses) {
                    assert!((f - e).abs() <= 2e-2 * e, "{place:?}: {:?} for {:?}", found.losses, expected.losses);
                }
                assert_ne!(found.losses, expected.losses, "bf16 shows");
            }
        }
    }
}

#[test]
fn bf16_halves_what_is_sent() {
    let model = llama(2);
    let sizes = |step: &StepOptions, place, phase| {
        let program = compiled(&model, 4, place, step);
        all_reduces(&program.steady.ranks[0], Some(phase)).into_iter().filter(|b| *b >= 4096).collect::<Vec<_>>()
    };
    for phase in [Phase::Forward, Phase::Backward] {
        let f32 = sizes(&StepOptions::default(), ("tp", "tp=2"), phase);
        let short = sizes(&bf16(Reduction::Compute), ("tp", "tp=2"), phase);
        assert!(!f32.is_empty());
        assert_eq!(short, f32.iter().map(|b| b / 2).collect::<Vec<_>>(), "{phase:?}");
    }
    let master = compiled(&model, 4, ("tp", "tp=2"), &bf16(Reduction::Compute));
    for (node, name) in master.steady.placed.inputs() {
        let dtype = master.steady.placed.node(node).types[0].dtype;
        assert_ne!(dtype, tpc_ir::DType::BF16, "{name}");
    }
}

#[test]
fn all_options_together() {
    let model = llama(2);
    let exact = StepOptions { clip_norm: Some(0.5), ..frozen(&["model.embed_tokens"]) };
    let expected = trained(&model, 8, ("none", ""), &exact);
    for place in PLACES {
        let parts = StepOptions { micro_batches: 2, ..exact.clone() };
        let wrong = differences(&trained(&model, 8, place, &parts), &expected);
        assert!(wrong.is_empty(), "{place:?}\n{}", wrong.join("\n"));
        let found = trained(&model, 8, place, &StepOptions { precision: Some(Precision::default()), ..parts });
        for (f, e) in found.losses.iter().zip(&expected.losses) {
            assert!((f - e).abs() <= 2e-2 * e, "{place:?}: {:?} for {:?}", found.losses, expected.losses);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// A model that needs the whole batch

/// A model that centers its features over the batch, drops some, and reads one row from all others.
#[derive(Module, Debug)]
struct Batchwise {
    up: Linear,
    drop: Dropout,
    down: Linear,
}

impl Batchwise {
    fn loss(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
        let h = self.up.forward(x);
        let h = h.clone() - h.mean_dim(0);
        let h = self.drop.forward(activation::tanh(h));
        let first = h.clone().slice([0..1, 0..16]);
        ((self.down.forward(h) - y) * first.sum().reshape([1, 1])).square().mean()
    }
}

/// Statistics over the batch, rows of it, and random numbers equal those of the whole batch.
#[test]
fn what_crosses_the_batch_is_exact() {
    let losses = |batch: usize, count: usize, (name, on): (&str, &str)| {
        let build = |d: &Device| Batchwise {
            up: LinearConfig::new(8, 16).init(d),
            drop: DropoutConfig::new(0.5).init(),
            down: LinearConfig::new(16, 4).init(d),
        };
        let data =
            (named("x", Spec::<2>::new([batch, 8], DType::F32)), named("y", Spec::<2>::new([batch, 4], DType::F32)));
        let loss = |m: &Batchwise, (x, y): (Tensor<2>, Tensor<2>)| m.loss(x, y);
        let capture =
            capture_training_shapes(build, &tpc_tests::training::adamw(), data, &Default::default(), loss).unwrap();
        let options = CompileOptions { gradients: true, step: micro(count), ..CompileOptions::for_cpu() };
        let mesh = tpc_tests::training::mesh(on);
        let program =
            tpc_compiler::program::compile_training(capture, &mesh, &plan(name), &options, &str::to_string).unwrap();
        let mut draw = tpc_tests::training::uniform("data");
        let (x, y): (Vec<f64>, Vec<f64>) =
            ((0..batch * 8).map(|_| draw() - 0.5).collect(), (0..batch * 4).map(|_| draw()).collect());
        run(program, &RATES, |session| {
            feed(session, 2);
            session.write_f64("x", &x).unwrap();
            session.write_f64("y", &y).unwrap();
        })
    };
    for batch in [8, 6] {
        let expected = losses(batch, 1, ("none", ""));
        for count in [2, 4] {
            for place in [("none", ""), ("ddp", "dp=2")] {
                let wrong = differences(&losses(batch, count, place), &expected);
                assert!(wrong.is_empty(), "{count} of {batch} {place:?}\n{}", wrong.join("\n"));
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The command

#[test]
fn the_command_takes_every_option() {
    let dir = format!("{}/data/hf/llama-tiny", env!("CARGO_MANIFEST_DIR"));
    let inputs = format!("{dir}/inputs.safetensors");
    let metrics = std::env::temp_dir().join(format!("tpc-options-{}.jsonl", std::process::id()));
    let path = metrics.display().to_string();
    let train = ["train", &dir, "--inputs", &inputs, "--steps", "2", "--metrics", &path];
    let norms = |more: &[&str]| -> Vec<(f64, Option<f64>)> {
        let (code, _, err) = tpc(&[&train, more].concat());
        // Two micro-batches of one row each, for two ranks.
        let idle = "note: 1 of 2 ranks along dp=2 have no rows: each micro-batch has only 1\n";
        let idle = if more.contains(&"--micro-batches") { idle } else { "" };
        let kept =
            "note: the trained model will be lost: --save DIR keeps the model, --checkpoint DIR also its state\n";
        assert_eq!((code, err), (0, format!("{kept}{idle}")));
        let lines = std::fs::read_to_string(&metrics).unwrap();
        let rows = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        rows.map(|row| (row["loss"].as_f64().unwrap(), row["grad_norm"].as_f64())).collect()
    };
    let plain = norms(&[]);
    assert!(plain.iter().all(|(_, norm)| norm.is_none()));
    let clipped = norms(&["--clip-norm", "0.5", "--micro-batches", "2", "--plan", "ddp", "--mesh", "dp=2"]);
    assert!((clipped[0].0 - plain[0].0).abs() <= 1e-5 * plain[0].0);
    assert!(clipped.iter().all(|(_, norm)| norm.is_some_and(|n| n > 0.5)), "{clipped:?}");
    let frozen = norms(&["--clip-norm", "0.5", "--freeze", "*", "--freeze", "!lm_head.weight"]);
    assert!(frozen[0].1 < clipped[0].1, "{frozen:?} {clipped:?}");
    let short = norms(&["--precision", "bf16"]);
    assert!((short[1].0 - plain[1].0).abs() <= 2e-2 * plain[1].0 && short != plain);
    std::fs::remove_file(&metrics).unwrap();

    let dump = ["dump-ir", &dir, "--batch", "4", "--seq", "8", "--stage", "logical"];
    let (code, out, _) = tpc(&[&dump[..], &["--train", "--micro-batches", "2", "--precision", "bf16"]].concat());
    assert!(code == 0 && out.contains("; forward micro 1 in ") && out.contains("bf16["), "{out}");
    let (code, _, err) = tpc(&[&dump[..], &["--clip-norm", "1"]].concat());
    assert_eq!(code, 1);
    assert!(err.contains("need a training step"), "{err}");
    let (code, _, err) = tpc(&[&train[..], &["--freeze", "model.layer.0"]].concat());
    assert_eq!(code, 1);
    assert!(err.contains("model.layers.0"), "{err}");
    let (code, _, err) = tpc(&[&train[..], &["--clip-norm", "0"]].concat());
    assert_eq!(code, 1);
    assert!(err.contains("finite number above 0"), "{err}");
}
