//! Attention as kernels (`ir/src/attention.rs` defines what it means).
//!
//! | question | file |
//! |---|---|
//! | multiplying tiles, with tensor cores or without, and the loops of the kernels | `attention.cuh` |
//! | the choice of an engine, and the sizes of tiles | `engine` |
//! | which blocks of scores are skipped, and which are fully visible | `mask`, `clear` |
//! | operands, row statistics and bodies as lambdas of a kernel | `source` |
//! | the beginning of kernels of both passes | `setup` |
//! | the forward kernel; the backward kernels | `forward`, `backward` |
//! | operands too wide for tiles | `alone` |

mod alone;
mod backward;
mod clear;
mod engine;
mod forward;
mod mask;
mod setup;
mod source;

use super::kernels::Launch;
use super::rank::Rank;
use tpc_ir::DType;
use tpc_ir::attention::{Attention, Operand};

/// Emits the launches of an attention.
pub(super) fn emit(rank: &mut Rank<'_>, a: &Attention) -> Result<Vec<Launch>, String> {
    check(rank, a)?;
    match &a.backward {
        None => forward::emit(rank, a),
        Some(b) => backward::emit(rank, a, b),
    }
}

/// The compute type of products, scores and probabilities.
fn real(a: &Attention) -> DType {
    let operands = [&a.query, &a.key, &a.value].into_iter().chain(a.backward.iter().map(|b| &b.grad_out));
    let wide = |d: DType| !matches!(d, DType::F32 | DType::BF16 | DType::F16);
    if operands.into_iter().any(|o| wide(o.view.dtype)) { DType::F64 } else { DType::F32 }
}

/// Elements per row of `query` and `value`.
fn widths(a: &Attention) -> [usize; 2] {
    [a.inner.iter().product(), a.width.iter().product()]
}

/// The width of a tile for rows of this many elements.
fn padded(n: usize) -> usize {
    n.next_multiple_of(16).max(16)
}

/// The batch dimensions that an operand has, and those that it lacks.
fn split(a: &Attention, o: &Operand) -> [Vec<usize>; 2] {
    let all = (0..a.batch()).filter(|&d| a.dims[d] != 1);
    let (has, lacks) = all.partition(|&d| o.dims[d] != 0);
    [has, lacks]
}

/// The number of indices of some dimensions.
fn count(a: &Attention, dims: &[usize]) -> usize {
    dims.iter().map(|&d| a.dims[d]).product()
}

/// Rejects an invalid attention.
fn check(rank: &Rank<'_>, a: &Attention) -> Result<(), String> {
    if a.dims.len() < 2 {
        return Err("scores must have rows and columns".into());
    }
    let nb = a.batch();
    let mut reads = vec![("query", &a.query, &a.inner, nb), ("key", &a.key, &a.inner, nb + 1)];
    reads.push(("value", &a.value, &a.width, nb + 1));
    let mut writes = Vec::new();
    match &a.backward {
        None => writes.push(("out", &a.out, &a.width, nb)),
        Some(b) => {
            reads.push(("out", &a.out, &a.width, nb));
            reads.push(("gradient of out", &b.grad_out, &a.width, nb));
            let grads =
                [(&b.grad_query, &a.inner, nb), (&b.grad_key, &a.inner, nb + 1), (&b.grad_value, &a.width, nb + 1)];
            let grads = grads.into_iter().filter_map(|(o, own, dim)| Some(("gradient", o.as_ref()?, own, dim)));
            writes.extend(grads);
        }
    }
    let place = |(name, o, own, dim): (&'static str, &Operand, &Vec<usize>, usize)| {
        if o.dims.len() != nb + 2 || o.own.len() != own.len() {
            return Err(format!("{name}: {} and {} strides", o.dims.len(), o.own.len()));
        }
        // An operand has either rows or columns.
        if o.dims[2 * nb + 1 - dim] != 0 {
            return Err(format!("{name} must have either rows or columns"));
        }
        source::extent(rank, a, o, own)
    };
    let reads = reads.into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
    let writes = writes.into_iter().map(place).collect::<Result<Vec<_>, _>>()?;
    if writes.iter().any(|w| reads.iter().any(|r| r.overlaps(w))) {
        return Err("a result of attention overlaps an operand".into());
    }
    let empty = a.dims.contains(&0) || a.width.contains(&0);
    if a.backward.is_none() && !empty && (0..nb + 1).any(|d| a.out.dims[d] == 0 && a.dims[d] > 1) {
        return Err("a dimension of the result has stride 0".into());
    }
    if a.dims.iter().chain(&widths(a)).any(|&n| n >= 1 << 30) {
        return Err("a dimension of attention is too large".into());
    }
    Ok(())
}
