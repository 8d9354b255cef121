//! Model families, read from Hugging Face directories.
//!
//! [`ModelDir::open`] reads `config.json` and the headers of the weight files. [`WeightMap`] maps tensors to parameters
//! and their layouts, so that each rank only reads its box ([`read_box`]). The modules' fields have the names of the
//! weight files, and the modules mark their regions, so that plans use Hugging Face's module names.

mod alphabet;
mod attend;
mod attention;
mod bert;
mod bert_config;
mod bert_encoder;
mod cache;
mod companions;
mod config;
mod decoder;
mod decoder_config;
mod dir;
mod error;
mod families;
mod gpt2;
mod gpt2_config;
mod header;
mod heads;
mod interleaved;
mod interleaved_config;
mod keys;
mod known;
mod layers;
pub mod loss;
mod mask;
mod mha_mlp;
mod mlp;
mod model;
mod norm;
mod pick;
mod pooling;
pub mod presets;
mod python_json;
mod room;
mod rope;
mod rope_config;
mod save;
mod saving;
mod shard;
mod size;
mod span;
mod tied;
mod warning;
mod weight_map;
mod weights;

pub use alphabet::{Alphabet, tokenizer};
pub use attend::{Context, Scores, attend, repeat_heads, soft_cap, split_heads};
pub use attention::Attention;
pub use bert::{BertHead, BertPredictions, BertTransform, BertWithHead};
pub use bert_config::BertConfig;
pub use bert_encoder::{
    BertAttention, BertEmbeddings, BertEncoder, BertIntermediate, BertLayer, BertModel, BertOutput, BertPooler,
    BertSelfAttention,
};
pub use cache::{Cache, CacheShape, CachedInputs, LayerCache, NextCache};
pub use companions::copy_companions;
pub use config::{FAMILIES, ModelConfig};
pub use decoder::{Decoder, DecoderLayer, DecoderWithHead, GatedMlp};
pub use decoder_config::DecoderConfig;
pub use dir::ModelDir;
pub use error::ModelError;
pub use families::Family;
pub use gpt2::{Gpt2Attention, Gpt2Block, Gpt2Mlp, Gpt2Model, Gpt2WithHead};
pub use gpt2_config::Gpt2Config;
pub use header::FileType;
pub use heads::{Head, HeadKind, Labels, Problem};
pub use interleaved::{FeedForward, InterleavedAttention, InterleavedBlock, InterleavedLlama};
pub use interleaved_config::{INTERLEAVED, InterleavedConfig};
pub use layers::Activation;
pub use mask::{Mask, mask};
pub use mha_mlp::{MhaMlp, ReluMlp};
pub use mlp::Mlp;
pub use model::{Model, Targets, TokenInputs, build, load, weight_map};
pub use norm::{Center, NormOrder, QkNorm, RmsNorm};
pub use pooling::{Pooling, PoolingMode};
pub use rope::{RopeConfig, RopePairs, RopeScaling, RopeTables};
pub use save::{read_strips, save_pretrained, save_strips, write_strips, write_weights};
pub use saving::{SavedType, Saving, ShardSize};
pub use shard::{STRIP, read_box};
pub use size::Use;
pub use span::{Documents, Span};
pub use tied::tied_head;
pub use warning::ModelWarning;
pub(crate) use weight_map::transposed;
pub use weight_map::{WeightEntry, WeightMap, burn_path, hf_path};
pub use weights::{TensorInfo, Weights};

// The only place that depends on where markers are defined.
use crate::capture::scope::scope;
