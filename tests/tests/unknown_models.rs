//! Models that belong to no known family, through the Rust API, sharded by globs: equal to eager burn on its own CPU
//! backend.

use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::pool::{AdaptiveAvgPool2dConfig, MaxPool2dConfig};
use burn::nn::{
    Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig,
    PaddingConfig2d,
};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, ModuleOptimizer, Optimizer, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use tpc::OutputKind;
use tpc_compiler::capture::{Batch, capture_inference, capture_training};
use tpc_compiler::program::{CompileOptions, compile_inference, compile_training};
use tpc_passes::styles::{ColwiseParallel, PairwiseParallel, Plan, RowwiseParallel};
use tpc_runtime::LaunchOptions;
use tpc_runtime::Session;
use tpc_tests::eager::{filled, numbers, train};
use tpc_tests::training::{Run, differences, mesh, run, uniform};

// ---------------------------------------------------------------------------------------------------------------------
// An encoder-decoder

#[derive(Module, Debug)]
struct Mix {
    up: Linear,
    down: Linear,
}

impl Mix {
    fn new(d: usize, h: usize, device: &Device) -> Self {
        Mix { up: LinearConfig::new(d, h).init(device), down: LinearConfig::new(h, d).init(device) }
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.down.forward(activation::gelu(self.up.forward(x)))
    }
}

#[derive(Module, Debug)]
struct EncoderLayer {
    attn: MultiHeadAttention,
    norm1: LayerNorm,
    mix: Mix,
    norm2: LayerNorm,
}

#[derive(Module, Debug)]
struct DecoderLayer {
    self_attn: MultiHeadAttention,
    norm1: LayerNorm,
    cross_attn: MultiHeadAttention,
    norm2: LayerNorm,
    mix: Mix,
    norm3: LayerNorm,
}

#[derive(Module, Debug)]
struct Translator {
    source: Embedding,
    target: Embedding,
    encoder: Vec<EncoderLayer>,
    decoder: Vec<DecoderLayer>,
    dropout: Dropout,
    head: Linear,
}

const WIDTH: usize = 24;
const HEADS: usize = 6;
const VOCAB: usize = 19;
const BATCH: usize = 4;
const FROM: usize = 7;
const TO: usize = 5;

impl Translator {
    fn new() -> Self {
        let device = &Device::flex();
        let attention = || MultiHeadAttentionConfig::new(WIDTH, HEADS).with_dropout(0.0).init(device);
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let mix = || Mix::new(WIDTH, 42, device);
        let encoder = || EncoderLayer { attn: attention(), norm1: norm(), mix: mix(), norm2: norm() };
        let decoder = || DecoderLayer {
            self_attn: attention(),
            norm1: norm(),
            cross_attn: attention(),
            norm2: norm(),
            mix: mix(),
            norm3: norm(),
        };
        filled(
            Translator {
                source: EmbeddingConfig::new(VOCAB, WIDTH).init(device),
                target: EmbeddingConfig::new(VOCAB, WIDTH).init(device),
                encoder: (0..2).map(|_| encoder()).collect(),
                decoder: (0..2).map(|_| decoder()).collect(),
                dropout: DropoutConfig::new(0.0).init(),
                head: LinearConfig::new(WIDTH, VOCAB).init(device),
            },
            0.6,
        )
    }

    fn forward(&self, from: Tensor<2, Int>, to: Tensor<2, Int>) -> Tensor<3> {
        let padding = from.clone().equal_elem(0);
        let mut x = self.source.forward(from);
        for layer in &self.encoder {
            let attended = layer.attn.forward(MhaInput::self_attn(x.clone()).mask_pad(padding.clone())).context;
            x = layer.norm1.forward(x + self.dropout.forward(attended));
            x = layer.norm2.forward(x.clone() + layer.mix.forward(x));
        }
        let [batch, length] = to.dims();
        let causal = generate_autoregressive_mask(batch, length, &to.device());
        let mut y = self.target.forward(to);
        for layer in &self.decoder {
            let attended = layer.self_attn.forward(MhaInput::self_attn(y.clone()).mask_attn(causal.clone())).context;
            y = layer.norm1.forward(y + self.dropout.forward(attended));
            let input = MhaInput::new(y.clone(), x.clone(), x.clone()).mask_pad(padding.clone());
            y = layer.norm2.forward(y + layer.cross_attn.forward(input).context);
            y = layer.norm3.forward(y.clone() + layer.mix.forward(y));
        }
        self.head.forward(y)
    }

    fn loss(&self, logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
        let [b, t, v] = logits.dims();
        let loss = CrossEntropyLossConfig::new().with_pad_tokens(Some(vec![0])).init(&logits.device());
        loss.forward(logits.reshape([b * t, v]), labels.reshape([b * t]))
    }
}

fn tokens(name: &str, shape: [usize; 2]) -> TensorData {
    let mut draw = uniform(name);
    let pad = |i: usize| i % shape[1] + i / shape[1] + 1 > shape[1];
    let value = |i: usize| if pad(i) { 0 } else { 1 + (draw() * (VOCAB - 1) as f64) as i64 };
    TensorData::new((0..shape[0] * shape[1]).map(value).collect::<Vec<i64>>(), shape)
}

type Translation = (Tensor<2, Int>, Tensor<2, Int>, Tensor<2, Int>);

fn translation_data() -> Vec<TensorData> {
    vec![tokens("from", [BATCH, FROM]), tokens("to", [BATCH, TO]), tokens("labels", [BATCH, TO])]
}

fn translation(data: &[TensorData], device: &Device) -> Translation {
    let int = |i: usize| Tensor::from_data(data[i].clone(), device);
    (int(0), int(1), int(2))
}

// ---------------------------------------------------------------------------------------------------------------------
// A nest with convolutions

#[derive(Module, Debug)]
struct Stem {
    conv: Conv2d,
}

#[derive(Module, Debug)]
struct Gate {
    open: Linear,
    close: Linear,
}

#[derive(Module, Debug)]
struct Branch {
    wide: Conv2d,
    narrow: Conv2d,
    gate: Gate,
}

#[derive(Module, Debug)]
struct Trunk {
    branches: Vec<Branch>,
}

#[derive(Module, Debug)]
struct Nest {
    stem: Stem,
    trunk: Trunk,
    head: Mix,
    last: Linear,
}

impl Nest {
    fn new() -> Self {
        let device = &Device::flex();
        let conv = |from, to| {
            Conv2dConfig::new([from, to], [3, 3]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1)).init(device)
        };
        let branch = || Branch {
            wide: conv(6, 10),
            narrow: conv(10, 6),
            gate: Gate { open: LinearConfig::new(6, 10).init(device), close: LinearConfig::new(10, 6).init(device) },
        };
        filled(
            Nest {
                stem: Stem { conv: Conv2dConfig::new([3, 6], [2, 2]).with_stride([2, 2]).init(device) },
                trunk: Trunk { branches: (0..2).map(|_| branch()).collect() },
                head: Mix::new(6, 14, device),
                last: LinearConfig::new(6, 5).with_bias(false).init(device),
            },
            0.8,
        )
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let pool = MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init();
        let mut x = activation::relu(self.stem.conv.forward(x));
        for branch in &self.trunk.branches {
            let inner = branch.narrow.forward(activation::silu(branch.wide.forward(x.clone())));
            let mean = x.clone().mean_dim(3).mean_dim(2).flatten::<2>(1, 3);
            let gate = activation::sigmoid(branch.gate.close.forward(activation::relu(branch.gate.open.forward(mean))));
            let [b, c] = gate.dims();
            x = x + inner * gate.reshape([b, c, 1, 1]);
        }
        let x = AdaptiveAvgPool2dConfig::new([1, 1]).init().forward(pool.forward(x)).flatten::<2>(1, 3);
        self.last.forward(self.head.forward(x))
    }
}

type Images = (Tensor<4>, Tensor<2>);

fn image_data() -> Vec<TensorData> {
    let numbers = |name: &str, shape: &[usize]| {
        let mut draw = uniform(name);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw() as f32 - 0.5).collect();
        TensorData::new(values, shape.to_vec())
    };
    vec![numbers("images", &[4, 3, 12, 8]), numbers("targets", &[4, 5])]
}

fn images(data: &[TensorData], device: &Device) -> Images {
    (Tensor::from_data(data[0].clone(), device), Tensor::from_data(data[1].clone(), device))
}

// ---------------------------------------------------------------------------------------------------------------------
// Both, the same way

const RATES: [f64; 3] = [0.01, 0.02, 0.01];

fn write(session: &mut Session, data: &[TensorData]) {
    for (i, data) in data.iter().enumerate() {
        let name = format!("input{i}");
        if session.program(0).inputs.iter().any(|input| input.name == name) {
            session.write_f64(&name, &numbers(data.clone())).unwrap();
        }
    }
}

struct Case<M, B> {
    model: M,
    data: Vec<TensorData>,
    batch: fn(&[TensorData], &Device) -> B,
    loss: fn(&M, B) -> Tensor<1>,
}

impl<M: Module, B: Batch<Tensors = B>> Case<M, B> {
    fn forward_is_equal<const D: usize>(&self, forward: fn(&M, B) -> Tensor<D>, plans: &[(Plan, &str)]) {
        let expected = numbers(forward(&self.model, (self.batch)(&self.data, &Device::flex())).into_data());
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (plan, on) in plans {
            let captured = capture_inference(&self.model, (self.batch)(&self.data, &Device::flex()), forward).unwrap();
            let program = compile_inference(&captured, &mesh(on), plan, &CompileOptions::for_cpu(), &|p| p.to_string());
            let mut session = program.unwrap_or_else(|e| panic!("{on}: {e}")).launch(LaunchOptions::default()).unwrap();
            write(&mut session, &self.data);
            session.step().unwrap();
            let found = session.read_f64(&OutputKind::Result("output0".into())).unwrap();
            assert_eq!(found.len(), expected.len());
            for (f, e) in found.iter().zip(&expected) {
                assert!((f - e).abs() <= 1e-5 * scale, "{on}: {f}, expected {e}");
            }
        }
    }

    fn training_is_equal<O: Optimizer>(&self, optimizer: impl Fn() -> (O, ModuleOptimizer), plans: &[(Plan, &str)]) {
        let expected: Run =
            train(&self.model, optimizer().1, &RATES, |m, device| (self.loss)(m, (self.batch)(&self.data, device)));
        assert!(expected.losses[2] < expected.losses[0], "{:?}", expected.losses);
        let mut wrong = Vec::new();
        for (plan, on) in plans {
            let capture =
                capture_training(&self.model, &optimizer().0, (self.batch)(&self.data, &Device::flex()), |m: &M, b| {
                    (self.loss)(m, b)
                });
            let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
            let program = compile_training(capture.unwrap(), &mesh(on), plan, &options, &|p| p.to_string());
            let program = program.unwrap_or_else(|e| panic!("{on}: {e}"));
            let found = run(program, &RATES, |session| write(session, &self.data));
            wrong.extend(differences(&found, &expected).into_iter().map(|d| format!("{on}: {d}")));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

fn adam() -> (impl Optimizer, ModuleOptimizer) {
    let config = AdamConfig::new();
    (config.build(), config.init())
}

fn momentum() -> (impl Optimizer, ModuleOptimizer) {
    let config = SgdConfig::new().with_momentum(Some(MomentumConfig::new().with_nesterov(true)));
    (config.build(), config.init())
}

fn translator() -> Case<Translator, Translation> {
    let loss = |m: &Translator, (from, to, labels): Translation| m.loss(m.forward(from, to), labels);
    Case { model: Translator::new(), data: translation_data(), batch: translation, loss }
}

fn translator_plans() -> Vec<(Plan, &'static str)> {
    let globs = Plan::new()
        .with("encoder.*.attn", PairwiseParallel)
        .with("decoder.*.{self,cross}_attn", PairwiseParallel)
        .with("{en,de}coder.[0-9].mix", PairwiseParallel)
        .with("source", RowwiseParallel::default())
        .with("target", ColwiseParallel::default())
        .with("head", ColwiseParallel::default());
    let whole = Plan::new().with("encoder.*", PairwiseParallel).with("decoder.?", PairwiseParallel);
    let both = globs.clone().along("tp").ddp("dp");
    vec![
        (globs.clone(), ""),
        (globs.clone(), "tp=2"),
        (globs, "tp=4"),
        (whole, "model=2"),
        (both, "dp=2,tp=2"),
        (Plan::built_in("tp").unwrap(), "tp=2"),
    ]
}

fn nest() -> Case<Nest, Images> {
    let loss = |m: &Nest, (x, y): Images| (m.forward(x) - y).powi_scalar(2).mean();
    Case { model: Nest::new(), data: image_data(), batch: images, loss }
}

fn nest_plans() -> Vec<(Plan, &'static str)> {
    let linears = Plan::new().with("trunk.branches.*.gate", PairwiseParallel).with("head", PairwiseParallel);
    let both = linears.clone().along("tp").ddp("dp");
    vec![(linears.clone(), "tp=1"), (linears.clone(), "tp=2"), (linears, "tp=4"), (both, "dp=2,tp=2")]
}

fn convolution_plans() -> Vec<(Plan, &'static str)> {
    let convolutions = Plan::new()
        .with("stem.conv", ColwiseParallel::default())
        .with("trunk.branches.*.wide", ColwiseParallel::default())
        .with("trunk.branches.*.narrow", RowwiseParallel::default())
        .with("head.up", ColwiseParallel::default())
        .with("head.down", RowwiseParallel::default())
        .with("last", RowwiseParallel::default());
    vec![(convolutions.clone(), "tp=1"), (convolutions.clone(), "tp=2"), (convolutions, "tp=4")]
}

#[test]
fn encoder_decoder_forward() {
    translator().forward_is_equal(|m, (from, to, _)| m.forward(from, to), &translator_plans());
}

#[test]
fn encoder_decoder_with_adam() {
    translator().training_is_equal(adam, &translator_plans());
}

#[test]
fn encoder_decoder_with_momentum() {
    translator().training_is_equal(momentum, &translator_plans());
}

#[test]
fn nest_forward() {
    nest().forward_is_equal(|m, (x, _)| m.forward(x), &nest_plans());
}

#[test]
fn nest_with_adam() {
    nest().training_is_equal(adam, &nest_plans());
}

#[test]
fn nest_with_momentum() {
    nest().training_is_equal(momentum, &nest_plans());
}

/// The parameters that a plan leaves whole on every rank.
fn whole(program: &tpc_compiler::program::InferenceProgram) -> Vec<String> {
    let graph = &program.stages.placed;
    let inputs = graph.inputs().filter(|(_, id)| id.is_parameter());
    let whole = inputs.filter(|(node, _)| graph.node(*node).types[0].sharding.is_replicated());
    whole.map(|(_, id)| id.to_string()).collect()
}

#[test]
fn what_the_globs_name_is_cut() {
    let (case, plans) = (translator(), translator_plans());
    let batch = (case.batch)(&case.data, &Device::flex());
    let captured = capture_inference(&case.model, batch, |m: &Translator, (from, to, _)| m.forward(from, to)).unwrap();
    for i in [1, 2] {
        let program = compile_inference(&captured, &mesh(plans[i].1), &plans[i].0, &CompileOptions::for_cpu(), &|p| {
            p.to_string()
        });
        let rest = whole(&program.unwrap());
        let plain = |n: &&String| n.contains("norm") || n.ends_with("output.bias") || n.ends_with("down.bias");
        assert_eq!(rest.iter().filter(|n| !plain(n)).collect::<Vec<_>>(), Vec::<&String>::new());
    }
    let (case, plans) = (nest(), convolution_plans());
    let batch = (case.batch)(&case.data, &Device::flex());
    let captured = capture_inference(&case.model, batch, |m: &Nest, (x, _)| m.forward(x)).unwrap();
    let program =
        compile_inference(&captured, &mesh(plans[1].1), &plans[1].0, &CompileOptions::for_cpu(), &|p| p.to_string());
    let rest = whole(&program.unwrap());
    let plain = |n: &&String| n.contains("gate") || n.ends_with("narrow.bias") || n.ends_with("down.bias");
    assert_eq!(rest.iter().filter(|n| !plain(n)).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn sharded_convolutions_forward() {
    nest().forward_is_equal(|m, (x, _)| m.forward(x), &convolution_plans());
}

#[test]
fn sharded_convolutions_with_adam() {
    nest().training_is_equal(adam, &convolution_plans());
}
