//! One suite for every communicator: collectives of every kind and type on groups of every size, compared with naive
//! results.
//!
//! Every check is a function of the launch options and the number of ranks; every communicator in [`communicators!`]
//! runs it.

#[path = "support/processes.rs"]
mod processes;
mod support;

use processes::in_processes;
use std::ops::Range;
use support::*;
use tpc_ir::program::*;
use tpc_ir::{AxisId, DType, Mesh, ReduceOp};
use tpc_runtime::{LaunchOptions, Session};

/// A check: its name, the numbers of ranks that it supports, and its function.
type Check = (&'static str, Range<usize>, fn(&LaunchOptions, usize));

const CHECKS: [Check; 9] = [
    ("all_reduce", 1..6, all_reduce),
    ("all_gather_and_reduce_scatter", 1..6, all_gather_and_reduce_scatter),
    ("all_to_all", 1..6, all_to_all),
    ("groups_of_a_mesh", 4..5, groups_of_a_mesh),
    ("in_place_and_overlapping", 3..4, in_place_and_overlapping),
    ("sums_bit_by_bit", 5..6, sums_bit_by_bit),
    ("large", 2..5, large),
    ("transfers", 1..5, transfers),
    ("random_sequences", RANDOM_RANKS, random_sequences),
];

const RANDOM_RANKS: Range<usize> = 1..9;

fn check(name: &str) -> &'static Check {
    CHECKS.iter().find(|c| c.0 == name).unwrap()
}

/// Ranks as threads of this process.
fn threads(name: &str) {
    let (_, ranks, run) = check(name);
    ranks.clone().for_each(|ranks| run(&LaunchOptions::default(), ranks));
}

/// Ranks as processes of this host that share memory.
fn shared_memory(name: &str) {
    for ranks in check(name).1.clone().filter(|&ranks| ranks > 1) {
        let told = in_processes(ranks, &format!("{name} {ranks}"), None, None);
        assert_eq!(told.ended.code, 0, "{name} on {ranks} ranks: {}", told.stderr);
    }
}

/// Ranks as MPI processes; a single process runs its rank as a thread.
#[cfg(feature = "mpi")]
fn mpi(name: &str) {
    for ranks in check(name).1.clone() {
        let told = processes::under_mpirun(ranks, &format!("{name} {ranks}"), None, None);
        assert_eq!(told.ended.code, 0, "{name} on {ranks} ranks: {}", told.stderr);
    }
}

macro_rules! communicators {
    ($($communicator:ident),+) => { $(
        mod $communicator {
            communicators!(@tests $communicator: all_reduce all_gather_and_reduce_scatter all_to_all groups_of_a_mesh
                in_place_and_overlapping sums_bit_by_bit large transfers random_sequences);
        }
    )+ };
    (@tests $communicator:ident: $($check:ident)+) => { $(
        #[test]
        fn $check() {
            super::$communicator(stringify!($check));
        }
    )+ };
}

// A communicator is a function that runs a check, given by its name, for all its numbers of ranks.
communicators!(threads, shared_memory);
#[cfg(feature = "mpi")]
communicators!(mpi);

#[test]
#[ignore = "what the ranks of the tests above do as processes"]
fn child_process() {
    let role = processes::role();
    check(&role[0]).2(&processes::joined(), role[1].parse().unwrap());
}

/// One collective of one group.
#[derive(Clone, Debug)]
struct Case {
    group: Vec<usize>,
    dtype: DType,
    kind: Kind,
}

/// The operation of a group, independent of a rank's position in it.
#[derive(Clone, Debug)]
enum Kind {
    AllReduce(ReduceOp, usize),
    AllGather(Vec<Part>),
    ReduceScatter(ReduceOp, Vec<Part>),
    AllToAll { shape: Vec<usize>, cut: usize, join: usize, cut_lens: Vec<usize>, join_lens: Vec<usize> },
}

impl Case {
    /// The shapes of a position's operand and result in an all-to-all.
    fn shapes(&self, p: usize) -> (Vec<usize>, Vec<usize>) {
        let Kind::AllToAll { shape, cut, join, cut_lens, join_lens } = &self.kind else { unreachable!() };
        let mut from = shape.clone();
        (from[*cut], from[*join]) = (cut_lens.iter().sum(), join_lens[p]);
        let mut to = shape.clone();
        (to[*cut], to[*join]) = (cut_lens[p], join_lens.iter().sum());
        (from, to)
    }

    /// Elements of a position's operand and result.
    fn sizes(&self, p: usize) -> (usize, usize) {
        let shards = |parts: &[Part]| parts.iter().map(|part| part.shard(p)).sum::<usize>();
        let whole = |parts: &[Part]| parts.iter().map(Part::whole).sum::<usize>();
        match &self.kind {
            Kind::AllReduce(_, n) => (*n, *n),
            Kind::AllGather(parts) => (shards(parts), whole(parts)),
            Kind::ReduceScatter(_, parts) => (whole(parts), shards(parts)),
            Kind::AllToAll { .. } => {
                let (from, to) = self.shapes(p);
                (from.iter().product(), to.iter().product())
            }
        }
    }

    fn collective(&self, p: usize) -> CollectiveKind {
        match self.kind.clone() {
            Kind::AllReduce(op, _) => CollectiveKind::AllReduce(op),
            Kind::AllGather(parts) => CollectiveKind::AllGather { parts },
            Kind::ReduceScatter(op, parts) => CollectiveKind::ReduceScatter { op, parts },
            Kind::AllToAll { cut, join, cut_lens, join_lens, .. } => {
                CollectiveKind::AllToAll { shape: self.shapes(p).0, cut, join, cut_lens, join_lens }
            }
        }
    }

    /// The result of a position, given the operands of all.
    fn expected(&self, p: usize, operands: &[Vec<f64>]) -> Vec<f64> {
        match &self.kind {
            Kind::AllReduce(op, _) => combine(*op, self.dtype, operands),
            Kind::AllGather(parts) => {
                let mut whole = Vec::new();
                for (i, part) in parts.iter().enumerate() {
                    for o in 0..part.outer {
                        for (q, operand) in operands.iter().enumerate() {
                            let before: usize = parts[..i].iter().map(|b| b.shard(q)).sum();
                            let run = part.lens[q] * part.inner;
                            whole.extend(&operand[before + o * run..before + (o + 1) * run]);
                        }
                    }
                }
                whole
            }
            Kind::ReduceScatter(op, parts) => {
                let sum = combine(*op, self.dtype, operands);
                let (mut kept, mut start) = (Vec::new(), 0);
                for part in parts {
                    let row = part.lens.iter().sum::<usize>() * part.inner;
                    let before = part.lens[..p].iter().sum::<usize>() * part.inner;
                    for o in 0..part.outer {
                        let from = start + o * row + before;
                        kept.extend(&sum[from..from + part.lens[p] * part.inner]);
                    }
                    start += part.whole();
                }
                kept
            }
            Kind::AllToAll { cut, join, cut_lens, join_lens, .. } => {
                let shape = self.shapes(p).1;
                let element = |flat: usize| {
                    let mut index = vec![0; shape.len()];
                    let mut rest = flat;
                    for d in (0..shape.len()).rev() {
                        index[d] = rest % shape[d];
                        rest /= shape[d];
                    }
                    let mut q = 0;
                    while index[*join] >= join_lens[q] {
                        index[*join] -= join_lens[q];
                        q += 1;
                    }
                    index[*cut] += cut_lens[..p].iter().sum::<usize>();
                    operands[q][index.iter().zip(&self.shapes(q).0).fold(0, |a, (i, n)| a * n + i)]
                };
                (0..shape.iter().product()).map(element).collect()
            }
        }
    }
}

fn combine(op: ReduceOp, dtype: DType, terms: &[Vec<f64>]) -> Vec<f64> {
    let one = |i: usize| dtype.round(terms[1..].iter().fold(terms[0][i], |a, t| op.combine(a, t[i])));
    (0..terms[0].len()).map(one).collect()
}

/// Small integers, so that all results are exact.
fn data(seed: usize, n: usize, dtype: DType) -> Vec<f64> {
    let mut rng = Lcg(seed as u64 + 1);
    let (small, least) = if dtype == DType::Bool { (2, 0.0) } else { (4, 1.0) };
    (0..n).map(|_| rng.below(small) as f64 + least).collect()
}

fn mesh(ranks: usize) -> Mesh {
    Mesh::new([("tp", ranks)]).unwrap()
}

/// Launches a list with one program per rank, the same on every process.
fn launch(options: &LaunchOptions, programs: Vec<RankProgram>) -> Session {
    Session::launch(programs, options.clone()).unwrap()
}

/// Runs collectives in batches, one after the other, with a different order of waits on every rank, twice, and compares
/// the results of every rank of this process. `cases[i]` are groups that communicate at the same time.
fn run(options: &LaunchOptions, mesh: &Mesh, batches: &[Vec<Vec<Case>>]) {
    let ranks = mesh.ranks();
    let all: Vec<&Vec<Case>> = batches.iter().flatten().collect();
    let mine = |cases: &Vec<Case>, rank: usize| {
        let found = cases.iter().find_map(|c| Some((c.clone(), c.group.iter().position(|&r| r == rank)?)));
        found.expect("every rank is in a group")
    };
    let largest = |cases: &Vec<Case>, of: fn((usize, usize)) -> usize| {
        (0..ranks).map(|rank| mine(cases, rank)).map(|(c, p)| of(c.sizes(p))).max().unwrap()
    };
    let program = |rank: usize| {
        let mut b = Builder::of(mesh.clone(), rank);
        let mut tag = 0;
        let mut rng = Lcg(rank as u64 + 99);
        for batch in batches {
            let mut waits = Vec::new();
            for cases in batch {
                let (case, p) = mine(cases, rank);
                let (from, to) = case.sizes(p);
                let x = b.buffer(case.dtype, &[largest(cases, |s| s.0)]);
                let y = b.buffer(case.dtype, &[largest(cases, |s| s.1)]);
                b.bind_input(&format!("x{tag}"), &x, x.shape.clone(), vec![0]);
                b.bind_output(&format!("y{tag}"), &y, y.shape.clone(), vec![0]);
                let (x, y) = (View::dense(x.buffer, x.dtype, vec![from]), View::dense(y.buffer, y.dtype, vec![to]));
                b.collective(case.collective(p), case.group.clone(), &x, &y, tag);
                waits.push(b.program.steps.pop().unwrap());
                tag += 1;
            }
            while !waits.is_empty() {
                let wait = waits.swap_remove(rng.below(waits.len()));
                b.program.steps.push(wait);
            }
        }
        b.program
    };
    let mut session = launch(options, (0..ranks).map(program).collect());
    let operand = |cases: &Vec<Case>, tag: usize, rank: usize| {
        let (case, p) = mine(cases, rank);
        (data(tag * 64 + rank, case.sizes(p).0, case.dtype), case.dtype)
    };
    for (tag, cases) in all.iter().enumerate() {
        for rank in 0..ranks {
            let mut write = |_: &tpc_runtime::BoxRequest, bytes: &mut [u8]| {
                let (values, dtype) = operand(cases, tag, rank);
                let values = tpc_runtime::element::encode(dtype, &values);
                bytes[..values.len()].copy_from_slice(&values);
                Ok(())
            };
            session.write_box(&format!("x{tag}"), rank, &mut write).unwrap();
        }
    }
    session.step().unwrap();
    session.step().unwrap();
    let local = session.local_ranks();
    let counted: u64 = session.collectives(local.start).iter().map(|c| c.count).sum();
    assert_eq!(counted as usize, 2 * all.len());
    for (tag, cases) in all.iter().enumerate() {
        for rank in local.clone() {
            let (case, p) = mine(cases, rank);
            // Every rank holds the whole value, so that a single process reads it from its own rank.
            let kind = result(&format!("y{tag}"));
            let bytes = if local.len() == ranks { session.read_rank(&kind, rank) } else { session.read(&kind) };
            let mut got = tpc_runtime::element::decode(case.dtype, &bytes.unwrap());
            got.truncate(case.sizes(p).1);
            let operands: Vec<Vec<f64>> = case.group.iter().map(|&q| operand(cases, tag, q).0).collect();
            assert_eq!(got, case.expected(p, &operands), "rank {rank}, collective {tag}: {case:?}");
        }
    }
}

fn one_group(ranks: usize, dtype: DType, kind: Kind) -> Vec<Case> {
    vec![Case { group: (0..ranks).collect(), dtype, kind }]
}

fn all_reduce(options: &LaunchOptions, ranks: usize) {
    for dtype in DType::ALL {
        for op in ReduceOp::ALL {
            let sizes = [0, 1, 63, 1000].map(|n| one_group(ranks, dtype, Kind::AllReduce(op, n)));
            run(options, &mesh(ranks), &[sizes.to_vec()]);
        }
    }
}

/// Uneven and empty pieces, and several values in one collective.
fn all_gather_and_reduce_scatter(options: &LaunchOptions, ranks: usize) {
    let part = |outer: usize, lens: Vec<usize>, inner: usize| Part { outer, lens, inner };
    let (even, up, down) = (vec![3; ranks], (0..ranks).collect::<Vec<_>>(), (0..ranks).rev().collect::<Vec<_>>());
    let parts = [
        vec![part(2, even.clone(), 5)],
        vec![part(3, up.clone(), 1)],
        vec![part(1, down.clone(), 40)],
        vec![part(1, even, 5), part(2, up, 1), part(3, down, 3)],
    ];
    for dtype in DType::ALL {
        let cases = parts.iter().flat_map(|parts| {
            let kinds = [Kind::AllGather(parts.clone()), Kind::ReduceScatter(ReduceOp::Sum, parts.clone())];
            kinds.map(|kind| one_group(ranks, dtype, kind))
        });
        run(options, &mesh(ranks), &[cases.collect()]);
    }
}

fn all_to_all(options: &LaunchOptions, ranks: usize) {
    for dtype in DType::ALL {
        let cases = [(0, 1), (1, 0), (0, 2), (2, 1), (1, 3), (3, 0)].map(|(cut, join)| {
            let cut_lens = (0..ranks).map(|r| (r + 1) % 3 + 1).collect();
            let join_lens = (0..ranks).map(|r| r % 3).collect();
            let kind = Kind::AllToAll { shape: vec![2, 3, 2, 2], cut, join, cut_lens, join_lens };
            one_group(ranks, dtype, kind)
        });
        run(options, &mesh(ranks), &[cases.to_vec()]);
    }
}

/// Groups of a mesh communicate concurrently and in order.
fn groups_of_a_mesh(options: &LaunchOptions, _: usize) {
    let mesh = Mesh::new([("dp", 2), ("tp", 2)]).unwrap();
    let cases = [vec![AxisId(0)], vec![AxisId(1)], vec![AxisId(1), AxisId(0)]].map(|axes| {
        let mut groups: Vec<Vec<usize>> = (0..4).map(|r| mesh.group(r, &axes)).collect();
        groups.sort();
        groups.dedup();
        let case = |group: Vec<usize>| {
            let kind = Kind::AllGather(vec![Part { outer: 1, lens: vec![4; group.len()], inner: 1 }]);
            Case { group, dtype: DType::F32, kind }
        };
        groups.into_iter().map(case).collect()
    });
    run(options, &mesh, &[cases.to_vec()]);
}

fn in_place_and_overlapping(options: &LaunchOptions, ranks: usize) {
    let n = 5000;
    let programs = (0..ranks)
        .map(|rank| {
            let mut b = Builder::of(mesh(ranks), rank);
            let x = b.input("x", DType::F32, &[n]);
            let y = b.input("y", DType::F32, &[n]);
            for (i, v) in [&x, &y].into_iter().enumerate() {
                b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), vec![0, 1, 2], v, v, i as u32);
            }
            // Both start before either is waited for, and the ranks wait in different orders.
            let wait = b.program.steps.remove(1);
            b.program.steps.insert(if rank == 1 { 3 } else { 2 }, wait);
            b.output("x", &x);
            b.output("y", &y);
            b.program
        })
        .collect();
    let mut session = launch(options, programs);
    session.write_f64("x", &vec![1.0; n]).unwrap();
    session.write_f64("y", &vec![2.0; n]).unwrap();
    for _ in 0..4 {
        session.step().unwrap();
    }
    assert_eq!(session.read_f64(&result("x")).unwrap(), vec![81.0; n]);
    assert_eq!(session.read_f64(&result("y")).unwrap(), vec![162.0; n]);
    let rank = session.local_ranks().end - 1;
    let counts = session.collectives(rank);
    assert_eq!((counts.len(), counts[0].count, counts[0].name), (1, 8, "all_reduce"));
    let predicted = 8.0 * 2.0 * 2.0 / 3.0 * (n * 4) as f64;
    assert!((session.wire_bytes(rank) / predicted - 1.0).abs() < 1e-12);
    session.reset_counters();
    assert!(session.collectives(rank).is_empty());
}

/// Sums are bitwise equal on all ranks and every time.
fn sums_bit_by_bit(options: &LaunchOptions, ranks: usize) {
    let n = 3000;
    let values: Vec<f64> = (0..n).map(|i| (f64::from(i) * 0.7).sin()).collect();
    let programs = (0..ranks)
        .map(|rank| {
            let mut b = Builder::of(mesh(ranks), rank);
            let x = b.input("x", DType::F32, &[n as usize]);
            let y = b.buffer(DType::F32, &[n as usize]);
            let scale = Instruction::Constant(tpc_ir::Scalar::float(1.0 / (rank as f64 + 1.3)), DType::F32);
            let body = vec![support::load(&x), scale, map(tpc_ir::MapFn::Mul, &[0, 1], DType::F32), store(&y, 2)];
            b.step(Action::Loop(Loop { dims: vec![n as usize], body }));
            b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), (0..ranks).collect(), &y, &y, 0);
            b.output("y", &y);
            b.program
        })
        .collect();
    let mut session = launch(options, programs);
    session.write_f64("x", &values).unwrap();
    session.step().unwrap();
    let first = session.read_rank(&result("y"), 0).unwrap();
    for _ in 0..20 {
        session.step().unwrap();
        (0..ranks).for_each(|r| assert_eq!(session.read_rank(&result("y"), r).unwrap(), first));
    }
}

/// Sizes that are not sent in one piece, several at a time, with uneven and empty pieces.
fn large(options: &LaunchOptions, ranks: usize) {
    let lens: Vec<usize> = (0..ranks).map(|r| (r + 1) % ranks * 71).collect();
    for dtype in [DType::F32, DType::BF16, DType::I64, DType::Bool] {
        let parts =
            vec![Part { outer: 1, lens: lens.clone(), inner: 300 }, Part { outer: 90, lens: lens.clone(), inner: 5 }];
        let kinds = [
            Kind::AllReduce(ReduceOp::Max, 50_001),
            Kind::AllReduce(ReduceOp::Sum, 200_000),
            Kind::AllGather(parts.clone()),
            Kind::ReduceScatter(ReduceOp::Sum, parts),
            Kind::AllToAll {
                shape: vec![7, 0, 11, 0],
                cut: 1,
                join: 3,
                cut_lens: lens.clone(),
                join_lens: lens.clone(),
            },
        ];
        let kinds = kinds.into_iter().map(|kind| one_group(ranks, dtype, kind)).collect();
        run(options, &mesh(ranks), &[kinds]);
    }
}

/// Written values are read back on every process, also from sessions that replace or follow each other: whole tensors,
/// boxes of one rank, ranges; larger than the messages of an exchange, with ranks that hold the same box or none.
fn transfers(options: &LaunchOptions, ranks: usize) {
    let rows = 70_000;
    let program = |rank: usize, copies: usize| {
        let mut b = Builder::of(mesh(ranks), rank);
        // The last of several ranks holds nothing; an even and an odd part.
        let holders = (ranks - 1).max(1);
        let start = (rank * rows / holders).min(rows);
        let end = ((rank + 1) * rows / holders).min(rows);
        let x = b.buffer(DType::F32, &[end - start, 2]);
        b.bind_input("x", &x, vec![rows, 2], vec![start, 0]);
        b.bind_output("x", &x, vec![rows, 2], vec![start, 0]);
        let same = b.input("same", DType::I64, &[3]);
        b.output("same", &same);
        let first = b.buffer(DType::F32, &[if rank == 0 { 2 } else { 0 }]);
        b.bind_output("first", &first, vec![2], vec![if rank == 0 { 0 } else { 2 }]);
        for i in 0..copies {
            b.collective(CollectiveKind::AllReduce(ReduceOp::Max), (0..ranks).collect(), &same, &same, i as u32);
        }
        b.program
    };
    let programs = |copies: usize| -> Vec<RankProgram> { (0..ranks).map(|rank| program(rank, copies)).collect() };
    let values: Vec<f64> = (0..2 * rows).map(|i| i as f64).collect();
    for _ in 0..2 {
        let mut session = launch(options, programs(1));
        session.write_f64("x", &values).unwrap();
        session.write_f64("same", &[1.0, 2.0, -3.0]).unwrap();
        for copies in [2, 3] {
            session.step().unwrap();
            session.switch_to(programs(copies)).unwrap();
        }
        session.step().unwrap();
        assert_eq!(session.read_f64(&result("x")).unwrap(), values);
        assert_eq!(session.read_input_f64("x").unwrap(), values);
        assert_eq!(session.read_f64(&result("same")).unwrap(), [1.0, 2.0, -3.0]);
        assert_eq!(session.read_f64(&result("first")).unwrap(), [0.0, 0.0]);
        let mut strip = vec![0; 4 * 1001];
        session.read_range("x", 69_500, 70_501, &mut strip).unwrap();
        assert_eq!(tpc_runtime::element::decode(DType::F32, &strip), values[69_500..70_501]);
        let mut seen = Vec::new();
        for rank in 0..ranks {
            let writer = &mut |_: &tpc_runtime::BoxRequest, bytes: &[u8]| {
                seen.extend(tpc_runtime::element::decode(DType::F32, bytes));
                Ok(())
            };
            session.read_box("x", rank, writer).unwrap();
        }
        assert_eq!(seen, values);
        assert!(session.read_f64(&result("y")).is_err());
    }
}

/// Sequences of one to five collectives, in groups from a partition of the ranks, in any order of their ranks: 10,000
/// for every communicator, over all numbers of ranks.
fn random_sequences(options: &LaunchOptions, ranks: usize) {
    const SESSIONS: usize = 58;
    const SEQUENCES: usize = 25;
    // A single rank does not communicate.
    const { assert!(SESSIONS * SEQUENCES * (RANDOM_RANKS.end - 2) >= 10_000) };
    let mut rng = Lcg(ranks as u64 * 7919);
    for _ in 0..SESSIONS {
        let sequences: Vec<Vec<Vec<Case>>> =
            (0..SEQUENCES).map(|_| (0..rng.below(5) + 1).map(|_| random_cases(&mut rng, ranks)).collect()).collect();
        run(options, &mesh(ranks), &sequences);
    }
}

fn random_cases(rng: &mut Lcg, ranks: usize) -> Vec<Case> {
    let mut order: Vec<usize> = (0..ranks).collect();
    if rng.below(3) > 0 {
        (1..ranks).for_each(|i| order.swap(i, rng.below(i + 1)));
    }
    let dtype = DType::ALL[rng.below(DType::ALL.len())];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for rank in order {
        match groups.last_mut() {
            Some(last) if rng.below(3) > 0 => last.push(rank),
            _ => groups.push(vec![rank]),
        }
    }
    let case = |group: Vec<usize>| {
        let n = group.len();
        let mut lens = |most: usize| -> Vec<usize> { (0..n).map(|_| rng.below(most + 1)).collect() };
        let (a, b, c) = (lens(4), lens(2), lens(3));
        let parts = [
            Part { outer: rng.below(3) + 1, lens: a, inner: rng.below(40) + 1 },
            Part { outer: 1, lens: b.clone(), inner: rng.below(3) + 1 },
        ];
        let parts = parts[..rng.below(2) + 1].to_vec();
        let op = ReduceOp::ALL[rng.below(ReduceOp::ALL.len())];
        let kind = match rng.below(4) {
            0 => Kind::AllReduce(op, [0, 1, 7, 64, 333][rng.below(5)]),
            1 => Kind::AllGather(parts),
            2 => Kind::ReduceScatter(op, parts),
            _ => {
                let cut = rng.below(3);
                let join = (cut + 1 + rng.below(2)) % 3;
                let shape = (0..3).map(|_| rng.below(3) + 1).collect();
                Kind::AllToAll { shape, cut, join, cut_lens: b, join_lens: c }
            }
        };
        Case { group, dtype, kind }
    };
    groups.into_iter().map(case).collect()
}

#[test]
fn sixty_four_ranks_on_any_machine() {
    let programs: Vec<_> = (0..64)
        .map(|rank| {
            let mut b = Builder::of(mesh(64), rank);
            let x = b.input("x", DType::F32, &[100]);
            b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), (0..64).collect(), &x, &x, 0);
            b.output("x", &x);
            b.program
        })
        .collect();
    let mut session = Session::launch(programs, LaunchOptions::default()).unwrap();
    session.write_f64("x", &[1.0; 100]).unwrap();
    session.step().unwrap();
    session.step().unwrap();
    assert_eq!(session.read_f64(&result("x")).unwrap(), [4096.0; 100]);
}
