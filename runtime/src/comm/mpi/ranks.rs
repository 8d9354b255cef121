//! The communicator of a rank in an MPI world, which implements collectives as messages between the members of a group.
//!
//! A collective has one or two exchanges. In the first, every rank sends each other rank of the group a header and its
//! piece of the operand. Received pieces are combined in the order of the ranks, or copied into the result. In the
//! second, which only large all-reduces have, every rank sends its part of the result to all others. Waiting makes
//! progress on every collective that was started, so no order of waits blocks a rank.

use super::library::{Channel, Requests};
use super::pieces::{Piece, Transfers, transfers};
use super::process::Mpi;
use super::wait::{Awaited, wait};
use crate::comm::processes::agree;
use crate::comm::reduce::{self, Combine};
use crate::comm::shared_memory::{Growth, Region};
use crate::comm::world::{DEPTH, grown, out_of_memory};
use crate::comm::{CollectiveId, Communicator, Communicators, check, collective, describe, fingerprint, groups};
use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tpc_ir::program::{ALIGNMENT, Collective, CollectiveKind, RankPrograms};

/// The number of tags. The standard guarantees fewer, but the libraries in use support more.
const TAGS: usize = 1 << 21;

/// The kinds of messages of a collective, which are the last digit of their tags.
const HEADER: usize = 0;
const DATA: usize = 1;
const SHARE: usize = 2;
const KINDS: usize = 3;

/// Identifies a collective: fingerprint, session, sequence number in the group, and index in the sender's program.
type Header = [u64; 4];

/// The state of a session, from which the communicator of its rank is made.
pub(super) struct World {
    mpi: Arc<Mpi>,
    arena: Arc<Arena>,
    programs: Arc<RankPrograms>,
    groups: Vec<Vec<usize>>,
    session: u64,
    deadline: Duration,
}

impl World {
    /// A session with the given arena of this process's rank.
    ///
    /// # Errors
    /// There are more groups than tags.
    pub(super) fn new(
        mpi: Arc<Mpi>,
        arena: Arc<Arena>,
        programs: Arc<RankPrograms>,
        deadline: Duration,
    ) -> Result<Self, RuntimeError> {
        let groups = groups(&programs);
        if groups.len() * DEPTH * KINDS > TAGS {
            return Err(RuntimeError::Launch(format!("MPI has too few tags for {} groups of ranks", groups.len())));
        }
        // All processes open the same sessions in the same order.
        let session = mpi.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(World { mpi, arena, programs, groups, session, deadline })
    }
}

impl Communicators for World {
    fn communicator(self: Arc<Self>, rank: usize) -> Box<dyn Communicator> {
        debug_assert_eq!(rank, self.mpi.rank());
        let (sequences, prepared, sources) = (vec![0; self.groups.len()], Vec::new(), Vec::new());
        Box::new(Ranks {
            world: self,
            sequences,
            prepared,
            pending: Vec::with_capacity(DEPTH),
            idle: Vec::new(),
            sources,
        })
    }

    fn arena(&self, rank: usize) -> Arc<Arena> {
        debug_assert_eq!(rank, self.mpi.rank());
        self.arena.clone()
    }

    fn finish_step(&self, _: usize) {
        // The next header of a rank that is out of step reveals it.
    }

    fn switch_to(
        &self,
        programs: Arc<RankPrograms>,
        local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError> {
        let (rank, bytes) = (local.start, programs[local.start].arena_bytes);
        let arena = arena_on_all(&self.mpi, grown(&self.arena, rank, bytes), deadline)?;
        Ok(Arc::new(World::new(self.mpi.clone(), arena, programs, deadline)?))
    }
}

/// Returns the arena of this process once all processes have theirs.
///
/// # Errors
/// There is too little memory, in this process or in another one.
pub(super) fn arena_on_all(
    mpi: &Mpi,
    arena: Result<Arc<Arena>, RuntimeError>,
    deadline: Duration,
) -> Result<Arc<Arena>, RuntimeError> {
    let outcome = arena.as_ref().map(|_| Vec::new()).map_err(ToString::to_string);
    let all = agree(mpi, "launch: make arenas", outcome, deadline)?;
    let arena = arena?;
    all.map_err(|(rank, reason)| RuntimeError::Elsewhere { rank, reason })?;
    Ok(arena)
}

/// A collective of the rank's program, with everything that can be computed before the first step.
struct Prepared {
    collective: Collective,
    group: usize,
    fingerprint: u64,
    transfers: Transfers,
    combine: Option<Combine>,
    staging: Staging,
}

/// The layout of the staging memory, in which pieces are packed outside the arena: byte offsets from its beginning.
struct Staging {
    /// Sent pieces that are not contiguous; at the rank's own position, a piece that it keeps.
    sends: Vec<Option<usize>>,
    /// Received operands of reductions, and received pieces that are not contiguous.
    receives: Vec<Option<usize>>,
    bytes: usize,
}

impl Staging {
    fn new(transfers: &Transfers, me: usize, reduces: bool) -> Self {
        let mut bytes = 0;
        let mut reserve = |needed: bool, piece: &Piece| {
            let at = bytes;
            if needed {
                bytes += piece.bytes().next_multiple_of(ALIGNMENT);
            }
            needed.then_some(at)
        };
        let n = transfers.sends.len();
        let sends = (0..n).map(|p| {
            let stays = p == me && (reduces || transfers.receives[me].contiguous().is_some());
            reserve(!stays && transfers.sends[p].contiguous().is_none(), &transfers.sends[p])
        });
        let sends: Vec<_> = sends.collect();
        let receives = (0..n).map(|p| match reduces {
            // All operands have the size of the rank's own piece.
            true => reserve(p != me, &transfers.sends[me]),
            false => reserve(p != me && transfers.receives[p].contiguous().is_none(), &transfers.receives[p]),
        });
        let receives = receives.collect();
        Staging { sends, receives, bytes }
    }
}

/// A collective that was started, with all memory that it needs. It is kept for reuse.
struct Job {
    id: usize,
    sequence: u64,
    from: *const u8,
    to: *mut u8,
    /// Whether the second exchange has begun.
    shares: bool,
    /// Whether the headers of all ranks have been received and agree.
    compared: bool,
    requests: Requests,
    /// The position in the group that each request sends to or receives from.
    positions: Vec<usize>,
    /// Headers by position, including the rank's own. Neither these nor the staging memory may move until all requests
    /// are finished.
    headers: Vec<Header>,
    memory: Region,
    error: Option<String>,
}

/// The communicator of a rank.
struct Ranks {
    world: Arc<World>,
    /// The number of collectives started, by group.
    sequences: Vec<u64>,
    prepared: Vec<Prepared>,
    pending: Vec<Job>,
    idle: Vec<Job>,
    sources: Vec<*const u8>,
}

impl Ranks {
    fn description(&self, id: usize) -> String {
        describe(&self.prepared[id].collective)
    }

    fn transport_error(&self, id: usize, reason: String) -> RuntimeError {
        RuntimeError::Transport { rank: self.world.mpi.rank(), operation: self.description(id), reason }
    }

    /// An idle job with enough memory, or a new one.
    fn job(&mut self, id: usize, sequence: u64, from: *const u8, to: *mut u8) -> Result<Job, RuntimeError> {
        let (bytes, members) = (self.prepared[id].staging.bytes, self.prepared[id].collective.group.len());
        // The smallest sufficient memory, so that equal steps reuse the same memory.
        let fits = self.idle.iter().enumerate().filter(|(_, job)| job.memory.bytes() >= bytes);
        let found = fits.min_by_key(|(_, job)| job.memory.bytes()).map(|(at, _)| at);
        let mut job = match found.or(self.idle.len().checked_sub(1)) {
            Some(at) => self.idle.swap_remove(at),
            None => Job {
                id,
                sequence,
                from,
                to,
                shares: false,
                compared: false,
                requests: Requests::new(),
                positions: Vec::new(),
                headers: Vec::new(),
                memory: Region::private(0, Growth::Fixed).map_err(out_of_memory)?,
                error: None,
            },
        };
        if job.memory.bytes() < bytes {
            job.memory = Region::private(bytes, Growth::Fixed).map_err(out_of_memory)?;
        }
        (job.id, job.sequence, job.from, job.to) = (id, sequence, from, to);
        (job.shares, job.compared, job.error) = (false, false, None);
        job.requests.clear();
        job.positions.clear();
        job.headers.resize(members.max(job.headers.len()), [0; 4]);
        let Prepared { collective, fingerprint, .. } = &self.prepared[id];
        job.headers[collective.position] = [*fingerprint, self.world.session, sequence, id as u64];
        Ok(job)
    }

    /// Starts the first exchange.
    fn begin(&self, job: &mut Job) -> Result<(), String> {
        let p = &self.prepared[job.id];
        let (c, library) = (&p.collective, self.world.mpi.library());
        let (me, memory) = (c.position, job.memory.base());
        let tag = |kind: usize| self.tag(p.group, job.sequence, kind);
        let others = || c.group.iter().copied().enumerate().filter(|(q, _)| *q != me);
        let bytes = size_of::<Header>();
        let (requests, headers) = (&mut job.requests, job.headers.as_mut_ptr());
        // SAFETY: the job's lists and memory do not move until all requests are finished, or are leaked. Operand and
        // result stay valid by the contract of `Communicator::start`, or because a failed communicator leaks its arena.
        // Staged pieces are disjoint.
        unsafe {
            for (q, rank) in others() {
                let header = headers.add(q).cast();
                library.receive(Channel::Ranks, Some(rank), tag(HEADER), header, bytes, requests)?;
                job.positions.push(q);
            }
            for (q, rank) in others() {
                let (to, length) = match p.staging.receives[q] {
                    Some(at) if p.combine.is_some() => (memory.add(at), p.transfers.sends[me].bytes()),
                    Some(at) => (memory.add(at), p.transfers.receives[q].bytes()),
                    None => {
                        (job.to.add(p.transfers.receives[q].contiguous().unwrap_or(0)), p.transfers.receives[q].bytes())
                    }
                };
                library.receive(Channel::Ranks, Some(rank), tag(DATA), to, length, requests)?;
                job.positions.resize(requests.len(), q);
            }
            for (q, rank) in others() {
                let header = headers.add(me).cast_const().cast();
                library.send(Channel::Ranks, rank, tag(HEADER), header, bytes, requests)?;
                let piece = &p.transfers.sends[q];
                let from = match p.staging.sends[q] {
                    Some(at) => {
                        piece.pack(job.from, memory.add(at));
                        memory.add(at).cast_const()
                    }
                    None => job.from.add(piece.contiguous().unwrap_or(0)),
                };
                library.send(Channel::Ranks, rank, tag(DATA), from, piece.bytes(), requests)?;
                job.positions.resize(requests.len(), q);
            }
        }
        Ok(())
    }

    fn tag(&self, group: usize, sequence: u64, kind: usize) -> i32 {
        ((group * DEPTH + sequence as usize % DEPTH) * KINDS + kind) as i32
    }

    /// Compares the headers that have arrived.
    fn compare(&self, job: &mut Job) -> Result<(), RuntimeError> {
        let c = &self.prepared[job.id].collective;
        let others = c.group.iter().enumerate().filter(|(q, _)| *q != c.position);
        let header = job.headers[c.position];
        let mut all = true;
        for (request, (q, &peer)) in others.enumerate() {
            if !job.requests.is_finished(request) {
                all = false;
            } else if job.headers[q][..3] != header[..3] {
                let [announced, session, sequence, index] = job.headers[q];
                let theirs = match session == self.world.session {
                    true => {
                        let collective = collective(&self.world.programs, peer, index as usize, announced);
                        let name = collective.map_or_else(|| "another operation".into(), describe);
                        match header[0] == announced {
                            true => format!("{name} (number {sequence} of the group)"),
                            false => name,
                        }
                    }
                    false => "a collective of another session".into(),
                };
                let (rank, mine) = (self.world.mpi.rank(), self.description(job.id));
                return Err(RuntimeError::Desynchronized { rank, mine, peer, theirs });
            }
        }
        job.compared = all;
        Ok(())
    }

    /// Makes progress on a job as far as messages have arrived, and returns whether it is done.
    fn advance(&mut self, job: &mut Job) -> Result<bool, RuntimeError> {
        loop {
            let tested = self.world.mpi.library().test(&mut job.requests);
            if !job.compared {
                self.compare(job)?;
            }
            // A rank that is out of step sends data of another size, but its header allows a better error.
            job.error = job.error.take().or(tested.err());
            if let (true, Some(error)) = (job.compared, &job.error) {
                return Err(self.transport_error(job.id, error.clone()));
            }
            if job.requests.left() > 0 {
                return Ok(false);
            }
            if job.shares {
                return Ok(true);
            }
            self.complete_first(job);
            if self.prepared[job.id].transfers.shares.is_none() {
                return Ok(true);
            }
            job.shares = true;
            self.share(job).map_err(|e| self.transport_error(job.id, e))?;
        }
    }

    /// Combines the received pieces, or copies them into the result.
    fn complete_first(&mut self, job: &mut Job) {
        let p = &self.prepared[job.id];
        let (me, transfers, memory) = (p.collective.position, &p.transfers, job.memory.base());
        let (sources, size) = (&mut self.sources, p.collective.dtype.bytes());
        // SAFETY: all messages of the exchange are finished, so MPI no longer uses the buffers. Pieces are inside the
        // operand, the result and the staging memory, where they are aligned for all element types.
        unsafe {
            if let Some(combine) = p.combine {
                let start = transfers.receives[me].contiguous().unwrap_or(0);
                let mut packed = 0;
                transfers.sends[me].each(&mut |at, n| {
                    sources.clear();
                    sources.extend(p.staging.receives.iter().map(|offset| match offset {
                        Some(offset) => memory.add(offset + packed).cast_const(),
                        None => job.from.add(at),
                    }));
                    combine(n / size, sources, &[job.to.add(start + packed)], 0, 0);
                    packed += n;
                });
                return;
            }
            for (q, piece) in transfers.receives.iter().enumerate() {
                let from = match (q == me, p.staging.sends[me], transfers.sends[me].contiguous()) {
                    (false, ..) => p.staging.receives[q].map(|at| memory.add(at).cast_const()),
                    (true, _, Some(start)) => Some(job.from.add(start)),
                    (true, Some(at), None) => {
                        transfers.sends[me].pack(job.from, memory.add(at));
                        Some(memory.add(at).cast_const())
                    }
                    (true, None, None) => {
                        transfers.sends[me].pack(job.from, job.to.add(piece.contiguous().unwrap_or(0)));
                        None
                    }
                };
                if let Some(from) = from {
                    piece.unpack(from, job.to);
                }
            }
        }
    }

    /// Starts the second exchange.
    fn share(&self, job: &mut Job) -> Result<(), String> {
        let p = &self.prepared[job.id];
        let (c, library) = (&p.collective, self.world.mpi.library());
        let Some(shares) = &p.transfers.shares else { return Ok(()) };
        let tag = self.tag(p.group, job.sequence, SHARE);
        job.requests.clear();
        job.positions.clear();
        let share = |q: usize| (job.to.wrapping_add(shares[q].contiguous().unwrap_or(0)), shares[q].bytes());
        for (q, &rank) in c.group.iter().enumerate().filter(|(q, _)| *q != c.position) {
            let ((to, length), (from, mine)) = (share(q), share(c.position));
            // SAFETY: as in `begin`; the parts of the result are disjoint.
            unsafe {
                library.receive(Channel::Ranks, Some(rank), tag, to, length, &mut job.requests)?;
                library.send(Channel::Ranks, rank, tag, from, mine, &mut job.requests)?;
            }
            job.positions.resize(job.requests.len(), q);
        }
        Ok(())
    }

    /// Makes progress on all collectives that were started.
    fn progress(&mut self) -> Result<(), RuntimeError> {
        let mut at = 0;
        while at < self.pending.len() {
            // Jobs may move, because their messages are in memory that they point to.
            let mut job = self.pending.remove(at);
            match self.advance(&mut job) {
                Ok(true) => self.idle.push(job),
                Ok(false) => {
                    self.pending.insert(at, job);
                    at += 1;
                }
                Err(error) => {
                    self.pending.insert(at, job);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            // MPI may still access their buffers.
            std::mem::forget(std::mem::take(&mut self.pending));
            std::mem::forget(self.world.arena.clone());
        }
    }
}

impl Communicator for Ranks {
    fn prepare(&mut self, collective: &Collective) -> Result<CollectiveId, RuntimeError> {
        let world = &self.world;
        let group = world.groups.iter().position(|g| *g == collective.group);
        let fits = collective.group.get(collective.position) == Some(&world.mpi.rank())
            && collective.group.iter().all(|&r| r < world.mpi.world());
        let checked = match (fits, group) {
            (false, _) => Err(format!("rank {} is not at its position", world.mpi.rank())),
            (true, None) => Err("no program of the session has this group".into()),
            (true, Some(group)) => check(collective).map(|()| group),
        };
        let group = checked.map_err(|e| RuntimeError::Launch(format!("{}: {e}", describe(collective))))?;
        let combine = match &collective.kind {
            CollectiveKind::AllReduce(op) | CollectiveKind::ReduceScatter { op, .. } => {
                Some(reduce::kernel(*op, collective.dtype))
            }
            _ => None,
        };
        let transfers = transfers(collective);
        let staging = Staging::new(&transfers, collective.position, combine.is_some());
        let fingerprint = fingerprint(collective);
        self.sources.reserve(collective.group.len());
        self.prepared.push(Prepared {
            collective: collective.clone(),
            group,
            fingerprint,
            transfers,
            combine,
            staging,
        });
        Ok(CollectiveId(self.prepared.len() - 1))
    }

    unsafe fn start(&mut self, id: CollectiveId, from: *const u8, to: *mut u8) -> Result<(), RuntimeError> {
        let (id, rank) = (id.0, self.world.mpi.rank());
        if let Some((peer, reason)) = self.world.mpi.failed() {
            return Err(RuntimeError::PeerFailed { rank, operation: self.description(id), peer, reason });
        }
        let group = self.prepared[id].group;
        let sequence = self.sequences[group];
        let same = self.pending.iter().filter(|job| self.prepared[job.id].group == group);
        let oldest = same.map(|job| job.sequence).min();
        if self.pending.len() == DEPTH || oldest.is_some_and(|o| sequence - o >= DEPTH as u64) {
            let operation = self.description(id);
            let reason = format!("{operation}: more than {DEPTH} collectives were started and not waited for");
            return Err(RuntimeError::Launch(reason));
        }
        self.sequences[group] += 1;
        let mut job = self.job(id, sequence, from, to)?;
        let begun = self.begin(&mut job);
        self.pending.push(job);
        begun.map_err(|e| self.transport_error(id, e))
    }

    fn wait(&mut self, id: CollectiveId) -> Result<(), RuntimeError> {
        let world = self.world.clone();
        wait(&world.mpi, world.deadline, &mut Finish { ranks: self, id: id.0 })
    }
}

/// A collective that a rank waits for.
struct Finish<'a> {
    ranks: &'a mut Ranks,
    id: usize,
}

impl Awaited for Finish<'_> {
    fn poll(&mut self) -> Result<bool, RuntimeError> {
        self.ranks.progress()?;
        Ok(!self.ranks.pending.iter().any(|job| job.id == self.id))
    }

    fn operation(&self) -> String {
        self.ranks.description(self.id)
    }

    fn missing(&self) -> Vec<usize> {
        let Some(job) = self.ranks.pending.iter().find(|job| job.id == self.id) else { return Vec::new() };
        let group = &self.ranks.prepared[self.id].collective.group;
        // The ranks whose header has not arrived or, if all have, those with which some message is unfinished.
        let headers = if job.compared { 0 } else { group.len() - 1 };
        let of = |requests: Range<usize>| -> Vec<usize> {
            let open = requests.filter(|&at| !job.requests.is_finished(at));
            let mut ranks: Vec<usize> = open.map(|at| group[job.positions[at]]).collect();
            ranks.sort_unstable();
            ranks.dedup();
            ranks
        };
        let absent = of(0..headers.min(job.requests.len()));
        if absent.is_empty() { of(0..job.requests.len()) } else { absent }
    }

    fn is_patient(&self) -> bool {
        false
    }
}
