//! burn-train's loop on a mesh: its metrics, its checkpoints and the returned model equal those of burn's own strategy.

use burn::data::dataloader::{DataLoader, DataLoaderBuilder, batcher::Batcher};
use burn::data::dataset::InMemDataset;
use burn::grad_clipping::GradientClippingConfig;
use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::{ModuleLrScheduler, ModuleLrSchedulerConfig};
use burn::module::{Module, ParamGroup};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{Linear, LinearConfig, loss::CrossEntropyLossConfig};
use burn::optim::{AdamWConfig, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, ExecutionError, Int, Tensor, TensorData, TensorReadError};
use burn::train::checkpoint::KeepLastNCheckpoints;
use burn::train::logger::InMemoryMetricLogger;
use burn::train::metric::store::{Aggregate, Direction, Split};
use burn::train::metric::{AccuracyMetric, Adaptor, LossMetric, Metric, MetricMetadata, MetricName, SerializedEntry};
use burn::train::{
    ClassificationOutput, InferenceStep, Interrupter, ItemLazy, Learner, LearningResult, MetricEarlyStoppingStrategy,
    StoppingCondition, SupervisedTraining, TrainOutput, TrainStep, TrainingStrategy,
};
use std::sync::{Arc, Mutex, PoisonError};
use tpc::burn_train::{Sharded, backward};
use tpc::prelude::*;
use tpc_tests::command::Scratch;

const TOKENS: usize = 6;
const FEATURES: usize = 5;
const CLASSES: usize = 3;

#[derive(Module, Debug)]
struct Classifier {
    embed: Linear,
    encoder: TransformerEncoder,
    head: Linear,
}

impl Classifier {
    fn new(device: &Device) -> Self {
        Classifier {
            embed: LinearConfig::new(FEATURES, 16).init(device),
            encoder: TransformerEncoderConfig::new(16, 32, 2, 2).with_dropout(0.0).with_norm_first(true).init(device),
            head: LinearConfig::new(16, CLASSES).init(device),
        }
    }

    fn scores(&self, features: Tensor<3>) -> Tensor<2> {
        let hidden = TransformerEncoderInput::new(self.embed.forward(features));
        self.head.forward(self.encoder.forward(hidden).mean_dim(1).squeeze_dim::<2>(1))
    }

    fn classify(&self, batch: Sequences) -> ClassificationOutput {
        let output = self.scores(batch.features);
        let loss = CrossEntropyLossConfig::new().init(&output.device());
        let loss = loss.forward(output.clone(), batch.classes.clone());
        ClassificationOutput { loss, output, targets: batch.classes }
    }
}

#[derive(Batch, Clone, Debug)]
struct Sequences {
    features: Tensor<3>,
    classes: Tensor<1, Int>,
}

impl TrainStep for Classifier {
    type Input = Sequences;
    type Output = ClassificationOutput;
    fn step(&self, batch: Sequences) -> TrainOutput<ClassificationOutput> {
        let output = self.classify(batch);
        backward(self, output.loss.clone(), output)
    }
}

impl InferenceStep for Classifier {
    type Input = Sequences;
    type Output = ClassificationOutput;
    fn step(&self, batch: Sequences) -> ClassificationOutput {
        self.classify(batch)
    }
}

#[derive(Clone)]
struct Stack;

impl Batcher<u64, Sequences> for Stack {
    fn batch(&self, seeds: Vec<u64>, device: &Device) -> Sequences {
        let rows = seeds.len();
        let drawn = seeds.into_iter().map(|seed| {
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut draw = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 24) as f32
            };
            let class = (draw() * CLASSES as f32) as i64;
            let features: Vec<f32> = (0..TOKENS * FEATURES).map(|_| draw() - 0.5 + 0.3 * class as f32).collect();
            (features, class)
        });
        let (features, classes): (Vec<Vec<f32>>, Vec<i64>) = drawn.unzip();
        Sequences {
            features: Tensor::from_data(TensorData::new(features.concat(), [rows, TOKENS, FEATURES]), device),
            classes: Tensor::from_data(TensorData::new(classes, [rows]), device),
        }
    }
}

/// Batches of 8 rows, followed by one of 4.
fn loader(seeds: std::ops::Range<u64>) -> Arc<dyn DataLoader<Sequences>> {
    DataLoaderBuilder::new(Stack).batch_size(8).build(InMemDataset::new(Vec::from_iter(seeds)))
}

/// A model with the same values in every run.
fn classifier(device: &Device) -> Classifier {
    static DRAWS: Mutex<()> = Mutex::new(());
    let _alone = DRAWS.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(7);
    let model = Classifier::new(device);
    // Values are drawn when they are first read.
    drop(model.clone().into_record());
    model
}

const MESHES: [&str; 4] = ["", "dp=2", "tp=2", "dp=2,tp=2"];

fn plan(mesh: &str) -> Plan {
    let mut plan = Plan::new();
    if mesh.contains("tp") {
        plan = plan.with("encoder.layers.*.mha", PairwiseParallel).with("encoder.layers.*.pwff", PairwiseParallel);
    }
    if mesh.contains("dp") { plan.enable_2d_with_fsdp("dp") } else { plan }
}

fn clipping() -> GradientClippingConfig {
    GradientClippingConfig::Norm(0.2)
}

fn adam() -> AdamWConfig {
    AdamWConfig::new().with_weight_decay(0.02).with_grad_clipping(Some(clipping()))
}

/// A scheduler with a different rate for the head.
fn rates() -> ModuleLrScheduler {
    let linear = |from| LinearLrSchedulerConfig::new(from, 1e-4, 12);
    let groups = ModuleLrSchedulerConfig::new(linear(1e-2).into());
    groups.with_group(ParamGroup::from_predicate("head"), linear(2e-2)).init().unwrap()
}

fn sharded(mesh: &'static str) -> TrainingStrategy<Classifier> {
    let options =
        move |trainer: Trainer<_, _>| trainer.on(Mesh::parse(mesh).unwrap()).plan(plan(mesh)).clip_each(clipping());
    Sharded::new(adam().build(), options).into()
}

/// What a metric receives for a batch.
struct Shown {
    loss: f64,
    found: usize,
}

impl Adaptor<Shown> for ClassificationOutput {
    fn adapt(&self) -> Shown {
        let found = self.output.clone().argmax(1).squeeze_dim::<1>(1).equal(self.targets.clone());
        Shown { loss: self.loss.clone().into_scalar::<f64>(), found: found.int().sum().into_scalar::<i64>() as usize }
    }
}

/// For each batch: the loss, the number of correct classes, and the learning rate.
type Seen = Arc<Mutex<Vec<(f64, usize, Option<f64>)>>>;

#[derive(Clone, Default)]
struct Watch(Seen, Option<(Interrupter, usize)>);

impl Metric for Watch {
    type Input = Shown;

    fn name(&self) -> MetricName {
        Arc::new("Watch".to_owned())
    }

    fn update(&mut self, shown: &Shown, metadata: &MetricMetadata) -> Result<SerializedEntry, TensorReadError> {
        let mut seen = self.0.lock().unwrap();
        seen.push((shown.loss, shown.found, metadata.lr.as_ref().map(|rates| rates.base())));
        if let Some((interrupter, after)) = &self.1
            && seen.len() == *after
        {
            interrupter.stop(Some("the test has seen enough"));
        }
        Ok(SerializedEntry::new(String::new(), String::new()))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(SerializedEntry::new(String::new(), String::new()))
    }

    fn clear(&mut self) {}
}

/// A training run of a copy of a model, as a project would write it.
struct Run {
    strategy: Option<TrainingStrategy<Classifier>>,
    optimizer: ModuleOptimizer,
    epochs: usize,
    dir: Scratch,
    resumed_at: Option<usize>,
    train: Seen,
    valid: Seen,
}

impl Run {
    fn of(strategy: Option<TrainingStrategy<Classifier>>) -> Self {
        let (dir, train, valid) = (Scratch::new("learner"), Seen::default(), Seen::default());
        Run { strategy, optimizer: adam().init(), epochs: 3, dir, resumed_at: None, train, valid }
    }

    fn launch(
        &mut self,
        model: &Classifier,
        more: impl FnOnce(SupervisedTraining<Classifier>) -> SupervisedTraining<Classifier>,
    ) -> LearningResult<Classifier> {
        let mut training = SupervisedTraining::new(&self.dir.0, loader(0..28), loader(100..112))
            .metrics((AccuracyMetric::new(), LossMetric::new()))
            .metric_train(Watch(self.train.clone(), None))
            .metric_valid(Watch(self.valid.clone(), None))
            .with_metric_logger(InMemoryMetricLogger::new())
            .with_application_logger(None)
            .num_epochs(self.epochs);
        if let Some(strategy) = self.strategy.take() {
            training = training.with_training_strategy(strategy);
        }
        if let Some(epoch) = self.resumed_at {
            training = training.checkpoint(epoch);
        }
        more(training).launch(Learner::new(model.clone(), self.optimizer.clone(), rates()))
    }

    fn seen(&self) -> [Vec<(f64, usize, Option<f64>)>; 2] {
        [&self.train, &self.valid].map(|seen| seen.lock().unwrap().clone())
    }
}

#[track_caller]
fn alike(a: &[(f64, usize, Option<f64>)], b: &[(f64, usize, Option<f64>)], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (batch, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a.0 - b.0).abs() <= tolerance * a.0.abs(), "batch {batch}: {a:?} and {b:?}");
        assert_eq!((a.1, a.2), (b.1, b.2), "batch {batch}");
    }
}

fn floats(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

/// The largest difference, relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    largest(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs())) / largest(&mut a.iter().map(|x| x.abs()))
}

/// Losses, accuracies and rates of every batch, including smaller last ones, and the trained model: under burn's own
/// strategy, on one rank, and on each mesh.
#[test]
fn every_mesh_trains_as_burn_does() {
    let device = Device::flex();
    let model = classifier(&device.clone().autodiff());
    let probe = Stack.batch(Vec::from_iter(200..216), &device).features;
    let mut own = Run::of(None);
    let trained = own.launch(&model, |training| training).model;
    let (own, own_scores) = (own.seen(), floats(trained.scores(probe.clone())));
    assert_eq!((own[0].len(), own[1].len()), (3 * 4, 3 * 2));
    assert!(own[0][11].0 < own[0][0].0);
    assert!(distance(&floats(model.scores(probe.clone())), &own_scores) > 0.01, "training changes the model");
    let mut one_rank = None;
    for mesh in MESHES {
        let mut run = Run::of(Some(sharded(mesh)));
        let result = run.launch(&model, |training| training);
        assert!(result.error.is_none() && result.interrupted.is_none(), "{mesh}: {:?}", result.error);
        let [train, valid] = run.seen();
        alike(&own[0], &train, 1e-4);
        alike(&own[1], &valid, 1e-4);
        assert!(!result.model.devices()[0].is_autodiff());
        let scores = floats(result.model.scores(probe.clone()));
        assert!(distance(&own_scores, &scores) < 1e-4, "{mesh}: {}", distance(&own_scores, &scores));
        let one_rank = one_rank.get_or_insert_with(|| scores.clone());
        assert!(distance(one_rank, &scores) < 1e-5, "{mesh}: {}", distance(one_rank, &scores));
    }
}

/// A run of four epochs, and a run of two epochs that a second run resumes: burn's records move from mesh to mesh, and
/// to and from burn's strategy.
#[test]
fn runs_resume_from_checkpoints_of_burn() {
    let device = Device::flex();
    let model = classifier(&device.clone().autodiff());
    let whole = |mesh: Option<&'static str>| {
        let mut run = Run::of(mesh.map(sharded));
        run.epochs = 4;
        let result = run.launch(&model, |training| training);
        (run.seen(), result.model)
    };
    let parts = |first: Option<&'static str>, second: Option<&'static str>| {
        let mut run = Run::of(first.map(sharded));
        run.epochs = 2;
        let saves = |training: SupervisedTraining<Classifier>| {
            training.with_default_checkpointers().with_checkpointing_strategy(KeepLastNCheckpoints::new(9))
        };
        let result = run.launch(&model, saves);
        assert!(result.error.is_none(), "{:?}", result.error);
        (run.strategy, run.epochs, run.resumed_at) = (second.map(sharded), 4, Some(2));
        // The values are those of the checkpoint, not those of the model.
        let other = model.clone().map(&mut Halve);
        let result = run.launch(&other, saves);
        assert!(result.error.is_none(), "{:?}", result.error);
        for file in ["model-1", "optim-2", "scheduler-3", "model-4", "optim-4"] {
            assert!(run.dir.0.join(format!("checkpoint/{file}.bpk")).exists(), "{file}");
        }
        (run.seen(), result.model)
    };
    let bits = |model: &Classifier| floats(model.scores(Stack.batch(vec![200, 201], &device).features));
    for mesh in ["", "dp=2,tp=2"] {
        let ((seen, trained), (resumed_seen, resumed)) = (whole(Some(mesh)), parts(Some(mesh), Some(mesh)));
        assert_eq!(seen, resumed_seen, "{mesh}");
        assert_eq!(bits(&trained), bits(&resumed), "{mesh}");
    }
    let [train, valid] = whole(None).0;
    for (first, second) in [(Some("tp=2"), Some("dp=2")), (None, Some("tp=2")), (Some("dp=2"), None)] {
        let [train_parts, valid_parts] = parts(first, second).0;
        alike(&train, &train_parts, 1e-4);
        alike(&valid, &valid_parts, 1e-4);
    }
}

/// Makes a model that differs from that of a checkpoint.
struct Halve;

impl burn::module::ModuleMapper for Halve {
    fn map_float<const D: usize>(&mut self, param: burn::module::Param<Tensor<D>>) -> burn::module::Param<Tensor<D>> {
        let (id, tensor, mapper) = param.consume();
        burn::module::Param::from_mapped_value(id, (tensor.inner() / 2.0).autodiff().require_grad(), mapper)
    }
}

/// A validation loss that stops falling ends the training in the same epoch as with burn's own strategy.
#[test]
fn early_stopping_stops() {
    let model = classifier(&Device::flex().autodiff());
    let epochs = |strategy: Option<TrainingStrategy<Classifier>>| {
        let mut run = Run::of(strategy);
        run.epochs = 20;
        let stopping = MetricEarlyStoppingStrategy::new(
            &AccuracyMetric::new(),
            Aggregate::Mean,
            Direction::Highest,
            Split::Valid,
            StoppingCondition::NoImprovementSince { n_epochs: 2 },
        );
        let result = run.launch(&model, |training| training.early_stopping(stopping));
        assert!(result.error.is_none(), "{:?}", result.error);
        run.seen()[0].len() / 4
    };
    let own = epochs(None);
    assert!((3..20).contains(&own), "{own}");
    assert_eq!(epochs(Some(sharded("tp=2"))), own);
}

/// An interrupted training returns the model that it has.
#[test]
fn interruption_stops() {
    let device = Device::flex();
    let model = classifier(&device.clone().autodiff());
    let mut run = Run::of(Some(sharded("dp=2")));
    let seen = Seen::default();
    let result = run.launch(&model, |training| {
        let watch = Watch(seen.clone(), Some((training.interrupter(), 5)));
        training.metric_train(watch)
    });
    assert_eq!(result.interrupted.and_then(|stop| stop.reason).as_deref(), Some("the test has seen enough"));
    assert!(result.error.is_none());
    // Another thread updates the metrics while the next batches are trained on.
    let steps = seen.lock().unwrap().len();
    assert!((5..8).contains(&steps), "{steps}");
    let probe = Stack.batch(vec![200], &device).features;
    let given = floats(model.valid().scores(probe.clone()));
    assert!(distance(&given, &floats(result.model.scores(probe))) > 0.01, "{given:?}");
}

/// The message that a training ends with.
fn refused(
    strategy: TrainingStrategy<Classifier>,
    more: fn(SupervisedTraining<Classifier>) -> SupervisedTraining<Classifier>,
) -> String {
    refused_on(&Device::flex().autodiff(), strategy, more)
}

fn refused_on(
    device: &Device,
    strategy: TrainingStrategy<Classifier>,
    more: fn(SupervisedTraining<Classifier>) -> SupervisedTraining<Classifier>,
) -> String {
    let model = classifier(device);
    let result = Run::of(Some(strategy)).launch(&model, more);
    let probe = Stack.batch(vec![200], &Device::flex()).features;
    assert_eq!(floats(model.valid().scores(probe.clone())), floats(result.model.scores(probe)), "nothing was trained");
    result.error.expect("the training is refused").to_string()
}

#[test]
fn what_cannot_be_sharded_is_said() {
    let other = |optimizer: AdamWConfig, clipping: Option<GradientClippingConfig>| -> TrainingStrategy<Classifier> {
        let options = move |trainer: Trainer<Classifier, _>| match &clipping {
            Some(clipping) => trainer.clip_each(clipping.clone()),
            None => trainer,
        };
        Sharded::new(optimizer.build(), options).into()
    };
    let same = |training| training;
    let mut said =
        vec![refused(sharded("tp=2"), |training| training.grads_accumulation(4)), refused(other(adam(), None), same)];
    let differs = |said: String| assert!(said.contains("the learner's optimizer updates `"), "{said}");
    let decays = [
        adam().with_beta_1(0.91),
        adam().with_beta_2(0.9991),
        adam().with_epsilon(1.1e-5),
        adam().with_weight_decay(0.021),
        adam().with_amsgrad(true),
    ];
    for optimizer in decays {
        differs(refused(other(optimizer, Some(clipping())), same));
    }
    differs(refused(Sharded::new(SgdConfig::new().build(), |trainer| trainer.clip_each(clipping())).into(), same));
    let mut grouped = Run::of(Some(sharded("tp=2")));
    grouped.optimizer = adam().init().with_group(ParamGroup::from_predicate("head"), SgdConfig::new().build(), None);
    let result = grouped.launch(&classifier(&Device::flex().autodiff()), same);
    said.push(result.error.expect("the training is refused").to_string());
    said.push(refused_on(&Device::flex(), sharded("tp=2"), same));
    said.push(refused(Sharded::new(adam().build(), |trainer| trainer.lr(1e-3).clip_each(clipping())).into(), same));
    let plan = Plan::new().with("encoder.layer", PairwiseParallel);
    let misspelled = move |trainer: Trainer<_, _>| trainer.plan(plan.clone()).clip_each(clipping());
    said.push(refused(Sharded::new(adam().build(), misspelled).into(), same));
    insta::assert_snapshot!("burn_train_says", said.join("\n"));

    let kept = Arc::new(Sharded::new(adam().build(), |trainer| trainer.clip_each(clipping())));
    refused(TrainingStrategy::Custom(kept.clone()), |training| training.grads_accumulation(2));
    let failure = kept.failure().expect("it is kept");
    let Error::Trainer(error) = &*failure else { panic!("{failure:?}") };
    assert!(matches!(**error, TrainerError::Accumulation { batches: 2 }), "{error:?}");
}

/// Steps that end differently, and outputs of a user-defined type.
#[derive(Module, Debug)]
struct Own {
    line: Linear,
    #[module(skip)]
    ends: Ends,
}

#[derive(Clone, Copy, Debug)]
enum Ends {
    AsItShould,
    ByBackward,
    WithoutLoss,
}

#[derive(Results)]
struct Parts {
    error: Tensor<1>,
    hidden: Vec<Tensor<2>>,
    sums: (Tensor<1>, Option<Tensor<1, Int>>),
}

impl ItemLazy for Parts {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(Parts {
            error: self.error.inner(),
            hidden: self.hidden.into_iter().map(Tensor::inner).collect(),
            sums: (self.sums.0.inner(), self.sums.1.map(Tensor::inner)),
        })
    }
}

impl Adaptor<Shown> for Parts {
    fn adapt(&self) -> Shown {
        let read = |tensor: &Tensor<1>| tensor.clone().into_scalar::<f64>();
        let count = self.sums.1.clone().expect("it is given").into_scalar::<i64>() as usize;
        let sum = self.hidden.iter().map(|hidden| read(&hidden.clone().sum())).sum::<f64>();
        assert!((sum - read(&self.sums.0)).abs() <= 1e-3 * sum.abs().max(1.0), "{sum} and {:?}", self.sums.0);
        Shown { loss: read(&self.error), found: count }
    }
}

impl Own {
    fn parts(&self, batch: Sequences) -> Parts {
        let first = self.line.forward(batch.features.mean_dim(1).squeeze_dim::<2>(1));
        let second = first.clone().tanh();
        Parts {
            error: second.clone().square().mean(),
            sums: (first.clone().sum() + second.clone().sum(), Some(batch.classes.sum())),
            hidden: vec![first, second],
        }
    }
}

impl TrainStep for Own {
    type Input = Sequences;
    type Output = Parts;
    fn step(&self, batch: Sequences) -> TrainOutput<Parts> {
        let parts = self.parts(batch);
        match self.ends {
            Ends::AsItShould => backward(self, parts.error.clone(), parts),
            Ends::ByBackward => TrainOutput::new(self, parts.error.backward(), parts),
            Ends::WithoutLoss => TrainOutput { grads: burn::optim::GradientsParams::new(), item: parts },
        }
    }
}

impl InferenceStep for Own {
    type Input = Sequences;
    type Output = Parts;
    fn step(&self, batch: Sequences) -> Parts {
        self.parts(batch)
    }
}

#[test]
fn a_step_says_its_loss_and_has_outputs_of_its_own() {
    let line = LinearConfig::new(FEATURES, 4).init(&Device::flex().autodiff());
    let run = |ends: Ends, strategy: Option<TrainingStrategy<Own>>| {
        let (dir, seen) = (Scratch::new("learner"), Seen::default());
        let mut training = SupervisedTraining::new(&dir.0, loader(0..20), loader(100..104))
            .metric_train(Watch(seen.clone(), None))
            .metric_valid(Watch(seen.clone(), None))
            .with_metric_logger(InMemoryMetricLogger::new())
            .with_application_logger(None);
        if let Some(strategy) = strategy {
            training = training.with_training_strategy(strategy);
        }
        let model = Own { line: line.clone(), ends };
        let result = training.launch(Learner::new(model, SgdConfig::new().init(), 0.1));
        let seen = seen.lock().unwrap().clone();
        (seen, result.error.map(|error| error.to_string()))
    };
    let options = |trainer: Trainer<_, _>| trainer.on(Mesh::parse("dp=2").unwrap()).plan(plan("dp=2"));
    let sharded = || Sharded::new(SgdConfig::new().build(), options).into();
    let (own, none) = run(Ends::AsItShould, None);
    assert_eq!(none, None);
    let (seen, none) = run(Ends::AsItShould, Some(sharded()));
    assert_eq!((none, seen.len()), (None, 4));
    alike(&own, &seen, 1e-4);
    let refused = [Ends::ByBackward, Ends::WithoutLoss].map(|ends| run(ends, Some(sharded())).1.unwrap());
    insta::assert_snapshot!("burn_train_misses_the_loss", refused.join("\n"));
}
