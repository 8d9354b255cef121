//! A small vision transformer made of burn's modules.

use crate::quarters::Images;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};

/// Patches of 4 × 4 pixels, two encoder layers with dropout, and a classifier with four classes.
#[derive(Module, Debug)]
pub struct Vit {
    patches: Conv2d,
    positions: Embedding,
    encoder: TransformerEncoder,
    head: Linear,
}

impl Vit {
    /// Initializes the model on a device.
    pub fn new(device: &Device) -> Self {
        Vit {
            patches: Conv2dConfig::new([1, 32], [4, 4]).with_stride([4, 4]).init(device),
            positions: EmbeddingConfig::new(16, 32).init(device),
            encoder: TransformerEncoderConfig::new(32, 64, 4, 2).with_norm_first(true).init(device),
            head: LinearConfig::new(32, 4).init(device),
        }
    }

    /// Logits `[batch, 4]` of images `[batch, 1, 16, 16]`.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        let patches = self.patches.forward(pixels).flatten::<3>(2, 3).swap_dims(1, 2);
        let positions = Tensor::<1, Int>::arange(0..16, &patches.device()).unsqueeze::<2>();
        let tokens = patches + self.positions.forward(positions);
        self.head.forward(self.encoder.forward(TransformerEncoderInput::new(tokens)).mean_dim(1).squeeze_dim(1))
    }
    /// The mean cross entropy of a batch.
    pub fn loss(&self, batch: Images) -> Tensor<1> {
        CrossEntropyLossConfig::new().init(&batch.labels.device()).forward(self.forward(batch.pixels), batch.labels)
    }

    /// Number of images in a batch that are assigned to the right quarter.
    pub fn right(&self, batch: Images) -> Tensor<1, Int> {
        self.forward(batch.pixels).argmax(1).squeeze_dim::<1>(1).equal(batch.labels).int().sum()
    }
}
