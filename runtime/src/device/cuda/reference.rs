//! The libraries' matrix products and collectives as plain loops, to check the calls.

use super::emit::{Call, Placed};
use super::gemm::{Activation, Gemm, Matrix};
use crate::comm::reduce;
use crate::element::{Element, Lane, with_element};
use tpc_ir::program::CollectiveKind;
use tpc_ir::{DType, ReduceOp};

unsafe fn get(base: *const u8, dtype: DType, element: i64) -> f64 {
    // SAFETY: the caller addresses an element of the matrix.
    with_element!(dtype, E => unsafe { (*base.cast::<E>().offset(element as isize)).load().to_f64() })
}

unsafe fn put(base: *mut u8, dtype: DType, element: i64, x: f64) {
    // SAFETY: the caller addresses an element of the matrix.
    with_element!(dtype, E => unsafe { *base.cast::<E>().offset(element as isize) = E::store(Lane::from_f64(x)) });
}

/// The element at row i and column j of the matrix as the product sees it.
fn at(m: &Matrix, i: usize, j: usize) -> i64 {
    let (row, column) = if m.transposed { (j, i) } else { (i, j) };
    assert!(row < m.rows && column < m.columns && m.leading >= m.rows);
    (row + column * m.leading) as i64
}

/// Applies the activation to an element.
fn activated(activation: Option<Activation>, x: f64) -> f64 {
    match activation {
        None => x,
        Some(Activation::Relu) => x.max(0.0),
        Some(Activation::Gelu) => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
    }
}

/// Computes a product with its epilogue.
///
/// # Safety
/// The matrices must be in the memory from `base` on, which nothing else uses during the call.
pub(super) unsafe fn run(g: &Gemm, base: *mut u8) {
    let place = |m: &Matrix| base.wrapping_offset(m.at as isize);
    for call in &g.calls {
        for batch in 0..g.batch as i64 {
            let first = |m: &Matrix, x: usize| call[x] + batch * m.batch_stride;
            // SAFETY: passed on to the caller.
            let read = |m: &Matrix, x, i, j| unsafe { get(place(m), m.dtype, first(m, x) + at(m, i, j)) };
            // SAFETY: passed on to the caller.
            let write =
                |m: &Matrix, x, i, j, value| unsafe { put(place(m), m.dtype, first(m, x) + at(m, i, j), value) };
            for i in 0..g.m {
                for j in 0..g.n {
                    let products = (0..g.k).map(|k| read(&g.a, 0, i, k) * read(&g.b, 1, k, j));
                    let mut sum = g.scale * products.sum::<f64>();
                    sum += g.c.as_ref().map_or(0.0, |c| g.beta * read(c, 3, i, j));
                    sum += g.bias.as_ref().map_or(0.0, |bias| read(bias, 4, i, 0));
                    g.aux.iter().for_each(|aux| write(aux, 5, i, j, sum));
                    write(&g.d, 2, i, j, activated(g.activation, sum));
                }
            }
        }
    }
}

/// Executes the calls of a collective for all members of its group, in the order of the group.
///
/// # Safety
/// The conditions of [`run`].
pub(super) unsafe fn communicate(members: &[&Placed], base: *mut u8) {
    let c = &members[0].collective;
    let size = c.dtype.bytes();
    let op = match c.kind {
        CollectiveKind::AllReduce(op) | CollectiveKind::ReduceScatter { op, .. } => op,
        _ => ReduceOp::Sum,
    };
    let combine = reduce::kernel(op, c.dtype);
    let at = |place: i64| base.wrapping_offset(place as isize);
    // SAFETY: passed on to the caller.
    let copy = |from: i64, to: i64, count: usize| unsafe { std::ptr::copy(at(from), at(to), count * size) };
    assert!(members.iter().all(
        |m| m.wire.calls.len() == members[0].wire.calls.len() || matches!(c.kind, CollectiveKind::AllToAll { .. })
    ));
    for (me, member) in members.iter().enumerate() {
        for (i, call) in member.wire.calls.iter().enumerate() {
            let of = |r: usize| &members[r].wire.calls[i];
            let sources = |offset: usize| -> Vec<*const u8> {
                let from = |r: usize| match of(r) {
                    Call::AllReduce { from, .. } | Call::ReduceScatter { from, .. } | Call::Reduce { from, .. } => {
                        *from
                    }
                    other => panic!("rank {r} calls {other:?}"),
                };
                (0..members.len()).map(|r| at(from(r)).wrapping_add(offset * size).cast_const()).collect()
            };
            match *call {
                // In place, so once for all ranks, in blocks that are read before they are written.
                Call::AllReduce { count, .. } if me == 0 => {
                    let to = |r: usize| match of(r) {
                        Call::AllReduce { to, .. } => at(*to),
                        other => panic!("rank {r} calls {other:?}"),
                    };
                    let targets: Vec<*mut u8> = (0..members.len()).map(to).collect();
                    // SAFETY: passed on to the caller.
                    unsafe { combine(count, &sources(0), &targets, 0, 0) }
                }
                Call::AllReduce { .. } => {}
                Call::AllGather { to, count, .. } => {
                    for r in 0..members.len() {
                        let Call::AllGather { from, .. } = *of(r) else { panic!("rank {r} calls {:?}", of(r)) };
                        copy(from, to + (r * count * size) as i64, count);
                    }
                }
                // SAFETY: passed on to the caller.
                Call::ReduceScatter { to, count, .. } => unsafe {
                    combine(count, &sources(me * count), &[at(to)], 0, 0);
                },
                Call::Broadcast { to, count, root, .. } => {
                    let Call::Broadcast { from, .. } = *of(root) else { panic!("rank {root} calls {:?}", of(root)) };
                    copy(from, to, count);
                }
                // SAFETY: passed on to the caller.
                Call::Reduce { to, count, root, .. } if root == me => unsafe {
                    combine(count, &sources(0), &[at(to)], 0, 0);
                },
                Call::Reduce { .. } | Call::Send { .. } => {}
                Call::Receive { to, count, peer } => {
                    let sent = members[peer].wire.calls.iter().find_map(|call| match *call {
                        Call::Send { from, count, peer } if peer == me => Some((from, count)),
                        _ => None,
                    });
                    let (from, sent) = sent.expect("the peer sends");
                    assert_eq!(sent, count);
                    copy(from, to, count);
                }
            }
        }
    }
}
