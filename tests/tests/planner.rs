//! Placements that the planner chooses: what they gain over those that follow from a plan, how far from the best they can
//! be, the limit on memory, plans that the planner completes, and that all of them compute what the model computes.

use serde_json::json;
use std::collections::HashMap;
use std::fmt::Write as _;
use tpc_compiler::budget::BudgetError;
use tpc_compiler::error::Error;
use tpc_compiler::import::import;
use tpc_compiler::models::{ModelConfig, presets};
use tpc_compiler::plans::complete;
use tpc_compiler::pretrained::{TokenBatch, capture_step, names};
use tpc_compiler::program::{CompileOptions, Placed, compile_graph, place};
use tpc_ir::program::RankProgram;
use tpc_ir::{Graph, Op, OutputKind, text};
use tpc_passes::egraph::SearchOptions;
use tpc_passes::lower::{LowerOptions, lower_rank, schedule};
use tpc_passes::planner::{PlacementSource, PlannerReport};
use tpc_passes::simulate::simulate;
use tpc_passes::styles::{ColwiseParallel, Plan, parallelize_module, placements_json};
use tpc_passes::targets::{Link, Target};
use tpc_tests::captured::rename;
use tpc_tests::command::tpc;
use tpc_tests::golden::{MODELS, step};
use tpc_tests::training::{adamw, config, mesh, plan};
use tpc_tests::{executed_programs, golden, inputs, reference, wrong};

/// The training step of a model, for which plans are searched.
struct Step(Graph);

impl Step {
    fn new(config: &ModelConfig, tokens: TokenBatch) -> Self {
        let names = names(config);
        let mut step = capture_step(config, tokens, &adamw()).unwrap().steady;
        rename(&mut step, &|p| names.get(p).cloned().unwrap_or_else(|| p.to_string()));
        let mut captured = import(&step).unwrap().graph;
        captured.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
        Step(captured)
    }

    fn preset(name: &str) -> Self {
        Step::new(&presets::named(name).unwrap(), TokenBatch::new(8, 256))
    }

    /// Layers of the 70B shape of Llama 2 and 3.
    fn wide(layers: usize, tokens: TokenBatch) -> Self {
        let llama = json!({
            "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
            "num_key_value_heads": 8, "num_hidden_layers": layers, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 500000.0,
        });
        Step::new(&config(llama), tokens)
    }

    fn place(&self, plan: &Plan, on: &str, target: &Target, search: SearchOptions) -> Result<Placed, Error> {
        self.limited(plan, on, target, search, None)
    }

    /// A program that takes at most so many bytes.
    fn limited(
        &self,
        plan: &Plan,
        on: &str,
        target: &Target,
        search: SearchOptions,
        memory: Option<usize>,
    ) -> Result<Placed, Error> {
        let (logical, annotations) = parallelize_module(&self.0, &mesh(on), plan.clone(), None).unwrap();
        let options = CompileOptions { search, lower: lower(memory), ..CompileOptions::new(target.clone()) };
        place(&logical, &annotations, &options)
    }

    fn given(&self, plan: &Plan, on: &str, target: &Target) -> Placed {
        self.place(plan, on, target, SearchOptions::default()).unwrap()
    }

    fn planned(&self, plan: &Plan, on: &str, target: &Target) -> (Placed, PlannerReport) {
        let placed = self.place(plan, on, target, planned()).unwrap();
        let report = placed.report.planner.clone().unwrap();
        assert!(placed.report.after <= placed.report.before, "{report:?}");
        (placed, report)
    }

    /// A plan that the planner completes.
    fn complete(&self, plan: &Plan, on: &str, target: &Target, memory: Option<usize>) -> Plan {
        let options = CompileOptions { search: planned(), lower: lower(memory), ..CompileOptions::new(target.clone()) };
        complete(&self.0, &mesh(on), plan, &options).unwrap()
    }
}

fn planned() -> SearchOptions {
    SearchOptions { placements: PlacementSource::Planned, ..SearchOptions::default() }
}

fn lower(memory: Option<usize>) -> LowerOptions {
    LowerOptions { memory, ..LowerOptions::default() }
}

fn first_rank(placed: &Placed, target: &Target, memory: Option<usize>) -> RankProgram {
    let schedule = schedule(&placed.placed, target, &lower(memory));
    lower_rank(&placed.placed, &schedule, 0).unwrap()
}

/// Bytes that the first rank needs.
fn size(placed: &Placed, target: &Target, memory: Option<usize>) -> usize {
    first_rank(placed, target, memory).arena_bytes
}

/// Seconds that the first rank takes for a step, as the simulation predicts.
fn time(placed: &Placed, target: &Target) -> f64 {
    simulate(&first_rank(placed, target, None), target).seconds
}

/// The plan `tp` says that the residual stream is replicated. The planner cuts it wherever that pays: its program never
/// costs more than that of `tp-sp`, which cuts it by hand.
#[test]
fn sequence_parallelism_is_found_from_tp() {
    let mut table = String::new();
    let cases = [
        ("llama", Step::preset("llama"), 2),
        ("gpt", Step::preset("gpt"), 2),
        ("70B, 2 layers, 8 × 8192", Step::wide(2, TokenBatch::new(8, 8192)), 8),
        ("70B, 2 layers, 1 × 512", Step::wide(2, TokenBatch::new(1, 512)), 8),
    ];
    for (name, step, ranks) in &cases {
        for target in [Target::cpu(), Target::h100_node()] {
            let on = format!("tp={ranks}");
            let seconds = ["tp", "tp-sp"].map(|name| time(&step.given(&plan(name), &on, target), target));
            let (placed, report) = step.planned(&plan("tp"), &on, target);
            let found = time(&placed, target);
            assert!(found <= seconds[1], "{name} on {}: {found} instead of {}", target.name, seconds[1]);
            let gap = report.gap().unwrap();
            assert!(gap <= 1e-3, "{name} on {}: a gap of {gap}", target.name);
            // Norms are computed on a part of the tokens.
            let norms = placed.placed.nodes().filter(|&n| {
                let n = placed.placed.node(n);
                n.origin.module.to_string().ends_with("norm") && matches!(n.op, Op::Map { .. })
            });
            let is_cut = |n| placed.placed.node(n).types[0].sharding.dims.iter().take(2).any(|axes| !axes.is_empty());
            let cut = norms.filter(|&n| is_cut(n)).count();
            writeln!(
                table,
                "{name} on {}: tp {:.6} s, tp-sp {:.6} s, planned {found:.6} s; {cut} operations of norms on a part",
                target.name, seconds[0], seconds[1]
            )
            .unwrap();
        }
    }
    insta::assert_snapshot!("from_tp", table);
}

/// With only one kind of layer styled, the placements that follow from the plan cost half as much again as the best.
#[test]
fn partial_plans_are_completed() {
    let llama = Step::preset("llama");
    for (what, gain) in [("layers.*.feed_forward.w1", 0.3), ("output", 0.4)] {
        let partial = Plan::new().with(what, ColwiseParallel::default());
        let given = time(&llama.given(&partial, "tp=2", Target::cpu()), Target::cpu());
        let (placed, report) = llama.planned(&partial, "tp=2", Target::cpu());
        let found = time(&placed, Target::cpu());
        assert!(found <= given * (1.0 - gain), "{what}: {found} instead of {given}");
        assert!(report.gap().unwrap() <= 0.01, "{what}: {report:?}");
    }
}

/// Every built-in plan of one and two axes: what the planner gains, and the gap that is left.
#[test]
fn every_plan_has_a_small_gap() {
    let mut table = String::new();
    let llama = Step::preset("llama");
    for (name, on) in [
        ("tp", "tp=4"),
        ("tp-sp", "tp=4"),
        ("ddp", "dp=4"),
        ("fsdp", "dp=4"),
        ("zero1", "dp=4"),
        ("hsdp", "rep=2,dp=2"),
        ("tp-ddp", "dp=2,tp=2"),
        ("tp-fsdp", "dp=2,tp=2"),
        ("tp-sp-fsdp", "dp=2,tp=2"),
    ] {
        let given = time(&llama.given(&plan(name), on, Target::cpu()), Target::cpu());
        let (placed, report) = llama.planned(&plan(name), on, Target::cpu());
        let (found, gap) = (time(&placed, Target::cpu()), report.gap().unwrap());
        assert!(gap <= 0.01, "{name}: a gap of {gap}");
        // The program that follows from the plan is a candidate, once its layers are placed alike.
        assert!(found <= given * 1.001, "{name}: {found} instead of {given}");
        writeln!(table, "{name} on {on}: {given:.6} s, planned {found:.6} s").unwrap();
    }
    insta::assert_snapshot!("plans", table);
}

/// A limit on the memory of a rank is met exactly, and what is impossible says by how much.
#[test]
fn memory_is_a_limit() {
    let step = Step::wide(2, TokenBatch::new(8, 8192));
    let target = Target::h100_node();
    let (tp, on) = (plan("tp"), "tp=8");
    let (free, _) = step.planned(&tp, on, target);
    let most = size(&free, target, None);
    let limit = most * 95 / 100;
    let limited = step.limited(&tp, on, target, planned(), Some(limit)).unwrap();
    let bytes = size(&limited, target, Some(limit));
    assert!(bytes <= limit, "{bytes} bytes where {limit} are allowed");
    assert!(time(&limited, target) >= time(&free, target) * (1.0 - 1e-3), "less memory takes no less time");
    let Err(Error::Budget(error)) = step.limited(&tp, on, target, planned(), Some(1 << 30)).map(|_| ()) else {
        panic!("a gibibyte does not hold the parameters")
    };
    assert_eq!(error.limit, 1 << 30);
    // Parameters, state and data are in memory in any case.
    let buffers = first_rank(&free, target, None).buffers;
    let kept: usize = buffers.iter().filter(|buffer| buffer.persistent).map(|buffer| buffer.bytes).sum();
    assert!(error.least <= limit && error.least > kept, "{error}");
    let exactly = step.limited(&tp, on, target, planned(), Some(error.least)).unwrap();
    assert_eq!(size(&exactly, target, Some(error.least)), error.least);
    let shown = BudgetError { limit: 1 << 30, least: 1 << 35 }.to_string();
    insta::assert_snapshot!("impossible", shown);
}

/// Planned programs of every model under several plans give the unsharded results on ranks, and an expensive memory does
/// not change them.
#[test]
fn planned_programs_equal_the_unsharded_ones() {
    let targets = [Target::cpu(), Target::h100_node()];
    let mut different = 0;
    for model in MODELS {
        let meshes = [("tp", "tp=2"), ("tp", "tp=3"), ("fsdp", "dp=2"), ("tp-sp", "tp=4"), ("tp-sp-fsdp", "dp=2,tp=2")];
        for (i, (name, on)) in meshes.into_iter().enumerate() {
            let mut options = CompileOptions::new(targets[i % 2].clone());
            let (given, _) = (model.compile)(name, on, &options);
            options.search = planned();
            let (stages, constants) = (model.compile)(name, on, &options);
            different += usize::from(text::print(&given.placed) != text::print(&stages.placed));
            let feed = inputs(&stages.captured, 8, &constants);
            let run = executed_programs(&stages.placed, stages.ranks.into_vec(), &feed);
            let what = wrong(&stages.placed, &reference(&stages.captured, &feed), &run, 1e-4);
            assert_eq!(what, Vec::<String>::new(), "{} under {name} on {on}", model.name);
        }
    }
    assert!(different >= 20, "only {different} programs differ from those without the planner");
}

/// A limit that the fastest program exceeds: the smaller program computes the same.
#[test]
fn small_programs_equal_the_unsharded_ones() {
    let llama = golden::llama(3);
    let mut options = CompileOptions::for_cpu();
    options.search = planned();
    let bytes = |stages: &tpc_compiler::program::Stages| stages.ranks[0].arena_bytes;
    let (free, _) = step(&llama, "tp", "tp=2", &options);
    options.lower.memory = Some(bytes(&free) * 97 / 100);
    let (small, constants) = step(&llama, "tp", "tp=2", &options);
    assert!(bytes(&small) <= bytes(&free) * 97 / 100);
    let feed = inputs(&small.captured, 8, &constants);
    let run = executed_programs(&small.placed, small.ranks.into_vec(), &feed);
    assert_eq!(wrong(&small.placed, &reference(&small.captured, &feed), &run, 1e-4), Vec::<String>::new());
}

/// Without a plan, the planner finds one that a step of no built-in plan beats by more than a hundredth, and writes it down.
#[test]
fn plans_are_found() {
    let mut table = String::new();
    let cases = [
        (
            "llama",
            Step::preset("llama"),
            "x=2",
            vec![("tp", "tp=2"), ("tp-sp", "tp=2"), ("ddp", "dp=2"), ("fsdp", "dp=2")],
        ),
        ("gpt", Step::preset("gpt"), "x=2,y=2", vec![("tp-ddp", "dp=2,tp=2"), ("tp-sp-zero1", "dp=2,tp=2")]),
        (
            "70B, 2 layers, 8 × 8192",
            Step::wide(2, TokenBatch::new(8, 8192)),
            "x=8",
            vec![("tp", "tp=8"), ("tp-sp", "tp=8"), ("ddp", "dp=8"), ("fsdp", "dp=8")],
        ),
    ];
    for (name, step, on, plans) in &cases {
        for target in [Target::cpu(), Target::h100_node()] {
            let found = step.complete(&Plan::new(), on, target, None);
            let seconds = time(&step.planned(&found, on, target).0, target);
            for (of, mesh) in plans {
                let given = time(&step.given(&plan(of), mesh, target), target);
                assert!(seconds <= given * 1.01, "{name} on {}: {seconds} instead of {given} with {of}", target.name);
            }
            let written = placements_json(&found.storage);
            writeln!(table, "{name} on {on} of {}: {:.3} ms\n{written:#}", target.name, seconds * 1e3).unwrap();
            // What is written is read back.
            let read = Plan::from_json(&json!({ "placements": written }).to_string()).unwrap();
            assert_eq!(placements_json(&read.storage), written);
        }
    }
    insta::assert_snapshot!("found", table);
}

/// What a plan says is kept when the planner completes it, and a limit on memory shards more.
#[test]
fn what_a_plan_says_is_kept() {
    let step = Step::wide(2, TokenBatch::new(8, 8192));
    let target = Target::h100_node();
    let styled = Plan::new().with("model.layers.*.mlp.gate_proj", ColwiseParallel::default());
    let found = step.complete(&styled, "tp=8", target, None);
    assert_eq!(found.styles.len(), 1);
    let (placed, _) = step.planned(&found, "tp=8", target);
    let styled = placed
        .placed
        .inputs()
        .filter(|(_, id)| id.parameter().is_some_and(|path| path.to_string().ends_with("gate_proj.weight")));
    let dims: Vec<_> = styled.map(|(node, _)| placed.placed.node(node).types[0].sharding.dims.clone()).collect();
    assert!(dims.len() == 2 && dims.iter().all(|dims| dims[0].is_empty() && dims[1].len() == 1), "{dims:?}");
    let free = step.complete(&Plan::new(), "x=8", target, None);
    let most = size(&step.planned(&free, "x=8", target).0, target, None);
    let limit = most * 9 / 10;
    let small = step.complete(&Plan::new(), "x=8", target, Some(limit));
    let limited = step.limited(&small, "x=8", target, planned(), Some(limit)).unwrap();
    assert!(size(&limited, target, Some(limit)) <= limit);
}

/// Completed plans of every model give the unsharded results on ranks.
#[test]
fn completed_plans_equal_the_unsharded_programs() {
    let mut cut = 0;
    for model in MODELS {
        for (i, on) in ["x=2", "x=3", "x=2,y=2"].into_iter().enumerate() {
            // Models are so small that cutting them pays only where sending costs nothing.
            let mut target = [Target::cpu(), Target::h100_node()][i % 2].clone();
            target.links.default = Link { latency: 1e-12, bandwidth: 1e15 };
            target.links.node = None;
            let mut options = CompileOptions::new(target);
            let (whole, constants) = (model.compile)("none", on, &options);
            options.search = planned();
            let found = complete(&whole.captured, &mesh(on), &Plan::new(), &options).unwrap();
            cut += found.storage.len();
            let stages = compile_graph(whole.captured, &mesh(on), &found, &options).unwrap();
            let feed = inputs(&stages.captured, 8, &constants);
            let run = executed_programs(&stages.placed, stages.ranks.into_vec(), &feed);
            let what = wrong(&stages.placed, &reference(&stages.captured, &feed), &run, 1e-4);
            assert_eq!(what, Vec::<String>::new(), "{} on {on}", model.name);
        }
    }
    assert!(cut >= 20, "only {cut} inputs are cut");
}

/// The text of a program that the planner placed.
#[test]
fn golden_text() {
    let mut options = CompileOptions::for_cpu();
    options.search = planned();
    let (stages, _) = step(&golden::llama(1), "tp", "tp=2", &options);
    insta::assert_snapshot!("llama", text::print(&stages.placed));
}

/// What the command says of planned placements, and what it refuses.
#[test]
fn the_command_says_what_was_gained() {
    let run = |arguments: &str| tpc(&arguments.split(' ').collect::<Vec<_>>());
    let (code, out, err) = run("dump-ir --preset llama --train --plan tp --mesh tp=2 --placements planned --json");
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let planner = &json["search"]["planner"];
    assert_eq!(planner["taken"], true);
    assert!(
        planner["gap"].as_f64().unwrap() <= 1e-3 && planner["seconds"].as_f64() < planner["seconds_before"].as_f64()
    );
    assert_eq!(planner["steps"][0]["axes"], json!(["tp"]));
    let mut said = HashMap::new();
    for arguments in [
        "dump-ir --preset mlp --plan tp --mesh tp=2 --memory-limit 1GB",
        "dump-ir --preset llama --train --plan tp --mesh tp=2 --placements planned --memory-limit 1MB",
        "dump-ir --preset llama --plan tp --placements planned",
    ] {
        let (code, _, err) = run(arguments);
        said.insert(arguments, format!("{code}: {err}"));
    }
    let mut lines: Vec<String> = said.into_iter().map(|(arguments, said)| format!("{arguments}\n  {said}")).collect();
    lines.sort();
    insta::assert_snapshot!("said", format!("{}\n{}", err, lines.join("")));
}
