//! Root-mean-square norms, with their weight stored as it is or as its distance from 1; where a decoder has norms.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Device, Tensor};

/// The representation of a norm's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Center {
    /// The weight itself, initially 1.
    One,
    /// The weight minus 1, as in Gemma, initially 0.
    Zero,
}

/// The norms of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOrder {
    /// Before attention and before the MLP.
    Before,
    /// After attention and after the MLP, before the residual sum.
    After,
    /// Before and after each.
    Around,
}

/// The norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// There are none.
    None,
    /// Over each head.
    Heads,
    /// Over the whole projection, all heads together.
    Projection,
}

/// `x / sqrt(mean(x²) + eps)`, multiplied by a weight for each element of the last dimension.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The weight, represented according to [`Center`].
    pub gamma: Param<Tensor<1>>,
    /// Keeps the root away from 0.
    pub epsilon: f64,
    #[module(skip)]
    center: Center,
}

impl RmsNorm {
    /// A norm over `width` elements with neutral weights.
    pub fn new(width: usize, epsilon: f64, center: Center, device: &Device) -> Self {
        let gamma = match center {
            Center::One => Initializer::Ones.init([width], device),
            Center::Zero => Initializer::Zeros.init([width], device),
        };
        Self { gamma, epsilon, center }
    }

    /// Normalizes the last dimension. The mean is computed in f32.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let root = (x.clone().cast(DType::F32).square().mean_dim(D - 1) + self.epsilon).sqrt();
        let normed = x / root.cast(dtype);
        match self.center {
            Center::One => normed * self.gamma.val().unsqueeze(),
            Center::Zero => normed * (self.gamma.val() + 1.0).unsqueeze(),
        }
    }
}
