//! Training runs under `tpc launch` that lose a process at a random moment: the run ends in time and names the rank and
//! the operation, the last checkpoint is complete, and the run resumes from it.

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::*;

/// Deadline of collectives, in seconds.
const DEADLINE: f64 = 1.0;
/// The longest time from the fault to the end of a run: deadline, grace period, and a slow machine.
const LONGEST: f64 = DEADLINE + 3.0 + 4.0;

struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn training(scratch: &Scratch, ranks: usize, steps: u64, every: &str) -> Vec<String> {
    let dir = model("llama-tiny");
    let (dir_text, inputs) = (dir.display().to_string(), dir.join("inputs.safetensors").display().to_string());
    let (mesh, plan) = if ranks == 2 { ("tp=2", "tp-sp") } else { ("dp=3", "fsdp") };
    let (run, steps, metrics) = (scratch.path("run"), steps.to_string(), scratch.path("m.jsonl"));
    let arguments =
        ["train", &dir_text, "--plan", plan, "--mesh", mesh, "--inputs", &inputs, "--steps", &steps, "--resume"];
    let rest = ["--checkpoint", &run, "--save-every", every, "--keep", "2", "--metrics", &metrics];
    arguments.iter().chain(&rest).map(ToString::to_string).collect()
}

fn launch(ranks: usize, scratch: &Scratch, command: &[String]) -> Tpc {
    let (ranks, deadline) = (ranks.to_string(), DEADLINE.to_string());
    let flights = scratch.path("flights");
    let head = ["launch", "--ranks", &ranks, "--deadline", &deadline, "--grace", "3", "--flight-dir", &flights, "--"];
    Tpc::start(&head.into_iter().chain(command.iter().map(String::as_str)).collect::<Vec<_>>())
}

/// The step of the latest complete checkpoint, after checking that no partial one is next to it.
fn latest(scratch: &Scratch, seed: u64) -> Option<u64> {
    let half_written = |name: &&String| name.contains(".partial") || name.contains(".tmp");
    let names = scratch.names();
    let half: Vec<_> = names.iter().filter(half_written).collect();
    assert!(half.is_empty(), "seed {seed}: {half:?}");
    whole(scratch)
}

fn resumes(scratch: &Scratch, ranks: usize, seed: u64) {
    let done = whole(scratch);
    let to = done.unwrap_or(0) + 2;
    let told = launch(ranks, scratch, &training(scratch, ranks, to, "1")).end(Duration::from_secs(60));
    assert_eq!(told.code, 0, "seed {seed} from {done:?}: {}", told.err);
    assert_eq!(latest(scratch, seed), Some(to));
}

/// Kills, stops or terminates a random rank, or the launcher, at a random moment.
fn injected(seed: u64) {
    let mut rng = Lcg(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let scratch = Scratch::new(&format!("fault-{seed}"));
    let ranks = [2, 3][rng.below(2) as usize];
    let run = launch(ranks, &scratch, &training(&scratch, ranks, 1_000_000, "3"));
    // From before all processes have started to the middle of steps and saves.
    std::thread::sleep(Duration::from_millis(rng.below(1200)));
    let launcher = run.pid();
    let victim = rng.below(ranks as u64) as usize;
    let start = Instant::now();
    let kind = loop {
        let there = children(launcher);
        let Some(&pid) = there.get(&victim) else {
            assert!(start.elapsed() < Duration::from_secs(10), "seed {seed}: {there:?}");
            continue;
        };
        let kind = ["KILL", "STOP", "ABRT", "launcher TERM", "launcher KILL"][rng.below(5) as usize];
        match kind.strip_prefix("launcher ") {
            Some(kind) => signal(launcher, kind),
            None => signal(pid, kind),
        }
        break kind;
    };
    let start = Instant::now();
    let told = run.end(Duration::from_secs(60));
    let took = start.elapsed().as_secs_f64();
    let context = format!("seed {seed}, {kind} of rank {victim} of {ranks}: {told:?}");
    assert!(took < LONGEST, "{took} s, {context}");
    match kind {
        "KILL" => assert!(told.code == 137 || told.code == 1, "{context}"),
        "ABRT" => assert!(told.code == 134 || told.code == 1, "{context}"),
        "STOP" => assert_eq!(told.code, 1, "{context}"),
        "launcher TERM" => assert_eq!(told.code, 143, "{context}"),
        _ => assert_eq!(told.code, 137, "{context}"),
    }
    if !kind.starts_with("launcher") {
        assert!(told.err.contains("\nerror: rank ") || told.err.starts_with("error: rank "), "{context}");
        // Survivors that had joined report their operation and the missing rank.
        for rank in (0..ranks).filter(|&r| r != victim) {
            let line = told.err.lines().find(|l| l.starts_with(&format!("[rank {rank}] error: ")));
            if let Some(line) = line {
                assert!(line.contains(&format!("rank {victim}")) && line.contains('`'), "{context}");
            } else {
                // The rank had not joined yet.
                assert!(latest(&scratch, seed).is_none(), "rank {rank} said nothing, {context}");
            }
        }
    }
    let start = Instant::now();
    while !children(launcher).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5), "processes are left, {context}");
    }
    // If the launcher was killed, nothing removed a partial checkpoint: the next save does.
    if kind != "launcher KILL" {
        latest(&scratch, seed);
    }
    // On the same number of processes, or on more or fewer with another plan.
    resumes(&scratch, if seed.is_multiple_of(2) { ranks } else { 5 - ranks }, seed);
}

#[test]
fn losing_a_process_at_a_random_moment_first_half() {
    (0..16).for_each(injected);
}

#[test]
fn losing_a_process_at_a_random_moment_second_half() {
    (16..32).for_each(injected);
}

/// A full disk: a limit on the size of files, which makes writes fail. It is set during the run, because it also
/// applies to shared memory.
#[test]
fn a_full_disk_on_one_rank_is_an_error_on_all_and_leaves_the_checkpoint_before() {
    for victim in 0..2 {
        let scratch = Scratch::new(&format!("disk-{victim}"));
        let command: Vec<String> = training(&scratch, 2, 1_000_000, "3").iter().map(|a| format!("'{a}'")).collect();
        let script = format!("trap '' XFSZ; exec {} {}", env!("CARGO_BIN_EXE_tpc"), command.join(" "));
        let run = launch(2, &scratch, &["sh".into(), "-c".into(), script]);
        while scratch.names().iter().all(|n| !n.ends_with("index.json")) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = children(run.pid())[&(victim as usize)].to_string();
        assert!(Command::new("prlimit").args(["--pid", &pid, "--fsize=4096"]).status().unwrap().success());
        let told = run.end(Duration::from_secs(60));
        assert_eq!(told.code, 1, "{}", told.err);
        for rank in 0..2 {
            let line = told.err.lines().find(|l| l.starts_with(&format!("[rank {rank}] error: "))).unwrap_or_default();
            assert!(line.contains("File too large") && line.contains("cannot be written"), "{}", told.err);
        }
        assert!(latest(&scratch, victim).is_some());
        resumes(&scratch, 2, victim);
    }
}

#[test]
fn a_failure_leaves_a_flight_record() {
    let scratch = Scratch::new("flight");
    let run = launch(2, &scratch, &training(&scratch, 2, 1_000_000, "3"));
    while scratch.names().iter().all(|n| !n.ends_with("index.json")) {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(children(run.pid())[&1], "STOP");
    let told = run.end(Duration::from_secs(60));
    let path = told.err.rsplit("flight record: ").next().unwrap().trim();
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(record["failure"]["rank"], 0);
    let reason = record["failure"]["reason"].as_str().unwrap();
    assert!(reason.contains("missing rank 1 (rank 1 is stopped by a signal)"), "{reason}");
    for rank in 0..2 {
        let operations = record["ranks"][rank]["operations"].as_array().unwrap();
        assert_eq!(operations.len(), 64);
        for o in operations {
            assert!(o["name"].is_string() && o["axes"] == "tp" && o["bytes"].as_u64() > Some(0), "{o}");
            assert!(o["why"].as_str().is_some_and(|w| !w.is_empty()), "{o}");
            let (start, end) = (o["started_us"].as_f64().unwrap(), o["finished_us"].as_f64());
            assert!(end.is_none_or(|end| end >= start), "{o}");
        }
    }
}

/// Two processes without `tpc launch`, once they have a checkpoint.
fn without_our_launcher(scratch: &Scratch) -> [Tpc; 2] {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tpc"));
        command.args(training(scratch, 2, 1_000_000, "3")).args(["--deadline", "1"]);
        let variables = [("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")];
        command.envs(variables).env("RANK", rank.to_string()).env("MASTER_PORT", (port - 1).to_string());
        command.env("TPC_FLIGHT_DIR", &scratch.0).stdout(Stdio::piped()).stderr(Stdio::piped());
        Tpc::run(command)
    };
    let both = [start(0), start(1)];
    until("a checkpoint", Duration::from_secs(60), || whole(scratch).is_some());
    both
}

/// Without `tpc launch`, the first process that fails writes the record, even if the launcher ends it as soon as it
/// notices that another one was lost, as torchrun does.
#[test]
fn without_our_launcher_the_first_that_fails_writes_the_record() {
    for is_ended in [false, true] {
        let scratch = Scratch::new(&format!("record-{is_ended}"));
        let [first, second] = without_our_launcher(&scratch);
        signal(second.pid(), "KILL");
        let begun = Instant::now();
        if is_ended {
            // The launcher has noticed the end of the process.
            std::thread::sleep(Duration::from_millis(50));
            signal(first.pid(), "TERM");
        }
        let told = first.end(Duration::from_secs(60));
        assert!(begun.elapsed() < Duration::from_secs(5) && told.code == 1, "{told:?}");
        assert_eq!(second.end(Duration::from_secs(60)).code, 137);
        assert!(told.err.contains("the process of rank 1 ended without it"), "{}", told.err);
        let path = told.err.trim().rsplit("flight record: ").next().unwrap();
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(record["failure"]["rank"], 0);
        assert_eq!(record["ranks"][1]["state"], "gone");
        assert_eq!(record["ranks"][1]["operations"].as_array().unwrap().len(), 64);
    }
}

/// The step that a stopped run has kept, according to its message.
fn kept(scratch: &Scratch, told: &Told, signal: &str, prefix: &str) -> u64 {
    let step = latest(scratch, 0).expect("a checkpoint");
    let begin = format!("{prefix}note: {signal} ended the run after step {step} of 1000000, which is kept in ");
    let end = format!("{}/step-{step:06}; the same command continues from there", scratch.path("run"));
    assert_eq!(told.said(), [begin + &end], "and nothing else is said");
    assert_eq!(losses(scratch.path("m.jsonl")).last().unwrap().0, step, "no step is done that is not kept");
    step
}

fn begun(scratch: &Scratch) {
    let lines = || std::fs::read_to_string(scratch.path("m.jsonl")).unwrap_or_default().lines().count();
    until("some steps", Duration::from_secs(60), || lines() > 3);
}

#[test]
fn a_run_that_is_told_to_end_keeps_its_step() {
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let scratch = Scratch::new(&format!("told-{name}"));
        let start = |steps: u64| {
            let arguments = training(&scratch, 2, steps, "1000000");
            Tpc::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let run = start(1_000_000);
        begun(&scratch);
        signal(run.pid(), name);
        let told = run.end(Duration::from_secs(60));
        assert_eq!(told.code, code, "{told:?}");
        let step = kept(&scratch, &told, &format!("SIG{name}"), "");
        let told = start(step + 2).end(Duration::from_secs(60));
        assert_eq!((told.code, latest(&scratch, 0)), (0, Some(step + 2)), "{told:?}");
        let steps: Vec<u64> = losses(scratch.path("m.jsonl")).iter().map(|l| l.0).collect();
        assert_eq!(steps, (1..=step + 2).collect::<Vec<_>>(), "no step is missing");
    }
}

/// Signals to the launcher, which passes them on, to one process, and to all processes, as service managers and batch
/// systems send them.
#[test]
fn processes_that_are_told_to_end_keep_the_same_step() {
    for (seed, whom) in ["launcher", "rank", "ranks", "all", "shells"].into_iter().enumerate() {
        let scratch = Scratch::new(&format!("told-{whom}"));
        let ranks = 2 + seed % 2;
        let mut command = training(&scratch, ranks, 1_000_000, "1000000");
        if whom == "shells" {
            // Shells end earlier than the processes that they started.
            let quoted: Vec<String> = command.iter().map(|a| format!("'{a}'")).collect();
            let script = format!("{} {}; exit $?", env!("CARGO_BIN_EXE_tpc"), quoted.join(" "));
            command = vec!["sh".into(), "-c".into(), script];
        }
        let run = launch(ranks, &scratch, &command);
        begun(&scratch);
        let launcher = run.pid();
        let processes = children(launcher);
        let pids: Vec<u32> = match whom {
            "launcher" | "shells" => vec![launcher],
            "rank" => vec![processes[&1]],
            "ranks" => processes.values().copied().collect(),
            _ => processes.values().copied().chain([launcher]).collect(),
        };
        pids.into_iter().for_each(|pid| signal(pid, "TERM"));
        let told = run.end(Duration::from_secs(60));
        assert_eq!(told.code, 143, "{whom}: {told:?}");
        kept(&scratch, &told, "SIGTERM", "[rank 0] ");
        assert!(children(launcher).is_empty() && of_scratch(&scratch).is_empty(), "{whom}");
        assert!(!scratch.names().iter().any(|n| n.starts_with("flights")), "nothing has failed");
        resumes(&scratch, 5 - ranks, seed as u64);
    }
}

/// A process that does not reach the end of its step holds up the others; a user who asks twice does not want to wait.
#[test]
fn a_second_signal_ends_a_run_at_once() {
    let scratch = Scratch::new("twice");
    let dir = model("llama-tiny");
    let command = training(&scratch, 2, 1_000_000, "1000000");
    let head = ["launch", "--ranks", "2", "--deadline", "100", "--grace", "100", "--"];
    let run = Tpc::start(&head.into_iter().chain(command.iter().map(String::as_str)).collect::<Vec<_>>());
    begun(&scratch);
    signal(children(run.pid())[&1], "STOP");
    signal(run.pid(), "INT");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(children(run.pid()).len(), 2, "they are waited for");
    signal(run.pid(), "INT");
    let told = run.end(Duration::from_secs(30));
    assert!(told.code == 130 && told.err.contains("error: ended by signal 2 (SIGINT)"), "{told:?}");
    assert!(latest(&scratch, 0).is_none());
    // In one process, whose steps take many seconds.
    let scratch = Scratch::new("twice-alone");
    let text = scratch.path("text");
    std::fs::write(&text, "some text that is long enough for a window of a few characters. ".repeat(10)).unwrap();
    let dir = dir.display().to_string();
    let (run, metrics) = (scratch.path("run"), scratch.path("m.jsonl"));
    let head = [
        "train",
        &dir,
        "--data",
        &text,
        "--characters",
        "--batch",
        "1500",
        "--seq",
        "64",
        "--steps",
        "2",
        "--from-scratch",
    ];
    let run = Tpc::start(&[&head[..], &["--checkpoint", &run, "--metrics", &metrics]].concat());
    // The file exists when the steps begin.
    until("the first step", Duration::from_secs(60), || std::fs::exists(&metrics).unwrap());
    std::thread::sleep(Duration::from_millis(300));
    signal(run.pid(), "TERM");
    std::thread::sleep(Duration::from_millis(600));
    assert!(std::fs::exists(format!("/proc/{}/exe", run.pid())).unwrap(), "it finishes its step");
    signal(run.pid(), "TERM");
    let told = run.end(Duration::from_secs(30));
    assert_eq!((told.code, told.said(), whole(&scratch)), (143, vec![], None));
}

#[test]
fn without_a_checkpoint_a_signal_ends_a_run_at_once() {
    let scratch = Scratch::new("unkept");
    let arguments = training(&scratch, 2, 1_000_000, "1000000");
    let without: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| *a != "--resume").collect();
    let at = without.iter().position(|a| *a == "--checkpoint").unwrap();
    let run = Tpc::start(&[&without[..at], &without[at + 6..]].concat());
    begun(&scratch);
    signal(run.pid(), "INT");
    let told = run.end(Duration::from_secs(60));
    assert_eq!((told.code, told.said()), (130, vec![]));
    assert_eq!(scratch.names(), ["m.jsonl"]);
}

/// For any programs between the launcher and its ranks, and any activity of the ranks: computing, or waiting for a
/// stopped rank.
#[test]
fn nothing_outlives_a_killed_launcher() {
    for (name, stops, shells) in
        [("computing", false, 0), ("waiting", true, 0), ("shells", false, 2), ("session", false, 3)]
    {
        let scratch = Scratch::new(&format!("orphans-{name}"));
        let mut command = training(&scratch, 2, 1_000_000, "1000000");
        let quoted: Vec<String> = command.iter().map(|a| format!("'{a}'")).collect();
        let inner = format!("{} {}", env!("CARGO_BIN_EXE_tpc"), quoted.join(" "));
        match shells {
            0 => {}
            // Neither shell is replaced by the program that it starts.
            2 => {
                std::fs::write(scratch.path("inner"), format!("{inner}\nexit $?\n")).unwrap();
                let script = format!("sh {}; exit $?", scratch.path("inner"));
                command = vec!["sh".into(), "-c".into(), script];
            }
            // A separate session, whose leader's parent ends.
            _ => {
                let script = "setsid sh -c \"$0\" & wait".to_string();
                command = vec!["sh".into(), "-c".into(), script, format!("{inner}; exit $?")];
            }
        }
        let head = ["launch", "--ranks", "2", "--deadline", "600", "--"];
        let run = Tpc::start(&head.into_iter().chain(command.iter().map(String::as_str)).collect::<Vec<_>>());
        begun(&scratch);
        if stops {
            signal(children(run.pid())[&1], "STOP");
            std::thread::sleep(Duration::from_millis(200));
        }
        // If no shell has the arguments, the launcher has them.
        assert_eq!(of_scratch(&scratch).len(), if shells == 0 { 3 } else { 2 });
        signal(run.pid(), "KILL");
        until(&format!("{name}: nothing is left"), Duration::from_secs(20), || of_scratch(&scratch).is_empty());
        assert_eq!(run.end(Duration::from_secs(20)).code, 137);
    }
}

/// No process is lost: the only message is about what is kept, and the others end as well.
#[test]
fn without_our_launcher_a_signal_to_one_process_ends_all() {
    let scratch = Scratch::new("terminated");
    let [first, second] = without_our_launcher(&scratch);
    signal(second.pid(), "TERM");
    let (first, second) = (first.end(Duration::from_secs(60)), second.end(Duration::from_secs(60)));
    assert_eq!((first.code, second.code, &*second.err), (143, 143, ""));
    kept(&scratch, &first, "SIGTERM", "");
}
