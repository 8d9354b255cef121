//! `config.json`. An accepted configuration is written and read back as the same configuration.

use super::{Dice, Parser, check_text, data, once};
use std::path::Path;
use tpc_compiler::models::ModelConfig;

pub(super) const CONFIG: Parser = Parser {
    name: "config",
    corpus: || data("fuzz/config"),
    tokens: TOKENS,
    generate,
    parse,
    base: 16 << 20,
    per_byte: 1000,
    repeats: once,
};

const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "false",
    "Infinity",
    "NaN",
    "-1",
    "1e400",
    "0",
    "\"model_type\"",
    "\"llama\"",
    "\"mistral\"",
    "\"qwen2\"",
    "\"qwen3\"",
    "\"gpt2\"",
    "\"bert\"",
    "\"hidden_size\"",
    "\"num_hidden_layers\"",
    "\"num_attention_heads\"",
    "\"num_key_value_heads\"",
    "\"head_dim\"",
    "\"intermediate_size\"",
    "\"vocab_size\"",
    "\"rope_scaling\"",
    "\"rope_parameters\"",
    "\"rope_type\"",
    "\"llama3\"",
    "\"linear\"",
    "\"factor\"",
    "\"rope_theta\"",
    "\"rms_norm_eps\"",
    "\"layer_types\"",
    "\"sliding_window\"",
    "\"use_sliding_window\"",
    "\"max_window_layers\"",
    "\"tie_word_embeddings\"",
    "\"hidden_act\"",
    "\"silu\"",
    "\"gelu\"",
    "\"n_embd\"",
    "\"n_head\"",
    "\"n_layer\"",
    "\"n_inner\"",
    "\"initializer_range\"",
    "\"attention_dropout\"",
    "\"pad_token_id\"",
    "2147483648",
    "1000000000",
];

fn generate(dice: &mut Dice) -> Vec<u8> {
    let number = |dice: &mut Dice| {
        dice.pick(&["0", "1", "2", "3", "4", "7", "8", "64", "1000000000", "null", "-1", "1.5", "true"])
    };
    let family = dice.pick(&["llama", "mistral", "qwen2", "qwen3", "gpt2", "bert", "llama-interleaved"]);
    let mut keys = vec![format!("\"model_type\": \"{family}\"")];
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
        "vocab_size",
        "head_dim",
        "max_position_embeddings",
        "n_embd",
        "n_head",
        "n_layer",
        "n_positions",
        "n_inner",
        "type_vocab_size",
        "sliding_window",
        "max_window_layers",
        "dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
        "multiple_of",
    ] {
        if dice.one_in(2) {
            keys.push(format!("\"{key}\": {}", number(dice)));
        }
    }
    for key in [
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "rope_theta",
        "initializer_range",
        "ffn_dim_multiplier",
    ] {
        if dice.one_in(2) {
            keys.push(format!("\"{key}\": {}", dice.pick(&["1e-6", "0", "1e308", "-1", "10000"])));
        }
    }
    format!("{{{}}}", keys.join(", ")).into_bytes()
}

/// Maximum number of layers that are tried: a configuration has data for each, and memory bounds their number.
const MOST_LAYERS: u64 = 1 << 14;

fn parse(input: &[u8]) -> bool {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(input) else { return false };
    let layers = ["num_hidden_layers", "n_layer", "n_layers"].iter().filter_map(|key| json.get(key)?.as_u64()).max();
    if layers.is_some_and(|layers| layers > MOST_LAYERS) {
        return false;
    }
    let file = Path::new("config.json");
    match ModelConfig::from_json(&json, file) {
        Ok(config) => {
            let written = config.to_json();
            let again = ModelConfig::from_json(&written, file);
            let again = again.unwrap_or_else(|e| panic!("written and not read back: {e}: {written}"));
            assert_eq!(again, config, "written and read back as another configuration: {written}");
            true
        }
        Err(error) => {
            check_text(&error);
            false
        }
    }
}
