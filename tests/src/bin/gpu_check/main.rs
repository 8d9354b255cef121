//! What `tests/gpu/run` executes on a machine with a GPU: golden programs on 1, 2 and 4 ranks of one
//! device and training, against the CPU; and how fast kernels, products and a training step are.
//!
//! `gpu_check programs`, `gpu_check speed`. Exits with 1 if anything differs. With `TPC_GPU_SMALL` set the
//! sizes of the second are small, to try it where no GPU is.

use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;
use tpc::pretrained::TokenBatch;
use tpc::program::CompileOptions;
use tpc_ir::program::{
    ALIGNMENT, Action, Buffer, BufferId, Contract, ContractDim, Instruction, Loop, RankProgram, Step, View,
};
use tpc_ir::{DType, MapFn, Mesh, Phase, ReduceOp};
use tpc_runtime::RuntimeError;
use tpc_runtime::device::attached::Device;
use tpc_runtime::device::cuda::gpu::{Compiled, Context, Gpu, GpuOptions};
use tpc_tests::device::{beside, follow};
use tpc_tests::golden::{MODELS, WIDE};
use tpc_tests::training::{config, language_model, plan};

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let done = match what.as_str() {
        "programs" => programs(),
        "speed" => speed().map(|()| true),
        _ => {
            eprintln!("usage: gpu_check programs|speed");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Golden programs and training on all ranks of one device.
fn programs() -> Result<bool, RuntimeError> {
    let context = Context::open(0)?;
    println!("device: {} ({})", context.name(), context.arch());
    let mut right = true;
    let mut say = |what: &str, off: (f64, String), allowed: f64, seconds: f64| {
        let fits = off.0 <= allowed;
        right &= fits;
        let verdict = if fits { "ok" } else { "WRONG" };
        println!("{verdict:5} {what}: off by {:.1e} {} ({seconds:.2} s)", off.0, if fits { "" } else { &off.1 });
    };
    for golden in MODELS.iter().chain([&WIDE]) {
        let all = golden.programs();
        let worlds = all.iter().map(|(_, ranks, _)| ranks.clone()).collect();
        let compiled = Compiled::batch(worlds, &GpuOptions::default())?;
        for ((what, ranks, feed), compiled) in all.into_iter().zip(compiled) {
            let start = Instant::now();
            let mut device = Gpu::open(compiled, GpuOptions::default())?;
            // The second and third step as a graph.
            let off = beside(&ranks, &feed, &mut device, 3, &mut |d, _| d.step().map(drop))?;
            say(&what, off, 1e-5, start.elapsed().as_secs_f64());
        }
    }
    let llama = config(json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 256, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": true, "rope_theta": 10000.0,
    }));
    for (name, on) in [("none", ""), ("tp", "tp=2"), ("ddp", "dp=2"), ("tp-ddp", "dp=2,tp=2"), ("fsdp", "dp=4")] {
        let start = Instant::now();
        let options = CompileOptions::default();
        let program = language_model(&llama, TokenBatch::new(4, 32), &plan(name), on, &options);
        let apart = follow(program, 256, &[1e-3; 8], &|ranks| Gpu::new(ranks, GpuOptions::default()))?;
        let off = if apart.loss > apart.parameter.0 { (apart.loss, "loss".into()) } else { apart.parameter };
        say(
            &format!("8 steps of llama, {name} on {on:?}, losses {:?}", apart.losses),
            off,
            2e-4,
            start.elapsed().as_secs_f64(),
        );
    }
    Ok(right)
}

/// A program of one rank with some buffers.
struct Small {
    program: RankProgram,
}

impl Small {
    fn new() -> Self {
        Small { program: RankProgram { mesh: Mesh::single(), ..RankProgram::default() } }
    }

    fn buffer(&mut self, dtype: DType, shape: &[usize]) -> View {
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        let p = &mut self.program;
        let id = BufferId(p.buffers.len() as u32);
        p.buffers.push(Buffer { offset: p.arena_bytes, bytes, persistent: true, label: "x".into() });
        p.arena_bytes += bytes.next_multiple_of(ALIGNMENT);
        View::dense(id, dtype, shape.to_vec())
    }

    fn action(&mut self, action: Action) {
        self.program.steps.push(Step { action, phase: Phase::Forward, label: "step".into() });
    }

    /// Seconds of a step, as a graph, of many at a time.
    fn seconds(self, options: &GpuOptions) -> Result<f64, RuntimeError> {
        let mut gpu = Gpu::new(vec![self.program], options.clone())?;
        (0..3).try_for_each(|_| gpu.step().map(drop))?;
        let mut steps = 4;
        loop {
            let start = Instant::now();
            for _ in 0..steps {
                gpu.enqueue_step()?;
            }
            gpu.finish()?;
            let taken = start.elapsed().as_secs_f64();
            if taken > 0.2 {
                return Ok(taken / steps as f64);
            }
            steps *= 2;
        }
    }
}

fn load(v: &View) -> Instruction {
    Instruction::Load { view: v.clone(), strides: v.strides.clone() }
}

fn store(v: &View, arg: usize) -> Instruction {
    Instruction::Store { view: v.clone(), strides: v.strides.clone(), arg, accumulate: None }
}

fn map(f: MapFn, args: &[usize]) -> Instruction {
    Instruction::Map { f, args: args.to_vec(), dtype: DType::F32 }
}

fn speed() -> Result<(), RuntimeError> {
    let context = Context::open(0)?;
    println!("device: {} ({})", context.name(), context.arch());
    let options = GpuOptions::default();
    let small = std::env::var_os("TPC_GPU_SMALL").is_some();
    let size = |n: usize| if small { n.div_ceil(64) } else { n };
    println!("| loop | shape | GB/s |\n|---|---|---|");
    for dtype in [DType::F32, DType::BF16] {
        let (rows, n) = (size(8192), size(4096));
        let bytes = (rows * n * dtype.bytes()) as f64;
        let mut add = Small::new();
        let (x, y, z) = (add.buffer(dtype, &[rows, n]), add.buffer(dtype, &[rows, n]), add.buffer(dtype, &[rows, n]));
        let body = vec![load(&x), load(&y), map(MapFn::Add, &[0, 1]), store(&z, 2)];
        add.action(Action::Loop(Loop { dims: vec![rows, n], body }));
        println!("| add | {dtype}[{rows}, {n}] | {:.0} |", 3.0 * bytes / add.seconds(&options)? / 1e9);
        let mut softmax = Small::new();
        let (x, y) = (softmax.buffer(dtype, &[rows, n]), softmax.buffer(dtype, &[rows, n]));
        let reduce = |op, arg| Instruction::ReduceRow { op, arg, dtype: DType::F32 };
        let body = vec![
            load(&x),
            reduce(ReduceOp::Max, 0),
            map(MapFn::Sub, &[0, 1]),
            map(MapFn::Exp, &[2]),
            reduce(ReduceOp::Sum, 3),
            map(MapFn::Div, &[3, 4]),
            store(&y, 5),
        ];
        softmax.action(Action::Loop(Loop { dims: vec![rows, n], body }));
        println!("| softmax | {dtype}[{rows}, {n}] | {:.0} |", 2.0 * bytes / softmax.seconds(&options)? / 1e9);
        let mut columns = Small::new();
        let (x, y) = (columns.buffer(dtype, &[rows, n]), columns.buffer(DType::F32, &[n]));
        let accumulate = Instruction::Store { view: y, strides: vec![0, 1], arg: 0, accumulate: Some(ReduceOp::Sum) };
        columns.action(Action::Loop(Loop { dims: vec![rows, n], body: vec![load(&x), accumulate] }));
        println!("| sum over rows | {dtype}[{rows}, {n}] | {:.0} |", bytes / columns.seconds(&options)? / 1e9);
        let mut transpose = Small::new();
        let (x, y) = (transpose.buffer(dtype, &[rows, n]), transpose.buffer(dtype, &[n, rows]));
        let from = View { shape: vec![n, rows], strides: vec![1, n as isize], ..x };
        transpose.action(Action::Copy { from, to: y });
        println!("| transpose | {dtype}[{rows}, {n}] | {:.0} |", 2.0 * bytes / transpose.seconds(&options)? / 1e9);
    }
    println!("\n| product | types | TFLOP/s cublasLt | TFLOP/s generated |\n|---|---|---|---|");
    for (m, n, k) in [(4096, 4096, 4096), (8192, 8192, 8192), (16, 4096, 4096)] {
        let (m, n, k) = (size(m), size(n), size(k));
        for dtype in [DType::BF16, DType::F32] {
            let product = || {
                let mut p = Small::new();
                let (left, right, out) = (p.buffer(dtype, &[m, k]), p.buffer(dtype, &[k, n]), p.buffer(dtype, &[m, n]));
                let dim = |size: usize, left: usize, right: usize, out: usize| ContractDim {
                    size,
                    left: left as isize,
                    right: right as isize,
                    out: out as isize,
                };
                let (m, k, n) = (vec![dim(m, k, 0, n)], vec![dim(k, 1, n, 0)], vec![dim(n, 0, 1, 1)]);
                p.action(Action::Contract(Contract { left, right, out, batch: vec![], m, n, k, scale: 1.0 }));
                p
            };
            let work = 2.0 * m as f64 * n as f64 * k as f64 / 1e12;
            let library = work / product().seconds(&options)?;
            let generated = work / product().seconds(&GpuOptions { library: false, ..options.clone() })?;
            println!("| {m} × {n} × {k} | {dtype} | {library:.1} | {generated:.1} |");
        }
    }
    println!(
        "\n| training step | ranks on the device | ms kernel by kernel | ms as a graph | tokens/s |\n|---|---|---|---|---|"
    );
    let llama = config(json!({
        "model_type": "llama", "hidden_size": if small { 64 } else { 1024 }, "intermediate_size": size(2816),
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 4, "vocab_size": size(8192),
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1024, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }));
    for (name, on) in [("none", ""), ("tp", "tp=2"), ("fsdp", "dp=2")] {
        let batch = TokenBatch::new(4, size(512));
        let program = language_model(&llama, batch, &plan(name), on, &CompileOptions::default());
        let ranks = program.steady.ranks;
        let time = |graph: bool| -> Result<f64, RuntimeError> {
            let mut gpu = Gpu::new(ranks.clone(), GpuOptions { graph, ..options.clone() })?;
            (0..3).try_for_each(|_| gpu.step().map(drop))?;
            let start = Instant::now();
            for _ in 0..10 {
                gpu.enqueue_step()?;
            }
            gpu.finish()?;
            Ok(start.elapsed().as_secs_f64() / 10.0)
        };
        let (eager, graph) = (time(false)?, time(true)?);
        let tokens = (4 * size(512)) as f64 / graph;
        let count = ranks.len();
        println!("| llama 1024×4, {name} {on} | {count} | {:.2} | {:.2} | {tokens:.0} |", eager * 1e3, graph * 1e3);
    }
    Ok(())
}
