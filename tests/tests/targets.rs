//! Targets: axes of different speeds, profiles and their errors, rejected combinations, and the output of `tpc
//! calibrate`.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, SgdConfig};
use burn::tensor::{Device, Tensor, activation};
use std::collections::HashMap;
use tpc_compiler::capture::capture_training;
use tpc_compiler::error::Error;
use tpc_compiler::import::import;
use tpc_compiler::program::{CompileOptions, compile_inference, place};
use tpc_compiler::target;
use tpc_compiler::trainer::Trainer;
use tpc_ir::interpret::Tensor as Value;
use tpc_ir::reason::Reason;
use tpc_ir::{Graph, InputId, InputKind, Mesh, Phase, Sharding, text};
use tpc_passes::canonicalize::canonicalize;
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::styles::Plan;
use tpc_passes::styles::annotations::{Annotation, Annotations};
use tpc_passes::targets::{DeviceKind, Link, Node, Target};
use tpc_runtime::session::Backend;
use tpc_runtime::{LaunchOptions, Session};
use tpc_tests::command::{Scratch, tpc};
use tpc_tests::{executed_programs, inputs, reference, wrong};

/// The CPU's target with nodes of this many ranks, connected by a link that is ten times slower.
fn nodes_of(ranks: usize) -> Target {
    let mut target = Target::cpu().clone();
    let inner = target.links.default;
    target.name = format!("nodes of {ranks}");
    target.links.node = Some(Node { ranks, link: inner });
    target.links.default = Link { bandwidth: inner.bandwidth / 10.0, ..inner };
    target
}

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Mlp { up: LinearConfig::new(48, 96).init(device), down: LinearConfig::new(96, 48).init(device) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(activation::gelu(self.up.forward(x)))
    }
}

/// A logical training step, and values for its inputs.
fn step() -> (Graph, HashMap<InputId, Value>) {
    let device = Device::flex();
    let [x, y] = [1024, 1024].map(|rows| Tensor::<2>::ones([rows, 48], &device));
    let captured = capture_training(&Mlp::new(&device), &AdamWConfig::new().build(), (x, y), |m: &Mlp, (x, y)| {
        (m.forward(x) - y).powf_scalar(2.0).mean()
    });
    let imported = import(&captured.unwrap().steady).unwrap();
    let constant = |data: &burn::tensor::TensorData| {
        let dtype = tpc_compiler::import::dtype(data.dtype()).unwrap();
        Value::new(dtype, data.shape().to_vec(), data.clone().convert::<f64>().try_to_vec::<f64>().unwrap())
    };
    let constants =
        imported.constants.iter().map(|(name, data)| (InputId::read(InputKind::Constant, name), constant(data)));
    let constants = constants.collect();
    let feed = inputs(&imported.graph, 7, &constants);
    let mut logical = canonicalize(&imported.graph.with_regions(Vec::new()));
    logical.outputs.retain(|o| !matches!(o.kind, tpc_ir::OutputKind::Gradient(_)));
    (logical, feed)
}

/// The step with its batch sharded over both axes of a mesh of 2 × 4 ranks that the target describes.
fn placed(logical: &Graph, target: &Target) -> Graph {
    let mesh = Mesh::parse("out=2,in=4").unwrap();
    let mut annotations = Annotations { mesh: mesh.clone(), ..Annotations::default() };
    for (node, id) in logical.inputs().filter(|(_, id)| id.kind() == InputKind::Data) {
        let whole = Sharding::replicated(logical.node(node).types[0].rank());
        let sharding = mesh.axis_ids().fold(whole, |s, axis| s.pushed(0, axis));
        annotations.inputs.insert(id.clone(), Annotation { sharding, why: Reason::read("the batch") });
    }
    place(logical, &annotations, &CompileOptions::new(target.clone())).unwrap().placed
}

/// The reductions and gathers of gradients, with the bytes of the whole value.
fn exchanged(graph: &Graph) -> Vec<String> {
    let shown = |node| {
        let n = graph.node(node);
        let axes: Vec<&str> = n.op.axes().iter().map(|axis| graph.mesh.name(axis)).collect();
        format!("{} {} {}", n.op.name(), axes.join(","), n.types[0].bytes())
    };
    let of_gradients = |node: &_| graph.node(*node).origin.phase != Phase::Forward;
    graph.nodes().filter(|n| graph.node(*n).op.is_collective()).filter(of_gradients).map(shown).collect()
}

/// On 2 × 4 ranks whose outer axis is ten times slower, the search first reduces the gradients of both weights within
/// the nodes. Eight ranks of this process then compute what one rank computes.
#[test]
fn gradients_are_reduced_hierarchically_where_the_outer_axis_is_slower() {
    let (logical, feed) = step();
    let expected = reference(&logical, &feed);
    let target = nodes_of(4);
    let graph = placed(&logical, &target);
    insta::assert_snapshot!("hierarchical_gradients", text::print(&graph));
    let bytes = format!(" {}", 48 * 96 * 4);
    let of_weights: Vec<String> = exchanged(&graph).into_iter().filter(|c| c.ends_with(&bytes)).collect();
    let count = |what: &str| of_weights.iter().filter(|c| c.starts_with(what)).count();
    let found = ["reduce_scatter in", "all_reduce out ", "all_gather in", "all_reduce out,in"].map(count);
    assert_eq!(found, [2, 2, 2, 0], "{of_weights:?}");
    let programs = lower_with(&graph, &target, &LowerOptions::default()).unwrap();
    let run = executed_programs(&graph, programs, &feed);
    assert_eq!(wrong(&graph, &expected, &run, 1e-4), Vec::<String>::new());
}

/// If all links are equal, rule 25 changes nothing, and neither do nodes that contain all ranks.
#[test]
fn gradients_are_reduced_at_once_where_links_are_alike() {
    let (logical, _) = step();
    let alike = placed(&logical, Target::cpu());
    assert!(exchanged(&alike).iter().all(|c| c.starts_with("all_reduce out,in ")), "{:?}", exchanged(&alike));
    assert_eq!(text::print(&placed(&logical, &nodes_of(8))), text::print(&alike));
}

/// The ranks send what the programs predict: a quarter of each weight's gradient crosses the slow link.
#[test]
fn a_quarter_of_a_gradient_crosses_the_slow_link() {
    let (logical, feed) = step();
    let sent = |target: &Target| {
        let graph = placed(&logical, target);
        let programs = lower_with(&graph, target, &LowerOptions::default()).unwrap();
        let mut session = Session::launch(programs, LaunchOptions::default()).unwrap();
        for (_, id) in graph.inputs() {
            session.write_f64((id.kind(), &*id.to_string()), &feed[id].data).unwrap();
        }
        session.step().unwrap();
        let slow = session.collectives(0).into_iter().filter(|c| c.axes.contains("out"));
        slow.map(|c| c.wire_bytes).sum::<f64>()
    };
    let (hierarchical, whole) = (sent(&nodes_of(4)), sent(Target::cpu()));
    // 2 · 1/2 · S/4 against 2 · 7/8 · S for weights; biases and the loss may be reduced either way.
    assert!(hierarchical < 0.25 * whole, "{hierarchical} of {whole} bytes");
}

/// Programs for a CPU cannot be launched on CUDA; those for a GPU can be tried on a CPU.
#[test]
fn the_numbers_of_a_cpu_are_not_used_for_a_gpu() {
    assert_eq!(CompileOptions::for_cpu().target, *Target::cpu());
    assert_eq!(CompileOptions::for_backend(Backend::Cuda).target.device.kind, DeviceKind::Cuda);
    let compiled = |options: &CompileOptions| {
        let device = Device::flex();
        let x = Tensor::<2>::ones([2, 48], &device);
        let captured = tpc_compiler::capture::capture_inference(&Mlp::new(&device), x, |m: &Mlp, x| m.forward(x));
        compile_inference(&captured.unwrap(), &Mesh::single(), &Plan::new(), options, &|p| p.to_string()).unwrap()
    };
    let on = |backend| LaunchOptions { backend, ..LaunchOptions::default() };
    let refused = compiled(&CompileOptions::for_cpu()).launch(on(Backend::Cuda));
    insta::assert_snapshot!(
        "a_cpu_for_cuda",
        match refused {
            Err(error @ Error::Target(_)) => error.to_string(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it was launched"),
        }
    );
    assert!(compiled(&CompileOptions::for_backend(Backend::Cuda)).launch(on(Backend::Cpu)).is_ok());
    assert!(target::check(Target::cpu(), Backend::Cuda).is_err());
}

/// A trainer compiles its programs for the given target, whether the target or the backend is set first, and without
/// one for the target of the backend.
#[test]
fn a_trainer_compiles_for_its_target() {
    let rows = Tensor::<2>::ones([4, 48], &Device::flex());
    let loss = |model: &Linear, rows: Tensor<2>| model.forward(rows).square().mean();
    let trainer =
        || Trainer::new(|device: &Device| LinearConfig::new(48, 8).init(device), SgdConfig::new().build()).lr(1e-3);
    for trainer in [
        trainer().backend(Backend::Cuda).target(Target::cpu()),
        trainer().target(Target::built_in("ethernet").unwrap()).backend(Backend::Cuda),
    ] {
        assert!(matches!(trainer.compile(&rows, loss), Err(Error::Target(_))));
    }
    for trainer in [
        trainer(),
        trainer().backend(Backend::Cuda),
        trainer().target(nodes_of(2)),
        trainer().target(Target::h100_node()).backend(Backend::Cuda),
    ] {
        assert!(trainer.compile(&rows, loss).is_ok());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The command

const DUMP: [&str; 7] = ["dump-ir", "--preset", "mlp", "--plan", "tp", "--mesh", "tp=2"];

#[test]
fn dump_ir_says_which_target_it_used() {
    let scratch = Scratch::new("dump");
    let mut notes = Vec::new();
    for name in ["cpu", "h100-node", "h200-node", "ethernet"] {
        let (code, out, err) = tpc(&[&DUMP[..], &["--target", name]].concat());
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("all_reduce"));
        notes.push(err);
    }
    let mut own = nodes_of(8);
    own.links.axes.insert("tp".into(), Link { latency: 1e-3, bandwidth: 1.5e9 });
    let file = scratch.write("own.json", own.to_json());
    notes.push(tpc(&[&DUMP[..], &["--target", &file]].concat()).2);
    // The ranks' memory is mentioned only if it is too small.
    let mut small = Target::cpu().clone();
    (small.name, small.device.capacity) = ("small".into(), 1e6);
    let file_of_small = scratch.write("small.json", small.to_json());
    notes.push(tpc(&[&DUMP[..], &["--target", &file_of_small, "--stage", "scheduled"]].concat()).2);
    // Before a program is placed, its memory is not checked.
    notes.push(tpc(&[&DUMP[..], &["--target", "cpu", "--stage", "annotated"]].concat()).2);
    insta::assert_snapshot!("dump_ir_notes", notes.concat());
    let named = |more: &[&str]| -> serde_json::Value {
        let (code, out, err) = tpc(&[&DUMP[..], &["--json"], more].concat());
        assert_eq!((code, err.as_str()), (0, ""));
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["target"].clone()
    };
    assert_eq!((named(&[]), named(&["--target", &file])), ("cpu".into(), "nodes of 8".into()));
    // Naming the default target explicitly changes nothing.
    assert_eq!(tpc(&DUMP).1, tpc(&[&DUMP[..], &["--target", "cpu"]].concat()).1);
}

#[test]
fn targets_that_make_no_sense_are_explained() {
    let scratch = Scratch::new("errors");
    let good = Target::built_in("h100-node").unwrap().to_json();
    let changed = |what: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_str(&good).unwrap();
        what(&mut json);
        json.to_string()
    };
    let twice = good.replacen("\"memory\"", "\"launch\": 1, \"launch\": 2, \"memory\"", 1);
    let files = [
        ("empty", String::new()),
        ("list", "[1]".into()),
        ("twice", twice),
        ("unknown", changed(&|j| j["device"]["flops"] = 1.into())),
        ("unknown at the top", changed(&|j| j["link"] = 1.into())),
        ("missing", changed(&|j| _ = j["device"].as_object_mut().unwrap().remove("memory"))),
        ("missing link", changed(&|j| _ = j["links"].as_object_mut().unwrap().remove("default"))),
        ("zero", changed(&|j| j["links"]["default"]["bandwidth"] = 0.into())),
        ("negative", changed(&|j| j["device"]["products"]["bf16"] = (-1.5).into())),
        ("text", changed(&|j| j["device"]["launch"] = "2 us".into())),
        ("kind", changed(&|j| j["device"]["kind"] = "gpu".into())),
        ("ranks", changed(&|j| j["links"]["node"]["ranks"] = 2.5.into())),
        ("axis", changed(&|j| j["links"]["axes"] = serde_json::json!({"tp:2": {"latency": 1, "bandwidth": 1}}))),
        ("no object", changed(&|j| j["links"]["node"] = 8.into())),
        ("name", changed(&|j| j["name"] = "".into())),
    ];
    let mut said = String::new();
    let mut fails = |what: &str, arguments: &[&str]| {
        let (code, _, err) = tpc(arguments);
        assert_eq!(code, 1, "{what}: {err}");
        said.push_str(&format!("{what}\n    {}", err.replace(&scratch.0.display().to_string(), "$TMP")));
    };
    for (what, contents) in files {
        let file = scratch.write("target.json", &contents);
        fails(what, &[&DUMP[..], &["--target", &file]].concat());
    }
    fails("no such target", &[&DUMP[..], &["--target", "h100"]].concat());
    let bench = ["bench", "--preset", "mlp", "--iters", "1", "--device", "cuda", "--target"];
    fails("a CPU's target for CUDA", &[&bench[..], &["ethernet"]].concat());
    insta::assert_snapshot!("target_errors", said);
}

/// The written target can be read, and its numbers are plausible; how fast the machine is does not matter.
#[test]
fn calibrate_writes_a_target_that_is_read() {
    let scratch = Scratch::new("calibrate");
    let file = scratch.0.join("here.json").display().to_string();
    let (code, out, err) = tpc(&["calibrate", "-o", &file, "--ranks", "2", "--seconds", "1"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let mut kinds: Vec<&str> = out.lines().filter_map(|line| line.split([' ', ':']).next()).collect();
    kinds.dedup();
    let expected =
        ["product", "loops", "memory", "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "products", "link"];
    assert_eq!(kinds, expected);
    let target = Target::from_json(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((target.name.as_str(), target.device.kind), ("here", DeviceKind::Cpu));
    let device = &target.device;
    let within = |what: &str, x: f64, least: f64, most: f64| assert!((least..=most).contains(&x), "{what}: {x}");
    within("f32", device.products.f32, 1e8, 1e14);
    within("bf16", device.products.bf16.unwrap(), 1e7, 1e14);
    within("memory", device.memory, 1e7, 1e13);
    within("launch", device.launch, 1e-10, 1e-2);
    within("latency", target.links.default.latency, 1e-10, 1.0);
    within("bandwidth", target.links.default.bandwidth, 1e6, 1e13);
    within("capacity", device.capacity, 1e6, 1e15);
    // A core computes faster than it reads, and reads at a positive rate.
    assert!(device.products.f32 > device.memory / 8.0);
    let (code, _, err) = tpc(&[&DUMP[..], &["--target", &file]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(err.starts_with("note: compiled for the target here: "), "{err}");
}
