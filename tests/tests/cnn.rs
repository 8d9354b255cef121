//! Convolutions and poolings sharded on the batch and on channels: small CNNs under data parallelism and channel-wise
//! tensor parallelism train as burn trains them eagerly, and pooling runs where the channels are placed.

use burn::module::Module;
use burn::nn::conv::{
    Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose1d, ConvTranspose1dConfig, ConvTranspose2d,
    ConvTranspose2dConfig,
};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{AdaptiveAvgPool2dConfig, AvgPool1dConfig, AvgPool2dConfig, MaxPool1dConfig, MaxPool2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, GroupNorm, GroupNormConfig, InstanceNorm, InstanceNormConfig, Linear, LinearConfig,
    PaddingConfig1d, PaddingConfig2d,
};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use tpc::{Graph, InputKind};
use tpc_compiler::capture::{Batch, CaptureError, TrainingOptions, capture_training, capture_training_shapes};
use tpc_compiler::error::Error;
use tpc_compiler::program::{CompileOptions, TrainingProgram, compile_training};
use tpc_ir::{InputId, Op, Phase, Type, Value};
use tpc_passes::options::StepOptions;
use tpc_passes::styles::dataflow::ancestors;
use tpc_passes::styles::{ColwiseParallel, PairwiseParallel, Plan, RowwiseParallel};
use tpc_tests::eager::{filled, numbers, train};
use tpc_tests::styles::{Executed, Seen, executed, floats, integers, types};
use tpc_tests::training::{Run, differences, mesh, run_and_see};

const RATES: [f64; 3] = [0.01, 0.02, 0.01];

// ---------------------------------------------------------------------------------------------------------------------
// A model in training

struct Case<M, B> {
    model: M,
    data: Vec<TensorData>,
    batch: fn(&[TensorData], &Device) -> B,
    loss: fn(&M, B) -> Tensor<1>,
}

/// The record of three steps under a plan.
struct Trained {
    seen: Seen,
    /// The number of parameter elements that each rank holds.
    held: Vec<usize>,
}

impl<M: Module, B: Batch<Tensors = B>> Case<M, B> {
    fn compiled(&self, plan: &Plan, on: &str, options: &CompileOptions) -> Result<TrainingProgram, Error> {
        let batch = (self.batch)(&self.data, &Device::flex());
        let capture = capture_training(&self.model, &AdamWConfig::new().build(), batch, |m: &M, b| (self.loss)(m, b));
        compile_training(capture?, &mesh(on), plan, options, &|p| p.to_string())
    }

    fn eager(&self) -> Run {
        let loss = |m: &M, device: &Device| (self.loss)(m, (self.batch)(&self.data, device));
        let run = train(&self.model, AdamWConfig::new().init(), &RATES, loss);
        assert!(run.losses[2] < run.losses[0], "{:?}", run.losses);
        run
    }

    /// Checks that three steps under a plan equal burn's.
    fn trains(&self, expected: &Run, plan: &Plan, on: &str) -> Trained {
        let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
        self.trains_with(expected, plan, on, &options)
    }

    fn trains_with(&self, expected: &Run, plan: &Plan, on: &str, options: &CompileOptions) -> Trained {
        let program = self.compiled(plan, on, options).unwrap_or_else(|e| panic!("{on}: {e}"));
        let placed = program.first.placed.clone();
        let elements = |rank: &tpc_ir::program::RankProgram| -> usize {
            let parameters = rank.inputs.iter().filter(|i| i.kind == InputKind::Parameter);
            parameters.map(|i| i.binding.view.shape.iter().product::<usize>()).sum()
        };
        let held = program.first.ranks.iter().map(elements).collect();
        let mut collectives = Executed::new();
        let write = |session: &mut tpc_runtime::Session| {
            for (i, data) in self.data.iter().enumerate() {
                session.write_f64(&format!("input{i}"), &numbers(data.clone())).unwrap();
            }
        };
        let run = run_and_see(program, &RATES, write, |session| collectives = executed(session, 0));
        let wrong = differences(&run, expected);
        assert!(wrong.is_empty(), "{on}, {plan:?}:\n{}", wrong.join("\n"));
        let seen = Seen { types: types(&placed), executed: collectives, output: Vec::new(), run, placed };
        Trained { seen, held }
    }
}

impl Trained {
    /// The types of all values on the way from the result of one module to the product of another, in the forward pass;
    /// none of them is a collective.
    fn between(&self, from: &str, to: &str) -> Vec<&Type> {
        let graph = &self.seen.placed;
        let (starts, ends) = (products(graph, from), products(graph, to));
        assert!(!starts.is_empty() && !ends.is_empty(), "{from} and {to} are used");
        let mut wanted = vec![false; graph.len()];
        for &end in &ends {
            let above = ancestors(graph, end.node);
            wanted.iter_mut().zip(above).for_each(|(w, a)| *w |= a);
        }
        let inside = |v: Value| {
            let above = ancestors(graph, v.node);
            wanted[v.node.index()] && !ends.contains(&v) && starts.iter().any(|s| above[s.node.index()])
        };
        let nodes: Vec<_> = graph.nodes().filter(|&n| inside(n.into())).collect();
        for &n in &nodes {
            let op = &graph.node(n).op;
            assert!(!op.is_redistribution(), "{op:?} between {from} and {to}:\n{}", self.seen.list());
        }
        nodes.into_iter().flat_map(|n| &graph.node(n).types).collect()
    }
}

/// The forward products of a module's weight, or of the taps of its kernel.
fn products(graph: &Graph, module: &str) -> Vec<Value> {
    let input = graph.inputs_by_id()[&InputId::Parameter(format!("{module}.weight").into())];
    let (mut found, mut open) = (Vec::new(), vec![input]);
    while let Some(node) = open.pop() {
        for (user, _) in graph.users(node).filter(|(user, _)| graph.node(*user).origin.phase == Phase::Forward) {
            match &graph.node(user).op {
                Op::Einsum { .. } => found.push(user.into()),
                _ => open.push(user),
            }
        }
    }
    found
}

/// Whether the type has exactly one cut dimension, and that dimension has this extent and this axis.
fn cut_only(ty: &Type, graph: &Graph, axis: &str, extent: usize) -> bool {
    let axis = graph.mesh.axis(axis).unwrap();
    let cuts: Vec<usize> = (0..ty.rank()).filter(|&d| ty.sharding.dims[d].contains(&axis)).collect();
    ty.sharding.partial.is_none() && matches!(cuts[..], [d] if ty.shape[d] == extent)
}

fn conv(from: usize, to: usize) -> Conv2d {
    let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
    Conv2dConfig::new([from, to], [3, 3]).with_padding(padding).init(&Device::flex())
}

fn linear(from: usize, to: usize) -> Linear {
    LinearConfig::new(from, to).init(&Device::flex())
}

fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, labels)
}

type Images = (Tensor<4>, Tensor<1, Int>);

fn images(data: &[TensorData], device: &Device) -> Images {
    (Tensor::from_data(data[0].clone(), device), Tensor::from_data(data[1].clone(), device))
}

fn image_data(batch: usize) -> Vec<TensorData> {
    vec![floats("images", &[batch, 3, 8, 16]), integers("labels", &[batch], 4)]
}

// ---------------------------------------------------------------------------------------------------------------------
// A classifier

/// No extent of an image equals a number of channels, so that a cut dimension is identified by its extent.
#[derive(Module, Debug)]
struct Classifier {
    stem: Conv2d,
    deep: Conv2d,
    wide: Linear,
    last: Linear,
}

const BATCH: usize = 12;
/// Bytes of the input and of the output of the second convolution.
const DEEP: usize = BATCH * 5 * 4 * 8 * 4;

fn classifier(batch: usize) -> Case<Classifier, Images> {
    let model = Classifier { stem: conv(3, 6), deep: conv(6, 5), wide: linear(20, 7), last: linear(7, 4) };
    let loss = |m: &Classifier, (x, labels): Images| {
        let x = activation::relu(m.stem.forward(x));
        let x = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init().forward(x);
        let x = activation::relu(m.deep.forward(x));
        let x = AvgPool2dConfig::new([2, 2]).with_strides([2, 2]).init().forward(x);
        let x = AdaptiveAvgPool2dConfig::new([2, 2]).init().forward(x).flatten::<2>(1, 3);
        cross_entropy(m.last.forward(activation::relu(m.wide.forward(x))), labels)
    };
    Case { model: filled(model, 0.8), data: image_data(batch), batch: images, loss }
}

/// Two pairs: the convolutions, and the linears.
fn pairs() -> Plan {
    Plan::new().with("{stem,wide}", ColwiseParallel::default()).with("{deep,last}", RowwiseParallel::default())
}

/// One pair of a convolution and a linear with the poolings between them.
fn across() -> Plan {
    Plan::new().with("deep", ColwiseParallel::default()).with("wide", RowwiseParallel::default())
}

const PARAMETERS: usize = (6 * 27 + 6) + (5 * 54 + 5) + (20 * 7 + 7) + (7 * 4 + 4);

#[test]
fn a_classifier_alone() {
    let case = classifier(BATCH);
    let expected = case.eager();
    for on in ["", "dp=2"] {
        let one = case.trains(&expected, &Plan::built_in("none").unwrap(), on);
        assert!(one.seen.executed.is_empty() && one.held.iter().all(|&n| n == PARAMETERS));
    }
}

#[test]
fn a_classifier_on_shards_of_the_batch() {
    for batch in [BATCH, 9] {
        let case = classifier(batch);
        let expected = case.eager();
        for on in ["dp=2", "dp=4"] {
            let run = case.trains(&expected, &Plan::built_in("ddp").unwrap(), on);
            run.seen.lies(&[("stem.weight", "f32[6, 3, 3, 3]"), ("wide.weight", "f32[5, 2, 2, 7]")]);
            assert_eq!(run.held, vec![PARAMETERS; run.held.len()]);
            for (from, to) in [("stem", "deep"), ("deep", "wide"), ("wide", "last")] {
                for ty in run.between(from, to) {
                    assert!(cut_only(ty, &run.seen.placed, "dp", batch), "{}", ty.display(&run.seen.placed.mesh));
                }
            }
            // Every gradient is reduced once, together with the others; the loss is a scalar.
            let seen = &run.seen;
            assert!(seen.halves(Phase::Forward, "dp", 64) == 0, "{}", seen.list());
            let gradients =
                seen.executed.iter().filter(|c| c.0 != Phase::Forward).map(|c| c.3 as u64 * c.4).sum::<u64>();
            assert_eq!(gradients, PARAMETERS as u64 * 4, "{}", seen.list());
        }
    }
}

#[test]
fn a_classifier_by_channels() {
    let case = classifier(BATCH);
    let expected = case.eager();
    for (on, ranks) in [("tp=2", 2), ("tp=4", 4)] {
        let run = case.trains(&expected, &pairs(), on);
        let seen = &run.seen;
        seen.lies(&[("stem.weight", "f32[6@tp, 3, 3, 3]"), ("stem.bias", "f32[6@tp]")]);
        seen.lies(&[("deep.weight", "f32[5, 6@tp, 3, 3]"), ("deep.bias", "f32[5]")]);
        seen.lies(&[("wide.weight", "f32[5, 2, 2, 7@tp]"), ("last.weight", "f32[7@tp, 4]"), ("last.bias", "f32[4]")]);
        for ty in run.between("stem", "deep") {
            assert!(cut_only(ty, &seen.placed, "tp", 6), "{}", ty.display(&seen.placed.mesh));
        }
        run.between("wide", "last");
        // The images need no gradient, so the convolutions reduce nothing in the backward pass, but the input of the
        // linears does.
        seen.at_most(DEEP, 2, 0);
        seen.at_most(0, 4, 2);
        let replicated = 5 + 4;
        assert_eq!(run.held.iter().sum::<usize>(), PARAMETERS + (ranks - 1) * replicated);
        let largest = |n: usize| n.div_ceil(ranks);
        let most = largest(6) * (28 + 45) + largest(7) * 25 + replicated;
        assert!(run.held.iter().all(|&n| n <= most), "{:?}", run.held);
    }
}

/// A convolution by columns, both poolings, and a linear by rows form one pair, and the shard of channels is the
/// linear's shard after flattening. 5 channels on 4 ranks.
#[test]
fn channels_stay_where_they_are_up_to_the_linear() {
    let case = classifier(BATCH);
    let expected = case.eager();
    for on in ["tp=2", "tp=4"] {
        let run = case.trains(&expected, &across(), on);
        let seen = &run.seen;
        seen.lies(&[("deep.weight", "f32[5@tp, 6, 3, 3]"), ("deep.bias", "f32[5@tp]")]);
        seen.lies(&[
            ("wide.weight", "f32[5@tp, 2, 2, 7]"),
            ("wide.bias", "f32[7]"),
            ("stem.weight", "f32[6, 3, 3, 3]"),
        ]);
        for ty in run.between("deep", "wide") {
            assert!(cut_only(ty, &seen.placed, "tp", 5), "{}", ty.display(&seen.placed.mesh));
        }
        // The first convolution needs the gradient of its output: one reduction in each pass.
        let (product, input) = (BATCH * 7 * 4, BATCH * 6 * 4 * 8 * 4);
        seen.at_most(0, 2, 2);
        assert_eq!(seen.halves(Phase::Forward, "tp", product), 2, "{}", seen.list());
        assert_eq!(seen.halves(Phase::Backward, "tp", input), 2, "{}", seen.list());
    }
}

#[test]
fn a_classifier_by_channels_and_batch() {
    for batch in [BATCH, 9] {
        let case = classifier(batch);
        let expected = case.eager();
        for plan in [pairs().along("tp").ddp("dp"), pairs().along("tp").zero1("dp")] {
            let run = case.trains(&expected, &plan, "dp=2,tp=2");
            let seen = &run.seen;
            seen.lies(&[("stem.weight", "f32[6@tp, 3, 3, 3]"), ("deep.weight", "f32[5, 6@tp, 3, 3]")]);
            for ty in run.between("stem", "deep") {
                let graph = &seen.placed;
                let both = cut_only(ty, graph, "tp", 6) && cut_only(ty, graph, "dp", batch);
                assert!(both, "{}", ty.display(&graph.mesh));
            }
            seen.at_most(batch.div_ceil(2) * 5 * 4 * 8 * 4, 2, 0);
        }
    }
}

#[test]
fn a_classifier_with_sharded_parameters() {
    for batch in [BATCH, 9] {
        let case = classifier(batch);
        let expected = case.eager();
        let run = case.trains(&expected, &Plan::built_in("fsdp").unwrap(), "dp=2");
        for ty in run.between("stem", "deep") {
            assert!(cut_only(ty, &run.seen.placed, "dp", batch), "{}", ty.display(&run.seen.placed.mesh));
        }
        // Every parameter is held exactly once.
        assert_eq!(run.held.iter().sum::<usize>(), PARAMETERS);
        assert!(run.held.iter().all(|&n| n < PARAMETERS * 6 / 10), "{:?}", run.held);
        let both = case.trains(&expected, &pairs().along("tp").enable_2d_with_fsdp("dp"), "dp=2,tp=2");
        assert_eq!(both.held.iter().sum::<usize>(), PARAMETERS + 5 + 4);
    }
}

#[derive(Module, Debug)]
struct Points {
    wide: Conv2d,
    narrow: Conv2d,
}

/// `PairwiseParallel` takes linears only: convolutions, even those of one tap, are unchanged. Channels are sharded by
/// `ColwiseParallel` and `RowwiseParallel`.
#[test]
fn pairwise_takes_linears_only() {
    let case = classifier(BATCH);
    let expected = case.eager();
    let run = case.trains(&expected, &PairwiseParallel.into(), "tp=2");
    run.seen.lies(&[("wide.weight", "f32[5, 2, 2, 7@tp]"), ("last.weight", "f32[7@tp, 4]")]);
    run.seen.lies(&[("stem.weight", "f32[6, 3, 3, 3]"), ("deep.weight", "f32[5, 6, 3, 3]")]);
    run.seen.at_most(0, 2, 2);

    let point = |from, to| Conv2dConfig::new([from, to], [1, 1]).init(&Device::flex());
    let points: Case<Points, Tensor<4>> = Case {
        model: filled(Points { wide: point(3, 6), narrow: point(6, 5) }, 0.8),
        data: vec![floats("images", &[4, 3, 8, 16])],
        batch: |data, device| Tensor::from_data(data[0].clone(), device),
        loss: |m, x| (m.narrow.forward(activation::relu(m.wide.forward(x))) - 0.5).powi_scalar(2).mean(),
    };
    let refused = points.compiled(&PairwiseParallel.into(), "tp=2", &CompileOptions::for_cpu());
    let refused = refused.err().unwrap().to_string();
    assert!(refused.starts_with("plan entry `` (PairwiseParallel) finds nothing to parallelize"), "{refused}");
    let plan = Plan::new().with("wide", ColwiseParallel::default()).with("narrow", RowwiseParallel::default());
    let run = points.trains(&points.eager(), &plan, "tp=4");
    run.seen.lies(&[("wide.weight", "f32[6@tp, 3]"), ("narrow.weight", "f32[5, 6@tp]"), ("narrow.bias", "f32[5]")]);
    run.seen.at_most(0, 2, 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// One dimension, groups, transposed convolutions

#[derive(Module, Debug)]
struct Signals {
    first: Conv1d,
    wide: Conv1d,
    depthwise: Conv1d,
    point: Conv1d,
    up: ConvTranspose1d,
    down: ConvTranspose1d,
}

type Signal = (Tensor<3>, Tensor<3>);

/// An autoencoder with convolutions of every kind: strides, dilation, groups, a kernel of one tap, transposed ones.
fn signals() -> Case<Signals, Signal> {
    let d = &Device::flex();
    let model = Signals {
        first: Conv1dConfig::new(2, 4, 3).with_padding(PaddingConfig1d::Explicit(1, 1)).init(d),
        wide: Conv1dConfig::new(4, 6, 3)
            .with_stride(2)
            .with_dilation(2)
            .with_padding(PaddingConfig1d::Explicit(2, 1))
            .init(d),
        depthwise: Conv1dConfig::new(6, 6, 3).with_groups(6).with_padding(PaddingConfig1d::Explicit(1, 1)).init(d),
        point: Conv1dConfig::new(6, 7, 1).init(d),
        up: ConvTranspose1dConfig::new([7, 5], 4).with_stride(2).with_padding(1).init(d),
        down: ConvTranspose1dConfig::new([5, 2], 3).with_padding(1).with_bias(false).init(d),
    };
    let loss = |m: &Signals, (x, y): Signal| {
        let h = activation::tanh(m.first.forward(x));
        let h = activation::silu(m.wide.forward(h));
        let h = activation::relu(m.depthwise.forward(h));
        let h = MaxPool1dConfig::new(3).with_stride(1).with_padding(PaddingConfig1d::Explicit(1, 1)).init().forward(h);
        let h = AvgPool1dConfig::new(3).with_stride(1).with_padding(PaddingConfig1d::Explicit(1, 1)).init().forward(h);
        let h = activation::gelu(m.point.forward(h));
        let h = activation::relu(m.up.forward(h));
        (m.down.forward(h) - y).powi_scalar(2).mean()
    };
    let data = vec![floats("signals", &[3, 2, 16]), floats("targets", &[3, 2, 16])];
    let batch = |data: &[TensorData], device: &Device| {
        (Tensor::from_data(data[0].clone(), device), Tensor::from_data(data[1].clone(), device))
    };
    Case { model: filled(model, 0.8), data, batch, loss }
}

#[test]
fn signals_by_channels() {
    let case = signals();
    let expected = case.eager();
    let plan = || {
        Plan::new()
            .with("{wide,depthwise,up}", ColwiseParallel::default())
            .with("{point,down}", RowwiseParallel::default())
    };
    for on in ["tp=2", "tp=3", "tp=4"] {
        let run = case.trains(&expected, &plan(), on);
        let seen = &run.seen;
        seen.lies(&[
            ("wide.weight", "f32[6@tp, 4, 3]"),
            ("depthwise.weight", "f32[6@tp, 3]"),
            ("point.weight", "f32[7, 6@tp]"),
        ]);
        seen.lies(&[("up.weight", "f32[7, 5@tp, 4]"), ("up.bias", "f32[5@tp]"), ("down.weight", "f32[5@tp, 2, 3]")]);
        for (from, to, channels) in [("wide", "depthwise", 6), ("depthwise", "point", 6), ("up", "down", 5)] {
            for ty in run.between(from, to) {
                assert!(cut_only(ty, &seen.placed, "tp", channels), "{}", ty.display(&seen.placed.mesh));
            }
        }
        // Two pairs, and the input of each needs its gradient.
        seen.at_most(0, 4, 4);
    }
    case.trains(&expected, &plan().along("tp").ddp("dp"), "dp=2,tp=2").seen.at_most(0, 4, 4);
    case.trains(&expected, &Plan::built_in("ddp").unwrap(), "dp=2");
    case.trains(&expected, &Plan::built_in("fsdp").unwrap(), "dp=4");
}

#[derive(Module, Debug)]
struct Autoencoder {
    down: Conv2d,
    up: ConvTranspose2d,
}

#[test]
fn a_transposed_convolution_closes_a_pair() {
    let d = &Device::flex();
    let model = Autoencoder {
        down: Conv2dConfig::new([3, 6], [2, 2]).with_stride([2, 2]).init(d),
        up: ConvTranspose2dConfig::new([6, 3], [2, 2]).with_stride([2, 2]).init(d),
    };
    let case: Case<Autoencoder, Tensor<4>> = Case {
        model: filled(model, 0.8),
        data: vec![floats("images", &[4, 3, 8, 16])],
        batch: |data, device| Tensor::from_data(data[0].clone(), device),
        loss: |m, x| (m.up.forward(activation::relu(m.down.forward(x.clone()))) - x).powi_scalar(2).mean(),
    };
    let expected = case.eager();
    let plan = Plan::new().with("down", ColwiseParallel::default()).with("up", RowwiseParallel::default());
    for on in ["tp=2", "tp=4"] {
        let run = case.trains(&expected, &plan, on);
        run.seen.lies(&[
            ("down.weight", "f32[6@tp, 3, 2, 2]"),
            ("up.weight", "f32[6@tp, 3, 2, 2]"),
            ("up.bias", "f32[3]"),
        ]);
        for ty in run.between("down", "up") {
            assert!(cut_only(ty, &run.seen.placed, "tp", 6), "{}", ty.display(&run.seen.placed.mesh));
        }
        run.seen.at_most(0, 2, 0);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Norms

#[derive(Module, Debug)]
struct Normed {
    stem: Conv2d,
    group: GroupNorm,
    deep: Conv2d,
    instance: InstanceNorm,
    last: Linear,
}

/// Convolutions to 6 channels in groups, and to 5 channels.
fn normed(batch: usize, groups: usize) -> Case<Normed, Images> {
    let d = &Device::flex();
    let model = Normed {
        stem: conv(3, 6),
        group: GroupNormConfig::new(groups, 6).init(d),
        deep: conv(6, 5),
        instance: InstanceNormConfig::new(5).init(d),
        last: linear(20, 4),
    };
    let loss = |m: &Normed, (x, labels): Images| {
        let x = activation::relu(m.group.forward(m.stem.forward(x)));
        let x = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init().forward(x);
        let x = activation::relu(m.instance.forward(m.deep.forward(x)));
        let x = AdaptiveAvgPool2dConfig::new([2, 2]).init().forward(x).flatten::<2>(1, 3);
        cross_entropy(m.last.forward(x), labels)
    };
    Case { model: filled(model, 0.8), data: image_data(batch), batch: images, loss }
}

/// Groups of channels are cut as a whole, so that their statistics need no communication: 3 groups are uneven on 2
/// ranks, and one of 4 ranks has none. The same holds for the 5 instances.
#[test]
fn norms_of_channels_on_shards_of_them() {
    let case = normed(BATCH, 3);
    let expected = case.eager();
    let first = Plan::new().with("stem", ColwiseParallel::default()).with("deep", RowwiseParallel::default());
    let second = Plan::new().with("deep", ColwiseParallel::default()).with("last", RowwiseParallel::default());
    for on in ["tp=2", "tp=3", "tp=4"] {
        let run = case.trains(&expected, &first, on);
        run.seen.lies(&[("stem.weight", "f32[3@tp, 2, 3, 3, 3]"), ("deep.weight", "f32[5, 3@tp, 2, 3, 3]")]);
        run.seen.lies(&[("group.gamma", "f32[3, 2]"), ("instance.gamma", "f32[5]"), ("stem.bias", "f32[3@tp, 2]")]);
        for ty in run.between("stem", "deep") {
            assert!(cut_only(ty, &run.seen.placed, "tp", 3), "{}", ty.display(&run.seen.placed.mesh));
        }
        // Gain and bias of the norm are replicated, so their gradients are gathered.
        run.seen.at_most(2 * 6 * 4 + 1, 2, 0);
        let run = case.trains(&expected, &second, on);
        run.seen.lies(&[("deep.weight", "f32[5@tp, 3, 2, 3, 3]"), ("last.weight", "f32[5@tp, 2, 2, 4]")]);
        for ty in run.between("deep", "last") {
            assert!(cut_only(ty, &run.seen.placed, "tp", 5), "{}", ty.display(&run.seen.placed.mesh));
        }
        run.seen.at_most(2 * 6 * 4 + 1, 2, 2);
    }
    case.trains(&expected, &first.along("tp").ddp("dp"), "dp=2,tp=2");
    case.trains(&expected, &second.along("tp").enable_2d_with_fsdp("dp"), "dp=2,tp=2");
}

/// A single group of all channels is cut, and its statistics are reduced. Two groups, or one for each channel, are not.
#[test]
fn norms_of_groups_of_any_size() {
    for groups in [1, 2, 6] {
        let case = normed(4, groups);
        let expected = case.eager();
        let plan = Plan::new().with("stem", ColwiseParallel::default()).with("deep", RowwiseParallel::default());
        for on in ["tp=2", "tp=4"] {
            let run = case.trains(&expected, &plan, on);
            // Mean and variance of each image.
            let (seen, cut) = (&run.seen, if groups == 1 { 2 } else { 0 });
            assert_eq!(seen.small(Phase::Forward, "tp", 4 * 4 + 1), cut, "{groups} on {on}:\n{}", seen.list());
            seen.at_most(2 * 6 * 4 + 1, 2, 0);
        }
        case.trains(&expected, &Plan::built_in("ddp").unwrap(), "dp=2");
    }
}

#[test]
fn norms_of_channels_on_shards_of_the_batch() {
    for batch in [BATCH, 9] {
        let case = normed(batch, 3);
        let expected = case.eager();
        for on in ["dp=2", "dp=4"] {
            let run = case.trains(&expected, &Plan::built_in("ddp").unwrap(), on);
            for ty in run.between("stem", "last") {
                assert!(cut_only(ty, &run.seen.placed, "dp", batch), "{}", ty.display(&run.seen.placed.mesh));
            }
        }
        case.trains(&expected, &Plan::built_in("fsdp").unwrap(), "dp=2");
    }
}

#[derive(Module, Debug)]
struct Statistics {
    stem: Conv2d,
    norm: BatchNorm,
    deep: Conv2d,
    last: Linear,
}

/// A norm with running statistics. `prepare` chooses its mode.
fn statistics(prepare: fn(BatchNorm) -> BatchNorm) -> Case<Statistics, Images> {
    let norm = BatchNormConfig::new(6).init(&Device::flex());
    // A bias before the norm has a gradient of rounding errors only, which Adam would make as large as any other.
    let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
    let stem = Conv2dConfig::new([3, 6], [3, 3]).with_padding(padding).with_bias(false).init(&Device::flex());
    let model = Statistics { stem, norm, deep: conv(6, 5), last: linear(20, 4) };
    let loss = |m: &Statistics, (x, labels): Images| {
        let x = activation::relu(m.deep.forward(activation::relu(m.norm.forward(m.stem.forward(x)))));
        let x = AdaptiveAvgPool2dConfig::new([2, 2]).init().forward(x).flatten::<2>(1, 3);
        cross_entropy(m.last.forward(x), labels)
    };
    let mut model = filled(model, 0.8);
    let spread = |t: Tensor<1>| t.clone().sin() * 0.3 + 1.2;
    model.norm.running_mean = burn::module::RunningState::new(spread(model.norm.gamma.val()) * 0.2);
    model.norm.running_var = burn::module::RunningState::new(spread(model.norm.beta.val()));
    model.norm = prepare(model.norm);
    Case { model, data: image_data(BATCH), batch: images, loss }
}

/// In evaluation mode the norm reads its statistics and does not change them. If it is frozen, neither do its gain and
/// bias.
#[test]
fn a_batch_norm_in_evaluation_mode() {
    let only_evaluates = |mut norm: BatchNorm| {
        norm.training = norm.training.with_value(false);
        norm
    };
    for (case, trains) in [(statistics(BatchNorm::freeze), false), (statistics(only_evaluates), true)] {
        let expected = case.eager();
        assert_eq!(expected.gradients.contains_key("norm.gamma"), trains);
        let channels = Plan::new().with("stem", ColwiseParallel::default()).with("deep", RowwiseParallel::default());
        for (plan, on) in [
            (Plan::new(), ""),
            (Plan::built_in("ddp").unwrap(), "dp=2"),
            (Plan::built_in("fsdp").unwrap(), "dp=2"),
            (channels.clone(), "tp=2"),
            (channels.clone(), "tp=4"),
            (channels.along("tp").ddp("dp"), "dp=2,tp=2"),
        ] {
            let run = case.trains(&expected, &plan, on);
            let norm = &case.model.norm;
            for (name, value) in [("norm.running_mean", &norm.running_mean), ("norm.running_var", &norm.running_var)] {
                assert_eq!(run.seen.run.parameters[name], numbers(value.value().into_data()), "{name}");
            }
        }
    }
}

/// In training mode the norm uses the statistics of the whole batch, however the batch is sharded, and updates its
/// running statistics as burn does on one device.
#[test]
fn a_batch_norm_in_training_mode() {
    let channels = || Plan::new().with("stem", ColwiseParallel::default()).with("deep", RowwiseParallel::default());
    let built_in = |name| Plan::built_in(name).unwrap();
    let plans = || {
        vec![
            (Plan::new(), ""),
            (built_in("none"), "dp=2"),
            (built_in("ddp"), "dp=2"),
            (built_in("ddp"), "dp=4"),
            (built_in("fsdp"), "dp=2"),
            (built_in("fsdp"), "dp=4"),
            (built_in("zero1"), "dp=2"),
            (channels(), "tp=2"),
            (channels(), "tp=4"),
            (channels().along("tp").ddp("dp"), "dp=2,tp=2"),
            (channels().along("tp").enable_2d_with_fsdp("dp"), "dp=2,tp=2"),
        ]
    };
    // An uneven batch, and batches with fewer rows than there are ranks.
    for batch in [BATCH, 7, 3, 2] {
        let case = Case { data: image_data(batch), ..statistics(|norm| norm) };
        let expected = case.eager();
        let before = numbers(case.model.norm.running_mean.value().into_data());
        assert_ne!(expected.parameters["norm.running_mean"], before);
        for (plan, on) in plans() {
            case.trains(&expected, &plan, on);
        }
    }
}

/// The statistics of the batch are the only collectives that the norm adds to data parallelism: its forward and
/// backward sums, each reduced once.
#[test]
fn what_a_batch_norm_communicates() {
    let case = statistics(|norm| norm);
    let without = statistics(BatchNorm::freeze);
    let reduced = |case: &Case<Statistics, Images>| {
        let run = case.trains(&case.eager(), &Plan::built_in("ddp").unwrap(), "dp=2");
        let forward_and_backward = |phase: Phase| {
            let graph = &run.seen.placed;
            let of_phase = |n: &_| graph.node(*n).origin.phase == phase && graph.node(*n).op.is_collective();
            graph.nodes().filter(of_phase).map(|n| graph.node(n).types[0].shape.clone()).collect::<Vec<_>>()
        };
        (forward_and_backward(Phase::Forward), forward_and_backward(Phase::Backward))
    };
    let ((forward, backward), (forward_frozen, _)) = (reduced(&case), reduced(&without));
    let of_channels =
        |shapes: &[Vec<usize>]| shapes.iter().filter(|shape| shape.iter().product::<usize>() == 6).count();
    assert_eq!((of_channels(&forward), of_channels(&forward_frozen)), (2, 0), "{forward:?}, {forward_frozen:?}");
    insta::assert_debug_snapshot!((forward, backward));
}

/// Micro-batches share the statistics of the whole batch, so that the step equals that of the whole batch.
#[test]
fn a_batch_norm_in_micro_batches() {
    let case = statistics(|norm| norm);
    let expected = case.eager();
    for (plan, on) in [("none", ""), ("ddp", "dp=2"), ("fsdp", "dp=2")] {
        let step = StepOptions { micro_batches: 3, ..StepOptions::default() };
        let options = CompileOptions { gradients: true, step, ..CompileOptions::for_cpu() };
        case.trains_with(&expected, &Plan::built_in(plan).unwrap(), on, &options);
    }
}

/// What a captured step cannot express is an error: a norm that runs twice, and one whose update is not available.
#[test]
fn batch_norms_that_are_refused() {
    let adamw = AdamWConfig::new().build();
    let batch = images(&image_data(BATCH), &Device::flex());
    let norm = || BatchNormConfig::new(3).init(&Device::flex());
    let several = vec![(norm(), norm().freeze()), (norm(), norm())];
    let twice = |m: &Vec<(BatchNorm, BatchNorm)>, (x, _): Images| m[1].0.forward(m[1].0.forward(x)).square().mean();
    let refused = capture_training(&several, &adamw, batch.clone(), twice).unwrap_err();
    assert_eq!(refused, CaptureError::NormRunsTwice { modules: vec!["0.0".into(), "1.0".into(), "1.1".into()] });
    insta::assert_snapshot!(refused);
    let twice = |m: &BatchNorm, (x, _): Images| m.forward(m.forward(x)).square().mean();
    insta::assert_snapshot!(capture_training(&norm(), &adamw, batch.clone(), twice).unwrap_err());
    // The table of a rotary encoding is a tensor that is not a parameter.
    let build = |d: &Device| {
        let rope = burn::nn::RotaryEncodingConfig::new(4, 4).init(d);
        (rope, BatchNormConfig::new(3).init(d))
    };
    let once = |m: &(burn::nn::RotaryEncoding, BatchNorm), (x, _): Images| m.1.forward(x).square().mean();
    let options = TrainingOptions::default();
    let refused = capture_training_shapes(build, &adamw, batch.clone(), &options, once).unwrap_err();
    assert_eq!(refused, CaptureError::StatisticsHidden { modules: vec!["1".into()] });
    insta::assert_snapshot!(refused);
    // If the model is passed by value it can be captured, and a norm in evaluation mode is allowed.
    capture_training(&build(&Device::flex()), &adamw, batch.clone(), once).unwrap();
    let frozen = |d: &Device| (LinearConfig::new(16, 16).init(d), BatchNormConfig::new(3).init(d).freeze());
    let forward = |m: &(Linear, BatchNorm), (x, _): Images| m.1.forward(m.0.forward(x)).square().mean();
    capture_training_shapes(frozen, &adamw, batch, &options, forward).unwrap();
}
