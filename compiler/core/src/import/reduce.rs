//! Reductions. burn keeps reduced dimensions with extent 1; here they disappear, and a reshape restores the extent.

use super::{Builder, Imports};
use burn_ir::{ReduceDimOpIr, ReduceDimWithIndicesOpIr, ReduceOpIr, TensorIr};
use tpc_ir::{DType, MapFn, Op, ReduceOp, Type, Value};

impl Builder {
    /// Reduces dimensions, leaving extent 1.
    pub(super) fn reduced(&mut self, v: Value, op: ReduceOp, dims: &[usize]) -> Value {
        let mut shape = self.shape(v);
        let origin = self.origin.clone();
        let r = self.graph.reduce(op, v, dims, &origin);
        dims.iter().for_each(|&d| shape[d] = 1);
        self.reshaped(r, &shape)
    }

    pub(super) fn reduce_all(&mut self, o: &ReduceOpIr, op: ReduceOp) -> Imports {
        let v = self.get(&o.input);
        let dims: Vec<usize> = (0..self.shape(v).len()).collect();
        let v = self.reduced(v, op, &dims);
        self.set(&o.out, v)
    }

    pub(super) fn reduce_dim(&mut self, o: &ReduceDimOpIr, op: ReduceOp) -> Imports {
        let v = self.get(&o.input);
        let v = self.reduced(v, op, &[o.axis]);
        self.set(&o.out, v)
    }

    /// A mean is a sum divided by the *global* count, which is also correct for uneven shards.
    pub(super) fn mean_all(&mut self, o: &ReduceOpIr) -> Imports {
        let v = self.get(&o.input);
        let shape = self.shape(v);
        let dims: Vec<usize> = (0..shape.len()).collect();
        let sum = self.reduced(v, ReduceOp::Sum, &dims);
        let v = self.with(MapFn::Div, sum, shape.iter().product::<usize>() as f64);
        self.set(&o.out, v)
    }

    pub(super) fn mean_dim(&mut self, o: &ReduceDimOpIr) -> Imports {
        let v = self.get(&o.input);
        let count = self.shape(v)[o.axis];
        let sum = self.reduced(v, ReduceOp::Sum, &[o.axis]);
        let v = self.with(MapFn::Div, sum, count as f64);
        self.set(&o.out, v)
    }

    pub(super) fn extreme(&mut self, o: &ReduceDimWithIndicesOpIr, op: ReduceOp) -> Imports {
        let x = self.get(&o.tensor);
        let v = self.reduced(x, op, &[o.dim]);
        self.set(&o.out, v)?;
        let index = self.arg(x, v, o.dim, self.ty(&o.out_indices)?.dtype);
        self.set(&o.out_indices, index)
    }

    pub(super) fn arg_extreme(&mut self, o: &ReduceDimOpIr, op: ReduceOp) -> Imports {
        let x = self.get(&o.input);
        let v = self.reduced(x, op, &[o.axis]);
        let index = self.arg(x, v, o.axis, self.ty(&o.out)?.dtype);
        self.set(&o.out, index)
    }

    /// The first index along `dim` at which `x` equals its extreme: the smallest matching index. Indices alone are
    /// never partial under a maximum, but these are partial under a minimum.
    fn arg(&mut self, x: Value, extreme: Value, dim: usize, dtype: DType) -> Value {
        let shape = self.shape(x);
        let matches = self.broadcast(MapFn::Eq, &[x, extreme], &shape);
        let index = self.iota(dtype, &shape, dim);
        let beyond = self.constant(dtype, shape[dim] as f64);
        let index = self.broadcast(MapFn::Select, &[matches, index, beyond], &shape);
        self.reduced(index, ReduceOp::Min, &[dim])
    }

    /// `0, 1, 2, …` along one dimension of a shape, extent 1 elsewhere.
    pub(super) fn iota(&mut self, dtype: DType, shape: &[usize], dim: usize) -> Value {
        let v = self.push(Op::Iota, &[], Type::new(dtype, [shape[dim]]));
        let mut wide = vec![1; shape.len()];
        wide[dim] = shape[dim];
        self.reshaped(v, &wide)
    }

    /// The largest magnitude of a tensor or along a dimension.
    pub(super) fn max_abs(&mut self, input: &TensorIr, out: &TensorIr, dim: Option<usize>) -> Imports {
        let v = self.get(input);
        let size = self.map(MapFn::Abs, &[v]);
        let dims = dim.map_or_else(|| (0..self.shape(size).len()).collect(), |d| vec![d]);
        let v = self.reduced(size, ReduceOp::Max, &dims);
        self.set(out, v)
    }

    /// Whether all elements (the minimum of truth values) or any element (the maximum) is nonzero.
    pub(super) fn truths(&mut self, input: &TensorIr, out: &TensorIr, dim: Option<usize>, op: ReduceOp) -> Imports {
        let mut v = self.get(input);
        if self.graph.ty(v).dtype != DType::Bool {
            v = self.with(MapFn::Ne, v, 0.0);
        }
        let dims = dim.map_or_else(|| (0..self.shape(v).len()).collect(), |d| vec![d]);
        let v = self.reduced(v, op, &dims);
        self.set(out, v)
    }

    /// The first elements along a dimension in descending (or ascending) order, as many as the results have, and their
    /// indices.
    pub(super) fn ranked(
        &mut self,
        input: &TensorIr,
        dim: usize,
        descending: bool,
        values: Option<&TensorIr>,
        indices: Option<&TensorIr>,
    ) -> Imports {
        let Some(shaped) = values.or(indices) else { return Ok(()) };
        let k = shaped.shape.to_vec()[dim];
        let index_dtype = indices.map_or(Ok(DType::I64), |t| self.ty(t).map(|ty| ty.dtype))?;
        let mut x = self.get(input);
        let mut order: Vec<usize> = (0..self.shape(x).len()).collect();
        let last = order.len() - 1;
        order.swap(dim, last); // its own inverse
        let turned = |b: &mut Self, v: Value| if dim == last { v } else { b.transposed(v, &order) };
        x = turned(self, x);
        if !descending {
            x = self.map(MapFn::Neg, &[x]);
        }
        let ty = self.graph.ty(x).clone();
        let shape = [&ty.shape[..last], &[k]].concat();
        let types = vec![Type::new(ty.dtype, shape.clone()), Type::new(index_dtype, shape)];
        let node = self.graph.add(Op::TopK, &[x], types, self.origin.clone());
        if let Some(out) = values {
            let mut v = Value { node, result: 0 };
            if !descending {
                v = self.map(MapFn::Neg, &[v]);
            }
            let v = turned(self, v);
            self.set(out, v)?;
        }
        if let Some(out) = indices {
            let v = turned(self, Value { node, result: 1 });
            self.set(out, v)?;
        }
        Ok(())
    }
}
