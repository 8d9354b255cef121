//! Fused loops, compared with a naive evaluation of every instruction, element by element.

pub(crate) mod support;

use support::*;
use tpc_ir::op::Distribution;
use tpc_ir::program::*;
use tpc_ir::{DType, MapFn, ReduceOp, Scalar};

/// The memory of a naive evaluation: one list of values per buffer.
type Memory = Vec<Vec<f64>>;

fn address(view: &View, strides: &[isize], index: &[usize]) -> usize {
    let offset: isize = strides.iter().zip(index).map(|(s, &i)| s * i as isize).sum();
    (view.offset as isize + offset) as usize
}

fn indices(dims: &[usize]) -> Vec<Vec<usize>> {
    dims.iter()
        .fold(vec![vec![]], |all, &n| all.iter().flat_map(|p| (0..n).map(move |i| [&p[..], &[i]].concat())).collect())
}

#[allow(clippy::needless_range_loop)]
fn naive(l: &Loop, memory: &mut Memory) {
    for ins in &l.body {
        if let Instruction::Store { view, strides, accumulate: Some(op), .. } = ins {
            // Dimensions of stride 0 do not matter, even if they are empty.
            let dims: Vec<usize> = l.dims.iter().zip(strides).map(|(&n, &s)| if s == 0 { 1 } else { n }).collect();
            for i in indices(&dims) {
                memory[view.buffer.0 as usize][address(view, strides, &i)] = op.identity();
            }
        }
    }
    let (row, outer) = l.dims.split_last().map_or((1, &[][..]), |(r, o)| (*r, o));
    let full = |o: &[usize], t: usize| if l.dims.is_empty() { vec![] } else { [o, &[t]].concat() };
    for o in indices(outer) {
        let mut registers: Vec<Vec<f64>> = Vec::new();
        for ins in &l.body {
            let value = match ins {
                Instruction::Load { view, strides } => {
                    let rows = if strides.last() == Some(&0) { 1 } else { row };
                    let get = |t| memory[view.buffer.0 as usize][address(view, strides, &full(&o, t))];
                    let x: Vec<f64> = (0..rows).map(get).collect();
                    if rows == row { x } else { vec![x[0]; row] }
                }
                Instruction::Constant(s, d) => vec![d.round(s.as_f64()); row],
                Instruction::Given { .. } => panic!("not in loops"),
                Instruction::Index { dim, offset, dtype } => {
                    (0..row).map(|t| dtype.round((full(&o, t)[*dim] + offset) as f64)).collect()
                }
                Instruction::Random { distribution, stream, seed, index, dtype } => (0..row)
                    .map(|t| {
                        let i = full(&o, t);
                        let at: usize = index.iter().map(|&(d, o, s)| (i[d] + o) * s).sum();
                        let seed = registers[*seed].first().copied().unwrap_or(0.0);
                        dtype.round(tpc_ir::random::element(
                            *distribution,
                            tpc_ir::random::philox(seed as u64, *stream, at as u64),
                        ))
                    })
                    .collect(),
                Instruction::Map { f, args, dtype } => (0..row)
                    .map(|t| dtype.round(f.eval(&args.iter().map(|&a| registers[a][t]).collect::<Vec<_>>())))
                    .collect(),
                Instruction::ReduceRow { op, arg, dtype } => {
                    vec![dtype.round(registers[*arg].iter().fold(op.identity(), |a, &b| op.combine(a, b))); row.max(1)]
                }
                Instruction::Store { view, strides, arg, accumulate } => {
                    let once = strides.last() == Some(&0) && accumulate.is_none();
                    for t in 0..if once { 1 } else { row } {
                        let at = address(view, strides, &full(&o, t));
                        let x = registers[*arg][t];
                        let slot = &mut memory[view.buffer.0 as usize][at];
                        *slot = view.dtype.round(accumulate.map_or(x, |op| op.combine(*slot, x)));
                    }
                    vec![]
                }
            };
            registers.push(value);
        }
    }
}

/// Runs a loop on the device and naively on all buffers of the builder, and compares all of them.
fn check(mut b: Builder, l: Loop, data: &Memory, relative: f64) {
    let views: Vec<View> = (0..b.program.buffers.len())
        .map(|i| {
            let dtype = find_dtype(&l, i as u32);
            View::dense(BufferId(i as u32), dtype, vec![b.program.buffers[i].bytes / dtype.bytes()])
        })
        .collect();
    for (i, v) in views.iter().enumerate() {
        b.bind_input(&format!("b{i}"), v, v.shape.clone(), vec![0]);
    }
    b.step(Action::Loop(l.clone()));
    let mut memory: Memory =
        data.iter().zip(&views).map(|(d, v)| d.iter().map(|&x| v.dtype.round(x)).collect()).collect();
    let mut session = b.launch();
    // Twice: the first run must not affect the second.
    for _ in 0..2 {
        for (i, m) in memory.iter().enumerate() {
            session.write_f64(&format!("b{i}"), m).unwrap();
        }
        naive(&l, &mut memory);
        session.step().unwrap();
        for (i, m) in memory.iter().enumerate() {
            let got = session.read_input_f64(&format!("b{i}")).unwrap();
            for (j, (&x, &y)) in got.iter().zip(m).enumerate() {
                let same = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= relative * y.abs();
                assert!(same, "{l:?}\nbuffer {i} element {j}: {x} not {y}");
            }
        }
    }
}

fn find_dtype(l: &Loop, buffer: u32) -> DType {
    let view = l.body.iter().find_map(|i| match i {
        Instruction::Load { view, .. } | Instruction::Store { view, .. } if view.buffer.0 == buffer => Some(view.dtype),
        _ => None,
    });
    view.unwrap_or(DType::F32)
}

fn reduce(op: ReduceOp, arg: usize, dtype: DType) -> Instruction {
    Instruction::ReduceRow { op, arg, dtype }
}

fn constant(x: f64, dtype: DType) -> Instruction {
    Instruction::Constant(Scalar::of(dtype, x), dtype)
}

fn accumulate(view: &View, strides: &[isize], arg: usize, op: ReduceOp) -> Instruction {
    Instruction::Store { view: view.clone(), strides: strides.to_vec(), arg, accumulate: Some(op) }
}

#[test]
pub(crate) fn softmax_rows_of_all_lengths() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        for n in [1, 2, 31, 512, 1024, 1025, 3000] {
            let mut b = Builder::new();
            let x = b.buffer(dtype, &[3, n]);
            let y = b.buffer(dtype, &[3, n]);
            let body = vec![
                load(&x),
                reduce(ReduceOp::Max, 0, dtype),
                map(MapFn::Sub, &[0, 1], dtype),
                map(MapFn::Exp, &[2], dtype),
                reduce(ReduceOp::Sum, 3, dtype),
                map(MapFn::Div, &[3, 4], dtype),
                store(&y, 5),
            ];
            let data = vec![Lcg(n as u64).integers(3 * n), vec![0.0; 3 * n]];
            let relative = match dtype {
                DType::F32 => 2e-6,
                DType::F64 => 1e-13,
                _ => 0.02,
            };
            check(b, Loop { dims: vec![3, n], body }, &data, relative);
        }
    }
}

#[test]
pub(crate) fn norms_with_uniform_registers_and_broadcast_weights() {
    let (rows, n) = (5, 1500);
    let mut b = Builder::new();
    let x = b.buffer(DType::F32, &[rows, n]);
    let w = b.buffer(DType::F32, &[n]);
    let y = b.buffer(DType::F32, &[rows, n]);
    let saved = b.buffer(DType::F32, &[rows]);
    let body = vec![
        load(&x),
        map(MapFn::Mul, &[0, 0], DType::F32),
        reduce(ReduceOp::Sum, 1, DType::F32),
        constant(1.0 / n as f64, DType::F32),
        map(MapFn::Mul, &[2, 3], DType::F32),
        constant(1e-5, DType::F32),
        map(MapFn::Add, &[4, 5], DType::F32),
        map(MapFn::Rsqrt, &[6], DType::F32),
        Instruction::Load { view: w, strides: vec![0, 1] },
        map(MapFn::Mul, &[0, 7], DType::F32),
        map(MapFn::Mul, &[9, 8], DType::F32),
        store(&y, 10),
        Instruction::Store { view: saved, strides: vec![1, 0], arg: 7, accumulate: None },
    ];
    let mut rng = Lcg(3);
    let data = vec![rng.integers(rows * n), rng.integers(n), vec![0.0; rows * n], vec![0.0; rows]];
    check(b, Loop { dims: vec![rows, n], body }, &data, 1e-6);
}

#[test]
pub(crate) fn accumulating_stores_reduce_any_dimensions() {
    for op in ReduceOp::ALL {
        for dims in [vec![3, 4, 5], vec![1, 70, 2], vec![2, 0, 3], vec![2, 3, 0], vec![600, 3, 1], vec![2, 2, 1100]] {
            for kept in 0..8usize {
                let mut b = Builder::new();
                let x = b.buffer(DType::F64, &dims);
                let shape: Vec<usize> = (0..3).filter(|d| kept >> d & 1 == 1).map(|d| dims[d]).collect();
                let y = b.buffer(DType::F64, &shape);
                let mut strides = vec![0; 3];
                let mut next = y.strides.iter();
                for (d, s) in strides.iter_mut().enumerate() {
                    if kept >> d & 1 == 1 {
                        *s = *next.next().unwrap();
                    }
                }
                let n: usize = dims.iter().product();
                let signs: Vec<f64> =
                    Lcg(kept as u64).integers(n).iter().map(|x| if *x < 0.0 { -1.0 } else { 1.0 }).collect();
                let data = vec![if op == ReduceOp::Prod { signs } else { Lcg(9).integers(n) }, vec![7.0; y.elements()]];
                let body = vec![load(&x), accumulate(&y, &strides, 0, op)];
                check(b, Loop { dims: dims.clone(), body }, &data, 0.0);
            }
        }
    }
}

/// Sums so long that a device splits them, rows so long that it does not keep them, and sums in both directions that
/// share a sum over the row.
#[test]
pub(crate) fn long_sums_and_rows() {
    for (dims, strides, n) in [
        (vec![60_000], vec![0], 1),
        (vec![3, 40_001], vec![1, 0], 3),
        (vec![50_000, 3], vec![0, 1], 3),
        (vec![200, 7, 150], vec![0, 1, 0], 7),
        (vec![40, 6, 64], vec![0, 64, 1], 384),
    ] {
        for (dtype, op) in [(DType::F32, ReduceOp::Sum), (DType::I64, ReduceOp::Sum), (DType::F32, ReduceOp::Max)] {
            let mut b = Builder::new();
            let x = b.buffer(dtype, &dims);
            let y = b.buffer(dtype, &[n]);
            let data = vec![Lcg(6).integers(x.elements()), vec![7.0; n]];
            let body = vec![load(&x), map(MapFn::Add, &[0, 0], dtype), accumulate(&y, &strides, 1, op)];
            check(b, Loop { dims: dims.clone(), body }, &data, 0.0);
        }
    }
    for (rows, n) in [(2, 20_000), (3, 9001)] {
        let mut b = Builder::new();
        let x = b.buffer(DType::F32, &[rows, n]);
        let y = b.buffer(DType::F32, &[rows, n]);
        let (by_row, by_column) = (b.buffer(DType::F32, &[rows]), b.buffer(DType::F32, &[n]));
        let body = vec![
            load(&x),
            reduce(ReduceOp::Max, 0, DType::F32),
            map(MapFn::Sub, &[0, 1], DType::F32),
            store(&y, 2),
            reduce(ReduceOp::Min, 2, DType::F32),
            map(MapFn::Add, &[2, 4], DType::F32),
            accumulate(&by_row, &[1, 0], 5, ReduceOp::Sum),
            accumulate(&by_column, &[0, 1], 5, ReduceOp::Sum),
        ];
        let data = vec![Lcg(7).integers(rows * n), vec![0.0; rows * n], vec![1.0; rows], vec![1.0; n]];
        check(b, Loop { dims: vec![rows, n], body }, &data, 0.0);
    }
}

#[test]
pub(crate) fn accumulating_uniform_registers_count_every_iteration() {
    let mut b = Builder::new();
    let x = b.buffer(DType::F32, &[6]);
    let y = b.buffer(DType::F32, &[1]);
    let z = b.buffer(DType::F32, &[9]);
    let body = vec![
        Instruction::Load { view: x, strides: vec![1, 0] },
        accumulate(&y, &[0, 0], 0, ReduceOp::Sum),
        accumulate(&z, &[0, 1], 0, ReduceOp::Sum),
        reduce(ReduceOp::Sum, 0, DType::F32),
    ];
    check(b, Loop { dims: vec![6, 9], body }, &vec![Lcg(5).integers(6), vec![1.0], vec![1.0; 9]], 0.0);
}

#[test]
pub(crate) fn updates_in_place_and_overlapping_views() {
    // p -= lr * g, with the old value used after the store.
    let n = 2500;
    let mut b = Builder::new();
    let p = b.buffer(DType::F32, &[n]);
    let g = b.buffer(DType::F32, &[n]);
    let y = b.buffer(DType::F32, &[n]);
    let lr = b.buffer(DType::F32, &[]);
    let body = vec![
        load(&p),
        load(&g),
        Instruction::Load { view: lr, strides: vec![0] },
        map(MapFn::Mul, &[1, 2], DType::F32),
        map(MapFn::Sub, &[0, 3], DType::F32),
        store(&p, 4),
        map(MapFn::Add, &[0, 4], DType::F32),
        store(&y, 6),
    ];
    let mut rng = Lcg(8);
    let data = vec![rng.integers(n), rng.integers(n), vec![0.0; n], vec![2.0]];
    check(b, Loop { dims: vec![n], body }, &data, 0.0);
    // A row reversed in place, which only works on whole rows; and a load after a store.
    let mut b = Builder::new();
    let x = b.buffer(DType::F32, &[3, n]);
    let back = View { offset: n - 1, ..x.clone() };
    let body = vec![
        load(&x),
        Instruction::Store { view: back, strides: vec![n as isize, -1], arg: 0, accumulate: None },
        load(&x),
        map(MapFn::Add, &[0, 2], DType::F32),
        store(&x, 3),
    ];
    check(b, Loop { dims: vec![3, n], body }, &vec![rng.integers(3 * n)], 0.0);
}

#[test]
pub(crate) fn indices_masks_and_random_numbers_do_not_depend_on_merging() {
    let (m, n) = (70, 5);
    for dims in [vec![m, n], vec![1, m, 1, n], vec![m, n, 1]] {
        let mut b = Builder::new();
        let seed = b.buffer(DType::I64, &[]);
        let y = b.buffer(DType::F32, &[m, n]);
        let z = b.buffer(DType::I32, &[m, n]);
        let r = b.buffer(DType::F64, &[m, n]);
        let (dm, dn) = (dims.iter().position(|&d| d == m).unwrap(), dims.iter().position(|&d| d == n).unwrap());
        let mut strides = vec![0; dims.len()];
        (strides[dm], strides[dn]) = (n as isize, 1);
        let put = |view: &View, arg| Instruction::Store {
            view: view.clone(),
            strides: strides.clone(),
            arg,
            accumulate: None,
        };
        let normal = Distribution::Normal(Scalar::float(1.0), Scalar::float(2.0));
        let body = vec![
            Instruction::Load { view: seed, strides: vec![0; dims.len()] },
            Instruction::Index { dim: dm, offset: 3, dtype: DType::I32 },
            Instruction::Index { dim: dn, offset: 0, dtype: DType::I32 },
            map(MapFn::Ge, &[1, 2], DType::Bool),
            Instruction::Random {
                distribution: Distribution::Uniform(Scalar::float(-1.0), Scalar::float(1.0)),
                stream: 7,
                seed: 0,
                index: vec![(dm, 3, n), (dn, 0, 1)],
                dtype: DType::F32,
            },
            constant(-9.0, DType::F32),
            map(MapFn::Select, &[3, 4, 5], DType::F32),
            put(&y, 6),
            map(MapFn::Mul, &[1, 2], DType::I32),
            put(&z, 8),
            Instruction::Random {
                distribution: normal,
                stream: 8,
                seed: 0,
                index: vec![(dm, 0, n), (dn, 0, 1)],
                dtype: DType::F64,
            },
            put(&r, 10),
        ];
        let data = vec![vec![12345.0], vec![0.0; m * n], vec![0.0; m * n], vec![0.0; m * n]];
        check(b, Loop { dims, body }, &data, 0.0);
    }
}

#[test]
pub(crate) fn random_programs_over_random_strides() {
    let mut rng = Lcg(77);
    for round in 0..150 {
        let rank = rng.below(4);
        let sizes = [0, 1, 1, 2, 3, 7, 40, 1100];
        let mut dims: Vec<usize> = (0..rank).map(|_| sizes[rng.below(7)]).collect();
        if let Some(last) = dims.last_mut() {
            *last = sizes[rng.below(8)];
        }
        let dtype = [DType::F32, DType::F64, DType::I64][rng.below(3)];
        let mut b = Builder::new();
        let mut body = Vec::new();
        let mut data = Vec::new();
        let mut live = Vec::new();
        for _ in 0..1 + rng.below(3) {
            // A dense view of some of the dimensions, in any order.
            let mut order: Vec<usize> = (0..rank).filter(|_| rng.below(4) > 0).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i + 1));
            }
            let view = b.buffer(dtype, &order.iter().map(|&d| dims[d]).collect::<Vec<_>>());
            let mut strides = vec![0; rank];
            for (&d, &s) in order.iter().zip(&view.strides) {
                strides[d] = s;
            }
            data.push(rng.integers(view.elements()));
            live.push(body.len());
            // An empty view in a loop that runs would be read out of bounds.
            body.push(if view.elements() == 0 && !dims.contains(&0) {
                constant(1.0, dtype)
            } else {
                Instruction::Load { view, strides }
            });
        }
        for _ in 0..rng.below(6) {
            let pick = |rng: &mut Lcg| live[rng.below(live.len())];
            let (x, y) = (pick(&mut rng), pick(&mut rng));
            let f = [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Max, MapFn::Neg, MapFn::Min][rng.below(6)];
            let ins = if rng.below(4) == 0 {
                reduce([ReduceOp::Max, ReduceOp::Min][rng.below(2)], x, dtype)
            } else if f.arity() == Some(1) {
                map(f, &[x], dtype)
            } else {
                map(f, &[x, y], dtype)
            };
            live.push(body.len());
            body.push(ins);
        }
        for &arg in live.iter().rev().take(2) {
            let view = b.buffer(dtype, &dims);
            data.push(vec![0.0; view.elements()]);
            body.push(store(&view, arg));
        }
        println!("round {round}");
        check(b, Loop { dims, body }, &data, 1e-6);
    }
}

/// Loops without reductions, whose tiles span several dimensions: transposed, broadcast and spread-out operands of all element
/// types, indices, random numbers, and results that are spread out, accumulated or written over an operand.
#[test]
pub(crate) fn short_rows_share_tiles() {
    let mut rng = Lcg(78);
    for round in 0..400 {
        let sizes = [2, 2, 3, 4, 5, 8, 16, 33, 60, 127, 150];
        let rank = 2 + rng.below(4);
        let mut dims: Vec<usize> = (0..rank).map(|_| sizes[rng.below(sizes.len())]).collect();
        while dims.iter().product::<usize>() > 20_000 {
            let longest = (0..rank).max_by_key(|&d| dims[d]).unwrap();
            dims[longest] /= 2;
        }
        let mut b = Builder::new();
        let (mut body, mut data, mut live) = (Vec::new(), Vec::new(), Vec::new());
        // A view of these dimensions, in any order and direction, with or without a gap after each element.
        let mut spread = |b: &mut Builder, rng: &mut Lcg, kept: Vec<usize>, dtype| {
            let mut order = kept;
            for i in (1..order.len()).rev() {
                order.swap(i, rng.below(i + 1));
            }
            let mut shape: Vec<usize> = order.iter().map(|&d| dims[d]).collect();
            shape.push(1 + rng.below(2));
            let mut view = b.buffer(dtype, &shape);
            data.push(rng.integers(view.elements()));
            let mut strides = vec![0; rank];
            for (&d, &s) in order.iter().zip(&view.strides) {
                strides[d] = s;
                if rng.below(4) == 0 {
                    view.offset += (dims[d] - 1) * s as usize;
                    strides[d] = -s;
                }
            }
            (view, strides)
        };
        let mut loaded = Vec::new();
        for _ in 0..1 + rng.below(4) {
            let dtype = [DType::F32, DType::F32, DType::BF16, DType::F64, DType::I64, DType::U8][rng.below(6)];
            let kept = (0..rank).filter(|_| rng.below(4) > 0).collect();
            let (view, strides) = spread(&mut b, &mut rng, kept, dtype);
            live.push(body.len());
            loaded.push((view.clone(), strides.clone()));
            body.push(Instruction::Load { view, strides });
        }
        for _ in 0..rng.below(3) {
            let dim = rng.below(rank);
            live.push(body.len());
            body.push(Instruction::Index { dim, offset: rng.below(3), dtype: [DType::F32, DType::I64][rng.below(2)] });
        }
        let is_random = rng.below(4) == 0;
        if is_random {
            body.push(constant(7.0, DType::I64));
            let index = (0..rank).map(|d| (d, d, 1 + rng.below(50))).collect();
            let distribution = Distribution::Uniform(Scalar::float(0.0), Scalar::float(1.0));
            let seed = body.len() - 1;
            live.push(body.len());
            body.push(Instruction::Random { distribution, stream: 3, seed, index, dtype: DType::F32 });
        }
        for _ in 0..1 + rng.below(5) {
            let pick = |rng: &mut Lcg| live[rng.below(live.len())];
            let (x, y, z) = (pick(&mut rng), pick(&mut rng), pick(&mut rng));
            let ins = match rng.below(5) {
                0 => map(MapFn::Neg, &[x], DType::F32),
                1 => {
                    body.push(map(MapFn::Gt, &[x, y], DType::Bool));
                    map(MapFn::Select, &[body.len() - 1, z, x], DType::F32)
                }
                2 => map(MapFn::Max, &[x, y], DType::F32),
                _ => map(MapFn::Add, &[x, y], DType::F32),
            };
            live.push(body.len());
            body.push(ins);
        }
        let last = live[live.len() - 1];
        for &arg in live.iter().rev().take(2) {
            let dtype = [DType::F32, DType::F32, DType::BF16, DType::F64, DType::I64, DType::I32][rng.below(6)];
            let dtype = if is_random { DType::F32 } else { dtype };
            let (view, strides) = spread(&mut b, &mut rng, (0..rank).collect(), dtype);
            body.push(Instruction::Store { view, strides, arg, accumulate: None });
        }
        if rng.below(4) == 0 {
            let kept = (0..rank).filter(|_| rng.below(4) > 0).collect();
            let (view, strides) = spread(&mut b, &mut rng, kept, DType::F32);
            let op = if is_random { ReduceOp::Max } else { ReduceOp::Sum };
            body.push(accumulate(&view, &strides, last, op));
        }
        // An operand with an element for each index may be overwritten.
        if let Some((view, strides)) = loaded.into_iter().find(|(_, strides)| !strides.contains(&0)) {
            body.push(Instruction::Store { view, strides, arg: last, accumulate: None });
        }
        println!("round {round}: {dims:?}");
        check(b, Loop { dims: dims.clone(), body }, &data, 1e-6);
    }
}

/// A sum over a short row is one of its row, whatever else the loop runs along, and is refused where it is none.
#[test]
pub(crate) fn short_rows_that_are_summed_stay_rows() {
    let mut b = Builder::new();
    let (x, sums) = (b.buffer(DType::F32, &[4, 6, 30, 64]), b.buffer(DType::F32, &[4, 30]));
    let body = vec![load(&x), accumulate(&sums, &[30, 0, 1, 0], 0, ReduceOp::Sum)];
    let data = vec![(0..x.elements()).map(|i| (i % 7) as f64).collect(), vec![0.0; 120]];
    check(b, Loop { dims: vec![4, 6, 30, 64], body: body.clone() }, &data, 0.0);
    let mut b = Builder::new();
    let (x, sums) = (b.buffer(DType::F32, &[4, 6, 30, 64]), b.buffer(DType::F32, &[4, 30]));
    let once = Instruction::Store { view: sums, strides: vec![30, 0, 1, 0], arg: 0, accumulate: None };
    b.step(Action::Loop(Loop { dims: vec![4, 6, 30, 64], body: vec![load(&x), once] }));
    let error = tpc_runtime::Session::launch(vec![b.program], Default::default()).err().unwrap();
    assert!(error.to_string().contains("varies along the row"), "{error}");
}

#[test]
pub(crate) fn broken_loops_are_errors_when_loading() {
    type Case = (&'static str, fn(&View) -> Vec<Instruction>);
    let cases: Vec<Case> = vec![
        ("reaches elements", |x| vec![Instruction::Load { view: x.clone(), strides: vec![3] }]),
        ("uses r5", |x| vec![load(x), map(MapFn::Neg, &[5], DType::F32)]),
        ("does not take 1 operands", |x| vec![load(x), map(MapFn::Sub, &[0], DType::F32)]),
        ("varies along the row", |x| {
            vec![load(x), Instruction::Store { view: x.clone(), strides: vec![0], arg: 0, accumulate: None }]
        }),
    ];
    for (text, body) in cases {
        let mut b = Builder::new();
        let x = b.buffer(DType::F32, &[8]);
        b.step(Action::Loop(Loop { dims: vec![8], body: body(&x) }));
        let error = tpc_runtime::Session::launch(vec![b.program], Default::default()).err().unwrap();
        assert!(error.to_string().contains(text), "{error}");
    }
}
