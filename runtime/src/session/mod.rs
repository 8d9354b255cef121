//! A launched program: one thread per rank of this process, inputs to write, steps to run, outputs to read.
//!
//! | question | file |
//! |---|---|
//! | launching, adding and switching programs, stepping, queries | this one |
//! | how programs are launched | `options` |
//! | the thread of a rank | `rank` |
//! | the state of a loaded program | `loaded` |
//! | ranks that fail | `fault` |
//! | requirements on a program's inputs and outputs | `bindings` |
//! | locks that outlive a panic | `lock` |
//! | writing inputs, reading outputs | `transfer` |
//! | ranks on a device with separate memory | `attached` |
//!
//! A session may have several programs, for example a training step and an evaluation, which the same threads execute
//! in turn over the same arenas ([`Session::add`]). Calls refer to the selected program.
//!
//! The ranks of a session are threads of one process, or of several processes that were launched together. In the
//! latter case every process has the session, makes the same calls in the same order, and runs its own ranks.

mod attached;
mod bindings;
mod fault;
mod loaded;
mod lock;
mod name;
mod options;
mod rank;
mod transfer;

pub use crate::device::attached::StepReport;
pub(crate) use bindings::output_name;
pub use name::InputName;
pub use options::{Backend, Fault, FaultKind, LaunchOptions};
pub(crate) use transfer::each_rank;
pub use transfer::{BoxReader, BoxWriter, RankInputs};

use crate::comm::Processes;
use crate::comm::local::Local;
use crate::comm::processes::together;
use crate::counters::CollectiveCount;
use crate::device::attached::Device;
use crate::error::RuntimeError;
use crate::fingerprint;
use crate::flight::FlightRecord;
use crate::settings::{self, Settings};
use crate::trace;
use attached::Attached;
use loaded::{Loaded, RankShared};
use lock::lock;
use rank::{Command, Crew, Engine, Shared, rank_thread};
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tpc_ir::InputKind;
use tpc_ir::program::{Buffer, End, HeldBox, RankProgram, RankPrograms};

/// Maximum number of ranks that one process runs as threads.
pub const MAX_RANKS: usize = 64;

/// Launched rank programs that can be stepped.
pub struct Session {
    /// At least one.
    programs: Vec<Launched>,
    selected: ProgramId,
    /// The program that is loaded on a device; threads have all programs loaded.
    on_device: ProgramId,
    crew: Arc<Crew>,
    threads: Vec<JoinHandle<()>>,
    failed: Option<String>,
    /// Values given on this process that must be the same on all processes: learning rate, seed, digests of inputs.
    given: Settings,
    /// Seconds of the latest step.
    latest: f64,
}

/// One of the programs of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramId(usize);

/// A program of a session.
struct Launched {
    shared: Arc<Shared>,
    /// For every rank of this process.
    loaded: Vec<Loaded>,
    steps: u64,
    /// Whether all parameters and data were checked to be written and equal on all processes.
    complete: bool,
}

/// Checks that these are the programs of consecutive ranks of one mesh.
fn check(programs: &RankPrograms) -> Result<(), RuntimeError> {
    let refused = |reason: String| Err(RuntimeError::Launch(reason));
    let ranks = programs.ranks();
    let Some(first) = programs.first() else { return refused("there is no program to run".into()) };
    let start = if programs.is_complete() { 0 } else { first.rank };
    for (position, p) in programs.iter().enumerate() {
        let rank = p.rank;
        if rank != start + position {
            return refused(format!("program {position} belongs to rank {rank}"));
        }
        if p.mesh != first.mesh {
            return refused(format!(
                "rank {rank} has a program for {}, but rank {start} has one for {}",
                p.mesh, first.mesh
            ));
        }
        if p.mesh.ranks() != ranks {
            return refused(format!("{ranks} programs for {} with {} ranks", p.mesh, p.mesh.ranks()));
        }
        let names = |p: &RankProgram| p.inputs.iter().map(|i| (i.kind, i.name.clone())).collect::<Vec<_>>();
        let kinds = |p: &RankProgram| p.outputs.iter().map(|o| o.kind.clone()).collect::<Vec<_>>();
        if names(p) != names(first) || kinds(p) != kinds(first) {
            return refused(format!("rank {rank} has different inputs or outputs than rank {}", first.rank));
        }
    }
    Ok(())
}

/// A world of one process, which runs all ranks.
fn alone(programs: &RankPrograms) -> Result<Arc<Local>, RuntimeError> {
    check_local(programs, &(0..programs.ranks()))?;
    Local::alone(programs.ranks())
}

/// Checks that a process can run these ranks and has their programs.
fn check_local(programs: &RankPrograms, local: &Range<usize>) -> Result<(), RuntimeError> {
    let refused = |reason: String| Err(RuntimeError::Launch(reason));
    if local.len() > MAX_RANKS {
        let ranks = local.len();
        return refused(format!(
            "{ranks} ranks, but one process can run at most {MAX_RANKS} as threads: start one process per rank \
             (`tpc launch`, `mpirun`, `srun`)"
        ));
    }
    let held = programs.held();
    if local.start < held.start || local.end > held.end {
        return refused(format!("this process runs the ranks {local:?} and has the programs of the ranks {held:?}"));
    }
    Ok(())
}

/// Checks that two programs of a rank may be executed in turn over one arena: neither may write an input that only the
/// other has.
fn check_beside(a: &RankProgram, b: &RankProgram) -> Result<(), RuntimeError> {
    for (mine, other) in [(a, b), (b, a)] {
        for input in mine.inputs.iter().filter(|input| !mine.shares(input, other)) {
            let place = mine.bytes_of(input);
            let touches = |buffer: &&Buffer| {
                buffer.offset < place.end && place.start < buffer.offset + buffer.bytes && !place.is_empty()
            };
            if let Some(buffer) = other.buffers.iter().find(touches) {
                return Err(RuntimeError::Launch(format!(
                    "two programs of a session conflict: one keeps `{}` of rank {} where the other has `{}`",
                    input.name, mine.rank, buffer.label
                )));
            }
        }
    }
    Ok(())
}

impl Launched {
    /// Checks that other programs of the same ranks may be executed in turn with these.
    fn check_beside(&self, programs: &RankPrograms) -> Result<(), RuntimeError> {
        let mut pairs = self.shared.programs.iter().filter_map(|mine| Some((mine, programs.get(mine.rank)?)));
        pairs.try_for_each(|(mine, other)| check_beside(mine, other))
    }
}

impl Session {
    /// Starts a thread for every rank of this process, which prepares its program. Before that, all processes compare
    /// their programs. The programs are at least those of the ranks of this process.
    ///
    /// # Errors
    /// Programs that do not fit together or cannot be loaded; too little memory; processes that run other programs, do
    /// not respond, or whose number is not that of the ranks.
    pub fn launch(programs: impl Into<RankPrograms>, options: LaunchOptions) -> Result<Session, RuntimeError> {
        let programs = Arc::new(programs.into());
        check(&programs)?;
        let processes = match &options.processes {
            Some(processes) => processes.clone(),
            None => alone(&programs)?,
        };
        let local = processes.local(programs.ranks())?;
        check_local(&programs, &local)?;
        fingerprint::compare(&*processes, &programs, &local, options.deadline)?;
        let engine = match options.backend {
            Backend::Cpu => Engine::Threads(processes.open(programs.clone(), local.clone(), options.deadline)?),
            Backend::Cuda => {
                let mine = programs.of_ranks(local.clone());
                Engine::Device(Attached::new(attached::cuda(mine, &processes, &options)?))
            }
        };
        Session::launch_on(programs, processes, local, engine, options)
    }

    /// A session with the programs of a device of this process, which are those of all ranks of their mesh.
    ///
    /// # Errors
    /// Programs that do not fit together.
    pub fn on(device: Box<dyn Device>, options: LaunchOptions) -> Result<Session, RuntimeError> {
        let programs = Arc::new(RankPrograms::from(device.programs().to_vec()));
        check(&programs)?;
        let processes = alone(&programs)?;
        let local = 0..programs.ranks();
        Session::launch_on(programs, processes, local, Engine::Device(Attached::new(device)), options)
    }

    /// Loads another program over the same arenas, executed by the same threads, and selects it. The program shares
    /// parameters, state, constants and scalars that are at the same place in another program of the session: nothing
    /// is copied, and a write to one is a write to all. Arenas grow in place if the program needs more memory. The cost
    /// is that of loading a program; a device reloads programs that are executed in turn.
    ///
    /// # Errors
    /// The errors of [`Session::launch`]; a program that overwrites values that another one keeps. After an error during
    /// loading, the session can only be read and not be stepped any more.
    pub fn add(&mut self, programs: impl Into<RankPrograms>) -> Result<ProgramId, RuntimeError> {
        let programs = programs.into();
        self.check_usable()?;
        let fits =
            self.check_like(&programs).and_then(|()| self.programs.iter().try_for_each(|p| p.check_beside(&programs)));
        self.all_fit(fits)?;
        let id = ProgramId(self.programs.len());
        let launched = self.over_these_arenas(id, programs)?;
        for other in &self.programs {
            let ranks = self.local_ranks().zip(launched.loaded.iter().zip(&other.loaded));
            for (rank, (new, old)) in ranks {
                let (mine, theirs) = (&launched.shared.programs[rank], &other.shared.programs[rank]);
                for (input, written) in mine.inputs.iter().zip(&new.written) {
                    let theirs = theirs
                        .inputs
                        .iter()
                        .position(|i| (i.kind, &i.name) == (input.kind, &input.name) && mine.shares(input, theirs));
                    if let Some(at) = theirs {
                        written.share(&old.written[at]);
                    }
                }
            }
        }
        self.programs.push(launched);
        (self.selected, self.on_device) = (id, id);
        Ok(id)
    }

    /// The program that calls refer to.
    pub fn selected(&self) -> ProgramId {
        self.selected
    }

    /// Selects the program that the following calls refer to: writing its data, running it, reading its outputs. The
    /// outputs stay valid until another program runs.
    ///
    /// # Errors
    /// A device that cannot load the program.
    ///
    /// # Panics
    /// If the program belongs to another session, which has more programs.
    pub fn select(&mut self, id: ProgramId) -> Result<(), RuntimeError> {
        let Launched { shared, .. } = &self.programs[id.0];
        if let (Engine::Device(device), true) = (&shared.engine, id != self.on_device) {
            self.check_usable()?;
            let loaded = device.switch_to(shared.programs.of_ranks(shared.local.clone()));
            loaded.inspect_err(|e| _ = self.failed.get_or_insert(e.to_string()))?;
        }
        (self.selected, self.on_device) = (id, id);
        Ok(())
    }

    /// Replaces the selected programs; persistent buffers keep their contents. This is for the separate first step of
    /// an optimizer, whose programs have the same inputs in the same order and therefore the same persistent layout.
    ///
    /// # Errors
    /// The errors of [`Session::add`]; programs whose inputs differ.
    pub fn switch_to(&mut self, programs: impl Into<RankPrograms>) -> Result<(), RuntimeError> {
        let id = self.selected;
        let replaced = self.in_place_of_selected(programs.into());
        let next = replaced.inspect_err(|e| _ = self.failed.get_or_insert(e.to_string()))?;
        for (old, new) in self.programs[id.0].loaded.iter().zip(&next.loaded) {
            old.written.iter().zip(&new.written).for_each(|(old, new)| new.share(old));
        }
        self.programs[id.0] = next;
        self.on_device = id;
        Ok(())
    }

    fn in_place_of_selected(&mut self, programs: RankPrograms) -> Result<Launched, RuntimeError> {
        self.check_usable()?;
        self.all_fit(self.check_replacing(&programs))?;
        self.over_these_arenas(self.selected, programs)
    }

    /// Checks that programs can replace the selected ones.
    fn check_replacing(&self, programs: &RankPrograms) -> Result<(), RuntimeError> {
        self.check_like(programs)?;
        for (old, new) in self.local_ranks().map(|rank| (self.program(rank), &programs[rank])) {
            let same = old.inputs == new.inputs && old.inputs.iter().all(|i| old.bytes_of(i) == new.bytes_of(i));
            if !same {
                let reason = "a program that replaces another must have the same inputs at the same places";
                return Err(RuntimeError::Launch(reason.into()));
            }
        }
        let others = self.programs.iter().enumerate().filter(|(at, _)| *at != self.selected.0);
        others.map(|(_, other)| other).try_for_each(|other| other.check_beside(programs))
    }

    /// Waits until all processes have checked the programs of their ranks.
    ///
    /// # Errors
    /// The error of this process, otherwise that of another one.
    fn all_fit(&self, mine: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
        together(&**self.processes(), "launch: check programs", mine, self.deadline())
    }

    /// Checks that programs are of the ranks of this session.
    fn check_like(&self, programs: &RankPrograms) -> Result<(), RuntimeError> {
        check(programs)?;
        if programs.ranks() != self.ranks() {
            let reason = format!("programs of {} ranks in a session of {}", programs.ranks(), self.ranks());
            return Err(RuntimeError::Launch(reason));
        }
        check_local(programs, &self.local_ranks())
    }

    /// Loads programs over the arenas of the session.
    fn over_these_arenas(&mut self, id: ProgramId, programs: RankPrograms) -> Result<Launched, RuntimeError> {
        let (programs, options) = (Arc::new(programs), self.shared().options.clone());
        let (processes, local) = (self.shared().processes.clone(), self.shared().local.clone());
        fingerprint::compare(&*processes, &programs, &local, options.deadline)?;
        let engine = match &self.shared().engine {
            Engine::Threads(world) => {
                Engine::Threads(world.switch_to(programs.clone(), local.clone(), options.deadline)?)
            }
            Engine::Device(device) => {
                device.switch_to(programs.of_ranks(local.clone()))?;
                Engine::Device(device.clone())
            }
        };
        let shared = Shared::new(programs, processes, local, engine, options);
        let loaded = load(shared, id, &self.crew, Ok(self.threads.len()));
        loaded.inspect_err(|e| _ = self.failed.get_or_insert(e.to_string()))
    }

    fn launch_on(
        programs: Arc<RankPrograms>,
        processes: Arc<dyn Processes>,
        local: Range<usize>,
        engine: Engine,
        options: LaunchOptions,
    ) -> Result<Session, RuntimeError> {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let pin = options.pin && programs.ranks() <= cores.len();
        let id = ProgramId(0);
        let mut session = Session {
            programs: Vec::new(),
            selected: id,
            on_device: id,
            crew: Arc::new(Crew::new()),
            threads: Vec::with_capacity(local.len()),
            failed: None,
            given: Settings::new(),
            latest: 0.0,
        };
        let shared = Shared::new(programs, processes, local, engine, options);
        let started = match &shared.engine {
            Engine::Threads(_) => session.start_threads(&shared.local, |rank| pin.then(|| cores[rank])),
            Engine::Device(_) => Ok(()),
        };
        let launched = load(shared, id, &session.crew, started.map(|()| session.threads.len()))?;
        session.programs.push(launched);
        Ok(session)
    }

    /// Starts the threads of this process's ranks.
    fn start_threads(
        &mut self,
        ranks: &Range<usize>,
        core: impl Fn(usize) -> Option<core_affinity::CoreId>,
    ) -> Result<(), RuntimeError> {
        for rank in ranks.clone() {
            let (crew, core) = (self.crew.clone(), core(rank));
            let thread = std::thread::Builder::new().name(format!("rank {rank}")).spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                rank_thread(&crew, rank);
            });
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(e) => return Err(RuntimeError::Launch(format!("rank {rank} has no thread: {e}"))),
            }
        }
        Ok(())
    }

    /// The selected program.
    fn launched(&self) -> &Launched {
        &self.programs[self.selected.0]
    }

    fn shared(&self) -> &Shared {
        &self.launched().shared
    }

    fn loaded(&self) -> &[Loaded] {
        &self.launched().loaded
    }

    /// The rank programs of every program of the session, in the order in which they were added.
    pub fn programs(&self) -> impl Iterator<Item = &RankPrograms> {
        self.programs.iter().map(|p| &*p.shared.programs)
    }

    /// Whether an input of the selected program was written on all ranks of this process, by this program or one that
    /// shares the input.
    pub fn is_written<'a>(&self, name: impl Into<InputName<'a>>) -> bool {
        let input = name.into().find(&self.interface().inputs);
        input.is_ok_and(|input| self.loaded().iter().all(|rank| rank.written[input].is_set()))
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.shared().programs.ranks()
    }

    /// The ranks that this process runs: all of them, if it is the only process.
    pub fn local_ranks(&self) -> Range<usize> {
        self.shared().local.clone()
    }

    /// The processes that run the session.
    pub fn processes(&self) -> &Arc<dyn Processes> {
        &self.shared().processes
    }

    /// The deadline of operations that all processes perform together.
    pub(crate) fn deadline(&self) -> Duration {
        self.shared().options.deadline
    }

    /// The program of a rank of this process.
    ///
    /// # Panics
    /// If another process runs the rank and this one does not have its program.
    pub fn program(&self, rank: usize) -> &RankProgram {
        &self.shared().programs[rank]
    }

    /// The program of the first rank of this process. The programs of all ranks have the same inputs and outputs: their
    /// names, kinds, element types and global shapes.
    pub fn interface(&self) -> &RankProgram {
        self.program(self.shared().local.start)
    }

    /// The box that any rank holds of an input or an output.
    pub(crate) fn held_box(&self, end: End, rank: usize) -> HeldBox {
        self.shared().programs.held_box(end, rank)
    }

    /// The state of a rank of this process.
    fn local(&self, rank: usize) -> Option<(&Loaded, &RankShared)> {
        let at = rank.checked_sub(self.shared().local.start)?;
        Some((self.loaded().get(at)?, self.shared().ranks.get(at)?))
    }

    /// Bytes of a rank's arena: exactly what its programs need. 0 for a rank of another process whose program this one does
    /// not have.
    pub fn allocated_bytes(&self, rank: usize) -> usize {
        let arena = self.local(rank).and_then(|(loaded, _)| loaded.arena.as_ref());
        let planned = || self.shared().programs.get(rank).map_or(0, |program| program.arena_bytes);
        arena.map_or_else(planned, |arena| arena.allocated_bytes())
    }

    /// Bytes that a rank's kernels use in addition to the arena: tiles of fused loops, packed blocks of products. 0 for
    /// a rank of another process.
    pub fn scratch_bytes(&self, rank: usize) -> usize {
        self.local(rank).map_or(0, |(loaded, _)| loaded.scratch_bytes)
    }

    /// Declares a value that must be the same on all processes: it is compared at the first step of the programs, and
    /// after [`Session::compare_again`]. `name` is the subject of the message, for example `the learning rate`.
    pub fn must_agree(&mut self, name: &str, value: impl Display) {
        if self.shared().processes.count() > 1 {
            self.given.set(name, value.to_string());
        }
    }

    /// Makes the next step compare the declared values, as the first one does. For use after a checkpoint was loaded
    /// into parameters and state.
    pub fn compare_again(&mut self) {
        self.programs.iter_mut().for_each(|p| p.complete = false);
    }

    /// Runs the programs once, and waits for the ranks of this process. At the first step, all processes compare their
    /// inputs.
    ///
    /// # Errors
    /// Inputs that were never written, or differ between processes; the cause, if a rank failed, after which every step
    /// is an error. [`Session::rank_error`] has the error of each rank.
    pub fn step(&mut self) -> Result<StepReport, RuntimeError> {
        self.check_usable()?;
        if !self.launched().complete {
            if let Some(name) = self.unwritten() {
                return Err(RuntimeError::Missing { name: name.into() });
            }
            settings::compare(&**self.processes(), &self.given, self.deadline())?;
        }
        let (id, crew) = (self.selected, self.crew.clone());
        let Launched { shared, steps, complete, .. } = &mut self.programs[id.0];
        *complete = true;
        if let Engine::Device(device) = &shared.engine {
            let Shared { options, processes, ranks, .. } = &**shared;
            let report = device.step(*steps, options, &**processes, ranks);
            *steps += u64::from(report.is_ok());
            return report.inspect_err(|e| self.failed = Some(e.to_string()));
        }
        let start = Instant::now();
        crew.command(Command::Step(id.0, *steps));
        crew.wait(self.threads.len());
        *steps += 1;
        let Some(error) = self.step_error() else {
            self.latest = start.elapsed().as_secs_f64();
            return Ok(StepReport { seconds: self.latest });
        };
        self.failed = Some(error.to_string());
        Err(error)
    }

    fn step_error(&self) -> Option<RuntimeError> {
        // The cause is the error of the rank that failed first; the others only gave up. If all ranks of this process
        // have finished the step, it is done: a failure elsewhere shows in the next collective or read, whose error
        // names the operation.
        let cause = self.shared().processes.failure().map(|f| f.0);
        cause.into_iter().chain(self.local_ranks()).find_map(|rank| self.rank_error(rank))
    }

    /// The first parameter or tensor of the batch that was never written, or only on some ranks of this process.
    pub fn unwritten(&self) -> Option<&str> {
        let inputs = self.interface().inputs.iter().enumerate();
        let mut needed = inputs.filter(|(_, i)| matches!(i.kind, InputKind::Parameter | InputKind::Data));
        let is_empty = |rank: usize, input: usize| self.program(rank).inputs[input].binding.view.elements() == 0;
        let written = |input: usize| {
            let mut ranks = self.local_ranks().zip(self.loaded());
            ranks.all(|(rank, l)| l.written[input].is_set() || is_empty(rank, input))
        };
        needed.find(|(input, _)| !written(*input)).map(|(_, i)| i.name.as_str())
    }

    /// An error if a rank failed or a load was interrupted: the contents of the arenas are then useless.
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

    /// The collectives that a rank's communicator has executed since the launch or the latest
    /// [`Session::reset_counters`], for the selected program; none for a rank of another process.
    pub fn collectives(&self, rank: usize) -> Vec<CollectiveCount> {
        let local = self.local(rank);
        local.map_or_else(Vec::new, |(_, r)| r.counters.summary(self.program(rank).collectives()))
    }

    /// Bytes that a rank has sent under the ring algorithm since the latest reset.
    pub fn wire_bytes(&self, rank: usize) -> f64 {
        self.collectives(rank).iter().map(|c| c.wire_bytes).sum()
    }

    /// Sets the counters of all ranks and programs to 0.
    pub fn reset_counters(&mut self) {
        self.programs.iter().flat_map(|p| &p.shared.ranks).for_each(|r| r.counters.reset());
    }

    /// The recorded actions of this process's ranks as Chrome trace events, one line each; Perfetto can open them.
    pub fn trace_json(&self) -> String {
        let traces: Vec<_> = self.shared().ranks.iter().map(|rank| lock(&rank.trace)).collect();
        let ranks: Vec<_> =
            self.local_ranks().zip(&traces).map(|(rank, trace)| (self.program(rank), &**trace)).collect();
        trace::json(&ranks)
    }

    /// The share of the latest step's wall time, from the call of [`Session::step`] to its end, that the recorded
    /// actions of a rank take, averaged over this process's ranks; `None` if not all of its actions are in the trace.
    pub fn traced_share(&self) -> Option<f64> {
        let ranks = &self.shared().ranks;
        let each = ranks.iter().map(|rank| lock(&rank.trace).latest());
        let total: u64 = each.collect::<Option<Vec<u64>>>()?.into_iter().sum();
        Some(total as f64 * 1e-9 / ranks.len() as f64 / self.latest)
    }

    /// The latest collectives of all ranks, and the first failure.
    pub fn flight_record(&self) -> FlightRecord {
        self.shared().processes.flight_record()
    }
}

/// Makes the given number of threads load a program, or loads it on the device, together with all processes.
fn load(
    shared: Arc<Shared>,
    id: ProgramId,
    crew: &Crew,
    threads: Result<usize, RuntimeError>,
) -> Result<Launched, RuntimeError> {
    let loaded = threads.and_then(|threads| match &shared.engine {
        Engine::Threads(_) => {
            crew.command(Command::Load(id.0, shared.clone()));
            crew.wait(threads);
            let lost = |rank| RuntimeError::Launch(format!("rank {rank} did not load its program"));
            let ranks = shared.local.clone().zip(&shared.ranks);
            ranks.map(|(rank, r)| lock(&r.loaded).take().unwrap_or_else(|| Err(lost(rank)))).collect()
        }
        Engine::Device(device) => device.loaded(),
    });
    let loaded = together(&*shared.processes, "launch: load programs", loaded, shared.options.deadline)?;
    Ok(Launched { shared, loaded, steps: 0, complete: false })
}

impl Drop for Session {
    fn drop(&mut self) {
        self.crew.command(Command::Exit);
        for thread in self.threads.drain(..) {
            // A rank thread catches its panics; if one did not, nothing can be done about it.
            let _ = thread.join();
        }
    }
}
