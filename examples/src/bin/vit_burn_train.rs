//! The vision transformer of `vit` under burn-train, with its metrics, early stopping and checkpoints: `cargo run
//! --release -p tpc-examples --features train --bin vit_burn_train -- dp=2,tp=2`. With the argument `burn` it uses
//! burn's own strategy on one device. burn's feature `tui` adds the dashboard.
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::metric::store::{Aggregate, Direction, Split};
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{Learner, MetricEarlyStoppingStrategy, StoppingCondition, SupervisedTraining};
use burn::{optim::AdamWConfig, tensor::Device};
use tpc::burn_train::Sharded;
use tpc::prelude::*;
use tpc_examples::quarters::{loader, stack};
use tpc_examples::vit::Vit;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mesh = arguments.next().unwrap_or_else(|| "tp=2".into());
    let artifacts = arguments.next().unwrap_or_else(|| "/tmp/vit".into());
    let device = Device::flex();
    device.seed(1);
    let optimizer = AdamWConfig::new();

    let accuracy = AccuracyMetric::new();
    let stopping = StoppingCondition::NoImprovementSince { n_epochs: 2 };
    let stopping =
        MetricEarlyStoppingStrategy::new(&accuracy, Aggregate::Mean, Direction::Highest, Split::Valid, stopping);
    let mut training = SupervisedTraining::new(artifacts, loader(0..500, &device), loader(1000..1100, &device))
        .metrics((accuracy, LossMetric::new()))
        .early_stopping(stopping)
        .with_default_checkpointers()
        .with_checkpointing_strategy(KeepLastNCheckpoints::new(2))
        .num_epochs(5)
        .summary();
    if mesh != "burn" {
        let mesh = Mesh::parse(&mesh)?;
        let mut plan = Plan::new();
        if mesh.axis("tp").is_some() {
            plan = plan.with("encoder.layers.*.{mha,pwff}", PairwiseParallel).along("tp");
        }
        if mesh.axis("dp").is_some() {
            plan = plan.enable_2d_with_fsdp("dp");
        }
        let options = move |trainer: Trainer<_, _>| trainer.on(mesh.clone()).plan(plan.clone());
        training = training.with_training_strategy(Sharded::new(optimizer.build(), options).into());
    }
    let rates = CosineAnnealingLrSchedulerConfig::new(3e-3, 5 * 16).init()?;
    let result = training.launch(Learner::new(Vit::new(&device.clone().autodiff()), optimizer.init(), rates));
    if let Some(error) = result.error {
        return Err(error.to_string().into());
    }

    let right = result.model.right(stack(1000..1100, &device));
    println!("on one device: right {} of 100", right.into_scalar::<i64>());
    Ok(())
}
