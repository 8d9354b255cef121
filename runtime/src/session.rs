//! A launched program: one thread per rank, inputs to write, steps to run, outputs to read.

use crate::boxes::{BoxRequest, Runs, meet_all};
use crate::comm::threads::{Threads, World};
use crate::counters::{CollectiveCount, Counters};
use crate::device::cpu::arena::Arena;
use crate::device::cpu::load::{Executable, Surroundings};
use crate::element;
use crate::error::RuntimeError;
use crate::trace::Trace;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tpc_ir::program::{Binding, RankProgram};
use tpc_ir::{InputKind, OutputKind};

/// Ranks that one process runs.
pub const MAX_RANKS: usize = 64;

/// How programs are launched.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// How long a collective may take before it is an error.
    pub deadline: Duration,
    /// Whether every rank is bound to a core of its own; without effect if there are fewer cores
    /// than ranks.
    pub pin: bool,
    /// How many of the latest actions each rank keeps for [`Session::trace_json`]; 0 records none.
    pub trace: usize,
    /// Makes a rank fail, for tests of what the others do.
    pub fault: Option<Fault>,
}

impl Default for LaunchOptions {
    fn default() -> Self {
        LaunchOptions { deadline: Duration::from_secs(60), pin: true, trace: 0, fault: None }
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
}

/// What a step took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// From the call to the end of the last rank.
    pub seconds: f64,
}

/// Fills the dense bytes of a box.
pub type BoxReader<'a> = dyn FnMut(&BoxRequest, &mut [u8]) -> Result<(), String> + 'a;
/// Takes the dense bytes of a box.
pub type BoxWriter<'a> = dyn FnMut(&BoxRequest, &[u8]) -> Result<(), String> + 'a;

#[derive(Clone, Copy, PartialEq)]
enum Command {
    Step,
    Exit,
}

/// What the session and the rank threads share.
struct Shared {
    command: Mutex<(u64, Command)>,
    commanded: Condvar,
    /// Ranks that have finished the current step.
    finished: Mutex<usize>,
    all_finished: Condvar,
    world: Arc<World>,
    epoch: Instant,
    options: LaunchOptions,
    ranks: Vec<RankShared>,
    /// Arenas of an earlier session to go on with, one per rank; empty to allocate.
    arenas: Vec<Arc<Arena>>,
}

struct RankShared {
    program: RankProgram,
    counters: Counters,
    trace: Mutex<Trace>,
    result: Mutex<Result<(), RuntimeError>>,
    current: AtomicUsize,
}

struct Loaded {
    arena: Arc<Arena>,
    scratch_bytes: usize,
    /// Of every input, whether its box was given a value.
    written: Vec<AtomicBool>,
}

/// Rank programs that were launched and can be stepped.
pub struct Session {
    shared: Arc<Shared>,
    loaded: Vec<Loaded>,
    threads: Vec<JoinHandle<()>>,
    steps: u64,
    failed: Option<String>,
    /// Whether every parameter and all data were found to have values.
    complete: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Starts a thread for every rank, which allocates its arena and prepares its program.
    ///
    /// # Errors
    /// Programs that do not fit together or cannot be loaded; too little memory.
    pub fn launch(programs: Vec<RankProgram>, options: LaunchOptions) -> Result<Session, RuntimeError> {
        Session::launch_on(programs, options, Vec::new())
    }

    /// Goes on with other programs over the same arenas: what persistent buffers hold stays where it
    /// is. For the peeled first step of an optimizer, whose programs have the same inputs in the same
    /// order and therefore the same persistent layout.
    ///
    /// # Errors
    /// As [`Session::launch`]; programs whose inputs differ or that need a larger arena. After an error
    /// the session cannot be stepped any more, only read.
    pub fn succeed(&mut self, programs: Vec<RankProgram>) -> Result<(), RuntimeError> {
        let next = self.successor(programs).inspect_err(|e| _ = self.failed.get_or_insert(e.to_string()))?;
        for (old, new) in self.loaded.iter().zip(&next.loaded) {
            for (old, new) in old.written.iter().zip(&new.written) {
                new.store(old.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        *self = next;
        Ok(())
    }

    fn successor(&self, programs: Vec<RankProgram>) -> Result<Session, RuntimeError> {
        if let Some(reason) = &self.failed {
            return Err(RuntimeError::Poisoned(reason.clone()));
        }
        for (old, new) in self.shared.ranks.iter().map(|r| &r.program).zip(&programs) {
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
        let arenas = self.loaded.iter().map(|l| l.arena.clone()).collect();
        Session::launch_on(programs, self.shared.options.clone(), arenas)
    }

    fn launch_on(
        programs: Vec<RankProgram>,
        options: LaunchOptions,
        arenas: Vec<Arc<Arena>>,
    ) -> Result<Session, RuntimeError> {
        let count = programs.len();
        if count == 0 || count > MAX_RANKS {
            return Err(RuntimeError::Launch(format!("{count} ranks; one process runs 1 to {MAX_RANKS}")));
        }
        for (i, p) in programs.iter().enumerate() {
            if p.rank != i {
                return Err(RuntimeError::Launch(format!("program {i} is that of rank {}", p.rank)));
            }
            if p.mesh.ranks() != count {
                return Err(RuntimeError::Launch(format!(
                    "{count} programs for {} with {} ranks",
                    p.mesh,
                    p.mesh.ranks()
                )));
            }
            let names = |p: &RankProgram| p.inputs.iter().map(|i| i.name.clone()).collect::<Vec<_>>();
            let kinds = |p: &RankProgram| p.outputs.iter().map(|o| o.kind.clone()).collect::<Vec<_>>();
            if names(p) != names(&programs[0]) || kinds(p) != kinds(&programs[0]) {
                return Err(RuntimeError::Launch(format!("rank {i} has other inputs or outputs than rank 0")));
            }
        }
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let pin = options.pin && count <= cores.len();
        let shared = Arc::new(Shared {
            command: Mutex::new((0, Command::Step)),
            commanded: Condvar::new(),
            finished: Mutex::new(0),
            all_finished: Condvar::new(),
            world: World::new(count, options.deadline),
            epoch: Instant::now(),
            ranks: programs
                .into_iter()
                .map(|program| RankShared {
                    counters: Counters::new(&program),
                    program,
                    trace: Mutex::new(Trace::new(options.trace)),
                    result: Mutex::new(Ok(())),
                    current: AtomicUsize::new(0),
                })
                .collect(),
            options,
            arenas,
        });
        let (sender, receiver) = mpsc::channel();
        let threads = Vec::with_capacity(count);
        let mut session = Session { shared, loaded: Vec::new(), threads, steps: 0, failed: None, complete: false };
        for (rank, core) in
            cores.iter().map(|&c| pin.then_some(c)).chain(std::iter::repeat(None)).take(count).enumerate()
        {
            let (shared, sender) = (session.shared.clone(), sender.clone());
            let thread = std::thread::Builder::new().name(format!("rank {rank}")).spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                rank_thread(&shared, rank, &sender);
            });
            match thread {
                Ok(thread) => session.threads.push(thread),
                Err(e) => return Err(RuntimeError::Launch(format!("rank {rank} has no thread: {e}"))),
            }
        }
        drop(sender);
        let mut loaded: Vec<Option<Loaded>> = (0..count).map(|_| None).collect();
        let mut error = None;
        for (rank, result) in receiver.iter().take(count) {
            match result {
                Ok(l) => loaded[rank] = Some(l),
                Err(e) => {
                    error.get_or_insert(e);
                }
            }
        }
        if let Some(e) = error {
            return Err(e);
        }
        session.loaded = loaded.into_iter().flatten().collect();
        Ok(session)
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.shared.ranks.len()
    }

    /// The program of a rank.
    pub fn program(&self, rank: usize) -> &RankProgram {
        &self.shared.ranks[rank].program
    }

    /// Bytes of a rank's arena: exactly what its program asks for.
    pub fn allocated_bytes(&self, rank: usize) -> usize {
        self.loaded[rank].arena.allocated_bytes()
    }

    /// Bytes that a rank's kernels use besides the arena: tiles of fused loops, packed blocks of
    /// products.
    pub fn scratch_bytes(&self, rank: usize) -> usize {
        self.loaded[rank].scratch_bytes
    }

    fn input(&self, name: &str) -> Result<usize, RuntimeError> {
        let inputs = &self.program(0).inputs;
        inputs.iter().position(|i| i.name == name).ok_or_else(|| RuntimeError::Unknown {
            what: "input",
            name: name.into(),
            known: inputs.iter().map(|i| i.name.clone()).collect(),
        })
    }

    fn output(&self, kind: &OutputKind) -> Result<usize, RuntimeError> {
        let outputs = &self.program(0).outputs;
        outputs.iter().position(|o| o.kind == *kind).ok_or_else(|| RuntimeError::Unknown {
            what: "output",
            name: output_name(kind),
            known: outputs.iter().map(|o| output_name(&o.kind)).collect(),
        })
    }

    /// A rank's bytes of a binding. Between steps the session alone uses the arenas.
    fn bytes(&self, rank: usize, binding: &Binding) -> Result<(*mut u8, usize), RuntimeError> {
        let place = self.loaded[rank].arena.resolve_view(&self.program(rank).buffers, &binding.view);
        let place = place.map_err(RuntimeError::Launch)?;
        Ok((place.base, binding.view.elements() * binding.view.dtype.bytes()))
    }

    fn box_mut(&mut self, rank: usize, input: usize) -> Result<(BoxRequest, &mut [u8]), RuntimeError> {
        let binding = &self.program(rank).inputs[input].binding;
        let (base, len) = self.bytes(rank, binding)?;
        // SAFETY: the view was found to lie in the arena, it is dense (checked when loading), and
        // the ranks are between steps, which only `&mut self` can change.
        Ok((BoxRequest::of(binding), unsafe { std::slice::from_raw_parts_mut(base, len) }))
    }

    pub(crate) fn box_of(&self, rank: usize, binding: &Binding) -> Result<(BoxRequest, &[u8]), RuntimeError> {
        let (base, len) = self.bytes(rank, binding)?;
        // SAFETY: as above; nobody writes while `&self` is borrowed.
        Ok((BoxRequest::of(binding), unsafe { std::slice::from_raw_parts(base, len) }))
    }

    /// Writes an input from the dense bytes of the whole tensor, in its element type and native byte
    /// order; every rank gets its box.
    ///
    /// # Errors
    /// No such input, or the wrong number of bytes.
    pub fn write_bytes(&mut self, name: &str, data: &[u8]) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        let binding = &self.program(0).inputs[input].binding;
        let dtype = binding.view.dtype;
        let expected = binding.global.iter().product::<usize>() * dtype.bytes();
        if data.len() != expected {
            let shape = format!("{dtype}{:?}", binding.layout);
            return Err(RuntimeError::Size { name: name.into(), expected, given: data.len(), shape });
        }
        for rank in 0..self.ranks() {
            let (request, to) = self.box_mut(rank, input)?;
            request.runs(&mut |from, at, n| to[at..at + n].copy_from_slice(&data[from..from + n]));
            self.loaded[rank].written[input].store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes an input from the whole tensor as floats, rounded to its element type.
    ///
    /// # Errors
    /// No such input, or the wrong number of elements.
    pub fn write_f64(&mut self, name: &str, data: &[f64]) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        let dtype = self.program(0).inputs[input].binding.view.dtype;
        self.write_bytes(name, &element::encode(dtype, data))
    }

    /// Lets a loader fill the box of one rank, so that nobody holds the whole tensor.
    ///
    /// # Errors
    /// No such input, or what the loader says.
    pub fn write_box(&mut self, name: &str, rank: usize, reader: &mut BoxReader<'_>) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        let (request, to) = self.box_mut(rank, input)?;
        reader(&request, to).map_err(|reason| RuntimeError::Transfer { name: name.into(), rank, reason })?;
        self.loaded[rank].written[input].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Fills the boxes of all ranks at the same time, each rank's in a thread of its own.
    ///
    /// # Errors
    /// The first failing rank's.
    pub fn fill_ranks<E: Send>(
        &mut self,
        fill: &(dyn Fn(&mut RankInputs<'_>) -> Result<(), E> + Sync),
    ) -> Result<(), E> {
        let session = &*self;
        each_rank(session.ranks(), &|rank| fill(&mut RankInputs { session, rank })).map(drop)
    }

    fn assemble<'a>(&self, name: &str, binding: impl Fn(usize) -> &'a Binding) -> Result<Vec<u8>, RuntimeError> {
        let first = binding(0);
        let total: usize = first.global.iter().product();
        let mut whole = vec![0; total * first.view.dtype.bytes()];
        let mut seen: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        let mut held = 0;
        for rank in 0..self.ranks() {
            let (request, from) = self.box_of(rank, binding(rank))?;
            let key = (request.start.clone(), request.shape.clone());
            if request.elements() == 0 || seen.contains(&key) {
                continue;
            }
            request.runs(&mut |to, at, n| whole[to..to + n].copy_from_slice(&from[at..at + n]));
            held += request.elements();
            seen.push(key);
        }
        if held == total { Ok(whole) } else { Err(RuntimeError::Incomplete { name: name.into(), held, total }) }
    }

    /// Reads an output: the dense bytes of the whole tensor in its element type. Of equal boxes that
    /// several ranks hold, the first rank's is taken.
    ///
    /// # Errors
    /// No such output, or boxes that do not make up the whole.
    pub fn read(&self, kind: &OutputKind) -> Result<Vec<u8>, RuntimeError> {
        let output = self.output(kind)?;
        self.assemble(&output_name(kind), |rank| &self.program(rank).outputs[output].binding)
    }

    /// [`Session::read`] as floats.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn read_f64(&self, kind: &OutputKind) -> Result<Vec<f64>, RuntimeError> {
        let output = self.output(kind)?;
        Ok(element::decode(self.program(0).outputs[output].binding.view.dtype, &self.read(kind)?))
    }

    /// Reads what an input holds now: a parameter after some steps.
    ///
    /// # Errors
    /// No such input, or boxes that do not make up the whole.
    pub fn read_input(&self, name: &str) -> Result<Vec<u8>, RuntimeError> {
        let input = self.input(name)?;
        self.assemble(name, |rank| &self.program(rank).inputs[input].binding)
    }

    /// [`Session::read_input`] as floats.
    ///
    /// # Errors
    /// As [`Session::read_input`].
    pub fn read_input_f64(&self, name: &str) -> Result<Vec<f64>, RuntimeError> {
        let input = self.input(name)?;
        Ok(element::decode(self.program(0).inputs[input].binding.view.dtype, &self.read_input(name)?))
    }

    /// Reads consecutive elements of what an input holds now, in row-major order of the whole tensor: a saver's strip, so that
    /// nobody holds the whole. `into` takes `first..end` and is dense in the input's element type.
    ///
    /// # Errors
    /// No such input, `into` of another size, or boxes that do not make up these elements.
    pub fn read_range(&self, name: &str, first: usize, end: usize, into: &mut [u8]) -> Result<(), RuntimeError> {
        self.read_runs(name, &Runs::range(first, end), into)
    }

    /// Reads any elements of what an input holds now, densely into `into`, in the input's element type.
    ///
    /// # Errors
    /// As [`Session::read_range`].
    pub fn read_runs(&self, name: &str, wanted: &Runs, into: &mut [u8]) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        let binding = |rank: usize| &self.program(rank).inputs[input].binding;
        let size = binding(0).view.dtype.bytes();
        let total = wanted.elements();
        if into.len() != total * size {
            let shape = format!("{}[{total}]", binding(0).view.dtype);
            return Err(RuntimeError::Size { name: name.into(), expected: total * size, given: into.len(), shape });
        }
        let mut seen: Vec<(&[usize], &[usize])> = Vec::new();
        let mut held = 0;
        for rank in 0..self.ranks() {
            let b = binding(rank);
            let key = (&b.start[..], &b.view.shape[..]);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let (request, from) = self.box_of(rank, b)?;
            meet_all(request.element_runs(), wanted.clone(), &mut |a, b, n| {
                into[b * size..(b + n) * size].copy_from_slice(&from[a * size..(a + n) * size]);
                held += n;
            });
        }
        if held == total { Ok(()) } else { Err(RuntimeError::Incomplete { name: name.into(), held, total }) }
    }

    /// Reads one rank's box of an output.
    ///
    /// # Errors
    /// No such output.
    pub fn read_rank(&self, kind: &OutputKind, rank: usize) -> Result<Vec<u8>, RuntimeError> {
        let output = self.output(kind)?;
        Ok(self.box_of(rank, &self.program(rank).outputs[output].binding)?.1.to_vec())
    }

    /// Shows a saver one rank's box of an input, so that nobody holds the whole tensor.
    ///
    /// # Errors
    /// No such input, or what the saver says.
    pub fn read_box(&self, name: &str, rank: usize, writer: &mut BoxWriter<'_>) -> Result<(), RuntimeError> {
        let input = self.input(name)?;
        let (request, from) = self.box_of(rank, &self.program(rank).inputs[input].binding)?;
        writer(&request, from).map_err(|reason| RuntimeError::Transfer { name: name.into(), rank, reason })
    }

    /// Runs the programs once.
    ///
    /// # Errors
    /// The cause, if a rank failed: after that every step is an error. What each rank said is in
    /// [`Session::rank_error`].
    pub fn step(&mut self) -> Result<StepReport, RuntimeError> {
        self.check_usable()?;
        if !self.complete {
            if let Some(name) = self.unwritten() {
                return Err(RuntimeError::Missing { name: name.into() });
            }
            self.complete = true;
        }
        let start = Instant::now();
        *lock(&self.shared.finished) = 0;
        self.command(Command::Step);
        let mut finished = lock(&self.shared.finished);
        while *finished < self.ranks() {
            finished = self.shared.all_finished.wait(finished).unwrap_or_else(PoisonError::into_inner);
        }
        drop(finished);
        self.steps += 1;
        // The cause is the error of the rank that failed first; the others only gave up.
        let cause = self.shared.world.failure().map(|f| f.0);
        let errors = cause.into_iter().chain(0..self.ranks()).filter_map(|r| self.rank_error(r));
        if let Some(error) = errors.into_iter().next() {
            self.failed = Some(error.to_string());
            return Err(error);
        }
        Ok(StepReport { seconds: start.elapsed().as_secs_f64() })
    }

    /// The first parameter or tensor of the batch that was never written, or on some ranks only.
    pub fn unwritten(&self) -> Option<&str> {
        let inputs = self.program(0).inputs.iter().enumerate();
        let mut needed = inputs.filter(|(_, i)| matches!(i.kind, InputKind::Parameter | InputKind::Data));
        let is_empty = |rank: usize, input: usize| self.program(rank).inputs[input].binding.view.elements() == 0;
        let written = |input: usize| {
            let mut ranks = self.loaded.iter().enumerate();
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

    /// The error of a rank in the latest step.
    pub fn rank_error(&self, rank: usize) -> Option<RuntimeError> {
        lock(&self.shared.ranks[rank].result).clone().err()
    }

    /// What a rank's communicator has executed since the launch or the latest
    /// [`Session::reset_counters`].
    pub fn collectives(&self, rank: usize) -> Vec<CollectiveCount> {
        let r = &self.shared.ranks[rank];
        r.counters.summary(r.program.collectives())
    }

    /// Bytes that a rank has sent under the ring algorithm since the latest reset.
    pub fn wire_bytes(&self, rank: usize) -> f64 {
        self.collectives(rank).iter().map(|c| c.wire_bytes).sum()
    }

    /// Sets the counters of all ranks to 0.
    pub fn reset_counters(&mut self) {
        self.shared.ranks.iter().for_each(|r| r.counters.reset());
    }

    /// The recorded actions of all ranks as Chrome trace events, one line each.
    pub fn trace_json(&self) -> String {
        let mut out = String::from("{\"traceEvents\":[");
        for r in &self.shared.ranks {
            lock(&r.trace).write_json(&r.program, &mut out);
        }
        out.push_str("\n]}\n");
        out
    }

    fn command(&self, command: Command) {
        let mut slot = lock(&self.shared.command);
        *slot = (slot.0 + 1, command);
        self.shared.commanded.notify_all();
    }
}

/// The inputs of one rank, while all ranks' are filled: see [`Session::fill_ranks`].
pub struct RankInputs<'a> {
    session: &'a Session,
    rank: usize,
}

impl RankInputs<'_> {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The rank's program.
    pub fn program(&self) -> &RankProgram {
        self.session.program(self.rank)
    }

    /// Lets `fill` write the dense bytes of the rank's box of an input, given by its position among the program's inputs.
    ///
    /// # Errors
    /// What `fill` says.
    ///
    /// # Panics
    /// If the program has no such input.
    pub fn write<E: From<RuntimeError>>(
        &mut self,
        input: usize,
        fill: impl FnOnce(&BoxRequest, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let binding = &self.program().inputs[input].binding;
        let (base, len) = self.session.bytes(self.rank, binding)?;
        // SAFETY: as in `Session::box_mut`. `Session::fill_ranks` borrows the session mutably, makes one
        // of these for each rank, and each rank has an arena of its own; `&mut self` lets only one box be written at a time.
        let to = unsafe { std::slice::from_raw_parts_mut(base, len) };
        fill(&BoxRequest::of(binding), to)?;
        self.session.loaded[self.rank].written[input].store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Calls `f` for all ranks at the same time, and gives what it gave for each; of several errors, the lowest rank's is given.
pub(crate) fn each_rank<T: Send, E: Send>(
    ranks: usize,
    f: &(dyn Fn(usize) -> Result<T, E> + Sync),
) -> Result<Vec<T>, E> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || f(rank))).collect();
        let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect::<Vec<_>>().into_iter().collect()
    })
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

fn load(shared: &Shared, rank: usize, comm: &mut Threads) -> Result<(Arc<Arena>, Executable), RuntimeError> {
    let program = &shared.ranks[rank].program;
    let bytes = program.arena_bytes;
    let arena = match shared.arenas.get(rank) {
        Some(arena) => arena.clone(),
        None => Arc::new(Arena::new(bytes).ok_or(RuntimeError::OutOfMemory { rank, bytes })?),
    };
    let inputs = program.inputs.iter().map(|i| (i.name.clone(), &i.binding));
    let outputs = program.outputs.iter().map(|o| (output_name(&o.kind), &o.binding));
    for (name, b) in inputs.chain(outputs) {
        let fits = b.global.len() == b.start.len()
            && b.global.len() == b.view.shape.len()
            && (0..b.global.len()).all(|d| b.view.shape[d] == 0 || b.start[d] + b.view.shape[d] <= b.global[d])
            && b.layout.iter().product::<usize>() == b.global.iter().product::<usize>();
        let checked = if !fits {
            Err(format!("box {:?} at {:?} of {:?} (layout {:?})", b.view.shape, b.start, b.global, b.layout))
        } else if !b.view.is_dense() {
            Err("its view is not dense".into())
        } else {
            arena.resolve_view(&program.buffers, &b.view).map(|_| ())
        };
        checked.map_err(|e| RuntimeError::Launch(format!("rank {rank}, `{name}`: {e}")))?;
    }
    let executable = Executable::load(program, &arena, comm)?;
    Ok((arena, executable))
}

fn rank_thread(shared: &Shared, rank: usize, ready: &mpsc::Sender<(usize, Result<Loaded, RuntimeError>)>) {
    let mut comm = Threads::new(shared.world.clone(), rank);
    let loaded = catch_unwind(AssertUnwindSafe(|| load(shared, rank, &mut comm)));
    let loaded = loaded.unwrap_or_else(|panic| {
        Err(RuntimeError::Panic { rank, operation: "loading the program".into(), message: panic_message(&*panic) })
    });
    let (mut executable, _arena) = match loaded {
        Ok((arena, executable)) => {
            let scratch_bytes = executable.scratch_bytes();
            let written = program_inputs(shared, rank);
            let _ = ready.send((rank, Ok(Loaded { arena: arena.clone(), scratch_bytes, written })));
            (executable, arena)
        }
        Err(e) => {
            let _ = ready.send((rank, Err(e)));
            return;
        }
    };
    let mine = &shared.ranks[rank];
    let mut seen = 0;
    for step in 0.. {
        let mut command = lock(&shared.command);
        while command.0 == seen {
            command = shared.commanded.wait(command).unwrap_or_else(PoisonError::into_inner);
        }
        seen = command.0;
        if command.1 == Command::Exit {
            return;
        }
        drop(command);
        let result = catch_unwind(AssertUnwindSafe(|| {
            inject(shared, rank, step);
            let mut trace = lock(&mine.trace);
            let mut around = Surroundings {
                comm: &mut comm,
                counters: &mine.counters,
                trace: (shared.options.trace > 0).then_some(&mut *trace),
                epoch: shared.epoch,
                current: &mine.current,
            };
            // SAFETY: the session does not touch the arena until all ranks have finished the step.
            unsafe { executable.step(&mut around) }
        }));
        let result = result.unwrap_or_else(|panic| {
            let label = mine.program.steps.get(mine.current.load(Ordering::Relaxed)).map_or("", |s| &*s.label);
            let operation = format!("`{label}`");
            Err(RuntimeError::Panic { rank, operation, message: panic_message(&*panic) })
        });
        if let Err(e) = &result {
            shared.world.fail(rank, e.to_string());
        }
        shared.world.finish_step(rank);
        *lock(&mine.result) = result;
        *lock(&shared.finished) += 1;
        shared.all_finished.notify_one();
    }
}

fn program_inputs(shared: &Shared, rank: usize) -> Vec<AtomicBool> {
    shared.ranks[rank].program.inputs.iter().map(|_| AtomicBool::new(false)).collect()
}

fn inject(shared: &Shared, rank: usize, step: u64) {
    let Some(fault) = shared.options.fault.filter(|f| f.rank == rank && f.step == step) else { return };
    match fault.kind {
        FaultKind::Panic => panic!("injected fault"),
        FaultKind::Stall(time) => {
            let start = Instant::now();
            while start.elapsed() < time && shared.world.failure().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
