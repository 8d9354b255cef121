//! Operations that rearrange elements.

use super::{Builder, Imports, scalar};
use burn_ir::{BaseOperationIr as O, PadModeIr, PadOpIr, TensorIr, UnfoldOpIr};
use tpc_ir::{MapFn, Op, ReduceOp, Subscripts, Type, Value};

impl Builder {
    pub(super) fn base(&mut self, op: &O) -> Imports {
        match op {
            O::Reshape(o) => {
                let v = self.get(&o.input);
                self.set(&o.out, v)
            }
            O::SwapDims(o) => {
                let v = self.get(&o.input);
                let mut order: Vec<usize> = (0..self.shape(v).len()).collect();
                order.swap(o.dim1, o.dim2);
                let v = self.transposed(v, &order);
                self.set(&o.out, v)
            }
            O::Permute(o) => {
                let v = self.get(&o.input);
                let v = self.transposed(v, &o.axes);
                self.set(&o.out, v)
            }
            O::Expand(o) => {
                let v = self.get(&o.input);
                let v = self.broadcast(MapFn::Identity, &[v], &o.out.shape.to_vec());
                self.set(&o.out, v)
            }
            O::Slice(o) => {
                let mut v = self.get(&o.tensor);
                for dim in 0..o.out.shape.to_vec().len() {
                    let extent = self.shape(v)[dim];
                    let len = o.out.shape.to_vec()[dim];
                    let Some(r) = o.ranges.get(dim) else { continue };
                    if r.step < 1 {
                        return Err(self.unsupported("a slice must step forward"));
                    }
                    let start = if r.start < 0 { extent as isize + r.start } else { r.start };
                    v = self.sliced(v, dim, start as usize, len, r.step as usize);
                }
                self.set(&o.out, v)
            }
            O::SliceAssign(o) => self.slice_assign(o),
            O::RepeatDim(o) => {
                let v = self.get(&o.tensor);
                let mut shape = self.shape(v);
                let mut wide = shape.clone();
                wide.insert(o.dim, o.times);
                shape.insert(o.dim, 1);
                let v = self.reshaped(v, &shape);
                let v = self.broadcast(MapFn::Identity, &[v], &wide);
                self.set(&o.out, v)
            }
            O::Cat(o) => {
                let values: Vec<Value> = o.tensors.iter().map(|t| self.get(t)).collect();
                let v = match values.as_slice() {
                    [one] => *one,
                    _ => {
                        let ty = self.ty(&o.out)?;
                        self.push(Op::Concat { dim: o.dim }, &values, ty)
                    }
                };
                self.set(&o.out, v)
            }
            O::Cast(o) => self.cast(&o.input, &o.out),
            O::Empty(o) | O::Zeros(o) => self.full(&o.out, 0.0),
            O::Ones(o) => self.full(&o.out, 1.0),
            O::Equal(o) => self.binary(o, MapFn::Eq),
            O::EqualElem(o) => self.scaled(o, MapFn::Eq),
            O::NotEqual(o) => self.binary(o, MapFn::Ne),
            O::NotEqualElem(o) => self.scaled(o, MapFn::Ne),
            O::MaskWhere(o) => {
                let (x, mask, value) = (self.get(&o.tensor), self.get(&o.mask), self.get(&o.value));
                let v = self.broadcast(MapFn::Select, &[mask, value, x], &o.out.shape.to_vec());
                self.set(&o.out, v)
            }
            O::MaskFill(o) => {
                let (x, mask) = (self.get(&o.tensor), self.get(&o.mask));
                let value = self.constant(self.graph.ty(x).dtype, scalar(&o.value));
                let v = self.broadcast(MapFn::Select, &[mask, value, x], &o.out.shape.to_vec());
                self.set(&o.out, v)
            }
            O::Select(o) => self.select(o),
            O::SelectAssign(o) => self.select_assign(o),
            O::Gather(o) => self.gather(o),
            O::Scatter(o) => self.scatter(o),
            O::Flip(o) => {
                let mut v = self.get(&o.input);
                for &dim in &o.axes {
                    v = self.flipped(v, dim);
                }
                self.set(&o.out, v)
            }
            O::Unfold(o) => self.unfold(o),
            O::All(o) => self.truths(&o.input, &o.out, None, ReduceOp::Min),
            O::Any(o) => self.truths(&o.input, &o.out, None, ReduceOp::Max),
            O::AllDim(o) => self.truths(&o.input, &o.out, Some(o.axis), ReduceOp::Min),
            O::AnyDim(o) => self.truths(&o.input, &o.out, Some(o.axis), ReduceOp::Max),
            _ => Err(self.unsupported("there is no rule for it")),
        }
    }

    fn full(&mut self, out: &TensorIr, x: f64) -> Imports {
        let ty = self.ty(out)?;
        let v = self.filled(ty, x);
        self.set(out, v)
    }

    /// Reverses a dimension: takes rows from the last to the first.
    fn flipped(&mut self, v: Value, dim: usize) -> Value {
        let shape = self.shape(v);
        let index = self.push(Op::Iota, &[], Type::new(tpc_ir::DType::I64, [shape[dim]]));
        let last = self.constant(tpc_ir::DType::I64, shape[dim] as f64 - 1.0);
        let letters = Subscripts::new(&[vec![], vec![0u8]], &[0]);
        let ty = self.graph.ty(index).clone();
        let index = self.push(Op::Map { f: MapFn::Sub, subs: letters }, &[last, index], ty);
        self.taken(v, dim, index)
    }

    pub(super) fn pad(&mut self, o: &PadOpIr) -> Imports {
        let mut v = self.get(&o.input);
        for (dim, &(low, high)) in o.padding.iter().enumerate() {
            let last = self.shape(v)[dim] as isize - 1;
            v = match &o.mode {
                PadModeIr::Constant(x) => self.padded(v, dim, low, high, scalar(x)),
                PadModeIr::Edge => self.extended(v, dim, low, high, |i| i.clamp(0, last)),
                PadModeIr::Reflect => self.extended(v, dim, low, high, |i| last - (last - i.abs()).abs()),
            };
        }
        self.set(&o.out, v)
    }

    /// Extends a dimension by indices before and after it; `source` gives the index that each one copies.
    fn extended(&mut self, v: Value, dim: usize, low: usize, high: usize, source: impl Fn(isize) -> isize) -> Value {
        if low + high == 0 {
            return v;
        }
        let extent = self.shape(v)[dim] as isize;
        let one = |b: &mut Self, i: isize| b.sliced(v, dim, source(i) as usize, 1, 1);
        let before: Vec<Value> = (-(low as isize)..0).map(|i| one(self, i)).collect();
        let after: Vec<Value> = (extent..extent + high as isize).map(|i| one(self, i)).collect();
        let pieces: Vec<Value> = before.into_iter().chain([v]).chain(after).collect();
        let mut shape = self.shape(v);
        shape[dim] += low + high;
        let ty = Type::new(self.graph.ty(v).dtype, shape);
        self.push(Op::Concat { dim }, &pieces, ty)
    }

    /// The windows of a dimension, with their elements in a new last dimension.
    fn unfold(&mut self, o: &UnfoldOpIr) -> Imports {
        let v = self.get(&o.input);
        let mut shape = o.out.shape.to_vec();
        let last = shape.len() - 1;
        shape[last] = 1;
        let mut taps = Vec::new();
        for k in 0..o.size {
            let tap = self.sliced(v, o.dim, k, shape[o.dim], o.step);
            taps.push(self.reshaped(tap, &shape));
        }
        let v = match taps[..] {
            [one] => one,
            _ => {
                let ty = self.ty(&o.out)?;
                self.push(Op::Concat { dim: last }, &taps, ty)
            }
        };
        self.set(&o.out, v)
    }
}
