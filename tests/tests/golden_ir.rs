//! Prints every stage of every kind of model, and checks that every stage means the same on 1, 2 and 4 ranks, simulated
//! and real.
//!
//! After an intended change: `INSTA_UPDATE=always cargo test -p tpc-tests --test suite golden_ir::`, then read
//! the difference.

use tpc_compiler::program::CompileOptions;
use tpc_compiler::program::Stages;
use tpc_ir::text::print;
use tpc_passes::styles::Annotations;
use tpc_tests::golden::{Compile, Feed, MESHES, MODELS, llama, mlp_forward, mlp_step, step};
use tpc_tests::{difference, executed, inputs, on_ranks, reference, wrong};

/// The demands of the plan, as text.
fn demands(annotations: &Annotations) -> String {
    let mut lines: Vec<String> = annotations
        .inputs
        .iter()
        .map(|(name, a)| {
            let dims: Vec<String> = a
                .sharding
                .dims
                .iter()
                .map(|axes| {
                    let axes: Vec<&str> = axes.iter().map(|&x| annotations.mesh.name(x)).collect();
                    if axes.is_empty() { "-".into() } else { axes.join("+") }
                })
                .collect();
            format!("{name} [{}]  why: {}", dims.join(", "), a.why)
        })
        .collect();
    lines.sort();
    format!("{}\n{}\n", annotations.mesh, lines.join("\n"))
}

fn snapshot(name: &str, stages: &Stages, everything: bool) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        let model = name.split('@').next().unwrap_or(name);
        if everything {
            insta::assert_snapshot!(format!("{model}.1_captured"), print(&stages.captured));
            insta::assert_snapshot!(format!("{model}.2_logical"), print(&stages.logical));
        }
        insta::assert_snapshot!(format!("{name}.3_annotated"), demands(&stages.annotations));
        insta::assert_snapshot!(format!("{name}.4_propagated"), print(&stages.propagated));
        insta::assert_snapshot!(format!("{name}.5_placed"), print(&stages.placed));
        insta::assert_snapshot!(format!("{name}.6_scheduled"), stages.ranks[0].to_text());
    });
}

/// Compares every stage with the captured one, on the interpreter.
fn same(stages: &Stages, feed: &Feed, what: &str) {
    let expected = reference(&stages.captured, feed);
    assert!(difference(&expected, &reference(&stages.logical, feed)) < 1e-9, "{what}: logical");
    assert!(difference(&expected, &on_ranks(&stages.propagated, feed)) < 1e-9, "{what}: propagated");
    assert!(difference(&expected, &on_ranks(&stages.placed, feed)) < 1e-9, "{what}: placed");
    for (stage, graph) in [("propagated", &stages.propagated), ("placed", &stages.placed)] {
        let collectives = graph.nodes().filter(|&n| graph.node(n).op.is_collective()).count();
        assert_eq!(tpc_tests::reasons::check(graph, &format!("{what}: {stage}")), collectives);
    }
    assert_eq!(
        wrong(&stages.placed, &expected, &executed(&stages.placed, feed), 1e-4),
        Vec::<String>::new(),
        "{what}: executed"
    );
}

/// Compares snapshots on some meshes, and checks equality on all.
fn golden(name: &str, compile: Compile, snapshots: &[(&str, &str)]) {
    let others = MESHES.iter().filter(|o| !snapshots.contains(o));
    for (plan, on) in snapshots.iter().chain(others) {
        let (stages, constants) = compile(plan, on, &CompileOptions::for_cpu());
        let feed = inputs(&stages.captured, 8, &constants);
        same(&stages, &feed, &format!("{name} {plan} on {on:?}"));
    }
    // Checked after equality, so that a wrong program is never accepted as a golden.
    for (i, (plan, on)) in snapshots.iter().enumerate() {
        let file = format!("{name}@{}", on.replace('=', "").replace(',', "_"));
        snapshot(&file, &compile(plan, on, &CompileOptions::for_cpu()).0, i == 0);
    }
}

/// Checks the golden with this name.
fn of(name: &str) {
    let model = MODELS.iter().find(|m| m.name == name).expect("the model is listed");
    golden(name, model.compile, model.snapshots);
}

macro_rules! goldens {
    ($($test:ident = $name:literal)+) => { $(
        #[test]
        fn $test() {
            of($name);
        }
    )+ };
}

goldens! {
    mlp = "mlp"
    mlp_training = "mlp_training"
    llama_inference = "llama"
    llama_training = "llama_training"
    gpt2_inference = "gpt2"
    bert_inference = "bert"
}

/// The snapshots do not depend on the machine.
#[test]
fn the_text_is_the_same_everywhere() {
    for compile in [mlp_forward as Compile, mlp_step] {
        let texts = || {
            let (s, _) = compile("tp", "tp=2", &CompileOptions::for_cpu());
            [print(&s.captured), print(&s.logical), print(&s.propagated), print(&s.placed), s.ranks[0].to_text()]
        };
        let other = std::thread::spawn(move || {
            let (s, _) = compile("tp", "tp=2", &CompileOptions::for_cpu());
            [print(&s.captured), print(&s.logical), print(&s.propagated), print(&s.placed), s.ranks[0].to_text()]
        });
        let text = texts();
        assert_eq!(text, other.join().unwrap());
        assert!(text.iter().all(|t| !t.contains("/root") && !t.contains(".rs:") && !t.contains("0x")));
    }
    let texts = || print(&step(&llama(1), "tp", "tp=2", &CompileOptions::for_cpu()).0.placed);
    assert_eq!(texts(), texts());
}
