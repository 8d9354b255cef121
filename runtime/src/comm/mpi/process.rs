//! A process of an MPI world: what it knows of the others, and what it tells them.

use super::library::Library;
use super::news::{News, Peer, Post};
use crate::comm::control::{Control, state_of};
use crate::flight::{Flight, FlightRecord, RankRecord};
use crate::launch::{LaunchError, Launched};
use std::fmt::{self, Debug};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// The processes of an MPI world, one rank in each.
pub struct Mpi {
    library: Library,
    /// This process's number on its host, and how many processes the host has.
    pub(super) on_host: (usize, usize),
    post: Post,
    peers: Vec<Peer>,
    /// The process id of each rank on this host; 0 for ranks of other hosts. Unset until all have met.
    pids: OnceLock<Vec<u32>>,
    /// Private to this process: its rank's collectives, and the first failure that it has heard of.
    control: Arc<Control>,
    /// Directory of the flight record.
    record: PathBuf,
    /// Number of exchanges so far; locked during one.
    pub(super) rounds: Mutex<u64>,
    /// Number of sessions so far.
    pub(super) sessions: AtomicU64,
    /// How often a waiting thread looks before it leaves its core to others.
    spins: AtomicU32,
    left: AtomicBool,
    ending: AtomicBool,
    /// Whether this process ends because it was told to. That is no failure, whatever its exit code is.
    as_told: AtomicBool,
}

impl Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi(process {} of {})", self.rank(), self.world())
    }
}

impl Mpi {
    /// A process that knows nothing of the others yet. A flight record goes into the directory `record`.
    ///
    /// # Errors
    /// What MPI says; no memory for a control block.
    pub(super) fn new(library: Library, launched: &Launched, record: PathBuf) -> Result<Self, LaunchError> {
        let broken = |problem: String| LaunchError::Mpi { kind: launched.kind, problem };
        let world = library.world();
        let post = Post::new(&library).map_err(broken)?;
        let control = Control::private(world);
        let control =
            control.map_err(|source| LaunchError::System { what: "no memory for a control block".into(), source })?;
        Ok(Mpi {
            library,
            on_host: (launched.local_rank, launched.local_world),
            post,
            peers: (0..world).map(|_| Peer::default()).collect(),
            pids: OnceLock::new(),
            control,
            record,
            rounds: Mutex::new(0),
            sessions: AtomicU64::new(0),
            spins: AtomicU32::new(0),
            left: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            as_told: AtomicBool::new(false),
        })
    }

    /// Notes which processes are on this host: of each rank its process id, or 0. Where each of them can have a core of its
    /// own, a thread looks some thousand times before it sleeps.
    pub(super) fn meet(&self, pids: Vec<u32>) {
        let here = pids.iter().filter(|pid| **pid != 0).count();
        // SAFETY: a system call without memory. A process may be bound to one core, so its own cores say little.
        let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        self.spins.store(if here as i64 <= cores { 4000 } else { 0 }, Ordering::Relaxed);
        // Processes meet once, when they join.
        let _ = self.pids.set(pids);
    }

    /// The MPI library.
    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    /// The number of this process, which is its rank.
    pub(super) fn rank(&self) -> usize {
        self.library.rank()
    }

    /// The number of processes.
    pub(super) fn world(&self) -> usize {
        self.library.world()
    }

    /// How often a waiting thread looks before it leaves its core to others.
    pub(super) fn spins(&self) -> u32 {
        self.spins.load(Ordering::Relaxed)
    }

    /// Takes the news that has come.
    pub(super) fn listen(&self) {
        self.post.listen(&self.library, |sender, news| match news {
            News::Failed(rank, reason) => self.hear_failure(rank, &reason),
            News::Leaves => {
                self.peers[sender].has_left.store(true, Ordering::Release);
                self.left.store(true, Ordering::Release);
            }
            News::Busy(time) => _ = self.peers[sender].progress.fetch_add(time, Ordering::Relaxed),
        });
    }

    /// Tells all others some news.
    pub(super) fn tell(&self, news: &News) {
        self.post.tell(&self.library, news);
    }

    /// Whether all news has been sent.
    pub(super) fn is_sent(&self) -> bool {
        self.post.is_sent(&self.library)
    }

    /// The first failure that is known here.
    pub(super) fn failed(&self) -> Option<(usize, String)> {
        if self.control.has_failed() { self.control.failure() } else { None }
    }

    /// Notes a failure, and tells all others of it if it is the first.
    pub(super) fn note_failure(&self, rank: usize, reason: &str) {
        let told = format!("{reason}; flight record: {}", self.record_path().display());
        let told = if self.has_flown() { told } else { reason.to_string() };
        if self.control.fail(rank, || told.clone()) {
            self.write_record();
            self.tell(&News::Failed(rank, told));
        }
    }

    /// Notes a failure that another process has told of.
    fn hear_failure(&self, rank: usize, reason: &str) {
        if self.control.fail(rank, || reason.to_string()) {
            self.write_record();
        }
    }

    /// Where the flight record of this process goes.
    pub(super) fn record_path(&self) -> PathBuf {
        self.record.join(format!("tpc-flight-{}-rank-{}.json", std::process::id(), self.rank()))
    }

    /// The last collectives of a rank, as far as this process knows them.
    pub(super) fn flight_of(&self, rank: usize) -> &Flight {
        &self.control.rank(rank).flight
    }

    /// What this process records of a failure.
    pub(super) fn own_record(&self) -> FlightRecord {
        let (rank, flight) = (self.rank(), self.flight_of(self.rank()));
        let state = flight.waiting().unwrap_or_else(|| "computing".into());
        let record = RankRecord { rank, pid: std::process::id(), state, operations: flight.operations() };
        FlightRecord { failure: self.failed(), ranks: vec![record] }
    }

    /// Whether there is anything to record.
    fn has_flown(&self) -> bool {
        !self.flight_of(self.rank()).operations().is_empty()
    }

    fn write_record(&self) {
        if self.has_flown() {
            // A record that cannot be written is no second failure: the first is told in any case.
            let _ = std::fs::create_dir_all(&self.record);
            let _ = std::fs::write(self.record_path(), self.own_record().to_json());
        }
    }

    /// Whether a rank has said that it leaves.
    pub(super) fn has_left(&self, rank: usize) -> bool {
        self.peers[rank].has_left.load(Ordering::Acquire)
    }

    /// Whether any rank has said that it leaves.
    pub(super) fn anybody_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// A number that grows while any of the ranks is busy.
    pub(super) fn progress_of(&self, ranks: &[usize]) -> u64 {
        ranks.iter().map(|&rank| self.peers[rank].progress.load(Ordering::Relaxed)).sum()
    }

    /// The system's letter for the state of a rank's process: `None` for a process on another host, `Some(None)` for one
    /// that no longer exists.
    fn state(&self, rank: usize) -> Option<Option<char>> {
        let pid = self.pids.get().and_then(|pids| pids.get(rank)).copied().unwrap_or(0);
        (pid != 0).then(|| state_of(pid))
    }

    /// Whether the process of a rank on this host has ended.
    pub(super) fn is_gone(&self, rank: usize) -> bool {
        self.state(rank).is_some_and(|state| matches!(state, None | Some('Z' | 'X')))
    }

    /// Whether the process of a rank on this host has ended or is stopped by a signal.
    pub(super) fn is_stopped(&self, rank: usize) -> bool {
        self.state(rank).is_some_and(|state| matches!(state, None | Some('T' | 't' | 'Z' | 'X')))
    }

    /// The states of the missing ranks in parentheses, for an error message; empty where no state is known.
    pub(super) fn states(&self, missing: &[usize]) -> String {
        let one = |&rank: &usize| {
            let state = match self.state(rank)? {
                None | Some('Z' | 'X') => "gone",
                Some('T' | 't') => "stopped by a signal",
                Some('S' | 'D') => "asleep or waiting",
                Some(_) => "running",
            };
            Some(format!("rank {rank} is {state}"))
        };
        let known: Vec<String> = missing.iter().filter_map(one).collect();
        if known.is_empty() { String::new() } else { format!(" ({})", known.join(", ")) }
    }

    /// Whether this process ends because it was told to.
    pub(super) fn ends_as_told(&self) -> bool {
        self.as_told.load(Ordering::Acquire)
    }

    /// Says whether this process ends because it was told to.
    pub(super) fn set_as_told(&self, as_told: bool) {
        self.as_told.store(as_told, Ordering::Release);
    }

    /// Whether the process has begun to end, after which its thread listens no longer.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Stops the thread that listens.
    pub(super) fn begin_to_end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Ends all processes of the world at once.
    pub(super) fn abort(&self, code: i32) {
        self.library.abort(code);
    }

    /// Leaves MPI together with all others.
    pub(super) fn finalize(&self) {
        self.post.finalize(&self.library);
    }
}
