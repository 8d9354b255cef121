//! A model directory: `config.json` and its weights.

use super::config::ModelConfig;
use super::error::ModelError;
use super::keys::read_json;
use super::model::{Model, load, weight_map};
use super::weight_map::WeightMap;
use super::weights::Weights;
use burn::tensor::Device;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// An opened model directory. Tensors are read only when asked for.
#[derive(Debug)]
pub struct ModelDir {
    /// The directory.
    pub path: PathBuf,
    /// The configuration.
    pub config: ModelConfig,
    /// The configuration as it stands in the file, with the keys that mean nothing here.
    pub config_json: Value,
    /// The weights.
    pub weights: Weights,
}

impl ModelDir {
    /// Opens a directory and checks that its weights fit its configuration.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let file = path.join("config.json");
        let config_json = read_json(&file)?;
        let config = ModelConfig::from_json(&config_json, &file)?;
        let weights = Weights::open_dir(path)?;
        weight_map(&config).check(&weights)?;
        Ok(Self { path: path.to_path_buf(), config, config_json, weights })
    }

    /// Which tensor is which parameter.
    pub fn weight_map(&self) -> WeightMap {
        weight_map(&self.config)
    }

    /// Builds the model with its weights, on `device`.
    pub fn load(&self, device: &Device) -> Result<Model, ModelError> {
        load(&self.config, &self.weights, device)
    }
}
