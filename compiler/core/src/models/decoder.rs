//! The decoder that families of causal models share; [`DecoderConfig`] holds their differences as data.

use super::attend::{Context, soft_cap};
use super::attention::Attention;
use super::decoder_config::DecoderConfig;
use super::heads::Head;
use super::layers::{Activation, embedding, linear, look_up, tied_logits};
use super::norm::{NormOrder, RmsNorm};
use super::pick::{ends, pick};
use super::rope::RopePairs;
use super::scope;
use super::span::Span;
use super::weight_map::WeightMap;
use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::{Device, Int, Tensor};

/// The decoder and its head: `LlamaForCausalLM`, `LlamaForSequenceClassification` and similar classes.
#[derive(Module, Debug)]
pub struct DecoderWithHead {
    /// The decoder.
    pub model: Decoder,
    /// The output weights of a language model; `None` if they are tied to the embedding.
    pub lm_head: Option<Linear>,
    /// The classification weights.
    pub score: Option<Linear>,
}

/// The decoder without a head.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embeddings.
    pub embed_tokens: Embedding,
    /// The blocks.
    pub layers: Vec<DecoderLayer>,
    /// The last norm.
    pub norm: RmsNorm,
    #[module(skip)]
    config: DecoderConfig,
}

/// One block. [`NormOrder`] determines its norms.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// The norm before attention.
    pub input_layernorm: Option<RmsNorm>,
    /// Attention.
    pub self_attn: Attention,
    /// The norm after attention; if there are norms only before each part, this is the norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// The norm before the MLP.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// The norm after the MLP.
    pub post_feedforward_layernorm: Option<RmsNorm>,
    /// The MLP.
    pub mlp: GatedMlp,
    #[module(skip)]
    norms: NormOrder,
}

/// `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// The projection to the gate.
    pub gate_proj: Linear,
    /// The projection to the gated values.
    pub up_proj: Linear,
    /// The output projection.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl DecoderWithHead {
    /// Builds the model with lazily drawn weights.
    pub fn new(config: &DecoderConfig, device: &Device) -> Self {
        let (hidden, vocab, std) = (config.hidden_size, config.vocab_size, config.initializer_range);
        Self {
            model: Decoder::new(config, device),
            lm_head: (config.head == Head::CausalLm && !config.tie_word_embeddings)
                .then(|| linear(hidden, vocab, false, std, device)),
            // Only token classification has a bias.
            score: config.head.labels().map(|labels| {
                linear(hidden, labels.names.len(), !config.head.is_per_sequence(), std, device) //
            }),
        }
    }

    /// Logits of `input_ids [b, s]`: `[b, s, vocab]`, `[b, s, labels]`, or `[b, 1, labels]` for sequence
    /// classification; with a cache, `[b, 1, vocab]` of the last token.
    pub fn forward(&self, input_ids: Tensor<2, Int>, span: &Span) -> Tensor<3> {
        let config = &self.model.config;
        let padding = config.padding_idx.map(|row| row as i64);
        let ends = config.head.is_per_sequence().then(|| ends(input_ids.clone(), padding));
        let hidden = scope("model", input_ids, |ids| self.model.forward(ids, span));
        if let Some(score) = &self.score {
            let scores = scope("score", hidden, |hidden| score.forward(hidden));
            return match ends {
                Some(ends) => pick(scores, ends),
                None => scores,
            };
        }
        let logits = scope("lm_head", span.wanted(hidden), |hidden| match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => tied_logits(hidden, &self.model.embed_tokens),
        });
        match config.logit_cap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }
}

impl Decoder {
    /// Builds the decoder with lazily drawn weights.
    pub fn new(config: &DecoderConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        Self {
            embed_tokens: embedding(config.vocab_size, hidden, config.initializer_range, device),
            layers: (0..config.num_hidden_layers).map(|_| DecoderLayer::new(config, device)).collect(),
            norm: config.norm(hidden, device),
            config: config.clone(),
        }
    }

    /// The configuration that the decoder was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The last hidden states `[b, s, d]`.
    pub fn forward(&self, input_ids: Tensor<2, Int>, span: &Span) -> Tensor<3> {
        let config = &self.config;
        let [_, seq] = input_ids.dims();
        let device = input_ids.device();
        let mut hidden = scope("embed_tokens", input_ids, |ids| {
            let rows = look_up(&self.embed_tokens, ids, config.padding_idx);
            match config.embedding_scale {
                Some(scale) => rows * scale,
                None => rows,
            }
        });
        let (full, windowed) = contexts(config, seq, span, &device);
        for (i, layer) in self.layers.iter().enumerate() {
            let at = match (config.windows.get(i), &windowed) {
                (Some(Some(_)), Some(windowed)) => windowed,
                _ => &full,
            };
            hidden = scope(&format!("layers.{i}"), hidden, |hidden| layer.forward(hidden, at));
        }
        scope("norm", hidden, |hidden| self.norm.forward(hidden))
    }
}

/// Modules whose weights are fused into one tensor in the files of some families: the fused module in a layer, and its
/// parts.
const FUSED: [(&str, &[&str]); 2] = [
    ("self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
];

impl DecoderConfig {
    /// Adds the family's fused tensors to the map; `layers` is the path of the list of blocks.
    pub(super) fn fuse(&self, layers: &str, map: &mut WeightMap) {
        if !self.family.facts().fused {
            return;
        }
        for layer in (0..self.num_hidden_layers).map(|layer| format!("{layers}.{layer}")) {
            for (module, parts) in FUSED {
                let parts: Vec<String> = parts.iter().map(|part| format!("{layer}.{part}")).collect();
                map.fuse(&format!("{layer}.{module}"), &parts, "weight");
            }
        }
    }
}

/// The context of the layers with full attention in a call on `seq` tokens, and the context of the layers with a
/// window, if there are any.
fn contexts(config: &DecoderConfig, seq: usize, span: &Span, device: &Device) -> (Context, Option<Context>) {
    let tables = |rope| Some(span.rope(rope, RopePairs::Halves, seq, config.head_dim, device));
    let full = span.context(seq, tables(&config.rope), None, device);
    let windowed = config.sliding_window().map(|window| {
        let rope = match &config.local_rope {
            Some(rope) => tables(rope),
            None => full.rope.clone(),
        };
        span.context(seq, rope, Some(window), device)
    });
    (full, windowed)
}

impl DecoderLayer {
    /// Builds the block with lazily drawn weights.
    pub fn new(config: &DecoderConfig, device: &Device) -> Self {
        let (hidden, inner, std) = (config.hidden_size, config.intermediate_size, config.initializer_range);
        let norm = || config.norm(hidden, device);
        let mlp = |input, output| linear(input, output, config.mlp_bias, std, device);
        let (before, after) = match config.norms {
            NormOrder::Before => (false, false),
            NormOrder::After => (false, true),
            NormOrder::Around => (true, true),
        };
        Self {
            input_layernorm: (config.norms != NormOrder::After).then(norm),
            self_attn: Attention::new(config, device),
            post_attention_layernorm: norm(),
            pre_feedforward_layernorm: before.then(norm),
            post_feedforward_layernorm: after.then(norm),
            mlp: GatedMlp {
                gate_proj: mlp(hidden, inner),
                up_proj: mlp(hidden, inner),
                down_proj: mlp(inner, hidden),
                activation: config.activation,
            },
            norms: config.norms,
        }
    }

    /// The block's output for `hidden [b, s, d]`.
    pub fn forward(&self, hidden: Tensor<3>, at: &Context) -> Tensor<3> {
        let after_attention = ("post_attention_layernorm", Some(&self.post_attention_layernorm));
        let before_mlp = ("pre_feedforward_layernorm", self.pre_feedforward_layernorm.as_ref());
        let (after_attention, before_mlp) = match self.norms {
            NormOrder::Before => (("", None), after_attention),
            NormOrder::After | NormOrder::Around => (after_attention, before_mlp),
        };
        let normed = |(name, norm): (&str, Option<&RmsNorm>), x: Tensor<3>| match norm {
            Some(norm) => scope(name, x, |x| norm.forward(x)),
            None => x,
        };
        let x = normed(("input_layernorm", self.input_layernorm.as_ref()), hidden.clone());
        let attended = scope("self_attn", x, |x| self.self_attn.forward(x, at));
        let hidden = hidden + normed(after_attention, attended);
        let x = normed(before_mlp, hidden.clone());
        let inner = scope("mlp", x, |x| self.mlp.forward(x));
        hidden + normed(("post_feedforward_layernorm", self.post_feedforward_layernorm.as_ref()), inner)
    }
}

impl GatedMlp {
    /// `down(act(gate(x)) · up(x))`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.activation.apply(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}
