//! `tpc` under `mpirun`, built with the feature `mpi`: reference results, checkpoints that resume elsewhere, and the
//! errors when it cannot work.
#![cfg(feature = "mpi")]

#[path = "../../../runtime/tests/support/mpirun.rs"]
mod mpirun;
mod support;

use mpirun::Mpirun;
use std::process::Stdio;
use std::time::{Duration, Instant};
use support::*;

/// Starts a program in this many processes.
fn start(ranks: usize, program: &str, arguments: &[String]) -> Tpc {
    let mut command = Mpirun::find().command(ranks);
    command.arg(program).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    Tpc::run(command)
}

fn under_mpirun(ranks: usize, arguments: &[String]) -> Told {
    start(ranks, env!("CARGO_BIN_EXE_tpc"), arguments).end(Duration::from_secs(120))
}

/// The error of a rank.
fn error(told: &Told, rank: usize) -> String {
    let (said, begin) = (Mpirun::find().tagged(&told.err), format!("[rank {rank}] error: "));
    let found = said.lines().find_map(|line| line.strip_prefix(&begin));
    found.unwrap_or_else(|| panic!("rank {rank}: {}", told.err)).into()
}

fn trains_as_expected(name: &str, plan: &str, mesh: &str, ranks: usize) {
    let scratch = Scratch::new(&format!("mpi-{name}-{plan}-{ranks}"));
    let dir = model(name);
    let told = under_mpirun(ranks, &reference(&scratch, &dir, plan, mesh));
    assert_eq!((told.code, told.said()), (0, vec![]), "{name} {plan} {mesh}");
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
    same_losses(&whole, &parts, 8, 1e-5);
}

#[test]
fn run_computes_by_processes_and_writes_once() {
    let scratch = Scratch::new("mpi-run");
    let dir = model("gpt2-tiny");
    let (dir_text, inputs) = (dir.display().to_string(), dir.join("inputs.safetensors").display().to_string());
    let output = scratch.path("out.safetensors");
    let arguments = ["run", &dir_text, "--plan", "tp", "--mesh", "tp=2", "--inputs", &inputs, "--output", &output];
    let told = under_mpirun(2, &arguments.map(String::from));
    assert_eq!((told.code, told.said()), (0, vec![]));
    expected_logits(&output, &dir);
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

#[test]
fn processes_that_do_not_do_the_same_are_told_what_differs() {
    let scratch = Scratch::new("mpi-differences");
    let quoted: Vec<String> = training(&scratch, "2", "tp=2", "tp").iter().map(|a| format!("'{a}'")).collect();
    let (tpc_path, variable) = (env!("CARGO_BIN_EXE_tpc"), Mpirun::find().rank_variable());
    let script = format!("test ${variable} = 1 && lr=0.002 || lr=0.001; exec {tpc_path} {}", quoted.join(" "));
    let script = script.replace("'--lr' '0.001'", "--lr $lr");
    let told = start(2, "sh", &["-c".into(), script]).end(Duration::from_secs(80));
    assert_ne!(told.code, 0);
    let expected = "the processes differ: --lr is 0.001 on rank 0 and 0.002 on rank 1";
    assert!((0..2).all(|rank| error(&told, rank).starts_with(expected)), "{}", told.err);
}

/// A signal to one rank ends all after the same step.
#[test]
fn a_run_that_is_told_to_end_keeps_its_step() {
    let scratch = Scratch::new("mpi-told");
    let run = start(2, env!("CARGO_BIN_EXE_tpc"), &training(&scratch, "1000000", "tp=2", "tp"));
    until("some steps", Duration::from_secs(60), || {
        std::fs::read_to_string(scratch.path("m.jsonl")).unwrap_or_default().lines().count() > 3
    });
    signal(process_of(&scratch, Mpirun::find().rank_variable(), 1), "TERM");
    let told = run.end(Duration::from_secs(60));
    assert_ne!(told.code, 0);
    let step = whole(&scratch).expect("a checkpoint");
    assert!(told.err.contains(&format!("note: SIGTERM ended the run after step {step} of 1000000")), "{}", told.err);
    assert!(!Mpirun::find().tagged(&told.err).contains("] error: "), "{}", told.err);
}

/// MPI waits until all processes have initialized it, without a deadline: `tpc` has a deadline of thirty seconds.
#[test]
fn processes_that_do_not_initialise_mpi_are_an_error() {
    let scratch = Scratch::new("mpi-late");
    let quoted: Vec<String> = training(&scratch, "2", "tp=2", "tp").iter().map(|a| format!("'{a}'")).collect();
    let (tpc_path, mpirun) = (env!("CARGO_BIN_EXE_tpc"), Mpirun::find());
    let variable = mpirun.rank_variable();
    let script = format!("test ${variable} = 1 && exec sleep 100; exec {tpc_path} {} --deadline 1", quoted.join(" "));
    let told = start(2, "sh", &["-c".into(), script]).end(Duration::from_secs(80));
    assert_ne!(told.code, 0);
    let expected = format!("rank 0: not all of the 2 processes that {} started", mpirun.name());
    assert!(error(&told, 0).contains(&expected), "{}", told.err);
}

/// A training run that loses a process in the middle of its steps ends in time, names the rank and the operation, and
/// resumes from its checkpoint.
#[test]
fn a_run_that_loses_a_process_ends_and_goes_on() {
    for (kind, victim) in [("STOP", 1), ("STOP", 0), ("KILL", 2)] {
        let scratch = Scratch::new(&format!("mpi-fault-{kind}-{victim}"));
        let rest = ["--deadline", "1.5", "--save-every", "2", "--keep", "2"].map(String::from);
        let arguments = [&training(&scratch, "1000000", "dp=3", "fsdp")[..], &rest].concat();
        let run = start(3, env!("CARGO_BIN_EXE_tpc"), &arguments);
        until("a checkpoint", Duration::from_secs(60), || whole(&scratch).is_some());
        signal(process_of(&scratch, Mpirun::find().rank_variable(), victim), kind);
        let start = Instant::now();
        let told = run.end(Duration::from_secs(60));
        let took = start.elapsed();
        let context = format!("{kind} {victim}, {took:?}: {told:?}");
        assert!(told.code != 0 && took < Duration::from_secs(15), "{context}");
        if kind == "STOP" {
            let others: Vec<String> = (0..3).filter(|&r| r != victim).map(|r| error(&told, r)).collect();
            let named = format!("rank {victim}");
            assert!(others.iter().all(|e| e.contains(&named) && e.contains('`')), "{context}");
            assert!(others.iter().any(|e| e.contains("did not finish within 1.5s")), "{context}");
            assert!(others.iter().any(|e| e.contains("stopped by a signal")), "{context}");
        }
        until(&format!("nothing is left, {context}"), Duration::from_secs(5), || of_scratch(&scratch).is_empty());
        let done = whole(&scratch).expect("it was there before");
        let told = under_mpirun(2, &training(&scratch, &(done + 2).to_string(), "dp=2", "fsdp"));
        assert_eq!(told.code, 0, "from {done}, {}; {context}", told.err);
    }
}
