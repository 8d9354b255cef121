//! Training that is interrupted and resumed: on other meshes and plans, after kills, and with the command.

use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tpc_compiler::error::Error;
use tpc_compiler::models::{ModelDir, weight_map};
use tpc_compiler::pretrained::{TokenBatch, capture_step, load_weights, names};
use tpc_compiler::program::{CompileOptions, TrainingProgram, TrainingSession, compile_training};
use tpc_runtime::{CheckpointError, LaunchOptions, RuntimeError};
use tpc_tests::command::{Scratch, tpc};
use tpc_tests::training::{adamw, mesh, plan};

fn data(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn program(model: &str, on: &str, by: &str, optimizer: &impl burn::optim::Optimizer) -> TrainingProgram {
    let dir = ModelDir::open(data(&format!("hf/{model}"))).unwrap();
    let attention_mask = model == "bert-tiny";
    let tokens = TokenBatch { batch: 4, seq: 16, attention_mask, token_type_ids: attention_mask, documents: false };
    let capture = capture_step(&dir.config, tokens, optimizer).unwrap();
    let names = names(&dir.config);
    let rename = |p: &str| names.get(p).cloned().unwrap_or_else(|| p.to_string());
    compile_training(capture, &mesh(on), &plan(by), &CompileOptions::for_cpu(), &rename).unwrap()
}

/// One training step; every step has another batch.
fn step(training: &mut TrainingSession) -> f64 {
    let done = training.steps_done();
    let session = training.session();
    for name in ["input_ids", "labels", "attention_mask", "token_type_ids"] {
        if session.program(0).inputs.iter().any(|i| i.name == name) {
            let one = |i: usize| match name {
                "attention_mask" => f64::from(u8::from(i % 7 != 3)),
                "token_type_ids" => (i % 2) as f64,
                _ => ((i * i * 31 + i * 7 + done * 13) % 200) as f64,
            };
            session.write_f64(name, &(0..64).map(one).collect::<Vec<_>>()).unwrap();
        }
    }
    // The learning rate depends on the step, as that of a schedule does.
    training.step(1e-2 / (1.0 + done as f64)).unwrap()
}

fn load(training: &mut TrainingSession, model: &str) {
    let dir = ModelDir::open(data(&format!("hf/{model}"))).unwrap();
    load_weights(training.session(), &weight_map(&dir.config), &dir.weights).unwrap();
}

fn close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-5 * expected.abs()
}

#[test]
fn a_run_goes_on_with_the_same_losses_on_any_mesh_and_plan() {
    let meshes = [("tp=4", "tp"), ("dp=4", "ddp"), ("", "none"), ("dp=2,tp=2", "tp-sp-ddp")];
    for (model, meshes) in [("llama-tiny", &meshes[..]), ("gpt2-tiny", &meshes[..2]), ("bert-tiny", &meshes[2..])] {
        let scratch = Scratch::new(&format!("meshes-{model}"));
        let mut training = program(model, "dp=2,tp=2", "tp-ddp", &adamw()).launch(LaunchOptions::default()).unwrap();
        load(&mut training, model);
        for _ in 0..2 {
            step(&mut training);
        }
        let path = training.save_checkpoint(&scratch.0).unwrap();
        assert_eq!(path, scratch.0.join("step-000002"));
        let expected: Vec<f64> = (0..3).map(|_| step(&mut training)).collect();
        assert!(expected.windows(2).all(|w| !close(w[0], w[1])), "{expected:?}");
        for (on, by) in meshes {
            let program = program(model, on, by, &adamw());
            let mut resumed = program.launch_resumed(LaunchOptions::default(), &scratch.0).unwrap();
            assert_eq!(resumed.steps_done(), 2);
            for (i, &expected) in expected.iter().enumerate() {
                let found = step(&mut resumed);
                println!("{model} {on}: loss {} is {found}, {:e} off", i + 2, (found - expected).abs() / expected);
                assert!(close(found, expected), "{model} {on}: {found}, expected {expected}");
            }
        }
    }
}

/// Without the optimizer's state, or with the state of another step, the losses differ: this shows that the test above
/// compares something.
#[test]
fn state_step_and_a_first_step_belong_to_a_checkpoint() {
    let scratch = Scratch::new("state");
    let launch = || program("llama-tiny", "tp=2", "tp", &adamw()).launch(LaunchOptions::default()).unwrap();
    let mut training = launch();
    load(&mut training, "llama-tiny");
    // Also before the first step.
    training.save_checkpoint(&scratch.0.join("zero")).unwrap();
    let mut losses = vec![step(&mut training), step(&mut training)];
    training.save_checkpoint(&scratch.0.join("two")).unwrap();
    let names: Vec<String> = training.session().program(0).inputs.iter().map(|i| i.name.clone()).collect();
    let parameters: Vec<(String, Vec<u8>)> = names
        .iter()
        .filter(|n| n.ends_with("weight"))
        .map(|n| (n.clone(), training.session().read_input(n).unwrap()))
        .collect();
    losses.extend([step(&mut training), step(&mut training)]);

    let mut zero = launch();
    assert_eq!(zero.resume(&scratch.0.join("zero")).unwrap(), 0);
    assert!((0..4).all(|i| step(&mut zero) == losses[i]), "the same bits");
    let error = zero.resume(&scratch.0.join("zero")).unwrap_err();
    assert!(error.to_string().contains("launch a new session"), "{error}");
    // Into a session that has already run steps.
    assert_eq!(zero.resume(&scratch.0.join("two")).unwrap(), 2);
    assert_eq!((step(&mut zero), step(&mut zero)), (losses[2], losses[3]));

    let mut fresh = launch();
    for (name, bytes) in &parameters {
        fresh.session().write_bytes(name, bytes).unwrap();
    }
    fresh.session().write_f64("labels", &[0.0; 64]).unwrap();
    step(&mut fresh);
    assert!(!close(step(&mut fresh), losses[3]));
}

#[test]
fn a_checkpoint_of_another_model_or_optimizer_is_refused() {
    let scratch = Scratch::new("other");
    let mut training = program("llama-tiny", "tp=2", "tp", &adamw()).launch(LaunchOptions::default()).unwrap();
    load(&mut training, "llama-tiny");
    step(&mut training);
    training.save_checkpoint(&scratch.0).unwrap();
    let says = |program: TrainingProgram| {
        let error = program.launch_resumed(LaunchOptions::default(), &scratch.0).err().unwrap();
        assert!(matches!(error, Error::Checkpoint(CheckpointError::Differs { .. })));
        error.to_string().replace(&scratch.path(""), "$TMP/")
    };
    let way_out = "a checkpoint fits only the model and optimizer that it was written with: use those, or start from scratch in another directory";
    assert_eq!(
        says(program("gpt2-tiny", "tp=2", "tp", &adamw())),
        format!(
            "$TMP/step-000001: `transformer.wte.weight` is missing in the checkpoint, but parameter f32[256, 64] in the program; {way_out}"
        )
    );
    let sgd = burn::optim::SgdConfig::new().build();
    let message = says(program("llama-tiny", "tp=2", "tp", &sgd));
    assert!(
        message.starts_with("$TMP/step-000001: `model.embed_tokens.weight/")
            && message.contains("is state f32[256, 64] in the checkpoint, but missing in the program"),
        "{message}"
    );
}

#[test]
fn inputs_without_values_are_errors_not_zeros() {
    let mut training = program("llama-tiny", "tp=2", "tp", &adamw()).launch(LaunchOptions::default()).unwrap();
    let error = training.step(1e-3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `model.embed_tokens.weight` has no value: give it with `session().write_f64`, or parameters with \
         `load_weights`, `initialize` or `resume`"
    );
    assert!(matches!(error, Error::Missing { .. }));
    load(&mut training, "llama-tiny");
    let missing = |e: Error| matches!(e, Error::Missing { ref name, .. } if name == "input_ids");
    assert!(missing(training.step(1e-3).unwrap_err()));
    assert_eq!(training.steps_done(), 0);
    step(&mut training);
    assert_eq!(training.steps_done(), 1);
}

#[test]
fn a_hand_over_that_fails_is_an_error_now_and_later() {
    let mut broken = program("llama-tiny", "tp=2", "tp", &adamw());
    // A parameter whose placement differs from that in the first step's program.
    let mut ranks = broken.steady.ranks.into_vec();
    ranks[1].buffers[0].offset += 64;
    broken.steady.ranks = ranks.into();
    let mut training = broken.launch(LaunchOptions::default()).unwrap();
    load(&mut training, "llama-tiny");
    step(&mut training);
    let error = training.step(1e-3).unwrap_err();
    assert!(matches!(error, Error::Runtime(RuntimeError::Launch(_))), "{error}");
    for _ in 0..2 {
        assert!(matches!(training.step(1e-3), Err(Error::Runtime(RuntimeError::Poisoned(_)))));
    }
    // The contents can still be read.
    assert_eq!(training.session().read_input_f64("model.norm.weight").unwrap().len(), 64);
}

#[test]
fn seeds_of_random_operations_are_the_runs_own() {
    use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig};
    use burn::tensor::{DType, Device, Tensor};
    use tpc_compiler::capture::{Spec, capture_training_shapes, named};

    #[derive(burn::module::Module, Debug)]
    struct Model {
        linear: Linear,
        dropout: Dropout,
    }

    let launch = |seed: u64, on: &str| {
        let build = |d: &Device| Model {
            linear: LinearConfig::new(8, 8).with_bias(false).init(d),
            dropout: DropoutConfig::new(0.5).init(),
        };
        let batch = named("x", Spec::<2>::new([4, 8], DType::F32));
        let loss = |m: &Model, x: Tensor<2>| m.dropout.forward(m.linear.forward(x)).square().mean();
        let step =
            capture_training_shapes(build, &burn::optim::SgdConfig::new().build(), batch, &Default::default(), loss);
        let options = CompileOptions { seed, ..CompileOptions::for_cpu() };
        let program = compile_training(
            step.unwrap(),
            &mesh(on),
            &plan(if on.is_empty() { "none" } else { "ddp" }),
            &options,
            &str::to_string,
        );
        let mut training = program.unwrap().launch(LaunchOptions::default()).unwrap();
        let values: Vec<f64> = (0..64).map(|i| f64::from(i % 5) - 2.0).collect();
        training.session().write_f64("linear.weight", &values).unwrap();
        training.session().write_f64("x", &values[..32]).unwrap();
        training
    };
    let losses = |t: &mut TrainingSession| -> Vec<f64> { (0..3).map(|_| t.step(1e-3).unwrap()).collect() };
    let first = losses(&mut launch(0, ""));
    assert_eq!(losses(&mut launch(0, "")), first);
    // Every bit of the seed counts, except for the twenty bits of the step.
    let others: Vec<Vec<f64>> = [1, 2, 1 << 40].iter().map(|&seed| losses(&mut launch(seed, ""))).collect();
    assert!(others.iter().all(|o| *o != first) && others[0] != others[1]);
    assert!(losses(&mut launch(2, "dp=2")).iter().zip(&others[1]).all(|(a, b)| close(*a, *b)));
    // A resumed run keeps its seed.
    let scratch = Scratch::new("seed");
    let mut training = launch(2, "");
    training.step(1e-3).unwrap();
    training.save_checkpoint(&scratch.0).unwrap();
    let mut resumed = launch(7, "dp=2");
    resumed.resume(&scratch.0).unwrap();
    assert_eq!(resumed.seed(), 2);
    assert!(close(resumed.step(1e-3).unwrap(), others[1][1]));
}

const ARGUMENTS: &str = "TPC_CHECKPOINT_TEST_ARGUMENTS";

/// Not a test: the process that [`kills_lose_nothing`] kills.
#[test]
#[ignore]
fn child() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else { return };
    let code = tpc_command::run(arguments.split('\n'), &mut std::io::stdout(), &mut std::io::stderr());
    std::process::exit(code.into());
}

fn spawn(arguments: &[&str]) -> std::process::Child {
    let arguments = [&["tpc"], arguments].concat().join("\n");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["checkpoints::child", "--exact", "--ignored", "--nocapture"]).env(ARGUMENTS, arguments);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Losses by step.
fn curve(metrics: &str) -> Vec<(u64, f64)> {
    let lines = std::fs::read_to_string(metrics).unwrap();
    let rows = lines.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    rows.map(|row| (row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap())).collect()
}

#[test]
fn kills_lose_nothing() {
    let scratch = Scratch::new("kill");
    let text = scratch.path("text");
    std::fs::write(&text, "the quick brown fox jumps over the lazy dog. ".repeat(20)).unwrap();
    let dir = data("hf/llama-tiny").display().to_string();
    let (whole, killed) = (scratch.path("whole.jsonl"), scratch.path("killed.jsonl"));
    let checkpoints = scratch.path("run");
    let base = [
        "train",
        &dir,
        "--data",
        &text,
        "--characters",
        "--steps",
        "60",
        "--batch",
        "4",
        "--seq",
        "16",
        "--lr",
        "3e-3",
    ];
    let run = spawn(&[&base[..], &["--seed", "9", "--metrics", &whole]].concat()).wait_with_output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let more = ["--checkpoint", &checkpoints, "--save-every", "1", "--keep", "2", "--resume", "--metrics", &killed];
    let meshes: [&[&str]; 3] = [&["--plan", "tp", "--mesh", "tp=2"], &[], &["--plan", "ddp", "--mesh", "dp=2"]];
    let mut kills = 0;
    for attempt in 0.. {
        assert!(attempt < 60, "no progress");
        let seed: &[&str] = if attempt == 0 { &["--seed", "9"] } else { &[] };
        let latest = || tpc_runtime::checkpoint::Checkpoint::latest(Path::new(&checkpoints)).map(|c| c.step());
        let before = latest().unwrap_or(0);
        let mut child = spawn(&[&base[..], &more, seed, meshes[attempt % 3]].concat());
        // Waits until the process has written something, and then some time longer, to kill it during a step or a
        // write.
        let start = std::time::Instant::now();
        let mut status = None;
        while status.is_none() && latest().unwrap_or(0) < before + 2 && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(2));
            status = child.try_wait().unwrap();
        }
        if status.is_none() {
            std::thread::sleep(Duration::from_micros(attempt as u64 * 7919 % 40_000));
            status = child.try_wait().unwrap();
        }
        if status.is_none() {
            // SIGKILL.
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            let after = latest().unwrap();
            assert!(after >= before + 2, "a checkpoint was lost");
            continue;
        }
        let run = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{message}");
        if latest().unwrap() == 60 {
            break;
        }
    }
    println!("{kills} kills");
    assert!(kills >= 3, "{kills}");
    // A kill during the removal of an old checkpoint leaves it to the next save.
    let names: Vec<String> = names_in(Path::new(&checkpoints)).into_iter().filter(|n| !n.starts_with('.')).collect();
    assert_eq!(names.last().unwrap(), "step-000060");
    assert!(names.len() <= 3, "{names:?}");
    let (expected, found) = (curve(&whole), curve(&killed));
    assert_eq!(expected.len(), 60);
    for ((i, want), (j, loss)) in expected.iter().zip(&found) {
        // Sums have another order, over 60 steps.
        assert!(i == j && (want - loss).abs() <= 1e-4 * want, "step {i}: {loss}, expected {want}");
    }
    assert_eq!(found.len(), 60);
}

#[test]
fn the_command_says_what_it_cannot_resume() {
    let scratch = Scratch::new("command");
    let dir = data("hf/llama-tiny").display().to_string();
    let inputs = format!("{dir}/inputs.safetensors");
    let run = scratch.path("run");
    let train = |more: &[&str]| {
        let (code, out, err) =
            tpc(&[&["train", &dir, "--inputs", &inputs, "--steps", "2", "--checkpoint", &run], more].concat());
        (code, out.replace(&scratch.path(""), "$TMP/"), err.replace(&scratch.path(""), "$TMP/"))
    };
    let (code, out, err) = train(&["--resume", "--seed", "4", "--save-every", "1"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        err,
        "note: $TMP/run: no checkpoint: no directory step-N with an index.json; training starts from the beginning\n\
         note: --seed has no effect: the batch and the weights are given, and nothing else is drawn\n"
    );
    assert!(out.contains("checkpoint $TMP/run/step-000001\n") && out.contains("checkpoint $TMP/run/step-000002\n"));
    let (code, _, err) = train(&[]);
    assert_eq!(
        (code, &*err),
        (
            1,
            "error: $TMP/run: already holds checkpoints, the latest of step 2; resume from it with --resume or choose another directory\n"
        )
    );
    let (code, _, err) = train(&["--resume", "--seed", "5"]);
    assert_eq!(
        (code, &*err),
        (1, "error: $TMP/run/step-000002: was written with --seed 4, not 5; leave --seed out to resume from it\n")
    );
    let (code, _, err) = train(&["--resume"]);
    assert_eq!((code, &*err), (0, "note: 2 steps are already done; --steps 2 is the total\n"));
    let (code, _, err) = train(&["--resume", "--steps", "3"]);
    assert_eq!(code, 2, "{err}");
    // Errors that are certain are reported at the start.
    let again = |more: &[&str]| {
        let (code, out, err) = tpc(&[&["train", &dir, "--inputs", &inputs], more].concat());
        assert_eq!((code, &*out), (1, ""));
        err.replace(&scratch.path(""), "$TMP/")
    };
    assert_eq!(
        again(&["--steps", "1", "--checkpoint", &run, "--resume"]),
        "error: $TMP/run/step-000002: 2 steps are already done, but the total is --steps 1\n"
    );
    assert_eq!(
        again(&["--steps", "3", "--checkpoint", &format!("{run}/step-000002"), "--resume"]),
        "error: $TMP/run/step-000002: is itself a checkpoint: --checkpoint takes the directory that holds it\n"
    );
    std::fs::rename(scratch.path("run/step-000002"), scratch.path("run/step-000007")).unwrap();
    assert_eq!(
        again(&["--steps", "9", "--checkpoint", &run, "--resume"]),
        "error: $TMP/run/step-000007: its name says step 7, but its index says step 2: it was renamed or copied; \
         rename it to step-000002 or remove it\n"
    );
    let (code, _, err) = tpc(&["train", &dir, "--inputs", &inputs, "--steps", "2", "--resume"]);
    assert!(code == 2 && err.contains("--checkpoint <DIR>"), "{err}");
    let blocked = scratch.path("file");
    std::fs::write(&blocked, b"in the way").unwrap();
    let (code, _, err) =
        tpc(&["train", &dir, "--inputs", &inputs, "--steps", "1", "--checkpoint", &format!("{blocked}/run")]);
    assert!(code == 1 && err.contains("cannot be"), "{err}");
}
