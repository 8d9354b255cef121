//! Two programs that alternate over one arena, on any device.

use super::{Builder, load, map, result, store};
use tpc_ir::program::*;
use tpc_ir::{DType, InputKind, MapFn, Mesh, ReduceOp};
use tpc_runtime::Session;

/// A program of two ranks that adds the data of both to the state `w`. With `after`, its data are larger and begin
/// after this many bytes of the arena, and it returns the sum and does not change the state.
pub fn adding(after: Option<usize>) -> Vec<RankProgram> {
    let program = |rank| {
        let mut b = Builder::of(Mesh::new([("tp", 2)]).unwrap(), rank);
        let w = b.input("w", DType::F32, &[100]);
        if let Some(bytes) = after {
            b.program.arena_bytes = bytes;
        }
        let n = if after.is_some() { 100_000 } else { 100 };
        let x = b.input("x", DType::F32, &[n]);
        b.program.inputs[1].kind = InputKind::Data;
        let sum = b.buffer(DType::F32, &[100]);
        let from = View { shape: vec![100], ..x };
        b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), vec![0, 1], &from, &sum, 1);
        let to = if after.is_some() { &sum } else { &w };
        let body = vec![load(&w), load(&sum), map(MapFn::Add, &[0, 1], DType::F32), store(to, 2)];
        b.step(Action::Loop(Loop { dims: vec![100], body }));
        b.output("sum", to);
        b.program
    };
    (0..2).map(program).collect()
}

/// Runs a session of [`adding`] with a second program: arenas grow in place, shared inputs are shared, and inputs of
/// only one program keep their values.
pub fn take_turns(mut session: Session) {
    let small = session.program(0).arena_bytes;
    session.write_f64("w", &[1.0; 100]).unwrap();
    session.write_f64("x", &[2.0; 100]).unwrap();
    session.step().unwrap();
    let one = session.selected();
    let overlapping = session.add(adding(Some(64 * 8))).unwrap_err().to_string();
    assert!(overlapping.contains("one keeps `x` of rank 0 where the other has"), "{overlapping}");
    let two = session.add(adding(Some(small))).unwrap();
    let local = session.local_ranks();
    assert!(local.clone().all(|rank| session.allocated_bytes(rank) > small + 400_000));
    assert!(session.selected() == two && session.is_written("w") && !session.is_written("x"));
    session.write_f64("x", &[0.5; 100_000]).unwrap();
    for turn in 1..4 {
        let w = 1.0 + 4.0 * f64::from(turn);
        session.select(two).unwrap();
        assert_eq!(session.read_input_f64("w").unwrap(), [w; 100], "what the first program has updated");
        session.step().unwrap();
        assert_eq!(session.read_f64(&result("sum")).unwrap(), [w + 1.0; 100], "the second program's own data");
        session.select(one).unwrap();
        session.step().unwrap();
        assert_eq!(session.read_input_f64("x").unwrap(), [2.0; 100], "the first program's own data");
        for rank in local.clone() {
            assert_eq!(session.collectives(rank)[0].count, turn as u64 + 1, "each program has counters of its own");
        }
    }
    // Another program replaces the first, and a third joins them.
    session.switch_to(adding(None)).unwrap();
    session.step().unwrap();
    let third = session.programs().map(|ranks| ranks[0].arena_bytes).max().unwrap();
    let three = session.add(adding(Some(third))).unwrap();
    session.write_f64("x", &[0.25; 100_000]).unwrap();
    for (program, sum) in [(two, 22.0), (three, 21.5), (two, 22.0)] {
        session.select(program).unwrap();
        session.step().unwrap();
        assert_eq!(session.read_f64(&result("sum")).unwrap(), [sum; 100]);
    }
    session.select(one).unwrap();
    session.step().unwrap();
    assert_eq!(session.read_input_f64("w").unwrap(), [25.0; 100]);
}
