//! Two linear layers with a GELU between them.

use super::layers::{Activation, linear};
use super::loss::mean_squared_error;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

/// `net2(gelu(net1(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// The first linear, `[width, inner]`.
    pub net1: Linear,
    /// The second linear, `[inner, width]`.
    pub net2: Linear,
}

impl Mlp {
    /// Builds the model with lazily drawn weights.
    pub fn new(width: usize, inner: usize, device: &Device) -> Self {
        Self { net1: linear(width, inner, true, 0.02, device), net2: linear(inner, width, true, 0.02, device) }
    }

    /// The output for `x [.., width]`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.net2.forward(Activation::Gelu.apply(self.net1.forward(x)))
    }

    /// The mean squared error against `target`.
    pub fn loss<const D: usize>(&self, output: Tensor<D>, target: Tensor<D>) -> Tensor<1> {
        mean_squared_error(output, target)
    }
}
