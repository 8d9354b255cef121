//! Output weights that are the embedding's.

use super::config::ModelConfig;

/// The name that the weights of the model's head would have, and the embedding's weights that take their place; `None`
/// if the head has weights of its own. Both are burn's paths.
pub fn tied_head(config: &ModelConfig) -> Option<(&'static str, &'static str)> {
    let (tied, head, table) = match config {
        ModelConfig::Llama(c) => (c.tie_word_embeddings, "lm_head.weight", "model.embed_tokens.weight"),
        ModelConfig::Gpt2(c) => (c.tie_word_embeddings, "lm_head.weight", "transformer.wte.weight"),
        ModelConfig::Bert(c) => {
            (c.tie_word_embeddings, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
        }
        ModelConfig::Interleaved(_) => return None,
    };
    tied.then_some((head, table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::weight_map;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn the_names_are_those_of_the_models() {
        for config in [
            json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 5, "rms_norm_eps": 1e-6}),
            json!({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 5, "n_positions": 8}),
            json!({"model_type": "bert", "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 5, "max_position_embeddings": 8, "type_vocab_size": 2}),
        ] {
            let read = |tied: bool| {
                let mut config = config.clone();
                config["tie_word_embeddings"] = json!(tied);
                ModelConfig::from_json(&config, Path::new("config.json")).unwrap_or_else(|e| panic!("{e}"))
            };
            let (head, table) = tied_head(&read(true)).unwrap();
            assert_eq!(tied_head(&read(false)), None);
            let (tied, apart) = (weight_map(&read(true)), weight_map(&read(false)));
            assert!(tied.by_burn_path(table).is_some() && apart.by_burn_path(table).is_some(), "{table}");
            assert!(tied.by_burn_path(head).is_none() && apart.by_burn_path(head).is_some(), "{head}");
        }
    }
}
