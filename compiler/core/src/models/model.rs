//! A model of any family, as one burn module.

use super::bert::BertWithHead;
use super::bert_encoder::BertModel;
use super::cache::{Cache, CachedInputs, LayerCache, NextCache};
use super::config::ModelConfig;
use super::decoder::{Decoder, DecoderWithHead};
use super::error::ModelError;
use super::gpt2::{Gpt2Model, Gpt2WithHead};
use super::heads::{Head, HeadKind, Problem};
use super::interleaved::InterleavedLlama;
use super::loss;
use super::span::{Documents, Span};
use super::tied;
use super::weight_map::WeightMap;
use super::weights::Weights;
use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Int, Tensor};

/// A model of any family. It is transparent as a module: parameter paths begin with the family's own fields.
#[derive(Debug, Clone)]
pub struct Model {
    network: Network,
    head: Head,
}

/// The modules of a family, with or without a head.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant)] // a program has only one
enum Network {
    Decoder(DecoderWithHead),
    BareDecoder(Decoder),
    Gpt2(Gpt2WithHead),
    BareGpt2(Gpt2Model),
    Bert(BertWithHead),
    BareBert(BertModel),
    Interleaved(InterleavedLlama),
}

/// The labels of a batch: see [`Head::labels_shape`].
#[derive(Debug, Clone)]
pub enum Targets {
    /// Token numbers or label numbers.
    Classes(Tensor<2, Int>),
    /// A number for each label.
    Values(Tensor<2>),
}

impl From<Tensor<2, Int>> for Targets {
    fn from(labels: Tensor<2, Int>) -> Self {
        Self::Classes(labels)
    }
}

impl From<Tensor<2>> for Targets {
    fn from(values: Tensor<2>) -> Self {
        Self::Values(values)
    }
}

/// The inputs of a model. All tensors are `[batch, seq]`.
#[derive(Debug, Clone)]
pub struct TokenInputs {
    /// Token numbers.
    pub input_ids: Tensor<2, Int>,
    /// 1 for tokens, 0 for padding; `None` for no padding.
    pub attention_mask: Option<Tensor<2, Int>>,
    /// BERT's token types; `None` for all 0.
    pub token_type_ids: Option<Tensor<2, Int>>,
    /// The documents that share the rows of a causal model's batch; `None` if each row is one sequence.
    pub documents: Option<Documents>,
}

impl From<Tensor<2, Int>> for TokenInputs {
    fn from(input_ids: Tensor<2, Int>) -> Self {
        Self { input_ids, attention_mask: None, token_type_ids: None, documents: None }
    }
}

/// Builds a model on `device`; its weights are drawn when first used.
pub fn build(config: &ModelConfig, device: &Device) -> Model {
    let bare = config.head().kind() == HeadKind::Bare;
    let network = match config {
        ModelConfig::Decoder(c) if bare => Network::BareDecoder(Decoder::new(c, device)),
        ModelConfig::Decoder(c) => Network::Decoder(DecoderWithHead::new(c, device)),
        ModelConfig::Gpt2(c) if bare => Network::BareGpt2(Gpt2Model::new(c, device)),
        ModelConfig::Gpt2(c) => Network::Gpt2(Gpt2WithHead::new(c, device)),
        ModelConfig::Bert(c) if bare => Network::BareBert(BertModel::new(c, true, device)),
        ModelConfig::Bert(c) => Network::Bert(BertWithHead::new(c, device)),
        ModelConfig::Interleaved(c) => Network::Interleaved(InterleavedLlama::new(c, device)),
    };
    Model { network, head: config.head().clone() }
}

impl ModelConfig {
    /// Builds the model on `device`; its weights are drawn when first used.
    pub fn build(&self, device: &Device) -> Model {
        build(self, device)
    }
}

/// Builds a model with the weights of a file on `device`.
pub fn load(config: &ModelConfig, weights: &Weights, device: &Device) -> Result<Model, ModelError> {
    let model = build(config, device);
    let map = model.weight_map();
    map.load(model, weights)
}

/// The weight map of a configuration. No parameter is initialized for it.
pub fn weight_map(config: &ModelConfig) -> WeightMap {
    build(config, &Device::capture()).weight_map()
}

/// Evaluates one expression on the network of any family.
macro_rules! each {
    ($network:expr, $inner:ident => $result:expr) => {
        match $network {
            Network::Decoder($inner) => $result,
            Network::BareDecoder($inner) => $result,
            Network::Gpt2($inner) => $result,
            Network::BareGpt2($inner) => $result,
            Network::Bert($inner) => $result,
            Network::BareBert($inner) => $result,
            Network::Interleaved($inner) => $result,
        }
    };
}

/// Applies a function to a model's network, and returns a model of the same family.
macro_rules! map_each {
    ($network:expr, $head:expr, $inner:ident => $result:expr) => {{
        let network = match $network {
            Network::Decoder($inner) => Network::Decoder($result),
            Network::BareDecoder($inner) => Network::BareDecoder($result),
            Network::Gpt2($inner) => Network::Gpt2($result),
            Network::BareGpt2($inner) => Network::BareGpt2($result),
            Network::Bert($inner) => Network::Bert($result),
            Network::BareBert($inner) => Network::BareBert($result),
            Network::Interleaved($inner) => Network::Interleaved($result),
        };
        Model { network, head: $head }
    }};
}

impl Model {
    /// The output: logits `[batch, seq, vocab]` or `[batch, seq, labels]`, hidden states `[batch, seq, width]`;
    /// `[batch, 1, …]` if the head returns one vector per sequence ([`Head::is_per_sequence`]).
    ///
    /// A model with learned positions does not accept sequences longer than [`ModelConfig::max_positions`]; check with
    /// [`ModelConfig::check_batch`] first.
    pub fn forward(&self, inputs: TokenInputs) -> Tensor<3> {
        let TokenInputs { input_ids, attention_mask, token_type_ids, documents } = inputs;
        let pooling = match &self.head {
            Head::SentenceEmbedding(pooling) => Some((*pooling, attention_mask.clone())),
            _ => None,
        };
        let output = match &self.network {
            Network::Decoder(model) => model.forward(input_ids, &Span::Whole { attention_mask, documents }),
            Network::BareDecoder(model) => model.forward(input_ids, &Span::Whole { attention_mask, documents }),
            Network::Gpt2(model) => model.forward(input_ids, &Span::Whole { attention_mask, documents }),
            Network::BareGpt2(model) => model.forward(input_ids, &Span::Whole { attention_mask, documents }),
            Network::Bert(model) => model.forward(input_ids, attention_mask, token_type_ids),
            Network::BareBert(model) => {
                let types = token_type_ids.unwrap_or_else(|| input_ids.zeros_like());
                model.forward(input_ids, types, attention_mask)
            }
            Network::Interleaved(model) => model.forward(input_ids, &Span::Whole { attention_mask: None, documents }),
        };
        match pooling {
            Some((pooling, mask)) => pooling.apply(output, mask),
            None => output,
        }
    }

    /// The logits `[batch, vocab]` of the tokens after the inputs, and the caches after the run.
    ///
    /// # Panics
    /// If the model has no caches ([`ModelConfig::caches`]), or other caches than these.
    pub(crate) fn next(&self, inputs: CachedInputs, caches: Vec<LayerCache>) -> (Tensor<2>, Vec<NextCache>) {
        let cache = Cache::new(&inputs, caches);
        let span = Span::Next(cache.clone());
        let logits = match &self.network {
            Network::Decoder(model) => model.forward(inputs.input_ids, &span),
            Network::Gpt2(model) => model.forward(inputs.input_ids, &span),
            Network::Interleaved(model) => model.forward(inputs.input_ids, &span),
            Network::BareDecoder(_) | Network::BareGpt2(_) | Network::Bert(_) | Network::BareBert(_) => {
                panic!("{} has no caches", self.head.kind().name())
            }
        };
        (logits.squeeze_dim(1), cache.after())
    }

    /// The head, which determines the output.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The loss of [`Model::forward`]'s output, as transformers computes it. Labels have the shape of
    /// [`Head::labels_shape`]; [`loss::IGNORE`] is ignored, and causal language models shift the labels themselves.
    ///
    /// # Panics
    /// If the head has no loss, or takes labels of the other kind; [`ModelConfig::check_loss`] and
    /// [`Head::takes_values`] check this.
    pub fn loss(&self, output: Tensor<3>, labels: impl Into<Targets>) -> Tensor<1> {
        match (&self.head, labels.into()) {
            (Head::CausalLm, Targets::Classes(labels)) => loss::causal_lm(output, labels),
            (Head::MaskedLm | Head::TokenClassification(_), Targets::Classes(labels)) => {
                loss::masked_lm(output, labels)
            }
            (Head::SequenceClassification(of), targets) => match (of.problem, targets) {
                (Problem::SingleLabel, Targets::Classes(labels)) => loss::masked_lm(output, labels),
                (Problem::Regression, Targets::Values(values)) => loss::regression(output, values),
                (Problem::MultiLabel, Targets::Values(values)) => loss::multi_label(output, values),
                (problem, _) => panic!("labels of a kind that {} does not take", problem.name()),
            },
            (head, _) => panic!("{} has no loss for these labels", head.kind().name()),
        }
    }

    /// The map between the tensors of a weight file and parameters.
    pub fn weight_map(&self) -> WeightMap {
        // GPT-2's Conv1D is stored as [in, out], unlike the weights of its heads.
        let transposed = !matches!(self.network, Network::Gpt2(_) | Network::BareGpt2(_));
        let mut map = each!(&self.network, model => WeightMap::of(model, transposed));
        match &self.network {
            Network::Gpt2(_) => {
                for entry in &mut map.entries {
                    entry.transpose = GPT2_LINEAR.contains(&entry.burn_path.as_str());
                }
            }
            Network::Decoder(model) => model.model.config().fuse("model.layers", &mut map),
            Network::BareDecoder(model) => model.config().fuse("layers", &mut map),
            _ => {}
        }
        for entry in &mut map.entries {
            if entry.burn_path == "cls.predictions.decoder_bias" {
                entry.hf_name = "cls.predictions.decoder.bias".into();
            }
            entry.drawable = DRAWABLE.contains(&entry.burn_path.as_str());
        }
        tied::stand_in(&mut map);
        map
    }
}

/// Weights of GPT-2 that are stored as `[out, in]`.
const GPT2_LINEAR: [&str; 3] = ["lm_head.weight", "score.weight", "classifier.weight"];
/// Parameters of heads, which a checkpoint may lack before training, and of poolers, which language models lack.
const DRAWABLE: [&str; 8] = [
    "score.weight",
    "score.bias",
    "classifier.weight",
    "classifier.bias",
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
    "pooler.dense.weight",
    "pooler.dense.bias",
];

impl Module for Model {
    fn collect_devices(&self, devices: Devices) -> Devices {
        each!(&self.network, model => model.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        map_each!(self.network, self.head, model => model.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        map_each!(self.network, self.head, model => model.to_device(device))
    }

    fn train(self) -> Self {
        map_each!(self.network, self.head, model => model.train())
    }

    fn valid(&self) -> Self {
        map_each!(&self.network, self.head.clone(), model => model.valid())
    }

    fn materialize(self) -> Self {
        map_each!(self.network, self.head, model => model.materialize())
    }

    fn visit<Visitor: ModuleVisitor>(&self, visitor: &mut Visitor) {
        each!(&self.network, model => model.visit(visitor));
    }

    fn map<Mapper: ModuleMapper>(self, mapper: &mut Mapper) -> Self {
        map_each!(self.network, self.head, model => model.map(mapper))
    }
}
