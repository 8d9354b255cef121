//! Prefix sums, and the k largest elements of a row.

use super::body::{accumulator, element, lane};
use super::kernels::Launch;
use super::rank::Rank;
use super::space::{Axis, count, cut, index_types, merge, offset};
use crate::device::cpu::vector::LaneType;
use std::fmt::Write as _;
use tpc_ir::program::View;
use tpc_ir::{DType, ReduceOp};

/// Rows up to this length are summed by one thread.
const SHORT: usize = 64;

/// The axes of all dimensions but one.
fn others(views: &[&View], dim: usize) -> Vec<Axis> {
    let of = |d: usize| Axis { size: views[0].shape[d], strides: views.iter().map(|v| v.strides[d]).collect() };
    let mut axes: Vec<Axis> =
        (0..views[0].shape.len()).filter(|&d| d != dim && views[0].shape[d] != 1).map(of).collect();
    merge(&mut axes);
    axes
}

/// Emits the launch of prefix sums.
pub(super) fn cumsum(rank: &mut Rank<'_>, from: &View, to: &View, dim: usize) -> Result<Vec<Launch>, String> {
    if from.shape != to.shape || dim >= from.shape.len() || from.dtype != to.dtype {
        return Err(format!("sums dimension {dim} of {:?} to {:?}", from.shape, to.shape));
    }
    let (source, target) = (rank.view(from)?, rank.view(to)?);
    let axes = others(&[from, to], dim);
    let (rows, n) = (count(&axes), from.shape[dim]);
    if rows * n == 0 {
        return Ok(Vec::new());
    }
    let t = element(from.dtype);
    let of = LaneType::of(from.dtype);
    let l = lane(of);
    let (sf, st) = (from.strides[dim], to.strides[dim]);
    let mut text = String::from(index_types([&axes, &[]]));
    let _ = writeln!(text, "    const {t}* const p0 = (const {t}*)(A + a0);\n    {t}* const p1 = ({t}*)(A + a1);");
    let at = |i: usize| offset(i, [("k", &axes), ("n", &[])], "(i64)");
    let args = vec![rank.at(source.base), rank.at(target.base)];
    if n <= SHORT || sf != 1 {
        let _ = writeln!(text, "    const uq q = blockIdx.x * (uq)128 + threadIdx.x;\n    if (q >= {rows}u) return;");
        text.push_str(&cut("q", "k", &axes, 1, "    "));
        let _ = writeln!(
            text,
            "    {l} sum = 0;\n    for (i64 i = 0; i < {n}; i++) {{\n        sum = Sum::of(sum, lane(p0[{} + i * {sf}]));\n        p1[{} + i * {st}] = To<{t}>::of(sum);\n    }}",
            at(0),
            at(1)
        );
        return Ok(vec![rank.launch("cumsum", (rows.div_ceil(128), 128), false, args, &text)?]);
    }
    // A warp per row: 32 consecutive elements at a time, after Hillis and Steele.
    let acc = accumulator(ReduceOp::Sum, of);
    let _ = writeln!(
        text,
        "    const int t = threadIdx.x % 32;\n    const uq row = blockIdx.x * (uq)4 + threadIdx.x / 32;\n    const uq q = row < {rows}u ? row : {}u;",
        rows - 1
    );
    text.push_str(&cut("q", "k", &axes, 1, "    "));
    let _ = writeln!(
        text,
        "    {acc} carry = 0;\n    for (i64 i = t; i - t < {n}; i += 32) {{\n        {acc} v = i < {n} ? ({acc})lane(p0[{} + i * {sf}]) : ({acc})0;\n        \
         #pragma unroll\n        for (int o = 1; o < 32; o *= 2) {{\n            const {acc} before = __shfl_up_sync(0xffffffffu, v, o);\n            if (t >= o) v = Sum::of(before, v);\n        }}\n        \
         v = Sum::of(carry, v);\n        if (row == q && i < {n}) p1[{} + i * {st}] = To<{t}>::of(({l})v);\n        \
         carry = __shfl_sync(0xffffffffu, v, 31);\n    }}",
        at(0),
        at(1)
    );
    Ok(vec![rank.launch("cumsum_rows", (rows.div_ceil(4), 128), true, args, &text)?])
}

/// Emits the launch of the search for the k largest elements: a block per row finds them one after the other.
pub(super) fn top_k(rank: &mut Rank<'_>, from: &View, values: &View, indices: &View) -> Result<Vec<Launch>, String> {
    let last = from.shape.len().checked_sub(1).ok_or("has no dimension to search")?;
    let fits = from.shape.len() == values.shape.len()
        && from.shape[..last] == values.shape[..last]
        && values.shape == indices.shape
        && values.shape[last] <= from.shape[last];
    if !fits || from.dtype != values.dtype {
        return Err(format!("searches {:?} for {:?} values, {:?} indices", from.shape, values.shape, indices.shape));
    }
    if !matches!(indices.dtype, DType::I64 | DType::I32) {
        return Err(format!("indices of type {}; they must be i64 or i32", indices.dtype));
    }
    let places = [rank.view(from)?, rank.view(values)?, rank.view(indices)?];
    let axes = others(&[from, values, indices], last);
    let (rows, n, k) = (count(&axes), from.shape[last], values.shape[last]);
    if rows * k == 0 {
        return Ok(Vec::new());
    }
    let (t, ti) = (element(from.dtype), element(indices.dtype));
    let mut text = String::from(index_types([&axes, &[]]));
    let _ = writeln!(
        text,
        "    const {t}* const p0 = (const {t}*)(A + a0);\n    {t}* const p1 = ({t}*)(A + a1);\n    {ti}* const p2 = ({ti}*)(A + a2);\n    \
         const int tid = threadIdx.x;\n    const uq q = blockIdx.x;\n    __shared__ double keys[8];\n    __shared__ int places[8];"
    );
    text.push_str(&cut("q", "k", &axes, 1, "    "));
    let at = |i: usize| offset(i, [("k", &axes), ("n", &[])], "(i64)");
    // Descending; NaN is the largest, and of equal elements the first comes first. Every round takes the first element
    // in that order after the previous one.
    let _ = writeln!(
        text,
        "    double last = 0.0;\n    int taken = -1;\n    for (int j = 0; j < {k}; j++) {{\n        double best = 0.0;\n        int where = -1;\n        \
         for (int i = tid; i < {n}; i += 256) {{\n            const double x = As<double>::of(lane(p0[{from} + i * (i64){sf}]));\n            \
         const bool behind = taken < 0 || ahead(last, taken, x, i);\n            \
         if (behind && (where < 0 || ahead(x, i, best, where))) {{ best = x; where = i; }}\n        }}\n        \
         #pragma unroll\n        for (int o = 1; o < 32; o *= 2) {{\n            const double x = __shfl_xor_sync(0xffffffffu, best, o);\n            \
         const int i = __shfl_xor_sync(0xffffffffu, where, o);\n            \
         if (i >= 0 && (where < 0 || ahead(x, i, best, where))) {{ best = x; where = i; }}\n        }}\n        \
         __syncthreads();\n        if (tid % 32 == 0) {{ keys[tid / 32] = best; places[tid / 32] = where; }}\n        __syncthreads();\n        \
         best = keys[0]; where = places[0];\n        for (int w = 1; w < 8; w++) \
         if (places[w] >= 0 && (where < 0 || ahead(keys[w], places[w], best, where))) {{ best = keys[w]; where = places[w]; }}\n        \
         last = best; taken = where;\n        if (tid == 0) {{\n            p1[{values} + j * (i64){sv}] = p0[{from} + where * (i64){sf}];\n            p2[{indices} + j * (i64){si}] = where;\n        }}\n    }}",
        from = at(0),
        values = at(1),
        indices = at(2),
        sf = from.strides[last],
        sv = values.strides[last],
        si = indices.strides[last],
    );
    let args = places.map(|p| rank.at(p.base)).to_vec();
    Ok(vec![rank.launch("top_k", (rows, 256), true, args, &text)?])
}
