//! A model of which few layers are compiled is compiled as if it had been compiled as a whole, from the captured program to
//! what the plan demands, for every family.

use burn::module::Module as BurnModule;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{DType, Device};
use serde_json::json;
use std::collections::BTreeSet;
use tpc_compiler::capture::{Captured, Spec, capture_inference_shapes, named};
use tpc_compiler::import::{Signature, import, import_with};
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::{TokenBatch, capture_forward, capture_step, names};
use tpc_compiler::program::{CompileOptions, Stages, compile_graph};
use tpc_compiler::short::{ShortPlan, of_family};
use tpc_ir::{Graph, fold, text};
use tpc_passes::check::obligations::{Obligation, Obligations, Subject};
use tpc_passes::egraph::SearchOptions;
use tpc_passes::options::{Precision, StepOptions};
use tpc_passes::short_model::ShortModel;
use tpc_passes::shorten::KEPT;
use tpc_passes::styles::style::{Module, Placements};
use tpc_passes::styles::{ColwiseParallel, Direction, ParallelStyle, Plan, RowwiseParallel, StyleError};
use tpc_tests::captured::rename;
use tpc_tests::training::{adamw, bert, config, gpt2, llama, mesh, plan};

/// Enough layers that some have numbers of two digits.
const DEEP: usize = 12;

fn interleaved(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama-interleaved", "dim": 8, "n_layers": layers, "n_heads": 4, "n_kv_heads": 2, "ffn": 12,
        "vocab": 10, "seq": 16, "eps": 1e-6, "theta": 10000.0,
    }))
}

/// The captured programs of a model: the steady and the first step, and the forward pass.
fn programs(config: &ModelConfig) -> [Graph; 3] {
    let tokens = TokenBatch::new(6, 4);
    let names = names(config);
    let renamed = |mut captured: Captured| {
        rename(&mut captured, &|path| names.get(path).cloned().unwrap_or_else(|| path.to_string()));
        captured
    };
    let step = capture_step(config, tokens, &adamw()).unwrap();
    let step = [renamed(step.steady), renamed(step.first)];
    let signature = Signature::of(&step).unwrap();
    let [steady, first] = step.map(|captured| import_with(&captured, &signature).unwrap().graph);
    [steady, first, import(&renamed(capture_forward(config, tokens, false).unwrap())).unwrap().graph]
}

/// What a program is obliged to, with values by the numbers of their lines.
fn obligations(of: &Obligations, placed: &Graph) -> BTreeSet<String> {
    let lines = text::number(placed);
    let shown = |Obligation { subject, at, why }: &Obligation| match subject {
        Subject::Value(value) => format!("%{}.{} {at:?} {why}", lines[&value.node], value.result),
        other => format!("{other:?} {at:?} {why}"),
    };
    of.list.iter().map(shown).collect()
}

/// A text without the numbers of the rules to which operations are due. Where two rules lead to the same operation, one of
/// them is named, which may be another one in a program with more layers.
fn uncredited(text: &str) -> String {
    let mut parts = text.split("rule ");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |text, part| text + "rule " + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Compiles a program with few layers and as a whole, and compares all stages.
fn same(name: &str, captured: &Graph, plan: &Plan, on: &str, step: &StepOptions) {
    let compiled = |blocks: bool| -> Stages {
        let search = SearchOptions { blocks, ..SearchOptions::default() };
        let options = CompileOptions { search, step: step.clone(), ..CompileOptions::for_cpu() };
        compile_graph(captured.clone(), &mesh(on), plan, &options).unwrap_or_else(|e| panic!("{name}: {e}"))
    };
    let (short, whole) = (compiled(true), compiled(false));
    for (stage, a, b) in [
        ("captured", &short.captured, &whole.captured),
        ("logical", &short.logical, &whole.logical),
        ("propagated", &short.propagated, &whole.propagated),
        ("placed", &short.placed, &whole.placed),
    ] {
        let (a, b) = (uncredited(&text::print(a)), uncredited(&text::print(b)));
        let differ = a.lines().zip(b.lines()).find(|(a, b)| a != b);
        assert!(a == b, "{name}, {stage}:\n{differ:#?}");
    }
    let [a, b] = [&short, &whole].map(|stages| stages.annotations.by_line(&stages.logical));
    assert!(a == b, "{name}: annotations");
    let [a, b] = [&short, &whole].map(|stages| obligations(&stages.obligations, &stages.placed));
    let differ: Vec<&String> = a.symmetric_difference(&b).collect();
    assert!(differ.is_empty(), "{name}: {differ:#?}");
    assert_eq!(short.obligations.given_up, whole.obligations.given_up, "{name}");
    short.obligations.check(&short.placed).unwrap();
    for (a, b) in short.ranks.iter().zip(whole.ranks.iter()) {
        assert_eq!(uncredited(&a.to_text()), uncredited(&b.to_text()), "{name}");
    }

    let model = ShortModel::captured(captured).unwrap_or_else(|| panic!("{name}: not short"));
    let options = CompileOptions { step: step.clone(), ..CompileOptions::for_cpu() };
    let placed = ShortPlan::of(&model, &mesh(on), plan, &options).unwrap_or_else(|| panic!("{name}: not placed short"));
    // The terms of the norm of all gradients are in one line, which is longer in a deeper model, and layers whose operations
    // are due to different rules are blocks of their own.
    match placed.to_text() {
        Some(text) => assert_eq!(text, fold::print(&short.placed), "{name}"),
        None => assert!(*step != StepOptions::default() || on == "tp=4", "{name}"),
    }
    let (graph, demands) = placed.placed().unwrap();
    assert_eq!(text::print(&graph), text::print(&short.placed), "{name}");
    assert_eq!(obligations(&demands, &graph), a, "{name}");
}

/// Plans without and with styles, data axes, stored parameters, and an axis that is split for the heads.
const PLANS: [(&str, &str); 6] =
    [("tp-sp-fsdp", "dp=2,tp=2"), ("tp-sp", "tp=2"), ("tp", "tp=2"), ("none", ""), ("fsdp", "dp=2"), ("tp-sp", "tp=4")];

fn deep(name: &str, config: impl Fn(usize) -> ModelConfig, plans: &[(&str, &str)]) {
    let whole = StepOptions::default();
    for (program, captured) in ["steady", "first", "forward"].into_iter().zip(programs(&config(DEEP))) {
        // The first step differs from the steady one in its states only.
        let plans = if program == "first" { &plans[..1] } else { plans };
        for (styles, on) in plans {
            same(&format!("{name} {program} {styles} on {on}"), &captured, &plan(styles), on, &whole);
        }
    }
}

#[test]
fn llama_with_few_layers_stands_for_a_deep_one() {
    deep("llama", llama, &PLANS);
}

#[test]
fn gpt2_with_few_layers_stands_for_a_deep_one() {
    deep("gpt2", gpt2, &PLANS[..2]);
}

#[test]
fn bert_with_few_layers_stands_for_a_deep_one() {
    deep("bert", bert, &PLANS[..2]);
}

#[test]
fn interleaved_llama_with_few_layers_stands_for_a_deep_one() {
    deep("interleaved", interleaved, &PLANS[..2]);
}

#[test]
fn options_of_a_step_are_those_of_the_deep_model() {
    let [captured, ..] = programs(&llama(DEEP));
    let options = |change: &dyn Fn(&mut StepOptions)| {
        let mut step = StepOptions::default();
        change(&mut step);
        step
    };
    let frozen = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (name, step) in [
        ("clipped", options(&|step| step.clip_norm = Some(1.0))),
        ("micro-batches", options(&|step| step.micro_batches = 3)),
        ("frozen", options(&|step| step.freeze = frozen(&["*", "!*.*.*.self_attn"]))),
        ("rounded", options(&|step| step.precision = Some(Precision::default()))),
    ] {
        for (styles, on) in [("tp-sp", "tp=2"), ("tp-fsdp", "dp=2,tp=2")] {
            same(&format!("{name} {styles}"), &captured, &plan(styles), on, &step);
        }
        // One entry for each module, so that a reason names one tensor of a layer.
        same(&format!("{name} mlp"), &captured, &mlp("*"), "tp=2", &step);
    }
}

/// A family that is captured with few layers gives the program that the deep one is shortened to.
#[test]
fn a_family_is_captured_with_few_layers() {
    for (name, config) in [
        ("llama", &llama as &dyn Fn(usize) -> ModelConfig),
        ("gpt2", &gpt2),
        ("bert", &bert),
        ("interleaved", &interleaved),
    ] {
        let deep = config(DEEP);
        let few = deep.with_layers(KEPT).unwrap();
        assert_eq!(few.layers(), KEPT);
        for (long, short) in programs(&deep).into_iter().zip(programs(&few)) {
            let cut = ShortModel::captured(&long).unwrap();
            assert_eq!(text::print(&cut.graph), text::print(&short), "{name}");
            let family = of_family(&deep, short.clone()).unwrap();
            assert_eq!(family.paths(), cut.paths(), "{name}");
            assert_eq!(family.left_out(), DEEP - KEPT);
            let longest = family.lengthen(&family.graph, |long| long.graph).unwrap();
            assert_eq!(text::print(&longest), text::print(&long), "{name}");
            // The parameters of another model of the family have other shapes.
            assert!(of_family(&wider(&deep), short).is_none(), "{name}");
        }
        assert!(of_family(&few, programs(&few)[0].clone()).is_none(), "{name}: nothing is left out");
    }
}

/// A model of the same family and depth with other shapes.
fn wider(config: &ModelConfig) -> ModelConfig {
    let mut config = config.clone();
    match &mut config {
        ModelConfig::Decoder(c) => c.intermediate_size += 2,
        ModelConfig::Gpt2(c) => c.n_inner += 2,
        ModelConfig::Bert(c) => c.intermediate_size += 2,
        ModelConfig::Interleaved(c) => c.ffn += 2,
    }
    config
}

/// Layers that the configuration makes different are not left out.
#[test]
fn a_family_with_unlike_layers_is_captured_as_a_whole() {
    let windows = json!({
        "model_type": "gemma2", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 16, "vocab_size": 10, "head_dim": 2, "sliding_window": 2,
        "max_position_embeddings": 64, "query_pre_attn_scalar": 2,
    });
    let scaled = json!({
        "model_type": "gpt2", "vocab_size": 10, "n_positions": 16, "n_embd": 8, "n_layer": 12, "n_head": 2,
        "scale_attn_by_inverse_layer_idx": true,
    });
    let gemma2 = config(windows);
    assert!(gemma2.with_layers(KEPT).is_none() && config(scaled).with_layers(KEPT).is_none());
    // Two layers of a kind each are one occurrence, of which there are eight.
    for captured in programs(&gemma2) {
        let whole = StepOptions::default();
        same("gemma2", &captured, &plan("tp"), "tp=2", &whole);
    }
}

fn mlp(layers: &str) -> Plan {
    Plan::new()
        .with(format!("model.layers.{layers}.mlp.{{gate,up}}_proj"), ColwiseParallel::default())
        .with(format!("model.layers.{layers}.mlp.down_proj"), RowwiseParallel::default())
}

/// What tells layers apart is compiled as a whole, and the layers come out as the plan says.
#[test]
fn a_plan_that_tells_layers_apart_is_compiled_as_a_whole() {
    let [captured, ..] = programs(&llama(DEEP));
    let model = ShortModel::captured(&captured).unwrap();
    let is_short = |plan: &Plan, step: StepOptions| {
        let options = CompileOptions { step, ..CompileOptions::for_cpu() };
        ShortPlan::of(&model, &mesh("tp=2"), plan, &options).is_some()
    };
    let frozen = |pattern: &str| StepOptions { freeze: vec![pattern.into()], ..StepOptions::default() };
    for (layers, expected) in
        [("*", true), ("?*", true), ("4", false), ("[0-3]", false), ("?", false), ("{0,8}", false)]
    {
        assert_eq!(is_short(&mlp(layers), StepOptions::default()), expected, "{layers}");
        assert_eq!(is_short(&mlp("*"), frozen(&format!("model.layers.{layers}.self_attn"))), expected, "{layers}");
    }
    for (layers, own) in [("4", vec![4]), ("?", (0..10).collect()), ("1[01]", vec![10, 11])] {
        let options = CompileOptions::for_cpu();
        let stages = compile_graph(captured.clone(), &mesh("tp=2"), &mlp(layers), &options).unwrap();
        for layer in 0..DEEP {
            let name = format!("model.layers.{layer}.mlp.up_proj.weight");
            let (node, _) = stages.placed.inputs().find(|(_, id)| id.to_string() == name).unwrap();
            let is_sharded = !stages.placed.node(node).types[0].sharding.is_replicated();
            assert_eq!(is_sharded, own.contains(&layer), "{layers} {layer}");
        }
    }
}

/// A style of a user, which places odd layers only.
#[derive(Debug)]
struct Odd;

impl ParallelStyle for Odd {
    fn name(&self) -> &str {
        "Odd"
    }

    fn accepts(&self) -> &str {
        "a linear"
    }

    fn demand(&self, module: &Module<'_>, placements: &mut Placements) -> Result<(), StyleError> {
        if module.path().indices().all(|index| index % 2 == 0) {
            placements.leave();
        } else {
            module.parameters().for_each(|weight| placements.cut(module, weight, Direction::Columns));
        }
        Ok(())
    }
}

#[test]
fn a_style_of_a_user_sees_all_layers() {
    let [captured, ..] = programs(&llama(DEEP));
    let plan = Plan::new().with("model.layers.*.mlp.up_proj", Odd);
    let options = CompileOptions::for_cpu();
    let model = ShortModel::captured(&captured).unwrap();
    assert!(ShortPlan::of(&model, &mesh("tp=2"), &plan, &options).is_none());
    let stages = compile_graph(captured, &mesh("tp=2"), &plan, &options).unwrap();
    let sharded = stages
        .placed
        .inputs()
        .filter(|(node, id)| id.is_parameter() && !stages.placed.node(*node).types[0].sharding.is_replicated());
    assert_eq!(sharded.count(), DEEP / 2);
}

/// A model with two lists that take turns.
#[derive(BurnModule, Debug)]
struct TwoLists {
    downs: Vec<Linear>,
    ups: Vec<Linear>,
}

/// A pattern that tells the elements of the second list apart is noticed as well.
#[test]
fn all_lists_of_a_block_are_looked_at() {
    let build = |device: &Device| {
        let list = |[from, to]: [usize; 2]| (0..DEEP).map(|_| LinearConfig::new(from, to).init(device)).collect();
        TwoLists { downs: list([8, 6]), ups: list([6, 8]) }
    };
    let x = named("x", Spec::<2>::new([4, 8], DType::F32));
    let captured = capture_inference_shapes(build, x, |model: &TwoLists, x| {
        let layers = model.downs.iter().zip(&model.ups);
        named("y", layers.fold(x, |x, (down, up)| up.forward(relu(down.forward(x))).tanh()))
    });
    let captured = import(&captured.unwrap()).unwrap().graph;
    let two = |downs: &str, ups: &str| {
        Plan::new()
            .with(format!("downs.{downs}"), ColwiseParallel::default())
            .with(format!("ups.{ups}"), RowwiseParallel::default())
    };
    let model = ShortModel::captured(&captured).unwrap();
    for (downs, ups, expected) in [("*", "*", true), ("?", "*", false), ("*", "?", false), ("?", "?", false)] {
        let plan = two(downs, ups);
        let short = ShortPlan::of(&model, &mesh("tp=2"), &plan, &CompileOptions::for_cpu());
        assert_eq!(short.is_some(), expected, "{downs} {ups}");
        let stages = compile_graph(captured.clone(), &mesh("tp=2"), &plan, &CompileOptions::for_cpu()).unwrap();
        for (list, pattern) in [("downs", downs), ("ups", ups)] {
            let sharded = stages.placed.inputs().filter(|(node, id)| {
                let path = id.to_string();
                let is_sharded = !stages.placed.node(*node).types[0].sharding.is_replicated();
                path.starts_with(list) && path.ends_with("weight") && is_sharded
            });
            assert_eq!(sharded.count(), if pattern == "*" { DEEP } else { 10 }, "{list} {pattern}");
        }
    }
    same("two lists", &captured, &two("*", "*"), "tp=2", &StepOptions::default());
}
