//! Measures the kernels on this machine: `cargo run --release -p tpc-runtime --example kernels`. With `attention`,
//! `epilogues` or `rows` after `--`, only those are measured.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;
use support::*;
use tpc_ir::attention::{Attention, Backward, Operand};
use tpc_ir::program::*;
use tpc_ir::{DType, MapFn, Mesh, ReduceOp, Scalar};
use tpc_runtime::{LaunchOptions, Session};

const F: DType = DType::F32;

/// Best time of a step in nanoseconds. The action is repeated within one step, so the time to wake the ranks does not
/// count.
fn time(programs: Vec<RankProgram>, repeats: usize) -> f64 {
    let mut session = Session::launch(programs, LaunchOptions::default()).unwrap();
    let inputs: Vec<(String, usize)> =
        session.program(0).inputs.iter().map(|i| (i.name.clone(), i.binding.global.iter().product())).collect();
    for (name, n) in inputs {
        let values: Vec<f64> = (0..n).map(|i| (i as f64 * 0.37).sin()).collect();
        session.write_f64(&name, &values).unwrap();
    }
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.5 {
        best = best.min(session.step().unwrap().seconds);
    }
    best * 1e9 / repeats as f64
}

fn contract(label: &str, m: usize, n: usize, k: usize, transposed: (bool, bool)) {
    let repeats = (200_000_000 / (m * n * k)).max(1);
    let mut b = Builder::new();
    let left = b.input("left", F, &[m, k]);
    let right = b.input("right", F, &[k, n]);
    let out = b.buffer(F, &[m, n]);
    let dim = |size, left, right, out| ContractDim { size, left, right, out };
    let (ml, kl) = if transposed.0 { (1, m as isize) } else { (k as isize, 1) };
    let (kr, nr) = if transposed.1 { (1, k as isize) } else { (n as isize, 1) };
    for _ in 0..repeats {
        b.step(Action::Contract(Contract {
            left: left.clone(),
            right: right.clone(),
            out: out.clone(),
            batch: vec![],
            m: vec![dim(m, ml, 0, n as isize)],
            n: vec![dim(n, 0, nr, 1)],
            k: vec![dim(k, kl, kr, 0)],
            scale: 1.0,
            epilogue: Vec::new(),
        }));
    }
    let ours = 2.0 * (m * n * k) as f64 / time(vec![b.program], repeats);
    let (x, y, mut z) = (vec![0.5f32; m * k], vec![0.5f32; k * n], vec![0f32; m * n]);
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.4 {
        let t = Instant::now();
        for _ in 0..repeats {
            // SAFETY: the vectors have the sizes and strides that are passed.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    z.as_mut_ptr(),
                    1,
                    n as isize,
                    false,
                    x.as_ptr(),
                    kl,
                    ml,
                    y.as_ptr(),
                    nr,
                    kr,
                    0f32,
                    1f32,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
        best = best.min(t.elapsed().as_secs_f64() / repeats as f64);
    }
    let theirs = 2.0 * (m * n * k) as f64 / best * 1e-9;
    println!("contract {label:<28} {m:>5} x {n:>5} x {k:>5}  {ours:6.1} GFLOP/s (crate gemm: {theirs:6.1})");
}

/// A few rows times matrices that do not fit into any cache together, compared with the sum of the matrices: measures the
/// read bandwidth. The columns of a `table` are dense, as in a head that is tied to an embedding; otherwise the rows are.
fn few_rows(m: usize, [k, n]: [usize; 2], table: bool, dtype: DType) {
    let count = (1usize << 26).div_ceil(k * n);
    let mut b = Builder::new();
    let left = b.input("left", F, &[m, k]);
    let dim = |size, left, right, out| ContractDim { size, left, right, out };
    let [of_k, of_n] = if table { [1, k as isize] } else { [n as isize, 1] };
    for i in 0..count {
        let right = b.input(&format!("right {i}"), dtype, &if table { [n, k] } else { [k, n] });
        let out = b.buffer(F, &[m, n]);
        b.step(Action::Contract(Contract {
            left: left.clone(),
            right,
            out,
            batch: vec![],
            m: vec![dim(m, k as isize, 0, n as isize)],
            n: vec![dim(n, 0, of_n, 1)],
            k: vec![dim(k, 1, of_k, 0)],
            scale: 1.0,
            epilogue: Vec::new(),
        }));
    }
    let bytes = (count * n * k * dtype.bytes()) as f64;
    let ours = bytes / time(vec![b.program], 1);
    let values = vec![1u64; count * n * k * dtype.bytes() / 8];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        std::hint::black_box(values.iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
        best = best.min(start.elapsed().as_secs_f64());
    }
    let kind = if table { "table" } else { "matrix" };
    println!("{m} rows x {kind} {k} x {n} {dtype}  {ours:6.1} GB/s (a sum: {:6.1})", bytes / best * 1e-9);
}

fn fused(
    label: &str,
    dims: &[usize],
    elements: usize,
    repeats: usize,
    make: impl Fn(&mut Builder) -> Vec<Instruction>,
) {
    let mut b = Builder::new();
    let body = make(&mut b);
    for _ in 0..repeats {
        b.step(Action::Loop(Loop { dims: dims.to_vec(), body: body.clone() }));
    }
    println!("loop {label:<32} {:7.3} ns per element", time(vec![b.program], repeats) / elements as f64);
}

fn constant(x: f64) -> Instruction {
    Instruction::Constant(Scalar::float(x), F)
}

fn unary(f: MapFn, n: usize) {
    fused(&f.name(), &[n], n, 200, |b| {
        let (x, y) = (b.input("x", F, &[n]), b.buffer(F, &[n]));
        vec![load(&x), map(f, &[0], F), store(&y, 1)]
    });
}

/// Attention of 8 heads of 64, in blocks of this many rows. The work is counted for elements that the mask leaves
/// visible: four or ten operations per pair of row and column and element of a head.
fn attention(seq: usize, causal: bool, backward: bool, block: usize) {
    let (heads, d) = (8, 64);
    let mut b = Builder::new();
    let operand =
        |view: View, dims: [usize; 3]| Operand { view, dims: dims.map(|s| s as isize).to_vec(), own: vec![1] };
    let rows = |view| operand(view, [d, heads * d, 0]);
    let columns = |view| operand(view, [d, 0, heads * d]);
    let shape = [seq, heads, d];
    let [query, key, value, out, grad_out] = ["q", "k", "v", "o", "g"].map(|name| b.input(name, F, &shape));
    let [grad_query, grad_key, grad_value] = [0; 3].map(|_| b.buffer(F, &shape));
    let [max, sum, delta] = [0; 3].map(|_| b.buffer(F, &[heads, seq]));
    let (tile, sums) = (b.buffer(F, &[2, block, seq]), b.buffer(F, &[0]));
    let given = |index| Instruction::Given { index, dtype: F };
    let index = |dim| Instruction::Index { dim, offset: 0, dtype: DType::I64 };
    let hidden = |value: usize, x: f64| match causal {
        false => vec![],
        true => vec![
            index(2),
            index(1),
            map(MapFn::Gt, &[value + 1, value + 2], DType::Bool),
            constant(x),
            map(MapFn::Select, &[value + 3, value + 4, value], F),
        ],
    };
    let scaled = vec![given(0), constant(0.125), map(MapFn::Mul, &[0, 1], F)];
    let forward = Attention {
        dims: vec![heads, seq, seq],
        inner: vec![d],
        width: vec![d],
        query: rows(query),
        key: columns(key),
        value: columns(value),
        out: rows(out),
        max,
        sum,
        keep: true,
        score: [scaled.clone(), hidden(2, -1e30)].concat(),
        weight: vec![],
        tile,
        backward: None,
    };
    let back = Backward {
        grad_out: rows(grad_out),
        gradient: [scaled, hidden(2, 0.0)].concat(),
        grad_query: Some(rows(grad_query)),
        grad_key: Some(columns(grad_key)),
        grad_value: Some(columns(grad_value)),
        delta,
        sums,
    };
    b.step(Action::Attention(Box::new(forward.clone())));
    if backward {
        b.step(Action::Attention(Box::new(Attention { backward: Some(back), ..forward })));
    }
    let pairs = heads * if causal { seq * (seq + 1) / 2 } else { seq * seq };
    let operations = pairs * d * if backward { 14 } else { 4 };
    let kind = if causal { "causal" } else { "full" };
    let which = if backward { "forward and backward" } else { "forward" };
    let rate = operations as f64 / time(vec![b.program], 1);
    println!("attention {kind:<6} {which:<20} of {seq:>5}, blocks of {block:>3}: {rate:6.1} GFLOP/s");
}

/// An epilogue of a product, in the example of a layer's types and operands.
#[derive(Clone, Copy, Debug)]
enum Epilogue {
    Bias,
    Residual,
    Update,
    /// gelu(product + bias), which keeps the sum.
    Gelu,
    /// silu(other) times the product.
    Silu,
}

fn gelu(x: usize) -> Vec<Instruction> {
    let at = |i: usize| x + 1 + i;
    vec![
        map(MapFn::Mul, &[x, x], F),
        map(MapFn::Mul, &[at(0), x], F),
        constant(0.044715),
        map(MapFn::Mul, &[at(1), at(2)], F),
        map(MapFn::Add, &[x, at(3)], F),
        constant((2.0 / std::f64::consts::PI).sqrt()),
        map(MapFn::Mul, &[at(4), at(5)], F),
        map(MapFn::Tanh, &[at(6)], F),
        constant(1.0),
        map(MapFn::Add, &[at(7), at(8)], F),
        constant(0.5),
        map(MapFn::Mul, &[x, at(10)], F),
        map(MapFn::Mul, &[at(9), at(11)], F),
    ]
}

/// The product alone, the product followed by a loop, and the product with the epilogue. Each is the median of rounds
/// that run all three, because other jobs use the machine.
fn epilogue(what: Epilogue, dtype: DType, m: usize, n: usize, k: usize) {
    let repeats = (400_000_000 / (m * n * k)).max(1);
    let program = |loop_behind: bool, with: bool| {
        let mut b = Builder::new();
        let [left, right, bias, other, raw, kept, out] =
            [vec![m, k], vec![k, n], vec![n], vec![m, n], vec![m, n], vec![m, n], vec![m, n]]
                .into_iter()
                .enumerate()
                .map(|(i, shape)| b.input(&format!("b{i}"), dtype, &shape))
                .collect::<Vec<View>>()
                .try_into()
                .unwrap();
        let given = Instruction::Given { index: 0, dtype: F };
        let bias = Instruction::Load { view: bias, strides: vec![0, 1] };
        let add = map(MapFn::Add, &[0, 1], F);
        let mut body = match what {
            Epilogue::Bias => vec![given, bias, add],
            Epilogue::Residual => vec![given, load(&other), add],
            Epilogue::Update => vec![given, load(&out), add],
            Epilogue::Gelu => {
                let mut body = vec![given, bias, add];
                body.extend(gelu(2));
                body.push(store(&kept, 2));
                // The result stays last.
                body.push(map(MapFn::Identity, &[15], F));
                body
            }
            Epilogue::Silu => {
                vec![
                    load(&other),
                    map(MapFn::Sigmoid, &[0], F),
                    map(MapFn::Mul, &[0, 1], F),
                    given,
                    map(MapFn::Mul, &[2, 3], F),
                ]
            }
        };
        body.push(store(&out, body.len() - 1));
        let dim = |size, left, right, out| ContractDim { size, left, right, out };
        let contract = Contract {
            left,
            right,
            out,
            batch: vec![],
            m: vec![dim(m, k as isize, 0, n as isize)],
            n: vec![dim(n, 0, 1, 1)],
            k: vec![dim(k, 1, n as isize, 0)],
            scale: 1.0,
            epilogue: body,
        };
        for _ in 0..repeats {
            if with {
                b.step(Action::Contract(contract.clone()));
                continue;
            }
            b.step(Action::Contract(contract.alone(raw.clone())));
            if loop_behind {
                b.step(Action::Loop(contract.epilogue_loop(&raw)));
            }
        }
        let mut session = Session::launch(vec![b.program], LaunchOptions::default()).unwrap();
        for (i, elements) in [m * k, k * n, n, m * n].into_iter().enumerate() {
            let values: Vec<f64> = (0..elements).map(|i| (i as f64 * 0.37).sin()).collect();
            session.write_f64(&format!("b{i}"), &values).unwrap();
        }
        session
    };
    let mut sessions = [program(false, false), program(true, false), program(false, true)];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..25 {
        for (session, times) in sessions.iter_mut().zip(&mut times) {
            times.push(session.step().unwrap().seconds / repeats as f64);
        }
    }
    let median = |mut t: Vec<f64>| {
        t.sort_by(f64::total_cmp);
        t[t.len() / 2]
    };
    // Other jobs slow all three down equally.
    let ratio = median(times[2].iter().zip(&times[1]).map(|(with, behind)| with / behind).collect());
    let [alone, behind, with] = times.map(|t| median(t) * 1e6);
    println!(
        "epilogue {:<9}{dtype:<4} {m:>5} x {n:>5} x {k:>5}  product {alone:8.1} us, loop after {behind:8.1}, epilogue {with:8.1}, of the loop's time {ratio:5.3}",
        format!("{what:?}").to_lowercase()
    );
}

fn epilogues() {
    for what in [Epilogue::Gelu, Epilogue::Bias, Epilogue::Residual, Epilogue::Silu, Epilogue::Update] {
        for (m, n, k) in [(2048, 2048, 512), (2048, 512, 512), (2048, 512, 2048), (128, 512, 64), (1, 2048, 512)] {
            epilogue(what, F, m, n, k);
        }
        epilogue(what, DType::BF16, 2048, 2048, 512);
    }
}

fn main() {
    if std::env::args().any(|a| a == "epilogues") {
        return epilogues();
    }
    if std::env::args().any(|a| a == "rows") {
        for m in [1, 2, 4, 5, 8] {
            few_rows(m, [16384, 4096], false, F);
        }
        few_rows(1, [16384, 4096], false, DType::BF16);
        // A small model that writes one token after the other.
        for (size, table) in [([768, 768], false), ([768, 2048], false), ([2048, 768], false), ([768, 32000], true)] {
            few_rows(1, size, table, F);
        }
        return few_rows(1, [768, 32000], true, DType::BF16);
    }
    if std::env::args().any(|a| a == "attention") {
        for (seq, blocks) in [(256, [32, 64, 128]), (1024, [32, 64, 128]), (4096, [16, 32, 64])] {
            for block in blocks {
                attention(seq, false, false, block);
                attention(seq, true, false, block);
                attention(seq, true, true, block);
            }
        }
        return;
    }
    for n in [64, 128, 256, 512, 1024] {
        contract("square", n, n, n, (false, false));
    }
    contract("left transposed", 512, 512, 512, (true, false));
    contract("right transposed", 512, 512, 512, (false, true));
    contract("attention scores", 128, 128, 64, (false, true));
    contract("attention values", 128, 64, 128, (false, false));
    contract("one row", 1, 2048, 512, (false, false));
    contract("one column", 2048, 1, 512, (false, false));
    contract("few rows", 8, 2048, 512, (false, false));
    contract("wide", 256, 4096, 512, (false, false));
    contract("deep", 256, 256, 4096, (true, false));
    // A layer's product, the gradient of its input, and the gradient of its weight.
    for (tokens, width, inner) in [(512, 1024, 4096), (1024, 512, 2048), (1024, 512, 8192)] {
        contract("layer", tokens, inner, width, (false, false));
        contract("layer, gradient of input", tokens, width, inner, (false, true));
        contract("layer, gradient of weight", width, inner, tokens, (true, false));
    }
    let n = 1 << 14;
    for f in [MapFn::Neg, MapFn::Exp, MapFn::Log, MapFn::Tanh, MapFn::Erf, MapFn::Sigmoid, MapFn::Sqrt, MapFn::Sin] {
        unary(f, n);
    }
    fused("gelu erf", &[n], n, 200, |b| {
        let (x, y) = (b.input("x", F, &[n]), b.buffer(F, &[n]));
        vec![
            load(&x),
            constant(std::f64::consts::FRAC_1_SQRT_2),
            map(MapFn::Mul, &[0, 1], F),
            map(MapFn::Erf, &[2], F),
            constant(0.5),
            map(MapFn::Mul, &[0, 4], F),
            map(MapFn::Mul, &[5, 3], F),
            map(MapFn::Add, &[6, 5], F),
            store(&y, 7),
        ]
    });
    let (rows, n) = (128, 512);
    fused("softmax rows of 512", &[rows, n], rows * n, 50, |b| {
        let (x, y) = (b.input("x", F, &[rows, n]), b.buffer(F, &[rows, n]));
        vec![
            load(&x),
            Instruction::ReduceRow { op: ReduceOp::Max, arg: 0, dtype: F },
            map(MapFn::Sub, &[0, 1], F),
            map(MapFn::Exp, &[2], F),
            Instruction::ReduceRow { op: ReduceOp::Sum, arg: 3, dtype: F },
            map(MapFn::Div, &[3, 4], F),
            store(&y, 5),
        ]
    });
    fused("rms norm rows of 512", &[rows, n], rows * n, 50, |b| {
        let (x, w, y) = (b.input("x", F, &[rows, n]), b.input("w", F, &[n]), b.buffer(F, &[rows, n]));
        vec![
            load(&x),
            map(MapFn::Mul, &[0, 0], F),
            Instruction::ReduceRow { op: ReduceOp::Sum, arg: 1, dtype: F },
            constant(1.0 / n as f64),
            map(MapFn::Mul, &[2, 3], F),
            constant(1e-5),
            map(MapFn::Add, &[4, 5], F),
            map(MapFn::Rsqrt, &[6], F),
            Instruction::Load { view: w, strides: vec![0, 1] },
            map(MapFn::Mul, &[0, 7], F),
            map(MapFn::Mul, &[9, 8], F),
            store(&y, 10),
        ]
    });
    fused("column sums of 512 x 512", &[512, 512], 512 * 512, 20, |b| {
        let (x, y) = (b.input("x", F, &[512, 512]), b.buffer(F, &[512]));
        vec![load(&x), Instruction::Store { view: y, strides: vec![0, 1], arg: 0, accumulate: Some(ReduceOp::Sum) }]
    });
    let n = 1 << 18;
    fused("adam update", &[n], n, 10, |b| {
        let [p, g, m, v] = ["p", "g", "m", "v"].map(|name| b.input(name, F, &[n]));
        vec![
            load(&p),
            load(&g),
            load(&m),
            load(&v),
            constant(0.9),
            constant(0.1),
            map(MapFn::Mul, &[2, 4], F),
            map(MapFn::Mul, &[1, 5], F),
            map(MapFn::Add, &[6, 7], F),
            store(&m, 8),
            map(MapFn::Mul, &[3, 4], F),
            map(MapFn::Mul, &[1, 1], F),
            map(MapFn::Mul, &[11, 5], F),
            map(MapFn::Add, &[10, 12], F),
            map(MapFn::Abs, &[13], F),
            store(&v, 14),
            map(MapFn::Sqrt, &[14], F),
            constant(1e-8),
            map(MapFn::Add, &[16, 17], F),
            map(MapFn::Div, &[8, 18], F),
            constant(1e-3),
            map(MapFn::Mul, &[19, 20], F),
            map(MapFn::Sub, &[0, 21], F),
            store(&p, 22),
        ]
    });
    let m = 256;
    fused("transpose 256 x 256", &[m, m], m * m, 20, |b| {
        let (x, y) = (b.input("x", F, &[m, m]), b.buffer(F, &[m, m]));
        vec![Instruction::Load { view: x, strides: vec![1, m as isize] }, store(&y, 0)]
    });
    for bytes in [4 << 10, 1 << 20, 16 << 20] {
        let repeats = if bytes > 1 << 20 { 2 } else { 50 };
        let programs = (0..2)
            .map(|rank| {
                let mut b = Builder::of(Mesh::new([("tp", 2)]).unwrap(), rank);
                let (x, y) = (b.input("x", F, &[bytes / 4]), b.buffer(F, &[bytes / 4]));
                for i in 0..repeats {
                    b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), vec![0, 1], &x, &y, i as u32);
                }
                b.program
            })
            .collect();
        println!("all_reduce of {bytes:>8} bytes, 2 ranks  {:9.1} us", time(programs, repeats) / 1e3);
    }
    let empty = time(vec![Builder::new().program], 1);
    println!("empty step {:30.1} us", empty / 1e3);
}
