//! How elements are stored, and the wider *lane* type in which kernels compute with them.
//!
//! | stored | lane |
//! |---|---|
//! | f32, bf16, f16 | f32 |
//! | f64 | f64 |
//! | i64, i32, u8 | i64 |
//! | bool | u8, 0 or 1 |

use tpc_ir::{DType, ReduceOp};

/// The bits of a bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// The bits of an IEEE half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

/// A truth value, stored as one byte; every byte other than 0 reads as true, so no byte is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Truth(pub u8);

impl Bf16 {
    /// Rounds to nearest, ties to even.
    #[inline(always)]
    pub fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        Bf16(if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded as u16 })
    }

    /// The exact value.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl F16 {
    /// Rounds to nearest, ties to even; values that are too large become infinite (after F. Giesen,
    /// "float_to_half_fast3_rtne").
    #[inline(always)]
    pub fn from_f32(x: f32) -> Self {
        const DENORMAL: u32 = ((127 - 15) + (23 - 10) + 1) << 23;
        let sign = x.to_bits() & 0x8000_0000;
        let bits = x.to_bits() ^ sign;
        let small = (f32::from_bits(bits) + f32::from_bits(DENORMAL)).to_bits().wrapping_sub(DENORMAL);
        let odd = (bits >> 13) & 1;
        let normal = bits.wrapping_add(0xc800_0fff).wrapping_add(odd) >> 13;
        let large = if bits > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let finite = if bits < 113 << 23 { small } else { normal };
        F16((if bits >= (127 + 16) << 23 { large } else { finite } | (sign >> 16)) as u16)
    }

    /// The exact value.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        const EXPONENT: u32 = 0x7c00 << 13;
        let bits = (u32::from(self.0) & 0x7fff) << 13;
        let exponent = bits & EXPONENT;
        let normal = bits + ((127 - 15) << 23);
        let special = normal + ((128 - 16) << 23);
        let small = (f32::from_bits(normal + (1 << 23)) - f32::from_bits(113 << 23)).to_bits();
        let magnitude = if exponent == EXPONENT {
            special
        } else if exponent == 0 {
            small
        } else {
            normal
        };
        f32::from_bits(magnitude | (u32::from(self.0) & 0x8000) << 16)
    }
}

/// A type that kernels compute with.
pub trait Lane: Copy + Default + PartialEq + Send + Sync + 'static {
    /// Converts from a float: truncated and saturated for integers, `!= 0` for truth values.
    fn from_f64(x: f64) -> Self;
    /// Converts to a float.
    fn to_f64(self) -> f64;
    /// Converts to an integer: truncated and saturated.
    fn to_i64(self) -> i64;
    /// Converts from an integer.
    fn from_i64(x: i64) -> Self;
    /// Combines two values; in a maximum or minimum of floats, NaN wins.
    fn combine<const OP: u8>(self, other: Self) -> Self;
}

/// [`ReduceOp::Sum`] as a constant parameter.
pub(crate) const SUM: u8 = 0;
/// [`ReduceOp::Max`] as a constant parameter.
pub(crate) const MAX: u8 = 1;
/// [`ReduceOp::Min`] as a constant parameter.
pub(crate) const MIN: u8 = 2;
/// [`ReduceOp::Prod`] as a constant parameter.
pub(crate) const PROD: u8 = 3;

macro_rules! float_lane {
    ($t:ty) => {
        impl Lane for $t {
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as i64
            }
            #[inline(always)]
            fn from_i64(x: i64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn combine<const OP: u8>(self, b: Self) -> Self {
                match OP {
                    SUM => self + b,
                    MAX => {
                        if self.is_nan() | (self > b) {
                            self
                        } else {
                            b
                        }
                    }
                    MIN => {
                        if self.is_nan() | (self < b) {
                            self
                        } else {
                            b
                        }
                    }
                    _ => self * b,
                }
            }
        }
    };
}
float_lane!(f32);
float_lane!(f64);

impl Lane for i64 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as i64
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        self
    }
    #[inline(always)]
    fn from_i64(x: i64) -> Self {
        x
    }
    #[inline(always)]
    fn combine<const OP: u8>(self, b: Self) -> Self {
        match OP {
            SUM => self.wrapping_add(b),
            MAX => self.max(b),
            MIN => self.min(b),
            _ => self.wrapping_mul(b),
        }
    }
}

impl Lane for u8 {
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        u8::from(x != 0.0)
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        i64::from(self)
    }
    #[inline(always)]
    fn from_i64(x: i64) -> Self {
        u8::from(x != 0)
    }
    #[inline(always)]
    fn combine<const OP: u8>(self, b: Self) -> Self {
        match OP {
            SUM | MAX => self | b,
            _ => self & b,
        }
    }
}

/// A stored element.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type that kernels compute with.
    type Lane: Lane;
    /// Converts to a lane.
    fn load(self) -> Self::Lane;
    /// Converts to the nearest value that can be stored; integers saturate.
    fn store(x: Self::Lane) -> Self;
}

macro_rules! element {
    ($t:ty, $lane:ty, |$e:ident| $load:expr, |$l:ident| $store:expr) => {
        impl Element for $t {
            type Lane = $lane;
            #[inline(always)]
            fn load(self) -> $lane {
                let $e = self;
                $load
            }
            #[inline(always)]
            fn store($l: $lane) -> Self {
                $store
            }
        }
    };
}
element!(f64, f64, |e| e, |l| l);
element!(f32, f32, |e| e, |l| l);
element!(Bf16, f32, |e| e.to_f32(), |l| Bf16::from_f32(l));
element!(F16, f32, |e| e.to_f32(), |l| F16::from_f32(l));
element!(i64, i64, |e| e, |l| l);
element!(i32, i64, |e| i64::from(e), |l| l.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32);
element!(u8, i64, |e| i64::from(e), |l| l.clamp(0, 255) as u8);
element!(Truth, u8, |e| u8::from(e.0 != 0), |l| Truth(u8::from(l != 0)));

/// Calls a generic function with the storage type of a [`DType`].
macro_rules! with_element {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            tpc_ir::DType::F64 => {
                type $e = f64;
                $body
            }
            tpc_ir::DType::F32 => {
                type $e = f32;
                $body
            }
            tpc_ir::DType::BF16 => {
                type $e = $crate::element::Bf16;
                $body
            }
            tpc_ir::DType::F16 => {
                type $e = $crate::element::F16;
                $body
            }
            tpc_ir::DType::I64 => {
                type $e = i64;
                $body
            }
            tpc_ir::DType::I32 => {
                type $e = i32;
                $body
            }
            tpc_ir::DType::U8 => {
                type $e = u8;
                $body
            }
            tpc_ir::DType::Bool => {
                type $e = $crate::element::Truth;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// Calls a generic function with a [`ReduceOp`] as a constant.
macro_rules! with_reduce {
    ($op:expr, $o:ident => $body:expr) => {
        match $op {
            tpc_ir::ReduceOp::Sum => {
                const $o: u8 = $crate::element::SUM;
                $body
            }
            tpc_ir::ReduceOp::Max => {
                const $o: u8 = $crate::element::MAX;
                $body
            }
            tpc_ir::ReduceOp::Min => {
                const $o: u8 = $crate::element::MIN;
                $body
            }
            tpc_ir::ReduceOp::Prod => {
                const $o: u8 = $crate::element::PROD;
                $body
            }
        }
    };
}
pub(crate) use with_reduce;

/// The identity of a reduction, as it can be stored: infinities become the smallest or largest integer, and for truth
/// values `sum` and `max` mean *or*, `prod` and `min` mean *and*.
pub fn identity(op: ReduceOp, dtype: DType) -> f64 {
    match (dtype, op) {
        (DType::Bool, ReduceOp::Sum | ReduceOp::Max) => 0.0,
        (DType::Bool, ReduceOp::Prod | ReduceOp::Min) => 1.0,
        _ => op.identity(),
    }
}

/// Encodes floats as dense elements of a type, in native byte order.
pub fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.bytes()];
    for (chunk, &x) in bytes.chunks_exact_mut(dtype.bytes()).zip(values) {
        match dtype {
            DType::F64 => chunk.copy_from_slice(&x.to_ne_bytes()),
            DType::F32 => chunk.copy_from_slice(&(x as f32).to_ne_bytes()),
            DType::BF16 => chunk.copy_from_slice(&Bf16::from_f32(x as f32).0.to_ne_bytes()),
            DType::F16 => chunk.copy_from_slice(&F16::from_f32(x as f32).0.to_ne_bytes()),
            DType::I64 => chunk.copy_from_slice(&(x as i64).to_ne_bytes()),
            DType::I32 => chunk.copy_from_slice(&(x as i32).to_ne_bytes()),
            DType::U8 => chunk[0] = x as u8,
            DType::Bool => chunk[0] = u8::from(x != 0.0),
        }
    }
    bytes
}

/// Decodes dense elements of a type to floats.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    fn array<const N: usize>(chunk: &[u8]) -> [u8; N] {
        let mut a = [0; N];
        a.copy_from_slice(chunk);
        a
    }
    let one = |chunk: &[u8]| match dtype {
        DType::F64 => f64::from_ne_bytes(array(chunk)),
        DType::F32 => f64::from(f32::from_ne_bytes(array(chunk))),
        DType::BF16 => f64::from(Bf16(u16::from_ne_bytes(array(chunk))).to_f32()),
        DType::F16 => f64::from(F16(u16::from_ne_bytes(array(chunk))).to_f32()),
        DType::I64 => i64::from_ne_bytes(array(chunk)) as f64,
        DType::I32 => f64::from(i32::from_ne_bytes(array(chunk))),
        DType::U8 => f64::from(chunk[0]),
        DType::Bool => f64::from(u8::from(chunk[0] != 0)),
    };
    bytes.chunks_exact(dtype.bytes()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let x = F16(bits).to_f32();
            assert!(x.is_nan() || F16::from_f32(x) == F16(bits), "{bits:x}");
            assert!(x.is_nan() || f64::from(x) == DType::F16.round(f64::from(x)), "{bits:x} {x}");
            let x = Bf16(bits).to_f32();
            assert!(x.is_nan() || Bf16::from_f32(x) == Bf16(bits), "{bits:x}");
        }
    }

    #[test]
    fn rounding_agrees_with_the_types_definition() {
        let mut x = 1e-9f32;
        while x < 1e6 {
            for x in [x, -x] {
                let exact = f64::from(x);
                assert_eq!(f64::from(F16::from_f32(x).to_f32()), DType::F16.round(exact), "{x}");
                assert_eq!(f64::from(Bf16::from_f32(x).to_f32()), DType::BF16.round(exact), "{x}");
            }
            x *= 1.0037;
        }
        assert!(F16::from_f32(f32::NAN).to_f32().is_nan() && Bf16::from_f32(f32::NAN).to_f32().is_nan());
    }
}
