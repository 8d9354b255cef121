//! Tied weights, according to the configuration and the files.
//!
//! As in transformers 5, the files decide if they hold both tensors of a pair: two different tensors are two
//! parameters, regardless of `tie_word_embeddings`, and two equal tensors are one. A file that holds only one of them
//! provides both.

use super::config::ModelConfig;
use super::error::ModelError;
use super::heads::Head;
use super::warning::ModelWarning;
use super::weight_map::{WeightMap, found_as};
use super::weights::Weights;

/// A tensor that may be tied to another one: `(copy, source)`.
type Pair = (&'static str, &'static str);

const DECODER: Pair = ("lm_head.weight", "model.embed_tokens.weight");
const GPT2: Pair = ("lm_head.weight", "transformer.wte.weight");
const BERT: Pair = ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight");
const BERT_BIAS: Pair = ("cls.predictions.decoder.bias", "cls.predictions.bias");

impl ModelConfig {
    /// Every pair that the configuration can tie, and whether it does.
    fn pairs(&mut self) -> Vec<(Pair, &mut bool)> {
        if !matches!(self.head(), Head::CausalLm | Head::MaskedLm) {
            return Vec::new();
        }
        match self {
            Self::Decoder(c) => vec![(DECODER, &mut c.tie_word_embeddings)],
            Self::Gpt2(c) => vec![(GPT2, &mut c.tie_word_embeddings)],
            Self::Bert(c) => vec![(BERT, &mut c.tie_word_embeddings), (BERT_BIAS, &mut c.tie_decoder_bias)],
            Self::Interleaved(_) => Vec::new(),
        }
    }

    /// Whether any two tensors are tied.
    pub(super) fn is_tied(&self) -> bool {
        self.clone().pairs().iter().any(|(_, tied)| **tied)
    }
}

/// The name that the weights of the model's head would have, and the embedding's weights that replace them; `None` if
/// the head has separate weights. Both are burn's paths.
pub fn tied_head(config: &ModelConfig) -> Option<(&'static str, &'static str)> {
    let mut config = config.clone();
    config.pairs().into_iter().find(|(pair, tied)| **tied && *pair != BERT_BIAS).map(|(pair, _)| pair)
}

/// Unties pairs that the files hold with different values. Returns the names of copies that equal the tensors that are
/// read.
///
/// # Errors
/// Files that cannot be read.
pub(super) fn settle(
    config: &mut ModelConfig,
    weights: &Weights,
    warnings: &mut Vec<ModelWarning>,
) -> Result<Vec<String>, ModelError> {
    let mut copies = Vec::new();
    for ((copy, source), tied) in config.pairs() {
        let file = weights.origin().to_path_buf();
        match (found_as(copy, weights), found_as(source, weights), *tied) {
            (Some(found), Some(other), true) if weights.equal(&found, &other)? => copies.push(found),
            (Some(_), Some(_), true) => {
                *tied = false;
                warnings.push(ModelWarning::NotTied { file, copy: copy.into(), source: source.into() });
            }
            // Files of transformers 4 have one bias, as did its models.
            (None, Some(_), false) if (copy, source) == BERT_BIAS => {
                warnings.push(ModelWarning::Replaced { file, missing: copy.into(), taken: source.into() });
            }
            _ => {}
        }
    }
    Ok(copies)
}

/// In files that hold one of two tied tensors, makes it stand for the other.
pub(super) fn stand_in(map: &mut WeightMap) {
    let names: Vec<String> = map.entries.iter().map(|entry| entry.hf_name.clone()).collect();
    let is_parameter = |name: &str| names.iter().any(|other| other == name);
    for entry in &mut map.entries {
        let others =
            [DECODER, GPT2, BERT].into_iter().filter(|(copy, source)| entry.hf_name == *source && !is_parameter(copy));
        entry.stands_for.extend(others.map(|(copy, _)| copy.to_string()));
        let (copy, source) = BERT_BIAS;
        if entry.hf_name == copy {
            entry.stands_for.push(source.into());
        } else if entry.hf_name == source {
            entry.stands_for.push(copy.into());
        }
    }
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
