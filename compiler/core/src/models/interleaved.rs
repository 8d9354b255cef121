//! The model of the Llama repository, under its own names, as used in the comparisons: rotary pairs are interleaved.

use super::attend::{Context, Scores, attend, split_heads};
use super::interleaved_config::InterleavedConfig;
use super::layers::{Activation, embedding, linear};
use super::rope::{RopeConfig, RopePairs};
use super::scope;
use super::span::Span;
use burn::module::Module;
use burn::nn::{Embedding, Linear, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor};

/// The whole model.
#[derive(Module, Debug)]
pub struct InterleavedLlama {
    /// Token embeddings.
    pub tok_embeddings: Embedding,
    /// The blocks.
    pub layers: Vec<InterleavedBlock>,
    /// The last norm.
    pub norm: RmsNorm,
    /// The output weights.
    pub output: Linear,
    theta: f64,
    head_dim: usize,
}

/// One block.
#[derive(Module, Debug)]
pub struct InterleavedBlock {
    /// The norm before attention.
    pub attention_norm: RmsNorm,
    /// Attention.
    pub attention: InterleavedAttention,
    /// The norm before the MLP.
    pub ffn_norm: RmsNorm,
    /// The MLP.
    pub feed_forward: FeedForward,
}

/// Attention with interleaved rotary pairs.
#[derive(Module, Debug)]
pub struct InterleavedAttention {
    /// The projection to queries.
    pub wq: Linear,
    /// The projection to keys.
    pub wk: Linear,
    /// The projection to values.
    pub wv: Linear,
    /// The output projection.
    pub wo: Linear,
    heads: usize,
    kv_heads: usize,
}

/// The gated MLP.
#[derive(Module, Debug)]
pub struct FeedForward {
    /// The projection to the gate.
    pub w1: Linear,
    /// The output projection.
    pub w2: Linear,
    /// The projection to the gated values.
    pub w3: Linear,
}

impl InterleavedLlama {
    /// Builds the model with lazily drawn weights.
    pub fn new(config: &InterleavedConfig, device: &Device) -> Self {
        let (dim, std) = (config.dim, config.initializer_range);
        let head_dim = dim / config.n_heads;
        let kv = config.n_kv_heads * head_dim;
        let norm = || RmsNormConfig::new(dim).with_epsilon(config.eps).init(device);
        let linear = |input, output| linear(input, output, false, std, device);
        Self {
            tok_embeddings: embedding(config.vocab, dim, std, device),
            layers: (0..config.n_layers)
                .map(|_| InterleavedBlock {
                    attention_norm: norm(),
                    attention: InterleavedAttention {
                        wq: linear(dim, dim),
                        wk: linear(dim, kv),
                        wv: linear(dim, kv),
                        wo: linear(dim, dim),
                        heads: config.n_heads,
                        kv_heads: config.n_kv_heads,
                    },
                    ffn_norm: norm(),
                    feed_forward: FeedForward {
                        w1: linear(dim, config.ffn),
                        w2: linear(config.ffn, dim),
                        w3: linear(dim, config.ffn),
                    },
                })
                .collect(),
            norm: norm(),
            output: linear(dim, config.vocab),
            theta: config.theta,
            head_dim,
        }
    }

    /// Logits `[b, s, vocab]` of `tokens [b, s]` or, with a cache, `[b, 1, vocab]` of the last token.
    pub fn forward(&self, tokens: Tensor<2, Int>, span: &Span) -> Tensor<3> {
        let [_, seq] = tokens.dims();
        let device = tokens.device();
        let config = RopeConfig::plain(self.theta);
        let rope = span.rope(&config, RopePairs::Interleaved, seq, self.head_dim, &device);
        let at = span.context(seq, Some(rope), None, &device);
        let mut hidden = scope("tok_embeddings", tokens, |ids| self.tok_embeddings.forward(ids));
        for (i, block) in self.layers.iter().enumerate() {
            hidden = scope(&format!("layers.{i}"), hidden, |hidden| block.forward(hidden, &at));
        }
        let hidden = span.wanted(scope("norm", hidden, |x| self.norm.forward(x)));
        scope("output", hidden, |x| self.output.forward(x))
    }
}

impl InterleavedBlock {
    /// The block's output for `hidden [b, s, d]`.
    pub fn forward(&self, hidden: Tensor<3>, at: &Context) -> Tensor<3> {
        let normed = scope("attention_norm", hidden.clone(), |x| self.attention_norm.forward(x));
        let hidden = hidden + scope("attention", normed, |x| self.attention.forward(x, at));
        let normed = scope("ffn_norm", hidden.clone(), |x| self.ffn_norm.forward(x));
        hidden + scope("feed_forward", normed, |x| self.feed_forward.forward(x))
    }
}

impl InterleavedAttention {
    /// Self-attention of `x [b, s, d]`.
    pub fn forward(&self, x: Tensor<3>, at: &Context) -> Tensor<3> {
        let query = split_heads(self.wq.forward(x.clone()), self.heads);
        let key = split_heads(self.wk.forward(x.clone()), self.kv_heads);
        let value = split_heads(self.wv.forward(x), self.kv_heads);
        let [_, _, _, head_dim] = query.dims();
        let scores = Scores { scale: (head_dim as f64).powf(-0.5), cap: None };
        self.wo.forward(attend(query, key, value, scores, at))
    }
}

impl FeedForward {
    /// `w2(silu(w1(x)) · w3(x))`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = Activation::Silu.apply(self.w1.forward(x.clone()));
        self.w2.forward(gate * self.w3.forward(x))
    }
}
