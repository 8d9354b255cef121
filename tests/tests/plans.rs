//! `tpc plans`: what is predicted of a plan is what the compiled program has, and the table says which plan is best.

use burn::nn::{Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor};
use serde_json::Value as Json;
use tpc_compiler::models::presets;
use tpc_compiler::plans::{Candidate, Workload, candidates};
use tpc_compiler::pretrained::{TokenBatch, capture_forward, capture_step, names};
use tpc_compiler::program::{CompileOptions, compile_inference, compile_training};
use tpc_compiler::trainer::Trainer;
use tpc_passes::targets::Target;
use tpc_tests::command::{Scratch, tpc};
use tpc_tests::training::{adamw, mesh, plan};

fn table(arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (code, out, err) = tpc(&[&["plans"], &arguments[..]].concat());
    assert_eq!((code, &*err), (0, ""), "{out}");
    out
}

/// Memory, bytes and floating-point operations are those of the program that would be launched, on each of four ranks.
#[test]
fn predictions_are_those_of_the_compiled_programs() {
    let config = presets::named("gpt").unwrap();
    let known = names(&config);
    let rename = |path: &str| known.get(path).cloned().unwrap_or_else(|| path.to_string());
    let options = CompileOptions::for_cpu();
    let batch = TokenBatch::new(4, 16);
    for Candidate { name, plan, mesh, .. } in candidates(4) {
        let capture = capture_step(&config, batch, &adamw()).unwrap();
        let workload = Workload::of_training(&capture, &rename).unwrap();
        let predicted = workload.predict(&mesh, &plan, &options).unwrap();
        let program = compile_training(capture, &mesh, &plan, &options, &rename).unwrap();
        let largest = program.steady.ranks.iter().map(|rank| rank.arena_bytes).max().unwrap();
        assert_eq!(predicted.arena_bytes, largest, "{name} on {mesh}");
        let sent: f64 = program.steady.ranks[0].collectives().map(|c| c.wire_bytes()).sum();
        assert!(
            (predicted.timeline.sent - sent).abs() < 0.5,
            "{name} on {mesh}: {} and {sent}",
            predicted.timeline.sent
        );
        // Ranks of a tensor-parallel plan compute parts of the model's products, and never less than their share of them.
        assert!(predicted.timeline.flops >= predicted.flops / 4.0 * 0.999, "{name} on {mesh}");
        assert!(predicted.utilization(4, options.target.device.products.f32) < 1.0, "{name} on {mesh}");
    }
}

#[test]
fn a_forward_pass_is_predicted_without_an_optimizer() {
    let config = presets::named("gpt").unwrap();
    let known = names(&config);
    let rename = |path: &str| known.get(path).cloned().unwrap_or_else(|| path.to_string());
    let captured = capture_forward(&config, TokenBatch::new(2, 16), true).unwrap();
    let (mesh, plan, options) = (mesh("tp=2"), plan("tp"), CompileOptions::for_cpu());
    let predicted = Workload::of_inference(&captured, &rename).unwrap().predict(&mesh, &plan, &options).unwrap();
    let program = compile_inference(&captured, &mesh, &plan, &options, &rename).unwrap();
    assert_eq!(predicted.arena_bytes, program.stages.ranks[0].arena_bytes);
}

#[test]
fn the_table_has_the_fastest_plan_first() {
    insta::assert_snapshot!("cpu", table("--preset llama --ranks 2 --train --batch 8 --seq 64"));
    insta::assert_snapshot!(
        "h100",
        table("--preset llama --ranks 4 --train --batch 4 --seq 64 --target h100-node --precision bf16")
    );
}

#[test]
fn what_does_not_fit_comes_last_and_says_what_it_needs() {
    let train = "--preset llama --ranks 2 --train --batch 8 --seq 64";
    let all = json(train);
    let bytes = |row: &Json| row["arena_bytes"].as_u64().unwrap();
    let mut sizes: Vec<u64> = all.iter().map(bytes).collect();
    sizes.sort_unstable();
    // Room for all but the largest.
    let limit = sizes[sizes.len() - 1] - 1;
    let some = json(&format!("{train} --memory {limit}"));
    let fits: Vec<bool> = some.iter().map(|row| row["fits"].as_bool().unwrap()).collect();
    assert!(fits.is_sorted_by(|a, b| a >= b) && fits.contains(&true) && fits.contains(&false), "{fits:?}");
    assert!(some.iter().all(|row| row["fits"] == (bytes(row) <= limit)));
    let text = table(&format!("{train} --memory 1MB"));
    assert!(text.contains("nothing fits in 1.00 MB a rank: the least is "), "{text}");
    assert!(!text.contains("fastest on"), "{text}");
}

/// The rows of the report.
fn json(arguments: &str) -> Vec<Json> {
    let report: Json = serde_json::from_str(&table(&format!("{arguments} --json"))).unwrap();
    report["plans"].as_array().unwrap().clone()
}

#[test]
fn rows_are_sorted_by_the_time_of_a_step() {
    for target in ["cpu", "h100-node"] {
        let rows = json(&format!("--preset gpt --ranks 2 --train --batch 8 --seq 16 --target {target}"));
        let seconds: Vec<f64> = rows.iter().map(|row| row["seconds"].as_f64().unwrap()).collect();
        assert!(seconds.is_sorted(), "{target}: {seconds:?}");
        for row in &rows {
            let part = |name: &str| row[name].as_f64().unwrap();
            assert!((part("seconds") - part("compute_seconds") - part("exposed_seconds")).abs() < 1e-12);
            let rank = Target::built_in(target).unwrap().device.kind == tpc_passes::targets::DeviceKind::Cpu;
            assert!(!rank || part("exposed_seconds") >= part("communication_seconds") * 0.999_999, "{row}");
        }
    }
}

#[test]
fn what_cannot_be_planned_is_said() {
    let wrong = |arguments: &[&str]| {
        let (code, _, err) = tpc(arguments);
        (code, err)
    };
    assert_eq!(wrong(&["plans", "--preset", "gpt", "--ranks", "0"]).0, 2);
    assert_eq!(wrong(&["plans", "--preset", "gpt", "--ranks", "2", "--memory", "5gb"]).0, 2);
    let (code, err) = wrong(&["plans", "--preset", "gpt", "--ranks", "2", "--optimizer", "sgd"]);
    assert_eq!(code, 1);
    assert!(err.contains("--optimizer"), "{err}");
    let (code, err) = wrong(&["plans", "--preset", "gpt", "--ranks", "2", "--target", "abacus"]);
    assert_eq!(code, 1);
    assert!(err.contains("abacus"), "{err}");
}

/// A trainer chooses what the table has first, and trains as that plan does.
#[test]
fn a_trainer_chooses_the_fastest_plan() {
    let device = Device::flex();
    let batch = [Tensor::<2>::ones([64, 32], &device), Tensor::<2>::zeros([64, 32], &device)];
    let trainer = || {
        let build = |device: &Device| LinearConfig::new(32, 32).init(device);
        Trainer::new(build, SgdConfig::new().build()).lr(0.1).seed(3)
    };
    let loss = |model: &Linear, (x, y): (Tensor<2>, Tensor<2>)| (model.forward(x) - y).square().mean();
    let [x, y] = batch;
    let chosen = trainer().auto(2).compile(&(x.clone(), y.clone()), loss).unwrap();
    assert_eq!(chosen.stages().placed.mesh.ranks(), 2);
    let mut chosen = chosen.launch().unwrap();
    let mut alone = trainer().compile(&(x.clone(), y.clone()), loss).unwrap().launch().unwrap();
    for _ in 0..3 {
        let (a, b) =
            (chosen.step(&(x.clone(), y.clone())).unwrap().loss, alone.step(&(x.clone(), y.clone())).unwrap().loss);
        assert!((a - b).abs() < 1e-5 * b.abs().max(1e-3), "{a} and {b}");
    }
    // A trainer that completes the plan cuts something where sending costs nothing.
    let mut fast = Target::cpu().clone();
    fast.links.default = tpc_passes::targets::Link { latency: 1e-12, bandwidth: 1e15 };
    let found = trainer().mesh([("x", 2)]).unwrap().complete().target(fast.clone());
    let found = found.compile(&(x.clone(), y.clone()), loss).unwrap();
    assert!(
        !found.plan().storage.is_empty()
            && !found
                .stages()
                .placed
                .inputs()
                .all(|(node, _)| { found.stages().placed.node(node).types[0].sharding.is_replicated() })
    );
    let mut found = found.launch().unwrap();
    let mut alone = trainer().compile(&(x.clone(), y.clone()), loss).unwrap().launch().unwrap();
    for _ in 0..3 {
        let (a, b) =
            (found.step(&(x.clone(), y.clone())).unwrap().loss, alone.step(&(x.clone(), y.clone())).unwrap().loss);
        assert!((a - b).abs() < 1e-5 * b.abs().max(1e-3), "{a} and {b}");
    }
    let mut small = Target::cpu().clone();
    small.device.capacity = 100.0;
    let refused = trainer().auto(2).target(small).compile(&(x, y), loss).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("plans fits into the 100 bytes of a rank"), "{refused}");
}

#[test]
fn the_command_chooses_the_fastest_plan() {
    let bench = ["bench", "--preset", "gpt", "--batch", "2", "--seq", "8", "--iters", "1", "--plan", "auto"];
    let (code, _, err) = tpc(&[&bench[..], &["--ranks", "2"]].concat());
    assert_eq!(code, 0, "{err}");
    let first = json("--preset gpt --ranks 2 --train --batch 2 --seq 8");
    let plan = first[0]["plan"].as_str().unwrap();
    assert!(
        err.contains(&format!("--plan auto is --plan {plan} --mesh ")) && err.contains("the least of 5 plans"),
        "{err}"
    );
    let (code, _, err) = tpc(&[&bench[..], &["--mesh", "tp=2"]].concat());
    assert!(code == 0 && err.contains("the least of 2 plans"), "{err}");
    for (more, expected) in [
        (&[][..], "--ranks says how many ranks it has"),
        (&["--mesh", "x=2"], "no built-in plan has the axes of --mesh x=2"),
        (&["--mesh", "tp=2", "--ranks", "2"], "--ranks is for --plan auto without --mesh"),
        (&["--ranks", "65"], "65 ranks"),
    ] {
        let (code, _, err) = tpc(&[&bench[..], more].concat());
        assert!(code == 1 && err.contains(expected), "{more:?}: {err}");
    }
    let (code, _, err) = tpc(&["dump-ir", "--preset", "gpt", "--plan", "auto", "--mesh", "tp=2"]);
    assert!(code == 1 && err.contains("--plan auto is for tpc train and tpc bench"), "{err}");
}

/// `--placements auto` lists what the planner makes of each mesh, never has a slower first row for it, and exports plans that
/// reproduce their rows.
#[test]
fn plans_are_completed_and_exported() {
    let scratch = Scratch::new("exported");
    let dir = scratch.path("plans");
    let of = |more: &[&str]| {
        let usual = ["plans", "--preset", "gpt", "--train", "--batch", "8", "--seq", "64", "--ranks", "2", "--json"];
        let (code, out, err) = tpc(&[&usual[..], more].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    let given = of(&[]);
    let found = of(&["--placements", "auto", "--export", &dir]);
    let best = |report: &serde_json::Value| report["plans"][0]["seconds"].as_f64().unwrap();
    assert!(best(&found) <= best(&given), "{found}");
    let rows = found["plans"].as_array().unwrap();
    let open: Vec<usize> = (0..rows.len()).filter(|&i| rows[i]["placements"].is_object()).collect();
    assert_eq!(open.len(), 1, "{found}");
    for i in [open[0], (0..rows.len()).find(|i| !open.contains(i)).unwrap()] {
        let axes: Vec<(String, u64)> = rows[i]["mesh"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, size)| (name.clone(), size.as_u64().unwrap()))
            .collect();
        let name: String = axes.iter().map(|(name, size)| format!("-{name}{size}")).collect();
        let file = format!("{dir}/{:02}-{}{name}.json", i + 1, rows[i]["plan"].as_str().unwrap());
        let mesh = axes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(",");
        let usual = ["costs", "--preset", "gpt", "--train", "--batch", "8", "--seq", "64", "--json"];
        let more = ["--plan", &file, "--mesh", &mesh, "--placements", "planned"];
        let (code, out, err) = tpc(&[&usual[..], &more[..]].concat());
        assert_eq!(code, 0, "{err}");
        let costs: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(costs["plan"]["seconds"], rows[i]["seconds"], "{file}");
        assert_eq!(costs["plan"]["arena_bytes"], rows[i]["arena_bytes"], "{file}");
    }
}
