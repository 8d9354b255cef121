//! A small vision transformer with burn's data loader, optimizer and scheduler, trained and evaluated on a mesh of ranks:
//! `cargo run --release -p tpc-examples --bin vit -- dp=2,tp=2`. The task is to find the brightest quarter of a noisy image.
//! `vit_burn_train` is the same with burn-train's loop.
use burn::data::dataloader::batcher::Batcher;
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::{optim::AdamWConfig, tensor::Device};
use std::time::Duration;
use tpc::prelude::*;
use vision::{Images, Stack, Vit, loader, plan};

#[path = "../vision.rs"]
mod vision;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mesh = Mesh::parse(&std::env::args().nth(1).unwrap_or_else(|| "tp=2".into()))?;
    let device = Device::flex();
    let (train, test) = (loader(0..500, &device), loader(1000..1100, &device));

    let example = Stack.batch(Vec::from_iter(0..32), &device);
    let mut trainer = Trainer::new(Vit::new, AdamWConfig::new().build())
        .on(mesh.clone())
        .processes(join(Duration::from_secs(60))?)
        .plan(plan(&mesh))
        .lr(CosineAnnealingLrSchedulerConfig::new(3e-3, 5 * 16).init()?)
        .compile(&example, |model, batch: Images| {
            let loss = CrossEntropyLossConfig::new().init(&batch.labels.device());
            loss.forward(model.forward(batch.pixels), batch.labels)
        })?
        .launch()?;
    let mut correct = trainer.evaluation(
        |model, batch: Images| {
            let found = model.forward(batch.pixels).argmax(1).squeeze_dim::<1>(1);
            found.equal(batch.labels).int().sum()
        },
        &example,
    )?;
    println!("{}", trainer.explain());
    for epoch in 0..5 {
        let mut losses = Vec::new();
        for batch in train.iter() {
            losses.push(trainer.step(&batch?)?.loss);
        }
        let mut right = 0;
        for batch in test.iter() {
            right += trainer.evaluate(&mut correct, &batch?)?.into_scalar::<i64>();
        }
        println!("epoch {epoch}: loss {:.6}, right {right} of {}", losses.iter().sum::<f64>() / 16.0, test.num_items());
    }

    let vit = trainer.into_module(&device)?;
    let batch = Stack.batch(Vec::from_iter(1000..1100), &device);
    let right = vit.forward(batch.pixels).argmax(1).squeeze_dim::<1>(1).equal(batch.labels).int().sum();
    println!("on one device: right {} of 100", right.into_scalar::<i64>());
    Ok(())
}
