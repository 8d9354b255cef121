//! Convolutions and poolings sharded on the batch and on channels: small CNNs train under data and channel-wise
//! tensor parallelism as burn trains them eagerly, and pooling runs where the channels lie.

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
use tpc::capture::{Batch, CaptureError, TrainingOptions, capture_training, capture_training_shapes};
use tpc::program::{CompileOptions, Error, TrainingProgram, compile_training};
use tpc::{ColwiseParallel, Graph, InputKind, Layout, PairwiseParallel, Plan, RowwiseParallel};
use tpc_ir::{Op, Phase, Type, Value};
use tpc_passes::styles::regions::ancestors;
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

/// What three steps under a plan were.
struct Trained {
    seen: Seen,
    /// Elements of parameters that each rank holds.
    held: Vec<usize>,
}

impl<M: Module, B: Batch<Tensors = B>> Case<M, B> {
    fn compiled(&self, plan: &Plan, on: &str) -> Result<TrainingProgram, Error> {
        let batch = (self.batch)(&self.data, &Device::flex());
        let capture = capture_training(&self.model, &AdamWConfig::new().build(), batch, |m: &M, b| (self.loss)(m, b));
        let options = CompileOptions { gradients: true, ..CompileOptions::default() };
        compile_training(capture?, &mesh(on), plan, &options, &|p| p.to_string())
    }

    fn eager(&self) -> Run {
        let loss = |m: &M, device: &Device| (self.loss)(m, (self.batch)(&self.data, device));
        let run = train(&self.model, AdamWConfig::new().init(), &RATES, loss);
        assert!(run.losses[2] < run.losses[0], "{:?}", run.losses);
        run
    }

    /// Three steps under a plan are burn's.
    fn trains(&self, expected: &Run, plan: &Plan, on: &str) -> Trained {
        let program = self.compiled(plan, on).unwrap_or_else(|e| panic!("{on}: {e}"));
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
    /// The types of everything that is computed from the result of one module and goes into the product of another, in
    /// the forward pass; none of it is a collective.
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
    let weight = format!("{module}.weight");
    let (input, ..) = graph.inputs().find(|(_, _, name)| *name == weight).unwrap();
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

/// Whether exactly one dimension of a type is cut, of that extent, by that axis.
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

/// No extent of an image is a number of channels, so that what is cut is known by its extent.
#[derive(Module, Debug)]
struct Classifier {
    stem: Conv2d,
    deep: Conv2d,
    wide: Linear,
    last: Linear,
}

const BATCH: usize = 12;
/// Bytes of what the second convolution gives, and of what goes into it.
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
    Plan::new()
        .with("{stem,wide}", ColwiseParallel::default())
        .with("{deep,last}", RowwiseParallel::default())
}

/// One pair of a convolution and a linear with the poolings in between.
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
            // Every gradient is reduced once, together; the loss is a number.
            let seen = &run.seen;
            assert!(seen.halves(Phase::Forward, "dp", 64) == 0, "{}", seen.list());
            let gradients = seen.executed.iter().filter(|c| c.0 != Phase::Forward).map(|c| c.3 as u64 * c.4).sum::<u64>();
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
        // The images need no gradient, so the convolutions reduce nothing on the way back; the linears' input does.
        seen.at_most(DEEP, 2, 0);
        seen.at_most(0, 4, 2);
        println!("{on}:\n{}\n{:?}", seen.list(), run.held);
        let replicated = 5 + 4;
        assert_eq!(run.held.iter().sum::<usize>(), PARAMETERS + (ranks - 1) * replicated);
        let largest = |n: usize| n.div_ceil(ranks);
        let most = largest(6) * (28 + 45) + largest(7) * 25 + replicated;
        assert!(run.held.iter().all(|&n| n <= most), "{:?}", run.held);
    }
}
