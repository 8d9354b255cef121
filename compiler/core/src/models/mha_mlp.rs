//! burn's multi-head attention and a ReLU MLP, each with a residual connection: the transformer block of PyTorch's
//! documentation.

use super::layers::{Activation, linear};
use super::loss::mean_squared_error;
use super::scope;
use super::weight_map::{WeightEntry, WeightMap};
use burn::module::Module;
use burn::nn::Linear;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::tensor::{Device, Tensor};

/// `h = x + attn(x); y = h + mlp(h)`.
#[derive(Module, Debug)]
pub struct MhaMlp {
    /// burn's attention, without dropout.
    pub attn: MultiHeadAttention,
    /// The MLP.
    pub mlp: ReluMlp,
}

/// `net2(relu(net1(x)))`.
#[derive(Module, Debug)]
pub struct ReluMlp {
    /// The first linear, `[width, inner]`.
    pub net1: Linear,
    /// The second linear, `[inner, width]`.
    pub net2: Linear,
}

impl MhaMlp {
    /// Builds the model with lazily drawn weights.
    pub fn new(width: usize, heads: usize, inner: usize, device: &Device) -> Self {
        Self {
            attn: MultiHeadAttentionConfig::new(width, heads).with_dropout(0.0).init(device),
            mlp: ReluMlp {
                net1: linear(width, inner, true, 0.02, device),
                net2: linear(inner, width, true, 0.02, device),
            },
        }
    }

    /// The output for `x [b, s, width]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let attended = scope("attn", x.clone(), |x| self.attn.forward(MhaInput::self_attn(x)).context);
        let hidden = x + attended;
        let inner =
            scope("mlp", hidden.clone(), |x| self.mlp.net2.forward(Activation::Relu.apply(self.mlp.net1.forward(x))));
        hidden + inner
    }

    /// The mean squared error against `target`.
    pub fn loss(&self, output: Tensor<3>, target: Tensor<3>) -> Tensor<1> {
        mean_squared_error(output, target)
    }

    /// The map to the weights of PyTorch's `nn.MultiheadAttention`, which stores queries, keys and values as thirds of
    /// `in_proj_weight`.
    pub fn weight_map(&self) -> WeightMap {
        let mut map = WeightMap::of(self, true);
        for entry in &mut map.entries {
            let Some((name, leaf)) = entry.burn_path.strip_prefix("attn.").and_then(|rest| rest.split_once('.')) else {
                continue;
            };
            let third = match name {
                "query" => 0,
                "key" => 1,
                "value" => 2,
                "output" => {
                    entry.hf_name = format!("attn.out_proj.{leaf}");
                    continue;
                }
                _ => continue,
            };
            // In the file, rows are outputs: the last dimension of the burn weight [in, out], and the only dimension of
            // the bias.
            let width = entry.shape.last().copied().unwrap_or(0);
            *entry = WeightEntry {
                hf_name: format!("attn.in_proj_{leaf}"),
                rows: Some(third * width..(third + 1) * width),
                ..entry.clone()
            };
        }
        map
    }
}
