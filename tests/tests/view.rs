//! `tpc view`: what its data says of each module adds up to what the launched program does, nothing in a name is markup, and
//! the page passes its own checks in a browser.
//!
//! Without a browser only the data is checked, unless `TPC_REQUIRE_BROWSER` is set, as in CI.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tpc_compiler::plans::Workload;
use tpc_compiler::program::{CompileOptions, Stages, compile_training};
use tpc_compiler::view::View;
use tpc_ir::program::{Action, RankProgram};
use tpc_ir::text::is_inline;
use tpc_passes::simulate::{Lane, simulate};
use tpc_passes::targets::Target;
use tpc_tests::command::{Scratch, tpc};
use tpc_tests::training::{gpt_step, mesh, plan};

/// The plans that are shown, each on four ranks.
const PLANS: [(&str, &str); 4] = [("tp-sp", "tp=4"), ("2d", "dp=2,tp=2"), ("ddp", "dp=4"), ("tp-sp-fsdp", "dp=2,tp=2")];

/// The view of a plan for that step.
fn viewed((name, axes): (&str, &str), target: &Target) -> View {
    let (capture, rename) = gpt_step();
    let workload = Workload::of_training(&capture, &rename).unwrap();
    workload.view(&mesh(axes), &plan(name), &CompileOptions::new(target.clone())).unwrap()
}

/// The steady program that would be launched.
fn launched((name, axes): (&str, &str), target: &Target) -> Stages {
    let (capture, rename) = gpt_step();
    let options = CompileOptions::new(target.clone());
    compile_training(capture, &mesh(axes), &plan(name), &options, &rename).unwrap().steady
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[test]
fn actions_add_up_to_the_launched_program() {
    for target in ["cpu", "h100-node"] {
        let target = Target::built_in(target).unwrap();
        for of in PLANS {
            let (view, stages) = (viewed(of, target), launched(of, target));
            let program = &stages.ranks[0];
            let timeline = simulate(program, target);
            let actions = &view.execution.actions;
            let (kernels, collectives): (Vec<_>, Vec<_>) = actions.iter().partition(|action| action.axes.is_none());
            let waits = program.steps.iter().filter(|step| matches!(step.action, Action::Wait { .. })).count();
            let launches = program.collectives().count();
            assert_eq!(collectives.iter().map(|action| action.count).sum::<usize>(), launches, "{of:?}");
            assert_eq!(
                kernels.iter().map(|action| action.count).sum::<usize>(),
                program.steps.len() - launches - waits
            );
            let sent: f64 = program.collectives().map(|c| c.wire_bytes()).sum();
            assert_eq!(collectives.iter().map(|action| action.sent).sum::<f64>(), sent, "{of:?}");
            assert!(close(kernels.iter().map(|action| action.seconds).sum(), timeline.busy(Lane::Compute)), "{of:?}");
            assert!(close(collectives.iter().map(|a| a.seconds).sum(), timeline.busy(Lane::Communication)), "{of:?}");
            assert!(close(actions.iter().map(|action| action.of_step).sum(), timeline.seconds), "{of:?}");
            assert!(close(view.seconds, timeline.seconds));
            // By kind, phase and axes, counted in the program a second time.
            let mut expected: BTreeMap<(String, String, String), usize> = BTreeMap::new();
            for c in program.collectives() {
                *expected.entry((c.name().into(), c.phase.name().into(), c.axes.to_string())).or_default() += 1;
            }
            let mut found: BTreeMap<(String, String, String), usize> = BTreeMap::new();
            for action in collectives {
                let axes = action.axes.clone().unwrap_or_default().join(",");
                *found.entry((action.label.clone(), action.phase.into(), axes)).or_default() += action.count;
            }
            assert_eq!(found, expected, "{of:?}");
        }
    }
}

#[test]
fn stretches_cover_the_step() {
    for target in ["cpu", "h100-node"] {
        for of in PLANS {
            let View { execution, seconds, .. } = viewed(of, Target::built_in(target).unwrap());
            let mut now = 0.0;
            for stretch in &execution.stretches {
                assert!((stretch.start - now).abs() < 1e-9 * seconds, "{of:?}: {} and {now}", stretch.start);
                now = stretch.start + stretch.seconds;
            }
            assert!(close(now, seconds), "{of:?}");
            let busy = |of: fn(&tpc_compiler::view::Busy) -> f64| -> [f64; 2] {
                [execution.stretches.iter().map(|stretch| of(&stretch.busy)).sum(), of(&execution.busy)]
            };
            for [parts, whole] in [busy(|b| b.compute), busy(|b| b.communication), busy(|b| b.waiting)] {
                assert!((parts - whole).abs() < 1e-9 * seconds, "{of:?}: {parts} and {whole}");
            }
        }
    }
}

/// Every line of the placed program is in a listing, as often as the program has it.
#[test]
fn listings_have_every_operation_and_every_byte() {
    for of in PLANS {
        let (view, Stages { placed, ranks, .. }) = (viewed(of, Target::cpu()), launched(of, Target::cpu()));
        let lines = placed.nodes().filter(|&node| !is_inline(&placed, node)).count();
        let each = || view.listings.iter().flat_map(|l| l.operations.iter().map(move |o| (o, l.count * o.times)));
        assert_eq!(each().map(|(_, times)| times).sum::<usize>(), lines, "{of:?}");
        let moves = placed.nodes().filter(|&node| placed.node(node).op.is_collective()).count();
        assert_eq!(each().filter(|(o, _)| o.sent.is_some()).map(|(_, times)| times).sum::<usize>(), moves);
        // All sizes of the preset are divided by the ranks, so what operations send is what the program sends.
        let sent: f64 = each().filter_map(|(o, times)| Some(o.sent.as_ref()?.bytes * times as f64)).sum();
        assert_eq!(sent, ranks[0].collectives().map(|c| c.wire_bytes()).sum::<f64>(), "{of:?}");
        // The layers are one module.
        let layers: Vec<_> = view.modules.iter().filter(|module| module.element).collect();
        let shown: Vec<(&str, usize)> = layers.iter().map(|module| (module.path.as_str(), module.count)).collect();
        assert_eq!(shown, [("model.layers.{0..5}", 6)], "{of:?}");
        assert!(each().count() < lines / 2, "{of:?}: the layers are equal");
    }
}

#[test]
fn the_curve_of_the_arena_reaches_the_peak_of_the_program() {
    /// Bytes of buffers in use during a step.
    fn in_use(program: &RankProgram, at: usize, lives: &[Option<(usize, usize)>]) -> usize {
        let used = |b: usize| program.buffers[b].persistent || lives[b].is_some_and(|(a, z)| (a..=z).contains(&at));
        program.buffers.iter().enumerate().filter(|(b, _)| used(*b)).map(|(_, buffer)| buffer.bytes).sum()
    }
    for target in ["cpu", "h100-node"] {
        let target = Target::built_in(target).unwrap();
        for of in PLANS {
            let (view, stages) = (viewed(of, target), launched(of, target));
            let program = &stages.ranks[0];
            let lives = tpc_passes::lower::lives(program);
            let most = (0..=program.steps.len()).map(|at| in_use(program, at, &lives)).max().unwrap();
            let total = |moment: &tpc_compiler::view::Moment| moment.bytes.iter().sum::<usize>();
            assert_eq!(total(&view.arena.peak), most, "{of:?}");
            assert_eq!(view.arena.moments.iter().map(total).max(), Some(most), "{of:?}");
            assert_eq!(view.arena.bytes, program.arena_bytes);
            assert_eq!(view.arena.holdings.iter().map(|holding| holding.bytes).sum::<usize>(), program.arena_bytes);
        }
    }
}

/// The page that a command line writes.
fn page(scratch: &Scratch, arguments: &str) -> String {
    let file = scratch.path("plan.html");
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (code, out, err) = tpc(&[&["view"], &arguments[..], &["-o", &file]].concat());
    assert_eq!((code, &*out, &*err), (0, "", ""));
    std::fs::read_to_string(file).unwrap()
}

/// The data in a page.
fn data(page: &str) -> Json {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

const LLAMA: &str = "--preset llama --train --batch 4 --seq 64";

#[test]
fn the_page_holds_the_data_and_nothing_foreign() {
    let scratch = Scratch::new("view");
    let arguments = format!("{LLAMA} --plan tp --plan tp-sp --mesh tp=2");
    let page = page(&scratch, &arguments);
    let arguments: Vec<&str> = arguments.split(' ').collect();
    let (code, json, _) = tpc(&[&["view"], &arguments[..], &["--json"]].concat());
    assert_eq!((code, data(&page)), (0, serde_json::from_str(&json).unwrap()));
    let report = data(&page);
    let flags: Vec<&str> = report["plans"].as_array().unwrap().iter().map(|p| p["flags"].as_str().unwrap()).collect();
    assert_eq!(flags, ["--plan tp --mesh tp=2", "--plan tp-sp --mesh tp=2"]);
    // Only the name space of drawings is an address.
    for (at, _) in page.match_indices("://") {
        assert!(page[at - 4..].starts_with("http://www.w3.org/2000/svg"), "{}", &page[at - 40..at + 40]);
    }
    assert!(page.contains("default-src 'none'") && !page.contains("{{"), "the template is filled");
}

/// Eighty layers are one module, so the page is small.
#[test]
fn the_page_of_eighty_layers_is_small() {
    let scratch = Scratch::new("view-deep");
    let page = page(&scratch, &format!("{} {DEEP}", deep(&scratch)));
    assert!(page.len() < 1 << 19, "{} bytes", page.len());
    let report = data(&page);
    let view = &report["plans"][0]["view"];
    let modules = view["modules"].as_array().unwrap();
    let layers = modules.iter().find(|module| module["element"] == true).unwrap();
    assert_eq!((&layers["path"], &layers["count"]), (&"model.layers.{0..79}".into(), &80.into()));
    let repeats = |stretch: &Json| stretch["count"].as_u64().unwrap() > 10;
    let stretches = view["execution"]["stretches"].as_array().unwrap();
    assert!(stretches.iter().filter(|stretch| repeats(stretch)).count() >= 2 && stretches.len() < 20, "{stretches:?}");
}

const DEEP: &str = "--train --plan tp-sp-fsdp --mesh dp=8,tp=8 --batch 8 --seq 8192 --target h100-node";

/// The directory of a model of 80 layers.
fn deep(scratch: &Scratch) -> String {
    let config = r#"{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
        "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128256, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 5e5}"#;
    let file = scratch.write("config.json", config);
    Path::new(&file).parent().unwrap().display().to_string()
}

/// What a user names never becomes markup: a directory, a plan file, and a target that ends the element.
#[test]
fn names_are_not_markup() {
    let scratch = Scratch::new("view-names");
    let name = "<script>alert('x')<!--{{script}}";
    std::fs::create_dir_all(scratch.0.join(name)).unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/hf/llama-tiny/config.json");
    std::fs::copy(config, scratch.0.join(name).join("config.json")).unwrap();
    let (model, file) = (scratch.path(name), scratch.path("page.html"));
    let plan = scratch.write("<img src=x onerror=y>.json", r#"{"styles": {"model.layers.*.mlp": "PairwiseParallel"}}"#);
    let target = Target { name: "</script><img src=x>".into(), ..Target::cpu().clone() };
    let target = scratch.write("target.json", target.to_json());
    let (code, _, err) = tpc(&["view", &model, "--plan", &plan, "--mesh", "tp=2", "--target", &target, "-o", &file]);
    assert_eq!((code, &*err), (0, ""));
    let page = std::fs::read_to_string(&file).unwrap();
    assert!(!page.contains("<script>alert") && !page.contains("<img src=x") && !page.contains("<!--"));
    assert_eq!(page.matches("</script>").count(), 2);
    let report = data(&page);
    assert!(report["model"].as_str().unwrap().ends_with(name));
    assert!(report["plans"][0]["flags"].as_str().unwrap().contains("<img src=x onerror=y>.json"));
    assert!(report["described"].as_str().unwrap().ends_with("</script><img src=x>"), "{}", report["described"]);
    if let Some(browser) = browser() {
        assert_eq!(failures(&browser, &file, 1), 0);
    }
}

/// The browser, if there is one.
fn browser() -> Option<String> {
    let named = std::env::var("TPC_BROWSER").ok();
    let known = ["chromium", "chromium-browser", "google-chrome", "chrome"].map(String::from);
    let works =
        |name: &String| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    let found = named.into_iter().chain(known).find(works);
    assert!(found.is_some() || std::env::var_os("TPC_REQUIRE_BROWSER").is_none(), "no browser: install chromium");
    if found.is_none() {
        println!("the page was not opened: no browser was found; install chromium, or name one in TPC_BROWSER");
    }
    found
}

/// Opens a page, which checks itself, and counts the checks that fail.
fn failures(browser: &str, file: &str, plans: usize) -> usize {
    let profile = Scratch::new("view-browser");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1600,1200"])
        .arg("--virtual-time-budget=30000")
        .arg(format!("--user-data-dir={}", profile.path("profile")))
        .arg("--dump-dom")
        .arg(format!("file://{file}#test"))
        .output()
        .unwrap();
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let Some((_, result)) = dom.split_once("id=\"self-check\"") else { panic!("{file} did not check itself: {log}") };
    // Each plan has its own drawing of the step.
    assert_eq!(dom.matches("aria-label=\"the step of plan").count(), plans, "{file}");
    let (_, failures) = result.split_once("data-failures=\"").unwrap();
    let failures: usize = failures.split_once('"').unwrap().0.parse().unwrap();
    assert_eq!(failures == 0, result.contains(">passed: "), "{result}");
    if failures > 0 {
        println!("{result}");
    }
    failures
}

/// Models and plans of every kind: two plans side by side, one rank, no collective, a plan of its own placements, an
/// inference, 80 layers.
#[test]
fn pages_pass_their_own_checks_in_a_browser() {
    let Some(browser) = browser() else { return };
    let scratch = Scratch::new("view-pages");
    let tiny = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("data/hf").join(name).display().to_string();
    let pages = [
        (format!("{LLAMA} --plan tp --plan tp-sp --mesh tp=2"), 2),
        (format!("{LLAMA} --plan 2d --plan tp-sp-fsdp --mesh dp=2,tp=2 --target h100-node"), 2),
        (format!("{LLAMA} --plan tp --mesh tp=2 --plan ddp --mesh dp=2 --micro-batches 2"), 2),
        (format!("{LLAMA} --plan tp --mesh tp=2 --placements planned"), 1),
        ("--preset mlp --plan none".into(), 1),
        ("--preset mlp --train --plan tp --mesh tp=2".into(), 1),
        (format!("{} --plan none --train", tiny("gpt2-tiny")), 1),
        (format!("{} --plan tp --mesh tp=4 --batch 2 --seq 8", tiny("bert-tiny")), 1),
        (format!("{} {DEEP}", deep(&scratch)), 1),
    ];
    for (arguments, plans) in pages {
        page(&scratch, &arguments);
        assert_eq!(failures(&browser, &scratch.path("plan.html"), plans), 0, "{arguments}");
    }
}

/// The checks of a page find what is wrong in its data: a module that holds a byte more, a kernel that takes longer, a
/// stretch that is missing, a type that is no longer cut.
#[test]
fn a_wrong_page_fails_its_checks() {
    let Some(browser) = browser() else { return };
    let scratch = Scratch::new("view-wrong");
    let right = page(&scratch, &format!("{LLAMA} --plan tp-sp --mesh tp=2"));
    type Change = fn(&mut Json);
    let wrong: [(&str, Change); 4] = [
        ("bytes", |view| {
            let bytes = view["arena"]["holdings"][0]["bytes"].as_u64().unwrap();
            view["arena"]["holdings"][0]["bytes"] = (bytes + 1).into();
        }),
        ("time", |view| {
            let actions = view["execution"]["actions"].as_array_mut().unwrap();
            let kernel = actions.iter_mut().find(|action| action["axes"].is_null()).unwrap();
            kernel["of_step"] = (kernel["of_step"].as_f64().unwrap() * 1.5).into();
        }),
        ("stretch", |view| drop(view["execution"]["stretches"].as_array_mut().unwrap().pop())),
        ("type", |view| {
            let types = view["types"].as_array_mut().unwrap();
            let dims = types.iter_mut().flat_map(|ty| ty["dims"].as_array_mut().unwrap());
            let cut = dims.into_iter().find(|dim| dim["axes"].as_array().is_some_and(|axes| !axes.is_empty()));
            cut.unwrap()["axes"] = Json::Array(Vec::new());
        }),
    ];
    for (name, change) in wrong {
        let mut changed = data(&right);
        change(&mut changed["plans"][0]["view"]);
        let (before, rest) = right.split_once("id=\"data\">").unwrap();
        let (_, after) = rest.split_once("</script>").unwrap();
        let file = scratch.write("wrong.html", format!("{before}id=\"data\">{changed}</script>{after}"));
        assert!(failures(&browser, &file, 1) > 0, "{name}");
    }
}

#[test]
fn what_cannot_be_shown_is_said() {
    let error = |arguments: &[&str]| {
        let (code, out, err) = tpc(&[&["view", "--preset", "mlp"], arguments].concat());
        assert_eq!((code, &*out), (1, ""), "{err}");
        err
    };
    let scratch = Scratch::new("view-errors");
    let file = scratch.path("page.html");
    let three = ["--plan", "tp", "--plan", "tp", "--plan", "ddp", "--mesh", "tp=2", "-o", &file];
    assert_eq!(error(&three), "error: a page shows one or two plans, but --plan is given 3 times\n");
    assert_eq!(
        error(&["--plan", "tp", "--mesh", "tp=2", "--mesh", "tp=4", "-o", &file]),
        "error: --mesh is given 2 times, but there is one plan: give it once, or give a second --plan\n"
    );
    let two = ["--plan", "tp", "--plan", "ddp", "--mesh", "tp=2", "-o", &file];
    assert!(error(&two).starts_with("error: --plan ddp --mesh tp=2: "), "{}", error(&two));
    assert!(error(&["--plan", "tpp", "-o", &file]).contains("there is no built-in plan `tpp`"));
    let plan = scratch.write("plan.json", r#"{"styles": {"net1": "ColwiseParallel"}}"#);
    assert_eq!(
        error(&["--plan", &plan, "--mesh", "tp=2", "-o", &plan]),
        format!("error: --output {plan} is also read, as --plan {plan}: give another path; nothing was written\n")
    );
    assert_eq!(scratch.names(), ["plan.json"], "nothing is written");
    let (code, _, err) = tpc(&["view", "--preset", "mlp", "--plan", "none"]);
    assert!(code == 2 && err.contains("--output <FILE.html>"), "{err}");
    let (code, help, _) = tpc(&["view", "--help"]);
    assert_eq!(code, 0);
    for option in ["--plan <PLAN>", "--mesh <MESH>", "--output <FILE.html>", "--json", "--target", "--train"] {
        assert!(help.contains(option), "{help}");
    }
}
