//! The vision transformer's steps under burn-train.

use crate::quarters::Images;
use crate::vit::Vit;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use tpc::burn_train::backward;

fn classify(model: &Vit, Images { pixels, labels }: Images) -> ClassificationOutput {
    let output = model.forward(pixels);
    let loss = CrossEntropyLossConfig::new().init(&labels.device()).forward(output.clone(), labels.clone());
    ClassificationOutput { loss, output, targets: labels }
}

impl TrainStep for Vit {
    type Input = Images;
    type Output = ClassificationOutput;

    fn step(&self, batch: Images) -> TrainOutput<ClassificationOutput> {
        let output = classify(self, batch);
        backward(self, output.loss.clone(), output)
    }
}

impl InferenceStep for Vit {
    type Input = Images;
    type Output = ClassificationOutput;

    fn step(&self, batch: Images) -> ClassificationOutput {
        classify(self, batch)
    }
}
