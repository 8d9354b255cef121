//! The errors of the other ranks when one panics, stalls, leaves, or starts another operation.

mod support;

use std::time::{Duration, Instant};
use support::*;
use tpc_ir::program::*;
use tpc_ir::{DType, Mesh, ReduceOp};
use tpc_runtime::flight::{OPERATIONS, State};
use tpc_runtime::{Fault, FaultKind, LaunchOptions, RuntimeError, Session};

fn programs(ranks: usize, differ: impl Fn(usize, &mut Builder, &View, &View)) -> Vec<RankProgram> {
    (0..ranks)
        .map(|rank| {
            let mut b = Builder::of(Mesh::new([("tp", ranks)]).unwrap(), rank);
            let x = b.input("x", DType::F32, &[64]);
            let y = b.buffer(DType::F32, &[64]);
            differ(rank, &mut b, &x, &y);
            b.program
        })
        .collect()
}

fn all_reduce(b: &mut Builder, ranks: usize, x: &View, y: &View, tag: u32) {
    b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), (0..ranks).collect(), x, y, tag);
}

fn options(seconds: f64, fault: Option<Fault>) -> LaunchOptions {
    LaunchOptions { deadline: Duration::from_secs_f64(seconds), fault, ..Default::default() }
}

#[test]
fn a_panic_stops_every_rank() {
    let p = programs(3, |_, b, x, y| all_reduce(b, 3, x, y, 0));
    let fault = Fault { rank: 1, step: 2, kind: FaultKind::Panic };
    let mut session = Session::launch(p, options(30.0, Some(fault))).unwrap();
    session.step().unwrap();
    session.step().unwrap();
    let start = Instant::now();
    let error = session.step().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(matches!(&error, RuntimeError::Panic { rank: 1, message, .. } if message == "injected fault"), "{error}");
    for rank in [0, 2] {
        let error = session.rank_error(rank).unwrap();
        assert!(matches!(error, RuntimeError::PeerFailed { peer: 1, .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("all_reduce tp") && text.contains("plan line 0") && text.contains("injected"), "{text}");
    }
    assert!(matches!(session.step(), Err(RuntimeError::Poisoned(_))));
}

#[test]
fn the_flight_record_has_the_latest_collectives_of_every_rank() {
    let p = programs(2, |_, b, x, y| {
        all_reduce(b, 2, x, y, 4);
        all_reduce(b, 2, x, y, 5);
    });
    let fault = Fault { rank: 1, step: 40, kind: FaultKind::Panic };
    let mut session = Session::launch(p, options(30.0, Some(fault))).unwrap();
    (0..40).for_each(|_| assert!(session.step().unwrap().seconds > 0.0));
    session.step().unwrap_err();
    let record = session.flight_record();
    assert!(record.failure.as_ref().is_some_and(|(rank, reason)| *rank == 1 && reason.contains("injected fault")));
    let [waiting, panicked] = &record.ranks[..] else { panic!("{record:?}") };
    for rank in [waiting, panicked] {
        assert_eq!(rank.operations.len(), OPERATIONS);
        assert!(rank.operations.is_sorted_by_key(|o| (o.step, o.tag, o.started)), "{rank:?}");
    }
    let last = waiting.operations.last().unwrap();
    assert_eq!((last.step, last.tag, last.state, last.finished), (40, 4, State::WaitedFor, 0));
    assert_eq!((&*last.name, &*last.axes, last.bytes, &*last.why), ("all_reduce", "tp", 256, "plan line 4"));
    let last = panicked.operations.last().unwrap();
    assert_eq!((last.step, last.tag, last.state), (39, 5, State::Finished));
    assert!(last.finished >= last.started && panicked.operations[0].finished <= last.started);
    let json: serde_json::Value = serde_json::from_str(&record.to_json()).unwrap();
    assert_eq!(json["ranks"][0]["operations"][63]["state"], "waiting");
}

#[test]
fn a_rank_that_never_arrives_is_named_after_the_deadline() {
    let p = programs(3, |_, b, x, y| all_reduce(b, 3, x, y, 0));
    let fault = Fault { rank: 2, step: 0, kind: FaultKind::Stall(Duration::from_secs(600)) };
    let mut session = Session::launch(p, options(0.2, Some(fault))).unwrap();
    let start = Instant::now();
    let error = session.step().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(matches!(&error, RuntimeError::Deadline { missing, .. } if *missing == [2]), "{error}");
    let text = error.to_string();
    assert!(text.contains("missing rank 2 (rank 2 is computing)") && text.contains("plan line 0"), "{text}");
    (0..3).for_each(|r| assert!(session.rank_error(r).is_some()));
}

#[test]
fn different_operations_are_named_on_every_rank() {
    let p = programs(3, |rank, b, x, y| {
        all_reduce(b, 3, x, y, 0);
        if rank == 1 {
            let z = b.buffer(DType::F32, &[192]);
            b.collective(
                CollectiveKind::AllGather { parts: vec![Part { outer: 1, lens: vec![64; 3], inner: 1 }] },
                (0..3).collect(),
                x,
                &z,
                7,
            );
        } else {
            all_reduce(b, 3, x, y, 1);
        }
    });
    let mut session = Session::launch(p, options(30.0, None)).unwrap();
    let start = Instant::now();
    let error = session.step().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(matches!(error, RuntimeError::Desynchronized { .. }), "{error}");
    for rank in 0..3 {
        let text = session.rank_error(rank).unwrap().to_string();
        assert!(text.contains("`all_reduce tp` #1") && text.contains("`all_gather tp` #7"), "{text}");
    }
}

#[test]
fn a_rank_that_leaves_is_an_error_at_once() {
    let p = programs(2, |rank, b, x, y| {
        if rank == 0 {
            all_reduce(b, 2, x, y, 0);
        }
    });
    let mut session = Session::launch(p, options(30.0, None)).unwrap();
    let start = Instant::now();
    let error = session.step().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(matches!(&error, RuntimeError::Left { rank: 0, missing, .. } if *missing == [1]), "{error}");
}

#[test]
fn waiting_in_different_groups_ends_at_the_deadline_and_says_where() {
    let p = programs(3, |rank, b, x, y| {
        let pair = |b: &mut Builder, group: Vec<usize>, tag| {
            b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), group, x, y, tag);
        };
        match rank {
            0 => (pair(b, vec![0, 1], 0), pair(b, vec![0, 2], 2)),
            1 => (pair(b, vec![1, 2], 1), pair(b, vec![0, 1], 0)),
            _ => (pair(b, vec![0, 2], 2), pair(b, vec![1, 2], 1)),
        };
    });
    let mut session = Session::launch(p, options(0.2, None)).unwrap();
    let error = session.step().unwrap_err();
    assert!(matches!(error, RuntimeError::Deadline { .. }), "{error}");
    assert!(error.to_string().contains("waiting in `all_reduce tp`"), "{error}");
}

#[test]
fn sizes_that_contradict_each_other_are_errors_when_loading() {
    let p = programs(2, |_, b, x, y| {
        b.collective(
            CollectiveKind::AllGather { parts: vec![Part { outer: 1, lens: vec![64; 2], inner: 1 }] },
            vec![0, 1],
            x,
            y,
            0,
        );
    });
    let error = Session::launch(p, options(1.0, None)).err().unwrap();
    assert!(error.to_string().contains("128 are needed"), "{error}");
}
