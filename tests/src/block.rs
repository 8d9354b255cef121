//! One block of a llama, forward and backward, as a rank of a plan executes it; and programs of one rank without their
//! peers.

use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::optim::SgdConfig;
use burn::tensor::{DType, Device, Tensor};
use tpc::scope;
use tpc_command::subject::without_optimizer;
use tpc_compiler::capture::{Spec, TrainingOptions, capture_training_shapes, named};
use tpc_compiler::models::{DecoderConfig, DecoderLayer, DecoderWithHead, RopePairs, RopeTables, Span};
use tpc_compiler::program::{CompileOptions, InferenceProgram, compile_inference};
use tpc_ir::program::{Action, CollectiveKind, RankProgram};
use tpc_passes::styles::Plan;

/// The first block of a model, with its input as a parameter, so that the input gets a gradient.
#[derive(Module, Debug)]
struct Block {
    layers: Vec<DecoderLayer>,
    x: Param<Tensor<3>>,
}

/// Compiles a block's forward and backward pass, from a given gradient `y.grad` of its output: results are `y`, `x.grad` and the
/// gradients of its weights.
///
/// # Panics
/// If it cannot be compiled.
pub fn block(
    config: &DecoderConfig,
    [batch, seq]: [usize; 2],
    plan: &Plan,
    on: &str,
    options: &CompileOptions,
) -> InferenceProgram {
    let shape = [batch, seq, config.hidden_size];
    let build = |device: &Device| {
        let mut layers = DecoderWithHead::new(config, device).model.layers;
        layers.truncate(1);
        Block { layers, x: Initializer::Zeros.init(shape, device) }
    };
    let gradient = named("y.grad", Spec::<3>::new(shape, DType::F32));
    let forward = |model: &Block, gradient: Tensor<3>| {
        let x = model.x.val();
        let rope = RopeTables::new(&config.rope, RopePairs::Halves, seq, config.head_dim, &x.device());
        let at = Span::whole(None).context(seq, Some(rope), None, &x.device());
        let y = scope("layers.0", x, |x| model.layers[0].forward(x, &at));
        ((y.clone() * gradient).sum(), named("y", y))
    };
    let step =
        capture_training_shapes(build, &SgdConfig::new().build(), gradient, &TrainingOptions::default(), forward);
    let captured = without_optimizer(step.unwrap_or_else(|e| panic!("{e}")).first, "x");
    let options = CompileOptions { gradients: true, ..options.clone() };
    compile_inference(&captured, &crate::training::mesh(on), plan, &options, &|p| p.to_string())
        .unwrap_or_else(|e| panic!("{on}: {e}"))
}

/// The program of one rank without its collectives, to time the rank's own computation. Received values have the right
/// size, and contain what the rank contributes; an all-reduce that is not in place becomes a copy.
pub fn alone(program: &RankProgram) -> RankProgram {
    let mut alone = program.clone();
    let step = |mut step: tpc_ir::program::Step| {
        step.action = match step.action {
            Action::Start(c) => match c.kind {
                CollectiveKind::AllReduce(_) if c.from != c.to => Action::Copy { from: c.from, to: c.to },
                _ => return None,
            },
            Action::Wait { .. } => return None,
            action => action,
        };
        Some(step)
    };
    alone.steps = program.steps.iter().cloned().filter_map(step).collect();
    alone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::{config, plan, uniform};
    use serde_json::json;
    use tpc_compiler::models::ModelConfig;
    use tpc_ir::{InputKind, OutputKind};
    use tpc_runtime::LaunchOptions;

    fn small() -> DecoderConfig {
        let config = config(json!({
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 8, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
        }));
        match config {
            ModelConfig::Decoder(config) => config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_block_is_the_same_on_two_ranks() {
        let run = |name: &str, on: &str| {
            let program = block(&small(), [2, 6], &plan(name), on, &CompileOptions::for_cpu());
            let mut session = program.launch(LaunchOptions::default()).unwrap();
            let inputs: Vec<_> =
                session.program(0).inputs.iter().map(|i| (i.name.clone(), i.kind, i.binding.global.clone())).collect();
            for (name, kind, shape) in inputs {
                if matches!(kind, InputKind::Parameter | InputKind::Data) {
                    let mut draw = uniform(&name);
                    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw() - 0.5).collect();
                    session.write_f64(&name, &values).unwrap();
                }
            }
            session.step().unwrap();
            let kinds: Vec<OutputKind> = session.program(0).outputs.iter().map(|o| o.kind.clone()).collect();
            kinds.into_iter().map(|k| (format!("{k:?}"), session.read_f64(&k).unwrap())).collect::<Vec<_>>()
        };
        let (one, two) = (run("none", ""), run("tp", "tp=2"));
        // The output, the input's gradient, and the gradients of nine weights.
        assert_eq!((one.len(), two.len()), (11, 11), "{:?}", one.iter().map(|o| &o.0).collect::<Vec<_>>());
        for (name, a) in one {
            let b = &two.iter().find(|o| o.0 == name).unwrap().1;
            let largest = a.iter().fold(0f64, |m, x| m.max(x.abs()));
            assert!(largest > 0.0 && a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-5 * largest), "{name}");
        }
    }

    #[test]
    fn a_rank_alone_computes_all_but_its_collectives() {
        let program = block(&small(), [2, 6], &plan("tp"), "tp=2", &CompileOptions::for_cpu());
        let of = &program.stages.ranks[0];
        let count = |p: &RankProgram, is: fn(&Action) -> bool| p.steps.iter().filter(|s| is(&s.action)).count();
        let rank = alone(of);
        assert!(of.collectives().count() >= 2 && rank.collectives().count() == 0);
        assert_eq!(count(&rank, |a| matches!(a, Action::Wait { .. })), 0);
        let products = |a: &Action| matches!(a, Action::Contract(_));
        assert_eq!(count(&rank, products), count(of, products));
    }
}
