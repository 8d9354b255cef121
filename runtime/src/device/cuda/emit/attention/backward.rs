//! The backward kernels: first `delta` of every row, then the gradients of keys and values, whose blocks own columns,
//! and the gradient of queries, whose blocks own rows. Every element is summed by one block, in one order.

use super::super::kernels::Launch;
use super::super::rank::Rank;
use super::clear::Owners;
use super::engine::{Engine, Needs, Tiling, weight_of_bodies};
use super::mask::Seen;
use super::setup::{Gradients, batches, begin_backward, pairs, tile};
use super::source::Source;
use super::{alone, count, padded, real, split, widths};
use crate::device::visible;
use tpc_ir::attention::{Attention, Backward, Operand};

/// Warps per block that computes `delta`.
const WARPS: usize = 8;

/// The launches of a backward pass.
pub(super) fn emit(rank: &mut Rank<'_>, a: &Attention, b: &Backward) -> Result<Vec<Launch>, String> {
    let mut launches = Vec::new();
    let (query, key, value) = (b.grad_query.as_ref(), b.grad_key.as_ref(), b.grad_value.as_ref());
    if query.is_some() || key.is_some() {
        launches.extend(delta(rank, a, b)?);
    }
    let of_columns = |first, second| Gradients { rows: false, first, second };
    // Together they need one product less, if this does not make tiles tiny.
    let together = match (key, value) {
        (Some(k), Some(v)) if split(a, k) == split(a, v) => {
            tiling(a, of_columns(key, value)).is_some_and(|t| t.is_large())
        }
        _ => false,
    };
    if together {
        launches.extend(gradients(rank, a, b, of_columns(key, value))?);
    } else {
        if key.is_some() {
            launches.extend(gradients(rank, a, b, of_columns(key, None))?);
        }
        if value.is_some() {
            launches.extend(gradients(rank, a, b, of_columns(None, value))?);
        }
    }
    if query.is_some() {
        launches.extend(gradients(rank, a, b, Gradients { rows: true, first: query, second: None })?);
    }
    Ok(launches)
}

/// Emits `delta`, with a warp per row.
fn delta(rank: &mut Rank<'_>, a: &Attention, b: &Backward) -> Result<Option<Launch>, String> {
    let all: Vec<usize> = (0..a.batch()).collect();
    let rows = count(a, &all) * a.rows();
    if rows == 0 {
        return Ok(None);
    }
    let mut s = Source::new(a, real(a));
    s.begin(false);
    s.operand(rank, "grad_out_at", &b.grad_out, &a.width, false)?;
    s.operand(rank, "out_at", &a.out, &a.width, false)?;
    s.figure(rank, "delta_at", &b.delta, true)?;
    let of_rows = a.rows();
    s.line(&format!("const u32 number = blockIdx.x * {WARPS}u + threadIdx.x / 32;"));
    s.line(&format!("const u32 row = number < {rows}u ? number : {}u;", rows - 1));
    s.line(&format!("const int r = (int)(row % {of_rows}u);"));
    let batch = s.batch(&format!("row / {of_rows}u"), &all);
    s.line(&format!("{{ {batch}}}"));
    s.line("const auto grad_out = [&](int w) { return real<R>(*grad_out_at(r, w)); };");
    s.line("const auto out = [&](int w) { return real<R>(*out_at(r, w)); };");
    s.line(&format!("const R sum = attention_delta<R>({}, grad_out, out);", widths(a)[1]));
    let t = super::super::body::element(b.delta.dtype);
    s.line(&format!("if (number < {rows}u && threadIdx.x % 32 == 0) *delta_at(r) = narrowed<{t}>(sum);"));
    Ok(Some(rank.launch("attention_delta", (rows.div_ceil(WARPS), 32 * WARPS), true, s.args, &s.text)?))
}

/// The resources that the tiles of a launch need.
fn needs(a: &Attention, which: Gradients<'_>) -> Needs {
    let [d1, d2] = widths(a).map(padded);
    let (first, second) = (which.first.is_some(), which.second.is_some());
    Needs {
        own: d1 + if first { d2 } else { 0 },
        streamed: d1 + d2,
        tiles: 2,
        sums: if first { d1 } else { 0 } + if second { d2 } else { 0 },
        scores: 2,
        bodies: weight_of_bodies(a),
    }
}

fn owners(a: &Attention, which: Gradients<'_>) -> [usize; 2] {
    if which.rows { [a.rows(), a.columns()] } else { [a.columns(), a.rows()] }
}

fn tiling(a: &Attention, which: Gradients<'_>) -> Option<Tiling> {
    Engine::of(a, real(a)).tiling(owners(a, which)[0], &needs(a, which))
}

/// Emits the kernel of one or two gradients.
fn gradients(rank: &mut Rank<'_>, a: &Attention, b: &Backward, which: Gradients<'_>) -> Result<Option<Launch>, String> {
    let Some(to) = which.first.or(which.second) else { return Ok(None) };
    let [has, lacks] = split(a, to);
    let (batched, repeated) = (count(a, &has), count(a, &lacks));
    let [own_count, streamed] = owners(a, which);
    if own_count * batched == 0 {
        return Ok(None);
    }
    let Some(tiling) = tiling(a, which) else {
        return alone::gradient(rank, a, b, which, (&has, &lacks)).map(Some);
    };
    let (engine, own, size) = (tiling.engine, tiling.own(), tiling.streamed);
    let blocks = own_count.div_ceil(own);
    let seen = if which.rows {
        Seen::of(own_count, own, streamed, &|rows| visible::columns(a, rows))
    } else {
        Seen::of(own_count, own, streamed, &|columns| visible::rows(a, columns))
    };
    let ([n1, n2], [d1, d2]) = (widths(a), widths(a).map(padded));

    let mut s = begin_backward(rank, a, b, which)?;
    let query = s.operand(rank, "query_at", &a.query, &a.inner, false)?;
    let key = s.operand(rank, "key_at", &a.key, &a.inner, false)?;
    let value = s.operand(rank, "value_at", &a.value, &a.width, false)?;
    let grad_out = s.operand(rank, "grad_out_at", &b.grad_out, &a.width, false)?;
    let mut result = |name: &str, o: Option<&Operand>, own: &[usize]| match o {
        Some(o) => Ok(pairs(engine, &s.operand(rank, name, o, own, true)?)),
        None => {
            s.line(&format!("const auto {name} = [](int, int) {{ return (R*)0; }};"));
            Ok::<bool, String>(false)
        }
    };
    let pairs1 = result("out_first", which.first, &a.inner)?;
    let pairs2 = result("out_second", which.second, &a.width)?;
    s.bodies(rank)?;
    s.line(&format!("typedef {} E;", tiling.text()));
    s.own_block(blocks, own, seen.grows(), &has);
    batches(&mut s, &lacks);
    s.text.push_str(&seen.text(own, own_count, size));
    s.clear(rank, Owners { rows: which.rows, count: own_count, block: own, streamed })?;
    let of_rows = [("query_at", &query), ("grad_out_at", &grad_out)];
    let of_columns = [("key_at", &key), ("value_at", &value)];
    let (owned, streams) = if which.rows { (of_rows, of_columns) } else { (of_columns, of_rows) };
    s.line(&tile("own_first", owned[0].0, owned[0].1, engine, (own, d1), own_count));
    s.line(&tile("own_second", owned[1].0, owned[1].1, engine, (own, d2), own_count));
    s.line(&tile("load_first", streams[0].0, streams[0].1, engine, (size, d1), streamed));
    s.line(&tile("load_second", streams[1].0, streams[1].1, engine, (size, d2), streamed));
    s.line(&format!(
        "attention_backward<E, {size}, {d1}, {d2}, {n1}, {n2}, {}, {}, {}, {}, {pairs1}, {pairs2}>(first, {own_count}, {streamed}, {repeated}u, order, clear, masked, batch, own_first, own_second, load_first, load_second, max_of, sum_of, delta_of, score, clear_score, weight, gradient, clear_gradient, out_first, out_second);",
        streamed.is_multiple_of(size),
        which.rows,
        which.first.is_some(),
        which.second.is_some()
    ));
    let sizes = (blocks * batched, tiling.threads(), tiling.shared(&needs(a, which)));
    let what = if which.rows { "attention_query" } else { "attention_key" };
    rank.launch_sharing(what, sizes, true, s.args, &s.text).map(Some)
}
