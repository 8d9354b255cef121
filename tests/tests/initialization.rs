//! Initial values that are not drawn element by element equal those of burn's own module, on every mesh.

use burn::module::{Module, Param, ParamId};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::{DType, Device, Distribution, Tensor, activation};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tpc::prelude::*;
use tpc_compiler::capture::{Init, Spec, TrainingCapture, TrainingOptions, capture_training_shapes, initial_values};
use tpc_compiler::pretrained::{initialize, initialize_with};
use tpc_compiler::program::{CompileOptions, compile_training};
use tpc_tests::eager::numbers;
use tpc_tests::training::{mesh, plan};

const SEED: u64 = 7;

/// burn's CPU backend has one generator for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Module, Debug)]
struct Net {
    drawn: Linear,
    orthogonal: Linear,
    truncated: Linear,
    scaled: Linear,
    table: Param<Tensor<1>>,
}

/// A lazy parameter: normally distributed numbers, none farther from 0 than two standard deviations.
fn truncated(shape: [usize; 2], device: &Device) -> Param<Tensor<2>> {
    let init = move |device: &Device, require_grad: bool| {
        let value = Tensor::random(shape, Distribution::Normal(0.0, 0.5), device).clamp(-1.0, 1.0);
        if require_grad { value.require_grad() } else { value }
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), true, shape.into())
}

impl Net {
    fn new(device: &Device) -> Self {
        let orthogonal =
            LinearConfig::new(16, 8).with_bias(false).with_initializer(Initializer::Orthogonal { gain: 1.0 });
        // This value is computed while the module is built.
        let mut scaled = LinearConfig::new(12, 6).init(device);
        scaled.weight = scaled.weight.map(|weight| weight * 0.125);
        Net {
            drawn: LinearConfig::new(5, 16).init(device),
            orthogonal: orthogonal.init(device),
            truncated: Linear { weight: truncated([8, 12], device), bias: None },
            scaled,
            table: Param::from_data([0.25f32, -0.5, 0.75, 1.0, -1.25, 1.5], device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = activation::gelu(self.drawn.forward(x));
        let x = activation::gelu(self.orthogonal.forward(x));
        let x = activation::gelu(self.truncated.forward(x));
        self.scaled.forward(x) + self.table.val().unsqueeze()
    }
}

/// The parameters that are not drawn element by element, in the order of the module.
fn computed(net: &Net) -> BTreeMap<&'static str, Vec<f64>> {
    let of = |tensor: Tensor<2>| numbers(tensor.into_data());
    BTreeMap::from([
        ("orthogonal.weight", of(net.orthogonal.weight.val())),
        ("truncated.weight", of(net.truncated.weight.val())),
        ("scaled.weight", of(net.scaled.weight.val())),
        ("table", numbers(net.table.val().into_data())),
    ])
}

/// The values of burn's own module after this seed.
fn expected(seed: u64) -> BTreeMap<&'static str, Vec<f64>> {
    let device = Device::flex();
    device.seed(seed);
    computed(&Net::new(&device))
}

#[derive(Batch, Clone, Debug)]
struct Examples {
    x: Tensor<2>,
}

/// The parameters that a trainer starts from.
fn start(seed: u64, name: &str, on: &str) -> Net {
    let example = Examples { x: Tensor::ones([4, 5], &Device::flex()) };
    let trainer = Trainer::new(Net::new, AdamWConfig::new().build()).on(mesh(on)).plan(plan(name)).seed(seed).lr(0.01);
    let compiled = trainer.compile(&example, |net: &Net, batch: Examples| net.forward(batch.x).square().mean());
    let running = compiled.and_then(|compiled| compiled.launch()).unwrap_or_else(|e| panic!("{on}: {e}"));
    running.into_module(&Device::flex()).unwrap_or_else(|e| panic!("{on}: {e}"))
}

#[test]
fn a_trainer_starts_from_the_values_of_the_module() {
    let _alone = alone();
    let expected = expected(SEED);
    let mut drawn = None;
    for (name, on) in [("none", ""), ("tp", "tp=2"), ("2d", "dp=2,tp=2"), ("fsdp", "dp=3")] {
        let net = start(SEED, name, on);
        assert_eq!(computed(&net), expected, "{name} on {on}");
        // Values that are drawn element by element are also the same on every mesh.
        let first = numbers(net.drawn.weight.val().into_data());
        assert_eq!(drawn.get_or_insert_with(|| first.clone()), &first, "{name} on {on}");
    }
    let other = computed(&start(SEED + 1, "tp", "tp=2"));
    assert_ne!(other["orthogonal.weight"], expected["orthogonal.weight"]);
    assert_eq!(other["table"], expected["table"]);
}

/// The values have the properties that their initializers promise.
#[test]
fn orthogonal_truncated_scaled() {
    let _alone = alone();
    let net = start(SEED, "tp", "tp=2");
    let q = net.orthogonal.weight.val();
    let product = numbers(q.clone().transpose().matmul(q).into_data());
    for (i, value) in product.iter().enumerate() {
        let identity = if i % 9 == 0 { 1.0 } else { 0.0 };
        assert!((value - identity).abs() < 1e-5, "Q^T Q [{}, {}] is {value}", i / 8, i % 8);
    }
    let computed = computed(&net);
    let largest = |name: &str| computed[name].iter().fold(0.0f64, |most, v| most.max(v.abs()));
    // Some of 96 numbers are cut off; a normal distribution with standard deviation 0.02 would rarely reach the bound.
    assert_eq!(largest("truncated.weight"), 1.0);
    let bound = 0.125 / 12f64.sqrt();
    assert!(largest("scaled.weight") <= bound && largest("scaled.weight") > 0.8 * bound);
    assert_eq!(computed["table"], [0.25, -0.5, 0.75, 1.0, -1.25, 1.5]);
}

fn captured() -> TrainingCapture {
    let batch = Spec::<2>::new([4, 5], DType::F32);
    let options = TrainingOptions::default();
    let loss = |net: &Net, x: Tensor<2>| net.forward(x).square().mean();
    capture_training_shapes(Net::new, &AdamWConfig::new().build(), batch, &options, loss).unwrap()
}

/// An entry point without a function to build the module reports an error, and accepts the values instead.
#[test]
fn without_the_module_it_is_an_error() {
    let _alone = alone();
    let capture = captured();
    let init = capture.first.init.clone();
    let by_operations = |name: &str| match &init[name] {
        Init::Computed(operations) => operations.len(),
        other => panic!("{name}: {other:?}"),
    };
    assert!(by_operations("orthogonal.weight") > 2 && by_operations("truncated.weight") > 1, "{init:?}");
    // For a value that is computed while the module is built the last operation is known; for a value from data nothing
    // is.
    assert_eq!((by_operations("scaled.weight"), by_operations("table")), (1, 0), "{init:?}");
    assert!(matches!(init["drawn.weight"], Init::Random(_)), "{init:?}");
    let program = compile_training(capture, &mesh("tp=2"), &plan("tp"), &CompileOptions::for_cpu(), &str::to_string);
    let mut training = program.and_then(|program| program.launch(Default::default())).unwrap();
    let error = initialize(training.session(), &init, SEED).unwrap_err().to_string();
    let begin = "the initial values of `orthogonal.weight`, `truncated.weight`, `scaled.weight` and 1 more are not drawn \
                 element by element but computed by the module (";
    assert!(error.starts_with(begin), "{error}");
    assert!(error.contains("`capture::initial_values`") && error.contains("`Trainer::new`"), "{error}");

    let values = initial_values(Net::new, &init, SEED).unwrap();
    initialize_with(training.session(), &init, &values, SEED).unwrap();
    let read = |name: &str, session: &tpc_runtime::Session| session.read_input_f64(name).unwrap();
    for (name, value) in expected(SEED) {
        assert_eq!(read(name, training.session()), value, "{name}");
    }
    let plain = numbers(start(SEED, "tp", "tp=2").drawn.weight.val().into_data());
    assert_eq!(read("drawn.weight", training.session()), plain);
}

/// The module is not built again if every value is drawn element by element.
#[test]
fn modules_of_draws_are_not_built() {
    // The module that fails is built after the process's generator is seeded.
    let _alone = alone();
    let init = [("a".to_string(), Init::Constant(1.0)), ("b".to_string(), Init::Random(Distribution::Default))].into();
    let build = |_: &Device| -> Net { panic!("is not called") };
    assert_eq!(initial_values(build, &init, SEED).unwrap().len(), 0);
    let broken = |_: &Device| -> Net { panic!("no such file") };
    let init = [("a".to_string(), Init::Computed(Vec::new()))].into();
    let error = initial_values(broken, &init, SEED).unwrap_err().to_string();
    assert!(error.contains("no such file"), "{error}");
}
