//! How a model directory is written.

use clap::Args;
use tpc_compiler::models::{SavedType, Saving, ShardSize};

/// The element type of saved weights, and the maximum size of their files.
#[derive(Clone, Copy, Debug, Args)]
pub struct SaveArgs {
    /// Element type of the weights that --save writes: f32, bf16 or f16
    #[arg(long, value_name = "TYPE", default_value = "f32", requires = "save")]
    dtype: SavedType,
    /// Maximum bytes of weights per file that --save writes (5GB, 500MB); larger models get several files and an index
    #[arg(long, value_name = "SIZE", default_value = "5GB", requires = "save")]
    max_shard_size: ShardSize,
}

impl SaveArgs {
    /// The arguments as options for saving.
    pub fn saving(&self) -> Saving {
        Saving { dtype: self.dtype, max_shard: self.max_shard_size }
    }
}
