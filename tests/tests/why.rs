//! `tpc why`: every collective has a cause, and no program without it is cheaper than the best that the planner finds.

use serde_json::Value as Json;
use std::collections::BTreeSet;
use tpc_compiler::models::presets;
use tpc_compiler::plans::Workload;
use tpc_compiler::pretrained::{TokenBatch, capture_step, names};
use tpc_compiler::program::CompileOptions;
use tpc_compiler::why::{Barred, Because, Explainer, Found, Subject, What};
use tpc_ir::Op;
use tpc_passes::egraph::SearchOptions;
use tpc_passes::planner::PlacementSource;
use tpc_passes::targets::Target;
use tpc_tests::command::{run, tpc};
use tpc_tests::training::{adamw, mesh, plan};

fn error(arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (code, out, err) = tpc(&arguments);
    assert_eq!((code, &*out), (1, ""), "{err}");
    err
}

/// The plans about which questions are asked.
const PLANS: [(&str, &str, PlacementSource); 5] = [
    ("tp", "tp=2", PlacementSource::Given),
    ("tp-sp", "tp=2", PlacementSource::Given),
    ("fsdp", "dp=2", PlacementSource::Given),
    ("tp-sp-fsdp", "dp=2,tp=2", PlacementSource::Given),
    ("tp", "tp=2", PlacementSource::Planned),
];

/// The training step of a preset under a plan.
fn why(preset: &str, (name, axes, placements): (&str, &str, PlacementSource)) -> Explainer {
    let config = presets::named(preset).unwrap();
    let known = names(&config);
    let capture = capture_step(&config, TokenBatch::new(4, 64), &adamw()).unwrap();
    let rename = move |path: &str| known.get(path).cloned().unwrap_or_else(|| path.to_string());
    let workload = Workload::of_training(&capture, &rename).unwrap();
    let search = SearchOptions { placements, ..SearchOptions::default() };
    let options = CompileOptions { search, ..CompileOptions::new(Target::cpu().clone()) };
    workload.why(&mesh(axes), &plan(name), &options).unwrap()
}

/// Every collective belongs to one subject, has at least one cause that says something, and is read by something.
#[test]
fn every_collective_has_a_cause() {
    for preset in ["llama", "gpt"] {
        for of in PLANS {
            let why = why(preset, of);
            let graph = why.graph();
            let subjects = why.collectives();
            let mut seen = BTreeSet::new();
            for subject in &subjects {
                assert!(subject.values.iter().all(|value| seen.insert(*value)), "{preset} {of:?}");
                let explained = why.explain(subject);
                assert!(!explained.because.is_empty(), "{preset} {of:?}: {}", explained.operation);
                assert!(explained.because.iter().all(|because| !because.to_string().is_empty()), "{explained:?}");
                assert!(!explained.readers.is_empty() && explained.maker.is_some(), "{explained:?}");
                let traffic = explained.traffic.unwrap();
                assert_eq!(traffic.count, subject.values.len());
                assert!(traffic.sent > 0.0 && traffic.alone > 0.0 && traffic.company > 0, "{explained:?}");
            }
            assert_eq!(seen.len(), graph.nodes().filter(|&n| graph.node(n).op.is_collective()).count());
        }
    }
}

/// The planner cannot find anything cheaper under prohibitions than its bound without them, and what it finds keeps to them.
/// Two axes take seconds for a question, and most gathers of a program under fsdp are alike, so not all of these are asked.
#[test]
fn nothing_without_it_costs_less_than_the_best() {
    let mut found = 0;
    for (of, every) in PLANS.into_iter().zip([1, 1, 3, 10, 1]) {
        let why = why("llama", of);
        let best = why.best().unwrap().unwrap().proof.unwrap();
        let bound = best.bound.unwrap();
        assert!(bound <= best.seconds && best.seconds - bound <= 1e-3 * best.seconds, "{of:?}: {best:?}");
        for subject in why.collectives().into_iter().step_by(every) {
            let explained = why.explain(&subject);
            let mut costs = Vec::new();
            for alternative in why.without(&subject).unwrap() {
                let Found::Program { program, collectives, .. } = alternative.found else { continue };
                let proof = program.proof.unwrap();
                assert!(proof.seconds >= bound * (1.0 - 1e-9), "{of:?}: {}: {proof:?}", explained.operation);
                assert!(proof.bound.unwrap() <= proof.seconds, "{of:?}: {}: {proof:?}", explained.operation);
                let keeps = |text: &str| match &alternative.barred {
                    Barred::Collective(op, axes) => !text.starts_with(&format!("{} {axes}", op.name())),
                    Barred::Communication(axes) => !text.split(' ').any(|word| word == axes),
                    Barred::Placement(_) | Barred::SecondGather => true,
                };
                assert!(collectives.iter().all(|(text, _)| keeps(text)), "{of:?}: {collectives:?}");
                costs.push(proof.seconds);
                found += 1;
            }
            // What forbids more costs no less, up to the gap of what forbids less.
            assert!(costs.is_sorted_by(|less, more| *more >= less * (1.0 - 1e-3)), "{of:?}: {costs:?}");
        }
    }
    assert!(found > 60, "{found}");
}

/// What a question finds has the number that dump-ir prints.
#[test]
fn numbers_are_those_of_dump_ir() {
    let model = "--preset llama --train --batch 4 --seq 64 --plan tp-sp-fsdp --mesh dp=2,tp=2";
    let arguments = format!("dump-ir {model} --stage placed --full");
    let (code, printed, _) = tpc(&arguments.split(' ').collect::<Vec<_>>());
    assert_eq!(code, 0);
    let why = why("llama", PLANS[3]);
    let lines: BTreeSet<&str> =
        printed.lines().filter_map(|line| line.split_once(" : ")).map(|l| l.0.trim_end()).collect();
    let subjects: Vec<Subject> = why.collectives();
    assert!(subjects.len() > 10);
    for subject in subjects {
        let operation = why.explain(&subject).operation;
        assert!(lines.contains(&*operation), "{operation}");
    }
}

const LLAMA: &str = "--preset llama --train --batch 4 --seq 64";
const GPT: &str = "--preset gpt --train --batch 4 --seq 64";

#[test]
fn answers_name_causes_readers_and_alternatives() {
    let ask = |question: &str| run(&format!("why {question}"));
    insta::assert_snapshot!("collective_tp", ask(&format!("{LLAMA} --plan tp --mesh tp=2 layers.*.feed_forward")));
    insta::assert_snapshot!("collective_sp", ask(&format!("{GPT} --plan tp-sp --mesh tp=2 model.layers.0.mlp")));
    insta::assert_snapshot!("collective_fsdp", ask(&format!("{LLAMA} --plan fsdp --mesh dp=2 layers.1.attention")));
    insta::assert_snapshot!(
        "parameter_2d",
        ask(&format!("{LLAMA} --plan tp-sp-fsdp --mesh dp=2,tp=2 layers.*.attention.wq.weight"))
    );
    insta::assert_snapshot!(
        "collective_planned",
        ask(&format!("{GPT} --plan tp --mesh tp=2 --placements planned reduce_scatter tp"))
    );
}

#[test]
fn json_equals_the_text() {
    let question = format!("why {LLAMA} --plan tp --mesh tp=2 layers.*.feed_forward");
    let (text, json) = (run(&question), run(&format!("{question} --json")));
    let json: Json = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["plan"], &json["mesh"]["tp"]), (&"tp".into(), &2.into()));
    let values = json["values"].as_array().unwrap();
    assert!(!values.is_empty());
    for value in values {
        assert!(text.contains(value["operation"].as_str().unwrap()), "{value}");
        assert!(text.contains(value["type"].as_str().unwrap()), "{value}");
        for because in value["because"].as_array().unwrap() {
            assert!(text.contains(because["text"].as_str().unwrap()), "{because}");
        }
        for without in value["without"].as_array().unwrap() {
            assert!(text.contains(without["without"].as_str().unwrap()), "{without}");
            if without["found"] == true {
                let seconds = without["program"]["seconds"].as_f64().unwrap();
                assert!(json["best"]["seconds"].as_f64().unwrap() <= seconds);
            }
        }
    }
}

#[test]
fn what_names_nothing_or_too_much_is_said() {
    let ask = |question: &str| error(&format!("why --preset llama --train --plan tp --mesh tp=2{question}"));
    insta::assert_snapshot!(
        "errors",
        [
            ask(""),
            ask(" %x"),
            ask(" %99999"),
            ask(" all_to_all"),
            ask(" all_reduce dp"),
            ask(" layers.0.atention"),
            ask(" layers.[0"),
            ask(" all_reduce tp now"),
            error("why --preset llama --train --plan fsdp --mesh dp=2 all_gather"),
        ]
        .join("\n")
    );
}

/// A value inside the program follows the tensors that it is computed from.
#[test]
fn values_follow_parameters() {
    let why = why("llama", PLANS[0]);
    let (graph, names) = (why.graph(), tpc_ir::text::number(why.graph()));
    let (mut cut, mut whole) = (0, 0);
    for node in graph.nodes().filter(|&n| matches!(graph.node(n).op, Op::Einsum { .. } | Op::Reduce { .. })) {
        let subjects = why.find(&What::Number(names[&node], 0)).unwrap();
        assert_eq!(subjects.len(), 1);
        let explained = why.explain(&subjects[0]);
        let followed = |because: &Because| matches!(because, Because::Follows { axis, .. } if axis == "tp");
        if graph.ty(node.into()).sharding.is_replicated() {
            whole += 1;
            assert!(explained.because.iter().all(|because| matches!(because, Because::Replicated)), "{explained:?}");
        } else {
            cut += 1;
            assert!(explained.because.iter().all(followed), "{explained:?}");
        }
    }
    assert!(cut > 50 && whole > 20, "{cut} {whole}");
}
