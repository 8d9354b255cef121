//! Trainers of model directories: each rank reads its own part of the weights, and writes it back.

use super::Trainer;
use super::running::RunningTrainer;
use super::source::Source;
use crate::capture::{BatchData, Results};
use crate::models::{Model, ModelDir, build};
use crate::pretrained::{self, Called, LoadError};
use crate::program::Error;
use burn::optim::Optimizer;
use burn::tensor::Device;
use std::path::Path;
use std::rc::Rc;
use tpc_runtime::Session;

impl<O: Optimizer + 'static> Trainer<Model, O> {
    /// Trains the language model of a directory from the weights in its files.
    ///
    /// Each rank reads its own part of each tensor when the trainer is launched, so that no process holds the whole model. Plans name
    /// modules by their paths in burn, which are mostly those of the weight files.
    pub fn pretrained(dir: impl Into<Rc<ModelDir>>, optimizer: O) -> Self {
        let dir = dir.into();
        let config = dir.config.clone();
        Trainer::from_source(Source::Files(dir, Box::new(move |device: &Device| build(&config, device))), optimizer)
    }
}

impl<B: BatchData, R: Results> RunningTrainer<Model, B, R> {
    /// Writes the parameters, as they are now, as a model directory with the configuration of `like`: `config.json`, and whole tensors
    /// under the names and in the layout of the family's files. If there are several processes, the first one writes; no process holds a
    /// whole tensor.
    ///
    /// # Errors
    /// A directory that takes no file, on every process; a file that was there is then as it was.
    pub fn save_pretrained(&mut self, like: &ModelDir, to: impl AsRef<Path>) -> Result<(), Error> {
        let session = self.parameters()?;
        Ok(pretrained::save_called(session, &like.weight_map(), &like.config_json, to.as_ref(), Called::AsInModules)?)
    }
}

/// Fills the parameters of a session from a directory.
pub(super) fn load(session: &mut Session, dir: &ModelDir) -> Result<(), LoadError> {
    pretrained::load(session, &dir.weight_map(), &dir.weights, Called::AsInModules)
}
