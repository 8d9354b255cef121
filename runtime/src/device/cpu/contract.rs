//! Matrix products with any strides and any number of batch, row, column and summed dimensions.
//!
//! The loops around the inner kernel are those of BLIS (Van Zee and van de Geijn, "BLIS: a framework for rapidly
//! instantiating BLAS functionality"). Rows, columns and the sum may each run over several dimensions whose strides do
//! not nest, through tables of offsets, as in Matthews ("High-performance tensor contraction without transposition").
//! Only blocks whose layout the kernel cannot use are copied or transposed. The crate `gemm` is as fast on large square
//! products, but it allocates in every call, and each extra dimension needs a separate call.
//!
//! f32, bf16 and f16 are computed in f32, everything else in f64. Results that are stored in another type are rounded
//! once, after the whole sum.

use super::arena::Arena;
use super::microkernel::{COLUMNS_AT_ONCE, MOST_COLUMNS, MOST_ROWS, ROWS_AT_ONCE, Real, Tiles, Widen};
use crate::element::{Bf16, Element, F16, Lane, Truth, with_element};
use tpc_ir::DType;
use tpc_ir::program::{Buffer, Contract, ContractDim, View};

/// Summed elements per block. A panel of the right operand then comes from the L2 cache, which is fast enough; smaller
/// blocks would write each sum more often.
pub(crate) const BLOCK_K: usize = 512;
/// Rows per block: a block of the left operand then fills a quarter of an L2 cache of 1 MiB.
pub(crate) const BLOCK_M: usize = 120;
/// Columns per block: its panels fill 1 MiB.
pub(crate) const BLOCK_N: usize = 512;
/// Up to this many rows it is cheaper to read the right operand without packing it.
const FEW_ROWS: usize = 24;
/// Up to this many rows a product takes as long as reading the right operand from memory once. It is therefore read row
/// by row without packing; a panel of columns would touch a page for each row.
const STREAMED_ROWS: usize = 8;
/// Number of sums over all rows that a streamed product computes at a time: they stay in the L1 cache.
const STREAMED: usize = 4096;

/// Offsets of the elements of one operand along one group of dimensions.
#[derive(Clone, Debug)]
pub(crate) enum Offsets {
    Affine(isize),
    Table(Vec<isize>),
}

impl Offsets {
    /// The offsets of row-major indices of dimensions, given as `(size, stride)`.
    pub(crate) fn new(dims: &[(usize, isize)]) -> Self {
        let dims: Vec<_> = dims.iter().copied().filter(|d| d.0 != 1).collect();
        let nests = dims.windows(2).all(|w| w[0].1 == w[1].1 * w[1].0 as isize);
        match dims.last() {
            None => Offsets::Affine(1),
            Some(last) if nests => Offsets::Affine(last.1),
            _ => {
                let mut table = vec![0];
                for &(n, s) in &dims {
                    table = table.iter().flat_map(|t| (0..n as isize).map(move |i| t + i * s)).collect();
                }
                Offsets::Table(table)
            }
        }
    }

    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> isize {
        match self {
            Offsets::Affine(s) => i as isize * s,
            Offsets::Table(t) => t[i],
        }
    }

    /// Whether the `n` elements from `i` are contiguous.
    #[inline(always)]
    fn dense(&self, i: usize, n: usize) -> bool {
        match self {
            Offsets::Affine(s) => *s == 1,
            Offsets::Table(t) => t[i..i + n].windows(2).all(|w| w[1] == w[0] + 1),
        }
    }
}

/// Reads one element as a number of the product's compute type.
type Get<T> = unsafe fn(*const u8, isize) -> T;
/// Writes one element.
type Put<T> = unsafe fn(*mut u8, isize, T);

/// Conversion between stored elements and the product's compute type.
trait Stored<T>: Copy {
    fn get(self) -> T;
    fn put(x: T) -> Self;
}

macro_rules! stored {
    ($($e:ty),*) => {$(
        impl Stored<f32> for $e {
            #[inline(always)]
            fn get(self) -> f32 {
                self.load().to_f64() as f32
            }
            #[inline(always)]
            fn put(x: f32) -> Self {
                <$e>::store(Lane::from_f64(f64::from(x)))
            }
        }
        impl Stored<f64> for $e {
            #[inline(always)]
            fn get(self) -> f64 {
                self.load().to_f64()
            }
            #[inline(always)]
            fn put(x: f64) -> Self {
                <$e>::store(Lane::from_f64(x))
            }
        }
    )*};
}
stored!(f64, f32, Bf16, F16, i64, i32, u8, Truth);

unsafe fn get<E: Stored<T>, T>(base: *const u8, offset: isize) -> T {
    // SAFETY: the caller addresses an element that was checked to be in the arena.
    unsafe { (*base.cast::<E>().offset(offset)).get() }
}

unsafe fn put<E: Stored<T>, T>(base: *mut u8, offset: isize, x: T) {
    // SAFETY: the caller addresses an element that was checked to be in the arena.
    unsafe { *base.cast::<E>().offset(offset) = E::put(x) }
}

/// Dimensions, and the selector of the stride that applies.
type Strided<'a> = (&'a [ContractDim], fn(&ContractDim) -> isize);

/// One operand.
#[derive(Clone, Debug)]
struct Storage<T> {
    base: *mut u8,
    /// Whether elements are stored in the compute type.
    native: bool,
    bytes: usize,
    get: Get<T>,
    put: Put<T>,
}

/// How the rows of an unpacked right operand are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// In the compute type.
    Native,
    /// In bf16, whose numbers are all representable in the compute type.
    Bf16,
}

/// Where a product is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Into the arena, as the contraction says.
    Arena,
    /// Into the scratch, from [`Prepared::whole`] on, with the contraction's strides.
    Scratch,
    /// Into the scratch, but only while a block is computed: [`Prepared::run`] passes it on. The contraction's strides
    /// only determine the layout of blocks, and its result has the compute type.
    Blocks,
}

/// A block of a product whose sums are complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Number of the batch index, in the order of [`by_stride`].
    pub(crate) batch: usize,
    /// First row, and number of rows. Rows are columns if the product is [`Prepared::swapped`].
    pub(crate) rows: (usize, usize),
    /// First column, and number of columns.
    pub(crate) columns: (usize, usize),
    /// Address of its first sum if it is in the scratch; columns are contiguous, and rows are [`Prepared::sum_stride`]
    /// apart.
    pub(crate) sums: *mut u8,
}

/// A callback that takes the blocks of a product.
type Finish<'a> = &'a mut dyn FnMut(Block);

/// A prepared product with one compute type.
#[derive(Clone, Debug)]
pub(crate) struct Product<T: 'static> {
    left: Storage<T>,
    right: Storage<T>,
    out: Storage<T>,
    /// Offsets of left, right and out for every batch index.
    batch: Vec<[isize; 3]>,
    m: usize,
    n: usize,
    k: usize,
    left_m: Offsets,
    left_k: Offsets,
    right_k: Offsets,
    right_n: Offsets,
    out_m: Offsets,
    out_n: Offsets,
    scale: T,
    tiles: Tiles<T>,
    pack_left: bool,
    read_right: bool,
    /// Blocks are summed in the scratch and then converted.
    convert_out: bool,
    /// Blocks are summed in the scratch and passed on.
    hand_on: bool,
    /// Storage of the columns of the right operand, if each is dense and the left operand is a single row.
    dots: Option<Rows>,
    /// Storage of the rows of the right operand, if it is streamed row by row for a left operand with few rows.
    streams: Option<Rows>,
    /// Left and right are exchanged, and so are rows and columns.
    swapped: bool,
    /// The result is in the scratch, with this many elements.
    whole: Option<usize>,
}

/// A part of a prepared product: its offsets in left, right and result, in elements; its numbers of rows, columns and
/// summed elements (at most those of the product); and whether it is added to the existing result (which must be stored
/// in the compute type).
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubProduct {
    pub(crate) shift: [isize; 3],
    pub(crate) size: [usize; 3],
    pub(crate) accumulate: bool,
}

/// Panels of a right operand that parts with the same right operand have packed, for later parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels {
    /// Space for [`Prepared::panel_bytes`].
    pub(crate) at: *mut u8,
    /// Number of packed columns.
    pub(crate) columns: usize,
}

/// A prepared product.
#[derive(Clone, Debug)]
pub(crate) enum Prepared {
    F32(Product<f32>),
    F64(Product<f64>),
}

// SAFETY: the pointers point into the arena of the rank that runs the product.
unsafe impl Send for Prepared {}

/// Prepares a product, without its epilogue.
pub(crate) fn prepare(c: &Contract, target: Target, arena: &Arena, buffers: &[Buffer]) -> Result<Prepared, String> {
    if [&c.left, &c.right, &c.out].iter().all(|v| is_narrow(v.dtype)) {
        product(c, target, arena, buffers).map(Prepared::F32)
    } else {
        product(c, target, arena, buffers).map(Prepared::F64)
    }
}

/// Whether f32 suffices to compute products of such elements.
pub(crate) fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

impl Prepared {
    /// Bytes of scratch that a run needs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        match self {
            Prepared::F32(p) => p.scratch_elements() * 4,
            Prepared::F64(p) => p.scratch_elements() * 8,
        }
    }

    /// Computes the product, adds it to the existing result if `accumulate` (the result must be stored in the compute
    /// type), and calls `finish` with every block as soon as it is complete.
    ///
    /// # Safety
    /// `scratch` must be `scratch_bytes` long and aligned to 64 bytes, and nothing else may use it or the operands
    /// during the call, except that `finish` may use the result and the block's sums.
    pub(crate) unsafe fn run(&self, scratch: *mut u8, accumulate: bool, finish: Finish<'_>) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Prepared::F32(p) => p.run(scratch.cast(), accumulate, finish),
                Prepared::F64(p) => p.run(scratch.cast(), accumulate, finish),
            }
        }
    }

    /// Whether rows of blocks are columns of the contraction, and columns are rows.
    pub(crate) fn swapped(&self) -> bool {
        match self {
            Prepared::F32(p) => p.swapped,
            Prepared::F64(p) => p.swapped,
        }
    }

    /// Elements between rows of sums in the scratch.
    pub(crate) fn sum_stride(&self) -> usize {
        match self {
            Prepared::F32(p) => p.sum_stride(),
            Prepared::F64(p) => p.sum_stride(),
        }
    }

    /// Address of a product in the scratch.
    pub(crate) fn whole(&self, scratch: *mut u8) -> *mut u8 {
        match self {
            Prepared::F32(p) => p.whole(scratch.cast()).cast(),
            Prepared::F64(p) => p.whole(scratch.cast()).cast(),
        }
    }

    /// Bytes of all panels of the right operand; 0 if it is better to pack them for every part.
    pub(crate) fn panel_bytes(&self) -> usize {
        match self {
            Prepared::F32(p) => p.panel_elements() * 4,
            Prepared::F64(p) => p.panel_elements() * 8,
        }
    }

    /// [`Prepared::run_part`] for all summed elements and the first columns, with panels that are kept; `panel_bytes`
    /// must not be 0.
    ///
    /// # Safety
    /// The conditions of [`Prepared::run_part`]; the panels must belong to this product and to the same right operand.
    pub(crate) unsafe fn run_part_with(&self, scratch: *mut u8, part: SubProduct, panels: &mut Panels) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Prepared::F32(p) => p.part_with(scratch.cast(), part, panels),
                Prepared::F64(p) => p.part_with(scratch.cast(), part, panels),
            }
        }
    }

    /// Computes a part of the product, which must have no batch dimensions.
    ///
    /// # Safety
    /// The conditions of [`Prepared::run`]; the part must be within the product, and its shifted operands within the arena.
    pub(crate) unsafe fn run_part(&self, scratch: *mut u8, part: SubProduct) {
        // SAFETY: passed on to the caller.
        unsafe {
            match self {
                Prepared::F32(p) => p.part(scratch.cast(), part),
                Prepared::F64(p) => p.part(scratch.cast(), part),
            }
        }
    }
}

/// The positions of dimensions in the order in which blocks iterate over them: dimensions of size 1 are left out, and
/// the one with the smallest stride is last.
pub(crate) fn by_stride(dims: &[ContractDim]) -> Vec<usize> {
    sorted(dims, |d| d.out.unsigned_abs())
}

fn sorted(dims: &[ContractDim], key: fn(&ContractDim) -> usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..dims.len()).filter(|&d| dims[d].size != 1).collect();
    order.sort_by_key(|&d| std::cmp::Reverse(key(&dims[d])));
    order
}

fn total(dims: &[ContractDim]) -> usize {
    dims.iter().map(|d| d.size).product()
}

fn product<T: Real>(c: &Contract, target: Target, arena: &Arena, buffers: &[Buffer]) -> Result<Product<T>, String>
where
    f64: Stored<T>,
    f32: Stored<T>,
    Bf16: Stored<T>,
    F16: Stored<T>,
    i64: Stored<T>,
    i32: Stored<T>,
    u8: Stored<T>,
    Truth: Stored<T>,
{
    let access = |dtype: DType, base: *mut u8| {
        let native = dtype.bytes() == size_of::<T>() && dtype.is_float();
        let (get, put): (Get<T>, Put<T>) = with_element!(dtype, E => (get::<E, T>, put::<E, T>));
        Storage { base, native, bytes: dtype.bytes(), get, put }
    };
    let operand = |view: &View, name: &str, groups: [Strided<'_>; 3]| {
        let mut sizes = Vec::new();
        let mut strides = Vec::new();
        for (dims, stride) in groups {
            sizes.extend(dims.iter().map(|d| d.size));
            strides.extend(dims.iter().map(stride));
        }
        let place = arena.resolve(buffers, view, &sizes, &strides).map_err(|e| format!("{name}: {e}"))?;
        Ok::<_, String>((access(view.dtype, place.base), place))
    };
    let (left, left_place) =
        operand(&c.left, "left", [(&c.batch, |d| d.left), (&c.m, |d| d.left), (&c.k, |d| d.left)])?;
    let (right, right_place) =
        operand(&c.right, "right", [(&c.batch, |d| d.right), (&c.k, |d| d.right), (&c.n, |d| d.right)])?;
    let (out, whole) = match target {
        Target::Arena => {
            let (out, place) = operand(&c.out, "out", [(&c.batch, |d| d.out), (&c.m, |d| d.out), (&c.n, |d| d.out)])?;
            if place.overlaps(&left_place) || place.overlaps(&right_place) {
                return Err("the result overlaps an operand".into());
            }
            (out, None)
        }
        Target::Blocks => (access(c.out.dtype, std::ptr::null_mut()), None),
        Target::Scratch => {
            let elements = (total(&c.batch) * total(&c.m) * total(&c.n) * c.out.dtype.bytes()).div_ceil(size_of::<T>());
            (access(c.out.dtype, std::ptr::null_mut()), Some(elements))
        }
    };
    let repeated = |d: &ContractDim| d.out == 0 && d.size > 1;
    if c.dims().all(|d| d.size > 0) && c.dims().any(repeated) {
        return Err("a dimension of the result has stride 0".into());
    }
    let taken = |dims: &[ContractDim], order: Vec<usize>| order.iter().map(|&d| dims[d]).collect::<Vec<_>>();
    let along = |dims: &[ContractDim], stride: fn(&ContractDim) -> isize| {
        Offsets::new(&dims.iter().map(|d| (d.size, stride(d))).collect::<Vec<_>>())
    };
    let batch_dims = taken(&c.batch, by_stride(&c.batch));
    let mut batch = vec![[0isize; 3]];
    for d in &batch_dims {
        batch = batch
            .iter()
            .flat_map(|b| (0..d.size as isize).map(move |i| [b[0] + i * d.left, b[1] + i * d.right, b[2] + i * d.out]))
            .collect();
    }
    let (m_dims, n_dims) = (taken(&c.m, by_stride(&c.m)), taken(&c.n, by_stride(&c.n)));
    let k_dims = taken(&c.k, sorted(&c.k, |d| d.left.unsigned_abs().saturating_add(d.right.unsigned_abs())));
    let (m, n, k) = (total(&c.m), total(&c.n), total(&c.k));
    let mut p = Product {
        left,
        right,
        out,
        batch,
        m,
        n,
        k,
        left_m: along(&m_dims, |d| d.left),
        left_k: along(&k_dims, |d| d.left),
        right_k: along(&k_dims, |d| d.right),
        right_n: along(&n_dims, |d| d.right),
        out_m: along(&m_dims, |d| d.out),
        out_n: along(&n_dims, |d| d.out),
        scale: T::from_f64(c.scale),
        tiles: T::tiles(),
        pack_left: false,
        read_right: false,
        convert_out: false,
        hand_on: target == Target::Blocks,
        dots: None,
        streams: None,
        swapped: false,
        whole,
    };
    // Vectors run along the columns of the result: exchange the operands if its rows are dense, or if there is a single
    // column.
    let columns = p.tiles.columns;
    let dense = |o: &Offsets, n: usize| n > 1 && o.dense(0, n.min(columns));
    if (p.n == 1 && p.m > 1) || (p.m > 1 && !dense(&p.out_n, p.n) && dense(&p.out_m, p.m)) {
        std::mem::swap(&mut p.left, &mut p.right);
        std::mem::swap(&mut p.left_m, &mut p.right_n);
        std::mem::swap(&mut p.left_k, &mut p.right_k);
        std::mem::swap(&mut p.out_m, &mut p.out_n);
        std::mem::swap(&mut p.m, &mut p.n);
        p.swapped = true;
        for b in &mut p.batch {
            b.swap(0, 1);
        }
    }
    let unit = |o: &Offsets| matches!(o, Offsets::Affine(1));
    // A left block is read in place if the sum runs over contiguous elements, unless its rows map to the same cache
    // sets and are read often.
    let conflicts = match p.left_m {
        Offsets::Affine(s) => {
            (s.unsigned_abs() * size_of::<T>()).is_multiple_of(4096)
                && p.m > 4 * p.tiles.rows()
                && p.n >= 16 * p.tiles.columns
        }
        Offsets::Table(_) => false,
    };
    p.pack_left = !p.left.native || !unit(&p.left_k) || conflicts;
    p.read_right = p.right.native && p.m <= FEW_ROWS && matches!(p.right_k, Offsets::Affine(_));
    p.convert_out = !p.out.native && p.k > BLOCK_K;
    let stored = match if p.swapped { c.left.dtype } else { c.right.dtype } {
        _ if p.right.native => Some(Rows::Native),
        DType::BF16 => Some(Rows::Bf16),
        _ => None,
    };
    p.dots = stored.filter(|_| p.m == 1 && unit(&p.left_k) && unit(&p.right_k));
    p.streams = stored.filter(|_| p.dots.is_none() && p.m <= STREAMED_ROWS && unit(&p.right_n));
    Ok(p)
}

impl<T: Real> Product<T> {
    fn block_n(&self) -> usize {
        self.n.next_multiple_of(self.tiles.columns).min(if self.streams.is_some() { self.streamed() } else { BLOCK_N })
    }

    /// Number of columns for which a streamed product keeps sums at a time.
    fn streamed(&self) -> usize {
        (STREAMED / self.m.max(1)).next_multiple_of(BLOCK_N)
    }

    fn block_k(&self) -> usize {
        BLOCK_K.min(self.k)
    }

    fn right_elements(&self) -> usize {
        let columns = if self.read_right { self.tiles.columns } else { self.block_n() };
        (self.block_k() * columns).next_multiple_of(16)
    }

    fn left_elements(&self) -> usize {
        if self.pack_left && self.dots.is_some() {
            self.k
        } else if self.pack_left {
            (self.block_k() + 16) * BLOCK_M.min(self.m.next_multiple_of(self.tiles.rows()))
        } else {
            0
        }
    }

    fn scratch_elements(&self) -> usize {
        self.whole_start() + self.whole.unwrap_or(0)
    }

    /// Whether blocks are summed in the scratch.
    fn sums_apart(&self) -> bool {
        self.convert_out || self.hand_on || self.streams.is_some()
    }

    /// Elements between rows of sums. Without the padding, the rows of one column block would map to the same cache
    /// sets.
    fn sum_stride(&self) -> usize {
        self.block_n() + 16
    }

    /// Rows of sums in the scratch: those of a block, or all rows if a block is not finished before the next begins.
    fn sum_rows(&self) -> usize {
        if self.k > BLOCK_K { self.m } else { self.m.min(BLOCK_M) }
    }

    fn sums_start(&self) -> usize {
        self.right_elements() + self.left_elements().next_multiple_of(16)
    }

    fn whole_start(&self) -> usize {
        let sums = if self.sums_apart() { self.sum_rows() * self.sum_stride() } else { 0 };
        self.sums_start() + sums.next_multiple_of(16)
    }

    fn whole(&self, scratch: *mut T) -> *mut T {
        scratch.wrapping_add(self.whole_start())
    }

    unsafe fn run(&self, scratch: *mut T, accumulate: bool, finish: Finish<'_>) {
        debug_assert!(!accumulate || self.out.native && !self.hand_on);
        for (batch, &shift) in self.batch.iter().enumerate() {
            let part = SubProduct { shift, size: [self.m, self.n, self.k], accumulate };
            // SAFETY: passed on to the caller.
            unsafe { self.one(scratch, part, &mut |block| finish(Block { batch, ..block })) }
        }
    }

    unsafe fn part(&self, scratch: *mut T, mut part: SubProduct) {
        debug_assert!(self.batch.len() == 1 && (self.out.native || !part.accumulate));
        if self.swapped {
            part.shift.swap(0, 1);
            part.size.swap(0, 1);
        }
        let [m, n, k] = part.size;
        part.size = [m.min(self.m), n.min(self.n), k.min(self.k)];
        // SAFETY: passed on to the caller.
        unsafe { self.one(scratch, part, &mut |_| ()) }
    }

    fn panel_elements(&self) -> usize {
        let reads = self.swapped
            || self.read_right
            || self.dots.is_some()
            || self.streams.is_some()
            || self.k == 0
            || self.k > BLOCK_K;
        if reads { 0 } else { self.n.next_multiple_of(self.tiles.columns) * self.k }
    }

    unsafe fn part_with(&self, scratch: *mut T, part: SubProduct, panels: &mut Panels) {
        let [m, n, k] = [part.size[0].min(self.m), part.size[1].min(self.n), self.k];
        let right = self.right.base.wrapping_offset(part.shift[1] * self.right.bytes as isize);
        let packed = panels.at.cast::<T>();
        if panels.columns < n {
            let (j, end) = (panels.columns, n.next_multiple_of(self.tiles.columns).min(self.n));
            // SAFETY: the right operand is in the arena, and the panels have room for all of it.
            unsafe { self.pack_panels(right, 0, k, (j, end - j), packed.add(j * k)) }
            panels.columns = end;
        }
        if m == 0 || n == 0 {
            return;
        }
        let left = self.left.base.wrapping_offset(part.shift[0] * self.left.bytes as isize);
        let out = self.out.base.wrapping_offset(part.shift[2] * self.out.bytes as isize);
        let packed_left = scratch.wrapping_add(self.right_elements());
        for i0 in (0..m).step_by(BLOCK_M) {
            let m = BLOCK_M.min(m - i0);
            if self.pack_left {
                // SAFETY: see `run`.
                unsafe { self.pack_left(left, 0, k, i0, m, packed_left) }
            }
            for j in (0..n).step_by(self.tiles.columns) {
                let columns = self.tiles.columns.min(n - j);
                let b = (packed.wrapping_add(j * k).cast_const(), self.tiles.columns as isize);
                for i in (0..m).step_by(self.tiles.rows()) {
                    let rows = self.tiles.rows().min(m - i);
                    let (a, step) = self.left_rows(left, 0, k, i0, i, rows, packed_left);
                    // SAFETY: see `run`; the sums of a single block are never kept in the scratch.
                    unsafe { self.tile(k, &a, step, b, out, scratch, (i0 + i, rows), (j, columns), part.accumulate) }
                }
            }
        }
    }

    unsafe fn one(&self, scratch: *mut T, part: SubProduct, finish: Finish<'_>) {
        let at = |o: &Storage<T>, offset: isize| o.base.wrapping_offset(offset * o.bytes as isize);
        let [m, n, k] = part.size;
        let (left, right) = (at(&self.left, part.shift[0]), at(&self.right, part.shift[1]));
        let out = match self.whole {
            None => at(&self.out, part.shift[2]),
            Some(_) => self.whole(scratch).cast::<u8>().wrapping_offset(part.shift[2] * self.out.bytes as isize),
        };
        if m == 0 || n == 0 {
            return;
        }
        // SAFETY: the operands' elements were checked to be in the arena; the scratch belongs to the caller.
        unsafe {
            if k == 0 {
                self.nothing(out, scratch, part, finish);
            } else {
                match (self.dots, self.streams) {
                    (Some(Rows::Native), _) => self.dots::<T>(left, right.cast(), out, scratch, part, finish),
                    (Some(Rows::Bf16), _) => self.dots::<Bf16>(left, right.cast(), out, scratch, part, finish),
                    (_, Some(Rows::Native)) => self.stream::<T>(left, right.cast(), out, scratch, part, finish),
                    (_, Some(Rows::Bf16)) => self.stream::<Bf16>(left, right.cast(), out, scratch, part, finish),
                    (None, None) => self.blocks(left, right, out, scratch, part, finish),
                }
            }
        }
    }

    /// Computes a product without summed elements.
    unsafe fn nothing(&self, out: *mut u8, scratch: *mut T, part: SubProduct, finish: Finish<'_>) {
        let [all_m, all_n, _] = part.size;
        let sums = scratch.wrapping_add(self.sums_start());
        for j0 in (0..all_n).step_by(BLOCK_N) {
            let n = BLOCK_N.min(all_n - j0);
            for i0 in (0..all_m).step_by(BLOCK_M) {
                let m = BLOCK_M.min(all_m - i0);
                for i in 0..m {
                    for j in 0..n {
                        // SAFETY: see `run`.
                        unsafe {
                            if self.hand_on {
                                *sums.add(i * self.sum_stride() + j) = T::default();
                            } else if !part.accumulate {
                                (self.out.put)(out, self.out_m.at(i0 + i) + self.out_n.at(j0 + j), T::default());
                            }
                        }
                    }
                }
                finish(Block { batch: 0, rows: (i0, m), columns: (j0, n), sums: sums.cast() });
            }
        }
    }

    /// Passes on an element of the product in the scratch, or writes or adds it to the result.
    #[inline(always)]
    unsafe fn give(&self, x: T, sum: *mut T, (out, offset): (*mut u8, isize), accumulate: bool) {
        // SAFETY: the caller addresses an element of the sums and one of the result; an accumulated result is stored in
        // this type.
        unsafe {
            if self.hand_on {
                *sum = x;
            } else if accumulate {
                let o = out.cast::<T>().offset(offset);
                *o = *o + x;
            } else {
                (self.out.put)(out, offset, x);
            }
        }
    }

    /// Computes a product of one row: a dot product with each column of the right operand.
    unsafe fn dots<E: Widen<T>>(
        &self,
        left: *const u8,
        right: *const E,
        out: *mut u8,
        scratch: *mut T,
        part: SubProduct,
        finish: Finish<'_>,
    ) {
        let [_, all_n, k] = part.size;
        let sums = scratch.wrapping_add(self.sums_start());
        let row =
            if self.pack_left { scratch.wrapping_add(self.right_elements()) } else { left.cast::<T>().cast_mut() };
        if self.pack_left {
            for p in 0..k {
                // SAFETY: see `run`; the scratch has room for a whole row.
                unsafe { *row.add(p) = (self.left.get)(left, p as isize) }
            }
        }
        // SAFETY: the summed elements are contiguous, in the left operand or in the scratch.
        let a = unsafe { std::slice::from_raw_parts(row.cast_const(), k) };
        for j0 in (0..all_n).step_by(BLOCK_N) {
            let n = BLOCK_N.min(all_n - j0);
            // SAFETY: as above.
            let column = |j: usize| unsafe { std::slice::from_raw_parts(right.offset(self.right_n.at(j0 + j)), k) };
            let give = |j: usize, x: T| {
                // SAFETY: as above; an accumulated result is stored in this type.
                unsafe { self.give(self.scale * x, sums.add(j), (out, self.out_n.at(j0 + j)), part.accumulate) }
            };
            // As in `stream`: columns that are read side by side lie far apart.
            let span = n / COLUMNS_AT_ONCE;
            for j in 0..span {
                let columns: [&[E]; COLUMNS_AT_ONCE] = std::array::from_fn(|q| column(q * span + j));
                for (q, x) in T::dots(a, &columns).into_iter().enumerate() {
                    give(q * span + j, x);
                }
            }
            for j in span * COLUMNS_AT_ONCE..n {
                give(j, T::dots(a, &[column(j)])[0]);
            }
            finish(Block { batch: 0, rows: (0, 1), columns: (j0, n), sums: sums.cast() });
        }
    }

    /// Computes a product of few rows, reading the right operand once and without packing.
    unsafe fn stream<E: Widen<T>>(
        &self,
        left: *const u8,
        right: *const E,
        out: *mut u8,
        scratch: *mut T,
        part: SubProduct,
        finish: Finish<'_>,
    ) {
        let [m, all_n, k] = part.size;
        let (sums, stride) = (scratch.wrapping_add(self.sums_start()), self.sum_stride());
        // SAFETY: see `run`.
        let x = |i: usize, p: usize| unsafe { (self.left.get)(left, self.left_m.at(i) + self.left_k.at(p)) };
        for j0 in (0..all_n).step_by(self.streamed()) {
            let n = self.streamed().min(all_n - j0);
            let sums_of = |i: usize| sums.wrapping_add(i * stride);
            // SAFETY: the rows of sums are in the scratch, `sum_stride` apart.
            (0..m).for_each(|i| unsafe { sums_of(i).write_bytes(0, n) });
            let row = |p: usize| right.wrapping_offset(j0 as isize + self.right_k.at(p));
            // Rows that are read side by side lie far apart, so that each is followed in memory by the next one of its stream: a
            // prefetcher follows long streams, and has to find short ones over and over.
            let span = k / ROWS_AT_ONCE;
            for p in 0..span {
                let rows: [*const E; ROWS_AT_ONCE] = std::array::from_fn(|q| row(q * span + p));
                let mut i = 0;
                while i + 4 <= m {
                    let x = std::array::from_fn(|r| std::array::from_fn(|q| x(i + r, q * span + p)));
                    // SAFETY: the rows are in the arena.
                    unsafe { T::add_rows::<E, 4>(&x, &rows, &std::array::from_fn(|r| sums_of(i + r)), n) }
                    i += 4;
                }
                for i in i..m {
                    let x = [std::array::from_fn(|q| x(i, q * span + p))];
                    // SAFETY: as above.
                    unsafe { T::add_rows::<E, 1>(&x, &rows, &[sums_of(i)], n) }
                }
            }
            for p in span * ROWS_AT_ONCE..k {
                for i in 0..m {
                    let x = x(i, p);
                    for j in 0..n {
                        // SAFETY: as above.
                        unsafe {
                            let sum = sums_of(i).add(j);
                            *sum = *sum + x * (*row(p).add(j)).widen();
                        }
                    }
                }
            }
            for i in 0..m {
                for j in 0..n {
                    let offset = self.out_m.at(i) + self.out_n.at(j0 + j);
                    // SAFETY: see `run`; an accumulated result is stored in this type.
                    unsafe {
                        let sum = sums_of(i).add(j);
                        self.give(self.scale * *sum, sum, (out, offset), part.accumulate);
                    }
                }
            }
            // The receiver of blocks has room for this many columns.
            for j in (0..n).step_by(BLOCK_N) {
                let columns = (j0 + j, BLOCK_N.min(n - j));
                finish(Block { batch: 0, rows: (0, m), columns, sums: sums.wrapping_add(j).cast() });
            }
        }
    }

    unsafe fn blocks(
        &self,
        left: *const u8,
        right: *const u8,
        out: *mut u8,
        scratch: *mut T,
        part: SubProduct,
        finish: Finish<'_>,
    ) {
        let [all_m, all_n, all_k] = part.size;
        let packed_left = scratch.wrapping_add(self.right_elements());
        for j0 in (0..all_n).step_by(BLOCK_N) {
            let n = BLOCK_N.min(all_n - j0);
            let columns_of = |j: usize| self.tiles.columns.min(n - j);
            for p0 in (0..all_k).step_by(BLOCK_K) {
                let k = BLOCK_K.min(all_k - p0);
                if !self.read_right {
                    // SAFETY: see `run`.
                    unsafe { self.pack_panels(right, p0, k, (j0, n), scratch) }
                }
                for i0 in (0..all_m).step_by(BLOCK_M) {
                    let m = BLOCK_M.min(all_m - i0);
                    let first = if self.k > BLOCK_K { i0 } else { 0 };
                    let sums = scratch.wrapping_add(self.sums_start() + first * self.sum_stride());
                    // Tiles count rows and columns of the whole product.
                    let sums_from = sums.wrapping_sub(i0 * self.sum_stride() + j0);
                    if self.pack_left {
                        // SAFETY: see `run`.
                        unsafe { self.pack_left(left, p0, k, i0, m, packed_left) }
                    }
                    for j in (0..n).step_by(self.tiles.columns) {
                        let columns = columns_of(j);
                        let (b, b_step) = if !self.read_right {
                            (scratch.wrapping_add(j * k).cast_const(), self.tiles.columns as isize)
                        } else if columns == self.tiles.columns && self.right_n.dense(j0 + j, columns) {
                            let offset = self.right_n.at(j0 + j) + self.right_k.at(p0);
                            (right.cast::<T>().wrapping_offset(offset), self.right_k.at(1))
                        } else {
                            // SAFETY: see `run`.
                            unsafe { self.pack_right(right, p0, k, (j0 + j, columns), scratch) }
                            (scratch.cast_const(), self.tiles.columns as isize)
                        };
                        for i in (0..m).step_by(self.tiles.rows()) {
                            let rows = self.tiles.rows().min(m - i);
                            let (a, step) = self.left_rows(left, p0, k, i0, i, rows, packed_left);
                            // SAFETY: see `run`.
                            unsafe {
                                self.tile(
                                    k,
                                    &a,
                                    step,
                                    (b, b_step),
                                    out,
                                    sums_from,
                                    (i0 + i, rows),
                                    (j0 + j, columns),
                                    p0 > 0 || part.accumulate,
                                )
                            }
                        }
                    }
                    if p0 + k == all_k {
                        let block = Block { batch: 0, rows: (i0, m), columns: (j0, n), sums: sums.cast() };
                        if self.convert_out {
                            // SAFETY: see `run`.
                            unsafe { self.convert(out, block) }
                        }
                        finish(block);
                    }
                }
            }
        }
    }

    /// Writes the sums of a block to the result.
    unsafe fn convert(&self, out: *mut u8, block: Block) {
        for i in 0..block.rows.1 {
            for j in 0..block.columns.1 {
                let offset = self.out_m.at(block.rows.0 + i) + self.out_n.at(block.columns.0 + j);
                // SAFETY: the sums are in the scratch, the elements in the arena.
                unsafe { (self.out.put)(out, offset, *block.sums.cast::<T>().add(i * self.sum_stride() + j)) }
            }
        }
    }

    /// The addresses of the rows of a tile of the left operand, and the distance between summed elements.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn left_rows(
        &self,
        left: *const u8,
        p0: usize,
        k: usize,
        i0: usize,
        i: usize,
        rows: usize,
        packed: *const T,
    ) -> ([*const T; MOST_ROWS], isize) {
        let mut a = [packed; MOST_ROWS];
        if !self.pack_left {
            let base = left.cast::<T>().wrapping_offset(self.left_k.at(p0));
            for (r, a) in a.iter_mut().enumerate().take(rows) {
                *a = base.wrapping_offset(self.left_m.at(i0 + i + r));
            }
            (a, 1)
        } else if matches!(self.left_k, Offsets::Affine(1)) {
            for (r, a) in a.iter_mut().enumerate().take(rows) {
                *a = packed.wrapping_add((i + r) * (k + 16));
            }
            (a, 1)
        } else {
            for (r, a) in a.iter_mut().enumerate().take(rows) {
                *a = packed.wrapping_add(i * k + r);
            }
            (a, self.tiles.rows() as isize)
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    unsafe fn tile(
        &self,
        k: usize,
        a: &[*const T; MOST_ROWS],
        step: isize,
        (b, b_step): (*const T, isize),
        out: *mut u8,
        sums: *mut T,
        (i, rows): (usize, usize),
        (j, columns): (usize, usize),
        accumulate: bool,
    ) {
        let kernel = self.tiles.kernels[rows - 1];
        let full = columns == self.tiles.columns;
        // SAFETY: see `run`; rows of sums have room for whole tiles.
        unsafe {
            if self.sums_apart() || full && self.out.native && self.out_n.dense(j, columns) {
                let mut target = [sums; MOST_ROWS];
                for (r, t) in target.iter_mut().enumerate().take(rows) {
                    *t = if self.sums_apart() {
                        sums.wrapping_add((i + r) * self.sum_stride() + j)
                    } else {
                        out.cast::<T>().wrapping_offset(self.out_m.at(i + r) + self.out_n.at(j))
                    };
                }
                return kernel(k, a, step, b, b_step, &target, self.scale, accumulate);
            }
            let mut tile = [[T::default(); MOST_COLUMNS]; MOST_ROWS];
            let rows_of = tile.as_mut_ptr().cast::<T>();
            let target: [*mut T; MOST_ROWS] = std::array::from_fn(|r| rows_of.add(r * MOST_COLUMNS));
            kernel(k, a, step, b, b_step, &target, self.scale, false);
            for (r, row) in tile.iter().enumerate().take(rows) {
                for (c, &x) in row.iter().enumerate().take(columns) {
                    let offset = self.out_m.at(i + r) + self.out_n.at(j + c);
                    if self.out.native {
                        let o = out.cast::<T>().offset(offset);
                        *o = if accumulate { *o + x } else { x };
                    } else {
                        (self.out.put)(out, offset, x);
                    }
                }
            }
        }
    }

    /// Packs panels of columns of the right operand, one after the other.
    unsafe fn pack_panels(&self, right: *const u8, p0: usize, k: usize, (j0, n): (usize, usize), to: *mut T) {
        let columns = self.tiles.columns;
        let mut done = 0;
        // SAFETY: see `run`.
        unsafe {
            if self.right.native && matches!(self.right_n, Offsets::Affine(1)) {
                // Row by row, in memory order: every panel gets its part of each row.
                done = n - n % columns;
                for p in 0..k {
                    let row = right.cast::<T>().offset(j0 as isize + self.right_k.at(p0 + p));
                    for j in (0..done).step_by(columns) {
                        std::ptr::copy_nonoverlapping(row.add(j), to.add(j * k + p * columns), columns);
                    }
                }
            }
            for j in (done..n).step_by(columns) {
                self.pack_right(right, p0, k, (j0 + j, columns.min(n - j)), to.add(j * k));
            }
        }
    }

    /// Packs a panel of columns of the right operand, with the summed elements outermost.
    unsafe fn pack_right(&self, right: *const u8, p0: usize, k: usize, (j, columns): (usize, usize), to: *mut T) {
        // SAFETY: see `run`.
        unsafe {
            if columns == self.tiles.columns && self.right.native {
                if self.right_n.dense(j, columns) {
                    for p in 0..k {
                        let from = right.cast::<T>().offset(self.right_n.at(j) + self.right_k.at(p0 + p));
                        std::ptr::copy_nonoverlapping(from, to.add(p * self.tiles.columns), self.tiles.columns);
                    }
                    return;
                }
                if matches!(self.right_k, Offsets::Affine(1)) {
                    let mut from = [right.cast::<T>(); MOST_COLUMNS];
                    for (c, f) in from.iter_mut().enumerate().take(columns) {
                        *f = f.offset(self.right_n.at(j + c) + self.right_k.at(p0));
                    }
                    return T::transpose(k, &from[..columns], to);
                }
            }
            for p in 0..k {
                let offset = self.right_k.at(p0 + p);
                for c in 0..self.tiles.columns {
                    let x = if c < columns {
                        (self.right.get)(right, offset + self.right_n.at(j + c))
                    } else {
                        T::default()
                    };
                    *to.add(p * self.tiles.columns + c) = x;
                }
            }
        }
    }

    /// Packs a block of the left operand: row by row if the sum runs over contiguous elements, otherwise in panels of
    /// `rows` rows with the summed elements outermost.
    unsafe fn pack_left(&self, left: *const u8, p0: usize, k: usize, i0: usize, m: usize, to: *mut T) {
        let unit = matches!(self.left_k, Offsets::Affine(1));
        // SAFETY: see `run`.
        unsafe {
            if unit && self.left.native {
                for i in 0..m {
                    let from = left.cast::<T>().offset(self.left_m.at(i0 + i) + self.left_k.at(p0));
                    std::ptr::copy_nonoverlapping(from, to.add(i * (k + 16)), k);
                }
            } else if unit {
                for i in 0..m {
                    let offset = self.left_m.at(i0 + i) + self.left_k.at(p0);
                    for p in 0..k {
                        *to.add(i * (k + 16) + p) = (self.left.get)(left, offset + p as isize);
                    }
                }
            } else if self.left.native && self.left_m.dense(i0, m) {
                for p in 0..k {
                    let from = left.cast::<T>().offset(self.left_m.at(i0) + self.left_k.at(p0 + p));
                    let mut i = 0;
                    while i + self.tiles.rows() <= m {
                        std::ptr::copy_nonoverlapping(
                            from.add(i),
                            to.add(i * k + p * self.tiles.rows()),
                            self.tiles.rows(),
                        );
                        i += self.tiles.rows();
                    }
                    std::ptr::copy_nonoverlapping(from.add(i), to.add(i * k + p * self.tiles.rows()), m - i);
                }
            } else {
                for i in 0..m {
                    let panel = to.add(i / self.tiles.rows() * self.tiles.rows() * k + i % self.tiles.rows());
                    let offset = self.left_m.at(i0 + i);
                    for p in 0..k {
                        *panel.add(p * self.tiles.rows()) = (self.left.get)(left, offset + self.left_k.at(p0 + p));
                    }
                }
            }
        }
    }
}
