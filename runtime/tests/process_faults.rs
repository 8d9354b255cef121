//! Small runs whose processes lose one of them: 200 seeded faults of every kind, at every moment. The run ends in time,
//! every process names the rank and the operation, the last checkpoint is complete and can be resumed, and nothing
//! remains.

#[path = "support/processes.rs"]
mod processes;
mod support;

use processes::{Launcher, Told, fail, in_processes, joined};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::*;
use tpc_ir::program::*;
use tpc_ir::{DType, MapFn, Mesh, ReduceOp, Scalar};
use tpc_runtime::checkpoint::{self, Checkpoint, SaveOptions, WriteFault};
use tpc_runtime::{Fault, FaultKind, LaunchOptions, Session};

const FAULTS: u64 = 200;
const DEADLINE: Duration = Duration::from_secs(1);
/// From the start of a run to its end, on a busy machine.
const LONGEST: Duration = Duration::from_secs(12);
/// Elements of the parameter, divisible by the number of ranks.
const ELEMENTS: usize = 60;
/// Steps between checkpoints.
const EVERY: u64 = 3;

/// Every step adds 1 to each element of `w`, a shard on every rank, and sums `x` over all ranks.
fn programs(ranks: usize, other: bool) -> Vec<RankProgram> {
    let program = |rank: usize| {
        let mut b = Builder::of(Mesh::new([("tp", ranks)]).unwrap(), rank);
        let shard = ELEMENTS / ranks;
        let w = b.buffer(DType::F32, &[shard]);
        b.bind_input("w", &w, vec![ELEMENTS], vec![shard * rank]);
        let x = b.buffer(DType::F32, &[256]);
        let y = b.buffer(DType::F32, &[256]);
        b.output("y", &y);
        let kind = CollectiveKind::AllReduce(if other { ReduceOp::Max } else { ReduceOp::Sum });
        b.collective(kind, (0..ranks).collect(), &x, &y, 0);
        let one = Instruction::Constant(Scalar::float(1.0), DType::F32);
        let body = vec![support::load(&w), one, map(MapFn::Add, &[0, 1], DType::F32), store(&w, 2)];
        b.step(Action::Loop(Loop { dims: vec![shard], body }));
        b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), (0..ranks).collect(), &x, &y, 1);
        b.program
    };
    (0..ranks).map(program).collect()
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    /// The process is killed, stopped or exits, at the beginning of a step or at any moment.
    Kill,
    Stop,
    Exit,
    /// The rank or the host program panics.
    Panic,
    Stall,
    OtherProgram,
    FullDisk,
}

const KINDS: [Wrong; 7] =
    [Wrong::Kill, Wrong::Stop, Wrong::Exit, Wrong::Panic, Wrong::Stall, Wrong::OtherProgram, Wrong::FullDisk];

/// A fault, determined by its seed.
#[derive(Debug)]
struct Plan {
    wrong: Wrong,
    ranks: usize,
    victim: usize,
    /// The step, unless the fault happens at a moment.
    step: Option<u64>,
    /// Microseconds after the start.
    moment: u64,
    /// Bytes that a full disk still accepts.
    bytes: u64,
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut rng = Lcg(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let ranks = rng.below(3) + 2;
        let wrong = KINDS[seed as usize % KINDS.len()];
        let by_step = rng.below(2) == 0 || wrong == Wrong::Stall;
        Plan {
            wrong,
            ranks,
            victim: rng.below(ranks),
            step: by_step.then_some(rng.below(12) as u64),
            moment: rng.below(60_000) as u64,
            bytes: rng.below(100) as u64,
        }
    }
}

#[test]
#[ignore = "what the ranks of the test below do as processes"]
fn child_process() {
    let role = processes::role();
    let dir = PathBuf::from(&role[1]);
    match &*role[0] {
        "fault" => train(&dir, &Plan::of(role[2].parse().unwrap())),
        "resume" => resume(&dir, role[2].parse().unwrap(), joined()),
        other => panic!("{other}"),
    }
    std::process::exit(0)
}

/// Trains until the fault happens.
fn train(dir: &Path, plan: &Plan) {
    let mut options = joined();
    let mine = options.processes.as_ref().unwrap().process() == plan.victim;
    let moment = || std::thread::sleep(Duration::from_micros(plan.moment));
    if mine {
        let kind = match plan.wrong {
            Wrong::Kill => Some(FaultKind::Kill),
            Wrong::Stop => Some(FaultKind::Stop),
            Wrong::Exit => Some(FaultKind::Exit(3)),
            Wrong::Panic => Some(FaultKind::Panic),
            Wrong::Stall => Some(FaultKind::Stall(Duration::from_secs(600))),
            _ => None,
        };
        match (kind, plan.step) {
            (Some(kind), Some(step)) => options.fault = Some(Fault { rank: plan.victim, step, kind }),
            (Some(_), None) => {
                let (wrong, moment) = (plan.wrong, plan.moment);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(moment));
                    let signal = match wrong {
                        Wrong::Kill => libc::SIGKILL,
                        Wrong::Stop => libc::SIGSTOP,
                        _ => std::process::exit(3),
                    };
                    // SAFETY: a system call that accesses no memory.
                    unsafe { libc::kill(libc::getpid(), signal) };
                });
            }
            _ => {}
        }
    }
    let other = mine && plan.wrong == Wrong::OtherProgram;
    let mut session = Session::launch(programs(plan.ranks, other), options).unwrap_or_else(|e| fail(&e));
    let full = (mine && plan.wrong == Wrong::FullDisk)
        .then_some(WriteFault { after: plan.bytes, kind: checkpoint::write::FaultKind::FullDisk });
    for step in 1..5_000u64 {
        if mine && plan.wrong == Wrong::Panic && plan.step.is_none() && step == 2 {
            moment();
            panic!("injected fault of the host program");
        }
        session.step().unwrap_or_else(|e| fail(&e));
        if step.is_multiple_of(EVERY) {
            // The disk is full from the second checkpoint on.
            let keep = std::num::NonZeroUsize::new(2);
            let options = SaveOptions { keep, fault: full.filter(|_| step > EVERY), ..SaveOptions::default() };
            checkpoint::save(&session, dir, step, 0, &options).unwrap_or_else(|e| fail(&e));
        }
        session.read(&result("y")).unwrap_or_else(|e| fail(&e));
    }
}

/// Resumes for one checkpoint, with any number of ranks.
fn resume(dir: &Path, ranks: usize, options: LaunchOptions) {
    let mut session = Session::launch(programs(ranks, false), options).unwrap_or_else(|e| fail(&e));
    let mut done = 0;
    if let Ok(checkpoint) = Checkpoint::latest(dir) {
        checkpoint::load(&mut session, &checkpoint).unwrap_or_else(|e| fail(&e));
        done = checkpoint.step();
        let w = session.read_input_f64("w").unwrap_or_else(|e| fail(&e));
        assert_eq!(w, vec![done as f64; ELEMENTS], "the checkpoint is what was there after its step");
    }
    for _ in 0..EVERY {
        session.step().unwrap_or_else(|e| fail(&e));
    }
    checkpoint::save(&session, dir, done + EVERY, 0, &SaveOptions::default()).unwrap_or_else(|e| fail(&e));
}

/// Whether a process with this role still exists.
fn is_left(role: &str) -> bool {
    let wanted = format!("{}={role}", processes::ROLE).into_bytes();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut environments = entries.filter_map(|e| std::fs::read(e.path().join("environ")).ok());
    environments.any(|e| e.split(|b| *b == 0).any(|variable| variable == wanted))
}

fn check(seed: u64, plan: &Plan, dir: &Path, told: &Told, took: Duration, by_us: bool) {
    let context = format!("seed {seed}, {plan:?}, {took:?}: {:?}\n{}", told.ended, told.stderr);
    assert!(took < LONGEST, "{context}");
    assert_ne!(told.ended.code, 0, "{context}");
    if plan.wrong == Wrong::Exit {
        assert!([1, 3].contains(&told.ended.code), "{context}");
    }
    let victim = format!("rank {}", plan.victim);
    for rank in 0..plan.ranks {
        let line = told.stderr.lines().find(|line| line.starts_with(&format!("[rank {rank}] error: ")));
        let silent = matches!(plan.wrong, Wrong::Kill | Wrong::Stop | Wrong::Exit | Wrong::Panic);
        // MPI's launcher kills all other processes at once when one is killed, before they can report anything.
        if rank == plan.victim && silent || plan.wrong == Wrong::Kill && !by_us {
            continue;
        }
        let line = line.unwrap_or_else(|| panic!("rank {rank} said nothing, {context}"));
        match plan.wrong {
            Wrong::OtherProgram => {
                assert!(
                    line.contains("the processes run different programs") && line.contains("all_reduce tp"),
                    "{context}"
                );
                assert!(line.contains("sum of 256") && line.contains("max of 256"), "{context}");
            }
            Wrong::FullDisk => assert!(line.contains("injected fault"), "{context}"),
            _ => {
                assert!(line.contains(&victim), "{context}");
                assert!(
                    line.contains("`all_reduce tp` #") && line.contains("plan line") || line.contains(": `"),
                    "{context}"
                );
            }
        }
        // Signals may take a moment; a rank's own fault in a step shows in its first collective, or, for a rank that
        // has started the first one, when it starts the second.
        let exact = matches!(plan.wrong, Wrong::Exit | Wrong::Panic | Wrong::Stall);
        if plan.step.is_some() && rank != plan.victim && exact {
            let names = |n: usize| {
                line.contains(&format!("`all_reduce tp` #{n}")) && line.contains(&format!("why: plan line {n}"))
            };
            assert!(names(0) || names(1), "{context}");
        }
    }
    if by_us {
        let message = told.ended.message.as_ref().unwrap_or_else(|| panic!("{context}"));
        assert!(message.starts_with("rank "), "{context}");
    }
    // A rank that started a collective is in the record of the last ones.
    if let Some(path) = &told.ended.flight_record {
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(record["ranks"].as_array().unwrap().len(), plan.ranks, "{context}");
        assert!(record["failure"]["reason"].is_string(), "{context}");
    }
    if plan.wrong != Wrong::Kill && !by_us {
        check_records(plan, dir, &context);
    }
    // Our launcher removes what a killed process was writing; MPI's does not, but the next save does.
    if by_us || !matches!(plan.wrong, Wrong::Kill | Wrong::Stop) {
        check_files(dir, &context);
    }
}

/// Checks that all checkpoints are complete.
fn check_files(dir: &Path, context: &str) {
    let entries = std::fs::read_dir(dir.join("run")).into_iter().flatten().flatten();
    let names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|n| n.starts_with("step-")), "{names:?}, {context}");
}

/// Without our launcher every process writes the collectives of its own rank, if there are any.
fn check_records(plan: &Plan, dir: &Path, context: &str) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().into_string().unwrap());
    let records: Vec<String> = names.filter(|name| name.starts_with("tpc-flight-")).collect();
    for rank in (0..plan.ranks).filter(|&rank| rank != plan.victim) {
        let Some(name) = records.iter().find(|name| name.ends_with(&format!("-rank-{rank}.json"))) else {
            // Programs are compared before the first collective. The moment may come before that, too, and a rank may
            // learn in the first step that another has ended, before it starts a collective itself.
            let before = plan.step.is_none_or(|step| step == 0);
            assert!(plan.wrong == Wrong::OtherProgram || before, "{records:?}, {context}");
            continue;
        };
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap();
        assert_eq!(record["ranks"][0]["rank"], rank, "{context}");
        assert!(record["failure"]["reason"].is_string(), "{context}");
        assert!(!record["ranks"][0]["operations"].as_array().unwrap().is_empty(), "{context}");
    }
}

/// `by_us` if the launcher is ours.
fn inject(seed: u64, in_processes: Launcher, by_us: bool) {
    let plan = Plan::of(seed);
    let dir = std::env::temp_dir().join(format!("tpc-process-faults-{}-{seed}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let run = dir.join("run");
    let role = format!("fault {} {seed}", run.display());
    let start = Instant::now();
    let told = in_processes(plan.ranks, &role, Some(dir.clone()), Some(DEADLINE));
    check(seed, &plan, &dir, &told, start.elapsed(), by_us);
    // MPICH's launcher ends shortly before the processes that it has killed.
    let start = Instant::now();
    while is_left(&role) {
        assert!(!by_us && start.elapsed() < Duration::from_secs(5), "processes of seed {seed} are left");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = Checkpoint::latest(&run).map_or(0, |c| c.step());
    // On the same number of processes, on fewer, or as threads of one.
    let fewer = (plan.ranks - 1).max(2);
    match seed % 4 {
        0 => {
            let ranks = if seed.is_multiple_of(8) { plan.ranks } else { fewer };
            let told = in_processes(ranks, &format!("resume {} {ranks}", run.display()), Some(dir.clone()), None);
            assert_eq!(told.ended.code, 0, "seed {seed}: {}", told.stderr);
        }
        _ => resume(&run, fewer, LaunchOptions::default()),
    }
    assert_eq!(Checkpoint::latest(&run).unwrap().step(), before + EVERY, "seed {seed}");
    check_files(&dir, &format!("seed {seed}"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn two_hundred_faults_end_in_time_with_the_right_message() {
    // For other seeds, set `TPC_FAULT_SEEDS=200..1200`.
    let seeds = std::env::var("TPC_FAULT_SEEDS").unwrap_or_else(|_| format!("0..{FAULTS}"));
    let (first, end) = seeds.split_once("..").map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap())).unwrap();
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        let work = || loop {
            match next.fetch_add(1, Ordering::Relaxed) {
                seed if seed < end => inject(seed, in_processes, true),
                _ => return,
            }
        };
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
    });
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|e| std::fs::read_link(e.path()).ok());
    let left: Vec<PathBuf> = open.filter(|link| link.to_string_lossy().contains("memfd")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The same under `mpirun`.
#[cfg(feature = "mpi")]
mod mpi {
    use super::*;

    #[test]
    fn faults_end_in_time_with_the_right_message() {
        // For other seeds, as above.
        let seeds = std::env::var("TPC_MPI_FAULT_SEEDS").unwrap_or_else(|_| "1000..1028".into());
        let (first, end) = seeds.split_once("..").map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap())).unwrap();
        (first..end).for_each(|seed| inject(seed, processes::under_mpirun, false));
    }
}
