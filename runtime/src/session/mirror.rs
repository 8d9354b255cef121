//! Ranks on a device with memory of its own: the session's arenas are what its host sees of it.
//!
//! What is written lies in the arena until the next step, which brings it to the device; what is read comes from the device when it is
//! first asked for after a step. So saving, loading and checkpoints are those of ranks on the CPU.

use crate::device::session::Device;
use crate::error::RuntimeError;
use crate::session::StepReport;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tpc_ir::program::{Binding, RankProgram};

/// What executes the ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// A thread for every rank.
    #[default]
    Cpu,
    /// An NVIDIA GPU, with the feature `cuda`: all ranks of the process on the first one. Has not run on a real one yet, see `GPU.md`.
    Cuda,
}

/// A device, and which of its values the arenas have.
pub(super) struct Mirror {
    state: Mutex<State>,
}

struct State {
    device: Box<dyn Device + Send>,
    /// Inputs that were written and the device does not have yet: rank, position.
    written: HashSet<(usize, usize)>,
    /// Places in the arenas that are as on the device, or newer.
    fresh: HashSet<Place>,
}

/// Rank, buffer, offset, bytes.
type Place = (usize, u32, usize, usize);

fn place(rank: usize, binding: &Binding) -> Place {
    let view = &binding.view;
    (rank, view.buffer.0, view.offset, view.elements() * view.dtype.bytes())
}

impl Mirror {
    /// Prepares the programs on a device.
    ///
    /// # Errors
    /// No such device, or not in this build; too little memory.
    pub(super) fn open(
        backend: Backend,
        programs: &[RankProgram],
        deadline: Duration,
    ) -> Result<Option<Mirror>, RuntimeError> {
        let device = match backend {
            Backend::Cpu => return Ok(None),
            Backend::Cuda => cuda(programs, deadline)?,
        };
        let state = State { device, written: HashSet::new(), fresh: HashSet::new() };
        Ok(Some(Mirror { state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an input lies in the arena of a rank and not yet on the device.
    pub(super) fn note_written(&self, rank: usize, input: usize, binding: &Binding) {
        let mut state = self.state();
        state.written.insert((rank, input));
        state.fresh.insert(place(rank, binding));
    }

    /// Brings a binding to the arena if it is not there; `write` takes its dense bytes.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn refresh(
        &self,
        rank: usize,
        binding: &Binding,
        write: impl FnOnce(&[u8]),
    ) -> Result<(), RuntimeError> {
        let mut state = self.state();
        let place = place(rank, binding);
        if binding.view.elements() > 0 && !state.fresh.contains(&place) {
            // Only what did arrive is fresh.
            write(&state.device.read(rank, binding)?);
            state.fresh.insert(place);
        }
        Ok(())
    }

    /// Brings what was written to the device and runs the programs once; `read` gives the dense bytes of an input.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn step(
        &self,
        read: impl Fn(usize, usize) -> Result<(Binding, Vec<u8>), RuntimeError>,
    ) -> Result<StepReport, RuntimeError> {
        let mut state = self.state();
        let written: Vec<(usize, usize)> = state.written.drain().collect();
        for (rank, input) in written {
            let (binding, bytes) = read(rank, input)?;
            state.device.write(rank, &binding, &bytes)?;
        }
        state.fresh.clear();
        state.device.step()
    }
}

#[cfg(all(unix, feature = "cuda"))]
fn cuda(programs: &[RankProgram], deadline: Duration) -> Result<Box<dyn Device + Send>, RuntimeError> {
    use crate::device::cuda::gpu::{Gpu, GpuOptions};
    Ok(Box::new(Gpu::new(programs.to_vec(), GpuOptions { deadline, ..GpuOptions::default() })?))
}

#[cfg(not(all(unix, feature = "cuda")))]
fn cuda(_: &[RankProgram], _: Duration) -> Result<Box<dyn Device + Send>, RuntimeError> {
    let reason = "this program was built without CUDA; build it with the feature `cuda` (`cargo build --features cuda`), or run on the CPU";
    Err(RuntimeError::Launch(reason.into()))
}
