//! `tpc calibrate`: measures this machine with the runtime's own kernels and communicators, and writes a target.
//!
//! | question | file |
//! |---|---|
//! | the duration of a matrix product | [`products`] |
//! | what the functions of loops cost | `loops` |
//! | the memory bandwidth of a rank, also of its caches | `memory` |
//! | the duration of a collective | `collectives` |
//! | fitting a latency and a rate to times and sizes | [`fit`] |
//! | running a small program on ranks, and its fastest step | `program` |
//!
//! All ranks measure at the same time, so that they share caches, memory and links as in a step.

mod collectives;
pub mod fit;
mod loops;
mod memory;
pub mod products;
mod program;

use crate::files::{self, Files};
use crate::launch::{Device, seconds};
use crate::{Failure, Outcome, Terminal};
use clap::Args;
use fit::{Line, line};
use program::Ranks;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;
use tpc_compiler::memory::available;
use tpc_compiler::target::of_backend;
use tpc_ir::DType;
use tpc_passes::targets::{Cache, Link, Links, Loops, Products, Share, Target};
use tpc_runtime::session::{Backend, MAX_RANKS};

/// Measure this machine, and write a target for --target.
///
/// Matrix products, memory and kernel launches are measured on all ranks at the same time; collectives are measured by
/// kind, size and number of ranks. The measured links are those between the threads of one process; add the links
/// between hosts to the file by hand.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// File for the target [default: print the target]
    #[arg(short, long, value_name = "FILE.json")]
    output: Option<PathBuf>,
    /// Name of the target [default: calibrated, or the name of the file without its extension]
    #[arg(long)]
    name: Option<String>,
    /// Ranks that measure at the same time [default: one per core, at least 2 and at most 8; 1 on a GPU]
    #[arg(long, value_name = "N")]
    ranks: Option<NonZeroUsize>,
    /// Approximate duration of all measurements together, in seconds
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "20")]
    seconds: Duration,
    /// Device to measure: the CPU, or the first GPU without its links
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
}

/// Default limit on the number of ranks that measure at the same time.
const MOST_RANKS: usize = 8;

/// The result of the measurements: the target, and a line of text for each measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The target.
    pub target: Target,
    /// The text of each measurement.
    pub lines: Vec<String>,
}

impl Calibrate {
    pub(crate) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        let files = Files::default().writes("--output", &self.output);
        files.check()?;
        let output = self.output.as_deref().map(files::output).transpose()?;
        let (backend, ranks) = (self.device.backend(), self.ranks());
        if ranks > MAX_RANKS {
            return Err(Failure::new(format!("--ranks {ranks}: at most {MAX_RANKS} ranks can run at the same time")));
        }
        let stem =
            self.output.as_deref().and_then(|file| file.file_stem()).map(|stem| stem.to_string_lossy().into_owned());
        let name = self.name.clone().or(stem).unwrap_or_else(|| "calibrated".into());
        let Measured { target, lines } = measure(&name, backend, ranks, self.seconds)?;
        if backend == Backend::Cuda {
            terminal.note(format!(
                "links between GPUs are not measured: the file has those of the target {}",
                of_backend(backend).name
            ));
        }
        match output {
            Some(output) => {
                files::write(output, target.to_json().as_bytes())?;
                terminal.print(lines.join("\n") + "\n")
            }
            None => terminal.print(target.to_json()),
        }
    }

    fn ranks(&self) -> usize {
        let cores = || match self.device {
            Device::Cpu => std::thread::available_parallelism().map_or(2, NonZeroUsize::get).clamp(2, MOST_RANKS),
            Device::Cuda => 1,
        };
        self.ranks.map_or_else(cores, NonZeroUsize::get)
    }
}

/// Measures a machine for about this long.
///
/// # Errors
/// Ranks that cannot be started.
pub fn measure(name: &str, backend: Backend, ranks: usize, long: Duration) -> Outcome<Measured> {
    let base = of_backend(backend);
    let groups = match backend {
        Backend::Cpu => collectives::groups(ranks),
        Backend::Cuda => Vec::new(),
    };
    let sizes = products::sizes(backend);
    // A GPU hides functions by memory accesses, and its caches are small.
    let is_cpu = backend == Backend::Cpu;
    let of_loops = if is_cpu { loops::COUNT } else { 0 };
    let count = 2 * sizes.len() + memory::count(backend) + of_loops + groups.len() * collectives::each_group();
    let machine = Ranks { backend, ranks, each: long / count as u32 };
    let mut lines = Vec::new();
    // A tiny product gives the launch time, and the fastest product gives the rate.
    let mut products = |dtype: DType| -> Outcome<(f64, f64, Vec<Share>)> {
        let (mut launch, mut rate, mut rates) = (f64::INFINITY, 0.0f64, Vec::new());
        for &size in sizes {
            let (seconds, work) = (products::seconds(&machine, dtype, size)?, products::work(size));
            lines.push(format!(
                "product {dtype} of {size} x {size} x {size}: {:.2} us, {:.2} GFLOP/s per rank",
                seconds * 1e6,
                work / seconds / 1e9
            ));
            (launch, rate) = (launch.min(seconds), rate.max(work / seconds));
            rates.push(Share { bytes: products::bytes(dtype, size), share: work / (seconds - launch) });
        }
        // The smallest product takes a launch.
        let shares = rates.into_iter().skip(1);
        let shares = shares.map(|Share { bytes, share }| Share { bytes, share: rounded((share / rate).min(1.0)) });
        Ok((launch, rate, shares.collect()))
    };
    let ((launch, f32, shares), (_, bf16, _)) = (products(DType::F32)?, products(DType::BF16)?);
    let loops = if is_cpu { Some(loops::measure(&machine)?) } else { None };
    if let Some(Loops { arithmetic, divisions, functions, copies, dispatch }) = loops {
        let [arithmetic, divisions, functions, copies] =
            [arithmetic, divisions, functions, copies].map(|rate| format!("{:.2} G", rate / 1e9));
        lines.push(format!(
            "loops: {arithmetic} additions/s, {divisions} divisions or roots/s and {functions} exponentials/s per rank, \
             {:.2} ns to apply one of them to a tile; {copies} elements/s copied from or to short rows",
            dispatch * 1e9
        ));
    }
    let memories = memory::measure(&machine, loops)?;
    for Cache { bytes, bandwidth } in &memories {
        lines.push(format!("memory: {:.2} GB/s a rank, touching {:.2} MB in turn", bandwidth / 1e9, bytes / 1e6));
    }
    let mut points = Vec::new();
    for group in groups {
        for (what, point) in collectives::measure(&machine, group)? {
            let rate = point.size / point.seconds / 1e9;
            lines.push(format!("{what}: {:.2} us, {rate:.2} GB/s sent per rank", point.seconds * 1e6));
            points.push(point);
        }
    }
    let mut target = base.clone();
    target.name = name.into();
    target.device.products = Products {
        f32: rounded(f32),
        bf16: Some(rounded(bf16)),
        // Types that were not measured get the rate of f32.
        f16: None,
        f64: None,
    };
    target.device.launch = rounded(launch);
    if let Some((last, caches)) = memories.split_last() {
        target.device.memory = rounded(last.bandwidth);
        // A larger array is not read faster than a smaller one.
        let mut most = f64::INFINITY;
        target.device.caches.clear();
        for Cache { bytes, bandwidth } in caches {
            most = most.min(*bandwidth);
            let bandwidth = rounded(most.max(last.bandwidth));
            target.device.caches.push(Cache { bytes: *bytes, bandwidth });
        }
    }
    target.device.product_shares = if is_cpu { shares } else { Vec::new() };
    target.device.loops = loops.map(|loops| Loops {
        arithmetic: rounded(loops.arithmetic),
        divisions: rounded(loops.divisions),
        functions: rounded(loops.functions),
        copies: rounded(loops.copies),
        dispatch: rounded(loops.dispatch),
    });
    if backend == Backend::Cpu {
        if let Some(bytes) = available() {
            target.device.capacity = rounded((bytes / ranks as u128) as f64);
        }
        let Line { latency, rate } = line(&points);
        let link = Link { latency: rounded(latency), bandwidth: rounded(rate) };
        target.links = Links { default: link, node: None, axes: Default::default() };
    }
    let link = target.links.default;
    lines.push(format!(
        "products: {:.2} GFLOP/s in f32, {:.2} GFLOP/s in bf16; a launch takes {:.3} us",
        f32 / 1e9,
        bf16 / 1e9,
        target.device.launch * 1e6
    ));
    lines.push(format!("link: {:.2} GB/s after {:.2} us", link.bandwidth / 1e9, link.latency * 1e6));
    Ok(Measured { target, lines })
}

/// Rounds a number to four digits. Further digits differ from one measurement to the next.
fn rounded(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(x)
}
