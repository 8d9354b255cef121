//! The vision transformer of `vit` under burn-train, with its metrics, early stopping and checkpoints:
//! `cargo run --release -p tpc-examples --features train --bin vit_burn_train -- dp=2,tp=2`. With `burn` as the argument it is burn's own
//! strategy on one device. burn's feature `tui` brings the dashboard.
use burn::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::metric::store::{Aggregate, Direction, Split};
use burn::train::metric::{AccuracyMetric, LossMetric};
use burn::train::{ClassificationOutput, InferenceStep, MetricEarlyStoppingStrategy, StoppingCondition};
use burn::train::{Learner, SupervisedTraining, TrainOutput, TrainStep};
use burn::{data::dataloader::batcher::Batcher, optim::AdamWConfig, tensor::Device};
use tpc::burn_train::{Sharded, backward};
use tpc::prelude::*;
use vision::{Images, Stack, Vit, loader, plan};

#[path = "../vision.rs"]
mod vision;

impl Vit {
    fn classify(&self, Images { pixels, labels }: Images) -> ClassificationOutput {
        let output = self.forward(pixels);
        let loss = CrossEntropyLossConfig::new().init(&labels.device()).forward(output.clone(), labels.clone());
        ClassificationOutput { loss, output, targets: labels }
    }
}

impl TrainStep for Vit {
    type Input = Images;
    type Output = ClassificationOutput;
    fn step(&self, batch: Images) -> TrainOutput<ClassificationOutput> {
        let output = self.classify(batch);
        backward(self, output.loss.clone(), output)
    }
}

impl InferenceStep for Vit {
    type Input = Images;
    type Output = ClassificationOutput;
    fn step(&self, batch: Images) -> ClassificationOutput {
        self.classify(batch)
    }
}

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
        let plan = plan(&mesh);
        let options = move |trainer: Trainer<_, _>| trainer.on(mesh.clone()).plan(plan.clone());
        training = training.with_training_strategy(Sharded::new(optimizer.build(), options).into());
    }
    let rates = CosineAnnealingLrSchedulerConfig::new(3e-3, 5 * 16).init()?;
    let result = training.launch(Learner::new(Vit::new(&device.clone().autodiff()), optimizer.init(), rates));
    if let Some(error) = result.error {
        return Err(error.to_string().into());
    }

    let batch = Stack.batch(Vec::from_iter(1000..1100), &device);
    let right = result.model.forward(batch.pixels).argmax(1).squeeze_dim::<1>(1).equal(batch.labels).int().sum();
    println!("on one device: right {} of 100", right.into_scalar::<i64>());
    Ok(())
}
