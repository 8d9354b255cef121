//! The command on GPUs: without a GPU it reports an error. On a fake driver and a fake NCCL it trains as on the CPU,
//! with one process and with several, and ends in time when one of them is lost.
#![cfg(feature = "cuda")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::*;

/// Deadline of collectives when a process is lost, in seconds.
const DEADLINE: f64 = 2.0;

/// The fake libraries of a GPU, in a directory that is removed with them.
struct Fakes(Scratch);

impl Fakes {
    /// `None` if there is no compiler for them; the test then reports that it is skipped, except in CI.
    fn new(name: &str) -> Option<Self> {
        if Command::new("g++").arg("--version").output().is_err() && std::env::var_os("TPC_REQUIRE_NVRTC").is_none() {
            println!("skipped: g++ is not installed");
            return None;
        }
        let folder = Scratch::new(&format!("fakes-{name}"));
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtime/tests/fake/build");
        let built = Command::new(build).arg(&folder.0).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(Fakes(folder))
    }

    /// A `tpc` that finds the fake libraries.
    fn tpc(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
        let folder = &self.0.0;
        command.env("LD_LIBRARY_PATH", folder).env("TPC_CUDA_LIBRARIES", folder);
        command.env("TPC_CUDA_CACHE", folder.join("cache"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The directories of fake NCCL worlds that were not removed.
    fn worlds(&self) -> usize {
        std::fs::read_dir(self.0.0.join("worlds")).map_or(0, Iterator::count)
    }
}

/// The arguments of a training run with checkpoints that it resumes from.
fn arguments(scratch: &Scratch, device: &str, (plan, mesh): (&str, &str), steps: &str, more: &[&str]) -> Vec<String> {
    let mut arguments = training(scratch, steps, mesh, plan);
    arguments.extend(["--device", device, "--clip-norm", "1"].map(String::from));
    arguments.extend(more.iter().map(ToString::to_string));
    arguments
}

fn launch(mut command: Command, ranks: usize, deadline: f64, scratch: &Scratch, arguments: &[String]) -> Tpc {
    command.args(["launch", "--ranks", &ranks.to_string(), "--deadline", &deadline.to_string(), "--grace", "5"]);
    command.args(["--flight-dir", &scratch.path("flights"), "--"]).args(arguments);
    Tpc::run(command)
}

fn right(told: &Told) {
    // It is not a fault that there is no checkpoint to resume from yet.
    let said = told.err.lines().all(|l| l.contains("note: ") && l.ends_with("training starts from the beginning"));
    assert!(told.code == 0 && said, "{told:?}");
}

fn training_alone(device: &str, fakes: Option<&Fakes>, out: &Scratch, steps: &str) -> Told {
    let mut command = fakes.map_or_else(|| Command::new(env!("CARGO_BIN_EXE_tpc")), Fakes::tpc);
    command.args(arguments(out, device, ("2d", "dp=2,tp=2"), steps, &[]));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Tpc::run(command).end(Duration::from_secs(120))
}

#[test]
fn without_a_gpu_one_sentence_says_so() {
    if std::env::var_os("TPC_GPU").is_some() {
        return println!("skipped: there is a GPU");
    }
    let out = Scratch::new("gpu-none");
    let told = training_alone("cuda", None, &out, "2");
    assert!(told.code == 1 && !PathBuf::from(out.path("run")).exists(), "{told:?}");
    let first = told.err.lines().last().unwrap_or_default();
    assert!(first.starts_with("error: no CUDA device: ") && first.contains("run on the CPU"), "{}", told.err);
    // Launched processes all report it, and none waits for another.
    let run = launch(tpc_command(), 2, 60.0, &out, &arguments(&out, "cuda", ("tp", "tp=2"), "2", &[]));
    let told = run.end(Duration::from_secs(60));
    assert!(told.code == 1 && told.seconds < 20.0, "{told:?}");
    for rank in 0..2 {
        assert!(told.err.contains(&format!("[rank {rank}] error: no CUDA device: ")), "{}", told.err);
    }
}

fn tpc_command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Loading, steps, clipping, a checkpoint, and resuming from it.
#[test]
fn a_fake_gpu_trains_like_the_cpu() {
    let Some(fakes) = Fakes::new("alone") else { return };
    let runs = [("cpu", None), ("cuda", Some(&fakes))].map(|(device, fakes)| {
        let out = Scratch::new(&format!("gpu-alone-{device}"));
        for steps in ["2", "3"] {
            let told = training_alone(device, fakes, &out, steps);
            assert_eq!(told.code, 0, "{device}: {}", told.err);
        }
        out
    });
    same_losses(&runs[0], &runs[1], 3, 1e-6);
}

/// A process for each rank, all on one device: the losses are those of the CPU, across a checkpoint from which a second
/// run resumes, and across one from which ranks on the CPU resume.
#[test]
fn processes_on_gpus_train_like_those_on_the_cpu() {
    let Some(fakes) = Fakes::new("launched") else { return };
    for (ranks, placed) in [(2, ("tp", "tp=2")), (2, ("fsdp", "dp=2")), (4, ("2d", "dp=2,tp=2"))] {
        let [cpu, gpu] = ["cpu", "cuda"].map(|d| Scratch::new(&format!("gpu-launched-{ranks}-{}-{d}", placed.0)));
        let run = |scratch: &Scratch, device: &str, steps: &str| {
            let arguments = arguments(scratch, device, placed, steps, &[]);
            let told = launch(fakes.tpc(), ranks, 20.0, scratch, &arguments).end(Duration::from_secs(120));
            right(&told);
            assert_eq!(
                told.out.matches(&format!("step {steps}/{steps}")).count(),
                1,
                "only rank 0 prints: {}",
                told.out
            );
        };
        run(&cpu, "cpu", "5");
        run(&gpu, "cuda", "2");
        run(&gpu, "cuda", "4");
        run(&gpu, "cpu", "5");
        same_losses(&cpu, &gpu, 5, 1e-6);
    }
    assert_eq!(fakes.worlds(), 0, "every communicator was ended on all ranks");
}

/// torchrun's variables; every rank has its own device, so NCCL's settings for a shared GPU are not needed.
#[test]
fn processes_of_torchrun_take_the_gpu_of_their_local_rank() {
    let Some(fakes) = Fakes::new("torchrun") else { return };
    let [cpu, gpu] = ["cpu", "cuda"].map(|d| Scratch::new(&format!("gpu-torchrun-{d}")));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = fakes.tpc();
        command.args(arguments(&gpu, "cuda", ("tp", "tp=2"), "3", &["--deadline", "20"]));
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2").env("FAKE_DEVICES", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", (port - 1).to_string());
        Tpc::run(command)
    };
    let both = [start(1), start(0)].map(|t| t.end(Duration::from_secs(120)));
    both.iter().for_each(right);
    let mut command = tpc_command();
    command.args(arguments(&cpu, "cpu", ("tp", "tp=2"), "3", &[]));
    right(&Tpc::run(command).end(Duration::from_secs(120)));
    same_losses(&cpu, &gpu, 3, 1e-6);
}

/// The settings that ranks on one device need are set unless the user has set them, and NCCL's errors about them are
/// reported.
#[test]
fn what_the_user_has_set_for_nccl_stays() {
    let Some(fakes) = Fakes::new("set") else { return };
    let run = |name: &str, set: Option<&str>| {
        let out = Scratch::new(&format!("gpu-set-{name}"));
        let mut command = fakes.tpc();
        command.env("FAKE_NCCL_ALLOWS", "2").env_remove("NCCL_MULTI_RANK_GPU_ENABLE");
        command.envs(set.map(|value| ("NCCL_MULTI_RANK_GPU_ENABLE", value)));
        let arguments = arguments(&out, "cuda", ("tp", "tp=2"), "1", &[]);
        launch(command, 2, 20.0, &out, &arguments).end(Duration::from_secs(60))
    };
    right(&run("by-user", Some("2")));
    let told = run("by-us", None);
    assert!(told.code == 1 && told.err.contains("Duplicate GPU detected"), "{told:?}");
}

/// Waits for some steps, then sends a signal to a rank.
fn in_the_midst(run: &Tpc, scratch: &Scratch, signal_name: &str) -> Instant {
    let begun = Instant::now();
    while std::fs::read_to_string(scratch.path("m.jsonl")).unwrap_or_default().lines().count() < 5 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no steps are done");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(children(run.pid())[&1], signal_name);
    Instant::now()
}

#[test]
fn a_process_that_is_lost_ends_the_others_in_time() {
    let Some(fakes) = Fakes::new("lost") else { return };
    for (ranks, placed, how) in
        [(2, ("tp", "tp=2"), "KILL"), (4, ("2d", "dp=2,tp=2"), "KILL"), (2, ("tp", "tp=2"), "STOP")]
    {
        let scratch = Scratch::new(&format!("gpu-lost-{ranks}-{how}"));
        let arguments = arguments(&scratch, "cuda", placed, "100000", &[]);
        let run = launch(fakes.tpc(), ranks, DEADLINE, &scratch, &arguments);
        let since = in_the_midst(&run, &scratch, how);
        let told = run.end(Duration::from_secs(120));
        let took = since.elapsed().as_secs_f64();
        assert!(took < DEADLINE + 8.0, "{took} s: {told:?}");
        assert_eq!(told.code, if how == "KILL" { 137 } else { 1 }, "{told:?}");
        for rank in (0..ranks).filter(|r| *r != 1) {
            let begin = format!("[rank {rank}] error: ");
            let line = told.err.lines().find(|l| l.starts_with(&begin)).unwrap_or_else(|| panic!("{told:?}"));
            assert!(line.contains("rank 1"), "{line}");
        }
        let record = told.err.rsplit("flight record: ").next().unwrap().trim();
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        let operations = record["ranks"][0]["operations"].as_array().unwrap();
        assert!(operations.len() == 64 && operations.iter().all(|o| o["why"] != ""), "{operations:?}");
        if how == "STOP" {
            // The first rank to give up names the collective, its plan entry, and the missing rank.
            let line =
                told.err.lines().find(|l| l.contains("did not finish within")).unwrap_or_else(|| panic!("{told:?}"));
            assert!(line.contains("missing rank 1 (rank 1 is stopped by a signal)"), "{line}");
            assert!(line.contains("`all_reduce tp` #") && line.contains("why: "), "{line}");
            assert!(operations.iter().any(|o| o["state"] == "waiting"), "{operations:?}");
        }
    }
}

/// Only the processes themselves notice that one has ended.
#[test]
fn without_our_launcher_a_lost_process_is_seen_too() {
    let Some(fakes) = Fakes::new("lost-torchrun") else { return };
    let scratch = Scratch::new("gpu-lost-torchrun");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = fakes.tpc();
        command.args(arguments(&scratch, "cuda", ("tp", "tp=2"), "100000", &["--deadline", "30"]));
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", (port - 1).to_string());
        command.env("TPC_FLIGHT_DIR", &scratch.0);
        Tpc::run(command)
    };
    let (first, second) = (start(0), start(1));
    while std::fs::read_to_string(scratch.path("m.jsonl")).unwrap_or_default().lines().count() < 5 {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(second.pid(), "KILL");
    let since = Instant::now();
    let told = first.end(Duration::from_secs(60));
    assert!(since.elapsed() < Duration::from_secs(10) && told.code == 1, "{told:?}");
    assert_eq!(second.end(Duration::from_secs(60)).code, 137);
    assert!(told.err.contains("the process of rank 1 ended without it"), "{}", told.err);
    let path = told.err.trim().rsplit("flight record: ").next().unwrap();
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(record["ranks"][1]["state"], "gone");
}

/// Programs are compared before NCCL communicators are created.
#[test]
fn other_programs_are_named_before_a_communicator_is_made() {
    let Some(fakes) = Fakes::new("other") else { return };
    let scratch = Scratch::new("gpu-other");
    let with = |plan: &str| {
        let quoted =
            arguments(&scratch, "cuda", (plan, "tp=2"), "2", &[]).iter().map(|a| format!("'{a}'")).collect::<Vec<_>>();
        format!("exec {} {}", env!("CARGO_BIN_EXE_tpc"), quoted.join(" "))
    };
    let script = format!("if [ $TPC_RANK = 1 ]; then {}; else {}; fi", with("tp-sp"), with("tp"));
    let run = launch(fakes.tpc(), 2, 20.0, &scratch, &["sh".into(), "-c".into(), script]);
    let told = run.end(Duration::from_secs(60));
    assert_eq!(told.code, 1);
    for rank in 0..2 {
        let begin = format!("[rank {rank}] error: the processes differ: --plan is tp on rank 0 and tp-sp on");
        assert!(told.err.contains(&begin), "{}", told.err);
    }
    assert_eq!(fakes.worlds(), 0);
}
