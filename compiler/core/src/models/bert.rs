//! BERT's heads: masked language modeling, classification of sequences and of tokens.
#![allow(non_snake_case)] // `LayerNorm` is a field's name in the weight files

use super::bert_config::BertConfig;
use super::bert_encoder::{BertModel, norm};
use super::layers::{Activation, linear, tied_logits};
use super::scope;
use burn::module::{Initializer, Module, Param};
use burn::nn::{LayerNorm, Linear};
use burn::tensor::{Device, Int, Tensor};

/// The encoder and its head: `BertForMaskedLM`, `BertForSequenceClassification`, `BertForTokenClassification`.
#[derive(Module, Debug)]
pub struct BertWithHead {
    /// The encoder.
    pub bert: BertModel,
    /// The head of a language model.
    pub cls: Option<BertHead>,
    /// The classification weights.
    pub classifier: Option<Linear>,
}

/// The head.
#[derive(Module, Debug)]
pub struct BertHead {
    /// The predictions.
    pub predictions: BertPredictions,
}

/// Transform, then logits.
#[derive(Module, Debug)]
pub struct BertPredictions {
    /// The transform.
    pub transform: BertTransform,
    /// The output weights; `None` if they are tied to the embedding, as usual.
    pub decoder: Option<Linear>,
    /// The bias of the logits if it differs from `bias` and there is no `decoder` to hold it.
    pub decoder_bias: Option<Param<Tensor<1>>>,
    /// The usual bias of the logits; if the decoder has its own bias, this one is only stored.
    pub bias: Param<Tensor<1>>,
}

/// A linear layer, the activation, a norm.
#[derive(Module, Debug)]
pub struct BertTransform {
    /// The linear layer.
    pub dense: Linear,
    /// The norm.
    pub LayerNorm: LayerNorm,
    #[module(skip)]
    activation: Activation,
}

impl BertWithHead {
    /// Builds the model with lazily drawn weights.
    pub fn new(config: &BertConfig, device: &Device) -> Self {
        let (width, std) = (config.hidden_size, config.initializer_range);
        let bias = || Initializer::Zeros.init([config.vocab_size], device);
        let labels = config.head.labels();
        let per_sequence = config.head.is_per_sequence();
        Self {
            bert: BertModel::new(config, per_sequence, device),
            cls: labels.is_none().then(|| BertHead {
                predictions: BertPredictions {
                    transform: BertTransform {
                        dense: linear(width, width, true, std, device),
                        LayerNorm: norm(config, device),
                        activation: config.activation,
                    },
                    decoder: (!config.tie_word_embeddings)
                        .then(|| linear(width, config.vocab_size, !config.tie_decoder_bias, std, device)),
                    decoder_bias: (config.tie_word_embeddings && !config.tie_decoder_bias).then(bias),
                    bias: bias(),
                },
            }),
            classifier: labels.map(|labels| linear(width, labels.names.len(), true, std, device)),
        }
    }

    /// Logits of `input_ids [b, s]`: `[b, s, vocab]`, `[b, s, labels]`, or `[b, 1, labels]` for sequence
    /// classification. `attention_mask` is 1 for tokens and 0 for padding (default: all tokens); `token_type_ids`
    /// default to 0.
    pub fn forward(
        &self,
        input_ids: Tensor<2, Int>,
        attention_mask: Option<Tensor<2, Int>>,
        token_type_ids: Option<Tensor<2, Int>>,
    ) -> Tensor<3> {
        let types = token_type_ids.unwrap_or_else(|| input_ids.zeros_like());
        let hidden = scope("bert", (input_ids, types), |(ids, types)| {
            let hidden = self.bert.forward(ids, types, attention_mask);
            match &self.bert.pooler {
                Some(pooler) => scope("pooler", hidden, |hidden| pooler.forward(hidden)),
                None => hidden,
            }
        });
        if let Some(classifier) = &self.classifier {
            return scope("classifier", hidden, |hidden| classifier.forward(hidden));
        }
        let Some(cls) = &self.cls else { return hidden };
        scope("cls", hidden, |hidden| {
            scope("predictions", hidden, |hidden| {
                let head = &cls.predictions;
                let hidden = scope("transform", hidden, |x| head.transform.forward(x));
                scope("decoder", hidden, |hidden| {
                    let logits = match &head.decoder {
                        Some(decoder) if decoder.bias.is_some() => return decoder.forward(hidden),
                        Some(decoder) => decoder.forward(hidden),
                        None => tied_logits(hidden, &self.bert.embeddings.word_embeddings),
                    };
                    logits + head.decoder_bias.as_ref().unwrap_or(&head.bias).val().unsqueeze()
                })
            })
        })
    }
}

impl BertTransform {
    /// `LayerNorm(act(dense(x)))`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.activation.apply(self.dense.forward(x));
        scope("LayerNorm", x, |x| self.LayerNorm.forward(x))
    }
}
