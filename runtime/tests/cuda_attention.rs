//! Attention as generated CUDA kernels (`device/cuda/emit/attention/`), executed on the CPU as in `cuda.rs`,
//! against its specification in f64.
#![cfg(unix)]

#[path = "support/attention.rs"]
mod attention;
mod support;

use attention::Case;
use tpc_ir::program::RankProgram;
use tpc_runtime::device::cuda::emit::{Kernels, plan};
use tpc_runtime::device::cuda::emulate::{Emulator, Order};
use tpc_runtime::device::cuda::nvrtc::Nvrtc;

/// Executes cases on the emulated device, with threads and blocks running forwards and backwards.
fn emulate(cases: &[Case]) {
    let worlds: Vec<Vec<RankProgram>> = cases.iter().map(|c| vec![c.program.clone()]).collect();
    let start = std::time::Instant::now();
    let mut devices = Emulator::batch(worlds).unwrap();
    println!("{} kernels compiled in {:.1} s", devices[0].plan().kernels.list().len(), start.elapsed().as_secs_f64());
    for (case, device) in cases.iter().zip(&mut devices) {
        for order in [Order::Forwards, Order::Backwards] {
            let start = std::time::Instant::now();
            for (input, bytes) in case.program.inputs.iter().zip(&case.inputs) {
                device.write(0, &input.binding, bytes);
            }
            device.step(order).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let got: Vec<Vec<u8>> = case.program.outputs.iter().map(|o| device.read(0, &o.binding)).collect();
            println!("{:.2} s {order:?} {}", start.elapsed().as_secs_f64(), case.name);
            attention::check(case, &got, &format!("{order:?}"));
        }
    }
}

#[test]
fn attention_means_the_same() {
    let mut cases = attention::cases();
    if let Ok(only) = std::env::var("ONLY") {
        cases.retain(|c| c.name.contains(&only));
    }
    if let Ok(n) = std::env::var("NTH") {
        cases = cases.drain(n.parse::<usize>().unwrap()..).take(1).collect();
    }
    emulate(&cases);
}

/// Compiles kernels for an H100: none may spill registers.
#[test]
fn kernels_of_attention_compile_without_spilling() {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(e) if std::env::var_os("TPC_REQUIRE_NVRTC").is_none() => return println!("not compiled: {e}"),
        Err(e) => panic!("{e}"),
    };
    let mut kernels = Kernels::default();
    for case in attention::large() {
        kernels = plan(&[case.program], kernels).unwrap().kernels;
    }
    let start = std::time::Instant::now();
    let (_, usage) = nvrtc.compile(&kernels.source(), "sm_90").unwrap_or_else(|e| panic!("{e}"));
    for kernel in kernels.list() {
        let u = usage.iter().find(|u| u.kernel == kernel.name).unwrap();
        let engine = kernel.source.lines().find(|l| l.contains("typedef Tensor") || l.contains("typedef Plain"));
        let call = kernel.source.lines().last().unwrap_or_default();
        let call = kernel
            .source
            .lines()
            .find(|l| l.contains("attention_forward<") || l.contains("attention_backward<"))
            .unwrap_or(call);
        let call = call.trim().split('(').next().unwrap_or_default();
        println!(
            "{} registers, {} spilled, {} stack, {} threads, {} KB: {} {} {call}",
            u.registers,
            u.spilled,
            u.stack,
            kernel.block,
            kernel.shared >> 10,
            kernel.name,
            engine.unwrap_or_default().trim()
        );
    }
    println!("{} kernels in {:.1} s", kernels.list().len(), start.elapsed().as_secs_f64());
    assert!(usage.iter().all(|u| u.spilled == 0));
}
