//! Column-wise and row-wise parallel linears, embeddings, convolutions and MLPs under every layout: placements,
//! executed collectives, and equality with eager burn.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use tpc::Mesh;
use tpc_ir::Phase;
use tpc_passes::styles::prepare::{self, Prepare};
use tpc_passes::styles::{ColwiseParallel, Layout, PairwiseParallel, PairwiseSequenceParallel, Plan, RowwiseParallel};
use tpc_tests::eager::filled;
use tpc_tests::styles::{Case, floats, integers};

const B: usize = 4;
const S: usize = 6;
const D: usize = 8;
const OUT: usize = 10;
const X: [usize; 3] = [B, S, D];
/// Bytes of the input.
const ACTIVATION: usize = B * S * D * 4;

fn x(data: &[TensorData], device: &Device) -> Tensor<3> {
    Tensor::from_data(data[0].clone(), device)
}

fn replicate() -> Option<Layout> {
    Some(Layout::Replicate)
}

fn shard(dim: isize) -> Option<Layout> {
    Some(Layout::Shard(dim))
}

fn colwise(input_layouts: Option<Layout>, output_layouts: Option<Layout>) -> ColwiseParallel {
    ColwiseParallel { input_layouts, output_layouts, ..ColwiseParallel::default() }
}

fn rowwise(input_layouts: Option<Layout>, output_layouts: Option<Layout>) -> RowwiseParallel {
    RowwiseParallel { input_layouts, output_layouts, ..RowwiseParallel::default() }
}

// ---------------------------------------------------------------------------------------------------------------------
// One linear, whose input is the program's

#[derive(Module, Debug)]
struct One {
    linear: Linear,
}

fn one(bias: bool) -> Case<One, Tensor<3>, 3> {
    let model = One { linear: LinearConfig::new(D, OUT).with_bias(bias).init(&Device::flex()) };
    Case { model: filled(model, 0.8), data: vec![floats("x", &X)], batch: x, forward: |m, x| m.linear.forward(x) }
}

/// A plan; the types of weight, bias, input and output; and the halves of large collectives in the forward and backward
/// pass (the input needs no gradient). `@` stands for the axis.
type Row = (Plan, [&'static str; 4], u64, u64);

fn linear_rows() -> Vec<Row> {
    let col = |i, o| Plan::new().with("linear", colwise(i, o));
    let row = |i, o| Plan::new().with("linear", rowwise(i, o));
    const COL: [&str; 2] = ["f32[8, 10@tp]", "f32[10@tp]"];
    const ROW: [&str; 2] = ["f32[8@tp, 10]", "f32[10]"];
    let at = |[w, b]: [&'static str; 2], x, y| [w, b, x, y];
    let mut rows: Vec<Row> = vec![
        (col(None, None), at(COL, "f32[4, 6, 8]", "f32[4, 6, 10@tp]"), 0, 0),
        (col(replicate(), shard(-1)), at(COL, "f32[4, 6, 8]", "f32[4, 6, 10@tp]"), 0, 0),
        (col(replicate(), replicate()), at(COL, "f32[4, 6, 8]", "f32[4, 6, 10]"), 1, 0),
        (col(shard(0), None), at(COL, "f32[4@tp, 6, 8]", "f32[4, 6, 10@tp]"), 1, 0),
        (col(shard(1), shard(-1)), at(COL, "f32[4, 6@tp, 8]", "f32[4, 6, 10@tp]"), 1, 0),
        (col(shard(1), shard(2)), at(COL, "f32[4, 6@tp, 8]", "f32[4, 6, 10@tp]"), 1, 0),
        (col(shard(-1), replicate()), at(COL, "f32[4, 6, 8@tp]", "f32[4, 6, 10]"), 2, 0),
        (col(shard(0), replicate()), at(COL, "f32[4@tp, 6, 8]", "f32[4, 6, 10]"), 2, 0),
        // Sharded on another dimension: an exchange, and its inverse in the backward pass.
        (col(None, shard(1)), at(COL, "f32[4, 6, 8]", "f32[4, 6@tp, 10]"), 1, 1),
        (col(None, shard(0)), at(COL, "f32[4, 6, 8]", "f32[4@tp, 6, 10]"), 1, 1),
        (row(None, None), at(ROW, "f32[4, 6, 8]", "f32[4, 6, 10]"), 2, 0),
        (row(shard(-1), None), at(ROW, "f32[4, 6, 8@tp]", "f32[4, 6, 10]"), 2, 0),
        (row(shard(-1), replicate()), at(ROW, "f32[4, 6, 8@tp]", "f32[4, 6, 10]"), 2, 0),
        (row(replicate(), replicate()), at(ROW, "f32[4, 6, 8]", "f32[4, 6, 10]"), 2, 0),
        (row(shard(-1), shard(0)), at(ROW, "f32[4, 6, 8@tp]", "f32[4@tp, 6, 10]"), 1, 1),
        (row(shard(-1), shard(1)), at(ROW, "f32[4, 6, 8@tp]", "f32[4, 6@tp, 10]"), 1, 1),
        (row(shard(-1), shard(-1)), at(ROW, "f32[4, 6, 8@tp]", "f32[4, 6, 10@tp]"), 1, 1),
        (row(replicate(), shard(1)), at(ROW, "f32[4, 6, 8]", "f32[4, 6@tp, 10]"), 1, 1),
        // A shard of the sequence as the input: an exchange, then as before.
        (row(shard(1), shard(1)), at(ROW, "f32[4, 6@tp, 8]", "f32[4, 6@tp, 10]"), 2, 1),
    ];
    let mesh = Mesh::parse("tp=2").unwrap();
    let by = |i: Prepare, o: Prepare, col: bool| {
        let plan = Plan::new();
        if col {
            let style =
                ColwiseParallel { prepare_input: Some(i), prepare_output: Some(o), ..ColwiseParallel::default() };
            plan.with("linear", style)
        } else {
            let style =
                RowwiseParallel { prepare_input: Some(i), prepare_output: Some(o), ..RowwiseParallel::default() };
            plan.with("linear", style)
        }
    };
    let all = [
        (
            prepare::make_input_replicate_1d(&mesh),
            prepare::make_output_replicate_1d(&mesh),
            true,
            at(COL, "f32[4, 6, 8]", "f32[4, 6, 10]"),
            (1, 0),
        ),
        (
            prepare::make_input_reshard_replicate(&mesh),
            prepare::make_output_shard_1d(&mesh, -1),
            true,
            at(COL, "f32[4@tp, 6, 8]", "f32[4, 6, 10@tp]"),
            (1, 0),
        ),
        (
            prepare::make_input_shard_1d(&mesh, 2),
            prepare::make_output_reshard_tensor(&mesh),
            false,
            at(ROW, "f32[4, 6, 8@tp]", "f32[4@tp, 6, 10]"),
            (1, 1),
        ),
        (
            prepare::make_input_shard_1d_last_dim(&mesh),
            prepare::make_output_tensor(&mesh),
            false,
            at(ROW, "f32[4, 6, 8@tp]", "f32[4, 6, 10]"),
            (2, 0),
        ),
        (
            prepare::make_input_shard_1d_last_dim(&mesh),
            prepare::make_output_shard_1d(&mesh, 1),
            false,
            at(ROW, "f32[4, 6, 8@tp]", "f32[4, 6@tp, 10]"),
            (1, 1),
        ),
    ];
    for (input, output, col, types, (forward, backward)) in all {
        rows.push((by(input.unwrap(), output.unwrap(), col), types, forward, backward));
    }
    rows
}

#[test]
fn one_linear_under_every_layout() {
    for bias in [true, false] {
        let case = one(bias);
        let expected = case.eager();
        for (plan, [weight, b, x, y], forward, backward) in linear_rows() {
            for on in ["tp=2", "tp=3", "tp=4"] {
                if !bias && on != "tp=2" {
                    continue;
                }
                let seen = case.equals(&expected, &plan, on);
                seen.lies(&[("linear.weight", weight), ("input0", x), ("y", y)]);
                if bias {
                    seen.lies(&[("linear.bias", b)]);
                }
                println!("{plan:?} on {on}");
                seen.together(ACTIVATION, forward + backward);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Behind a norm, so that its input needs a gradient

#[derive(Module, Debug)]
struct Normed {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
    third: Option<Linear>,
}

fn mlp(bias: bool, third: bool) -> Case<Normed, Tensor<3>, 3> {
    let d = &Device::flex();
    let linear = |from, to| LinearConfig::new(from, to).with_bias(bias).init(d);
    let model = Normed {
        norm: LayerNormConfig::new(D).init(d),
        up: linear(D, 14),
        down: linear(14, D),
        third: third.then(|| linear(D, 5)),
    };
    let forward = |m: &Normed, x: Tensor<3>| {
        let y = x.clone() + m.down.forward(activation::gelu(m.up.forward(m.norm.forward(x))));
        match &m.third {
            Some(third) => third.forward(activation::relu(y)),
            None => y,
        }
    };
    Case { model: filled(model, 0.8), data: vec![floats("x", &X)], batch: x, forward }
}

const MESHES: [&str; 3] = ["tp=2", "tp=3", "tp=4"];

#[test]
fn an_mlp_by_columns_and_rows() {
    for bias in [true, false] {
        let case = mlp(bias, false);
        let written = Plan::new().with("up", ColwiseParallel::default()).with("down", RowwiseParallel::default());
        for plan in [written, PairwiseParallel.into()] {
            for seen in case.equal(&plan, &MESHES) {
                seen.lies(&[("up.weight", "f32[8, 14@tp]"), ("down.weight", "f32[14@tp, 8]")]);
                seen.lies(&[("norm.gamma", "f32[8]"), ("y", "f32[4, 6, 8]"), ("input0", "f32[4, 6, 8]")]);
                if bias {
                    seen.lies(&[("up.bias", "f32[14@tp]"), ("down.bias", "f32[8]")]);
                }
                seen.at_most(ACTIVATION, 2, 2);
            }
        }
    }
}

/// Odd levels by columns, even ones by rows, and a last odd level replicated.
#[test]
fn a_third_linear_stays_replicated() {
    let case = mlp(true, true);
    for seen in case.equal(&PairwiseParallel.into(), &MESHES) {
        seen.lies(&[("up.weight", "f32[8, 14@tp]"), ("down.weight", "f32[14@tp, 8]")]);
        seen.lies(&[("third.weight", "f32[8, 5]"), ("third.bias", "f32[5]"), ("y", "f32[4, 6, 5]")]);
        seen.at_most(ACTIVATION, 2, 2);
    }
}

#[test]
fn an_mlp_between_shards() {
    let case = mlp(true, false);
    let expected = case.eager();
    for (dim, on, y) in [
        (0, "tp=2", "f32[4@tp, 6, 8]"),
        (0, "tp=4", "f32[4@tp, 6, 8]"),
        (0, "tp=3", "f32[4@tp, 6, 8]"),
        (1, "tp=2", "f32[4, 6@tp, 8]"),
        (1, "tp=4", "f32[4, 6@tp, 8]"),
    ] {
        let layouts = Plan::new().with("up", colwise(shard(dim), None)).with("down", rowwise(None, shard(dim)));
        let pairwise = PairwiseSequenceParallel { sequence_dim: dim };
        for plan in [layouts, pairwise.into()] {
            let seen = case.equals(&expected, &plan, on);
            seen.lies(&[("up.weight", "f32[8, 14@tp]"), ("down.weight", "f32[14@tp, 8]"), ("down.bias", "f32[8]")]);
            seen.lies(&[("y", y)]);
            // One gather and one scatter in each pass; the norm may run on the whole sequence.
            let all: u64 = Phase::ALL.iter().map(|&p| seen.halves(p, "tp", ACTIVATION)).sum();
            assert!(all <= 4, "{plan:?} on {on}:\n{}", seen.list());
        }
    }
}

#[derive(Module, Debug)]
struct Pair {
    net1: Linear,
    net2: Linear,
}

/// `PairwiseSequenceParallel` takes the program's input as a shard of the sequence (`make_input_reshard_replicate`) and
/// gives the output as one (`make_output_reshard_tensor`).
#[test]
fn a_sequence_parallel_pair_takes_and_gives_shards() {
    let d = &Device::flex();
    let model = Pair { net1: LinearConfig::new(D, 14).init(d), net2: LinearConfig::new(14, D).init(d) };
    let case = Case {
        model: filled(model, 0.8),
        data: vec![floats("x", &X)],
        batch: x,
        forward: |m: &Pair, x| m.net2.forward(activation::relu(m.net1.forward(x))),
    };
    let expected = case.eager();
    for (dim, value) in [(0, "f32[4@tp, 6, 8]"), (1, "f32[4, 6@tp, 8]")] {
        for on in MESHES {
            let seen = case.equals(&expected, &PairwiseSequenceParallel { sequence_dim: dim }.into(), on);
            seen.lies(&[("input0", value), ("y", value)]);
            // A gather and a scatter, and in the backward pass the gather of the output's gradient.
            seen.at_most(ACTIVATION, 2, 1);
        }
    }
}

#[test]
fn styles_with_data_modes() {
    let case = mlp(true, false);
    let expected = case.eager();
    let pairs = || Plan::new().with("", PairwiseParallel).along("tp");
    for (plan, on, weights, batch) in [
        (pairs().ddp("dp"), "dp=2,tp=2", ["f32[8, 14@tp]", "f32[14@tp, 8]"], "f32[4@dp, 6, 8]"),
        (pairs().zero1("dp"), "dp=2,tp=2", ["f32[8, 14@tp]", "f32[14@tp, 8]"], "f32[4@dp, 6, 8]"),
        (pairs().ddp("dp"), "tp=3,dp=2", ["f32[8, 14@tp]", "f32[14@tp, 8]"], "f32[4@dp, 6, 8]"),
        (pairs().enable_2d_with_fsdp("dp"), "dp=2,tp=2", ["f32[8@dp, 14@tp]", "f32[14@tp, 8@dp]"], "f32[4@dp, 6, 8]"),
        (
            pairs().hsdp("rep", "dp"),
            "rep=2,dp=2,tp=2",
            ["f32[8@dp, 14@tp]", "f32[14@tp, 8@dp]"],
            "f32[4@(rep,dp), 6, 8]",
        ),
    ] {
        let seen = case.equals(&expected, &plan, on);
        seen.lies(&[("up.weight", weights[0]), ("down.weight", weights[1]), ("input0", batch), ("y", batch)]);
        seen.at_most(ACTIVATION, 2, 2);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Embeddings

#[derive(Module, Debug)]
struct Table {
    table: Embedding,
}

#[test]
fn an_embedding_under_every_layout() {
    let model = Table { table: EmbeddingConfig::new(11, D).init(&Device::flex()) };
    let case: Case<Table, Tensor<2, Int>, 3> = Case {
        model: filled(model, 0.8),
        data: vec![integers("ids", &[B, S], 11)],
        batch: |data, device| Tensor::from_data(data[0].clone(), device),
        forward: |m, ids| m.table.forward(ids),
    };
    let expected = case.eager();
    let col = |i, o| Plan::new().with("table", colwise(i, o));
    let row = |i, o| Plan::new().with("table", rowwise(i, o));
    const COL: &str = "f32[11, 8@tp]";
    const ROW: &str = "f32[11@tp, 8]";
    let rows = [
        (col(None, None), COL, "i32[4, 6]", "f32[4, 6, 8@tp]", 0, 0),
        (col(replicate(), replicate()), COL, "i32[4, 6]", "f32[4, 6, 8]", 1, 0),
        (col(None, shard(1)), COL, "i32[4, 6]", "f32[4, 6@tp, 8]", 1, 1),
        (col(shard(0), shard(-1)), COL, "i32[4@tp, 6]", "f32[4, 6, 8@tp]", 0, 0),
        (row(None, None), ROW, "i32[4, 6]", "f32[4, 6, 8]", 2, 0),
        (row(replicate(), shard(0)), ROW, "i32[4, 6]", "f32[4@tp, 6, 8]", 1, 1),
        (row(None, shard(1)), ROW, "i32[4, 6]", "f32[4, 6@tp, 8]", 1, 1),
        (row(shard(1), replicate()), ROW, "i32[4, 6@tp]", "f32[4, 6, 8]", 2, 0),
    ];
    for (plan, weight, ids, y, forward, backward) in rows {
        for on in MESHES {
            let seen = case.equals(&expected, &plan, on);
            seen.lies(&[("table.weight", weight), ("input0", ids), ("y", y)]);
            seen.together(ACTIVATION, forward + backward);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Convolutions

#[derive(Module, Debug)]
struct Convolutions {
    wide: Conv2d,
    narrow: Conv2d,
}

#[test]
fn convolutions_by_channels() {
    let d = &Device::flex();
    let conv = |from, to, bias| {
        let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
        Conv2dConfig::new([from, to], [3, 3]).with_padding(padding).with_bias(bias).init(d)
    };
    for bias in [true, false] {
        let model = Convolutions { wide: conv(3, 10, bias), narrow: conv(10, 6, bias) };
        let case: Case<Convolutions, Tensor<4>, 4> = Case {
            model: filled(model, 0.8),
            data: vec![floats("images", &[4, 3, 5, 4])],
            batch: |data, device| Tensor::from_data(data[0].clone(), device),
            forward: |m, x| m.narrow.forward(activation::relu(m.wide.forward(x))),
        };
        let expected = case.eager();
        let plan = Plan::new().with("wide", ColwiseParallel::default()).with("narrow", RowwiseParallel::default());
        for on in MESHES {
            let seen = case.equals(&expected, &plan, on);
            seen.lies(&[("wide.weight", "f32[10@tp, 3, 3, 3]"), ("narrow.weight", "f32[6, 10@tp, 3, 3]")]);
            seen.lies(&[("y", "f32[4, 6, 5, 4]")]);
            if bias {
                seen.lies(&[("wide.bias", "f32[10@tp]"), ("narrow.bias", "f32[6]")]);
            }
            // The input needs no gradient, so nothing is reduced in the backward pass.
            seen.at_most(4 * 6 * 5 * 4 * 4, 2, 0);
        }
        let both = plan.along("tp").ddp("dp");
        case.equals(&expected, &both, "dp=2,tp=2").lies(&[("wide.weight", "f32[10@tp, 3, 3, 3]")]);
        // A single convolution with every layout of its input and output. The halves of collectives include those of
        // the weights, which are as large as the activations here.
        let wide = |i, o| Plan::new().with("wide", colwise(i, o));
        let narrow = |i, o| Plan::new().with("narrow", rowwise(i, o));
        const X: &str = "f32[4, 3, 5, 4]";
        const Y: &str = "f32[4, 6, 5, 4]";
        for (plan, input, y, halves) in [
            (wide(None, replicate()), X, Y, 1),
            (wide(shard(0), shard(1)), "f32[4@tp, 3, 5, 4]", Y, 4),
            (wide(shard(2), None), "f32[4, 3, 5@tp, 4]", Y, 4),
            (narrow(None, shard(1)), X, "f32[4, 6@tp, 5, 4]", 3),
            (narrow(replicate(), shard(0)), X, "f32[4@tp, 6, 5, 4]", 5),
            (narrow(shard(0), replicate()), X, Y, 4),
            (narrow(shard(-1), shard(-1)), X, "f32[4, 6, 5, 4@tp]", 4),
        ] {
            for on in MESHES {
                let seen = case.equals(&expected, &plan, on);
                seen.lies(&[("input0", input), ("y", y)]);
                seen.together(100, halves);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The defect of a bias that every rank adds

/// With the defect the output would be off by (n - 1) times the bias, which is large here.
#[test]
fn a_row_wise_bias_is_added_once() {
    let mut case = one(true);
    case.model.linear.bias = case.model.linear.bias.map(|b| b.map(|t| t + 100.0));
    let expected = case.eager();
    for plan in [
        Plan::new().with("linear", RowwiseParallel::default()),
        Plan::new().with("linear", rowwise(replicate(), shard(1))),
        Plan::new().with("linear", rowwise(shard(-1), shard(-1))),
    ] {
        for on in ["tp=2", "tp=4"] {
            let seen = case.equals(&expected, &plan, on);
            assert!(seen.output.iter().all(|y| (90.0..110.0).contains(y)), "{:?}", seen.output);
            seen.lies(&[("linear.bias", "f32[10]")]);
        }
    }
}
