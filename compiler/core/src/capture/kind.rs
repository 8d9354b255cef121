//! The three kinds of burn tensors on the capture device.

use burn::backend::{Autodiff, Capture};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, DType, Device, Float, Int, Tensor, TensorData};
use burn_ir::TensorId;

/// Records without tracking gradients.
pub(super) type Untracked = Capture;
/// Records and tracks gradients.
pub(super) type Tracked = Autodiff<Capture>;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Float {}
    impl Sealed for super::Int {}
    impl Sealed for super::Bool {}
}

/// A kind of tensor that a capture can hold: [`Float`], [`Int`] or [`Bool`].
pub trait Kind: Basic + sealed::Sealed + 'static {
    /// The id of a recorded tensor; `None` for a tensor of another device.
    #[doc(hidden)]
    fn id<const D: usize>(tensor: &Tensor<D, Self>) -> Option<TensorId>;

    /// The same tensor, on the autodiff side of the capture device.
    #[doc(hidden)]
    fn track<const D: usize>(tensor: Tensor<D, Self>) -> Tensor<D, Self>;

    /// A tensor with the given elements. Numbers keep their type; booleans get the storage type of the device.
    #[doc(hidden)]
    fn with_data<const D: usize>(data: TensorData, device: &Device) -> Tensor<D, Self> {
        match data.dtype() {
            DType::Bool(_) => Tensor::from_data(data, device),
            dtype => Tensor::from_data(data, (device, dtype)),
        }
    }
}

macro_rules! kind {
    ($kind:ident, $tracked:ident => $inner:expr, $wrap:expr) => {
        impl Kind for $kind {
            fn id<const D: usize>(tensor: &Tensor<D, Self>) -> Option<TensorId> {
                if let Ok(primitive) = tensor.clone().try_into_primitive::<Untracked>() {
                    return Some(primitive.id());
                }
                let $tracked = tensor.clone().try_into_primitive::<Tracked>().ok()?;
                Some($inner)
            }

            fn track<const D: usize>(tensor: Tensor<D, Self>) -> Tensor<D, Self> {
                match tensor.clone().try_into_primitive::<Untracked>() {
                    Ok(primitive) => Tensor::from_primitive::<Tracked>($wrap(primitive)),
                    Err(_) => tensor,
                }
            }
        }
    };
}

kind!(Float, tracked => tracked.primitive().id(), <Tracked as burn::backend::AutodiffBackend>::from_inner);
kind!(Int, tracked => tracked.id(), std::convert::identity);
kind!(Bool, tracked => tracked.id(), std::convert::identity);

/// A tensor of unknown contents.
///
/// It is recorded as an `Empty` operation, which [`assemble`](super::assemble) drops, so that its result becomes an
/// input. Unlike a tensor made from data, it costs no memory, whatever its size.
pub(super) fn placeholder<const D: usize, K: Kind>(shape: [usize; D], dtype: DType, device: &Device) -> Tensor<D, K> {
    Tensor::empty(shape, (device, dtype))
}

/// The id of a tensor that is known to be recorded.
pub(super) fn id<const D: usize, K: Kind>(tensor: &Tensor<D, K>) -> u64 {
    K::id(tensor).expect("the tensor is on the capture device").value()
}

/// Whether a gradient flows to a tensor; `None` for a tensor without autodiff.
pub(super) fn tracking<const D: usize>(tensor: &Tensor<D>) -> Option<bool> {
    tensor.clone().try_into_primitive::<Tracked>().ok().map(|primitive| primitive.is_tracked())
}

/// The same recorded tensor without its gradient tape.
pub(super) fn untrack<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.clone().try_into_primitive::<Tracked>() {
        Ok(primitive) => Tensor::from_primitive::<Untracked>(primitive.into_primitive()),
        Err(_) => tensor,
    }
}
