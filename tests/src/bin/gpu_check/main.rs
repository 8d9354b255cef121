//! What `tests/gpu/run` executes on a machine with a GPU: golden programs on 1, 2 and 4 ranks of one device, training,
//! and products with epilogues, compared with the CPU; and measurements of kernels, products and training steps.
//!
//! `gpu_check programs`, `gpu_check speed [FILE.jsonl]`, `gpu_check join TPC.jsonl TORCH.jsonl`. Exits with 1 if
//! anything differs. With `TPC_GPU_SMALL` set, the sizes of the second are small, to try it without a GPU.

mod epilogues;
mod join;
mod kernels;
mod steps;

use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::CompileOptions;
use tpc_runtime::RuntimeError;
use tpc_runtime::device::attached::Device;
use tpc_runtime::device::cuda::gpu::{Compiled, Context, Gpu, GpuOptions};
use tpc_runtime::session::Backend;
use tpc_tests::device::{against, beside, follow};
use tpc_tests::golden::{MODELS, WIDE};
use tpc_tests::training::{config, language_model, plan};

/// How far results may differ from the CPU's, relative to a tensor's largest value: for programs in f32, and for
/// programs that compute in bf16.
const ALLOWED: (f64, f64) = (1e-3, 2e-2);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["programs"] => programs(),
        ["speed"] => speed(None).map(|()| true),
        ["speed", file] => speed(Some(Path::new(file))).map(|()| true),
        ["join", ours, theirs] => join::join(Path::new(ours), Path::new(theirs)).map(|()| true),
        _ => {
            eprintln!("usage: gpu_check programs | speed [FILE.jsonl] | join TPC.jsonl TORCH.jsonl");
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

/// Measures single kernels, then steps; the steps are also written to a file.
fn speed(file: Option<&Path>) -> Result<(), RuntimeError> {
    let context = Context::open(0)?;
    println!("device: {} ({})", context.name(), context.arch());
    let small = std::env::var_os("TPC_GPU_SMALL").is_some();
    steps::speed(small, file)?;
    kernels::speed(small)?;
    epilogues::speed(small)
}

/// Golden programs and training on all ranks of one device.
fn programs() -> Result<bool, RuntimeError> {
    let context = Context::open(0)?;
    println!("device: {} ({})", context.name(), context.arch());
    let mut right = epilogues::check(std::env::var_os("TPC_GPU_SMALL").is_some())?;
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
            say(&what, off, ALLOWED.0, start.elapsed().as_secs_f64());
        }
        let (all, narrow) = (golden.programs(), golden.programs_in_bf16());
        let worlds = narrow.iter().map(|(_, ranks, _)| ranks.clone()).collect();
        for ((what, ranks, feed), compiled) in all.into_iter().zip(Compiled::batch(worlds, &GpuOptions::default())?) {
            let start = Instant::now();
            let off = against(&ranks, &feed, Gpu::open(compiled, GpuOptions::default())?, 3)?;
            say(&format!("{what} in bf16"), off, ALLOWED.1, start.elapsed().as_secs_f64());
        }
    }
    let llama = config(json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 256, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": true, "rope_theta": 10000.0,
    }));
    for (name, on) in [("none", ""), ("tp", "tp=2"), ("ddp", "dp=2"), ("tp-ddp", "dp=2,tp=2"), ("fsdp", "dp=4")] {
        let start = Instant::now();
        let options = CompileOptions::for_backend(Backend::Cuda);
        let program = language_model(&llama, TokenBatch::new(4, 32), &plan(name), on, &options);
        let apart = follow(program, 256, &[1e-3; 8], &|ranks| Gpu::new(ranks, GpuOptions::default()))?;
        let off = if apart.loss > apart.parameter.0 { (apart.loss, "loss".into()) } else { apart.parameter };
        say(
            &format!("8 steps of llama, {name} on {on:?}, losses {:?}", apart.losses),
            off,
            ALLOWED.0,
            start.elapsed().as_secs_f64(),
        );
    }
    Ok(right)
}
