//! Operations that read or write at indices given by data, and random numbers.

use super::{Builder, Imports};
use burn::tensor::{Distribution as BurnDistribution, IndexingUpdateOp};
use burn_ir::{GatherOpIr, RandomOpIr, ScatterOpIr, SelectAssignOpIr, SelectOpIr, SliceAssignOpIr};
use tpc_ir::op::Distribution;
use tpc_ir::{MapFn, Op, ReduceOp, Scalar, Type, Value};

impl Builder {
    /// Rows `index` (one dimension) of dimension `dim`.
    pub(super) fn taken(&mut self, v: Value, dim: usize, index: Value) -> Value {
        let rank = self.shape(v).len();
        let front: Vec<usize> = std::iter::once(dim).chain((0..rank).filter(|&d| d != dim)).collect();
        let v = if dim == 0 { v } else { self.transposed(v, &front) };
        let mut shape = self.shape(v);
        shape[0] = self.shape(index)[0];
        let ty = Type::new(self.graph.ty(v).dtype, shape);
        let v = self.push(Op::Take, &[v, index], ty);
        if dim == 0 {
            return v;
        }
        let back: Vec<usize> = (1..=dim).chain([0]).chain(dim + 1..rank).collect();
        self.transposed(v, &back)
    }

    pub(super) fn select(&mut self, o: &SelectOpIr) -> Imports {
        let (v, index) = (self.get(&o.tensor), self.get(&o.indices));
        let v = self.taken(v, o.dim, index);
        self.set(&o.out, v)
    }

    pub(super) fn select_assign(&mut self, o: &SelectAssignOpIr) -> Imports {
        let (base, index, value) = (self.get(&o.tensor), self.get(&o.indices), self.get(&o.value));
        let rank = self.shape(base).len();
        let front: Vec<usize> = std::iter::once(o.dim).chain((0..rank).filter(|&d| d != o.dim)).collect();
        let moved = |builder: &mut Self, v| if o.dim == 0 { v } else { builder.transposed(v, &front) };
        let update = moved(self, value);
        match o.update {
            IndexingUpdateOp::Add => {}
            IndexingUpdateOp::Assign => {
                let table = moved(self, base);
                let ty = self.graph.ty(table).clone();
                let v = self.push(Op::Put, &[table, index, update], ty);
                let back: Vec<usize> = (1..=o.dim).chain([0]).chain(o.dim + 1..rank).collect();
                let v = if o.dim == 0 { v } else { self.transposed(v, &back) };
                return self.set(&o.out, v);
            }
            _ => return Err(self.unsupported("at indices, only adding and assigning are supported")),
        }
        let whole = self.shape(base);
        let shape: Vec<usize> = front.iter().map(|&d| whole[d]).collect();
        let ty = Type::new(self.graph.ty(base).dtype, shape);
        let sum = self.push(Op::ScatterAdd, &[index, update], ty);
        let back: Vec<usize> = (1..=o.dim).chain([0]).chain(o.dim + 1..rank).collect();
        let sum = self.transposed(sum, &back);
        let v = self.map(MapFn::Add, &[base, sum]);
        self.set(&o.out, v)
    }

    /// Elementwise gathering is a sum over a comparison with an iota: it needs no separate rule and works on a sharded
    /// dimension (cross entropy's pick on sharded logits).
    pub(super) fn gather(&mut self, o: &GatherOpIr) -> Imports {
        let (x, index) = (self.get(&o.tensor), self.get(&o.indices));
        let (wide, narrow) = self.index_shapes(x, index, o.dim)?;
        let (hits, x) = (self.hits(index, &wide, o.dim), self.inserted(x, o.dim + 1));
        let zero = self.constant(self.graph.ty(x).dtype, 0.0);
        let picked = self.broadcast(MapFn::Select, &[hits, x, zero], &wide);
        let v = self.reduced(picked, ReduceOp::Sum, &[o.dim]);
        let v = self.reshaped(v, &narrow);
        self.set(&o.out, v)
    }

    pub(super) fn scatter(&mut self, o: &ScatterOpIr) -> Imports {
        if o.update != IndexingUpdateOp::Add {
            return Err(self.unsupported("only adding at indices is supported"));
        }
        let (base, index, value) = (self.get(&o.tensor), self.get(&o.indices), self.get(&o.value));
        let (wide, _) = self.index_shapes(base, index, o.dim)?;
        let hits = self.hits(index, &wide, o.dim);
        let value = self.inserted(value, o.dim);
        let zero = self.constant(self.graph.ty(value).dtype, 0.0);
        let spread = self.broadcast(MapFn::Select, &[hits, value, zero], &wide);
        let sum = self.reduced(spread, ReduceOp::Sum, &[o.dim + 1]);
        let shape = self.shape(base);
        let sum = self.reshaped(sum, &shape);
        let v = self.map(MapFn::Add, &[base, sum]);
        self.set(&o.out, v)
    }

    /// The tensor's shape with the indices' extent after `dim`, and the indices' shape.
    fn index_shapes(&self, x: Value, index: Value, dim: usize) -> Result<(Vec<usize>, Vec<usize>), super::ImportError> {
        let (mut wide, narrow) = (self.shape(x), self.shape(index));
        if wide.iter().zip(&narrow).enumerate().any(|(d, (a, b))| d != dim && a != b) {
            return Err(self.unsupported("indices must have the tensor's extents in all other dimensions"));
        }
        wide.insert(dim + 1, narrow[dim]);
        Ok((wide, narrow))
    }

    /// Whether each index along `dim` is the wanted one.
    fn hits(&mut self, index: Value, wide: &[usize], dim: usize) -> Value {
        let index = self.inserted(index, dim);
        let number = self.iota(self.graph.ty(index).dtype, wide, dim);
        self.broadcast(MapFn::Eq, &[number, index], wide)
    }

    fn inserted(&mut self, v: Value, dim: usize) -> Value {
        let mut shape = self.shape(v);
        shape.insert(dim, 1);
        self.reshaped(v, &shape)
    }

    /// The value within the ranges, the tensor elsewhere.
    pub(super) fn slice_assign(&mut self, o: &SliceAssignOpIr) -> Imports {
        let (base, mut value) = (self.get(&o.tensor), self.get(&o.value));
        let shape = self.shape(base);
        let mut inside: Option<Value> = None;
        for (dim, &extent) in shape.iter().enumerate() {
            let Some(r) = o.ranges.get(dim) else { continue };
            let Ok(step) = usize::try_from(r.step) else {
                return Err(self.unsupported("a slice must step forward"));
            };
            let start = if r.start < 0 { extent as isize + r.start } else { r.start } as usize;
            let len = self.shape(value)[dim];
            if len == extent {
                continue;
            }
            value = self.spread(value, dim, step);
            let len = (len * step).min(extent - start);
            value = self.sliced(value, dim, 0, len, 1);
            value = self.padded(value, dim, start, extent - start - len, 0.0);
            let index = self.iota(tpc_ir::DType::I64, &shape, dim);
            let after = self.with(MapFn::Ge, index, start as f64);
            let before = self.with(MapFn::Lt, index, (start + len) as f64);
            let mut here = self.map(MapFn::And, &[after, before]);
            if step > 1 {
                let distance = self.with(MapFn::Sub, index, start as f64);
                let rest = self.with(MapFn::Rem, distance, step as f64);
                let hit = self.with(MapFn::Eq, rest, 0.0);
                here = self.map(MapFn::And, &[here, hit]);
            }
            inside = Some(match inside {
                Some(other) => self.broadcast(MapFn::And, &[other, here], &shape),
                None => here,
            });
        }
        let v = match inside {
            // A slice assigned to zeros, as in the backward pass of a slice: the result is the padded value.
            Some(_) if self.is_zero(base) => value,
            Some(inside) => self.broadcast(MapFn::Select, &[inside, value, base], &shape),
            None => value,
        };
        self.set(&o.out, v)
    }

    fn is_zero(&self, v: Value) -> bool {
        match self.graph.op(v) {
            Op::Fill(s) => s.as_f64() == 0.0,
            Op::Map { f: MapFn::Identity, .. } | Op::Reshape => self.is_zero(self.graph.operands(v.node)[0]),
            _ => false,
        }
    }

    pub(super) fn random(&mut self, o: &RandomOpIr) -> Imports {
        let ty = self.ty(&o.out)?;
        let distribution = match o.distribution {
            BurnDistribution::Default => Distribution::Uniform(Scalar::float(0.0), Scalar::float(1.0)),
            BurnDistribution::Bernoulli(p) => Distribution::Bernoulli(Scalar::float(p)),
            BurnDistribution::Uniform(a, b) => Distribution::Uniform(Scalar::float(a), Scalar::float(b)),
            BurnDistribution::Normal(m, s) => Distribution::Normal(Scalar::float(m), Scalar::float(s)),
        };
        let Some(seed) = self.seed else { return Err(self.unsupported("the program has no seed")) };
        self.streams += 1;
        let stream = self.streams;
        let v = self.push(Op::Random { distribution, stream }, &[seed], ty);
        self.set(&o.out, v)
    }
}
