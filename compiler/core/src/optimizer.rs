//! Optimizers composed of other optimizers.

use burn::optim::Optimizer;
use burn::tensor::{Device, Tensor};

/// One optimizer for matrices, embeddings and convolutions, and another one for parameters of one dimension. In
/// transformers the latter are the gains of norms and the biases, which by convention have no weight decay (Loshchilov
/// and Hutter's AdamW, as GPT-2 and its successors use it).
#[derive(Clone)]
pub struct ByDimensions<O> {
    /// Updates parameters with two or more dimensions.
    pub matrices: O,
    /// Updates parameters with one dimension.
    pub vectors: O,
}

impl<O: Optimizer> Optimizer for ByDimensions<O> {
    type State<const D: usize> = O::State<D>;

    fn step<const D: usize>(
        &self,
        lr: f64,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let optimizer = if D > 1 { &self.matrices } else { &self.vectors };
        optimizer.step(lr, tensor, grad, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        O::to_device(state, device)
    }
}
