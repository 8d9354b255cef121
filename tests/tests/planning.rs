//! What planning may cost: random plans with layouts on many modules stay within bounds that depend on the program's
//! size and count e-nodes, rule applications and extraction moves. The report names the bounds that are reached.

use serde_json::{Value as Json, json};
use std::path::Path;
use tpc_compiler::import::import;
use tpc_compiler::pretrained::{TokenBatch, capture_step, names};
use tpc_ir::{Graph, OutputKind, parse};
use tpc_passes::check::check;
use tpc_passes::check::obligations::{Obligations, Subject};
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::{Bounds, Extraction, SearchOptions, SearchReport, Stop, improve};
use tpc_passes::propagate::propagate;
use tpc_passes::styles::{Plan, parallelize_module};
use tpc_passes::targets::Target;
use tpc_tests::captured::rename;
use tpc_tests::training::{adamw, config, mesh};

/// The training step of a tiny model, and the modules that plans style.
struct Model {
    family: &'static str,
    captured: Graph,
    linears: Vec<String>,
    norms: Vec<String>,
}

impl Model {
    fn open(family: &'static str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/hf/{family}-tiny/config.json"));
        let config = config(serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap());
        let names = names(&config);
        let mut step = capture_step(&config, TokenBatch::new(4, 6), &adamw()).unwrap().steady;
        rename(&mut step, &|p| names.get(p).cloned().unwrap_or_else(|| p.to_string()));
        let mut captured = import(&step).unwrap().graph;
        captured.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
        let of = |rank: usize| {
            let inputs = captured.inputs().map(|(node, id)| (node, id.to_string()));
            let weights = inputs.filter(|(node, name)| {
                name.ends_with(".weight")
                    && name.matches(char::is_numeric).count() > 0
                    && captured.node(*node).types[0].rank() == rank
            });
            weights.map(|(_, name)| name.trim_end_matches(".weight").to_string()).collect()
        };
        Model { family, linears: of(2), norms: of(1), captured }
    }

    /// Column-wise and row-wise linears with layouts at their boundaries, norms over sequences, and some modules
    /// without a style.
    fn plan(&self, data: Option<&str>, dice: &mut Dice) -> Json {
        let mut styles = serde_json::Map::new();
        for linear in &self.linears {
            if dice.chance(2) {
                continue;
            }
            let mut options = serde_json::Map::new();
            for end in ["input_layouts", "output_layouts"] {
                if dice.chance(5) {
                    options.insert(end.into(), dice.layout());
                }
            }
            let style = dice.of(&["ColwiseParallel", "RowwiseParallel"]);
            styles.insert(linear.clone(), if options.is_empty() { json!(style) } else { json!({ style: options }) });
        }
        for norm in &self.norms {
            if dice.chance(5) {
                continue;
            }
            let outputs = json!({"PrepareModuleOutput": {
                "output_layouts": [dice.layout()], "desired_output_layouts": [dice.layout()]}});
            styles.insert(norm.clone(), if dice.chance(5) { json!("SequenceParallel") } else { outputs });
        }
        let mut plan = json!({"axis": "tp", "styles": styles});
        if let Some(mode) = data {
            plan["data"] = json!({"mode": mode, "axis": "dp"});
        }
        plan
    }
}

/// A reproducible sequence of choices.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    /// True with a probability of `of_ten` in ten.
    fn chance(&mut self, of_ten: usize) -> bool {
        self.below(10) < of_ten
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn layout(&mut self) -> Json {
        json!(self.of(&["Shard(0)", "Shard(1)", "Shard(2)", "Replicate"]))
    }
}

/// The documented bounds for a program with this many operations.
fn stated(operations: usize) -> Bounds {
    let nodes = 2_000 + 32 * operations;
    Bounds { nodes, applications: 16 * nodes, moves: 256 * nodes }
}

/// Checks that no count exceeds its bound, and that the report names every bound that was reached.
fn is_bounded(what: &str, report: &SearchReport, operations: usize) {
    let SearchReport { work, bounds, stop, extraction, .. } = report;
    let most = stated(operations);
    assert!(
        bounds.nodes <= most.nodes && bounds.applications <= most.applications && bounds.moves <= most.moves,
        "{what}: {bounds:?} for {operations} operations"
    );
    assert!(work.nodes <= bounds.nodes, "{what}: {work:?}, {bounds:?}");
    // A unit of work that has begun is finished: the terms of one class, or one walk over the classes.
    assert!(work.applications <= bounds.applications + bounds.nodes, "{what}: {work:?}, {bounds:?}");
    assert!(work.moves <= bounds.moves + bounds.nodes, "{what}: {work:?}, {bounds:?}");
    assert_eq!(*stop == Stop::Nodes(bounds.nodes), work.nodes == bounds.nodes, "{what}: {report:?}");
    assert_eq!(*extraction == Extraction::Moves(bounds.moves), work.moves >= bounds.moves, "{what}: {report:?}");
}

#[test]
fn random_plans_stay_within_their_bounds() {
    let (mut planned, mut inside, mut given_up) = (0, 0, 0);
    for family in ["llama", "gpt2", "bert"] {
        let model = Model::open(family);
        let mut dice = Dice(family.len() as u64);
        for (on, data) in [("tp=2", None), ("dp=2,tp=2", Some("ddp")), ("dp=2,tp=2", Some("fsdp"))] {
            for _ in 0..4 {
                let text = model.plan(data, &mut dice).to_string();
                let plan = Plan::from_json(&text).unwrap();
                // A layout may not fit a module, which is a separate error.
                let Ok((logical, annotations)) = parallelize_module(&model.captured, &mesh(on), plan, None) else {
                    continue;
                };
                let propagated = propagate(&logical, &annotations, Target::cpu());
                let (placed, report) = improve(&propagated, Target::cpu(), &SearchOptions::default());
                let what = format!("{} on {on}: {text}", model.family);
                is_bounded(&what, &report, propagated.len());
                assert!(report.after <= report.before, "{what}: {report:?}");
                check(&placed).unwrap_or_else(|e| panic!("{what}: {e}"));
                let same = denotes(&placed, &logical).unwrap_or_else(|e| panic!("{what}: {e}"));
                let obligations =
                    Obligations::of(&logical, &annotations).with_values(&placed, &logical, &annotations, &same);
                obligations.check(&placed).unwrap_or_else(|e| panic!("{what}: {e}"));
                inside += obligations.list.iter().filter(|o| matches!(o.subject, Subject::Value(_))).count();
                given_up += obligations.given_up;
                planned += 1;
            }
        }
    }
    println!("{planned} plans; of the values inside, {inside} lie as they say, {given_up} elsewhere");
    assert!(planned > 20, "{planned} plans fit");
}

/// Nine layers with an embedding that is cut on both axes, and with all parameters sharded.
#[test]
fn a_program_that_took_a_minute_is_bounded() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/slow.tpc");
    let propagated = parse::parse(&std::fs::read_to_string(file).unwrap()).unwrap();
    let (placed, report) = improve(&propagated, Target::cpu(), &SearchOptions::default());
    is_bounded("slow.tpc", &report, propagated.len());
    check(&placed).unwrap();
}

#[test]
fn a_bound_that_is_reached_is_reported() {
    let model = Model::open("llama");
    let plan = Plan::built_in("2d").unwrap();
    let (logical, annotations) = parallelize_module(&model.captured, &mesh("dp=2,tp=2"), plan, None).unwrap();
    let propagated = propagate(&logical, &annotations, Target::cpu());
    let limited = |options: SearchOptions| improve(&propagated, Target::cpu(), &options).1;
    let default = SearchOptions::default;
    let rounds = limited(SearchOptions { rounds: 1, ..default() });
    assert_eq!((rounds.stop, rounds.extraction), (Stop::Rounds(1), Extraction::Settled));
    assert_eq!(rounds.unfinished().unwrap(), "1 round");
    let most = propagated.len() + 50;
    let nodes = limited(SearchOptions { node_limit: most, ..default() });
    assert_eq!((nodes.stop, nodes.extraction), (Stop::Nodes(most), Extraction::Settled));
}
