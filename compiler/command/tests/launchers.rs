//! `tpc` under other launchers, if they are available: torchrun on the path, and a SLURM whose `srun` works.
//! `runtime/src/launch/environment.rs` tests their environment variables without them. `tests/slurm` sets up a SLURM
//! with four nodes on one machine.

#[cfg(feature = "mpi")]
#[path = "../../../runtime/tests/support/mpirun.rs"]
mod mpirun;
mod support;

use std::process::{Command, Stdio};
use std::time::Duration;
use support::*;

const LONGEST: Duration = Duration::from_secs(120);

/// Starts a launcher with `tpc` and its arguments.
fn start(launcher: &[&str], arguments: &[String]) -> Tpc {
    let mut command = Command::new(launcher[0]);
    command.args(&launcher[1..]).arg(env!("CARGO_BIN_EXE_tpc")).args(arguments);
    Tpc::run({
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    })
}

/// Whether a launcher works here; prints a message otherwise. SLURM works in `tests/slurm`.
fn works(launcher: &[&str]) -> bool {
    // It may wait for nodes that never become available.
    let worked = Command::new("timeout").arg("20").args(launcher).stdin(Stdio::null()).output();
    let works = worked.is_ok_and(|o| o.status.success());
    if !works {
        assert!(launcher[0] == "torchrun" || std::env::var_os("TPC_REQUIRE_SLURM").is_none(), "{launcher:?} must work");
        println!("skipped: `{}` does not work here", launcher.join(" "));
    }
    works
}

/// Two consecutive free ports: torchrun listens at the first, and the processes of `tpc` meet at the second.
fn port() -> String {
    loop {
        let second = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let first = second.local_addr().unwrap().port() - 1;
        if std::net::TcpListener::bind(("127.0.0.1", first)).is_ok() {
            return first.to_string();
        }
    }
}

/// A run without an end, with checkpoints to resume from.
fn endless(scratch: &Scratch) -> Vec<String> {
    let rest = ["--deadline", "1.5", "--save-every", "2", "--keep", "2"].map(String::from);
    [&training(scratch, "1000000", "tp=2", "tp-sp")[..], &rest].concat()
}

fn trains_as_expected(launcher: &[&str], ranks: usize) {
    let (plan, mesh) = if ranks == 2 { ("tp-sp", "tp=2") } else { ("2d", "dp=2,tp=2") };
    let scratch = Scratch::new(&format!("{}-{ranks}", launcher[0]));
    let dir = model("llama-tiny");
    let told = start(launcher, &reference(&scratch, &dir, plan, mesh)).end(LONGEST);
    assert_eq!(told.code, 0, "{}", told.err);
    assert_eq!(told.out.matches("step 1/3").count(), 1, "only rank 0 prints: {}", told.out);
    compares(&scratch, &format!("{plan} {mesh} under {}", launcher[0]), &dir);
}

fn torchrun<'a>(ranks: &'a str, port: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    // All versions accept underscores.
    let head = ["torchrun", "--nproc_per_node", ranks, "--master_port", port, "--no_python"];
    [&head[..1], more, &head[1..]].concat()
}

#[test]
fn torchrun_trains_as_expected() {
    if works(&["torchrun", "--help"]) {
        for (ranks, number) in [("2", 2), ("4", 4)] {
            trains_as_expected(&torchrun(ranks, &port(), &[]), number);
        }
    }
}

/// torchrun restarts all processes after the first loss, and they resume from the last checkpoint; the second loss ends
/// the run.
#[test]
fn torchrun_restarts_a_run_that_loses_a_process() {
    if !works(&["torchrun", "--help"]) {
        return;
    }
    let (scratch, port) = (Scratch::new("torchrun-fault"), port());
    let run = start(&torchrun("2", &port, &["--max_restarts", "1"]), &endless(&scratch));
    until("a checkpoint", LONGEST, || whole(&scratch).is_some());
    let first = process_of(&scratch, "RANK", 1);
    signal(first, "KILL");
    until("a new process", LONGEST, || !of_scratch(&scratch).is_empty() && !of_scratch(&scratch).contains(&first));
    let done = whole(&scratch);
    until("a new checkpoint", LONGEST, || whole(&scratch) > done);
    signal(process_of(&scratch, "RANK", 0), "KILL");
    let told = run.end(LONGEST);
    assert_ne!(told.code, 0);
    for (rank, lost) in [(0, 1), (1, 0)] {
        let lines = told.err.lines().filter(|l| l.contains(&format!("error: rank {rank}: `")));
        let expected = format!("the process of rank {lost} ended without it");
        assert_eq!(lines.filter(|l| l.contains(&expected)).count(), 1, "{}", told.err);
    }
    until("nothing is left", Duration::from_secs(5), || of_scratch(&scratch).is_empty());
    assert!(
        losses(scratch.path("m.jsonl")).iter().enumerate().all(|(at, l)| l.0 == at as u64 + 1),
        "no step is missing"
    );
}

/// Two of torchrun's nodes, which could be two hosts.
#[test]
fn torchrun_on_several_nodes_is_one_sentence() {
    if !works(&["torchrun", "--help"]) {
        return;
    }
    let (scratch, port) = (Scratch::new("torchrun-nodes"), port());
    let arguments = training(&scratch, "2", "tp=2", "tp");
    let node = |node| ["--nnodes", "2", "--node_rank", node, "--master_addr", "127.0.0.1"];
    let nodes = ["0", "1"].map(|n| start(&torchrun("1", &port, &node(n)), &arguments)).map(|run| run.end(LONGEST));
    for told in nodes {
        assert!(
            told.code != 0 && told.err.contains("torchrun started 2 processes, of which 1 on this host"),
            "{told:?}"
        );
        assert!(told.err.contains("with mpirun or `srun --mpi=pmix`"), "{}", told.err);
    }
}

fn srun<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["srun", "--label", "--kill-on-bad-exit=1"], more].concat()
}

#[test]
fn srun_trains_as_expected() {
    if works(&srun(&["-n4", "true"])) {
        trains_as_expected(&srun(&["-n2"]), 2);
        trains_as_expected(&srun(&["-n4"]), 4);
    }
}

/// Two steps of one job whose script gives both the same address: SLURM's step numbers distinguish them.
#[test]
fn steps_at_one_address_do_not_mix() {
    if !works(&["salloc", "--quiet", "-n4", "true"]) {
        return;
    }
    let scratches = ["tp", "ddp"].map(|plan| Scratch::new(&format!("steps-{plan}")));
    let dir = model("llama-tiny");
    let step = |scratch: &Scratch, plan: &str, mesh: &str| {
        let arguments: Vec<String> = reference(scratch, &dir, plan, mesh).iter().map(|a| format!("'{a}'")).collect();
        format!("srun --overlap -n2 {} {}", env!("CARGO_BIN_EXE_tpc"), arguments.join(" "))
    };
    let (first, second) = (step(&scratches[0], "tp", "tp=2"), step(&scratches[1], "ddp", "dp=2"));
    let script = format!(
        "export MASTER_ADDR=127.0.0.1 MASTER_PORT={}; {first} & {second}; code=$?; wait $! && exit $code",
        port()
    );
    let mut command = Command::new("salloc");
    command.args(["--quiet", "-n4", "bash", "-c", &script]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let told = Tpc::run(command).end(LONGEST);
    assert_eq!(told.code, 0, "{}", told.err);
    for (scratch, plan) in scratches.iter().zip(["tp", "ddp"]) {
        compares(scratch, &format!("{plan} beside another step"), &dir);
    }
}

#[test]
fn srun_ends_a_run_that_loses_a_process() {
    if !works(&srun(&["-n2", "true"])) {
        return;
    }
    for (kind, expected) in [("KILL", "ended without it"), ("STOP", "missing rank 1 (rank 1 is stopped by a signal)")] {
        let scratch = Scratch::new(&format!("srun-{kind}"));
        let run = start(&srun(&["-n2"]), &endless(&scratch));
        until("a checkpoint", LONGEST, || whole(&scratch).is_some());
        signal(process_of(&scratch, "SLURM_PROCID", 1), kind);
        let told = run.end(LONGEST);
        assert_ne!(told.code, 0);
        // SLURM ends all other processes when one is killed, so they may have no time to report anything.
        let said = told.err.lines().find(|l| l.starts_with("0: error: rank 0: `"));
        assert!(said.map_or(kind == "KILL", |l| l.contains(expected)), "{}", told.err);
        until("nothing is left", Duration::from_secs(10), || of_scratch(&scratch).is_empty());
        assert!(whole(&scratch).is_some());
    }
}

/// On a SLURM with three nodes, or with three instances of slurmd.
#[test]
fn srun_on_several_nodes_is_one_sentence() {
    if !works(&srun(&["-N3", "-n5", "true"])) {
        return;
    }
    let scratch = Scratch::new("srun-nodes");
    let run = start(&srun(&["-N3", "-n5", "--kill-on-bad-exit=0"]), &training(&scratch, "2", "tp=5", "tp"));
    let told = run.end(LONGEST);
    assert_ne!(told.code, 0);
    // The others have one each.
    let most = told.err.matches("error: SLURM started 5 processes, of which 3 on this host").count();
    let one = told.err.matches("error: SLURM started 5 processes, of which 1 on this host").count();
    assert_eq!((most, one), (3, 2), "{}", told.err);
    assert!(told.err.contains("with mpirun or `srun --mpi=pmix`"), "{}", told.err);
}

/// MPI's launcher on SLURM nodes, which it treats as hosts.
#[cfg(feature = "mpi")]
#[test]
fn mpirun_on_several_nodes_trains_as_expected() {
    let nodes = ["salloc", "--quiet", "-N2", "-n4", "--ntasks-per-node=2"];
    if !works(&[&nodes[..], &["true"]].concat()) {
        return;
    }
    let mpirun = mpirun::Mpirun::find().command(4);
    // Nodes on one machine confuse OpenMPI's shared memory: any program crashes.
    let apart = ["env", "OMPI_MCA_btl=self,tcp"];
    let mpirun = [mpirun.get_program()].into_iter().chain(mpirun.get_args()).map(|a| a.to_str().unwrap());
    trains_as_expected(&nodes.into_iter().chain(apart).chain(mpirun).collect::<Vec<_>>(), 4);
}
