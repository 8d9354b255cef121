//! Repetition: searching the block of a deep program once gives the same program as searching all of it, and the folded
//! text of a whole training step means that step.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, activation};
use serde_json::json;
use std::collections::HashMap;
use tpc_compiler::capture::{Spec, capture_training_shapes};
use tpc_compiler::import::import;
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::{TokenBatch, capture_forward, capture_step, names};
use tpc_compiler::program::{CompileOptions, place};
use tpc_ir::interpret::Tensor as Value;
use tpc_ir::{Graph, InputId, InputKind, OutputKind, fold, parse, text};
use tpc_passes::check::check;
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::{SearchOptions, SearchReport};
use tpc_passes::optimize::{optimize_short, optimize_whole};
use tpc_passes::planner::{Aim, PlacementSource, PlannerCause, PlannerReport, Weights, seconds};
use tpc_passes::propagate::propagate;
use tpc_passes::shorten::Shortened;
use tpc_passes::styles::parallelize_module;
use tpc_passes::styles::{PairwiseParallel, Plan};
use tpc_passes::targets::Target;
use tpc_tests::captured::{rename, tensor};
use tpc_tests::training::{adamw, bert, config, gpt2, llama, mesh, plan};
use tpc_tests::{difference, inputs, on_ranks, reference};

/// An unplaced program, and inputs for it.
struct Model {
    captured: Graph,
    feed: HashMap<InputId, Value>,
}

impl Model {
    fn of(captured: &tpc_compiler::capture::Captured) -> Self {
        let imported = import(captured).unwrap();
        let constants = imported.constants.iter();
        let constants: HashMap<InputId, Value> =
            constants.map(|(n, d)| (InputId::read(InputKind::Constant, n), tensor(d))).collect();
        let feed = inputs(&imported.graph, 7, &constants);
        // Compiled as by default: gradients are not outputs. (The gradient of a key bias is 0 in theory and consists of
        // rounding errors.)
        let mut graph = imported.graph;
        graph.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
        Model { captured: graph, feed }
    }

    fn language(config: &ModelConfig, train: bool) -> Self {
        let tokens = TokenBatch::new(2, 6);
        if !train {
            return Model::of(&capture_forward(config, tokens, false).unwrap());
        }
        let names = names(config);
        let mut step = capture_step(config, tokens, &adamw()).unwrap().steady;
        rename(&mut step, &|p| names.get(p).cloned().unwrap_or_else(|| p.to_string()));
        Model::of(&step)
    }

    /// The program optimized with blocks and as a whole.
    fn both(&self, plan: &Plan, on: &str) -> (Graph, [(Graph, SearchReport); 2]) {
        let (logical, annotations) = parallelize_module(&self.captured, &mesh(on), plan.clone(), None).unwrap();
        let both = [true, false].map(|blocks| {
            let search = SearchOptions { blocks, ..SearchOptions::default() };
            let placed =
                place(&logical, &annotations, &CompileOptions { search, ..CompileOptions::for_cpu() }).unwrap();
            (placed.placed, placed.report)
        });
        (logical, both)
    }

    /// Checks that both are the same program, line by line and reason by reason; the result is proven and executed.
    fn same(&self, name: &str, plan: &Plan, on: &str, blocks: &[(&str, usize)]) {
        let (logical, [(graph, once), (whole, all)]) = self.both(plan, on);
        let found: Vec<(&str, usize)> = once.blocks.iter().map(|(p, n)| (p.as_str(), *n)).collect();
        assert_eq!(found, blocks, "{name} under {on}: {once:?}");
        assert_eq!(collectives(&graph), collectives(&whole), "{name} on {on}");
        let paid = |r: &SearchReport| r.rules.iter().map(|(rule, work)| (*rule, work.paid)).collect::<Vec<_>>();
        assert_eq!(paid(&once), paid(&all), "{name} on {on}");
        for (a, b) in [(once.before, all.before), (once.after, all.after)] {
            assert!((a - b).abs() <= 1e-12 * b, "{name} on {on}: {a} and {b} s");
        }
        let (a, b) = (text::print(&graph), text::print(&whole));
        for (a, b) in a.lines().zip(b.lines()).filter(|(a, b)| a != b) {
            // If several readers want a slice, the reason of any of them may be kept, but not a reason of another
            // layer.
            let line = |l: &str| l.split(" ; ").next().unwrap().to_string();
            let words = |l: &str| l.split(|c: char| c.is_ascii_digit()).collect::<String>();
            assert!(
                line(a) == line(b) && a.contains("shard_slice") && words(a) != words(b),
                "{name} on {on}:\n{a}\n{b}"
            );
        }
        assert_eq!(a.lines().count(), b.lines().count(), "{name} on {on}");
        check(&graph).unwrap();
        denotes(&graph, &logical).unwrap();
        let expected = reference(&logical, &self.feed);
        assert!(difference(&expected, &on_ranks(&graph, &self.feed)) < 1e-9, "{name} on {on}");
        assert_eq!(parse::parse(&fold::print(&graph)).unwrap(), parse::parse(&a).unwrap(), "{name} on {on}");
    }
}

fn collectives(graph: &Graph) -> Vec<String> {
    let nodes = graph.nodes().filter(|&n| graph.node(n).op.is_collective());
    let line = |n| {
        let node = graph.node(n);
        format!(
            "{} {} {}",
            node.origin.phase.name(),
            text::operation(node, &graph.mesh),
            node.types[0].display(&graph.mesh)
        )
    };
    let mut lines: Vec<String> = nodes.map(line).collect();
    lines.sort();
    lines
}

const PLANS: [(&str, &str); 3] = [("tp", "tp=2"), ("tp-sp", "tp=2"), ("tp-ddp", "dp=2,tp=2")];

fn deep(name: &str, config: impl Fn(usize) -> ModelConfig, block: &str) {
    for train in [true, false] {
        let model = Model::language(&config(8), train);
        for (plan_name, on) in PLANS {
            model.same(&format!("{name} {plan_name} train={train}"), &plan(plan_name), on, &[(block, 8)]);
        }
    }
}

#[test]
fn llama_is_searched_once() {
    deep("llama", llama, "model.layers");
}

#[test]
fn gpt2_with_tied_weights_is_searched_once() {
    deep("gpt2", gpt2, "transformer.h");
}

#[test]
fn bert_is_searched_once() {
    deep("bert", bert, "bert.encoder.layer");
}

/// A short program stands for the whole one in everything that the planner counts, and what it finds is the same.
#[test]
fn deep_models_are_planned_once() {
    let weights = [Weights::TIME, Weights { byte: 1e-12, hidden: 0.3 }];
    let aims = weights.map(Aim::Apart).into_iter().chain([Aim::Together(Weights::TIME), Aim::AsGiven]);
    let aims: Vec<Aim> = aims.collect();
    let options = SearchOptions { placements: PlacementSource::Planned, ..SearchOptions::default() };
    let cpu = Target::cpu();
    for (name, config, block, (plan_name, on), target) in [
        ("llama", llama(9), "model.layers", ("tp-ddp", "dp=2,tp=2"), Target::h100_node()),
        ("gpt2", gpt2(9), "transformer.h", ("tp-sp", "tp=2"), cpu),
        ("bert", bert(9), "bert.encoder.layer", ("tp", "tp=2"), cpu),
    ] {
        let model = Model::language(&config, true);
        let (logical, annotations) = parallelize_module(&model.captured, &mesh(on), plan(plan_name), None).unwrap();
        let propagated = propagate(&logical, &annotations, target);
        let short = Shortened::of(&propagated).unwrap();
        assert_eq!(short.blocks(), [(block.to_string(), 9)]);
        for &aim in &aims {
            let (found, once) = optimize_short(&short, target, &options, aim).unwrap();
            let (whole, all) = optimize_whole(&propagated, target, &options, aim);
            let name = format!("{name} {plan_name} on {on}, {}, {aim:?}", target.name);
            let [once, all] = [once, all].map(|report| report.planner.unwrap());
            let counted = |report: &PlannerReport| {
                [Some(report.before), Some(report.after), Some(report.cost), report.bound].map(|x| x.unwrap_or(0.0))
            };
            for (a, b) in counted(&once).into_iter().zip(counted(&all)) {
                assert!((a - b).abs() <= 1e-3 * b, "{name}: {a} and {b}");
            }
            let long = short.lengthened(&found, &propagated).unwrap();
            check(&long).unwrap();
            denotes(&long, &logical).unwrap();
            assert_eq!(long.len(), whole.len(), "{name}");
            assert_eq!(collectives(&long), collectives(&whole), "{name}");
            let [a, b] = [&long, &whole].map(|graph| seconds(graph, target));
            assert!((a - b).abs() <= 1e-9 * b, "{name}: {a} and {b} s");
        }
    }
}

/// A target on which small models cost what models 128 times as wide cost on the nodes of H100s.
fn nodes_for_small_models() -> Target {
    let mut target = Target::h100_node().clone();
    let scale = 128.0;
    target.device.products.f32 /= scale;
    target.device.launch /= scale * scale;
    target.links.default.latency /= scale * scale;
    target.links.node.as_mut().unwrap().link.latency /= scale * scale;
    target
}

/// With few tokens, large weights and two axes, the rules leave each layer in another way. The planner then places the layers
/// alike, and the program costs less than one whose layers differ.
#[test]
fn layers_that_the_rules_place_differently_are_planned() {
    let wide = |layers| {
        config(json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 8,
            "num_key_value_heads": 8, "num_hidden_layers": layers, "vocab_size": 1002, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
        }))
    };
    let target = nodes_for_small_models();
    let on = mesh("dp=4,tp=4");
    let placed = |layers: usize, blocks: bool| {
        let step = capture_step(&wide(layers), TokenBatch::new(8, 2), &adamw()).unwrap().steady;
        let model = Model::of(&step);
        let (logical, annotations) = parallelize_module(&model.captured, &on, plan("2d"), None).unwrap();
        let search = SearchOptions { blocks, ..SearchOptions::default() };
        let options = CompileOptions { search, ..CompileOptions::new(target.clone()) };
        (model, place(&logical, &annotations, &options).unwrap())
    };
    let ((model, short), (_, long), (_, apart)) = (placed(9, true), placed(18, true), placed(9, false));
    for placed in [&short, &long] {
        let planner = placed.report.planner.as_ref().unwrap();
        assert!(planner.cause == PlannerCause::UnlikeLayers && planner.taken, "{planner:?}");
    }
    assert!(apart.report.planner.is_none());
    let lines = |graph: &Graph| fold::print(graph).lines().count();
    assert_eq!(lines(&short.placed), lines(&long.placed));
    assert!(lines(&short.placed) < lines(&apart.placed));
    let [planned, by_rules] = [&short.placed, &apart.placed].map(|graph| seconds(graph, &target));
    assert!(planned < by_rules, "{planned} and {by_rules} s");
    let expected = reference(&model.captured, &model.feed);
    let off = difference(&expected, &on_ranks(&short.placed, &model.feed));
    assert!(off < 1e-9, "off by {off:e}");
}

#[test]
fn few_layers_are_searched_as_they_are() {
    for layers in 1..=4 {
        Model::language(&llama(layers), true).same("llama", &plan("tp"), "tp=2", &[]);
    }
}

#[test]
fn layers_with_a_style_of_their_own_are_no_part_of_the_block() {
    let model = Model::language(&llama(10), true);
    let only = |pattern: &str| Plan::new().with(pattern, PairwiseParallel);
    model.same("the first", &only("model.layers.0.mlp"), "tp=2", &[("model.layers", 9)]);
    model.same("the last", &only("model.layers.9.mlp"), "tp=2", &[("model.layers", 9)]);
}

#[derive(Module, Debug)]
struct Wide {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Alternating {
    layers: Vec<Wide>,
    head: Linear,
}

#[test]
fn two_kinds_of_layers_that_take_turns_are_one_block_of_half_as_many() {
    let build = |layers: usize| {
        move |d: &Device| {
            let layer = |i: usize| {
                let h = if i.is_multiple_of(2) { 12 } else { 16 };
                let norm = LayerNormConfig::new(8).init(d);
                Wide { norm, up: LinearConfig::new(8, h).init(d), down: LinearConfig::new(h, 8).init(d) }
            };
            Alternating { layers: (0..layers).map(layer).collect(), head: LinearConfig::new(8, 4).init(d) }
        }
    };
    let loss = |m: &Alternating, (x, y): (Tensor<2>, Tensor<2>)| {
        let layer = |x: Tensor<2>, (i, l): (usize, &Wide)| {
            let h = l.up.forward(l.norm.forward(x.clone()));
            // Each kind has its own function and its own constant.
            let h = if i % 2 == 0 { activation::gelu(h) } else { activation::relu(h) * 0.5 };
            x + l.down.forward(h)
        };
        let x = m.layers.iter().enumerate().fold(x, layer);
        (m.head.forward(x) - y).powi_scalar(2).mean()
    };
    let spec = |d: usize| Spec::<2>::new([4, d], DType::F32);
    let step = |n| capture_training_shapes(build(n), &adamw(), (spec(8), spec(4)), &Default::default(), loss).unwrap();
    let plan = Plan::new().with("layers.*", PairwiseParallel);
    Model::of(&step(16).steady).same("alternating", &plan, "tp=2", &[("layers", 8)]);
    Model::of(&step(17).steady).same("alternating and one", &plan, "tp=2", &[("layers", 8)]);
}

#[derive(Module, Debug)]
struct Stacks {
    encoder: Vec<Wide>,
    decoder: Vec<Wide>,
    drop: Dropout,
}

impl Stacks {
    fn new(encoder: usize, decoder: usize, d: &Device) -> Self {
        let layer = |h: usize| {
            let norm = LayerNormConfig::new(8).init(d);
            Wide { norm, up: LinearConfig::new(8, h).init(d), down: LinearConfig::new(h, 8).init(d) }
        };
        let stack = |n: usize, h: usize| (0..n).map(|_| layer(h)).collect();
        Stacks { encoder: stack(encoder, 12), decoder: stack(decoder, 16), drop: DropoutConfig::new(0.25).init() }
    }

    fn layer(&self, l: &Wide, x: Tensor<2>) -> Tensor<2> {
        x.clone() + self.drop.forward(l.down.forward(activation::gelu(l.up.forward(l.norm.forward(x)))))
    }

    fn step(
        encoder: usize,
        decoder: usize,
        forward: impl Fn(&Stacks, Tensor<2>) -> Tensor<2>,
    ) -> tpc_compiler::capture::TrainingCapture {
        let spec = || Spec::<2>::new([4, 8], DType::F32);
        let loss = |m: &Stacks, (x, y): (Tensor<2>, Tensor<2>)| (forward(m, x) - y).powi_scalar(2).mean();
        let build = |d: &Device| Stacks::new(encoder, decoder, d);
        capture_training_shapes(build, &adamw(), (spec(), spec()), &Default::default(), loss).unwrap()
    }
}

/// Two blocks, each searched once, with random elements whose streams continue from layer to layer.
#[test]
fn two_stacks_with_dropout_are_two_blocks() {
    let step = Stacks::step(9, 12, |m, x| {
        let x = m.encoder.iter().fold(x, |x, l| m.layer(l, x));
        m.decoder.iter().fold(x, |x, l| m.layer(l, x))
    });
    let plan = Plan::new().with("encoder.*", PairwiseParallel).with("decoder.*", PairwiseParallel);
    let model = Model::of(&step.steady);
    assert!(text::print(&model.captured).contains("random bernoulli"));
    model.same("stacks", &plan, "tp=2", &[("encoder", 9), ("decoder", 12)]);
    model.same(
        "one plan",
        &Plan::new().with("decoder.*", PairwiseParallel),
        "tp=2",
        &[("encoder", 9), ("decoder", 12)],
    );
}

/// One operation reads every layer: fewer layers then do not determine the program, and all layers are searched.
#[test]
fn layers_that_are_all_read_at_once_are_searched_as_a_whole() {
    let step = Stacks::step(1, 9, |m, x| {
        let (mut x, mut all) = (x, Vec::new());
        for l in &m.decoder {
            x = m.layer(l, x);
            all.push(x.clone());
        }
        Tensor::cat(all, 0).reshape([9, 4, 8]).sum_dim(0).reshape([4, 8])
    });
    let plan = Plan::new().with("decoder.*", PairwiseParallel);
    Model::of(&step.steady).same("all read", &plan, "tp=2", &[]);
}
