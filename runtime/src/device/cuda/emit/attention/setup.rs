//! The beginnings of the kernels of both passes, shared by all engines.

use super::super::body::element;
use super::super::rank::Rank;
use super::engine::Engine;
use super::real;
use super::source::{Reach, Source, is_wide};
use tpc_ir::attention::{Attention, Backward, Operand};
use tpc_ir::program::View;

/// The gradients that one launch computes: `first` of queries or keys, `second` of values.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub(super) rows: bool,
    pub(super) first: Option<&'a Operand>,
    pub(super) second: Option<&'a Operand>,
}

/// Begins a backward kernel: operands and row statistics.
pub(super) fn begin_backward<'a>(
    rank: &Rank<'_>,
    a: &'a Attention,
    b: &'a Backward,
    which: Gradients<'_>,
) -> Result<Source<'a>, String> {
    let mut s = Source::new(a, real(a));
    s.begin(is_wide(a));
    for (name, view) in [("max", &a.max), ("sum", &a.sum), ("delta", &b.delta)] {
        if name == "delta" && which.first.is_none() {
            s.line("const auto delta_of = [](int) { return (R)0; };");
            continue;
        }
        s.figure(rank, &format!("{name}_at"), view, false)?;
        s.line(&format!("const auto {name}_of = [&](int r) {{ return real<R>(*{name}_at(r)); }};"));
    }
    Ok(s)
}

/// Emits the lambda that sets the batch indices that an owner lacks.
pub(super) fn batches(s: &mut Source<'_>, lacks: &[usize]) {
    let set = s.batch("b", lacks);
    s.line(&format!("const auto batch = [&](u32 b) {{ {set}}};"));
}

/// Whether results are written two at a time.
pub(super) fn pairs(engine: Engine, to: &Reach) -> bool {
    matches!(engine, Engine::Tensor(_)) && to.packs(2)
}

/// Emits a lambda that fills a tile.
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

/// Begins a kernel of the forward pass, with a lambda that stores row statistics.
pub(super) fn begin_forward<'a>(rank: &mut Rank<'_>, a: &'a Attention) -> Result<Source<'a>, String> {
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

/// Emits the lambdas of query, key, value and result.
pub(super) fn operands(s: &mut Source<'_>, rank: &Rank<'_>) -> Result<[Reach; 4], String> {
    let a = s.a;
    Ok([
        s.operand(rank, "query_at", &a.query, &a.inner, false)?,
        s.operand(rank, "key_at", &a.key, &a.inner, false)?,
        s.operand(rank, "value_at", &a.value, &a.width, false)?,
        s.operand(rank, "out_at", &a.out, &a.width, true)?,
    ])
}
