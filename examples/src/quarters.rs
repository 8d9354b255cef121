//! The task of the image examples: finding the brightest quarter of a noisy image.

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::ops::Range;
use std::sync::Arc;
use tpc::prelude::*;

/// A batch of images of 16 × 16 pixels.
#[derive(Batch, Clone, Debug)]
pub struct Images {
    /// `[batch, 1, 16, 16]`.
    pub pixels: Tensor<4>,
    /// The brightest quarter of each image.
    pub labels: Tensor<1, Int>,
}

#[derive(Clone, Debug)]
struct Stack;

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

/// The images with these seeds as one batch.
pub fn stack(seeds: Range<u64>, device: &Device) -> Images {
    Stack.batch(seeds.collect(), device)
}

/// burn's loader for the images with these seeds, in batches of 32.
pub fn loader(seeds: Range<u64>, device: &Device) -> Arc<dyn DataLoader<Images>> {
    DataLoaderBuilder::new(Stack).batch_size(32).set_device(device.clone()).build(InMemDataset::new(seeds.collect()))
}

/// An image and its brightest quarter.
fn image(seed: u64) -> (Vec<f32>, i64) {
    let mut random = StdRng::seed_from_u64(seed);
    let label = random.random_range(0..4);
    let bright = |i: usize| 2 * (i / 128) + i % 16 / 8 == label;
    let mut pixel = |i: usize| random.random_range(-0.5..0.5) + if bright(i) { 0.3 } else { 0.0 };
    ((0..256).map(&mut pixel).collect(), label as i64)
}
