//! Replaces a scalar of an operation by a tensor.

use burn::tensor::{DType, Shape};
use burn_ir::{
    BaseOperationIr as Base, BinaryOpIr, CastOpIr, FloatOperationIr as Float, NumericOperationIr as Numeric,
    OperationIr, ScalarOpIr, ShapeOpIr, TensorId, TensorIr,
};

use super::error::CaptureError;
use super::operation;

/// Rewrites an operation with one scalar so that it reads a tensor of shape `[1, …, 1]` instead, which `scalar` returns
/// for a rank and a dtype.
pub(super) fn substitute(
    op: OperationIr,
    scalar: impl FnOnce(usize, DType) -> TensorIr,
) -> Result<OperationIr, CaptureError> {
    let binary = |op: ScalarOpIr, scalar: &dyn Fn(usize, DType) -> TensorIr| BinaryOpIr {
        rhs: scalar(op.lhs.shape.num_dims(), op.lhs.dtype),
        lhs: op.lhs,
        out: op.out,
    };
    let once = std::cell::Cell::new(Some(scalar));
    let scalar = |rank, dtype| (once.take().expect("an operation has one substituted scalar"))(rank, dtype);
    macro_rules! arithmetic {
        ($($from:ident => $to:ident),+) => {
            match op {
                $(OperationIr::NumericFloat(dtype, Numeric::$from(op)) =>
                    OperationIr::NumericFloat(dtype, Numeric::$to(binary(op, &scalar))),)+
                OperationIr::Float(dtype, Float::PowfScalar(op)) =>
                    OperationIr::Float(dtype, Float::Powf(binary(op, &scalar))),
                OperationIr::NumericFloat(_, Numeric::Full(op)) => OperationIr::BaseFloat(Base::Expand(ShapeOpIr {
                    input: scalar(op.out.shape.num_dims(), op.out.dtype),
                    out: op.out,
                })),
                other => return Err(CaptureError::StepDependent { operation: operation::name(&other) }),
            }
        };
    }
    Ok(arithmetic!(
        AddScalar => Add,
        SubScalar => Sub,
        MulScalar => Mul,
        DivScalar => Div,
        RemScalar => Rem,
        GreaterElem => Greater,
        GreaterEqualElem => GreaterEqual,
        LowerElem => Lower,
        LowerEqualElem => LowerEqual
    ))
}

/// The operations that convert a scalar input `f32[1]` to a rank and dtype, and their result.
pub(super) fn adapt(
    input: TensorIr,
    rank: usize,
    dtype: DType,
    mut fresh: impl FnMut() -> TensorId,
) -> (Vec<OperationIr>, TensorIr) {
    let mut operations = Vec::new();
    let mut value = input;
    if value.dtype != dtype {
        let out = TensorIr::uninit(fresh(), value.shape.clone(), dtype);
        operations.push(OperationIr::BaseFloat(Base::Cast(CastOpIr { input: value, out: out.clone() })));
        value = out;
    }
    if rank != 1 {
        let out = TensorIr::uninit(fresh(), Shape::from(vec![1; rank]), dtype);
        operations.push(OperationIr::BaseFloat(Base::Reshape(ShapeOpIr { input: value, out: out.clone() })));
        value = out;
    }
    (operations, value)
}
