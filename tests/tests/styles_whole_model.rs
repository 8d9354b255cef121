//! The built-in plans `tp` and `tp-sp` on models that begin with a linear: which weights are cut, which collectives
//! run, and that the result equals burn's own.

use burn::module::{Module, Param};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{Initializer, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData, activation};
use tpc_ir::Phase;
use tpc_passes::styles::{PairwiseParallel, PairwiseSequenceParallel, Plan};
use tpc_tests::eager::filled;
use tpc_tests::styles::{Case, Seen, floats};
use tpc_tests::training::plan;

const BATCH: usize = 8;
const TOKENS: usize = 12;
const FEATURES: usize = 5;
const WIDTH: usize = 32;
const INNER: usize = 60;
const CLASSES: usize = 6;
const BLOCKS: u64 = 2;
/// Bytes of the residual stream.
const ACTIVATION: usize = BATCH * TOKENS * WIDTH * 4;

fn linear(from: usize, to: usize) -> Linear {
    LinearConfig::new(from, to).init(&Device::flex())
}

fn norm() -> LayerNorm {
    LayerNormConfig::new(WIDTH).init(&Device::flex())
}

fn x(data: &[TensorData], device: &Device) -> Tensor<3> {
    Tensor::from_data(data[0].clone(), device)
}

fn batch() -> Vec<TensorData> {
    vec![floats("x", &[BATCH, TOKENS, FEATURES])]
}

/// The mean over the tokens.
fn pooled(x: Tensor<3>) -> Tensor<2> {
    x.mean_dim(1).squeeze_dim(1)
}

// ---------------------------------------------------------------------------------------------------------------------
// A vision transformer: the attention is a separate module next to the MLP

#[derive(Module, Debug)]
struct Block {
    norm1: LayerNorm,
    attn: MultiHeadAttention,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new() -> Self {
        let attn = MultiHeadAttentionConfig::new(WIDTH, 4).with_dropout(0.0).init(&Device::flex());
        Block { norm1: norm(), attn, norm2: norm(), up: linear(WIDTH, INNER), down: linear(INNER, WIDTH) }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(MhaInput::self_attn(self.norm1.forward(x))).context;
        x.clone() + self.down.forward(activation::gelu(self.up.forward(self.norm2.forward(x))))
    }
}

#[derive(Module, Debug)]
struct Vit {
    patches: Linear,
    positions: Param<Tensor<2>>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

fn vit() -> Case<Vit, Tensor<3>, 2> {
    let model = Vit {
        patches: linear(FEATURES, WIDTH),
        positions: Initializer::Zeros.init([TOKENS, WIDTH], &Device::flex()),
        blocks: (0..BLOCKS).map(|_| Block::new()).collect(),
        norm: norm(),
        head: linear(WIDTH, CLASSES),
    };
    let forward = |m: &Vit, x: Tensor<3>| {
        let x = m.patches.forward(x) + m.positions.val().unsqueeze();
        let x = m.blocks.iter().fold(x, |x, block| block.forward(x));
        m.head.forward(pooled(m.norm.forward(x)))
    };
    Case { model: filled(model, 0.4), data: batch(), batch: x, forward }
}

/// Checks the placements in a vision transformer, except for its head.
fn lies_in_pairs(seen: &Seen) {
    seen.lies(&[("patches.weight", "f32[5, 32]"), ("patches.bias", "f32[32]"), ("positions", "f32[12, 32]")]);
    for block in 0..BLOCKS {
        let lies = |name: &str, ty: &str| seen.lies(&[(&format!("blocks.{block}.{name}"), ty)]);
        for name in ["query", "key", "value"] {
            lies(&format!("attn.{name}.weight"), "f32[32, 4@tp, 8]");
            lies(&format!("attn.{name}.bias"), "f32[4@tp, 8]");
        }
        lies("attn.output.weight", "f32[4@tp, 8, 32]");
        lies("attn.output.bias", "f32[32]");
        lies("up.weight", "f32[32, 60@tp]");
        lies("up.bias", "f32[60@tp]");
        lies("down.weight", "f32[60@tp, 32]");
        lies("down.bias", "f32[32]");
        for name in ["norm1.gamma", "norm1.beta", "norm2.gamma", "norm2.beta"] {
            lies(name, "f32[32]");
        }
    }
    seen.lies(&[("norm.gamma", "f32[32]"), ("norm.beta", "f32[32]")]);
}

/// The number of collectives of this kind on the residual stream in a phase.
fn of_stream(seen: &Seen, phase: Phase, kind: &str) -> u64 {
    let found = seen.executed.iter().filter(|c| c.0 == phase && c.2 == kind && c.3 >= ACTIVATION);
    found.map(|c| c.4).sum()
}

/// All-reduces, all-gathers and reduce-scatters of the residual stream in a phase.
fn exchanges(seen: &Seen, phase: Phase) -> [u64; 3] {
    ["all_reduce", "all_gather", "reduce_scatter"].map(|kind| of_stream(seen, phase, kind))
}

#[test]
fn a_vision_transformer_is_cut_in_pairs() {
    let case = vit();
    let expected = case.eager();
    for on in ["tp=2", "tp=4"] {
        let seen = case.equals(&expected, &plan("tp"), on);
        lies_in_pairs(&seen);
        seen.lies(&[("head.weight", "f32[32, 6@tp]"), ("head.bias", "f32[6@tp]"), ("y", "f32[8, 6@tp]")]);
        // After the attention and after the MLP of each block, and the same for the gradients.
        assert_eq!(exchanges(&seen, Phase::Forward), [2 * BLOCKS, 0, 0], "{on}\n{}", seen.list());
        assert_eq!(exchanges(&seen, Phase::Backward), [2 * BLOCKS, 0, 0], "{on}\n{}", seen.list());
    }
}

#[test]
fn a_vision_transformer_on_a_shard_of_its_tokens() {
    let case = vit();
    let expected = case.eager();
    for on in ["tp=2", "tp=3"] {
        let seen = case.equals(&expected, &plan("tp-sp"), on);
        if on == "tp=2" {
            lies_in_pairs(&seen);
        }
        // Each rank embeds the patches of its own tokens.
        for phase in [Phase::Forward, Phase::Backward] {
            assert_eq!(exchanges(&seen, phase), [0, 2 * BLOCKS, 2 * BLOCKS], "{on}\n{}", seen.list());
        }
    }
}

#[test]
fn data_axes_beside_it() {
    let case = vit();
    let expected = case.eager();
    for name in ["tp-ddp", "2d", "tp-sp-fsdp"] {
        case.equals(&expected, &plan(name), "dp=2,tp=2");
    }
}

/// Only pairs are sharded: the plan may name the whole transformer, and its head stays whole.
#[test]
fn pairs_of_a_whole_transformer() {
    let case = vit();
    let expected = case.eager();
    let seen = case.equals(&expected, &PairwiseParallel.into(), "tp=2");
    lies_in_pairs(&seen);
    seen.lies(&[("head.weight", "f32[32, 6]"), ("head.bias", "f32[6]"), ("y", "f32[8, 6]")]);
    assert_eq!(exchanges(&seen, Phase::Forward), [2 * BLOCKS, 0, 0], "{}", seen.list());
    let sequence = Plan::new().with("blocks.*", PairwiseSequenceParallel { sequence_dim: 1 });
    lies_in_pairs(&case.equals(&expected, &sequence, "tp=2"));
}

// ---------------------------------------------------------------------------------------------------------------------
// A feature projection before two encoders, each with all its linears side by side

#[derive(Module, Debug)]
struct Encoder {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Encoder {
    fn new() -> Self {
        let square = || linear(WIDTH, WIDTH);
        Encoder {
            norm1: norm(),
            query: square(),
            key: square(),
            value: square(),
            output: square(),
            norm2: norm(),
            gate: linear(WIDTH, INNER),
            up: linear(WIDTH, INNER),
            down: linear(INNER, WIDTH),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let normed = self.norm1.forward(x.clone());
        let heads =
            |linear: &Linear| linear.forward(normed.clone()).reshape([0, 0, 4, WIDTH as i32 / 4]).swap_dims(1, 2);
        let scores = heads(&self.query).matmul(heads(&self.key).transpose()) * 0.35;
        let context = activation::softmax(scores, 3).matmul(heads(&self.value));
        let x = x + self.output.forward(context.swap_dims(1, 2).reshape([0, 0, WIDTH as i32]));
        let normed = self.norm2.forward(x.clone());
        x + self.down.forward(activation::silu(self.gate.forward(normed.clone())) * self.up.forward(normed))
    }
}

#[derive(Module, Debug)]
struct Encoders {
    features: Linear,
    encoder_a: Encoder,
    encoder_b: Encoder,
    head: Linear,
}

fn encoders() -> Case<Encoders, Tensor<3>, 2> {
    let model = Encoders {
        features: linear(FEATURES, WIDTH),
        encoder_a: Encoder::new(),
        encoder_b: Encoder::new(),
        head: linear(WIDTH, CLASSES),
    };
    let forward = |m: &Encoders, x: Tensor<3>| {
        let x = m.encoder_a.forward(activation::tanh(m.features.forward(x)));
        m.head.forward(pooled(m.encoder_b.forward(x)))
    };
    Case { model: filled(model, 0.4), data: batch(), batch: x, forward }
}

#[test]
fn two_encoders_behind_a_projection() {
    let case = encoders();
    let expected = case.eager();
    for (name, on) in [("tp", "tp=2"), ("tp", "tp=4"), ("tp-sp", "tp=2")] {
        let seen = case.equals(&expected, &plan(name), on);
        seen.lies(&[("features.weight", "f32[5, 32]"), ("features.bias", "f32[32]")]);
        for encoder in ["encoder_a", "encoder_b"] {
            let lies = |name: &str, ty: &str| seen.lies(&[(&format!("{encoder}.{name}"), ty)]);
            for name in ["query", "key", "value"] {
                lies(&format!("{name}.weight"), "f32[32, 4@tp, 8]");
                lies(&format!("{name}.bias"), "f32[4@tp, 8]");
            }
            lies("output.weight", "f32[4@tp, 8, 32]");
            lies("output.bias", "f32[32]");
            for name in ["gate", "up"] {
                lies(&format!("{name}.weight"), "f32[32, 60@tp]");
                lies(&format!("{name}.bias"), "f32[60@tp]");
            }
            lies("down.weight", "f32[60@tp, 32]");
            lies("down.bias", "f32[32]");
        }
        seen.lies(&[("head.weight", "f32[32, 6@tp]"), ("head.bias", "f32[6@tp]")]);
        let pairs = 4;
        // The gradient of the mean is the same for all tokens, so the last pair gathers nothing in the backward pass.
        let expected = match name {
            "tp" => [[pairs, 0, 0], [pairs, 0, 0]],
            _ => [[0, pairs, pairs], [0, pairs - 1, pairs]],
        };
        let found = [Phase::Forward, Phase::Backward].map(|phase| exchanges(&seen, phase));
        assert_eq!(found, expected, "{name} on {on}\n{}", seen.list());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Which linears are pairs

#[derive(Module, Debug)]
struct Flat {
    project: Linear,
    up: Linear,
    down: Linear,
    head: Linear,
}

/// All linears are in one module. The head also reads the output of the projection, through the residual.
#[test]
fn what_more_than_rows_read_is_no_pair() {
    let model = Flat {
        project: linear(FEATURES, WIDTH),
        up: linear(WIDTH, INNER),
        down: linear(INNER, WIDTH),
        head: linear(WIDTH, CLASSES),
    };
    let forward = |m: &Flat, x: Tensor<3>| {
        let x = m.project.forward(x);
        m.head.forward(x.clone() + m.down.forward(activation::gelu(m.up.forward(x))))
    };
    let case = Case { model: filled(model, 0.4), data: batch(), batch: x, forward };
    let pair = [("project.weight", "f32[5, 32]"), ("up.weight", "f32[32, 60@tp]"), ("down.weight", "f32[60@tp, 32]")];
    for (plan, head) in [(plan("tp"), "f32[32, 6@tp]"), (PairwiseParallel.into(), "f32[32, 6]")] {
        for seen in case.equal(&plan, &["tp=2", "tp=3"]) {
            seen.lies(&pair);
            seen.lies(&[("head.weight", head)]);
            assert_eq!(exchanges(&seen, Phase::Forward), [1, 0, 0], "{}", seen.list());
        }
    }
}

#[derive(Module, Debug)]
struct Chain {
    a: Linear,
    b: Linear,
    c: Linear,
}

#[derive(Module, Debug)]
struct Chains {
    chain: Chain,
    out: Linear,
}

/// The third of three linears in a row has no partner, unless the surrounding module has one for it.
#[test]
fn odd_chains() {
    let square = || linear(WIDTH, WIDTH);
    let chain = || Chain { a: linear(FEATURES, WIDTH), b: square(), c: square() };
    let through = |m: &Chain, x: Tensor<3>| {
        let x = activation::relu(m.b.forward(activation::relu(m.a.forward(x))));
        activation::relu(m.c.forward(x))
    };
    let (columns, rows, whole) = ("f32[32, 32@tp]", "f32[32@tp, 32]", "f32[32, 32]");
    let first = [("a.weight", "f32[5, 32@tp]"), ("b.weight", rows)];

    let alone = Case { model: filled(chain(), 0.4), data: batch(), batch: x, forward: through };
    for (plan, last) in [(plan("tp"), columns), (PairwiseParallel.into(), whole)] {
        for seen in alone.equal(&plan, &["tp=2", "tp=4"]) {
            seen.lies(&first);
            seen.lies(&[("c.weight", last)]);
        }
    }

    let forward = |m: &Chains, x: Tensor<3>| {
        let x = activation::relu(m.chain.b.forward(activation::relu(m.chain.a.forward(x))));
        m.out.forward(activation::relu(m.chain.c.forward(x)))
    };
    let model = Chains { chain: chain(), out: linear(WIDTH, WIDTH) };
    let inside = Case { model: filled(model, 0.4), data: batch(), batch: x, forward };
    let expected = inside.eager();
    let outer = [("chain.a.weight", "f32[5, 32@tp]"), ("chain.b.weight", rows), ("chain.c.weight", columns)];
    for plan in [plan("tp"), PairwiseParallel.into()] {
        let seen = inside.equals(&expected, &plan, "tp=2");
        seen.lies(&outer);
        seen.lies(&[("out.weight", rows)]);
        assert_eq!(exchanges(&seen, Phase::Forward), [2, 0, 0], "{}", seen.list());
    }
    // Readers outside of the named module do not matter there.
    let seen = inside.equals(&expected, &Plan::new().with("chain", PairwiseParallel), "tp=2");
    seen.lies(&outer[..2]);
    seen.lies(&[("chain.c.weight", whole), ("out.weight", whole)]);
}
