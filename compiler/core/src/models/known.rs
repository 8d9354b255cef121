//! What a key of `config.json` means: data, not code.
//!
//! The tables follow the configuration and modeling files of transformers 5. A key is read, or only one of its values
//! is supported, or it does not affect anything that tpc computes. Any other key may change the model, so it is named
//! in a warning. A test in `config.rs` checks that exactly the keys marked as [`Role::Read`] are read. Keys of a single
//! family are in its own file, keys of rotary embeddings in `rope_config.rs`.

use super::error::ModelError;
use super::keys::Keys;
use super::warning::ModelWarning;
use serde_json::Value;

/// The role of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    /// It changes the program, and is read.
    Read,
    /// Another value would change the model in a way that is not supported.
    Only(Sole),
    /// It concerns generation, tokens, training, other heads or the library, but nothing that tpc computes.
    Harmless,
}

/// The one supported value. A missing key and null are always supported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sole {
    /// `false`.
    False,
    /// `true`.
    True,
    /// This text.
    Text(&'static str),
    /// An empty list or object.
    Empty,
    /// Only null, for this reason.
    Absent(&'static str),
}

use Role::{Harmless, Only, Read};

/// Keys and their roles.
pub(super) type Table = &'static [(&'static str, Role)];

/// Keys of every transformers configuration.
pub(super) const COMMON: Table = &[
    ("model_type", Read),
    ("architectures", Read),
    ("quantization_config", Only(Sole::Absent("quantized weights are not supported"))),
    ("compression_config", Only(Sole::Absent("quantized weights are not supported"))),
    ("per_layer_config", Only(Sole::Absent("layers that differ from each other are not supported"))),
    ("pruned_heads", Only(Sole::Empty)),
    ("is_encoder_decoder", Only(Sole::False)),
    // Keys of the library itself.
    ("auto_map", Harmless),
    ("dtype", Harmless),
    ("torch_dtype", Harmless),
    ("transformers_version", Harmless),
    ("transformers.js_config", Harmless),
    ("_name_or_path", Harmless),
    ("name_or_path", Harmless),
    ("_commit_hash", Harmless),
    ("_from_model_config", Harmless),
    ("_attn_implementation", Harmless),
    ("_attn_implementation_autoset", Harmless),
    ("_attn_implementation_internal", Harmless),
    ("_experts_implementation_internal", Harmless),
    ("_output_attentions", Harmless),
    ("_flash_attn_2_enabled", Harmless),
    ("attn_implementation", Harmless),
    ("experts_implementation", Harmless),
    ("use_cache", Harmless),
    ("use_bfloat16", Harmless),
    ("torchscript", Harmless),
    ("tf_legacy_loss", Harmless),
    ("return_dict", Harmless),
    ("output_attentions", Harmless),
    ("output_hidden_states", Harmless),
    ("tie_last_hidden_states", Harmless),
    ("gradient_checkpointing", Harmless),
    // Equal to the unsharded computation up to rounding.
    ("chunk_size_feed_forward", Harmless),
    // Tokens. pad_token_id is in the families' tables.
    ("bos_token_id", Harmless),
    ("eos_token_id", Harmless),
    ("sep_token_id", Harmless),
    ("cls_token_id", Harmless),
    ("mask_token_id", Harmless),
    ("unk_token_id", Harmless),
    ("decoder_start_token_id", Harmless),
    ("tokenizer_class", Harmless),
    ("prefix", Harmless),
    // Labels, which only classification heads read, and settings of other heads.
    ("id2label", Harmless),
    ("label2id", Harmless),
    ("num_labels", Harmless),
    ("problem_type", Harmless),
    ("finetuning_task", Harmless),
    ("task_specific_params", Harmless),
    ("classifier_dropout", Harmless),
    // Encoder-decoder models.
    ("tie_encoder_decoder", Harmless),
    ("cross_attention_hidden_size", Harmless),
    // Generation.
    ("max_length", Harmless),
    ("max_new_tokens", Harmless),
    ("min_length", Harmless),
    ("do_sample", Harmless),
    ("early_stopping", Harmless),
    ("num_beams", Harmless),
    ("num_beam_groups", Harmless),
    ("diversity_penalty", Harmless),
    ("temperature", Harmless),
    ("top_k", Harmless),
    ("top_p", Harmless),
    ("typical_p", Harmless),
    ("repetition_penalty", Harmless),
    ("length_penalty", Harmless),
    ("no_repeat_ngram_size", Harmless),
    ("encoder_no_repeat_ngram_size", Harmless),
    ("bad_words_ids", Harmless),
    ("num_return_sequences", Harmless),
    ("output_scores", Harmless),
    ("return_dict_in_generate", Harmless),
    ("forced_bos_token_id", Harmless),
    ("forced_eos_token_id", Harmless),
    ("remove_invalid_values", Harmless),
    ("exponential_decay_length_penalty", Harmless),
    ("suppress_tokens", Harmless),
    ("begin_suppress_tokens", Harmless),
    ("epsilon_cutoff", Harmless),
    ("eta_cutoff", Harmless),
    ("encoder_repetition_penalty", Harmless),
    ("num_assistant_tokens", Harmless),
    ("num_assistant_tokens_schedule", Harmless),
    ("assistant_confidence_threshold", Harmless),
    ("assistant_lookbehind", Harmless),
    ("target_lookbehind", Harmless),
];

/// Keys of all families of the shared decoder.
pub(super) const DECODER: Table = &[
    ("vocab_size", Read),
    ("hidden_size", Read),
    ("intermediate_size", Read),
    ("num_hidden_layers", Read),
    ("num_attention_heads", Read),
    ("num_key_value_heads", Read),
    ("head_dim", Read),
    ("max_position_embeddings", Read),
    ("rms_norm_eps", Read),
    ("rope_parameters", Read),
    ("rope_scaling", Read),
    ("rope_theta", Read),
    ("partial_rotary_factor", Read),
    ("original_max_position_embeddings", Read),
    ("tie_word_embeddings", Read),
    ("pad_token_id", Read),
    ("initializer_range", Read),
    // Named in a note; dropout is not applied.
    ("attention_dropout", Read),
    ("is_causal", Only(Sole::True)),
];

/// The role of a key according to some tables.
pub(super) fn role(tables: &[Table], key: &str) -> Option<Role> {
    tables.iter().copied().flatten().find(|(name, _)| *name == key).map(|(_, role)| *role)
}

/// Refuses values that are not supported, and gives the keys of which nothing is known.
pub(super) fn check(keys: &Keys, tables: &[Table]) -> Result<Vec<String>, ModelError> {
    let mut unknown = Vec::new();
    for name in keys.names() {
        match role(tables, name) {
            None => unknown.push(keys.path(name)),
            Some(Only(only)) => only.check(keys, name)?,
            Some(Read | Harmless) => {}
        }
    }
    Ok(unknown)
}

/// The warning about unknown keys, if there are any.
pub(super) fn unknown(keys: &Keys, family: &str, unknown: Vec<String>) -> Option<ModelWarning> {
    let file = keys.file().to_path_buf();
    (!unknown.is_empty()).then(|| ModelWarning::UnknownKeys { file, family: family.into(), keys: unknown })
}

impl Sole {
    fn check(self, keys: &Keys, key: &str) -> Result<(), ModelError> {
        let value = keys.value(key).unwrap_or(&Value::Null);
        let (fits, expected) = match self {
            Self::False => (value == &Value::Bool(false), "false"),
            Self::True => (value == &Value::Bool(true), "true"),
            Self::Text(text) => (value.as_str() == Some(text), text),
            Self::Empty => {
                let list = value.as_array().is_some_and(Vec::is_empty);
                (list || value.as_object().is_some_and(serde_json::Map::is_empty), "empty")
            }
            Self::Absent(why) => {
                return match value.is_null() {
                    true => Ok(()),
                    false => Err(keys.wrong(key, &format!("absent ({why})"))),
                };
            }
        };
        if fits || value.is_null() { Ok(()) } else { Err(keys.wrong(key, expected)) }
    }
}
