//! Units of FSDP: which parameters are gathered together, for modules in fields, tuples, arrays and lists, under any
//! names.

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, TensorData, activation};
use std::collections::BTreeMap;
use tpc::{Graph, text};
use tpc_compiler::capture::{capture_training, named};
use tpc_compiler::program::{CompileOptions, TrainingProgram, compile_training};
use tpc_ir::{Op, Phase, UnitId, json};
use tpc_passes::lower::lower;
use tpc_passes::targets::Target;
use tpc_tests::eager::filled;
use tpc_tests::styles::{Case, Seen, floats};
use tpc_tests::training::{mesh, plan};

const BATCH: usize = 4;
const WIDTH: usize = 8;

fn linear(from: usize, to: usize) -> Linear {
    LinearConfig::new(from, to).init(&Device::flex())
}

fn x(data: &[TensorData], device: &Device) -> Tensor<2> {
    Tensor::from_data(data[0].clone(), device)
}

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Block {
    norm: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new() -> Self {
        let mlp = Mlp { up: linear(WIDTH, 12), down: linear(12, WIDTH) };
        Block { norm: LayerNormConfig::new(WIDTH).init(&Device::flex()), mlp }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.clone() + self.mlp.down.forward(activation::gelu(self.mlp.up.forward(self.norm.forward(x))))
    }
}

/// The unit of every parameter.
fn units(graph: &Graph) -> BTreeMap<String, Option<UnitId>> {
    let parameters = graph.inputs().filter(|(_, id)| id.is_parameter());
    parameters.map(|(node, id)| (id.to_string(), graph.unit_of(node))).collect()
}

/// Checks that each unit consists of the parameters of one of these modules, and that no other parameter belongs to a
/// unit.
fn has_units(graph: &Graph, modules: &[&str]) {
    for (name, unit) in units(graph) {
        let module = modules.iter().position(|module| name.starts_with(&format!("{module}.")));
        assert_eq!(unit, module.map(|module| UnitId(module as u32)), "{name}");
    }
}

/// How many collectives with this name a phase has.
fn count(seen: &Seen, phase: Phase, name: &str) -> u64 {
    seen.executed.iter().filter(|c| c.0 == phase && c.2 == name).map(|c| c.4).sum()
}

/// Checks for one gather per unit and one for the rest in the forward pass, one per unit but the last in the backward
/// pass, and a scatter of gradients for each unit, which is small, and for the rest.
fn gathers_by_unit(seen: &Seen, modules: &[&str]) {
    has_units(&seen.placed, modules);
    let count = |phase, name| count(seen, phase, name);
    let units = modules.len() as u64;
    assert_eq!(count(Phase::Forward, "all_gather"), units + 1, "{}", seen.list());
    assert_eq!(count(Phase::Backward, "all_gather"), units - 1, "{}", seen.list());
    assert_eq!(count(Phase::Backward, "reduce_scatter"), units + 1, "{}", seen.list());
    assert_eq!(count(Phase::Optimizer, "all_gather"), 0, "{}", seen.list());
}

// ---------------------------------------------------------------------------------------------------------------------
// Fields

#[derive(Module, Debug)]
struct Encoders {
    features: Linear,
    encoder_a: Block,
    encoder_b: Block,
    head: Linear,
}

fn encoders() -> Case<Encoders, Tensor<2>, 2> {
    let model = Encoders {
        features: linear(5, WIDTH),
        encoder_a: Block::new(),
        encoder_b: Block::new(),
        head: linear(WIDTH, 6),
    };
    let forward =
        |m: &Encoders, x: Tensor<2>| m.head.forward(m.encoder_b.forward(m.encoder_a.forward(m.features.forward(x))));
    Case { model: filled(model, 0.8), data: vec![floats("x", &[BATCH, 5])], batch: x, forward }
}

#[test]
fn two_encoders_in_fields_are_two_units() {
    let case = encoders();
    for seen in case.equal(&plan("fsdp"), &["dp=2", "dp=4"]) {
        gathers_by_unit(&seen, &["encoder_a", "encoder_b"]);
        // The first encoder is gathered a second time as a whole.
        let again = |node| {
            let n = seen.placed.node(node);
            matches!(n.op, Op::AllGather { .. }) && n.origin.phase == Phase::Backward
        };
        let again = seen.placed.nodes().filter(|&node| again(node)).map(|node| seen.placed.operands(node)[0]);
        let names = again.map(|v| match seen.placed.op(v) {
            Op::Input { id, .. } => id.to_string(),
            other => panic!("{other:?}"),
        });
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        // The backward pass does not read the last bias.
        assert_eq!(names, ["encoder_a.mlp.down.weight", "encoder_a.mlp.up.weight", "encoder_a.norm.gamma"]);
    }
    for (name, on) in [("hsdp", "rep=2,dp=2"), ("2d", "dp=2,tp=2")] {
        for seen in case.equal(&plan(name), &[on]) {
            has_units(&seen.placed, &["encoder_a", "encoder_b"]);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Tuples, arrays and lists

#[derive(Module, Debug)]
struct Stage {
    blocks: Vec<Block>,
}

#[derive(Module, Debug)]
struct Containers {
    features: Linear,
    pair: (Block, Mlp),
    array: [Block; 2],
    stages: Vec<Stage>,
    between: Mlp,
    head: Linear,
}

#[test]
fn elements_of_tuples_arrays_and_lists_are_units() {
    let stage = |blocks| Stage { blocks: (0..blocks).map(|_| Block::new()).collect() };
    let mlp = || Mlp { up: linear(WIDTH, 12), down: linear(12, WIDTH) };
    let model = Containers {
        features: linear(5, WIDTH),
        pair: (Block::new(), mlp()),
        array: [Block::new(), Block::new()],
        stages: vec![stage(2), stage(1)],
        between: mlp(),
        head: linear(WIDTH, 6),
    };
    let forward = |m: &Containers, x: Tensor<2>| {
        let through = |mlp: &Mlp, x: Tensor<2>| mlp.down.forward(activation::relu(mlp.up.forward(x)));
        let x = through(&m.pair.1, m.pair.0.forward(m.features.forward(x)));
        let x = m.array.iter().fold(x, |x, block| block.forward(x));
        let x = through(&m.between, x);
        m.head.forward(m.stages.iter().flat_map(|stage| &stage.blocks).fold(x, |x, block| block.forward(x)))
    };
    let case = Case { model: filled(model, 0.8), data: vec![floats("x", &[BATCH, 5])], batch: x, forward };
    let modules =
        ["pair.0", "pair.1", "array.0", "array.1", "stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"];
    for seen in case.equal(&plan("fsdp"), &["dp=2"]) {
        gathers_by_unit(&seen, &modules);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

/// A training step of the two encoders under names made by `rename`.
fn renamed(name: &str, on: &str, rename: &dyn Fn(&str) -> String) -> TrainingProgram {
    let case = encoders();
    let batch = (case.batch)(&case.data, &Device::flex());
    let capture = capture_training(&case.model, &AdamWConfig::new().build(), batch, |m: &Encoders, b: Tensor<2>| {
        let y = (case.forward)(m, b);
        (y.clone().square().mean(), named("y", y))
    });
    let options = CompileOptions::for_cpu();
    compile_training(capture.unwrap(), &mesh(on), &plan(name), &options, rename).unwrap_or_else(|e| panic!("{e}"))
}

/// A program without its names: operations, operands, types, phases and units.
fn unnamed(graph: &Graph) -> Vec<String> {
    let line = |node| {
        let n = graph.node(node);
        let op = match &n.op {
            Op::Input { id, layout, unit } => format!("{:?} {layout:?} {unit:?}", id.kind()),
            op => format!("{op:?}"),
        };
        format!("{op} {:?} {:?} {:?}", graph.operands(node), n.types, n.origin.phase)
    };
    graph.nodes().map(line).chain(graph.outputs.iter().map(|o| format!("{:?}", o.value))).collect()
}

/// The collectives of the ranks, without reasons.
fn collectives(program: &TrainingProgram) -> Vec<String> {
    let all = program.steady.ranks.iter().flat_map(|rank| rank.collectives());
    all.map(|c| format!("{} {} {:?} {} {}", c.name(), c.axes, c.phase, c.full_bytes, c.values)).collect()
}

/// Path segments that contain digits, and segments that are numbers.
#[test]
fn names_do_not_matter() {
    const NAMES: [[(&str, &str); 4]; 3] = [
        [("features", "layer0"), ("encoder_a", "layer1"), ("encoder_b", "layer2"), ("head", "9")],
        [("features", "3x"), ("encoder_a", "x3"), ("encoder_b", "x.4"), ("head", "h.3.h")],
        [("features", "0"), ("encoder_a", "1"), ("encoder_b", "2"), ("up", "0")],
    ];
    for (name, on) in [("fsdp", "dp=2"), ("2d", "dp=2,tp=2")] {
        let plain = renamed(name, on, &str::to_string);
        for names in NAMES {
            let segment = |s: &str| names.iter().find(|(from, _)| *from == s).map_or(s, |(_, to)| to).to_string();
            let rename = |path: &str| path.split('.').map(segment).collect::<Vec<_>>().join(".");
            let other = renamed(name, on, &rename);
            for (a, b) in [(&plain.first, &other.first), (&plain.steady, &other.steady)] {
                assert_eq!(unnamed(&a.placed), unnamed(&b.placed), "{names:?} under {name}");
            }
            assert_eq!(collectives(&plain), collectives(&other), "{names:?} under {name}");
        }
    }
}

/// A parsed program is lowered like the one that was printed.
#[test]
fn units_are_printed_and_read() {
    let program = renamed("fsdp", "dp=2", &str::to_string);
    let placed = &program.steady.placed;
    let printed = text::print(placed);
    assert!(printed.contains("%0 = input parameter \"features.weight\" "), "{printed}");
    let units =
        |unit: &str| printed.lines().filter(|line| line.contains("input parameter") && line.contains(unit)).count();
    assert_eq!([units(" unit 0"), units(" unit 1"), units(" unit ")], [6, 6, 12], "{printed}");
    let read = [tpc_ir::parse::parse(&printed).unwrap(), json::parse(&json::print(placed)).unwrap()];
    let ranks =
        |graph: &Graph| lower(graph, Target::cpu()).unwrap().iter().map(|rank| rank.to_text()).collect::<Vec<_>>();
    for graph in &read {
        assert_eq!(ranks(graph), ranks(placed));
    }
}
