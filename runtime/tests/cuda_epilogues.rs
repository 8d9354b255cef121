//! Products with epilogues on CUDA (`device/cuda/epilogue.rs`, `emit/product.rs`), compared with a reference in f64:
//! the generated kernels executed on the CPU, and cublasLt's calls; on a fake driver and cublasLt (`fake/`), which
//! refuse epilogues in several ways; or, with the feature `cuda` and `TPC_GPU` set, on a GPU. The kernels are compiled
//! for an H100 if NVRTC is found (`tests/gpu/nvrtc` fetches it).
#![cfg(unix)]

#[path = "support/epilogues.rs"]
mod epilogues;
mod support;

use epilogues::{Best, Case};
use tpc_ir::DType;
use tpc_ir::program::{Action, Instruction, RankProgram};
use tpc_runtime::device::cuda::emit::{DevicePlan, Item, Kernels, Product, plan};
use tpc_runtime::device::cuda::emulate::{Emulator, Order};
use tpc_runtime::device::cuda::nvrtc::Nvrtc;

fn worlds(cases: &[Case]) -> Vec<Vec<RankProgram>> {
    cases.iter().map(|c| vec![c.program.clone()]).collect()
}

/// The ways in which the product of a case can be computed by the library.
fn ways(plan: &DevicePlan) -> &[Product] {
    plan.ranks[0]
        .items
        .iter()
        .find_map(|(_, i)| if let Item::Product { library, .. } = i { Some(&library[..]) } else { None })
        .unwrap()
}

/// How the product is computed if every attempt works.
fn best(ways: &[Product]) -> Best {
    match ways.first() {
        None => Best::Generated,
        Some(p) if !p.after.is_empty() => Best::Followed,
        Some(p) if p.gemm.has_epilogue() => Best::Epilogue,
        Some(_) => Best::Alone,
    }
}

#[test]
fn epilogues_mean_the_same() {
    let cases = epilogues::cases();
    #[cfg(feature = "cuda")]
    if std::env::var_os("TPC_GPU").is_some() {
        return gpu::run(&cases);
    }
    if !Emulator::is_available() && std::env::var_os("TPC_REQUIRE_NVRTC").is_none() {
        return println!("skipped: g++ is not installed");
    }
    let mut devices = Emulator::batch(worlds(&cases)).unwrap_or_else(|e| panic!("{e}"));
    for (case, device) in cases.iter().zip(&mut devices) {
        let ways = ways(device.plan());
        assert_eq!(best(ways), case.best, "{}: {ways:?}", case.name);
        assert_eq!(case.packed, ways.iter().any(|p| !p.packing.is_empty()), "{}", case.name);
        for order in [Order::Forward, Order::Reverse] {
            for (input, bytes) in case.program.inputs.iter().zip(&case.inputs) {
                device.write(0, &input.binding, bytes);
            }
            device.step(order).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let got: Vec<Vec<u8>> = case.program.inputs.iter().map(|i| device.read(0, &i.binding)).collect();
            case.check(&got, &format!("{order:?}"));
        }
    }
    let of = |best: Best| cases.iter().filter(|c| c.best == best).count();
    let (epilogue, followed, alone, generated) =
        (of(Best::Epilogue), of(Best::Followed), of(Best::Alone), of(Best::Generated));
    println!(
        "{} cases: {epilogue} are cublasLt's with their epilogue, {followed} are followed by a loop, {alone} are only \
         scaled, {generated} are generated",
        cases.len()
    );
    assert!(epilogue > 30 && followed > 15 && alone > 0 && generated > 3);
}

/// Adding to the result takes no memory for the product alone, however it is computed; an epilogue that the library
/// does not support does.
#[test]
fn an_update_in_place_takes_no_memory() {
    let of = |name: &str| -> Vec<usize> {
        let cases = epilogues::cases().into_iter().filter(|c| c.name.starts_with(name));
        cases.map(|c| plan(&[c.program], Kernels::default()).unwrap().ranks[0].scratch_bytes).collect()
    };
    let (update, other) = (of("twice what was there minus"), of("times what was there"));
    assert!(update.len() == 30 && update.iter().all(|&bytes| bytes == 0), "{update:?}");
    assert!(other.len() == 15 && other.iter().all(|&bytes| bytes > 0), "{other:?}");
}

/// Compiles kernels for an H100: none may spill registers.
#[test]
fn kernels_of_epilogues_compile_without_spilling() {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(e) if std::env::var_os("TPC_REQUIRE_NVRTC").is_none() => return println!("not compiled: {e}"),
        Err(e) => panic!("{e}"),
    };
    let cases = epilogues::cases();
    let kernels = cases.into_iter().fold(Kernels::default(), |all, c| plan(&[c.program], all).unwrap().kernels);
    let (_, usage) = nvrtc.compile(&kernels.source(), "sm_90").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(usage.len(), kernels.list().len());
    if let Some(u) = usage.iter().find(|u| u.spilled > 0) {
        let source = kernels.list().iter().find(|k| k.name == u.kernel).map(|k| k.source.as_str());
        panic!("{u:?}\n{}", source.unwrap_or_default());
    }
    let registers = usage.iter().map(|u| u.registers).max().unwrap_or(0);
    println!("{} kernels: {registers} registers at most, nothing spills", usage.len());
}

/// An invalid epilogue is an error with the reason.
#[test]
fn what_is_no_epilogue_is_refused() {
    let case = epilogues::cases().swap_remove(0);
    let refused = |change: &dyn Fn(&mut Vec<Instruction>)| {
        let mut program = case.program.clone();
        let Action::Contract(c) = &mut program.steps[0].action else { panic!("a product") };
        change(&mut c.epilogue);
        plan(&[program], Kernels::default()).unwrap_err().to_string()
    };
    let said = refused(&|body| body[0] = Instruction::Given { index: 1, dtype: DType::F32 });
    assert!(said.contains("instruction 0: a product gives its epilogue only one value"), "{said}");
    let said = refused(&|body| {
        let Some(Instruction::Store { accumulate, .. }) = body.last_mut() else { panic!("a store") };
        *accumulate = Some(tpc_ir::ReduceOp::Sum);
    });
    assert!(said.contains("of an epilogue reduces"), "{said}");
    let said = refused(&|body| _ = body.pop());
    assert!(said.contains("the last store of an epilogue does not fill the result"), "{said}");
    let said = refused(&|body| {
        let Some(Instruction::Store { view, .. }) = body.last_mut() else { panic!("a store") };
        view.offset += 1;
    });
    assert!(said.contains("reaches elements"), "{said}");
    let left = case.program.inputs[0].binding.view.clone();
    let said = refused(&|body| {
        let strides = vec![0; 2];
        body.insert(1, Instruction::Store { view: left.clone(), strides, arg: 0, accumulate: None });
    });
    assert!(said.contains("the result overlaps an operand"), "{said}");
}

/// The real host code on a fake driver, a fake compiler and a fake cublasLt that does not support everything: an
/// attempt that fails is replaced by the next way.
#[cfg(feature = "cuda")]
#[test]
fn epilogues_on_a_fake_driver() {
    use std::process::Command;
    if !Emulator::is_available() && std::env::var_os("TPC_REQUIRE_NVRTC").is_none() {
        return println!("skipped: g++ is not installed");
    }
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake");
    let folder = std::env::temp_dir().join(format!("tpc-fake-epilogues-{}", std::process::id()));
    let built = Command::new(sources.join("build")).arg(&folder).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for mode in ["all", "first_fails", "no_epilogues", "failing_epilogues"] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["epilogues_mean_the_same", "--nocapture"]);
        command.env("LD_LIBRARY_PATH", &folder).env("TPC_CUDA_LIBRARIES", &folder).env("TPC_GPU", "1");
        command.env("TPC_CUDA_CACHE", folder.join("cache")).env("TPC_FAKE_CUBLASLT", mode);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{mode}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
        let line = said.lines().find(|l| l.contains("agree on the GPU"));
        println!("{mode}: {}", line.unwrap_or_else(|| panic!("{said}")));
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::{Best, Case, best, plan, ways, worlds};
    use tpc_runtime::device::attached::Device;
    use tpc_runtime::device::cuda::emit::{Kernels, Product};
    use tpc_runtime::device::cuda::gpu::{Compiled, Gpu, GpuOptions, ProductCounts};

    /// How a product is computed with a fake library that does not support everything.
    fn expected(ways: &[Product], mode: &str) -> ProductCounts {
        let works = |p: &&Product| match mode {
            "no_epilogues" => p.gemm.bias.is_none() && p.gemm.activation.is_none(),
            "failing_epilogues" => !p.gemm.has_epilogue(),
            _ => true,
        };
        let left: Vec<Product> = ways.iter().filter(works).cloned().collect();
        let mut counts = ProductCounts::default();
        match best(&left) {
            Best::Alone => counts.alone = 1,
            Best::Epilogue => counts.with_epilogue = 1,
            Best::Followed => counts.followed = 1,
            Best::Generated => counts.generated = 1,
        }
        counts
    }

    /// Executes cases on a GPU, the second and third time as graphs.
    pub(super) fn run(cases: &[Case]) {
        let options = GpuOptions::default();
        let mode = std::env::var("TPC_FAKE_CUBLASLT").ok();
        let compiled = Compiled::batch(worlds(cases), &options).unwrap_or_else(|e| panic!("{e}"));
        let mut all = ProductCounts::default();
        for (case, compiled) in cases.iter().zip(compiled) {
            let mut device = Gpu::open(compiled, options.clone()).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let counts = device.products();
            if let Some(mode) = &mode {
                let plan = plan(std::slice::from_ref(&case.program), Kernels::default()).unwrap();
                assert_eq!(counts, expected(ways(&plan), mode), "{}", case.name);
            }
            all.alone += counts.alone;
            all.with_epilogue += counts.with_epilogue;
            all.followed += counts.followed;
            all.generated += counts.generated;
            for time in 0..3 {
                for (input, bytes) in case.program.inputs.iter().zip(&case.inputs) {
                    device.write(0, &input.binding, bytes).unwrap();
                }
                device.step().unwrap_or_else(|e| panic!("{}: {e}", case.name));
                let got: Vec<Vec<u8>> =
                    case.program.inputs.iter().map(|i| device.read(0, &i.binding).unwrap()).collect();
                case.check(&got, &format!("time {time}"));
            }
        }
        println!("{} products agree on the GPU: {all:?}", cases.len());
    }
}
