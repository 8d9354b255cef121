//! Products with epilogues, of the size of a thread block's tiles and larger: whether they are correct, how they are
//! computed, and how long they take compared with a loop after the product.

use super::kernels::{Small, load, map, store};
use tpc_ir::program::{Action, Contract, ContractDim, Instruction, View};
use tpc_ir::{DType, MapFn, Scalar};
use tpc_runtime::RuntimeError;
use tpc_runtime::device::attached::Device;
use tpc_runtime::device::cuda::gpu::{Gpu, GpuOptions};
use tpc_runtime::element::{decode, encode};

/// The epilogue of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Bias,
    Residual,
    InPlace,
    Relu,
    Gelu,
    GeluKept,
}

const ALL: [Then; 6] = [Then::Bias, Then::Residual, Then::InPlace, Then::Relu, Then::Gelu, Then::GeluKept];

/// A product of row-major matrices with its epilogue, and its buffers: left, right, result, bias, matrix, kept sum.
fn product(then: Then, [m, n, k]: [usize; 3], dtype: DType) -> (Small, Contract, [View; 6]) {
    let mut p = Small::new();
    let (left, right) = (p.buffer(dtype, &[m, k]), p.buffer(dtype, &[k, n]));
    let (out, bias) = (p.buffer(dtype, &[m, n]), p.buffer(dtype, &[n]));
    let (matrix, kept) = (p.buffer(dtype, &[m, n]), p.buffer(dtype, &[m, n]));
    let wide = |f, args: &[usize]| map(f, args);
    let number = |x: f64| Instruction::Constant(Scalar::float(x), DType::F32);
    // Registers 0 and 1 are the product and the added operand, in f32.
    let added = match then {
        Then::Residual => load(&matrix),
        Then::InPlace => load(&out),
        _ => Instruction::Load { view: bias.clone(), strides: vec![0, 1] },
    };
    let mut body = vec![Instruction::Given { index: 0, dtype: DType::F32 }, added, wide(MapFn::Add, &[0, 1])];
    match then {
        Then::Relu => body.extend([number(0.0), wide(MapFn::Max, &[2, 3])]),
        Then::Gelu | Then::GeluKept => {
            if then == Then::GeluKept {
                body.push(store(&kept, 2));
            }
            let at = body.len();
            body.extend([
                wide(MapFn::Mul, &[2, 2]),
                wide(MapFn::Mul, &[at, 2]),
                number(0.044_715),
                wide(MapFn::Mul, &[at + 1, at + 2]),
                wide(MapFn::Add, &[2, at + 3]),
                number(0.797_884_560_802_865_4),
                wide(MapFn::Mul, &[at + 4, at + 5]),
                wide(MapFn::Tanh, &[at + 6]),
                number(1.0),
                wide(MapFn::Add, &[at + 7, at + 8]),
                number(0.5),
                wide(MapFn::Mul, &[2, at + 10]),
                wide(MapFn::Mul, &[at + 11, at + 9]),
            ]);
        }
        _ => {}
    }
    body.push(store(&out, body.len() - 1));
    let dim = |size: usize, left: usize, right: usize, out: usize| ContractDim {
        size,
        left: left as isize,
        right: right as isize,
        out: out as isize,
    };
    let c = Contract {
        left: left.clone(),
        right: right.clone(),
        out: out.clone(),
        batch: vec![],
        m: vec![dim(m, k, 0, n)],
        n: vec![dim(n, 0, 1, 1)],
        k: vec![dim(k, 1, n, 0)],
        // Multiples of an eighth, so that sums are exact in f32.
        scale: 0.125,
        epilogue: body,
    };
    (p, c, [left, right, out, bias, matrix, kept])
}

/// Small integers.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % 7) as f64 - 3.0
    };
    (0..count).map(|_| next()).collect()
}

/// The expected kept sum and result.
fn meaning(then: Then, [m, n, k]: [usize; 3], values: &[Vec<f64>]) -> [Vec<f64>; 2] {
    let mut sums = vec![0.0; m * n];
    for (i, row) in sums.chunks_mut(n).enumerate() {
        for l in 0..k {
            let x = 0.125 * values[0][i * k + l];
            row.iter_mut().zip(&values[1][l * n..]).for_each(|(sum, y)| *sum += x * y);
        }
        for (j, sum) in row.iter_mut().enumerate() {
            *sum += match then {
                Then::Residual => values[4][i * n + j],
                Then::InPlace => values[2][i * n + j],
                _ => values[3][j],
            };
        }
    }
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let end = |&x: &f64| match then {
        Then::Relu => x.max(0.0),
        Then::Gelu | Then::GeluKept => x / (1.0 + (-2.0 * root * (x + 0.044_715 * x * x * x)).exp()),
        _ => x,
    };
    let ends = sums.iter().map(end).collect();
    [sums, ends]
}

/// How the only product of a device is computed.
fn by(gpu: &Gpu) -> &'static str {
    let counts = gpu.products();
    match (counts.with_epilogue, counts.followed) {
        (1, _) => "cublasLt",
        (_, 1) => "cublasLt and a loop",
        _ => "generated kernels",
    }
}

/// Checks products with epilogues; the second and third time they run as a graph.
pub fn check(small: bool) -> Result<bool, RuntimeError> {
    let mut right = true;
    let sizes = if small { [24, 40, 16] } else { [384, 640, 256] };
    for dtype in [DType::F32, DType::BF16] {
        for then in ALL {
            let (mut p, c, views) = product(then, sizes, dtype);
            p.action(Action::Contract(c));
            for (i, view) in views.iter().enumerate() {
                p.input(&i.to_string(), view);
            }
            let values: Vec<Vec<f64>> =
                views.iter().zip(1..).map(|(view, seed)| numbers(seed, view.elements())).collect();
            let want = meaning(then, sizes, &values);
            let mut gpu = Gpu::new(vec![p.program], GpuOptions::default())?;
            let bindings: Vec<_> = gpu.programs()[0].inputs.iter().map(|i| i.binding.clone()).collect();
            // Rounded once to the result's type; functions in f32.
            let unit = if dtype == DType::BF16 { 1.0 / 256.0 } else { 0.0 };
            let mut worst: f64 = 0.0;
            for _ in 0..3 {
                for (binding, values) in bindings.iter().zip(&values) {
                    gpu.write(0, binding, &encode(dtype, values))?;
                }
                gpu.step()?;
                for (at, want) in [(5, &want[0]), (2, &want[1])] {
                    if at == 5 && then != Then::GeluKept {
                        continue;
                    }
                    let got = decode(dtype, &gpu.read_range(0, &bindings[at], 0..want.len() * dtype.bytes())?);
                    let largest = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
                    let off = |(x, y): (&f64, &f64)| ((x - y).abs() - unit * y.abs()).max(0.0) / largest;
                    worst = got.iter().zip(want).map(off).fold(worst, |a, b| if b.is_nan() { b } else { a.max(b) });
                }
            }
            let fits = worst <= 1e-6;
            right &= fits;
            let verdict = if fits { "ok" } else { "WRONG" };
            println!("{verdict:5} product, {then:?}, {dtype}, by {}: off by {worst:.1e}", by(&gpu));
        }
    }
    Ok(right)
}

/// Measures products with epilogues, as one action and as two.
pub fn speed(small: bool) -> Result<(), RuntimeError> {
    let options = GpuOptions::default();
    let sizes = if small { [64, 64, 64] } else { [4096, 4096, 1024] };
    println!("\n| then, of {sizes:?} | type | by | µs together | µs apart |\n|---|---|---|---|---|");
    for dtype in [DType::BF16, DType::F32] {
        for then in ALL {
            let (mut p, c, _) = product(then, sizes, dtype);
            p.action(Action::Contract(c));
            let by = by(&Gpu::new(vec![p.program.clone()], options.clone())?);
            let together = p.seconds(&options)? * 1e6;
            // An update reads what the product alone would overwrite.
            let (mut p, c, _) = product(then, sizes, dtype);
            let raw = if c.is_update() { p.buffer(dtype, &c.out.shape) } else { c.out.clone() };
            p.action(Action::Contract(c.alone(raw.clone())));
            p.action(Action::Loop(c.epilogue_loop(&raw)));
            let apart = p.seconds(&options)? * 1e6;
            println!("| {then:?} | {dtype} | {by} | {together:.1} | {apart:.1} |");
        }
    }
    Ok(())
}
