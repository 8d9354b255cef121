//! The `tpc` command: what it computes, what it reports, and its messages about bad input.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tpc_tests::command::{Scratch, tpc};

fn data(path: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(path).display().to_string()
}

/// The standard output of a command that succeeds.
fn ok(arguments: &[&str]) -> String {
    let (code, out, err) = tpc(arguments);
    assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
    out
}

/// The standard output and the notes of a command that succeeds, with file paths replaced.
fn noted(arguments: &[&str], scratch: &Scratch) -> (String, String) {
    let (code, out, err) = tpc(arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    assert!(err.lines().all(|line| line.starts_with("note: ")), "{err}");
    (out, err.replace(&scratch.path(""), "$TMP/").replace(&data(""), "$DATA/"))
}

/// The note of a training run that saves nothing.
const KEEPS_NOTHING: &str =
    "note: the trained model will be lost: --save DIR keeps the model, --checkpoint DIR also its state\n";

/// The message of a command that fails, with file paths replaced.
fn error(arguments: &[&str], scratch: &Scratch) -> String {
    let (code, out, err) = tpc(arguments);
    assert_eq!((code, out.as_str()), (1, ""), "{arguments:?}: {err}");
    let err = err.replace(&scratch.path(""), "$TMP/").replace(&data(""), "$DATA/");
    err.strip_prefix("error: ").and_then(|e| e.strip_suffix('\n')).unwrap().to_string()
}

type Tensors = HashMap<String, (Vec<usize>, Vec<f64>)>;

fn tensors(path: impl AsRef<Path>) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |t: &TensorView| -> Vec<f64> {
        assert_eq!(t.dtype(), Dtype::F32);
        t.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
    };
    file.iter().map(|(n, t)| (n.to_string(), (t.shape().to_vec(), values(&t)))).collect()
}

/// Writes a file of `[rows, columns]` integers.
fn batch(scratch: &Scratch, name: &str, tensors: &[(&str, [usize; 2], &[i64])]) -> String {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((n, shape, _), data)| (*n, TensorView::new(Dtype::I64, shape.to_vec(), data).unwrap()));
    scratch.write(name, safetensors::serialize(views, None).unwrap())
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

#[test]
fn run_gives_the_expected_logits_and_loss() {
    let scratch = Scratch::new("run");
    for (model, plan, mesh) in [("llama-tiny", "tp", "tp=2"), ("gpt2-tiny", "none", ""), ("bert-tiny", "ddp", "dp=2")] {
        let dir = data(&format!("hf/{model}"));
        let output = scratch.path("out.safetensors");
        let inputs = format!("{dir}/inputs.safetensors");
        let arguments = ["run", &dir, "--plan", plan, "--mesh", mesh, "--inputs", &inputs, "--output", &output];
        assert!(ok(&arguments).contains("logits [2, 32, 256], loss 5."));
        let (found, expected) = (tensors(&output), tensors(format!("{dir}/expected.safetensors")));
        let ((shape, logits), (expected_shape, want)) = (&found["logits"], &expected["logits"]);
        assert_eq!(shape, expected_shape);
        let far = logits.iter().zip(want).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(far <= 1e-4 * largest(want), "{model}: {far}");
        let losses: Json = serde_json::from_slice(&std::fs::read(format!("{dir}/expected.json")).unwrap()).unwrap();
        let loss = losses["losses"][0].as_f64().unwrap();
        assert_eq!(found["loss"].0, [0usize; 0]);
        assert!((found["loss"].1[0] - loss).abs() <= 1e-5 * loss);
    }
}

#[test]
fn run_without_labels_gives_logits_only() {
    let scratch = Scratch::new("unlabeled");
    let inputs = batch(&scratch, "in.safetensors", &[("input_ids", [1, 3], &[1, 2, 3])]);
    let output = scratch.path("out.safetensors");
    let arguments = ["run", &data("hf/gpt2-tiny"), "--inputs", &inputs, "--output", &output];
    assert_eq!(ok(&arguments), format!("wrote {output}: logits [1, 3, 256]\n"));
    assert_eq!(tensors(&output).keys().collect::<Vec<_>>(), ["logits"]);
}

#[test]
fn train_follows_the_expected_losses_and_saves_a_model() {
    let scratch = Scratch::new("train");
    for (model, plan, mesh) in [("llama-tiny", "tp-ddp", "dp=2,tp=2"), ("gpt2-tiny", "tp", "tp=2")] {
        let dir = data(&format!("hf/{model}"));
        let inputs = format!("{dir}/inputs.safetensors");
        let (save, grads, metrics) = (scratch.path("saved"), scratch.path("g.safetensors"), scratch.path("m.jsonl"));
        let optimizer =
            "--optimizer adamw --lr 0.001 --beta1 0.9 --beta2 0.95 --eps 1e-8 --weight-decay 0.1 --decay-all";
        let mut arguments = vec!["train", &dir, "--plan", plan, "--mesh", mesh, "--inputs", &inputs, "--steps", "3"];
        arguments.extend(optimizer.split(' '));
        arguments.extend(["--save", &save, "--grads", &grads, "--metrics", &metrics]);
        ok(&arguments);

        let expected: Json = serde_json::from_slice(&std::fs::read(format!("{dir}/expected.json")).unwrap()).unwrap();
        let lines = std::fs::read_to_string(&metrics).unwrap();
        for (i, line) in lines.lines().enumerate() {
            let row: Json = serde_json::from_str(line).unwrap();
            let loss = expected["losses"][i].as_f64().unwrap();
            assert_eq!(row["step"].as_u64(), Some(i as u64 + 1));
            assert!((row["loss"].as_f64().unwrap() - loss).abs() <= 1e-5 * loss, "{model}: {line}, expected {loss}");
            assert!(row["ms"].as_f64().unwrap() > 0.0 && row["tokens_per_s"].as_f64().unwrap() > 0.0);
        }
        assert_eq!(lines.lines().count(), 3);

        let reference = tensors(format!("{dir}/expected.safetensors"));
        let (found, saved) = (tensors(&grads), tensors(format!("{save}/model.safetensors")));
        for (name, (shape, gradient)) in &found {
            let (expected_shape, want) = &reference[&format!("grad.{name}")];
            assert_eq!(shape, expected_shape, "{name}");
            let far = gradient.iter().zip(want).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            // The gradient of a key's bias is zero in theory.
            assert!(far <= 1e-4 * largest(want).max(0.1), "{model}: gradient of {name} is off by {far}");
            let (expected_shape, want) = &reference[&format!("param_after.{name}")];
            let (shape, values) = &saved[name];
            assert_eq!(shape, expected_shape, "{name}");
            for ((a, b), g) in values.iter().zip(want).zip(gradient) {
                assert!(g.abs() < 1e-5 || (a - b).abs() <= 2e-4, "{model}: {name} is off by {}", (a - b).abs());
            }
        }
        assert_eq!(found.len(), saved.len());
        // The saved files are a model directory.
        let output = scratch.path("out.safetensors");
        ok(&["run", &save, "--inputs", &inputs, "--output", &output]);
        assert_eq!(scratch.names(), ["g.safetensors", "m.jsonl", "out.safetensors", "saved"]);
    }
}

#[test]
fn train_learns_a_text_with_every_optimizer() {
    let scratch = Scratch::new("text");
    let text = scratch.write("text", "the quick brown fox jumps over the lazy dog. ".repeat(20).as_bytes());
    let dir = data("hf/llama-tiny");
    let optimizers: [&[&str]; 4] = [
        &["--optimizer", "adamw", "--lr", "3e-3"],
        &["--optimizer", "adam", "--lr", "3e-3"],
        &["--optimizer", "sgd", "--lr", "0.3", "--weight-decay", "0.01"],
        &["--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.9", "--nesterov"],
    ];
    for optimizer in optimizers {
        let metrics = scratch.path("m.jsonl");
        let mut arguments =
            vec!["train", &dir, "--data", &text, "--characters", "--steps", "8", "--batch", "4", "--seq", "16"];
        arguments.extend(["--from-scratch", "--seed", "3", "--metrics", &metrics]);
        arguments.extend(optimizer);
        let (out, notes) = noted(&arguments, &scratch);
        assert_eq!(notes, KEEPS_NOTHING);
        let rows = std::fs::read_to_string(&metrics).unwrap();
        let losses: Vec<f64> =
            rows.lines().map(|l| serde_json::from_str::<Json>(l).unwrap()["loss"].as_f64().unwrap()).collect();
        assert!(losses[7] < losses[0] - 0.2, "{optimizer:?}: {losses:?}");
        assert!(out.contains(&format!("step 8/8  loss {:.6}", losses[7])), "{out}");
    }
}

#[test]
fn dump_ir_reports_collectives_and_memory() {
    let arguments = ["dump-ir", "--preset", "mlp", "--plan", "tp", "--mesh", "tp=2", "--train", "--json"];
    let report: Json = serde_json::from_str(&ok(&arguments)).unwrap();
    let counts: BTreeMap<String, BTreeMap<String, usize>> =
        serde_json::from_value(report["totals"]["counts"].clone()).unwrap();
    let one = BTreeMap::from([("all_reduce".to_string(), 1)]);
    assert_eq!(counts, BTreeMap::from([("forward".into(), one.clone()), ("backward".into(), one)]));
    let bytes = 512 * 1024 * 4;
    let first = &report["collectives"][0];
    assert_eq!(first["kind"], "all_reduce");
    assert_eq!((&first["axes"], &first["phase"], &first["dtype"]), (&"tp".into(), &"forward".into(), &"f32".into()));
    assert_eq!((first["full_bytes"].as_u64(), first["count"].as_u64()), (Some(bytes), Some(1)));
    assert_eq!(first["dim"], Json::Null);
    assert!(first["why"].as_str().unwrap().contains("net2.weight"));
    let totals = &report["totals"];
    assert_eq!(totals["wire_bytes"].as_f64(), Some(2.0 * bytes as f64));
    assert_eq!(totals["parameter_bytes"].as_u64(), Some((1024 * 4096 + 2048 + 1024) * 4));
    assert_eq!(totals["state_bytes"].as_u64(), Some(0));
    assert_eq!(report["replicated_parameters"].as_array().unwrap().len(), 1);
    assert_eq!(report["replicated_parameters"][0]["name"], "net2.bias");
    assert_eq!(report["ranks"].as_array().unwrap().len(), 2);
}

/// The gradients of the 2L+1 norm gains are one row that carries five values for the two layers of the directory.
#[test]
fn dump_ir_says_how_many_values_a_collective_carries() {
    let dir = data("hf/llama-tiny");
    let arguments = ["dump-ir", &dir, "--plan", "tp-sp", "--mesh", "tp=2", "--train", "--json"];
    let report: Json = serde_json::from_str(&ok(&arguments)).unwrap();
    let rows = report["collectives"].as_array().unwrap();
    let carried: Vec<_> = rows.iter().filter(|c| c["values"].as_u64() > Some(1)).collect();
    let of = |phase: &str| carried.iter().filter(|c| c["phase"] == phase).collect::<Vec<_>>();
    assert_eq!((carried.len(), of("forward").len(), of("backward").len()), (2, 1, 1), "{rows:?}");
    assert_eq!(of("forward")[0]["values"], 2);
    let gains = of("backward")[0];
    let layers = (gains["values"].as_u64().unwrap() - 1) / 2;
    assert_eq!(gains["values"], 2 * layers + 1);
    assert!(gains["why"].as_str().unwrap().ends_with(&format!("(and {} more)", 2 * layers)), "{gains}");
    assert_eq!(gains["wire_bytes"].as_f64().unwrap(), gains["full_bytes"].as_f64().unwrap());
}

#[test]
fn a_rule_that_is_disabled_leaves_the_reductions_of_query_key_and_value_apart() {
    let dir = data("hf/llama-tiny");
    let common =
        ["dump-ir", &dir, "--plan", "tp", "--mesh", "tp=2", "--train", "--json", "--batch", "2", "--seq", "32"];
    let backward = |more: &[&str]| {
        let report: Json = serde_json::from_str(&ok(&[&common, more].concat())).unwrap();
        let rows = report["collectives"].as_array().unwrap().clone();
        let large = rows.iter().filter(|c| c["phase"] == "backward" && c["full_bytes"].as_u64() > Some(4096));
        // Without folding they still share one collective: count the values.
        large.map(|c| c["count"].as_u64().unwrap() * c["values"].as_u64().unwrap()).sum::<u64>()
    };
    let layers = 2;
    assert_eq!(backward(&[]), 2 * layers + 1);
    assert_eq!(backward(&["--disable-rule", "7"]), 5 * layers + 1);
    assert_eq!(backward(&["--fp", "exact"]), 5 * layers + 1);
    assert_eq!(backward(&["--fp", "relaxed", "--enable-rule", "1"]), 2 * layers + 1);
}

#[test]
fn the_report_says_what_the_search_did_and_what_each_rule_bought() {
    let common = ["dump-ir", &data("hf/llama-tiny"), "--plan", "tp", "--mesh", "tp=2", "--train", "--json"];
    let search = |more: &[&str]| -> Json {
        serde_json::from_str::<Json>(&ok(&[&common, more].concat())).unwrap()["search"].clone()
    };
    let report = search(&[]);
    // The collectives of two layers and their gradients move further in each round.
    assert_eq!((&report["stop"], &report["extraction"]), (&json!("rounds"), &json!("settled")));
    assert!(report["rounds"].as_u64() == Some(8) && report["nodes"].as_u64() > Some(100), "{report}");
    assert!(report["seconds"].as_f64() < report["seconds_before"].as_f64(), "{report}");
    let rule = |report: &Json, number: u64| {
        report["rules"].as_array().unwrap().iter().find(|row| row["rule"] == number).cloned()
    };
    let seventh = rule(&report, 7).unwrap();
    assert_eq!(seventh["name"], "sum of reductions");
    for count in ["applied", "added", "unions", "paid"] {
        assert!(seventh[count].as_u64() > Some(0), "{seventh}");
    }
    assert_eq!(rule(&report, 1), None);
    assert!(rule(&search(&["--enable-rule", "1"]), 1).is_some());
    assert_eq!(rule(&search(&["--disable-rule", "7"]), 7), None);
    let tags: Vec<u64> =
        search(&["--fp", "exact"])["rules"].as_array().unwrap().iter().map(|r| r["rule"].as_u64().unwrap()).collect();
    assert!(tags.contains(&17) && !tags.contains(&7) && !tags.contains(&9), "{tags:?}");
}

#[test]
fn what_bench_executes_is_what_dump_ir_predicts() {
    let model = ["--preset", "gpt", "--plan", "tp", "--mesh", "tp=2", "--batch", "1", "--seq", "8"];
    let report: Json = serde_json::from_str(&ok(&[&["dump-ir", "--train", "--json"], &model[..]].concat())).unwrap();
    let row = ok(&[&["bench", "--mode", "train", "--iters", "1", "--json"], &model[..]].concat());
    assert_eq!(row.lines().count(), 1);
    let row: Json = serde_json::from_str(&row).unwrap();
    assert_eq!(row["wire_bytes"], report["totals"]["wire_bytes"]);
    assert_eq!(row["peak_bytes_per_rank"], report["totals"]["peak_bytes"]);
    let count = |rows: &Json| rows.as_array().unwrap().iter().map(|c| c["count"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(count(&row["collectives"]), count(&report["collectives"]));
    assert!(row["median_ms"].as_f64() >= row["min_ms"].as_f64() && row["tokens_per_s"].as_f64() > Some(0.0));
}

#[test]
fn every_stage_prints_and_files_go_on_from_there() {
    let scratch = Scratch::new("stages");
    let dir = data("hf/llama-tiny");
    let common = ["dump-ir", &dir, "--plan", "tp", "--mesh", "tp=2", "--batch", "1", "--seq", "8", "--full"];
    let stage = |name: &str| noted(&[&common[..], &["--stage", name]].concat(), &scratch).0;
    let placed = ok(&common);
    assert_eq!(stage("placed"), placed);
    for (name, mesh) in [("captured", true), ("logical", true), ("annotated", false), ("placed", false)] {
        let file = scratch.write(&format!("{name}.tpc"), stage(name).as_bytes());
        let on: &[&str] = if mesh { &["--plan", "tp", "--mesh", "tp=2"] } else { &[] };
        assert_eq!(ok(&[&["dump-ir", &file, "--full"], on].concat()), placed, "{name}");
        if name == "placed" {
            let from_file = ok(&["dump-ir", &file, "--stage", "scheduled", "--rank", "1"]);
            assert_eq!(from_file, ok(&[&common[..10], &["--stage", "scheduled", "--rank", "1"]].concat()));
            let message = error(&["dump-ir", &file, "--stage", "logical"], &scratch);
            assert_eq!(message, "the graph in the file is already placed: choose a later --stage");
        }
    }
    let rank = ok(&[&common[..10], &["--stage", "rank", "--rank", "1"]].concat());
    assert!(rank.starts_with("mesh <tp=2> rank 1 at tp=1\n%0 = "), "{rank}");
    assert!(rank.contains("\"lm_head.weight\"       : f32[64, 128] at [0, 128] of [64, 256@tp]\n"), "{rank}");
}

#[test]
fn bad_meshes_and_plans_are_explained() {
    let scratch = Scratch::new("plans");
    let dir = data("hf/llama-tiny");
    let says = |more: &[&str]| error(&[&["dump-ir", &dir], more].concat(), &scratch);
    assert_eq!(
        says(&["--plan", "tpp"]),
        "there is no built-in plan `tpp` and no such file: built in are none, tp, tp-sp, ddp, fsdp, zero1, hsdp, 2d, tp-ddp, tp-sp-ddp, tp-fsdp, tp-sp-fsdp, tp-zero1, tp-sp-zero1, tp-hsdp, tp-sp-hsdp"
    );
    assert_eq!(
        says(&["--plan", "tp", "--mesh", "dp=2"]),
        "the plan shards along the axis `tp`, but the mesh has no such axis (mesh <dp=2>): add `tp=N` to the mesh or change the plan's axis"
    );
    assert_eq!(
        says(&["--plan", "tp", "--mesh", "dp=2,tp=2"]),
        "the mesh axis `dp` is not used by the plan: every rank along it would compute the same; remove it from the mesh or give it a data mode"
    );
    let most = "more than 65536, the most that a program is planned for";
    assert_eq!(says(&["--mesh", "a=100000,b=2"]), format!("mesh has 200000 ranks, {most}"));
    // More ranks than a process can execute are accepted for planning, and rejected early by the commands that execute.
    let json = ["dump-ir", &dir, "--plan", "tp", "--mesh", "tp=65", "--json"];
    let (report, notes) = noted(&json, &scratch);
    let report: Json = serde_json::from_str(&report).unwrap();
    assert_eq!(report["ranks"].as_array().unwrap().len(), 65);
    let heads = "note: 63 of 65 ranks along tp=65 have no part of `model.layers.0.self_attn.q_proj.weight` and 7 more weights: they have only 2 to distribute\n";
    assert!(notes.contains(heads), "{notes}");
    let commands: [&[&str]; 3] = [
        &["run", &dir, "--inputs", "none", "--output", "none"],
        &["train", &dir, "--inputs", "none", "--steps", "1"],
        &["bench", "--preset", "gpt", "--mode", "train", "--iters", "1"],
    ];
    for command in commands {
        let on = |mesh: &str| error(&[command, &["--plan", "tp", "--mesh", mesh]].concat(), &scratch);
        let more = "start one process per rank (`tpc launch`, `mpirun`, `srun`); `tpc dump-ir` plans without running";
        let expected = format!("mesh has 65 ranks, but one process can run at most 64 as threads: {more}");
        assert_eq!(on("tp=65"), expected);
        assert_eq!(on("a=100000,b=2"), says(&["--mesh", "a=100000,b=2"]));
    }
    assert_eq!(says(&["--mesh", "two"]), "mesh `two` is not a list of axes: write it as `tp=2` or `dp=2,tp=4`");
    assert_eq!(says(&["--mesh", "tp=0"]), "mesh axis `tp` has size 0: an axis holds at least one rank");
    assert_eq!(
        says(&["--plan", "tp", "--mesh", "tp=2", "--stage", "rank", "--rank", "2"]),
        "there is no rank 2: mesh <tp=2> has ranks 0 to 1"
    );
    let plan = |name: &str, json: &str| {
        let file = scratch.write(name, json.as_bytes());
        says(&["--mesh", "tp=2", "--plan", &file])
    };
    assert_eq!(
        plan("path.json", r#"{"styles": {"model.layers.*.self_atn": "PairwiseParallel"}}"#),
        "$TMP/path.json: plan entry `model.layers.*.self_atn` matches no module; the nearest are \
         model.layers.0.self_attn, model.layers.1.self_attn, model.layers.0.mlp"
    );
    assert_eq!(
        plan("style.json", r#"{"styles": {"lm_head": "ColumnParallel"}}"#),
        "$TMP/style.json: plan entry `lm_head` names the style `ColumnParallel`, which does not exist: use \
         ColwiseParallel, RowwiseParallel, PairwiseParallel, PairwiseSequenceParallel, SequenceParallel, \
         PrepareModuleInput, PrepareModuleOutput, PrepareModuleInputOutput, TensorParallelMultiheadAttention"
    );
    assert_eq!(
        plan("axis.json", r#"{"axis": "model", "styles": {"lm_head": "ColwiseParallel"}}"#),
        "$TMP/axis.json: the plan shards along the axis `model`, but the mesh has no such axis (mesh <tp=2>): add `model=N` to the mesh or change the plan's axis"
    );
    assert_eq!(
        plan("json.json", "{"),
        "$TMP/json.json: the plan is not JSON: EOF while parsing an object at line 1 column 1"
    );
    assert!(says(&["--disable-rule", "99"]).starts_with("there is no rule 99 to disable; the rules are 1, 2, 3, "));
    assert_eq!(
        says(&["--enable-rule", "21"]),
        "there is no rule 21 to enable; the rules are 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23, \
         24, 25, 26"
    );
}

/// A mesh axis named `tp:x` next to `tp` used to be taken for a part of `tp`, which changed the logits.
#[test]
fn an_axis_cannot_be_named_like_a_part_of_another() {
    let scratch = Scratch::new("axis-names");
    let dir = data("hf/llama-tiny");
    let plan = scratch.write(
        "plan.json",
        br#"{"axis":"tp","styles":{"model.layers.*.self_attn":"PairwiseParallel","lm_head":"ColwiseParallel"},"data":{"mode":"fsdp","axis":"dp"}}"#,
    );
    let inputs = format!("{dir}/inputs.safetensors");
    let commands: [&[&str]; 4] = [
        &["dump-ir", &dir],
        &["run", &dir, "--inputs", &inputs, "--output", "none"],
        &["train", &dir, "--inputs", &inputs, "--steps", "1"],
        &["bench", "--preset", "gpt", "--mode", "train", "--iters", "1"],
    ];
    for command in commands {
        for name in ["tp:x", "tp:2", "tp:/2", "2", "a.b", "größe"] {
            let mesh = format!("{name}=2,tp=2");
            assert_eq!(
                error(&[command, &["--plan", &plan, "--mesh", &mesh]].concat(), &scratch),
                format!(
                    "`{name}` cannot name a mesh axis: a name has letters, digits, `_` and `-`, begins with a letter or `_`, and has at most 64 characters"
                )
            );
        }
    }
    // The text of a program contains parts of axes only where the compiler split an axis.
    let text =
        |axes: &str| scratch.write("m.tpc", format!("mesh <{axes}>\n%0 = input data \"x\" : f32[8]\n").as_bytes());
    assert!(ok(&["dump-ir", &text("tp:2=2, tp:/2=4")]).starts_with("mesh <tp:2=2, tp:/2=4>\n"));
    for (axes, problem) in [
        (
            "tp:x=2, tp=2",
            "`tp:x` cannot name a mesh axis: a name has letters, digits, `_` and `-`, begins with a letter or `_`, and has at most 64 characters",
        ),
        (
            "tp:2=2, tp=2",
            "mesh axis `tp:2` is a part of an axis, and the axes around it are not the other parts: `tp=4` in two groups is `tp:2=2, tp:/2=2`",
        ),
        ("tp=2, tp=2", "mesh axis `tp` is named twice: every axis needs a name of its own"),
        (
            "a=1152921504606846976, b=1152921504606846976",
            "mesh has at least 18446744073709551615 ranks, more than 65536, the most that a program is planned for",
        ),
    ] {
        let said = error(&["dump-ir", &text(axes)], &scratch);
        let found = axes.split('=').next().unwrap();
        assert_eq!(said, format!("$TMP/m.tpc: line 1, column 7: expected other axes ({problem}), found `{found}`"));
    }
}

/// Braces used to be expanded, so that a plan of 150 bytes never finished.
#[test]
fn patterns_of_any_form_are_matched_at_once() {
    let scratch = Scratch::new("patterns");
    let dir = data("hf/llama-tiny");
    let braces = "{a,b}".repeat(25);
    let plan = scratch.write("plan.json", format!("{{\"styles\": {{\"{braces}\": \"PairwiseParallel\"}}}}").as_bytes());
    let dump = ["dump-ir", &dir, "--train", "--batch", "2", "--seq", "4"];
    let said = error(&[&dump[..], &["--plan", &plan, "--mesh", "tp=2"]].concat(), &scratch);
    let expected = format!("$TMP/plan.json: plan entry `{braces}` matches no module; the nearest are model.layers.0.");
    assert!(said.starts_with(&expected), "{said}");
    let said = error(&[&dump[..], &["--freeze", &braces]].concat(), &scratch);
    assert!(
        said.starts_with(&format!("nothing to freeze matches `{braces}`; the nearest are model.layers.0.")),
        "{said}"
    );
    // Which layers' weights are still updated.
    let trained = |freeze: &str| {
        let text = ok(&[&dump[..], &["--stage", "logical", "--full", "--freeze", freeze]].concat());
        ["0", "1"].map(|layer| text.contains(&format!("output update \"model.layers.{layer}.mlp.up_proj.weight\"")))
    };
    assert_eq!(trained("model.layers.0"), [false, true]);
    assert_eq!(trained("model.layers.[!0]"), [true, false]);
    assert_eq!(trained("model.layers.[^1]"), [false, true]);
    assert_eq!(trained("model.layers.{1,x}.mlp"), [true, false]);
    let refused = |freeze: &[&str]| error(&[&dump[..], freeze].concat(), &scratch);
    assert_eq!(
        refused(&["--freeze", "model.layers.[0"]),
        "freezing `model.layers.[0`: the `[` at character 14 is never closed"
    );
    // An option without effect is an error: only frozen parameters can be unfrozen.
    for freeze in [&["--freeze", "!"][..], &["--freeze", "!lm_head", "--freeze", "model"]] {
        assert_eq!(
            refused(freeze),
            format!(
                "freezing `{}` changes nothing: no earlier pattern freezes anything that it matches; leave it out",
                freeze[1]
            )
        );
    }
}

/// PyTorch's plans for llama name the head, which a tied model does not have.
#[test]
fn a_tied_head_is_the_embedding() {
    let scratch = Scratch::new("tied");
    for (model, head, table) in [
        ("llama-tiny", "lm_head", "model.embed_tokens"),
        ("gpt2-tiny", "lm_head", "transformer.wte"),
        ("bert-tiny", "cls.predictions.decoder", "bert.embeddings.word_embeddings"),
    ] {
        let dir = scratch.path(model);
        std::fs::create_dir_all(&dir).unwrap();
        let config = std::fs::read(data(&format!("hf/{model}/config.json"))).unwrap();
        let mut config: Json = serde_json::from_slice(&config).unwrap();
        config["tie_word_embeddings"] = true.into();
        std::fs::write(format!("{dir}/config.json"), config.to_string()).unwrap();
        let plan = scratch.write(
            "plan.json",
            format!(r#"{{"styles": {{"{table}": {{"RowwiseParallel": {{"input_layouts": "Replicate"}}}}, "{head}": {{"ColwiseParallel": {{"output_layouts": "Replicate"}}}}}}}}"#).as_bytes(),
        );
        let dump = ["dump-ir", &dir, "--batch", "2", "--seq", "4"];
        let train = [&dump[..], &["--train"]].concat();
        for command in [&dump[..], &train] {
            assert_eq!(
                error(&[command, &["--plan", &plan, "--mesh", "tp=2"]].concat(), &scratch),
                format!(
                    "$TMP/plan.json: plan entry `{head}` names `{head}`, which shares its weights: `{head}.weight` is `{table}.weight` under another name (tied), and one style places both; remove this entry and name `{table}`: RowwiseParallel there cuts the rows of the embedding, which are the outputs of the head"
                )
            );
        }
        assert_eq!(
            error(&[&train[..], &["--freeze", head]].concat(), &scratch),
            format!(
                "nothing to freeze is called `{head}`: `{head}.weight` is `{table}.weight` under another name (tied); freeze `{table}.weight`"
            )
        );
    }
}

/// A chain of sums used to print, for every link, all links before it.
#[test]
fn texts_of_many_terms_take_time_in_proportion() {
    let scratch = Scratch::new("terms");
    let terms = 10_000;
    let chain: String = (1..terms).map(|i| format!("%{i} = add %{}, %0 : f32[4]\n", i - 1)).collect();
    let sum = format!("%1 = add {} : f32[4]\n", vec!["%0"; terms].join(", "));
    for (body, last) in [(chain, terms - 1), (sum, 1)] {
        let text = format!("mesh <>\n%0 = input data \"x\" : f32[4]\n{body}output result \"y\" %{last}\n");
        let file = scratch.write("m.tpc", text.as_bytes());
        let logical = ok(&["dump-ir", &file, "--stage", "logical"]);
        assert_eq!(logical.matches("%0").count(), terms + 1, "one sum of {terms} terms");
        assert!(ok(&["dump-ir", &file, "--stage", "scheduled"]).len() > terms);
    }
}

#[test]
fn bad_models_are_explained() {
    let scratch = Scratch::new("models");
    let dir = data("hf/llama-tiny");
    let inputs = format!("{dir}/inputs.safetensors");
    let model = |name: &str, weights: Option<&[u8]>| {
        let model = scratch.path(name);
        std::fs::create_dir_all(&model).unwrap();
        std::fs::copy(format!("{dir}/config.json"), format!("{model}/config.json")).unwrap();
        if let Some(weights) = weights {
            std::fs::write(format!("{model}/model.safetensors"), weights).unwrap();
        }
        let output = scratch.path("out.safetensors");
        let message = error(&["run", &model, "--inputs", &inputs, "--output", &output], &scratch);
        assert!(!Path::new(&output).exists());
        message
    };
    let weights = std::fs::read(format!("{dir}/model.safetensors")).unwrap();
    assert_eq!(
        model("bare", None),
        "$TMP/bare: no weights: neither model.safetensors nor model.safetensors.index.json"
    );
    let cut = &weights[..weights.len() - 1000];
    assert_eq!(
        model("cut", Some(cut)),
        format!(
            "$TMP/cut/model.safetensors: truncated: the header describes {} bytes, the file has {}",
            weights.len(),
            cut.len()
        )
    );
    let gpt2 = std::fs::read(data("hf/gpt2-tiny/model.safetensors")).unwrap();
    assert_eq!(
        model("other", Some(&gpt2)),
        "$TMP/other/model.safetensors: missing tensor \"model.embed_tokens.weight\"; nearest are \
         transformer.h.0.attn.c_attn.weight, transformer.h.0.attn.c_proj.weight, transformer.h.0.ln_1.weight"
    );
    let says = |more: &[&str]| error(more, &scratch);
    assert_eq!(
        says(&["dump-ir", &scratch.path("nothing")]),
        "$TMP/nothing/config.json: No such file or directory (os error 2)"
    );
    assert_eq!(
        says(&["dump-ir", "--preset", "lama"]),
        "there is no preset \"lama\"; the presets are mlp, llama, gpt, gpt-learned"
    );
    assert_eq!(
        says(&["dump-ir", &data("hf/gpt2-tiny"), "--seq", "500"]),
        "batch: sequences of 500 tokens, but gpt2 has 128 learned positions"
    );
    let file = scratch.write("broken.tpc", b"mesh <tp=2>\n%0 = mul %1 : f32[4]\n");
    assert_eq!(
        says(&["dump-ir", &file]),
        "$TMP/broken.tpc: line 2, column 10: expected a value defined above, found `%1`"
    );
}

#[test]
fn bad_batches_are_explained() {
    let scratch = Scratch::new("batches");
    let (dir, output) = (data("hf/llama-tiny"), scratch.path("out.safetensors"));
    let says = |tensors: &[(&str, [usize; 2], &[i64])]| {
        let inputs = batch(&scratch, "in.safetensors", tensors);
        let message = error(&["run", &dir, "--inputs", &inputs, "--output", &output], &scratch);
        assert_eq!(scratch.names(), ["in.safetensors"], "nothing is written");
        message.strip_prefix("$TMP/in.safetensors: ").unwrap().to_string()
    };
    let ids = ("input_ids", [1, 3], &[1, 2, 3][..]);
    assert_eq!(says(&[("input_ids", [1, 3], &[1, 2, 256])]), "input_ids[0, 2] is 256, but a token must be in 0..256");
    assert_eq!(says(&[("input_ids", [1, 3], &[1, -2, 3])]), "input_ids[0, 1] is -2, but a token must be in 0..256");
    assert_eq!(
        says(&[ids, ("labels", [1, 3], &[0, 300, -100])]),
        "labels[0, 1] is 300, but the vocabulary has 256 entries (and -100 ignores a position)"
    );
    assert_eq!(
        says(&[ids, ("labels", [1, 3], &[0, -100, -100])]),
        "labels: all are -100 (ignored), so there is no loss"
    );
    assert_eq!(
        says(&[ids, ("labels", [3, 1], &[0, 1, 2])]),
        "tensor \"labels\" has shape [3, 1], but \"input_ids\" has [1, 3]"
    );
    assert_eq!(
        says(&[ids, ("lables", [1, 3], &[0, 1, 2])]),
        "tensor \"lables\" is not an input of the model; inputs are input_ids, labels, attention_mask, token_type_ids"
    );
    assert_eq!(says(&[("labels", [1, 3], &[0, 1, 2])]), "missing tensor \"input_ids\"");
    assert_eq!(
        says(&[ids, ("attention_mask", [1, 3], &[1, 2, 1])]),
        "attention_mask[0, 1] is 2, but a value must be in 0..2"
    );
    assert_eq!(
        says(&[ids, ("token_type_ids", [1, 3], &[0, 0, 0])]),
        "tensor \"token_type_ids\" is not an input of llama"
    );
    assert_eq!(says(&[("input_ids", [0, 3], &[])]), "batch: its shape [0, 3] is empty");
}

#[test]
fn outputs_that_cannot_be_written_are_found_before_computing() {
    let scratch = Scratch::new("outputs");
    let dir = data("hf/llama-tiny");
    let inputs = format!("{dir}/inputs.safetensors");
    let file = scratch.write("file", b"in the way");
    let nowhere = scratch.path("no/out.safetensors");
    let run = |output: &str| error(&["run", &dir, "--inputs", &inputs, "--output", output], &scratch);
    let missing = "$TMP/no/out.safetensors: cannot be written: No such file or directory (os error 2)";
    assert_eq!(run(&nowhere), missing);
    std::fs::create_dir(scratch.path("dir")).unwrap();
    assert_eq!(run(&scratch.path("dir")), "$TMP/dir: cannot be written: it is a directory");
    let train =
        |more: &[&str]| error(&[&["train", &dir, "--inputs", &inputs, "--steps", "1"], more].concat(), &scratch);
    assert_eq!(train(&["--grads", &nowhere]), missing);
    assert_eq!(train(&["--metrics", &nowhere]), missing);
    let below = format!("{file}/saved");
    assert_eq!(train(&["--save", &below]), "$TMP/file/saved: cannot be written: $TMP/file is not a directory");
    assert_eq!(scratch.names(), ["dir", "file"]);
}

#[test]
fn bad_training_data_is_explained() {
    let scratch = Scratch::new("data");
    let says = |model: &str, more: &[&str]| {
        error(&[&["train", &data(&format!("hf/{model}")), "--steps", "1"], more].concat(), &scratch)
    };
    let unlabeled = batch(&scratch, "in.safetensors", &[("input_ids", [1, 3], &[1, 2, 3])]);
    assert_eq!(
        says("llama-tiny", &["--inputs", &unlabeled]),
        "$TMP/in.safetensors: no tensor \"labels\": training needs them"
    );
    let many: String = (0..300).filter_map(|i| char::from_u32(0x4e00 + i)).collect();
    let many = scratch.write("many", many.as_bytes());
    assert_eq!(
        says("llama-tiny", &["--data", &many, "--characters"]),
        "$TMP/many: the text has 300 different characters, but the vocabulary has 256 entries"
    );
    let short = scratch.write("short", b"too short");
    assert_eq!(
        says("bert-tiny", &["--data", &short, "--characters"]),
        "$DATA/hf/bert-tiny: bert learns to guess masked tokens, but its tokenizer has no mask_token in tokenizer_config.json"
    );
    let llama = "$DATA/hf/llama-tiny";
    assert_eq!(
        says("llama-tiny", &["--data", &short]),
        format!(
            "{llama}: the model has no tokenizer to turn a text into tokens: copy its tokenizer.json there, \
             train one with tpc tokenizer train {llama} FILE…, or make each character a token with --characters"
        )
    );
    let binary = scratch.write("binary", [b'a', 0xff, 0xfe]);
    assert_eq!(says("llama-tiny", &["--data", &binary, "--characters"]), "$TMP/binary: not UTF-8 text: byte 1 is 0xff");
    let empty = scratch.write("empty", b"");
    assert_eq!(
        says("llama-tiny", &["--data", &empty, "--characters"]),
        "$TMP/empty: no text to train on: the file is empty"
    );
    let lines = scratch.write("lines.jsonl", b"{\"text\": \"a\"}\n{\"body\": \"b\"}\n");
    assert_eq!(
        says("llama-tiny", &["--data", &lines, "--characters"]),
        "$TMP/lines.jsonl: line 2: no field \"text\"; its fields are \"body\"; --field selects another"
    );
    assert_eq!(
        says("llama-tiny", &["--data", &short, "--characters", "--optimizer", "adam", "--momentum", "0.9"]),
        "--momentum is a setting of --optimizer sgd; adamw and adam have --beta1"
    );
}

#[test]
fn settings_that_are_not_applied_are_noted() {
    let scratch = Scratch::new("notes");
    let dir = data("hf/gpt2-tiny");
    let config = std::fs::read_to_string(format!("{dir}/config.json")).unwrap();
    let config = config.replace("\"resid_pdrop\": 0.0", "\"resid_pdrop\": 0.1");
    scratch.write("config.json", config.as_bytes());
    let inputs = format!("{dir}/inputs.safetensors");
    let arguments = ["train", &scratch.path(""), "--from-scratch", "--inputs", &inputs, "--steps", "1"];
    let (code, _, err) = tpc(&arguments);
    assert_eq!(
        (code, err.as_str()),
        (0, &*format!("{KEEPS_NOTHING}note: the configuration has dropout 0.1, which is not applied\n"))
    );
}

/// Reads everything from a pipe.
fn reader(mut pipe: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut read = Vec::new();
        pipe.read_to_end(&mut read).unwrap();
        read
    })
}

#[test]
fn outputs_go_where_their_paths_lead() {
    let scratch = Scratch::new("leads");
    let dir = data("hf/llama-tiny");
    let inputs = format!("{dir}/inputs.safetensors");
    let plain = scratch.path("plain");
    ok(&["run", &dir, "--inputs", &inputs, "--output", &plain]);
    let expected = std::fs::read(&plain).unwrap();
    // A link to a file with its own permissions, a link to nothing, a link to a device.
    scratch.write("real", b"before");
    std::fs::set_permissions(scratch.path("real"), std::fs::Permissions::from_mode(0o600)).unwrap();
    for (target, link) in [("real", "link"), ("made", "dangling"), ("/dev/null", "null")] {
        std::os::unix::fs::symlink(target, scratch.path(link)).unwrap();
        ok(&["run", &dir, "--inputs", &inputs, "--output", &scratch.path(link)]);
        assert!(std::fs::symlink_metadata(scratch.path(link)).unwrap().is_symlink(), "{link}");
    }
    assert!(std::fs::read(scratch.path("real")).unwrap() == expected);
    assert_eq!(std::fs::metadata(scratch.path("real")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::fs::read(scratch.path("made")).unwrap() == expected);
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    // A name of 250 bytes.
    let long = scratch.path(&"x".repeat(250));
    ok(&["run", &dir, "--inputs", &inputs, "--output", &long]);
    assert!(std::fs::read(&long).unwrap() == expected);
    // A named pipe, and a descriptor as a shell's `>(…)` passes it.
    let pipe = scratch.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let path = pipe.clone();
    let read = std::thread::spawn(move || std::fs::read(path).unwrap());
    ok(&["run", &dir, "--inputs", &inputs, "--output", &pipe]);
    assert!(read.join().unwrap() == expected);
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
    let (near, far) = std::io::pipe().unwrap();
    let read = reader(near);
    ok(&["run", &dir, "--inputs", &inputs, "--output", &format!("/dev/fd/{}", far.as_raw_fd())]);
    drop(far);
    assert!(read.join().unwrap() == expected);
    scratch.remove(&["plain", "real", "made", "link", "dangling", "null", "pipe", &"x".repeat(250)]);

    // The same for the files that `train` writes.
    let (near, far) = std::io::pipe().unwrap();
    let metrics = reader(near);
    let (near, other) = std::io::pipe().unwrap();
    let grads = reader(near);
    let (lines, tensors_at) = (format!("/dev/fd/{}", far.as_raw_fd()), format!("/dev/fd/{}", other.as_raw_fd()));
    let saved = scratch.path("saved");
    std::fs::create_dir(scratch.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &saved).unwrap();
    scratch.write("elsewhere/blob", b"before");
    std::os::unix::fs::symlink("blob", scratch.path("elsewhere/model.safetensors")).unwrap();
    let train = ["train", &dir, "--inputs", &inputs, "--steps", "2", "--save", &saved];
    ok(&[&train[..], &["--metrics", &lines, "--grads", &tensors_at]].concat());
    drop((far, other));
    let metrics = String::from_utf8(metrics.join().unwrap()).unwrap();
    let steps: Vec<Json> = metrics.lines().map(|l| serde_json::from_str::<Json>(l).unwrap()["step"].clone()).collect();
    assert_eq!(steps, [1, 2]);
    assert!(SafeTensors::deserialize(&grads.join().unwrap()).unwrap().len() > 10);
    let weights = scratch.path("elsewhere/model.safetensors");
    assert!(std::fs::symlink_metadata(&weights).unwrap().is_symlink() && tensors(&weights).len() > 10);
    assert_eq!(scratch.names(), ["elsewhere", "saved"]);
    let names = Scratch(scratch.0.join("elsewhere")).names();
    assert_eq!(names, ["blob", "config.json", "generation_config.json", "model.safetensors"]);
}

#[test]
fn an_output_is_no_other_file_of_the_command() {
    let scratch = Scratch::new("same");
    let dir = data("hf/llama-tiny");
    let model = scratch.path("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors", "inputs.safetensors"] {
        std::fs::copy(format!("{dir}/{file}"), format!("{model}/{file}")).unwrap();
    }
    std::fs::hard_link(format!("{model}/inputs.safetensors"), scratch.path("hard")).unwrap();
    std::os::unix::fs::symlink("model", scratch.path("other")).unwrap();
    let plan = scratch.write("plan.json", br#"{"styles": {"model.layers.*.mlp": "PairwiseParallel"}}"#);
    let inputs = format!("{model}/inputs.safetensors");
    let before = std::fs::read(format!("{model}/model.safetensors")).unwrap();
    let run = |output: &str| {
        let placed = ["--plan", &plan, "--mesh", "tp=2"];
        error(&[&["run", &model, "--inputs", &inputs, "--output", output], &placed[..]].concat(), &scratch)
    };
    let says = |output: &str, option: &str, read: &str| {
        format!("--output $TMP/{output} is also read, as {option} $TMP/{read}: give another path; nothing was written")
    };
    for output in ["model/inputs.safetensors", "model/../model/inputs.safetensors", "hard", "other/inputs.safetensors"]
    {
        assert_eq!(run(&scratch.path(output)), says(output, "--inputs", "model/inputs.safetensors"));
    }
    for file in ["model.safetensors", "config.json"] {
        assert_eq!(
            run(&scratch.path(&format!("other/{file}"))),
            says(&format!("other/{file}"), "MODEL_DIR", &format!("model/{file}"))
        );
    }
    assert_eq!(run(&plan), says("plan.json", "--plan", "plan.json"));
    let train =
        |more: &[&str]| error(&[&["train", &model, "--inputs", &inputs, "--steps", "1"], more].concat(), &scratch);
    let at = |name: &str| scratch.path(name);
    let same = |a: &str, b: &str| format!("{a} and {b} are the same file: give different paths");
    assert_eq!(
        train(&["--metrics", &at("new"), "--grads", &at("model/../new")]),
        same("--grads $TMP/model/../new", "--metrics $TMP/new")
    );
    assert_eq!(train(&["--save", &at("a"), "--checkpoint", &at("a")]), same("--save $TMP/a", "--checkpoint $TMP/a"));
    assert_eq!(
        train(&["--save", &at("a"), "--metrics", &at("a/config.json")]),
        same("--save $TMP/a/config.json", "--metrics $TMP/a/config.json")
    );
    assert_eq!(
        train(&["--grads", &at("hard")]),
        "--grads $TMP/hard is also read, as --inputs $TMP/model/inputs.safetensors: give another path; nothing was written"
    );
    // Two outputs to a device do not conflict.
    let (_, notes) = noted(
        &["train", &model, "--inputs", &inputs, "--steps", "1", "--metrics", "/dev/null", "--grads", "/dev/null"],
        &scratch,
    );
    assert_eq!(notes, KEEPS_NOTHING);
    // The model that is read is replaced only with --force.
    let refused = "--save would replace the model that is read: give another directory, or --force to replace it";
    for save in [&model, &at("other"), &at("model/../model")] {
        assert_eq!(train(&["--save", save]), format!("$TMP/model: {refused}"));
    }
    assert!(std::fs::read(format!("{model}/model.safetensors")).unwrap() == before);
    ok(&["train", &model, "--inputs", &inputs, "--steps", "1", "--save", &at("other"), "--force"]);
    assert!(std::fs::read(format!("{model}/model.safetensors")).unwrap() != before);
    assert_eq!(scratch.names(), ["hard", "model", "other", "plan.json"]);
}

#[test]
fn a_model_of_characters_keeps_its_alphabet() {
    let scratch = Scratch::new("alphabet");
    let dir = data("hf/gpt2-tiny");
    let fox = scratch.write("fox", "the quick brown fox jumps over the lazy dog. ".repeat(20).as_bytes());
    let part = scratch.write("part", "the dog jumps over the fox. ".repeat(20).as_bytes());
    let other = scratch.write("other", "The größte 長 fox! 0123456789 ".repeat(20).as_bytes());
    let (saved, run) = (scratch.path("saved"), scratch.path("run"));
    let common = ["--batch", "2", "--seq", "8"];
    let train = |model: &str, text: &str, more: &[&str]| {
        tpc(&[&["train", model, "--data", text, "--characters"], &common[..], more].concat())
    };
    let (code, _, err) = train(&dir, &fox, &["--from-scratch", "--steps", "2", "--save", &saved, "--checkpoint", &run]);
    assert_eq!((code, &*err), (0, ""));
    let kept: Json = serde_json::from_slice(&std::fs::read(format!("{saved}/alphabet.json")).unwrap()).unwrap();
    assert_eq!(kept, serde_json::json!({"characters": " .abcdefghijklmnopqrstuvwxyz"}));
    // A text that has only some of the characters keeps their numbers, and what is saved keeps all characters.
    let again = scratch.path("again");
    let (code, _, err) = train(&saved, &part, &["--steps", "1", "--save", &again]);
    assert_eq!((code, &*err), (0, ""));
    assert_eq!(
        std::fs::read(format!("{again}/alphabet.json")).unwrap(),
        std::fs::read(format!("{saved}/alphabet.json")).unwrap()
    );
    let failed = |result: (u8, String, String)| {
        assert_eq!((result.0, &*result.1), (1, ""));
        result.2.replace(&scratch.path(""), "$TMP/")
    };
    let lack = |place: &str, way_out: &str| {
        format!(
            "error: $TMP/other: the model was trained on the 28 characters of {place}, which lack '!', '0', '1', '2', \
             '3', '4', '5', '6', '7', '8' and 5 more: train on a text of those characters, or {way_out}\n"
        )
    };
    assert_eq!(
        failed(train(&saved, &other, &["--steps", "1"])),
        lack("$TMP/saved/alphabet.json", "begin with fresh weights by --from-scratch")
    );
    assert_eq!(
        failed(train(&dir, &other, &["--from-scratch", "--steps", "4", "--checkpoint", &run, "--resume"])),
        lack("$TMP/run/step-000002", "begin a new run with another --checkpoint")
    );
    // The checkpoint's position is not one in another text of the same characters.
    let told = failed(train(&dir, &part, &["--steps", "3", "--checkpoint", &run, "--resume"]));
    assert!(told.starts_with("error: the checkpoint was written with other data: the text of --data was "), "{told}");
    let (code, out, err) = train(&dir, &fox, &["--steps", "3", "--checkpoint", &run, "--resume"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("checkpoint $TMP/run/step-000003\n".replace("$TMP/", &scratch.path("")).as_str()), "{out}");
    // Fresh weights have no alphabet.
    let (code, _, err) = train(&saved, &other, &["--from-scratch", "--steps", "1"]);
    assert_eq!((code, &*err), (0, KEEPS_NOTHING));
    // Weights of unknown tokens.
    let (code, _, err) = train(&dir, &fox, &["--steps", "1"]);
    let unknown =
        format!("note: the alphabet of {dir} is unknown: the 28 characters of the text are numbered from 0\n");
    assert_eq!((code, err), (0, format!("{KEEPS_NOTHING}{unknown}")));
    // A tokenizer's tokens are not characters, whether it comes with weights or not.
    let model = scratch.path("tokens");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{dir}/{file}"), format!("{model}/{file}")).unwrap();
    }
    for name in ["vocab.json", "merges.txt", "tokenizer.model"] {
        std::fs::write(format!("{model}/{name}"), "{}").unwrap();
        for more in [&["--steps", "1"][..], &["--steps", "1", "--from-scratch"]] {
            assert_eq!(
                failed(train(&model, &fox, more)),
                format!(
                    "error: $TMP/tokens/{name}: the tokenizer is in an unsupported format, and there is no \
                     tokenizer.json next to it; in Python, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) \
                     writes one\n"
                )
            );
        }
        std::fs::remove_file(format!("{model}/{name}")).unwrap();
    }
    let tokenizer = data("../../compiler/data/tests/data/tokenizer/tokenizer.json");
    std::fs::copy(tokenizer, format!("{model}/tokenizer.json")).unwrap();
    for more in [&["--steps", "1"][..], &["--steps", "1", "--from-scratch"]] {
        assert_eq!(
            failed(train(&model, &fox, more)),
            "error: $TMP/tokens: the model has a tokenizer, which --characters would ignore: \
             leave --characters out, or start a character model with --from-scratch in a directory that holds \
             only a config.json\n"
        );
    }
}

#[test]
fn ranks_with_nothing_to_do_are_noted() {
    let scratch = Scratch::new("idle");
    let dir = data("hf/llama-tiny");
    let notes = |more: &[&str]| {
        let small = ["dump-ir", &dir, "--batch", "2", "--seq", "8", "--train"];
        noted(&[&small[..], more].concat(), &scratch).1
    };
    assert_eq!(notes(&["--plan", "tp", "--mesh", "tp=2"]), "");
    assert_eq!(
        notes(&["--mesh", "dp=2"]),
        "note: --mesh dp=2 without a plan: each of the 2 ranks computes the whole model; --plan distributes the work\n"
    );
    assert_eq!(
        notes(&["--plan", "2d"]),
        "note: --plan 2d without a mesh: one rank computes the whole model; give it more ranks with --mesh, for example --mesh dp=2,tp=2\n"
    );
    assert_eq!(
        notes(&["--plan", "ddp", "--mesh", "dp=3"]),
        "note: 1 of 3 ranks along dp=3 have no rows: the batch has only 2\n"
    );
    // Four heads that share two key and value heads are two groups.
    assert_eq!(
        notes(&["--plan", "tp", "--mesh", "tp=8"]),
        "note: 6 of 8 ranks along tp=8 have no part of `model.layers.0.self_attn.q_proj.weight` and 7 more weights: they have only 2 to distribute\n"
    );
    // Parameters of which FSDP only stores shards do not make a rank idle.
    assert_eq!(notes(&["--plan", "fsdp", "--mesh", "dp=2"]), "");
}

#[test]
fn options_without_effect_are_said() {
    let scratch = Scratch::new("effect");
    let dir = data("hf/llama-tiny");
    let inputs = format!("{dir}/inputs.safetensors");
    let train = ["train", &dir, "--inputs", &inputs, "--steps", "1"];
    let dump = ["dump-ir", &dir, "--batch", "2", "--seq", "8"];
    let mlp = ["dump-ir", "--preset", "mlp", "--batch", "2", "--seq", "8"];
    let bench = ["bench", "--preset", "gpt", "--batch", "1", "--seq", "8", "--iters", "1"];
    let small = ["dump-ir", &dir, "--plan", "tp", "--mesh", "tp=2", "--batch", "2", "--seq", "8", "--full"];
    let placed = scratch.write("placed.tpc", ok(&small).as_bytes());
    let file = ["dump-ir", &placed];
    let sgd = "with --optimizer sgd, whose settings are --weight-decay, --momentum and --nesterov";
    let f32 = "without --precision bf16: gradients are then reduced in the model's own type";
    let untrained = "without --train, which has a training step";
    let json = "with --json, which reports on the placed program of all ranks";
    let given = "on a graph from a file, which is already captured";
    let refused: [(&[&str], &str, &str, &str); 26] = [
        (&train, "--optimizer sgd --beta1 0.5", "--beta1", sgd),
        (&train, "--optimizer sgd --beta2 0.5", "--beta2", sgd),
        (&train, "--optimizer sgd --eps 1", "--eps", sgd),
        (&train, "--reduce f32", "--reduce", f32),
        (&train, "--batch 4", "--batch", "with --inputs, which determines the size of the batch"),
        (&train, "--seq 4", "--seq", "with --inputs, which determines the size of the batch"),
        (
            &train,
            "--precision bf16 --micro-batches 2 --reduce bf16",
            "--reduce",
            "with --micro-batches: their gradients are added and then reduced in f32",
        ),
        (&dump, "--precision bf16 --reduce f32", "--reduce", untrained),
        (&dump, "--beta1 0.5", "--beta1", untrained),
        (&dump, "--optimizer sgd", "--optimizer", untrained),
        (&dump, "--weight-decay 1", "--weight-decay", untrained),
        (&dump, "--json --stage placed", "--stage", json),
        (&dump, "--json --full", "--full", json),
        (&dump, "--json --rank 0", "--rank", json),
        (&dump, "--rank 0", "--rank", "at the stage placed, which is the same for all ranks"),
        (&dump, "--stage scheduled --full", "--full", "at the stage scheduled, which is always printed in full"),
        (&mlp, "--train --optimizer sgd", "--optimizer", "on the preset mlp, whose step has no optimizer"),
        (&bench, "--mode fwd --precision bf16 --reduce f32", "--reduce", "with --mode fwd, which has no gradients"),
        (&file, "--train", "--train", given),
        (&file, "--batch 3", "--batch", given),
        (&file, "--freeze a", "--freeze", given),
        (&file, "--plan tp", "--plan", "on a graph from a file that already has placements"),
        (&file, "--precision bf16", "--precision", "on a graph from a file that already has placements"),
        (&file, "--disable-rule 7", "--disable-rule", "on a graph from a file that is already placed"),
        (&file, "--enable-rule 1", "--enable-rule", "on a graph from a file that is already placed"),
        (&file, "--fp exact", "--fp", "on a graph from a file that is already placed"),
    ];
    for (command, more, option, reason) in refused {
        let arguments = [command, &more.split(' ').collect::<Vec<_>>()].concat();
        assert_eq!(error(&arguments, &scratch), format!("{option} has no effect {reason}; leave it out"), "{more}");
    }
    let fails = |more: &[&str]| {
        let (code, _, err) = tpc(&[&train[..], more].concat());
        assert_eq!(code, 1);
        err.strip_prefix(KEEPS_NOTHING).unwrap_or(&err).to_string()
    };
    let nothing = "no earlier pattern freezes anything that it matches";
    for pattern in ["!", "!*", "!lm_head"] {
        assert_eq!(
            fails(&["--freeze", pattern]),
            format!("error: freezing `{pattern}` changes nothing: {nothing}; leave it out\n")
        );
    }
    assert_eq!(
        fails(&["--freeze", "lm_head", "--freeze", "lm_head.weight"]),
        "error: freezing `lm_head.weight` changes nothing: everything that it matches is already frozen by earlier patterns; leave it out\n"
    );
    assert_eq!(fails(&["--disable-rule", "7", "--disable-rule", "7"]), "error: --disable-rule 7 is given twice\n");
    assert_eq!(fails(&["--enable-rule", "1", "--enable-rule", "1"]), "error: --enable-rule 1 is given twice\n");
    assert_eq!(fails(&["--disable-rule", "1", "--enable-rule", "1"]), "error: rule 1 is both enabled and disabled\n");
    assert_eq!(
        fails(&["--fp", "exact", "--enable-rule", "7"]),
        "error: --enable-rule 7 contradicts --fp exact: the rule takes sums in another order\n"
    );
    let notes = |command: &[&str], more: &str| {
        let arguments = [command, &more.split(' ').collect::<Vec<_>>()].concat();
        noted(&arguments, &scratch).1.replace(KEEPS_NOTHING, "")
    };
    assert_eq!(notes(&train, "--lr 0"), "note: --lr 0: no step changes any weight\n");
    assert_eq!(
        notes(&train, "--seed 3"),
        "note: --seed has no effect: the batch and the weights are given, and nothing else is drawn\n"
    );
    assert_eq!(
        notes(&train, "--deadline 9"),
        "note: --deadline has no effect on one rank, which never waits for another rank\n"
    );
    assert_eq!(
        error(&[&train[..], &["--save", &scratch.path("saved"), "--force"]].concat(), &scratch),
        "--force has no effect: --save names another directory than the model's; leave it out"
    );
    let run = scratch.path("run");
    assert_eq!(
        notes(&train, &format!("--checkpoint {run} --save-every 5")),
        "note: --save-every 5 has no effect: there are only 1 steps, and a checkpoint after the last one\n"
    );
    assert_eq!(
        notes(&dump, "--plan tp --mesh tp=2 --disable-rule 1"),
        "note: --disable-rule 1 has no effect: the rule is already off\n"
    );
    assert_eq!(
        notes(&dump, "--plan tp --mesh tp=2 --fp exact --disable-rule 7"),
        "note: --disable-rule 7 has no effect: the rule is already off\n"
    );
    assert_eq!(
        notes(&dump, "--plan tp --mesh tp=2 --enable-rule 7"),
        "note: --enable-rule 7 has no effect: the rule is already on\n"
    );
    for (option, value) in [("--disable-rule", "7"), ("--enable-rule", "1"), ("--fp", "exact")] {
        assert_eq!(
            notes(&dump, &format!("{option} {value}")),
            format!("note: {option} has no effect on one rank, which does not communicate\n")
        );
    }
    assert_eq!(
        notes(&dump, "--stage captured --precision bf16"),
        "note: --precision has no effect at the stage captured, which comes before it\n"
    );
    assert_eq!(
        notes(&dump, "--stage logical --plan tp"),
        "note: --plan has no effect at the stage logical, which comes before it\n"
    );
}

#[test]
fn a_loss_that_is_no_number_is_a_failure() {
    let scratch = Scratch::new("nan");
    let dir = data("hf/llama-tiny");
    let inputs = format!("{dir}/inputs.safetensors");
    let model = scratch.path("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::copy(format!("{dir}/config.json"), format!("{model}/config.json")).unwrap();
    let bytes = std::fs::read(format!("{dir}/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let at = file.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    let unlabeled = batch(&scratch, "in.safetensors", &[("input_ids", [1, 3], &[1, 2, 3])]);
    for (wrong, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "NaN")] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&wrong.to_le_bytes());
        std::fs::write(format!("{model}/model.safetensors"), bytes).unwrap();
        for (inputs, what) in
            [(&inputs, format!("the loss is {said}")), (&unlabeled, "the logits are not all finite".into())]
        {
            let output = scratch.path("out.safetensors");
            let (code, out, err) = tpc(&["run", &model, "--inputs", inputs, "--output", &output]);
            assert_eq!((code, &*err), (1, &*format!("error: {what}, because the weight `{name}` is not finite\n")));
            // What was computed can be looked at.
            assert!(out.starts_with("wrote ") && tensors(&output)["logits"].1.iter().any(|x| !x.is_finite()));
        }
    }
}

#[test]
fn bytes_are_whole_numbers() {
    fn check(json: &Json, path: &str) -> usize {
        match json {
            Json::Object(object) => object
                .iter()
                .map(|(key, value)| {
                    let is_bytes = key.contains("bytes");
                    assert!(!is_bytes || value.is_u64(), "{path}.{key} is {value}");
                    check(value, &format!("{path}.{key}")) + usize::from(is_bytes)
                })
                .sum(),
            Json::Array(values) => values.iter().map(|value| check(value, path)).sum(),
            _ => 0,
        }
    }
    // Three ranks cut no value into equal shards.
    for mesh in ["tp=2", "tp=3"] {
        let model = ["--preset", "gpt", "--plan", "tp", "--mesh", mesh, "--batch", "1", "--seq", "8"];
        let (code, report, _) = tpc(&[&["dump-ir", "--train", "--json"], &model[..]].concat());
        assert!(code == 0 && check(&serde_json::from_str(&report).unwrap(), "") > 20);
        let (code, row, _) = tpc(&[&["bench", "--iters", "1", "--json"], &model[..]].concat());
        assert!(code == 0 && check(&serde_json::from_str(&row).unwrap(), "") > 5);
        let (code, table, _) = tpc(&[&["bench", "--iters", "1"], &model[..]].concat());
        assert!(code == 0 && !table.contains(".0 bytes"), "{table}");
    }
}

#[test]
fn sizes_that_cannot_be_counted_are_refused() {
    let scratch = Scratch::new("sizes");
    let dir = data("hf/llama-tiny");
    let text = scratch.write("text", b"abcdefghij ".repeat(100));
    let large = "would have more elements than can be addressed; use fewer sequences or shorter ones";
    let says = |arguments: &[&str]| error(arguments, &scratch);
    for batch in ["4611686018427387904", "9223372036854775807", "18446744073709551615"] {
        assert_eq!(
            says(&["dump-ir", &dir, "--batch", batch, "--seq", "256", "--json"]),
            format!("--batch {batch} --seq 256: the batch of shape [{batch}, 256] {large}")
        );
        assert_eq!(
            says(&["train", &dir, "--data", &text, "--characters", "--steps", "1", "--batch", batch, "--seq", "8"]),
            format!("--batch {batch} --seq 8: the batch of shape [{batch}, 8] {large}")
        );
        assert_eq!(
            says(&["bench", "--preset", "gpt", "--batch", batch, "--seq", "8"]),
            format!("--batch {batch} --seq 8: the batch of shape [{batch}, 8] {large}")
        );
    }
    assert_eq!(
        says(&["dump-ir", "--preset", "mlp", "--batch", "4611686018427387904"]),
        format!("--batch times --seq: the tokens {large}")
    );
    assert_eq!(
        says(&["dump-ir", &dir, "--batch", "4503599627370496", "--seq", "1"]),
        format!("--batch 4503599627370496 --seq 1: the logits of shape [4503599627370496, 1, 256] {large}")
    );
    // Each value fits into an integer, but their sum does not.
    let said = says(&["dump-ir", &dir, "--batch", "8796093022208", "--seq", "8", "--train", "--json"]);
    assert!(
        said.contains(" has more elements than can be addressed together with the other values of the program; use"),
        "{said}"
    );
    let file = scratch.write("large.tpc", b"mesh <>\n%0 = input data \"x\" : f32[4611686018427387904]\n%1 = exp %0 : f32[4611686018427387904]  ; forward\noutput result \"y\" %1\n");
    assert!(says(&["dump-ir", &file]).contains("more bytes than can be addressed"), "{}", says(&["dump-ir", &file]));
}

#[test]
fn user_text_in_messages_is_short_and_harmless() {
    let scratch = Scratch::new("long");
    let dir = data("hf/llama-tiny");
    let inputs = format!("{dir}/inputs.safetensors");
    let (word, words) = ("x".repeat(10_000), "a b ".repeat(2500));
    let plan = scratch.write("plan.json", format!(r#"{{"styles": {{"{words}": "ColwiseParallel"}}}}"#).as_bytes());
    let config = scratch.path("config.json");
    std::fs::write(&config, format!(r#"{{"model_type": "{words}"}}"#)).unwrap();
    let model = scratch.path("");
    let commands: Vec<Vec<&str>> = vec![
        vec!["dump-ir", &word],
        vec!["dump-ir", &words],
        vec!["dump-ir", "--preset", &word],
        vec!["dump-ir", &dir, "--plan", &words],
        vec!["dump-ir", &dir, "--mesh", &words],
        vec!["dump-ir", &dir, "--mesh", "tp=2", "--plan", &plan],
        vec!["dump-ir", &model],
        vec!["train", &dir, "--inputs", &inputs, "--steps", "1", "--freeze", &words],
        vec!["train", &dir, "--inputs", &inputs, "--steps", &words],
        vec!["train", &dir, "--inputs", &inputs, "--steps", "1", "--metrics", &word],
        vec!["train", &dir, "--inputs", &words, "--steps", "1"],
        vec![&words],
    ];
    for command in commands {
        let (code, out, err) = tpc(&command);
        assert!(code != 0 && out.is_empty(), "{err}");
        assert!(err.len() < 2000 && err.contains(" characters)"), "{err}");
    }
    for (text, shown) in [("\u{1b}[2Jx", "\\u{1b}[2Jx"), ("a\nb", "a\\nb"), ("a\u{9b}b", "a\\u{9b}b")] {
        for arguments in
            [vec!["dump-ir", text], vec!["dump-ir", "--preset", text], vec!["dump-ir", &dir, "--mesh", text]]
        {
            let (code, _, err) = tpc(&arguments);
            assert!(code == 1 && err.contains(shown), "{err}");
            assert!(!err.trim_end().chars().any(char::is_control), "{err:?}");
        }
    }
}

#[test]
fn arguments_that_make_no_command_are_explained() {
    let (code, out, err) = tpc(&["train", "model", "--data", "t", "--steps", "1", "--beta1", "1.5"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.contains("invalid value '1.5' for '--beta1 <BETA1>': expected a number of at least 0 and below 1"),
        "{err}"
    );
    let (code, out, err) = tpc(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(["dump-ir", "run", "train", "bench"].iter().all(|c| out.contains(c)), "{out}");
}

/// A training step of the size of a 70B model is planned from its config.json alone, and prints as many lines as one of
/// 4 layers.
#[test]
fn eighty_layers_print_as_many_lines_as_four() {
    let scratch = Scratch::new("deep");
    let lines = |layers: usize| {
        let config = format!(
            r#"{{"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
            "num_key_value_heads": 8, "num_hidden_layers": {layers}, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 5e5}}"#
        );
        let file = scratch.write("config.json", config.as_bytes());
        let dir = std::path::Path::new(&file).parent().unwrap().to_str().unwrap().to_string();
        ok(&["dump-ir", &dir, "--plan", "tp", "--mesh", "tp=8", "--train", "--batch", "1", "--seq", "4096"])
            .lines()
            .count()
    };
    assert_eq!(lines(80), lines(4));
}

/// A deep model of a family is captured and placed with few of its layers. What is printed and noted is what a compilation of
/// all layers prints and notes, which a limit on memory takes, however high it is.
#[test]
fn a_deep_model_is_shown_as_if_it_had_been_compiled_as_a_whole() {
    let scratch = Scratch::new("deep-whole");
    let config = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 14, "vocab_size": 32, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false,
    });
    scratch.write("config.json", config.to_string().as_bytes());
    let dir = scratch.path("");
    let uncredited = |text: String| {
        // Where two rules lead to the same operation, one of them is named, which may depend on the number of layers.
        let lines = text.lines().map(|line| line.split("; rule ").next().unwrap().to_string() + "\n");
        lines.collect::<String>()
    };
    for arguments in [
        &["--plan", "tp", "--mesh", "tp=8"][..],
        &["--plan", "tp", "--mesh", "tp=2", "--train"],
        &["--plan", "tp-sp", "--mesh", "tp=4", "--train", "--full"],
        &["--plan", "tp-sp-fsdp", "--mesh", "dp=2,tp=2", "--train"],
        &["--plan", "tp-fsdp", "--mesh", "dp=2,tp=2", "--train", "--micro-batches", "2", "--clip-norm", "1"],
        &["--plan", "fsdp", "--mesh", "dp=2", "--train", "--stage", "scheduled", "--rank", "1"],
        &["--plan", "tp", "--mesh", "tp=8", "--train", "--stage", "rank", "--rank", "7"],
    ] {
        let command = [&["dump-ir", &dir, "--batch", "4", "--seq", "8"], arguments].concat();
        let whole = [&command[..], &["--memory-limit", "100GiB"]].concat();
        let [short, whole] = [command, whole].map(|command| noted(&command, &scratch));
        assert_eq!(uncredited(short.0), uncredited(whole.0), "{arguments:?}");
        assert_eq!(short.1, whole.1, "{arguments:?}");
    }
}

/// Prompts of token ids, in a directory without a tokenizer: the same text on every mesh, and one line of JSON for each
/// prompt.
#[test]
fn generate_goes_on_from_tokens() {
    let scratch = Scratch::new("generate-tokens");
    let prompts =
        scratch.write("prompts.jsonl", b"{\"tokens\": [1, 2, 3]}\n\n{\"tokens\": [7]}\n{\"tokens\": [9, 9]}\n");
    let dir = data("hf/llama-tiny");
    let generate = |more: &[&str]| {
        let base = ["generate", &dir, "--prompts", &prompts, "--new-tokens", "5", "--batch", "2", "--ignore-end"];
        let (code, out, err) = tpc(&[&base[..], more].concat());
        assert_eq!(code, 0, "{more:?}: {err}");
        out
    };
    let alone = generate(&[]);
    let lines: Vec<Json> = alone.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    for (number, line) in lines.iter().enumerate() {
        assert_eq!((line["number"].as_u64(), line["ended"].as_str()), (Some(number as u64), Some("length")));
        assert_eq!(line["tokens"].as_array().unwrap().len(), 5);
    }
    let (kept, trace) = (scratch.path("out.jsonl"), scratch.path("trace.json"));
    let more = ["--plan", "tp", "--mesh", "tp=2", "--output", &kept, "--trace", &trace];
    assert_eq!(generate(&more), alone);
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), alone);
    let trace: Json = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let attention = events.iter().find(|e| e["name"] == "attention").unwrap();
    assert_eq!(attention["args"]["module"], "model.layers.0.self_attn");
    let collective = events.iter().find(|e| e["name"] == "start all_reduce").unwrap();
    assert_eq!(collective["args"]["axes"], "tp");
    assert!(collective["args"]["why"].as_str().unwrap().contains("plan tp"), "{collective}");
    // Both ranks have a name, and every collective is matched.
    let count = |ph: &str| events.iter().filter(|e| e["ph"] == ph).count();
    assert!(count("s") > 0 && count("s") == count("f"));
    let names: Vec<&str> =
        events.iter().filter(|e| e["name"] == "thread_name").filter_map(|e| e["args"]["name"].as_str()).collect();
    assert_eq!(names, ["rank 0 [0]", "rank 1 [1]"]);
}

#[test]
fn generate_says_what_is_wrong_with_prompts() {
    let scratch = Scratch::new("generate-wrong");
    let dir = data("hf/llama-tiny");
    let told = |contents: &[u8], more: &[&str]| {
        let prompts = scratch.write("p", contents);
        let (code, out, err) = tpc(&[&["generate", &dir, "--prompts", &prompts], more].concat());
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        err.replace(&scratch.path(""), "$TMP/").replace(&data(""), "$DATA/")
    };
    let expected = [
        (&b"\xc3\x28"[..], &[][..], "error: $TMP/p: byte 0 is not the beginning of a UTF-8 character\n"),
        (b"ab\n\xff", &[], "error: $TMP/p: byte 3 is not the beginning of a UTF-8 character\n"),
        (b"\n", &[], "error: $TMP/p: has no prompts: each line must be a text or a JSON object\n"),
        (
            b"{\"tokens\": [1]}\n{\"text\": 1}\n",
            &[],
            "error: $TMP/p: line 2: has none of `prompt`, `tokens`, `messages`\n",
        ),
        (b"{\"tokens\": [1.5]}\n", &[], "error: $TMP/p: line 1: `tokens` must contain only token numbers\n"),
        (
            b"{\"tokens\": [256]}\n",
            &[],
            "error: prompt 0 has token 256 at position 0, but the vocabulary has 256 entries\n",
        ),
        (
            b"a text\n",
            &[],
            "error: $DATA/hf/llama-tiny: has no tokenizer: give prompts as \"tokens\" with --prompts, or train one with `tpc tokenizer train`\n",
        ),
        (
            b"{\"tokens\": [1]}\n",
            &["--top-k", "3"],
            "error: --top-k has no effect without --temperature: the most likely token is taken; leave it out\n",
        ),
        (
            b"{\"tokens\": [1]}\n",
            &["--temperature", "1", "--top-p", "1.5"],
            "error: --top-p is 1.5, but a probability above 0 and up to 1 is needed\n",
        ),
        (
            b"{\"tokens\": [1]}\n",
            &["--stop", "x"],
            "error: $DATA/hf/llama-tiny: has no tokenizer, and --stop needs the text of tokens\n",
        ),
    ];
    for (contents, more, message) in expected {
        assert_eq!(told(contents, more), message);
    }
    let bert = data("hf/bert-tiny");
    let prompts = scratch.write("p", b"{\"tokens\": [1]}\n");
    let (code, _, err) = tpc(&["generate", &bert, "--prompts", &prompts]);
    assert_eq!(
        (code, &*err),
        (1, "error: bert does not predict the next token: only causal language models generate\n")
    );
}
