//! A model of any family, as one burn module.

use super::bert::BertForMaskedLM;
use super::cache::{Cache, CachedInputs, LayerCache, NextCache};
use super::config::ModelConfig;
use super::decoder::DecoderWithHead;
use super::error::ModelError;
use super::gpt2::Gpt2LmHeadModel;
use super::interleaved::InterleavedLlama;
use super::loss;
use super::span::Span;
use super::tied;
use super::weight_map::WeightMap;
use super::weights::Weights;
use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Int, Tensor};

/// A language model. As a module it is transparent: parameter paths begin with the family's own fields.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // there is one of them in a program
pub enum Model {
    /// The decoder that families of causal models share.
    Decoder(DecoderWithHead),
    /// GPT-2.
    Gpt2(Gpt2LmHeadModel),
    /// BERT for masked language modelling.
    Bert(BertForMaskedLM),
    /// The Llama repository's model.
    Interleaved(InterleavedLlama),
}

/// What a language model reads. All tensors are `[batch, seq]`.
#[derive(Debug, Clone)]
pub struct TokenInputs {
    /// Token numbers.
    pub input_ids: Tensor<2, Int>,
    /// 1 for tokens, 0 for padding; `None` for no padding.
    pub attention_mask: Option<Tensor<2, Int>>,
    /// BERT's token types; `None` for 0 everywhere.
    pub token_type_ids: Option<Tensor<2, Int>>,
}

impl From<Tensor<2, Int>> for TokenInputs {
    fn from(input_ids: Tensor<2, Int>) -> Self {
        Self { input_ids, attention_mask: None, token_type_ids: None }
    }
}

/// Builds a model; its weights are drawn when first used, on `device`.
pub fn build(config: &ModelConfig, device: &Device) -> Model {
    match config {
        ModelConfig::Decoder(c) => Model::Decoder(DecoderWithHead::new(c, device)),
        ModelConfig::Gpt2(c) => Model::Gpt2(Gpt2LmHeadModel::new(c, device)),
        ModelConfig::Bert(c) => Model::Bert(BertForMaskedLM::new(c, device)),
        ModelConfig::Interleaved(c) => Model::Interleaved(InterleavedLlama::new(c, device)),
    }
}

impl ModelConfig {
    /// Builds the model; its weights are drawn when they are first used, on `device`.
    pub fn build(&self, device: &Device) -> Model {
        build(self, device)
    }
}

/// Builds a model with the weights of a file, on `device`.
pub fn load(config: &ModelConfig, weights: &Weights, device: &Device) -> Result<Model, ModelError> {
    let model = build(config, device);
    let map = model.weight_map();
    map.load(model, weights)
}

/// The weight map of a configuration. No parameter is initialized for it.
pub fn weight_map(config: &ModelConfig) -> WeightMap {
    build(config, &Device::capture()).weight_map()
}

/// Calls one expression on whichever family it is.
macro_rules! each {
    ($model:expr, $inner:ident => $result:expr) => {
        match $model {
            Model::Decoder($inner) => $result,
            Model::Gpt2($inner) => $result,
            Model::Bert($inner) => $result,
            Model::Interleaved($inner) => $result,
        }
    };
}

/// The same, giving back the same family.
macro_rules! map_each {
    ($model:expr, $inner:ident => $result:expr) => {
        match $model {
            Model::Decoder($inner) => Model::Decoder($result),
            Model::Gpt2($inner) => Model::Gpt2($result),
            Model::Bert($inner) => Model::Bert($result),
            Model::Interleaved($inner) => Model::Interleaved($result),
        }
    };
}

impl Model {
    /// Logits `[batch, seq, vocab]`.
    ///
    /// Sequences longer than [`ModelConfig::max_positions`] do not fit a model with learned positions; use
    /// [`ModelConfig::check_batch`] before.
    pub fn forward(&self, inputs: TokenInputs) -> Tensor<3> {
        let TokenInputs { input_ids, attention_mask, token_type_ids } = inputs;
        match self {
            Self::Decoder(model) => model.forward(input_ids, &Span::whole(attention_mask)),
            Self::Gpt2(model) => model.forward(input_ids, &Span::whole(attention_mask)),
            Self::Bert(model) => model.forward(input_ids, attention_mask, token_type_ids),
            Self::Interleaved(model) => model.forward(input_ids, &Span::whole(None)),
        }
    }

    /// The logits `[batch, vocab]` of the tokens after those of the inputs, and what the caches become.
    ///
    /// # Panics
    /// A model that has no caches ([`ModelConfig::caches`]), or other caches than those.
    pub fn next(&self, inputs: CachedInputs, caches: Vec<LayerCache>) -> (Tensor<2>, Vec<NextCache>) {
        let cache = Cache::new(&inputs, caches);
        let span = Span::Next(cache.clone());
        let logits = match self {
            Self::Decoder(model) => model.forward(inputs.input_ids, &span),
            Self::Gpt2(model) => model.forward(inputs.input_ids, &span),
            Self::Interleaved(model) => model.forward(inputs.input_ids, &span),
            Self::Bert(_) => panic!("BERT has no caches"),
        };
        (logits.squeeze_dim(1), cache.after())
    }

    /// The mean cross entropy; causal models shift the labels `[batch, seq]` themselves, [`loss::IGNORE`] is left out.
    pub fn loss(&self, logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
        match self {
            Self::Bert(_) => loss::masked_lm(logits, labels),
            _ => loss::causal_lm(logits, labels),
        }
    }

    /// Which tensor of a weight file is which parameter.
    pub fn weight_map(&self) -> WeightMap {
        // GPT-2's Conv1D is stored as [in, out] (but not its output weights, if they are not the embedding's).
        let transposed = !matches!(self, Self::Gpt2(_));
        let mut map = each!(self, model => WeightMap::of(model, transposed));
        if let Self::Gpt2(_) = self {
            for entry in &mut map.entries {
                entry.transpose = entry.burn_path == "lm_head.weight";
            }
        }
        for entry in &mut map.entries {
            if entry.burn_path == "cls.predictions.decoder_bias" {
                entry.hf_name = "cls.predictions.decoder.bias".into();
            }
        }
        if let Self::Decoder(model) = self {
            model.model.config().fuse("model.layers", &mut map);
        }
        tied::stand_in(&mut map);
        map
    }
}

impl Module for Model {
    fn collect_devices(&self, devices: Devices) -> Devices {
        each!(self, model => model.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        map_each!(self, model => model.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        map_each!(self, model => model.to_device(device))
    }

    fn train(self) -> Self {
        map_each!(self, model => model.train())
    }

    fn valid(&self) -> Self {
        map_each!(self, model => model.valid())
    }

    fn materialize(self) -> Self {
        map_each!(self, model => model.materialize())
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        each!(self, model => model.visit(visitor));
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        map_each!(self, model => model.map(mapper))
    }
}
