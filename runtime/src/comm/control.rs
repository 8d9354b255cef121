//! The control block of a world: the first failure, the activity of every rank, a bell for sleepers, and a mailbox for
//! each process.
//!
//! ```text
//! [ header ][ block of rank 0 ][ block of rank 1 ] … [ mailbox of rank 0 ][ mailbox of rank 1 ] …
//! ```
//! It is in private memory if all ranks are threads of one process, and otherwise in shared memory that the launcher or
//! rank 0 created. It contains only atomic words, so whatever a dying process leaves there can be read.

use super::futex;
use super::processes::Ending;
use super::shared_memory::{Growth, Handle, Region};
use super::text::Text;
use crate::flight::{Flight, FlightRecord, RankRecord};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// Bytes that a process passes to the others at a time. In a large world it is less, because a control block has a mailbox
/// for each process.
const MAILBOX: usize = 256 << 10;

/// Bytes of all mailboxes of a control block, as long as each has at least [`LEAST_MAILBOX`] bytes.
const MAILBOXES: usize = 64 << 20;

/// Least bytes that a process passes to the others at a time.
const LEAST_MAILBOX: usize = 4 << 10;

/// Words for as many processors as the system's own sets have.
const CPU_WORDS: usize = size_of::<libc::cpu_set_t>() / 8;

/// Distinguishes a control block of this version from everything else.
const MAGIC: u64 = u64::from_le_bytes(*b"tpc-cb02");

/// Longest sleep: a waiting rank checks its deadline at least this often.
pub const NAP: Duration = Duration::from_millis(20);

#[repr(C, align(128))]
struct Header {
    magic: AtomicU64,
    ranks: AtomicU64,
    /// 0 without failure, 1 while the failure is being written, 2 afterwards.
    failed: AtomicU32,
    failing: AtomicU32,
    reason: Text<512>,
    /// The path to remove if the process that writes it dies.
    leftover: Text<512>,
    sleepers: AtomicU32,
    bell: AtomicU32,
}

/// The public state of a rank and its process.
#[repr(C, align(128))]
pub struct RankBlock {
    /// Its process; 0 before it has joined.
    pub(crate) pid: AtomicU32,
    /// What its process does when a signal asks it to end.
    ending: AtomicU32,
    /// Increases while the process does long work other than a collective.
    pub(crate) progress: AtomicU64,
    /// Number of exchange rounds that its process has posted to its mailbox, and has taken from all.
    pub(crate) posted: AtomicU64,
    pub(crate) taken: AtomicU64,
    /// Bytes of the whole message of which the mailbox holds a part.
    pub(crate) length: AtomicU64,
    /// The purpose of the message.
    pub(crate) purpose: Text<16>,
    /// What the process does now other than stepping; empty for nothing.
    pub(crate) doing: Text<16>,
    /// Processors on which its process may run, one bit each.
    cpus: [AtomicU64; CPU_WORDS],
    /// Its latest collectives.
    pub flight: Flight,
}

/// The mapped control block of a world.
#[derive(Debug)]
pub struct Control {
    region: Region,
    ranks: usize,
    shared: bool,
}

impl Control {
    fn size(ranks: usize, shared: bool) -> usize {
        let mailboxes = if shared { ranks * mailbox_bytes(ranks) } else { 0 };
        size_of::<Header>() + ranks * size_of::<RankBlock>() + mailboxes
    }

    /// Creates the control block of a world of threads.
    ///
    /// # Errors
    /// Too little memory.
    pub fn private(ranks: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Control {
            region: Region::private(Control::size(ranks, false), Growth::Fixed)?,
            ranks,
            shared: false,
        }))
    }

    /// Creates the control block of a world of processes, one for each rank.
    ///
    /// # Errors
    /// Too little memory.
    pub fn shared(ranks: usize) -> io::Result<Arc<Self>> {
        let control =
            Control { region: Region::shared(Control::size(ranks, true), Growth::Fixed)?, ranks, shared: true };
        control.header().ranks.store(ranks as u64, Ordering::Relaxed);
        control.header().magic.store(MAGIC, Ordering::Release);
        Ok(Arc::new(control))
    }

    /// Maps the control block that another process created.
    ///
    /// # Errors
    /// The memory is not a control block of this version of the program.
    pub fn of_peer(handle: Handle) -> io::Result<Arc<Self>> {
        let region = Region::of_peer(handle, Growth::Fixed)?;
        let foreign = || io::Error::other("not a control block of this version of tpc");
        if region.bytes() < size_of::<Header>() {
            return Err(foreign());
        }
        let mut control = Control { region, ranks: 0, shared: true };
        control.ranks = control.header().ranks.load(Ordering::Relaxed) as usize;
        let known = control.header().magic.load(Ordering::Acquire) == MAGIC;
        let fits = control.ranks <= 1 << 20 && control.region.bytes() == Control::size(control.ranks, true);
        if known && fits { Ok(Arc::new(control)) } else { Err(foreign()) }
    }

    /// The handle with which other processes find it.
    pub fn handle(&self) -> Option<Handle> {
        self.region.handle()
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Whether ranks are processes.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    fn header(&self) -> &Header {
        // SAFETY: the region is at least this large, aligned to pages, was zeroed, and only has atomic words.
        unsafe { &*self.region.base().cast::<Header>() }
    }

    /// The block of a rank.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn rank(&self, rank: usize) -> &RankBlock {
        assert!(rank < self.ranks, "rank {rank} of {}", self.ranks);
        // SAFETY: as in `header`; the blocks follow the header, and their sizes keep them aligned.
        unsafe { &*self.region.base().add(size_of::<Header>()).cast::<RankBlock>().add(rank) }
    }

    /// Records the processors on which this process may run: launchers may bind each process to different ones.
    pub(crate) fn note_cpus(&self, rank: usize) {
        let mut set = [0u64; CPU_WORDS];
        // SAFETY: the set has the size that is given.
        unsafe { libc::sched_getaffinity(0, size_of_val(&set), set.as_mut_ptr().cast()) };
        for (word, bits) in self.rank(rank).cpus.iter().zip(set) {
            word.store(bits, Ordering::Relaxed);
        }
    }

    /// Number of processors on which any of the processes may run.
    pub(crate) fn cpus(&self) -> usize {
        let of_all = |word: usize| {
            (0..self.ranks).fold(0, |bits, rank| bits | self.rank(rank).cpus[word].load(Ordering::Relaxed)).count_ones()
        };
        (0..CPU_WORDS).map(of_all).sum::<u32>() as usize
    }

    /// Bytes of a mailbox.
    pub(crate) fn mailbox_bytes(&self) -> usize {
        mailbox_bytes(self.ranks)
    }

    /// The first byte of a process's mailbox.
    pub(crate) fn mailbox(&self, rank: usize) -> *mut u8 {
        assert!(self.shared && rank < self.ranks);
        let before = size_of::<Header>() + self.ranks * size_of::<RankBlock>() + rank * self.mailbox_bytes();
        // SAFETY: the mailboxes follow the blocks, within the region.
        unsafe { self.region.base().add(before) }
    }

    /// Tells all ranks that one has failed, so that they give up. Only the first failure is kept; `reason` is only
    /// called for that one. Returns whether this is the first failure.
    pub fn fail(&self, rank: usize, reason: impl FnOnce() -> String) -> bool {
        let header = self.header();
        if header.failed.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        header.failing.store(rank as u32, Ordering::Relaxed);
        header.reason.set(&reason());
        header.failed.store(2, Ordering::SeqCst);
        self.ring();
        true
    }

    /// Whether a rank has failed.
    pub fn has_failed(&self) -> bool {
        self.header().failed.load(Ordering::Acquire) != 0
    }

    /// The rank that failed first, and why.
    pub fn failure(&self) -> Option<(usize, String)> {
        let header = self.header();
        let start = Instant::now();
        // The process that writes the failure may die while writing.
        while header.failed.load(Ordering::Acquire) == 1 && start.elapsed() < Duration::from_millis(200) {
            std::thread::yield_now();
        }
        match header.failed.load(Ordering::Acquire) {
            0 => None,
            1 => Some((header.failing.load(Ordering::Relaxed) as usize, "unknown".into())),
            _ => Some((header.failing.load(Ordering::Relaxed) as usize, header.reason.get())),
        }
    }

    /// Records what the process of a rank does when a signal asks it to end.
    pub(crate) fn set_ending(&self, rank: usize, ending: Ending) {
        self.rank(rank).ending.store(ending as u32, Ordering::Release);
    }

    /// What the process of a rank does when a signal asks it to end.
    pub(crate) fn ending(&self, rank: usize) -> Ending {
        let all = [Ending::AfterStep, Ending::AsTold];
        let word = self.rank(rank).ending.load(Ordering::Acquire);
        all.into_iter().find(|ending| *ending as u32 == word).unwrap_or(Ending::AtOnce)
    }

    /// Records a file or directory to remove if this process dies; an empty path cancels this.
    pub fn set_leftover(&self, path: &str) {
        self.header().leftover.set(path);
    }

    /// The path from [`Control::set_leftover`].
    pub fn leftover(&self) -> String {
        self.header().leftover.get()
    }

    /// Wakes all sleepers after something was published.
    pub(crate) fn ring(&self) {
        // Either a sleeper's last look sees what was published before, or the sleeper is counted here.
        fence(Ordering::SeqCst);
        let header = self.header();
        if header.sleepers.load(Ordering::SeqCst) > 0 {
            header.bell.fetch_add(1, Ordering::SeqCst);
            futex::wake_all(&header.bell);
        }
    }

    /// Counts the caller among the sleepers. The caller must look once more before it sleeps, and then call
    /// [`Control::sleep`].
    pub(crate) fn lie_down(&self) -> u32 {
        self.header().sleepers.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.header().bell.load(Ordering::SeqCst)
    }

    /// Sleeps until something is published, if `tired`. Afterwards the caller no longer counts as a sleeper.
    pub(crate) fn sleep(&self, bell: u32, tired: bool) {
        if tired {
            futex::wait(&self.header().bell, bell, NAP);
        }
        self.header().sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// What a rank is doing, for error messages.
    pub fn state(&self, rank: usize) -> String {
        let block = self.rank(rank);
        let pid = block.pid.load(Ordering::Acquire);
        if self.shared && pid == 0 {
            return "not there yet".into();
        }
        match state_of(pid).filter(|_| self.shared) {
            None if self.shared => return "gone".into(),
            Some('Z' | 'X') => return "gone".into(),
            Some('T' | 't') => return "stopped by a signal".into(),
            _ => {}
        }
        let doing = block.doing.get();
        if !doing.is_empty() {
            return doing;
        }
        block.flight.waiting().unwrap_or_else(|| "computing".into())
    }

    /// The activities of missing ranks, in parentheses, for error messages.
    pub(crate) fn states(&self, missing: &[usize]) -> String {
        let states: Vec<_> = missing.iter().map(|&r| format!("rank {r} is {}", self.state(r))).collect();
        format!(" ({})", states.join(", "))
    }

    /// Which of these ranks have lost their process.
    pub(crate) fn gone(&self, ranks: &[usize]) -> Vec<usize> {
        let is_gone = |&rank: &usize| match self.rank(rank).pid.load(Ordering::Acquire) {
            0 => false,
            pid => !is_alive(pid),
        };
        if self.shared { ranks.iter().copied().filter(is_gone).collect() } else { Vec::new() }
    }

    /// The latest operations of all ranks.
    pub fn flight_record(&self) -> FlightRecord {
        let rank = |rank: usize| RankRecord {
            rank,
            pid: self.rank(rank).pid.load(Ordering::Relaxed),
            state: self.state(rank),
            operations: self.rank(rank).flight.operations(),
        };
        FlightRecord { failure: self.failure(), ranks: (0..self.ranks).map(rank).collect() }
    }
}

/// Bytes of each mailbox of a world of so many ranks.
fn mailbox_bytes(ranks: usize) -> usize {
    (MAILBOXES / ranks.max(1)).clamp(LEAST_MAILBOX, MAILBOX)
}

/// Whether a process of this host is running: it has not ended and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The state of a process of this host as a letter from the system: `R` for running, `T` for stopped.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    state_in(&format!("/proc/{pid}/stat"))
}

fn state_in(file: &str) -> Option<char> {
    let stat = std::fs::read_to_string(file).ok()?;
    // The state follows the name, which is in parentheses and may contain anything.
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// The parent of a process of this host.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a thread of a process waits for a disk.
pub(crate) fn waits_for_disk(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| state_in(&thread.path().join("stat").to_string_lossy()) == Some('D'))
}

/// Processor time of a process in hundredths of a second; 0 if there is no such process.
pub(crate) fn cpu_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name: the state is the first field, user and system time are the twelfth and thirteenth.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_failure_is_kept_and_seen_through_another_mapping() {
        let mine = Control::shared(3).unwrap();
        let theirs = Control::of_peer(mine.handle().unwrap()).unwrap();
        assert_eq!((theirs.ranks(), theirs.has_failed(), theirs.failure()), (3, false, None));
        assert!(mine.fail(2, || "first".into()));
        assert!(!theirs.fail(1, || unreachable!("the reason of a second failure is not needed")));
        assert_eq!(theirs.failure(), Some((2, "first".into())));
        let other = Region::shared(100, Growth::Fixed).unwrap();
        assert!(Control::of_peer(other.handle().unwrap()).is_err(), "other memory is not a control block");
    }

    #[test]
    fn processors_of_all_processes_count_once() {
        let control = Control::private(2).unwrap();
        assert_eq!(control.cpus(), 0);
        control.note_cpus(0);
        let one = control.cpus();
        control.note_cpus(1);
        assert!(one > 0 && control.cpus() == one);
    }

    #[test]
    fn states_of_processes_are_known() {
        let control = Control::shared(3).unwrap();
        control.rank(1).pid.store(std::process::id(), Ordering::Relaxed);
        // No process has the largest number.
        control.rank(2).pid.store(u32::MAX, Ordering::Relaxed);
        let states: Vec<String> = (0..3).map(|rank| control.state(rank)).collect();
        assert_eq!(states, ["not there yet", "computing", "gone"]);
        assert_eq!(control.gone(&[0, 1, 2]), [2]);
        assert!(is_alive(std::process::id()) && !is_alive(u32::MAX));
        assert_eq!(parent_of(std::process::id()), Some(std::os::unix::process::parent_id()));
        control.rank(1).doing.set("in `read loss`");
        assert_eq!(control.states(&[1]), " (rank 1 is in `read loss`)");
        for ending in [Ending::AfterStep, Ending::AsTold, Ending::AtOnce] {
            control.set_ending(1, ending);
            assert_eq!((control.ending(1), control.ending(0)), (ending, Ending::AtOnce));
        }
    }
}
