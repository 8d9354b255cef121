//! BERT without a head: a bidirectional encoder with layer norms after each residual sum.
#![allow(non_snake_case)] // `LayerNorm` is a field's name in the weight files

use super::attend::{Context, Scores, attend, split_heads};
use super::bert_config::BertConfig;
use super::layers::{Activation, embedding, linear, look_up};
use super::mask::mask;
use super::scope;
use burn::module::Module;
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear};
use burn::tensor::{Device, Int, Tensor};

/// Embeddings and encoder.
#[derive(Module, Debug)]
pub struct BertModel {
    /// The embeddings.
    pub embeddings: BertEmbeddings,
    /// The encoder.
    pub encoder: BertEncoder,
    /// Computes one vector from the first token, if the head or the bare model has this module.
    pub pooler: Option<BertPooler>,
}

/// A linear layer and tanh.
#[derive(Module, Debug)]
pub struct BertPooler {
    /// The linear layer.
    pub dense: Linear,
}

/// Word, position and token type embeddings, summed and normalized.
#[derive(Module, Debug)]
pub struct BertEmbeddings {
    /// The embedding of words.
    pub word_embeddings: Embedding,
    /// The embedding of positions.
    pub position_embeddings: Embedding,
    /// The embedding of token types.
    pub token_type_embeddings: Embedding,
    /// The norm of the sum.
    pub LayerNorm: LayerNorm,
    padding_idx: Option<usize>,
}

/// The blocks.
#[derive(Module, Debug)]
pub struct BertEncoder {
    /// The blocks.
    pub layer: Vec<BertLayer>,
}

/// One block.
#[derive(Module, Debug)]
pub struct BertLayer {
    /// Attention with its output projection.
    pub attention: BertAttention,
    /// The first half of the MLP.
    pub intermediate: BertIntermediate,
    /// The second half of the MLP, with residual and norm.
    pub output: BertOutput,
}

/// Attention with its output projection.
#[derive(Module, Debug)]
pub struct BertAttention {
    /// Named `self` in the weight files, which Rust does not allow.
    pub self_: BertSelfAttention,
    /// The output projection, with residual and norm.
    pub output: BertOutput,
}

/// Multi-head attention without its output projection.
#[derive(Module, Debug)]
pub struct BertSelfAttention {
    /// The projection to queries.
    pub query: Linear,
    /// The projection to keys.
    pub key: Linear,
    /// The projection to values.
    pub value: Linear,
    heads: usize,
    #[module(skip)]
    scores: Scores,
}

/// A linear layer, the residual sum, a norm.
#[derive(Module, Debug)]
pub struct BertOutput {
    /// The linear layer.
    pub dense: Linear,
    /// The norm of the sum.
    pub LayerNorm: LayerNorm,
}

/// A linear layer and the activation.
#[derive(Module, Debug)]
pub struct BertIntermediate {
    /// The linear layer.
    pub dense: Linear,
    #[module(skip)]
    activation: Activation,
}

impl BertModel {
    /// Builds the encoder with lazily drawn weights.
    pub fn new(config: &BertConfig, pooler: bool, device: &Device) -> Self {
        let (width, std) = (config.hidden_size, config.initializer_range);
        Self {
            embeddings: BertEmbeddings {
                word_embeddings: embedding(config.vocab_size, width, std, device),
                position_embeddings: embedding(config.max_position_embeddings, width, std, device),
                token_type_embeddings: embedding(config.type_vocab_size, width, std, device),
                LayerNorm: norm(config, device),
                padding_idx: config.padding_idx,
            },
            encoder: BertEncoder {
                layer: (0..config.num_hidden_layers).map(|_| BertLayer::new(config, device)).collect(),
            },
            pooler: pooler.then(|| BertPooler { dense: linear(width, width, true, std, device) }),
        }
    }

    /// The last hidden states `[b, s, d]`.
    pub fn forward(
        &self,
        input_ids: Tensor<2, Int>,
        token_type_ids: Tensor<2, Int>,
        attention_mask: Option<Tensor<2, Int>>,
    ) -> Tensor<3> {
        let [_, seq] = input_ids.dims();
        let at = Context {
            rope: None,
            mask: mask(seq, false, None, attention_mask, None, &input_ids.device()),
            cache: None,
        };
        let hidden =
            scope("embeddings", (input_ids, token_type_ids), |(ids, types)| self.embeddings.forward(ids, types));
        scope("encoder", hidden, |mut hidden| {
            for (i, layer) in self.encoder.layer.iter().enumerate() {
                hidden = scope(&format!("layer.{i}"), hidden, |hidden| layer.forward(hidden, &at));
            }
            hidden
        })
    }
}

impl BertEmbeddings {
    /// The normalized sum of the three embeddings.
    pub fn forward(&self, input_ids: Tensor<2, Int>, token_type_ids: Tensor<2, Int>) -> Tensor<3> {
        let [_, seq] = input_ids.dims();
        let words = scope("word_embeddings", input_ids, |ids| look_up(&self.word_embeddings, ids, self.padding_idx));
        let types = scope("token_type_embeddings", token_type_ids, |types| self.token_type_embeddings.forward(types));
        let positions = self.position_embeddings.weight.val().narrow(0, 0, seq);
        let sum = words + types + positions.unsqueeze::<3>();
        scope("LayerNorm", sum, |x| self.LayerNorm.forward(x))
    }
}

impl BertPooler {
    /// `tanh(dense(x))` of the first token of `hidden [b, s, d]`: `[b, 1, d]`.
    pub fn forward(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.dense.forward(hidden.narrow(1, 0, 1)).tanh()
    }
}

impl BertLayer {
    fn new(config: &BertConfig, device: &Device) -> Self {
        let (width, inner, std) = (config.hidden_size, config.intermediate_size, config.initializer_range);
        let square = || linear(width, width, true, std, device);
        let output =
            |input| BertOutput { dense: linear(input, width, true, std, device), LayerNorm: norm(config, device) };
        Self {
            attention: BertAttention {
                self_: BertSelfAttention {
                    query: square(),
                    key: square(),
                    value: square(),
                    heads: config.num_attention_heads,
                    scores: Scores { scale: ((width / config.num_attention_heads) as f64).powf(-0.5), cap: None },
                },
                output: output(width),
            },
            intermediate: BertIntermediate {
                dense: linear(width, inner, true, std, device),
                activation: config.activation,
            },
            output: output(inner),
        }
    }

    /// The block's output for `hidden [b, s, d]`.
    pub fn forward(&self, hidden: Tensor<3>, at: &Context) -> Tensor<3> {
        let attended = scope("attention", hidden, |hidden| {
            let context = scope("self", hidden.clone(), |x| self.attention.self_.forward(x, at));
            scope("output", (context, hidden), |(context, hidden)| self.attention.output.forward(context, hidden))
        });
        let inner = scope("intermediate", attended.clone(), |x| self.intermediate.forward(x));
        scope("output", (inner, attended), |(inner, attended)| self.output.forward(inner, attended))
    }
}

impl BertSelfAttention {
    /// Self-attention of `x [b, s, d]`.
    pub fn forward(&self, x: Tensor<3>, at: &Context) -> Tensor<3> {
        let query = split_heads(self.query.forward(x.clone()), self.heads);
        let key = split_heads(self.key.forward(x.clone()), self.heads);
        let value = split_heads(self.value.forward(x), self.heads);
        attend(query, key, value, self.scores, at)
    }
}

impl BertOutput {
    /// `LayerNorm(residual + dense(x))`.
    pub fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        let sum = residual + self.dense.forward(x);
        scope("LayerNorm", sum, |x| self.LayerNorm.forward(x))
    }
}

impl BertIntermediate {
    /// `act(dense(x))`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.activation.apply(self.dense.forward(x))
    }
}

/// A norm with the model's epsilon.
pub(super) fn norm(config: &BertConfig, device: &Device) -> LayerNorm {
    LayerNormConfig::new(config.hidden_size).with_epsilon(config.layer_norm_eps).init(device)
}
