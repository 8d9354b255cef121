//! A launched program: one thread per rank of this process, inputs to write, steps to run, outputs to read.
//!
//! | question | file |
//! |---|---|
//! | launch, go on with other programs, step, ask | this one |
//! | what a rank's thread does | `rank` |
//! | writing inputs, reading outputs | `transfer` |
//! | ranks on a device with memory of its own | `attached` |
//!
//! The ranks of a session are the threads of one process, or those of several processes that were launched together: then every process
//! has the session, makes the same calls in the same order, and runs the ranks that are its own.

mod attached;
mod rank;
mod transfer;

pub use attached::Backend;
pub(crate) use attached::together;
pub(crate) use transfer::each_rank;
pub use transfer::{BoxReader, BoxWriter, RankInputs};

use crate::comm::local::Local;
use crate::comm::{Communicators, Processes};
use crate::counters::{CollectiveCount, Counters};
use crate::device::attached::Device;
use crate::error::RuntimeError;
use crate::fingerprint;
use crate::flight::{Clock, FlightRecord};
use crate::settings::{self, Settings};
use crate::trace::Trace;
use attached::Attached;
use rank::{Command, Engine, Loaded, RankShared, Shared, rank_thread};
use std::fmt::Display;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tpc_ir::program::RankProgram;
use tpc_ir::{InputKind, OutputKind};

/// Ranks that one session can have.
pub const MAX_RANKS: usize = 64;

/// How programs are launched.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// How long a collective, or something that all processes do together, may take before it is an error.
    pub deadline: Duration,
    /// Whether every rank is bound to a core of its own; without effect if there are fewer cores
    /// than ranks.
    pub pin: bool,
    /// How many of the latest actions each rank keeps for [`Session::trace_json`]; 0 records none.
    pub trace: usize,
    /// Makes a rank fail, for tests of what the others do.
    pub fault: Option<Fault>,
    /// The processes of the world that this one was launched in ([`crate::launch::join`]); without them, all ranks are threads of this
    /// process. Every process launches the same sessions in the same order, and makes the same calls.
    pub processes: Option<Arc<dyn Processes>>,
    /// What executes the ranks. On a device there are no traces, and no times of collectives.
    pub backend: Backend,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        LaunchOptions {
            deadline: Duration::from_secs(60),
            pin: true,
            trace: 0,
            fault: None,
            processes: None,
            backend: Backend::Cpu,
        }
    }
}

/// A failure on purpose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// The rank that fails.
    pub rank: usize,
    /// The step in which it does, counted from 0.
    pub step: u64,
    /// How it fails, before its first action.
    pub kind: FaultKind,
}

/// How a rank fails on purpose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FaultKind {
    /// It panics.
    Panic,
    /// It does nothing for a while, or until a peer gives up.
    Stall(Duration),
    /// Its process is killed.
    Kill,
    /// Its process is stopped, as by a debugger or a batch system.
    Stop,
    /// Its process exits with this code.
    Exit(i32),
}

/// What a step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// From the call to the end of the last rank.
    pub seconds: f64,
}

/// Rank programs that were launched and can be stepped.
pub struct Session {
    shared: Arc<Shared>,
    /// Of every rank of this process.
    loaded: Vec<Loaded>,
    threads: Vec<JoinHandle<()>>,
    steps: u64,
    failed: Option<String>,
    /// Whether every parameter and all data were found to have values, the same on all processes.
    complete: bool,
    /// What was given on this process that must be the same on all: learning rate, seed, digests of inputs.
    given: Settings,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether these are the programs of all ranks of one mesh.
fn check(programs: &[RankProgram]) -> Result<(), RuntimeError> {
    let count = programs.len();
    if count == 0 || count > MAX_RANKS {
        return Err(RuntimeError::Launch(format!("{count} ranks; a session runs 1 to {MAX_RANKS}")));
    }
    for (i, p) in programs.iter().enumerate() {
        if p.rank != i {
            return Err(RuntimeError::Launch(format!("program {i} is that of rank {}", p.rank)));
        }
        if p.mesh.ranks() != count {
            let ranks = p.mesh.ranks();
            return Err(RuntimeError::Launch(format!("{count} programs for {} with {ranks} ranks", p.mesh)));
        }
        let names = |p: &RankProgram| p.inputs.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
        let kinds = |p: &RankProgram| p.outputs.iter().map(|o| o.kind.clone()).collect::<Vec<_>>();
        if names(p) != names(&programs[0]) || kinds(p) != kinds(&programs[0]) {
            return Err(RuntimeError::Launch(format!("rank {i} has other inputs or outputs than rank 0")));
        }
    }
    Ok(())
}

impl Session {
    /// Starts a thread for every rank of this process, which prepares its program. Before that, all processes compare their programs.
    ///
    /// # Errors
    /// Programs that do not fit together or cannot be loaded; too little memory; processes that run other programs, do not come, or
    /// are not as many as the ranks.
    pub fn launch(programs: Vec<RankProgram>, options: LaunchOptions) -> Result<Session, RuntimeError> {
        check(&programs)?;
        let programs: Arc<[RankProgram]> = programs.into();
        let processes = match &options.processes {
            Some(processes) => processes.clone(),
            None => Local::alone(programs.len())?,
        };
        let local = processes.local(programs.len())?;
        fingerprint::compare(&*processes, &programs, options.deadline)?;
        let engine = match options.backend {
            Backend::Cpu => Engine::Threads(processes.open(programs.clone(), local.clone(), options.deadline)?),
            Backend::Cuda => {
                Engine::Device(Attached::new(attached::cuda(&programs, local.clone(), &processes, &options)?))
            }
        };
        Session::launch_on(programs, processes, local, engine, options)
    }

    /// A session of programs that a device of this process has, all ranks of their mesh.
    ///
    /// # Errors
    /// Programs that do not fit together.
    pub fn on(device: Box<dyn Device>, options: LaunchOptions) -> Result<Session, RuntimeError> {
        let programs: Arc<[RankProgram]> = device.programs().into();
        check(&programs)?;
        let processes = Local::alone(programs.len())?;
        let local = processes.local(programs.len())?;
        Session::launch_on(programs, processes, local, Engine::Device(Attached::new(device)), options)
    }

    /// Goes on with other programs over the same arenas: what persistent buffers hold stays where it
    /// is. For the peeled first step of an optimizer, whose programs have the same inputs in the same
    /// order and therefore the same persistent layout.
    ///
    /// # Errors
    /// As [`Session::launch`]; programs whose inputs differ or that need a larger arena. After an error
    /// the session cannot be stepped any more, only read.
    pub fn succeed(&mut self, programs: Vec<RankProgram>) -> Result<(), RuntimeError> {
        let mut next = self.successor(programs).inspect_err(|e| _ = self.failed.get_or_insert(e.to_string()))?;
        next.given = std::mem::take(&mut self.given);
        for (old, new) in self.loaded.iter().zip(&next.loaded) {
            for (old, new) in old.written.iter().zip(&new.written) {
                new.store(old.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        *self = next;
        Ok(())
    }

    fn successor(&self, programs: Vec<RankProgram>) -> Result<Session, RuntimeError> {
        self.check_usable()?;
        check(&programs)?;
        for (old, new) in self.shared.programs.iter().zip(&programs) {
            let same = old.inputs == new.inputs
                && old.inputs.iter().all(|i| {
                    let at = |p: &RankProgram| p.buffers[i.binding.view.buffer.0 as usize].offset;
                    at(old) == at(new)
                });
            if !same || new.arena_bytes > old.arena_bytes {
                let reason = "a succeeding program must have the same inputs at the same places and fit the arena";
                return Err(RuntimeError::Launch(reason.into()));
            }
        }
        // The ranks of this session wait for a command that never comes, and leave the arenas alone.
        let (programs, options): (Arc<[RankProgram]>, _) = (programs.into(), self.shared.options.clone());
        let (processes, local) = (self.shared.processes.clone(), self.shared.local.clone());
        fingerprint::compare(&*processes, &programs, options.deadline)?;
        let engine = match &self.shared.engine {
            Engine::Threads(world) => {
                Engine::Threads(world.succeed(programs.clone(), local.clone(), options.deadline)?)
            }
            Engine::Device(device) => {
                device.succeed(&programs[local.clone()])?;
                Engine::Device(device.clone())
            }
        };
        Session::launch_on(programs, processes, local, engine, options)
    }

    fn launch_on(
        programs: Arc<[RankProgram]>,
        processes: Arc<dyn Processes>,
        local: Range<usize>,
        engine: Engine,
        options: LaunchOptions,
    ) -> Result<Session, RuntimeError> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let pin = options.pin && programs.len() <= cores.len();
        let ranks = local.clone().map(|rank| RankShared {
            counters: Counters::new(&programs[rank]),
            trace: Mutex::new(Trace::new(options.trace)),
            result: Mutex::new(Ok(())),
            current: AtomicUsize::new(0),
        });
        let shared = Arc::new(Shared {
            command: Mutex::new((0, Command::Step)),
            commanded: Condvar::new(),
            finished: Mutex::new(0),
            all_finished: Condvar::new(),
            epoch: Instant::now(),
            clock: Clock::new(),
            ranks: ranks.collect(),
            programs,
            processes,
            local,
            engine: engine.clone(),
            options,
        });
        let threads = Vec::with_capacity(shared.local.len());
        let mut session = Session {
            shared,
            loaded: Vec::new(),
            threads,
            steps: 0,
            failed: None,
            complete: false,
            given: Settings::new(),
        };
        let loaded = match &engine {
            Engine::Threads(world) => session.start_threads(world, |rank| pin.then(|| cores[rank])),
            Engine::Device(device) => device.loaded(),
        };
        let deadline = session.shared.options.deadline;
        session.loaded = together(&*session.shared.processes, "launch: load programs", loaded, deadline)?;
        Ok(session)
    }

    /// Starts the threads of this process's ranks, and waits until they have loaded their programs.
    fn start_threads(
        &mut self,
        world: &Arc<dyn Communicators>,
        core: impl Fn(usize) -> Option<core_affinity::CoreId>,
    ) -> Result<Vec<Loaded>, RuntimeError> {
        let (sender, receiver) = mpsc::channel();
        for rank in self.shared.local.clone() {
            let (shared, world, sender) = (self.shared.clone(), world.clone(), sender.clone());
            let core = core(rank);
            let thread = std::thread::Builder::new().name(format!("rank {rank}")).spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                rank_thread(&shared, &world, rank, &sender);
            });
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(e) => return Err(RuntimeError::Launch(format!("rank {rank} has no thread: {e}"))),
            }
        }
        drop(sender);
        let mut loaded: Vec<_> = receiver.iter().take(self.shared.local.len()).collect();
        loaded.sort_by_key(|(rank, _)| *rank);
        loaded.into_iter().map(|(_, loaded)| loaded).collect()
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.shared.programs.len()
    }

    /// The ranks that this process runs: all of them, if it is alone.
    pub fn local_ranks(&self) -> Range<usize> {
        self.shared.local.clone()
    }

    /// The processes that run the session.
    pub fn processes(&self) -> &Arc<dyn Processes> {
        &self.shared.processes
    }

    /// How long something that all processes do together may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.shared.options.deadline
    }

    /// The program of a rank.
    pub fn program(&self, rank: usize) -> &RankProgram {
        &self.shared.programs[rank]
    }

    /// What is known of a rank of this process.
    fn local(&self, rank: usize) -> Option<(&Loaded, &RankShared)> {
        let at = rank.checked_sub(self.shared.local.start)?;
        Some((self.loaded.get(at)?, self.shared.ranks.get(at)?))
    }

    /// Bytes of a rank's arena: exactly what its program asks for.
    pub fn allocated_bytes(&self, rank: usize) -> usize {
        let arena = self.local(rank).and_then(|(loaded, _)| loaded.arena.as_ref());
        arena.map_or(self.program(rank).arena_bytes, |arena| arena.allocated_bytes())
    }

    /// Bytes that a rank's kernels use besides the arena: tiles of fused loops, packed blocks of
    /// products. 0 for a rank of another process.
    pub fn scratch_bytes(&self, rank: usize) -> usize {
        self.local(rank).map_or(0, |(loaded, _)| loaded.scratch_bytes)
    }

    /// Says what must be the same on all processes: it is compared at the first step of the programs, and after
    /// [`Session::compare_again`]. `name` is the subject of the message, for example `the learning rate`.
    pub fn must_agree(&mut self, name: &str, value: impl Display) {
        if self.shared.processes.count() > 1 {
            self.given.set(name, value.to_string());
        }
    }

    /// Lets the next step compare what was given, as the first one does: after parameters and state have become those of a checkpoint.
    pub fn compare_again(&mut self) {
        self.complete = false;
    }

    /// Runs the programs once: waits until the ranks of this process have. At the first step, all processes compare what they were given.
    ///
    /// # Errors
    /// Inputs that were never written, or others on other processes; the cause, if a rank failed: after that every step is an error. What each rank said is in
    /// [`Session::rank_error`].
    pub fn step(&mut self) -> Result<StepReport, RuntimeError> {
        self.check_usable()?;
        if !self.complete {
            if let Some(name) = self.unwritten() {
                return Err(RuntimeError::Missing { name: name.into() });
            }
            settings::compare(&*self.shared.processes, &self.given, self.shared.options.deadline)?;
            self.complete = true;
        }
        if let Engine::Device(device) = &self.shared.engine {
            let Shared { options, processes, ranks, .. } = &*self.shared;
            let report = device.step(self.steps, options, &**processes, ranks);
            self.steps += u64::from(report.is_ok());
            return report.inspect_err(|e| self.failed = Some(e.to_string()));
        }
        let start = Instant::now();
        *lock(&self.shared.finished) = 0;
        self.command(Command::Step);
        let mut finished = lock(&self.shared.finished);
        while *finished < self.shared.local.len() {
            finished = self.shared.all_finished.wait(finished).unwrap_or_else(PoisonError::into_inner);
        }
        drop(finished);
        self.steps += 1;
        let Some(error) = self.step_error() else {
            return Ok(StepReport { seconds: start.elapsed().as_secs_f64() });
        };
        self.failed = Some(error.to_string());
        Err(error)
    }

    fn step_error(&self) -> Option<RuntimeError> {
        // The cause is the error of the rank that failed first; the others only gave up. Where all ranks of this process have finished
        // the step, it is done: a failure elsewhere shows in the next collective or read, which can say what it was about.
        let cause = self.shared.processes.failure().map(|f| f.0);
        cause.into_iter().chain(self.local_ranks()).find_map(|rank| self.rank_error(rank))
    }

    /// The first parameter or tensor of the batch that was never written, or on some ranks of this process only.
    pub fn unwritten(&self) -> Option<&str> {
        let inputs = self.program(0).inputs.iter().enumerate();
        let mut needed = inputs.filter(|(_, i)| matches!(i.kind, InputKind::Parameter | InputKind::Data));
        let is_empty = |rank: usize, input: usize| self.program(rank).inputs[input].binding.view.elements() == 0;
        let written = |input: usize| {
            let mut ranks = self.local_ranks().zip(&self.loaded);
            ranks.all(|(rank, l)| l.written[input].load(Ordering::Relaxed) || is_empty(rank, input))
        };
        needed.find(|(input, _)| !written(*input)).map(|(_, i)| i.name.as_str())
    }

    /// An error if a rank failed or a load was left half done: what the arenas hold is then of no use.
    pub(crate) fn check_usable(&self) -> Result<(), RuntimeError> {
        match &self.failed {
            Some(reason) => Err(RuntimeError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// Makes every later step an error.
    pub(crate) fn poison(&mut self, reason: String) {
        self.failed = Some(reason);
    }

    /// The error of a rank of this process in the latest step.
    pub fn rank_error(&self, rank: usize) -> Option<RuntimeError> {
        lock(&self.local(rank)?.1.result).clone().err()
    }

    /// What a rank's communicator has executed since the launch or the latest
    /// [`Session::reset_counters`]; nothing for a rank of another process.
    pub fn collectives(&self, rank: usize) -> Vec<CollectiveCount> {
        let local = self.local(rank);
        local.map_or_else(Vec::new, |(_, r)| r.counters.summary(self.program(rank).collectives()))
    }

    /// Bytes that a rank has sent under the ring algorithm since the latest reset.
    pub fn wire_bytes(&self, rank: usize) -> f64 {
        self.collectives(rank).iter().map(|c| c.wire_bytes).sum()
    }

    /// Sets the counters of all ranks to 0.
    pub fn reset_counters(&mut self) {
        self.shared.ranks.iter().for_each(|r| r.counters.reset());
    }

    /// The recorded actions of this process's ranks as Chrome trace events, one line each.
    pub fn trace_json(&self) -> String {
        let mut out = String::from("{\"traceEvents\":[");
        for (rank, r) in self.local_ranks().zip(&self.shared.ranks) {
            lock(&r.trace).write_json(self.program(rank), &mut out);
        }
        out.push_str("\n]}\n");
        out
    }

    /// The latest collectives of all ranks, and the first failure: for whoever looks into one.
    pub fn flight_record(&self) -> FlightRecord {
        self.shared.processes.flight_record()
    }

    fn command(&self, command: Command) {
        let mut slot = lock(&self.shared.command);
        *slot = (slot.0 + 1, command);
        self.shared.commanded.notify_all();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.command(Command::Exit);
        for thread in self.threads.drain(..) {
            // A rank thread catches its panics; there is nothing to do about one that did not.
            let _ = thread.join();
        }
    }
}

pub(crate) fn output_name(kind: &OutputKind) -> String {
    match kind {
        OutputKind::Result(name) => format!("result {name}"),
        OutputKind::Loss => "loss".into(),
        OutputKind::Gradient(name) => format!("gradient {name}"),
        OutputKind::Update(name) => format!("update {name}"),
    }
}
