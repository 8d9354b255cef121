//! Elementwise operations and activations.

use super::{Builder, Imports, scalar};
use burn_ir::{
    ActivationOperationIr as A, BinaryOpIr, BoolOperationIr as B, FloatOperationIr as F, IntOperationIr as I,
};
use burn_ir::{NumericOperationIr as N, ScalarOpIr, TensorIr, UnaryOpIr};
use tpc_ir::{MapFn, Op, ReduceOp, Value};

impl Builder {
    fn unary(&mut self, op: &UnaryOpIr, f: MapFn) -> Imports {
        let v = self.get(&op.input);
        let v = self.map(f, &[v]);
        self.set(&op.out, v)
    }

    pub(super) fn binary(&mut self, op: &BinaryOpIr, f: MapFn) -> Imports {
        let (a, b) = (self.get(&op.lhs), self.get(&op.rhs));
        let v = self.broadcast(f, &[a, b], &op.out.shape.to_vec());
        self.set(&op.out, v)
    }

    pub(super) fn scaled(&mut self, op: &ScalarOpIr, f: MapFn) -> Imports {
        let v = self.get(&op.lhs);
        let v = self.with(f, v, scalar(&op.rhs));
        self.set(&op.out, v)
    }

    pub(super) fn cast(&mut self, input: &TensorIr, out: &TensorIr) -> Imports {
        let (v, ty) = (self.get(input), self.ty(out)?);
        let v = if self.graph.ty(v).dtype == ty.dtype { v } else { self.map(MapFn::Cast(ty.dtype), &[v]) };
        self.set(out, v)
    }

    pub(super) fn numeric(&mut self, op: &N) -> Imports {
        match op {
            N::Add(o) => self.binary(o, MapFn::Add),
            N::AddScalar(o) => self.scaled(o, MapFn::Add),
            N::Sub(o) => self.binary(o, MapFn::Sub),
            N::SubScalar(o) => self.scaled(o, MapFn::Sub),
            N::Div(o) => self.binary(o, MapFn::Div),
            N::DivScalar(o) => self.scaled(o, MapFn::Div),
            N::Rem(o) => self.binary(o, MapFn::Rem),
            N::RemScalar(o) => self.scaled(o, MapFn::Rem),
            N::Mul(o) => self.binary(o, MapFn::Mul),
            N::MulScalar(o) => self.scaled(o, MapFn::Mul),
            N::Powi(o) => self.binary(o, MapFn::Pow),
            N::PowiScalar(o) => self.scaled(o, MapFn::Pow),
            N::Abs(o) => self.unary(o, MapFn::Abs),
            N::Neg(o) => self.unary(o, MapFn::Neg),
            N::Sign(o) => self.unary(o, MapFn::Sign),
            N::Greater(o) => self.binary(o, MapFn::Gt),
            N::GreaterElem(o) => self.scaled(o, MapFn::Gt),
            N::GreaterEqual(o) => self.binary(o, MapFn::Ge),
            N::GreaterEqualElem(o) => self.scaled(o, MapFn::Ge),
            N::Lower(o) => self.binary(o, MapFn::Lt),
            N::LowerElem(o) => self.scaled(o, MapFn::Lt),
            N::LowerEqual(o) => self.binary(o, MapFn::Le),
            N::LowerEqualElem(o) => self.scaled(o, MapFn::Le),
            N::ClampMin(o) => self.scaled(o, MapFn::Max),
            N::ClampMax(o) => self.scaled(o, MapFn::Min),
            N::Clamp(o) => {
                let v = self.get(&o.tensor);
                let v = self.with(MapFn::Max, v, scalar(&o.min));
                let v = self.with(MapFn::Min, v, scalar(&o.max));
                self.set(&o.out, v)
            }
            N::Full(o) => {
                let ty = self.ty(&o.out)?;
                let v = self.filled(ty, scalar(&o.value));
                self.set(&o.out, v)
            }
            N::Pad(o) => self.pad(o),
            N::CumSum(o) => {
                let v = self.get(&o.input);
                let ty = self.ty(&o.out)?;
                let v = self.push(Op::CumSum { dim: o.axis }, &[v], ty);
                self.set(&o.out, v)
            }
            N::Sum(o) => self.reduce_all(o, ReduceOp::Sum),
            N::Mean(o) => self.mean_all(o),
            N::Prod(o) => self.reduce_all(o, ReduceOp::Prod),
            N::Max(o) => self.reduce_all(o, ReduceOp::Max),
            N::Min(o) => self.reduce_all(o, ReduceOp::Min),
            N::SumDim(o) => self.reduce_dim(o, ReduceOp::Sum),
            N::ProdDim(o) => self.reduce_dim(o, ReduceOp::Prod),
            N::MaxDim(o) => self.reduce_dim(o, ReduceOp::Max),
            N::MinDim(o) => self.reduce_dim(o, ReduceOp::Min),
            N::MeanDim(o) => self.mean_dim(o),
            N::SumDims(o) => {
                let v = self.get(&o.input);
                let v = self.reduced(v, ReduceOp::Sum, &o.axes);
                self.set(&o.out, v)
            }
            N::MaxDimWithIndices(o) => self.extreme(o, ReduceOp::Max),
            N::MinDimWithIndices(o) => self.extreme(o, ReduceOp::Min),
            N::ArgMax(o) => self.arg_extreme(o, ReduceOp::Max),
            N::ArgMin(o) => self.arg_extreme(o, ReduceOp::Min),
            N::MaxAbs(o) => self.max_abs(&o.input, &o.out, None),
            N::MaxAbsDim(o) => self.max_abs(&o.input, &o.out, Some(o.axis)),
            N::TopK(o) => self.ranked(&o.input, o.axis, true, Some(&o.out), None),
            N::ArgTopK(o) => self.ranked(&o.input, o.axis, true, None, Some(&o.out)),
            N::TopKWithIndices(o) => self.ranked(&o.tensor, o.dim, true, Some(&o.out), Some(&o.out_indices)),
            N::Sort(o) => self.ranked(&o.input, o.dim, o.descending, Some(&o.out), None),
            N::ArgSort(o) => self.ranked(&o.input, o.dim, o.descending, None, Some(&o.out)),
            N::SortWithIndices(o) => self.ranked(&o.input, o.dim, o.descending, Some(&o.out), Some(&o.out_indices)),
            N::IntRandom(o) => self.random(o),
            _ => Err(self.unsupported("there is no rule for it")),
        }
    }

    pub(super) fn float(&mut self, op: &F) -> Imports {
        match op {
            F::Exp(o) => self.unary(o, MapFn::Exp),
            F::Log(o) => self.unary(o, MapFn::Log),
            F::Log1p(o) => {
                let v = self.get(&o.input);
                let v = self.with(MapFn::Add, v, 1.0);
                let v = self.map(MapFn::Log, &[v]);
                self.set(&o.out, v)
            }
            F::Erf(o) => self.unary(o, MapFn::Erf),
            F::Sqrt(o) => self.unary(o, MapFn::Sqrt),
            F::Cos(o) => self.unary(o, MapFn::Cos),
            F::Sin(o) => self.unary(o, MapFn::Sin),
            F::Tanh(o) => self.unary(o, MapFn::Tanh),
            F::Floor(o) => self.unary(o, MapFn::Floor),
            F::Ceil(o) => self.unary(o, MapFn::Ceil),
            F::Round(o) => self.unary(o, MapFn::Round),
            F::Recip(o) => self.unary(o, MapFn::Recip),
            F::PowfScalar(o) => self.scaled(o, MapFn::Pow),
            F::Powf(o) => self.binary(o, MapFn::Pow),
            F::IntoInt(o) => self.cast(&o.input, &o.out),
            F::Matmul(o) => self.matmul(o),
            F::Random(o) => self.random(o),
            F::Tan(o) => {
                let v = self.get(&o.input);
                let (sin, cos) = (self.map(MapFn::Sin, &[v]), self.map(MapFn::Cos, &[v]));
                let v = self.map(MapFn::Div, &[sin, cos]);
                self.set(&o.out, v)
            }
            F::Sinh(o) => self.hyperbolic(o, MapFn::Sub),
            F::Cosh(o) => self.hyperbolic(o, MapFn::Add),
            F::Trunc(o) => {
                let v = self.get(&o.input);
                let (sign, size) = (self.map(MapFn::Sign, &[v]), self.map(MapFn::Abs, &[v]));
                let size = self.map(MapFn::Floor, &[size]);
                let v = self.map(MapFn::Mul, &[sign, size]);
                self.set(&o.out, v)
            }
            F::IsInf(o) => {
                let v = self.get(&o.input);
                let v = self.map(MapFn::Abs, &[v]);
                let v = self.with(MapFn::Eq, v, f64::INFINITY);
                self.set(&o.out, v)
            }
            F::IsNan(o) => {
                let v = self.get(&o.input);
                let v = self.map(MapFn::Ne, &[v, v]);
                self.set(&o.out, v)
            }
            _ => Err(self.unsupported("there is no rule for it")),
        }
    }

    /// `(exp(x) ± exp(−x)) / 2`.
    fn hyperbolic(&mut self, o: &UnaryOpIr, f: MapFn) -> Imports {
        let v = self.get(&o.input);
        let negative = self.map(MapFn::Neg, &[v]);
        let (up, down) = (self.map(MapFn::Exp, &[v]), self.map(MapFn::Exp, &[negative]));
        let v = self.map(f, &[up, down]);
        let v = self.with(MapFn::Mul, v, 0.5);
        self.set(&o.out, v)
    }

    pub(super) fn int(&mut self, op: &I) -> Imports {
        match op {
            I::IntoFloat(o) => self.cast(&o.input, &o.out),
            I::Matmul(o) => self.matmul(o),
            _ => Err(self.unsupported("bit operations have no rule")),
        }
    }

    pub(super) fn bool(&mut self, op: &B) -> Imports {
        match op {
            B::IntoFloat(o) | B::IntoInt(o) => self.cast(&o.input, &o.out),
            B::Not(o) => self.unary(o, MapFn::Not),
            B::And(o) => self.binary(o, MapFn::And),
            B::Or(o) => self.binary(o, MapFn::Or),
            B::Xor(o) => self.binary(o, MapFn::Ne),
        }
    }

    pub(super) fn activation(&mut self, op: &A) -> Imports {
        match op {
            A::Relu(o) => {
                let v = self.get(&o.input);
                let v = self.with(MapFn::Max, v, 0.0);
                self.set(&o.out, v)
            }
            A::ReluBackward(o) => {
                let (y, grad) = (self.get(&o.lhs), self.get(&o.rhs));
                let positive = self.with(MapFn::Gt, y, 0.0);
                let zero = self.constant(self.graph.ty(grad).dtype, 0.0);
                let v = self.map(MapFn::Select, &[positive, grad, zero]);
                self.set(&o.out, v)
            }
            A::LeakyRelu(o) => {
                let x = self.get(&o.lhs);
                let negative = self.with(MapFn::Mul, x, scalar(&o.rhs));
                let positive = self.with(MapFn::Ge, x, 0.0);
                let v = self.map(MapFn::Select, &[positive, x, negative]);
                self.set(&o.out, v)
            }
            A::PRelu(o) => {
                let (x, alpha) = (self.get(&o.lhs), self.get(&o.rhs));
                let shape = self.shape(x);
                let scaled = self.broadcast(MapFn::Mul, &[x, alpha], &shape);
                let negative = self.with(MapFn::Lt, x, 0.0);
                let v = self.map(MapFn::Select, &[negative, scaled, x]);
                self.set(&o.out, v)
            }
            A::Gelu(o) => {
                let x = self.get(&o.input);
                let phi = self.normal_cdf(x);
                let v = self.map(MapFn::Mul, &[x, phi]);
                self.set(&o.out, v)
            }
            A::GeluBackward(o) => {
                // d/dx x·Φ(x) = Φ(x) + x·φ(x)
                let (x, grad) = (self.get(&o.lhs), self.get(&o.rhs));
                let cdf = self.normal_cdf(x);
                let square = self.map(MapFn::Mul, &[x, x]);
                let half = self.with(MapFn::Mul, square, -0.5);
                let bell = self.map(MapFn::Exp, &[half]);
                let density = self.with(MapFn::Mul, bell, 1.0 / (2.0 * std::f64::consts::PI).sqrt());
                let slope = self.map(MapFn::Mul, &[x, density]);
                let slope = self.map(MapFn::Add, &[cdf, slope]);
                let v = self.map(MapFn::Mul, &[grad, slope]);
                self.set(&o.out, v)
            }
            A::Sigmoid(o) => self.unary(o, MapFn::Sigmoid),
            A::SigmoidBackward(o) => {
                let (y, grad) = (self.get(&o.lhs), self.get(&o.rhs));
                let one = self.constant(self.graph.ty(y).dtype, 1.0);
                let rest = self.map(MapFn::Sub, &[one, y]);
                let slope = self.map(MapFn::Mul, &[y, rest]);
                let v = self.map(MapFn::Mul, &[grad, slope]);
                self.set(&o.out, v)
            }
            A::HardSigmoid(o) => {
                let x = self.get(&o.tensor);
                let v = self.with(MapFn::Mul, x, scalar(&o.alpha));
                let v = self.with(MapFn::Add, v, scalar(&o.beta));
                let v = self.with(MapFn::Max, v, 0.0);
                let v = self.with(MapFn::Min, v, 1.0);
                self.set(&o.out, v)
            }
            A::LogSigmoid(o) => {
                // min(x, 0) − log(1 + exp(−|x|)): no overflow on either side.
                let x = self.get(&o.input);
                let low = self.with(MapFn::Min, x, 0.0);
                let size = self.map(MapFn::Abs, &[x]);
                let size = self.map(MapFn::Neg, &[size]);
                let tail = self.map(MapFn::Exp, &[size]);
                let tail = self.with(MapFn::Add, tail, 1.0);
                let tail = self.map(MapFn::Log, &[tail]);
                let v = self.map(MapFn::Sub, &[low, tail]);
                self.set(&o.out, v)
            }
            A::LogSigmoidBackward(o) => {
                // d/dx log σ(x) = σ(−x)
                let (x, grad) = (self.get(&o.lhs), self.get(&o.rhs));
                let negative = self.map(MapFn::Neg, &[x]);
                let slope = self.map(MapFn::Sigmoid, &[negative]);
                let v = self.map(MapFn::Mul, &[grad, slope]);
                self.set(&o.out, v)
            }
            A::Softmax(o) => {
                let x = self.get(&o.input);
                let (e, sum) = self.exponentials(x, o.axis, false);
                let v = self.broadcast(MapFn::Div, &[e, sum], &o.out.shape.to_vec());
                self.set(&o.out, v)
            }
            A::Softmin(o) => {
                let x = self.get(&o.input);
                let x = self.map(MapFn::Neg, &[x]);
                let (e, sum) = self.exponentials(x, o.axis, false);
                let v = self.broadcast(MapFn::Div, &[e, sum], &o.out.shape.to_vec());
                self.set(&o.out, v)
            }
            A::LogSoftmax(o) => {
                let x = self.get(&o.input);
                let (x, sum) = self.exponentials(x, o.axis, true);
                let log = self.map(MapFn::Log, &[sum]);
                let v = self.broadcast(MapFn::Sub, &[x, log], &o.out.shape.to_vec());
                self.set(&o.out, v)
            }
        }
    }

    /// Φ(x) = (1 + erf(x/√2)) / 2.
    fn normal_cdf(&mut self, x: Value) -> Value {
        let v = self.with(MapFn::Mul, x, std::f64::consts::FRAC_1_SQRT_2);
        let v = self.map(MapFn::Erf, &[v]);
        let v = self.with(MapFn::Add, v, 1.0);
        self.with(MapFn::Mul, v, 0.5)
    }

    /// Shifted inputs or their exponentials, and the sum of the exponentials with extent 1.
    fn exponentials(&mut self, x: Value, axis: usize, shifted: bool) -> (Value, Value) {
        let shape = self.shape(x);
        let max = self.reduced(x, ReduceOp::Max, &[axis]);
        let x = self.broadcast(MapFn::Sub, &[x, max], &shape);
        let e = self.map(MapFn::Exp, &[x]);
        let sum = self.reduced(e, ReduceOp::Sum, &[axis]);
        (if shifted { x } else { e }, sum)
    }
}
