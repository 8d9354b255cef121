//! The README's program: a burn module, a plan, two ranks, and the trained module.
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, activation::gelu};
use burn::{module::Module, optim::AdamWConfig};
use tpc::{prelude::*, text};

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

#[derive(Batch, Clone, Debug)]
struct Pairs {
    x: Tensor<2>,
    y: Tensor<2>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    let pairs = |i: i64| {
        let x = Tensor::<1, Int>::arange(i * 2048..(i + 1) * 2048, &device).float().sin().reshape([32, 64]);
        Pairs { x: x.clone(), y: x }
    };
    let build = |d: &Device| Mlp { up: LinearConfig::new(64, 256).init(d), down: LinearConfig::new(256, 64).init(d) };
    let compiled = Trainer::new(build, AdamWConfig::new().build())
        .mesh([("tp", 2)])?
        .plan(Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default()))
        .lr(3e-3)
        .compile(&pairs(0), |m, Pairs { x, y }: Pairs| (m.down.forward(gelu(m.up.forward(x))) - y).square().mean())?;
    println!("{}", text::print(&compiled.stages().placed));

    let mut trainer = compiled.launch()?;
    for i in 0..100 {
        println!("step {i}: loss {:.6}", trainer.step(&pairs(i))?.loss);
    }
    let trained = trainer.into_module(&device)?;
    println!("{trained}");
    Ok(())
}
