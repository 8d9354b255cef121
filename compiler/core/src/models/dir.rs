//! A model directory: `config.json` and its weights.

use super::config::ModelConfig;
use super::error::ModelError;
use super::heads::Head;
use super::keys::read_json;
use super::model::{Model, load, weight_map};
use super::pooling::Pooling;
use super::tied;
use super::warning::ModelWarning;
use super::weight_map::WeightMap;
use super::weights::Weights;
use burn::tensor::Device;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// An opened model directory. Tensors are only read on request.
#[derive(Debug)]
pub struct ModelDir {
    /// The directory.
    pub path: PathBuf,
    /// The configuration, with weights tied as in the files.
    pub config: ModelConfig,
    /// The configuration as in the file, including keys that tpc ignores.
    pub config_json: Value,
    /// The weights.
    pub weights: Weights,
    /// Parts of the directory that are not read, or not read as written.
    pub warnings: Vec<ModelWarning>,
}

impl ModelDir {
    /// Opens a directory and checks that its weights match its configuration.
    ///
    /// # Errors
    /// A configuration that is rejected; weights that are missing, damaged or have other shapes than the configuration
    /// says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let file = path.join("config.json");
        let config_json = read_json(&file)?;
        let (stated, warnings) = ModelConfig::from_json_warned(&config_json, &file)?;
        Self::opened(path, config_json, pooled(stated, path)?, warnings)
    }

    /// Opens a directory with another head than its configuration names. Weights that are not in the files are
    /// initialized.
    ///
    /// # Errors
    /// The errors of [`ModelDir::open`], and a head that the family does not have.
    pub fn open_with_head(path: impl AsRef<Path>, head: Head) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let file = path.join("config.json");
        let mut config_json = read_json(&file)?;
        let (stated, warnings) = ModelConfig::from_json_warned(&config_json, &file)?;
        let config = stated.with_head(head)?;
        config.write_head(&mut config_json);
        Self::opened(path, config_json, config, warnings)
    }

    fn opened(
        path: &Path,
        mut config_json: Value,
        stated: ModelConfig,
        mut warnings: Vec<ModelWarning>,
    ) -> Result<Self, ModelError> {
        let (mut config, weights) = (stated.clone(), Weights::open_dir(path)?);
        let copies = tied::settle(&mut config, &weights, &mut warnings)?;
        if !config.is_tied() && stated.is_tied() {
            // The saved model has two tensors, and older versions of transformers read only one if this is true.
            config_json["tie_word_embeddings"] = Value::Bool(false);
        }
        let map = weight_map(&config);
        map.check(&weights)?;
        warnings.extend(drawn(&map, &weights));
        warnings.extend(unread(&config, &map, &weights, copies));
        Ok(Self { path: path.to_path_buf(), config, config_json, weights, warnings })
    }

    /// Reads the configuration of a directory whose weights need not exist. If they exist, they determine which weights
    /// are tied.
    ///
    /// # Errors
    /// A configuration that is rejected, or that the weights contradict.
    pub fn read_config(path: &Path) -> Result<(ModelConfig, Vec<ModelWarning>), ModelError> {
        let file = path.join("config.json");
        let (stated, mut warnings) = ModelConfig::from_json_warned(&read_json(&file)?, &file)?;
        let mut config = pooled(stated, path)?;
        // Weights that cannot be opened do not prevent printing the program.
        if let Ok(weights) = Weights::open_dir(path) {
            tied::settle(&mut config, &weights, &mut warnings)?;
        }
        Ok((config, warnings))
    }

    /// The map between tensors and parameters.
    pub fn weight_map(&self) -> WeightMap {
        weight_map(&self.config)
    }

    /// Builds the model with its weights on `device`.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn load(&self, device: &Device) -> Result<Model, ModelError> {
        load(&self.config, &self.weights, device)
    }
}

/// Turns a bare model or a language model into a sentence embedding model if the directory describes a pooling.
fn pooled(config: ModelConfig, dir: &Path) -> Result<ModelConfig, ModelError> {
    match (Pooling::read(dir)?, config.head()) {
        (Some(pooling), Head::CausalLm | Head::MaskedLm | Head::Bare) => {
            config.with_head(Head::SentenceEmbedding(pooling))
        }
        _ => Ok(config),
    }
}

/// Suffixes of tensor names in old files that are not weights but tables, which models compute themselves.
fn tables(config: &ModelConfig) -> &'static [&'static str] {
    match config {
        ModelConfig::Decoder(_) => &["rotary_emb.inv_freq"],
        ModelConfig::Gpt2(_) => &["attn.bias", "attn.masked_bias"],
        ModelConfig::Bert(_) => &["embeddings.position_ids"],
        ModelConfig::Interleaved(_) => &[],
    }
}

/// The warning about initialized parameters, if there are any.
fn drawn(map: &WeightMap, weights: &Weights) -> Option<ModelWarning> {
    let drawn = map.entries.iter().filter(|entry| entry.is_drawn(weights));
    let tensors: Vec<String> = drawn.map(|entry| entry.hf_name.clone()).collect();
    let file = weights.origin().to_path_buf();
    (!tensors.is_empty()).then_some(ModelWarning::Drawn { file, tensors })
}

/// The warnings about tensors that are not read; `copies` equal other tensors that are read.
fn unread(config: &ModelConfig, map: &WeightMap, weights: &Weights, copies: Vec<String>) -> Vec<ModelWarning> {
    let mut read: BTreeSet<String> = map.entries.iter().map(|entry| entry.name_in(weights)).collect();
    read.extend(copies);
    let tables = tables(config);
    let mut tensors = weights.others(&read);
    tensors.retain(|name| !tables.iter().any(|end| name.ends_with(*end)));
    let mut warnings = Vec::new();
    if !tensors.is_empty() {
        warnings.push(ModelWarning::Unused { file: weights.origin().to_path_buf(), tensors });
    }
    let copies = weights.copies();
    for copies in copies.chunk_by(|a, b| a.0 == b.0) {
        let tensors = copies.iter().map(|(_, name)| name.clone()).collect();
        warnings.push(ModelWarning::Copies { file: copies[0].0.clone(), tensors });
    }
    warnings
}
