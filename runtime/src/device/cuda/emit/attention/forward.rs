//! The forward kernel: a block of threads for each block of rows of each batch.

use super::super::body::element;
use super::super::kernels::Launch;
use super::super::rank::Rank;
use super::clear::Owners;
use super::engine::{Engine, Needs, weight_of_bodies};
use super::mask::Seen;
use super::source::{Reach, Source, is_wide};
use super::{alone, count, padded, real, split, widths};
use crate::device::visible;
use tpc_ir::attention::Attention;
use tpc_ir::program::View;

/// The launches of a forward pass.
pub(super) fn emit(rank: &mut Rank<'_>, a: &Attention) -> Result<Vec<Launch>, String> {
    let [has, _] = split(a, &a.out);
    let batches = count(a, &has);
    if batches * a.rows() == 0 || a.dims[..a.batch()].contains(&0) {
        return Ok(Vec::new());
    }
    let [inner, width] = widths(a);
    let (dk, dv) = (padded(inner), padded(width));
    let needs = Needs { own: dk, streamed: dk + dv, tiles: 2, sums: dv, scores: 1, bodies: weight_of_bodies(a) };
    let engine = Engine::of(a, real(a));
    let Some(tiling) = engine.tiling(a.rows(), &needs) else {
        return alone::forward(rank, a, &has);
    };
    let (own, size) = (tiling.own(), tiling.streamed);
    let (rows, columns) = (a.rows(), a.columns());
    let blocks = rows.div_ceil(own);
    let seen = Seen::of(rows, own, columns, &|rows| visible::columns(a, rows));

    let mut s = begin(rank, a)?;
    let reaches = operands(&mut s, rank)?;
    s.bodies(rank)?;
    s.line(&format!("typedef {} E;", tiling.text()));
    s.own_block(blocks, own, seen.grows(), &has);
    s.text.push_str(&seen.text(own, rows, size));
    s.clear(rank, Owners { rows: true, count: rows, block: own, streamed: columns })?;
    let [query, key, value, out] = &reaches;
    s.line(&tile("load_query", "query_at", query, engine, (own, dk), rows));
    s.line(&tile("load_key", "key_at", key, engine, (size, dk), columns));
    s.line(&tile("load_value", "value_at", value, engine, (size, dv), columns));
    s.line(&format!(
        "attention_forward<E, {size}, {dk}, {dv}, {width}, {}, {}>(first, {rows}, {columns}, order, clear, masked, load_query, load_key, load_value, score, clear_score, weight, out_at, keep);",
        columns.is_multiple_of(size),
        pairs(engine, out)
    ));
    let sizes = (blocks * batches, tiling.threads(), tiling.shared(&needs));
    Ok(vec![rank.launch_sharing("attention", sizes, true, s.args, &s.text)?])
}

/// Whether results are written two at a time.
pub(super) fn pairs(engine: Engine, to: &Reach) -> bool {
    matches!(engine, Engine::Tensor(_)) && to.packs(2)
}

/// A lambda that fills a tile.
pub(super) fn tile(
    name: &str,
    at: &str,
    reach: &Reach,
    engine: Engine,
    (rows, full): (usize, usize),
    limit: usize,
) -> String {
    let (n, vector, across) = (reach.count, reach.vector(engine.element()), reach.across());
    format!(
        "const auto {name} = [&](E::T* to, int from) {{ load_tile<E, {rows}, {full}, {n}, {vector}, {across}>(to, from, {limit}, {at}); }};"
    )
}

/// The beginning of a kernel of the forward pass, with what it does with the figures of rows.
pub(super) fn begin<'a>(rank: &mut Rank<'_>, a: &'a Attention) -> Result<Source<'a>, String> {
    let mut s = Source::new(a, real(a));
    s.begin(is_wide(a));
    if a.keep {
        s.figure(rank, "max_at", &a.max, true)?;
        s.figure(rank, "sum_at", &a.sum, true)?;
        let store = |at: &str, view: &View, x: &str| format!("*{at}(r) = narrowed<{}>({x}); ", element(view.dtype));
        let (max, sum) = (store("max_at", &a.max, "max"), store("sum_at", &a.sum, "sum"));
        s.line(&format!("const auto keep = [&](int r, R max, R sum) {{ {max}{sum}}};"));
    } else {
        s.line("const auto keep = [](int, R, R) {};");
    }
    Ok(s)
}

/// The lambdas of query, key, value and result.
pub(super) fn operands(s: &mut Source<'_>, rank: &Rank<'_>) -> Result<[Reach; 4], String> {
    let a = s.a;
    Ok([
        s.operand(rank, "query_at", &a.query, &a.inner, false)?,
        s.operand(rank, "key_at", &a.key, &a.inner, false)?,
        s.operand(rank, "value_at", &a.value, &a.width, false)?,
        s.operand(rank, "out_at", &a.out, &a.width, true)?,
    ])
}
