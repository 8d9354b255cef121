//! Tensors that a program keeps from one run to the next, such as the keys and values of a cache.
//!
//! A closure receives such a tensor as the previous run left it, and returns its new value, which it declares with
//! [`Before::becomes`]. The ranks hold the tensor in their arenas next to the parameters, and programs that use the
//! same session share it. Its placement on the mesh is that of the value that is written into it.

use super::interface::{InputKind, KeptName};
use super::kind::{self, Kind};
use super::tensors::{Batch, Inputs, Leaf, LeafKind, Tensors};
use burn::tensor::{DType, Float, Tensor};
use std::marker::PhantomData;
use tpc_ir::ModulePath;

/// A tensor that a program keeps, as an entry in the batch of a closure: its name, shape and element type.
#[derive(Clone, Debug)]
pub struct Kept<const D: usize, K: Kind = Float> {
    name: KeptName,
    shape: [usize; D],
    dtype: DType,
    kind: PhantomData<K>,
}

/// The previous value of a kept tensor, as a closure receives it.
#[derive(Clone, Debug)]
pub struct Before<const D: usize, K: Kind = Float> {
    name: KeptName,
    /// The value that the previous run left.
    pub tensor: Tensor<D, K>,
}

/// The new value of a kept tensor, as a result of a closure.
#[derive(Clone, Debug)]
pub struct After<const D: usize, K: Kind = Float> {
    name: KeptName,
    tensor: Tensor<D, K>,
}

impl<const D: usize, K: Kind> Kept<D, K> {
    /// Describes a kept tensor of a module.
    pub fn new(owner: impl Into<ModulePath>, name: impl Into<String>, shape: [usize; D], dtype: DType) -> Self {
        let name = KeptName { owner: owner.into(), name: name.into() };
        Kept { name, shape, dtype, kind: PhantomData }
    }
}

impl<const D: usize, K: Kind> Before<D, K> {
    /// Declares the new value of the tensor.
    pub fn becomes(&self, tensor: Tensor<D, K>) -> After<D, K> {
        After { name: self.name.clone(), tensor }
    }
}

impl<const D: usize, K: Kind> Batch for Kept<D, K> {
    type Tensors = Before<D, K>;

    fn record(&self, _: Option<&str>, inputs: &mut Inputs) -> Before<D, K> {
        let KeptName { owner, name } = self.name.clone();
        let kind = InputKind::State { parameter: owner, name };
        Before { name: self.name.clone(), tensor: inputs.declare(kind, self.shape, self.dtype) }
    }
}

impl<const D: usize, K: Kind> Tensors for After<D, K> {
    fn leaves(&self, _: Option<&str>, out: &mut Vec<Leaf>) {
        out.push(Leaf { kind: LeafKind::Kept(self.name.clone()), id: kind::Kind::id(&self.tensor) });
    }
}
