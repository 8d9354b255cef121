//! Layouts at module boundaries, sequence parallelism, user-defined styles, `parallelize_module` and plan files.

use burn::module::{Module, Param};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d,
    ConvTranspose2dConfig,
};
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor, TensorData, activation};
use std::collections::BTreeMap;
use tpc::Graph;
use tpc_compiler::program::CompileOptions;
use tpc_ir::reason::Side;
use tpc_ir::{Phase, Region, Value};
use tpc_passes::styles::modules::Role;
use tpc_passes::styles::plan::MeshDim;
use tpc_passes::styles::prepare::Prepare;
use tpc_passes::styles::regions::Regions;
use tpc_passes::styles::style::{Module as StyledModule, Placements};
use tpc_passes::styles::{
    ColwiseParallel, Layout, PairwiseParallel, PairwiseSequenceParallel, ParallelStyle, Plan, PrepareModuleInput,
    PrepareModuleInputOutput, PrepareModuleOutput, RowwiseParallel, SequenceParallel, TensorParallelMultiheadAttention,
};
use tpc_passes::styles::{Direction, StyleError, parallelize_module};
use tpc_tests::eager::filled;
use tpc_tests::styles::{Case, floats};
use tpc_tests::training::mesh;

const X: [usize; 3] = [4, 6, 8];
const ACTIVATION: usize = 4 * 6 * 8 * 4;
const MESHES: [&str; 3] = ["tp=2", "tp=3", "tp=4"];

const R: Option<Layout> = Some(Layout::Replicate);

const fn s(dim: isize) -> Option<Layout> {
    Some(Layout::Shard(dim))
}

fn x(data: &[TensorData], device: &Device) -> Tensor<3> {
    Tensor::from_data(data[0].clone(), device)
}

fn linear(from: usize, to: usize) -> Linear {
    LinearConfig::new(from, to).init(&Device::flex())
}

// ---------------------------------------------------------------------------------------------------------------------
// Boundaries that parameters show

#[derive(Module, Debug)]
struct Pair {
    net1: Linear,
    net2: Linear,
}

impl Pair {
    fn new() -> Self {
        Pair { net1: linear(8, 14), net2: linear(14, 8) }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.net2.forward(activation::relu(self.net1.forward(x)))
    }
}

#[derive(Module, Debug)]
struct Block {
    norm1: LayerNorm,
    attn: MultiHeadAttention,
    norm2: RmsNorm,
    mlp: Pair,
}

fn block() -> Case<Block, Tensor<3>, 3> {
    let d = &Device::flex();
    let model = Block {
        norm1: LayerNormConfig::new(8).init(d),
        attn: MultiHeadAttentionConfig::new(8, 4).with_dropout(0.0).init(d),
        norm2: RmsNormConfig::new(8).init(d),
        mlp: Pair::new(),
    };
    let forward = |m: &Block, x: Tensor<3>| {
        let x = x.clone() + m.attn.forward(MhaInput::self_attn(m.norm1.forward(x))).context;
        x.clone() + m.mlp.forward(m.norm2.forward(x))
    };
    Case { model: filled(model, 0.8), data: vec![floats("x", &X)], batch: x, forward }
}

fn inputs(declared: &[Option<Layout>], desired: &[Option<Layout>]) -> PrepareModuleInput {
    PrepareModuleInput { input_layouts: declared.into(), desired_input_layouts: desired.into() }
}

fn outputs(declared: &[Option<Layout>], desired: &[Option<Layout>]) -> PrepareModuleOutput {
    PrepareModuleOutput { output_layouts: declared.into(), desired_output_layouts: desired.into() }
}

#[test]
fn boundaries_of_an_mlp() {
    let pair = || Case {
        model: filled(Pair::new(), 0.8),
        data: vec![floats("x", &X)],
        batch: x,
        forward: |m: &Pair, x| m.forward(x),
    };
    let case = pair();
    let expected = case.eager();
    let cut = || Plan::new().with("net1", ColwiseParallel::default()).with("net2", RowwiseParallel::default());
    let rows = [
        (cut().with("", inputs(&[s(1)], &[R])), "f32[4, 6@tp, 8]", "f32[4, 6, 8]", 3),
        (cut().with("", inputs(&[s(0)], &[R])), "f32[4@tp, 6, 8]", "f32[4, 6, 8]", 3),
        (cut().with("", inputs(&[s(-1)], &[])), "f32[4, 6, 8@tp]", "f32[4, 6, 8]", 3),
        (cut().with("", inputs(&[], &[s(1)])), "f32[4, 6@tp, 8]", "f32[4, 6, 8]", 3),
        (cut().with("", outputs(&[], &[s(1)])), "f32[4, 6, 8]", "f32[4, 6@tp, 8]", 1),
        (cut().with("", outputs(&[R], &[s(0)])), "f32[4, 6, 8]", "f32[4@tp, 6, 8]", 2),
        (cut().with("", outputs(&[s(0)], &[s(-1)])), "f32[4, 6, 8]", "f32[4, 6, 8@tp]", 2),
        (cut().with("", outputs(&[s(1)], &[R])), "f32[4, 6, 8]", "f32[4, 6, 8]", 2),
        (
            cut().with("", PrepareModuleInputOutput { inputs: inputs(&[s(1)], &[R]), outputs: outputs(&[], &[s(1)]) }),
            "f32[4, 6@tp, 8]",
            "f32[4, 6@tp, 8]",
            2,
        ),
    ];
    for (plan, input, y, forward) in rows {
        for on in MESHES {
            let seen = case.equals(&expected, &plan, on);
            seen.lies(&[
                ("input0", input),
                ("y", y),
                ("net1.weight", "f32[8, 14@tp]"),
                ("net2.weight", "f32[14@tp, 8]"),
            ]);
            seen.together(ACTIVATION, forward + 1);
        }
    }
}

#[test]
fn boundaries_of_an_attention() {
    let case = block();
    let expected = case.eager();
    // The parts of the attention individually, and its boundary as a whole.
    let parts = Plan::new()
        .with("attn.{query,key,value}", ColwiseParallel::default())
        .with("attn.output", RowwiseParallel::default());
    for (style, forward, backward) in [
        (PrepareModuleInputOutput { inputs: inputs(&[s(1)], &[R]), outputs: outputs(&[], &[s(1)]) }, 4, 4),
        (PrepareModuleInputOutput { inputs: inputs(&[R], &[]), outputs: outputs(&[], &[R]) }, 2, 2),
        (PrepareModuleInputOutput { inputs: inputs(&[s(0)], &[R]), outputs: outputs(&[s(-1)], &[s(0)]) }, 5, 5),
    ] {
        let plan = parts.clone().with("attn", style);
        for on in MESHES {
            let seen = case.equals(&expected, &plan, on);
            seen.lies(&[("attn.query.weight", "f32[8, 4@tp, 2]"), ("mlp.net1.weight", "f32[8, 14]")]);
            seen.together(ACTIVATION, forward + backward);
        }
    }
}

#[derive(Module, Debug)]
struct Images {
    first: Conv2d,
    point: Conv2d,
    up: ConvTranspose2d,
}

fn images(data: &[TensorData], device: &Device) -> Tensor<4> {
    Tensor::from_data(data[0].clone(), device)
}

/// A convolution is one recorded operation, so its input and output are known: for a strided one after a pad of the
/// model, one with a single tap, and a transposed one.
fn convolutions() -> Case<Images, Tensor<4>, 4> {
    let d = &Device::flex();
    let model = Images {
        first: Conv2dConfig::new([6, 10], [3, 2]).with_stride([1, 2]).init(d),
        point: Conv2dConfig::new([10, 6], [1, 1]).init(d),
        up: ConvTranspose2dConfig::new([6, 6], [2, 2]).with_stride([2, 2]).init(d),
    };
    let forward = |m: &Images, x: Tensor<4>| {
        let padded = x.pad((1, 1, 1, 1), 0.5);
        m.up.forward(activation::tanh(m.point.forward(activation::relu(m.first.forward(padded)))))
    };
    Case { model: filled(model, 0.8), data: vec![floats("x", &[6, 6, 8, 10])], batch: images, forward }
}

#[test]
fn boundaries_of_convolutions() {
    let case = convolutions();
    let expected = case.eager();
    let both = |i, o| PrepareModuleInputOutput { inputs: inputs(&[i], &[R]), outputs: outputs(&[], &[o]) };
    for (plan, y) in [
        (Plan::new().with("up", outputs(&[], &[s(0)])), "f32[6@tp, 6, 16, 12]"),
        (Plan::new().with("up", outputs(&[R], &[s(1)])), "f32[6, 6@tp, 16, 12]"),
        (Plan::new().with("up", both(s(2), s(-1))), "f32[6, 6, 16, 12@tp]"),
        (Plan::new().with("point", both(s(0), s(1))).with("up", outputs(&[], &[R])), "f32[6, 6, 16, 12]"),
        (Plan::new().with("first", inputs(&[s(0)], &[s(0)])).with("up", outputs(&[], &[s(0)])), "f32[6@tp, 6, 16, 12]"),
        // The whole model begins with the first convolution and ends with the last.
        (Plan::new().with("", outputs(&[], &[s(0)])), "f32[6@tp, 6, 16, 12]"),
        (
            Plan::new()
                .with("first", ColwiseParallel { input_layouts: s(0), output_layouts: s(1), ..Default::default() })
                .with("point", RowwiseParallel { input_layouts: s(1), output_layouts: s(0), ..Default::default() })
                .with("up", ColwiseParallel { input_layouts: s(0), output_layouts: s(1), ..Default::default() }),
            "f32[6, 6@tp, 16, 12]",
        ),
    ] {
        for on in MESHES {
            case.equals(&expected, &plan, on).lies(&[("y", y)]);
        }
    }
    // A demand on a convolution applies to the convolution itself: if it takes shards of the batch, it gathers only the
    // gradients of its weights, whatever precedes it.
    let plan = Plan::new().with(
        "{first,point,up}",
        PrepareModuleInputOutput { inputs: inputs(&[], &[s(0)]), outputs: outputs(&[], &[s(0)]) },
    );
    for on in MESHES {
        let seen = case.equals(&expected, &plan, on);
        seen.at_most(6 * 6 * 8 * 10 * 4, 0, 0);
    }
}

/// PyTorch's default for a row-wise input is its last dimension, which for an image is not that of the channels.
#[test]
fn a_row_wise_convolution_takes_shards_of_the_channels() {
    let rows = RowwiseParallel { input_layouts: R, ..Default::default() };
    for module in ["first", "point", "up"] {
        let plan = Plan::new().with(module, rows.clone());
        let found = convolutions().compiled(&plan, "tp=2", &CompileOptions::for_cpu()).unwrap().first.annotations;
        let whys = |shard: &str| found.uses.values().flatten().filter(|c| c.why.to_string().ends_with(shard)).count();
        assert!(whys("argument 0 is Shard(1)") > 0, "{module}");
        assert_eq!(whys("argument 0 is Shard(-1)"), 0, "{module}");
    }
}

#[derive(Module, Debug)]
struct Lines {
    down: Conv1d,
    up: ConvTranspose1d,
}

/// A convolution that is called several times gets its layouts in each call.
#[test]
fn every_call_of_a_convolution() {
    let d = &Device::flex();
    let model = Lines { down: Conv1dConfig::new(6, 6, 3).init(d), up: ConvTranspose1dConfig::new([6, 6], 3).init(d) };
    let case: Case<Lines, Tensor<3>, 3> = Case {
        model: filled(model, 0.8),
        data: vec![floats("x", &[4, 6, 9])],
        batch: x,
        forward: |m, x| {
            let x = activation::tanh(m.down.forward(activation::relu(m.down.forward(x))));
            m.up.forward(activation::tanh(m.up.forward(x)))
        },
    };
    let expected = case.eager();
    let columns =
        |l| Plan::new().with("*", ColwiseParallel { input_layouts: R, output_layouts: l, ..Default::default() });
    let rows = |l| Plan::new().with("*", RowwiseParallel { input_layouts: R, output_layouts: l, ..Default::default() });
    for on in MESHES {
        for style in [&columns as &dyn Fn(Option<Layout>) -> Plan, &rows] {
            case.equals(&expected, &style(s(0)), on).lies(&[("y", "f32[4@tp, 6, 9]")]);
            case.equals(&expected, &style(R), on).lies(&[("y", "f32[4, 6, 9]")]);
        }
    }
    let program = case.compiled(&columns(s(0)), "tp=2", &CompileOptions::for_cpu()).unwrap().first;
    assert_eq!(prepared_results(&program.annotations), 4);
}

/// How many values are prepared as the result of a module.
fn prepared_results(found: &tpc_passes::styles::Annotations) -> usize {
    found.results.values().filter(|all| all.iter().any(|c| c.why.to_string().contains("result 0 is"))).count()
}

// ---------------------------------------------------------------------------------------------------------------------
// What is inferred is what the model would mark

#[derive(Module, Debug)]
struct Zoo {
    layer: Block,
    inner: Pair,
    outer: Pair,
    dropped: Pair,
    gate: Pair,
    joined: Pair,
    twice: Pair,
    linear: Linear,
    norm: LayerNorm,
    gain: RmsNorm,
    conv: Conv1d,
    post: Post,
    scaled: Scaled,
    own: Own,
    around: Around,
    apart: Pair,
}

/// A norm after the residual.
#[derive(Module, Debug)]
struct Post {
    mlp: Pair,
    norm: LayerNorm,
}

/// A separate vector after another module.
#[derive(Module, Debug)]
struct Scaled {
    scale: Param<Tensor<1>>,
    mlp: Pair,
}

/// A product with more than a bias.
#[derive(Module, Debug)]
struct Own {
    weight: Param<Tensor<2>>,
    scale: Param<Tensor<1>>,
}

/// A module that is not recognized, and one that is.
#[derive(Module, Debug)]
struct Around {
    own: Own,
    last: Linear,
}

/// Every module marks each call with its arguments and results.
fn zoo() -> Case<Zoo, Tensor<3>, 3> {
    let d = &Device::flex();
    let layer = block().model;
    let own = || {
        let weight = Param::from_tensor(Tensor::ones([8, 8], d));
        Own { weight, scale: Param::from_tensor(Tensor::ones([8], d)) }
    };
    let square = || Pair { net1: linear(8, 8), net2: linear(8, 8) };
    let model = Zoo {
        layer,
        inner: Pair::new(),
        outer: Pair::new(),
        dropped: Pair::new(),
        gate: Pair::new(),
        joined: square(),
        twice: Pair::new(),
        linear: linear(8, 8),
        norm: LayerNormConfig::new(8).init(d),
        gain: RmsNormConfig::new(8).init(d),
        conv: Conv1dConfig::new(6, 6, 1).init(d),
        post: Post { mlp: Pair::new(), norm: LayerNormConfig::new(8).init(d) },
        scaled: Scaled { scale: Param::from_tensor(Tensor::ones([8], d)), mlp: Pair::new() },
        own: own(),
        around: Around { own: own(), last: linear(8, 8) },
        apart: Pair::new(),
    };
    let forward = |m: &Zoo, x: Tensor<3>| {
        let mark = |path: &str, x: Tensor<3>, f: &dyn Fn(Tensor<3>) -> Tensor<3>| tpc::scope(path, x, f);
        let x = mark("layer", x, &|x| {
            let h = m.layer.norm1.forward(x.clone());
            let attn = |h| m.layer.attn.forward(MhaInput::self_attn(h)).context;
            let x = x + mark("attn", h, &attn);
            let h = m.layer.norm2.forward(x.clone());
            x + mark("mlp", h, &|h| m.layer.mlp.forward(h))
        });
        let x = mark("inner", x, &|x| x.clone() + m.inner.forward(x));
        let x = x.clone() + mark("outer", x, &|x| m.outer.forward(x));
        let dropout = DropoutConfig::new(0.1).init();
        let x = mark("dropped", x, &|x| x.clone() + dropout.forward(m.dropped.forward(x) * 0.5));
        let x = mark("gate", x, &|x| x.clone() * activation::sigmoid(m.gate.forward(x)));
        let x = mark("joined", x, &|x| {
            let h = m.joined.net1.forward(x);
            m.joined.net2.forward(activation::relu(h.clone())) * 0.5 + h
        });
        let x = mark("twice", activation::tanh(x), &|x| m.twice.forward(x));
        let x = mark("twice", activation::tanh(x), &|x| m.twice.forward(x));
        let x = mark("linear", activation::tanh(x), &|x| m.linear.forward(x));
        let x = mark("linear", activation::tanh(x), &|x| m.linear.forward(x));
        let x = mark("norm", x, &|x| m.norm.forward(x));
        let x = mark("norm", activation::gelu(x), &|x| m.norm.forward(x));
        let x = mark("gain", x, &|x| m.gain.forward(x));
        let x = mark("gain", mark("gain", activation::tanh(x), &|x| m.gain.forward(x)), &|x| m.gain.forward(x));
        let x = mark("conv", mark("conv", x, &|x| m.conv.forward(x)), &|x| m.conv.forward(x));
        let x = mark("post", x, &|x| m.post.norm.forward(x.clone() + mark("mlp", x, &|x| m.post.mlp.forward(x))));
        let x = mark("scaled", x, &|x| {
            let x = mark("mlp", x, &|x| m.scaled.mlp.forward(x));
            x * m.scaled.scale.val().reshape([1, 1, 8])
        });
        let own = |own: &Own, x: Tensor<3>| x.matmul(own.weight.val().unsqueeze()) * own.scale.val().reshape([1, 1, 8]);
        let x = mark("own", x, &|x| own(&m.own, x));
        let x = mark("around", x, &|x| m.around.last.forward(own(&m.around.own, x)));
        mark("apart", x, &|x| m.apart.forward(x))
    };
    Case { model, data: vec![floats("x", &X)], batch: x, forward }
}

#[test]
fn what_is_inferred_is_what_would_be_marked() {
    let graph = zoo().compiled(&Plan::new(), "", &CompileOptions::for_cpu()).unwrap().first.captured;
    let marks = graph.regions.clone();
    // A convolution is identified by its operation; the marks of all other modules are erased.
    let unmarked = graph.clone().with_regions(marks.iter().filter(|r| r.path == "conv".into()).cloned().collect());
    let regions = Regions::of(&unmarked);
    let mut known: BTreeMap<String, [usize; 2]> = BTreeMap::new();
    for mark in &marks {
        let of = |found: Vec<Region>, side: Side| -> Vec<Value> {
            let sides = found.into_iter().map(|r| if side == Side::Arguments { r.arguments } else { r.results });
            sides.flatten().map(|b| b.value).collect()
        };
        let counts = known.entry(mark.path.to_string()).or_default();
        for (count, side) in counts.iter_mut().zip([Side::Arguments, Side::Results]) {
            let found = of(regions.find(&mark.path, side), side);
            let marked = of(marks.iter().filter(|r| r.path == mark.path).cloned().collect(), side);
            assert!(found.is_empty() || found == marked, "{side:?} of {}: {found:?}, marked {marked:?}", mark.path);
            *count = found.len();
        }
    }
    let expected = BTreeMap::from([
        // If a norm comes first, its input is not known; residuals that are known to be inside are.
        ("layer", [0, 1]),
        ("layer.attn", [1, 1]),
        ("layer.mlp", [1, 1]),
        // A residual around a module and a residual in the module give the same program.
        ("inner", [1, 0]),
        ("outer", [1, 0]),
        ("dropped", [1, 0]),
        ("gate", [1, 0]),
        ("joined", [1, 1]),
        // Two calls of two linears, or one linear called twice.
        ("twice", [0, 0]),
        ("linear", [2, 2]),
        ("norm", [0, 2]),
        ("gain", [0, 3]),
        ("conv", [2, 2]),
        ("post", [1, 1]),
        ("post.mlp", [1, 0]),
        ("scaled", [1, 1]),
        ("scaled.mlp", [1, 1]),
        ("own", [0, 0]),
        ("around", [0, 0]),
        ("apart", [1, 1]),
    ]);
    let known: BTreeMap<&str, [usize; 2]> = known.iter().map(|(path, counts)| (path.as_str(), *counts)).collect();
    assert_eq!(known, expected);
}

#[derive(Module, Debug)]
struct Residuals {
    block: Pair,
    norm: RmsNorm,
    last: Linear,
}

fn residuals(marked: bool) -> Case<Residuals, Tensor<3>, 3> {
    let norm = RmsNormConfig::new(8).init(&Device::flex());
    let forward: fn(&Residuals, Tensor<3>) -> Tensor<3> = match marked {
        true => |m, x| {
            let x = tpc::scope("block", x, |x| x.clone() + m.block.forward(x));
            m.norm.forward(activation::tanh(m.last.forward(m.norm.forward(x))))
        },
        false => |m, x| {
            let x = x.clone() + m.block.forward(x);
            m.norm.forward(activation::tanh(m.last.forward(m.norm.forward(x))))
        },
    };
    let model = filled(Residuals { block: Pair::new(), norm, last: linear(8, 8) }, 0.8);
    Case { model, data: vec![floats("x", &X)], batch: x, forward }
}

/// Only a mark tells where a module that contains a residual ends.
#[test]
fn a_module_with_a_residual_is_marked_or_refused() {
    let plan = Plan::new().with("block", outputs(&[], &[s(1)]));
    let refused = residuals(false).compiled(&plan, "tp=2", &CompileOptions::for_cpu());
    assert_eq!(
        refused.err().unwrap().to_string(),
        "plan entry `block` places results of `block`, but its boundaries cannot be inferred from its parameters: mark them in the model with `tpc::scope(\"block\", inputs, |inputs| …)` around the module's call"
    );
    // Its argument is the same value in both cases.
    let taken = Plan::new().with("block", inputs(&[s(1)], &[R]));
    let case = residuals(false);
    let expected = case.eager();
    for on in MESHES {
        case.equals(&expected, &taken, on).lies(&[("input0", "f32[4, 6@tp, 8]")]);
        let marked = residuals(true);
        marked.equals(&expected, &plan, on);
        let annotations = marked.compiled(&plan, on, &CompileOptions::for_cpu()).unwrap().first.annotations;
        assert_eq!(prepared_results(&annotations), 1);
    }
}

/// Each call of the norm is placed, not only the last.
#[test]
fn every_call_of_a_norm() {
    let case = residuals(false);
    let expected = case.eager();
    let plan = Plan::new().with("norm", SequenceParallel { sequence_dim: 1 });
    for on in MESHES {
        case.equals(&expected, &plan, on).lies(&[("y", "f32[4, 6@tp, 8]"), ("norm.gamma", "f32[8]")]);
        let annotations = case.compiled(&plan, on, &CompileOptions::for_cpu()).unwrap().first.annotations;
        assert_eq!(prepared_results(&annotations), 2);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Boundaries that are marked

#[derive(Module, Debug)]
struct Mixer {
    left: Linear,
    out: Linear,
}

type Two = (Tensor<3>, Tensor<3>);

/// `mix` takes two tensors and gives two; it has no parameters.
fn mixer() -> Case<Mixer, Two, 3> {
    let forward = |m: &Mixer, (x, z): Two| {
        let (a, b) = tpc::scope("mix", (x, z), |(x, z)| (x.clone() * activation::sigmoid(z.clone()), x - z));
        tpc::scope("join", (m.left.forward(a), b), |(a, b)| activation::tanh(m.out.forward(a)) + b)
    };
    Case {
        model: filled(Mixer { left: linear(8, 10), out: linear(10, 8) }, 0.8),
        data: vec![floats("x", &X), floats("z", &X)],
        batch: |data, device| (Tensor::from_data(data[0].clone(), device), Tensor::from_data(data[1].clone(), device)),
        forward,
    }
}

#[test]
fn every_argument_and_result_of_a_marked_region() {
    let case = mixer();
    let expected = case.eager();
    let rows = [
        (Plan::new().with("mix", inputs(&[s(0), s(1)], &[R, s(0)])), "f32[4@tp, 6, 8]", "f32[4, 6@tp, 8]"),
        (Plan::new().with("mix", inputs(&[None, s(-1)], &[None, R])), "f32[4, 6, 8]", "f32[4, 6, 8@tp]"),
        (Plan::new().with("mix", inputs(&[], &[s(2), None])), "f32[4, 6, 8@tp]", "f32[4, 6, 8]"),
        (Plan::new().with("mix", outputs(&[], &[s(1), s(0)])), "f32[4, 6, 8]", "f32[4, 6, 8]"),
        (
            Plan::new().with(
                "mix",
                PrepareModuleInputOutput {
                    inputs: inputs(&[s(1), s(1)], &[]),
                    outputs: outputs(&[None, s(1)], &[R, s(0)]),
                },
            ),
            "f32[4, 6@tp, 8]",
            "f32[4, 6@tp, 8]",
        ),
    ];
    for (plan, first, second) in &rows {
        for on in MESHES {
            case.equals(&expected, plan, on).lies(&[("input0", first), ("input1", second)]);
        }
    }
    // Together with styles inside of it and a prepared result at the end of the program.
    let plan =
        rows[0].0.clone().with("left", ColwiseParallel::default()).with("out", RowwiseParallel::default()).with(
            "join",
            PrepareModuleInputOutput { inputs: inputs(&[s(-1), s(1)], &[]), outputs: outputs(&[], &[s(1)]) },
        );
    for on in MESHES {
        let seen = case.equals(&expected, &plan, on);
        seen.lies(&[("left.weight", "f32[8, 10@tp]"), ("out.weight", "f32[10@tp, 8]"), ("y", "f32[4, 6@tp, 8]")]);
        seen.lies(&[("input0", "f32[4@tp, 6, 8]"), ("input1", "f32[4, 6@tp, 8]")]);
    }
    let both = plan.along("tp").ddp("dp");
    let seen = case.equals(&expected, &both, "dp=2,tp=2");
    seen.lies(&[("input0", "f32[4@(dp,tp), 6, 8]"), ("input1", "f32[4@dp, 6@tp, 8]"), ("y", "f32[4@dp, 6@tp, 8]")]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Sequence parallelism

#[test]
fn norms_on_a_shard_of_the_sequence() {
    #[derive(Module, Debug)]
    struct Norms {
        layer: LayerNorm,
        rms: RmsNorm,
    }
    let d = &Device::flex();
    let case: Case<Norms, Tensor<3>, 3> = Case {
        model: filled(Norms { layer: LayerNormConfig::new(8).init(d), rms: RmsNormConfig::new(8).init(d) }, 0.8),
        data: vec![floats("x", &X)],
        batch: x,
        forward: |m, x| m.rms.forward(activation::tanh(m.layer.forward(x))),
    };
    let expected = case.eager();
    for (dim, y) in [(1, "f32[4, 6@tp, 8]"), (0, "f32[4@tp, 6, 8]"), (-2, "f32[4, 6@tp, 8]")] {
        for on in MESHES {
            let plan = Plan::new().with("{layer,rms}", SequenceParallel { sequence_dim: dim });
            let seen = case.equals(&expected, &plan, on);
            seen.lies(&[("y", y), ("layer.gamma", "f32[8]"), ("layer.beta", "f32[8]"), ("rms.gamma", "f32[8]")]);
            seen.at_most(ACTIVATION, 0, 0);
            // Three gradients, reduced together.
            let reductions =
                seen.small(Phase::Backward, "tp", ACTIVATION) + seen.small(Phase::Optimizer, "tp", ACTIVATION);
            assert!((1..=3).contains(&reductions), "{}", seen.list());
        }
    }
}

fn sequence_parallel_block() -> Plan {
    Plan::new()
        .with("norm*", SequenceParallel { sequence_dim: 1 })
        .with("attn", PairwiseSequenceParallel { sequence_dim: 1 })
        .with("mlp", PairwiseSequenceParallel { sequence_dim: 1 })
}

#[test]
fn a_block_on_a_shard_of_the_sequence() {
    let case = block();
    let expected = case.eager();
    for on in MESHES {
        let seen = case.equals(&expected, &sequence_parallel_block(), on);
        seen.lies(&[("y", "f32[4, 6@tp, 8]"), ("norm1.gamma", "f32[8]"), ("mlp.net2.bias", "f32[8]")]);
        seen.lies(&[("attn.output.weight", "f32[4@tp, 2, 8]"), ("mlp.net1.weight", "f32[8, 14@tp]")]);
        // A gather and a scatter for each of the two pairs, in each pass.
        seen.together(ACTIVATION, 8);
    }
    let both = sequence_parallel_block().along("tp").enable_2d_with_fsdp("dp");
    let seen = case.equals(&expected, &both, "dp=2,tp=2");
    seen.lies(&[("y", "f32[4@dp, 6@tp, 8]"), ("norm1.gamma", "f32[8@dp]"), ("mlp.net1.weight", "f32[8@dp, 14@tp]")]);
}

/// Under sequence parallelism the gradients of the norms are reduced once, together.
#[test]
fn gradients_of_norms_are_reduced_together() {
    let seen = block().seen(&sequence_parallel_block(), "tp=2");
    let small = [Phase::Backward, Phase::Optimizer].map(|p| seen.small(p, "tp", ACTIVATION));
    assert!(small[0] + small[1] <= 1, "{}", seen.list());
}

#[derive(Module, Debug)]
struct Dropped {
    net1: Linear,
    dropout: Dropout,
    net2: Linear,
}

/// The same elements are dropped on every mesh.
#[test]
fn a_marked_dropout_on_a_shard_of_the_sequence() {
    let model = Dropped { net1: linear(8, 8), dropout: DropoutConfig::new(0.4).init(), net2: linear(8, 8) };
    let case: Case<Dropped, Tensor<3>, 3> = Case {
        model: filled(model, 0.8),
        data: vec![floats("x", &X)],
        batch: x,
        forward: |m, x| {
            let h = m.net2.forward(activation::relu(m.net1.forward(x)));
            tpc::scope("dropout", h, |h| m.dropout.forward(h))
        },
    };
    let one = case.seen(&Plan::new(), "");
    assert!(one.output.iter().filter(|y| **y == 0.0).count() > 20, "{:?}", one.output);
    let expected = (one.output, one.run);
    let plan = |dim| {
        Plan::new()
            .with("net1", ColwiseParallel::default())
            .with("net2", RowwiseParallel::default())
            .with("dropout", SequenceParallel { sequence_dim: dim })
    };
    for on in MESHES {
        let seen = case.equals(&expected, &plan(1), on);
        seen.lies(&[("y", "f32[4, 6@tp, 8]")]);
        // The sum is scattered to where it is dropped and its gradient is gathered, or both in one step.
        seen.together(ACTIVATION, 2);
        case.equals(&expected, &plan(0), on).lies(&[("y", "f32[4@tp, 6, 8]")]);
    }
    case.equals(&expected, &plan(1).along("tp").ddp("dp"), "dp=2,tp=2").lies(&[("y", "f32[4@dp, 6@tp, 8]")]);
}

// ---------------------------------------------------------------------------------------------------------------------
// A user-defined style

/// Every second linear by columns and gathered, the others by rows and scattered.
#[derive(Debug)]
struct Alternating {
    sequence: isize,
}

impl ParallelStyle for Alternating {
    fn name(&self) -> &str {
        "Alternating"
    }

    fn accepts(&self) -> &str {
        "linears in a row"
    }

    fn demand(&self, module: &StyledModule<'_>, to: &mut Placements) -> Result<(), StyleError> {
        for (weight, level) in module.levels() {
            assert_eq!(weight.role, Role::Linear);
            let path = &weight.name.holder();
            if level % 2 == 1 {
                assert_eq!(module.biases(weight), [path.named("bias")]);
                to.cut(module, weight, Direction::Columns);
                to.argument(path, 0, Prepare::from(Layout::Shard(self.sequence), Layout::Replicate));
                to.result(path, 0, Prepare::to(Layout::Replicate));
            } else {
                to.cut(module, weight, Direction::Rows);
                to.result(path, 0, Prepare::to(Layout::Shard(self.sequence)));
            }
        }
        Ok(())
    }
}

#[test]
fn a_style_of_ones_own() {
    let case = Case {
        model: filled(Pair::new(), 0.8),
        data: vec![floats("x", &X)],
        batch: x,
        forward: |m: &Pair, x| m.forward(x),
    };
    let expected = case.eager();
    for on in MESHES {
        let seen = case.equals(&expected, &Alternating { sequence: 1 }.into(), on);
        seen.lies(&[("input0", "f32[4, 6@tp, 8]"), ("y", "f32[4, 6@tp, 8]")]);
        seen.lies(&[("net1.weight", "f32[8, 14@tp]"), ("net1.bias", "f32[14@tp]"), ("net2.weight", "f32[14@tp, 8]")]);
    }
    // Its name and entry are the reason for its placements, also together with built-in styles elsewhere.
    let case = block();
    let expected = case.eager();
    let plan = Plan::new().with("mlp", Alternating { sequence: 1 }).with("attn", PairwiseParallel);
    let seen = case.equals(&expected, &plan, "tp=2");
    seen.lies(&[("mlp.net2.weight", "f32[14@tp, 8]"), ("attn.key.weight", "f32[8, 4@tp, 2]")]);
    let (node, _) = seen.placed.inputs().find(|i| i.1.to_string() == "mlp.net1.weight").unwrap();
    assert_eq!(seen.placed.node(node).origin.reason.to_string(), "plan \"mlp\"");
}

// ---------------------------------------------------------------------------------------------------------------------
// The entry point

fn logical() -> Graph {
    let case = block();
    case.compiled(&Plan::new(), "", &CompileOptions::for_cpu()).unwrap().first.logical
}

/// The placements of the parameters that are not replicated.
fn cut(graph: &Graph, style: impl Into<Plan>, on: &str, dim: Option<MeshDim>) -> BTreeMap<String, String> {
    let (_, found) = parallelize_module(graph, &mesh(on), style, dim).unwrap_or_else(|e| panic!("{e}"));
    let types = graph.inputs().filter(|(_, id)| id.is_parameter()).filter_map(|(n, id)| {
        let at = &found.inputs.get(id)?.sharding;
        (!at.is_replicated()).then(|| (id.to_string(), graph.node(n).types[0].placed(at.clone()).display(&found.mesh)))
    });
    types.collect()
}

#[test]
fn parallelize_module_along_a_dimension() {
    let graph = logical();
    let two = || {
        let mut plan = Plan::new().with("mlp", PairwiseParallel);
        plan.allow_unused_axes = true;
        plan
    };
    let name = |n: &str| Some(MeshDim::from(n));
    let index = |i: isize| Some(MeshDim::from(i));
    let along = |axis: &str| {
        let at = |text: &str| text.replace("AXIS", axis);
        BTreeMap::from([
            ("mlp.net1.weight".to_string(), at("f32[8, 14@AXIS]")),
            ("mlp.net1.bias".to_string(), at("f32[14@AXIS]")),
            ("mlp.net2.weight".to_string(), at("f32[14@AXIS, 8]")),
        ])
    };
    for (on, dim, axis) in [
        ("tp=2", None, "tp"),
        ("x=2", None, "x"),
        ("x=3", index(0), "x"),
        ("x=2", index(-1), "x"),
        ("a=2,tp=2", None, "tp"),
        ("tp=2,a=2", None, "tp"),
        ("a=2,b=3", index(0), "a"),
        ("a=2,b=3", index(1), "b"),
        ("a=2,b=3", index(-1), "b"),
        ("a=2,b=3", index(-2), "a"),
        ("a=2,b=3", name("b"), "b"),
        ("tp=2,b=3", name("b"), "b"),
        ("tp=2,b=3", index(1), "b"),
    ] {
        assert_eq!(cut(&graph, two(), on, dim), along(axis), "{on}");
    }
    // One style for the whole module: both pairs.
    let all = cut(&graph, PairwiseParallel, "tp=2", None);
    let names: Vec<&str> = all.keys().map(String::as_str).collect();
    let pairs = [
        "attn.key.bias",
        "attn.key.weight",
        "attn.output.weight",
        "attn.query.bias",
        "attn.query.weight",
        "attn.value.bias",
        "attn.value.weight",
        "mlp.net1.bias",
        "mlp.net1.weight",
        "mlp.net2.weight",
    ];
    assert_eq!(names, pairs);
    // A dimension that does not exist is an error, on meshes of one dimension too.
    for (on, dim) in [
        ("tp=2", index(1)),
        ("tp=2", index(-2)),
        ("a=2,b=2", index(2)),
        ("a=2,b=2", index(-3)),
        ("a=2,b=2", name("tp")),
        ("tp=2", name("dp")),
        ("a=2,b=2", None),
        ("", index(0)),
    ] {
        let error = parallelize_module(&graph, &mesh(on), two(), dim.clone()).unwrap_err();
        let named = matches!(error, StyleError::NoAxis { .. }) && !matches!(dim, Some(MeshDim::Index(_)));
        assert!(named || matches!(error, StyleError::NoDimension { .. }), "{on} {dim:?}: {error}");
    }
    // The argument of the call takes precedence over the plan's axis.
    assert_eq!(cut(&graph, two().along("a"), "a=2,b=3", name("b")), along("b"));
    // An axis of one rank cuts nothing.
    assert_eq!(cut(&graph, two(), "tp=1", None), BTreeMap::new());
}

// ---------------------------------------------------------------------------------------------------------------------
// Plan files

fn annotations(plan: &Plan, on: &str) -> tpc_passes::styles::Annotations {
    block().compiled(plan, on, &CompileOptions::for_cpu()).unwrap_or_else(|e| panic!("{plan:?}: {e}")).first.annotations
}

#[test]
fn plan_files_say_what_rust_says() {
    let parts = || {
        Plan::new()
            .with("attn.{query,key,value}", ColwiseParallel::default())
            .with("attn.output", RowwiseParallel::default())
    };
    let cases: Vec<(&str, Plan, &str)> = vec![
        (r#"{"styles": {"": "PairwiseParallel"}}"#, PairwiseParallel.into(), "tp=2"),
        (r#"{"styles": {"mlp": {"": "PairwiseParallel"}}}"#, Plan::new().with("mlp", PairwiseParallel), "tp=2"),
        (
            r#"{"styles": {"attn": {"{query,key,value}": "ColwiseParallel", "output": "RowwiseParallel"}}}"#,
            parts(),
            "tp=2",
        ),
        (
            r#"{"styles": {"attn": {"{query,key,value}": {"ColwiseParallel": {}}, "output": {"RowwiseParallel": {}}}}}"#,
            parts(),
            "tp=2",
        ),
        (
            r#"{"axis": "b", "styles": {"mlp": {"net[1-1]": "ColwiseParallel", "ne?2": "RowwiseParallel"}}, "data": {"mode": "ddp", "axis": "a"}}"#,
            Plan::new()
                .with("mlp.net[1-1]", ColwiseParallel::default())
                .with("mlp.ne?2", RowwiseParallel::default())
                .along("b")
                .ddp("a"),
            "a=2,b=2",
        ),
        (
            r#"{"axis": -1, "styles": {"{attn,mlp}": "PairwiseParallel"}, "data": {"mode": "fsdp", "axis": "a"}}"#,
            Plan::new().with("{attn,mlp}", PairwiseParallel).along(-1).enable_2d_with_fsdp("a"),
            "a=2,b=2",
        ),
        (
            r#"{"styles": {"mlp": {
                "net1": {"ColwiseParallel": {"input_layouts": "Shard(1)", "output_layouts": "Shard(-1)"}},
                "net2": {"RowwiseParallel": {"input_layouts": "Shard(-1)", "output_layouts": "Shard(1)"}}},
              "norm2": {"SequenceParallel": {"sequence_dim": 1}}},
              "data": {"mode": "hsdp", "axis": "dp", "replicate_axis": "rep"}}"#,
            Plan::new()
                .with(
                    "mlp.net1",
                    ColwiseParallel { input_layouts: s(1), output_layouts: s(-1), ..ColwiseParallel::default() },
                )
                .with(
                    "mlp.net2",
                    RowwiseParallel { input_layouts: s(-1), output_layouts: s(1), ..RowwiseParallel::default() },
                )
                .with("norm2", SequenceParallel { sequence_dim: 1 })
                .hsdp("rep", "dp"),
            "rep=2,dp=2,tp=2",
        ),
        (
            r#"{"styles": {"mlp": {"PairwiseSequenceParallel": {"sequence_dim": 1}},
                           "attn": "TensorParallelMultiheadAttention"}, "data": {"mode": "zero1"}}"#,
            Plan::new()
                .with("attn", TensorParallelMultiheadAttention)
                .with("mlp", PairwiseSequenceParallel { sequence_dim: 1 })
                .zero1("dp"),
            "dp=2,tp=2",
        ),
        (
            r#"{"styles": {"mlp": {"PrepareModuleInput": {"input_layouts": [null], "desired_input_layouts": ["Shard(1)"]}},
                           "attn": {"PrepareModuleOutput": {"output_layouts": "Replicate", "desired_output_layouts": "Shard(1)"}}}}"#,
            Plan::new().with("attn", outputs(&[R], &[s(1)])).with("mlp", inputs(&[None], &[s(1)])),
            "tp=2",
        ),
    ];
    for (text, plan, on) in cases {
        the_same(text, &plan, on);
    }
}

/// The entries of a file keep their order, as `with` adds them: here the inner one is written first.
#[test]
fn plan_files_are_in_order() {
    let (text, plan, on) = (
        r#"{"styles": {"mlp.net1": {"ColwiseParallel": {"prepare_input": "make_input_reshard_replicate",
                                                           "prepare_output": "make_output_shard_1d:1"}},
                           "mlp": {"PrepareModuleInputOutput": {"input_layouts": "Shard(1)",
                              "desired_input_layouts": ["Replicate"], "desired_output_layouts": ["Shard(1)"]}}}}"#,
        Plan::new()
            .with(
                "mlp.net1",
                ColwiseParallel {
                    prepare_input: Some(Prepare::from(Layout::Shard(0), Layout::Replicate)),
                    prepare_output: Some(Prepare::to(Layout::Shard(1))),
                    ..ColwiseParallel::default()
                },
            )
            .with("mlp", PrepareModuleInputOutput { inputs: inputs(&[s(1)], &[R]), outputs: outputs(&[], &[s(1)]) }),
        "tp=2",
    );
    the_same(text, &plan, on);
}

fn the_same(text: &str, plan: &Plan, on: &str) {
    {
        let file = Plan::from_json(text);
        let file = match file {
            Ok(file) => file,
            Err(e) => panic!("{text}: {e}"),
        };
        let (a, b) = (annotations(&file, on), annotations(plan, on));
        assert_eq!(a.mesh, b.mesh, "{text}");
        let at = |found: &tpc_passes::styles::Annotations| -> BTreeMap<String, _> {
            found.inputs.iter().map(|(id, a)| (id.to_string(), a.sharding.clone())).collect()
        };
        assert_eq!(at(&a), at(&b), "{text}");
        assert!(!at(&a).is_empty() || !a.results.is_empty() || !a.uses.is_empty(), "{text}");
        let placed =
            |c: &[tpc_passes::styles::annotations::Constraint]| c.iter().map(|c| c.at.clone()).collect::<Vec<_>>();
        let sorted = |m: Vec<(String, Vec<_>)>| m.into_iter().collect::<BTreeMap<_, _>>();
        let results = |f: &tpc_passes::styles::Annotations| {
            sorted(f.results.iter().map(|(n, c)| (format!("{n:?}"), placed(c))).collect())
        };
        let uses = |f: &tpc_passes::styles::Annotations| {
            sorted(f.uses.iter().map(|(n, c)| (format!("{n:?}"), placed(c))).collect())
        };
        assert_eq!(results(&a), results(&b), "{text}");
        assert_eq!(uses(&a), uses(&b), "{text}");
    }
}
