//! Every stage of the pipeline means the same.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, activation};
use std::collections::HashMap;
use tpc_compiler::capture::{Captured, capture_training};
use tpc_compiler::import::import;
use tpc_ir::interpret::Tensor as Value;
use tpc_ir::{Graph, InputId, InputKind, Mesh, Op};
use tpc_passes::egraph::{SearchOptions, improve};
use tpc_passes::propagate::propagate;
use tpc_passes::styles::parallelize_module;
use tpc_passes::styles::{ColwiseParallel, PairwiseParallel, Plan, RowwiseParallel};
use tpc_passes::targets::Target;
use tpc_passes::{canonicalize, check};
use tpc_tests::{difference, executed, inputs, on_ranks, reference, wrong};

#[derive(Module, Debug)]
struct Mlp {
    net1: Linear,
    net2: Linear,
}

impl Mlp {
    fn new(d: usize, h: usize, device: &Device) -> Self {
        Mlp { net1: LinearConfig::new(d, h).init(device), net2: LinearConfig::new(h, d).init(device) }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.net2.forward(activation::gelu(self.net1.forward(x)))
    }
}

fn constant(data: &burn::tensor::TensorData) -> Value {
    let shape: Vec<usize> = data.shape().to_vec();
    let dtype = tpc_compiler::import::dtype(data.dtype()).unwrap();
    Value::new(dtype, shape, data.clone().convert::<f64>().try_to_vec::<f64>().unwrap())
}

fn counts(graph: &Graph) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for node in graph.nodes() {
        let op = &graph.node(node).op;
        if op.is_collective() {
            *counts.entry(format!("{} {}", graph.node(node).origin.phase.name(), op.name())).or_default() += 1;
        }
    }
    counts
}

fn stages(captured: &Captured, meshes: &[&str], plan: &Plan) {
    let imported = import(captured).unwrap();
    tpc_ir::verify::verify(&imported.graph).unwrap();
    let id = |name: &String| InputId::read(InputKind::Constant, name);
    let constants: HashMap<InputId, Value> = imported.constants.iter().map(|(n, d)| (id(n), constant(d))).collect();
    let feed = inputs(&imported.graph, 7, &constants);
    let expected = reference(&imported.graph, &feed);
    let logical = canonicalize::canonicalize(&imported.graph.clone().with_regions(Vec::new()));
    println!("{}", tpc_ir::text::print(&logical));
    tpc_ir::verify::verify(&logical).unwrap();
    assert!(difference(&expected, &reference(&logical, &feed)) < 1e-9);
    for mesh in meshes {
        let (logical, annotations) =
            parallelize_module(&imported.graph, &Mesh::parse(mesh).unwrap(), plan.clone(), None).unwrap();
        let placed = propagate(&logical, &annotations, Target::cpu());
        check::check(&placed).unwrap();
        assert!(difference(&expected, &on_ranks(&placed, &feed)) < 1e-9, "{mesh} placed");
        let (best, report) = improve(&placed, Target::cpu(), &SearchOptions::default());
        println!("{mesh} {report:?} {:?} -> {:?}", counts(&placed), counts(&best));
        println!("{}", tpc_ir::text::print(&best));
        check::check(&best).unwrap();
        assert!(difference(&expected, &on_ranks(&best, &feed)) < 1e-9, "{mesh} optimized");
        let run = executed(&best, &feed);
        assert_eq!(wrong(&best, &expected, &run, 1e-4), Vec::<String>::new(), "{mesh} executed");
        for node in best.nodes() {
            assert!(!matches!(best.node(node).op, Op::Reshape));
        }
    }
}

#[test]
fn an_mlp_means_the_same_at_every_stage() {
    let device = Device::flex();
    let model = Mlp::new(6, 8, &device);
    let x = Tensor::<2>::ones([4, 6], &device);
    let y = Tensor::<2>::ones([4, 6], &device);
    let step = capture_training(&model, &AdamWConfig::new().build(), (x, y), |m: &Mlp, (x, y)| {
        (m.forward(x) - y).powf_scalar(2.0).mean()
    })
    .unwrap();
    stages(&step.steady, &["tp=2", "tp=3"], &Plan::new().with("", PairwiseParallel));
}

#[test]
fn a_llama_means_the_same_at_every_stage() {
    use burn::tensor::{DType, Int};
    use tpc_compiler::capture::{Spec, capture_training_shapes};
    use tpc_compiler::models::{ModelConfig, build};
    let json = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 10, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    });
    let config = ModelConfig::from_json(&json, std::path::Path::new("config.json")).unwrap();
    let tokens = Spec::<2, Int>::new([2, 6], DType::I64);
    let labels = Spec::<2, Int>::new([2, 6], DType::I64);
    let step = capture_training_shapes(
        |device| build(&config, device),
        &AdamWConfig::new().build(),
        (tokens, labels),
        &Default::default(),
        |m, (x, y)| m.loss(m.forward(x.into()), y),
    )
    .unwrap();
    let plan = Plan::new()
        .with("model.layers.*.self_attn", PairwiseParallel)
        .with("model.layers.*.mlp", PairwiseParallel)
        .with("model.embed_tokens", RowwiseParallel::default())
        .with("lm_head", ColwiseParallel::default());
    stages(&step.steady, &["tp=2", "tp=4"], &plan);
    println!("SEQUENCE");
    stages(&step.steady, &["tp=2"], &Plan::built_in("tp-sp").unwrap());
}
