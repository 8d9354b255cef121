//! A small vision transformer with burn's data loader, optimizer and scheduler, trained and evaluated on a mesh of ranks:
//! `cargo run --release -p tpc-examples --bin vit -- dp=2,tp=2`.
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use std::time::Duration;
use tpc::prelude::*;
use tpc_examples::quarters::{Images, loader, stack};
use tpc_examples::vit::Vit;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mesh, device) = (Mesh::parse(&std::env::args().nth(1).unwrap_or_else(|| "tp=2".into()))?, Device::flex());
    let (train, test) = (loader(0..500, &device), loader(1000..1100, &device));
    let mut plan = Plan::new();
    if mesh.axis("tp").is_some() {
        plan = plan.with("encoder.layers.*.{mha,pwff}", PairwiseParallel).along("tp");
    }
    if mesh.axis("dp").is_some() {
        plan = plan.enable_2d_with_fsdp("dp");
    }
    let example = stack(0..32, &device);
    let mut trainer = Trainer::new(Vit::new, AdamWConfig::new().build())
        .on(mesh)
        .processes(join(Duration::from_secs(60))?)
        .plan(plan)
        .lr(CosineAnnealingLrSchedulerConfig::new(3e-3, 5 * 16).init()?)
        .compile(&example, |model, batch: Images| model.loss(batch))?
        .launch()?;
    let mut correct = trainer.evaluation(|model, batch: Images| model.right(batch), &example)?;
    println!("{}", trainer.explain());
    for epoch in 0..5 {
        let mut losses = Vec::new();
        for batch in train.iter() {
            losses.push(trainer.step(&batch?)?.loss);
        }
        let mut found = 0;
        for batch in test.iter() {
            found += trainer.evaluate(&mut correct, &batch?)?.into_scalar::<i64>();
        }
        println!("epoch {epoch}: loss {:.6}, right {found} of {}", losses.iter().sum::<f64>() / 16.0, test.num_items());
    }
    let mut loss = trainer.evaluation(|model, batch: Images| model.loss(batch), &example)?;
    println!("on the ranks: loss {:.7}", trainer.evaluate(&mut loss, &example)?.into_scalar::<f32>());
    let vit = trainer.into_module(&device)?;
    println!("on one device: loss {:.7}", vit.loss(example).into_scalar::<f32>());
    println!("on one device: right {} of 100", vit.right(stack(1000..1100, &device)).into_scalar::<i64>());
    Ok(())
}
