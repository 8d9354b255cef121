//! Trainers for model directories: each rank reads its own part of the weights, and writes it back.

use super::Trainer;
use super::running::RunningTrainer;
use super::source::Source;
use crate::capture::{BatchData, Init, Results};
use crate::error::Error;
use crate::models::{Model, ModelConfig, ModelDir, Saving, build, weight_map};
use crate::pretrained::{self, Called};
use burn::optim::Optimizer;
use burn::tensor::Device;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use tpc_runtime::Session;

impl<O: Optimizer + 'static> Trainer<Model, O> {
    /// Trains the language model of a directory from the weights in its files.
    ///
    /// Each rank reads its own part of each tensor when the trainer is launched, so that no process holds the whole
    /// model. Plans name modules by their paths in burn, which are usually those in the weight files.
    pub fn pretrained(dir: impl Into<Rc<ModelDir>>, optimizer: O) -> Self {
        let dir = dir.into();
        let config = dir.config.clone();
        Trainer::from_source(Source::Files(dir, Box::new(move |device: &Device| build(&config, device))), optimizer)
    }
}

impl<B: BatchData, R: Results> RunningTrainer<Model, B, R> {
    /// Writes the current parameters as a model directory with the configuration of `like`: `config.json`, whole
    /// tensors with the names and in the layout of the family's files, and the tokenizer and other files of `like`. Of
    /// several processes, the first writes; no process holds a whole tensor.
    ///
    /// # Errors
    /// A directory that rejects the file, on every process; an existing file is then unchanged.
    pub fn save_pretrained(&mut self, like: &ModelDir, to: impl AsRef<Path>) -> Result<(), Error> {
        self.save_pretrained_as(like, to, Saving::default())
    }

    /// [`RunningTrainer::save_pretrained`] with an element type and a maximum file size.
    ///
    /// # Errors
    /// The errors of [`RunningTrainer::save_pretrained`].
    pub fn save_pretrained_as(&mut self, like: &ModelDir, to: impl AsRef<Path>, saving: Saving) -> Result<(), Error> {
        let (session, to) = (self.training_session()?, to.as_ref());
        pretrained::save_called(session, &like.weight_map(), &like.config_json, to, saving, Called::AsInModules)?;
        Ok(pretrained::copy_companions(session, &like.path, to)?)
    }

    /// Writes the current parameters as a model directory with this `config.json`, for a model that began with
    /// [`Trainer::new`] and has no directory yet. An existing tokenizer in the directory stays there.
    ///
    /// # Errors
    /// A configuration that is rejected or describes another model, or a directory that rejects the file.
    pub fn save_with_config(&mut self, config: &Value, to: impl AsRef<Path>) -> Result<(), Error> {
        let (session, to) = (self.training_session()?, to.as_ref());
        let map = weight_map(&ModelConfig::from_json(config, &to.join("config.json"))?);
        Ok(pretrained::save_called(session, &map, config, to, Saving::default(), Called::AsInModules)?)
    }
}

/// Fills the parameters of a session from a directory, and initializes those of a head that is not trained yet.
pub(super) fn load(
    session: &mut Session,
    dir: &ModelDir,
    init: &HashMap<String, Init>,
    seed: u64,
) -> Result<(), Error> {
    let map = dir.weight_map();
    pretrained::load(session, &map, &dir.weights, Called::AsInModules)?;
    Ok(pretrained::draw_missing_called(session, init, seed, &map, &dir.weights, Called::AsInModules)?)
}
