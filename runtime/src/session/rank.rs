//! The thread of a rank: it loads programs, and executes one of them on command.

use super::attached::Attached;
use super::bindings::check_bindings;
use super::fault::{inject, panic_message};
use super::loaded::{Loaded, RankShared, Written};
use super::lock::lock;
use super::options::LaunchOptions;
use crate::comm::{Communicator, Communicators, Processes};
use crate::counters::Counters;
use crate::device::cpu::executable::{Executable, Surroundings};
use crate::error::RuntimeError;
use crate::flight::Clock;
use crate::trace::Trace;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;
use tpc_ir::program::RankPrograms;

/// A command to the ranks of this process.
#[derive(Clone)]
pub(super) enum Command {
    /// Load a program, replacing the one with this number.
    Load(usize, Arc<Shared>),
    /// Run a program once; the second number counts its steps.
    Step(usize, u64),
    /// End the thread.
    Exit,
}

/// The threads of this process's ranks, which execute all programs of a session.
pub(super) struct Crew {
    command: Mutex<(u64, Command)>,
    commanded: Condvar,
    /// Number of ranks of this process that have finished the command.
    finished: Mutex<usize>,
    all_finished: Condvar,
}

impl Crew {
    pub(super) fn new() -> Self {
        Crew {
            command: Mutex::new((0, Command::Exit)),
            commanded: Condvar::new(),
            finished: Mutex::new(0),
            all_finished: Condvar::new(),
        }
    }

    /// Sends a command to all threads.
    pub(super) fn command(&self, command: Command) {
        *lock(&self.finished) = 0;
        let mut slot = lock(&self.command);
        *slot = (slot.0 + 1, command);
        self.commanded.notify_all();
    }

    /// Waits until this many threads have finished the command.
    pub(super) fn wait(&self, threads: usize) {
        let mut finished = lock(&self.finished);
        while *finished < threads {
            finished = self.all_finished.wait(finished).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next command after the one with this number.
    fn next(&self, seen: &mut u64) -> Command {
        let mut command = lock(&self.command);
        while command.0 == *seen {
            command = self.commanded.wait(command).unwrap_or_else(PoisonError::into_inner);
        }
        *seen = command.0;
        command.1.clone()
    }

    fn finish(&self) {
        *lock(&self.finished) += 1;
        self.all_finished.notify_one();
    }
}

/// The state that a session and the threads of its ranks share about one of its programs.
pub(super) struct Shared {
    pub(super) epoch: Instant,
    pub(super) clock: Clock,
    pub(super) options: LaunchOptions,
    /// For the ranks of this process at least.
    pub(super) programs: Arc<RankPrograms>,
    pub(super) processes: Arc<dyn Processes>,
    pub(super) engine: Engine,
    /// The ranks of this process.
    pub(super) local: Range<usize>,
    /// For the ranks of this process.
    pub(super) ranks: Vec<RankShared>,
}

/// What executes the ranks of this process.
#[derive(Clone)]
pub(super) enum Engine {
    /// A thread for each rank, with these communicators.
    Threads(Arc<dyn Communicators>),
    /// A device.
    Device(Arc<Attached>),
}

impl Shared {
    pub(super) fn new(
        programs: Arc<RankPrograms>,
        processes: Arc<dyn Processes>,
        local: Range<usize>,
        engine: Engine,
        options: LaunchOptions,
    ) -> Arc<Self> {
        let ranks = local.clone().map(|rank| RankShared {
            counters: Counters::new(&programs[rank]),
            trace: Mutex::new(Trace::new(options.trace)),
            result: Mutex::new(Ok(())),
            current: AtomicUsize::new(0),
            loaded: Mutex::new(None),
        });
        let (epoch, clock, ranks) = (Instant::now(), Clock::new(), ranks.collect());
        Arc::new(Shared { epoch, clock, options, programs, processes, engine, local, ranks })
    }
}

/// A program that a rank has loaded.
struct Ready {
    shared: Arc<Shared>,
    executable: Executable,
    comm: Box<dyn Communicator>,
    world: Arc<dyn Communicators>,
}

/// Runs a rank's thread: executes commands until it is told to exit.
pub(super) fn rank_thread(crew: &Crew, rank: usize) {
    let mut programs: Vec<Option<Ready>> = Vec::new();
    let mut seen = 0;
    loop {
        match crew.next(&mut seen) {
            Command::Load(number, shared) => {
                if programs.len() <= number {
                    programs.resize_with(number + 1, || None);
                }
                // The memory of the replaced program is freed before that of the new one is allocated.
                programs[number] = None;
                let (ready, loaded) = load(shared.clone(), rank);
                programs[number] = ready;
                *lock(&shared.ranks[rank - shared.local.start].loaded) = Some(loaded);
            }
            Command::Step(number, step) => {
                if let Some(ready) = programs.get_mut(number).and_then(Option::as_mut) {
                    ready.step(rank, step);
                }
            }
            Command::Exit => return,
        }
        crew.finish();
    }
}

fn load(shared: Arc<Shared>, rank: usize) -> (Option<Ready>, Result<Loaded, RuntimeError>) {
    let Engine::Threads(world) = &shared.engine else {
        return (None, Err(RuntimeError::Launch(format!("rank {rank} is on a device, which needs no threads"))));
    };
    let world = world.clone();
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let program = &shared.programs[rank];
        let (mut comm, arena) = (world.clone().communicator(rank), world.arena(rank));
        check_bindings(program)?;
        let executable = Executable::load(program, &arena, &mut *comm)?;
        let written = program.inputs.iter().map(|_| Written::default()).collect();
        let loaded = Loaded { arena: Some(arena), scratch_bytes: executable.scratch_bytes(), written };
        Ok((executable, comm, loaded))
    }));
    let loaded = loaded.unwrap_or_else(|panic| {
        Err(RuntimeError::Panic { rank, operation: "loading the program".into(), message: panic_message(&*panic) })
    });
    match loaded {
        Ok((executable, comm, loaded)) => (Some(Ready { shared, executable, comm, world }), Ok(loaded)),
        Err(e) => (None, Err(e)),
    }
}

impl Ready {
    fn step(&mut self, rank: usize, step: u64) {
        let Ready { shared, executable, comm, world } = self;
        let mine = &shared.ranks[rank - shared.local.start];
        let result = catch_unwind(AssertUnwindSafe(|| {
            inject(&shared.options, &*shared.processes, rank, step);
            let mut trace = lock(&mine.trace);
            let mut around = Surroundings {
                comm: &mut **comm,
                counters: &mine.counters,
                flight: shared.processes.flight(rank),
                clock: shared.clock,
                trace: (shared.options.trace > 0).then_some(&mut *trace),
                epoch: shared.epoch,
                current: &mine.current,
            };
            // SAFETY: the session does not access the arena until all ranks have finished the step, and makes its
            // threads execute one program at a time.
            unsafe { executable.step(&mut around) }
        }));
        let result = result.unwrap_or_else(|panic| {
            let steps = &shared.programs[rank].steps;
            let label = steps.get(mine.current.load(Ordering::Relaxed)).map_or("", |s| &*s.label);
            let operation = format!("`{label}`");
            Err(RuntimeError::Panic { rank, operation, message: panic_message(&*panic) })
        });
        if let Err(e) = &result {
            shared.processes.fail(rank, &e.to_string());
        }
        world.finish_step(rank);
        *lock(&mine.result) = result;
    }
}
