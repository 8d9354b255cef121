//! A small residual network with batch norms: `cargo run --release -p tpc-examples --bin resnet -- dp=2`. Every norm
//! uses the statistics of the whole batch. On a `tp` axis the two convolutions of each block are a pair.
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d, loss::CrossEntropyLossConfig};
use burn::tensor::{Device, Tensor, activation::relu};
use burn::{module::Module, optim::AdamWConfig};
use tpc::prelude::*;
use tpc_examples::quarters::{Images, loader, stack};

#[derive(Module, Debug)]
struct Block {
    wide: Conv2d,
    inner: BatchNorm,
    narrow: Conv2d,
    outer: BatchNorm,
}

#[derive(Module, Debug)]
struct ResNet {
    stem: Conv2d,
    blocks: Vec<Block>,
    head: Linear,
}

impl Block {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let y = relu(self.inner.forward(self.wide.forward(x.clone())));
        relu(x + self.outer.forward(self.narrow.forward(y)))
    }
}

impl ResNet {
    fn new(device: &Device) -> Self {
        let conv = |from, to| {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            Conv2dConfig::new([from, to], [3, 3]).with_padding(padding).with_bias(false).init(device)
        };
        let norm = |channels| BatchNormConfig::new(channels).init(device);
        let block = |_| Block { wide: conv(8, 16), inner: norm(16), narrow: conv(16, 8), outer: norm(8) };
        ResNet {
            stem: Conv2dConfig::new([1, 8], [4, 4]).with_stride([2, 2]).init(device),
            blocks: (0..2).map(block).collect(),
            head: LinearConfig::new(8 * 49, 4).init(device),
        }
    }

    fn forward(&self, pixels: Tensor<4>) -> Tensor<2> {
        let x = self.blocks.iter().fold(relu(self.stem.forward(pixels)), |x, block| block.forward(x));
        self.head.forward(x.flatten(1, 3))
    }

    fn loss(&self, Images { pixels, labels }: Images) -> Tensor<1> {
        CrossEntropyLossConfig::new().init(&labels.device()).forward(self.forward(pixels), labels)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mesh, device) = (Mesh::parse(&std::env::args().nth(1).unwrap_or_else(|| "dp=2".into()))?, Device::flex());
    let mut plan = Plan::new();
    if mesh.axis("tp").is_some() {
        plan = plan.with("blocks.*.wide", ColwiseParallel::default()).along("tp");
        plan = plan.with("blocks.*.narrow", RowwiseParallel::default());
    }
    let plan = if mesh.axis("dp").is_some() { plan.ddp("dp") } else { plan };
    let example = stack(0..32, &device);
    let trainer = Trainer::new(ResNet::new, AdamWConfig::new().build()).on(mesh).plan(plan).lr(3e-3);
    let mut trainer = trainer.compile(&example, ResNet::loss)?.launch()?;
    for (step, batch) in loader(0..500, &device).iter().enumerate() {
        println!("step {step}: loss {:.6}", trainer.step(&batch?)?.loss);
    }
    let mut loss = trainer.evaluation(ResNet::loss, &example)?;
    println!("on the ranks: loss {:.7}", trainer.evaluate(&mut loss, &example)?.into_scalar::<f32>());
    let (resnet, test) = (trainer.into_module(&device)?, stack(1000..1100, &device));
    println!("on one device: loss {:.7}", resnet.loss(example).into_scalar::<f32>());
    let right = resnet.forward(test.pixels).argmax(1).squeeze_dim::<1>(1).equal(test.labels);
    println!("on one device: right {} of 100", right.int().sum().into_scalar::<i64>());
    Ok(())
}
