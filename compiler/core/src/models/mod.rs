//! Model families, read from Hugging Face directories.
//!
//! [`ModelDir::open`] reads `config.json` and the headers of the weight files. [`WeightMap`] says which tensor is which parameter and
//! in which layout, so that each rank reads only its box ([`read_box`]). The modules' fields have the names of the
//! weight files, and mark their regions, so that plans name modules as Hugging Face does.

mod alphabet;
mod attention;
mod bert;
mod config;
mod dir;
mod error;
mod gpt2;
mod header;
mod interleaved;
mod keys;
mod known;
mod layers;
mod llama;
pub mod loss;
mod mha_mlp;
mod mlp;
mod model;
pub mod presets;
mod python_json;
mod rope;
mod save;
mod shard;
mod size;
mod tied;
mod warning;
mod weight_map;
mod weights;

pub use alphabet::{Alphabet, tokenizer};
pub use attention::{Mask, attend, mask, repeat_heads, split_heads};
pub use bert::{
    BertAttention, BertEmbeddings, BertEncoder, BertForMaskedLM, BertHead, BertIntermediate, BertLayer, BertModel,
    BertOutput, BertPredictions, BertSelfAttention, BertTransform,
};
pub use config::{BertConfig, FAMILIES, Family, Gpt2Config, INTERLEAVED, InterleavedConfig, LlamaConfig, ModelConfig};
pub use dir::ModelDir;
pub use error::ModelError;
pub use gpt2::{Gpt2Attention, Gpt2Block, Gpt2LmHeadModel, Gpt2Mlp, Gpt2Model};
pub use header::FileType;
pub use interleaved::{FeedForward, InterleavedAttention, InterleavedBlock, InterleavedLlama};
pub use layers::Activation;
pub use llama::{LlamaAttention, LlamaForCausalLM, LlamaLayer, LlamaMlp, LlamaModel};
pub use mha_mlp::{MhaMlp, ReluMlp};
pub use mlp::Mlp;
pub use model::{Model, TokenInputs, build, load, weight_map};
pub use rope::{RopeConfig, RopePairs, RopeScaling, RopeTables};
pub use save::{read_strips, save_pretrained, save_strips, write_strips, write_weights};
pub use shard::{STRIP, read_box};
pub use size::Use;
pub use tied::tied_head;
pub use warning::ModelWarning;
pub(crate) use weight_map::transposed;
pub use weight_map::{WeightEntry, WeightMap, burn_path, hf_path};
pub use weights::{TensorInfo, Weights};

// The one place that knows where markers come from.
use crate::capture::scope::scope;
