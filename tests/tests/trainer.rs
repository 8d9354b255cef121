//! The public API: a burn model trains on any mesh as on one rank, is evaluated without a copy, and is returned bit by
//! bit.

use burn::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::lr_scheduler::module_lr_scheduler::{ModuleLrScheduler, ModuleLrSchedulerConfig};
use burn::lr_scheduler::step::StepLrSchedulerConfig;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdaGradConfig, AdamWConfig, GradientsParams, LionConfig, ModuleOptimizer, Optimizer, OptimizerRecord,
    RmsPropConfig, SgdConfig,
};
use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use burn_store::{ModuleSnapshot, SafetensorsStore};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tpc::prelude::*;
use tpc_ir::InputKind;
use tpc_tests::command::Scratch;

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time, so that no other test allocates while allocations are counted.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Module, Debug)]
struct Classifier {
    embed: Linear,
    encoder: TransformerEncoder,
    head: Linear,
}

const TOKENS: usize = 6;
const FEATURES: usize = 5;
const CLASSES: usize = 3;

/// A classifier of this width, with dropout.
fn classifier(width: usize, device: &Device) -> Classifier {
    let encoder = TransformerEncoderConfig::new(width, 2 * width, 2, 2).with_dropout(0.1).with_norm_first(true);
    Classifier {
        embed: LinearConfig::new(FEATURES, width).init(device),
        encoder: encoder.init(device),
        head: LinearConfig::new(width, CLASSES).init(device),
    }
}

impl Classifier {
    fn scores(&self, features: Tensor<3>, padding: Tensor<2, Bool>) -> Tensor<2> {
        let hidden = TransformerEncoderInput::new(self.embed.forward(features)).mask_pad(padding);
        let pooled = self.encoder.forward(hidden).mean_dim(1).squeeze_dim::<2>(1);
        log_softmax(self.head.forward(pooled), 1)
    }

    fn loss(&self, batch: Sequences) -> (Tensor<1>, Tensor<2>) {
        let scores = self.scores(batch.features, batch.labels.padding);
        let own = scores.clone().gather(1, batch.labels.classes.unsqueeze_dim(1)).squeeze_dim::<1>(1);
        let weighted = match batch.weights {
            Some(weights) => own * weights,
            None => own,
        };
        (-weighted.mean(), scores)
    }

    fn correct(&self, batch: Sequences) -> Tensor<1> {
        let found = self.scores(batch.features, batch.labels.padding).argmax(1).squeeze_dim::<1>(1);
        found.equal(batch.labels.classes).float().sum()
    }
}

#[derive(Batch, Clone, Debug)]
struct Sequences {
    features: Tensor<3>,
    labels: Labels,
    weights: Option<Tensor<1>>,
    /// The model does not read this tensor.
    sources: Tensor<2, Int>,
    #[batch(skip)]
    note: &'static str,
}

#[derive(Batch, Clone, Debug)]
struct Labels {
    classes: Tensor<1, Int>,
    padding: Tensor<2, Bool>,
}

/// A batch with this many rows, different for every seed.
fn batch(rows: usize, seed: u64) -> Sequences {
    let device = Device::flex();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut draw = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let features: Vec<f32> = (0..rows * TOKENS * FEATURES).map(|_| draw() - 0.5).collect();
    let classes: Vec<i64> = (0..rows).map(|_| (draw() * CLASSES as f32) as i64).collect();
    let padding: Vec<bool> = (0..rows * TOKENS).map(|i| i % TOKENS > 2 && draw() < 0.3).collect();
    let weights: Vec<f32> = (0..rows).map(|_| 0.5 + draw()).collect();
    Sequences {
        features: Tensor::from_data(TensorData::new(features, [rows, TOKENS, FEATURES]), &device),
        labels: Labels {
            classes: Tensor::from_data(TensorData::new(classes, [rows]), &device),
            padding: Tensor::from_data(TensorData::new(padding, [rows, TOKENS]), &device),
        },
        weights: Some(Tensor::from_data(TensorData::new(weights, [rows]), &device)),
        sources: Tensor::zeros([rows, 1000], &device),
        note: "not a tensor",
    }
}

fn plan(axes: &[(&str, usize)]) -> Plan {
    let has = |name: &str| axes.iter().any(|(axis, _)| *axis == name);
    let mut plan = Plan::new();
    if has("tp") {
        plan = plan.with("encoder.layers.*.mha", PairwiseParallel).with("encoder.layers.*.pwff", PairwiseParallel);
    }
    if has("dp") { plan.enable_2d_with_fsdp("dp") } else { plan }
}

const MESHES: [&[(&str, usize)]; 4] = [&[], &[("tp", 2)], &[("dp", 2)], &[("dp", 2), ("tp", 2)]];

type Running<M> = RunningTrainer<M, Sequences, Tensor<2>>;

fn started(axes: &[(&str, usize)], example: &Sequences) -> Running<Classifier> {
    let trainer = Trainer::new(|device: &Device| classifier(16, device), AdamWConfig::new().build())
        .mesh(axes.iter().copied())
        .unwrap()
        .plan(plan(axes))
        .lr(LinearLrSchedulerConfig::new(1e-2, 1e-3, 10).init().unwrap())
        .clip_norm(1.0)
        .seed(3);
    let compiled = trainer.compile(example, |model, batch: Sequences| model.loss(batch)).unwrap();
    compiled.launch().unwrap()
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

#[track_caller]
fn near(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{worst} is more than {tolerance}");
}

/// The bytes of every parameter of a module, by path.
fn bits<M: Module>(model: &M) -> Vec<(String, Vec<u8>)> {
    #[derive(Default)]
    struct Visit(Vec<String>, Vec<(String, Vec<u8>)>);
    impl ModuleVisitor for Visit {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push((self.0.join("."), param.val().into_data().as_bytes().to_vec()));
        }
    }
    let mut visit = Visit::default();
    model.visit(&mut visit);
    visit.1
}

/// Compares the losses, results and learning rates of every step, including a last batch that is smaller than the
/// example, and the trained model.
#[test]
fn every_mesh_trains_alike_and_gives_its_model_back() {
    let _alone = alone();
    let device = Device::flex();
    let mut reference: Option<(Vec<f64>, Vec<f32>)> = None;
    for axes in MESHES {
        let mut trainer = started(axes, &batch(8, 0));
        let mut validation = trainer.evaluation(|model, batch: Sequences| model.correct(batch), &batch(10, 0)).unwrap();
        let mut losses = Vec::new();
        let mut rates = LinearLrSchedulerConfig::new(1e-2, 1e-3, 10).init().unwrap();
        for (step, rows) in [8, 8, 3, 8, 5, 3].into_iter().enumerate() {
            let data = batch(rows, step as u64);
            let found = trainer.step(&data).unwrap();
            assert_eq!(found.number, step + 1);
            assert_eq!(found.learning_rate, rates.step().base());
            assert_eq!(found.outputs.dims(), [rows, CLASSES]);
            losses.push(found.loss);
            let correct = floats(trainer.evaluate(&mut validation, &batch(10, 9)).unwrap());
            assert!(correct.len() == 1 && correct[0] <= 10.0 && correct[0].fract() == 0.0);
        }
        let held_out = batch(7, 77);
        let mut scores = trainer
            .evaluation(|model, batch: Sequences| model.scores(batch.features, batch.labels.padding), &held_out)
            .unwrap();
        let on_ranks = floats(trainer.evaluate(&mut scores, &held_out).unwrap());
        let smaller = batch(2, 78);
        let few = floats(trainer.evaluate(&mut scores, &smaller).unwrap());
        let model = trainer.into_module(&device).unwrap();
        near(&on_ranks, &floats(model.scores(held_out.features, held_out.labels.padding)), 1e-5);
        near(&few, &floats(model.scores(smaller.features, smaller.labels.padding)), 1e-5);
        match &reference {
            None => reference = Some((losses, on_ranks)),
            Some((expected, scores)) => {
                for (step, (a, b)) in expected.iter().zip(&losses).enumerate() {
                    assert!((a - b).abs() <= 1e-5 * a.abs(), "{axes:?}, step {step}: {a} and {b}");
                }
                near(scores, &on_ranks, 1e-4);
            }
        }
    }
}

/// A smaller batch is trained on without padding: the update equals that of a trainer that was compiled for it, and
/// that of burn's own model.
#[test]
fn a_smaller_batch_has_its_own_loss_and_gradients() {
    let _alone = alone();
    let device = Device::flex();
    let model = {
        let encoder = TransformerEncoderConfig::new(16, 32, 2, 2).with_dropout(0.0).init(&device);
        let (embed, head) =
            (LinearConfig::new(FEATURES, 16).init(&device), LinearConfig::new(16, CLASSES).init(&device));
        Classifier { embed, encoder, head }
    };
    let few = batch(3, 5);
    for (axes, micro) in [(MESHES[0], 1), (MESHES[1], 1), (MESHES[2], 1), (MESHES[2], 4)] {
        let trained = |example: &Sequences| {
            let trainer = Trainer::of(model.clone(), SgdConfig::new().build())
                .mesh(axes.iter().copied())
                .unwrap()
                .plan(plan(axes))
                .micro_batches(micro.min(example.features.dims()[0]))
                .lr(0.5);
            let compiled = trainer.compile(example, |model, batch: Sequences| model.loss(batch)).unwrap();
            let mut trainer = compiled.launch().unwrap();
            let loss = trainer.step(&few).unwrap().loss;
            (loss, bits(&trainer.into_module(&device).unwrap()))
        };
        let (own, larger) = (trained(&few), trained(&batch(8, 0)));
        assert_eq!(own.0, larger.0);
        assert_eq!(own.1, larger.1);
        let loss = floats(model.loss(few.clone()).0)[0];
        assert!((f64::from(loss) - own.0).abs() < 1e-6, "{loss} and {}", own.0);
        assert_ne!(own.1, bits(&model));
    }
}

/// The effect and the cost of an evaluation between two steps: it changes nothing in the training, needs memory only
/// for its inputs and for activations beyond those of a step, and copies no parameter.
#[test]
fn evaluation_changes_nothing_and_copies_nothing() {
    let _alone = alone();
    for axes in MESHES {
        let run = |evaluates: bool| {
            let trainer = Trainer::new(|device: &Device| classifier(128, device), AdamWConfig::new().build())
                .mesh(axes.iter().copied())
                .unwrap()
                .plan(plan(axes))
                .lr(1e-3);
            let example = batch(4, 0);
            let compiled = trainer.compile(&example, |model, batch: Sequences| model.loss(batch)).unwrap();
            let mut trainer = compiled.launch().unwrap();
            let mut losses = Vec::new();
            let mut validation = None;
            for step in 0..4 {
                losses.push(trainer.step(&batch(4, step)).unwrap().loss);
                if !evaluates {
                    continue;
                }
                let before: Vec<usize> =
                    ranks(&mut trainer).map(|rank| trainer.session().allocated_bytes(rank)).collect();
                if validation.is_none() {
                    let count = |model: &Classifier, batch: Sequences| model.correct(batch);
                    let made = trainer.evaluation(count, &example).unwrap();
                    validation = Some(made);
                    let session = trainer.session();
                    for (rank, before) in before.iter().enumerate() {
                        let program = session.program(rank);
                        let own = program.inputs.iter().filter(|i| i.kind != InputKind::Parameter);
                        let inputs: usize = own.map(|i| program.bytes_of(i).len().next_multiple_of(64)).sum();
                        let parameters: usize =
                            program.inputs.iter().map(|i| program.bytes_of(i).len()).sum::<usize>() - inputs;
                        let grown = session.allocated_bytes(rank) - before;
                        assert!(grown <= inputs, "{axes:?}: {grown} bytes for {inputs} of inputs");
                        assert!(inputs < parameters / 4);
                    }
                }
                let session = trainer.session();
                let parameters: usize = session
                    .program(0)
                    .inputs
                    .iter()
                    .filter(|i| i.kind == InputKind::Parameter)
                    .map(|i| session.program(0).bytes_of(i).len())
                    .sum();
                let data = batch(4, 100 + step);
                let validation = validation.as_mut().unwrap();
                let first = floats(trainer.evaluate(validation, &data).unwrap());
                let allocated = Region::new(GLOBAL);
                let again = floats(trainer.evaluate(validation, &data).unwrap());
                let bytes = allocated.change().bytes_allocated;
                assert_eq!(first, again);
                assert!(bytes < parameters / 8, "{axes:?}: {bytes} bytes were allocated, {parameters} are parameters");
                let after: Vec<usize> =
                    ranks(&mut trainer).map(|rank| trainer.session().allocated_bytes(rank)).collect();
                if step > 0 {
                    assert_eq!(before, after);
                }
            }
            (losses, bits(&trainer.into_module(&Device::flex()).unwrap()))
        };
        assert_eq!(run(true), run(false), "{axes:?}");
    }
}

fn ranks<M: Module + 'static>(trainer: &mut Running<M>) -> std::ops::Range<usize> {
    trainer.session().local_ranks()
}

#[test]
fn what_the_model_does_not_read_is_not_sent() {
    let _alone = alone();
    let mut trainer = started(&[("tp", 2)], &batch(8, 0));
    let data = |trainer: &mut Running<Classifier>| -> Vec<(String, &'static str)> {
        let inputs = trainer.session().program(0).inputs.iter().filter(|i| i.kind == InputKind::Data);
        inputs.map(|i| (i.name.clone(), i.binding.view.dtype.name())).collect()
    };
    let own = |names: &[(&str, &'static str)]| names.iter().map(|(n, t)| (n.to_string(), *t)).collect::<Vec<_>>();
    let (features, classes) = (("features", "f32"), ("labels.classes", "i32"));
    let padding = ("labels.padding", "bool");
    assert_eq!(data(&mut trainer), own(&[features, classes, padding, ("weights", "f32")]));
    let mut scores = trainer
        .evaluation(|model, batch: Sequences| model.scores(batch.features, batch.labels.padding), &batch(8, 0))
        .unwrap();
    trainer.evaluate(&mut scores, &batch(8, 0)).unwrap();
    assert_eq!(data(&mut trainer), own(&[features, padding]));
}

#[derive(Batch, Clone, Debug)]
struct Parts(Tensor<2>, Vec<Tensor<2>>, (Tensor<2>, Option<Shift>));

#[derive(Batch, Clone, Debug)]
struct Shift {
    by: Tensor<1>,
}

/// Unnamed structures, lists, tuples and options of structures: each tensor has a name, and its own value.
#[test]
fn batches_have_any_form() {
    let _alone = alone();
    let device = Device::flex();
    let parts = |scale: f32| {
        let rows = |value: f32| Tensor::<2>::full([4, FEATURES], scale * value, &device);
        Parts(rows(1.0), vec![rows(2.0), rows(4.0)], (rows(8.0), Some(Shift { by: Tensor::full([4], 16.0, &device) })))
    };
    let loss = |model: &Linear, Parts(a, list, (b, shift)): Parts| {
        let sum = list.into_iter().fold(a, |sum, next| sum + next) + b;
        let by = shift.map(|shift| shift.by.mean());
        let own = model.forward(sum.clone()).square().mean();
        (own, vec![sum.mean() + by.expect("every batch has one")])
    };
    let trainer = Trainer::new(|device: &Device| LinearConfig::new(FEATURES, 2).init(device), SgdConfig::new().build());
    let compiled = trainer.mesh([("dp", 2)]).unwrap().plan(plan(&[("dp", 2)])).lr(1e-3).compile(&parts(1.0), loss);
    let mut trainer = compiled.unwrap().launch().unwrap();
    for scale in [1.0, 3.0] {
        let outputs = trainer.step(&parts(scale)).unwrap().outputs;
        assert_eq!(outputs.into_iter().map(floats).collect::<Vec<_>>(), [[scale * 15.0 + 16.0]]);
    }
    let inputs = trainer.session().program(0).inputs.iter().filter(|i| i.kind == InputKind::Data);
    assert_eq!(inputs.map(|i| &*i.name).collect::<Vec<_>>(), ["0", "1.0", "1.1", "2.0", "2.1.by"]);
}

/// A group of a scheduler has its own learning rate, on every mesh.
#[test]
fn groups_of_parameters_have_their_own_rates() {
    let _alone = alone();
    let device = Device::flex();
    let model = classifier(16, &device);
    let given = bits(&model);
    let values = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    for axes in MESHES {
        let updates = |scheduler: ModuleLrScheduler| -> Vec<(String, Vec<f32>)> {
            let trainer = Trainer::of(model.clone(), SgdConfig::new().build())
                .mesh(axes.iter().copied())
                .unwrap()
                .plan(plan(axes))
                .lr(scheduler);
            let compiled = trainer.compile(&batch(8, 0), |model, batch: Sequences| model.loss(batch)).unwrap();
            let mut trainer = compiled.launch().unwrap();
            assert_eq!(trainer.step(&batch(8, 1)).unwrap().learning_rate, 0.25);
            let trained = bits(&trainer.into_module(&device).unwrap());
            let mut updates = Vec::new();
            for ((path, old), (_, new)) in given.iter().zip(trained) {
                let update = values(old).into_iter().zip(values(&new)).map(|(old, new)| new - old);
                updates.push((path.clone(), update.collect()));
            }
            updates
        };
        let group = || ParamGroup::from_predicate("head");
        let one = updates(ModuleLrScheduler::new(0.25));
        let two = updates(ModuleLrScheduler::new(0.25).with_group(group(), 1.0));
        for ((path, a), (_, b)) in one.iter().zip(&two) {
            let scale = if path.starts_with("head.") { 4.0 } else { 1.0 };
            assert!(path.ends_with("key.bias") || a.iter().any(|x| x.abs() > 1e-6), "{path} is trained");
            near(&a.iter().map(|x| scale * x).collect::<Vec<_>>(), b, 1e-5);
        }
    }
    // The same group, set on the trainer; and one that matches nothing.
    let grouped = |group: ParamGroup| {
        let trainer = Trainer::of(model.clone(), SgdConfig::new().build()).lr(0.25).lr_group(group, 1.0);
        trainer.compile(&batch(8, 0), |model, batch: Sequences| model.loss(batch))
    };
    let mut trainer = grouped(ParamGroup::from_predicate("head")).unwrap().launch().unwrap();
    trainer.step(&batch(8, 1)).unwrap();
    let mut same = Trainer::of(model.clone(), SgdConfig::new().build())
        .lr(ModuleLrScheduler::new(0.25).with_group(ParamGroup::from_predicate("head"), 1.0))
        .compile(&batch(8, 0), |model, batch: Sequences| model.loss(batch))
        .unwrap()
        .launch()
        .unwrap();
    same.step(&batch(8, 1)).unwrap();
    assert_eq!(bits(&trainer.into_module(&device).unwrap()), bits(&same.into_module(&device).unwrap()));
    says(
        grouped(ParamGroup::from_predicate("haed")),
        "group 1 of the learning rates matches no trained parameter: a group matches parameters by their paths, such as `embed.bias`, `encoder.layers.1.mha.key.bias`, `head.weight`",
    );
}

/// Groups whose rates only differ after the trainer was built.
#[test]
fn rates_that_come_apart_are_said() {
    let _alone = alone();
    let late = StepLrSchedulerConfig::new(0.1, 300).with_gamma(0.5);
    let scheduler = ModuleLrSchedulerConfig::new(0.1.into()).with_group(ParamGroup::from_predicate("bias"), late);
    let trainer = Trainer::new(|device: &Device| LinearConfig::new(FEATURES, 2).init(device), SgdConfig::new().build());
    let rows = Tensor::<2>::ones([2, FEATURES], &Device::flex());
    let loss = |model: &Linear, rows: Tensor<2>| model.forward(rows).square().mean();
    let mut trainer = trainer.lr(scheduler.init().unwrap()).compile(&rows, loss).unwrap().launch().unwrap();
    (0..300).for_each(|_| _ = trainer.step(&rows).unwrap());
    says(
        trainer.step(&rows),
        "the scheduler gives `weight` and `bias` different learning rates in step 301, after it gave them the same ones in the first 256: these steps determine the groups of parameters; make their rates differ slightly from the beginning",
    );
}

/// From burn to the ranks, to a module, to a file and to a checkpoint, and back: no bit changes.
#[test]
fn round_trips_are_exact() {
    let _alone = alone();
    let device = Device::flex();
    let scratch = Scratch::new("round-trips");
    let model = classifier(16, &device);
    let given = bits(&model);
    for axes in MESHES {
        let start = |model: Classifier| {
            let trainer = Trainer::of(model, AdamWConfig::new().build())
                .mesh(axes.iter().copied())
                .unwrap()
                .plan(plan(axes))
                .lr(LinearLrSchedulerConfig::new(1e-2, 1e-3, 10).init().unwrap());
            let compiled = trainer.compile(&batch(8, 0), |model, batch: Sequences| model.loss(batch)).unwrap();
            compiled.launch().unwrap()
        };
        assert_eq!(bits(&start(model.clone()).into_module(&device).unwrap()), given);

        let mut trainer = start(model.clone());
        (0..3).for_each(|step| _ = trainer.step(&batch(8, step)).unwrap());
        let mut other = classifier(16, &device);
        trainer.load_into(&mut other).unwrap();
        let trained = bits(&other);
        assert_ne!(trained, given);

        let file = trainer.save(scratch.0.join("model")).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), trained.len());
        for (name, value) in &trained {
            assert_eq!(read.tensor(name).unwrap().data(), value, "{name}");
        }
        // burn's own store reads the file, and that of a checkpoint.
        let stored = |file: &Path| {
            let mut model = classifier(16, &device);
            let result = model.load_from(&mut SafetensorsStore::from_file(file)).unwrap();
            assert!(result.missing.is_empty() && result.unused.is_empty(), "{result:?}");
            bits(&model)
        };
        assert_eq!(stored(&file), trained);

        let checkpoints = scratch.0.join(format!("checkpoints-{}", axes.len()));
        let checkpoint = trainer.checkpoint(&checkpoints).unwrap();
        assert_eq!(stored(&checkpoint.join("model.safetensors")), trained);
        let rest = |trainer: &mut Running<Classifier>| {
            let steps = (3..5).map(|step| trainer.step(&batch(8, step)).unwrap());
            steps.map(|step| (step.number, step.loss, step.learning_rate)).collect::<Vec<_>>()
        };
        let mut resumed = start(classifier(16, &device));
        // An evaluation before the first step is not part of the state that is resumed.
        let mut count = resumed.evaluation(|model, batch: Sequences| model.correct(batch), &batch(8, 0)).unwrap();
        resumed.evaluate(&mut count, &batch(8, 1)).unwrap();
        assert_eq!(resumed.resume(&checkpoints).unwrap(), 3);
        assert_eq!(rest(&mut resumed), rest(&mut trainer));
        assert_eq!(bits(&resumed.into_module(&device).unwrap()), bits(&trainer.into_module(&device).unwrap()));
        let _ = std::fs::remove_dir_all(checkpoints);
    }
}

#[derive(Module, Debug)]
struct Normalized {
    wide: Linear,
    norm: BatchNorm,
    narrow: Linear,
}

impl Normalized {
    fn new(device: &Device) -> Self {
        Normalized {
            wide: LinearConfig::new(TOKENS * FEATURES, 12).with_bias(false).init(device),
            norm: BatchNormConfig::new(12).init(device),
            narrow: LinearConfig::new(12, CLASSES).init(device),
        }
    }

    fn scores(&self, features: Tensor<3>) -> Tensor<2> {
        self.narrow.forward(relu(self.norm.forward(self.wide.forward(features.flatten::<2>(1, 2)))))
    }

    fn loss(&self, batch: Sequences) -> Tensor<1> {
        let scores = log_softmax(self.scores(batch.features), 1);
        -scores.gather(1, batch.labels.classes.unsqueeze_dim(1)).mean()
    }
}

/// The running statistics of a batch norm are parameters like others: an evaluation reads them as the latest step wrote
/// them, small batches update them, they are returned to a module and restored from a checkpoint, and they stay in f32
/// under bf16 computation.
#[test]
fn running_statistics_are_state() {
    let _alone = alone();
    let device = Device::flex();
    let scratch = Scratch::new("statistics");
    let batches: Vec<Sequences> = [8, 8, 3, 8].into_iter().zip(0..).map(|(rows, seed)| batch(rows, seed)).collect();
    for axes in MESHES {
        let has = |name: &str| axes.iter().any(|(axis, _)| *axis == name);
        let plan = if has("tp") { Plan::new().with("", PairwiseParallel).along("tp") } else { Plan::new() };
        let plan = if has("dp") { plan.enable_2d_with_fsdp("dp") } else { plan };
        let start = |precision: Option<Precision>| {
            let trainer = Trainer::new(Normalized::new, AdamWConfig::new().build()).mesh(axes.iter().copied()).unwrap();
            let trainer = trainer.plan(plan.clone()).lr(1e-2).seed(5);
            let trainer = precision.into_iter().fold(trainer, Trainer::precision);
            let compiled = trainer.compile(&batches[0], |model, batch: Sequences| model.loss(batch)).unwrap();
            compiled.launch().unwrap()
        };
        let mut trainer: RunningTrainer<Normalized, Sequences, ()> = start(None);
        let scores = |model: &Normalized, batch: Sequences| model.scores(batch.features);
        let mut evaluation = trainer.evaluation(scores, &batches[0]).unwrap();
        let mut model = Normalized::new(&device);
        trainer.load_into(&mut model).unwrap();
        let initial = bits(&model);
        assert_eq!(floats(model.norm.running_var.value()), [1.0; 12]);
        assert_eq!(floats(model.norm.running_mean.value()), [0.0; 12]);
        for (step, batch) in batches.iter().enumerate() {
            trainer.step(batch).unwrap();
            trainer.load_into(&mut model).unwrap();
            let on_ranks = floats(trainer.evaluate(&mut evaluation, &batches[1]).unwrap());
            near(&on_ranks, &floats(scores(&model, batches[1].clone())), 1e-5);
            if step == 1 {
                trainer.checkpoint(&scratch.0).unwrap();
            }
        }
        assert!(initial.iter().zip(&bits(&model)).all(|(before, after)| before != after));
        let mut resumed: RunningTrainer<Normalized, Sequences, ()> = start(None);
        assert_eq!(resumed.resume(&scratch.0).unwrap(), 2);
        batches[2..].iter().for_each(|batch| _ = resumed.step(batch).unwrap());
        assert_eq!(bits(&resumed.into_module(&device).unwrap()), bits(&model));
        std::fs::remove_dir_all(&scratch.0).unwrap();

        let mut half: RunningTrainer<Normalized, Sequences, ()> = start(Some(Precision::default()));
        batches.iter().for_each(|batch| _ = half.step(batch).unwrap());
        let half = half.into_module(&device).unwrap();
        near(&floats(half.norm.running_mean.value()), &floats(model.norm.running_mean.value()), 0.02);
        near(&floats(half.norm.running_var.value()), &floats(model.norm.running_var.value()), 0.02);
    }
}

/// The state of an optimizer is a record of burn's: it goes to the ranks and back without the change of a bit, on every
/// mesh, and burn's own optimizer computes the next update from it.
#[test]
fn optimizer_states_are_records_of_burn() {
    let _alone = alone();
    records_go_round("adamw", AdamWConfig::new().build());
    records_go_round("amsgrad", AdamWConfig::new().with_amsgrad(true).build());
    let momentum = MomentumConfig { momentum: 0.9, dampening: 0.1, nesterov: true };
    records_go_round("sgd", SgdConfig::new().with_momentum(Some(momentum)).build());
    // Without centering, the average of its gradient is always the average of its squares.
    records_go_round("rmsprop", RmsPropConfig::new().build());
    records_go_round("lion", LionConfig::new().build());
    records_go_round("adagrad", AdaGradConfig::new().build());
}

fn records_go_round<O: Optimizer>(name: &str, optimizer: O) {
    let device = Device::flex();
    let encoder = TransformerEncoderConfig::new(16, 32, 2, 2).with_dropout(0.0).with_norm_first(true).init(&device);
    let (embed, head) = (LinearConfig::new(FEATURES, 16).init(&device), LinearConfig::new(16, CLASSES).init(&device));
    let model = Classifier { embed, encoder, head };
    for axes in MESHES {
        let start = |model: &Classifier| {
            let trainer = Trainer::of(model.clone(), optimizer.clone())
                .mesh(axes.iter().copied())
                .unwrap()
                .plan(plan(axes))
                .lr(LinearLrSchedulerConfig::new(1e-3, 1e-4, 10).init().unwrap());
            trainer.compile(&batch(8, 0), |model, batch: Sequences| model.loss(batch)).unwrap().launch().unwrap()
        };
        let mut trainer = start(&model);
        assert!(trainer.optimizer_record(&model).unwrap().is_empty());
        (0..3).for_each(|step| _ = trainer.step(&batch(8, step)).unwrap());
        let mut trained = model.clone();
        trainer.load_into(&mut trained).unwrap();
        let record =
            |trainer: &mut Running<Classifier>| trainer.optimizer_record(&trained).unwrap().into_bytes().unwrap();
        let bytes = record(&mut trainer);
        let read = || OptimizerRecord::from_bytes(bytes.clone()).unwrap();

        let mut resumed = start(&trained);
        let steps = resumed.load_optimizer_record(&trained, read()).unwrap();
        // These optimizers do not count steps.
        let counts = !["sgd", "rmsprop", "lion"].contains(&name);
        assert_eq!(steps, if counts { 3 } else { 1 }, "{name}");
        assert!(record(&mut resumed)[..] == bytes[..], "{name} on {axes:?}");

        // From burn's own optimizer, whose records are in another order.
        let mut burns = ModuleOptimizer::from(optimizer.clone()).load_record(read());
        let mut again = start(&trained);
        again.load_optimizer_record(&trained, burns.to_record()).unwrap();
        assert!(record(&mut again)[..] == bytes[..], "{name} on {axes:?}");

        let rate = resumed.step(&batch(8, 3)).unwrap().learning_rate;
        let tracked = trained.clone().train();
        let gradients = GradientsParams::from_grads(tracked.loss(batch(8, 3)).0.backward(), &tracked);
        let expected = burns.step(rate, tracked, gradients).valid();
        if counts {
            assert_eq!(trainer.step(&batch(8, 3)).unwrap().learning_rate, rate);
            assert!(record(&mut resumed)[..] == record(&mut trainer)[..], "{name} on {axes:?}");
            assert_eq!(bits(&trainer.into_module(&device).unwrap()), {
                let mut same = trained.clone();
                resumed.load_into(&mut same).unwrap();
                bits(&same)
            });
        }
        for ((path, own), (_, burns)) in bits(&resumed.into_module(&device).unwrap()).iter().zip(bits(&expected)) {
            let values = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
            };
            let worst = values(own).iter().zip(values(&burns)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // A gradient that consists of rounding errors, such as that of a key's bias, has an arbitrary sign under
            // Adam or Lion.
            assert!(path.ends_with("key.bias") || worst <= 1e-5, "{name} on {axes:?}, {path}: {worst}");
        }
    }
}

#[test]
fn records_of_other_optimizers_are_said() {
    let _alone = alone();
    let model = classifier(16, &Device::flex());
    let started = |optimizer: SgdConfig| {
        let trainer = Trainer::of(model.clone(), optimizer.build()).lr(0.1);
        trainer.compile(&batch(8, 0), |model, batch: Sequences| model.loss(batch)).unwrap().launch().unwrap()
    };
    let momentum =
        SgdConfig::new().with_momentum(Some(MomentumConfig { momentum: 0.9, dampening: 0.1, nesterov: false }));
    let mut with = started(momentum);
    with.step(&batch(8, 0)).unwrap();
    let mut without = started(SgdConfig::new());
    let record = with.optimizer_record(&model).unwrap();
    let result = without.load_optimizer_record(&model, record).map_err(|error| error.to_string());
    let first = result.unwrap_err();
    assert!(first.starts_with("the record belongs to another optimizer or model: it has a state `"), "{first}");
    says(
        with.load_optimizer_record(&model, OptimizerRecord::default()),
        "the record belongs to another optimizer or model: it has no state `momentum.velocity` of `embed.weight`",
    );
    let record = with.optimizer_record(&model).unwrap();
    says(
        with.load_optimizer_record(&classifier(16, &Device::flex()), record),
        "the record belongs to another optimizer or model: it has no state `momentum.velocity` of `embed.weight`",
    );
    // After all of these errors the trainers continue to work.
    with.step(&batch(8, 1)).unwrap();
    without.step(&batch(8, 1)).unwrap();
}

#[track_caller]
fn says<T>(result: Result<T, Error>, expected: &str) {
    match result {
        Ok(_) => panic!("accepted, instead of: {expected}"),
        Err(error) => assert_eq!(error.to_string(), expected),
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let _alone = alone();
    let device = Device::flex();
    let (loss, example) = (|model: &Classifier, batch: Sequences| model.loss(batch), batch(8, 0));
    let build = |device: &Device| classifier(16, device);
    says(
        Trainer::new(build, AdamWConfig::new().build()).compile(&example, loss),
        "the trainer has no learning rate: call `lr` with a number or with one of burn's schedulers before `compile`",
    );
    let mut trainer = started(&[("tp", 2)], &example);
    let like = |change: &dyn Fn(&mut Sequences)| {
        let mut batch = batch(8, 1);
        change(&mut batch);
        batch
    };
    says(
        trainer.step(&like(&|batch| batch.features = Tensor::zeros([8, TOKENS + 1, FEATURES], &device))),
        "field `features` of the batch is f32[8, 7, 5], but the training step was compiled for f32[8, 6, 5]: a batch may have fewer rows in the first dimension, but must otherwise have the example's shape",
    );
    says(
        trainer.step(&like(&|batch| batch.labels.classes = Tensor::zeros([7], &device))),
        "field `labels.classes` of the batch is i32[7], but the training step was compiled for i32[8]: a batch may have fewer rows in the first dimension, but must otherwise have the example's shape",
    );
    says(
        trainer.step(&batch(9, 0)),
        "the batch has 9 rows in field `features`, but the training step was compiled for at most 8: compile it with an example of the largest batch",
    );
    says(
        trainer.step(&like(&|batch| batch.weights = None)),
        "the batch has no field `weights`, but the example that the training step was compiled for has one: an optional field must be present in all batches or in none",
    );
    let mut validation = trainer
        .evaluation(|model, batch: Sequences| model.correct(batch), &like(&|batch| batch.weights = None))
        .unwrap();
    says(
        trainer.evaluate(&mut validation, &example),
        "the batch has a field `weights`, but the example that the evaluation was compiled for has none: an optional field must be present in all batches or in none",
    );
    let mut other = started(&[], &example);
    says(
        other.evaluate(&mut validation, &like(&|batch| batch.weights = None)),
        "the evaluation was compiled by another trainer: use the trainer whose `evaluation` made it",
    );
    says(
        trainer.load_into(&mut classifier(24, &device)),
        "the module differs from the trained one: its `embed.weight` is f32[5, 24], the trained one is f32[5, 16]",
    );
    says(
        trainer.load_into(&mut LinearConfig::new(2, 2).init(&device)),
        "the module differs from the trained one: it has a parameter `weight`, which the trained one lacks",
    );
    let mut deeper = classifier(16, &device);
    deeper.encoder = TransformerEncoderConfig::new(16, 32, 2, 1).with_norm_first(true).init(&device);
    says(
        trainer.load_into(&mut deeper),
        "the module differs from the trained one: it has no parameter `encoder.layers.1.mha.query.weight`, which the trained one has",
    );
    // After all of these errors the trainer continues to work.
    trainer.step(&example).unwrap();
}

/// A builder that makes another model on the user's device than the one that was compiled.
#[test]
fn a_builder_that_changes_its_mind_is_said() {
    let _alone = alone();
    let width = std::rc::Rc::new(std::cell::Cell::new(16));
    let (built, example) = (width.clone(), batch(4, 0));
    let trainer =
        Trainer::new(move |device: &Device| classifier(built.get(), device), AdamWConfig::new().build()).lr(1e-3);
    let compiled = trainer.compile(&example, |model, batch: Sequences| model.loss(batch)).unwrap();
    let trainer = compiled.launch().unwrap();
    width.set(32);
    says(
        trainer.into_module(&Device::flex()),
        "the module differs from the trained one: its `embed.weight` is f32[5, 32], the trained one is f32[5, 16]",
    );
}

/// What a step communicates and holds, as the user reads it.
#[test]
fn a_step_is_explained() {
    let _alone = alone();
    let mut trainer = started(&[("dp", 2), ("tp", 2)], &batch(8, 0));
    let validation = trainer.evaluation(|model, batch: Sequences| model.correct(batch), &batch(8, 0)).unwrap();
    insta::assert_snapshot!("trainer_explains_a_step", format!("{}{}", trainer.explain(), validation.explain()));
}
