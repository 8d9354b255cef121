//! The inner kernels of matrix products: a few rows times a panel of columns, held in registers.

use super::{has_avx2, has_avx512};
use crate::element::{Bf16, Lane};

/// Rows of the tallest tile.
pub(crate) const MOST_ROWS: usize = 12;

/// `out[r][j] (+)= scale · Σ_p a[r][p · step] · b[p · b_step + j]` for all rows `r` and the columns `j`
/// of one panel.
///
/// # Safety
/// All addressed elements must be readable, those of `out` writable, and `out` must not overlap the
/// operands.
pub(crate) type TileKernel<T> = unsafe fn(
    k: usize,
    a: &[*const T; MOST_ROWS],
    step: isize,
    b: *const T,
    b_step: isize,
    out: &[*mut T; MOST_ROWS],
    scale: T,
    accumulate: bool,
);

/// The kernels of one width, for 1 up to the largest number of rows.
#[derive(Clone, Debug)]
pub(crate) struct Tiles<T: 'static> {
    /// Columns of a panel: two vectors.
    pub(crate) columns: usize,
    /// Indexed by the number of rows minus one; as many rows as leave registers for a row of the panel.
    pub(crate) kernels: &'static [TileKernel<T>],
}

impl<T> Tiles<T> {
    /// Rows of a tile.
    pub(crate) fn rows(&self) -> usize {
        self.kernels.len()
    }
}

/// Columns of the widest panel: two vectors of 64 bytes of f32.
pub(crate) const MOST_COLUMNS: usize = 32;

/// A compute type of products.
pub(crate) trait Real: Lane + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self> {
    /// The widest kernels that the CPU supports.
    fn tiles() -> Tiles<Self>;
    /// `b[p·n + j] = columns[j][p]` for n columns with contiguous elements.
    ///
    /// # Safety
    /// The elements must be readable, and `out` writable for `k · n` elements.
    unsafe fn transpose(k: usize, columns: &[*const Self], out: *mut Self);
    /// Converts a number exactly.
    fn of_f32(x: f32) -> Self;
    /// `Σ a[i]·column[i]` of some columns as long as `a`, each added up in the same order.
    fn dots<E: Widen<Self>, const C: usize>(a: &[Self], columns: &[&[E]; C]) -> [Self; C];
    /// `sums[r][j] += Σ x[r][p]·rows[p][j]` for `n` columns.
    ///
    /// # Safety
    /// Each row has `n` elements, and so has each row of sums, which must not overlap any other.
    unsafe fn add_rows<E: Widen<Self>, const R: usize>(
        x: &[[Self; ROWS_AT_ONCE]; R],
        rows: &[*const E; ROWS_AT_ONCE],
        sums: &[*mut Self; R],
        n: usize,
    );
}

/// An element that is converted without rounding to a product's compute type when it is read.
pub(crate) trait Widen<T>: Copy {
    /// The same number in the compute type.
    fn widen(self) -> T;
}

impl<T: Copy> Widen<T> for T {
    #[inline(always)]
    fn widen(self) -> T {
        self
    }
}

impl<T: Real> Widen<T> for Bf16 {
    #[inline(always)]
    fn widen(self) -> T {
        T::of_f32(self.to_f32())
    }
}

/// Number of columns of the right operand that [`Real::dots`] reads at the same time.
pub(crate) const COLUMNS_AT_ONCE: usize = 4;

/// Number of rows of the right operand that [`Real::add_rows`] reads at the same time: as many streams as a core
/// prefetches.
pub(crate) const ROWS_AT_ONCE: usize = 8;

macro_rules! add_rows_body {
    ($x:ident, $rows:ident, $sums:ident, $n:ident, $t:ty, |$a:ident, $b:ident, $s:ident| $fma:expr) => {{
        const WIDTH: usize = 64 / size_of::<$t>();
        let whole = $n - $n % WIDTH;
        for j in (0..whole).step_by(WIDTH) {
            // SAFETY: the caller guarantees readable rows and writable sums.
            let mut totals: [[$t; WIDTH]; R] = std::array::from_fn(|r| unsafe { *$sums[r].add(j).cast() });
            for (p, row) in $rows.iter().enumerate() {
                // SAFETY: as above.
                let elements = unsafe { *row.add(j).cast::<[E; WIDTH]>() };
                for r in 0..R {
                    for i in 0..WIDTH {
                        let ($a, $b, $s) = ($x[r][p], elements[i].widen(), totals[r][i]);
                        totals[r][i] = $fma;
                    }
                }
            }
            for r in 0..R {
                // SAFETY: as above.
                unsafe { *$sums[r].add(j).cast() = totals[r] };
            }
        }
        for j in whole..$n {
            for r in 0..R {
                for (p, row) in $rows.iter().enumerate() {
                    // SAFETY: as above.
                    let (sum, element) = unsafe { (&mut *$sums[r].add(j), *row.add(j)) };
                    let ($a, $b, $s) = ($x[r][p], element.widen(), *sum);
                    *sum = $fma;
                }
            }
        }
    }};
}

macro_rules! portable_tile {
    ($name:ident, $t:ty, $columns:literal) => {
        #[allow(clippy::too_many_arguments)]
        unsafe fn $name<const R: usize>(
            k: usize,
            a: &[*const $t; MOST_ROWS],
            step: isize,
            b: *const $t,
            b_step: isize,
            out: &[*mut $t; MOST_ROWS],
            scale: $t,
            accumulate: bool,
        ) {
            let mut sums = [[0.0; $columns]; R];
            for p in 0..k as isize {
                // SAFETY: the caller guarantees readable operands and writable results.
                let b = unsafe { &*b.wrapping_offset(p * b_step).cast::<[$t; $columns]>() };
                for r in 0..R {
                    // SAFETY: as above.
                    let x = unsafe { *a[r].wrapping_offset(p * step) };
                    for j in 0..$columns {
                        sums[r][j] += x * b[j];
                    }
                }
            }
            for r in 0..R {
                // SAFETY: as above.
                let out = unsafe { &mut *out[r].cast::<[$t; $columns]>() };
                for j in 0..$columns {
                    out[j] = scale * sums[r][j] + if accumulate { out[j] } else { 0.0 };
                }
            }
        }
    };
}
portable_tile!(portable_f32, f32, 16);
portable_tile!(portable_f64, f64, 8);

#[cfg(target_arch = "x86_64")]
macro_rules! vector_tile {
    ($features:literal, $name:ident, $t:ty, $lanes:literal, $zero:ident, $load:ident, $store:ident, $set:ident, $fma:ident, $mul:ident) => {
        #[target_feature(enable = $features)]
        #[allow(clippy::too_many_arguments)]
        unsafe fn $name<const R: usize>(
            k: usize,
            a: &[*const $t; MOST_ROWS],
            step: isize,
            b: *const $t,
            b_step: isize,
            out: &[*mut $t; MOST_ROWS],
            scale: $t,
            accumulate: bool,
        ) {
            use std::arch::x86_64::*;
            let mut sums = [[$zero(); 2]; R];
            let mut rows = [a[0]; R];
            rows.copy_from_slice(&a[..R]);
            let mut b = b;
            let mut offset = 0isize;
            for _ in 0..k {
                // SAFETY: the caller guarantees readable operands.
                unsafe {
                    let b0 = $load(b);
                    let b1 = $load(b.add($lanes));
                    for r in 0..R {
                        let x = $set(*rows[r].offset(offset));
                        sums[r][0] = $fma(x, b0, sums[r][0]);
                        sums[r][1] = $fma(x, b1, sums[r][1]);
                    }
                }
                offset = offset.wrapping_add(step);
                b = b.wrapping_offset(b_step);
            }
            let scale = $set(scale);
            for r in 0..R {
                for h in 0..2 {
                    // SAFETY: the caller guarantees writable results.
                    unsafe {
                        let p = out[r].add(h * $lanes);
                        let x = if accumulate { $fma(sums[r][h], scale, $load(p)) } else { $mul(sums[r][h], scale) };
                        $store(p, x);
                    }
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
vector_tile!(
    "avx2,fma",
    avx2_f32,
    f32,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_mul_ps
);
#[cfg(target_arch = "x86_64")]
vector_tile!(
    "avx2,fma",
    avx2_f64,
    f64,
    4,
    _mm256_setzero_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_set1_pd,
    _mm256_fmadd_pd,
    _mm256_mul_pd
);
// 12 rows of 2 vectors use 24 of the 32 registers.
#[cfg(target_arch = "x86_64")]
vector_tile!(
    "avx512f",
    avx512_f32,
    f32,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_mul_ps
);
#[cfg(target_arch = "x86_64")]
vector_tile!(
    "avx512f",
    avx512_f64,
    f64,
    8,
    _mm512_setzero_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_set1_pd,
    _mm512_fmadd_pd,
    _mm512_mul_pd
);

macro_rules! kernels {
    ($name:ident: $($rows:literal)+) => { &[$($name::<$rows>),+] };
}

unsafe fn transpose_portable<T: Copy>(from: usize, k: usize, columns: &[*const T], out: *mut T) {
    for p in from..k {
        for (j, c) in columns.iter().enumerate() {
            // SAFETY: the caller guarantees readable columns and a writable result.
            unsafe { *out.add(p * columns.len() + j) = *c.add(p) }
        }
    }
}

/// Transposes blocks of 8 by 8; returns the number of transposed rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose_avx2(k: usize, columns: &[*const f32], out: *mut f32) -> usize {
    use std::arch::x86_64::*;
    let whole = k / 8 * 8;
    for p in (0..whole).step_by(8) {
        for h in (0..columns.len()).step_by(8) {
            let c = &columns[h..h + 8];
            // SAFETY: the caller guarantees readable columns and a writable result.
            unsafe {
                let r: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(c[i].add(p)));
                let t0 = _mm256_unpacklo_ps(r[0], r[1]);
                let t1 = _mm256_unpackhi_ps(r[0], r[1]);
                let t2 = _mm256_unpacklo_ps(r[2], r[3]);
                let t3 = _mm256_unpackhi_ps(r[2], r[3]);
                let t4 = _mm256_unpacklo_ps(r[4], r[5]);
                let t5 = _mm256_unpackhi_ps(r[4], r[5]);
                let t6 = _mm256_unpacklo_ps(r[6], r[7]);
                let t7 = _mm256_unpackhi_ps(r[6], r[7]);
                let s0 = _mm256_shuffle_ps::<0x44>(t0, t2);
                let s1 = _mm256_shuffle_ps::<0xee>(t0, t2);
                let s2 = _mm256_shuffle_ps::<0x44>(t1, t3);
                let s3 = _mm256_shuffle_ps::<0xee>(t1, t3);
                let s4 = _mm256_shuffle_ps::<0x44>(t4, t6);
                let s5 = _mm256_shuffle_ps::<0xee>(t4, t6);
                let s6 = _mm256_shuffle_ps::<0x44>(t5, t7);
                let s7 = _mm256_shuffle_ps::<0xee>(t5, t7);
                let to = |i: usize| out.add((p + i) * columns.len() + h);
                _mm256_storeu_ps(to(0), _mm256_permute2f128_ps::<0x20>(s0, s4));
                _mm256_storeu_ps(to(1), _mm256_permute2f128_ps::<0x20>(s1, s5));
                _mm256_storeu_ps(to(2), _mm256_permute2f128_ps::<0x20>(s2, s6));
                _mm256_storeu_ps(to(3), _mm256_permute2f128_ps::<0x20>(s3, s7));
                _mm256_storeu_ps(to(4), _mm256_permute2f128_ps::<0x31>(s0, s4));
                _mm256_storeu_ps(to(5), _mm256_permute2f128_ps::<0x31>(s1, s5));
                _mm256_storeu_ps(to(6), _mm256_permute2f128_ps::<0x31>(s2, s6));
                _mm256_storeu_ps(to(7), _mm256_permute2f128_ps::<0x31>(s3, s7));
            }
        }
    }
    whole
}

macro_rules! dots_body {
    ($a:ident, $columns:ident, $t:ty, |$x:ident, $y:ident, $s:ident| $fma:expr) => {{
        const WIDTH: usize = 64 / size_of::<$t>();
        let mut sums = [[0.0 as $t; WIDTH]; C];
        let whole = $a.len() - $a.len() % WIDTH;
        for at in (0..whole).step_by(WIDTH) {
            let x = &$a[at..at + WIDTH];
            for (sums, column) in sums.iter_mut().zip($columns) {
                let y = &column[at..at + WIDTH];
                for i in 0..WIDTH {
                    let ($x, $y, $s) = (x[i], y[i].widen(), sums[i]);
                    sums[i] = $fma;
                }
            }
        }
        std::array::from_fn(|c| {
            let tail: $t = $a[whole..].iter().zip(&$columns[c][whole..]).map(|(x, y)| x * (*y).widen()).sum();
            sums[c].iter().sum::<$t>() + tail
        })
    }};
}

macro_rules! real {
    ($t:ty, $columns:literal, $portable:ident, $avx2:ident, $avx512:ident, $dots:ident, $rows:ident, |$k:ident, $c:ident, $o:ident| $transpose:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $dots<E: Widen<$t>, const C: usize>(a: &[$t], columns: &[&[E]; C]) -> [$t; C] {
            dots_body!(a, columns, $t, |x, y, s| x.mul_add(y, s))
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $rows<E: Widen<$t>, const R: usize>(
            x: &[[$t; ROWS_AT_ONCE]; R],
            rows: &[*const E; ROWS_AT_ONCE],
            sums: &[*mut $t; R],
            n: usize,
        ) {
            add_rows_body!(x, rows, sums, n, $t, |a, b, s| a.mul_add(b, s));
        }

        impl Real for $t {
            fn tiles() -> Tiles<$t> {
                #[cfg(target_arch = "x86_64")]
                if has_avx512() {
                    return Tiles { columns: 2 * $columns, kernels: kernels!($avx512: 1 2 3 4 5 6 7 8 9 10 11 12) };
                }
                #[cfg(target_arch = "x86_64")]
                if has_avx2() {
                    return Tiles { columns: $columns, kernels: kernels!($avx2: 1 2 3 4 5 6) };
                }
                Tiles { columns: $columns, kernels: kernels!($portable: 1 2 3 4 5 6) }
            }

            unsafe fn transpose($k: usize, $c: &[*const $t], $o: *mut $t) {
                let done = $transpose;
                // SAFETY: passed on to the caller.
                unsafe { transpose_portable(done, $k, $c, $o) }
            }

            #[inline(always)]
            fn of_f32(x: f32) -> $t {
                x.into()
            }

            fn dots<E: Widen<$t>, const C: usize>(a: &[$t], columns: &[&[E]; C]) -> [$t; C] {
                #[cfg(target_arch = "x86_64")]
                if has_avx2() {
                    // SAFETY: the CPU has the features.
                    return unsafe { $dots(a, columns) };
                }
                dots_body!(a, columns, $t, |x, y, s| x * y + s)
            }

            unsafe fn add_rows<E: Widen<$t>, const R: usize>(
                x: &[[$t; ROWS_AT_ONCE]; R],
                rows: &[*const E; ROWS_AT_ONCE],
                sums: &[*mut $t; R],
                n: usize,
            ) {
                #[cfg(target_arch = "x86_64")]
                if has_avx2() {
                    // SAFETY: the CPU has the features; the rest is passed on to the caller.
                    return unsafe { $rows(x, rows, sums, n) };
                }
                add_rows_body!(x, rows, sums, n, $t, |a, b, s| a * b + s);
            }
        }
    };
}
real!(f32, 16, portable_f32, avx2_f32, avx512_f32, dots_f32, add_rows_f32, |k, columns, out| {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the CPU has the features; the rest is passed on to the caller.
        if has_avx2() { unsafe { transpose_avx2(k, columns, out) } } else { 0 }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        0
    }
});
real!(f64, 8, portable_f64, avx2_f64, avx512_f64, dots_f64, add_rows_f64, |k, columns, out| 0);
