//! The generated CUDA kernels of every golden program: they compute what the CPU device computes (executed on the CPU
//! by `device/cuda/emulate.rs`), and NVRTC compiles them for an H100 without spilling registers.
//!
//! The second check needs NVRTC, which `tests/gpu/nvrtc` downloads. Without it the test reports that it was skipped,
//! unless `TPC_REQUIRE_NVRTC` is set, as in CI.
#![cfg(unix)]

use serde_json::json;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::CompileOptions;
use tpc_ir::program::Action;
use tpc_runtime::RuntimeError;
use tpc_runtime::device::cuda::emit::{Item, Kernels, plan};
use tpc_runtime::device::cuda::emulate::{Emulator, Order};
use tpc_runtime::device::cuda::nvrtc::Nvrtc;
use tpc_tests::device::{against, beside, follow};
use tpc_tests::golden::{Golden, MODELS, WIDE};
use tpc_tests::training::{config, language_model, plan as plan_of};

/// Whether kernels can be executed here. If not, the test reports that it is skipped, except in CI.
fn can_emulate() -> bool {
    let can = Emulator::is_available() || std::env::var_os("TPC_REQUIRE_NVRTC").is_some();
    if !can {
        println!("skipped: g++ is not installed");
    }
    can
}

fn means_the_same(golden: &Golden) {
    if !can_emulate() {
        return;
    }
    let all = golden.programs();
    let mut devices = Emulator::batch(all.iter().map(|(_, ranks, _)| ranks.clone()).collect()).unwrap();
    let (mut ranks, mut worst) = (0, 0.0f64);
    for ((what, programs, feed), device) in all.into_iter().zip(&mut devices) {
        ranks += programs.len();
        let mut step = |device: &mut Emulator, time: usize| {
            device.step([Order::Forward, Order::Reverse][time]).unwrap_or_else(|e| panic!("{what}: {e}"));
            Ok(())
        };
        let off = beside(&programs, &feed, device, 2, &mut step).unwrap();
        assert!(off.0 <= 5e-6, "{what}: off by {off:?}");
        worst = worst.max(off.0);
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

/// Programs that compute in bf16 are close to the reference in f32; the GPU check relies on this.
#[test]
fn bf16_programs_are_near_the_reference_in_f32() {
    if !can_emulate() {
        return;
    }
    for golden in MODELS.iter().chain([&WIDE]) {
        let (all, narrow) = (golden.programs(), golden.programs_in_bf16());
        let devices = Emulator::batch(narrow.iter().map(|(_, ranks, _)| ranks.clone()).collect()).unwrap();
        for ((what, reference, feed), device) in all.into_iter().zip(devices) {
            let off = against(&reference, &feed, device, 2).unwrap_or_else(|e| panic!("{what}: {e}"));
            println!("{what} in bf16: off by {:.1e} ({})", off.0, off.1);
            assert!(off.0 > 1e-6, "{what} does not compute in bf16");
            assert!(off.0 <= 2e-2, "{what} in bf16: off by {off:?}");
        }
    }
}

/// Six steps of AdamW on an emulated device that keeps its own parameters and state.
#[test]
fn training_follows_the_cpu() {
    if !can_emulate() {
        return;
    }
    let llama = config(json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 32, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": true, "rope_theta": 10000.0,
    }));
    for (name, on) in [("none", ""), ("tp", "tp=2"), ("ddp", "dp=2"), ("tp-ddp", "dp=2,tp=2"), ("fsdp", "dp=4")] {
        let options = CompileOptions::for_cpu();
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
        for (_, programs, _) in golden.programs() {
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

/// A model of a size that is trained on such a device: its kernels compile without spills, and cublasLt accepts all of
/// its large products.
#[test]
fn kernels_of_a_large_model_compile() {
    let llama = config(json!({
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 2, "vocab_size": 32000, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
    }));
    for (name, on, narrow) in [("none", "", false), ("tp", "tp=4", true), ("fsdp", "dp=2", true)] {
        let mut options = CompileOptions::for_cpu();
        options.step.precision = narrow.then(Default::default);
        let program = language_model(&llama, TokenBatch::new(4, 1024), &plan_of(name), on, &options);
        let first = vec![program.steady.ranks.into_vec().remove(0)];
        let plan = plan(&first, Kernels::default()).unwrap();
        let (mut all, mut taken, mut packed) = (0, 0, 0);
        for (step, item) in &plan.ranks[0].items {
            let Item::Product { library, .. } = item else { continue };
            let Action::Contract(c) = &first[0].steps[*step].action else { continue };
            let work: usize = [&c.batch, &c.m, &c.n, &c.k].into_iter().flatten().map(|d| d.size).product();
            all += 1;
            taken += usize::from(!library.is_empty());
            packed += usize::from(library.first().is_some_and(|p| !p.packing.is_empty()));
            assert!(!library.is_empty() || work < 1 << 24, "{name} on {on:?}: {c:?}");
        }
        let (scratch, arena) = (plan.ranks[0].scratch_bytes >> 20, first[0].arena_bytes >> 20);
        println!(
            "{name} on {on:?}, narrow {narrow}: {} kernels, {} launches; cublasLt takes {taken} of {all} products, {packed} packed; \
             {scratch} MiB of scratch behind {arena} MiB",
            plan.kernels.list().len(),
            plan.ranks[0].items.len()
        );
        let Ok(nvrtc) = Nvrtc::load() else { continue };
        let (_, usage) = nvrtc.compile(&plan.kernels.source(), "sm_90").unwrap_or_else(|e| panic!("{e}"));
        if let Some(u) = usage.iter().find(|u| u.spilled > 0) {
            let source = plan.kernels.list().iter().find(|k| k.name == u.kernel).map(|k| k.source.as_str());
            panic!("{u:?}\n{}", source.unwrap_or_default());
        }
        println!("    {} registers at most, nothing spills", usage.iter().map(|u| u.registers).max().unwrap_or(0));
    }
}
