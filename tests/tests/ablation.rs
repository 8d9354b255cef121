//! What every rule of the e-graph buys: training steps under every built-in plan, searched without the rule.
//!
//! The goldens have a line for each program, its number of collectives and the bytes that a rank sends, and under it a line
//! for each rule without which that is another number. Where only the predicted time differs, its change is shown. After an
//! intended change: `INSTA_UPDATE=always cargo test -p tpc-tests --test suite ablation::`, then read the difference.

use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use tpc_compiler::import::import;
use tpc_compiler::models::{ModelConfig, presets};
use tpc_compiler::pretrained::{TokenBatch, capture_step, names};
use tpc_ir::interpret::Tensor;
use tpc_ir::program::wire_bytes;
use tpc_ir::{Graph, InputId, InputKind, OutputKind};
use tpc_passes::check::check;
use tpc_passes::egraph::rules::RuleId;
use tpc_passes::egraph::{FloatingPoint, SearchOptions, SearchReport, improve};
use tpc_passes::propagate::propagate;
use tpc_passes::reshard::reshard_after_forward;
use tpc_passes::styles::plan::BUILT_IN;
use tpc_passes::styles::{DataMode, Plan, parallelize_module};
use tpc_passes::targets::Target;
use tpc_tests::captured::{rename, tensor};
use tpc_tests::training::{adamw, config, mesh, plan};
use tpc_tests::{difference, inputs, on_ranks, reference};

/// A training step, and the target that it is compiled for.
struct Step {
    name: &'static str,
    captured: Graph,
    constants: HashMap<InputId, Tensor>,
    target: &'static Target,
    /// Ranks along the axis `tp`.
    ranks: usize,
}

impl Step {
    fn new(name: &'static str, config: &ModelConfig, tokens: TokenBatch) -> Self {
        let names = names(config);
        let mut step = capture_step(config, tokens, &adamw()).unwrap().steady;
        rename(&mut step, &|p| names.get(p).cloned().unwrap_or_else(|| p.to_string()));
        let imported = import(&step).unwrap();
        let constant = |(name, data): (&String, &_)| (InputId::read(InputKind::Constant, name), tensor(data));
        let constants = imported.constants.iter().map(constant).collect();
        let mut captured = imported.graph;
        captured.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
        Step { name, captured, constants, target: Target::cpu(), ranks: 2 }
    }

    fn tiny(family: &'static str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/hf/{family}-tiny/config.json"));
        let json = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        Step::new(family, &config(json), TokenBatch::new(4, 6))
    }

    /// The step under a plan: unplaced, and before the search.
    fn propagated(&self, plan: &Plan) -> Propagated {
        let on = mesh(&axes(plan, self.ranks));
        let (logical, annotations) = parallelize_module(&self.captured, &on, plan.clone(), None).unwrap();
        let graph = propagate(&logical, &annotations, self.target);
        Propagated { logical, graph, gathered: annotations.gathered.into_keys().collect(), target: self.target }
    }
}

/// A program before the search.
struct Propagated {
    logical: Graph,
    graph: Graph,
    /// The parameters that a data mode gathers.
    gathered: HashSet<InputId>,
    target: &'static Target,
}

impl Propagated {
    fn placed(&self, options: &SearchOptions) -> (Graph, SearchReport) {
        let (optimized, report) = improve(&self.graph, self.target, options);
        (reshard_after_forward(&optimized, &self.gathered.iter().collect()), report)
    }
}

/// A mesh that a plan fits.
fn axes(plan: &Plan, ranks: usize) -> String {
    let data = match &plan.data {
        Some((DataMode::Hsdp { replicate_axis }, axis)) => vec![format!("{replicate_axis}=2"), format!("{axis}=2")],
        Some((_, axis)) => vec![format!("{axis}=2")],
        None => Vec::new(),
    };
    let model = plan.axis.iter().map(|axis| format!("{axis}={ranks}"));
    data.into_iter().chain(model).collect::<Vec<_>>().join(",")
}

/// Collectives, and bytes that a rank sends.
fn traffic(graph: &Graph) -> (usize, u64) {
    let collectives: Vec<_> = graph.nodes().filter(|&n| graph.node(n).op.is_collective()).collect();
    let sent = collectives.iter().map(|&n| {
        let bytes = |ty: &tpc_ir::Type| ty.max_local_bytes(&graph.mesh);
        let whole = bytes(graph.ty(graph.operands(n)[0])).max(bytes(&graph.node(n).types[0]));
        wire_bytes(&graph.node(n).op.name(), whole, graph.mesh.group_size(graph.node(n).op.axes()))
    });
    (collectives.len(), sent.sum::<f64>().round() as u64)
}

/// Options without a rule. The rule that is off is switched on instead.
fn without(rule: RuleId) -> SearchOptions {
    let mut options = SearchOptions::default();
    if !options.disabled.remove(&rule) {
        options.disabled.insert(rule);
    }
    options
}

/// Whether a search can be another one without a rule: not if the rule added nothing and found nothing equal.
fn took_part(report: &SearchReport, rule: RuleId) -> bool {
    let is_off = SearchOptions::default().disabled.contains(&rule);
    is_off || report.rules.get(&rule).is_some_and(|work| work.added + work.unions > 0)
}

/// Rules by what they changed in some program.
#[derive(Default)]
struct Effects {
    traffic: BTreeSet<RuleId>,
    time: BTreeSet<RuleId>,
    paid: BTreeMap<RuleId, usize>,
    took_part: BTreeSet<RuleId>,
}

/// The table of some steps under some plans.
fn ablated(steps: &[Step], plans: &[&str]) -> String {
    let (mut table, mut effects) = (String::new(), Effects::default());
    for step in steps {
        for &name in plans {
            let plan = plan(name);
            let propagated = step.propagated(&plan);
            let (with, report) = propagated.placed(&SearchOptions::default());
            let (count, bytes) = traffic(&with);
            let on = axes(&plan, step.ranks);
            writeln!(table, "{} under {name} on {on}: {count} collectives, {bytes} bytes", step.name).unwrap();
            for (&rule, work) in report.rules.iter().filter(|(_, work)| work.paid > 0) {
                *effects.paid.entry(rule).or_default() += work.paid;
            }
            let exact = SearchOptions { fp: FloatingPoint::Exact, ..SearchOptions::default() };
            let rules = RuleId::all().filter(|&rule| took_part(&report, rule));
            let others = rules.map(|rule| (Some(rule), without(rule))).chain([(None, exact)]);
            for (rule, options) in others {
                effects.took_part.extend(rule);
                let (other, without) = propagated.placed(&options);
                let what = match rule {
                    Some(RuleId::SPLIT) => "with 1".to_string(),
                    Some(rule) => format!("without {rule}"),
                    None => "exact rules only".into(),
                };
                let slower = without.after / report.after - 1.0;
                if traffic(&other) != (count, bytes) {
                    let (count, bytes) = traffic(&other);
                    writeln!(table, "  {what}: {count} collectives, {bytes} bytes").unwrap();
                    effects.traffic.extend(rule);
                } else if slower.abs() > 5e-5 {
                    writeln!(table, "  {what}: {:+.2}% of the predicted time", slower * 100.0).unwrap();
                    effects.time.extend(rule);
                }
            }
        }
    }
    let list = |rules: &mut dyn Iterator<Item = RuleId>| rules.map(|r| r.to_string()).collect::<Vec<_>>().join(", ");
    let Effects { traffic, time, paid, took_part } = effects;
    let paid: Vec<String> = paid.iter().map(|(rule, count)| format!("{rule}: {count}")).collect();
    writeln!(table, "operations due to a rule: {}", paid.join(", ")).unwrap();
    writeln!(table, "change traffic: {}", list(&mut traffic.iter().copied())).unwrap();
    writeln!(table, "change only time: {}", list(&mut time.difference(&traffic).copied())).unwrap();
    let idle = |rule: &RuleId| !traffic.contains(rule) && !time.contains(rule);
    writeln!(table, "take part and change neither: {}", list(&mut took_part.iter().copied().filter(idle))).unwrap();
    writeln!(table, "take no part: {}", list(&mut RuleId::all().filter(|rule| !took_part.contains(rule)))).unwrap();
    table
}

fn assert_golden(name: &str, table: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, table));
}

#[test]
fn tiny_models_without_each_rule() {
    // `none` exchanges nothing, and `2d` is `tp-fsdp`.
    let plans: Vec<&str> = BUILT_IN.into_iter().filter(|name| !matches!(*name, "none" | "2d")).collect();
    assert_golden("tiny", &ablated(&["llama", "gpt2", "bert"].map(Step::tiny), &plans));
}

/// Models whose ratio of computing to sending is another one: wide, with few tokens, on GPUs.
#[test]
fn wide_models_with_few_tokens_without_each_rule() {
    let h100 = Target::built_in("h100-node").unwrap();
    let narrow =
        Step { target: h100, ..Step::new("llama of 512, 2 × 16 tokens", &presets::llama(), TokenBatch::new(2, 16)) };
    let wide = config(json!({
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "num_hidden_layers": 2, "vocab_size": 128256, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 500000.0,
    }));
    let wide =
        Step { target: h100, ranks: 8, ..Step::new("llama of 8192, 8 × 512 tokens", &wide, TokenBatch::new(8, 512)) };
    assert_golden("wide", &ablated(&[narrow, wide], &["tp", "tp-sp", "fsdp", "tp-sp-fsdp"]));
}

/// Whatever is switched off, the program computes the same.
#[test]
fn programs_without_a_rule_compute_the_same() {
    for (family, plans) in [("llama", ["tp", "tp-sp-fsdp"]), ("gpt2", ["tp-sp", "tp-ddp"]), ("bert", ["fsdp", "tp"])] {
        let step = Step::tiny(family);
        let feed = inputs(&step.captured, 7, &step.constants);
        for name in plans {
            let plan = plan(name);
            let propagated = step.propagated(&plan);
            let (_, report) = propagated.placed(&SearchOptions::default());
            let expected = reference(&propagated.logical, &feed);
            for rule in RuleId::all().filter(|&rule| took_part(&report, rule)) {
                let (other, _) = propagated.placed(&without(rule));
                check(&other).unwrap_or_else(|e| panic!("{family} under {name} without rule {rule}: {e}"));
                let off = difference(&expected, &on_ranks(&other, &feed));
                assert!(off < 1e-9, "{family} under {name} without rule {rule}: off by {off:e}");
            }
        }
    }
}
