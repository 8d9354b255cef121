//! Every function of lanes, compared with its definition in double precision.

pub(crate) mod support;

use support::*;
use tpc_ir::program::*;
use tpc_ir::{DType, MapFn};

fn inputs() -> Vec<f64> {
    let mut x = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1e-40,
        1e-44,
        88.7,
        88.73,
        89.5,
        -87.4,
        -103.0,
        -104.5,
        1e30,
        -1e30,
        3.4e38,
        127.0,
        0.625,
        0.927,
        3.9,
        4.1,
    ];
    let mut t = 1e-6;
    while t < 100.0 {
        x.extend([t, -t]);
        t *= 1.01;
    }
    x
}

/// Runs a function on rows of its operands, and with each operand uniform.
fn run(f: MapFn, operands: &[Vec<f64>], dtype: DType, uniform: Option<usize>) -> Vec<f64> {
    let n = operands[0].len();
    let mut b = Builder::new();
    let mut body = Vec::new();
    let mut dtypes = Vec::new();
    for i in 0..operands.len() {
        let d = if f == MapFn::Select && i == 0 { DType::Bool } else { dtype };
        let d = if matches!(f, MapFn::Not | MapFn::And | MapFn::Or) { DType::Bool } else { d };
        dtypes.push(d);
        let view = b.input(&format!("x{i}"), d, &[n]);
        let strides = vec![isize::from(uniform != Some(i))];
        body.push(Instruction::Load { view, strides });
    }
    let out = f.result_dtype(&dtypes);
    let args: Vec<usize> = (0..operands.len()).collect();
    body.push(map(f, &args, out));
    let y = b.buffer(out, &[n]);
    body.push(store(&y, args.len()));
    b.output("y", &y);
    b.step(Action::Loop(Loop { dims: vec![n], body }));
    let mut session = b.launch();
    for (i, x) in operands.iter().enumerate() {
        session.write_f64(&format!("x{i}"), x).unwrap();
    }
    session.step().unwrap();
    session.read_f64(&result("y")).unwrap()
}

/// Allowed relative error in f32; results below `floor` may differ by that much absolutely.
fn tolerance(f: MapFn, dtype: DType) -> (f64, f64) {
    match (dtype, f) {
        (DType::F64, MapFn::Erf | MapFn::Sigmoid | MapFn::Pow | MapFn::Exp | MapFn::Log | MapFn::Tanh) => {
            (1e-15, 1e-300)
        }
        (DType::F64, _) => (4e-16, 1e-300),
        // Transcendental functions: two units in the last place and a little.
        (_, MapFn::Exp | MapFn::Log | MapFn::Tanh | MapFn::Erf | MapFn::Sigmoid) => (2e-7, 1.2e-38),
        (_, MapFn::Rsqrt) => (1.3e-7, 1e-44),
        // One rounding.
        _ => (6.1e-8, 1.5e-45),
    }
}

fn close(got: f64, want: f64, (relative, floor): (f64, f64), dtype: DType) -> bool {
    let want = dtype.round(want);
    got == want || (got.is_nan() && want.is_nan()) || (got - want).abs() <= (want.abs() * relative).max(floor)
}

#[test]
pub(crate) fn functions_of_floats_agree_with_their_definition() {
    for dtype in [DType::F32, DType::F64] {
        let x: Vec<f64> = inputs().iter().map(|&x| dtype.round(x)).collect();
        let mut rng = Lcg(1);
        let shuffled: Vec<f64> = x.iter().map(|_| x[rng.below(x.len())]).collect();
        for &f in MapFn::ALL {
            let arity = f.arity().unwrap_or(3);
            let operands = match arity {
                1 => vec![x.clone()],
                2 => vec![x.clone(), shuffled.clone()],
                _ => vec![x.clone(), shuffled.clone(), x.iter().rev().copied().collect()],
            };
            for uniform in (0..=arity).map(|u| (u < arity).then_some(u)) {
                let y = run(f, &operands, dtype, uniform);
                for i in 0..x.len() {
                    let args: Vec<f64> =
                        operands.iter().enumerate().map(|(k, o)| o[if uniform == Some(k) { 0 } else { i }]).collect();
                    // Sums in f32 round after every term.
                    let want = if f == MapFn::Add {
                        args.iter().skip(1).fold(args[0], |a, &b| dtype.round(a + b))
                    } else {
                        f.eval(&args)
                    };
                    let clipped = f == MapFn::Sin || f == MapFn::Cos;
                    if clipped && args[0].abs() > 1e9 {
                        continue;
                    }
                    assert!(
                        close(y[i], want, tolerance(f, dtype), dtype),
                        "{f:?} {dtype} {args:?}: {} not {want}",
                        y[i]
                    );
                }
            }
        }
    }
}

#[test]
pub(crate) fn exp_log_and_erf_are_accurate_everywhere() {
    let mut x = Vec::new();
    for bits in (0..0x7f80_0000u32).step_by(9973) {
        x.push(f64::from(f32::from_bits(bits)));
        x.push(-f64::from(f32::from_bits(bits)));
    }
    for f in [MapFn::Exp, MapFn::Log, MapFn::Erf, MapFn::Tanh, MapFn::Sigmoid] {
        let mut worst = 0.0f64;
        for (&x, y) in x.iter().zip(run(f, std::slice::from_ref(&x), DType::F32, None)) {
            let want = f.eval(&[x]);
            assert!(close(y, want, tolerance(f, DType::F32), DType::F32), "{f:?} {x}: {y} not {want}");
            if want.abs() > 1.2e-38 && want.abs() < 3e38 {
                worst = worst.max(((y - want) / want).abs());
            }
        }
        println!("{f:?}: worst relative error {worst:.2e}");
    }
}

#[test]
pub(crate) fn narrow_floats_integers_and_casts_round_as_their_type_does() {
    for dtype in [DType::BF16, DType::F16, DType::I64, DType::I32, DType::U8] {
        let x: Vec<f64> = (0..200).map(|i| dtype.round(f64::from(i % 23) * 1.25)).collect();
        let z: Vec<f64> = (0..200).map(|i| dtype.round(f64::from(i % 5) * 2.5 + 1.0)).collect();
        for f in [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Div, MapFn::Rem, MapFn::Max, MapFn::Min] {
            let y = run(f, &[x.clone(), z.clone()], dtype, None);
            for i in 0..x.len() {
                let want = dtype.round(f.eval(&[x[i], z[i]]));
                assert_eq!(y[i], want, "{f:?} {dtype} {} {}", x[i], z[i]);
            }
        }
    }
    let x = inputs();
    for from in DType::ALL {
        let rounded: Vec<f64> = x.iter().map(|&x| from.round(x)).collect();
        let rounded: Vec<f64> =
            if from.is_float() { rounded } else { rounded.iter().map(|x| x.clamp(-1e9, 1e9)).collect() };
        let rounded: Vec<f64> = rounded.iter().map(|&x| if from.is_float() || !x.is_nan() { x } else { 0.0 }).collect();
        let rounded: Vec<f64> = rounded.iter().map(|&x| from.round(x)).collect();
        for to in DType::ALL {
            let y = run_cast(&rounded, from, to);
            for (x, y) in rounded.iter().zip(y) {
                let want = to.round(*x);
                let saturated = !to.is_float() && (x.is_nan() || x.abs() > 9e18);
                assert!(saturated || y == want || (y.is_nan() && want.is_nan()), "{from} {x} to {to}: {y} not {want}");
            }
        }
    }
}

fn run_cast(x: &[f64], from: DType, to: DType) -> Vec<f64> {
    let mut b = Builder::new();
    let view = b.input("x", from, &[x.len()]);
    let y = b.buffer(to, &[x.len()]);
    b.output("y", &y);
    b.step(Action::Loop(Loop {
        dims: vec![x.len()],
        body: vec![load(&view), map(MapFn::Cast(to), &[0], to), store(&y, 1)],
    }));
    let mut session = b.launch();
    session.write_f64("x", x).unwrap();
    session.step().unwrap();
    session.read_f64(&result("y")).unwrap()
}
