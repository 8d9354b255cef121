//! Imported programs compute what eager burn computes, and canonicalizing them preserves the meaning.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, Conv3dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig,
};
use burn::nn::loss::{
    BinaryCrossEntropyLossConfig, CrossEntropyLossConfig, HuberLossConfig, KLDivLossConfig, MseLoss, Reduction,
    SmoothL1LossConfig,
};
use burn::nn::pool::{AdaptiveAvgPool1dConfig, AdaptiveAvgPool2dConfig, AvgPool1dConfig, AvgPool2dConfig};
use burn::nn::pool::{MaxPool1dConfig, MaxPool2dConfig};
use burn::nn::transformer::{
    TransformerDecoderConfig, TransformerDecoderInput, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{
    BatchNormConfig, BiLstmConfig, DropoutConfig, EmbeddingConfig, GroupNormConfig, GruConfig, InstanceNormConfig,
    Linear, LinearConfig, LstmConfig, PReluConfig, PaddingConfig1d, PaddingConfig2d, PaddingConfig3d,
    PositionalEncodingConfig, RmsNormConfig, RotaryEncodingConfig, SwiGluConfig,
};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::ops::{AttentionModuleOptions, PadMode};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, activation, module};
use std::collections::HashMap;
use tpc_compiler::capture::{Spec, capture_inference, capture_training};
use tpc_compiler::import::{Imported, import};
use tpc_ir::interpret::Tensor as Value;
use tpc_ir::{Graph, InputId, Mesh, Op, OutputKind};
use tpc_passes::canonicalize::canonicalize;
use tpc_passes::check::check as check_placed;
use tpc_passes::propagate::propagate;
use tpc_passes::styles::{Plan, annotate};
use tpc_passes::targets::Target;
use tpc_tests::captured::{Values, advance, import_training, initial, run, step, tensor};
use tpc_tests::{difference, inputs, on_ranks, reference};

// ---------------------------------------------------------------------------------------------------------------------
// Captured and eager

/// Parameters and their gradients by path.
struct Eager<'a> {
    path: Vec<String>,
    gradients: &'a GradientsParams,
    found: HashMap<OutputKind, TensorData>,
}

impl ModuleVisitor for Eager<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.found.insert(OutputKind::Gradient(self.path.join(".").into()), gradient.into_data());
        }
    }
}

struct Updated {
    path: Vec<String>,
    found: HashMap<OutputKind, TensorData>,
}

impl ModuleVisitor for Updated {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.insert(OutputKind::Update(InputId::Parameter(self.path.join(".").into())), param.val().into_data());
    }
}

/// Pseudorandom numbers that are the same in every run.
fn numbers<const D: usize>(shape: [usize; D], seed: u64) -> TensorData {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.0
    };
    let elements: Vec<f32> = (0..shape.iter().product()).map(next).collect();
    TensorData::new(elements, shape)
}

/// Gives every parameter the same values in every run, whatever else draws random numbers.
struct Settled(u64);

impl ModuleMapper for Settled {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (id, value, mapper) = param.consume();
        self.0 += 1;
        let values = Tensor::from_data(numbers(value.dims(), self.0), &value.device());
        Param::from_mapped_value(id, values * 0.3, mapper)
    }
}

/// Checks that every element is within 1e-5 of the largest, plus what is allowed for it.
fn close_within(found: &Value, expected: &TensorData, allowed: impl Fn(usize) -> f64, what: &str) {
    let expected = tensor(expected);
    assert_eq!(found.shape, expected.shape, "{what}");
    let scale = expected.data.iter().fold(0.01f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in found.data.iter().zip(&expected.data).enumerate() {
        assert!((a - b).abs() <= 1e-5 * scale + allowed(i), "{what}[{i}]: {a}, but eager burn gives {b}");
    }
}

fn close(found: &Value, expected: &TensorData, what: &str) {
    close_within(found, expected, |_| 0.0, what);
}

/// How far an update with Adam may be off because the gradient is off by an f32 rounding error: far where the gradient
/// is almost zero (that of a key's bias is zero), because it is divided by its size.
fn amplified(gradient: Option<&TensorData>, lr: f64) -> impl Fn(usize) -> f64 {
    const ROUNDING: f64 = 3e-8;
    const EPSILON: f64 = 1e-5; // of AdamConfig
    let gradient = gradient.map(|g| tensor(g).data).unwrap_or_default();
    move |i| gradient.get(i).map_or(0.0, |g| lr * ROUNDING / (g.abs() + EPSILON))
}

/// The imported program and its canonical form, both verified.
fn forms(imported: &Imported) -> [(&'static str, Graph); 2] {
    let canonical = canonicalize(&imported.graph);
    let forms = [("imported", imported.graph.clone()), ("canonical", canonical)];
    for (name, graph) in &forms {
        tpc_ir::verify::verify(graph).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }
    forms
}

/// The types of a program's parameters and states.
fn layouts(graph: &Graph) -> Vec<String> {
    let inputs = graph.inputs().filter(|(_, id)| id.is_kept());
    inputs.map(|(node, id)| format!("{id} {:?}", graph.node(node).types[0].shape)).collect()
}

/// Checks one forward pass.
fn check_inference<M: Module, const D: usize, const K: usize>(
    model: &M,
    shape: [usize; D],
    forward: impl Fn(&M, Tensor<D>) -> Tensor<K>,
) {
    let captured = capture_inference(model, Spec::new(shape, DType::F32), |m: &M, x| forward(m, x)).unwrap();
    let imported = import(&captured).unwrap_or_else(|e| panic!("{e}"));
    let data = numbers(shape, 1);
    let expected = forward(model, Tensor::from_data(data.clone(), &Device::flex())).into_data();
    let mut values = initial(&captured, &imported);
    values.insert(InputId::Data("input0".into()), tensor(&data));
    for (name, graph) in &forms(&imported) {
        let found = run(graph, &values);
        close(&found[&OutputKind::Result("output0".into())], &expected, &format!("{name} output"));
    }
}

/// Checks three training steps with Adam: losses, gradients and updated parameters.
fn check_training<M: Module, const D: usize>(model: &M, shape: [usize; D], loss: impl Fn(&M, Tensor<D>) -> Tensor<1>) {
    let optimizer = AdamConfig::new().build();
    let mut captured =
        capture_training(model, &optimizer, Spec::new(shape, DType::F32), |m: &M, x| loss(m, x)).unwrap();
    let [first, steady] = import_training(&captured).unwrap_or_else(|e| panic!("{e}"));
    let programs = [forms(&first), forms(&steady)];
    // Both programs keep parameters and states in the same layout.
    let [a, b] = programs.each_ref().map(|forms| layouts(&forms[1].1));
    assert_eq!(a, b);
    let device = Device::flex().autodiff();
    let mut eager = model.clone().train();
    let mut module_optimizer = ModuleOptimizer::from(optimizer);
    let mut states: [Values; 2] = [(); 2].map(|()| initial(&captured.first, &first));
    for number in 1..=3 {
        let lr = [0.02, 0.01, 0.03][number - 1];
        let data = numbers(shape, number as u64);
        let value = loss(&eager, Tensor::from_data(data.clone(), &device));
        let mut expected = HashMap::from([(OutputKind::Loss, value.clone().into_data())]);
        let gradients = GradientsParams::from_grads(value.backward(), &eager);
        let mut visitor = Eager { path: Vec::new(), gradients: &gradients, found: HashMap::new() };
        eager.visit(&mut visitor);
        expected.extend(visitor.found);
        eager = module_optimizer.step(lr, eager, gradients);
        let mut visitor = Updated { path: Vec::new(), found: HashMap::new() };
        eager.visit(&mut visitor);
        expected.extend(visitor.found);

        let scalars = captured.scalars.values(number, lr).unwrap();
        for ((name, graph), state) in programs[number.min(2) - 1].iter().zip(&mut states) {
            state.extend(step(number, &scalars));
            state.insert(InputId::Data("input0".into()), tensor(&data));
            let found = run(graph, state);
            let gradients = found.keys().filter(|k| matches!(k, OutputKind::Gradient(_))).count();
            assert!(gradients > 0, "nothing is trained");
            for (kind, value) in &found {
                // States of the optimizer are checked through their effect on the parameters.
                let what = format!("{name} step {number} {kind:?}");
                match (kind, expected.get(kind)) {
                    (OutputKind::Update(InputId::Parameter(name)), Some(updated)) => {
                        let gradient = expected.get(&OutputKind::Gradient(name.clone()));
                        // The gradient of a key's bias is zero in theory (a softmax does not depend on it): the update
                        // that Adam computes from its rounding errors is noise, of at most about one learning rate per
                        // step.
                        let noise = if name.to_string().ends_with("key.bias") { 0.03 * number as f64 } else { 0.0 };
                        let amplified = amplified(gradient, lr * number as f64);
                        close_within(value, updated, |i| amplified(i) + noise, &what);
                    }
                    (_, Some(expected)) => {
                        // Later steps start from parameters in which these updates already differ: from there on, the
                        // conformance tolerance of 1e-4 applies.
                        let largest = tensor(expected).data.iter().fold(0.01f64, |m, x| m.max(x.abs()));
                        let drift = if number > 1 { 9e-5 * largest } else { 0.0 };
                        close_within(value, expected, |_| drift, &what);
                    }
                    (kind, None) => {
                        assert!(matches!(kind, OutputKind::Update(InputId::State { .. })), "{kind:?}");
                    }
                }
            }
            advance(state, &found);
        }
    }
}

/// Checks a forward pass, and training toward a target that differs for every element.
fn check<M: Module, const D: usize, const K: usize>(
    model: M,
    shape: [usize; D],
    forward: impl Fn(&M, Tensor<D>) -> Tensor<K>,
) {
    let model = model.map(&mut Settled(11));
    check_inference(&model, shape, &forward);
    check_training(&model, shape, |m, x| toward(forward(m, x)));
}

/// A loss whose gradient differs for every element.
fn toward<const K: usize>(y: Tensor<K>) -> Tensor<1> {
    let target = Tensor::<K>::from_data(numbers(y.dims(), 77), &y.device());
    (y - target).powi_scalar(2).mean()
}

// ---------------------------------------------------------------------------------------------------------------------
// Convolutions

#[derive(Module, Debug)]
struct ConvNet {
    first: Conv2d,
    second: Conv2d,
    third: Conv2d,
    head: Linear,
}

#[test]
fn a_convolutional_network() {
    let device = Device::flex();
    let model = ConvNet {
        first: Conv2dConfig::new([3, 4], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(&device),
        second: Conv2dConfig::new([4, 6], [3, 2])
            .with_stride([2, 2])
            .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            .with_groups(2)
            .init(&device),
        third: Conv2dConfig::new([6, 6], [2, 2]).with_dilation([2, 1]).with_groups(6).with_bias(false).init(&device),
        head: LinearConfig::new(6, 3).init(&device),
    };
    let pool = MaxPool2dConfig::new([2, 2]).init();
    let mean = AdaptiveAvgPool2dConfig::new([1, 1]).init();
    check(model, [2, 3, 10, 12], |m, x| {
        let x = pool.forward(activation::relu(m.first.forward(x)));
        let x = activation::relu(m.second.forward(x));
        let x = mean.forward(m.third.forward(x));
        m.head.forward(x.flatten::<2>(1, 3))
    });
}

/// The dimensions that the taps slice are spatial: batches stay sharded throughout.
#[test]
fn convolutions_and_poolings_are_sharded_over_the_batch() {
    let model = Conv2dConfig::new([2, 4], [3, 3]).with_stride([2, 2]).with_groups(2).init(&Device::flex());
    let pool = MaxPool2dConfig::new([2, 2]).init();
    let captured = capture_training(&model, &AdamConfig::new().build(), Spec::new([4, 2, 9, 9], DType::F32), |m, x| {
        pool.forward(m.forward(x)).powi_scalar(2).mean()
    })
    .unwrap();
    let [first, _] = import_training(&captured).unwrap();
    let logical = canonicalize(&first.graph);
    let annotations = annotate(&logical, &Mesh::parse("dp=2").unwrap(), &Plan::new().ddp("dp")).unwrap();
    let placed = propagate(&logical, &annotations, Target::cpu());
    check_placed(&placed).unwrap();
    for node in placed.nodes().filter(|&n| placed.node(n).op.is_collective()) {
        assert!(matches!(placed.node(node).op, Op::AllReduce { .. }), "{}", tpc_ir::text::print(&placed));
    }
    let feed = inputs(&logical, 1, &HashMap::new());
    assert!(difference(&reference(&logical, &feed), &on_ranks(&placed, &feed)) < 1e-9);
}

/// A convolution after another, so that its input has a gradient.
fn stacked_2d(c: Conv2dConfig, size: [usize; 2]) {
    let device = Device::flex();
    let channels = c.channels;
    let model: (Conv2d, Conv2d) =
        (Conv2dConfig::new([channels[0], channels[0]], [1, 1]).init(&device), c.init(&device));
    check(model, [2, channels[0], size[0], size[1]], |m, x| m.1.forward(m.0.forward(x).tanh()));
}

#[test]
fn convolutions_2d() {
    stacked_2d(Conv2dConfig::new([2, 3], [1, 1]), [3, 4]);
    stacked_2d(Conv2dConfig::new([2, 3], [3, 3]), [5, 4]);
    stacked_2d(Conv2dConfig::new([2, 3], [2, 3]).with_stride([2, 3]), [7, 8]);
    stacked_2d(Conv2dConfig::new([2, 3], [3, 3]).with_padding(PaddingConfig2d::Explicit(0, 1, 2, 1)), [4, 5]);
    stacked_2d(Conv2dConfig::new([4, 6], [3, 3]).with_groups(2).with_stride([2, 1]).with_dilation([1, 2]), [7, 8]);
    stacked_2d(Conv2dConfig::new([2, 3], [3, 3]).with_padding(PaddingConfig2d::Same), [4, 4]);
    // The windows of the first output do not overlap, and some inputs are in no window.
    stacked_2d(Conv2dConfig::new([2, 2], [2, 2]).with_stride([3, 3]), [9, 7]);
}

#[test]
fn convolutions_1d() {
    let device = Device::flex();
    // With groups and a stride, burn 0.22.1 computes a wrong weight gradient for a 1-d convolution whose last elements
    // are in no window (it does not trim what its 2-d version does). Therefore the windows end with the input here.
    for config in [
        Conv1dConfig::new(4, 6, 3).with_stride(3),
        Conv1dConfig::new(4, 6, 3).with_padding(PaddingConfig1d::Explicit(1, 1)),
        Conv1dConfig::new(4, 6, 3).with_stride(2).with_groups(2),
        Conv1dConfig::new(4, 6, 2).with_dilation(3).with_padding(PaddingConfig1d::Explicit(2, 1)),
        Conv1dConfig::new(4, 4, 5).with_groups(4).with_bias(false).with_padding(PaddingConfig1d::Same),
    ] {
        let model: (Conv1d, Conv1d) = (Conv1dConfig::new(3, 4, 2).init(&device), config.init(&device));
        check(model, [2, 3, 10], |m, x| m.1.forward(activation::gelu(m.0.forward(x))));
    }
}

#[test]
fn convolutions_3d() {
    let device = Device::flex();
    let config =
        Conv3dConfig::new([2, 2], [2, 3, 2]).with_stride([1, 2, 1]).with_padding(PaddingConfig3d::Explicit(1, 0, 1));
    let model = (Conv3dConfig::new([1, 2], [1, 1, 1]).init(&device), config.init(&device));
    check(model, [1, 1, 3, 5, 3], |m, x| m.1.forward(m.0.forward(x)));
}

#[test]
fn transposed_convolutions() {
    let device = Device::flex();
    let config = ConvTranspose2dConfig::new([4, 6], [3, 2])
        .with_stride([2, 1])
        .with_padding([1, 0])
        .with_padding_out([1, 0])
        .with_groups(2);
    let model = (Conv2dConfig::new([4, 4], [1, 1]).init(&device), config.init(&device));
    check(model, [2, 4, 3, 4], |m, x| m.1.forward(m.0.forward(x)));
    let config = ConvTranspose1dConfig::new([3, 2], 3).with_stride(2).with_dilation(2);
    let model = (Conv1dConfig::new(2, 3, 1).init(&device), config.init(&device));
    check(model, [2, 2, 4], |m, x| m.1.forward(m.0.forward(x)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Poolings

fn pooled_2d<const K: usize>(size: [usize; 2], pool: impl Fn(Tensor<4>) -> Tensor<K>) {
    let model = Conv2dConfig::new([2, 3], [2, 2]).init(&Device::flex());
    check(model, [2, 2, size[0] + 1, size[1] + 1], |m, x| pool(m.forward(x)));
}

fn pooled_1d<const K: usize>(size: usize, pool: impl Fn(Tensor<3>) -> Tensor<K>) {
    let model = Conv1dConfig::new(2, 3, 2).init(&Device::flex());
    check(model, [2, 2, size + 1], |m, x| pool(m.forward(x)));
}

#[test]
fn average_poolings() {
    for include in [true, false] {
        for ceil in [true, false] {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            let config = AvgPool2dConfig::new([3, 2]).with_strides([2, 3]).with_padding(padding);
            let pool = config.with_count_include_pad(include).with_ceil_mode(ceil).init();
            pooled_2d([6, 6], |x| pool.forward(x));
            let config = AvgPool1dConfig::new(3).with_stride(2).with_padding(PaddingConfig1d::Explicit(1, 1));
            let pool = config.with_count_include_pad(include).with_ceil_mode(ceil).init();
            pooled_1d(6, |x| pool.forward(x));
        }
    }
    let pool = AvgPool2dConfig::new([2, 2]).with_strides([2, 2]).init();
    pooled_2d([4, 6], |x| pool.forward(x));
}

#[test]
fn maximum_poolings() {
    for ceil in [true, false] {
        let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
        let config = MaxPool2dConfig::new([3, 2]).with_strides([2, 3]).with_padding(padding).with_ceil_mode(ceil);
        let pool = config.init();
        pooled_2d([6, 6], |x| pool.forward(x));
        // Equal elements: one of them gets the gradient.
        pooled_2d([6, 6], |x| pool.forward(activation::relu(x)));
        let config = MaxPool1dConfig::new(3).with_stride(2).with_padding(PaddingConfig1d::Explicit(1, 1));
        let pool = config.with_dilation(2).with_ceil_mode(ceil).init();
        pooled_1d(8, |x| pool.forward(activation::relu(x)));
    }
}

#[test]
fn a_maximum_over_a_window_wider_than_its_row() {
    let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
    let pool = MaxPool2dConfig::new([3, 3]).with_strides([1, 1]).with_padding(padding).init();
    pooled_2d([4, 2], |x| pool.forward(x));
}

#[test]
fn adaptive_poolings() {
    let pool = AdaptiveAvgPool2dConfig::new([2, 3]).init();
    pooled_2d([4, 6], |x| pool.forward(x));
    let pool = AdaptiveAvgPool1dConfig::new(1).init();
    pooled_1d(5, |x| pool.forward(x));
    let pool = AdaptiveAvgPool1dConfig::new(3).init();
    pooled_1d(6, |x| pool.forward(x));
}

// ---------------------------------------------------------------------------------------------------------------------
// Other modules

#[test]
fn recurrent_networks() {
    let device = Device::flex();
    let model = LstmConfig::new(3, 4, true).init(&device);
    check(model, [2, 3, 3], |m, x| m.forward(x, None).0);
    let model = BiLstmConfig::new(3, 4, true).init(&device);
    check(model, [2, 3, 3], |m, x| m.forward(x, None).0);
    let model = GruConfig::new(3, 4, true).init(&device);
    check(model, [2, 3, 3], |m, x| m.forward(x, None));
    let model = GruConfig::new(3, 4, false).with_reset_after(false).init(&device);
    check(model, [2, 2, 3], |m, x| m.forward(x, None));
}

#[test]
fn norms() {
    let device = Device::flex();
    check(GroupNormConfig::new(2, 6).init(&device), [2, 6, 3, 2], |m, x| m.forward(x));
    check(InstanceNormConfig::new(3).init(&device), [2, 3, 4], |m, x| m.forward(x));
    check(RmsNormConfig::new(5).init(&device), [2, 3, 5], |m, x| m.forward(x));
    check_inference(&BatchNormConfig::new(3).init(&device), [2, 3, 4], |m, x| m.forward(x));
}

#[test]
fn transformers() {
    let device = Device::flex();
    for norm_first in [true, false] {
        let config = TransformerEncoderConfig::new(4, 8, 2, 1).with_dropout(0.0).with_norm_first(norm_first);
        check(config.init(&device), [2, 3, 4], |m, x| m.forward(TransformerEncoderInput::new(x)));
    }
    let model = TransformerEncoderConfig::new(4, 8, 2, 1).with_dropout(0.0).with_quiet_softmax(true).init(&device);
    check(model, [2, 3, 4], |m, x| {
        let mask = Tensor::<1, Int>::from_data([0, 0, 1, 0, 1, 1], &x.device()).bool().reshape([2, 3]);
        let attention = burn::nn::attention::generate_autoregressive_mask(2, 3, &x.device());
        m.forward(TransformerEncoderInput::new(x).mask_pad(mask).mask_attn(attention))
    });
    let model = TransformerDecoderConfig::new(4, 8, 2, 1).with_dropout(0.0).init(&device);
    check(model, [2, 3, 4], |m, x| m.forward(TransformerDecoderInput::new(x.clone(), x.flip([1]))));
}

#[test]
fn attention_as_one_operation() {
    let model = LinearConfig::new(4, 12).init(&Device::flex());
    for (causal, softcap, scale) in [(false, None, None), (true, Some(2.0), Some(0.7))] {
        check(model.clone(), [2, 3, 4], |m, x| {
            let heads = m.forward(x).reshape([2, 3, 3, 2, 2]).permute([2, 0, 3, 1, 4]);
            let [q, k, v] = [0, 1, 2].map(|i| heads.clone().slice(i..i + 1).squeeze_dim::<4>(0));
            let mask = Tensor::<4, Int>::from_data([[[[0, 0, 1]]], [[[0, 1, 0]]]], &q.device()).bool();
            let mask: Tensor<4, Bool> = mask.expand([2, 2, 3, 3]);
            let bias = Tensor::<4>::from_data(numbers([2, 2, 3, 3], 3), &q.device());
            let options = AttentionModuleOptions { scale, softcap, is_causal: causal };
            module::attention(q, k, v, Some(mask), Some(bias), options)
        });
    }
}

#[test]
fn encodings() {
    let device = Device::flex();
    let linear = || LinearConfig::new(8, 8).init(&device);
    let model = (linear(), PositionalEncodingConfig::new(8).with_max_sequence_size(16).init(&device));
    check(model, [2, 3, 8], |m, x| m.1.forward(m.0.forward(x)));
    let model = (linear(), RotaryEncodingConfig::new(16, 4).init(&device));
    check(model, [2, 3, 8], |m, x| m.1.forward(m.0.forward(x).reshape([2, 3, 2, 4]).swap_dims(1, 2)));
}

#[test]
fn activations() {
    let device = Device::flex();
    check(SwiGluConfig::new(4, 6).with_bias(true).init(&device), [2, 3, 4], |m, x| m.forward(x));
    check((LinearConfig::new(4, 4).init(&device), PReluConfig::new().init(&device)), [3, 4], |m, x| {
        m.1.forward(m.0.forward(x))
    });
    let linear = || LinearConfig::new(4, 6).init(&device);
    let each: [fn(Tensor<2>) -> Tensor<2>; 16] = [
        activation::relu,
        activation::gelu,
        activation::gelu_approximate,
        activation::silu,
        activation::sigmoid,
        activation::log_sigmoid,
        activation::tanh,
        activation::mish,
        activation::hard_swish,
        |x| activation::leaky_relu(x, 0.1),
        |x| activation::elu(x, 1.0),
        |x| activation::softplus(x, 1.0),
        |x| activation::softmax(x, 1),
        |x| activation::log_softmax(x, 1),
        |x| activation::softmin(x, 1),
        |x| activation::hard_sigmoid(x, 0.2, 0.5),
    ];
    for f in each {
        check(linear(), [3, 4], |m, x| f(m.forward(x)));
    }
    check(linear(), [3, 4], |m, x| activation::glu(m.forward(x), 1));
}

#[test]
fn losses() {
    let device = Device::flex();
    let linear = || LinearConfig::new(4, 3).init(&device).map(&mut Settled(11));
    let targets = |x: &Tensor<2>| Tensor::<1, Int>::from_data([2, 0, 1, 1, 2], &x.device());
    check_training(&linear(), [5, 4], |m, x| {
        let targets = targets(&x);
        CrossEntropyLossConfig::new().init(&x.device()).forward(m.forward(x), targets)
    });
    check_training(&linear(), [5, 4], |m, x| {
        let targets = targets(&x);
        let config = CrossEntropyLossConfig::new().with_smoothing(Some(0.1)).with_pad_tokens(Some(vec![1]));
        config.init(&x.device()).forward(m.forward(x), targets)
    });
    check_training(&linear(), [5, 4], |m, x| {
        let targets = targets(&x);
        let config = CrossEntropyLossConfig::new().with_weights(Some(vec![0.5, 1.0, 2.0]));
        config.init(&x.device()).forward(m.forward(x), targets)
    });
    for reduction in [Reduction::Mean, Reduction::Sum] {
        check_training(&linear(), [5, 4], |m, x| {
            let target = Tensor::from_data(numbers([5, 3], 5), &x.device());
            MseLoss::new().forward(m.forward(x), target, reduction.clone())
        });
        check_training(&linear(), [5, 4], |m, x| {
            let target = Tensor::from_data(numbers([5, 3], 5), &x.device());
            HuberLossConfig::new(0.5).init().forward(m.forward(x), target, reduction.clone())
        });
    }
}

#[test]
fn other_losses() {
    let model = LinearConfig::new(4, 3).init(&Device::flex());
    let bits = |x: &Tensor<2>| Tensor::<2, Int>::from_data([[1, 0, 1], [0, 0, 1]], &x.device());
    for logits in [true, false] {
        check_training(&model, [2, 4], |m, x| {
            let (bits, y) = (bits(&x), m.forward(x));
            let y = if logits { y } else { activation::sigmoid(y) };
            BinaryCrossEntropyLossConfig::new().with_logits(logits).init(&y.device()).forward(y, bits)
        });
    }
    check_training(&model, [2, 4], |m, x| {
        let target = activation::softmax(Tensor::<2>::from_data(numbers([2, 3], 4), &x.device()), 1);
        KLDivLossConfig::new().init().forward(activation::log_softmax(m.forward(x), 1), target, Reduction::BatchMean)
    });
    check_training(&model, [2, 4], |m, x| {
        let bits = bits(&x).float();
        SmoothL1LossConfig::new().init().forward_with_reduction(m.forward(x), bits, Reduction::Mean)
    });
}

#[test]
fn embeddings_and_dropout() {
    let device = Device::flex();
    let model = (EmbeddingConfig::new(7, 4).init(&device), DropoutConfig::new(0.0).init());
    check(model, [2, 4], |m, x| {
        let tokens = Tensor::<2, Int>::from_data([[1, 0], [6, 3]], &x.device());
        m.1.forward(m.0.forward(tokens)).sum_dim(1).squeeze_dim::<2>(1) * x
    });
}

#[test]
fn dropout_is_a_function_of_the_seed() {
    let model = (LinearConfig::new(4, 50).init(&Device::flex()), DropoutConfig::new(0.5).init());
    let captured =
        capture_training(&model, &AdamConfig::new().build(), Spec::new([8, 4], DType::F32), |m, x: Tensor<2>| {
            let y = m.1.forward(m.0.forward(x));
            (y.clone().powi_scalar(2).mean(), y)
        })
        .unwrap();
    let [first, _] = import_training(&captured).unwrap();
    let forms = forms(&first);
    let mut values = initial(&captured.first, &first);
    values.extend(step(1, &[0.1; 8]));
    values.insert(InputId::Data("input0".into()), tensor(&numbers([8, 4], 1)));
    let output = OutputKind::Result("output0".into());
    let dropped = run(&forms[0].1, &values)[&output].clone();
    let zeros = dropped.data.iter().filter(|&&x| x == 0.0).count();
    assert!((120..280).contains(&zeros), "{zeros} of 400");
    assert_eq!(dropped, run(&forms[1].1, &values)[&output]);
    values.extend(step(2, &[0.1; 8]));
    assert_ne!(dropped, run(&forms[0].1, &values)[&output]);
}

#[test]
fn tensor_operations() {
    let device = Device::flex();
    let linear = || LinearConfig::new(4, 6).init(&device);
    type Case = (&'static str, fn(Tensor<2>) -> Tensor<2>);
    let each: Vec<Case> = vec![
        ("sort", |x| x.sort(1)),
        ("max dim", |x| x.max_dim(1)),
        ("min dim", |x| x.min_dim(0)),
        ("prod dim", |x| x.prod_dim(1)),
        ("cumsum", |x| x.cumsum(1)),
        ("var", |x| x.var(1)),
        ("abs", |x| x.abs()),
        ("clamp", |x| x.clamp(-0.3, 0.4)),
        ("exp", |x| x.exp()),
        ("log1p", |x| x.abs().log1p()),
        ("sqrt", |x| (x.abs() + 0.1).sqrt()),
        ("recip", |x| (x.abs() + 0.1).recip()),
        ("sin", |x| x.sin()),
        ("cos", |x| x.cos()),
        ("erf", |x| x.erf()),
        ("sinh", |x| x.sinh()),
        ("cosh", |x| x.cosh()),
        ("tan", |x| x.tan()),
        ("sign", |x| x.clone().sign() * x),
        ("powf", |x| x.abs().powf_scalar(1.5)),
        ("powf tensor", |x| x.clone().abs().powf(x)),
        ("flip", |x| x.flip([0, 1])),
        ("slice", |x| x.slice([0..2, 1..4])),
        ("strided slice", |x| x.slice(burn::tensor::s![.., 1..6;2])),
        ("repeat", |x| x.repeat_dim(1, 3)),
        ("cat", |x| Tensor::cat(vec![x.clone().slice([0..3, 0..2]), x], 1)),
        ("stack", |x| Tensor::stack::<3>(vec![x.clone(), x.tanh()], 1).reshape([6, 6])),
        ("chunk", |x| {
            let parts = x.chunk(3, 1);
            parts[0].clone() * parts[2].clone() + parts[1].clone()
        }),
        ("triu", |x| x.triu(0)),
        ("tril", |x| x.tril(-1)),
        ("mask fill", |x| x.clone().mask_fill(x.greater_elem(0.2), 0.5)),
        ("mask where", |x| x.clone().mask_where(x.clone().lower_elem(0.1), x.powi_scalar(3))),
        ("select", |x| {
            let index = Tensor::<1, Int>::from_data([3, 0, 3], &x.device());
            x.select(1, index)
        }),
        ("gather", |x| {
            let index = Tensor::<2, Int>::from_data([[3, 0], [1, 1], [5, 2]], &x.device());
            x.gather(1, index)
        }),
        ("slice assign", |x| {
            let part = x.clone().slice([0..2, 2..4]) * 2.0;
            x.slice_assign([1..3, 0..2], part)
        }),
        ("norm", |x| x.clone() / x.powi_scalar(2).sum_dim(1).sqrt()),
        ("top k", |x| x.topk(2, 1)),
        ("argmax", |x| x.clone() * x.argmax(1).float()),
        ("floor", |x| x.clone() * x.floor()),
        ("trunc", |x| x.clone() * (x * 3.0).trunc()),
        ("maximum", |x| x.clone().max_pair(x.flip([1]))),
        ("is inf", |x| x.clone() * x.is_inf().float() + 1.0),
        ("any", |x| x.clone() * x.clone().greater_elem(1.0).any_dim(1).float()),
        ("all", |x| x.clone() * x.clone().lower_elem(1.0).all_dim(0).float()),
        ("max abs", |x| x.clone() / x.max_abs_dim(1)),
        ("pad", |x| x.pad((1, 0, 2, 1), 0.5)),
        ("pad by reflection", |x| x.pad((2, 1, 1, 2), PadMode::Reflect)),
        ("pad by the edge", |x| x.pad((2, 1, 1, 2), PadMode::Edge)),
        ("unfold", |x| x.unfold::<3, _>(1, 3, 2).reshape([3, 6])),
        ("remainder", |x| x.remainder_scalar(0.3)),
    ];
    let mut failed = Vec::new();
    for (name, f) in each {
        let run = || check(linear(), [3, 4], |m, x| f(m.forward(x)));
        if let Err(e) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            let text = e.downcast_ref::<String>().cloned().unwrap_or_default();
            failed.push(format!("{name}: {text}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_only_row_of_a_table_keeps_its_extent() {
    let model = LinearConfig::new(4, 6).init(&Device::flex());
    check(model, [3, 4], |m, x| {
        let row = m.forward(x).slice([1..2, 0..6]);
        let rows = row.clone().select(0, Tensor::<1, Int>::from_data([0, 0], &row.device()));
        Tensor::cat(vec![rows, row.flip([0])], 0)
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors

#[test]
fn an_unsupported_operation_is_named_with_its_module() {
    let model = LinearConfig::new(4, 4).init(&Device::flex());
    let captured = capture_inference(&model, Spec::new([3, 4], DType::F32), |m: &Linear, x: Tensor<2>| {
        tpc::scope("middle", m.forward(x), |x| x.cumprod(1))
    })
    .unwrap();
    let message = import(&captured).unwrap_err().to_string();
    assert!(message.contains("`middle`") && message.contains("NumericFloat.CumProd"), "{message}");
}
