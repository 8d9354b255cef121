//! Whether an operation may be computed on the terms of a partial value.
//!
//! Ranks that hold terms compute a result each. The results are terms of the right value if the operation is a
//! homomorphism of the reduction in the operands that are partial: computed on combined terms, it gives the combination
//! of what it gives on each. For a sum this is additivity, jointly in all operands that are partial, while the others are
//! the same for every term.

use super::meaning::Body;
use tpc_ir::{AxisSet, DType, MapFn, Mesh, Partial, ReduceOp, Scalar};

/// Whether results that are computed from terms combine to the result of the combined terms. `partial` lists the
/// operands that are terms of the reduction `op`, in order; the operation has `operands` of them in all, and `dtype` is
/// the element type of those that are partial.
pub(super) fn combine_later(body: &Body, op: ReduceOp, partial: &[usize], operands: usize, dtype: DType) -> bool {
    match body {
        Body::Made(_) | Body::Order => false,
        // x·(y + y′) = x·y + x·y′, also if products are summed afterwards, but not if both factors are terms.
        Body::Product => op == ReduceOp::Sum && partial.len() == 1,
        Body::Fold(fold) => *fold == op,
        Body::SumOf(operand) => op == ReduceOp::Sum && partial == [*operand],
        // The element that is chosen is the combination of those that are chosen among the terms.
        Body::OneOf(from, border) => partial == from.as_slice() && border.is_none_or(|x| combines_to_itself(x, op)),
        Body::Function(f) => match op {
            ReduceOp::Sum => adds_up(*f, partial, operands, dtype),
            ReduceOp::Max | ReduceOp::Min => operands == 1 && never_decreases(*f),
            ReduceOp::Prod => operands == 1 && *f == MapFn::Identity,
        },
    }
}

/// Whether combining copies of a number gives the number.
pub(super) fn combines_to_itself(x: Scalar, op: ReduceOp) -> bool {
    let x = x.as_f64();
    op.combine(x, x) == x
}

/// Whether a function is additive in some of its operands jointly.
fn adds_up(f: MapFn, partial: &[usize], operands: usize, dtype: DType) -> bool {
    match f {
        MapFn::Identity | MapFn::Neg => true,
        // (x + x′) + (y + y′) = (x + y) + (x′ + y′). An operand that is no term would be added once for each term.
        MapFn::Add => partial.len() == operands,
        // Without negative numbers a difference is not always the difference of what was subtracted.
        MapFn::Sub => partial.len() == operands && !matches!(dtype, DType::U8 | DType::Bool),
        MapFn::Mul => partial.len() == 1,
        // A quotient of integers is rounded.
        MapFn::Div => partial == [0] && dtype.is_float(),
        MapFn::Select => partial == [1, 2],
        _ => false,
    }
}

/// Whether f(x) ≤ f(y) for all x ≤ y, ±∞ included, so that a maximum passes through f. A logarithm is NaN at −∞, which
/// is the maximum of nothing.
fn never_decreases(f: MapFn) -> bool {
    use MapFn::{Ceil, Erf, Exp, Floor, Identity, Round, Sigmoid, Sign, Tanh};
    matches!(f, Identity | Exp | Tanh | Erf | Sigmoid | Floor | Ceil | Round | Sign)
}

/// Whether two values are terms of the same reduction over the same ranks. A term over an axis of one rank is the value.
pub(super) fn same_terms(a: Option<Partial>, b: Option<Partial>, mesh: &Mesh) -> bool {
    let several = |p: Option<Partial>| {
        let axes: AxisSet = p.map_or(AxisSet::EMPTY, |p| p.axes).iter().filter(|&a| mesh.size(a) > 1).collect();
        p.filter(|_| !axes.is_empty()).map(|p| Partial { axes, ..p })
    };
    a == b || several(a) == several(b)
}
