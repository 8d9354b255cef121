//! `tpc launch`: reference results with processes, resuming on fewer of them, and the errors when it cannot work.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;
use support::*;

/// Losses, gradients and parameters of three AdamW steps, as in `tests/tests/conformance.rs`.
fn trains_as_expected(name: &str, plan: &str, mesh: &str, ranks: &str) {
    let scratch = Scratch::new(&format!("{name}-{plan}-{ranks}"));
    let dir = model(name);
    let told = launched(ranks, &reference(&scratch, &dir, plan, mesh));
    assert_eq!((told.code, told.said()), (0, vec![]), "{name} {plan} {mesh}");
    assert!(told.out.ends_with(&format!("saved {}\n", scratch.path("saved"))), "only rank 0 prints: {}", told.out);
    assert_eq!(told.out.matches("step 1/3").count(), 1);
    let settings = dir.join("generation_config.json").exists().then_some("saved/generation_config.json");
    let mut files = vec!["g.safetensors", "m.jsonl", "saved", "saved/config.json"];
    files.extend(settings.into_iter().chain(["saved/model.safetensors"]));
    assert_eq!(scratch.names(), files, "nothing else is left");
    compares(&scratch, &format!("{name} {plan} {mesh}"), &dir);
}

macro_rules! goldens {
    ($($name:ident $model:literal),+) => { $(
        mod $name {
            #[test]
            fn on_two_processes() {
                for (plan, mesh) in [("tp", "tp=2"), ("tp-sp", "tp=2"), ("ddp", "dp=2"), ("fsdp", "dp=2")] {
                    super::trains_as_expected($model, plan, mesh, "2");
                }
            }

            #[test]
            fn on_four_processes() {
                let two = "dp=2,tp=2";
                for (plan, mesh) in [("tp", "tp=4"), ("tp-sp", "tp=4"), ("ddp", "dp=4"), ("fsdp", "dp=4"), ("2d", two)] {
                    super::trains_as_expected($model, plan, mesh, "4");
                }
            }
        }
    )+ };
}

goldens!(llama "llama-tiny", gpt2 "gpt2-tiny", bert "bert-tiny");

fn launched(ranks: &str, arguments: &[String]) -> Told {
    let head = ["launch", "--ranks", ranks, "--deadline", "20", "--"];
    tpc(&head.into_iter().chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>())
}

#[test]
fn a_run_goes_on_on_fewer_processes_and_as_threads() {
    let whole = Scratch::new("whole");
    let told = tpc(&training(&whole, "8", "dp=4", "fsdp").iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(told.code, 0, "{}", told.err);
    let parts = Scratch::new("parts");
    for (ranks, steps, mesh, plan) in [("4", "3", "dp=4", "fsdp"), ("2", "6", "tp=2", "tp-sp")] {
        let told = launched(ranks, &training(&parts, steps, mesh, plan));
        assert_eq!(told.code, 0, "{}", told.err);
    }
    let arguments = training(&parts, "8", "dp=2", "ddp");
    let told = tpc(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(told.code, 0, "{}", told.err);
    same_losses(&whole, &parts, 8, 1e-5);
}

/// More ranks than one process may run as threads are processes. Most of them have no heads, and all have few rows of each
/// weight.
#[test]
fn more_ranks_than_threads_of_one_process_learn_as_few_do() {
    let (few, many) = (Scratch::new("few"), Scratch::new("many"));
    let told = tpc(&training(&few, "2", "tp=2", "tp").iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(told.code, 0, "{}", told.err);
    let arguments = training(&many, "2", "tp=66", "tp");
    let head = ["launch", "--ranks", "66", "--deadline", "120", "--"];
    let told = tpc(&head.into_iter().chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>());
    assert_eq!(told.code, 0, "{}", told.err);
    same_losses(&few, &many, 2, 1e-6);
}

#[test]
fn run_computes_by_processes_and_writes_once() {
    let scratch = Scratch::new("run");
    let dir = model("gpt2-tiny");
    let (dir_text, inputs) = (dir.display().to_string(), dir.join("inputs.safetensors").display().to_string());
    let output = scratch.path("out.safetensors");
    let head = ["launch", "--ranks", "2", "--", "run", &dir_text, "--plan", "tp", "--mesh", "tp=2"];
    let told = tpc(&[&head[..], &["--inputs", &inputs, "--output", &output]].concat());
    assert_eq!((told.code, told.said()), (0, vec![]));
    expected_logits(&output, &dir);
    assert_eq!(scratch.names(), ["out.safetensors"]);
}

#[test]
fn what_cannot_work_is_said_by_everyone() {
    let scratch = Scratch::new("errors");
    let told = launched("3", &training(&scratch, "2", "tp=2", "tp"));
    assert_eq!(told.code, 1);
    for rank in 0..3 {
        let line = format!(
            "[rank {rank}] error: the mesh has 2 ranks, but 3 processes were launched, one for each rank; launch 2 processes or choose a mesh of 3 ranks"
        );
        assert!(told.err.contains(&line), "{}", told.err);
    }
    // One process compiles, and all report what it cannot compile.
    let plan = scratch.path("plan.json");
    std::fs::write(&plan, r#"{"styles": {"model.layers.9": "ColwiseParallel"}}"#).unwrap();
    let told = launched("2", &training(&scratch, "2", "tp=2", &plan));
    assert_eq!(told.code, 1);
    // The process that compiles knows the file of the plan.
    for begin in [format!("[rank 0] error: {plan}: "), "[rank 1] error: rank 0: ".into()] {
        let line = told.err.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_default();
        assert!(line.contains("model.layers.9"), "{}", told.err);
    }
    let told = tpc(&["launch", "--ranks", "2", "--", "/no/such/program"]);
    assert_eq!(told.code, 1);
    assert!(told.err.starts_with("error: `/no/such/program` cannot be started"), "{}", told.err);
    let told = tpc(&["launch", "--ranks", "65537", "--", "true"]);
    assert!(told.err.contains("--ranks 65537: a mesh has at most 65536 ranks"), "{}", told.err);
    let told = tpc(&["launch", "--ranks", "2", "--deadline", "0", "--", "true"]);
    assert_eq!(told.code, 2);
    let told = tpc(&["launch", "--ranks", "2", "--", "true"]);
    assert!(told.code == 0 && told.err.starts_with("note: the processes did not join"), "{}", told.err);
    let told = tpc(&["launch", "--ranks", "2", "--", "sh", "-c", "test $TPC_RANK = 0 || exit 7; sleep 20"]);
    assert_eq!(told.code, 7);
    assert_eq!(told.err, "error: rank 1 failed: its process exited with code 7\n");
    assert!(told.seconds < 10.0, "the others are killed");
}

#[test]
fn signals_of_the_launcher_reach_the_processes() {
    let script = "trap 'exit 9' TERM; while :; do sleep 0.02; done";
    let run = Tpc::start(&["launch", "--ranks", "2", "--grace", "20", "--", "sh", "-c", script]);
    while children(run.pid()).len() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(200));
    signal(run.pid(), "TERM");
    let told = run.end(Duration::from_secs(60));
    assert!(told.code == 143 && told.err.ends_with("\nerror: ended by signal 15 (SIGTERM)\n"), "{}", told.err);
    assert!(told.seconds < 15.0, "they were not killed but told: {}", told.seconds);
}

#[test]
fn a_process_that_does_not_come_is_named() {
    let scratch = Scratch::new("missing");
    let quoted: Vec<String> = training(&scratch, "2", "dp=3", "ddp").iter().map(|a| format!("'{a}'")).collect();
    let script =
        format!("test $TPC_RANK = 1 && exec sleep 60; exec {} {}", env!("CARGO_BIN_EXE_tpc"), quoted.join(" "));
    let head = ["launch", "--ranks", "3", "--deadline", "1", "--grace", "0.5", "--", "sh", "-c"];
    let told = tpc(&[&head[..], &[&script]].concat());
    assert_eq!(told.code, 1, "{}", told.err);
    for rank in [0, 2] {
        let line = told.err.lines().find(|l| l.starts_with(&format!("[rank {rank}] error: "))).unwrap_or_default();
        assert!(line.contains("missing rank 1 (rank 1 is not there yet)"), "{}", told.err);
    }
    assert!(told.seconds < 20.0, "{}", told.seconds);
    // A process that ends without an error is also missed, and not only after the deadline.
    let script = script.replace("exec sleep 60", "exit 0");
    let told = tpc(&["launch", "--ranks", "3", "--deadline", "60", "--", "sh", "-c", &script]);
    assert_eq!(told.code, 1, "{}", told.err);
    assert!(told.err.contains("the process of rank 1 ended without it") && told.seconds < 20.0, "{}", told.err);
}

/// A shell command that runs `tpc` with these arguments.
fn quoted(arguments: &[String]) -> String {
    let quoted: Vec<String> = arguments.iter().map(|a| format!("'{a}'")).collect();
    format!("{} {}", env!("CARGO_BIN_EXE_tpc"), quoted.join(" "))
}

/// The arguments with other values of some options, or with a flag.
fn with(arguments: &[String], more: &[&str]) -> Vec<String> {
    let mut all = arguments.to_vec();
    for option in more.chunks(2) {
        match (all.iter().position(|a| a == option[0]), option.get(1)) {
            (Some(at), Some(value)) => all[at + 1] = value.to_string(),
            _ => all.extend(option.iter().map(ToString::to_string)),
        }
    }
    all
}

/// Processes of one job that differ in anything that affects the result end at once, with an error that names the
/// difference.
#[test]
fn differences_between_the_processes_of_a_job_are_named() {
    let scratch = Scratch::new("differences");
    let (model, other) = (scratch.path("model"), scratch.path("other"));
    let source = support::model("llama-tiny");
    for dir in [&model, &other] {
        std::fs::create_dir_all(dir).unwrap();
        for file in ["config.json", "model.safetensors", "inputs.safetensors"] {
            std::fs::copy(source.join(file), format!("{dir}/{file}")).unwrap();
        }
    }
    let flipped = |file: &str| {
        let mut bytes = std::fs::read(format!("{other}/{file}")).unwrap();
        // The lowest byte of the last label, or of a weight.
        let at = bytes.len() - 8;
        bytes[at] ^= 1;
        std::fs::write(format!("{other}/{file}"), bytes).unwrap();
    };
    flipped("model.safetensors");
    flipped("inputs.safetensors");
    std::fs::write(scratch.path("text"), "a text of some characters, long enough for windows").unwrap();
    std::fs::write(scratch.path("text2"), "a text of other characters, long enough for windows").unwrap();
    std::fs::write(scratch.path("plan.json"), r#"{"data": "ddp"}"#).unwrap();
    std::fs::write(scratch.path("plan2.json"), r#"{"data": "zero1"}"#).unwrap();
    let inputs = format!("{model}/inputs.safetensors");
    let base =
        ["train", &model, "--plan", "ddp", "--mesh", "dp=2", "--inputs", &inputs, "--steps", "2", "--lr", "0.01"];
    let base = base.map(String::from);
    let copies = format!("{}/inputs.safetensors", scratch.path("copy"));
    std::fs::create_dir_all(scratch.path("copy")).unwrap();
    std::fs::copy(&inputs, &copies).unwrap();
    let run = |first: &[String], second: &[String]| {
        let script = format!("if [ $TPC_RANK = 1 ]; then exec {}; else exec {}; fi", quoted(second), quoted(first));
        tpc(&["launch", "--ranks", "2", "--deadline", "20", "--", "sh", "-c", &script])
    };
    let other_inputs = format!("{other}/inputs.safetensors");
    let [text, text2] = ["text", "text2"].map(|name| {
        let path = scratch.path(name);
        let arguments =
            ["train", &model, "--characters", "--plan", "ddp", "--mesh", "dp=2", "--data", &path, "--steps", "2"];
        with(&arguments.map(String::from), &["--batch", "2", "--seq", "8"])
    });
    let plans = ["plan.json", "plan2.json"].map(|name| with(&base, &["--plan", &scratch.path(name)]));
    let runs = ["a", "b"].map(|name| with(&base, &["--checkpoint", &scratch.path(name)]));
    let [plan, plan2] = plans;
    let [run_a, run_b] = runs;
    let cases: Vec<(Vec<String>, Vec<String>, &str)> = vec![
        (base.to_vec(), with(&base, &["--lr", "1e-3"]), "--lr is 0.01 on rank 0 and 0.001 on rank 1"),
        (base.to_vec(), with(&base, &["--steps", "3"]), "--steps is 2 on rank 0 and 3 on rank 1"),
        (base.to_vec(), with(&base, &["--seed", "7"]), "--seed is not given on rank 0 and 7 on rank 1"),
        (base.to_vec(), with(&base, &["--beta2", "0.9"]), "--beta2 is 0.999 on rank 0 and 0.9 on rank 1"),
        (base.to_vec(), with(&base, &["--optimizer", "sgd"]), "--optimizer is adamw on rank 0 and sgd on rank 1"),
        (base.to_vec(), with(&base, &["--plan", "zero1"]), "--plan is ddp on rank 0 and zero1 on rank 1"),
        (base.to_vec(), with(&base, &["--from-scratch"]), "--from-scratch is false on rank 0 and true on rank 1"),
        (base.to_vec(), with(&base, &["--grads", "g"]), "--grads is not given on rank 0 and given on rank 1"),
        (base.to_vec(), with(&base, &["--inputs", &other_inputs]), "the digest of --inputs is "),
        (text, text2, "the digest of --data is "),
        (plan, plan2, "the digest of --plan is "),
        (run_a, run_b, "--checkpoint is /"),
    ];
    for (first, second, expected) in &cases {
        let told = run(first, second);
        assert_eq!(told.code, 1, "{expected}: {}", told.err);
        for rank in 0..2 {
            let begin = format!("[rank {rank}] error: the processes differ: ");
            let line = told.err.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_default();
            assert!(line.starts_with(expected), "{expected}: {}", told.err);
        }
    }
    // Other weights in a directory of another name. Files of more than 64 MiB are only read if they are not the same
    // file.
    let large = |dir: &str| std::fs::File::create(format!("{dir}/model-unused.safetensors")).unwrap().set_len(65 << 20);
    for larger in [false, true] {
        if larger {
            [&model, &other].into_iter().for_each(|dir| large(dir).unwrap());
        }
        let mut moved = base.to_vec();
        moved[1] = other.clone();
        let told = run(&base, &moved);
        assert!(told.code == 1 && told.err.contains("the digest of model.safetensors is "), "{}", told.err);
    }
    // Another spelling of a value, and another file with the same contents, are not differences.
    let told = run(&base, &with(&base, &["--lr", "1e-2", "--inputs", &copies]));
    assert_eq!((told.code, told.said()), (0, vec![]));
}

/// Ranks that would resume from different steps of one run, because the directory changes meanwhile or is on another
/// host.
#[test]
fn processes_that_resume_from_different_checkpoints_are_told_so() {
    let scratch = Scratch::new("resumed");
    for (name, steps) in [("first", "2"), ("second", "3")] {
        let arguments = with(&training(&scratch, steps, "dp=2", "ddp"), &["--checkpoint", &scratch.path(name)]);
        let told = launched("2", &arguments);
        assert_eq!(told.code, 0, "{}", told.err);
    }
    // Both use the same name for the directory, which is a different directory on each of them, like local disks of two
    // hosts.
    let command = quoted(&with(&training(&scratch, "4", "dp=2", "ddp"), &["--checkpoint", "/proc/self/cwd"]));
    let (first, second) = (scratch.path("first"), scratch.path("second"));
    let script = format!("if [ $TPC_RANK = 1 ]; then cd '{second}'; else cd '{first}'; fi; exec {command}");
    let told = tpc(&["launch", "--ranks", "2", "--deadline", "20", "--", "sh", "-c", &script]);
    assert_eq!(told.code, 1);
    assert!(told.err.contains("the processes differ: the digest of index.json is "), "{}", told.err);
}

/// Two jobs at one address, whose processes first connect to the other job: each trains as it would alone.
#[test]
fn two_jobs_at_one_address_do_not_mix() {
    let dir = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/faults/two-jobs-one-address");
    let scratch = Scratch::new("two-jobs");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |job: &str, rank: usize, jobs: bool| {
        let (inputs, lr) = if job == "A" { ("inputs.safetensors", "1e-3") } else { ("other.safetensors", "1e-1") };
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
        command.arg("train").arg(&dir).args([
            "--steps",
            "5",
            "--plan",
            "ddp",
            "--mesh",
            "dp=2",
            "--optimizer",
            "adamw",
        ]);
        command.args("--beta1 0.9 --beta2 0.95 --eps 1e-8 --weight-decay 0.1 --decay-all --lr".split(' ')).arg(lr);
        command.arg("--inputs").arg(dir.join(inputs)).args(["--metrics", &scratch.path(&format!("{job}.jsonl"))]);
        command.envs([("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
        command.env("RANK", rank.to_string()).env("MASTER_PORT", (port - 1).to_string());
        if jobs {
            command.env("TORCHELASTIC_RUN_ID", job);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = Tpc::run(command);
        std::thread::sleep(Duration::from_millis(300));
        run
    };
    let expected = [
        ("A.jsonl", [4.249415874481201, 4.047390937805176, 3.872845411300659, 3.7218880653381348, 3.586570978164673]),
        (
            "B.jsonl",
            [4.403116703033447, 3.5438051223754883, 3.7955870628356934, 2.9164164066314697, 3.0563924312591553],
        ),
    ];
    // The jobs are distinguished by their settings, and by their launchers' names.
    for jobs in [false, true] {
        let runs = [("A", 0), ("B", 1), ("A", 1), ("B", 0)].map(|(job, rank)| start(job, rank, jobs));
        let told = runs.map(|run| run.end(Duration::from_secs(120)));
        assert_eq!(told.each_ref().map(|t| t.code), [0; 4], "{told:?}");
        let away = if jobs {
            "rank 0 belongs to job A, this process to job B"
        } else {
            "--lr is 0.001 on rank 0 and 0.1 on rank 1"
        };
        assert!(told[1].err.contains("rank 1 was rejected at 127.0.0.1") && told[1].err.contains(away), "{told:?}");
        for (file, expected) in expected {
            let found = losses(scratch.path(file));
            assert_eq!(found.len(), 5);
            for ((step, found), want) in found.into_iter().zip(expected) {
                assert!((found - want).abs() <= 1e-5 * want, "{file}, step {step}: {found}, expected {want}");
            }
        }
    }
}

/// One process has a mistake: both report it, and do not wait for long.
#[test]
fn a_job_without_a_name_with_a_mistake_is_told_what_differs() {
    let scratch = Scratch::new("mistake");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let runs = [(0, "0.01"), (1, "0.001")].map(|(rank, lr)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
        command.args(with(&training(&scratch, "2", "tp=2", "tp"), &["--lr", lr]));
        command.envs([("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
        command.env("RANK", rank.to_string()).env("MASTER_PORT", (port - 1).to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Tpc::run(command)
    });
    let [first, second] = runs.map(|run| run.end(Duration::from_secs(60)));
    let difference = "--lr is 0.01 on rank 0 and 0.001 on rank 1";
    assert_eq!((first.code, second.code), (1, 1), "{first:?} {second:?}");
    let error = |told: &Told| told.err.lines().find(|l| l.starts_with("error: ")).unwrap_or_default().to_string();
    let (first, second) = (error(&first), error(&second));
    assert!(first.contains(&format!("rank 1 did not join at 127.0.0.1:{port} within")), "{first}");
    assert!(second.contains(&format!("rank 1 was rejected at 127.0.0.1:{port}")), "{second}");
    assert!(first.contains(difference) && second.contains(difference), "{first} {second}");
}

/// Without a port, processes meet at a port that follows from their common launcher, even if shells are in between.
/// With the feature `mpi`, MPI's library is used instead.
#[cfg(not(feature = "mpi"))]
#[test]
fn processes_behind_shells_find_each_other() {
    let scratch = Scratch::new("behind");
    let command = quoted(&training(&scratch, "2", "tp=2", "tp"));
    // Each rank has its own shell, which has the rank's variables, too.
    std::fs::write(scratch.path("rank"), format!("{command} --deadline 5\nexit $?\n")).unwrap();
    let rank = |rank: usize| format!("PMI_RANK={rank} PMI_SIZE=2 sh {}", scratch.path("rank"));
    let mut launcher = Command::new("sh");
    launcher.args(["-c", &format!("{} & {}; code=$?; wait $! && exit $code", rank(0), rank(1))]);
    launcher.stdout(Stdio::piped()).stderr(Stdio::piped());
    let told = Tpc::run(launcher).end(Duration::from_secs(60));
    assert!(told.code == 0 && told.out.contains("step 2/2"), "{told:?}");
}

#[test]
fn a_missing_separator_is_hinted_at() {
    let hint = |arguments: &[&str]| {
        let told = tpc(arguments);
        assert!(told.code == 2 && told.err.starts_with("error: "), "{told:?}");
        let line = told.err.lines().find_map(|line| line.strip_prefix("note: the command comes after `--`: "));
        line.unwrap_or_else(|| panic!("{}", told.err)).to_string()
    };
    let cases: [(&[&str], &str); 6] = [
        (
            &["launch", "--ranks", "2", "train", "DIR", "--mesh", "tp=2"],
            "tpc launch --ranks 2 -- train DIR --mesh tp=2",
        ),
        (&["launch", "--ranks=2", "train", "DIR"], "tpc launch --ranks=2 -- train DIR"),
        (&["launch", "train", "DIR", "--ranks", "2"], "tpc launch --ranks 2 -- train DIR"),
        (&["launch", "train", "DIR"], "tpc launch --ranks N -- train DIR"),
        (
            &["launch", "--ranks", "2", "--deadline", "5", "run", "DIR", "--deadline", "9"],
            "tpc launch --ranks 2 --deadline 5 -- run DIR --deadline 9",
        ),
        (&["launch", "--ranks", "2"], "tpc launch --ranks 2 -- train …"),
    ];
    for (arguments, expected) in cases {
        assert_eq!(hint(arguments), expected);
    }
    let told = tpc(&["launch", "--ranks", "2", "--", "trian", "DIR"]);
    assert!(
        told.code == 1
            && told.err.contains("; the subcommands of tpc are dump-ir, plans, costs, diff, simulate, view, why"),
        "{}",
        told.err
    );
    let told = tpc(&["launch", "--ranks", "2", "--", "launch", "--ranks", "2", "--", "true"]);
    let nested = "error: tpc launch starts the processes of one world, and cannot start another tpc launch";
    assert!(told.code == 1 && told.err.contains(nested), "{}", told.err);
}

/// Variables that are empty, or name a single process, make no world; variables of a world without other processes are
/// reported while it waits.
#[test]
fn variables_of_launchers_without_their_processes() {
    let scratch = Scratch::new("environments");
    let start = |variables: &[(&str, &str)], err: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
        command.args(training(&scratch, "1", "tp=2", "tp")).envs(variables.iter().copied());
        Tpc::run({
            command.stdout(Stdio::piped()).stderr(err);
            command
        })
    };
    for variables in [
        &[("RANK", ""), ("WORLD_SIZE", "")][..],
        &[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "")],
        &[("TPC_DEADLINE", ""), ("TPC_RANK", ""), ("TPC_CONTROL", "")],
        &[("OMPI_COMM_WORLD_RANK", ""), ("PMI_RANK", ""), ("SLURM_PROCID", ""), ("SLURM_STEP_ID", "0")],
        &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")],
    ] {
        let told = start(variables, Stdio::piped()).end(Duration::from_secs(60));
        assert_eq!(told.code, 0, "{variables:?}: {}", told.err);
    }
    let told = start(&[("TPC_DEADLINE", "soon")], Stdio::piped()).end(Duration::from_secs(60));
    assert!(
        told.code == 1 && told.err.contains("TPC_DEADLINE=soon, which is not a positive number of seconds"),
        "{}",
        told.err
    );
    // The shell of `srun --pty`.
    let log = scratch.path("err");
    let shell = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("SLURM_JOB_ID", "4711")];
    let run = start(&shell, std::fs::File::create(&log).unwrap().into());
    let said = || std::fs::read_to_string(&log).unwrap();
    until("a note", Duration::from_secs(20), || said().ends_with('\n'));
    signal(run.pid(), "KILL");
    let said = said();
    assert!(said.starts_with("note: rank 0 waits for rank 1 at 127.0.0.1:"), "{said}");
    assert!(said.contains("SLURM's variables SLURM_PROCID=0 and SLURM_NTASKS=2 make this process one of 2"), "{said}");
    assert!(said.contains("`unset SLURM_PROCID` runs tpc alone"), "{said}");
}

#[test]
fn processes_of_other_launchers_meet_over_their_address() {
    let scratch = Scratch::new("torchrun");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize, world: &str, extra: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
        command.args(training(&scratch, "2", "tp=2", "tp")).args(["--deadline", "5"]);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", world).env("LOCAL_WORLD_SIZE", world);
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", (port - 1).to_string());
        command.envs(extra.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Tpc::run(command)
    };
    let longest = Duration::from_secs(60);
    let both = [start(1, "2", &[]), start(0, "2", &[])].map(|t| t.end(longest));
    assert_eq!(both.each_ref().map(|t| t.code), [0, 0], "{both:?}");
    assert!(both[0].out.is_empty() && both[0].err.is_empty() && both[1].out.contains("step 2/2"), "{both:?}");
    let told = start(2, "2", &[]).end(longest);
    assert!(told.code == 1 && told.err.contains("RANK=2, which is not a rank of WORLD_SIZE=2"), "{}", told.err);
    let told = start(0, "2", &[("LOCAL_WORLD_SIZE", "1")]).end(longest);
    assert!(told.err.contains("torchrun started 2 processes, of which 1 on this host"), "{}", told.err);
    assert!(told.err.contains("with mpirun or `srun --mpi=pmix`"), "{}", told.err);
}
