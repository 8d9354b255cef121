//! Boxes, memory, traces, and the check that a step allocates nothing, for all kinds of ranks.

#[path = "support/processes.rs"]
mod processes;
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::sharing::{adding, take_turns};
use support::*;
use tpc_ir::program::*;
use tpc_ir::{DType, MapFn, Mesh, ReduceOp};
use tpc_runtime::{LaunchOptions, RuntimeError, Session};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// One test at a time, so that only the test that counts allocates.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: forwards everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: forwarded.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: forwarded.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Every action, and every collective: small and large, with adjacent pieces and with others.
fn everything() -> Vec<RankProgram> {
    (0..2)
        .map(|rank| {
            let mut b = Builder::of(Mesh::new([("tp", 2)]).unwrap(), rank);
            let x = b.input("x", DType::F32, &[200, 300]);
            let w = b.input("w", DType::F32, &[300, 100]);
            let index = b.input("index", DType::I64, &[50]);
            let h = b.buffer(DType::F32, &[200, 100]);
            let y = b.buffer(DType::F32, &[200, 100]);
            let taken = b.buffer(DType::F32, &[50, 100]);
            let sum = b.buffer(DType::F32, &[100]);
            let half = b.buffer(DType::BF16, &[200, 100]);
            let (top, at) = (b.buffer(DType::F32, &[200, 3]), b.buffer(DType::I64, &[200, 3]));
            let dim = |size, left, right, out| ContractDim { size, left, right, out };
            // Without an epilogue, on blocks in the result or in the scratch, and before a loop.
            let given = Instruction::Given { index: 0, dtype: DType::F32 };
            let bias = Instruction::Load { view: sum.clone(), strides: vec![0, 1] };
            let end = |f| vec![map(f, &[0, 1], DType::F32), store(&y, 2)];
            let turned = Instruction::Load { view: y.clone(), strides: vec![1, 100] };
            let epilogues = [
                vec![],
                [vec![given.clone(), bias], end(MapFn::Add)].concat(),
                [vec![given.clone(), load(&y)], end(MapFn::Mul)].concat(),
                [vec![given, turned], end(MapFn::Mul)].concat(),
            ];
            for (out, epilogue) in [&h, &y, &y, &y].into_iter().zip(epilogues) {
                b.step(Action::Contract(Contract {
                    left: x.clone(),
                    right: w.clone(),
                    out: out.clone(),
                    batch: vec![],
                    m: vec![dim(200, 300, 0, 100)],
                    n: vec![dim(100, 0, 1, 1)],
                    k: vec![dim(300, 1, 100, 0)],
                    scale: 1.0,
                    epilogue,
                }));
            }
            b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), vec![0, 1], &h, &h, 0);
            b.step(Action::Loop(Loop {
                dims: vec![200, 100],
                body: vec![
                    load(&h),
                    Instruction::ReduceRow { op: ReduceOp::Max, arg: 0, dtype: DType::F32 },
                    map(MapFn::Sub, &[0, 1], DType::F32),
                    map(MapFn::Exp, &[2], DType::F32),
                    store(&y, 3),
                    Instruction::Store { view: sum, strides: vec![0, 1], arg: 3, accumulate: Some(ReduceOp::Sum) },
                    map(MapFn::Cast(DType::BF16), &[3], DType::BF16),
                    store(&half, 6),
                ],
            }));
            b.step(Action::Take { table: y.clone(), index: index.clone(), out: taken.clone(), first_row: 0 });
            b.step(Action::ScatterAdd { index: index.clone(), update: taken.clone(), out: h.clone(), first_row: 0 });
            b.step(Action::Put { table: h.clone(), index, rows: taken, first_row: 0 });
            b.step(Action::Copy { from: y.clone(), to: h.clone() });
            b.step(Action::CumSum { from: y.clone(), to: h.clone(), dim: 0 });
            b.step(Action::TopK { from: h.clone(), values: top, indices: at });
            let mut small = h.clone();
            small.shape = vec![100];
            small.strides = vec![1];
            b.collective(CollectiveKind::AllReduce(ReduceOp::Max), vec![0, 1], &small, &small, 1);
            let piece = b.buffer(DType::F32, &[200, 30 + 40 * rank]);
            let parts = || vec![Part { outer: 200, lens: vec![30, 70], inner: 1 }];
            b.collective(CollectiveKind::AllGather { parts: parts() }, vec![0, 1], &piece, &y, 2);
            let scatter = CollectiveKind::ReduceScatter { op: ReduceOp::Sum, parts: parts() };
            b.collective(scatter, vec![0, 1], &y, &piece, 3);
            let (cut_lens, join_lens) = (vec![150, 50], vec![100, 100]);
            let turned = b.buffer(DType::F32, &[cut_lens[rank], 200]);
            let turn = CollectiveKind::AllToAll { shape: vec![200, 100], cut: 0, join: 1, cut_lens, join_lens };
            b.collective(turn, vec![0, 1], &y, &turned, 4);
            b.program
        })
        .collect()
}

/// The allocations of steps, as the minimum over several attempts: threads that listen to other processes also allocate
/// now and then.
fn allocations_of_steps(session: &mut Session) -> usize {
    session.step().unwrap();
    let mut count = || {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        for _ in 0..10 {
            session.step().unwrap();
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    (0..20).map(|_| count()).min().unwrap()
}

#[test]
#[ignore = "what the ranks of the tests below do as processes"]
fn child_process() {
    if processes::role() == ["share"] {
        let shared = std::panic::catch_unwind(|| take_turns(launch(processes::joined())));
        if shared.is_err() {
            processes::fail(&"the programs do not share");
        }
        std::process::exit(0)
    }
    let mut session = Session::launch(everything(), processes::joined()).unwrap_or_else(|e| processes::fail(&e));
    let count = allocations_of_steps(&mut session);
    if count > 0 {
        processes::fail(&format!("10 steps allocate {count} times"));
    }
    std::process::exit(0)
}

fn a_step_by_processes_allocates_nothing(launcher: processes::Launcher) {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let told = launcher(2, "step", None, None);
    assert_eq!(told.ended.code, 0, "{}", told.stderr);
}

#[test]
fn a_step_by_shared_memory_allocates_nothing() {
    a_step_by_processes_allocates_nothing(processes::in_processes);
}

/// Allocations of the MPI library itself are not counted.
#[cfg(feature = "mpi")]
#[test]
fn a_step_over_mpi_allocates_nothing() {
    a_step_by_processes_allocates_nothing(processes::under_mpirun);
}

#[test]
fn a_step_allocates_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let options = LaunchOptions { trace: 16, ..Default::default() };
    let mut session = Session::launch(everything(), options).unwrap();
    session.step().unwrap();
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..5 {
        session.step().unwrap();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst) - before, 0);
    let trace = session.trace_json();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |ph: &'static str, rank: u64| events.iter().filter(move |e| e["ph"] == ph && e["tid"] == rank);
    for rank in [0, 1] {
        let names: Vec<&str> = of("M", rank).filter_map(|e| e["args"]["name"].as_str()).collect();
        assert_eq!(names.last(), Some(&&*format!("rank {rank} [{rank}]")), "{trace}");
        // The latest 16 actions, and their step.
        let steps = of("X", rank).filter(|e| e["cat"] == "step").count();
        assert_eq!((of("X", rank).count() - steps, steps), (16, 1), "{trace}");
        assert!(of("X", rank).any(|e| e["args"]["reads"][0] == "f32[200, 100]" && e["args"]["bytes"] != 0), "{trace}");
        // The other rank takes part in each collective that began and ended among them.
        let met = of("X", rank).filter(|e| e["name"].as_str().unwrap().starts_with("start ")).count();
        assert!(met > 0 && of("s", rank).count() + of("f", rank).count() == met, "{trace}");
    }
}

fn launch(options: LaunchOptions) -> Session {
    Session::launch(adding(None), options).unwrap()
}

#[test]
fn several_programs_share_the_arenas_of_threads() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    take_turns(launch(LaunchOptions::default()));
}

#[test]
fn several_programs_share_the_arenas_of_processes() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let told = processes::in_processes(2, "share", None, None);
    assert_eq!(told.ended.code, 0, "{}", told.stderr);
}

#[cfg(feature = "mpi")]
#[test]
fn several_programs_share_the_arenas_of_mpi() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let told = processes::under_mpirun(2, "share", None, None);
    assert_eq!(told.ended.code, 0, "{}", told.stderr);
}

#[test]
fn sharded_boxes_are_written_and_read() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    // [3, 5, 4] with the last dimension split into 3 + 1 by tp, and the first into 2 + 1 by dp.
    let mesh = Mesh::new([("dp", 2), ("tp", 2)]).unwrap();
    let programs: Vec<RankProgram> = (0..4)
        .map(|rank| {
            let c = mesh.coords(rank);
            let mut b = Builder::of(mesh.clone(), rank);
            let shape = [[2, 1][c[0]], 5, [3, 1][c[1]]];
            let start = vec![c[0] * 2, 0, c[1] * 3];
            let x = b.buffer(DType::F32, &shape);
            b.bind_input("x", &x, vec![3, 5, 4], start.clone());
            b.program.inputs[0].binding.layout = vec![15, 4];
            b.bind_output("x", &x, vec![3, 5, 4], start);
            let empty = b.buffer(DType::F32, &[if rank == 0 { 2 } else { 0 }]);
            b.bind_input("small", &empty, vec![2], vec![if rank == 0 { 0 } else { 2 }]);
            let scalar = b.input("scalar", DType::I64, &[]);
            b.output("scalar", &scalar);
            b.program
        })
        .collect();
    let mut session = Session::launch(programs.clone(), LaunchOptions::default()).unwrap();
    for (rank, p) in programs.iter().enumerate() {
        assert_eq!(session.allocated_bytes(rank), p.arena_bytes);
    }
    let values: Vec<f64> = (0..60).map(f64::from).collect();
    session.write_f64("x", &values).unwrap();
    session.write_f64("small", &[5.0, 6.0]).unwrap();
    session.write_f64("scalar", &[-4.0]).unwrap();
    session.step().unwrap();
    assert_eq!(session.read_f64(&result("x")).unwrap(), values);
    assert_eq!(session.read_input_f64("x").unwrap(), values);
    assert_eq!(session.read_input_f64("small").unwrap(), [5.0, 6.0]);
    assert_eq!(session.read_f64(&result("scalar")).unwrap(), [-4.0]);
    let last = tpc_runtime::element::decode(DType::F32, &session.read_rank(&result("x"), 3).unwrap());
    assert_eq!(last, [43., 47., 51., 55., 59.]);
    // A loader that reads runs of a file.
    let file = tpc_runtime::element::encode(DType::F32, &values.iter().map(|x| -x).collect::<Vec<_>>());
    for rank in 0..4 {
        let mut reader = |request: &tpc_runtime::BoxRequest, to: &mut [u8]| {
            assert_eq!(request.layout, [15, 4]);
            request.runs(&mut |from, at, n| to[at..at + n].copy_from_slice(&file[from..from + n]));
            Ok(())
        };
        session.write_box("x", rank, &mut reader).unwrap();
    }
    assert_eq!(session.read(&result("x")).unwrap(), file);
    let mut seen = 0;
    session
        .read_box("x", 1, &mut |request, bytes| {
            seen = bytes.len();
            assert_eq!(request.start, [0, 0, 3]);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 40);
    let error = session.write_f64("y", &[]).unwrap_err().to_string();
    assert_eq!(error, "the program has no input `y`; it has x, small, scalar");
    let error = session.write_f64("x", &[0.0]).unwrap_err().to_string();
    assert_eq!(error, "`x` takes 240 bytes (f32[15, 4]), not 4");
    let failed = session.write_box("x", 0, &mut |_, _| Err("file is short".into())).unwrap_err();
    assert!(matches!(failed, RuntimeError::Transfer { .. }));
}

#[test]
fn programs_that_do_not_fit_are_errors() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let launch = |p: Vec<RankProgram>| Session::launch(p, LaunchOptions::default()).err().unwrap().to_string();
    assert!(launch(vec![]).contains("there is no program to run"));
    let two = Mesh::new([("tp", 2)]).unwrap();
    assert!(launch(vec![Builder::of(two.clone(), 0).program]).contains("1 programs for mesh <tp=2>"));
    assert!(launch(vec![Builder::of(two.clone(), 1).program, Builder::of(two, 0).program]).contains("program 0"));
    let mut b = Builder::new();
    let x = b.buffer(DType::F32, &[4]);
    b.program.arena_bytes = 8;
    b.step(Action::Copy { from: x.clone(), to: x });
    assert!(launch(vec![b.program]).contains("ends after the arena"));
}
