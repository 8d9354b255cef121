//! Measures steps: one block of llama-8B as a rank of a tensor-parallel plan executes it, and a whole training step of
//! llama-1B.
//!
//! A rank of several runs alone, without its collectives (`tpc_tests::block::alone`). `tests/gpu/peer.py` measures the same in PyTorch.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;
use tpc_compiler::models::{DecoderConfig, ModelConfig};
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::CompileOptions;
use tpc_ir::InputKind;
use tpc_ir::program::{Action, RankProgram};
use tpc_passes::options::precision::Precision;
use tpc_runtime::RuntimeError;
use tpc_runtime::device::attached::Device;
use tpc_runtime::device::cuda::gpu::{Context, Gpu, GpuOptions, Timing};
use tpc_runtime::element::encode;
use tpc_runtime::session::Backend;
use tpc_tests::block::{alone, block};
use tpc_tests::training::{config, language_model, plan, uniform};

/// Dense bf16 operations per second of an H100 or H200 SXM, the peak for shares.
const PEAK: f64 = 989e12;
/// Number of measured steps, after some warm-up steps.
const STEPS: usize = 10;
/// Share of free device memory that a step may use: the library's workspace and the context need some.
const ROOM: f64 = 0.92;

/// Sizes of a llama.
#[derive(Clone, Copy)]
struct Shape {
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    layers: usize,
    vocab: usize,
    seq: usize,
}

const BLOCK_8B: Shape = Shape { hidden: 4096, inner: 14336, heads: 32, kv_heads: 8, layers: 1, vocab: 8, seq: 4096 };
const MODEL_1B: Shape =
    Shape { hidden: 2048, inner: 8192, heads: 32, kv_heads: 8, layers: 16, vocab: 32768, seq: 2048 };

impl Shape {
    /// A miniature version.
    fn small(self) -> Self {
        let layers = self.layers.min(2);
        Shape { hidden: 128, inner: 256, heads: 16, kv_heads: 8, layers, vocab: self.vocab.min(64), seq: 32 }
    }

    fn config(&self) -> ModelConfig {
        config(json!({
            "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.inner,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "num_hidden_layers": self.layers, "vocab_size": self.vocab, "rms_norm_eps": 1e-5,
            "max_position_embeddings": self.seq, "hidden_act": "silu", "tie_word_embeddings": false,
            "rope_theta": 500000.0,
        }))
    }

    /// Number of weights of one block that are multiplied with each token.
    fn block_weights(&self) -> f64 {
        let keys = self.hidden / self.heads * self.kv_heads;
        (self.hidden * (2 * self.hidden + 2 * keys + 3 * self.inner)) as f64
    }

    /// Operations of the forward and backward pass of this many sequences: 6 per weight and token, plus those of
    /// attention, for which all scores count although half of them are masked (as in PaLM's and nanoGPT's definition).
    fn flops(&self, batch: usize, head: bool) -> f64 {
        let tokens = (batch * self.seq) as f64;
        let head = if head { (self.hidden * self.vocab) as f64 } else { 0.0 };
        let weights = self.layers as f64 * self.block_weights() + head;
        6.0 * weights * tokens + 12.0 * (self.layers * self.seq * self.hidden) as f64 * tokens
    }
}

/// Writes values into every input: small numbers for parameters and data, tokens, zeros for the optimizer's state.
/// Products of zeros would take less power than real ones and be faster.
fn fill(gpu: &mut Gpu, vocab: usize) -> Result<(), RuntimeError> {
    const POOL: usize = 1 << 16;
    let mut draw = uniform("values");
    let pool: Vec<f64> = (0..POOL).map(|_| draw()).collect();
    for input in gpu.programs()[0].inputs.clone() {
        let (dtype, count) = (input.binding.view.dtype, input.binding.view.elements());
        let value = |x: f64| match input.kind {
            InputKind::State => 0.0,
            _ if !dtype.is_float() => (x * vocab as f64).floor(),
            InputKind::Scalar => 1e-3,
            InputKind::Data => 2.0 * x - 1.0,
            _ => 0.04 * (x - 0.5),
        };
        let tile = encode(dtype, &pool.iter().map(|&x| value(x)).collect::<Vec<_>>());
        let bytes: Vec<u8> = tile.iter().copied().cycle().take(count * dtype.bytes()).collect();
        gpu.write(0, &input.binding, &bytes)?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}

/// Microseconds of products, of attention, and of everything else.
fn shares(program: &RankProgram, timings: &[Timing]) -> [f64; 3] {
    let mut taken = [0.0; 3];
    for t in timings {
        let kind = match &program.steps[t.step].action {
            _ if t.label.starts_with("attention") => 1,
            Action::Contract(_) => 0,
            _ => 2,
        };
        taken[kind] += t.microseconds;
    }
    taken
}

/// The labels that take longest, without their numbers, so that layers add up.
fn longest(timings: &[Timing]) -> String {
    let mut of: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for t in timings {
        let label: String = t.label.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
        let entry = of.entry(label.chars().take(70).collect()).or_default();
        *entry = (entry.0 + t.microseconds, entry.1 + 1);
    }
    let mut of: Vec<_> = of.into_iter().collect();
    of.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    let line = |(label, (us, n)): &(String, (f64, usize))| format!("    {us:9.0} us in {n:4} of `{label}`");
    of.iter().take(8).map(line).collect::<Vec<_>>().join("\n")
}

/// A measurement.
struct Row {
    name: String,
    program: RankProgram,
    tokens: usize,
    flops: f64,
    vocab: usize,
    /// What the other side has to know.
    shape: Value,
}

/// Measures a row kernel by kernel and as a graph, and every action separately.
fn measure(row: &Row, file: &mut Option<File>) -> Result<(), RuntimeError> {
    let start = Instant::now();
    let mut gpu = Gpu::new(vec![row.program.clone()], GpuOptions { graph: false, ..GpuOptions::default() })?;
    fill(&mut gpu, row.vocab)?;
    let prepared = start.elapsed().as_secs_f64();
    gpu.step()?;
    gpu.time_steps(2)?;
    let eager = median(gpu.time_steps(STEPS)?);
    let timings = gpu.profile()?;
    let [gemm, attention, rest] = shares(&row.program, &timings);
    gpu.use_graph();
    gpu.time_steps(2)?;
    let graph = median(gpu.time_steps(STEPS)?);
    let sum = (gemm + attention + rest) / 1e3;
    let share = |part: f64| 100.0 * part / 1e3 / sum;
    let (rate, mfu) = (row.tokens as f64 / graph * 1e3, 100.0 * row.flops / (graph * 1e-3 * PEAK));
    println!(
        "| {} | {eager:.2} | {graph:.2} | {rate:.0} | {mfu:.1} | {:.0} / {:.0} / {:.0} | {sum:.2} | {:.1} |",
        row.name,
        share(gemm),
        share(attention),
        share(rest),
        100.0 * (graph - sum) / graph,
    );
    println!("{}", longest(&timings));
    println!("    prepared in {prepared:.1} s, {} MiB on the device", gpu.allocated_bytes() >> 20);
    if let Some(file) = file {
        let line = json!({
            "row": row.name, "who": "tpc", "eager_ms": eager, "graph_ms": graph, "tokens_per_s": rate, "mfu": mfu,
            "gemm_ms": gemm / 1e3, "attention_ms": attention / 1e3, "rest_ms": rest / 1e3, "actions": timings.len(),
            "shape": row.shape,
        });
        let written = writeln!(file, "{line}");
        written.map_err(|e| RuntimeError::Launch(format!("the file of results: {e}")))?;
    }
    Ok(())
}

fn in_bf16() -> CompileOptions {
    let mut options = CompileOptions::for_backend(Backend::Cuda);
    options.step.precision = Some(Precision::default());
    options
}

fn block_row(shape: Shape, tp: usize) -> Row {
    let ModelConfig::Decoder(config) = shape.config() else { unreachable!("a llama was configured") };
    let config: DecoderConfig = config;
    let (name, on) = if tp == 1 { ("none", String::new()) } else { ("tp", format!("tp={tp}")) };
    let program = block(&config, [1, shape.seq], &plan(name), &on, &in_bf16());
    Row {
        name: format!("block tp={tp}"),
        program: alone(&program.stages.ranks[0]),
        tokens: shape.seq,
        flops: shape.flops(1, false) / tp as f64,
        vocab: shape.vocab,
        shape: json!({"tp": tp, "batch": 1, "seq": shape.seq}),
    }
}

fn model_row(shape: Shape, batch: usize) -> Row {
    let tokens = TokenBatch::new(batch, shape.seq);
    let program = language_model(&shape.config(), tokens, &plan("none"), "", &in_bf16());
    Row {
        name: "llama-1b step".into(),
        program: program.steady.ranks[0].clone(),
        tokens: batch * shape.seq,
        flops: shape.flops(batch, true),
        vocab: shape.vocab,
        shape: json!({"batch": batch, "seq": shape.seq}),
    }
}

/// Measures all rows: prints a table, and writes a line of JSON for each to a file, if given.
pub fn speed(small: bool, file: Option<&Path>) -> Result<(), RuntimeError> {
    let size = |shape: Shape| if small { shape.small() } else { shape };
    let mut file = file
        .map(File::create)
        .transpose()
        .map_err(|e| RuntimeError::Launch(format!("the file of results cannot be written: {e}")))?;
    println!(
        "bf16 compute, f32 parameters; a block is forward and backward of one rank of a llama-8B block, alone: its collectives are \
         excluded. MFU is of {:.0} TFLOP/s, attention counted unmasked.\n\
         | row | ms kernel by kernel | ms as a graph | tokens/s | MFU % | % of time in products / attention / rest | \
         ms of all kernels | % of the graph between them |\n|---|---|---|---|---|---|---|---|",
        PEAK / 1e12
    );
    for tp in [1, 2, 4, 8] {
        measure(&block_row(size(BLOCK_8B), tp), &mut file)?;
    }
    let free = Context::open(0)?.memory()?.0 as f64 * ROOM;
    // The largest batch whose step fits.
    let fitting = [4, 2, 1].into_iter().map(|batch| model_row(size(MODEL_1B), batch));
    match fitting.into_iter().find(|row| (row.program.arena_bytes as f64) < free) {
        Some(row) => measure(&row, &mut file)?,
        None => println!("the step of llama-1b does not fit into {:.0} MiB", free / f64::from(1 << 20)),
    }
    println!();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_published_sizes() {
        // 218.1 million weights in a block of Llama 3 8B.
        assert_eq!(BLOCK_8B.block_weights(), 218_103_808.0);
        let weights = MODEL_1B.layers as f64 * MODEL_1B.block_weights() + (2048 * 32768) as f64;
        let attention = 12.0 * 16.0 * 2048.0 * 2048.0 * 8192.0;
        assert_eq!(MODEL_1B.flops(4, true), 6.0 * weights * 8192.0 + attention);
    }

    /// Planning a step takes seconds, and determines its arena.
    #[test]
    fn every_row_fits_into_an_h100() {
        let mib = |row: &Row| row.program.arena_bytes >> 20;
        let blocks = [1, 2, 4, 8].map(|tp| mib(&block_row(BLOCK_8B, tp)));
        assert!(blocks[0] < 10 << 10 && blocks.windows(2).all(|w| w[1] < w[0]), "{blocks:?} MiB");
        let step = mib(&model_row(MODEL_1B, 2));
        assert!(step < 70 << 10, "{step} MiB");
    }

    #[test]
    fn times_go_to_products_attention_and_the_rest() {
        let row = block_row(BLOCK_8B.small(), 2);
        let timing = |(step, s): (usize, &tpc_ir::program::Step)| Timing {
            rank: 0,
            step,
            label: s.label.to_string(),
            microseconds: 1.0,
        };
        let timings: Vec<Timing> = row.program.steps.iter().enumerate().map(timing).collect();
        let [gemm, attention, rest] = shares(&row.program, &timings);
        assert_eq!(gemm + attention + rest, timings.len() as f64);
        assert!(gemm >= 3.0 * 7.0 && rest > 0.0, "{gemm} {attention} {rest}");
    }
}
