//! Multi-head attention sharded by whole heads with the user's model unchanged, and the five defects of PyTorch's
//! `TensorParallelMultiheadAttention`.

use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask};
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use serde_json::json;
use std::sync::OnceLock;
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::CompileOptions;
use tpc_ir::Phase;
use tpc_passes::styles::{ColwiseParallel, PairwiseParallel, Plan, RowwiseParallel, TensorParallelMultiheadAttention};
use tpc_tests::eager::filled;
use tpc_tests::styles::{Case, Seen, floats, seen, types};
use tpc_tests::training::{Run, config, differences, feed, language_model, run};

#[derive(Module, Debug)]
struct Attention {
    norm: LayerNorm,
    attn: MultiHeadAttention,
}

const D: usize = 12;

fn attention(heads: usize, dropout: f64) -> Attention {
    let d = &Device::flex();
    let attn = MultiHeadAttentionConfig::new(D, heads).with_dropout(dropout).init(d);
    filled(Attention { norm: LayerNormConfig::new(D).init(d), attn }, 1.2)
}

type SelfCase = Case<Attention, Tensor<3>, 3>;

fn own(heads: usize, shape: [usize; 3], forward: fn(&Attention, Tensor<3>) -> Tensor<3>) -> SelfCase {
    let batch = |data: &[TensorData], device: &Device| Tensor::from_data(data[0].clone(), device);
    Case { model: attention(heads, 0.0), data: vec![floats("x", &shape)], batch, forward }
}

fn plain(m: &Attention, x: Tensor<3>) -> Tensor<3> {
    m.attn.forward(MhaInput::self_attn(m.norm.forward(x))).context
}

/// Attention with a causal mask and one that hides the last position of every second row.
fn masked(m: &Attention, x: Tensor<3>) -> Tensor<3> {
    let [b, s, _] = x.dims();
    let device = x.device();
    let causal = generate_autoregressive_mask(b, s, &device);
    let hidden: Vec<bool> = (0..b * s).map(|i| i / s % 2 == 1 && i % s == s - 1).collect();
    let pad = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [b, s]), &device);
    m.attn.forward(MhaInput::self_attn(m.norm.forward(x)).mask_attn(causal).mask_pad(pad)).context
}

fn activation([b, s, d]: [usize; 3]) -> usize {
    b * s * d * 4
}

/// Query, key and value by columns, that is, by heads; the output by rows with its bias added once.
fn by_heads(seen: &Seen, heads: usize) {
    let hd = D / heads;
    for name in ["query", "key", "value"] {
        let (weight, bias) = (format!("f32[12, {heads}@tp, {hd}]"), format!("f32[{heads}@tp, {hd}]"));
        seen.lies(&[(&format!("attn.{name}.weight"), &weight), (&format!("attn.{name}.bias"), &bias)]);
    }
    seen.lies(&[("attn.output.weight", &format!("f32[{heads}@tp, {hd}, 12]")), ("attn.output.bias", "f32[12]")]);
}

fn styles() -> Vec<Plan> {
    let written = Plan::new()
        .with("attn.{query,key,value}", ColwiseParallel::default())
        .with("attn.output", RowwiseParallel::default());
    vec![
        PairwiseParallel.into(),
        Plan::new().with("attn", PairwiseParallel),
        Plan::new().with("attn", TensorParallelMultiheadAttention),
        written,
    ]
}

#[test]
fn burns_attention_by_heads() {
    let shape = [3, 5, D];
    for (heads, forward) in [(4, plain as fn(&Attention, Tensor<3>) -> Tensor<3>), (6, masked), (4, masked)] {
        let case = own(heads, shape, forward);
        let expected = case.eager();
        for (i, plan) in styles().iter().enumerate() {
            // Six heads on two ranks; on four ranks 2, 2, 2, 0. Four heads on three ranks: 2, 2, 0.
            for on in ["tp=2", "tp=4", "tp=3"] {
                if i > 0 && (on != "tp=2" || heads != 4) {
                    continue;
                }
                let seen = case.equals(&expected, plan, on);
                by_heads(&seen, heads);
                seen.at_most(activation(shape), 2, 2);
                let small = seen.small(Phase::Forward, "tp", activation(shape));
                assert_eq!(small, 0, "{on}:\n{}", seen.list());
            }
        }
    }
}

#[test]
fn attention_with_data_modes() {
    let shape = [4, 5, D];
    let case = own(4, shape, masked);
    let expected = case.eager();
    let pairs = || Plan::new().with("attn", PairwiseParallel).along("tp");
    for (plan, on) in [
        (pairs().ddp("dp"), "dp=2,tp=2"),
        (pairs().enable_2d_with_fsdp("dp"), "dp=2,tp=2"),
        (pairs().zero1("dp"), "tp=2,dp=2"),
        (pairs().hsdp("rep", "dp"), "rep=2,dp=2,tp=2"),
    ] {
        case.equals(&expected, &plan, on).at_most(activation(shape), 2, 2);
    }
}

#[test]
fn cross_attention() {
    let model = attention(4, 0.0);
    type Pair = (Tensor<3>, Tensor<3>);
    let case: Case<Attention, Pair, 3> = Case {
        model,
        data: vec![floats("x", &[3, 5, D]), floats("memory", &[3, 7, D])],
        batch: |data, device| (Tensor::from_data(data[0].clone(), device), Tensor::from_data(data[1].clone(), device)),
        forward: |m, (x, memory)| {
            let memory = m.norm.forward(memory);
            let hidden: Vec<bool> = (0..21).map(|i| i % 7 > 4 && i < 14).collect();
            let pad = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [3, 7]), &memory.device());
            m.attn.forward(MhaInput::new(m.norm.forward(x), memory.clone(), memory).mask_pad(pad)).context
        },
    };
    let expected = case.eager();
    for plan in styles() {
        for on in ["tp=2", "tp=4", "tp=3"] {
            let seen = case.equals(&expected, &plan, on);
            by_heads(&seen, 4);
            // Two inputs need a gradient: that of the queries and that of the memory.
            seen.at_most(3 * 5 * D * 4, 2, 4);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The five defects

/// Fused rows are q|k|v thirds rather than triples per head: GPT-2's fused weight gives what its parts give, and it is
/// sharded by heads with one all-reduce in each pass.
#[test]
fn defect_1_fused_rows_are_thirds() {
    let gpt2 = config(json!({
        "model_type": "gpt2", "vocab_size": 24, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 4,
        "n_inner": 32, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }));
    let attn = |plan: Plan| plan.with("transformer.h.*.attn", TensorParallelMultiheadAttention);
    let names = tpc_compiler::pretrained::names(&gpt2);
    let prefix = if names.values().any(|n| n.starts_with("transformer.")) { "" } else { "h.*.attn" };
    let plan =
        if prefix.is_empty() { attn(Plan::new()) } else { Plan::new().with(prefix, TensorParallelMultiheadAttention) };
    let batch = || TokenBatch::new(3, 5);
    let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
    let one = run(language_model(&gpt2, batch(), &Plan::new(), "", &options), &[0.01], |s| feed(s, 24));
    for on in ["tp=2", "tp=4", "tp=3"] {
        let program = language_model(&gpt2, batch(), &plan, on, &options);
        let fused: Vec<String> = types(&program.first.placed)
            .into_iter()
            .filter(|(name, _)| name.contains("c_attn.weight") && !name.contains('/'))
            .map(|(_, ty)| ty)
            .collect();
        assert_eq!(fused, ["f32[16, 3, 4@tp, 4]"]);
        let seen = seen(program, |s| feed(s, 24));
        let wrong = differences(&seen.run, &one);
        assert!(wrong.is_empty(), "{on}:\n{}", wrong.join("\n"));
        seen.at_most(3 * 5 * 16 * 4, 2, 2);
    }
}

/// Batch and heads are not mixed: rows of a batch do not see each other, whatever the size of the batch.
#[test]
fn defect_2_batch_and_heads_are_apart() {
    let alone: Vec<f64> = {
        let case = own(4, [1, 5, D], plain);
        case.seen(&PairwiseParallel.into(), "tp=2").output
    };
    let mut case = own(4, [1, 5, D], plain);
    let first = case.data[0].clone().try_into_vec::<f32>().unwrap();
    let mut rows = first.clone();
    for row in 1..4 {
        rows.extend(floats(&format!("row {row}"), &[5 * D]).try_into_vec::<f32>().unwrap().iter().map(|v| v * 3.0));
    }
    case.data = vec![TensorData::new(rows, [4, 5, D])];
    for on in ["tp=2", "tp=4", "tp=3"] {
        let together = case.seen(&PairwiseParallel.into(), on).output;
        for (a, b) in alone.iter().zip(&together) {
            assert!((a - b).abs() < 1e-6, "{on}: {a} and {b}");
        }
    }
}

/// No memory is read before it is written: two launches give the same bits, and so does a third one after memory was
/// filled with other numbers.
#[test]
fn defect_3_nothing_uninitialized_is_read() {
    let case = own(6, [3, 5, D], masked);
    let bits = |on: &str| -> Vec<u64> {
        let seen = case.seen(&PairwiseParallel.into(), on);
        let all = seen.output.iter().chain(seen.run.gradients.values().flatten());
        all.chain(seen.run.parameters.values().flatten()).map(|v| v.to_bits()).collect()
    };
    for on in ["tp=2", "tp=4"] {
        let first = bits(on);
        // The memory that the allocator returns next was just used for something else.
        let filling: Vec<Vec<f32>> = (1..64).map(|i| vec![f32::NAN; i * 1024]).collect();
        drop(filling);
        assert_eq!(first, bits(on));
        assert!(first.iter().all(|b| f64::from_bits(*b).is_finite()));
    }
}

/// The batch is the first dimension: a batch of 2 with 5 positions is not one of 5 with 2.
#[test]
fn defect_4_the_batch_comes_first() {
    let (wide, long) = (own(4, [2, 5, D], masked), own(4, [5, 2, D], masked));
    let (a, b) = (wide.eager(), long.eager());
    assert!(a.0.iter().zip(&b.0).any(|(x, y)| (x - y).abs() > 1e-3), "the test can tell them apart");
    for on in ["tp=2", "tp=4"] {
        wide.equals(&a, &TensorParallelMultiheadAttention.into(), on);
        long.equals(&b, &TensorParallelMultiheadAttention.into(), on);
    }
}

/// Masks and dropout change the result as they do eagerly, and the same elements are dropped on every mesh.
#[test]
fn defect_5_masks_and_dropout_count() {
    let (with, without) = (own(4, [2, 5, D], masked), own(4, [2, 5, D], plain));
    let (a, b) = (with.eager(), without.eager());
    assert!(a.0.iter().zip(&b.0).any(|(x, y)| (x - y).abs() > 1e-3), "the mask matters");
    with.equals(&a, &TensorParallelMultiheadAttention.into(), "tp=2");

    let mut case = own(4, [2, 5, D], masked);
    case.model = attention(4, 0.4);
    let one = case.seen(&Plan::new(), "");
    let eager = case.eager().0;
    assert!(one.output.iter().zip(&eager).any(|(x, y)| (x - y).abs() > 1e-3), "something is dropped in training");
    let expected = (one.output, one.run);
    for on in ["tp=2", "tp=4", "tp=3"] {
        case.equals(&expected, &TensorParallelMultiheadAttention.into(), on);
    }
    let both = Plan::new().with("attn", PairwiseParallel).along("tp").ddp("dp");
    case.equals(&expected, &both, "dp=2,tp=2");
}

// ---------------------------------------------------------------------------------------------------------------------
// Grouped queries

fn llama(heads: usize, kv_heads: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 20, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_hidden_layers": 1, "vocab_size": 24, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn unsharded(kv: usize) -> &'static Run {
    static RUNS: OnceLock<Vec<Run>> = OnceLock::new();
    let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
    let all = RUNS.get_or_init(|| {
        let one = |kv| language_model(&llama(8, kv), TokenBatch::new(2, 5), &Plan::new(), "", &options);
        [1, 2, 4].map(|kv| run(one(kv), &[0.01], |s| feed(s, 24))).into()
    });
    &all[kv.ilog2() as usize]
}

#[test]
fn key_and_value_heads_fewer_than_ranks() {
    let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
    const ACTIVATION: usize = 2 * 5 * 16 * 4;
    let plan = Plan::new().with("model.layers.*.self_attn", TensorParallelMultiheadAttention);
    for (kv, on, key) in [
        // Whole kv heads on every rank.
        (4, "tp=2", "f32[16, 4@tp, 2]"),
        (4, "tp=4", "f32[16, 4@tp, 2]"),
        (2, "tp=2", "f32[16, 2@tp, 2]"),
        // Fewer kv heads than ranks: sharded over a part of the axis, and replicated over the rest.
        (2, "tp=4", "f32[16, 2@tp:2, 2]"),
        (4, "tp=8", "f32[16, 4@tp:4, 2]"),
        (2, "tp=8", "f32[16, 2@tp:2, 2]"),
        (1, "tp=2", "f32[16, 2]"),
        (1, "tp=4", "f32[16, 2]"),
    ] {
        let program = language_model(&llama(8, kv), TokenBatch::new(2, 5), &plan, on, &options);
        let seen = seen(program, |s| feed(s, 24));
        let wrong = differences(&seen.run, unsharded(kv));
        assert!(wrong.is_empty(), "{kv} on {on}:\n{}", wrong.join("\n"));
        let name = "model.layers.0.self_attn.k_proj.weight";
        let found = seen.types[name].replace(", 1,", ",");
        assert_eq!(found, key, "{kv} on {on}");
        // The gradients of shared kv heads are small compared with an activation.
        seen.at_most(ACTIVATION, 2, 2);
    }
    // Neither number divides the other: the result is correct with any cut.
    for (kv, on) in [(2, "tp=3"), (4, "tp=3"), (1, "tp=3")] {
        let program = language_model(&llama(8, kv), TokenBatch::new(2, 5), &plan, on, &options);
        let wrong = differences(&seen(program, |s| feed(s, 24)).run, unsharded(kv));
        assert!(wrong.is_empty(), "{kv} on {on}:\n{}", wrong.join("\n"));
    }
}
