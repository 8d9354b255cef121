//! Kernels over rows of lanes: one compiled loop for every function, lane type and combination of
//! row and uniform operands, once with AVX2 and FMA and once for any CPU.
//!
//! The loops are plain Rust over slices; inside a function with `target_feature` the compiler
//! vectorizes them for those features.

use super::has_avx2;
use super::math;
use crate::element::{Element, Lane, Truth, with_element, with_reduce};
use std::slice::{from_raw_parts, from_raw_parts_mut};
use tpc_ir::{DType, MapFn, ReduceOp};

/// The compute type of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LaneType {
    F32,
    F64,
    I64,
    Bool,
}

impl LaneType {
    pub(crate) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => LaneType::F64,
            DType::F32 | DType::BF16 | DType::F16 => LaneType::F32,
            DType::I64 | DType::I32 | DType::U8 => LaneType::I64,
            DType::Bool => LaneType::Bool,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            LaneType::F32 => 4,
            LaneType::F64 | LaneType::I64 => 8,
            LaneType::Bool => 1,
        }
    }
}

/// Calls a generic function with the Rust type of a lane.
macro_rules! with_lane {
    ($lane:expr, $l:ident => $body:expr) => {
        match $lane {
            LaneType::F32 => {
                type $l = f32;
                $body
            }
            LaneType::F64 => {
                type $l = f64;
                $body
            }
            LaneType::I64 => {
                type $l = i64;
                $body
            }
            LaneType::Bool => {
                type $l = u8;
                $body
            }
        }
    };
}
pub(crate) use with_lane;

/// A function of up to three operands: `n` lanes of each row operand, and one lane of each uniform operand.
///
/// # Safety
/// The operands must be readable and `out` writable for that many lanes of the kernel's types, all
/// aligned, and `out` must not overlap an operand.
pub(crate) type Kernel = unsafe fn(n: usize, out: *mut u8, args: &[*const u8; 3]);

/// Elements in memory: `rows` rows of `n` elements. Distances are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) rows: usize,
    /// From a row to the next.
    pub(crate) across: isize,
    pub(crate) n: usize,
    /// From an element of a row to the next.
    pub(crate) stride: isize,
}

impl Grid {
    /// A single row.
    pub(crate) fn row(n: usize, stride: isize) -> Self {
        Grid { rows: 1, across: 0, n, stride }
    }

    /// Whether the elements of a column are closer together in memory than those of a row.
    fn is_upright(&self) -> bool {
        let [across, stride] = [self.across, self.stride].map(isize::unsigned_abs);
        self.rows > 1 && (1..stride).contains(&across)
    }
}

/// Reads the elements of a grid into lanes, one row after the other.
///
/// # Safety
/// The conditions of [`Kernel`].
pub(crate) type LoadKernel = unsafe fn(grid: Grid, from: *const u8, out: *mut u8);

/// Writes lanes as the elements of a grid, one row after the other.
///
/// # Safety
/// The conditions of [`Kernel`].
pub(crate) type StoreKernel = unsafe fn(grid: Grid, arg: *const u8, to: *mut u8);

/// Combines `n` lanes into an accumulator (f64 for floats, i64 otherwise).
///
/// # Safety
/// The conditions of [`Kernel`].
pub(crate) type ReduceKernel = unsafe fn(n: usize, arg: *const u8, accumulator: *mut u8);

/// Defines a kernel body twice: portable, and with AVX2 and FMA.
macro_rules! two_versions {
    ($pick:ident, $body:ident, $avx:ident, <$($g:ident $(: $bound:path)?),*>, <$(const $c:ident : $ct:ty),*>,
     ($($arg:ident : $at:ty),*), $kind:ty) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $avx<$($g $(: $bound)?,)* $(const $c: $ct),*>($($arg: $at),*) {
            // SAFETY: passed on to the caller.
            unsafe { $body::<$($g,)* $($c,)* true>($($arg),*) }
        }

        fn $pick<$($g $(: $bound)?,)* $(const $c: $ct),*>() -> $kind {
            #[cfg(target_arch = "x86_64")]
            if has_avx2() {
                return $avx::<$($g,)* $($c),*>;
            }
            $body::<$($g,)* $($c,)* false>
        }
    };
}

/// A function of one lane.
pub(crate) trait Unary {
    type In: Copy;
    type Out: Copy;
    fn apply<const FMA: bool>(x: Self::In) -> Self::Out;
}

/// A function of two lanes.
pub(crate) trait Binary {
    type In: Copy;
    type Out: Copy;
    fn apply<const FMA: bool>(a: Self::In, b: Self::In) -> Self::Out;
}

#[inline(always)]
unsafe fn unary_body<F: Unary, const FMA: bool>(n: usize, out: *mut u8, args: &[*const u8; 3]) {
    // SAFETY: the caller guarantees n readable and writable lanes that do not overlap.
    let (a, out) = unsafe { (from_raw_parts(args[0].cast::<F::In>(), n), from_raw_parts_mut(out.cast::<F::Out>(), n)) };
    for (o, &a) in out.iter_mut().zip(a) {
        *o = F::apply::<FMA>(a);
    }
}
two_versions!(unary, unary_body, unary_avx2, <F: Unary>, <>, (n: usize, out: *mut u8, args: &[*const u8; 3]), Kernel);

#[inline(always)]
unsafe fn binary_body<F: Binary, const UA: bool, const UB: bool, const FMA: bool>(
    n: usize,
    out: *mut u8,
    args: &[*const u8; 3],
) {
    // SAFETY: the caller guarantees n readable and writable lanes (one of a uniform operand) that do
    // not overlap.
    unsafe {
        let out = from_raw_parts_mut(out.cast::<F::Out>(), n);
        let (pa, pb) = (args[0].cast::<F::In>(), args[1].cast::<F::In>());
        if UA {
            let a = *pa;
            for (o, &b) in out.iter_mut().zip(from_raw_parts(pb, n)) {
                *o = F::apply::<FMA>(a, b);
            }
        } else if UB {
            let b = *pb;
            for (o, &a) in out.iter_mut().zip(from_raw_parts(pa, n)) {
                *o = F::apply::<FMA>(a, b);
            }
        } else {
            for ((o, &a), &b) in out.iter_mut().zip(from_raw_parts(pa, n)).zip(from_raw_parts(pb, n)) {
                *o = F::apply::<FMA>(a, b);
            }
        }
    }
}
two_versions!(binary_variant, binary_body, binary_avx2, <F: Binary>, <const UA: bool, const UB: bool>,
    (n: usize, out: *mut u8, args: &[*const u8; 3]), Kernel);

fn binary<F: Binary>(uniform: &[bool]) -> Kernel {
    match (uniform[0], uniform[1]) {
        (false, false) => binary_variant::<F, false, false>(),
        (true, false) => binary_variant::<F, true, false>(),
        (false, true) => binary_variant::<F, false, true>(),
        // Both are uniform: executed on one lane.
        (true, true) => binary_variant::<F, false, false>(),
    }
}

#[inline(always)]
unsafe fn select_body<L: Lane, const UC: bool, const UA: bool, const UB: bool, const FMA: bool>(
    n: usize,
    out: *mut u8,
    args: &[*const u8; 3],
) {
    // SAFETY: the caller guarantees n readable and writable lanes (one of a uniform operand) that do
    // not overlap.
    unsafe {
        let out = from_raw_parts_mut(out.cast::<L>(), n);
        let c = from_raw_parts(args[0], if UC { 1 } else { n });
        let a = from_raw_parts(args[1].cast::<L>(), if UA { 1 } else { n });
        let b = from_raw_parts(args[2].cast::<L>(), if UB { 1 } else { n });
        for (i, o) in out.iter_mut().enumerate() {
            let (x, y) = (a[if UA { 0 } else { i }], b[if UB { 0 } else { i }]);
            *o = if c[if UC { 0 } else { i }] != 0 { x } else { y };
        }
    }
}
two_versions!(select_variant, select_body, select_avx2, <L: Lane>, <const UC: bool, const UA: bool, const UB: bool>,
    (n: usize, out: *mut u8, args: &[*const u8; 3]), Kernel);

fn select<L: Lane>(uniform: &[bool]) -> Kernel {
    match (uniform[0], uniform[1], uniform[2]) {
        (false, false, false) | (true, true, true) => select_variant::<L, false, false, false>(),
        (false, false, true) => select_variant::<L, false, false, true>(),
        (false, true, false) => select_variant::<L, false, true, false>(),
        (false, true, true) => select_variant::<L, false, true, true>(),
        (true, false, false) => select_variant::<L, true, false, false>(),
        (true, false, true) => select_variant::<L, true, false, true>(),
        (true, true, false) => select_variant::<L, true, true, false>(),
    }
}

#[inline(always)]
unsafe fn multiply_add_body<L: Float, const UA: bool, const UB: bool, const UC: bool, const FMA: bool>(
    n: usize,
    out: *mut u8,
    args: &[*const u8; 3],
) {
    // SAFETY: the caller guarantees n readable and writable lanes (one of a uniform operand) that do
    // not overlap.
    unsafe {
        let out = from_raw_parts_mut(out.cast::<L>(), n);
        let a = from_raw_parts(args[0].cast::<L>(), if UA { 1 } else { n });
        let b = from_raw_parts(args[1].cast::<L>(), if UB { 1 } else { n });
        let c = from_raw_parts(args[2].cast::<L>(), if UC { 1 } else { n });
        for (i, o) in out.iter_mut().enumerate() {
            let (x, y, z) = (a[if UA { 0 } else { i }], b[if UB { 0 } else { i }], c[if UC { 0 } else { i }]);
            *o = L::multiply_add::<FMA>(x, y, z);
        }
    }
}
two_versions!(multiply_add_variant, multiply_add_body, multiply_add_avx2, <L: Float>,
    <const UA: bool, const UB: bool, const UC: bool>, (n: usize, out: *mut u8, args: &[*const u8; 3]), Kernel);

/// `a·b + c`, the kernel for a product whose only use is a sum.
pub(crate) fn multiply_add(lane: LaneType, uniform: &[bool]) -> Kernel {
    fn pick<L: Float>(u: &[bool]) -> Kernel {
        match (u[0], u[1], u[2]) {
            (false, false, false) | (true, true, true) => multiply_add_variant::<L, false, false, false>(),
            (false, false, true) => multiply_add_variant::<L, false, false, true>(),
            (false, true, false) => multiply_add_variant::<L, false, true, false>(),
            (false, true, true) => multiply_add_variant::<L, false, true, true>(),
            (true, false, false) => multiply_add_variant::<L, true, false, false>(),
            (true, false, true) => multiply_add_variant::<L, true, false, true>(),
            (true, true, false) => multiply_add_variant::<L, true, true, false>(),
        }
    }
    if lane == LaneType::F64 { pick::<f64>(uniform) } else { pick::<f32>(uniform) }
}

/// Float lanes.
pub(crate) trait Float: Lane {
    fn multiply_add<const FMA: bool>(a: Self, b: Self, c: Self) -> Self;
    fn unary<const FMA: bool>(f: u8, x: Self) -> Self;
    fn power(self, e: Self) -> Self;
    fn remainder(self, d: Self) -> Self;
}

/// Numbers the functions of one operand, so that they can be constant parameters.
macro_rules! unary_codes {
    ($($name:ident = $code:literal),+ $(,)?) => {
        $(const $name: u8 = $code;)+
    };
}
unary_codes! {
    NEG = 1, ABS = 2, SIGN = 3, EXP = 4, LOG = 5, SQRT = 6, RSQRT = 7, RECIP = 8, TANH = 9,
    ERF = 10, SIN = 11, COS = 12, SIGMOID = 13, FLOOR = 14, CEIL = 15, ROUND = 16,
}

impl Float for f32 {
    #[inline(always)]
    fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
        math::fma::<FMA>(a, b, c)
    }
    #[inline(always)]
    fn power(self, e: f32) -> f32 {
        f64::from(self).powf(f64::from(e)) as f32
    }
    #[inline(always)]
    fn remainder(self, d: f32) -> f32 {
        // The quotient is computed in f64, because its floor may otherwise be one too large.
        f64::from(self).remainder(f64::from(d)) as f32
    }
    #[inline(always)]
    fn unary<const FMA: bool>(f: u8, x: f32) -> f32 {
        match f {
            NEG => -x,
            ABS => x.abs(),
            SIGN => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x
                }
            }
            EXP => math::exp::<FMA>(x),
            LOG => math::log::<FMA>(x),
            SQRT => x.sqrt(),
            RSQRT => 1.0 / x.sqrt(),
            RECIP => 1.0 / x,
            TANH => math::tanh::<FMA>(x),
            ERF => math::erf::<FMA>(x),
            SIN => f64::from(x).sin() as f32,
            COS => f64::from(x).cos() as f32,
            SIGMOID => math::sigmoid::<FMA>(x),
            FLOOR => x.floor(),
            CEIL => x.ceil(),
            _ => x.round_ties_even(),
        }
    }
}

impl Float for f64 {
    #[inline(always)]
    fn multiply_add<const FMA: bool>(a: f64, b: f64, c: f64) -> f64 {
        if FMA { a.mul_add(b, c) } else { a * b + c }
    }
    #[inline(always)]
    fn power(self, e: f64) -> f64 {
        self.powf(e)
    }
    #[inline(always)]
    fn remainder(self, d: f64) -> f64 {
        self - d * (self / d).floor()
    }
    #[inline(always)]
    fn unary<const FMA: bool>(f: u8, x: f64) -> f64 {
        match f {
            NEG => -x,
            ABS => x.abs(),
            SIGN => {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x
                }
            }
            EXP => x.exp(),
            LOG => x.ln(),
            SQRT => x.sqrt(),
            RSQRT => 1.0 / x.sqrt(),
            RECIP => 1.0 / x,
            TANH => x.tanh(),
            ERF => tpc_ir::op::erf(x),
            SIN => x.sin(),
            COS => x.cos(),
            SIGMOID => 1.0 / (1.0 + (-x).exp()),
            FLOOR => x.floor(),
            CEIL => x.ceil(),
            _ => x.round_ties_even(),
        }
    }
}

struct FloatUnary<L, const F: u8>(std::marker::PhantomData<L>);

impl<L: Float, const F: u8> Unary for FloatUnary<L, F> {
    type In = L;
    type Out = L;
    #[inline(always)]
    fn apply<const FMA: bool>(x: L) -> L {
        L::unary::<FMA>(F, x)
    }
}

fn float_unary<L: Float>(f: MapFn) -> Option<Kernel> {
    Some(match f {
        MapFn::Neg => unary::<FloatUnary<L, NEG>>(),
        MapFn::Abs => unary::<FloatUnary<L, ABS>>(),
        MapFn::Sign => unary::<FloatUnary<L, SIGN>>(),
        MapFn::Exp => unary::<FloatUnary<L, EXP>>(),
        MapFn::Log => unary::<FloatUnary<L, LOG>>(),
        MapFn::Sqrt => unary::<FloatUnary<L, SQRT>>(),
        MapFn::Rsqrt => unary::<FloatUnary<L, RSQRT>>(),
        MapFn::Recip => unary::<FloatUnary<L, RECIP>>(),
        MapFn::Tanh => unary::<FloatUnary<L, TANH>>(),
        MapFn::Erf => unary::<FloatUnary<L, ERF>>(),
        MapFn::Sin => unary::<FloatUnary<L, SIN>>(),
        MapFn::Cos => unary::<FloatUnary<L, COS>>(),
        MapFn::Sigmoid => unary::<FloatUnary<L, SIGMOID>>(),
        MapFn::Floor => unary::<FloatUnary<L, FLOOR>>(),
        MapFn::Ceil => unary::<FloatUnary<L, CEIL>>(),
        MapFn::Round => unary::<FloatUnary<L, ROUND>>(),
        _ => return None,
    })
}

struct IntUnary<const F: u8>;

impl<const F: u8> Unary for IntUnary<F> {
    type In = i64;
    type Out = i64;
    #[inline(always)]
    fn apply<const FMA: bool>(x: i64) -> i64 {
        match F {
            NEG => x.wrapping_neg(),
            ABS => x.wrapping_abs(),
            _ => x.signum(),
        }
    }
}

struct Not;

impl Unary for Not {
    type In = u8;
    type Out = u8;
    #[inline(always)]
    fn apply<const FMA: bool>(x: u8) -> u8 {
        u8::from(x == 0)
    }
}

const ADD: u8 = 0;
const SUB: u8 = 1;
const MUL: u8 = 2;
const DIV: u8 = 3;
const MAXIMUM: u8 = 4;
const MINIMUM: u8 = 5;
const POW: u8 = 6;
const REM: u8 = 7;

struct FloatBinary<L, const F: u8>(std::marker::PhantomData<L>);

macro_rules! float_binary {
    ($t:ty) => {
        impl<const F: u8> Binary for FloatBinary<$t, F> {
            type In = $t;
            type Out = $t;
            #[inline(always)]
            fn apply<const FMA: bool>(a: $t, b: $t) -> $t {
                match F {
                    ADD => a + b,
                    SUB => a - b,
                    MUL => a * b,
                    DIV => a / b,
                    MAXIMUM => a.combine::<{ crate::element::MAX }>(b),
                    MINIMUM => a.combine::<{ crate::element::MIN }>(b),
                    POW => a.power(b),
                    _ => a.remainder(b),
                }
            }
        }
    };
}
float_binary!(f32);
float_binary!(f64);

struct IntBinary<const F: u8>;

impl<const F: u8> Binary for IntBinary<F> {
    type In = i64;
    type Out = i64;
    #[inline(always)]
    fn apply<const FMA: bool>(a: i64, b: i64) -> i64 {
        match F {
            ADD => a.wrapping_add(b),
            SUB => a.wrapping_sub(b),
            MUL => a.wrapping_mul(b),
            // Truncated; division by zero saturates like the float quotient: 0/0 = 0.
            DIV => {
                if b == 0 {
                    a.signum().saturating_mul(i64::MAX)
                } else {
                    a.wrapping_div(b)
                }
            }
            MAXIMUM => a.max(b),
            MINIMUM => a.min(b),
            // The result has the divisor's sign; 0 if there is no such number.
            _ => {
                let r = if b == 0 { 0 } else { a.wrapping_rem(b) };
                if r != 0 && (r ^ b) < 0 { r + b } else { r }
            }
        }
    }
}

struct Logic<const AND: bool>;

impl<const AND: bool> Binary for Logic<AND> {
    type In = u8;
    type Out = u8;
    #[inline(always)]
    fn apply<const FMA: bool>(a: u8, b: u8) -> u8 {
        if AND { a & b } else { a | b }
    }
}

const EQ: u8 = 0;
const NE: u8 = 1;
const LT: u8 = 2;
const LE: u8 = 3;
const GT: u8 = 4;
const GE: u8 = 5;

struct Compare<L, const F: u8>(std::marker::PhantomData<L>);

impl<L: Lane + PartialOrd, const F: u8> Binary for Compare<L, F> {
    type In = L;
    type Out = u8;
    #[inline(always)]
    fn apply<const FMA: bool>(a: L, b: L) -> u8 {
        u8::from(match F {
            EQ => a == b,
            NE => a != b,
            LT => a < b,
            LE => a <= b,
            GT => a > b,
            _ => a >= b,
        })
    }
}

fn compare<L: Lane + PartialOrd>(f: MapFn, uniform: &[bool]) -> Kernel {
    match f {
        MapFn::Eq => binary::<Compare<L, EQ>>(uniform),
        MapFn::Ne => binary::<Compare<L, NE>>(uniform),
        MapFn::Lt => binary::<Compare<L, LT>>(uniform),
        MapFn::Le => binary::<Compare<L, LE>>(uniform),
        MapFn::Gt => binary::<Compare<L, GT>>(uniform),
        _ => binary::<Compare<L, GE>>(uniform),
    }
}

/// Whether a function compares its operands.
pub(crate) fn is_comparison(f: MapFn) -> bool {
    matches!(f, MapFn::Eq | MapFn::Ne | MapFn::Lt | MapFn::Le | MapFn::Gt | MapFn::Ge)
}

/// The kernel of a function whose operands are all in `lane` (except that the condition of a select is in
/// [`LaneType::Bool`]); `uniform` says which operands are uniform. `None` if the lane type has no such kernel and the
/// operands have to be converted to f64.
pub(crate) fn map_kernel(f: MapFn, lane: LaneType, uniform: &[bool]) -> Option<Kernel> {
    macro_rules! float {
        ($code:ident) => {
            match lane {
                LaneType::F32 => Some(binary::<FloatBinary<f32, $code>>(uniform)),
                LaneType::F64 => Some(binary::<FloatBinary<f64, $code>>(uniform)),
                LaneType::I64 if $code != POW => Some(binary::<IntBinary<$code>>(uniform)),
                _ => None,
            }
        };
    }
    match f {
        MapFn::Add => float!(ADD),
        MapFn::Sub => float!(SUB),
        MapFn::Mul => float!(MUL),
        MapFn::Div => float!(DIV),
        MapFn::Max => float!(MAXIMUM),
        MapFn::Min => float!(MINIMUM),
        MapFn::Pow => float!(POW),
        MapFn::Rem => float!(REM),
        MapFn::Not => Some(unary::<Not>()),
        MapFn::And => Some(binary::<Logic<true>>(uniform)),
        MapFn::Or => Some(binary::<Logic<false>>(uniform)),
        MapFn::Select => Some(with_lane!(lane, L => select::<L>(uniform))),
        f if is_comparison(f) => Some(with_lane!(lane, L => compare::<L>(f, uniform))),
        f => match lane {
            LaneType::F32 => float_unary::<f32>(f),
            LaneType::F64 => float_unary::<f64>(f),
            LaneType::I64 => match f {
                MapFn::Neg => Some(unary::<IntUnary<NEG>>()),
                MapFn::Abs => Some(unary::<IntUnary<ABS>>()),
                MapFn::Sign => Some(unary::<IntUnary<SIGN>>()),
                _ => None,
            },
            LaneType::Bool => None,
        },
    }
}

struct Convert<A, B>(std::marker::PhantomData<(A, B)>);

macro_rules! convert {
    ($a:ty, $b:ty, |$x:ident| $e:expr) => {
        impl Unary for Convert<$a, $b> {
            type In = $a;
            type Out = $b;
            #[inline(always)]
            fn apply<const FMA: bool>($x: $a) -> $b {
                $e
            }
        }
    };
}
convert!(f32, f64, |x| f64::from(x));
convert!(f32, i64, |x| x as i64);
convert!(f32, u8, |x| u8::from(x != 0.0));
convert!(f64, f32, |x| x as f32);
convert!(f64, i64, |x| x as i64);
convert!(f64, u8, |x| u8::from(x != 0.0));
convert!(i64, f32, |x| x as f32);
convert!(i64, f64, |x| x as f64);
convert!(i64, u8, |x| u8::from(x != 0));
convert!(u8, f32, |x| f32::from(x));
convert!(u8, f64, |x| f64::from(x));
convert!(u8, i64, |x| i64::from(x));

/// Converts lanes: floats are truncated and saturated to integers, and any number other than 0 is true.
pub(crate) fn convert_kernel(from: LaneType, to: LaneType) -> Kernel {
    use LaneType::{Bool, F32, F64, I64};
    match (from, to) {
        (F32, F64) => unary::<Convert<f32, f64>>(),
        (F32, I64) => unary::<Convert<f32, i64>>(),
        (F32, Bool) => unary::<Convert<f32, u8>>(),
        (F64, F32) => unary::<Convert<f64, f32>>(),
        (F64, I64) => unary::<Convert<f64, i64>>(),
        (F64, Bool) => unary::<Convert<f64, u8>>(),
        (I64, F32) => unary::<Convert<i64, f32>>(),
        (I64, F64) => unary::<Convert<i64, f64>>(),
        (I64, Bool) => unary::<Convert<i64, u8>>(),
        (Bool, F32) => unary::<Convert<u8, f32>>(),
        (Bool, F64) => unary::<Convert<u8, f64>>(),
        (Bool, I64) => unary::<Convert<u8, i64>>(),
        (F32, F32) => unary::<Rounded<f32>>(),
        (F64, F64) => unary::<Rounded<f64>>(),
        (I64, I64) => unary::<Rounded<i64>>(),
        (Bool, Bool) => unary::<Rounded<Truth>>(),
    }
}

/// Rounds a lane to a number that an element can hold.
struct Rounded<E>(std::marker::PhantomData<E>);

impl<E: Element> Unary for Rounded<E> {
    type In = E::Lane;
    type Out = E::Lane;
    #[inline(always)]
    fn apply<const FMA: bool>(x: E::Lane) -> E::Lane {
        E::store(x).load()
    }
}

/// Rounds lanes to numbers that `dtype` can hold.
pub(crate) fn round_kernel(dtype: DType) -> Kernel {
    with_element!(dtype, E => unary::<Rounded<E>>())
}

/// Applies a function to all elements, eight at a time, because rows are often too short for the loops that the compiler
/// unrolls.
#[inline(always)]
fn each<A: Copy, B>(from: &[A], to: &mut [B], f: impl Fn(A) -> B) {
    let (pieces, rest) = from.as_chunks::<8>();
    let (to_pieces, to_rest) = to.as_chunks_mut::<8>();
    for (to, from) in to_pieces.iter_mut().zip(pieces) {
        *to = from.map(&f);
    }
    for (to, &from) in to_rest.iter_mut().zip(rest) {
        *to = f(from);
    }
}

#[inline(always)]
unsafe fn load_body<E: Element, const FMA: bool>(grid: Grid, from: *const u8, out: *mut u8) {
    let Grid { rows, across, n, stride } = grid;
    let (from, out) = (from.cast::<E>(), out.cast::<E::Lane>());
    // SAFETY: the caller guarantees `rows * n` writable lanes and the grid's elements, which are readable. What lies between
    // the elements of a row belongs to the same buffer.
    unsafe {
        if grid.is_upright() {
            for i in 0..n {
                let column = from.wrapping_offset(i as isize * stride);
                for r in 0..rows {
                    *out.add(r * n + i) = (*column.wrapping_offset(r as isize * across)).load();
                }
            }
            return;
        }
        let different = if across == 0 { rows.min(1) } else { rows };
        for r in 0..different {
            let from = from.wrapping_offset(r as isize * across);
            let out = from_raw_parts_mut(out.add(r * n), n);
            match stride {
                1 => each(from_raw_parts(from, n), out, |e| e.load()),
                // With a constant stride the compiler uses vector loads and shuffles.
                2 => {
                    let (last, pairs) =
                        out.split_last_mut().map_or((None, &mut [][..]), |(last, rest)| (Some(last), rest));
                    let elements = from_raw_parts(from, 2 * pairs.len());
                    pairs.iter_mut().zip(elements.chunks_exact(2)).for_each(|(o, pair)| *o = pair[0].load());
                    if let Some(last) = last {
                        *last = (*from.wrapping_add(2 * (n - 1))).load();
                    }
                }
                _ => {
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = (*from.wrapping_offset(i as isize * stride)).load();
                    }
                }
            }
        }
        // The other rows repeat the first.
        if let (first, others @ [_, ..]) = from_raw_parts_mut(out, rows * n).split_at_mut(different * n) {
            others.chunks_exact_mut(n).for_each(|row| each(first, row, |x| x));
        }
    }
}
two_versions!(load_variant, load_body, load_avx2, <E: Element>, <>,
    (grid: Grid, from: *const u8, out: *mut u8), LoadKernel);

/// Reads elements of a type.
pub(crate) fn load_kernel(dtype: DType) -> LoadKernel {
    with_element!(dtype, E => load_variant::<E>())
}

#[inline(always)]
unsafe fn store_body<E: Element, const UNIFORM: bool, const FMA: bool>(grid: Grid, arg: *const u8, to: *mut u8) {
    let Grid { rows, across, n, stride } = grid;
    let (to, arg) = (to.cast::<E>(), arg.cast::<E::Lane>());
    // SAFETY: the caller guarantees `rows * n` readable lanes (one if uniform) and the grid's elements, which are writable.
    unsafe {
        if grid.is_upright() {
            for i in 0..n {
                let column = to.wrapping_offset(i as isize * stride);
                for r in 0..rows {
                    let x = *arg.add(if UNIFORM { 0 } else { r * n + i });
                    *column.wrapping_offset(r as isize * across) = E::store(x);
                }
            }
            return;
        }
        for r in 0..rows {
            let to = to.wrapping_offset(r as isize * across);
            let arg = arg.add(if UNIFORM { 0 } else { r * n });
            match (stride, UNIFORM) {
                (1, true) => from_raw_parts_mut(to, n).fill(E::store(*arg)),
                (1, false) => each(from_raw_parts(arg, n), from_raw_parts_mut(to, n), |x| E::store(x)),
                _ => {
                    for i in 0..n {
                        *to.wrapping_offset(i as isize * stride) = E::store(*arg.add(if UNIFORM { 0 } else { i }));
                    }
                }
            }
        }
    }
}
two_versions!(store_variant, store_body, store_avx2, <E: Element>, <const UNIFORM: bool>,
    (grid: Grid, arg: *const u8, to: *mut u8), StoreKernel);

/// Writes elements of a type.
pub(crate) fn store_kernel(dtype: DType, uniform: bool) -> StoreKernel {
    with_element!(dtype, E => if uniform { store_variant::<E, true>() } else { store_variant::<E, false>() })
}

#[inline(always)]
unsafe fn accumulate_body<E: Element, const OP: u8, const UNIFORM: bool, const FMA: bool>(
    grid: Grid,
    arg: *const u8,
    to: *mut u8,
) {
    let Grid { rows, across, n, stride } = grid;
    let (to, arg) = (to.cast::<E>(), arg.cast::<E::Lane>());
    // SAFETY: the caller guarantees `rows * n` readable lanes (one if uniform) and the grid's elements, which are writable.
    unsafe {
        for r in 0..rows {
            let to = to.wrapping_offset(r as isize * across);
            let arg = arg.add(if UNIFORM { 0 } else { r * n });
            if stride == 1 {
                let out = from_raw_parts_mut(to, n);
                if UNIFORM {
                    let x = *arg;
                    for o in out {
                        *o = E::store((*o).load().combine::<OP>(x));
                    }
                } else {
                    for (o, &x) in out.iter_mut().zip(from_raw_parts(arg, n)) {
                        *o = E::store((*o).load().combine::<OP>(x));
                    }
                }
            } else {
                for i in 0..n {
                    let o = to.wrapping_offset(i as isize * stride);
                    *o = E::store((*o).load().combine::<OP>(*arg.add(if UNIFORM { 0 } else { i })));
                }
            }
        }
    }
}
two_versions!(accumulate_variant, accumulate_body, accumulate_avx2, <E: Element>,
    <const OP: u8, const UNIFORM: bool>, (grid: Grid, arg: *const u8, to: *mut u8), StoreKernel);

/// Combines lanes with elements in memory; all elements must be different (no stride 0).
pub(crate) fn accumulate_kernel(op: ReduceOp, dtype: DType, uniform: bool) -> StoreKernel {
    with_element!(dtype, E => with_reduce!(op, OP => {
        if uniform { accumulate_variant::<E, OP, true>() } else { accumulate_variant::<E, OP, false>() }
    }))
}

/// The type in which a lane is accumulated over a row.
pub(crate) trait Accumulated: Lane {
    type Accumulator: Lane;
    fn widen(self) -> Self::Accumulator;
}
impl Accumulated for f32 {
    type Accumulator = f64;
    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(self)
    }
}
impl Accumulated for f64 {
    type Accumulator = f64;
    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
}
impl Accumulated for i64 {
    type Accumulator = i64;
    #[inline(always)]
    fn widen(self) -> i64 {
        self
    }
}
impl Accumulated for u8 {
    type Accumulator = i64;
    #[inline(always)]
    fn widen(self) -> i64 {
        i64::from(self)
    }
}

#[inline(always)]
unsafe fn reduce_body<L: Accumulated, const OP: u8, const FMA: bool>(n: usize, arg: *const u8, accumulator: *mut u8) {
    const WIDTH: usize = 32;
    // SAFETY: the caller guarantees n readable lanes and a writable accumulator.
    let (arg, accumulator) =
        unsafe { (from_raw_parts(arg.cast::<L>(), n), &mut *accumulator.cast::<L::Accumulator>()) };
    let mut total = *accumulator;
    // Several partial results are accumulated at the same time, which is faster and more accurate than a single chain
    // of sums. Blocks of 1024 lanes are then added in the wider accumulator.
    for block in arg.chunks(1024) {
        let mut wide = block.chunks_exact(WIDTH);
        if let Some(first) = wide.next() {
            let mut partial = [L::default(); WIDTH];
            partial.copy_from_slice(first);
            for chunk in &mut wide {
                for (p, &x) in partial.iter_mut().zip(chunk) {
                    *p = p.combine::<OP>(x);
                }
            }
            let mut half = WIDTH / 2;
            while half > 0 {
                for i in 0..half {
                    partial[i] = partial[i].combine::<OP>(partial[i + half]);
                }
                half /= 2;
            }
            total = total.combine::<OP>(partial[0].widen());
        }
        for &x in wide.remainder() {
            total = total.combine::<OP>(x.widen());
        }
    }
    *accumulator = total;
}
two_versions!(reduce_variant, reduce_body, reduce_avx2, <L: Accumulated>, <const OP: u8>,
    (n: usize, arg: *const u8, accumulator: *mut u8), ReduceKernel);

/// Combines a row of lanes into an accumulator.
pub(crate) fn reduce_kernel(op: ReduceOp, lane: LaneType) -> ReduceKernel {
    with_lane!(lane, L => with_reduce!(op, OP => reduce_variant::<L, OP>()))
}

unsafe fn repeat_body<L: Accumulated, const OP: u8>(n: usize, arg: *const u8, accumulator: *mut u8) {
    // SAFETY: the caller guarantees a readable lane and a writable accumulator.
    let (x, accumulator) = unsafe { ((*arg.cast::<L>()).widen(), &mut *accumulator.cast::<L::Accumulator>()) };
    let times = |x: L::Accumulator| match OP {
        crate::element::SUM => L::Accumulator::from_f64(x.to_f64() * n as f64),
        crate::element::PROD => L::Accumulator::from_f64(x.to_f64().powf(n as f64)),
        _ => x,
    };
    if n > 0 {
        *accumulator = accumulator.combine::<OP>(times(x));
    }
}

/// Combines a uniform lane, counted `n` times, into an accumulator.
pub(crate) fn repeat_kernel(op: ReduceOp, lane: LaneType) -> ReduceKernel {
    with_lane!(lane, L => with_reduce!(op, OP => repeat_body::<L, OP>))
}

/// The bytes of an accumulator that holds a reduction's identity.
pub(crate) fn accumulator_identity(op: ReduceOp, lane: LaneType) -> [u8; 8] {
    match lane {
        LaneType::F32 | LaneType::F64 => op.identity().to_ne_bytes(),
        LaneType::I64 | LaneType::Bool => (op.identity() as i64).to_ne_bytes(),
    }
}

/// Moves an accumulator to a lane.
pub(crate) fn finish_kernel(accumulated: LaneType, to: LaneType) -> Kernel {
    match accumulated {
        LaneType::F32 | LaneType::F64 => convert_kernel(LaneType::F64, to),
        LaneType::I64 | LaneType::Bool => convert_kernel(LaneType::I64, to),
    }
}

/// The bytes of a lane that holds a value.
pub(crate) fn lane_bytes(lane: LaneType, x: f64, exact: Option<i64>) -> [u8; 8] {
    let mut bytes = [0; 8];
    match lane {
        LaneType::F32 => bytes[..4].copy_from_slice(&(x as f32).to_ne_bytes()),
        LaneType::F64 => bytes = x.to_ne_bytes(),
        LaneType::I64 => bytes = exact.unwrap_or(x as i64).to_ne_bytes(),
        LaneType::Bool => bytes[0] = u8::from(x != 0.0),
    }
    bytes
}
