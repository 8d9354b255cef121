//! The tensors that a closure takes and returns: batches, results, and arguments of a scope.

use std::marker::PhantomData;

use burn::tensor::{DType, Device, Float, Tensor};
use burn_ir::TensorId;

use super::interface::{InputKind, KeptName};
use super::kind::{self, Kind};

/// A tensor in a [`Tensors`].
#[derive(Clone, Debug)]
pub struct Leaf {
    /// What the tensor stands for.
    pub kind: LeafKind,
    /// Its id in the recording; `None` for a tensor that is not recorded.
    pub id: Option<TensorId>,
}

/// What a tensor that a closure returns stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeafKind {
    /// A result. Its name comes from [`named`], from the key in a list, or from the position in a named tuple.
    Result(Option<String>),
    /// The new value of a [`Kept`](super::Kept) tensor.
    Kept(KeptName),
}

/// A value that consists of tensors: a tensor, a tuple, a list, an option, or a named value.
///
/// Implement it for your own structs by visiting their fields.
pub trait Tensors {
    /// Appends every tensor, in a fixed order.
    fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>);
}

/// A value that describes the data of a step: only its shapes, dtypes and names matter.
///
/// `#[derive(tpc::Batch)]` implements this trait and [`BatchData`](super::BatchData) for a struct of tensors.
pub trait Batch {
    /// The value that the closure receives.
    type Tensors;

    /// Declares the inputs and returns the tensors that stand for them.
    fn record(&self, name: Option<&str>, inputs: &mut Inputs) -> Self::Tensors;
}

/// A value with a name: `named("tokens", tokens)`.
#[derive(Clone, Debug)]
pub struct Named<T> {
    name: String,
    value: T,
}

impl<T> Named<T> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn value(&self) -> &T {
        &self.value
    }
}

/// Names an input of a batch, or an output of a closure.
pub fn named<T>(name: impl Into<String>, value: T) -> Named<T> {
    Named { name: name.into(), value }
}

/// The shape and dtype of an input, for programs without a backend on which to create an example tensor.
#[derive(Clone, Debug)]
pub struct Spec<const D: usize, K: Kind = Float> {
    shape: [usize; D],
    dtype: DType,
    kind: PhantomData<K>,
}

impl<const D: usize, K: Kind> Spec<D, K> {
    /// An input of the given shape and dtype.
    pub fn new(shape: [usize; D], dtype: DType) -> Self {
        Self { shape, dtype, kind: PhantomData }
    }
}

/// The data inputs declared so far.
#[derive(Debug)]
pub struct Inputs {
    device: Device,
    tracked: bool,
    pub(super) declared: Vec<Declared>,
}

/// One input of a closure.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) id: u64,
    pub(super) kind: InputKind,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
}

impl Inputs {
    pub(super) fn new(device: Device, tracked: bool) -> Self {
        Self { device, tracked, declared: Vec::new() }
    }

    /// Declares one input. An input without a name is called `input0`, `input1`, … by position.
    pub fn tensor<const D: usize, K: Kind>(
        &mut self,
        name: Option<&str>,
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<D, K> {
        let name = name.map_or_else(|| format!("input{}", self.declared.len()), str::to_owned);
        self.declare(InputKind::Data { name }, shape, dtype)
    }

    /// Declares one input of the given kind.
    pub(super) fn declare<const D: usize, K: Kind>(
        &mut self,
        kind: InputKind,
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<D, K> {
        let tensor = kind::placeholder::<D, K>(shape, dtype, &self.device);
        self.declared.push(Declared {
            id: kind::id(&tensor),
            kind,
            shape: shape.to_vec(),
            // burn gives every boolean tensor the storage type of its device, whatever was requested.
            dtype: tensor.dtype(),
        });
        if self.tracked { K::track(tensor) } else { tensor }
    }
}

/// The name of an element of a tuple or list; `None` if the tuple or list has no name.
pub(super) fn nested(prefix: Option<&str>, index: usize) -> Option<String> {
    prefix.map(|prefix| format!("{prefix}.{index}"))
}

/// The name of a field of a struct: `inner.field`, or `field` if the struct has no name.
pub fn field_name(structure: Option<&str>, field: &str) -> String {
    structure.map_or_else(|| field.to_owned(), |structure| format!("{structure}.{field}"))
}

impl<const D: usize, K: Kind> Tensors for Tensor<D, K> {
    fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>) {
        out.push(Leaf { kind: LeafKind::Result(prefix.map(str::to_owned)), id: K::id(self) });
    }
}

impl<const D: usize, K: Kind> Batch for Tensor<D, K> {
    type Tensors = Self;
    fn record(&self, name: Option<&str>, inputs: &mut Inputs) -> Self {
        inputs.tensor(name, self.dims(), self.dtype())
    }
}

impl<const D: usize, K: Kind> Batch for Spec<D, K> {
    type Tensors = Tensor<D, K>;
    fn record(&self, name: Option<&str>, inputs: &mut Inputs) -> Tensor<D, K> {
        inputs.tensor(name, self.shape, self.dtype)
    }
}

impl<T: Tensors> Tensors for Named<T> {
    fn leaves(&self, _: Option<&str>, out: &mut Vec<Leaf>) {
        self.value.leaves(Some(&self.name), out);
    }
}

impl<T: Batch> Batch for Named<T> {
    type Tensors = T::Tensors;
    fn record(&self, _: Option<&str>, inputs: &mut Inputs) -> T::Tensors {
        self.value.record(Some(&self.name), inputs)
    }
}

impl<T: Tensors + ?Sized> Tensors for &T {
    fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>) {
        (**self).leaves(prefix, out);
    }
}

impl<T: Batch + ?Sized> Batch for &T {
    type Tensors = T::Tensors;
    fn record(&self, name: Option<&str>, inputs: &mut Inputs) -> T::Tensors {
        (**self).record(name, inputs)
    }
}

impl<T: Tensors> Tensors for Option<T> {
    fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>) {
        if let Some(value) = self {
            value.leaves(prefix, out);
        }
    }
}

impl<T: Batch> Batch for Option<T> {
    type Tensors = Option<T::Tensors>;
    fn record(&self, name: Option<&str>, inputs: &mut Inputs) -> Self::Tensors {
        self.as_ref().map(|value| value.record(name, inputs))
    }
}

impl<T: Tensors> Tensors for Vec<T> {
    fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>) {
        for (index, value) in self.iter().enumerate() {
            value.leaves(nested(prefix, index).as_deref(), out);
        }
    }
}

impl<T: Batch> Batch for Vec<T> {
    type Tensors = Vec<T::Tensors>;
    fn record(&self, name: Option<&str>, inputs: &mut Inputs) -> Self::Tensors {
        let record = |(index, value): (usize, &T)| value.record(nested(name, index).as_deref(), inputs);
        self.iter().enumerate().map(record).collect()
    }
}

impl<T: Tensors> Tensors for (String, T) {
    fn leaves(&self, _: Option<&str>, out: &mut Vec<Leaf>) {
        self.1.leaves(Some(&self.0), out);
    }
}

impl Tensors for () {
    fn leaves(&self, _: Option<&str>, _: &mut Vec<Leaf>) {}
}

impl Batch for () {
    type Tensors = ();
    fn record(&self, _: Option<&str>, _: &mut Inputs) {}
}

macro_rules! tuple {
    ($($t:ident $i:tt),+) => {
        impl<$($t: Tensors),+> Tensors for ($($t,)+) {
            fn leaves(&self, prefix: Option<&str>, out: &mut Vec<Leaf>) {
                $(self.$i.leaves(nested(prefix, $i).as_deref(), out);)+
            }
        }

        impl<$($t: Batch),+> Batch for ($($t,)+) {
            type Tensors = ($($t::Tensors,)+);
            fn record(&self, name: Option<&str>, inputs: &mut Inputs) -> Self::Tensors {
                ($(self.$i.record(nested(name, $i).as_deref(), inputs),)+)
            }
        }
    };
}
/// Invokes a macro for tuples of one to six elements, with the types and positions of the elements.
macro_rules! for_tuples {
    ($tuple:ident) => {
        $tuple!(A 0);
        $tuple!(A 0, B 1);
        $tuple!(A 0, B 1, C 2);
        $tuple!(A 0, B 1, C 2, D 3);
        $tuple!(A 0, B 1, C 2, D 3, E 4);
        $tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
    };
}
pub(super) use for_tuples;
for_tuples!(tuple);

/// The result of a training closure: the loss, optionally with further outputs.
pub trait Loss {
    /// The further outputs.
    type Outputs: Tensors;
    /// Splits the loss from the outputs.
    fn split(self) -> (Tensor<1>, Self::Outputs);
}

impl Loss for Tensor<1> {
    type Outputs = ();
    fn split(self) -> (Tensor<1>, ()) {
        (self, ())
    }
}

impl<T: Tensors> Loss for (Tensor<1>, T) {
    type Outputs = T;
    fn split(self) -> (Tensor<1>, T) {
        self
    }
}
