//! Measures the duration of an all-reduce, in a step with many all-reduces of one size.
//!
//! `cargo run --release -p tpc-runtime --example collectives -- 2` for two ranks as threads,
//! `tpc launch --ranks 2 -- target/release/examples/collectives 2` as processes,
//! `mpirun -n 2 target/release/examples/collectives 2` as processes, over MPI with the feature `mpi`.

use std::time::Duration;
use tpc_ir::program::*;
use tpc_ir::{DType, InputKind, Mesh, ModulePath, Phase, ReduceOp};
use tpc_runtime::{LaunchOptions, RuntimeError, Session, launch};

/// Number of all-reduces per step, by their size.
fn repeated(elements: usize) -> usize {
    if elements > 1 << 20 { 20 } else { 200 }
}

fn program(rank: usize, ranks: usize, elements: usize) -> Result<RankProgram, tpc_ir::mesh::MeshError> {
    let bytes = elements * 4;
    let buffer = Buffer { offset: 0, bytes, persistent: true, label: "x".into() };
    let view = View::dense(BufferId(0), DType::F32, vec![elements]);
    let binding = Binding { view: view.clone(), global: vec![elements], start: vec![0], layout: vec![elements] };
    let mut steps = Vec::new();
    for tag in 0..repeated(elements) as u32 {
        let collective = Collective {
            kind: CollectiveKind::AllReduce(ReduceOp::Sum),
            group: (0..ranks).collect(),
            position: rank,
            dtype: DType::F32,
            from: view.clone(),
            to: view.clone(),
            tag,
            axes: "tp".into(),
            phase: Phase::Forward,
            values: 1,
            full_bytes: bytes,
            why: "measured".into(),
        };
        for action in [Action::Start(Box::new(collective)), Action::Wait { tag }] {
            steps.push(Step {
                action,
                phase: Phase::Forward,
                label: "all_reduce".into(),
                micro_batch: None,
                module: ModulePath::default(),
            });
        }
    }
    Ok(RankProgram {
        mesh: Mesh::new([("tp", ranks)])?,
        rank,
        buffers: vec![buffer],
        arena_bytes: bytes.next_multiple_of(ALIGNMENT),
        inputs: vec![InputBinding { name: "x".into(), kind: InputKind::State, binding }],
        outputs: vec![],
        steps,
    })
}

fn measure(ranks: usize, elements: usize) -> Result<f64, RuntimeError> {
    let programs: Result<Vec<_>, _> = (0..ranks).map(|rank| program(rank, ranks, elements)).collect();
    let programs = programs.map_err(|e| RuntimeError::Launch(e.to_string()))?;
    let options = LaunchOptions { processes: launch::joined(), ..LaunchOptions::default() };
    let mut session = Session::launch(programs, options)?;
    session.step()?;
    let mut seconds = (0..7).map(|_| session.step().map(|r| r.seconds)).collect::<Result<Vec<_>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2] / repeated(elements) as f64)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let processes = launch::join(Duration::from_secs(30))?;
    let kind = if processes.is_some() { "processes" } else { "threads" };
    let ranks = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(2);
    for kib in [4, 64, 1024, 4096, 16384] {
        let time = measure(ranks, kib * 256)? * 1e6;
        if processes.as_ref().is_none_or(|p| p.process() == 0) {
            println!("{ranks} {kind}, {kib:>5} KiB: {time:9.2} us");
        }
    }
    Ok(())
}
