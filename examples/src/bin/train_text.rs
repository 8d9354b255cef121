//! The main job: trains a small GPT on the King James New Testament, on two ranks of this process.
//!
//! `cargo run --release -p tpc-examples` shards the model with the plan `tp`, trains it, says what the
//! ranks exchanged and hold, lets the model write, and trains again on one rank: the two loss curves
//! must be equal.

use burn::lr_scheduler::{LrScheduler, LrSchedulerRecord};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;
use tpc::models::{Model, ModelConfig};
use tpc::prelude::*;
use tpc::{InputKind, RankProgram, Session};

const TEXT: &[u8] = include_bytes!("../../data/kjv-new-testament.txt");
const BATCH: usize = 8;
const SEQ: usize = 128;
const SEED: u64 = 1;
const PROMPT: &str = "And Jesus said unto ";
/// How far apart, relatively, two runs of one computation may drift by the order of their sums.
const TOLERANCE: f64 = 1e-3;

/// Trains a small GPT on ranks of this process and compares it with one rank.
#[derive(Parser)]
struct Options {
    /// Training steps.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(2..))]
    steps: u64,
    /// Ranks of the mesh axis `tp`.
    #[arg(long, default_value_t = 2)]
    ranks: usize,
}

/// A seeded stream of numbers (Steele, Lea and Flood's SplitMix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In `0..1`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The text as numbers of its own characters.
struct Text {
    characters: Vec<u8>,
    training: Vec<i64>,
    held_out: Vec<i64>,
}

impl Text {
    fn new(text: &[u8]) -> Self {
        let mut characters = text.to_vec();
        characters.sort_unstable();
        characters.dedup();
        let number = |c: &u8| characters.partition_point(|x| x < c) as i64;
        let (training, held_out) = text.split_at(text.len() / 20 * 19);
        Text {
            training: training.iter().map(number).collect(),
            held_out: held_out.iter().map(number).collect(),
            characters,
        }
    }
}

/// Sequences of characters; the model shifts its labels itself.
#[derive(Batch, Clone, Debug)]
struct Characters {
    /// `[batch, sequence]`.
    ids: Tensor<2, Int>,
}

impl Characters {
    fn of(ids: Vec<i64>) -> Self {
        let rows = ids.len() / SEQ;
        Characters { ids: Tensor::from_data(TensorData::new(ids, [rows, SEQ]), &Device::flex()) }
    }
}

/// Windows of a text at random places.
fn windows(text: &[i64], count: usize, draw: &mut Draw) -> Characters {
    let starts = (0..count).map(|_| draw.below(text.len() - SEQ));
    Characters::of(starts.flat_map(|start| &text[start..start + SEQ]).copied().collect())
}

/// A warm-up, then half a cosine. With 3e-3 after 20 steps and batches of 16 training is chaotic: one gain changed by
/// 1e-6 changes the loss by half a percent 240 steps later, on one rank as well, and curves cannot be compared.
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

type Running = RunningTrainer<Model, Characters, ()>;

/// The same seeds give the same parameters and batches on every mesh.
fn train(
    config: &ModelConfig,
    text: &Text,
    on: (Mesh, Plan),
    steps: u64,
) -> Result<(Running, Vec<f64>), Box<dyn Error>> {
    let (mut draw, begin) = (Draw(SEED), Instant::now());
    let (config, (mesh, plan)) = (config.clone(), on);
    let ranks = format!("{} rank{}", mesh.ranks(), if mesh.ranks() == 1 { "" } else { "s" });
    let optimizer = AdamWConfig::new().with_beta_2(0.99).with_weight_decay(0.1).build();
    let trainer = Trainer::new(move |device| config.build(device), optimizer)
        .on(mesh)
        .plan(plan)
        .seed(SEED)
        .lr(WarmUpAndCosine { step: 0, steps })
        .compile(&windows(&text.training, BATCH, &mut Draw(0)), |model: &Model, Characters { ids }: Characters| {
            model.loss(model.forward(ids.clone().into()), ids)
        })?;
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

    let bar = ProgressBar::new(steps);
    bar.set_style(
        ProgressStyle::with_template("{prefix} [{wide_bar}] {pos}/{len} {msg} eta {eta}")?.progress_chars("=> "),
    );
    bar.set_prefix(ranks);
    let mut losses = Vec::new();
    let begin = Instant::now();
    for step in 1..=steps {
        losses.push(trainer.step(&windows(&text.training, BATCH, &mut draw))?.loss);
        let speed = step as f64 * (BATCH * SEQ) as f64 / begin.elapsed().as_secs_f64();
        let message = format!("loss {:.3}, {speed:.0} tokens/s", losses[losses.len() - 1]);
        if bar.is_hidden() && step % steps.div_ceil(10) == 0 {
            println!("step {step}/{steps}: {message}");
        }
        bar.set_message(message);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let seconds = begin.elapsed().as_secs_f64();
    let speed = steps as f64 * (BATCH * SEQ) as f64 / seconds;
    println!("{steps} steps in {seconds:.1} s, {speed:.0} tokens/s; last loss {:.3}", losses[losses.len() - 1]);
    Ok((trainer, losses))
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// What the communicator of rank 0 counted. The first step is a program of its own; the others share one.
fn print_collectives(session: &Session, steps: u64) {
    let predicted = session.program(0).collectives().count() as u64;
    let (mut executed, mut bytes) = (0, 0.0);
    println!("\nCollectives of rank 0 in one step, as executed:");
    println!(
        "{:>5}  {:<15}{:<6}{:<10}{:>12}{:>14}{:>12}",
        "count", "kind", "axes", "phase", "full KiB", "sent KiB", "ms"
    );
    for c in session.collectives(0) {
        let per_step = |x: f64| x / steps as f64;
        println!(
            "{:>5}  {:<15}{:<6}{:<10}{:>12.1}{:>14.1}{:>12.2}",
            per_step(c.count as f64),
            c.name,
            c.axes,
            c.phase.name(),
            c.full_bytes as f64 / 1024.0,
            per_step(c.wire_bytes) / 1024.0,
            per_step(c.seconds) * 1e3,
        );
        executed += c.count;
        bytes += per_step(c.wire_bytes);
    }
    println!("together {:.2} MiB sent; {} collectives executed, {} predicted", mib(bytes), executed, predicted * steps);
}

/// `model.layers.3.mlp` is one of `model.layers.*.mlp`.
fn with_star(name: &str) -> String {
    let star = |part| if str::parse::<usize>(part).is_ok() { "*" } else { part };
    name.split('.').map(star).collect::<Vec<_>>().join(".")
}

/// Bytes of the inputs of one kind that a rank holds, of all of them, and of those that it holds entirely.
fn held(program: &RankProgram, kind: InputKind) -> (usize, usize, BTreeMap<String, usize>) {
    let (mut local, mut global, mut whole) = (0, 0, BTreeMap::new());
    for input in program.inputs.iter().filter(|i| i.kind == kind) {
        let b = &input.binding;
        let size = b.view.dtype.bytes();
        local += b.view.elements() * size;
        global += b.global.iter().product::<usize>() * size;
        if b.view.shape == b.global {
            *whole.entry(with_star(&input.name)).or_default() += b.view.elements() * size;
        }
    }
    (local, global, whole)
}

fn print_memory(session: &Session) {
    println!("\nMemory per rank, in MiB:");
    println!("{:>4}{:>12}{:>12}{:>12}{:>12}", "rank", "parameters", "optimizer", "arena", "scratch");
    for rank in 0..session.ranks() {
        let [parameters, state] = [InputKind::Parameter, InputKind::State].map(|k| held(session.program(rank), k).0);
        let row =
            [parameters, state, session.allocated_bytes(rank), session.scratch_bytes(rank)].map(|b| mib(b as f64));
        println!("{rank:>4}{:>12.2}{:>12.2}{:>12.2}{:>12.2}", row[0], row[1], row[2], row[3]);
    }
    let (_, global, whole) = held(session.program(0), InputKind::Parameter);
    let exact = (0..session.ranks()).all(|r| session.program(r).arena_bytes == session.allocated_bytes(r));
    println!("arenas hold parameters, optimizer state and all that lives during a step; as predicted: {exact}");
    println!("the whole model has {:.2} MiB of parameters", mib(global as f64));
    println!("parameters that every rank holds entirely ({:.1} KiB):", whole.values().sum::<usize>() as f64 / 1024.0);
    for (name, bytes) in whole {
        println!("  {name} ({:.1} KiB)", bytes as f64 / 1024.0);
    }
}

/// Loss on text that was not trained on.
fn held_out(trainer: &mut Running, text: &Text) -> Result<f64, Box<dyn Error>> {
    let (mut draw, count) = (Draw(SEED + 1), 64);
    let mut next = || windows(&text.held_out, 1, &mut draw);
    let loss = |model: &Model, Characters { ids }: Characters| model.loss(model.forward(ids.clone().into()), ids);
    let mut evaluation = trainer.evaluation(loss, &next())?;
    let mut total = 0.0;
    for _ in 0..count {
        total += trainer.evaluate(&mut evaluation, &next())?.into_scalar::<f64>();
    }
    Ok(total / f64::from(count))
}

/// Goes on with the prompt, one character after the other; what stands after a window's last character is not seen.
fn sample(trainer: &mut Running, text: &Text, length: usize, temperature: f64) -> Result<String, Box<dyn Error>> {
    let window = |seen: &[usize]| {
        let padded = seen.iter().map(|&c| c as i64).chain(std::iter::repeat(0));
        Characters::of(padded.take(SEQ).collect())
    };
    let logits = |model: &Model, Characters { ids }: Characters| model.forward(ids.into());
    let mut next = trainer.evaluation(logits, &window(&[]))?;
    let mut draw = Draw(SEED + 2);
    let mut written: Vec<usize> = PROMPT.bytes().map(|c| text.characters.partition_point(|x| *x < c)).collect();
    for _ in 0..length {
        let seen = &written[written.len().saturating_sub(SEQ)..];
        let logits = trainer.evaluate(&mut next, &window(seen))?.into_data().try_into_vec::<f32>()?;
        let vocabulary = text.characters.len();
        let row = &logits[(seen.len() - 1) * vocabulary..seen.len() * vocabulary];
        let largest = row.iter().fold(f32::MIN, |m, &x| m.max(x));
        let weights: Vec<f64> = row.iter().map(|x| (f64::from(x - largest) / temperature).exp()).collect();
        let mut left = draw.unit() * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        written.push(drawn.unwrap_or(vocabulary - 1));
    }
    Ok(written.iter().map(|&c| char::from(text.characters[c])).collect())
}

/// A small decoder: rotary positions, RMS norms, SwiGLU.
fn config(vocabulary: usize) -> Result<ModelConfig, Box<dyn Error>> {
    let keys = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": SEQ, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "tie_word_embeddings": false, "initializer_range": 0.02,
    });
    Ok(ModelConfig::from_json(&keys, "the main job".as_ref())?)
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let text = Text::new(TEXT);
    let config = config(text.characters.len())?;
    println!(
        "{} characters of text, {} different ones; 4 layers of width 128, batches of {BATCH} sequences of {SEQ}",
        TEXT.len(),
        text.characters.len(),
    );
    let on = (Mesh::new([("tp", options.ranks)])?, Plan::built_in("tp")?);
    let (mut trainer, losses) = train(&config, &text, on, options.steps)?;
    print_collectives(trainer.session(), options.steps - 1);
    print_memory(trainer.session());
    println!("\nLoss on held-out text: {:.3}. The model writes:", held_out(&mut trainer, &text)?);
    println!("---\n{}\n---\n", sample(&mut trainer, &text, 500, 0.7)?);
    drop(trainer);

    let (_, alone) = train(&config, &text, (Mesh::single(), Plan::built_in("none")?), options.steps)?;
    println!("\n{:>6}{:>12}{:>12}{:>12}", "step", format!("{} ranks", options.ranks), "1 rank", "relative");
    let difference = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs();
    let every = losses.len().div_ceil(10);
    for (i, pair) in losses.iter().zip(&alone).enumerate() {
        if i == 0 || (i + 1) % every == 0 {
            println!("{:>6}{:>12.5}{:>12.5}{:>12.1e}", i + 1, pair.0, pair.1, difference(pair));
        }
    }
    let (at, largest) =
        losses.iter().zip(&alone).map(difference).enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    let equal = largest <= TOLERANCE;
    let verdict = if equal { "the curves are equal" } else { "the curves differ" };
    println!("largest relative difference {largest:.1e}, at step {}; {TOLERANCE:.0e} is allowed: {verdict}", at + 1);
    Ok(equal)
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
