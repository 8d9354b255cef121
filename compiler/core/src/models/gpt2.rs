//! GPT-2: learned positions, a fused q|k|v projection, layer norms before each part, output weights tied to the
//! embedding.

use super::attend::{Context, Scores, attend};
use super::gpt2_config::Gpt2Config;
use super::heads::{Head, Labels};
use super::layers::{Activation, embedding, linear, tied_logits};
use super::pick::{ends, pick};
use super::scope;
use super::span::Span;
use burn::module::Module;
use burn::nn::{Embedding, LayerNorm, LayerNormConfig, Linear};
use burn::tensor::{Device, Int, Tensor};

/// The decoder and its head: `GPT2LMHeadModel`, `GPT2ForSequenceClassification`, `GPT2ForTokenClassification`.
#[derive(Module, Debug)]
pub struct Gpt2WithHead {
    /// The decoder.
    pub transformer: Gpt2Model,
    /// The output weights of a language model; `None` if they are tied to the embedding, as usual.
    pub lm_head: Option<Linear>,
    /// The weights of a sequence classification.
    pub score: Option<Linear>,
    /// The weights of a token classification.
    pub classifier: Option<Linear>,
    pad_token_id: Option<i64>,
}

/// The decoder without its head.
#[derive(Module, Debug)]
pub struct Gpt2Model {
    /// Token embeddings.
    pub wte: Embedding,
    /// Position embeddings.
    pub wpe: Embedding,
    /// The blocks.
    pub h: Vec<Gpt2Block>,
    /// The last norm.
    pub ln_f: LayerNorm,
}

/// One block.
#[derive(Module, Debug)]
pub struct Gpt2Block {
    /// The norm before attention.
    pub ln_1: LayerNorm,
    /// Attention.
    pub attn: Gpt2Attention,
    /// The norm before the MLP.
    pub ln_2: LayerNorm,
    /// The MLP.
    pub mlp: Gpt2Mlp,
}

/// Attention with fused q|k|v.
#[derive(Module, Debug)]
pub struct Gpt2Attention {
    /// The fused projection to queries, keys and values, in this order, `[d, 3·d]`.
    pub c_attn: Linear,
    /// The output projection, `[d, d]`.
    pub c_proj: Linear,
    heads: usize,
    #[module(skip)]
    scores: Scores,
}

/// The MLP.
#[derive(Module, Debug)]
pub struct Gpt2Mlp {
    /// The first linear, `[d, inner]`.
    pub c_fc: Linear,
    /// The second linear, `[inner, d]`.
    pub c_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Gpt2WithHead {
    /// Builds the model with lazily drawn weights.
    pub fn new(config: &Gpt2Config, device: &Device) -> Self {
        let (width, std) = (config.n_embd, config.initializer_range);
        let labels = |labels: &Labels, bias| linear(width, labels.names.len(), bias, std, device);
        let (score, classifier) = match &config.head {
            Head::SequenceClassification(of) => (Some(labels(of, false)), None),
            Head::TokenClassification(of) => (None, Some(labels(of, true))),
            _ => (None, None),
        };
        Self {
            transformer: Gpt2Model::new(config, device),
            lm_head: (config.head == Head::CausalLm && !config.tie_word_embeddings)
                .then(|| linear(width, config.vocab_size, false, std, device)),
            score,
            classifier,
            pad_token_id: config.pad_token_id,
        }
    }

    /// Logits of `input_ids [b, s]`: `[b, s, vocab]`, `[b, s, labels]`, or `[b, 1, labels]` for sequence
    /// classification; with a cache, `[b, 1, vocab]` of the last token.
    pub fn forward(&self, input_ids: Tensor<2, Int>, span: &Span) -> Tensor<3> {
        let ends = self.score.as_ref().map(|_| ends(input_ids.clone(), self.pad_token_id));
        let hidden = scope("transformer", input_ids, |ids| self.transformer.forward(ids, span));
        if let (Some(score), Some(ends)) = (&self.score, ends) {
            return pick(scope("score", hidden, |hidden| score.forward(hidden)), ends);
        }
        if let Some(classifier) = &self.classifier {
            return scope("classifier", hidden, |hidden| classifier.forward(hidden));
        }
        scope("lm_head", span.wanted(hidden), |hidden| match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => tied_logits(hidden, &self.transformer.wte),
        })
    }
}

impl Gpt2Model {
    /// Builds the decoder with lazily drawn weights.
    pub fn new(config: &Gpt2Config, device: &Device) -> Self {
        let (width, std) = (config.n_embd, config.initializer_range);
        Self {
            wte: embedding(config.vocab_size, width, std, device),
            wpe: embedding(config.n_positions, width, std, device),
            h: (0..config.n_layer).map(|i| Gpt2Block::new(config, i, device)).collect(),
            ln_f: norm(config, device),
        }
    }

    /// The last hidden states `[b, s, d]`.
    pub fn forward(&self, input_ids: Tensor<2, Int>, span: &Span) -> Tensor<3> {
        let [_, seq] = input_ids.dims();
        let at = span.context(seq, None, None, &input_ids.device());
        let tokens = scope("wte", input_ids, |ids| self.wte.forward(ids));
        let positions = span.rows(self.wpe.weight.val(), seq);
        let mut hidden = tokens + positions;
        for (i, block) in self.h.iter().enumerate() {
            hidden = scope(&format!("h.{i}"), hidden, |hidden| block.forward(hidden, &at));
        }
        scope("ln_f", hidden, |hidden| self.ln_f.forward(hidden))
    }
}

impl Gpt2Block {
    fn new(config: &Gpt2Config, layer: usize, device: &Device) -> Self {
        let (width, inner, std) = (config.n_embd, config.n_inner, config.initializer_range);
        let residual_std = std / (2.0 * config.n_layer as f64).sqrt();
        let mut scale = 1.0;
        if config.scale_attn_weights {
            scale /= ((width / config.n_head) as f64).sqrt();
        }
        if config.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f64;
        }
        Self {
            ln_1: norm(config, device),
            attn: Gpt2Attention {
                c_attn: linear(width, 3 * width, true, std, device),
                c_proj: linear(width, width, true, residual_std, device),
                heads: config.n_head,
                scores: Scores { scale, cap: None },
            },
            ln_2: norm(config, device),
            mlp: Gpt2Mlp {
                c_fc: linear(width, inner, true, std, device),
                c_proj: linear(inner, width, true, residual_std, device),
                activation: config.activation,
            },
        }
    }

    /// The block's output for `hidden [b, s, d]`.
    pub fn forward(&self, hidden: Tensor<3>, at: &Context) -> Tensor<3> {
        let normed = scope("ln_1", hidden.clone(), |x| self.ln_1.forward(x));
        let hidden = hidden + scope("attn", normed, |x| self.attn.forward(x, at));
        let normed = scope("ln_2", hidden.clone(), |x| self.ln_2.forward(x));
        hidden + scope("mlp", normed, |x| self.mlp.forward(x))
    }
}

impl Gpt2Attention {
    /// Self-attention of `x [b, s, d]`.
    pub fn forward(&self, x: Tensor<3>, at: &Context) -> Tensor<3> {
        let [batch, seq, width] = x.dims();
        let head_dim = width / self.heads;
        let fused = self.c_attn.forward(x).reshape([batch, seq, 3, self.heads, head_dim]);
        let [query, key, value] =
            [0, 1, 2].map(|part| fused.clone().narrow(2, part, 1).reshape([batch, seq, self.heads, head_dim]));
        self.c_proj.forward(attend(query, key, value, self.scores, at))
    }
}

impl Gpt2Mlp {
    /// `c_proj(act(c_fc(x)))`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.c_proj.forward(self.activation.apply(self.c_fc.forward(x)))
    }
}

fn norm(config: &Gpt2Config, device: &Device) -> LayerNorm {
    LayerNormConfig::new(config.n_embd).with_epsilon(config.layer_norm_epsilon).init(device)
}
