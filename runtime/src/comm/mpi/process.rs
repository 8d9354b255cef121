//! A process of an MPI world, with its knowledge of the other processes.

use super::library::Library;
use super::news::{Mailbox, News, Peer};
use crate::comm::control::{Control, state_of};
use crate::flight::{Flight, FlightRecord, RankRecord};
use crate::launch::{LaunchError, Launched};
use std::fmt::{self, Debug};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// A process of an MPI world, in which each process runs one rank.
pub struct Mpi {
    library: Library,
    /// The number of this process on its host, and the number of processes on the host.
    pub(super) on_host: (usize, usize),
    mailbox: Mailbox,
    peers: Vec<Peer>,
    /// The process id of each rank on this host; 0 for ranks on other hosts. Unset until all processes have joined.
    pids: OnceLock<Vec<u32>>,
    /// Private to this process: the collectives of its rank, and the first failure that it has learned of.
    control: Arc<Control>,
    /// Directory of the flight record.
    record: PathBuf,
    /// Number of exchanges so far; locked during an exchange.
    pub(super) rounds: Mutex<u64>,
    /// Number of sessions so far.
    pub(super) sessions: AtomicU64,
    /// How many times a waiting thread polls before it yields its core.
    spins: AtomicU32,
    left: AtomicBool,
    ending: AtomicBool,
    /// Whether this process ends on request, which is not a failure, whatever its exit code.
    on_request: AtomicBool,
}

impl Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi(process {} of {})", self.rank(), self.world())
    }
}

impl Mpi {
    /// A process that has no information about the others yet. Flight records are written to the directory `record`.
    ///
    /// # Errors
    /// The error that MPI reports, or insufficient memory for a control block.
    pub(super) fn new(library: Library, launched: &Launched, record: PathBuf) -> Result<Self, LaunchError> {
        let broken = |problem: String| LaunchError::Mpi { kind: launched.kind, problem };
        let world = library.world();
        let mailbox = Mailbox::new(&library).map_err(broken)?;
        let control = Control::private(world);
        let control =
            control.map_err(|source| LaunchError::System { what: "no memory for a control block".into(), source })?;
        Ok(Mpi {
            library,
            on_host: (launched.local_rank, launched.local_world),
            mailbox,
            peers: (0..world).map(|_| Peer::default()).collect(),
            pids: OnceLock::new(),
            control,
            record,
            rounds: Mutex::new(0),
            sessions: AtomicU64::new(0),
            spins: AtomicU32::new(0),
            left: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            on_request: AtomicBool::new(false),
        })
    }

    /// Sets the process id of each rank on this host, and 0 for other ranks. If each process on this host can have its
    /// own core, threads poll some thousand times before they yield.
    pub(super) fn meet(&self, pids: Vec<u32>) {
        let here = pids.iter().filter(|pid| **pid != 0).count();
        // SAFETY: the call does not access memory. The cores of the host are counted because a process may be bound to
        // one core.
        let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        self.spins.store(if here as i64 <= cores { 4000 } else { 0 }, Ordering::Relaxed);
        // This is called once, when processes join.
        let _ = self.pids.set(pids);
    }

    /// The MPI library.
    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    /// The rank of this process.
    pub(super) fn rank(&self) -> usize {
        self.library.rank()
    }

    /// The number of processes.
    pub(super) fn world(&self) -> usize {
        self.library.world()
    }

    /// How many times a waiting thread polls before it yields its core.
    pub(super) fn spins(&self) -> u32 {
        self.spins.load(Ordering::Relaxed)
    }

    /// Processes the news that has arrived.
    pub(super) fn listen(&self) {
        self.mailbox.listen(&self.library, |sender, news| match news {
            News::Failed(rank, reason) => self.record_reported_failure(rank, &reason),
            News::Leaves => {
                self.peers[sender].has_left.store(true, Ordering::Release);
                self.left.store(true, Ordering::Release);
            }
            News::Busy(time) => _ = self.peers[sender].progress.fetch_add(time, Ordering::Relaxed),
        });
    }

    /// Sends news to all other processes.
    pub(super) fn tell(&self, news: &News) {
        self.mailbox.tell(&self.library, news);
    }

    /// Whether all news has been sent.
    pub(super) fn is_sent(&self) -> bool {
        self.mailbox.is_sent(&self.library)
    }

    /// The first failure that this process knows of.
    pub(super) fn failed(&self) -> Option<(usize, String)> {
        if self.control.has_failed() { self.control.failure() } else { None }
    }

    /// Records a failure, and notifies all other processes if it is the first.
    pub(super) fn record_failure(&self, rank: usize, reason: &str) {
        let reported = format!("{reason}; flight record: {}", self.record_path().display());
        let reported = if self.has_collectives() { reported } else { reason.to_string() };
        if self.control.fail(rank, || reported.clone()) {
            self.write_record();
            self.tell(&News::Failed(rank, reported));
        }
    }

    /// Records a failure that another process has reported.
    fn record_reported_failure(&self, rank: usize, reason: &str) {
        if self.control.fail(rank, || reason.to_string()) {
            self.write_record();
        }
    }

    /// Path of the flight record of this process.
    pub(super) fn record_path(&self) -> PathBuf {
        self.record.join(format!("tpc-flight-{}-rank-{}.json", std::process::id(), self.rank()))
    }

    /// The last collectives of a rank, as far as this process knows.
    pub(super) fn flight_of(&self, rank: usize) -> &Flight {
        &self.control.rank(rank).flight
    }

    /// The flight record of this process.
    pub(super) fn own_record(&self) -> FlightRecord {
        let (rank, flight) = (self.rank(), self.flight_of(self.rank()));
        let state = flight.waiting().unwrap_or_else(|| "computing".into());
        let record = RankRecord { rank, pid: std::process::id(), state, operations: flight.operations() };
        FlightRecord { failure: self.failed(), ranks: vec![record] }
    }

    /// Whether there are collectives to record.
    fn has_collectives(&self) -> bool {
        !self.flight_of(self.rank()).operations().is_empty()
    }

    fn write_record(&self) {
        if self.has_collectives() {
            // Errors are ignored: the first failure is reported even if its record cannot be written.
            let _ = std::fs::create_dir_all(&self.record);
            let _ = std::fs::write(self.record_path(), self.own_record().to_json());
        }
    }

    /// Whether a rank has announced that it leaves.
    pub(super) fn has_left(&self, rank: usize) -> bool {
        self.peers[rank].has_left.load(Ordering::Acquire)
    }

    /// Whether any rank has announced that it leaves.
    pub(super) fn any_has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// A number that grows while any of the ranks is busy.
    pub(super) fn progress_of(&self, ranks: &[usize]) -> u64 {
        ranks.iter().map(|&rank| self.peers[rank].progress.load(Ordering::Relaxed)).sum()
    }

    /// The operating system's letter for the state of the process of a rank: `None` for a process on another host,
    /// `Some(None)` for one that no longer exists.
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

    /// The states of the missing ranks in parentheses, for an error message; empty if no state is known.
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

    /// Whether this process ends on request.
    pub(super) fn ends_on_request(&self) -> bool {
        self.on_request.load(Ordering::Acquire)
    }

    /// Sets whether this process ends on request.
    pub(super) fn set_on_request(&self, on_request: bool) {
        self.on_request.store(on_request, Ordering::Release);
    }

    /// Whether the process has begun to end, after which the listening thread stops.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Stops the listening thread.
    pub(super) fn begin_to_end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// Ends all processes of the world at once.
    pub(super) fn abort(&self, code: i32) {
        self.library.abort(code);
    }

    /// Leaves MPI together with all others.
    pub(super) fn finalize(&self) {
        self.mailbox.finalize(&self.library);
    }
}
