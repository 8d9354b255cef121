//! The processes of an MPI world: joining it, what their hosts exchange, who failed.

use super::ending;
use super::library::{Channel, Library, Requests};
use super::news::{News, Peer, Post};
use super::ranks::World;
use super::wait::{Awaited, wait};
use crate::comm::control::{Control, cpu_time, state_of};
use crate::comm::processes::{Ending, agree};
use crate::comm::{Communicators, Processes};
use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use crate::flight::{Flight, FlightRecord, RankRecord};
use crate::launch::rendezvous::host;
use crate::launch::{LaunchError, Launched};
use std::fmt::{self, Debug};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;
use tpc_ir::program::RankProgram;

/// How often is listened to the others, and told that this process is busy, whatever it does.
const BEAT: Duration = Duration::from_millis(100);

/// What a process that says that it is busy is taken to have used, more than any deadline asks for.
const MUCH: u64 = 1 << 32;

/// Tags of the hosts' channel.
const HEADERS: i32 = 0;
const BYTES: i32 = 1;

/// The processes of an MPI world, one rank in each.
pub struct Mpi {
    library: Library,
    /// This process among those of its host, and how many these are.
    on_host: (usize, usize),
    post: Post,
    peers: Vec<Peer>,
    /// The processes of this host among them; 0 for those of others.
    pids: OnceLock<Vec<u32>>,
    /// Private to this process: its rank's collectives, and the first failure that it has heard of.
    control: Arc<Control>,
    /// Directory for the flight record.
    record: PathBuf,
    /// Exchanges that were begun; held during one.
    rounds: Mutex<u64>,
    /// Sessions that were opened.
    pub(super) sessions: AtomicU64,
    /// Looks before the processor is left to others.
    spins: AtomicU32,
    left: AtomicBool,
    ending: AtomicBool,
    /// Whether this process ends because it was told to, which is no failure, whatever its exit code is.
    as_told: AtomicBool,
}

impl Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi(process {} of {})", self.rank(), self.world())
    }
}

/// Initialises MPI and joins the processes that were launched with this one. Where not all of them do so within the deadline, this
/// process ends with a message: MPI has no way back from there. A flight record goes into the directory when something fails.
///
/// # Errors
/// A library that does not belong to the launcher; what MPI says; processes that do not come or fail before all have come.
pub fn join(launched: &Launched, record: PathBuf, deadline: Duration) -> Result<Arc<Mpi>, LaunchError> {
    let broken = |problem: String| LaunchError::Mpi { kind: launched.kind, problem };
    let library = watched(launched, deadline).map_err(broken)?;
    if (library.rank(), library.world()) != (launched.rank, launched.world) {
        return Err(broken(format!(
            "the library says that this is rank {} of {}, the launcher that it is {} of {}",
            library.rank(),
            library.world(),
            launched.rank,
            launched.world
        )));
    }
    let world = library.world();
    let post = Post::new(&library).map_err(broken)?;
    let control = Control::private(world);
    let control =
        control.map_err(|source| LaunchError::System { what: "no memory for a control block".into(), source })?;
    let mpi = Arc::new(Mpi {
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
    });
    ending::prepare(&mpi);
    let beating = mpi.clone();
    let beat = std::thread::Builder::new().name("MPI".into()).spawn(move || beating.beat());
    beat.map_err(|source| LaunchError::System { what: "no thread to listen to the others".into(), source })?;
    mpi.meet(deadline).map_err(|e| LaunchError::Meeting { kind: launched.kind, source: Box::new(e) })?;
    Ok(mpi)
}

/// [`Library::init`] with somebody who ends the process if that takes too long.
fn watched(launched: &Launched, deadline: Duration) -> Result<Library, String> {
    let (sender, receiver) = mpsc::channel::<()>();
    let (kind, rank, world) = (launched.kind, launched.rank, launched.world);
    let watch = std::thread::Builder::new().spawn(move || {
        if receiver.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
            ending::say(&format!(
                "error: rank {rank}: not all of the {world} processes that {kind} started initialised MPI within {deadline:?}; \
                 look whether all of them run tpc\n"
            ));
            // SAFETY: ends the process at once; nothing that runs at exit may wait for MPI.
            unsafe { libc::_exit(1) };
        }
    });
    watch.map_err(|e| format!("no thread to watch over its start: {e}"))?;
    let library = Library::init();
    drop(sender);
    library
}

impl Mpi {
    /// Tells all others where this process is.
    fn meet(&self, deadline: Duration) -> Result<(), RuntimeError> {
        let mine = host();
        let message = format!("{} {mine}", std::process::id());
        let all = self.exchange("launch: meet", message.as_bytes(), deadline)?;
        let pid = |bytes: &Vec<u8>| {
            let text = String::from_utf8_lossy(bytes);
            text.split_once(' ').filter(|(_, host)| *host == mine).and_then(|(pid, _)| pid.parse().ok()).unwrap_or(0)
        };
        let pids: Vec<u32> = all.iter().map(pid).collect();
        let here = pids.iter().filter(|pid| **pid != 0).count();
        // SAFETY: a system call without memory. The processes may be bound to a core each, so this one's own cores say little.
        let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        self.spins.store(if here as i64 <= cores { 4000 } else { 0 }, Ordering::Relaxed);
        let _ = self.pids.set(pids);
        Ok(())
    }

    /// Listens while nobody waits, and tells the others when this process is busy.
    fn beat(&self) {
        let me = std::process::id();
        let mut used = cpu_time(me);
        while !self.ending.load(Ordering::Acquire) {
            std::thread::sleep(BEAT);
            self.listen();
            let now = cpu_time(me);
            if now > used && self.is_sent() {
                self.tell(&News::Busy(now - used));
                used = now;
            }
        }
    }

    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    /// This process, which is its rank.
    pub(super) fn rank(&self) -> usize {
        self.library.rank()
    }

    /// Number of processes.
    pub(super) fn world(&self) -> usize {
        self.library.world()
    }

    pub(super) fn spins(&self) -> u32 {
        self.spins.load(Ordering::Relaxed)
    }

    /// Takes the news that have come.
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

    pub(super) fn tell(&self, news: &News) {
        self.post.tell(&self.library, news);
    }

    /// Whether all news are on their way.
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

    fn hear_failure(&self, rank: usize, reason: &str) {
        if self.control.fail(rank, || reason.to_string()) {
            self.write_record();
        }
    }

    fn record_path(&self) -> PathBuf {
        self.record.join(format!("tpc-flight-{}-rank-{}.json", std::process::id(), self.rank()))
    }

    /// Whether there is anything to record.
    fn has_flown(&self) -> bool {
        !self.flight(self.rank()).operations().is_empty()
    }

    fn write_record(&self) {
        if self.has_flown() {
            // The failure itself is told in any case.
            let _ = std::fs::create_dir_all(&self.record);
            let _ = std::fs::write(self.record_path(), self.flight_record().to_json());
        }
    }

    pub(super) fn has_left(&self, rank: usize) -> bool {
        self.peers[rank].has_left.load(Ordering::Acquire)
    }

    pub(super) fn anybody_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// A number that grows while any of the ranks is busy.
    pub(super) fn progress_of(&self, ranks: &[usize]) -> u64 {
        ranks.iter().map(|&rank| self.peers[rank].progress.load(Ordering::Relaxed)).sum()
    }

    /// What the system says of a rank's process, if that is on this host; `None` within, if it has none any more.
    fn state(&self, rank: usize) -> Option<Option<char>> {
        let pid = self.pids.get().and_then(|pids| pids.get(rank)).copied().unwrap_or(0);
        (pid != 0).then(|| state_of(pid))
    }

    /// Whether it is known that a rank's process does nothing any more.
    pub(super) fn is_stopped(&self, rank: usize) -> bool {
        self.state(rank).is_some_and(|state| matches!(state, None | Some('T' | 't' | 'Z' | 'X')))
    }

    /// What is known of ranks that are missing, in parentheses, for error messages; empty if nothing is.
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

    /// The beat stops.
    pub(super) fn begin_to_end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    pub(super) fn abort(&self, code: i32) {
        self.library.abort(code);
    }

    pub(super) fn finalize(&self) {
        self.post.finalize(&self.library);
    }
}

impl Processes for Mpi {
    fn count(&self) -> usize {
        self.world()
    }

    fn process(&self) -> usize {
        self.rank()
    }

    fn local(&self, ranks: usize) -> Result<Range<usize>, RuntimeError> {
        match ranks == self.count() {
            true => Ok(self.rank()..self.rank() + 1),
            false => Err(RuntimeError::Processes { ranks, processes: self.count() }),
        }
    }

    fn exchange(&self, purpose: &str, bytes: &[u8], deadline: Duration) -> Result<Vec<Vec<u8>>, RuntimeError> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        *rounds += 1;
        let mut exchange = Box::new(Exchange::new(self, purpose, *rounds, bytes));
        let outcome = exchange.begin().and_then(|()| wait(self, deadline, &mut *exchange));
        if let Err(error) = outcome {
            // MPI may still write there.
            std::mem::forget(exchange);
            // Whoever leaves an exchange leaves the others behind.
            self.fail(self.rank(), &error.to_string());
            return Err(error);
        }
        Ok(exchange.messages)
    }

    fn fail(&self, rank: usize, reason: &str) {
        self.note_failure(rank, reason);
    }

    fn failure(&self) -> Option<(usize, String)> {
        self.listen();
        self.failed()
    }

    fn gone(&self) -> Vec<usize> {
        let is_gone = |&rank: &usize| {
            self.has_left(rank) || self.state(rank).is_some_and(|state| matches!(state, None | Some('Z' | 'X')))
        };
        (0..self.world()).filter(is_gone).collect()
    }

    fn on_host(&self) -> (usize, usize) {
        self.on_host
    }

    fn written_record(&self) -> Option<PathBuf> {
        Some(self.record_path()).filter(|path| path.is_file())
    }

    fn flight(&self, rank: usize) -> &Flight {
        &self.control.rank(rank).flight
    }

    fn flight_record(&self) -> FlightRecord {
        let (rank, flight) = (self.rank(), self.flight(self.rank()));
        let state = flight.waiting().unwrap_or_else(|| "computing".into());
        let record = RankRecord { rank, pid: std::process::id(), state, operations: flight.operations() };
        FlightRecord { failure: self.failed(), ranks: vec![record] }
    }

    fn progress(&self) {
        // Signs of life that were not taken yet are enough.
        if self.is_sent() {
            self.tell(&News::Busy(MUCH));
        }
    }

    fn leftover(&self, _: &Path) {
        // Nobody outlives a killed process who could remove it; the next save does.
    }

    fn set_ending(&self, ending: Ending) {
        // MPI's launchers pass signals on and wait for as long as they do.
        self.as_told.store(ending == Ending::AsTold, Ordering::Release);
    }

    fn open(
        &self,
        programs: Arc<[RankProgram]>,
        local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError> {
        let (rank, bytes) = (local.start, programs[local.start].arena_bytes);
        let arena = Arena::private(bytes).map(Arc::new).ok_or(RuntimeError::OutOfMemory { rank, bytes });
        let arena = arena_on_all(self, arena, deadline)?;
        let mpi = ending::joined().ok_or_else(|| RuntimeError::Launch("MPI was not joined".into()))?;
        Ok(Arc::new(World::new(mpi, arena, programs, deadline)?))
    }
}

/// The arena of this process, once all processes have theirs.
///
/// # Errors
/// Too little memory, here or on another process.
pub(super) fn arena_on_all(
    mpi: &Mpi,
    arena: Result<Arc<Arena>, RuntimeError>,
    deadline: Duration,
) -> Result<Arc<Arena>, RuntimeError> {
    let told = arena.as_ref().map(|_| Vec::new()).map_err(ToString::to_string);
    let all = agree(mpi, "launch: make arenas", told, deadline)?;
    let arena = arena?;
    all.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?;
    Ok(arena)
}

/// Words of a header: round, length, and a purpose of so many bytes.
const PURPOSE: usize = 112;
const HEADER: usize = 16 + PURPOSE;

/// Something that all hosts hand to each other: first what it is and how long, then the bytes.
struct Exchange<'a> {
    mpi: &'a Mpi,
    purpose: &'a str,
    round: u64,
    header: [u8; HEADER],
    headers: Vec<[u8; HEADER]>,
    bytes: Vec<u8>,
    messages: Vec<Vec<u8>>,
    sends: Requests,
    /// One for each other process.
    heads: Requests,
    /// The bytes, and from whom each message of them is.
    bodies: Requests,
    senders: Vec<usize>,
    compared: bool,
}

impl<'a> Exchange<'a> {
    fn new(mpi: &'a Mpi, purpose: &'a str, round: u64, bytes: &[u8]) -> Self {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&round.to_le_bytes());
        header[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let short = &purpose[..purpose.floor_char_boundary(PURPOSE)];
        header[16..16 + short.len()].copy_from_slice(short.as_bytes());
        let (headers, messages) = (vec![[0; HEADER]; mpi.world()], vec![Vec::new(); mpi.world()]);
        let (sends, heads, bodies) = (Requests::new(), Requests::new(), Requests::new());
        let (senders, compared) = (Vec::new(), false);
        let bytes = bytes.to_vec();
        Exchange { mpi, purpose, round, header, headers, bytes, messages, sends, heads, bodies, senders, compared }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.mpi.rank();
        (0..self.mpi.world()).filter(move |&p| p != me)
    }

    fn trouble(&self, reason: String) -> RuntimeError {
        RuntimeError::Transport { rank: self.mpi.rank(), operation: self.operation(), reason }
    }

    /// Sends everything, and is ready for the others' headers. Must not be moved afterwards.
    fn begin(&mut self) -> Result<(), RuntimeError> {
        let library = &self.mpi.library;
        for peer in self.others() {
            // SAFETY: what is sent and received into lives in this exchange, which is kept, or leaked, until all is finished.
            let begun = unsafe {
                let header = self.headers[peer].as_mut_ptr();
                library
                    .receive(Channel::Hosts, Some(peer), HEADERS, header, HEADER, &mut self.heads)
                    .and_then(|()| {
                        library.send(Channel::Hosts, peer, HEADERS, self.header.as_ptr(), HEADER, &mut self.sends)
                    })
                    .and_then(|()| {
                        let (bytes, length) = (self.bytes.as_ptr(), self.bytes.len());
                        library.send(Channel::Hosts, peer, BYTES, bytes, length, &mut self.sends)
                    })
            };
            begun.map_err(|e| self.trouble(e))?;
        }
        Ok(())
    }

    /// Compares the headers, and is ready for the bytes.
    fn receive(&mut self) -> Result<(), RuntimeError> {
        let text = |header: &[u8; HEADER]| String::from_utf8_lossy(&header[16..]).trim_end_matches('\0').to_string();
        for peer in self.others() {
            let theirs = self.headers[peer];
            if theirs[16..] != self.header[16..] || theirs[..8] != self.header[..8] {
                let round = u64::from_le_bytes(theirs[..8].try_into().unwrap_or_default());
                let theirs = format!("`{}`", text(&theirs));
                let theirs = if round == self.round { theirs } else { format!("{theirs}, exchange {round}") };
                let mine = format!("`{}`", self.purpose);
                let mine = if round == self.round { mine } else { format!("{mine}, exchange {}", self.round) };
                return Err(RuntimeError::Desynchronized { rank: self.mpi.rank(), mine, peer, theirs });
            }
        }
        for peer in self.others() {
            let length = u64::from_le_bytes(self.headers[peer][8..16].try_into().unwrap_or_default()) as usize;
            self.messages[peer] = vec![0; length];
            let to = self.messages[peer].as_mut_ptr();
            let library = &self.mpi.library;
            // SAFETY: as in `begin`.
            let begun = unsafe { library.receive(Channel::Hosts, Some(peer), BYTES, to, length, &mut self.bodies) };
            begun.map_err(|e| self.trouble(e))?;
            self.senders.resize(self.bodies.len(), peer);
        }
        self.messages[self.mpi.rank()] = std::mem::take(&mut self.bytes);
        Ok(())
    }
}

impl Awaited for Exchange<'_> {
    fn look(&mut self) -> Result<bool, RuntimeError> {
        let library = &self.mpi.library;
        let tested = library.test(&mut self.heads).and_then(|()| library.test(&mut self.sends));
        tested.map_err(|e| self.trouble(e))?;
        if !self.compared && self.heads.left() == 0 {
            self.compared = true;
            self.receive()?;
        }
        // Behind the headers: bytes that are there already are taken in the same look.
        library.test(&mut self.bodies).map_err(|e| self.trouble(e))?;
        Ok(self.compared && self.bodies.left() == 0 && self.sends.left() == 0)
    }

    fn operation(&self) -> String {
        format!("`{}`", self.purpose)
    }

    fn missing(&self) -> Vec<usize> {
        let unheard = self.others().enumerate().filter(|(at, _)| !self.heads.is_finished(*at)).map(|(_, p)| p);
        let silent: Vec<usize> = unheard.collect();
        if !silent.is_empty() {
            return silent;
        }
        let bodies = (0..self.bodies.len()).filter(|&at| !self.bodies.is_finished(at)).map(|at| self.senders[at]);
        let slow: Vec<usize> = bodies.collect();
        if slow.is_empty() { self.others().collect() } else { slow }
    }

    fn is_patient(&self) -> bool {
        true
    }
}
