//! What the thread of a rank does: load the program, then step when it is told to.

use super::attached::{Attached, check_bindings};
use super::{FaultKind, LaunchOptions, lock};
use crate::comm::{Communicator, Communicators, Processes};
use crate::counters::Counters;
use crate::device::cpu::arena::Arena;
use crate::device::cpu::load::{Executable, Surroundings};
use crate::error::RuntimeError;
use crate::flight::Clock;
use crate::trace::Trace;
use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tpc_ir::program::RankProgram;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Command {
    Step,
    Exit,
}

/// What the session and the threads of its ranks share.
pub(super) struct Shared {
    pub(super) command: Mutex<(u64, Command)>,
    pub(super) commanded: Condvar,
    /// Ranks of this process that have finished the current step.
    pub(super) finished: Mutex<usize>,
    pub(super) all_finished: Condvar,
    pub(super) epoch: Instant,
    pub(super) clock: Clock,
    pub(super) options: LaunchOptions,
    /// Of all ranks.
    pub(super) programs: Arc<[RankProgram]>,
    pub(super) processes: Arc<dyn Processes>,
    pub(super) engine: Engine,
    /// The ranks of this process.
    pub(super) local: Range<usize>,
    /// Of the ranks of this process.
    pub(super) ranks: Vec<RankShared>,
}

/// What executes the ranks of this process.
#[derive(Clone)]
pub(super) enum Engine {
    /// A thread for each, which meet here.
    Threads(Arc<dyn Communicators>),
    /// A device.
    Device(Arc<Attached>),
}

pub(super) struct RankShared {
    pub(super) counters: Counters,
    pub(super) trace: Mutex<Trace>,
    pub(super) result: Mutex<Result<(), RuntimeError>>,
    pub(super) current: AtomicUsize,
}

pub(super) struct Loaded {
    /// None on a device.
    pub(super) arena: Option<Arc<Arena>>,
    pub(super) scratch_bytes: usize,
    /// Of every input, whether its box was given a value.
    pub(super) written: Vec<AtomicBool>,
}

fn load(shared: &Shared, rank: usize, arena: &Arena, comm: &mut dyn Communicator) -> Result<Executable, RuntimeError> {
    let program = &shared.programs[rank];
    check_bindings(program)?;
    Executable::load(program, arena, comm)
}

pub(super) fn rank_thread(
    shared: &Shared,
    world: &Arc<dyn Communicators>,
    rank: usize,
    ready: &mpsc::Sender<(usize, Result<Loaded, RuntimeError>)>,
) {
    let mut comm = world.clone().communicator(rank);
    let arena = world.arena(rank);
    let program = &shared.programs[rank];
    let loaded = catch_unwind(AssertUnwindSafe(|| load(shared, rank, &arena, &mut *comm)));
    let loaded = loaded.unwrap_or_else(|panic| {
        Err(RuntimeError::Panic { rank, operation: "loading the program".into(), message: panic_message(&*panic) })
    });
    let mut executable = match loaded {
        Ok(executable) => {
            let scratch_bytes = executable.scratch_bytes();
            let written = program.inputs.iter().map(|_| AtomicBool::new(false)).collect();
            let _ = ready.send((rank, Ok(Loaded { arena: Some(arena), scratch_bytes, written })));
            executable
        }
        Err(e) => {
            let _ = ready.send((rank, Err(e)));
            return;
        }
    };
    let mine = &shared.ranks[rank - shared.local.start];
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
            inject(&shared.options, &*shared.processes, rank, step);
            let mut trace = lock(&mine.trace);
            let mut around = Surroundings {
                comm: &mut *comm,
                counters: &mine.counters,
                flight: shared.processes.flight(rank),
                clock: shared.clock,
                trace: (shared.options.trace > 0).then_some(&mut *trace),
                epoch: shared.epoch,
                current: &mine.current,
            };
            // SAFETY: the session does not touch the arena until all ranks have finished the step.
            unsafe { executable.step(&mut around) }
        }));
        let result = result.unwrap_or_else(|panic| {
            let label = program.steps.get(mine.current.load(Ordering::Relaxed)).map_or("", |s| &*s.label);
            let operation = format!("`{label}`");
            Err(RuntimeError::Panic { rank, operation, message: panic_message(&*panic) })
        });
        if let Err(e) = &result {
            shared.processes.fail(rank, &e.to_string());
        }
        world.finish_step(rank);
        *lock(&mine.result) = result;
        *lock(&shared.finished) += 1;
        shared.all_finished.notify_one();
    }
}

/// Makes a rank fail if it is to fail in this step.
pub(super) fn inject(options: &LaunchOptions, processes: &dyn Processes, rank: usize, step: u64) {
    let Some(fault) = options.fault.filter(|f| f.rank == rank && f.step == step) else { return };
    match fault.kind {
        FaultKind::Panic => panic!("injected fault"),
        FaultKind::Stall(time) => {
            let start = Instant::now();
            while start.elapsed() < time && processes.failure().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        FaultKind::Kill => signal(libc::SIGKILL),
        FaultKind::Stop => signal(libc::SIGSTOP),
        FaultKind::Exit(code) => std::process::exit(code),
    }
}

/// Sends a signal to this process.
fn signal(number: i32) {
    // SAFETY: a system call without memory.
    unsafe { libc::kill(libc::getpid(), number) };
}

pub(super) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
