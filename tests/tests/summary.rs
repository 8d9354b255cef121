//! `tpc costs` and `tpc diff`: what they say of each module adds up to what the whole program says.

use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use tpc_compiler::plans::Workload;
use tpc_compiler::program::{CompileOptions, compile_training};
use tpc_compiler::summary::{Cost, Difference, Part, Summary, Work, rows};
use tpc_ir::program::{Action, CollectiveOp, RankProgram};
use tpc_ir::{ModulePath, Phase};
use tpc_passes::simulate::{Lane, simulate};
use tpc_passes::targets::Target;
use tpc_tests::command::{Scratch, json, run, tpc};
use tpc_tests::training::{gpt_step, mesh, plan};

/// The plans that are summarized, each on four ranks.
const PLANS: [(&str, &str); 4] = [("tp-sp", "tp=4"), ("2d", "dp=2,tp=2"), ("ddp", "dp=4"), ("tp-sp-fsdp", "dp=2,tp=2")];

/// The summary of a plan for that step.
fn summarized((name, axes): (&str, &str), target: &Target) -> Summary {
    let (capture, rename) = gpt_step();
    let workload = Workload::of_training(&capture, &rename).unwrap();
    workload.summarize(&mesh(axes), &plan(name), &CompileOptions::new(target.clone())).unwrap()
}

/// The program of the first rank that would be launched.
fn launched((name, axes): (&str, &str), target: &Target) -> RankProgram {
    let (capture, rename) = gpt_step();
    let options = CompileOptions::new(target.clone());
    let program = compile_training(capture, &mesh(axes), &plan(name), &options, &rename).unwrap();
    program.steady.ranks.into_vec().remove(0)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[test]
fn sums_are_those_of_the_whole_program() {
    for target in ["cpu", "h100-node"] {
        let target = Target::built_in(target).unwrap();
        for of in PLANS {
            let (summary, program) = (summarized(of, target), launched(of, target));
            let timeline = simulate(&program, target);
            let compute = summary.total(|part| part.work == Work::Compute);
            let communication = summary.total(|part| part.work != Work::Compute);
            assert!(close(summary.seconds, timeline.seconds));
            assert!(
                close(compute.seconds, timeline.busy(Lane::Compute)) && compute.seconds == compute.of_step,
                "{of:?}"
            );
            assert!(close(communication.seconds, timeline.busy(Lane::Communication)), "{of:?}");
            assert!(close(communication.of_step, timeline.exposed()), "{of:?}: {communication:?}");
            let collectives = program.collectives().count();
            let waits = program.steps.iter().filter(|step| matches!(step.action, Action::Wait { .. })).count();
            assert_eq!((communication.count, compute.count), (collectives, program.steps.len() - collectives - waits));
            // All sizes of the preset are divided by the ranks.
            assert_eq!(communication.sent, program.collectives().map(|c| c.wire_bytes()).sum::<f64>());
            assert_eq!(summary.arena_bytes, program.arena_bytes);
            assert_eq!(summary.peak.values().sum::<usize>(), program.arena_bytes, "{of:?}");
        }
    }
}

/// Each kind of collective over each axis in each phase, counted in the program a second time.
#[test]
fn collectives_are_counted_by_phase_operation_and_axes() {
    for of in PLANS {
        let (summary, program) = (summarized(of, Target::cpu()), launched(of, Target::cpu()));
        let mut expected: BTreeMap<(&str, String), (usize, f64)> = BTreeMap::new();
        for collective in program.collectives() {
            let kind = (collective.phase.name(), format!("{} {}", collective.name(), collective.axes));
            let (count, sent) = expected.entry(kind).or_default();
            (*count, *sent) = (*count + 1, *sent + collective.wire_bytes());
        }
        let mut found: BTreeMap<(&str, String), (usize, f64)> = BTreeMap::new();
        for ((_, part), cost) in summary.parts.iter().filter(|((_, part), _)| part.work != Work::Compute) {
            let (count, sent) = found.entry((part.phase.name(), part.work.to_string())).or_default();
            (*count, *sent) = (*count + cost.count, *sent + cost.sent);
        }
        assert_eq!(found, expected, "{of:?}");
    }
}

/// Rows of several modules have the sums of what is summarized, and no module is in two rows of one kind.
#[test]
fn rows_lose_nothing() {
    for of in PLANS {
        let summary = summarized(of, Target::cpu());
        let parts = rows(&summary.parts);
        assert!(parts.len() < summary.parts.len(), "{of:?}: the layers are equal");
        assert_eq!(parts.iter().map(|row| row.modules.paths().len()).sum::<usize>(), summary.parts.len());
        for row in &parts {
            let members = row.modules.paths().iter().map(|path| summary.parts[&(path.clone(), row.key.clone())]);
            let members: Vec<_> = members.collect();
            assert_eq!(members.iter().map(|cost| cost.count).sum::<usize>(), row.amount.count);
            assert!(close(members.iter().map(|cost| cost.of_step).sum(), row.amount.of_step));
            assert!(members.iter().all(|cost| cost.count == members[0].count && close(cost.sent, members[0].sent)));
        }
        assert_eq!(rows(&summary.peak).iter().map(|row| row.amount).sum::<usize>(), summary.arena_bytes);
    }
}

#[test]
fn what_differs_adds_up_to_the_difference_of_the_totals() {
    for target in ["cpu", "h100-node"] {
        let target = Target::built_in(target).unwrap();
        let summaries = PLANS.map(|of| summarized(of, target));
        for (i, a) in summaries.iter().enumerate() {
            for (j, b) in summaries.iter().enumerate() {
                let Difference { parts, peak } = Difference::of(a, b);
                assert_eq!(i == j, parts.is_empty() && peak.is_empty(), "{:?} and {:?}", PLANS[i], PLANS[j]);
                let change = |of: fn(&Cost) -> f64| -> f64 {
                    parts.iter().map(|row| of(&row.amount[1]) - of(&row.amount[0])).sum()
                };
                assert!((change(|cost| cost.of_step) - (b.seconds - a.seconds)).abs() < 1e-9 * a.seconds);
                let sent = |summary: &Summary| summary.total(|_| true).sent;
                assert_eq!(change(|cost| cost.sent), sent(b) - sent(a));
                let bytes = peak.iter().map(|row| row.amount[1] as i64 - row.amount[0] as i64).sum::<i64>();
                assert_eq!(bytes, b.arena_bytes as i64 - a.arena_bytes as i64);
                let sizes: Vec<f64> =
                    parts.iter().map(|row| (row.amount[1].of_step - row.amount[0].of_step).abs()).collect();
                assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
                assert!(peak.iter().map(|row| row.amount[0].abs_diff(row.amount[1])).is_sorted_by(|a, b| a >= b));
            }
        }
    }
}

/// The gradient of a linear takes two products of the size of its own: one for its input, one for its weight. Both belong
/// to the module that the linear belongs to, and the update of the weight, too.
#[test]
fn the_backward_pass_belongs_to_the_modules_of_the_forward_pass() {
    // Only products take time.
    let mut target = Target::cpu().clone();
    (target.device.memory, target.device.launch) = (f64::INFINITY, 0.0);
    for of in PLANS {
        let summary = summarized(of, &target);
        let seconds = |module: &str, phase: Phase| {
            let key = (ModulePath::from(module), Part { phase, work: Work::Compute });
            summary.parts[&key].seconds
        };
        let layers = (0..6).map(|layer| format!("model.layers.{layer}.mlp"));
        for module in layers.chain(["lm_head".to_string()]) {
            let [forward, backward] = [Phase::Forward, Phase::Backward].map(|phase| seconds(&module, phase));
            assert!(forward > 0.0 && close(2.0 * forward, backward), "{of:?}: {module}: {forward} and {backward}");
            let optimizer = (ModulePath::from(module.as_str()), Part { phase: Phase::Optimizer, work: Work::Compute });
            assert!(summary.parts[&optimizer].count > 0, "{of:?}: {module}");
        }
        // What is left belongs to attention.
        let products = summary.parts.iter().filter(|(_, cost)| cost.seconds > 0.0);
        let others = products.map(|((module, part), _)| (module.to_string(), part.work == Work::Compute));
        let others: BTreeSet<String> = others.filter(|(_, is_compute)| *is_compute).map(|(module, _)| module).collect();
        assert!(
            others.iter().all(|m| m == "lm_head" || m.ends_with(".mlp") || m.ends_with(".self_attn")),
            "{others:?}"
        );
    }
}

/// What a module reduces over the ranks in the forward pass, it gathers the gradient of in the backward pass, and the other
/// way round.
#[test]
fn collectives_of_the_backward_pass_mirror_those_of_the_forward_pass() {
    let summary = summarized(("tp-sp", "tp=4"), Target::cpu());
    let modules = |phase: Phase, op: CollectiveOp| -> BTreeSet<ModulePath> {
        let part = Part { phase, work: Work::Collective { op, axes: vec!["tp".into()] } };
        summary.parts.keys().filter(|(_, p)| *p == part).map(|(module, _)| module.clone()).collect()
    };
    let (gather, scatter) = (CollectiveOp::AllGather, CollectiveOp::ReduceScatter);
    for (forward, backward) in [(gather, scatter), (scatter, gather)] {
        let [forward, backward] = [modules(Phase::Forward, forward), modules(Phase::Backward, backward)];
        // Two for each of six layers, and the head or the embedding.
        assert_eq!(forward.len(), 13, "{forward:?}");
        assert_eq!(forward, backward);
    }
}

const LLAMA: &str = "--preset llama --train --batch 4 --seq 64";

#[test]
fn tables_show_modules_phases_and_collectives() {
    insta::assert_snapshot!("costs_llama", run(&format!("costs {LLAMA} --plan tp --mesh tp=2")));
    insta::assert_snapshot!("costs_mlp", run("costs --preset mlp --plan tp --mesh tp=2"));
    insta::assert_snapshot!("diff_llama", run(&format!("diff {LLAMA} --plan tp --plan tp-sp --mesh tp=2")));
    insta::assert_snapshot!(
        "diff_planned",
        run(&format!("diff {LLAMA} --plan tp --plan tp --mesh tp=2 --placements given --placements planned"))
    );
    insta::assert_snapshot!(
        "diff_llama_h100",
        run(&format!("diff {LLAMA} --plan 2d --plan tp-sp-fsdp --mesh dp=2,tp=2 --target h100-node"))
    );
    insta::assert_snapshot!(
        "diff_mlp",
        run("diff --preset mlp --train --plan tp --mesh tp=2 --plan ddp --mesh dp=2 --memory 40MB")
    );
}

/// What other commands say of how a program is compiled can be said of two plans at once, or of each.
#[test]
fn compared_programs_have_the_options_of_the_others() {
    let report = |command: &str, options: &str| json(format!("{command} --mesh tp=2 {options}").trim_end());
    let alone = |options: &str| report(&format!("costs {LLAMA} --plan tp"), options)["plan"].clone();
    let compared = |options: &str| report(&format!("diff {LLAMA} --plan tp --plan tp"), options);
    let bytes = alone("")["arena_bytes"].as_u64().unwrap();
    let limit = format!("--memory-limit {bytes}");
    assert_eq!(compared(&limit)["b"], alone(&limit));
    let refused = error(&format!("diff {LLAMA} --plan tp --plan tp --mesh tp=2 {limit} --memory-limit 1MB"));
    assert!(
        refused.starts_with("error: --plan tp --mesh tp=2 --memory-limit 1000000: the smallest program"),
        "{refused}"
    );
    for options in ["--disable-rule 7", "--enable-rule 1", "--fp exact"] {
        let (both, alone) = (compared(options), alone(options));
        assert_eq!((&both["a"], &both["b"]), (&alone, &alone), "{options}");
    }
    let sent = |options: &str| compared(options)["a"]["sent_bytes"].as_f64().unwrap();
    assert!(sent("--disable-rule 7") > 1.5 * sent(""));
    let text = run(&format!("diff {LLAMA} --plan tp --plan tp --mesh tp=2 --fp exact --fp reassociate"));
    assert!(text.contains("\nA: --plan tp --mesh tp=2 --fp exact\nB: --plan tp --mesh tp=2\n"), "{text}");
}

/// The JSON has the numbers of the tables, row by row.
#[test]
fn json_equals_the_tables() {
    let of = |row: &Json, key: &str| row[key].as_str().unwrap().to_string();
    let work = |row: &Json| match row["axes"].as_array() {
        Some(axes) => {
            let axes: Vec<&str> = axes.iter().map(|axis| axis.as_str().unwrap()).collect();
            format!("{} {}", of(row, "work"), axes.join(","))
        }
        None => of(row, "work"),
    };
    let compared = format!("diff {LLAMA} --plan tp --plan tp-sp --mesh tp=2");
    let (report, text) = (json(&compared), run(&compared));
    let tables: Vec<&str> = text.split("\n\n").collect();
    let [_, totals, parts, peak] = tables[..] else { panic!("{text}") };
    assert_eq!((&report["a"]["plan"], &report["b"]["mesh"]["tp"]), (&"tp".into(), &2.into()));
    assert!(totals.contains(&format!("{}", report["b"]["collectives"])), "{totals}");
    let lines = |table: &str| table.lines().skip(1).map(str::to_string).collect::<Vec<_>>();
    for (rows, lines) in [("rows", lines(parts)), ("peak", lines(peak))] {
        let rows = report[rows].as_array().unwrap();
        assert_eq!(rows.len(), lines.len());
        for (row, line) in rows.iter().zip(lines) {
            assert!(line.starts_with(&of(row, "module")), "{row}: {line}");
            if row["phase"].is_null() {
                assert!(line.contains(&of(row, "content")), "{row}: {line}");
                continue;
            }
            let [a, b] = ["a", "b"].map(|plan| row[plan]["count"].as_u64().unwrap());
            let count = if a == b { format!(" {a} ") } else { format!(" {a} → {b} ") };
            assert!([work(row), of(row, "phase"), count].iter().all(|part| line.contains(part)), "{row}: {line}");
        }
    }
    let alone = json(&format!("costs {LLAMA} --plan tp --mesh tp=2"));
    for (key, total) in report["a"].as_object().unwrap() {
        assert_eq!(&alone["plan"][key], total, "{key}");
    }
    let sum = |key: &str| -> u64 {
        alone["rows"].as_array().unwrap().iter().map(|row| row["cost"][key].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("sent_bytes"), alone["plan"]["sent_bytes"].as_u64().unwrap());
    let pieces = ["kernels", "collectives"].map(|key| alone["plan"][key].as_u64().unwrap());
    assert_eq!(sum("count"), pieces[0] + pieces[1]);
}

#[test]
fn a_plan_file_may_be_compared() {
    let scratch = Scratch::new("diff");
    let file = scratch.write("plan.json", r#"{"styles": {"net1": "ColwiseParallel", "net2": "RowwiseParallel"}}"#);
    let same = run(&format!("diff --preset mlp --plan tp --plan {file} --mesh tp=2"));
    assert!(same.ends_with("\nnothing differs\n"), "{same}");
}

#[test]
fn a_plan_compared_with_itself_does_not_differ() {
    let text = run(&format!("diff {LLAMA} --plan tp --plan tp --mesh tp=2"));
    assert!(text.ends_with("\nnothing differs\n"), "{text}");
    let report = json("diff --preset mlp --plan tp --mesh tp=2 --plan tp --mesh tp=2");
    assert_eq!((report["rows"].as_array().unwrap().len(), report["peak"].as_array().unwrap().len()), (0, 0));
}

/// What a command that fails says.
fn error(arguments: &str) -> String {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (code, out, err) = tpc(&arguments);
    assert_eq!((code, &*out), (1, ""), "{err}");
    err
}

#[test]
fn what_cannot_be_compared_is_said() {
    let diff = "diff --preset mlp --plan tp";
    assert_eq!(error(diff), "error: two plans are compared, but --plan is given once\n");
    assert_eq!(
        error(&format!("{diff} --plan tp --plan ddp --mesh tp=2")),
        "error: two plans are compared, but --plan is given 3 times\n"
    );
    assert_eq!(
        error(&format!("{diff} --plan ddp --mesh tp=2 --mesh dp=2 --mesh dp=4")),
        "error: --mesh is given 3 times: give it once for both plans, or once for each\n"
    );
    assert!(error(&format!("{diff} --plan tpp --mesh tp=2")).contains("there is no built-in plan `tpp`"));
    let message = error(&format!("{diff} --plan ddp --mesh tp=2"));
    assert!(message.contains("--plan ddp") && message.contains("dp"), "{message}");
    assert!(error(&format!("{diff} --plan auto --mesh tp=2")).contains("--plan auto is for tpc train and tpc bench"));
    assert!(error(&format!("{diff} --plan tp --mesh tp=2 --target abacus")).contains("abacus"));
    assert!(error(&format!("{diff} --plan tp --mesh tp=2 --optimizer sgd")).contains("--optimizer has no effect"));
}
