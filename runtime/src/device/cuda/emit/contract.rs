//! Matrix products with any strides as a tiled kernel, for products that a library cannot compute.
//!
//! f32, bf16 and f16 are computed in f32, everything else in f64, and rounded once, as on the CPU.

use super::body::{element, lane};
use super::kernels::Launch;
use super::rank::Rank;
use super::space::{Axis, count, cut, merge, offset};
use crate::device::cpu::vector::LaneType;
use crate::device::extent::Extent;
use std::fmt::Write as _;
use tpc_ir::DType;
use tpc_ir::program::{Contract, ContractDim, View};

/// Rows and columns per block.
const TILE: usize = 64;
/// Summed elements per step.
const DEPTH: usize = 16;

/// Selects the strides of a dimension that apply.
type Strides = fn(&ContractDim) -> Vec<isize>;

fn group(dims: &[ContractDim], strides: Strides) -> Vec<Axis> {
    let mut axes: Vec<Axis> =
        dims.iter().filter(|d| d.size != 1).map(|d| Axis { size: d.size, strides: strides(d) }).collect();
    // The dimension with the smallest strides is innermost, so that adjacent threads read adjacent elements.
    axes.sort_by_key(|a| std::cmp::Reverse(a.strides.iter().map(|s| s.unsigned_abs()).min()));
    merge(&mut axes);
    axes
}

/// The memory of left, right and result of a product, after checking that they are within the arena and that the result
/// overlaps no operand.
pub(super) fn extents(rank: &Rank<'_>, c: &Contract) -> Result<[Extent; 3], String> {
    let of = |view: &View, groups: [&[ContractDim]; 3], stride: fn(&ContractDim) -> isize, name: &str| {
        let dims = || groups.into_iter().flatten();
        let sizes: Vec<usize> = dims().map(|d| d.size).collect();
        let strides: Vec<isize> = dims().map(stride).collect();
        rank.extent(view, &sizes, &strides).map_err(|e| format!("{name}: {e}"))
    };
    let left = of(&c.left, [&c.batch, &c.m, &c.k], |d| d.left, "left")?;
    let right = of(&c.right, [&c.batch, &c.k, &c.n], |d| d.right, "right")?;
    let out = of(&c.out, [&c.batch, &c.m, &c.n], |d| d.out, "out")?;
    if out.overlaps(&left) || out.overlaps(&right) {
        return Err("the result overlaps an operand".into());
    }
    if c.dims().all(|d| d.size > 0) && c.dims().any(|d| d.out == 0 && d.size > 1) {
        return Err("a dimension of the result has stride 0".into());
    }
    Ok([left, right, out])
}

/// Their offsets.
pub(super) fn places(rank: &Rank<'_>, c: &Contract) -> Result<[usize; 3], String> {
    Ok(extents(rank, c)?.map(|e| e.base))
}

/// A lambda from an index to an offset.
fn offsets(name: &str, axes: &[Axis], access: usize) -> String {
    let at = offset(access, [("k", axes), ("n", &[])], "(i64)");
    format!(
        "    const auto {name} = [](uq q) -> i64 {{\n{}        return {at};\n    }};\n",
        cut("q", "k", axes, 1, "        ")
    )
}

/// The launch of a product alone, without its epilogue; `None` if the result is empty. With a factor, the previous
/// contents of the result times that factor are added.
pub(super) fn emit(rank: &mut Rank<'_>, c: &Contract, old: Option<f64>) -> Result<Vec<Launch>, String> {
    let places = places(rank, c)?;
    let b = group(&c.batch, |d| vec![d.left, d.right, d.out]);
    let m = group(&c.m, |d| vec![d.left, d.out]);
    let n = group(&c.n, |d| vec![d.right, d.out]);
    let k = group(&c.k, |d| vec![d.left, d.right]);
    let (nb, nm, nn, nk) = (count(&b), count(&m), count(&n), count(&k));
    if nb * nm * nn == 0 {
        return Ok(Vec::new());
    }
    let narrow = |d: DType| matches!(d, DType::F32 | DType::BF16 | DType::F16);
    let real = if [&c.left, &c.right, &c.out].iter().all(|v| narrow(v.dtype)) { "float" } else { "double" };
    let types = [&c.left, &c.right, &c.out].map(|v| element(v.dtype));
    let (mb, blocks_n) = (nm.div_ceil(TILE), nn.div_ceil(TILE));
    // Indices have 32 bits if they fit; offsets always have 64.
    let small = [nb * mb * blocks_n * TILE, nm + TILE, nn + TILE, nk + DEPTH].iter().all(|&x| x < 1 << 31);
    let mut text = String::from(if small {
        "    typedef int ix; typedef u32 uq;\n"
    } else {
        "    typedef i64 ix; typedef u64 uq;\n"
    });
    let _ = writeln!(
        text,
        "    typedef {real} R;\n    __shared__ R left[{DEPTH}][{0}];\n    __shared__ R right[{DEPTH}][{0}];",
        TILE + 4
    );
    text.push_str(&offsets("left_m", &m, 0));
    text.push_str(&offsets("out_m", &m, 1));
    text.push_str(&offsets("right_n", &n, 0));
    text.push_str(&offsets("out_n", &n, 1));
    text.push_str(&offsets("left_k", &k, 0));
    text.push_str(&offsets("right_k", &k, 1));
    text.push_str(&offsets("left_b", &b, 0));
    text.push_str(&offsets("right_b", &b, 1));
    text.push_str(&offsets("out_b", &b, 2));
    // Threads that read adjacent elements are adjacent.
    let along_k = |axes: &[Axis]| axes.last().is_some_and(|a| a.strides[0] == 1);
    let left_by_k = !along_k(&m);
    let right_by_k = !along_k(&n);
    let tile = |by_k: bool| {
        if by_k {
            format!("const int kk = e % {DEPTH}, o = e / {DEPTH};")
        } else {
            format!("const int o = e % {TILE}, kk = e / {TILE};")
        }
    };
    let factor = |x: f64| if real == "float" { format!("{:?}f", x as f32) } else { format!("{x:?}") };
    let scale = factor(c.scale);
    let old = old.map_or(String::new(), |x| format!(" + {} * As<R>::of(lane(*to))", factor(x)));
    let out_lane = lane(LaneType::of(c.out.dtype));
    let _ = write!(
        text,
        "    const {tl}* const l = (const {tl}*)(A + a0);\n    const {tr}* const r = (const {tr}*)(A + a1);\n    {to}* const out = ({to}*)(A + a2);\n    \
         const int tid = threadIdx.x, tx = tid % 16, ty = tid / 16;\n    \
         const uq n0 = blockIdx.x % {blocks_n}u * {TILE}, m0 = blockIdx.x / {blocks_n}u % {mb}u * {TILE}, batch = blockIdx.x / {per}u;\n    \
         const {tl}* const lb = l + left_b(batch);\n    const {tr}* const rb = r + right_b(batch);\n    R sum[4][4];\n    \
         for (int i = 0; i < 4; i++) for (int j = 0; j < 4; j++) sum[i][j] = 0;\n    \
         for (uq k0 = 0; k0 < {nk}; k0 += {DEPTH}) {{\n        \
         for (int i = 0; i < 4; i++) {{\n            const int e = tid + i * 256;\n            {lt}\n            \
         left[kk][o] = m0 + o < {nm} && k0 + kk < {nk} ? As<R>::of(lane(read_only(lb + left_m(m0 + o) + left_k(k0 + kk)))) : (R)0;\n        }}\n        \
         for (int i = 0; i < 4; i++) {{\n            const int e = tid + i * 256;\n            {rt}\n            \
         right[kk][o] = n0 + o < {nn} && k0 + kk < {nk} ? As<R>::of(lane(read_only(rb + right_n(n0 + o) + right_k(k0 + kk)))) : (R)0;\n        }}\n        \
         __syncthreads();\n        #pragma unroll {unroll}\n        for (int kk = 0; kk < {DEPTH}; kk++) {{\n            R x[4], y[4];\n            \
         #pragma unroll\n            for (int i = 0; i < 4; i++) {{ x[i] = left[kk][ty + 16 * i]; y[i] = right[kk][tx + 16 * i]; }}\n            \
         #pragma unroll\n            for (int i = 0; i < 4; i++) {{\n                #pragma unroll\n                for (int j = 0; j < 4; j++) sum[i][j] = m_fma(x[i], y[j], sum[i][j]);\n            }}\n        }}\n        \
         __syncthreads();\n    }}\n    \
         #pragma unroll\n    for (int i = 0; i < 4; i++) {{\n        #pragma unroll\n        for (int j = 0; j < 4; j++) {{\n            \
         const uq m = m0 + ty + 16 * i, n = n0 + tx + 16 * j;\n            \
         if (m >= {nm} || n >= {nn}) continue;\n            {to}* const to = out + (out_b(batch) + out_m(m) + out_n(n));\n            \
         *to = To<{to}>::of(As<{out_lane}>::of({scale} * sum[i][j]{old}));\n        }}\n    }}\n",
        tl = types[0],
        tr = types[1],
        to = types[2],
        per = blocks_n * mb,
        // Doubles take twice the registers, which run out if unrolled further.
        unroll = if real == "float" { 8 } else { 2 },
        lt = tile(left_by_k),
        rt = tile(right_by_k),
    );
    let args = places.map(|p| rank.at(p)).to_vec();
    Ok(vec![rank.launch("contract", (nb * mb * blocks_n, 256), true, args, &text)?])
}
