//! The generated CUDA kernels of every golden program: that they mean what the CPU device computes
//! (executed on the CPU by `device/cuda/emulate.rs`), and that NVRTC compiles them for an H100 without
//! spilling registers.
//!
//! The second needs NVRTC, which `tests/gpu/nvrtc` fetches; without it the test says that it was
//! skipped, unless `TPC_REQUIRE_NVRTC` is set, as it is in CI.
#![cfg(unix)]

use serde_json::json;
use tpc::pretrained::TokenBatch;
use tpc::program::CompileOptions;
use tpc_ir::DType;
use tpc_ir::program::{Binding, RankProgram};
use tpc_runtime::device::cuda::emit::{Kernels, plan};
use tpc_runtime::device::cuda::emulate::{Emulator, Order};
use tpc_runtime::device::cuda::nvrtc::Nvrtc;
use tpc_runtime::element::decode;
use tpc_runtime::{LaunchOptions, RuntimeError, Session};
use tpc_tests::device::{follow, input_bytes};
use tpc_tests::golden::{Feed, Golden, MESHES, MODELS, step};
use tpc_tests::inputs;
use tpc_tests::training::{config, language_model, plan as plan_of};

/// Wide enough for packs, warps and blocks that share rows.
const WIDE: Golden = Golden {
    name: "wide",
    compile: |plan, on| {
        let llama = config(json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 160, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
        }));
        step(&llama, plan, on)
    },
    snapshots: &[("tp", "tp=2")],
};

/// The rank programs of a golden on all its meshes, and values for their inputs.
fn programs(golden: &Golden) -> Vec<(String, Vec<RankProgram>, Feed)> {
    let meshes = golden.snapshots.iter().chain(MESHES.iter().filter(|m| !golden.snapshots.contains(m)));
    let compile = |(plan, on): &(&str, &str)| {
        let (stages, constants) = (golden.compile)(plan, on);
        let feed = inputs(&stages.captured, 8, &constants);
        (format!("{} {plan} on {on:?}", golden.name), stages.ranks, feed)
    };
    meshes.map(compile).collect()
}

/// The dense bytes of all inputs, and of all outputs if asked for.
fn bytes(session: &Session, rank: usize, outputs: bool) -> Vec<Vec<u8>> {
    let p = session.program(rank);
    let inputs = p.inputs.iter().map(|i| input_bytes(session, rank, &i.name));
    let outputs = p.outputs.iter().filter(|_| outputs).map(|o| session.read_rank(&o.kind, rank).unwrap());
    inputs.chain(outputs).collect()
}

/// The largest difference, relative to the largest value.
fn apart(got: &[u8], want: &[u8], dtype: DType) -> f64 {
    if !dtype.is_float() {
        return if got == want { 0.0 } else { f64::INFINITY };
    }
    let (got, want) = (decode(dtype, got), decode(dtype, want));
    let largest = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    let differs =
        |(x, y): (&f64, &f64)| if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() / largest };
    // NaN where there is none must not disappear in a maximum.
    got.iter().zip(&want).map(differs).fold(0.0, |m, d| if d >= m || d.is_nan() { d } else { m })
}

fn means_the_same(golden: &Golden) {
    let all = programs(golden);
    let mut devices = Emulator::batch(all.iter().map(|(_, ranks, _)| ranks.clone()).collect()).unwrap();
    let (mut ranks, mut worst) = (0, 0.0f64);
    for ((what, programs, feed), device) in all.into_iter().zip(&mut devices) {
        let mut session = Session::launch(programs.clone(), LaunchOptions::default()).unwrap();
        let names: Vec<String> = programs[0].inputs.iter().map(|i| i.name.clone()).collect();
        for name in &names {
            session.write_f64(name, &feed[name].data).unwrap();
        }
        for order in [Order::Forwards, Order::Backwards] {
            for (rank, p) in programs.iter().enumerate() {
                for (input, bytes) in p.inputs.iter().zip(bytes(&session, rank, false)) {
                    device.write(rank, &input.binding, &bytes);
                }
            }
            session.step().unwrap();
            device.step(order).unwrap();
            for (rank, p) in programs.iter().enumerate() {
                let inputs = p.inputs.iter().map(|i| (i.name.clone(), &i.binding));
                let outputs = p.outputs.iter().map(|o| (format!("{:?}", o.kind), &o.binding));
                let bindings: Vec<(String, &Binding)> = inputs.chain(outputs).collect();
                for ((name, binding), want) in bindings.into_iter().zip(bytes(&session, rank, true)) {
                    let off = apart(&device.read(rank, binding), &want, binding.view.dtype);
                    worst = worst.max(off);
                    assert!(off <= 5e-6, "{what}, rank {rank}, {name}: off by {off:e}");
                }
            }
        }
        ranks += programs.len();
    }
    println!(
        "{}: {ranks} rank programs, two steps each; the largest difference is {worst:e} of a tensor's largest",
        golden.name
    );
}

macro_rules! means {
    ($($test:ident = $golden:expr;)+) => { $(
        #[test]
        fn $test() {
            means_the_same(&$golden);
        }
    )+ };
}

means! {
    mlp_means_the_same = MODELS[0];
    mlp_training_means_the_same = MODELS[1];
    llama_means_the_same = MODELS[2];
    llama_training_means_the_same = MODELS[3];
    gpt2_means_the_same = MODELS[4];
    bert_means_the_same = MODELS[5];
    wide_llama_training_means_the_same = WIDE;
}

/// Six steps of AdamW on an emulated device that keeps its own parameters and state.
#[test]
fn training_follows_the_cpu() {
    let llama = config(json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 32, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": true, "rope_theta": 10000.0,
    }));
    for (name, on) in [("none", ""), ("tp", "tp=2"), ("ddp", "dp=2"), ("tp-ddp", "dp=2,tp=2"), ("fsdp", "dp=4")] {
        let options = CompileOptions::default();
        let program = language_model(&llama, TokenBatch::new(4, 8), &plan_of(name), on, &options);
        let device = |ranks| Emulator::new(ranks).map_err(|e| RuntimeError::Emulated(e.to_string()));
        let apart = follow(program, 32, &[1e-2; 6], &device).unwrap_or_else(|e| panic!("{name} on {on}: {e}"));
        println!("{name} on {on:?}: {apart:?}");
        assert!(apart.loss < 1e-5 && apart.parameter.0 < 2e-4, "{name} on {on}: {apart:?}");
    }
}

#[test]
fn kernels_compile_for_an_h100_and_spill_nothing() {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(e) if std::env::var_os("TPC_REQUIRE_NVRTC").is_none() => {
            println!("skipped: {e}");
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let mut kernels = Kernels::default();
    let mut ranks = 0;
    for golden in MODELS.iter().chain([&WIDE]) {
        for (_, programs, _) in programs(golden) {
            kernels = plan(&programs, kernels).unwrap().kernels;
            ranks += programs.len();
        }
    }
    let (_, usage) = nvrtc.compile(&kernels.source(), "sm_90").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(usage.len(), kernels.list().len());
    let spilling: Vec<String> = usage
        .iter()
        .filter(|u| u.spilled > 0)
        .map(|u| {
            let source = kernels.list().iter().find(|k| k.name == u.kernel).map(|k| k.source.as_str());
            format!("{u:?}\n{}", source.unwrap_or_default())
        })
        .collect();
    let registers = usage.iter().map(|u| u.registers).max().unwrap_or(0);
    println!(
        "{} kernels of {ranks} rank programs: {registers} registers at most, {} spill",
        usage.len(),
        spilling.len()
    );
    assert!(spilling.is_empty(), "{}", spilling.join("\n"));
}
