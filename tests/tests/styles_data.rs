//! Data modes on the model families and on meshes of one to three axes: equality, bytes per rank, gathers and
//! reductions of parameters, and one order of collectives.

use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use tpc::{Graph, InputKind};
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::{TokenBatch, initialize};
use tpc_compiler::program::{CompileOptions, Stages, TrainingProgram};
use tpc_ir::{InputId, Op, Phase, UnitId};
use tpc_passes::styles::Plan;
use tpc_tests::styles::seen;
use tpc_tests::training::{Run, config, differences, feed, language_model, plan, run};

const LAYERS: usize = 3;
const VOCAB: usize = 24;

fn llama(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": VOCAB, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn gpt2(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": VOCAB, "n_positions": 10, "n_embd": 16, "n_layer": layers, "n_head": 4,
        "n_inner": 28, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

fn bert(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "bert", "vocab_size": VOCAB, "max_position_embeddings": 10, "hidden_size": 16,
        "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 20, "hidden_act": "gelu",
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "tie_word_embeddings": true,
    }))
}

type Family = (&'static str, fn(usize) -> ModelConfig);

const FAMILIES: [Family; 3] = [("llama", llama), ("gpt2", gpt2), ("bert", bert)];

/// Compiles for four rows, enough for meshes with four data ranks.
fn compiled(model: &ModelConfig, plan: &Plan, on: &str, gradients: bool) -> TrainingProgram {
    let options = CompileOptions { gradients, ..CompileOptions::for_cpu() };
    language_model(model, TokenBatch::new(4, 5), plan, on, &options)
}

/// Both programs of a family with `LAYERS` layers, compiled with the default options and without gradients as outputs.
fn stages(family: usize, name: &'static str, on: &'static str) -> Arc<[Stages; 2]> {
    type Cache = Mutex<BTreeMap<(usize, &'static str, &'static str), Arc<OnceLock<Arc<[Stages; 2]>>>>>;
    static CACHE: Cache = Mutex::new(BTreeMap::new());
    let place = CACHE.lock().unwrap().entry((family, name, on)).or_default().clone();
    let compile = || {
        let program = compiled(&FAMILIES[family].1(LAYERS), &plan(name), on, false);
        Arc::new([program.first, program.steady])
    };
    place.get_or_init(compile).clone()
}

fn one_rank(family: usize) -> &'static Run {
    static RUNS: [OnceLock<Run>; 3] = [const { OnceLock::new() }; 3];
    RUNS[family]
        .get_or_init(|| run(compiled(&FAMILIES[family].1(2), &Plan::new(), "", true), &[0.01], |s| feed(s, VOCAB)))
}

fn equal(family: usize, name: &str, on: &str) {
    let program = compiled(&FAMILIES[family].1(2), &plan(name), on, true);
    let found = seen(program, |s| feed(s, VOCAB));
    let wrong = differences(&found.run, one_rank(family));
    assert!(wrong.is_empty(), "{} under {name} on {on}:\n{}", FAMILIES[family].0, wrong.join("\n"));
}

#[test]
fn one_data_axis_is_equal() {
    for family in 0..3 {
        for name in ["ddp", "fsdp", "zero1"] {
            equal(family, name, "dp=2");
            if family < 2 {
                equal(family, name, "dp=4");
            }
        }
    }
    // Uneven batches and sizes.
    equal(0, "fsdp", "dp=3");
    equal(1, "zero1", "dp=3");
}

#[test]
fn two_axes_are_equal() {
    for family in 0..3 {
        for (name, on) in [("2d", "dp=2,tp=2"), ("hsdp", "rep=2,dp=2"), ("tp-zero1", "dp=2,tp=2")] {
            equal(family, name, on);
        }
    }
    equal(0, "tp-sp-fsdp", "dp=2,tp=2");
    equal(0, "tp-fsdp", "tp=2,dp=2");
}

#[test]
fn three_axes_are_equal() {
    for family in 0..3 {
        equal(family, "tp-hsdp", "rep=2,dp=2,tp=2");
    }
    equal(0, "tp-sp-hsdp", "rep=2,dp=2,tp=2");
}

/// Every rank starts with its shards of one set of parameters, independent of the mesh.
#[test]
fn initial_values_do_not_depend_on_the_mesh() {
    for (family, model) in FAMILIES {
        let start = |name: &str, on: &str| -> BTreeMap<String, Vec<u64>> {
            let program = compiled(&model(1), &plan(name), on, false);
            let init = program.init.clone();
            let mut training = program.launch(Default::default()).unwrap();
            initialize(training.session(), &init, 7).unwrap();
            let session = training.session();
            let parameters = session.program(0).inputs.iter().filter(|i| i.kind == InputKind::Parameter);
            let names: Vec<String> = parameters.map(|i| i.name.clone()).collect();
            let read = |name: &String| session.read_input_f64(name).unwrap().iter().map(|v| v.to_bits()).collect();
            names.iter().map(|name| (name.clone(), read(name))).collect()
        };
        let one = start("none", "");
        assert!(one.values().any(|v| v.iter().any(|&bits| bits != v[0])), "{family}: something is drawn");
        for (name, on) in [("fsdp", "dp=3"), ("2d", "dp=2,tp=2"), ("tp", "tp=4"), ("tp-hsdp", "rep=2,dp=2,tp=2")] {
            assert!(start(name, on) == one, "{family} under {name} on {on}");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

/// The elements of parameters and optimizer state that a rank holds, by name.
fn held(stages: &Stages, rank: usize) -> BTreeMap<String, usize> {
    let kept = stages.ranks[rank].inputs.iter();
    let kept = kept.filter(|i| matches!(i.kind, InputKind::Parameter | InputKind::State));
    kept.map(|i| (i.name.clone(), i.binding.view.elements())).collect()
}

/// The length of a rank's chunk: chunks have `ceil(extent / n)` elements, and the last ones have what remains.
fn chunk(extent: usize, n: usize, rank: usize) -> usize {
    let each = extent.div_ceil(n);
    extent.saturating_sub(each * rank).min(each)
}

/// The elements that each of n ranks should hold of a value. The cut dimension is the one whose largest chunk is
/// smallest, the outermost of several. The value stays whole if no dimension shrinks.
fn shards(shape: &[usize], n: usize) -> Vec<usize> {
    let count: usize = shape.iter().product();
    let largest = |d: usize| count / shape[d].max(1) * shape[d].div_ceil(n);
    let best = (0..shape.len()).min_by_key(|&d| (largest(d), d)).filter(|&d| largest(d) < count);
    (0..n).map(|rank| best.map_or(count, |d| count / shape[d] * chunk(shape[d], n, rank))).collect()
}

#[test]
fn bytes_of_parameters_and_states() {
    for (family, (called, _)) in FAMILIES.iter().enumerate() {
        for (n, on) in [(2usize, "dp=2"), (3, "dp=3"), (4, "dp=4")] {
            for (name, parameters, states) in
                [("fsdp", true, true), ("zero1", false, true), ("ddp", false, false), ("hsdp", true, true)]
            {
                // The uneven sizes and the mesh with four ranks once, all families on two ranks.
                if n != 2 && (family != 0 || name == "hsdp") {
                    continue;
                }
                let on = if name == "hsdp" { "rep=2,dp=2" } else { on };
                for stages in stages(family, name, on).iter() {
                    let (mut total, mut padding) = (0.0, 0.0);
                    let mut worst = vec![0usize; stages.ranks.len()];
                    for (node, id) in stages.placed.inputs() {
                        let input = &id.to_string();
                        let sharded = match id.kind() {
                            InputKind::Parameter => parameters,
                            InputKind::State => states,
                            _ => continue,
                        };
                        let shape = &stages.placed.node(node).types[0].shape;
                        let count: usize = shape.iter().product();
                        let expected = if sharded { shards(shape, n) } else { vec![count; n] };
                        for (rank, worst) in worst.iter_mut().enumerate() {
                            let found = held(stages, rank)[input];
                            assert_eq!(found, expected[rank % n], "{called} {name} {on}: {input} {shape:?} on {rank}");
                            *worst += found;
                        }
                        if sharded {
                            total += count as f64;
                            padding += expected[0] as f64 - count as f64 / n as f64;
                        } else {
                            padding += count as f64;
                        }
                    }
                    let allowed = total / n as f64 + padding;
                    assert!(worst.iter().all(|&w| w as f64 <= allowed + 1e-6), "{worst:?} of {allowed}");
                    // Padding must not hide a missing shard: nearly all bytes are sharded, and each rank holds nearly
                    // an n-th.
                    if parameters && n != 3 {
                        assert!(padding < 0.02 * total, "{called} {name} {on}: {padding} of {total} elements");
                    }
                }
            }
        }
    }
}

/// Both axes cut, each its own share. A dimension that a style cuts may have the data axis as its minor one.
#[test]
fn bytes_under_two_kinds_of_sharding() {
    for (name, on) in [("2d", "dp=2,tp=2"), ("tp-hsdp", "rep=2,dp=2,tp=2"), ("tp-sp-fsdp", "dp=2,tp=2")] {
        for stages in stages(0, name, on).iter() {
            for (node, id) in stages.placed.inputs().filter(|(_, id)| id.is_kept()) {
                let input = &id.to_string();
                let count: usize = stages.placed.node(node).types[0].shape.iter().product();
                // All sizes are even; norms are cut by the data axis only.
                let share = if count <= 1 {
                    1
                } else if input.contains("norm") {
                    2
                } else {
                    4
                };
                for rank in 0..stages.ranks.len() {
                    assert_eq!(held(stages, rank)[input] * share, count, "{name} on {on}: {input} on rank {rank}");
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Communication

/// How often the stored shard of each parameter is gathered over the data axis in a phase.
fn gathers(graph: &Graph, phase: Phase) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for node in graph.nodes() {
        let Op::AllGather { axes, .. } = &graph.node(node).op else { continue };
        let over_data = axes.iter().any(|&a| graph.mesh.name(a) == "dp");
        let Op::Input { id: InputId::Parameter(name), .. } = graph.op(graph.operands(node)[0]) else { continue };
        if over_data && graph.node(node).origin.phase == phase {
            *found.entry(name.to_string()).or_default() += 1;
        }
    }
    found
}

/// Parameters that are sharded over the data axis.
fn stored(graph: &Graph) -> BTreeSet<String> {
    let dp = graph.mesh.axis("dp").unwrap();
    let inputs = graph.inputs().filter(|(_, id)| id.is_parameter());
    let on_data = inputs.filter(|(node, _)| graph.node(*node).types[0].sharding.dim_of(dp).is_some());
    on_data.map(|(_, id)| id.to_string()).collect()
}

/// The units of these parameters; `None` for parameters of the model as a whole.
fn units<'a>(graph: &Graph, names: impl IntoIterator<Item = &'a String>) -> BTreeSet<Option<UnitId>> {
    let units: BTreeMap<String, Option<UnitId>> =
        graph.inputs().map(|(n, id)| (id.to_string(), graph.unit_of(n))).collect();
    names.into_iter().map(|name| units[name.as_str()]).collect()
}

/// Each layer is a unit; embeddings, what follows the layers, and heads belong to none.
#[test]
fn layers_are_units() {
    for (family, (called, _)) in FAMILIES.iter().enumerate() {
        for stages in stages(family, "fsdp", "dp=2").iter() {
            for (node, name) in stages.placed.inputs().filter_map(|(node, id)| Some((node, id.parameter()?))) {
                let layer = (0..LAYERS).find(|layer| name.indices().any(|index| index == *layer));
                let unit = layer.map(|layer| UnitId(layer as u32));
                assert_eq!(stages.placed.unit_of(node), unit, "{called}: {name}");
            }
        }
    }
}

fn positions(name: &str) -> bool {
    name.contains("wpe") || name.contains("position_embeddings")
}

const SHARDED: [(&str, &str); 5] =
    [("fsdp", "dp=2"), ("fsdp", "dp=4"), ("hsdp", "rep=2,dp=2"), ("2d", "dp=2,tp=2"), ("tp-hsdp", "rep=2,dp=2,tp=2")];

/// L+1 units are gathered in the forward pass and L-1 in the backward pass; the last block and the parameters outside
/// of blocks are gathered once.
#[test]
fn parameters_are_gathered_before_use() {
    for (family, (called, _)) in FAMILIES.iter().enumerate() {
        for (name, on) in SHARDED {
            for stages in stages(family, name, on).iter() {
                let graph = &stages.placed;
                let (forward, backward) = (gathers(graph, Phase::Forward), gathers(graph, Phase::Backward));
                let what = format!("{called} under {name} on {on}");
                // Only those rows of a position table are sent that the batch reads, not the stored shard.
                let mut stored = stored(graph);
                stored.retain(|name| !positions(name) || forward.contains_key(name));
                assert_eq!(forward.keys().cloned().collect::<BTreeSet<_>>(), stored, "{what}\n{}", list(stages));
                assert!(forward.values().chain(backward.values()).all(|&n| n == 1), "{what}: {forward:?}");
                assert_eq!(units(graph, forward.keys()).len(), LAYERS + 1, "{what}");
                let again = units(graph, backward.keys());
                assert_eq!(again.len(), LAYERS - 1, "{what}: {again:?}");
                let last = Some(UnitId(LAYERS as u32 - 1));
                assert!(again.iter().all(|unit| unit.is_some() && *unit != last), "{what}: {again:?}");
                assert_eq!(gathers(graph, Phase::Optimizer), BTreeMap::new(), "{what}");
            }
        }
    }
}

/// How many values go through collectives of at least `least` bytes in a phase, over axes that include this one.
/// (Several values may share one collective.)
fn count(stages: &Stages, phase: Phase, axis: &str, kind: &str, least: usize) -> usize {
    let all = stages.ranks[0].collectives().filter(|c| c.phase == phase && c.name() == kind && c.full_bytes >= least);
    all.filter(|c| c.axes.split(',').any(|a| a == axis)).map(|c| c.values).sum()
}

fn list(stages: &Stages) -> String {
    let line = |c: &tpc_ir::program::Collective| {
        format!("{} {} {} {} bytes: {}", c.phase.name(), c.name(), c.axes, c.full_bytes, c.why)
    };
    stages.ranks[0].collectives().map(line).collect::<Vec<_>>().join("\n")
}

fn are_scattered(family: usize, name: &'static str, on: &'static str) {
    for stages in stages(family, name, on).iter() {
        let stored = stored(&stages.placed);
        let what = format!("{} under {name} on {on}:\n{}", FAMILIES[family].0, list(stages));
        // The rows of a position table that the batch reads may be reduced: half of the table here.
        let whole = count(stages, Phase::Backward, "dp", "all_reduce", 0);
        assert!(whole <= stored.iter().filter(|name| positions(name)).count(), "{what}");
        assert_eq!(count(stages, Phase::Backward, "dp", "reduce_scatter", 0), stored.len() - whole, "{what}");
        assert!(stages.ranks[0].collectives().all(|c| c.phase != Phase::Optimizer), "{what}");
    }
}

/// Under FSDP every gradient is reduced to the shard that the rank keeps, even if gradients are not outputs, and the
/// optimizer communicates nothing.
#[test]
fn gradients_are_scattered() {
    for family in 0..3 {
        for (name, on) in SHARDED {
            if family == 0 || !name.contains("hsdp") {
                are_scattered(family, name, on);
            }
        }
    }
}

/// The gradient of a tied table is the sum of a scatter and a product. Sizes matter: for a few bytes one reduction over
/// both axes costs less than two collectives, and the rows of few tokens are cheaper to gather.
#[test]
fn gradients_of_tied_embeddings_are_scattered_under_hsdp() {
    let large = |mut json: serde_json::Value| {
        (json["vocab_size"], json["n_positions"]) = (json!(512), json!(64));
        json["max_position_embeddings"] = json!(64);
        config(json)
    };
    let gpt2 = json!({
        "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 28, "activation_function": "gelu_new",
        "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    });
    let bert = json!({
        "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 20, "hidden_act": "gelu", "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "tie_word_embeddings": true,
    });
    for model in [large(gpt2), large(bert)] {
        for (name, on) in SHARDED.into_iter().filter(|(name, _)| name.contains("hsdp")) {
            let options = CompileOptions::for_cpu();
            let program = language_model(&model, TokenBatch::new(16, 64), &plan(name), on, &options);
            for stages in [&program.first, &program.steady] {
                let table = 512 * 64 * 4 / if name.contains("tp") { 2 } else { 1 };
                assert_eq!(count(stages, Phase::Backward, "dp", "all_reduce", table), 0, "{}", list(stages));
                assert!(count(stages, Phase::Backward, "dp", "reduce_scatter", table) >= 1, "{}", list(stages));
            }
        }
    }
}

/// Under ZeRO-1 a gradient is scattered, and the parameter is updated where its state is placed and gathered once.
/// Under DDP every gradient is reduced once and nothing is gathered.
#[test]
fn replicated_parameters() {
    for (family, (called, _)) in FAMILIES.iter().enumerate() {
        for on in ["dp=2", "dp=4"] {
            if on == "dp=4" && family > 0 {
                continue;
            }
            let zero = stages(family, "zero1", on);
            let parameters = zero[0].placed.inputs().filter(|i| i.1.is_parameter()).count();
            for stages in zero.iter() {
                let what = format!("{called} under zero1 on {on}:\n{}", list(stages));
                let of = |phase, kind| count(stages, phase, "dp", kind, 8);
                // At most a scatter and a gather per parameter: two halves. The batch reads a part of the learned
                // positions that lies in the shard of one rank. No collective reduces to one rank, so their gradient is
                // reduced to all ranks: a third half.
                let positions = usize::from(*called != "llama");
                let halves = 2 * of(Phase::Backward, "all_reduce") + of(Phase::Backward, "reduce_scatter");
                let optimizer = of(Phase::Optimizer, "all_gather");
                assert!(halves + optimizer <= 2 * parameters + positions, "{what}");
                assert_eq!(of(Phase::Optimizer, "all_reduce") + of(Phase::Optimizer, "all_to_all"), 0, "{what}");
            }
            for stages in stages(family, "ddp", on).iter() {
                let what = format!("{called} under ddp on {on}:\n{}", list(stages));
                assert_eq!(count(stages, Phase::Backward, "dp", "all_reduce", 0), parameters, "{what}");
                let only = |c: &tpc_ir::program::Collective| c.name() == "all_reduce" && c.phase != Phase::Optimizer;
                assert!(stages.ranks[0].collectives().all(only), "{what}");
            }
        }
    }
}

/// All ranks issue the same collectives in the same order, and the members of a group agree on each.
#[test]
fn one_global_order() {
    for (family, (called, _)) in FAMILIES.iter().enumerate() {
        for (name, on) in SHARDED.into_iter().chain([("zero1", "dp=2"), ("ddp", "dp=2")]) {
            for stages in stages(family, name, on).iter() {
                let order = |rank: usize| -> Vec<_> {
                    let all = stages.ranks[rank].collectives();
                    all.map(|c| (c.tag, c.name(), c.axes.to_string(), c.phase, c.dtype)).collect()
                };
                let first = order(0);
                assert!(!first.is_empty());
                for rank in 0..stages.ranks.len() {
                    assert_eq!(order(rank), first, "{called} under {name} on {on}, rank {rank}");
                    let inside = stages.ranks[rank].collectives().all(|c| c.group[c.position] == rank);
                    assert!(inside, "{called} under {name} on {on}: rank {rank} is not where its groups have it");
                }
            }
        }
    }
}
