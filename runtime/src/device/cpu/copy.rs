//! Copies between strided views, prefix sums, and the k largest elements of a row.

use super::arena::Arena;
use crate::element::{Element, Lane, with_element};
use tpc_ir::DType;
use tpc_ir::program::{Buffer, View};

/// A prepared copy: nested loops around contiguous or strided runs.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    from: *const u8,
    to: *mut u8,
    /// `(size, bytes in the source, bytes in the target)`, outermost first; the last is the run.
    dims: Vec<(usize, isize, isize)>,
    bytes: usize,
}

// SAFETY: the pointers point into the arena of the rank that runs the copy.
unsafe impl Send for Copy {}

impl Copy {
    /// Prepares a copy.
    pub(crate) fn prepare(from: &View, to: &View, arena: &Arena, buffers: &[Buffer]) -> Result<Self, String> {
        if from.shape != to.shape {
            return Err(format!("copies shape {:?} to shape {:?}", from.shape, to.shape));
        }
        if from.dtype != to.dtype {
            return Err(format!("copies {} to {}; a conversion is a loop", from.dtype, to.dtype));
        }
        let source = arena.resolve_view(buffers, from)?;
        let target = arena.resolve_view(buffers, to)?;
        let size = from.dtype.bytes();
        let mut dims: Vec<(usize, isize, isize)> = Vec::new();
        for ((&n, &f), &t) in from.shape.iter().zip(&from.strides).zip(&to.strides) {
            if n == 1 {
                continue;
            }
            match dims.last_mut() {
                Some((m, lf, lt)) if n != 0 && *m != 0 && *lf == f * n as isize && *lt == t * n as isize => {
                    (*m, *lf, *lt) = (*m * n, f, t);
                }
                _ => dims.push((n, f, t)),
            }
        }
        if source.overlaps(&target) && source.base != target.base {
            return Err("the source overlaps the target".into());
        }
        let mut bytes = size;
        if let Some(&(n, 1, 1)) = dims.last() {
            dims.pop();
            bytes *= n;
        }
        let dims = dims.into_iter().map(|(n, f, t)| (n, f * size as isize, t * size as isize)).collect();
        Ok(Copy { from: source.base, to: target.base, dims, bytes })
    }

    /// Runs the copy.
    ///
    /// # Safety
    /// Nothing else may use the views during the call.
    pub(crate) unsafe fn run(&self) {
        // SAFETY: all elements were checked to be in the arena.
        unsafe { copy(self.from, self.to, &self.dims, self.bytes) }
    }
}

/// # Safety
/// All addressed elements must be readable or writable.
unsafe fn copy(from: *const u8, to: *mut u8, dims: &[(usize, isize, isize)], bytes: usize) {
    match dims {
        // SAFETY: as the caller guarantees; source and target may be equal.
        [] => unsafe { std::ptr::copy(from, to, bytes) },
        &[(n, f, t)] if bytes == 4 => {
            for i in 0..n as isize {
                // SAFETY: as the caller guarantees; two elements of 2 bytes are aligned to 2.
                unsafe {
                    let element = from.offset(i * f).cast::<u32>().read_unaligned();
                    to.offset(i * t).cast::<u32>().write_unaligned(element);
                }
            }
        }
        &[(n, f, t), ref rest @ ..] => {
            for i in 0..n as isize {
                // SAFETY: as the caller guarantees.
                unsafe { copy(from.wrapping_offset(i * f), to.wrapping_offset(i * t), rest, bytes) }
            }
        }
    }
}

/// A prepared action on strided views that visits every row along one dimension.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    /// Offsets of the rows in bytes, in every view.
    rows: Vec<[isize; 3]>,
    base: [*mut u8; 3],
    /// Length of a row of the operand, and of the result.
    len: [usize; 2],
    /// Elements between consecutive elements of a row.
    step: [isize; 3],
    kernel: RowKernel,
}

type RowKernel = unsafe fn(len: [usize; 2], base: [*mut u8; 3], step: [isize; 3], order: &mut [u32]);

// SAFETY: the pointers point into the arena of the rank that runs the action.
unsafe impl Send for Rows {}

impl Rows {
    /// Prepares prefix sums.
    pub(crate) fn cumsum(
        from: &View,
        to: &View,
        dim: usize,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Self, String> {
        if from.shape != to.shape || dim >= from.shape.len() || from.dtype != to.dtype {
            return Err(format!("sums dimension {dim} of {:?} to {:?}", from.shape, to.shape));
        }
        let kernel: RowKernel = with_element!(from.dtype, E => cumsum::<E>);
        Self::new([from, to, to], dim, kernel, arena, buffers)
    }

    /// Prepares the search for the k largest elements.
    pub(crate) fn top_k(
        from: &View,
        values: &View,
        indices: &View,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Self, String> {
        let last = from.shape.len().checked_sub(1).ok_or("has no dimension to search")?;
        let fits = from.shape.len() == values.shape.len()
            && from.shape[..last] == values.shape[..last]
            && values.shape == indices.shape
            && values.shape[last] <= from.shape[last];
        if !fits || from.dtype != values.dtype {
            return Err(format!(
                "searches {:?} for {:?} values, {:?} indices",
                from.shape, values.shape, indices.shape
            ));
        }
        let kernel: RowKernel = match indices.dtype {
            DType::I64 => with_element!(from.dtype, E => top_k::<E, i64>),
            DType::I32 => with_element!(from.dtype, E => top_k::<E, i32>),
            d => return Err(format!("indices of type {d}; they must be i64 or i32")),
        };
        Self::new([from, values, indices], last, kernel, arena, buffers)
    }

    fn new(
        views: [&View; 3],
        dim: usize,
        kernel: RowKernel,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Self, String> {
        let mut base = [std::ptr::null_mut(); 3];
        for (b, v) in base.iter_mut().zip(views) {
            *b = arena.resolve_view(buffers, v)?.base;
        }
        let mut rows = vec![[0isize; 3]];
        for d in (0..views[0].shape.len()).filter(|&d| d != dim) {
            let stride: [isize; 3] = std::array::from_fn(|v| views[v].strides[d] * views[v].dtype.bytes() as isize);
            rows = rows
                .iter()
                .flat_map(|r| {
                    (0..views[0].shape[d] as isize).map(move |i| std::array::from_fn(|v| r[v] + i * stride[v]))
                })
                .collect();
        }
        let step = std::array::from_fn(|v| views[v].strides[dim]);
        Ok(Rows { rows, base, len: [views[0].shape[dim], views[1].shape[dim]], step, kernel })
    }

    /// Bytes of scratch that a run needs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.len[0] * 4
    }

    /// Runs the action.
    ///
    /// # Safety
    /// `scratch` must be `scratch_bytes` long and aligned to 64 bytes, and nothing else may use it or the views during
    /// the call.
    pub(crate) unsafe fn run(&self, scratch: *mut u8) {
        // SAFETY: the scratch has room for an index per element; zeroing makes it valid.
        let order = unsafe {
            scratch.write_bytes(0, self.len[0] * 4);
            std::slice::from_raw_parts_mut(scratch.cast::<u32>(), self.len[0])
        };
        for r in &self.rows {
            let base = std::array::from_fn(|v| self.base[v].wrapping_offset(r[v]));
            // SAFETY: all elements were checked to be in the arena.
            unsafe { (self.kernel)(self.len, base, self.step, order) }
        }
    }
}

unsafe fn cumsum<E: Element>(len: [usize; 2], base: [*mut u8; 3], step: [isize; 3], _: &mut [u32]) {
    let mut sum = E::Lane::from_i64(0);
    for i in 0..len[0] as isize {
        // SAFETY: the caller addresses rows in the arena.
        unsafe {
            let x = (*base[0].cast::<E>().offset(i * step[0])).load();
            sum = sum.combine::<{ crate::element::SUM }>(x);
            *base[1].cast::<E>().offset(i * step[1]) = E::store(sum);
        }
    }
}

/// Finds the k largest elements in descending order. NaN counts as the largest, and of equal elements the first comes
/// first.
unsafe fn top_k<E: Element, I: Element<Lane = i64>>(
    len: [usize; 2],
    base: [*mut u8; 3],
    step: [isize; 3],
    order: &mut [u32],
) {
    // SAFETY: the caller addresses rows in the arena.
    let at = |i: u32| unsafe { (*base[0].cast::<E>().offset(i as isize * step[0])).load().to_f64() };
    for (i, o) in order.iter_mut().enumerate() {
        *o = i as u32;
    }
    let descending = |&a: &u32, &b: &u32| {
        let (x, y) = (at(a), at(b));
        let by_value = y.partial_cmp(&x).unwrap_or_else(|| y.is_nan().cmp(&x.is_nan()));
        by_value.then(a.cmp(&b))
    };
    let k = len[1];
    if k > 0 && k < order.len() {
        order.select_nth_unstable_by(k - 1, descending);
    }
    order[..k].sort_unstable_by(descending);
    for (j, &i) in order[..k].iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            *base[1].cast::<E>().offset(j as isize * step[1]) = *base[0].cast::<E>().offset(i as isize * step[0]);
            *base[2].cast::<I>().offset(j as isize * step[2]) = I::store(i64::from(i));
        }
    }
}
