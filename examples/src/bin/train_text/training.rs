//! The model and its training on a mesh.

use crate::text::{BATCH, SEED, SEQ, Text, Tokens};
use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::optim::AdamWConfig;
use burn::tensor::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::error::Error;
use std::time::Instant;
use tpc::models::{Model, ModelConfig};
use tpc::prelude::*;
use tpc::{ByDimensions, Evaluation};

/// How often a run computes the loss on held-out text.
const EVALUATIONS: u64 = 6;

/// A small decoder with rotary positions, RMS norms and SwiGLU, as a `config.json` of Hugging Face.
pub fn config(text: &Text) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": text.tokenizer.size(), "hidden_size": 128,
        "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": SEQ, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
        "initializer_range": 0.02, "bos_token_id": text.tokenizer.bos(), "eos_token_id": text.tokenizer.eos(),
        "torch_dtype": "float32",
    })
}

/// A warm-up, then half a cosine. With a larger rate, training is chaotic: changing a gain by 1e-6 changes the loss by
/// half a percent some hundred steps later, even on one rank, and curves cannot be compared.
#[derive(Clone)]
struct WarmUpAndCosine {
    step: u64,
    steps: u64,
}

impl LrScheduler for WarmUpAndCosine {
    fn step(&mut self) -> f64 {
        self.step += 1;
        let warm = (self.step as f64 / 100.0).min(1.0);
        let turn = std::f64::consts::PI * self.step as f64 / self.steps as f64;
        2e-3 * warm * (0.1 + 0.45 * (1.0 + turn.cos()))
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar("step", self.step)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        self.step = record.scalar("step").unwrap_or_default();
    }
}

/// A trained model on its ranks.
pub struct Run {
    pub trainer: RunningTrainer<Model, Tokens, ()>,
    /// The loss of each step.
    pub losses: Vec<f64>,
}

fn loss(model: &Model, Tokens { ids, labels }: Tokens) -> Tensor<1> {
    model.loss(model.forward(ids.into()), labels)
}

/// Trains on a mesh with a plan. The same seeds give the same parameters and batches on every mesh.
pub fn train(text: &Text, (mesh, plan): (Mesh, Plan), steps: u64) -> Result<Run, Box<dyn Error>> {
    let (config, begin) = (ModelConfig::from_json(&config(text), "the main job".as_ref())?, Instant::now());
    let ranks = format!("{} rank{}", mesh.ranks(), if mesh.ranks() == 1 { "" } else { "s" });
    let decaying = |decay| AdamWConfig::new().with_beta_2(0.99).with_weight_decay(decay).build();
    let held_out = text.held_out()?;
    let trainer = Trainer::new(
        move |device| config.build(device),
        ByDimensions { matrices: decaying(0.1), vectors: decaying(0.0) },
    )
    .on(mesh)
    .plan(plan)
    .seed(SEED)
    .clip_norm(1.0)
    .lr(WarmUpAndCosine { step: 0, steps })
    .compile(&held_out[0], loss)?;
    let stages = trainer.stages();
    println!(
        "compiled in {:.1} s for {ranks}: {} captured operations, {} after canonicalizing, {} placed, {} kernels and collectives per rank",
        begin.elapsed().as_secs_f64(),
        stages.captured.len(),
        stages.logical.len(),
        stages.placed.len(),
        stages.ranks[0].steps.len(),
    );
    let mut trainer = trainer.launch()?;
    let mut evaluation = trainer.evaluation(loss, &held_out[0])?;

    let bar = ProgressBar::new(steps);
    bar.set_style(
        ProgressStyle::with_template("{prefix} [{wide_bar}] {pos}/{len} {msg} eta {eta}")?.progress_chars("=> "),
    );
    bar.set_prefix(ranks);
    let tell = |line: String| if bar.is_hidden() { println!("{line}") } else { bar.println(line) };
    let (mut losses, mut batches, mut seconds) = (Vec::new(), text.batches()?, 0.0);
    for step in 1..=steps {
        let batch = Tokens::from(batches.next(BATCH)?.ok_or("the text ended")?);
        let begin = Instant::now();
        losses.push(trainer.step(&batch)?.loss);
        seconds += begin.elapsed().as_secs_f64();
        let speed = step as f64 * (BATCH * SEQ) as f64 / seconds;
        bar.set_message(format!("loss {:.3}, {speed:.0} tokens/s", losses[losses.len() - 1]));
        bar.inc(1);
        if step % steps.div_ceil(EVALUATIONS) == 0 || step == steps {
            let held_out = mean(&mut trainer, &mut evaluation, &held_out)?;
            let last = losses[losses.len() - 1];
            tell(format!(
                "step {step}/{steps}: loss {last:.3}, on held-out text {held_out:.3} (perplexity {:.1}), {speed:.0} tokens/s",
                held_out.exp()
            ));
        }
    }
    bar.finish_and_clear();
    println!("{steps} steps in {seconds:.1} s, {:.0} tokens/s", steps as f64 * (BATCH * SEQ) as f64 / seconds);
    Ok(Run { trainer, losses })
}

/// The mean loss of some batches.
fn mean(
    trainer: &mut RunningTrainer<Model, Tokens, ()>,
    evaluation: &mut Evaluation<Tokens, Tensor<1>>,
    batches: &[Tokens],
) -> Result<f64, Box<dyn Error>> {
    let mut total = 0.0;
    for batch in batches {
        total += trainer.evaluate(evaluation, batch)?.into_scalar::<f64>();
    }
    Ok(total / batches.len() as f64)
}
