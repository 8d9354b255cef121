//! Matrix products as strided batches of a library (cublasLt): which products it can compute, and with which calls.
//!
//! The library's matrices are column-major, with a stride between columns. A product whose result has dense rows
//! becomes the transposed product with exchanged operands, so no operand is moved because of its order. Dimensions that
//! do not nest become batches (rows and columns) or further calls; a sum over dimensions that do not nest needs its
//! operand packed first (`emit/product.rs`).

use tpc_ir::DType;
use tpc_ir::program::{Contract, ContractDim};

/// One matrix, or a batch of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Offset in the device allocation.
    pub at: i64,
    /// Element type.
    pub dtype: DType,
    /// Number of contiguous elements per column, as stored.
    pub rows: usize,
    /// Number of columns, as stored.
    pub columns: usize,
    /// Elements from one column to the next.
    pub leading: usize,
    /// Elements from one matrix of the batch to the next; 0 repeats one matrix.
    pub batch_stride: i64,
    /// Whether the product takes it transposed.
    pub transposed: bool,
}

/// The function that is applied to each element at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// The tanh approximation of GELU, the only one in the library.
    Gelu,
}

/// `d = activation(scale · a · b + beta · c + bias)`, column-major: `d` is m × n, the sum runs over k.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Number of summed elements.
    pub k: usize,
    /// The left operand.
    pub a: Matrix,
    /// The right operand.
    pub b: Matrix,
    /// The result.
    pub d: Matrix,
    /// Number of matrices in a batch.
    pub batch: usize,
    /// For each call, the elements by which a, b, d, c, bias and aux move.
    pub calls: Vec<[i64; OPERANDS]>,
    /// Factor of the product.
    pub scale: f64,
    /// Factor of c.
    pub beta: f64,
    /// An added matrix with the type and shape of the result. It may be the result itself, which is read before it is
    /// written.
    pub c: Option<Matrix>,
    /// One column, with the type of the result, that is added to every column.
    pub bias: Option<Matrix>,
    /// The activation of the sum.
    pub activation: Option<Activation>,
    /// Where the sum before the activation is also written.
    pub aux: Option<Matrix>,
}

/// Maximum number of operands and results of a product.
pub const OPERANDS: usize = 6;

/// Maximum number of calls that replace one product.
const MOST_CALLS: usize = 64;

impl Gemm {
    /// Whether the sum is computed in f64; in f32 otherwise, never in TF32.
    pub fn is_double(&self) -> bool {
        self.d.dtype == DType::F64
    }

    /// All operands and results, in the order of [`Gemm::calls`].
    pub fn operands(&self) -> [Option<&Matrix>; OPERANDS] {
        let (c, bias, aux) = (self.c.as_ref(), self.bias.as_ref(), self.aux.as_ref());
        [Some(&self.a), Some(&self.b), Some(&self.d), c, bias, aux]
    }

    /// Whether the product has an epilogue other than scaling.
    pub fn has_epilogue(&self) -> bool {
        self.c.is_some() || self.bias.is_some() || self.activation.is_some() || self.aux.is_some()
    }
}

/// A matrix or vector other than left, right and result, which an epilogue reads or writes.
#[derive(Clone, Debug, PartialEq)]
pub struct EpilogueOperand {
    /// Offset in the device allocation.
    pub at: i64,
    /// Element type.
    pub dtype: DType,
    /// Stride in each of [`Contract::dims`].
    pub strides: Vec<isize>,
}

/// An epilogue and its operands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Epilogue {
    /// Factor of c.
    pub beta: f64,
    /// The added matrix.
    pub c: Option<EpilogueOperand>,
    /// The added bias, which is the same for every column.
    pub bias: Option<EpilogueOperand>,
    /// The activation of the sum.
    pub activation: Option<Activation>,
    /// Where the sum before the activation is also written.
    pub aux: Option<EpilogueOperand>,
}

/// Indices into a dimension's strides: first those of the contraction, then the epilogue's.
const LEFT: usize = 0;
const RIGHT: usize = 1;
const OUT: usize = 2;
const C: usize = 3;
const BIAS: usize = 4;
const AUX: usize = 5;

/// A dimension and its stride in every operand.
#[derive(Clone, Copy)]
struct Dim {
    size: usize,
    by: [isize; OPERANDS],
}

/// Merges each pair of adjacent dimensions of a group that nest; dimensions are ordered outermost first.
fn merged(mut dims: Vec<Dim>) -> Vec<Dim> {
    dims.retain(|d| d.size != 1);
    dims.sort_by_key(|d| std::cmp::Reverse(d.by[..C].iter().map(|s| s.unsigned_abs()).max()));
    let mut i = dims.len();
    while i >= 2 {
        i -= 1;
        let (outer, inner) = (dims[i - 1], dims[i]);
        if (0..OPERANDS).all(|x| outer.by[x] == inner.by[x] * inner.size as isize) {
            dims[i].size *= outer.size;
            dims.remove(i - 1);
        }
    }
    dims
}

/// Whether the library takes the types: floats, equal for both operands, summed in f32 or f64.
fn takes(c: &Contract) -> bool {
    let (l, r, o) = (c.left.dtype, c.right.dtype, c.out.dtype);
    l == r
        && match l {
            DType::F64 | DType::F32 => o == l,
            DType::BF16 | DType::F16 => o == l || o == DType::F32,
            _ => false,
        }
}

/// A matrix of `down` times `across` elements as it is stored, given the sizes and strides in both directions; the
/// elements along `down` are contiguous.
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

/// The library's product, if it can compute this one without an epilogue; `places` are the offsets of left, right and
/// result in the device allocation.
pub fn of(c: &Contract, places: [i64; 3]) -> Option<Gemm> {
    with(c, places, &Epilogue::default())
}

/// Like [`of`], for the product with its epilogue.
pub fn with(c: &Contract, [left, right, out]: [i64; 3], epilogue: &Epilogue) -> Option<Gemm> {
    let beside = [&epilogue.c, &epilogue.bias, &epilogue.aux].map(Option::as_ref);
    if !takes(c) || c.dims().chain(&c.k).any(|d| d.size == 0) {
        return None;
    }
    // The library only adds and stores matrices with the type of the result; in f64 it only adds.
    if beside.iter().flatten().any(|o| o.dtype != c.out.dtype)
        || (c.out.dtype == DType::F64 && (beside[1].is_some() || epilogue.activation.is_some()))
    {
        return None;
    }
    let group = |dims: &[ContractDim], first: Option<usize>| -> Vec<Dim> {
        let dim = |(i, d): (usize, &ContractDim)| {
            let of = |o: Option<&EpilogueOperand>| first.and_then(|first| Some(o?.strides[first + i])).unwrap_or(0);
            Dim { size: d.size, by: [d.left, d.right, d.out, of(beside[0]), of(beside[1]), of(beside[2])] }
        };
        merged(dims.iter().enumerate().map(dim).collect())
    };
    let one = Dim { size: 1, by: [0; OPERANDS] };
    let mut k = group(&c.k, None);
    let k = if k.len() > 1 { return None } else { k.pop().unwrap_or(one) };
    // The row or column dimension that is densest in the result stays; the others become batches.
    let mut batch = group(&c.batch, Some(0));
    let mut m = group(&c.m, Some(c.batch.len()));
    let mut n = group(&c.n, Some(c.batch.len() + c.m.len()));
    let smallest = |dims: &[Dim]| (0..dims.len()).min_by_key(|&i| dims[i].by[OUT].unsigned_abs());
    let rows = smallest(&m).map_or(one, |i| m.remove(i));
    let columns = smallest(&n).map_or(one, |i| n.remove(i));
    batch.extend(m);
    batch.extend(n);
    let longest = (0..batch.len()).max_by_key(|&i| batch[i].size);
    let together = longest.map_or(one, |i| batch.remove(i));
    if batch.iter().map(|d| d.size).product::<usize>() > MOST_CALLS {
        return None;
    }
    let mut moves = vec![[0i64; OPERANDS]];
    for d in &batch {
        let step = |by: &[i64; OPERANDS], i: usize| std::array::from_fn(|x| by[x] + i as i64 * d.by[x] as i64);
        moves = moves.iter().flat_map(|by| (0..d.size).map(move |i| step(by, i))).collect();
    }
    let of_beside = |i: usize| beside[i].map_or((0, c.out.dtype), |o| (o.at, o.dtype));
    let operands =
        [(left, c.left.dtype), (right, c.right.dtype), (out, c.out.dtype), of_beside(0), of_beside(1), of_beside(2)];
    // The result's columns are `across`; `a` provides the rows, and `b` the columns.
    let product = |down: Dim, across: Dim, [a, b]: [usize; 2]| {
        let place = |x: usize, down: Dim, across: Dim| {
            let (at, dtype) = operands[x];
            matrix(at, dtype, (down.size, down.by[x]), (across.size, across.by[x]), together.by[x])
        };
        let straight = |x: usize| place(x, down, across).filter(|m| !m.transposed);
        let given = |i: usize, x: usize| beside[i].map_or(Some(None), |_| straight(x).map(Some));
        let bias = |_: &EpilogueOperand| {
            // The same in every column; a result with one column qualifies for any stride.
            let same = across.size == 1 || across.by[BIAS] == 0;
            let one = Dim { size: 1, by: [0; OPERANDS] };
            (same && (down.size == 1 || down.by[BIAS] == 1)).then(|| place(BIAS, down, one)).flatten()
        };
        let gemm = Gemm {
            m: down.size,
            n: across.size,
            k: k.size,
            a: place(a, down, k)?,
            b: place(b, k, across)?,
            d: straight(OUT)?,
            batch: together.size,
            calls: moves.iter().map(|by| [by[a], by[b], by[OUT], by[C], by[BIAS], by[AUX]]).collect(),
            scale: c.scale,
            beta: epilogue.beta,
            c: given(0, C)?,
            bias: beside[1].map_or(Some(None), |o| bias(o).map(Some))?,
            activation: epilogue.activation,
            aux: given(2, AUX)?,
        };
        gemm.aux.as_ref().is_none_or(|aux| aux_is_aligned(aux, &gemm)).then_some(gemm)
    };
    // The result's rows are contiguous: transpose, and exchange the operands.
    product(columns, rows, [RIGHT, LEFT]).or_else(|| product(rows, columns, [LEFT, RIGHT]))
}

/// Checks the library's requirements on the values before an activation: columns and matrices are a multiple of 8
/// elements apart and begin at multiples of 16 bytes.
fn aux_is_aligned(aux: &Matrix, g: &Gemm) -> bool {
    let begins = |call: &[i64; OPERANDS]| (aux.at + call[AUX] * aux.dtype.bytes() as i64) % 16 == 0;
    aux.leading.is_multiple_of(8) && aux.batch_stride % 8 == 0 && g.calls.iter().all(begins)
}
