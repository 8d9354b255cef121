//! Ranks on a device with separate memory. The host keeps no copy of their arenas: writes go to the device at once, and
//! reads fetch only the requested part.

use super::bindings::check_bindings;
use super::fault::{inject, panic_message};
use super::loaded::{Loaded, RankShared, Written};
use super::lock::lock;
use super::options::LaunchOptions;
use crate::comm::Processes;
use crate::device::attached::{Device, StepReport};
use crate::error::RuntimeError;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use tpc_ir::program::{Binding, RankProgram};

/// A device with the ranks of this process.
pub(super) struct Attached {
    device: Mutex<Box<dyn Device>>,
    /// The rank of its first program.
    first: usize,
    /// Size of each rank's arena: the maximum over its programs so far.
    arenas: Mutex<Vec<usize>>,
}

impl Attached {
    pub(super) fn new(device: Box<dyn Device>) -> Arc<Self> {
        let first = first_rank(device.programs());
        let arenas = device.programs().iter().map(|p| p.arena_bytes).collect();
        Arc::new(Attached { device: Mutex::new(device), first, arenas: Mutex::new(arenas) })
    }

    pub(super) fn read(&self, rank: usize, binding: &Binding, bytes: Range<usize>) -> Result<Vec<u8>, RuntimeError> {
        lock(&self.device).read_range(rank - self.first, binding, bytes)
    }

    pub(super) fn write(&self, rank: usize, binding: &Binding, bytes: &[u8]) -> Result<(), RuntimeError> {
        lock(&self.device).write(rank - self.first, binding, bytes)
    }

    /// Switches the device to other programs. Arenas never shrink, because other programs of the session keep values
    /// there.
    pub(super) fn switch_to(&self, programs: &[RankProgram]) -> Result<(), RuntimeError> {
        let mut programs = programs.to_vec();
        for (program, largest) in programs.iter_mut().zip(&mut *lock(&self.arenas)) {
            *largest = program.arena_bytes.max(*largest);
            program.arena_bytes = *largest;
        }
        lock(&self.device).switch_to(programs)
    }

    /// The state of its ranks, after checking all their bindings.
    pub(super) fn loaded(&self) -> Result<Vec<Loaded>, RuntimeError> {
        let device = lock(&self.device);
        let loaded = |(at, program): (usize, &RankProgram)| {
            check_bindings(program)?;
            let written = program.inputs.iter().map(|_| Written::default()).collect();
            Ok(Loaded { arena: None, scratch_bytes: device.scratch_bytes(at), written })
        };
        device.programs().iter().enumerate().map(loaded).collect()
    }

    /// Runs the programs once, and counts the executed collectives.
    pub(super) fn step(
        &self,
        step: u64,
        options: &LaunchOptions,
        processes: &dyn Processes,
        ranks: &[RankShared],
    ) -> Result<StepReport, RuntimeError> {
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            (0..ranks.len()).for_each(|at| inject(options, processes, self.first + at, step));
            lock(&self.device).step()
        }));
        let stepped = stepped.unwrap_or_else(|panic| {
            let message = panic_message(&*panic);
            Err(RuntimeError::Panic { rank: self.first, operation: "a step".into(), message })
        });
        match &stepped {
            Ok(_) => {
                let device = lock(&self.device);
                for (at, rank) in ranks.iter().enumerate() {
                    let executed = device.executed(at);
                    executed.iter().enumerate().filter(|(_, e)| **e).for_each(|(i, _)| rank.counters.count(i));
                }
            }
            Err(e) => {
                processes.fail(self.first, &e.to_string());
                if let Some(rank) = ranks.first() {
                    *lock(&rank.result) = Err(e.clone());
                }
            }
        }
        stepped
    }
}

/// The rank of the first program.
fn first_rank(programs: &[RankProgram]) -> usize {
    programs.first().map_or(0, |program| program.rank)
}

/// Prepares the programs of this process's ranks on a GPU.
///
/// # Errors
/// No such device; too little memory; another process that failed.
#[cfg(all(unix, feature = "cuda"))]
pub(super) fn cuda(
    programs: &[RankProgram],
    processes: &Arc<dyn Processes>,
    options: &LaunchOptions,
) -> Result<Box<dyn Device>, RuntimeError> {
    use crate::comm::processes::together;
    use crate::device::cuda::gpu::{Compiled, Gpu, GpuOptions, Network, Share};
    let (first, deadline) = (first_rank(programs), options.deadline);
    let mine = programs.to_vec();
    let prepared = (|| {
        let mut gpu = GpuOptions { deadline, ..GpuOptions::default() };
        if processes.count() > 1 {
            let (process, on_host) = processes.on_host();
            let share = Share::of(process, on_host)?;
            // Before the context is created and NCCL is loaded, which read them.
            share.set_environment();
            gpu.device = share.device;
            gpu.network = Some(Network::of_processes(first, deadline, processes.clone())?);
        }
        Ok((Compiled::batch(vec![mine], &gpu)?.remove(0), gpu))
    })();
    let (compiled, gpu) = together(&**processes, "launch: compile for the GPU", prepared, deadline)?;
    Ok(Box::new(Gpu::open(compiled, gpu)?))
}

/// The error that there is no device in this build.
///
/// # Errors
/// Always.
#[cfg(not(all(unix, feature = "cuda")))]
pub(super) fn cuda(
    _: &[RankProgram],
    _: &Arc<dyn Processes>,
    _: &LaunchOptions,
) -> Result<Box<dyn Device>, RuntimeError> {
    Err(without_cuda())
}

/// The error of a build without CUDA when a GPU is requested.
#[cfg(any(test, not(all(unix, feature = "cuda"))))]
fn without_cuda() -> RuntimeError {
    let reason = "this program was built without CUDA; build it with the feature `cuda` (`cargo build --features cuda`), or run on the CPU";
    RuntimeError::Launch(reason.into())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_build_without_cuda_says_so() {
        let expected = "cannot launch: this program was built without CUDA; build it with the feature `cuda` (`cargo build --features cuda`), or run on the CPU";
        assert_eq!(super::without_cuda().to_string(), expected);
    }
}
