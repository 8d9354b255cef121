//! The models whose stages are snapshots, and the meshes that they are compiled for.

use crate::captured::tensor;
use crate::training::{adamw, config, mesh, plan};
use burn::tensor::DType;
use serde_json::json;
use std::collections::HashMap;
use tpc_compiler::capture::{Captured, Spec, capture_inference_shapes, capture_training_shapes, named};
use tpc_compiler::import::{Signature, import};
use tpc_compiler::models::{Mlp, ModelConfig};
use tpc_compiler::pretrained::{TokenBatch, capture_forward, capture_step, names};
use tpc_compiler::program::{CompileOptions, Stages, compile_inference, compile_training};
use tpc_ir::interpret::Tensor;
use tpc_ir::program::RankProgram;
use tpc_ir::{InputId, InputKind};
use tpc_passes::options::precision::Precision;

/// Values of inputs.
pub type Feed = HashMap<InputId, Tensor>;

/// Compiles a model for a plan and a mesh with options, and gives the stages and inputs to run them on.
pub type Compile = fn(&str, &str, &CompileOptions) -> (Stages, Feed);

/// A model, and the plans and meshes whose stages are snapshots.
pub struct Golden {
    /// The name of the snapshots.
    pub name: &'static str,
    /// Compiles the model.
    pub compile: Compile,
    /// `(plan, mesh)` of the snapshots.
    pub snapshots: &'static [(&'static str, &'static str)],
}

impl Golden {
    /// The rank programs on all meshes of the model, and values for their inputs.
    pub fn programs(&self) -> Vec<(String, Vec<RankProgram>, Feed)> {
        self.programs_with(&CompileOptions::for_cpu())
    }

    /// The same programs with bf16 compute and f32 parameters.
    pub fn programs_in_bf16(&self) -> Vec<(String, Vec<RankProgram>, Feed)> {
        let mut options = CompileOptions::for_cpu();
        options.step.precision = Some(Precision::default());
        self.programs_with(&options)
    }

    fn programs_with(&self, options: &CompileOptions) -> Vec<(String, Vec<RankProgram>, Feed)> {
        let meshes = self.snapshots.iter().chain(MESHES.iter().filter(|m| !self.snapshots.contains(m)));
        let compile = |(plan, on): &(&str, &str)| {
            let (stages, constants) = (self.compile)(plan, on, options);
            let feed = crate::inputs(&stages.captured, 8, &constants);
            (format!("{} {plan} on {on:?}", self.name), stages.ranks.into_vec(), feed)
        };
        meshes.map(compile).collect()
    }
}

/// A model without snapshots that is wide enough for packed loads, whole warps, and blocks that share rows.
pub const WIDE: Golden = Golden {
    name: "wide",
    compile: |plan, on, options| {
        let llama = config(json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 160, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
        }));
        step(&llama, plan, on, options)
    },
    snapshots: &[("tp", "tp=2")],
};

/// Further plans and meshes on which every stage must mean the same.
pub const MESHES: [(&str, &str); 6] =
    [("tp", "tp=1"), ("tp", "tp=2"), ("tp", "tp=4"), ("ddp", "dp=4"), ("tp-ddp", "dp=2,tp=2"), ("none", "")];

/// All models with snapshots.
pub const MODELS: [Golden; 6] = [
    Golden { name: "mlp", compile: mlp_forward, snapshots: &[("tp", "tp=2"), ("ddp", "dp=2")] },
    Golden { name: "mlp_training", compile: mlp_step, snapshots: &[("tp", "tp=2"), ("ddp", "dp=2")] },
    Golden {
        name: "llama",
        compile: |p, m, o| forward(&llama(2), p, m, o),
        snapshots: &[("tp", "tp=2"), ("tp-ddp", "dp=2,tp=2")],
    },
    Golden {
        name: "llama_training",
        compile: |p, m, o| step(&llama(1), p, m, o),
        snapshots: &[("tp", "tp=2"), ("tp-ddp", "dp=2,tp=2")],
    },
    Golden { name: "gpt2", compile: |p, m, o| forward(&gpt2(), p, m, o), snapshots: &[("tp", "tp=2")] },
    Golden { name: "bert", compile: |p, m, o| forward(&bert(), p, m, o), snapshots: &[("tp", "tp=2")] },
];

fn constants(captured: &Captured) -> HashMap<InputId, Tensor> {
    import(captured)
        .unwrap()
        .constants
        .iter()
        .map(|(n, d)| (InputId::read(InputKind::Constant, n), tensor(d)))
        .collect()
}

/// An MLP's forward pass.
pub fn mlp_forward(plan_name: &str, on: &str, options: &CompileOptions) -> (Stages, Feed) {
    let x = named("x", Spec::<2>::new([4, 6], DType::F32));
    let captured = capture_inference_shapes(|d| Mlp::new(6, 8, d), x, |m, x| named("y", m.forward(x))).unwrap();
    let program = compile_inference(&captured, &mesh(on), &plan(plan_name), options, &|p| p.to_string());
    (program.unwrap().stages, constants(&captured))
}

/// An MLP's training step.
pub fn mlp_step(plan_name: &str, on: &str, options: &CompileOptions) -> (Stages, Feed) {
    let x = || Spec::<2>::new([4, 6], DType::F32);
    let batch = (named("x", x()), named("target", x()));
    let loss = |m: &Mlp, (x, y)| m.loss(m.forward(x), y);
    let step = capture_training_shapes(|d| Mlp::new(6, 8, d), &adamw(), batch, &Default::default(), loss).unwrap();
    let program = compile_training(step, &mesh(on), &plan(plan_name), options, &|p| p.to_string());
    (program.unwrap().steady, Feed::new())
}

fn renamed(config: &ModelConfig) -> impl Fn(&str) -> String {
    let names = names(config);
    move |p| names.get(p).cloned().unwrap_or_else(|| p.to_string())
}

/// A language model's forward pass.
pub fn forward(config: &ModelConfig, plan_name: &str, on: &str, options: &CompileOptions) -> (Stages, Feed) {
    let captured = capture_forward(config, TokenBatch::new(2, 6), false).unwrap();
    let program = compile_inference(&captured, &mesh(on), &plan(plan_name), options, &renamed(config));
    (program.unwrap().stages, constants(&captured))
}

/// A language model's training step.
pub fn step(config: &ModelConfig, plan_name: &str, on: &str, options: &CompileOptions) -> (Stages, Feed) {
    // SGD gives fewer lines than AdamW, which the MLP's snapshots show.
    let optimizer =
        burn::optim::SgdConfig::new().with_momentum(Some(burn::optim::momentum::MomentumConfig::new())).build();
    let step = capture_step(config, TokenBatch::new(2, 6), &optimizer).unwrap();
    // Constants get their names once for both programs.
    let signature = Signature::of([&step.first, &step.steady]).unwrap();
    let imported = tpc_compiler::import::import_with(&step.steady, &signature).unwrap();
    let constants =
        imported.constants.iter().map(|(n, d)| (InputId::read(InputKind::Constant, n), tensor(d))).collect();
    let program = compile_training(step, &mesh(on), &plan(plan_name), options, &renamed(config));
    (program.unwrap().steady, constants)
}

/// A small llama.
pub fn llama(layers: usize) -> ModelConfig {
    config(json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": layers, "vocab_size": 10, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }))
}

/// A small GPT-2.
pub fn gpt2() -> ModelConfig {
    config(json!({
        "model_type": "gpt2", "vocab_size": 10, "n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 4,
        "n_inner": 12, "activation_function": "gelu_new", "tie_word_embeddings": true, "layer_norm_epsilon": 1e-5,
    }))
}

/// A small BERT.
pub fn bert() -> ModelConfig {
    config(json!({
        "model_type": "bert", "vocab_size": 10, "max_position_embeddings": 6, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 12, "hidden_act": "gelu", "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "tie_word_embeddings": true,
    }))
}
