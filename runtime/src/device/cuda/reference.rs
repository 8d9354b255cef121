//! The library's matrix products in plain loops, to check what it is told.

use super::gemm::{Gemm, Matrix};
use crate::element::{Element, Lane, with_element};
use tpc_ir::DType;

unsafe fn get(base: *const u8, dtype: DType, element: i64) -> f64 {
    // SAFETY: the caller addresses an element of the matrix.
    with_element!(dtype, E => unsafe { (*base.cast::<E>().offset(element as isize)).load().to_f64() })
}

unsafe fn put(base: *mut u8, dtype: DType, element: i64, x: f64) {
    // SAFETY: the caller addresses an element of the matrix.
    with_element!(dtype, E => unsafe { *base.cast::<E>().offset(element as isize) = E::store(Lane::from_f64(x)) });
}

/// The element of row i and column j of what the product takes.
fn at(m: &Matrix, i: usize, j: usize) -> i64 {
    let (row, column) = if m.transposed { (j, i) } else { (i, j) };
    assert!(row < m.rows && column < m.columns && m.leading >= m.rows);
    (row + column * m.leading) as i64
}

/// Computes a product.
///
/// # Safety
/// The matrices must lie in the memory from `base`, which nobody else uses meanwhile.
pub(super) unsafe fn run(g: &Gemm, base: *mut u8) {
    let place = |m: &Matrix| base.wrapping_offset(m.at as isize);
    for call in &g.calls {
        for batch in 0..g.batch as i64 {
            let first = |m: &Matrix, x: usize| call[x] + batch * m.batch_stride;
            for i in 0..g.m {
                for j in 0..g.n {
                    let mut sum = 0.0;
                    for k in 0..g.k {
                        // SAFETY: passed on to the caller.
                        unsafe {
                            sum += get(place(&g.a), g.a.dtype, first(&g.a, 0) + at(&g.a, i, k))
                                * get(place(&g.b), g.b.dtype, first(&g.b, 1) + at(&g.b, k, j));
                        }
                    }
                    // SAFETY: passed on to the caller.
                    unsafe { put(place(&g.d), g.d.dtype, first(&g.d, 2) + at(&g.d, i, j), g.scale * sum) };
                }
            }
        }
    }
}
