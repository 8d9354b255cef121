//! Lazily initialized linear layers and embeddings, and the activations that configurations name.

use burn::module::{Initializer, Param};
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor, activation};

/// An activation function, as named by `hidden_act`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `silu`, `swish`.
    Silu,
    /// `gelu`: with the error function.
    Gelu,
    /// `gelu_new`, `gelu_pytorch_tanh`: the tanh approximation.
    GeluTanh,
    /// `relu`.
    Relu,
}

impl Activation {
    /// The names that [`Activation::parse`] accepts.
    pub const NAMES: &'static str = "one of silu, swish, gelu, gelu_new, gelu_pytorch_tanh, relu";

    /// Parses a name from a configuration.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// The name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Relu => "relu",
        }
    }

    /// Applies the activation.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Silu => activation::silu(x),
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Relu => activation::relu(x),
        }
    }
}

/// A linear layer with normally distributed weights and a bias of zeros.
pub(super) fn linear(input: usize, output: usize, bias: bool, std: f64, device: &Device) -> Linear {
    Linear {
        weight: normal([input, output], std, device),
        bias: bias.then(|| Initializer::Zeros.init([output], device)),
    }
}

/// An embedding with normally distributed rows.
pub(super) fn embedding(rows: usize, width: usize, std: f64, device: &Device) -> Embedding {
    Embedding { weight: normal([rows, width], std, device) }
}

/// Looks up the rows `ids` of an embedding. The row `padding` gets no gradient from the lookup, as with PyTorch's
/// `padding_idx`; other readers of the embedding, such as a tied head, still give that row a gradient.
pub(super) fn look_up(embedding: &Embedding, ids: Tensor<2, Int>, padding: Option<usize>) -> Tensor<3> {
    let rows = embedding.forward(ids.clone());
    let Some(padding) = padding else { return rows };
    let padded = ids.equal_elem(padding as i64).unsqueeze_dim::<3>(2).expand(rows.dims());
    rows.clone().mask_where(padded, rows.detach())
}

fn normal(shape: [usize; 2], std: f64, device: &Device) -> Param<Tensor<2>> {
    Initializer::Normal { mean: 0.0, std }.init(shape, device)
}

/// Logits with the rows of an embedding as output weights.
pub(super) fn tied_logits(hidden: Tensor<3>, embedding: &Embedding) -> Tensor<3> {
    burn::tensor::module::linear(hidden, embedding.weight.val().transpose(), None)
}
