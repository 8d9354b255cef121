//! The decoder shared by Llama, Mistral, Qwen2 and Qwen3: grouped-query attention, rotary embeddings, RMS norms, a gated MLP.

use super::attention::{Mask, attend, mask, split_heads};
use super::config::LlamaConfig;
use super::layers::{Activation, embedding, linear, look_up, tied_logits};
use super::rope::{RopePairs, RopeTables};
use super::scope;
use burn::module::Module;
use burn::nn::{Embedding, Linear, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor};

/// `LlamaForCausalLM` and its relatives: the decoder and the output head.
#[derive(Module, Debug)]
pub struct LlamaForCausalLM {
    /// The decoder.
    pub model: LlamaModel,
    /// The output weights; `None` when they are the embedding's.
    pub lm_head: Option<Linear>,
}

/// The decoder without its head.
#[derive(Module, Debug)]
pub struct LlamaModel {
    /// Token embeddings.
    pub embed_tokens: Embedding,
    /// The blocks.
    pub layers: Vec<LlamaLayer>,
    /// The last norm.
    pub norm: RmsNorm,
    #[module(skip)]
    config: LlamaConfig,
}

/// One block.
#[derive(Module, Debug)]
pub struct LlamaLayer {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: LlamaAttention,
    /// The norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// The MLP.
    pub mlp: LlamaMlp,
}

/// Grouped-query attention.
#[derive(Module, Debug)]
pub struct LlamaAttention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// The output.
    pub o_proj: Linear,
    /// Qwen3: a norm of each query head.
    pub q_norm: Option<RmsNorm>,
    /// Qwen3: a norm of each key head.
    pub k_norm: Option<RmsNorm>,
    heads: usize,
    kv_heads: usize,
    scale: f64,
}

/// The gated MLP.
#[derive(Module, Debug)]
pub struct LlamaMlp {
    /// The gate.
    pub gate_proj: Linear,
    /// What is gated.
    pub up_proj: Linear,
    /// The output.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl LlamaForCausalLM {
    /// Builds the model with lazily drawn weights.
    pub fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (hidden, std) = (config.hidden_size, config.initializer_range);
        let layers = (0..config.num_hidden_layers).map(|_| LlamaLayer::new(config, device)).collect();
        Self {
            model: LlamaModel {
                embed_tokens: embedding(config.vocab_size, hidden, std, device),
                layers,
                norm: norm(hidden, config, device),
                config: config.clone(),
            },
            lm_head: (!config.tie_word_embeddings).then(|| linear(hidden, config.vocab_size, false, std, device)),
        }
    }

    /// Logits `[b, s, vocab]` of `input_ids [b, s]`; `attention_mask` is 1 for tokens and 0 for padding.
    pub fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Int>>) -> Tensor<3> {
        let hidden = scope("model", input_ids, |ids| self.model.forward(ids, attention_mask));
        scope("lm_head", hidden, |hidden| match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => tied_logits(hidden, &self.model.embed_tokens),
        })
    }
}

impl LlamaModel {
    /// The last hidden states `[b, s, d]`.
    pub fn forward(&self, input_ids: Tensor<2, Int>, attention_mask: Option<Tensor<2, Int>>) -> Tensor<3> {
        let config = &self.config;
        let [_, seq] = input_ids.dims();
        let device = input_ids.device();
        let mut hidden = scope("embed_tokens", input_ids, |ids| {
            look_up(&self.embed_tokens, ids, config.padding_idx) //
        });
        let rope = RopeTables::new(&config.rope, RopePairs::Halves, seq, config.head_dim, &device);
        let full = mask(seq, true, None, attention_mask.clone(), &device);
        let windowed = config
            .windows
            .iter()
            .flatten()
            .next()
            .and_then(|window| mask(seq, true, Some(*window), attention_mask, &device));
        for (i, layer) in self.layers.iter().enumerate() {
            let mask = match config.windows.get(i) {
                Some(Some(_)) => windowed.as_ref(),
                _ => full.as_ref(),
            };
            hidden = scope(&format!("layers.{i}"), hidden, |hidden| layer.forward(hidden, &rope, mask));
        }
        scope("norm", hidden, |hidden| self.norm.forward(hidden))
    }
}

impl LlamaLayer {
    fn new(config: &LlamaConfig, device: &Device) -> Self {
        let (hidden, inner, std) = (config.hidden_size, config.intermediate_size, config.initializer_range);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (queries, keys) = (heads * config.head_dim, kv_heads * config.head_dim);
        let head_norm = || config.qk_norm.then(|| norm(config.head_dim, config, device));
        let mlp = |input, output| linear(input, output, config.mlp_bias, std, device);
        Self {
            input_layernorm: norm(hidden, config, device),
            self_attn: LlamaAttention {
                q_proj: linear(hidden, queries, config.qkv_bias, std, device),
                k_proj: linear(hidden, keys, config.qkv_bias, std, device),
                v_proj: linear(hidden, keys, config.qkv_bias, std, device),
                o_proj: linear(queries, hidden, config.output_bias, std, device),
                q_norm: head_norm(),
                k_norm: head_norm(),
                heads,
                kv_heads,
                scale: (config.head_dim as f64).powf(-0.5),
            },
            post_attention_layernorm: norm(hidden, config, device),
            mlp: LlamaMlp {
                gate_proj: mlp(hidden, inner),
                up_proj: mlp(hidden, inner),
                down_proj: mlp(inner, hidden),
                activation: config.activation,
            },
        }
    }

    /// The block's output for `hidden [b, s, d]`.
    pub fn forward(&self, hidden: Tensor<3>, rope: &RopeTables, mask: Option<&Mask>) -> Tensor<3> {
        let normed = scope("input_layernorm", hidden.clone(), |x| self.input_layernorm.forward(x));
        let hidden = hidden + scope("self_attn", normed, |x| self.self_attn.forward(x, rope, mask));
        let normed = scope("post_attention_layernorm", hidden.clone(), |x| self.post_attention_layernorm.forward(x));
        hidden + scope("mlp", normed, |x| self.mlp.forward(x))
    }
}

impl LlamaAttention {
    /// Attention of `x [b, s, d]` to itself.
    pub fn forward(&self, x: Tensor<3>, rope: &RopeTables, mask: Option<&Mask>) -> Tensor<3> {
        let mut query = split_heads(self.q_proj.forward(x.clone()), self.heads);
        let mut key = split_heads(self.k_proj.forward(x.clone()), self.kv_heads);
        let value = split_heads(self.v_proj.forward(x), self.kv_heads);
        if let Some(norm) = &self.q_norm {
            query = scope("q_norm", query, |x| norm.forward(x));
        }
        if let Some(norm) = &self.k_norm {
            key = scope("k_norm", key, |x| norm.forward(x));
        }
        let merged = attend(rope.apply(query), rope.apply(key), value, self.scale, mask);
        self.o_proj.forward(merged)
    }
}

impl LlamaMlp {
    /// `down(act(gate(x)) · up(x))`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.activation.apply(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}

fn norm(width: usize, config: &LlamaConfig, device: &Device) -> RmsNorm {
    RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps).init(device)
}
