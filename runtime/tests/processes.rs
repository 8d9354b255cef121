//! Communication between processes other than collectives: deadlines, endings, and programs that cannot be loaded.

#[path = "support/processes.rs"]
mod processes;
mod support;

#[cfg(feature = "mpi")]
use processes::under_mpirun as mpi;
use processes::{Launcher, Told, fail, in_processes as shared_memory, joined};
use std::time::{Duration, Instant};
use support::*;
use tpc_ir::program::*;
use tpc_ir::{DType, Mesh, ReduceOp};
use tpc_runtime::Session;

/// Deadline of all operations here.
const DEADLINE: Duration = Duration::from_millis(700);

#[test]
#[ignore = "what the ranks of the tests below do as processes"]
fn child_process() {
    let options = joined();
    let all = options.processes.clone().unwrap();
    let barrier = |purpose: &str| all.barrier(purpose, DEADLINE).unwrap_or_else(|e| fail(&e));
    let second = all.process() == 1;
    match &*processes::role()[0] {
        "purposes" => barrier(if second { "save a checkpoint" } else { "read loss" }),
        "sleep" => {
            barrier("begin");
            if second {
                std::thread::sleep(Duration::from_secs(30));
            }
            barrier("read loss");
        }
        "compute" => {
            barrier("begin");
            let start = Instant::now();
            while second && start.elapsed() < 4 * DEADLINE {
                std::hint::spin_loop();
            }
            barrier("read loss");
        }
        "progress" => {
            barrier("begin");
            let start = Instant::now();
            while second && start.elapsed() < 4 * DEADLINE {
                std::thread::sleep(Duration::from_millis(10));
                all.progress();
            }
            barrier("read loss");
        }
        "leave" => {
            barrier("begin");
            if !second {
                barrier("read loss");
            }
        }
        "load" => {
            let program = |rank: usize| {
                let mut b = Builder::of(Mesh::new([("tp", 2)]).unwrap(), rank);
                let x = b.input("x", DType::F32, &[4]);
                if rank == 1 {
                    b.step(Action::Wait { tag: 3 });
                }
                b.output("x", &x);
                b.program
            };
            Session::launch(vec![program(0), program(1)], options).map(drop).unwrap_or_else(|e| fail(&e));
        }
        "sizes" => {
            let program = |rank: usize| Builder::of(Mesh::new([("tp", 4)]).unwrap(), rank).program;
            Session::launch((0..4).map(program).collect::<Vec<_>>(), options).map(drop).unwrap_or_else(|e| fail(&e));
        }
        "out_of_step" => {
            // All processes have the same programs, which do not fit together.
            let elements = if processes::role()[1] == "small" { 100 } else { 400_000 };
            let program = |rank: usize| {
                let mut b = Builder::of(Mesh::new([("tp", 3)]).unwrap(), rank);
                let x = b.input("x", DType::F32, &[elements + rank % 2]);
                let op = if rank == 1 { ReduceOp::Max } else { ReduceOp::Sum };
                b.collective(CollectiveKind::AllReduce(op), vec![0, 1, 2], &x, &x, 0);
                b.program
            };
            let mut session =
                Session::launch((0..3).map(program).collect::<Vec<_>>(), options).unwrap_or_else(|e| fail(&e));
            session.step().map(drop).unwrap_or_else(|e| fail(&e));
        }
        "given" => {
            let program = |rank: usize| {
                let mut b = Builder::of(Mesh::new([("tp", 2)]).unwrap(), rank);
                let x = b.input("x", DType::F32, &[4]);
                b.output("x", &x);
                b.program
            };
            let mut session =
                Session::launch((0..2).map(program).collect::<Vec<_>>(), options).unwrap_or_else(|e| fail(&e));
            let differs = |what: &str| second && processes::role()[1] == what;
            let give = |session: &mut Session, later: bool| {
                let (x, rate) = (if differs("data") { 2.0 } else { 1.0 }, if differs("rate") { 0.2 } else { 0.1 });
                session.write_f64("x", &[x; 4]).unwrap_or_else(|e| fail(&e));
                session.must_agree("the learning rate", rate);
                session.must_agree("the step", if later && differs("checkpoint") { 8 } else { 7 });
                session.step().map(drop).unwrap_or_else(|e| fail(&e));
            };
            give(&mut session, false);
            session.compare_again();
            give(&mut session, true);
        }
        "exchange" => {
            for length in [0, 1, 1 << 18, (1 << 18) + 1, 1_000_000] {
                let bytes = vec![all.process() as u8; length * all.process()];
                let got = all.exchange("lengths", &bytes, DEADLINE * 10).unwrap_or_else(|e| fail(&e));
                for (process, bytes) in got.into_iter().enumerate() {
                    assert!(bytes == vec![process as u8; length * process], "{length} {process}");
                }
            }
        }
        "fail_behind" => {
            // Long enough that it does not arrive at once; a process that has all of it fails while others still send
            // to each other.
            let bytes = vec![1; 8 << 20];
            let got = all.exchange("weights", &bytes, DEADLINE * 10).unwrap_or_else(|e| fail(&e));
            assert!(got.iter().all(|g| *g == bytes));
            if second {
                fail(&"no weights wanted");
            }
            barrier("read loss");
        }
        other => panic!("{other}"),
    }
    std::process::exit(0)
}

fn run(launcher: Launcher, role: &str, ranks: usize) -> Told {
    let start = Instant::now();
    let told = launcher(ranks, role, None, Some(DEADLINE));
    assert!(start.elapsed() < Duration::from_secs(15), "{}", told.stderr);
    told
}

macro_rules! launchers {
    ($($launcher:ident),+) => { $(
        mod $launcher {
            launchers!(@tests $launcher: bytes_of_any_length_are_exchanged
                host_programs_that_do_different_things_are_told_so
                a_host_program_that_sleeps_is_missed_and_one_that_works_is_waited_for
                a_process_that_ends_early_is_named_at_once what_one_rank_cannot_load_is_an_error_on_all
                a_mesh_of_another_size_names_both_numbers
                what_was_exchanged_before_a_failure_is_there what_differs_is_told_before_the_first_step
                ranks_out_of_step_are_told_so_before_data_is_used);
        }
    )+ };
    (@tests $launcher:ident: $($test:ident)+) => { $(
        #[test]
        fn $test() {
            super::$test(super::$launcher);
        }
    )+ };
}

launchers!(shared_memory);
#[cfg(feature = "mpi")]
launchers!(mpi);

/// The last error of a rank.
fn error(told: &Told, rank: usize) -> &str {
    let begin = format!("[rank {rank}] error: ");
    told.stderr.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_else(|| panic!("{}", told.stderr))
}

fn bytes_of_any_length_are_exchanged(launcher: Launcher) {
    let told = run(launcher, "exchange", 3);
    assert_eq!(told.ended.code, 0, "{}", told.stderr);
}

fn host_programs_that_do_different_things_are_told_so(launcher: Launcher) {
    let told = run(launcher, "purposes", 2);
    assert_eq!(told.ended.code, 1);
    for rank in 0..2 {
        let error = error(&told, rank);
        assert!(error.contains("`read loss`") && error.contains("`save a checkpoint`"), "{error}");
    }
}

fn a_host_program_that_sleeps_is_missed_and_one_that_works_is_waited_for(launcher: Launcher) {
    let told = run(launcher, "sleep", 2);
    assert_eq!(told.ended.code, 1, "{}", told.stderr);
    let error = error(&told, 0);
    assert!(error.contains("`read loss` did not finish within 700ms: missing rank 1 (rank 1 is "), "{error}");
    // The state that a process writes into shared memory, or the system's state of a process.
    assert!(error.contains("rank 1 is computing)") || error.contains("rank 1 is asleep or waiting)"), "{error}");
    for role in ["compute", "progress"] {
        let told = run(launcher, role, 2);
        assert_eq!(told.ended.code, 0, "{role}: {}", told.stderr);
    }
}

fn a_process_that_ends_early_is_named_at_once(launcher: Launcher) {
    let told = run(launcher, "leave", 3);
    assert_eq!(told.ended.code, 1);
    let errors = [error(&told, 0), error(&told, 2)];
    assert!(errors.iter().all(|e| e.contains("the process of rank 1 ended without it")), "{errors:?}");
}

fn what_one_rank_cannot_load_is_an_error_on_all(launcher: Launcher) {
    let told = run(launcher, "load", 2);
    assert_eq!(told.ended.code, 1);
    for rank in 0..2 {
        let error = error(&told, rank);
        assert!(error.contains("rank 1: step 0") && error.contains("no collective with tag #3"), "{error}");
    }
}

fn a_mesh_of_another_size_names_both_numbers(launcher: Launcher) {
    let told = run(launcher, "sizes", 2);
    for rank in 0..2 {
        let error = error(&told, rank);
        assert!(error.starts_with("the mesh has 4 ranks, but 2 processes were launched"), "{error}");
    }
}

fn what_was_exchanged_before_a_failure_is_there(launcher: Launcher) {
    let told = run(launcher, "fail_behind", 3);
    assert_eq!(told.ended.code, 1);
    for rank in [0, 2] {
        let error = error(&told, rank);
        assert!(error.contains("`read loss` was given up because rank 1 failed: no weights wanted"), "{error}");
    }
}

/// Data, the learning rate, and values that a checkpoint has replaced.
fn what_differs_is_told_before_the_first_step(launcher: Launcher) {
    assert_eq!(run(launcher, "given nothing", 2).ended.code, 0);
    for (role, expected) in [
        ("given data", "the digest of input `x` is "),
        ("given rate", "the learning rate is 0.1 on rank 0 and 0.2 on rank 1"),
        ("given checkpoint", "the step is 7 on rank 0 and 8 on rank 1"),
    ] {
        let told = run(launcher, role, 2);
        assert_eq!(told.ended.code, 1, "{role}: {}", told.stderr);
        for rank in 0..2 {
            let error = error(&told, rank);
            assert!(error.starts_with("the processes differ: ") && error.contains(expected), "{role}: {error}");
        }
    }
}

/// Differences that the comparison of programs does not see are found by the collectives themselves.
fn ranks_out_of_step_are_told_so_before_data_is_used(launcher: Launcher) {
    for role in ["out_of_step small", "out_of_step large"] {
        let told = run(launcher, role, 3);
        assert_eq!(told.ended.code, 1, "{}", told.stderr);
        let found = told.stderr.lines().find(|line| line.contains("ranks are out of step")).unwrap_or_default();
        assert!(found.contains("`all_reduce tp` #0 (f32 sum of"), "{}", told.stderr);
        assert!(found.contains("`all_reduce tp` #0 (f32 max of"), "{}", told.stderr);
        assert!(found.contains("why: plan line 0"), "{}", told.stderr);
        (0..3).for_each(|rank| _ = error(&told, rank));
    }
}
