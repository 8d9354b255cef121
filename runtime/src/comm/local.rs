//! Processes on one host that share memory, with one rank each; or a single process with all ranks as its threads.

use super::control::{Control, cpu_time, waits_for_disk};
use super::processes::{Ending, Processes, agree};
use super::ranks::Ranks;
use super::shared_memory::{Growth, Handle, Region};
use super::wait::{Awaited, Stop, wait};
use super::world::{World, grown, out_of_memory};
use super::{Communicator, Communicators};
use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use crate::flight::{Flight, FlightRecord};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tpc_ir::program::RankPrograms;

/// The processes of a world on one host.
#[derive(Debug)]
pub struct Local {
    control: Arc<Control>,
    process: usize,
    /// Directory for the flight record, unless another process writes it.
    record: Option<PathBuf>,
}

impl Local {
    /// A single process whose ranks are threads.
    ///
    /// # Errors
    /// Too little memory.
    pub fn alone(ranks: usize) -> Result<Arc<Self>, RuntimeError> {
        let control = Control::private(ranks).map_err(out_of_memory)?;
        Ok(Arc::new(Local { control, process: 0, record: None }))
    }

    /// One of the processes that share a control block. If a directory is given, the first process that fails writes
    /// the flight record there.
    pub fn joined(control: Arc<Control>, process: usize, record: Option<PathBuf>) -> Arc<Self> {
        control.note_cpus(process);
        control.rank(process).pid.store(std::process::id(), Ordering::Release);
        control.ring();
        Arc::new(Local { control, process, record })
    }

    fn record_path(&self) -> Option<PathBuf> {
        self.record.as_ref().map(|dir| dir.join(format!("tpc-flight-{}.json", std::process::id())))
    }
}

impl Processes for Local {
    fn count(&self) -> usize {
        if self.control.is_shared() { self.control.ranks() } else { 1 }
    }

    fn process(&self) -> usize {
        self.process
    }

    fn local(&self, ranks: usize) -> Result<Range<usize>, RuntimeError> {
        match self.control.is_shared() {
            false => Ok(0..ranks),
            true if ranks == self.count() => Ok(self.process..self.process + 1),
            true => Err(RuntimeError::Processes { ranks, processes: self.count() }),
        }
    }

    fn exchange(&self, purpose: &str, bytes: &[u8], deadline: Duration) -> Result<Vec<Vec<u8>>, RuntimeError> {
        match self.control.is_shared() {
            // A process that leaves an exchange makes the others wait in vain.
            true => exchange(&self.control, self.process, purpose, bytes, deadline)
                .inspect_err(|e| self.fail(self.process, &e.to_string())),
            false => Ok(vec![bytes.to_vec()]),
        }
    }

    fn fail(&self, rank: usize, reason: &str) {
        let path = self.record_path();
        let told = path.as_ref().map(|p| format!("; flight record: {}", p.display())).unwrap_or_default();
        let first = self.control.fail(rank, || format!("{reason}{told}"));
        if let (true, Some(path)) = (first, path) {
            // The failure is reported in any case.
            let _ = std::fs::write(path, self.control.flight_record().to_json());
        }
    }

    fn failure(&self) -> Option<(usize, String)> {
        self.control.failure()
    }

    fn gone(&self) -> Vec<usize> {
        self.control.gone(&(0..self.control.ranks()).collect::<Vec<_>>())
    }

    fn on_host(&self) -> (usize, usize) {
        (self.process, self.count())
    }

    fn written_record(&self) -> Option<PathBuf> {
        self.record_path().filter(|path| path.is_file())
    }

    fn flight(&self, rank: usize) -> &Flight {
        &self.control.rank(rank).flight
    }

    fn flight_record(&self) -> FlightRecord {
        self.control.flight_record()
    }

    fn progress(&self) {
        self.control.rank(self.process).progress.fetch_add(1, Ordering::Relaxed);
    }

    fn leftover(&self, path: &Path) {
        // The launcher may have another working directory. `absolute` only fails for empty paths, which do not occur.
        let path = std::path::absolute(path).unwrap_or_default();
        self.control.set_leftover(&path.to_string_lossy());
    }

    fn set_ending(&self, ending: Ending) {
        self.control.set_ending(self.process, ending);
    }

    fn open(
        &self,
        programs: Arc<RankPrograms>,
        _local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError> {
        if self.control.is_shared() {
            return open(&self.control, self.process, None, programs, deadline);
        }
        Ok(Arc::new(World::of_threads(self.control.clone(), None, programs, deadline)?))
    }
}

/// Opens the shared memory of a session: each process creates the arena of its rank and maps the arenas of the others,
/// and the first process creates the words.
pub(super) fn open(
    control: &Arc<Control>,
    process: usize,
    arenas: Option<Vec<Arc<Arena>>>,
    programs: Arc<RankPrograms>,
    deadline: Duration,
) -> Result<Arc<dyn Communicators>, RuntimeError> {
    let processes = Local { control: control.clone(), process, record: None };
    let share = |purpose: &str, mine: Result<Vec<u8>, String>| {
        let all = agree(&processes, purpose, mine, deadline)?;
        all.map_err(|(peer, reason)| RuntimeError::Elsewhere { rank: peer, reason })
    };
    let bytes = World::bytes(&programs);
    let arena_bytes = programs[process].arena_bytes;
    let no_words = |e| format!("no memory for the communication of the ranks: {e}");
    let words = if process == 0 { Region::shared(bytes, Growth::Fixed).map(Some).map_err(no_words) } else { Ok(None) };
    let mine = match &arenas {
        Some(arenas) => grown(&arenas[process], process, arena_bytes).map(|_| None).map_err(|e| e.to_string()),
        None => Arena::shared(arena_bytes, programs.ranks())
            .map(Some)
            .ok_or_else(|| RuntimeError::OutOfMemory { rank: process, bytes: arena_bytes }.to_string()),
    };
    let handle = |handle: Option<Handle>| handle.map(|h| h.to_text()).unwrap_or_default();
    let announced = match (&words, &mine) {
        (Ok(words), Ok(mine)) => {
            let words = handle(words.as_ref().and_then(Region::handle));
            Ok(format!("{words} {} {arena_bytes}", handle(mine.as_ref().and_then(Arena::handle))).into_bytes())
        }
        (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
    };
    let handles = share("launch: share memory", announced)?;
    let no_memory = |rank: usize| format!("rank {rank} announced no memory");
    let announced = |rank: usize, which: usize| {
        String::from_utf8_lossy(&handles[rank]).split(' ').nth(which).unwrap_or_default().to_string()
    };
    let bytes_of = |rank: usize| announced(rank, 2).parse::<usize>().map_err(|_| no_memory(rank));
    let peer = |rank: usize, which: usize, growth: Growth| {
        let handle = Handle::parse(&announced(rank, which)).ok_or_else(|| no_memory(rank))?;
        let mapped = Region::of_peer(handle, growth);
        mapped.map_err(|e| {
            format!("the memory of rank {rank} cannot be mapped ({e}): all ranks must run on one host as one user")
        })
    };
    let mapped = (|| -> Result<(Region, Vec<Arc<Arena>>), String> {
        let words = match words? {
            Some(words) => words,
            None => peer(0, 0, Growth::Fixed)?,
        };
        if words.bytes() != bytes {
            return Err("rank 0 has another number of groups".into());
        }
        let arenas = match (arenas, mine?) {
            // Their owners have enlarged them if necessary.
            (Some(arenas), _) => {
                let arena = |(rank, arena)| grown(arena, rank, bytes_of(rank)?).map_err(|e| e.to_string());
                arenas.iter().enumerate().map(arena).collect::<Result<_, _>>()?
            }
            (None, mine) => {
                let mut mine = mine.map(Arc::new);
                let arena = |rank: usize| match (rank == process, &mut mine) {
                    (true, Some(mine)) => Ok(mine.clone()),
                    _ => Arena::of_region(peer(rank, 1, Growth::of_one_in(programs.ranks()))?, bytes_of(rank)?)
                        .map(Arc::new)
                        .ok_or_else(|| format!("the arena of rank {rank} has another size than it announced")),
                };
                (0..programs.ranks()).map(arena).collect::<Result<_, _>>()?
            }
        };
        Ok((words, arenas))
    })();
    // No process continues, and possibly ends, before all have mapped what they need.
    share("launch: map memory", mapped.as_ref().map(|_| Vec::new()).map_err(Clone::clone))?;
    let (words, arenas) = mapped.map_err(|reason| RuntimeError::Elsewhere { rank: process, reason })?;
    Ok(Arc::new(World::new(control.clone(), words, arenas, programs, deadline)))
}

/// The processes that have not yet finished a round of an exchange.
struct Round<'a> {
    control: &'a Control,
    round: u64,
    /// Whether the round is about taking or about posting.
    taken: bool,
    deadline: Duration,
    began: Instant,
}

impl Round<'_> {
    fn is_late(&self, process: usize) -> bool {
        let block = self.control.rank(process);
        let done = if self.taken { &block.taken } else { &block.posted };
        done.load(Ordering::Acquire) < self.round
    }
}

impl Awaited<RuntimeError> for Round<'_> {
    fn control(&self) -> &Control {
        self.control
    }

    fn look(&mut self) -> Result<Option<()>, RuntimeError> {
        Ok((0..self.control.ranks()).all(|p| !self.is_late(p)).then_some(()))
    }

    fn is_hopeless(&mut self) -> Option<RuntimeError> {
        None
    }

    fn missing(&mut self) -> Vec<usize> {
        (0..self.control.ranks()).filter(|&p| self.is_late(p)).collect()
    }

    fn progress(&mut self) -> u64 {
        // Host programs compile, read and write files between exchanges: a process that computes or waits for a disk is
        // not stuck. Idle processes compute a little, too.
        let busy = (self.deadline.as_millis() as u64 / 100).max(1);
        let of = |p: usize| {
            let block = self.control.rank(p);
            let pid = block.pid.load(Ordering::Relaxed);
            let disk = if waits_for_disk(pid) { self.began.elapsed().as_millis() as u64 } else { 0 };
            block.progress.load(Ordering::Relaxed) + cpu_time(pid) / busy + disk
        };
        (0..self.control.ranks()).filter(|&p| self.is_late(p)).map(of).sum()
    }
}

/// Exchanges messages: every process posts a part of its message to its mailbox, waits until all have, and takes all
/// parts, for as many rounds as the longest message needs.
fn exchange(
    control: &Control,
    process: usize,
    purpose: &str,
    bytes: &[u8],
    deadline: Duration,
) -> Result<Vec<Vec<u8>>, RuntimeError> {
    let mine = control.rank(process);
    mine.doing.set(&format!("in `{purpose}`"));
    let began = Instant::now();
    let wait_for = |round: u64, taken: bool| {
        let operation = || format!("`{purpose}`");
        let stop = wait(deadline, false, &mut Round { control, round, taken, deadline, began });
        stop.map_err(|stop| match stop {
            Stop::Error(error) => error,
            Stop::Failed => {
                let (peer, reason) = control.failure().unwrap_or((process, "unknown".into()));
                RuntimeError::PeerFailed { rank: process, operation: operation(), peer, reason }
            }
            Stop::Gone(missing) => RuntimeError::Gone { rank: process, operation: operation(), missing },
            Stop::Late => {
                let missing = Round { control, round, taken, deadline, began }.missing();
                let states = control.states(&missing);
                RuntimeError::Deadline { rank: process, operation: operation(), missing, states, deadline }
            }
        })
    };
    let mut all: Vec<Vec<u8>> = (0..control.ranks()).map(|_| Vec::new()).collect();
    let mailbox = control.mailbox_bytes();
    let mut sent = 0;
    loop {
        let round = mine.posted.load(Ordering::Relaxed) + 1;
        // No process still reads the contents of the mailbox.
        wait_for(round - 1, true)?;
        let part = &bytes[sent..bytes.len().min(sent + mailbox)];
        // SAFETY: the mailbox has room for a part, and the others read it between this process's `posted` and their own
        // `taken`.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), control.mailbox(process), part.len()) };
        sent += part.len();
        mine.purpose.set(purpose);
        mine.length.store(bytes.len() as u64, Ordering::Relaxed);
        mine.posted.store(round, Ordering::Release);
        control.ring();
        wait_for(round, false)?;
        let mut more = false;
        for (peer, message) in all.iter_mut().enumerate() {
            let block = control.rank(peer);
            let (theirs, mine) = (block.purpose.get(), mine.purpose.get());
            if theirs != mine {
                let (mine, theirs) = (format!("`{mine}`"), format!("`{theirs}`"));
                return Err(RuntimeError::Desynchronized { rank: process, mine, peer, theirs });
            }
            let length = block.length.load(Ordering::Relaxed) as usize;
            let part = mailbox.min(length - message.len());
            message.reserve(part);
            // SAFETY: the peer posted this many bytes, and does not change them until all have taken them.
            unsafe {
                let end = message.as_mut_ptr().add(message.len());
                std::ptr::copy_nonoverlapping(control.mailbox(peer), end, part);
                message.set_len(message.len() + part);
            }
            more |= message.len() < length;
        }
        mine.taken.store(round, Ordering::Release);
        control.ring();
        if !more {
            mine.doing.set("");
            return Ok(all);
        }
    }
}

impl Communicators for World {
    fn communicator(self: Arc<Self>, rank: usize) -> Box<dyn Communicator> {
        Box::new(Ranks::new(self, rank))
    }

    fn arena(&self, rank: usize) -> Arc<Arena> {
        self.arenas()[rank].clone()
    }

    fn finish_step(&self, rank: usize) {
        self.steps_done(rank).fetch_add(1, Ordering::Release);
        self.control.ring();
    }

    fn switch_to(
        &self,
        programs: Arc<RankPrograms>,
        local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError> {
        let arenas = Some(self.arenas().to_vec());
        if self.control.is_shared() {
            return open(&self.control, local.start, arenas, programs, deadline);
        }
        Ok(Arc::new(World::of_threads(self.control.clone(), arenas, programs, deadline)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control block has room for thousands of processes, and an exchange among them passes every message to each.
    #[test]
    fn messages_of_4096_processes_are_exchanged() {
        const PROCESSES: usize = 4096;
        let control = Control::shared(PROCESSES).unwrap();
        let me = PROCESSES - 1;
        let message = |process: usize| format!("from {process}");
        let post = |process: usize, round: u64| {
            let (block, text) = (control.rank(process), message(process));
            // SAFETY: the mailbox has room for the text, and no other thread uses it.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), control.mailbox(process), text.len()) };
            block.purpose.set("meet");
            block.length.store(text.len() as u64, Ordering::Relaxed);
            block.taken.store(round - 1, Ordering::Release);
            block.posted.store(round, Ordering::Release);
        };
        for round in 1..3 {
            (0..me).for_each(|process| post(process, round));
            let all = exchange(&control, me, "meet", message(me).as_bytes(), Duration::from_secs(10)).unwrap();
            assert_eq!(all, (0..PROCESSES).map(|process| message(process).into_bytes()).collect::<Vec<_>>());
        }
        // A process that is missing is named, and not waited for forever.
        (1..me).for_each(|process| post(process, 3));
        control.rank(0).taken.store(2, Ordering::Release);
        let late = exchange(&control, me, "meet", b"", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(late.contains("rank 0 is not there yet"), "{late}");
    }
}
