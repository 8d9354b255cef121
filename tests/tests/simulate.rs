//! `tpc simulate`: kinds of ranks are those of the lowered programs, figures are those of the other commands, and the trace
//! says the same as the figures.

use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use tpc_compiler::models::presets::SmallGpt;
use tpc_compiler::plans::Workload;
use tpc_compiler::pretrained::{TokenBatch, capture_step, names};
use tpc_compiler::program::{CompileOptions, compile_training};
use tpc_ir::program::RankProgram;
use tpc_passes::simulate::simulate;
use tpc_passes::targets::Target;
use tpc_tests::command::{Scratch, json, run, tpc};
use tpc_tests::training::{adamw, mesh, plan};

/// A program without what differs between ranks of one kind: its rank, offsets, and the members of groups.
fn sizes(program: &RankProgram) -> Json {
    fn strip(json: &mut Json) {
        match json {
            Json::Object(map) => {
                for (key, value) in map.iter_mut() {
                    match (key.as_str(), &mut *value) {
                        ("rank" | "offset" | "position" | "first_row" | "start", value) => *value = Json::Null,
                        ("group", Json::Array(members)) => *value = members.len().into(),
                        // (loop dimension, global offset, global stride)
                        ("Random", random) => {
                            for index in random["index"].as_array_mut().unwrap() {
                                index[1] = Json::Null;
                            }
                        }
                        (_, value) => strip(value),
                    }
                }
            }
            Json::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut json = serde_json::to_value(program).unwrap();
    strip(&mut json);
    json
}

/// The groups of equal items, by their first members.
fn groups<T: PartialEq>(items: &[T]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        match groups.iter_mut().find(|group| items[group[0]] == *item) {
            Some(group) => group.push(at),
            None => groups.push(vec![at]),
        }
    }
    groups
}

/// Kinds are found from the types of the placed program. Here every rank is lowered instead: ranks are of one kind exactly if
/// their programs have the same sizes in both programs of a step, and the simulation of the kind is that of each of them.
#[test]
fn kinds_are_those_of_all_lowered_ranks() {
    let config =
        SmallGpt { vocab: 50, width: 24, layers: 1, heads: 3, kv_heads: 3, seq: 16, ..SmallGpt::default() }.config();
    let config = config.unwrap();
    let known = names(&config);
    let rename = |path: &str| known.get(path).cloned().unwrap_or_else(|| path.to_string());
    let (mut checked, mut most) = (0, 0);
    for (batch, seq) in [(5, 7), (4, 8)] {
        let capture = || capture_step(&config, TokenBatch::new(batch, seq), &adamw()).unwrap();
        let workload = Workload::of_training(&capture(), &rename).unwrap();
        for target in ["cpu", "h100-node"] {
            let options = CompileOptions::new(Target::built_in(target).unwrap().clone());
            for (name, axes) in [
                ("tp", "tp=2"),
                ("tp", "tp=4"),
                ("tp-sp", "tp=3"),
                ("tp-sp", "tp=4"),
                ("ddp", "dp=4"),
                ("fsdp", "dp=3"),
                ("zero1", "dp=4"),
                ("hsdp", "rep=2,dp=3"),
                ("tp-fsdp", "dp=3,tp=2"),
                ("tp-sp-fsdp", "dp=2,tp=4"),
            ] {
                let (mesh, plan) = (mesh(axes), plan(name));
                let what = format!("{name} on {axes} with {batch} x {seq} tokens on {target}");
                let simulation = workload.simulate(&mesh, &plan, &options).unwrap();
                let program = compile_training(capture(), &mesh, &plan, &options, &rename).unwrap();
                let (first, steady) = (&program.first.ranks, &program.steady.ranks);
                let lowered: Vec<_> = first.iter().zip(steady).map(|(a, b)| (sizes(a), sizes(b))).collect();
                let kinds: Vec<Vec<usize>> = simulation.kinds.iter().map(|kind| kind.ranks.clone()).collect();
                assert_eq!(kinds, groups(&lowered), "{what}");
                let mut slowest: f64 = 0.0;
                for kind in &simulation.kinds {
                    for &rank in &kind.ranks {
                        assert_eq!(simulate(&steady[rank], &options.target), kind.timeline, "{what}: rank {rank}");
                        assert_eq!(kind.summary.arena_bytes, steady[rank].arena_bytes, "{what}: rank {rank}");
                        slowest = slowest.max(kind.timeline.seconds);
                    }
                }
                assert_eq!(simulation.seconds(), slowest, "{what}");
                (checked, most) = (checked + 1, most.max(kinds.len()));
            }
        }
    }
    assert_eq!(checked, 40);
    assert!(most >= 4, "uneven shapes make {most} kinds at most");
}

/// The figures of a kind are those that `tpc costs` and `tpc plans` print for the same plan.
#[test]
fn figures_are_those_of_costs_and_plans() {
    for target in ["cpu", "h100-node"] {
        let step = format!("--preset gpt --train --batch 8 --seq 16 --target {target}");
        let rows = json(&format!("plans {step} --ranks 4"))["plans"].as_array().unwrap().clone();
        for (plan, axes) in [("tp-sp", "tp=4"), ("fsdp", "dp=4"), ("tp-fsdp", "dp=2,tp=2")] {
            let simulated = json(&format!("simulate {step} --plan {plan} --mesh {axes}"));
            let costs = json(&format!("costs {step} --plan {plan} --mesh {axes}"));
            let kinds = simulated["kinds"].as_array().unwrap();
            // Six heads make two kinds of four ranks along `tp`.
            let ranks: Vec<u64> = kinds.iter().map(|kind| kind["ranks"].as_u64().unwrap()).collect();
            assert_eq!(ranks, if axes == "tp=4" { vec![3, 1] } else { vec![4] });
            for key in [
                "seconds",
                "compute_seconds",
                "exposed_seconds",
                "communication_seconds",
                "kernels",
                "collectives",
                "sent_bytes",
                "arena_bytes",
                "fits",
            ] {
                assert_eq!(kinds[0][key], costs["plan"][key], "{key} of {plan} on {target}");
            }
            let sizes = &simulated["mesh"];
            let row = rows.iter().find(|row| row["plan"] == plan && row["mesh"] == *sizes).unwrap();
            for key in ["seconds", "mfu", "model_flops"] {
                assert_eq!(simulated[key], row[key], "{key} of {plan} on {target}");
            }
            let number = |json: &Json| json.as_f64().unwrap();
            let (all, rank) = (number(&simulated["tokens_per_s"]), number(&simulated["tokens_per_s_per_rank"]));
            // Numbers lose their last digit in the text of JSON.
            assert!(
                (all * number(&row["seconds"]) / 128.0 - 1.0).abs() < 1e-12 && (4.0 * rank / all - 1.0).abs() < 1e-12
            );
            // The parts add up.
            let sum =
                |list: &Json, key: &str| list.as_array().unwrap().iter().map(|row| number(&row[key])).sum::<f64>();
            assert_eq!(sum(&kinds[0]["peak"], "bytes"), number(&kinds[0]["arena_bytes"]));
            let axes = &kinds[0]["communication"];
            assert_eq!(sum(axes, "collectives"), number(&kinds[0]["collectives"]));
            assert!((sum(axes, "sent_bytes") - number(&kinds[0]["sent_bytes"])).abs() <= 2.0);
            for (part, whole) in [("seconds", "communication_seconds"), ("exposed_seconds", "exposed_seconds")] {
                let (parts, whole) = (sum(axes, part), number(&kinds[0][whole]));
                assert!((parts - whole).abs() <= 1e-9 * whole, "{part} of {plan} on {target}: {parts} and {whole}");
            }
        }
    }
}

#[test]
fn the_report_lists_kinds_axes_and_memory() {
    let gpt = "simulate --preset gpt --train --batch 8 --seq 16";
    insta::assert_snapshot!("one_kind", run(&format!("{gpt} --plan tp-fsdp --mesh dp=2,tp=2 --target h100-node")));
    // Six heads on four ranks, and data for three of four ranks.
    let uneven = "simulate --preset gpt --train --batch 5 --seq 16 --plan tp-ddp --mesh dp=2,tp=3";
    insta::assert_snapshot!("kinds", run(uneven));
    insta::assert_snapshot!("alone", run("simulate --preset mlp --memory 20MB"));
}

/// 4,096 ranks are one kind if every size divides, and a few kinds otherwise; a rank runs the kernels that it would run among
/// fewer ranks with the same shards.
#[test]
fn thousands_of_ranks_are_simulated() {
    let step = |batch: usize| format!("simulate --preset gpt-learned --train --seq 16 --batch {batch} --plan tp-ddp");
    let many = json(&format!("{} --mesh dp=2048,tp=2", step(4096)));
    let few = json(&format!("{} --mesh dp=2,tp=2", step(4)));
    assert_eq!((&many["ranks"], many["kinds"].as_array().unwrap().len()), (&Json::from(4096), 1));
    for key in ["kernels", "collectives"] {
        assert_eq!(many["kinds"][0][key], few["kinds"][0][key], "{key}");
    }
    let compute = |report: &Json| report["kinds"][0]["compute_seconds"].as_f64().unwrap();
    assert!((compute(&many) / compute(&few) - 1.0).abs() < 0.01);
    let uneven = json(&format!("{} --mesh dp=2048,tp=2", step(3000)));
    let kinds = uneven["kinds"].as_array().unwrap();
    let ranks: Vec<u64> = kinds.iter().map(|kind| kind["ranks"].as_u64().unwrap()).collect();
    // Two sequences for each of 1,500 ranks along `dp`, none for the others.
    assert_eq!((ranks.iter().sum::<u64>(), kinds[0]["ranks"].as_u64()), (4096, Some(3000)), "{ranks:?}");
}

/// A slice of a trace.
struct Slice {
    name: String,
    category: String,
    track: u64,
    start: f64,
    end: f64,
    arguments: Json,
}

/// The slices of a trace, and the names of its tracks.
fn read(trace: &Json) -> (Vec<Slice>, BTreeMap<u64, String>) {
    let events = trace["traceEvents"].as_array().unwrap();
    let text = |json: &Json| json.as_str().unwrap().to_string();
    let slice = |event: &Json| {
        let start = event["ts"].as_f64().unwrap();
        Slice {
            name: text(&event["name"]),
            category: text(&event["cat"]),
            track: event["tid"].as_u64().unwrap(),
            start,
            end: start + event["dur"].as_f64().unwrap(),
            arguments: event["args"].clone(),
        }
    };
    let slices = events.iter().filter(|event| event["ph"] == "X").map(slice).collect();
    let named = events.iter().filter(|event| event["name"] == "thread_name");
    (slices, named.map(|event| (event["tid"].as_u64().unwrap(), text(&event["args"]["name"]))).collect())
}

#[test]
fn the_trace_says_what_the_report_says() {
    let scratch = Scratch::new("simulated-trace");
    for (target, plan, axes) in
        [("h100-node", "tp-fsdp", "dp=2,tp=2"), ("cpu", "tp-fsdp", "dp=2,tp=2"), ("h100-node", "tp-ddp", "dp=3,tp=2")]
    {
        let file = scratch.path("trace.json");
        let step = "simulate --preset gpt --train --batch 4 --seq 16";
        let report = json(&format!("{step} --plan {plan} --mesh {axes} --target {target} --trace {file}"));
        let trace: Json = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let (slices, tracks) = read(&trace);
        let kinds = report["kinds"].as_array().unwrap();
        assert!(tracks.len() > kinds.len());
        // Nothing overlaps within a track but the step, which is around all others of its rank.
        for track in tracks.keys() {
            let mut end = 0.0;
            for slice in slices.iter().filter(|slice| slice.track == *track && slice.category != "step") {
                assert!(slice.start >= end - 1e-6, "{} on {}", slice.name, tracks[track]);
                end = slice.end;
            }
        }
        for kind in kinds {
            let number = |key: &str| kind[key].as_f64().unwrap();
            let rank = kind["first_rank"].as_u64().unwrap();
            let own: Vec<&Slice> = slices.iter().filter(|slice| slice.track == rank).collect();
            // Each time is rounded to nanoseconds.
            let sum = |select: &dyn Fn(&Slice) -> bool| {
                own.iter().filter(|slice| select(slice)).map(|slice| (slice.end - slice.start) * 1e-6).sum::<f64>()
            };
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * own.len() as f64;
            assert!(close(sum(&|slice| slice.category == "step"), number("seconds")), "{target}");
            let kernels = sum(&|slice| !["step", "collective"].contains(&&*slice.category));
            assert!(close(kernels, number("compute_seconds")), "{target}: {kernels}");
            assert!(close(sum(&|slice| slice.category == "collective"), number("exposed_seconds")), "{target}");
            let names = format!("rank {rank} along ");
            let links = |slice: &&Slice| tracks[&slice.track].starts_with(&names);
            let links: Vec<&Slice> = slices.iter().filter(links).collect();
            let busy = links.iter().map(|slice| (slice.end - slice.start) * 1e-6).sum::<f64>();
            assert!(close(busy, number("communication_seconds")), "{target}: {busy}");
            let sent = links.iter().map(|slice| slice.arguments["sent_bytes"].as_f64().unwrap()).sum::<f64>();
            assert_eq!((sent.round(), links.len() as f64), (number("sent_bytes"), number("collectives")));
            // Each collective is on the track of its axes.
            let name = |slice: &&&Slice| format!("{names}{}", slice.arguments["axes"].as_str().unwrap());
            assert!(links.iter().all(|slice| tracks[&slice.track] == name(&slice)));
            // The counter is never above the size of the arena.
            let counter = format!("memory of rank {rank}");
            let counts = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["name"] == counter);
            let bytes =
                counts.map(|event| event["args"].as_object().unwrap().values().filter_map(Json::as_u64).sum::<u64>());
            let most = bytes.max().unwrap();
            assert!(most <= kind["arena_bytes"].as_u64().unwrap() && most > 0);
        }
        let modules: BTreeSet<&str> = slices.iter().filter_map(|slice| slice.arguments["module"].as_str()).collect();
        assert!(modules.iter().any(|module| module.contains("layers.3")), "{modules:?}");
        let phases: BTreeSet<&str> = slices.iter().filter_map(|slice| slice.arguments["phase"].as_str()).collect();
        assert_eq!(phases.into_iter().collect::<Vec<_>>(), ["backward", "forward", "optimizer"]);
        // Arrows lead from collectives to the kernels that read them, which begin later.
        let events = trace["traceEvents"].as_array().unwrap();
        let ends = |ph: &str| -> BTreeMap<u64, &Json> {
            let of = events.iter().filter(|event| event["ph"] == ph);
            of.map(|event| (event["id"].as_u64().unwrap(), event)).collect()
        };
        let (from, to) = (ends("s"), ends("f"));
        let collectives: u64 = kinds.iter().map(|kind| kind["collectives"].as_u64().unwrap()).sum();
        assert_eq!((from.len() as u64, from.len()), (collectives, to.len()));
        for (id, end) in to {
            let begin = from[&id];
            let at = |event: &Json| (event["tid"].as_u64().unwrap(), event["ts"].as_f64().unwrap());
            let ((link, sent), (rank, read)) = (at(begin), at(end));
            assert!(tracks[&link].starts_with("rank ") && tracks[&link].contains(" along "));
            assert!(sent <= read && tracks[&rank].starts_with("rank "));
            assert!(slices.iter().any(|slice| slice.track == link && slice.start <= sent && sent <= slice.end));
            // What only the caller reads is read at the end of its wait.
            let reads = |slice: &Slice| slice.category != "collective" || slice.name.starts_with("wait");
            assert!(slices.iter().any(|slice| slice.track == rank && slice.start == read && reads(slice)));
        }
    }
}

/// The track of a rank in a simulated step has the slices of the same program when it is executed.
#[test]
fn executed_steps_have_the_slices_of_the_simulated_one() {
    let scratch = Scratch::new("both-traces");
    let (simulated, executed) = (scratch.path("simulated.json"), scratch.path("executed.json"));
    let model = "--preset gpt --batch 2 --seq 8 --plan tp --mesh tp=2";
    run(&format!("simulate {model} --trace {simulated}"));
    let arguments = format!("bench {model} --mode fwd --iters 1 --trace {executed}");
    let (code, _, err) = tpc(&arguments.split(' ').collect::<Vec<_>>());
    assert_eq!(code, 0, "{err}");
    let slices = |file: &str| {
        let (slices, tracks) = read(&serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap());
        assert_eq!(tracks[&0], "rank 0 [0]");
        let own = slices.into_iter().filter(|slice| slice.track == 0 && slice.category != "step");
        // The reports attribute operations to modules of which the capture knows none; the executed program does not.
        let plain = |mut slice: Slice| {
            slice.arguments.as_object_mut().unwrap().remove("module");
            (slice.name, slice.category, slice.arguments)
        };
        own.map(plain).collect::<Vec<_>>()
    };
    let (simulated, executed) = (slices(&simulated), slices(&executed));
    // Two warm-up steps and a measured one.
    assert_eq!(executed.len(), 3 * simulated.len());
    assert!(executed.chunks(simulated.len()).all(|run| run == simulated));
}

/// `tpc bench` shows the prediction of `tpc simulate` beside what it measures.
#[test]
fn bench_shows_what_is_predicted() {
    let scratch = Scratch::new("predicted");
    let mut own = Target::cpu().clone();
    own.name = "here".into();
    let file = scratch.write("here.json", own.to_json());
    let model = "--preset gpt --batch 2 --seq 8 --plan tp --mesh tp=2";
    let simulated = json(&format!("simulate {model}"))["seconds"].as_f64().unwrap();
    let row = json(&format!("bench {model} --mode fwd --iters 1 --target {file}"));
    let number = |key: &str| row[key].as_f64().unwrap();
    assert_eq!(row["target"], "here");
    assert!((number("predicted_ms") - simulated * 1e3).abs() <= 5.1e-4, "{row}");
    assert!((number("measured_over_predicted") - number("median_ms") / number("predicted_ms")).abs() < 1e-2, "{row}");
    let text = run(&format!("bench {model} --mode fwd --iters 1"));
    assert!(text.contains("\npredicted on the target cpu: "), "{text}");
}

#[test]
fn what_cannot_be_simulated_is_said() {
    let scratch = Scratch::new("simulate-wrong");
    let mut said = String::new();
    let mut fails = |arguments: &str| {
        let (code, out, err) = tpc(&arguments.split(' ').collect::<Vec<_>>());
        assert_eq!((code, &*out), (1, ""), "{err}");
        said.push_str(&format!("{arguments}\n    {err}").replace(&scratch.0.display().to_string(), "$TMP"));
    };
    let gpt = "simulate --preset gpt --batch 2 --seq 8";
    fails(&format!("{gpt} --plan tp --mesh tp"));
    fails(&format!("{gpt} --plan tp --mesh dp=512,tp=256"));
    fails(&format!("{gpt} --plan tp --mesh dp=2"));
    fails(&format!("{gpt} --plan tpp --mesh tp=2"));
    fails(&format!("{gpt} --plan auto --mesh tp=2"));
    fails(&format!("{gpt} --plan tp --mesh tp=2 --target abacus"));
    fails(&format!("{gpt} --plan tp --mesh tp=2 --optimizer sgd"));
    fails(&format!("{gpt} --plan tp --mesh tp=2 --trace {}", scratch.path("none/trace.json")));
    let target = scratch.write("target.json", Target::cpu().to_json());
    fails(&format!("{gpt} --plan tp --mesh tp=2 --target {target} --trace {target}"));
    fails("simulate --preset abacus");
    insta::assert_snapshot!("errors", said);
}
