//! Every collective of a placed program says why it is there, in which part of the step, and for which module. Each
//! answer is derived here a second time, from the program alone: cuts from the letters of the operations, parts of
//! the step from what the loss and the gradients depend on.

use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tpc::models::ModelConfig;
use tpc::pretrained::TokenBatch;
use tpc::program::{CompileOptions, Stages};
use tpc_ir::reason::{Cause, Cut};
use tpc_ir::{AxisId, Graph, InputKind, Op, OutputKind, Phase, Value, parse, text};
use tpc_tests::training::{config, language_model, plan};

/// A placed program, and what follows from it.
struct Derived<'a> {
    graph: &'a Graph,
    /// By axis and node: inputs that are cut on the axis and reach the node over values that are.
    cut: HashMap<(AxisId, Value), BTreeSet<String>>,
    entries: BTreeMap<String, String>,
    /// The first results of what the loss and other results depend on, and of what gradients do.
    forward: HashSet<Value>,
    backward: HashSet<Value>,
}

impl<'a> Derived<'a> {
    fn of(graph: &'a Graph) -> Self {
        let entries =
            graph.inputs().map(|(n, _, name)| (name.to_string(), graph.node(n).origin.why.to_string())).collect();
        let mut cut: HashMap<(AxisId, Value), BTreeSet<String>> = HashMap::new();
        for axis in graph.mesh.axis_ids() {
            for node in graph.nodes() {
                if !graph.node(node).types.iter().any(|t| t.sharding.dim_of(axis).is_some()) {
                    continue;
                }
                let operands = graph.operands(node);
                let above = operands.iter().filter_map(|v| cut.get(&(axis, v.node.into())));
                let mut names: BTreeSet<String> = above.flatten().cloned().collect();
                if let Op::Input { name, .. } = &graph.node(node).op {
                    names.insert(name.clone());
                }
                cut.insert((axis, node.into()), names);
            }
        }
        let above = |wanted: &dyn Fn(&OutputKind) -> bool| {
            let mut seen = HashSet::new();
            let mut open: Vec<Value> =
                graph.outputs.iter().filter(|o| wanted(&o.kind)).map(|o| o.value.node.into()).collect();
            while let Some(v) = open.pop() {
                if seen.insert(v) {
                    open.extend(graph.operands(v.node).iter().map(|v| Value::from(v.node)));
                }
            }
            seen
        };
        let forward = above(&|k| matches!(k, OutputKind::Loss | OutputKind::Result(_)));
        let backward = above(&|k| matches!(k, OutputKind::Gradient(_)));
        Derived { graph, cut, entries, forward, backward }
    }

    fn cut(&self, value: Value, axis: AxisId) -> BTreeSet<String> {
        self.cut.get(&(axis, value.node.into())).cloned().unwrap_or_default()
    }

    /// The operations that make a value partial over an axis, with the operands whose summed index is cut.
    fn summed(&self, value: Value, axis: AxisId) -> Vec<Vec<Value>> {
        let (mut found, mut seen, mut open) = (Vec::new(), HashSet::new(), vec![value]);
        while let Some(v) = open.pop() {
            if !seen.insert(v) {
                continue;
            }
            let operands = self.graph.operands(v.node);
            let is_cut = |i: usize, d: usize| self.graph.ty(operands[i]).sharding.dims[d].contains(&axis);
            let cut: Vec<Value> = match self.graph.op(v) {
                Op::Einsum { subs } | Op::Reduce { subs, .. } => (0..operands.len())
                    .filter(|&i| {
                        let letters = subs.operands[i].iter().enumerate();
                        letters.filter(|(_, l)| !subs.result.contains(l)).any(|(d, _)| is_cut(i, d))
                    })
                    .map(|i| operands[i])
                    .collect(),
                Op::Take if is_cut(0, 0) => vec![operands[0]],
                Op::ScatterAdd if self.graph.ty(operands[0]).sharding.dim_of(axis).is_some() => operands.clone(),
                _ => Vec::new(),
            };
            if !cut.is_empty() {
                found.push(cut);
            }
            let partial = |v: &Value| self.graph.ty(*v).sharding.partial_axes().contains(axis);
            open.extend(operands.iter().copied().filter(partial));
        }
        found
    }

    /// The parameter that a value is, gathered, cut or converted.
    fn parameter(&self, value: Value) -> Option<&str> {
        match self.graph.op(value) {
            Op::Input { kind: InputKind::Parameter, name, .. } => Some(name),
            Op::AllGather { .. } | Op::ShardSlice { .. } => self.parameter(self.graph.operands(value.node)[0]),
            Op::Map { .. } if self.graph.operands(value.node).len() == 1 => {
                self.parameter(self.graph.operands(value.node)[0])
            }
            _ => None,
        }
    }

    fn phase(&self, node: Value) -> Phase {
        match () {
            () if self.forward.contains(&node) => Phase::Forward,
            () if self.backward.contains(&node) => Phase::Backward,
            () => Phase::Optimizer,
        }
    }

    /// Checks every collective; how many there are.
    fn check(&self, what: &str) -> usize {
        let graph = self.graph;
        let names = text::number(graph);
        let mut count = 0;
        for node in graph.nodes().filter(|&n| graph.node(n).op.is_collective()) {
            let n = graph.node(node);
            let line = text::line(graph, node, &names);
            let operand = graph.operands(node)[0];
            let causes = n.origin.why.causes();
            let reduces = matches!(n.op, Op::AllReduce { .. } | Op::ReduceScatter { .. });
            let cuts: Vec<&Cut> = causes
                .iter()
                .filter_map(|c| match c {
                    Cause::Summed(cut) if reduces => Some(cut),
                    Cause::Elsewhere(cut) if !reduces => Some(cut),
                    Cause::Summed(_) | Cause::Elsewhere(_) => panic!("{what}: {line}"),
                    _ => None,
                })
                .collect();
            let mut possible: BTreeSet<String> = BTreeSet::new();
            let mut needed: BTreeSet<String> = BTreeSet::new();
            for axis in n.op.axes().iter() {
                if reduces {
                    for operands in self.summed(operand, axis) {
                        possible.extend(operands.iter().flat_map(|&v| self.cut(v, axis)));
                        let direct: Vec<&str> = operands.iter().filter_map(|&v| self.parameter(v)).collect();
                        if let [only] = direct[..] {
                            needed.insert(only.to_string());
                        }
                    }
                } else {
                    possible.extend(self.cut(operand, axis));
                    needed.extend(self.parameter(operand).map(str::to_string));
                }
            }
            let named: BTreeSet<String> = cuts.iter().flat_map(|c| &c.tensors).map(|t| t.to_string()).collect();
            let others: usize = cuts.iter().map(|c| c.others).sum();
            assert!(!named.is_empty() || possible.is_empty(), "{what}: no cause\n{line}\n{possible:?}");
            assert!(others > 0 || needed.is_subset(&named), "{what}: {needed:?} cause it\n{line}");
            for cut in cuts {
                for tensor in &cut.tensors {
                    match self.entries.get(&**tensor) {
                        Some(entry) => {
                            assert!(possible.contains(&**tensor), "{what}: {tensor} does not cause it\n{line}");
                            assert_eq!(*entry, *cut.entry, "{what}: {line}");
                        }
                        // A value inside, that a plan places.
                        None => assert!(cut.entry.contains(" is "), "{what}: {tensor} is no tensor\n{line}"),
                    }
                }
            }
            assert_eq!(n.origin.phase, self.phase(node.into()), "{what}: {line}");
            let module = &*n.origin.module;
            assert!(!module.is_empty() || graph.ty(operand).rank() == 0 || others > 0, "{what}: no module\n{line}");
            if n.origin.phase == Phase::Backward && reduces && needed.len() == 1 {
                let owner = needed.iter().next().unwrap().rsplit_once('.').unwrap().0.to_string();
                assert_eq!(module, owner, "{what}: {line}");
            }
            let gradients = graph.outputs.iter().filter(|o| o.value.node == node);
            for name in gradients.filter_map(|o| match &o.kind {
                OutputKind::Gradient(name) => Some(name),
                _ => None,
            }) {
                let tied = graph.outputs.iter().filter(|o| o.value.node == node).count() > 1;
                assert!(tied || module == name.rsplit_once('.').unwrap().0, "{what}: gradient of {name}\n{line}");
            }
            count += 1;
        }
        let printed = text::print(graph);
        assert_eq!(text::print(&parse::parse(&printed).unwrap()), printed, "{what}");
        count
    }
}

fn llama(layers: usize) -> ModelConfig {
    config(json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 20, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512, "tie_word_embeddings": false}))
}

fn gpt2(layers: usize) -> ModelConfig {
    config(json!({"model_type": "gpt2", "n_embd": 16, "n_layer": layers, "n_head": 4, "n_positions": 512,
        "vocab_size": 20, "layer_norm_epsilon": 1e-5, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}))
}

fn bert(layers: usize) -> ModelConfig {
    config(json!({"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 4, "vocab_size": 20, "max_position_embeddings": 512, "type_vocab_size": 2,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
}

/// Built-in plans and meshes for them.
const PLANS: [(&str, &str); 6] = [
    ("tp", "tp=2"),
    ("tp-sp", "tp=2"),
    ("fsdp", "dp=2"),
    ("2d", "dp=2,tp=2"),
    ("hsdp", "rep=2,dp=2"),
    ("zero1", "dp=2"),
];

fn explained(what: &str, config: &ModelConfig, tokens: TokenBatch) {
    let options = CompileOptions { gradients: true, ..CompileOptions::default() };
    for (name, on) in PLANS {
        let program = language_model(config, tokens, &plan(name), on, &options);
        for (step, stages) in [("first", &program.first), ("steady", &program.steady)] {
            let Stages { propagated, placed, .. } = stages;
            for (stage, graph) in [("propagated", propagated), ("placed", placed)] {
                let what = format!("{what} under {name}, {step}, {stage}");
                assert!(Derived::of(graph).check(&what) > 0, "{what}: no collective");
            }
        }
    }
}

#[test]
fn two_layers() {
    for (name, config) in [("llama", llama(2)), ("gpt2", gpt2(2)), ("bert", bert(2))] {
        explained(&format!("{name}, 2 layers, few tokens"), &config, TokenBatch::new(4, 6));
    }
    explained("llama, 2 layers, many tokens", &llama(2), TokenBatch::new(8, 256));
}

#[test]
fn twenty_layers() {
    for (name, config) in [("llama", llama(20)), ("gpt2", gpt2(20)), ("bert", bert(20))] {
        explained(&format!("{name}, 20 layers, few tokens"), &config, TokenBatch::new(2, 4));
    }
    explained("llama, 20 layers, many tokens", &llama(20), TokenBatch::new(8, 256));
}
