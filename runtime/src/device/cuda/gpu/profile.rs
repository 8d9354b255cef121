//! The duration of every action of a step on the device, measured by events around each.
//!
//! Launching a kernel takes the host about as long as a short kernel runs, so events around kernels that are launched
//! one by one would measure the host. The stream of a single rank is therefore held back while some of its actions are
//! enqueued.

use super::context::failed;
use super::machine::Gpu;
use super::pinned::Pinned;
use crate::device::cuda::error::CudaError;
use crate::error::RuntimeError;
use cudarc::driver::{result, sys};

/// Number of actions that are enqueued while the stream is held back: far fewer operations than a stream takes before
/// it blocks the host.
const HELD: usize = 64;

/// The duration of an action.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// Position of the rank's program.
    pub rank: usize,
    /// Index of the step of its program.
    pub step: usize,
    /// The step's label.
    pub label: String,
    /// Microseconds; for a wait for a collective, how long it kept the rank's kernels from running.
    pub microseconds: f64,
}

/// Events that are destroyed when this is dropped.
#[derive(Default)]
struct Events(Vec<sys::CUevent>);

impl Events {
    fn record(&mut self, stream: sys::CUstream) -> Result<(), CudaError> {
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("cuEventCreate"))?;
        self.0.push(event);
        // SAFETY: both are alive.
        unsafe { result::event::record(event, stream) }.map_err(failed("cuEventRecord"))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: ours, and not used again. Failures need no handling.
        self.0.iter().for_each(|&e| _ = unsafe { result::event::destroy(e) });
    }
}

impl Gpu {
    /// Runs consecutive steps and returns the milliseconds of each, from the device's clock.
    ///
    /// # Errors
    /// The errors of [`Gpu::enqueue_step`] and [`Gpu::finish`].
    pub fn time_steps(&mut self, count: usize) -> Result<Vec<f64>, RuntimeError> {
        self.context.make_current()?;
        let stream = self.lanes[0].compute;
        let mut events = Events::default();
        for _ in 0..count {
            events.record(stream)?;
            self.enqueue_step()?;
            events.record(stream)?;
        }
        self.finish()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(stream) }.map_err(failed("cuStreamSynchronize"))?;
        let taken = |pair: &[sys::CUevent]| {
            // SAFETY: both are alive, and were recorded.
            let milliseconds = unsafe { result::event::elapsed(pair[0], pair[1]) };
            Ok(f64::from(milliseconds.map_err(failed("cuEventElapsedTime"))?))
        };
        events.0.chunks(2).map(taken).collect()
    }

    /// Runs a step kernel by kernel and returns the time of each action, in the order in which they were enqueued. All
    /// ranks must be in this process.
    ///
    /// # Errors
    /// Errors of the driver or a library.
    pub fn profile(&mut self) -> Result<Vec<Timing>, RuntimeError> {
        self.context.make_current()?;
        self.finish()?;
        self.bring_small_writes()?;
        let (mut events, mut of) = (Events::default(), Vec::new());
        let streams: Vec<sys::CUstream> = self.lanes.iter().map(|l| l.compute).collect();
        let gate = Pinned::new(4)?;
        let at = gate.on_device()?;
        let mut gates = 0u32;
        // If the device or driver cannot wait for a word, the stream is not held back.
        let mut holds = streams.len() == 1 && self.programs.iter().all(|p| p.collectives().next().is_none());
        let mut count = 0;
        let enqueued = self.enqueue(&mut |rank, item, done| {
            if !done && holds && count % HELD == 0 {
                gate.store(0, gates);
                // CU_STREAM_WAIT_VALUE_GEQ.
                // SAFETY: the word is mapped memory, which lives until the stream has been waited for.
                let waits = unsafe { sys::cuStreamWaitValue32_v2(streams[rank], at, gates + 1, 0) };
                holds = waits.result().is_ok();
                gates += u32::from(holds);
            }
            if !done {
                count += 1;
                of.push((rank, item));
            }
            events.record(streams[rank])
        });
        gate.store(0, u32::MAX >> 1);
        let enqueued = enqueued.map(drop);
        for stream in streams {
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(stream) }.map_err(failed("cuStreamSynchronize"))?;
        }
        enqueued?;
        let timing = |((rank, item), pair): ((usize, usize), &[sys::CUevent])| {
            // SAFETY: both are alive, and were recorded.
            let taken = unsafe { result::event::elapsed(pair[0], pair[1]) };
            let milliseconds = taken.map_err(failed("cuEventElapsedTime"))?;
            let step = self.plan.ranks[rank].items[item].0;
            let label = self.programs[rank].steps[step].label.to_string();
            Ok(Timing { rank, step, label, microseconds: f64::from(milliseconds) * 1e3 })
        };
        of.into_iter().zip(events.0.chunks(2)).map(timing).collect()
    }
}
