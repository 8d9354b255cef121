//! Operations that rearrange elements.

use super::{scalar, Builder, Imports};
use burn_ir::{BaseOperationIr as O, PadModeIr, PadOpIr, TensorIr};
use tpc_ir::{MapFn, Op, Subscripts, Value};

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
            _ => Err(self.unsupported("there is no rule for it")),
        }
    }

    fn full(&mut self, out: &TensorIr, x: f64) -> Imports {
        let ty = self.ty(out)?;
        let v = self.filled(ty, x);
        self.set(out, v)
    }

    /// Reversal of a dimension: rows taken from the last to the first.
    fn flipped(&mut self, v: Value, dim: usize) -> Value {
        let shape = self.shape(v);
        let index = self.push(Op::Iota, &[], tpc_ir::Type::new(tpc_ir::DType::I64, [shape[dim]]));
        let last = self.constant(tpc_ir::DType::I64, shape[dim] as f64 - 1.0);
        let letters = Subscripts::new(&[vec![], vec![0u8]], &[0]);
        let ty = self.graph.ty(index).clone();
        let index = self.push(Op::Map { f: MapFn::Sub, subs: letters }, &[last, index], ty);
        self.taken(v, dim, index)
    }

    pub(super) fn pad(&mut self, o: &PadOpIr) -> Imports {
        let PadModeIr::Constant(x) = &o.mode else {
            return Err(self.unsupported("only constant padding is supported"));
        };
        let mut v = self.get(&o.input);
        for (dim, &(low, high)) in o.padding.iter().enumerate() {
            v = self.padded(v, dim, low, high, scalar(x));
        }
        self.set(&o.out, v)
    }
}
