//! Generated CUDA kernels executed on the CPU (`device/cuda/emulate.rs`), compared with the CPU device: every step of
//! every test of loops, functions, tables, products and collectives, with threads and blocks in forward and in reverse
//! order. In reverse order, products run as cublasLt's calls. If NVRTC is found (`tests/gpu/nvrtc` fetches it), all of
//! these kernels are also compiled for an H100. With the feature `cuda` and `TPC_GPU` set they run on a GPU instead,
//! kernel by kernel and as graphs.
#![cfg(unix)]
// Every test file includes the support module separately.
#![allow(clippy::duplicate_mod)]

#[path = "support/collectives.rs"]
mod collectives;
#[path = "contracts.rs"]
mod contracts;
#[path = "loops.rs"]
mod loops;
#[path = "maps.rs"]
mod maps;
#[path = "tables.rs"]
mod tables;

use tpc_ir::DType;
use tpc_ir::program::{Binding, RankProgram};
use tpc_runtime::device::cuda::emit::{Item, Kernels};
use tpc_runtime::device::cuda::emulate::{Emulator, Order};
use tpc_runtime::device::cuda::nvrtc::Nvrtc;
use tpc_runtime::element::decode;

type Bytes = Vec<Vec<Vec<u8>>>;

/// How far results may differ.
#[derive(Clone, Copy)]
enum Tolerance {
    /// Relative to each element.
    Elements(f64),
    /// In addition, relative to the largest element of the tensor.
    Tensors(f64),
}

fn unit(dtype: DType) -> f64 {
    match dtype {
        // One unit in the last place: the one rounds sums once, the other at every step.
        DType::BF16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 0.0,
    }
}

fn check(got: &[u8], want: &[u8], dtype: DType, tolerance: Tolerance, what: &str) {
    if got == want {
        return;
    }
    let (got, want) = (decode(dtype, got), decode(dtype, want));
    let finite = want.iter().filter(|x| x.is_finite());
    let largest = finite.fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (&x, &y)) in got.iter().zip(&want).enumerate() {
        let allowed = match tolerance {
            _ if !dtype.is_float() => 0.0,
            Tolerance::Elements(t) => t.max(unit(dtype)) * y.abs() + 2e-45,
            Tolerance::Tensors(t) => t.max(unit(dtype)) * y.abs().max(largest),
        };
        assert!(
            x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= allowed,
            "{what}: element {i} is {x}, not {y}"
        );
    }
}

fn bindings(p: &RankProgram) -> Vec<Binding> {
    p.inputs.iter().map(|i| i.binding.clone()).chain(p.outputs.iter().map(|o| o.binding.clone())).collect()
}

/// Compiles kernels for an H100: none may spill registers.
fn compile(name: &str, kernels: &Kernels) {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(e) if std::env::var_os("TPC_REQUIRE_NVRTC").is_none() => return println!("{name}: not compiled: {e}"),
        Err(e) => panic!("{e}"),
    };
    let (_, usage) = nvrtc.compile(&kernels.source(), "sm_90").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(usage.len(), kernels.list().len());
    if let Some(u) = usage.iter().find(|u| u.spilled > 0) {
        let source = kernels.list().iter().find(|k| k.name == u.kernel).map(|k| k.source.as_str());
        panic!("{u:?}\n{}", source.unwrap_or_default());
    }
    let registers = usage.iter().map(|u| u.registers).max().unwrap_or(0);
    println!("{name}: compiled for sm_90, {registers} registers at most, nothing spills");
}

/// Equal programs have equal kernels in every run; otherwise the cache on disk would be useless.
#[test]
fn texts_do_not_change() {
    let programs = loops::support::recorded::record(|| {
        loops::softmax_rows_of_all_lengths();
        loops::long_sums_and_rows();
    });
    let text = || {
        let mut kernels = Kernels::default();
        for case in &programs {
            kernels = tpc_runtime::device::cuda::emit::plan(&case.programs, kernels).unwrap().kernels;
        }
        kernels.source()
    };
    let first = text();
    for _ in 0..5 {
        assert!(text() == first);
    }
}

/// Executes recorded steps, and compares inputs and outputs afterwards.
fn compare(name: &str, cases: Vec<(Vec<RankProgram>, Bytes, Bytes)>, tolerance: Tolerance) {
    let mut worlds: Vec<Vec<RankProgram>> = Vec::new();
    let mut of_case = Vec::new();
    for (programs, ..) in &cases {
        if worlds.last() != Some(programs) {
            worlds.push(programs.clone());
        }
        of_case.push(worlds.len() - 1);
    }
    #[cfg(feature = "cuda")]
    if std::env::var_os("TPC_GPU").is_some() {
        return gpu::compare(name, worlds, &cases, &of_case, tolerance);
    }
    if !Emulator::is_available() && std::env::var_os("TPC_REQUIRE_NVRTC").is_none() {
        return println!("{name}: skipped: g++ is not installed");
    }
    let mut devices = Emulator::batch(worlds).unwrap();
    let kernels = devices[devices.len() - 1].plan().kernels.clone();
    let items = devices.iter().flat_map(|d| &d.plan().ranks).flat_map(|r| &r.items);
    let (mut products, mut taken, mut packed) = (0, 0, 0);
    for (_, item) in items {
        if let Item::Product { library, .. } = item {
            products += 1;
            taken += usize::from(!library.is_empty());
            packed += usize::from(library.first().is_some_and(|p| !p.packing.is_empty()));
        }
    }
    println!(
        "{name}: {} steps of {} programs, {} kernels; cublasLt takes {taken} of {products} products, {packed} packed",
        cases.len(),
        devices.len(),
        kernels.list().len()
    );
    compile(name, &kernels);
    for ((programs, before, after), at) in cases.iter().zip(of_case) {
        let device = &mut devices[at];
        for order in [Order::Forward, Order::Reverse] {
            for (rank, p) in programs.iter().enumerate() {
                for (input, bytes) in p.inputs.iter().zip(&before[rank]) {
                    device.write(rank, &input.binding, bytes);
                }
            }
            device.step(order).unwrap();
            for (rank, p) in programs.iter().enumerate() {
                for (binding, want) in bindings(p).iter().zip(&after[rank]) {
                    let got = device.read(rank, binding);
                    let what = || format!("{name}, {order:?}, rank {rank}, {binding:?}\n{}", p.to_text());
                    if got != *want {
                        check(&got, want, binding.view.dtype, tolerance, &what());
                    }
                }
            }
        }
    }
}

/// Programs of one session alternate on an emulated device as they do on threads.
#[test]
fn programs_take_turns_beside_an_emulator() {
    use loops::support::sharing::{adding, take_turns};
    if !Emulator::is_available() && std::env::var_os("TPC_REQUIRE_NVRTC").is_none() {
        return println!("skipped: g++ is not installed");
    }
    let device = Emulator::new(adding(None)).unwrap();
    take_turns(tpc_runtime::Session::on(Box::new(device), Default::default()).unwrap());
}

/// All of the above with the real host code, on fakes of the driver, the compiler and the libraries (`fake/`): what is
/// enqueued, what depends on what, what is captured and replayed.
#[cfg(feature = "cuda")]
#[test]
fn the_host_does_the_same_on_a_fake_driver() {
    use std::process::Command;
    if !Emulator::is_available() && std::env::var_os("TPC_REQUIRE_NVRTC").is_none() {
        return println!("skipped: g++ is not installed");
    }
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake");
    let folder = std::env::temp_dir().join(format!("tpc-fake-{}", std::process::id()));
    let built = Command::new(sources.join("build")).arg(&folder).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let test = std::env::current_exe().unwrap();
    let mut command = Command::new(test);
    command.args(["_same", "missing_peer", "_profile", "--nocapture", "--test-threads", "2"]);
    command.env("LD_LIBRARY_PATH", &folder).env("TPC_CUDA_LIBRARIES", &folder).env("TPC_GPU", "1");
    command.env("TPC_CUDA_CACHE", folder.join("cache"));
    // Ranks that are threads of one process are on one device.
    command.env("NCCL_MULTI_RANK_GPU_ENABLE", "1");
    // Not this test itself.
    command.args(["--skip", "fake_driver"]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> =
        said.lines().filter(|l| l.contains("agree on the GPU") || l.starts_with("a_missing_peer")).collect();
    println!("{}", lines.join("\n"));
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(lines.len() >= 10, "{said}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The same steps on a real device.
#[cfg(feature = "cuda")]
mod gpu {
    use super::{Bytes, Tolerance, bindings, check};
    use tpc_ir::program::RankProgram;
    use tpc_runtime::device::attached::Device;
    use tpc_runtime::device::cuda::gpu::{Compiled, Folder, Gpu, GpuOptions, Network};

    /// Ranks that are threads with a communicator each. On one real device NCCL needs settings that allow this, see
    /// `tests/gpu/run`.
    #[test]
    fn ranks_of_a_network_mean_the_same() {
        if std::env::var_os("TPC_GPU").is_none() {
            return println!("skipped: there is no GPU");
        }
        // The numbers of ranks: up to five, or the requested ones.
        let asked: Option<usize> = std::env::var("TPC_GPU_RANKS").ok().and_then(|n| n.parse().ok());
        let wanted = |ranks: usize| asked.map_or(ranks <= 5, |n| ranks == n);
        let cases = super::collectives::support::recorded::record(|| {
            super::collectives::all_reduce();
            super::collectives::all_gather_and_reduce_scatter_of_uneven_pieces();
            super::collectives::several_values_in_one_collective();
            super::collectives::all_to_all_of_uneven_pieces();
            super::collectives::groups_of_a_mesh_work_side_by_side_and_in_their_order();
        });
        let chains = super::collectives::support::recorded::record(|| {
            super::collectives::loops_and_collectives_wait_for_each_other();
        });
        // Every step was recorded twice; of the many shapes and types, some. Bytes wrap around in NCCL but saturate in
        // ours.
        let bytes = |p: &RankProgram| p.collectives().any(|c| c.dtype == tpc_ir::DType::U8);
        let some = cases.into_iter().step_by(14).filter(|c| wanted(c.programs.len()) && !c.programs.iter().any(bytes));
        let some = some.take(asked.map_or(usize::MAX, |_| 12));
        let cases: Vec<_> = some.chain(chains.into_iter().filter(|c| wanted(c.programs.len()))).collect();
        let options = GpuOptions::default();
        let alone = cases.iter().flat_map(|c| c.programs.iter().map(|p| vec![p.clone()])).collect();
        let mut compiled = Compiled::batch(alone, &options).unwrap_or_else(|e| panic!("{e}")).into_iter();
        let count = cases.len();
        let folder = std::env::temp_dir().join(format!("tpc-meet-{}", std::process::id()));
        for (at, case) in cases.iter().enumerate() {
            let path = folder.join(at.to_string());
            std::thread::scope(|scope| {
                for (rank, p) in case.programs.iter().enumerate() {
                    let (compiled, path, options) = (compiled.next().unwrap(), path.clone(), options.clone());
                    scope.spawn(move || {
                        let deadline = std::time::Duration::from_secs(60);
                        let meeting = Box::new(Folder { path, deadline });
                        let network = Network::new(rank, deadline, meeting).unwrap_or_else(|e| panic!("{e}"));
                        let options = GpuOptions { network: Some(network), ..options };
                        let mut device = Gpu::open(compiled, options).unwrap_or_else(|e| panic!("{e}"));
                        for time in 0..3 {
                            for (input, bytes) in p.inputs.iter().zip(&case.before[rank]) {
                                device.write(0, &input.binding, bytes).unwrap();
                            }
                            device.step().unwrap_or_else(|e| panic!("rank {rank}: {e}"));
                            for (binding, want) in bindings(p).iter().zip(&case.after[rank]) {
                                let got = device.read(0, binding).unwrap();
                                let what = format!("time {time}, rank {rank}, {}", p.to_text());
                                check(&got, want, binding.view.dtype, Tolerance::Tensors(1e-6), &what);
                            }
                        }
                    });
                }
            });
        }
        let _ = std::fs::remove_dir_all(&folder);
        println!("ranks_of_a_network: {count} worlds agree on the GPU");
    }

    /// A session whose ranks are on the device gives the results of one on the CPU: written inputs, state over steps,
    /// other programs over the same state.
    #[test]
    fn sessions_mean_the_same() {
        use super::loops::support::{Builder, load, map, result, store};
        use tpc_ir::program::{Action, CollectiveKind, Loop};
        use tpc_ir::{DType, MapFn, Mesh, ReduceOp};
        use tpc_runtime::{Backend, LaunchOptions, Session};
        if std::env::var_os("TPC_GPU").is_none() {
            return println!("skipped: there is no GPU");
        }
        let programs = || -> Vec<RankProgram> {
            let program = |rank| {
                let mut b = Builder::of(Mesh::new([("tp", 2)]).unwrap(), rank);
                let (x, w) = (b.input("x", DType::F32, &[37]), b.input("w", DType::F32, &[37]));
                let sum = b.buffer(DType::F32, &[37]);
                let body = vec![load(&x), load(&w), map(MapFn::Sub, &[1, 0], DType::F32), store(&sum, 2)];
                b.step(Action::Loop(Loop { dims: vec![37], body }));
                b.collective(CollectiveKind::AllReduce(ReduceOp::Sum), vec![0, 1], &sum, &sum, 0);
                b.step(Action::Copy { from: sum.clone(), to: w });
                b.output("sum", &sum);
                b.program
            };
            (0..2).map(program).collect()
        };
        let run = |backend| {
            let mut session = Session::launch(programs(), LaunchOptions { backend, ..Default::default() }).unwrap();
            let mut seen = Vec::new();
            let mut counted = Vec::new();
            let numbers = |scale: f64| (0..37).map(|i| f64::from(i) * scale).collect::<Vec<f64>>();
            session.write_f64("w", &numbers(0.5)).unwrap();
            for step in 0..4 {
                session.write_f64("x", &numbers(f64::from(step))).unwrap();
                session.step().unwrap();
                seen.push(session.read_f64(&result("sum")).unwrap());
                seen.push(session.read_input_f64("w").unwrap());
                let executed = session.collectives(1).into_iter().map(|c| (c.name, c.count, c.wire_bytes));
                counted.push(executed.collect::<Vec<_>>());
                if step == 1 {
                    session.switch_to(programs()).unwrap();
                }
            }
            (seen, counted)
        };
        let (gpu, cpu) = (run(Backend::Cuda), run(Backend::Cpu));
        assert_eq!(gpu.1[1], [("all_reduce", 2, 2.0 * 37.0 * 4.0)], "a kernel and a graph count the same");
        assert_eq!(gpu, cpu);
        let options = LaunchOptions { backend: Backend::Cuda, ..Default::default() };
        let shared = super::loops::support::sharing::adding(None);
        super::loops::support::sharing::take_turns(Session::launch(shared, options).unwrap());
        println!("sessions: written, stepped, read and succeeded; they agree on the GPU");
    }

    /// A rank that panics on the host side of a device is an error, and the session can only be read afterwards.
    #[test]
    fn a_panic_beside_a_device_is_an_error_the_same() {
        use super::loops::support::{Builder, load, store};
        use tpc_ir::DType;
        use tpc_ir::program::{Action, Loop};
        use tpc_runtime::{Fault, FaultKind, LaunchOptions, RuntimeError, Session};
        if std::env::var_os("TPC_GPU").is_none() {
            return println!("skipped: there is no GPU");
        }
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[3]);
        b.step(Action::Loop(Loop { dims: vec![3], body: vec![load(&x), store(&x, 0)] }));
        let gpu = Gpu::new(vec![b.program], GpuOptions::default()).unwrap();
        let fault = Some(Fault { rank: 0, step: 1, kind: FaultKind::Panic });
        let mut session = Session::on(Box::new(gpu), LaunchOptions { fault, ..Default::default() }).unwrap();
        session.write_f64("x", &[1.0, 2.0, 3.0]).unwrap();
        session.step().unwrap();
        let error = session.step().unwrap_err();
        assert_eq!(error.to_string(), "rank 0 panicked in a step: injected fault");
        assert_eq!(session.rank_error(0), Some(error));
        assert!(matches!(session.step(), Err(RuntimeError::Poisoned(_))));
        assert_eq!(session.read_input_f64("x").unwrap(), [1.0, 2.0, 3.0]);
    }

    /// Programs that replace each other share memory: an output that only the first ones wrote still exists, and
    /// adjacent inputs of a step are copied at once.
    #[test]
    fn memory_of_succeeding_programs_is_the_same() {
        use super::loops::support::{Builder, load, store};
        use tpc_ir::DType;
        use tpc_ir::program::{Action, Loop};
        if std::env::var_os("TPC_GPU").is_none() {
            return println!("skipped: there is no GPU");
        }
        let program = |writes: bool| {
            let mut b = Builder::new();
            let (x, y, z) =
                (b.input("x", DType::F32, &[5]), b.input("y", DType::F32, &[3]), b.buffer(DType::F32, &[5]));
            if writes {
                b.step(Action::Loop(Loop { dims: vec![5], body: vec![load(&x), store(&z, 0)] }));
            }
            b.output("z", &z);
            let _ = y;
            b.program
        };
        let mut gpu = Gpu::new(vec![program(true)], GpuOptions::default()).unwrap();
        let write = |gpu: &mut Gpu, scale: f32| {
            for input in gpu.programs()[0].inputs.clone() {
                let values = (0..input.binding.view.elements()).flat_map(|i| (scale * i as f32).to_ne_bytes());
                gpu.write(0, &input.binding, &values.collect::<Vec<u8>>()).unwrap();
            }
        };
        write(&mut gpu, 2.0);
        let x = gpu.programs()[0].inputs[0].binding.clone();
        let read = |gpu: &Gpu, binding: &_| gpu.read(0, binding).unwrap();
        assert_eq!(read(&gpu, &x)[4..8], 2f32.to_ne_bytes(), "what waits to be copied is read, too");
        gpu.step().unwrap();
        assert_eq!(gpu.small_copies(), 1, "two inputs in one copy");
        let before = gpu.allocated_bytes();
        gpu.switch_to(vec![program(false)]).unwrap();
        let z = gpu.programs()[0].outputs[0].binding.clone();
        for _ in 0..3 {
            gpu.step().unwrap();
            assert_eq!(read(&gpu, &z), read(&gpu, &x));
            assert_eq!(gpu.read_range(0, &z, 4..12).unwrap(), read(&gpu, &x)[4..12]);
        }
        assert_eq!((gpu.allocated_bytes(), gpu.small_copies()), (before, 1));
        println!("succeeding: the same memory; they agree on the GPU");
    }

    /// A profile contains every action, and leaves the same results as a step.
    #[test]
    fn a_profile_is_a_step() {
        use super::loops::support::{Builder, load, map, store};
        use tpc_ir::program::{Action, Loop};
        use tpc_ir::{DType, MapFn};
        if std::env::var_os("TPC_GPU").is_none() {
            return println!("skipped: there is no GPU");
        }
        let mut b = Builder::new();
        let x = b.input("x", DType::F32, &[9]);
        // More actions than are enqueued while the stream is held back.
        for _ in 0..200 {
            let body = vec![load(&x), map(MapFn::Add, &[0, 0], DType::F32), store(&x, 1)];
            b.step(Action::Loop(Loop { dims: vec![9], body }));
        }
        let mut gpu = Gpu::new(vec![b.program], GpuOptions::default()).unwrap();
        let binding = gpu.programs()[0].inputs[0].binding.clone();
        gpu.write(0, &binding, &[1.0f32; 9].map(f32::to_ne_bytes).concat()).unwrap();
        let timings = gpu.profile().unwrap();
        assert_eq!(timings.iter().map(|t| t.step).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
        assert!(timings.iter().all(|t| t.microseconds > 0.0));
        // 2 to the 200 is infinite in f32.
        assert_eq!(gpu.read(0, &binding).unwrap(), [f32::INFINITY; 9].map(f32::to_ne_bytes).concat());
        assert_eq!(gpu.time_steps(3).unwrap().len(), 3);
        println!("a profile: {} actions", timings.len());
    }

    /// Without a GPU, the error is one sentence with a remedy.
    #[test]
    fn without_a_gpu_the_error_says_so() {
        let program = super::loops::support::Builder::new().program;
        if let Err(e) = Gpu::new(vec![program], GpuOptions::default()) {
            let said = e.to_string();
            assert!(said.starts_with("no CUDA device: ") && said.contains("run on the CPU"), "{said}");
        }
    }

    /// A rank whose peer never joins, or joins and then does nothing, gets an error in time.
    #[test]
    fn a_missing_peer_of_a_network_is_an_error() {
        let asked = std::env::var("TPC_GPU_RANKS").is_ok_and(|n| n != "2");
        if std::env::var_os("TPC_GPU").is_none() || asked {
            return println!("skipped: there is no GPU, or another number of ranks was asked for");
        }
        let case = super::collectives::support::recorded::record(|| {
            super::collectives::groups_of_a_mesh_work_side_by_side_and_in_their_order();
        });
        let programs = &case[0].programs;
        let folder = std::env::temp_dir().join(format!("tpc-miss-{}", std::process::id()));
        let device = |rank: usize, path: &str| {
            let path = folder.join(path);
            let deadline = std::time::Duration::from_millis(if path.ends_with("never") { 400 } else { 4000 });
            let network = Network::new(rank, deadline, Box::new(Folder { path, deadline }))?;
            Gpu::new(vec![programs[rank].clone()], GpuOptions { network: Some(network), ..GpuOptions::default() })
        };
        let said = device(0, "never").err().unwrap().to_string();
        assert!(said.contains("did not finish within") && said.contains("aborted"), "{said}");
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..programs.len())
                .map(|r| {
                    scope.spawn({
                        let device = &device;
                        move || device(r, "idle")
                    })
                })
                .collect();
            let mut devices: Vec<Gpu> = ranks.into_iter().map(|r| r.join().unwrap().unwrap()).collect();
            let said = devices[0].step().unwrap_err().to_string();
            assert!(said.contains("rank 0: a step did not finish within 4s"), "{said}");
        });
        let _ = std::fs::remove_dir_all(&folder);
        println!("a_missing_peer: {said}");
    }

    pub(super) fn compare(
        name: &str,
        worlds: Vec<Vec<RankProgram>>,
        cases: &[(Vec<RankProgram>, Bytes, Bytes)],
        of_case: &[usize],
        tolerance: Tolerance,
    ) {
        let options = GpuOptions::default();
        let start = std::time::Instant::now();
        let compiled = Compiled::batch(worlds, &options).unwrap_or_else(|e| panic!("{e}"));
        let (compiling, count) = (start.elapsed().as_secs_f64(), compiled.len());
        let mut of_case = of_case.iter().zip(cases).peekable();
        for (at, compiled) in compiled.into_iter().enumerate() {
            let mut device = Gpu::open(compiled, options.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
            while let Some((_, (programs, before, after))) = of_case.next_if(|(of, _)| **of == at) {
                // The second and third time as a graph.
                for time in 0..3 {
                    for (rank, p) in programs.iter().enumerate() {
                        for (input, bytes) in p.inputs.iter().zip(&before[rank]) {
                            device.write(rank, &input.binding, bytes).unwrap();
                        }
                    }
                    device.step().unwrap_or_else(|e| panic!("{name}: {e}"));
                    for (rank, p) in programs.iter().enumerate() {
                        for (binding, want) in bindings(p).iter().zip(&after[rank]) {
                            let got = device.read(rank, binding).unwrap();
                            if got != *want {
                                let what = format!("{name}, time {time}, rank {rank}, {binding:?}\n{}", p.to_text());
                                check(&got, want, binding.view.dtype, tolerance, &what);
                            }
                        }
                    }
                }
            }
        }
        let all = start.elapsed().as_secs_f64();
        println!("{name}: {count} programs agree on the GPU; {compiling:.1} s compiling, {all:.1} s in all");
    }
}

macro_rules! checks {
    ($($name:ident = $file:ident, $tolerance:expr, [$($test:ident)*];)*) => { $(
        #[test]
        fn $name() {
            let cases = $file::support::recorded::record(|| { $($file::$test();)* });
            let cases = cases.into_iter().map(|c| (c.programs, c.before, c.after)).collect();
            compare(stringify!($name), cases, $tolerance);
        }
    )* };
}

checks! {
    loops_mean_the_same = loops, Tolerance::Tensors(1e-6), [
        softmax_rows_of_all_lengths norms_with_uniform_registers_and_broadcast_weights
        long_sums_and_rows accumulating_uniform_registers_count_every_iteration updates_in_place_and_overlapping_views
    ];
    random_numbers_are_the_same_bit_by_bit = loops, Tolerance::Tensors(0.0), [
        indices_masks_and_random_numbers_do_not_depend_on_merging
    ];
    reductions_mean_the_same = loops, Tolerance::Tensors(1e-6), [accumulating_stores_reduce_any_dimensions];
    random_loops_mean_the_same = loops, Tolerance::Tensors(1e-6), [random_programs_over_random_strides];
    functions_mean_the_same = maps, Tolerance::Elements(2e-7), [
        functions_of_floats_agree_with_their_definition exp_log_and_erf_are_accurate_everywhere
        narrow_floats_integers_and_casts_round_as_their_type_does
    ];
    tables_mean_the_same = tables, Tolerance::Tensors(1e-6), [
        rows_of_a_shard_are_taken_and_added rows_of_a_shard_are_replaced copies_between_any_strides copies_that_transpose
        prefix_sums_along_any_dimension the_k_largest_and_where_they_are
    ];
    products_mean_the_same = contracts, Tolerance::Tensors(1e-6), [
        random_shapes_and_strides large_and_skinny_shapes sums_over_dimensions_that_do_not_nest every_element_type
    ];
    collectives_mean_the_same = collectives, Tolerance::Tensors(0.0), [
        all_reduce all_gather_and_reduce_scatter_of_uneven_pieces several_values_in_one_collective
        all_to_all_of_uneven_pieces groups_of_a_mesh_work_side_by_side_and_in_their_order
        in_place_and_overlapping_collectives loops_and_collectives_wait_for_each_other
    ];
}
