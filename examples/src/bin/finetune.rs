//! Fine-tunes a model directory (a language model) and saves it: `cargo run --release -p tpc-examples --bin finetune --
//! DIR OUT tp=2`. The model learns to count in steps.
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::rc::Rc;
use tpc::models::{Model, ModelDir};
use tpc::prelude::*;

#[derive(Batch, Clone, Debug)]
struct Tokens {
    /// `[batch, sequence]`; the model shifts its labels itself.
    ids: Tensor<2, Int>,
}

/// Sequences that count from a number in steps of another number, in a small vocabulary.
fn tokens(step: i64, device: &Device) -> Tokens {
    let sequence = |row: i64| (0..16).map(move |at| (step * 7 + row + at * (row % 3 + 1)) % 24 + 1);
    let ids: Vec<i64> = (0..8).flat_map(sequence).collect();
    Tokens { ids: Tensor::from_data(TensorData::new(ids, [8, 16]), device) }
}

fn loss(model: &Model, Tokens { ids }: Tokens) -> Tensor<1> {
    model.loss(model.forward(ids.clone().into()), ids)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, rest @ ..] = &arguments[..] else { return Err("usage: finetune DIR OUT [MESH]".into()) };
    let (device, dir) = (Device::flex(), Rc::new(ModelDir::open(from)?));
    let mesh = Mesh::parse(rest.first().map_or("", |mesh| mesh))?;
    let plan = match (mesh.axis("dp"), mesh.axis("tp")) {
        (Some(_), Some(_)) => Plan::built_in("2d")?,
        (Some(_), None) => Plan::built_in("fsdp")?,
        (None, Some(_)) => Plan::built_in("tp")?,
        (None, None) => Plan::new(),
    };
    let mut trainer = Trainer::pretrained(dir.clone(), AdamWConfig::new().with_weight_decay(0.01).build())
        .on(mesh)
        .plan(plan)
        .clip_norm(1.0)
        .lr(CosineAnnealingLrSchedulerConfig::new(3e-3, 60).init()?)
        .compile(&tokens(0, &device), loss)?
        .launch()?;
    let mut held_out = trainer.evaluation(loss, &tokens(0, &device))?;
    for step in 0..60 {
        let done = trainer.step(&tokens(step, &device))?;
        if step % 20 == 0 {
            let after = trainer.evaluate(&mut held_out, &tokens(1000, &device))?;
            println!("step {step}: loss {:.6}, held-out loss {:.6}", done.loss, after.into_scalar::<f32>());
        }
    }
    let after = trainer.evaluate(&mut held_out, &tokens(1000, &device))?;
    println!("at the end: held-out loss {:.6}", after.into_scalar::<f32>());
    trainer.save_pretrained(&dir, to)?;

    let tuned = ModelDir::open(to)?.load(&device)?;
    println!("read again: held-out loss {:.6}", loss(&tuned, tokens(1000, &device)).into_scalar::<f32>());
    Ok(())
}
