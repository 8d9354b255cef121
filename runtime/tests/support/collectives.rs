//! Collectives of every kind and type on groups of every size, compared with naive results.

#[path = "mod.rs"]
pub(crate) mod support;

use support::*;
use tpc_ir::program::*;
use tpc_ir::{AxisId, DType, Mesh, ReduceOp};

fn mesh(ranks: usize) -> Mesh {
    Mesh::new([("tp", ranks)]).unwrap()
}

fn data(rank: usize, n: usize, dtype: DType) -> Vec<f64> {
    let mut rng = Lcg(rank as u64 + 1);
    let small = if dtype == DType::Bool { 2 } else { 4 };
    (0..n).map(|_| rng.below(small) as f64 + if dtype == DType::Bool { 0.0 } else { 1.0 }).collect()
}

/// Runs one collective in its group on every rank, twice, and returns what each rank received.
fn run(
    mesh: Mesh,
    groups: &dyn Fn(usize) -> Vec<usize>,
    dtype: DType,
    make: &dyn Fn(usize) -> (CollectiveKind, usize, usize),
) -> Vec<Vec<f64>> {
    let ranks = mesh.ranks();
    let mut programs = Vec::new();
    for rank in 0..ranks {
        let mut b = Builder::of(mesh.clone(), rank);
        let group = groups(rank);
        let (kind, from, to) = make(group.iter().position(|&r| r == rank).unwrap());
        let x = b.buffer(dtype, &[from]);
        b.bind_input("x", &x, vec![1 << 20], vec![0]);
        let y = b.buffer(dtype, &[to]);
        b.bind_output("y", &y, vec![1 << 20], vec![0]);
        b.collective(kind, group, &x, &y, 1);
        programs.push(b.program);
    }
    let mut session = Recorded::launch(programs);
    for rank in 0..ranks {
        let write = |request: &tpc_runtime::BoxRequest, bytes: &mut [u8]| {
            bytes.copy_from_slice(&tpc_runtime::element::encode(dtype, &data(rank, request.elements(), dtype)));
            Ok(())
        };
        session.write_box("x", rank, &mut { write }).unwrap();
    }
    session.step().unwrap();
    session.step().unwrap();
    assert_eq!(session.collectives(0)[0].count, 2);
    (0..ranks).map(|r| tpc_runtime::element::decode(dtype, &session.read_rank(&result("y"), r).unwrap())).collect()
}

fn combine(op: ReduceOp, dtype: DType, terms: &[Vec<f64>]) -> Vec<f64> {
    (0..terms[0].len())
        .map(|i| {
            let wide = terms[1..].iter().fold(terms[0][i], |a, t| op.combine(a, t[i]));
            dtype.round(wide)
        })
        .collect()
}

#[test]
pub(crate) fn all_reduce() {
    for ranks in 1..=5 {
        for dtype in DType::ALL {
            for op in ReduceOp::ALL {
                for n in [0, 1, 63, 1000] {
                    let group: Vec<usize> = (0..ranks).collect();
                    let got = run(mesh(ranks), &|_| group.clone(), dtype, &|_| (CollectiveKind::AllReduce(op), n, n));
                    let terms: Vec<_> = (0..ranks).map(|r| data(r, n, dtype)).collect();
                    let want = combine(op, dtype, &terms);
                    got.iter().for_each(|g| assert_eq!(*g, want, "{ranks} {dtype} {op:?} {n}"));
                }
            }
        }
    }
}

#[test]
pub(crate) fn all_gather_and_reduce_scatter_of_uneven_pieces() {
    for ranks in 1..=5 {
        for dtype in DType::ALL {
            for (lens, outer, inner) in
                [(vec![3; ranks], 2, 5), ((0..ranks).collect(), 3, 1), ((0..ranks).rev().collect(), 1, 40)]
            {
                let lens: Vec<usize> = lens;
                let total: usize = lens.iter().sum();
                let group: Vec<usize> = (0..ranks).collect();
                let got = run(mesh(ranks), &|_| group.clone(), dtype, &|p| {
                    let kind = CollectiveKind::AllGather { parts: vec![Part { outer, lens: lens.clone(), inner }] };
                    (kind, outer * lens[p] * inner, outer * total * inner)
                });
                let mut want: Vec<f64> = Vec::new();
                for o in 0..outer {
                    for (r, &len) in lens.iter().enumerate() {
                        want.extend(&data(r, outer * len * inner, dtype)[o * len * inner..(o + 1) * len * inner]);
                    }
                }
                got.iter().for_each(|g| assert_eq!(*g, want));
                let got = run(mesh(ranks), &|_| group.clone(), dtype, &|p| {
                    let kind = CollectiveKind::ReduceScatter {
                        op: ReduceOp::Sum,
                        parts: vec![Part { outer, lens: lens.clone(), inner }],
                    };
                    (kind, outer * total * inner, outer * lens[p] * inner)
                });
                let terms: Vec<_> = (0..ranks).map(|r| data(r, outer * total * inner, dtype)).collect();
                let sum = combine(ReduceOp::Sum, dtype, &terms);
                for (r, g) in got.iter().enumerate() {
                    let before: usize = lens[..r].iter().sum();
                    let mut want: Vec<f64> = Vec::new();
                    for o in 0..outer {
                        want.extend(&sum[(o * total + before) * inner..(o * total + before + lens[r]) * inner]);
                    }
                    assert_eq!(*g, want);
                }
            }
        }
    }
}

/// Three values in one collective are gathered and scattered like each alone, with uneven and empty shards.
#[test]
pub(crate) fn several_values_in_one_collective() {
    for ranks in 1..=4usize {
        let lens: [Vec<usize>; 3] = [vec![2; ranks], (0..ranks).collect(), (0..ranks).rev().collect()];
        let part = |i: usize| Part { outer: i + 1, lens: lens[i].clone(), inner: [5, 1, 3][i] };
        let parts: Vec<Part> = (0..3).map(part).collect();
        let group: Vec<usize> = (0..ranks).collect();
        let shards = |r: usize| parts.iter().map(|p| p.shard(r)).sum::<usize>();
        let whole: usize = parts.iter().map(Part::whole).sum();
        for dtype in [DType::F32, DType::BF16, DType::I32] {
            let gathered = run(mesh(ranks), &|_| group.clone(), dtype, &|p| {
                (CollectiveKind::AllGather { parts: parts.clone() }, shards(p), whole)
            });
            let scattered = run(mesh(ranks), &|_| group.clone(), dtype, &|p| {
                (CollectiveKind::ReduceScatter { op: ReduceOp::Sum, parts: parts.clone() }, whole, shards(p))
            });
            let terms: Vec<_> = (0..ranks).map(|r| data(r, whole, dtype)).collect();
            let sum = combine(ReduceOp::Sum, dtype, &terms);
            let mut joined: Vec<f64> = Vec::new();
            for (i, p) in parts.iter().enumerate() {
                for o in 0..p.outer {
                    for r in 0..ranks {
                        let before: usize = parts[..i].iter().map(|q| q.shard(r)).sum();
                        let run = p.lens[r] * p.inner;
                        joined.extend(&data(r, shards(r), dtype)[before + o * run..before + (o + 1) * run]);
                    }
                }
            }
            gathered.iter().for_each(|g| assert_eq!(*g, joined, "{ranks} {dtype}"));
            for (r, g) in scattered.iter().enumerate() {
                let (mut kept, mut start) = (Vec::<f64>::new(), 0);
                for p in &parts {
                    let (row, before) = (p.lens.iter().sum::<usize>() * p.inner, p.lens[..r].iter().sum::<usize>());
                    for o in 0..p.outer {
                        let from = start + o * row + before * p.inner;
                        kept.extend(&sum[from..from + p.lens[r] * p.inner]);
                    }
                    start += p.whole();
                }
                assert_eq!(*g, kept, "{ranks} {dtype}");
            }
        }
    }
}

#[test]
pub(crate) fn all_to_all_of_uneven_pieces() {
    for ranks in 1..=5usize {
        for (cut, join) in [(0, 1), (1, 0), (0, 2), (2, 1), (1, 3), (3, 0)] {
            for dtype in [DType::F32, DType::BF16, DType::Bool, DType::I64] {
                let cut_lens: Vec<usize> = (0..ranks).map(|r| (r + 1) % 3 + 1).collect();
                let join_lens: Vec<usize> = (0..ranks).map(|r| r % 3).collect();
                let (cut_total, join_total): (usize, usize) = (cut_lens.iter().sum(), join_lens.iter().sum());
                let local = |p: usize| {
                    let mut shape = vec![2, 3, 2, 2];
                    (shape[cut], shape[join]) = (cut_total, join_lens[p]);
                    shape
                };
                let result_shape = |p: usize| {
                    let mut shape = local(p);
                    (shape[cut], shape[join]) = (cut_lens[p], join_total);
                    shape
                };
                let group: Vec<usize> = (0..ranks).collect();
                let got = run(mesh(ranks), &|_| group.clone(), dtype, &|p| {
                    let kind = CollectiveKind::AllToAll {
                        shape: local(p),
                        cut,
                        join,
                        cut_lens: cut_lens.clone(),
                        join_lens: join_lens.clone(),
                    };
                    (kind, local(p).iter().product(), result_shape(p).iter().product())
                });
                for (p, g) in got.iter().enumerate() {
                    let shape = result_shape(p);
                    for (flat, &x) in g.iter().enumerate() {
                        let mut index = [0; 4];
                        let mut rest = flat;
                        for d in (0..4).rev() {
                            index[d] = rest % shape[d];
                            rest /= shape[d];
                        }
                        let mut q = 0;
                        while index[join] >= join_lens[q] {
                            index[join] -= join_lens[q];
                            q += 1;
                        }
                        index[cut] += cut_lens[..p].iter().sum::<usize>();
                        let from = local(q);
                        let at = index.iter().zip(&from).fold(0, |a, (i, n)| a * n + i);
                        assert_eq!(x, data(q, from.iter().product(), dtype)[at], "rank {p} element {flat}");
                    }
                }
            }
        }
    }
}

#[test]
pub(crate) fn groups_of_a_mesh_work_side_by_side_and_in_their_order() {
    let mesh = Mesh::new([("dp", 2), ("tp", 2)]).unwrap();
    for axes in [vec![AxisId(0)], vec![AxisId(1)], vec![AxisId(1), AxisId(0)]] {
        let m = mesh.clone();
        let n = axes.iter().map(|&a| mesh.size(a)).product::<usize>();
        let got = run(mesh.clone(), &|r| m.group(r, &axes), DType::F32, &|_| {
            (CollectiveKind::AllGather { parts: vec![Part { outer: 1, lens: vec![4; n], inner: 1 }] }, 4, 4 * n)
        });
        for (r, g) in got.iter().enumerate() {
            let want: Vec<f64> = mesh.group(r, &axes).iter().flat_map(|&q| data(q, 4, DType::F32)).collect();
            assert_eq!(*g, want);
        }
    }
}

#[test]
pub(crate) fn in_place_and_overlapping_collectives() {
    let n = 5000;
    let programs = (0..3)
        .map(|rank| {
            let mut b = Builder::of(mesh(3), rank);
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
    let mut session = Recorded::launch(programs);
    session.write_f64("x", &vec![1.0; n]).unwrap();
    session.write_f64("y", &vec![2.0; n]).unwrap();
    for _ in 0..4 {
        session.step().unwrap();
    }
    assert_eq!(session.read_f64(&result("x")).unwrap(), vec![81.0; n]);
    assert_eq!(session.read_f64(&result("y")).unwrap(), vec![162.0; n]);
    let counts = session.collectives(2);
    assert_eq!((counts.len(), counts[0].count, counts[0].name), (1, 8, "all_reduce"));
    let predicted = 8.0 * 2.0 * 2.0 / 3.0 * (n * 4) as f64;
    assert!((session.wire_bytes(2) / predicted - 1.0).abs() < 1e-12);
    session.reset_counters();
    assert!(session.collectives(2).is_empty());
}

#[test]
pub(crate) fn sums_are_equal_bit_by_bit_on_all_ranks_and_every_time() {
    let n = 3000;
    let values: Vec<f64> = (0..n).map(|i| (f64::from(i) * 0.7).sin()).collect();
    let programs = (0..5)
        .map(|rank| {
            let mut b = Builder::of(mesh(5), rank);
            let x = b.input("x", DType::F32, &[n as usize]);
            let y = b.buffer(DType::F32, &[n as usize]);
            let scale = Instruction::Constant(tpc_ir::Scalar::float(1.0 / (rank as f64 + 1.3)), DType::F32);
            let body = vec![load(&x), scale, map(tpc_ir::MapFn::Mul, &[0, 1], DType::F32), store(&y, 2)];
            b.step(Action::Loop(Loop { dims: vec![n as usize], body }));
            b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), (0..5).collect(), &y, &y, 0);
            b.output("y", &y);
            b.program
        })
        .collect();
    let mut session = Recorded::launch(programs);
    session.write_f64("x", &values).unwrap();
    session.step().unwrap();
    let first = session.read_rank(&result("y"), 0).unwrap();
    for _ in 0..20 {
        session.step().unwrap();
        (0..5).for_each(|r| assert_eq!(session.read_rank(&result("y"), r).unwrap(), first));
    }
}

/// A chain of loops and collectives, each of which needs the previous one and overwrites what the previous one has
/// read: concurrent work on a device must wait for the right events.
#[test]
pub(crate) fn loops_and_collectives_wait_for_each_other() {
    let (ranks, n, rounds) = (3, 700, 4);
    let group: Vec<usize> = (0..ranks).collect();
    let mut programs = Vec::new();
    for rank in 0..ranks {
        let mut b = Builder::of(mesh(ranks), rank);
        let x = b.input("x", DType::F64, &[n]);
        let (y, z) = (b.buffer(DType::F64, &[n]), b.buffer(DType::F64, &[n]));
        let scale = |from: &View, by: f64, to: &View| {
            let constant = Instruction::Constant(tpc_ir::Scalar::float(by), DType::F64);
            let product = map(tpc_ir::MapFn::Mul, &[0, 1], DType::F64);
            let put = Instruction::Store { view: to.clone(), strides: vec![1], arg: 2, accumulate: None };
            Action::Loop(Loop { dims: vec![n], body: vec![load(from), constant, product, put] })
        };
        for round in 0..rounds {
            b.step(scale(&x, rank as f64 + 1.0, &y));
            b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), group.clone(), &y, &z, round);
            b.step(scale(&z, 0.5, &x));
        }
        b.bind_output("x", &x, vec![n], vec![0]);
        programs.push(b.program);
    }
    let mut session = Recorded::launch(programs);
    let values = Lcg(4).integers(n);
    session.write_f64("x", &values).unwrap();
    session.step().unwrap();
    // 1 + 2 + 3, halved, in every round.
    let want: Vec<f64> = values.iter().map(|v| v * 3f64.powi(rounds as i32)).collect();
    assert_eq!(session.read_f64(&result("x")).unwrap(), want);
}

#[test]
pub(crate) fn sixty_four_ranks_on_any_machine() {
    let programs = (0..64)
        .map(|rank| {
            let mut b = Builder::of(mesh(64), rank);
            let x = b.input("x", DType::F32, &[100]);
            b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), (0..64).collect(), &x, &x, 0);
            b.output("x", &x);
            b.program
        })
        .collect();
    let mut session = Recorded::launch(programs);
    session.write_f64("x", &[1.0; 100]).unwrap();
    session.step().unwrap();
    session.step().unwrap();
    assert_eq!(session.read_f64(&result("x")).unwrap(), [4096.0; 100]);
}
