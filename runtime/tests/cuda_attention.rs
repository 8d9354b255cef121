//! Attention as generated CUDA kernels (`device/cuda/emit/attention/`), compared with its specification in f64:
//! executed on the CPU with threads and blocks in forward and in reverse order, as in `cuda.rs`; on a fake driver
//! (`fake/`); or, with the feature `cuda` and `TPC_GPU` set, on a GPU. Kernels of realistic sizes are compiled for an
//! H100 if NVRTC is found (`tests/gpu/nvrtc` fetches it).
#![cfg(unix)]

#[path = "support/attention.rs"]
mod attention;
mod support;

use attention::{Case, Layout, Score, Spec};
use tpc_ir::program::RankProgram;
use tpc_runtime::device::cuda::emit::{Kernels, plan};
use tpc_runtime::device::cuda::emulate::{Emulator, Order};
use tpc_runtime::device::cuda::nvrtc::Nvrtc;

fn can_emulate() -> bool {
    Emulator::is_available() || std::env::var_os("TPC_REQUIRE_NVRTC").is_some()
}

fn worlds(cases: &[Case]) -> Vec<Vec<RankProgram>> {
    cases.iter().map(|c| vec![c.program.clone()]).collect()
}

/// Executes cases on the emulated device.
fn emulate(cases: &[Case]) {
    let start = std::time::Instant::now();
    let mut devices = Emulator::batch(worlds(cases)).unwrap_or_else(|e| panic!("{e}"));
    let kernels = devices.last().map_or(0, |d| d.plan().kernels.list().len());
    let compiling = start.elapsed().as_secs_f64();
    for (case, device) in cases.iter().zip(&mut devices) {
        for order in [Order::Forward, Order::Reverse] {
            for (input, bytes) in case.program.inputs.iter().zip(&case.inputs) {
                device.write(0, &input.binding, bytes);
            }
            device.step(order).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let got: Vec<Vec<u8>> = case.program.outputs.iter().map(|o| device.read(0, &o.binding)).collect();
            attention::check(case, &got, &format!("{order:?}"));
        }
    }
    let all = start.elapsed().as_secs_f64();
    println!("{} cases, {kernels} kernels agree; {compiling:.1} s compiling, {all:.1} s in all", cases.len());
}

#[test]
fn attention_means_the_same() {
    #[cfg(feature = "cuda")]
    if std::env::var_os("TPC_GPU").is_some() {
        let nth = std::env::var("TPC_EVERY").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        return gpu::run(&attention::cases().into_iter().step_by(nth).collect::<Vec<_>>());
    }
    if !can_emulate() {
        return println!("skipped: g++ is not installed");
    }
    let (mut half, mut other) = (Vec::new(), Vec::new());
    attention::cases().into_iter().enumerate().for_each(|(i, c)| if i % 2 == 0 { half.push(c) } else { other.push(c) });
    std::thread::scope(|scope| {
        scope.spawn(|| emulate(&half));
        scope.spawn(|| emulate(&other));
    });
}

/// Realistic sizes, which are too large to be executed by tests.
fn large() -> Vec<Case> {
    use tpc_ir::DType::{BF16, F16, F32, F64};
    let causal = Score::Causal(-1e30, 0);
    let heads = |spec: Spec| spec.batch(&[2, 4]).layout(Layout::SequenceFirst);
    let specs = [
        heads(Spec::new(BF16, 1024, 1024, 64, causal)),
        heads(Spec::new(BF16, 1024, 1024, 128, causal)),
        heads(Spec::new(BF16, 1024, 1024, 80, Score::Scaled)),
        heads(Spec::new(BF16, 1024, 1024, 256, causal)),
        heads(Spec::new(F16, 1024, 1024, 128, Score::SoftCap)),
        heads(Spec::new(BF16, 1024, 1024, 128, Score::Bias)),
        Spec { dropout: true, ..heads(Spec::new(BF16, 1024, 1024, 128, Score::Mask(-1e30))) },
        heads(Spec::new(BF16, 1024, 1024, 64, causal).own(&[2, 32], &[64])).layout(Layout::OwnReversed),
        heads(Spec::new(F32, 1024, 1024, 64, causal)),
        heads(Spec::new(F32, 1024, 1024, 128, causal)),
        heads(Spec::new(F32, 1024, 1024, 256, Score::Scaled)),
        Spec { dropout: true, ..heads(Spec::new(F32, 1024, 1024, 128, Score::SoftCap)) },
        heads(Spec::new(F64, 1024, 1024, 64, causal)),
        heads(Spec::new(F64, 1024, 1024, 128, Score::SoftCap)),
        heads(Spec::new(F64, 1024, 1024, 256, Score::Scaled)),
        heads(Spec::new(F32, 64, 64, 1000, causal)),
    ];
    specs.iter().map(attention::build).collect()
}

/// Compiles kernels for an H100: none may spill registers.
#[test]
fn kernels_of_attention_compile_without_spilling() {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(e) if std::env::var_os("TPC_REQUIRE_NVRTC").is_none() => return println!("not compiled: {e}"),
        Err(e) => panic!("{e}"),
    };
    let nth = std::env::var("TPC_EVERY").ok().and_then(|n| n.parse().ok()).unwrap_or(16);
    let cases = large().into_iter().chain(attention::cases().into_iter().step_by(nth));
    let kernels = cases.fold(Kernels::default(), |all, c| plan(&[c.program], all).unwrap().kernels);
    let (_, usage) = nvrtc.compile(&kernels.source(), "sm_90").unwrap_or_else(|e| panic!("{e}"));
    for kernel in kernels.list() {
        let u = usage.iter().find(|u| u.kernel == kernel.name).unwrap();
        let engine = kernel.source.lines().find(|l| l.contains("typedef Tensor") || l.contains("typedef Plain"));
        let call = kernel.source.lines().find(|l| l.contains("ward<E")).and_then(|l| l.split('(').next());
        println!(
            "{}: {} registers, {} spilled, {} threads, {} bytes shared; {} {}",
            kernel.name,
            u.registers,
            u.spilled,
            kernel.block,
            kernel.shared,
            engine.unwrap_or_default().trim(),
            call.unwrap_or_default().trim()
        );
    }
    if let Some(u) = usage.iter().find(|u| u.spilled > 0) {
        let source = kernels.list().iter().find(|k| k.name == u.kernel).map(|k| k.source.as_str());
        panic!("{u:?}\n{}", source.unwrap_or_default());
    }
}

/// The real host code on a fake driver and compiler: shared memory is requested, and graphs are captured and replayed.
#[cfg(feature = "cuda")]
#[test]
fn attention_on_a_fake_driver() {
    use std::process::Command;
    if !can_emulate() {
        return println!("skipped: g++ is not installed");
    }
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake");
    let folder = std::env::temp_dir().join(format!("tpc-fake-attention-{}", std::process::id()));
    let built = Command::new(sources.join("build")).arg(&folder).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["attention_means_the_same", "--nocapture"]);
    command.env("LD_LIBRARY_PATH", &folder).env("TPC_CUDA_LIBRARIES", &folder).env("TPC_GPU", "1");
    command.env("TPC_CUDA_CACHE", folder.join("cache")).env("TPC_EVERY", "5");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let line = said.lines().find(|l| l.contains("agree on the GPU"));
    println!("{}", line.unwrap_or_else(|| panic!("{said}")));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::{Case, attention, worlds};
    use tpc_runtime::device::attached::Device;
    use tpc_runtime::device::cuda::gpu::{Compiled, Gpu, GpuOptions};

    /// Executes cases on a GPU, the second and third time as graphs.
    pub(super) fn run(cases: &[Case]) {
        let options = GpuOptions::default();
        let compiled = Compiled::batch(worlds(cases), &options).unwrap_or_else(|e| panic!("{e}"));
        for (case, compiled) in cases.iter().zip(compiled) {
            let mut device = Gpu::open(compiled, options.clone()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let mut first = None;
            for time in 0..3 {
                for (input, bytes) in case.program.inputs.iter().zip(&case.inputs) {
                    device.write(0, &input.binding, bytes).unwrap();
                }
                device.step().unwrap_or_else(|e| panic!("{}: {e}", case.name));
                let read = |o: &tpc_ir::program::OutputBinding| device.read(0, &o.binding).unwrap();
                let got: Vec<Vec<u8>> = case.program.outputs.iter().map(read).collect();
                attention::check(case, &got, &format!("time {time}"));
                // Every time bitwise equal.
                assert!(*first.get_or_insert_with(|| got.clone()) == got, "{}, time {time}", case.name);
            }
        }
        println!("{} cases of attention agree on the GPU", cases.len());
    }
}
