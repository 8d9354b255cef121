//! `tpc` under `mpirun`, built with the feature `mpi`: the reference results, checkpoints that go on elsewhere, and what is said when it
//! cannot work.
#![cfg(feature = "mpi")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::*;

/// Starts `tpc` in so many processes.
fn mpirun(ranks: usize, arguments: &[String]) -> Tpc {
    let mut command = Command::new("mpirun");
    // Several jobs at a time would all be bound to the same cores.
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--tag-output", "-n"]);
    command.arg(ranks.to_string()).arg(env!("CARGO_BIN_EXE_tpc")).args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Tpc::run(command)
}

fn under_mpirun(ranks: usize, arguments: &[String]) -> Told {
    mpirun(ranks, arguments).end(Duration::from_secs(120))
}

/// What a rank said.
fn error(told: &Told, rank: usize) -> &str {
    let begin = format!("[1,{rank}]<stderr>:error: ");
    told.err.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_else(|| panic!("rank {rank}: {}", told.err))
}

fn trains_as_expected(name: &str, plan: &str, mesh: &str, ranks: usize) {
    let scratch = Scratch::new(&format!("mpi-{name}-{plan}-{ranks}"));
    let dir = model(name);
    let (dir_text, inputs) = (dir.display().to_string(), dir.join("inputs.safetensors").display().to_string());
    let (save, metrics, grads) = (scratch.path("saved"), scratch.path("m.jsonl"), scratch.path("g.safetensors"));
    let mut arguments = vec!["train", &dir_text, "--plan", plan, "--mesh", mesh, "--inputs", &inputs, "--steps", "3"];
    arguments.extend(["--save", &save, "--metrics", &metrics, "--grads", &grads]);
    arguments.extend(OPTIMIZER.split(' '));
    let arguments: Vec<String> = arguments.into_iter().map(String::from).collect();
    let told = under_mpirun(ranks, &arguments);
    assert_eq!((told.code, &*told.err), (0, ""), "{name} {plan} {mesh}");
    assert_eq!(told.out.matches("step 1/3").count(), 1, "only rank 0 prints: {}", told.out);
    compares(&scratch, &format!("{name} {plan} {mesh} under mpirun"), &dir);
}

macro_rules! goldens {
    ($($name:ident $model:literal),+) => { $(
        mod $name {
            #[test]
            fn on_two_processes() {
                for (plan, mesh) in
                    [("tp", "tp=2"), ("tp-sp", "tp=2"), ("ddp", "dp=2"), ("fsdp", "dp=2"), ("zero1", "dp=2")]
                {
                    super::trains_as_expected($model, plan, mesh, 2);
                }
            }

            #[test]
            fn on_four_processes() {
                let two = "dp=2,tp=2";
                for (plan, mesh) in
                    [("tp", "tp=4"), ("tp-sp", "tp=4"), ("ddp", "dp=4"), ("fsdp", "dp=4"), ("2d", two), ("zero1", "dp=4")]
                {
                    super::trains_as_expected($model, plan, mesh, 4);
                }
            }
        }
    )+ };
}

goldens!(llama "llama-tiny", gpt2 "gpt2-tiny", bert "bert-tiny");

fn threads(arguments: &[String]) -> Told {
    tpc(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_run_goes_on_as_threads_and_back() {
    let whole = Scratch::new("mpi-whole");
    let told = threads(&training(&whole, "8", "dp=4", "fsdp"));
    assert_eq!(told.code, 0, "{}", told.err);
    let parts = Scratch::new("mpi-parts");
    let told = under_mpirun(4, &training(&parts, "3", "dp=4", "fsdp"));
    assert_eq!(told.code, 0, "{}", told.err);
    let told = threads(&training(&parts, "5", "tp=2", "tp-sp"));
    assert_eq!(told.code, 0, "{}", told.err);
    let told = under_mpirun(4, &training(&parts, "8", "dp=2,tp=2", "2d"));
    assert_eq!(told.code, 0, "{}", told.err);
    let (a, b) = (losses(whole.path("m.jsonl")), losses(parts.path("m.jsonl")));
    assert_eq!((a.len(), b.len()), (8, 8));
    for ((step, a), (other, b)) in a.into_iter().zip(b) {
        assert!(step == other && (a - b).abs() <= 1e-5 * a, "step {step}: {a} and {b}");
    }
}

#[test]
fn run_computes_by_processes_and_writes_once() {
    let scratch = Scratch::new("mpi-run");
    let dir = model("gpt2-tiny");
    let (dir_text, inputs) = (dir.display().to_string(), dir.join("inputs.safetensors").display().to_string());
    let output = scratch.path("out.safetensors");
    let arguments = ["run", &dir_text, "--plan", "tp", "--mesh", "tp=2", "--inputs", &inputs, "--output", &output];
    let told = under_mpirun(2, &arguments.map(String::from));
    assert_eq!((told.code, &*told.err), (0, ""));
    let (found, expected) = (tensors(&output), tensors(dir.join("expected.safetensors")));
    let far = found["logits"].iter().zip(&expected["logits"]).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(far <= 1e-3, "{far}");
    assert_eq!(scratch.names(), ["out.safetensors"]);
}

#[test]
fn a_mesh_of_another_size_is_an_error_on_all() {
    let scratch = Scratch::new("mpi-size");
    let told = under_mpirun(3, &training(&scratch, "2", "tp=2", "tp"));
    assert_eq!(told.code, 1, "{}", told.err);
    for rank in 0..3 {
        assert!(error(&told, rank).starts_with("the mesh has 2 ranks, but 3 processes were launched"), "{}", told.err);
    }
}

/// MPI waits for all to initialise it, and has no deadline for that: `tpc` has one of thirty seconds.
#[test]
fn processes_that_do_not_initialise_mpi_are_an_error() {
    let scratch = Scratch::new("mpi-late");
    let quoted: Vec<String> = training(&scratch, "2", "tp=2", "tp").iter().map(|a| format!("'{a}'")).collect();
    let tpc_path = env!("CARGO_BIN_EXE_tpc");
    let script =
        format!("test $OMPI_COMM_WORLD_RANK = 1 && exec sleep 100; exec {tpc_path} {} --deadline 1", quoted.join(" "));
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--tag-output", "-n", "2", "sh", "-c", &script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let told = Tpc::run(command).end(Duration::from_secs(80));
    assert_ne!(told.code, 0);
    assert!(error(&told, 0).contains("rank 0: not all of the 2 processes that OpenMPI started"), "{}", told.err);
}

/// Processes of `tpc` whose arguments have the directory of checkpoints.
fn of_scratch(scratch: &Scratch) -> Vec<u32> {
    let wanted = scratch.path("run").into_bytes();
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let ours = |pid: &u32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "tpc" && arguments.split(|b| *b == 0).any(|a| a == wanted)
    };
    pids.filter(ours).collect()
}

/// The step of the latest whole checkpoint.
fn whole(scratch: &Scratch) -> Option<u64> {
    let names = scratch.names();
    let steps = names.iter().filter_map(|n| n.strip_prefix("run/step-")?.strip_suffix("/index.json")?.parse().ok());
    steps.max()
}

fn rank_of(pid: u32) -> Option<usize> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|b| *b == 0).filter_map(|v| std::str::from_utf8(v).ok());
    variables.find_map(|v| v.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse().ok())
}

/// A real run that loses a process in the midst of its steps ends in time, says who and where, and goes on from its checkpoint.
#[test]
fn a_run_that_loses_a_process_ends_and_goes_on() {
    for (kind, victim) in [("STOP", 1), ("STOP", 0), ("KILL", 2)] {
        let scratch = Scratch::new(&format!("mpi-fault-{kind}-{victim}"));
        let rest = ["--deadline", "1.5", "--save-every", "2", "--keep", "2"].map(String::from);
        let run = mpirun(3, &[&training(&scratch, "1000000", "dp=3", "fsdp")[..], &rest].concat());
        let start = Instant::now();
        while whole(&scratch).is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint is written");
            std::thread::sleep(Duration::from_millis(20));
        }
        let pid = of_scratch(&scratch).into_iter().find(|&pid| rank_of(pid) == Some(victim)).expect("it runs");
        signal(pid, kind);
        let start = Instant::now();
        let told = run.end(Duration::from_secs(60));
        let took = start.elapsed();
        let context = format!("{kind} {victim}, {took:?}: {told:?}");
        assert!(told.code != 0 && took < Duration::from_secs(15), "{context}");
        if kind == "STOP" {
            let other = (0..3).filter(|&r| r != victim).map(|r| error(&told, r));
            let named = format!("rank {victim}");
            assert!(other.clone().all(|e| e.contains(&named) && e.contains('`')), "{context}");
            assert!(other.clone().any(|e| e.contains("did not finish within 1.5s")), "{context}");
            assert!(other.clone().any(|e| e.contains("stopped by a signal")), "{context}");
        }
        let start = Instant::now();
        while !of_scratch(&scratch).is_empty() {
            assert!(start.elapsed() < Duration::from_secs(5), "processes are left, {context}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let done = whole(&scratch).expect("it was there before");
        let told = under_mpirun(2, &training(&scratch, &(done + 2).to_string(), "dp=2", "fsdp"));
        assert_eq!(told.code, 0, "from {done}, {}; {context}", told.err);
    }
}
