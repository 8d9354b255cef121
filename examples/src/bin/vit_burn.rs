//! The program of `examples/src/bin/vit.rs` in burn alone, on one device: `cargo run --release -p tpc-examples --bin vit_burn`.
//! What the two do not have in common is what a mesh of ranks costs in lines (`tests/tests/documents.rs` counts it).
use burn::data::{dataloader::DataLoaderBuilder, dataloader::batcher::Batcher, dataset::InMemDataset};
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{
    Embedding, EmbeddingConfig, Linear, LinearConfig, conv::Conv2d, conv::Conv2dConfig, loss::CrossEntropyLossConfig,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::{module::Module, optim::AdamWConfig, optim::GradientsParams};

#[derive(Module, Debug)]
struct Vit {
    patches: Conv2d,
    positions: Embedding,
    encoder: TransformerEncoder,
    head: Linear,
}

impl Vit {
    fn new(device: &Device) -> Self {
        Vit {
            patches: Conv2dConfig::new([1, 32], [4, 4]).with_stride([4, 4]).init(device),
            positions: EmbeddingConfig::new(16, 32).init(device),
            encoder: TransformerEncoderConfig::new(32, 64, 4, 2).with_norm_first(true).init(device),
            head: LinearConfig::new(32, 4).init(device),
        }
    }

    fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        let patches = self.patches.forward(pixels).flatten::<3>(2, 3).swap_dims(1, 2);
        let positions = Tensor::<1, Int>::arange(0..16, &patches.device()).unsqueeze::<2>();
        let tokens = patches + self.positions.forward(positions);
        self.head.forward(self.encoder.forward(TransformerEncoderInput::new(tokens)).mean_dim(1).squeeze_dim(1))
    }

    fn loss(&self, batch: Images) -> Tensor<1> {
        let loss = CrossEntropyLossConfig::new().init(&batch.labels.device());
        loss.forward(self.forward(batch.pixels), batch.labels)
    }

    /// How many images are found.
    fn right(&self, batch: Images) -> Tensor<1, Int> {
        self.forward(batch.pixels).argmax(1).squeeze_dim::<1>(1).equal(batch.labels).int().sum()
    }
}

/// A batch.
#[derive(Clone, Debug)]
struct Images {
    pixels: Tensor<4>,
    labels: Tensor<1, Int>,
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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    let tracked = device.clone().autodiff();
    let images = |seeds| InMemDataset::new(Vec::from_iter(seeds));
    let loader = |seeds, device: &Device| {
        let builder = DataLoaderBuilder::new(Stack).batch_size(32).set_device(device.clone());
        builder.build(images(seeds))
    };
    let (train, test) = (loader(0..500, &tracked), loader(1000..1100, &device));

    let mut model = Vit::new(&tracked);
    let mut optimizer = AdamWConfig::new().init();
    let mut rates = CosineAnnealingLrSchedulerConfig::new(3e-3, 5 * 16).init()?;
    for epoch in 0..5 {
        let mut losses = Vec::new();
        for batch in train.iter() {
            let loss = model.loss(batch?);
            losses.push(loss.clone().into_scalar::<f64>());
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(rates.step(), model, gradients);
        }
        let (mut right, evaluated) = (0, model.valid());
        for batch in test.iter() {
            right += evaluated.right(batch?).into_scalar::<i64>();
        }
        println!("epoch {epoch}: loss {:.6}, right {right} of {}", losses.iter().sum::<f64>() / 16.0, test.num_items());
    }

    let vit = model.valid();
    let right = vit.right(Stack.batch(Vec::from_iter(1000..1100), &device));
    println!("on one device: right {} of 100", right.into_scalar::<i64>());
    Ok(())
}
