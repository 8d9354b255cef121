//! Matrix products as strided batches of a library's (cublasLt's): which it can take, and in which
//! words.
//!
//! The library's matrices are column-major, with a distance between columns. A product whose result has
//! dense rows is the transposed product with its operands exchanged, so that nothing is ever moved for
//! the sake of its order. Dimensions that do not nest become batches (rows and columns) or further
//! calls; a sum over dimensions that do not nest needs its operand packed first (`emit/product.rs`).

use tpc_ir::DType;
use tpc_ir::program::{Contract, ContractDim};

/// One matrix, or a batch of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// First byte in the device allocation.
    pub at: i64,
    /// Element type.
    pub dtype: DType,
    /// Neighbouring elements of a column, as stored.
    pub rows: usize,
    /// Columns, as stored.
    pub columns: usize,
    /// Elements from a column to the next.
    pub leading: usize,
    /// Elements from a matrix of the batch to the next; 0 repeats one.
    pub batch_stride: i64,
    /// Whether the product takes it transposed.
    pub transposed: bool,
}

/// `d = scale · a · b`, column-major: `d` is m × n, the sum runs over k.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Summed elements.
    pub k: usize,
    /// The left operand.
    pub a: Matrix,
    /// The right operand.
    pub b: Matrix,
    /// The result.
    pub d: Matrix,
    /// Matrices of a batch.
    pub batch: usize,
    /// Elements by which a, b and d move, for each call.
    pub calls: Vec<[i64; 3]>,
    /// Multiplies the product.
    pub scale: f64,
}

/// Calls that replace one product at most.
const MOST_CALLS: usize = 64;

impl Gemm {
    /// Whether the sum is computed in f64; in f32 otherwise, never in TF32.
    pub fn is_double(&self) -> bool {
        self.d.dtype == DType::F64
    }
}

/// A group of dimensions, outermost first, each pair of neighbours that nests merged.
fn merged(dims: &[ContractDim]) -> Vec<ContractDim> {
    let mut dims: Vec<ContractDim> = dims.iter().copied().filter(|d| d.size != 1).collect();
    dims.sort_by_key(|d| {
        std::cmp::Reverse(d.left.unsigned_abs().max(d.right.unsigned_abs()).max(d.out.unsigned_abs()))
    });
    let mut i = dims.len();
    while i >= 2 {
        i -= 1;
        let (outer, inner) = (dims[i - 1], dims[i]);
        let n = inner.size as isize;
        if outer.left == inner.left * n && outer.right == inner.right * n && outer.out == inner.out * n {
            dims[i].size *= outer.size;
            dims.remove(i - 1);
        }
    }
    dims
}

/// The types that the library takes: floats, both operands alike, summed up in f32 or f64.
fn takes(c: &Contract) -> bool {
    let (l, r, o) = (c.left.dtype, c.right.dtype, c.out.dtype);
    l == r
        && match l {
            DType::F64 | DType::F32 => o == l,
            DType::BF16 | DType::F16 => o == l || o == DType::F32,
            _ => false,
        }
}

/// A matrix of `down` neighbours times `across`, given the strides in both directions, as it is stored.
fn matrix(at: i64, dtype: DType, down: (usize, isize), across: (usize, isize), batch_stride: isize) -> Option<Matrix> {
    let batch_stride = batch_stride as i64;
    let stored = |rows: (usize, isize), columns: (usize, isize), transposed: bool| {
        let leading = if columns.0 == 1 { rows.0.max(1) as isize } else { columns.1 };
        let fits = (rows.0 == 1 || rows.1 == 1) && leading >= rows.0 as isize;
        fits.then_some(Matrix {
            at,
            dtype,
            rows: rows.0,
            columns: columns.0,
            leading: leading as usize,
            batch_stride,
            transposed,
        })
    };
    stored(down, across, false).or_else(|| stored(across, down, true))
}

/// The library's product, if it can take this one; `places` are the first bytes of left, right and
/// result in the device allocation.
pub fn of(c: &Contract, places: [i64; 3]) -> Option<Gemm> {
    let all = || c.batch.iter().chain(&c.m).chain(&c.n).chain(&c.k);
    if !takes(c) || all().any(|d| d.size == 0) {
        return None;
    }
    let one = ContractDim { size: 1, left: 0, right: 0, out: 0 };
    let mut k = merged(&c.k);
    let k = if k.len() > 1 { return None } else { k.pop().unwrap_or(one) };
    // Of rows and columns, what lies densest in the result stays; the others are batches.
    let (mut m, mut n, mut batch) = (merged(&c.m), merged(&c.n), merged(&c.batch));
    let smallest = |dims: &[ContractDim]| (0..dims.len()).min_by_key(|&i| dims[i].out.unsigned_abs());
    let rows = smallest(&m).map_or(one, |i| m.remove(i));
    let columns = smallest(&n).map_or(one, |i| n.remove(i));
    batch.extend(m);
    batch.extend(n);
    let longest = (0..batch.len()).max_by_key(|&i| batch[i].size);
    let together = longest.map_or(one, |i| batch.remove(i));
    if batch.iter().map(|d| d.size).product::<usize>() > MOST_CALLS {
        return None;
    }
    let mut calls = vec![[0i64; 3]];
    for d in &batch {
        let strides = [d.left as i64, d.right as i64, d.out as i64];
        let step = |call: &[i64; 3], i: usize| std::array::from_fn(|x| call[x] + i as i64 * strides[x]);
        calls = calls.iter().flat_map(|call| (0..d.size).map(move |i| step(call, i))).collect();
    }
    let [left, right, out] = places;
    let (types, t) = ([c.left.dtype, c.right.dtype, c.out.dtype], together);
    // The result's rows are neighbours: transposed, with the operands exchanged.
    let transposed = || {
        let d = matrix(out, types[2], (columns.size, columns.out), (rows.size, rows.out), t.out)?;
        let a = matrix(right, types[1], (columns.size, columns.right), (k.size, k.right), t.right)?;
        let b = matrix(left, types[0], (k.size, k.left), (rows.size, rows.left), t.left)?;
        let calls = calls.iter().map(|&[l, r, o]| [r, l, o]).collect();
        let (m, n, k) = (columns.size, rows.size, k.size);
        (!d.transposed).then_some(Gemm { m, n, k, a, b, d, batch: t.size, calls, scale: c.scale })
    };
    let straight = || {
        let d = matrix(out, types[2], (rows.size, rows.out), (columns.size, columns.out), t.out)?;
        let a = matrix(left, types[0], (rows.size, rows.left), (k.size, k.left), t.left)?;
        let b = matrix(right, types[1], (k.size, k.right), (columns.size, columns.right), t.right)?;
        let (m, n, k) = (rows.size, columns.size, k.size);
        (!d.transposed).then_some(Gemm { m, n, k, a, b, d, batch: t.size, calls: calls.clone(), scale: c.scale })
    };
    transposed().or_else(straight)
}
