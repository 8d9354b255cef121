//! A small vision transformer and its data: 16 × 16 images, each with a quarter that is brighter than its noise.

use burn::data::dataloader::{DataLoader, DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, conv::Conv2d, conv::Conv2dConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::ops::Range;
use std::sync::Arc;
use tpc::prelude::*;

/// Patches of 4 × 4 points, two layers, four classes.
#[derive(Module, Debug)]
pub struct Vit {
    patches: Conv2d,
    positions: Embedding,
    encoder: TransformerEncoder,
    head: Linear,
}

impl Vit {
    /// With initial values.
    pub fn new(device: &Device) -> Self {
        Vit {
            patches: Conv2dConfig::new([1, 32], [4, 4]).with_stride([4, 4]).init(device),
            positions: EmbeddingConfig::new(16, 32).init(device),
            encoder: TransformerEncoderConfig::new(32, 64, 4, 2).with_norm_first(true).init(device),
            head: LinearConfig::new(32, 4).init(device),
        }
    }

    /// The scores of the classes.
    pub fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        let patches = self.patches.forward(pixels).flatten::<3>(2, 3).swap_dims(1, 2);
        let positions = Tensor::<1, Int>::arange(0..16, &patches.device()).unsqueeze::<2>();
        let tokens = patches + self.positions.forward(positions);
        self.head.forward(self.encoder.forward(TransformerEncoderInput::new(tokens)).mean_dim(1).squeeze_dim(1))
    }
}

/// A batch: the only structure that the trainer has to know.
#[derive(Batch, Clone, Debug)]
pub struct Images {
    /// `[batch, 1, 16, 16]`.
    pub pixels: Tensor<4>,
    /// The brightest quarter of each.
    pub labels: Tensor<1, Int>,
}

/// Makes a batch of images, each from its seed.
#[derive(Clone, Debug)]
pub struct Stack;

impl Batcher<u64, Images> for Stack {
    fn batch(&self, seeds: Vec<u64>, device: &Device) -> Images {
        let (n, drawn) = (seeds.len(), seeds.into_iter().map(image));
        let (pixels, labels): (Vec<Vec<f32>>, Vec<i64>) = drawn.unzip();
        Images {
            pixels: Tensor::from_data(TensorData::new(pixels.concat(), [n, 1, 16, 16]), device),
            labels: Tensor::from_data(TensorData::new(labels, [n]), device),
        }
    }
}

/// An image of 16 × 16 points with its brightest quarter.
fn image(seed: u64) -> (Vec<f32>, i64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let label = (draw() * 4.0) as usize;
    let bright = |i: usize| 2 * (i / 128) + i % 16 / 8 == label;
    ((0..256).map(|i| draw() - 0.5 + if bright(i) { 0.3 } else { 0.0 }).collect(), label as i64)
}

/// Batches of 32 images from these seeds.
pub fn loader(seeds: Range<u64>, device: &Device) -> Arc<dyn DataLoader<Images>> {
    DataLoaderBuilder::new(Stack).batch_size(32).set_device(device.clone()).build(InMemDataset::new(seeds.collect()))
}

/// The encoder on the axes of a mesh: attention and MLPs over `tp`, everything over `dp`.
pub fn plan(mesh: &Mesh) -> Plan {
    let has = |name: &str| mesh.axis(name).is_some();
    let mut plan = Plan::new();
    if has("tp") {
        plan = plan.with("encoder.layers.*.mha", PairwiseParallel).with("encoder.layers.*.pwff", PairwiseParallel);
    }
    if has("dp") { plan.enable_2d_with_fsdp("dp") } else { plan }
}
