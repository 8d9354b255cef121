//! Language models from directories: capture by shapes, compile under the names of their files,
//! load and save.

use crate::capture::{
    Captured, Init, Spec, TrainingCapture, TrainingOptions, capture_inference_shapes, capture_training_shapes, named,
};
use crate::models::{ModelConfig, ModelError, TokenInputs, WeightMap, Weights, build, weight_map};
use crate::program::Error;
use burn::optim::Optimizer;
use burn::tensor::{DType, Distribution as BurnDistribution, Int};
use std::collections::HashMap;
use std::path::Path;
use tpc_ir::op::Distribution;
use tpc_ir::{InputKind, Scalar, random};
use tpc_runtime::{RuntimeError, Session};

/// What a batch of token sequences consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Sequences.
    pub batch: usize,
    /// Tokens in each.
    pub seq: usize,
    /// Whether there is an `attention_mask`.
    pub attention_mask: bool,
    /// Whether there are `token_type_ids`.
    pub token_type_ids: bool,
}

impl TokenBatch {
    /// Sequences without padding or types.
    pub fn new(batch: usize, seq: usize) -> Self {
        TokenBatch { batch, seq, attention_mask: false, token_type_ids: false }
    }

    fn spec(&self) -> Spec<2, Int> {
        Spec::new([self.batch, self.seq], DType::I64)
    }
}

/// Captures a language model's training step: loss, and the logits as an output.
///
/// # Errors
/// An operation that cannot be recorded.
pub fn capture_step<O: Optimizer>(
    config: &ModelConfig,
    tokens: TokenBatch,
    optimizer: &O,
) -> Result<TrainingCapture, Error> {
    let batch = (
        named("input_ids", tokens.spec()),
        named("labels", tokens.spec()),
        tokens.attention_mask.then(|| named("attention_mask", tokens.spec())),
        tokens.token_type_ids.then(|| named("token_type_ids", tokens.spec())),
    );
    let build = |device: &burn::tensor::Device| build(config, device);
    let options = TrainingOptions::default();
    Ok(capture_training_shapes(
        build,
        optimizer,
        batch,
        &options,
        |model, (input_ids, labels, attention_mask, token_type_ids)| {
            let logits = model.forward(TokenInputs { input_ids, attention_mask, token_type_ids });
            model.loss(logits, labels)
        },
    )?)
}

/// Captures a language model's forward pass: logits, and the loss when there are labels.
///
/// # Errors
/// An operation that cannot be recorded.
pub fn capture_forward(config: &ModelConfig, tokens: TokenBatch, labels: bool) -> Result<Captured, Error> {
    let batch = (
        named("input_ids", tokens.spec()),
        labels.then(|| named("labels", tokens.spec())),
        tokens.attention_mask.then(|| named("attention_mask", tokens.spec())),
        tokens.token_type_ids.then(|| named("token_type_ids", tokens.spec())),
    );
    let build = |device: &burn::tensor::Device| build(config, device);
    Ok(capture_inference_shapes(build, batch, |model, (input_ids, labels, attention_mask, token_type_ids)| {
        let logits = model.forward(TokenInputs { input_ids, attention_mask, token_type_ids });
        let loss = labels.map(|l| named("loss", model.loss(logits.clone(), l)));
        (named("logits", logits), loss)
    })?)
}

/// burn's module paths to the names in the model's weight files.
pub fn names(config: &ModelConfig) -> HashMap<String, String> {
    let map = weight_map(config);
    map.entries.into_iter().map(|e| (e.burn_path, e.hf_name)).collect()
}

/// Loads every parameter of a session from weight files, one tensor at a time.
///
/// # Errors
/// A tensor that is missing, truncated or of the wrong shape.
pub fn load_weights(session: &mut Session, map: &WeightMap, weights: &Weights) -> Result<(), LoadError> {
    let names = parameters(session);
    for entry in map.entries.iter().filter(|e| names.contains(&e.hf_name)) {
        let values = entry.read(weights)?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        session.write_bytes(&entry.hf_name, &bytes)?;
    }
    Ok(())
}

/// Why weights could not be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The session.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

fn parameters(session: &Session) -> Vec<String> {
    let inputs = &session.program(0).inputs;
    inputs.iter().filter(|i| i.kind == InputKind::Parameter).map(|i| i.name.clone()).collect()
}

/// Draws initial values as the model's modules would, each element from its global index: the same
/// values on every mesh.
///
/// # Errors
/// A parameter of another size.
pub fn initialise(session: &mut Session, init: &HashMap<String, Init>, seed: u64) -> Result<(), RuntimeError> {
    for (stream, name) in parameters(session).into_iter().enumerate() {
        let input = session.program(0).inputs.iter().find(|i| i.name == name);
        let count: usize = input.map_or(0, |i| i.binding.global.iter().product());
        let float = Scalar::float;
        let distribution = match init.get(&name) {
            Some(Init::Constant(x)) => {
                session.write_f64(&name, &vec![*x; count])?;
                continue;
            }
            Some(Init::Random(BurnDistribution::Uniform(a, b))) => Distribution::Uniform(float(*a), float(*b)),
            Some(Init::Random(BurnDistribution::Normal(m, s))) => Distribution::Normal(float(*m), float(*s)),
            Some(Init::Random(BurnDistribution::Default)) => Distribution::Uniform(float(0.0), float(1.0)),
            _ => Distribution::Normal(float(0.0), float(0.02)),
        };
        let draw = |i: usize| random::element(distribution, random::philox(seed, stream as u64, i as u64));
        let values: Vec<f64> = (0..count).map(draw).collect();
        session.write_f64(&name, &values)?;
    }
    Ok(())
}

/// Writes a model directory: `config.json` and full, unsharded safetensors under the model's names.
///
/// # Errors
/// A directory that cannot be written; nothing half-written is left.
pub fn save(session: &Session, map: &WeightMap, config: &serde_json::Value, dir: &Path) -> Result<(), LoadError> {
    // Read before writing: a session that cannot be read leaves nothing behind.
    for entry in &map.entries {
        session.read_input(&entry.hf_name)?;
    }
    Ok(crate::models::save_pretrained(dir, config, map, |entry| {
        let values = session.read_input_f64(&entry.hf_name).unwrap_or_default();
        Ok(values.into_iter().map(|v| v as f32).collect())
    })?)
}
