//! Ranks on a device: one allocation, streams and events, and a step that is captured once and then replayed.
//!
//! Every rank has a stream for kernels and products and a stream for collectives. A collective begins when the kernels
//! before its start are done (an event), and the actions after its wait begin when it is done (another event); the host
//! waits for nothing within a step. Ranks of one process run collectives as kernels (`emit/collective.rs`), ranks of
//! several processes use NCCL.

use super::context::{Context, failed};
use super::module::Functions;
use super::nccl::Network;
use super::product::Products;
use super::progress::Progress;
use super::staging::Staging;
use crate::device::attached::{Device, StepReport};
use crate::device::cuda::emit::{DevicePlan, Item, Kernels, Launch, Placed, plan, plan_at};
use crate::device::cuda::error::CudaError;
use crate::device::extent;
use crate::error::RuntimeError;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tpc_ir::program::{Binding, Collective, RankProgram};

/// How programs are executed on a GPU.
#[derive(Clone)]
pub struct GpuOptions {
    /// Number of the device.
    pub device: usize,
    /// Whether steps from the second one on are captured as a graph and replayed.
    pub graph: bool,
    /// Whether the library computes the products that it supports.
    pub library: bool,
    /// The longest duration of a step; for ranks with a network, the longest time without the beginning or end of a
    /// collective.
    pub deadline: Duration,
    /// The peers in other processes. Without a network, all ranks are in this process.
    pub network: Option<Arc<Network>>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        GpuOptions { device: 0, graph: true, library: true, deadline: Duration::from_secs(60), network: None }
    }
}

/// Programs whose kernels are loaded on a device.
pub struct Compiled {
    context: Arc<Context>,
    functions: Arc<Functions>,
    programs: Vec<RankProgram>,
    plan: DevicePlan,
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
            plan: DevicePlan { kernels: kernels.clone(), ..plan },
        };
        Ok(worlds.into_iter().zip(plans).map(make).collect())
    }
}

/// The streams of one rank, and two events per collective: its operands are ready, and its results are ready.
pub(super) struct Lane {
    pub(super) compute: sys::CUstream,
    communicate: sys::CUstream,
    ready: Vec<sys::CUevent>,
    done: Vec<sys::CUevent>,
    /// For each item that is a product of the library: the way of computing it, and the prepared product.
    products: Vec<Option<(usize, usize)>>,
}

/// How many products are computed in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProductCounts {
    /// By the library, without an epilogue other than scaling.
    pub alone: usize,
    /// By the library, including the epilogue.
    pub with_epilogue: usize,
    /// By the library, with the epilogue in kernels after the product.
    pub followed: usize,
    /// By generated kernels.
    pub generated: usize,
}

/// How long streams may take to end aborted work.
const AFTER_ABORT: Duration = Duration::from_secs(2);

/// Programs on a GPU.
pub struct Gpu {
    pub(super) context: Arc<Context>,
    options: GpuOptions,
    pub(super) programs: Vec<RankProgram>,
    pub(super) plan: DevicePlan,
    functions: Arc<Functions>,
    products: Option<Products>,
    memory: sys::CUdeviceptr,
    /// Bytes of the memory.
    bytes: usize,
    pub(super) lanes: Vec<Lane>,
    fork: sys::CUevent,
    joins: Vec<sys::CUevent>,
    end: sys::CUevent,
    graph: Option<sys::CUgraphExec>,
    /// Number of steps of the current programs.
    steps: u64,
    staging: ManuallyDrop<Staging>,
    /// The progress of collectives, for ranks in several processes.
    progress: Option<Progress>,
    /// For every rank's collectives, whether the most recently enqueued step executes it.
    executed: Vec<Vec<bool>>,
    /// Work that never ends may still be running.
    broken: AtomicBool,
}

/// A callback that is told the position in a step while it is enqueued: `(rank, item, whether it comes after the
/// item)`.
pub(super) type Probe<'a> = dyn FnMut(usize, usize, bool) -> Result<(), CudaError> + 'a;

// SAFETY: all objects of the driver may be used from any thread in which the context is current, and every method makes
// it current first.
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
    /// Compiles programs for a device, allocates zeroed memory for them, and prepares their products. The programs are
    /// those of all ranks of a mesh, or of one rank with a network.
    ///
    /// # Errors
    /// No device, a library that is missing, too little memory, programs that cannot be executed.
    pub fn new(programs: Vec<RankProgram>, options: GpuOptions) -> Result<Self, RuntimeError> {
        Gpu::open(Compiled::batch(vec![programs], &options)?.remove(0), options)
    }

    /// Like [`Gpu::new`] for programs that are already compiled.
    ///
    /// # Errors
    /// The errors of [`Gpu::new`].
    pub fn open(compiled: Compiled, options: GpuOptions) -> Result<Self, RuntimeError> {
        let Compiled { context, functions, programs, plan } = compiled;
        meet(&options, &programs, Ok(&plan))?;
        context.make_current()?;
        let memory = allocate(&context, plan.bytes)?;
        let mut gpu = Gpu {
            context,
            functions,
            products: None,
            memory,
            bytes: plan.bytes,
            lanes: Vec::new(),
            fork: event()?,
            joins: Vec::new(),
            end: event()?,
            graph: None,
            steps: 0,
            staging: ManuallyDrop::new(Staging::new()?),
            progress: None,
            executed: Vec::new(),
            broken: AtomicBool::new(false),
            options,
            programs,
            plan,
        };
        gpu.prepare()?;
        let stream = gpu.lanes[0].compute;
        // SAFETY: the memory is ours and has this size. Only the stream is waited for, not the whole context, because a
        // peer on this device may be in a collective that waits for this rank.
        unsafe {
            result::memset_d8_async(memory, 0, gpu.plan.bytes.max(1), stream)
                .and_then(|()| result::stream::synchronize(stream))
                .map_err(failed("clearing the memory"))?;
        }
        Ok(gpu)
    }

    /// Creates streams, events and products for the plan.
    fn prepare(&mut self) -> Result<(), CudaError> {
        let of_library = |item: &Item| matches!(item, Item::Product { library, .. } if !library.is_empty());
        let any = self.plan.ranks.iter().flat_map(|r| &r.items).any(|(_, item)| of_library(item));
        if self.options.library && any && self.products.is_none() {
            self.products = Some(Products::load(&self.context, self.plan.ranks.len())?);
        }
        for rank in &self.plan.ranks {
            let compute = stream()?;
            let events = || rank.collectives.iter().map(|_| event()).collect::<Result<Vec<_>, _>>();
            let mut products = vec![None; rank.items.len()];
            if let Some(library) = self.products.as_mut().filter(|_| self.options.library) {
                for (slot, (_, item)) in products.iter_mut().zip(&rank.items) {
                    let Item::Product { library: ways, .. } = item else { continue };
                    // The first product that the library supports.
                    for (way, product) in ways.iter().enumerate() {
                        *slot = library.prepare(&product.gemm, compute)?.map(|prepared| (way, prepared));
                        if slot.is_some() {
                            break;
                        }
                    }
                }
            }
            self.lanes.push(Lane { compute, communicate: stream()?, ready: events()?, done: events()?, products });
            self.joins.push(event()?);
        }
        self.executed = self.plan.ranks.iter().map(|r| vec![false; r.collectives.len()]).collect();
        let processes = self.options.network.as_ref().and_then(|n| n.processes());
        if let (Some(processes), [plan], [program]) = (processes, &self.plan.ranks[..], &self.programs[..]) {
            let collectives = plan.collectives.iter().map(|c| c.collective.clone()).collect();
            let stream = self.lanes[0].communicate;
            self.progress = Some(Progress::new(program.rank, processes.clone(), collectives, stream)?);
        }
        Ok(())
    }

    /// Frees what [`Gpu::prepare`] created, except for products; nothing runs any more.
    fn dismantle(&mut self) {
        // SAFETY: all objects are ours, and not used again. Failures need no handling.
        unsafe {
            if let Some(graph) = self.graph.take() {
                let _ = result::graph::exec_destroy(graph);
            }
            for lane in self.lanes.drain(..) {
                lane.ready.iter().chain(&lane.done).for_each(|&e| _ = result::event::destroy(e));
                [lane.compute, lane.communicate].into_iter().for_each(|s| _ = result::stream::destroy(s));
            }
            self.joins.drain(..).for_each(|e| _ = result::event::destroy(e));
        }
        self.progress = None;
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Bytes of device memory that the programs use.
    pub fn allocated_bytes(&self) -> usize {
        self.bytes
    }

    /// Allows later steps to be captured as a graph, regardless of the options.
    pub fn use_graph(&mut self) {
        self.options.graph = true;
    }

    /// How the products of all ranks are computed.
    pub fn products(&self) -> ProductCounts {
        let mut counts = ProductCounts::default();
        for (lane, rank) in self.lanes.iter().zip(&self.plan.ranks) {
            for (chosen, (_, item)) in lane.products.iter().zip(&rank.items) {
                let Item::Product { library, .. } = item else { continue };
                match chosen.map(|(way, _)| &library[way]) {
                    Some(p) if !p.after.is_empty() => counts.followed += 1,
                    Some(p) if p.gemm.has_epilogue() => counts.with_epilogue += 1,
                    Some(_) => counts.alone += 1,
                    None => counts.generated += 1,
                }
            }
        }
        counts
    }

    /// Number of copies of small inputs enqueued so far: inputs that are adjacent in the arena share one copy.
    pub fn small_copies(&self) -> u64 {
        self.staging.copies()
    }

    fn launch(&self, l: &Launch, stream: sys::CUstream) -> Result<(), CudaError> {
        let kernel = &self.plan.kernels.list()[l.kernel];
        let mut memory = self.memory;
        let mut args = l.args.clone();
        let mut params: Vec<*mut c_void> = vec![(&raw mut memory).cast()];
        params.extend(args.iter_mut().map(|a| (&raw mut *a).cast::<c_void>()));
        let function = self.functions.of(l.kernel);
        // SAFETY: the kernel has these parameters, which are copied at once, and it only accesses memory that was
        // checked during planning.
        unsafe {
            result::launch_kernel(function, (l.grid, 1, 1), (kernel.block, 1, 1), kernel.shared, stream, &mut params)
        }
        .map_err(failed(&format!("launching `{}`", kernel.name)))
    }

    /// Enqueues an item of a rank that does not belong to a collective.
    fn compute(&self, r: usize, at: usize) -> Result<(), CudaError> {
        let lane = &self.lanes[r];
        match &self.plan.ranks[r].items[at].1 {
            Item::Launch(l) => self.launch(l, lane.compute),
            Item::Product { library, kernels } => match (lane.products[at], &self.products) {
                (Some((way, prepared)), Some(products)) => {
                    let p = &library[way];
                    p.packing.iter().try_for_each(|l| self.launch(l, lane.compute))?;
                    products.enqueue(&p.gemm, prepared, self.memory, r, lane.compute)?;
                    p.after.iter().try_for_each(|l| self.launch(l, lane.compute))
                }
                _ => kernels.iter().try_for_each(|l| self.launch(l, lane.compute)),
            },
            Item::Start(_) | Item::Wait(_) => Ok(()),
        }
    }

    /// Enqueues a step on all streams, after the first rank's stream. Returns for every rank's collectives whether the
    /// step contains it.
    pub(super) fn enqueue(&self, probe: &mut Probe<'_>) -> Result<Vec<Vec<bool>>, RuntimeError> {
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
                    // A wait needs a recorded event, so the peers' kernels go first.
                    if matches!(item, Item::Wait(i) if !enqueued[r][*i]) {
                        break;
                    }
                    probe(r, next[r], false)?;
                    match item {
                        Item::Launch(_) | Item::Product { .. } => self.compute(r, next[r])?,
                        Item::Start(i) => {
                            record(lane.ready[*i], lane.compute)?;
                            started[r][*i] = true;
                            self.communicate(r, *i, &started, &mut enqueued)?;
                        }
                        Item::Wait(i) => wait(lane.compute, lane.done[*i])?,
                    }
                    probe(r, next[r], true)?;
                    next[r] += 1;
                    moved = true;
                }
            }
            match (0..ranks).find(|&r| next[r] < self.plan.ranks[r].items.len()) {
                None => break,
                Some(r) if !moved => {
                    let call = format!("rank {r} of a step");
                    let reason = "it waits for a collective that not all of its group start".into();
                    return Err(CudaError::Call { call, reason }.into());
                }
                Some(_) => {}
            }
        }
        for (lane, &join) in self.lanes[1..].iter().zip(&self.joins) {
            record(join, lane.compute)?;
            wait(origin, join)?;
        }
        Ok(enqueued)
    }

    /// Enqueues a collective that a rank has started, if the rank is the last of its group in this process.
    fn communicate(
        &self,
        r: usize,
        i: usize,
        started: &[Vec<bool>],
        enqueued: &mut [Vec<bool>],
    ) -> Result<(), RuntimeError> {
        let placed = &self.plan.ranks[r].collectives[i];
        if let Some(network) = &self.options.network {
            let lane = &self.lanes[r];
            wait(lane.communicate, lane.ready[i])?;
            self.progress.iter().try_for_each(|p| p.begin(i, lane.communicate))?;
            placed.wire.before.iter().try_for_each(|l| self.launch(l, lane.communicate))?;
            network.enqueue(placed, self.memory, lane.communicate.cast())?;
            placed.wire.after.iter().try_for_each(|l| self.launch(l, lane.communicate))?;
            self.progress.iter().try_for_each(|p| p.end(i, lane.communicate))?;
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
    fn capture(&mut self) -> Result<(), RuntimeError> {
        match self.try_capture() {
            Err(_) if self.progress.as_ref().is_some_and(|p| p.works) => {
                // A driver may refuse such operations in graphs; messages are then less precise.
                self.progress.iter_mut().for_each(|p| p.works = false);
                self.try_capture()
            }
            tried => tried,
        }
    }

    fn try_capture(&mut self) -> Result<(), RuntimeError> {
        let origin = self.lanes[0].compute;
        // Other threads of the process may allocate in the meantime; this one does not.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and only this step is enqueued until the capture ends.
        unsafe { result::stream::begin_capture(origin, mode) }.map_err(failed("cuStreamBeginCapture"))?;
        let enqueued = self.enqueue(&mut |_, _, _| Ok(()));
        // SAFETY: the capture was begun above.
        let graph = unsafe { result::stream::end_capture(origin) }.map_err(failed("cuStreamEndCapture"));
        let enqueued = enqueued?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        // SAFETY: the graph was captured above, and is destroyed after it has been instantiated.
        let made = unsafe {
            let made = result::graph::instantiate(graph, flags).map_err(failed("cuGraphInstantiate"));
            let _ = result::graph::destroy(graph);
            made?
        };
        (self.graph, self.executed) = (Some(made), enqueued);
        Ok(())
    }

    /// Enqueues the copies of small writes, before a step.
    pub(super) fn bring_small_writes(&mut self) -> Result<(), CudaError> {
        self.staging.flush(self.lanes[0].compute)
    }

    /// Enqueues a step without waiting for it. The first step is enqueued kernel by kernel, so that the libraries have
    /// seen every shape before a capture.
    ///
    /// # Errors
    /// Errors of the driver or a library.
    pub fn enqueue_step(&mut self) -> Result<(), RuntimeError> {
        self.context.make_current()?;
        if self.options.graph && self.steps > 0 && self.graph.is_none() {
            self.capture()?;
        }
        self.bring_small_writes()?;
        self.steps += 1;
        match self.graph {
            // SAFETY: the graph is alive, and so are all objects that it uses.
            Some(graph) => {
                unsafe { result::graph::launch(graph, self.lanes[0].compute) }.map_err(failed("cuGraphLaunch"))?
            }
            None => self.executed = self.enqueue(&mut |_, _, _| Ok(()))?,
        }
        Ok(record(self.end, self.lanes[0].compute)?)
    }

    /// Waits for all enqueued steps.
    ///
    /// # Errors
    /// A kernel or a collective failed, or did not finish in time.
    pub fn finish(&self) -> Result<(), RuntimeError> {
        self.context.make_current()?;
        let network = self.options.network.as_deref();
        let finished = self.wait_for_end(network);
        if finished.is_err() {
            self.broken.store(true, Ordering::Relaxed);
            network.into_iter().for_each(Network::abort_all);
        }
        finished
    }

    fn wait_for_end(&self, network: Option<&Network>) -> Result<(), RuntimeError> {
        let start = Instant::now();
        let mut since = start;
        let deadline = network.map_or(self.options.deadline, Network::deadline);
        let mut watch = network.map(Network::watch);
        let operation = || self.progress.as_ref().map_or_else(|| "a step".into(), Progress::operation);
        loop {
            // SAFETY: the event is alive.
            let ended = match unsafe { result::event::query(self.end) } {
                Ok(()) => true,
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NOT_READY => false,
                Err(e) => return Err(failed("a step")(e).into()),
            };
            if self.progress.as_ref().is_some_and(Progress::look) {
                since = Instant::now();
            }
            if ended {
                return Ok(());
            }
            if let Some(error) = network.and_then(Network::failure) {
                return Err(error.into());
            }
            // A peer may end, or fail in its next work, once it has done its part of this step.
            let alone = self.progress.as_ref().is_some_and(Progress::is_alone);
            if let Some(error) = watch.as_mut().filter(|_| !alone).and_then(|w| w.trouble(operation)) {
                return Err(error);
            }
            if since.elapsed() > deadline {
                if let Some(error) = self.progress.as_ref().and_then(|p| p.late(deadline)) {
                    return Err(error);
                }
                let rank = self.programs.first().map_or(0, |p| p.rank);
                return Err(CudaError::Deadline { rank, operation: "a step".into(), deadline }.into());
            }
            if start.elapsed() > Duration::from_millis(2) {
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Switches to the memory of other programs: it stays in place if the ranks have room there; otherwise inputs are
    /// copied.
    fn replan(&mut self, programs: &[RankProgram]) -> Result<(DevicePlan, Arc<Functions>), RuntimeError> {
        let bases: Vec<usize> = self.plan.ranks.iter().map(|r| r.base).collect();
        let ends = bases.iter().skip(1).copied().chain([self.bytes]);
        let mut plan = plan_at(programs, Kernels::default(), &bases)?;
        if plan.ranks.iter().zip(ends).any(|(r, end)| r.base + r.bytes > end) {
            plan = plan_at(programs, Kernels::default(), &[])?;
        }
        let functions = Arc::new(Functions::load(&self.context, &plan.kernels)?);
        Ok((plan, functions))
    }

    /// Moves the contents of the ranks' arenas to memory for another plan.
    fn move_to(&mut self, plan: &DevicePlan) -> Result<(), RuntimeError> {
        let memory = allocate(&self.context, plan.bytes)?;
        let stream = self.lanes[0].compute;
        let copied = (|| -> Result<(), RuntimeError> {
            // SAFETY: the memory is new and has this size.
            unsafe { result::memset_d8_async(memory, 0, plan.bytes.max(1), stream) }
                .map_err(failed("clearing the memory"))?;
            for (rank, program) in self.programs.iter().enumerate() {
                let (from, to) = (self.plan.ranks[rank].base as u64, plan.ranks[rank].base as u64);
                // SAFETY: the rank's arena is in both memories, from its base on, and is not smaller in the new one.
                unsafe { result::memcpy_dtod_async(memory + to, self.memory + from, program.arena_bytes, stream) }
                    .map_err(failed("copying on the device"))?;
            }
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(stream) }.map_err(failed("copying on the device"))?;
            Ok(())
        })();
        let old = match &copied {
            Ok(()) => std::mem::replace(&mut self.memory, memory),
            Err(_) => memory,
        };
        // SAFETY: nothing uses it any more.
        let _ = unsafe { result::free_sync(old) };
        if copied.is_ok() {
            self.bytes = plan.bytes;
        }
        copied
    }

    fn place(&self, rank: usize, binding: &Binding) -> Result<(sys::CUdeviceptr, usize), RuntimeError> {
        let p = &self.programs[rank];
        let view = &binding.view;
        let place = extent::resolve(p.arena_bytes, &p.buffers, view, &view.shape, &view.strides);
        let place = place.map_err(RuntimeError::Launch)?;
        Ok((self.memory + (self.plan.ranks[rank].base + place.base) as u64, view.elements() * view.dtype.bytes()))
    }
}

/// Joins all groups of a plan, or reports that there is no network for them. An error in `plan` is shared with the
/// other processes.
fn meet(
    options: &GpuOptions,
    programs: &[RankProgram],
    plan: Result<&DevicePlan, RuntimeError>,
) -> Result<(), RuntimeError> {
    let collectives = |plan: &DevicePlan| -> Vec<Collective> {
        plan.ranks.iter().flat_map(|r| &r.collectives).map(|c| c.collective.clone()).collect()
    };
    if let Some(network) = &options.network {
        let groups = plan.as_ref().map_or_else(|_| Vec::new(), |plan| collectives(plan));
        let groups: Vec<Vec<usize>> = groups.into_iter().map(|c| c.group).collect();
        return network.join(&groups, plan.map(drop));
    }
    let here = |rank: &usize| programs.iter().any(|p| p.rank == *rank);
    match collectives(plan?).iter().find(|c| !c.group.iter().all(here)) {
        Some(c) => {
            let what = crate::comm::describe(c);
            Err(RuntimeError::Launch(format!("{what} has ranks in other processes, but there is no network")))
        }
        None => Ok(()),
    }
}

fn allocate(context: &Context, bytes: usize) -> Result<sys::CUdeviceptr, CudaError> {
    // SAFETY: the caller frees it.
    let memory = unsafe { result::malloc_sync(bytes.max(1)) };
    let free = context.memory().map_or(0, |m| m.0);
    memory.map_err(|_| CudaError::OutOfMemory { bytes, free })
}

impl Device for Gpu {
    fn programs(&self) -> &[RankProgram] {
        &self.programs
    }

    fn scratch_bytes(&self, rank: usize) -> usize {
        self.plan.ranks[rank].scratch_bytes
    }

    fn read_range(&self, rank: usize, binding: &Binding, bytes: Range<usize>) -> Result<Vec<u8>, RuntimeError> {
        let (at, len) = self.place(rank, binding)?;
        if bytes.start > bytes.end || bytes.end > len {
            let shape = format!("{}{:?}", binding.view.dtype, binding.view.shape);
            return Err(RuntimeError::Size { name: "box".into(), expected: len, given: bytes.end, shape });
        }
        if let Some(written) = self.staging.find(at) {
            return Ok(written[bytes].to_vec());
        }
        let mut read = vec![0u8; bytes.len()];
        if !read.is_empty() {
            self.context.make_current()?;
            let stream = self.lanes[rank].compute;
            // SAFETY: the view is in the memory; the stream orders the copy after all steps, and the copy is waited
            // for.
            unsafe {
                result::memcpy_dtoh_async(&mut read, at + bytes.start as u64, stream)
                    .and_then(|()| result::stream::synchronize(stream))
                    .map_err(failed("copying from the device"))?;
            }
        }
        Ok(read)
    }

    fn write(&mut self, rank: usize, binding: &Binding, bytes: &[u8]) -> Result<(), RuntimeError> {
        let (at, len) = self.place(rank, binding)?;
        if len != bytes.len() {
            let shape = format!("{}{:?}", binding.view.dtype, binding.view.shape);
            return Err(RuntimeError::Size { name: "box".into(), expected: len, given: bytes.len(), shape });
        }
        if len == 0 {
            return Ok(());
        }
        // A write to part of a buffer may be followed by the rest of the buffer.
        let whole = self.programs[rank].buffers[binding.view.buffer.0 as usize].bytes == len;
        if whole && self.staging.take(at, bytes) {
            return Ok(());
        }
        self.context.make_current()?;
        let stream = self.lanes[rank].compute;
        self.staging.flush(stream)?;
        // SAFETY: as above. The copy uses the stream, because a copy on another stream could still be running when a
        // step begins.
        unsafe {
            result::memcpy_htod_async(at, bytes, stream)
                .and_then(|()| result::stream::synchronize(stream))
                .map_err(failed("copying to the device"))?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<StepReport, RuntimeError> {
        let start = Instant::now();
        self.progress.iter().for_each(Progress::begin_step);
        let enqueued = self.enqueue_step();
        if enqueued.is_err() {
            self.broken.store(true, Ordering::Relaxed);
            self.options.network.iter().for_each(|n| n.abort_all());
        }
        enqueued?;
        self.finish()?;
        Ok(StepReport { seconds: start.elapsed().as_secs_f64() })
    }

    fn executed(&self, rank: usize) -> Vec<bool> {
        self.executed[rank].clone()
    }

    fn switch_to(&mut self, programs: Vec<RankProgram>) -> Result<(), RuntimeError> {
        self.context.make_current()?;
        let planned = self.replan(&programs);
        meet(&self.options, &programs, planned.as_ref().map(|p| &p.0).map_err(Clone::clone))?;
        let (plan, functions) = planned?;
        let stream = self.lanes[0].compute;
        self.staging.flush(stream)?;
        // SAFETY: the stream is alive. All other work of a step ends before it does.
        unsafe { result::stream::synchronize(stream) }.map_err(failed("cuStreamSynchronize"))?;
        let moves = plan.bytes > self.bytes || plan.ranks.iter().zip(&self.plan.ranks).any(|(a, b)| a.base != b.base);
        if moves {
            self.move_to(&plan)?;
        }
        self.dismantle();
        (self.programs, self.plan, self.functions, self.steps) = (programs, plan, functions, 0);
        Ok(self.prepare()?)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.make_current().is_err() {
            return;
        }
        let streams: Vec<_> = self.lanes.iter().flat_map(|l| [l.compute, l.communicate]).collect();
        if self.broken.load(Ordering::Relaxed) {
            let start = Instant::now();
            // SAFETY: the streams are alive.
            let runs = |s: &sys::CUstream| unsafe { sys::cuStreamQuery(*s) } == sys::CUresult::CUDA_ERROR_NOT_READY;
            while streams.iter().any(runs) {
                if start.elapsed() > AFTER_ABORT {
                    // Running work may use all of this, so it stays allocated until the process ends.
                    let kept =
                        (self.functions.clone(), self.products.take(), self.progress.take(), self.context.clone());
                    std::mem::forget(kept);
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        // SAFETY: all objects are ours, and nothing runs any more once our streams are idle, or have failed. Failures
        // need no handling.
        unsafe {
            streams.into_iter().for_each(|s| _ = result::stream::synchronize(s));
            ManuallyDrop::drop(&mut self.staging);
            self.dismantle();
            [self.fork, self.end].into_iter().for_each(|e| _ = result::event::destroy(e));
            let _ = result::free_sync(self.memory);
        }
    }
}
