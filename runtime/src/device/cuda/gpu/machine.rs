//! Ranks on a device: one allocation, streams and events, and a step that is captured once and then
//! replayed.
//!
//! Every rank has a stream for kernels and products and one for collectives. A collective begins when
//! the kernels before its start are done (an event), and what comes behind its wait begins when it is
//! done (another one); the host waits for nothing within a step. Ranks of one process share collectives
//! as kernels (`emit/collective.rs`), ranks of several processes use NCCL.

use super::context::{Context, failed};
use super::module::Functions;
use super::nccl::Network;
use super::product::Products;
use crate::device::cuda::emit::{Item, Kernels, Launch, Placed, Plan, plan};
use crate::device::cuda::error::CudaError;
use crate::device::extent;
use crate::device::session::Device;
use crate::error::RuntimeError;
use crate::session::StepReport;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tpc_ir::program::{Binding, RankProgram};

/// How programs are executed on a GPU.
#[derive(Clone)]
pub struct GpuOptions {
    /// Number of the device.
    pub device: usize,
    /// Whether a step is captured as a graph and replayed, from the second one on.
    pub graph: bool,
    /// Whether products are the library's, where it can take them.
    pub library: bool,
    /// How long a step may take.
    pub deadline: Duration,
    /// Peers in other processes. Without, all ranks are in this one.
    pub network: Option<Arc<Network>>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        GpuOptions { device: 0, graph: true, library: true, deadline: Duration::from_secs(60), network: None }
    }
}

/// Programs whose kernels a device has.
pub struct Compiled {
    context: Arc<Context>,
    functions: Arc<Functions>,
    programs: Vec<RankProgram>,
    plan: Plan,
}

impl Compiled {
    /// Compiles the programs of many meshes together.
    ///
    /// # Errors
    /// No device, no compiler, programs that cannot be executed.
    pub fn batch(worlds: Vec<Vec<RankProgram>>, options: &GpuOptions) -> Result<Vec<Self>, RuntimeError> {
        let mut kernels = Kernels::default();
        let mut plans = Vec::new();
        for programs in &worlds {
            let mut plan = plan(programs, kernels)?;
            kernels = std::mem::take(&mut plan.kernels);
            plans.push(plan);
        }
        let context = Context::open(options.device)?;
        let functions = Arc::new(Functions::load(&context, &kernels)?);
        let make = |(programs, plan)| Compiled {
            context: context.clone(),
            functions: functions.clone(),
            programs,
            plan: Plan { kernels: kernels.clone(), ..plan },
        };
        Ok(worlds.into_iter().zip(plans).map(make).collect())
    }
}

/// The streams of one rank, and two events for each of its collectives: its operands are ready, its
/// results are.
struct Lane {
    compute: sys::CUstream,
    communicate: sys::CUstream,
    ready: Vec<sys::CUevent>,
    done: Vec<sys::CUevent>,
    /// The prepared product of each item, for those of the library.
    products: Vec<Option<usize>>,
}

/// Programs on a GPU.
pub struct Gpu {
    context: Arc<Context>,
    options: GpuOptions,
    programs: Vec<RankProgram>,
    plan: Plan,
    functions: Arc<Functions>,
    products: Option<Products>,
    memory: sys::CUdeviceptr,
    lanes: Vec<Lane>,
    fork: sys::CUevent,
    joins: Vec<sys::CUevent>,
    end: sys::CUevent,
    graph: Option<sys::CUgraphExec>,
    steps: u64,
}

// SAFETY: everything that belongs to the driver may be used from any thread in which the context is
// current, and every method makes it current first.
unsafe impl Send for Gpu {}

fn event() -> Result<sys::CUevent, CudaError> {
    result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(failed("cuEventCreate"))
}

fn stream() -> Result<sys::CUstream, CudaError> {
    result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("cuStreamCreate"))
}

fn record(event: sys::CUevent, stream: sys::CUstream) -> Result<(), CudaError> {
    // SAFETY: both are alive.
    unsafe { result::event::record(event, stream) }.map_err(failed("cuEventRecord"))
}

fn wait(stream: sys::CUstream, event: sys::CUevent) -> Result<(), CudaError> {
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: both are alive.
    unsafe { result::stream::wait_event(stream, event, flags) }.map_err(failed("cuStreamWaitEvent"))
}

impl Gpu {
    /// Compiles programs for a device, allocates their memory, zeroed, and prepares their products. All
    /// ranks of a mesh, or one of them and a network.
    ///
    /// # Errors
    /// No device, a library that is missing, too little memory, programs that cannot be executed.
    pub fn new(programs: Vec<RankProgram>, options: GpuOptions) -> Result<Self, RuntimeError> {
        Gpu::open(Compiled::batch(vec![programs], &options)?.remove(0), options)
    }

    /// As [`Gpu::new`] for programs that were compiled before.
    ///
    /// # Errors
    /// As [`Gpu::new`].
    pub fn open(compiled: Compiled, options: GpuOptions) -> Result<Self, RuntimeError> {
        let Compiled { context, functions, programs, plan } = compiled;
        if let Some(network) = &options.network {
            for placed in plan.ranks.iter().flat_map(|r| &r.collectives) {
                network.join(&placed.collective.group)?;
            }
        } else if let Some(c) = plan
            .ranks
            .iter()
            .flat_map(|r| &r.collectives)
            .find(|c| c.collective.group.iter().any(|r| !programs.iter().any(|p| p.rank == *r)))
        {
            let what = crate::comm::describe(&c.collective);
            return Err(RuntimeError::Launch(format!("{what} has ranks in other processes, but there is no network")));
        }
        // SAFETY: freed when this is dropped.
        let memory = unsafe { result::malloc_sync(plan.bytes.max(1)) };
        let free = context.memory().map_or(0, |m| m.0);
        let memory = memory.map_err(|_| CudaError::OutOfMemory { bytes: plan.bytes, free })?;
        let mut gpu = Gpu {
            context,
            functions,
            products: None,
            memory,
            lanes: Vec::new(),
            fork: event()?,
            joins: Vec::new(),
            end: event()?,
            graph: None,
            steps: 0,
            options,
            programs,
            plan,
        };
        gpu.prepare()?;
        let stream = gpu.lanes[0].compute;
        // SAFETY: the memory is ours and that large. Only the stream is waited for, never the whole
        // context: a peer on this device may be in a collective that waits for this very rank.
        unsafe {
            result::memset_d8_async(memory, 0, gpu.plan.bytes.max(1), stream)
                .and_then(|()| result::stream::synchronize(stream))
                .map_err(failed("clearing the memory"))?;
        }
        Ok(gpu)
    }

    fn prepare(&mut self) -> Result<(), CudaError> {
        let of_library = |item: &Item| matches!(item, Item::Product { library: Some(_), .. });
        let any = self.plan.ranks.iter().flat_map(|r| &r.items).any(|(_, item)| of_library(item));
        if self.options.library && any {
            self.products = Some(Products::load(&self.context, self.plan.ranks.len())?);
        }
        for rank in &self.plan.ranks {
            let compute = stream()?;
            let events = || rank.collectives.iter().map(|_| event()).collect::<Result<Vec<_>, _>>();
            let mut products = vec![None; rank.items.len()];
            if let Some(library) = &mut self.products {
                for (slot, (_, item)) in products.iter_mut().zip(&rank.items) {
                    if let Item::Product { library: Some(p), .. } = item {
                        *slot = library.prepare(&p.gemm, compute)?;
                    }
                }
            }
            self.lanes.push(Lane { compute, communicate: stream()?, ready: events()?, done: events()?, products });
            self.joins.push(event()?);
        }
        Ok(())
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Bytes of device memory that programs have.
    pub fn allocated_bytes(&self) -> usize {
        self.plan.bytes
    }

    fn launch(&self, l: &Launch, stream: sys::CUstream) -> Result<(), CudaError> {
        let kernel = &self.plan.kernels.list()[l.kernel];
        let mut memory = self.memory;
        let mut args = l.args.clone();
        let mut params: Vec<*mut c_void> = vec![(&raw mut memory).cast()];
        params.extend(args.iter_mut().map(|a| (&raw mut *a).cast::<c_void>()));
        let function = self.functions.of(l.kernel);
        // SAFETY: the kernel has these parameters, which are copied at once, and addresses only what was
        // found to lie in the memory when it was planned.
        unsafe {
            result::launch_kernel(function, (l.grid, 1, 1), (kernel.block, 1, 1), kernel.shared, stream, &mut params)
        }
        .map_err(failed(&format!("launching `{}`", kernel.name)))
    }

    /// Enqueues a step on all streams, behind the first rank's.
    fn enqueue(&self) -> Result<(), CudaError> {
        let origin = self.lanes[0].compute;
        record(self.fork, origin)?;
        self.lanes[1..].iter().try_for_each(|l| wait(l.compute, self.fork))?;
        let ranks = self.lanes.len();
        let mut next = vec![0; ranks];
        let mut started: Vec<Vec<bool>> = self.lanes.iter().map(|l| vec![false; l.ready.len()]).collect();
        let mut enqueued = started.clone();
        loop {
            let mut moved = false;
            for r in 0..ranks {
                while let Some((_, item)) = self.plan.ranks[r].items.get(next[r]) {
                    let lane = &self.lanes[r];
                    match item {
                        Item::Launch(l) => self.launch(l, lane.compute)?,
                        Item::Product { library, kernel } => match (library, lane.products[next[r]], &self.products) {
                            (Some(p), Some(prepared), Some(products)) => {
                                p.packing.iter().try_for_each(|l| self.launch(l, lane.compute))?;
                                products.enqueue(&p.gemm, prepared, self.memory, r, lane.compute)?;
                            }
                            _ => kernel.iter().try_for_each(|l| self.launch(l, lane.compute))?,
                        },
                        Item::Start(i) => {
                            record(lane.ready[*i], lane.compute)?;
                            started[r][*i] = true;
                            self.communicate(r, *i, &started, &mut enqueued)?;
                        }
                        // A wait needs an event that was recorded: the peers' kernels go first.
                        Item::Wait(i) if !enqueued[r][*i] => break,
                        Item::Wait(i) => wait(lane.compute, lane.done[*i])?,
                    }
                    next[r] += 1;
                    moved = true;
                }
            }
            match (0..ranks).find(|&r| next[r] < self.plan.ranks[r].items.len()) {
                None => break,
                Some(r) if !moved => {
                    let call = format!("rank {r} of a step");
                    let reason = "it waits for a collective that not all of its group start".into();
                    return Err(CudaError::Call { call, reason });
                }
                Some(_) => {}
            }
        }
        for (lane, &join) in self.lanes[1..].iter().zip(&self.joins) {
            record(join, lane.compute)?;
            wait(origin, join)?;
        }
        Ok(())
    }

    /// Enqueues a collective that a rank has started, if it is the last of its group in this process.
    fn communicate(
        &self,
        r: usize,
        i: usize,
        started: &[Vec<bool>],
        enqueued: &mut [Vec<bool>],
    ) -> Result<(), CudaError> {
        let placed = &self.plan.ranks[r].collectives[i];
        if let Some(network) = &self.options.network {
            let lane = &self.lanes[r];
            wait(lane.communicate, lane.ready[i])?;
            placed.wire.before.iter().try_for_each(|l| self.launch(l, lane.communicate))?;
            network.enqueue(placed, self.memory, lane.communicate.cast())?;
            placed.wire.after.iter().try_for_each(|l| self.launch(l, lane.communicate))?;
            record(lane.done[i], lane.communicate)?;
            enqueued[r][i] = true;
            return Ok(());
        }
        let c = &placed.collective;
        let member = |rank: &usize| {
            let at = self.programs.iter().position(|p| p.rank == *rank)?;
            let of_tag = |x: &Placed| x.collective.tag == c.tag && x.collective.group == c.group;
            Some((at, self.plan.ranks[at].collectives.iter().position(of_tag)?))
        };
        let members: Option<Vec<(usize, usize)>> = c.group.iter().map(member).collect();
        let Some(members) = members.filter(|m| m.iter().all(|&(at, of)| started[at][of])) else { return Ok(()) };
        let (first, of) = members[0];
        let stream = self.lanes[first].communicate;
        members.iter().try_for_each(|&(at, of)| wait(stream, self.lanes[at].ready[of]))?;
        let kernels = &self.plan.ranks[first].collectives[of].local;
        kernels.iter().try_for_each(|l| self.launch(l, stream))?;
        for (at, of) in members {
            record(self.lanes[at].done[of], stream)?;
            enqueued[at][of] = true;
        }
        Ok(())
    }

    /// Captures a step as a graph.
    fn capture(&mut self) -> Result<(), CudaError> {
        let origin = self.lanes[0].compute;
        // Other threads of the process may allocate meanwhile; this one does not.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and nothing but this step is enqueued until the capture ends.
        unsafe { result::stream::begin_capture(origin, mode) }.map_err(failed("cuStreamBeginCapture"))?;
        let enqueued = self.enqueue();
        // SAFETY: the capture was begun above.
        let graph = unsafe { result::stream::end_capture(origin) }.map_err(failed("cuStreamEndCapture"));
        enqueued?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        // SAFETY: the graph was captured above, and is destroyed when it has been instantiated.
        let made = unsafe {
            let made = result::graph::instantiate(graph, flags).map_err(failed("cuGraphInstantiate"));
            let _ = result::graph::destroy(graph);
            made?
        };
        self.graph = Some(made);
        Ok(())
    }

    /// Enqueues a step without waiting for it. The first one is enqueued kernel by kernel, so that the
    /// libraries have met every shape before a capture.
    ///
    /// # Errors
    /// What the driver or a library says.
    pub fn enqueue_step(&mut self) -> Result<(), CudaError> {
        self.context.make_current()?;
        if self.options.graph && self.steps > 0 && self.graph.is_none() {
            self.capture()?;
        }
        self.steps += 1;
        match self.graph {
            // SAFETY: the graph is alive, and so is everything that it uses.
            Some(graph) => {
                unsafe { result::graph::launch(graph, self.lanes[0].compute) }.map_err(failed("cuGraphLaunch"))?
            }
            None => self.enqueue()?,
        }
        record(self.end, self.lanes[0].compute)
    }

    /// Waits for all steps that were enqueued.
    ///
    /// # Errors
    /// A kernel or a collective failed, or did not finish in time.
    pub fn finish(&self) -> Result<(), CudaError> {
        self.context.make_current()?;
        let start = Instant::now();
        let deadline = self.options.network.as_ref().map_or(self.options.deadline, |n| n.deadline());
        loop {
            // SAFETY: the event is alive.
            match unsafe { result::event::query(self.end) } {
                Ok(()) => return Ok(()),
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => {}
                Err(e) => return Err(failed("a step")(e)),
            }
            if let Some(error) = self.options.network.as_ref().and_then(|n| n.failure()) {
                return Err(error);
            }
            if start.elapsed() > deadline {
                if let Some(network) = &self.options.network {
                    network.abort_all();
                }
                let rank = self.programs.first().map_or(0, |p| p.rank);
                return Err(CudaError::Deadline { rank, operation: "a step".into(), deadline });
            }
            if start.elapsed() > Duration::from_millis(2) {
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::thread::yield_now();
            }
        }
    }

    fn place(&self, rank: usize, binding: &Binding) -> Result<(sys::CUdeviceptr, usize), RuntimeError> {
        let p = &self.programs[rank];
        let view = &binding.view;
        let place = extent::resolve(p.arena_bytes, &p.buffers, view, &view.shape, &view.strides);
        let place = place.map_err(RuntimeError::Launch)?;
        Ok((self.memory + (self.plan.ranks[rank].base + place.base) as u64, view.elements() * view.dtype.bytes()))
    }
}

impl Device for Gpu {
    fn programs(&self) -> &[RankProgram] {
        &self.programs
    }

    fn read(&self, rank: usize, binding: &Binding) -> Result<Vec<u8>, RuntimeError> {
        let (at, len) = self.place(rank, binding)?;
        let mut bytes = vec![0u8; len];
        if len > 0 {
            self.context.make_current()?;
            let stream = self.lanes[rank].compute;
            // SAFETY: the view lies in the memory; the stream orders the copy behind all steps, and it is
            // waited for.
            unsafe {
                result::memcpy_dtoh_async(&mut bytes, at, stream)
                    .and_then(|()| result::stream::synchronize(stream))
                    .map_err(failed("copying from the device"))?;
            }
        }
        Ok(bytes)
    }

    fn write(&mut self, rank: usize, binding: &Binding, bytes: &[u8]) -> Result<(), RuntimeError> {
        let (at, len) = self.place(rank, binding)?;
        if len != bytes.len() {
            let shape = format!("{}{:?}", binding.view.dtype, binding.view.shape);
            return Err(RuntimeError::Size { name: "box".into(), expected: len, given: bytes.len(), shape });
        }
        if len > 0 {
            self.context.make_current()?;
            let stream = self.lanes[rank].compute;
            // SAFETY: as above. On the stream, because a copy on another one could still be under way
            // when a step begins.
            unsafe {
                result::memcpy_htod_async(at, bytes, stream)
                    .and_then(|()| result::stream::synchronize(stream))
                    .map_err(failed("copying to the device"))?;
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<StepReport, RuntimeError> {
        let start = Instant::now();
        self.enqueue_step()?;
        self.finish()?;
        Ok(StepReport { seconds: start.elapsed().as_secs_f64() })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.make_current().is_err() {
            return;
        }
        // SAFETY: everything is ours, and nothing runs any more once our streams are idle, or have failed.
        // Failures leave nothing to do.
        unsafe {
            for stream in self.lanes.iter().flat_map(|l| [l.compute, l.communicate]) {
                let _ = result::stream::synchronize(stream);
            }
            if let Some(graph) = self.graph.take() {
                let _ = result::graph::exec_destroy(graph);
            }
            let events = self.lanes.iter().flat_map(|l| l.ready.iter().chain(&l.done)).chain(&self.joins);
            events.chain([&self.fork, &self.end]).for_each(|&e| _ = result::event::destroy(e));
            let streams = self.lanes.iter().flat_map(|l| [l.compute, l.communicate]);
            streams.for_each(|s| _ = result::stream::destroy(s));
            let _ = result::free_sync(self.memory);
        }
    }
}
