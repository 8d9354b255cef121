//! `tpc launch`: the reference results by processes, resuming on fewer of them, and what is said when it cannot work.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;
use support::*;

/// Losses, gradients and parameters of three AdamW steps, as in `tests/tests/conformance.rs`.
fn trains_as_expected(name: &str, plan: &str, mesh: &str, ranks: &str) {
    let scratch = Scratch::new(&format!("{name}-{plan}-{ranks}"));
    let dir = model(name);
    let told = launched(ranks, &reference(&scratch, &dir, plan, mesh));
    assert_eq!((told.code, &*told.err), (0, ""), "{name} {plan} {mesh}");
    assert!(told.out.ends_with(&format!("saved {}\n", scratch.path("saved"))), "only rank 0 prints: {}", told.out);
    assert_eq!(told.out.matches("step 1/3").count(), 1);
    assert_eq!(
        scratch.names(),
        ["g.safetensors", "m.jsonl", "saved", "saved/config.json", "saved/model.safetensors"],
        "nothing else is left"
    );
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
    let (a, b) = (losses(whole.path("m.jsonl")), losses(parts.path("m.jsonl")));
    assert_eq!((a.len(), b.len()), (8, 8));
    for ((step, a), (other, b)) in a.into_iter().zip(b) {
        assert!(step == other && (a - b).abs() <= 1e-5 * a, "step {step}: {a} and {b}");
    }
}

#[test]
fn run_computes_by_processes_and_writes_once() {
    let scratch = Scratch::new("run");
    let dir = model("gpt2-tiny");
    let (dir_text, inputs) = (dir.display().to_string(), dir.join("inputs.safetensors").display().to_string());
    let output = scratch.path("out.safetensors");
    let head = ["launch", "--ranks", "2", "--", "run", &dir_text, "--plan", "tp", "--mesh", "tp=2"];
    let told = tpc(&[&head[..], &["--inputs", &inputs, "--output", &output]].concat());
    assert_eq!((told.code, &*told.err), (0, ""));
    let (found, expected) = (tensors(&output), tensors(dir.join("expected.safetensors")));
    let far = found["logits"].iter().zip(&expected["logits"]).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(far <= 1e-3, "{far}");
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
    let told = tpc(&["launch", "--ranks", "2", "--", "/no/such/program"]);
    assert_eq!(told.code, 1);
    assert!(told.err.starts_with("error: `/no/such/program` cannot be started"), "{}", told.err);
    let told = tpc(&["launch", "--ranks", "65", "--", "true"]);
    assert!(told.err.contains("at most 64 ranks"), "{}", told.err);
    let told = tpc(&["launch", "--ranks", "2", "--deadline", "0", "--", "true"]);
    assert_eq!(told.code, 2);
    let told = tpc(&["launch", "--ranks", "2", "--", "true"]);
    assert!(told.code == 0 && told.err.starts_with("note: the processes did not join each other"), "{}", told.err);
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
    // One that ends without an error is missed, too, and not only after the deadline.
    let script = script.replace("exec sleep 60", "exit 0");
    let told = tpc(&["launch", "--ranks", "3", "--deadline", "60", "--", "sh", "-c", &script]);
    assert_eq!(told.code, 1, "{}", told.err);
    assert!(told.err.contains("the process of rank 1 ended without it") && told.seconds < 20.0, "{}", told.err);
}

#[test]
fn other_programs_are_named_with_the_first_collective_that_differs() {
    let scratch = Scratch::new("other");
    let with = |plan: &str| {
        let quoted: Vec<String> = training(&scratch, "2", "tp=2", plan).iter().map(|a| format!("'{a}'")).collect();
        quoted.join(" ")
    };
    let tpc_path = env!("CARGO_BIN_EXE_tpc");
    let script = format!(
        "if [ $TPC_RANK = 1 ]; then exec {tpc_path} {}; else exec {tpc_path} {}; fi",
        with("tp-sp"),
        with("tp")
    );
    let told = tpc(&["launch", "--ranks", "2", "--deadline", "20", "--", "sh", "-c", &script]);
    assert_eq!(told.code, 1);
    for rank in 0..2 {
        let begin = format!(
            "[rank {rank}] error: the processes run different programs: rank 1 differs from rank 0 in collective 0 of rank 0's program: rank 0 has `all_reduce tp`"
        );
        assert!(told.err.contains(&begin), "{}", told.err);
    }
    assert!(told.err.contains("rank 1 has `reduce_scatter tp`"), "{}", told.err);
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
    assert!(told.code == 1 && told.err.contains("RANK=2, which is no rank of WORLD_SIZE=2"), "{}", told.err);
    let told = start(0, "2", &[("LOCAL_WORLD_SIZE", "1")]).end(longest);
    assert!(told.err.contains("torchrun started 2 processes, of which 1 on this host"), "{}", told.err);
    assert!(told.err.contains("with mpirun or `srun --mpi=pmix`"), "{}", told.err);
}
