//! Copies between strided views: bits are moved, never interpreted.
//!
//! If source and target are dense in different dimensions, tiles go through shared memory, so that both reads and
//! writes access adjacent elements.

use super::kernels::Launch;
use super::rank::Rank;
use super::space::{Axis, bring_fastest_in, count, cut, index_types, merge, offset};
use std::fmt::Write as _;
use tpc_ir::program::View;

const BLOCK: usize = 256;
const GRID: usize = 132 * 16;

/// The unsigned integer type with this many bytes.
pub(super) fn raw(bytes: usize) -> &'static str {
    match bytes {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        _ => "u64",
    }
}

/// Emits the launch of a copy.
pub(super) fn emit(rank: &mut Rank<'_>, from: &View, to: &View) -> Result<Vec<Launch>, String> {
    if from.shape != to.shape {
        return Err(format!("copies shape {:?} to shape {:?}", from.shape, to.shape));
    }
    if from.dtype != to.dtype {
        return Err(format!("copies {} to {}; a conversion is a loop", from.dtype, to.dtype));
    }
    let (source, target) = (rank.view(from)?, rank.view(to)?);
    if source.overlaps(&target) {
        if source == target && from.strides == to.strides {
            return Ok(Vec::new());
        }
        return Err("the source overlaps the target".into());
    }
    let bytes = from.dtype.bytes();
    let dims = from.shape.iter().zip(from.strides.iter().zip(&to.strides));
    let axes = dims.filter(|(n, _)| **n != 1).map(|(&size, (&f, &t))| Axis { size, strides: vec![f, t] });
    let places = (rank.at(source.base), rank.at(target.base));
    strided(rank, bytes, axes.collect(), places)
}

/// Moves elements of some size from one address to another; axes have the strides of source and target.
pub(super) fn strided(
    rank: &mut Rank<'_>,
    bytes: usize,
    mut axes: Vec<Axis>,
    (from, to): (i64, i64),
) -> Result<Vec<Launch>, String> {
    if count(&axes) == 0 {
        return Ok(Vec::new());
    }
    merge(&mut axes);
    if let Some(launch) = transposed(rank, bytes, &axes, (from, to))? {
        return Ok(vec![launch]);
    }
    bring_fastest_in(&mut axes, &[bytes, 2 * bytes]);
    let mut pack = 1;
    if let Some((inner, outer)) = axes.split_last()
        && inner.strides == [1, 1]
    {
        pack = 16 / bytes;
        let fits = |pack: usize| {
            inner.size % pack == 0
                && (from as usize | to as usize).is_multiple_of(pack * bytes)
                && outer.iter().flat_map(|a| &a.strides).all(|s| s % pack as isize == 0)
        };
        while pack > 1 && !fits(pack) {
            pack /= 2;
        }
    }
    let points = count(&axes) / pack;
    let t = raw(bytes);
    let mut text = String::from(index_types([&axes, &[]]));
    let _ = writeln!(text, "    typedef Pack<{t}, {pack}> P;");
    let _ = writeln!(text, "    const {t}* const p0 = (const {t}*)(A + a0);\n    {t}* const p1 = ({t}*)(A + a1);");
    let _ = writeln!(
        text,
        "    for (uq q = blockIdx.x * (uq){BLOCK} + threadIdx.x; q < {points}u; q += gridDim.x * (uq){BLOCK}) {{"
    );
    text.push_str(&cut("q", "k", &axes, pack, "        "));
    let at = |i: usize| offset(i, [("k", &axes), ("n", &[])], "");
    let _ = writeln!(text, "        *(P*)(p1 + {}) = read_only((const P*)(p0 + {}));\n    }}", at(1), at(0));
    let grid = points.div_ceil(BLOCK).min(GRID);
    Ok(vec![rank.launch("copy", (grid, BLOCK), false, vec![from, to], &text)?])
}

/// Edge of a tile; narrower dimensions are not tiled.
const TILE: usize = 32;

/// The launch of a copy between views that are dense in different dimensions; `None` for other views.
fn transposed(
    rank: &mut Rank<'_>,
    bytes: usize,
    axes: &[Axis],
    (from, to): (i64, i64),
) -> Result<Option<Launch>, String> {
    let dense = |of: usize| axes.iter().position(|a| a.strides[of] == 1 && a.size >= TILE / 2);
    let (Some(reads), Some(writes)) = (dense(0), dense(1)) else { return Ok(None) };
    if reads == writes {
        return Ok(None);
    }
    let (r, w) = (&axes[reads], &axes[writes]);
    let others: Vec<Axis> =
        axes.iter().enumerate().filter(|(i, _)| *i != reads && *i != writes).map(|(_, a)| a.clone()).collect();
    let (tiles_r, tiles_w) = (r.size.div_ceil(TILE), w.size.div_ceil(TILE));
    let (t, at) = (raw(bytes), |i: usize| offset(i, [("k", &others), ("n", &[])], "(i64)"));
    let mut text = String::from(index_types([axes, &[]]));
    let _ = write!(
        text,
        "    __shared__ {t} tile[{TILE}][{TILE} + 1];\n    const {t}* const p0 = (const {t}*)(A + a0);\n    {t}* const p1 = ({t}*)(A + a1);\n    \
         const int x = threadIdx.x % {TILE}, y = threadIdx.x / {TILE};\n    \
         const uq r0 = blockIdx.x % {tiles_r}u * {TILE}, w0 = blockIdx.x / {tiles_r}u % {tiles_w}u * {TILE}, q = blockIdx.x / {}u;\n",
        tiles_r * tiles_w
    );
    text.push_str(&cut("q", "k", &others, 1, "    "));
    let _ = write!(
        text,
        "    for (int i = y; i < {TILE}; i += {lines}) if (w0 + i < {nw}u && r0 + x < {nr}u) \
         tile[i][x] = read_only(p0 + {source} + (i64)(w0 + i) * {sw} + (r0 + x));\n    __syncthreads();\n    \
         for (int i = y; i < {TILE}; i += {lines}) if (r0 + i < {nr}u && w0 + x < {nw}u) \
         p1[{target} + (i64)(r0 + i) * {tr} + (w0 + x)] = tile[x][i];\n",
        lines = BLOCK / TILE,
        nw = w.size,
        nr = r.size,
        source = at(0),
        target = at(1),
        sw = w.strides[0],
        tr = r.strides[1],
    );
    let grid = tiles_r * tiles_w * count(&others);
    Ok(Some(rank.launch("transpose", (grid, BLOCK), true, vec![from, to], &text)?))
}
