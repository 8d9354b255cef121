//! Transcendental functions of f32 without branches, so that loops over them vectorize.
//!
//! Relative errors are below 2e-7 wherever the result is a normal number (`tests/maps.rs` compares with double
//! precision). NaN gives NaN.

/// `a·b + c`, fused if the CPU can.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adding and subtracting this number rounds to an integer, and leaves that integer in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// `eˣ`: infinite above 88.73, 0 below −104.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    // NaN passes through both comparisons.
    let x = if x > 89.0 { 89.0 } else { x };
    // Computing a number that is too small for f32 takes a hundred times as long as a 0, and masks produce many.
    let nothing = x < -104.0;
    let x = if nothing { 0.0 } else { x };
    // x = n ln 2 + r, |r| <= ln 2 / 2, with ln 2 in two parts.
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    // Cephes expf: e^r = 1 + r + r² p(r).
    let p = 1.987_569_1e-4;
    let p = fma::<FMA>(p, r, 1.398_199_9e-3);
    let p = fma::<FMA>(p, r, 8.333_452e-3);
    let p = fma::<FMA>(p, r, 4.166_579_6e-2);
    let p = fma::<FMA>(p, r, 1.666_666_5e-1);
    let p = fma::<FMA>(p, r, 0.5);
    let p = fma::<FMA>(p, r * r, r) + 1.0;
    // 2^n as two factors, so that neither overflows or underflows.
    let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = p * power(half) * power(n.wrapping_sub(half));
    if nothing { 0.0 } else { y }
}

/// The natural logarithm: −∞ at 0, NaN below.
#[inline(always)]
pub fn log<const FMA: bool>(x: f32) -> f32 {
    // Subnormal numbers are scaled up first.
    let tiny = x < f32::MIN_POSITIVE;
    let y = if tiny { x * 33_554_432.0 } else { x };
    // y = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)) (fdlibm logf).
    let bits = y.to_bits().wrapping_add(0x3f80_0000 - 0x3f35_04f3);
    let k = ((bits >> 23) as i32).wrapping_sub(0x7f);
    let k = k as f32 - if tiny { 25.0 } else { 0.0 };
    let f = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let t1 = w * fma::<FMA>(w, 0.242_790_79, 0.400_009_72);
    let t2 = z * fma::<FMA>(w, 0.284_987_87, 0.666_666_6);
    let half = 0.5 * f * f;
    let low = fma::<FMA>(s, half + (t1 + t2), k * 9.058_001e-6);
    let y = (low - half + f) + k * 0.693_138_1;
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if x < 0.0 { f32::NAN } else { y };
    // Infinity and NaN are unchanged.
    if x < f32::INFINITY { y } else { x }
}

/// The hyperbolic tangent.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    // Cephes tanhf below 0.625, and 1 − 2/(e²ˣ + 1) above.
    let p = -5.704_988_7e-3;
    let p = fma::<FMA>(p, z, 2.063_908_8e-2);
    let p = fma::<FMA>(p, z, -5.373_971_6e-2);
    let p = fma::<FMA>(p, z, 1.333_144_2e-1);
    let p = fma::<FMA>(p, z, -3.333_328e-1);
    let small = fma::<FMA>(p * z, x, x);
    let large = 1.0 - 2.0 / (exp::<FMA>(2.0 * a) + 1.0);
    if a < 0.625 { small } else { large.copysign(x) }
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// The error function (coefficients by N. Juffa, below 1 ulp).
#[inline(always)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    // Above 0.9277: 1 − e^q(a). Clamped where the result is 1.
    let t = if a > 4.0 { 4.0 } else { a };
    let ts = t * t;
    let r = fma::<FMA>(-1.728_534_7e-5, t, 3.831_971_3e-4);
    let u = fma::<FMA>(-3.883_964_4e-3, t, 2.425_462_2e-2);
    let r = fma::<FMA>(r, ts, u);
    let r = fma::<FMA>(r, t, -1.067_778_8e-1);
    let r = fma::<FMA>(r, t, -6.348_467e-1);
    let r = fma::<FMA>(r, t, -1.287_175_1e-1);
    let r = fma::<FMA>(r, t, -t);
    let large = (1.0 - exp::<FMA>(r)).copysign(x);
    let r = -5.967_617e-4;
    let r = fma::<FMA>(r, s, 4.991_194_2e-3);
    let r = fma::<FMA>(r, s, -2.676_813_5e-2);
    let r = fma::<FMA>(r, s, 1.128_199_25e-1);
    let r = fma::<FMA>(r, s, -3.761_253_4e-1);
    let r = fma::<FMA>(r, s, 1.283_791_7e-1);
    let small = fma::<FMA>(r, x, x);
    if a > 0.927_734_4 { large } else { small }
}
