//! The program of `examples/src/bin/vit.rs` in burn alone, on one device: `cargo run --release -p tpc-examples --bin
//! vit_burn`. The difference between the two programs is what a mesh of ranks adds (`tests/tests/documents.rs` counts
//! the lines).
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::Device;
use tpc_examples::quarters::{loader, stack};
use tpc_examples::vit::Vit;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    let tracked = device.clone().autodiff();
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
        let (mut found, evaluated) = (0, model.valid());
        for batch in test.iter() {
            found += evaluated.right(batch?).into_scalar::<i64>();
        }
        println!("epoch {epoch}: loss {:.6}, right {found} of {}", losses.iter().sum::<f64>() / 16.0, test.num_items());
    }
    let vit = model.valid();
    println!("on one device: loss {:.7}", vit.loss(stack(0..32, &device)).into_scalar::<f32>());
    println!("on one device: right {} of 100", vit.right(stack(1000..1100, &device)).into_scalar::<i64>());
    Ok(())
}
