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

/// What is done with an element at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// The approximation of GELU with a hyperbolic tangent: the library has no other.
    Gelu,
}

/// `d = activation(scale · a · b + beta · c + bias)`, column-major: `d` is m × n, the sum runs over k.
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
    /// Elements by which a, b, d, c, bias and aux move, for each call.
    pub calls: Vec<[i64; OPERANDS]>,
    /// Multiplies the product.
    pub scale: f64,
    /// Multiplies c.
    pub beta: f64,
    /// What is added, of the type and shape of the result; it may be the result itself, which is read before it is
    /// written.
    pub c: Option<Matrix>,
    /// One column, of the type of the result, that is added to every column.
    pub bias: Option<Matrix>,
    /// What is done with the sum.
    pub activation: Option<Activation>,
    /// Where the sum is written besides.
    pub aux: Option<Matrix>,
}

/// What a product reads and writes at most.
pub const OPERANDS: usize = 6;

/// Calls that replace one product at most.
const MOST_CALLS: usize = 64;

impl Gemm {
    /// Whether the sum is computed in f64; in f32 otherwise, never in TF32.
    pub fn is_double(&self) -> bool {
        self.d.dtype == DType::F64
    }

    /// Everything that it reads and writes, in the order of [`Gemm::calls`].
    pub fn operands(&self) -> [Option<&Matrix>; OPERANDS] {
        let (c, bias, aux) = (self.c.as_ref(), self.bias.as_ref(), self.aux.as_ref());
        [Some(&self.a), Some(&self.b), Some(&self.d), c, bias, aux]
    }

    /// Whether anything is done with the product but to scale it.
    pub fn has_epilogue(&self) -> bool {
        self.c.is_some() || self.bias.is_some() || self.activation.is_some() || self.aux.is_some()
    }
}

/// A matrix or vector besides left, right and result: what an epilogue reads or writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    /// First byte in the device allocation.
    pub at: i64,
    /// Element type.
    pub dtype: DType,
    /// Stride for each of [`Contract::dims`].
    pub strides: Vec<isize>,
}

/// What is done with a product, and with what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Epilogue {
    /// Multiplies c.
    pub beta: f64,
    /// What is added.
    pub c: Option<Operand>,
    /// What is added and the same for every column.
    pub bias: Option<Operand>,
    /// What is done with the sum.
    pub activation: Option<Activation>,
    /// Where the sum is written besides.
    pub aux: Option<Operand>,
}

/// Positions among a dimension's strides: those of the contraction, then the epilogue's.
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

/// A group of dimensions, outermost first, each pair of neighbours that nests merged.
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

/// The library's product, if it can take this one alone; `places` are the first bytes of left, right and
/// result in the device allocation.
pub fn of(c: &Contract, places: [i64; 3]) -> Option<Gemm> {
    with(c, places, &Epilogue::default())
}

/// As [`of`], of the product and what is done with it.
pub fn with(c: &Contract, [left, right, out]: [i64; 3], epilogue: &Epilogue) -> Option<Gemm> {
    let beside = [&epilogue.c, &epilogue.bias, &epilogue.aux].map(Option::as_ref);
    if !takes(c) || c.dims().chain(&c.k).any(|d| d.size == 0) {
        return None;
    }
    // The library adds and stores only what has the type of the result, and in f64 only adds.
    if beside.iter().flatten().any(|o| o.dtype != c.out.dtype)
        || (c.out.dtype == DType::F64 && (beside[1].is_some() || epilogue.activation.is_some()))
    {
        return None;
    }
    let group = |dims: &[ContractDim], first: Option<usize>| -> Vec<Dim> {
        let dim = |(i, d): (usize, &ContractDim)| {
            let of = |o: Option<&Operand>| first.and_then(|first| Some(o?.strides[first + i])).unwrap_or(0);
            Dim { size: d.size, by: [d.left, d.right, d.out, of(beside[0]), of(beside[1]), of(beside[2])] }
        };
        merged(dims.iter().enumerate().map(dim).collect())
    };
    let one = Dim { size: 1, by: [0; OPERANDS] };
    let mut k = group(&c.k, None);
    let k = if k.len() > 1 { return None } else { k.pop().unwrap_or(one) };
    // Of rows and columns, what lies densest in the result stays; the others are batches.
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
    // The result's columns are `across`; `a` has its rows, and `b` its columns.
    let product = |down: Dim, across: Dim, [a, b]: [usize; 2]| {
        let place = |x: usize, down: Dim, across: Dim| {
            let (at, dtype) = operands[x];
            matrix(at, dtype, (down.size, down.by[x]), (across.size, across.by[x]), together.by[x])
        };
        let straight = |x: usize| place(x, down, across).filter(|m| !m.transposed);
        let given = |i: usize, x: usize| beside[i].map_or(Some(None), |_| straight(x).map(Some));
        let bias = |_: &Operand| {
            // The same in every column; a result of one column has it, whatever the stride.
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
    // The result's rows are neighbours: transposed, with the operands exchanged.
    product(columns, rows, [RIGHT, LEFT]).or_else(|| product(rows, columns, [LEFT, RIGHT]))
}

/// What the library demands of the values before an activation: columns and matrices a multiple of 8 elements
/// apart, that begin at multiples of 16 bytes.
fn aux_is_aligned(aux: &Matrix, g: &Gemm) -> bool {
    let begins = |call: &[i64; OPERANDS]| (aux.at + call[AUX] * aux.dtype.bytes() as i64) % 16 == 0;
    aux.leading.is_multiple_of(8) && aux.batch_stride % 8 == 0 && g.calls.iter().all(begins)
}
