//! Reading rows of tables, and adding to them or replacing them in the order of the row numbers.
//!
//! Adding is deterministic without atomics. A first kernel finds for each row number the next equal one, and whether it
//! is the first. In a second kernel, a block for each first number follows the chain. The work depends on the number of
//! row numbers, not on the size of the table.

use super::body::element;
use super::copy::raw;
use super::kernels::Launch;
use super::rank::Rank;
use std::fmt::Write as _;
use tpc_ir::DType;
use tpc_ir::program::View;

const BLOCK: usize = 256;
const GRID: usize = 132 * 16;

fn check(table: &View, numbers: &View, rows: &View) -> Result<&'static str, String> {
    let fits = table.shape.len() == 2
        && numbers.shape.len() == 1
        && rows.shape.len() == 2
        && rows.shape[0] == numbers.shape[0]
        && rows.shape[1] == table.shape[1]
        && rows.dtype == table.dtype;
    if !fits {
        return Err(format!(
            "table {}{:?}, index {:?} and rows {}{:?} do not fit",
            table.dtype, table.shape, numbers.shape, rows.dtype, rows.shape
        ));
    }
    match numbers.dtype {
        DType::I64 | DType::I32 | DType::U8 => Ok(element(numbers.dtype)),
        d => Err(format!("row numbers of type {d}; they must be integers")),
    }
}

/// Emits the launch that reads rows.
pub(super) fn take(
    rank: &mut Rank<'_>,
    table: &View,
    index: &View,
    out: &View,
    first_row: usize,
) -> Result<Vec<Launch>, String> {
    let number = check(table, index, out)?;
    let places = [rank.view(table)?, rank.view(index)?, rank.view(out)?];
    if (0..2).any(|i| places[i].overlaps(&places[2])) {
        return Err("the result overlaps an operand".into());
    }
    let (count, width) = (out.shape[0], out.shape[1]);
    if count * width == 0 {
        return Ok(Vec::new());
    }
    let bytes = table.dtype.bytes();
    let at = places.map(|p| rank.at(p.base));
    let mut pack = 16 / bytes;
    let fits = |pack: usize| {
        table.strides[1] == 1
            && out.strides[1] == 1
            && width % pack == 0
            && table.strides[0] % pack as isize == 0
            && out.strides[0] % pack as isize == 0
            && ((at[0] | at[2]) as usize).is_multiple_of(pack * bytes)
    };
    while pack > 1 && !fits(pack) {
        pack /= 2;
    }
    let (t, columns) = (raw(bytes), width / pack);
    let points = count * columns;
    let text = format!(
        "    typedef Pack<{t}, {pack}> P;\n    const {t}* const table = (const {t}*)(A + a0);\n    \
         const {number}* const index = (const {number}*)(A + a1);\n    {t}* const out = ({t}*)(A + a2);\n    \
         for (u64 q = blockIdx.x * (u64){BLOCK} + threadIdx.x; q < {points}u; q += gridDim.x * (u64){BLOCK}) {{\n        \
         const i64 row = (i64)(q / {columns}u), column = (i64)(q % {columns}u) * {pack};\n        \
         const i64 number = lane(read_only(index + row * {})) - a3;\n        \
         P value;\n        for (int v = 0; v < {pack}; v++) value.x[v] = 0;\n        \
         if (number >= 0 && number < {}) value = read_only((const P*)(table + number * {} + column * {}));\n        \
         *(P*)(out + row * {} + column * {}) = value;\n    }}\n",
        index.strides[0], table.shape[0], table.strides[0], table.strides[1], out.strides[0], out.strides[1],
    );
    let args = vec![at[0], at[1], at[2], first_row as i64];
    let grid = points.div_ceil(BLOCK).min(GRID);
    Ok(vec![rank.launch("take", (grid, BLOCK), false, args, &text)?])
}

/// Emits the launches that clear a table and add rows to it.
pub(super) fn scatter_add(
    rank: &mut Rank<'_>,
    index: &View,
    update: &View,
    out: &View,
    first_row: usize,
) -> Result<Vec<Launch>, String> {
    let number = check(out, index, update)?;
    let places = [rank.view(out)?, rank.view(index)?, rank.view(update)?];
    if (1..3).any(|i| places[i].overlaps(&places[0])) {
        return Err("the result overlaps an operand".into());
    }
    let (count, width, rows) = (update.shape[0], update.shape[1], out.shape[0]);
    if rows * width == 0 {
        return Ok(Vec::new());
    }
    let at = places.map(|p| rank.at(p.base));
    let (e, t) = (element(out.dtype), raw(out.dtype.bytes()));
    // Zero is zero bits in every type.
    let text = format!(
        "    for (u64 q = blockIdx.x * (u64){BLOCK} + threadIdx.x; q < {}u; q += gridDim.x * (u64){BLOCK}) \
         (({t}*)(A + a0))[(i64)(q / {width}u) * {} + (i64)(q % {width}u) * {}] = 0;\n",
        rows * width,
        out.strides[0],
        out.strides[1]
    );
    let grid = (rows * width).div_ceil(BLOCK).min(GRID);
    let mut launches = vec![rank.launch("clear_rows", (grid, BLOCK), false, vec![at[0]], &text)?];
    if count == 0 {
        return Ok(launches);
    }
    // Chains: the next equal number, or −1. The second list has −2 if an equal number comes before, or if the row
    // belongs to another rank. A warp per number.
    let (next, first) = (rank.scratch(count * 4), rank.scratch(count * 4));
    let (next, first) = (rank.at(next), rank.at(first));
    let mut text = String::new();
    let _ = write!(
        text,
        "    const {number}* const index = (const {number}*)(A + a0);\n    int* const next = (int*)(A + a1);\n    \
         int* const first = (int*)(A + a2);\n    const int t = threadIdx.x % 32;\n    \
         const int me = blockIdx.x * 8 + threadIdx.x / 32;\n    const int mine = me < {count} ? me : {last};\n    \
         const i64 number = lane(read_only(index + mine * (i64){s}));\n    int after = 0x7fffffff, before = 0;\n    \
         for (int i = mine + 1 + t; i < {count} && after == 0x7fffffff; i += 32) \
         if (lane(read_only(index + i * (i64){s})) == number) after = i;\n    \
         for (int i = t; i < mine && before == 0; i += 32) \
         if (lane(read_only(index + i * (i64){s})) == number) before = 1;\n    \
         const i64 nearest = together<Min, 1, 32>((i64)after, nullptr, threadIdx.x);\n    \
         const i64 any = together<Max, 1, 32>((i64)before, nullptr, threadIdx.x);\n    \
         const bool here = number >= a3 && number < a3 + {rows};\n    \
         if (t == 0 && me == mine) {{\n        next[me] = nearest == 0x7fffffff ? -1 : (int)nearest;\n        \
         first[me] = here && any == 0 ? me : -2;\n    }}\n",
        last = count - 1,
        s = index.strides[0],
    );
    let args = vec![at[1], next, first, first_row as i64];
    launches.push(rank.launch("chains", (count.div_ceil(8), BLOCK), true, args, &text)?);
    let text = format!(
        "    const {number}* const index = (const {number}*)(A + a0);\n    const int* const next = (const int*)(A + a1);\n    \
         const int start = ((const int*)(A + a2))[blockIdx.x];\n    if (start < 0) return;\n    \
         const {e}* const update = (const {e}*)(A + a3);\n    {e}* const out = ({e}*)(A + a4);\n    \
         const i64 row = lane(index[start * (i64){}]) - a5;\n    \
         for (i64 c = threadIdx.x; c < {width}; c += {BLOCK}) {{\n        auto sum = lane({e}());\n        \
         for (int i = start; i >= 0; i = next[i]) sum = Sum::of(sum, lane(read_only(update + i * (i64){} + c * {})));\n        \
         out[row * {} + c * {}] = To<{e}>::of(sum);\n    }}\n",
        index.strides[0], update.strides[0], update.strides[1], out.strides[0], out.strides[1],
    );
    let args = vec![at[1], next, first, at[2], at[0], first_row as i64];
    launches.push(rank.launch("scatter_add", (count, BLOCK), false, args, &text)?);
    Ok(launches)
}

/// Emits the launch that replaces rows. A thread handles a column and goes through the row numbers, so the last row
/// with a number wins.
pub(super) fn put(
    rank: &mut Rank<'_>,
    table: &View,
    index: &View,
    rows: &View,
    first_row: usize,
) -> Result<Vec<Launch>, String> {
    let number = check(table, index, rows)?;
    let places = [rank.view(table)?, rank.view(index)?, rank.view(rows)?];
    if (1..3).any(|i| places[i].overlaps(&places[0])) {
        return Err("the result overlaps an operand".into());
    }
    let (count, width) = (rows.shape[0], rows.shape[1]);
    if count * width == 0 {
        return Ok(Vec::new());
    }
    let at = places.map(|p| rank.at(p.base));
    let t = raw(table.dtype.bytes());
    let text = format!(
        "    {t}* const table = ({t}*)(A + a0);\n    const {number}* const index = (const {number}*)(A + a1);\n    \
         const {t}* const rows = (const {t}*)(A + a2);\n    \
         for (u64 q = blockIdx.x * (u64){BLOCK} + threadIdx.x; q < {width}u; q += gridDim.x * (u64){BLOCK}) {{\n        \
         for (i64 t = 0; t < {count}; t++) {{\n            \
         const i64 number = lane(read_only(index + t * {})) - a3;\n            \
         if (number >= 0 && number < {}) \
         table[number * {} + (i64)q * {}] = read_only(rows + t * {} + (i64)q * {});\n        }}\n    }}\n",
        index.strides[0], table.shape[0], table.strides[0], table.strides[1], rows.strides[0], rows.strides[1],
    );
    let args = vec![at[0], at[1], at[2], first_row as i64];
    Ok(vec![rank.launch("put", (width.div_ceil(BLOCK).min(GRID), BLOCK), false, args, &text)?])
}
