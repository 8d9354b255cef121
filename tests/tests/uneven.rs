//! Sizes that no axis divides: heads, kv heads, vocabulary, sequence, feed-forward, batch. Three AdamW steps on ranks
//! equal those of one rank that shards nothing.

use serde_json::json;
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::CompileOptions;
use tpc_passes::styles::Plan;
use tpc_tests::training::{Run, config, differences, feed, language_model, plan, run};

fn llama(heads: usize, kv_heads: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 8 * heads, "intermediate_size": 170, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_hidden_layers": 2, "vocab_size": 251, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

fn gpt2(heads: usize) -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": 251, "n_positions": 30, "n_embd": 8 * heads, "n_layer": 2, "n_head": heads,
        "n_inner": 170, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

fn bert(heads: usize) -> ModelConfig {
    config(json!({
        "model_type": "bert", "vocab_size": 251, "max_position_embeddings": 30, "hidden_size": 8 * heads,
        "num_hidden_layers": 1, "num_attention_heads": heads, "intermediate_size": 170, "hidden_act": "gelu",
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "tie_word_embeddings": true,
    }))
}

const RATES: [f64; 3] = [1e-3, 2e-3, 1e-3];

fn trained(model: &ModelConfig, tokens: TokenBatch, name: &str, mesh: &str) -> Run {
    let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
    let program = language_model(model, tokens, &plan(name), mesh, &options);
    run(program, &RATES, |session| feed(session, model.vocab_size()))
}

/// Checks that every plan on its mesh equals the run on one rank.
fn same(model: ModelConfig, tokens: TokenBatch, cases: &[(&str, &str)]) {
    let expected = trained(&model, tokens, "none", "");
    assert!(expected.losses.iter().all(|l| l.is_finite() && *l > 0.0), "{:?}", expected.losses);
    assert!(expected.losses[2] < expected.losses[0], "{:?}", expected.losses);
    let mut wrong = Vec::new();
    for (plan, mesh) in cases {
        let found = trained(&model, tokens, plan, mesh);
        wrong.extend(differences(&found, &expected).into_iter().map(|d| format!("{plan} on {mesh}: {d}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn six_heads_on_four_ranks() {
    same(llama(6, 6), TokenBatch::new(2, 30), &[("tp", "tp=4"), ("tp", "tp=3")]);
}

#[test]
fn three_kv_heads_of_six_on_four_ranks() {
    same(llama(6, 3), TokenBatch::new(2, 30), &[("tp", "tp=4"), ("tp", "tp=2"), ("tp", "tp=3")]);
}

#[test]
fn three_kv_heads_of_twelve_on_four_ranks() {
    same(llama(12, 3), TokenBatch::new(2, 30), &[("tp", "tp=4"), ("tp", "tp=6")]);
}

#[test]
fn one_kv_head_on_four_ranks() {
    same(llama(6, 1), TokenBatch::new(2, 30), &[("tp", "tp=4"), ("tp", "tp=3")]);
    same(llama(8, 1), TokenBatch::new(2, 30), &[("tp", "tp=4")]);
}

#[test]
fn two_kv_heads_of_eight_on_four_ranks() {
    same(llama(8, 2), TokenBatch::new(2, 30), &[("tp", "tp=4"), ("tp", "tp=8")]);
}

/// The sequence of 30 tokens is cut, too.
#[test]
fn sequence_parallel_on_four_ranks() {
    let cases = [("tp-sp", "tp=4"), ("tp-sp", "tp=3"), ("tp-sp-ddp", "dp=3,tp=4")];
    same(llama(6, 3), TokenBatch::new(4, 30), &cases);
    same(gpt2(6), TokenBatch::new(2, 30), &cases[..1]);
    let tokens = TokenBatch { attention_mask: true, token_type_ids: true, ..TokenBatch::new(2, 30) };
    same(bert(6), tokens, &cases[..1]);
}

#[test]
fn batch_four_on_three_ranks() {
    same(llama(6, 3), TokenBatch::new(4, 30), &[("ddp", "dp=3"), ("tp-ddp", "dp=3,tp=2"), ("tp-ddp", "tp=4,dp=3")]);
}

#[test]
fn gpt2_with_six_heads() {
    same(gpt2(6), TokenBatch::new(4, 30), &[("tp", "tp=4"), ("tp", "tp=3"), ("ddp", "dp=3"), ("tp-ddp", "dp=3,tp=4")]);
}

#[test]
fn bert_with_six_heads_and_padding() {
    let tokens = TokenBatch { attention_mask: true, token_type_ids: true, ..TokenBatch::new(4, 30) };
    same(bert(6), tokens, &[("tp", "tp=4"), ("ddp", "dp=3"), ("tp-ddp", "dp=3,tp=4")]);
}

/// Parses the text of a plan file.
fn styled(text: &str) -> Plan {
    Plan::from_json(text).unwrap_or_else(|e| panic!("{e}"))
}

/// The attention mask is computed in a loop over heads, which does not run on a rank without heads, while the other
/// layer reads the mask there.
#[test]
fn a_mask_on_ranks_without_heads() {
    let tokens = TokenBatch { attention_mask: true, ..TokenBatch::new(2, 12) };
    let gpt2_plan = styled(
        r#"{"styles": {
            "transformer.h.0.attn.c_attn": {"ColwiseParallel":
                {"input_layouts": "Shard(2)", "prepare_input": "make_input_replicate_1d"}},
            "transformer.h.0.ln_2": {"PrepareModuleOutput":
                {"output_layouts": "Shard(-1)", "desired_output_layouts": "Shard(1)"}}}}"#,
    );
    let llama_plan = styled(
        r#"{"styles": {
            "model.layers.0.self_attn.q_proj": "ColwiseParallel", "model.layers.0.self_attn.k_proj": "ColwiseParallel",
            "model.layers.0.self_attn.v_proj": "ColwiseParallel",
            "model.layers.0.post_attention_layernorm": "SequenceParallel"}}"#,
    );
    for (model, plan, meshes) in [
        (gpt2(4), gpt2_plan, ["tp=3", "tp=2", "tp=5"]),
        (llama(4, 2), llama_plan.clone(), ["tp=3", "tp=5", "tp=7"]),
        (llama(4, 4), llama_plan, ["tp=3", "tp=5", "tp=7"]),
    ] {
        let expected = trained(&model, tokens, "none", "");
        for mesh in meshes {
            let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
            let program = language_model(&model, tokens, &plan, mesh, &options);
            let found = run(program, &RATES, |session| feed(session, model.vocab_size()));
            assert_eq!(differences(&found, &expected), Vec::<String>::new(), "{mesh}");
        }
    }
}

fn interleaved(dim: usize, heads: usize, kv_heads: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama-interleaved", "dim": dim, "n_layers": 1, "n_heads": heads, "n_kv_heads": kv_heads,
        "ffn": 8, "vocab": 13, "seq": 16,
    }))
}

/// The pairs of an interleaved rotary embedding are inside of a head, and an axis cuts between heads only.
#[test]
fn interleaved_heads_that_no_axis_divides() {
    let tokens = TokenBatch::new(2, 9);
    same(interleaved(12, 2, 1), tokens, &[("tp", "tp=2"), ("tp", "tp=4"), ("tp-sp", "tp=2"), ("2d", "dp=2,tp=2")]);
    same(interleaved(28, 7, 7), tokens, &[("tp", "tp=2"), ("tp-sp", "tp=2"), ("tp", "tp=8")]);
    same(interleaved(42, 7, 1), tokens, &[("tp-sp", "tp=8"), ("tp", "tp=3")]);
    same(interleaved(16, 4, 2), tokens, &[("tp", "tp=16")]);
}

/// More ranks than sequences: some ranks hold no part of the batch.
#[test]
fn ranks_without_a_part_of_the_batch() {
    same(llama(6, 3), TokenBatch::new(2, 7), &[("ddp", "dp=4"), ("ddp", "dp=3")]);
}

#[test]
fn sixty_four_ranks() {
    let model = config(json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 70, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": true, "rope_theta": 10000.0,
    }));
    same(model, TokenBatch::new(5, 9), &[("tp", "tp=64"), ("tp-ddp", "dp=16,tp=4")]);
}
