//! The forward kernel: one block of threads for each block of rows of each batch.

use super::super::kernels::Launch;
use super::super::rank::Rank;
use super::clear::Owners;
use super::engine::{Engine, Needs, weight_of_bodies};
use super::mask::Seen;
use super::setup::{begin_forward, operands, pairs, tile};
use super::{alone, count, padded, real, split, widths};
use crate::device::visible;
use tpc_ir::attention::Attention;

/// Emits the launches of a forward pass.
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

    let mut s = begin_forward(rank, a)?;
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
