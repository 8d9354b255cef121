//! Whether this machine has room for a program of so many blocks, before anything is allocated.

use super::error::ModelError;
use crate::memory;
use std::path::Path;

/// Minimum bytes to record and compile a block; a block of a training step takes several times as much.
pub(super) const LAYER_BYTES: u128 = 100_000;

/// An error if a program with this many blocks does not fit into memory. Even a configuration has data for each block.
pub(super) fn check_layers(file: &Path, key: &str, layers: usize) -> Result<(), ModelError> {
    let what = format!("{}: the program of {key} = {layers}", file.display());
    enough(what, LAYER_BYTES * layers as u128)
}

/// An error if there is less memory than is needed. A system that does not tell how much there is has enough.
pub(super) fn enough(what: String, needed: u128) -> Result<(), ModelError> {
    match memory::available() {
        Some(available) if needed > available => Err(ModelError::Memory { what, needed, available }),
        _ => Ok(()),
    }
}
