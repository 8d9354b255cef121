//! Ranks as threads of one process.
//!
//! A collective has two meetings. A rank *arrives* when it starts: it publishes its buffers and a
//! fingerprint of the operation under a sequence number of the group. Once all have arrived, every
//! rank does its share, reading its peers' buffers directly: for an all-reduce it combines one piece
//! in rank order and writes it to every rank's result, for the others it fills its own result. It is
//! *done* when its share is, and returns when all are. Each element is combined once, by one rank,
//! in a fixed order, so that results are bitwise equal everywhere.
//!
//! A rank that waits also does its share of every other collective it has started, so that the order
//! of waits cannot block anyone. It spins for a moment, then yields, then sleeps; it never waits
//! longer than the deadline, and gives up at once when a peer fails, leaves, or comes with another
//! operation.

use super::reduce::{self, Combine};
use super::{CollectiveId, Communicator, check, describe, fingerprint};
use crate::error::RuntimeError;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tpc_ir::program::{Collective, CollectiveKind, Part};

/// Collectives of one group that a rank may have started and not yet waited for.
const DEPTH: usize = 64;

/// What one rank publishes about one collective. The sequence number modulo [`DEPTH`] is its place.
#[derive(Default)]
struct Slot {
    fingerprint: AtomicU64,
    index: AtomicUsize,
    from: AtomicPtr<u8>,
    to: AtomicPtr<u8>,
    /// One more than the sequence number of the collective whose share is done.
    done: AtomicU64,
}

/// One rank of a group.
#[repr(align(128))]
struct Member {
    /// One more than the sequence number of the latest collective that was started.
    arrived: AtomicU64,
    slots: [Slot; DEPTH],
}

struct Group {
    ranks: Vec<usize>,
    members: Vec<Member>,
}

/// What a rank is doing, for its peers' error messages.
#[derive(Default)]
struct RankState {
    steps_done: AtomicU64,
    /// One more than the index of the collective it waits for, or 0.
    waiting: AtomicUsize,
    descriptions: Mutex<Vec<Arc<str>>>,
}

/// All ranks of a process and their groups.
pub struct World {
    ranks: Vec<RankState>,
    groups: Mutex<Vec<Arc<Group>>>,
    deadline: Duration,
    /// Every rank has a core of its own.
    spin: bool,
    failed: AtomicBool,
    failure: Mutex<Option<(usize, String)>>,
    sleepers: AtomicUsize,
    bell: Mutex<u64>,
    rung: Condvar,
}

/// Nothing that panics runs under these locks, so what they hold is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// A world of that many ranks, whose collectives may take so long.
    pub fn new(ranks: usize, deadline: Duration) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(World {
            ranks: (0..ranks).map(|_| RankState::default()).collect(),
            groups: Mutex::new(Vec::new()),
            deadline,
            spin: ranks <= cores,
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            sleepers: AtomicUsize::new(0),
            bell: Mutex::new(0),
            rung: Condvar::new(),
        })
    }

    /// Tells all ranks that one has failed: they give up. Only the first failure is kept.
    pub fn fail(&self, rank: usize, reason: String) {
        lock(&self.failure).get_or_insert((rank, reason));
        self.failed.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// The rank that failed first, and why.
    pub fn failure(&self) -> Option<(usize, String)> {
        if self.failed.load(Ordering::Acquire) { lock(&self.failure).clone() } else { None }
    }

    /// Tells all ranks that one has finished a step.
    pub fn finish_step(&self, rank: usize) {
        self.ranks[rank].steps_done.fetch_add(1, Ordering::Release);
        self.ring();
    }

    fn ring(&self) {
        // Either a sleeper's last look sees what was published before, or it is counted here.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            *lock(&self.bell) += 1;
            self.rung.notify_all();
        }
    }

    fn group(&self, ranks: &[usize]) -> Arc<Group> {
        let mut groups = lock(&self.groups);
        if let Some(g) = groups.iter().find(|g| g.ranks == ranks) {
            return g.clone();
        }
        let member = || Member { arrived: AtomicU64::new(0), slots: std::array::from_fn(|_| Slot::default()) };
        let group = Arc::new(Group { ranks: ranks.to_vec(), members: ranks.iter().map(|_| member()).collect() });
        groups.push(group.clone());
        group
    }

    fn state(&self, rank: usize) -> String {
        let state = &self.ranks[rank];
        match state.waiting.load(Ordering::Relaxed) {
            0 => "computing".into(),
            i => {
                let descriptions = lock(&state.descriptions);
                descriptions.get(i - 1).map_or("waiting".into(), |d| format!("waiting in {d}"))
            }
        }
    }
}

struct Prepared {
    collective: Collective,
    description: Arc<str>,
    group: usize,
    fingerprint: u64,
    combine: Option<Combine>,
}

#[derive(Clone, Copy)]
struct Pending {
    id: usize,
    sequence: u64,
    shared: bool,
}

/// One rank's end of a [`World`].
pub struct Threads {
    world: Arc<World>,
    rank: usize,
    groups: Vec<(Arc<Group>, u64)>,
    prepared: Vec<Prepared>,
    pending: Vec<Pending>,
    sources: Vec<*const u8>,
    targets: Vec<*mut u8>,
}

// SAFETY: the pointers are only kept between the start and the end of a rank's share.
unsafe impl Send for Threads {}

impl Threads {
    /// The end of that rank.
    pub fn new(world: Arc<World>, rank: usize) -> Self {
        Threads {
            world,
            rank,
            groups: Vec::new(),
            prepared: Vec::new(),
            pending: Vec::with_capacity(DEPTH),
            sources: Vec::new(),
            targets: Vec::new(),
        }
    }

    fn peer_failed(&self, id: usize) -> RuntimeError {
        let (peer, reason) = self.world.failure().unwrap_or((self.rank, "unknown".into()));
        RuntimeError::PeerFailed { rank: self.rank, operation: self.prepared[id].description.to_string(), peer, reason }
    }

    /// Does this rank's share of every started collective for which all ranks have arrived.
    fn progress(&mut self) -> Result<(), RuntimeError> {
        for i in 0..self.pending.len() {
            let Pending { id, sequence, shared } = self.pending[i];
            if shared {
                continue;
            }
            let p = &self.prepared[id];
            let group = &*self.groups[p.group].0;
            let place = sequence as usize % DEPTH;
            let mut all = true;
            for (q, member) in group.members.iter().enumerate() {
                if member.arrived.load(Ordering::Acquire) <= sequence {
                    all = false;
                } else if member.slots[place].fingerprint.load(Ordering::Relaxed) != p.fingerprint {
                    let index = member.slots[place].index.load(Ordering::Relaxed);
                    let peer = group.ranks[q];
                    let descriptions = lock(&self.world.ranks[peer].descriptions);
                    let theirs = descriptions.get(index).map_or_else(|| "another".into(), |d| d.to_string());
                    return Err(RuntimeError::Desynchronized {
                        rank: self.rank,
                        mine: p.description.to_string(),
                        peer,
                        theirs,
                    });
                }
            }
            if !all {
                continue;
            }
            self.sources.clear();
            self.targets.clear();
            for member in &group.members {
                self.sources.push(member.slots[place].from.load(Ordering::Relaxed));
                self.targets.push(member.slots[place].to.load(Ordering::Relaxed));
            }
            // SAFETY: all ranks have started this very collective (same fingerprint, so same
            // sizes), keep their buffers alive and unused until all are done, and each rank writes
            // elements that no other does.
            unsafe { share(&p.collective, p.combine, &self.sources, &self.targets) }
            let mine = &group.members[p.collective.position].slots[place];
            mine.done.store(sequence + 1, Ordering::Release);
            self.pending[i].shared = true;
            self.world.ring();
        }
        Ok(())
    }

    /// Ranks that have not arrived or, if all have, are not done.
    fn missing(&self, pending: Pending) -> (Vec<usize>, Vec<usize>) {
        let group = &*self.groups[self.prepared[pending.id].group].0;
        let place = pending.sequence as usize % DEPTH;
        let ranks = |late: &dyn Fn(&Member) -> bool| -> Vec<usize> {
            group.members.iter().zip(&group.ranks).filter(|(m, _)| late(m)).map(|(_, &r)| r).collect()
        };
        (
            ranks(&|m| m.arrived.load(Ordering::Acquire) <= pending.sequence),
            ranks(&|m| m.slots[place].done.load(Ordering::Acquire) <= pending.sequence),
        )
    }

    fn finished(&self, pending: Pending) -> bool {
        let group = &*self.groups[self.prepared[pending.id].group].0;
        let place = pending.sequence as usize % DEPTH;
        pending.shared && group.members.iter().all(|m| m.slots[place].done.load(Ordering::Acquire) > pending.sequence)
    }

    /// Ranks that have finished the step without starting the collective.
    fn left(&self, pending: Pending) -> bool {
        let group = &*self.groups[self.prepared[pending.id].group].0;
        let steps = self.world.ranks[self.rank].steps_done.load(Ordering::Relaxed);
        group.members.iter().zip(&group.ranks).any(|(m, &r)| {
            self.world.ranks[r].steps_done.load(Ordering::Acquire) > steps
                && m.arrived.load(Ordering::Acquire) <= pending.sequence
        })
    }

    fn wait_for(&mut self, id: usize) -> Result<(), RuntimeError> {
        let mut started = None;
        let mut idle = 0u32;
        let mut asleep = false;
        loop {
            let bell = if asleep { *lock(&self.world.bell) } else { 0 };
            let advanced = self.progress();
            let at = self.pending.iter().position(|p| p.id == id);
            let Some(at) = at else { return Ok(()) };
            if asleep {
                let idle = advanced.is_ok() && !self.finished(self.pending[at]);
                if idle && !self.world.failed.load(Ordering::SeqCst) {
                    let guard = lock(&self.world.bell);
                    if *guard == bell {
                        // At the latest, look whether the deadline has passed.
                        drop(self.world.rung.wait_timeout(guard, Duration::from_millis(20)));
                    }
                }
                self.world.sleepers.fetch_sub(1, Ordering::SeqCst);
                asleep = false;
            }
            advanced?;
            let pending = self.pending[at];
            if self.finished(pending) {
                self.pending.remove(at);
                return Ok(());
            }
            if self.world.failed.load(Ordering::Acquire) {
                return Err(self.peer_failed(id));
            }
            idle += 1;
            let (spins, yields) = if self.world.spin { (2000, 200) } else { (0, 20) };
            if idle < spins {
                std::hint::spin_loop();
                continue;
            }
            let started = *started.get_or_insert_with(Instant::now);
            let operation = || self.prepared[id].description.to_string();
            if self.left(pending) {
                let missing = self.missing(pending).0;
                return Err(RuntimeError::Left { rank: self.rank, operation: operation(), missing });
            }
            if started.elapsed() > self.world.deadline {
                let (absent, unfinished) = self.missing(pending);
                let missing = if absent.is_empty() { unfinished } else { absent };
                let states: Vec<_> = missing.iter().map(|&r| format!("rank {r} is {}", self.world.state(r))).collect();
                return Err(RuntimeError::Deadline {
                    rank: self.rank,
                    operation: operation(),
                    missing,
                    states: format!(" ({})", states.join(", ")),
                    deadline: self.world.deadline,
                });
            }
            if idle < spins + yields {
                std::thread::yield_now();
            } else {
                // Counted before the last look, so that whoever publishes after it rings.
                self.world.sleepers.fetch_add(1, Ordering::SeqCst);
                fence(Ordering::SeqCst);
                asleep = true;
            }
        }
    }
}

impl Communicator for Threads {
    fn prepare(&mut self, collective: &Collective) -> Result<CollectiveId, RuntimeError> {
        let fits = collective.group.get(collective.position) == Some(&self.rank)
            && collective.group.iter().all(|&r| r < self.world.ranks.len());
        let checked = if fits { check(collective) } else { Err(format!("rank {} is not at its position", self.rank)) };
        checked.map_err(|e| RuntimeError::Launch(format!("{}: {e}", describe(collective))))?;
        let group = self.world.group(&collective.group);
        let known = self.groups.iter().position(|g| Arc::ptr_eq(&g.0, &group));
        let group = known.unwrap_or_else(|| {
            self.groups.push((group, 0));
            self.groups.len() - 1
        });
        let members = collective.group.len();
        self.sources.reserve(members);
        self.targets.reserve(members);
        let description: Arc<str> = describe(collective).into();
        lock(&self.world.ranks[self.rank].descriptions).push(description.clone());
        let combine = match &collective.kind {
            CollectiveKind::AllReduce(op) | CollectiveKind::ReduceScatter { op, .. } => {
                Some(reduce::kernel(*op, collective.dtype))
            }
            _ => None,
        };
        self.prepared.push(Prepared {
            fingerprint: fingerprint(collective),
            collective: collective.clone(),
            description,
            group,
            combine,
        });
        Ok(CollectiveId(self.prepared.len() - 1))
    }

    unsafe fn start(&mut self, id: CollectiveId, from: *const u8, to: *mut u8) -> Result<(), RuntimeError> {
        let p = &self.prepared[id.0];
        if self.world.failed.load(Ordering::Acquire) {
            return Err(self.peer_failed(id.0));
        }
        let sequence = self.groups[p.group].1;
        let oldest = self.pending.iter().filter(|x| self.prepared[x.id].group == p.group).map(|x| x.sequence).min();
        if self.pending.len() == DEPTH || oldest.is_some_and(|o| sequence - o >= DEPTH as u64) {
            let error = RuntimeError::Launch(format!(
                "{}: more than {DEPTH} collectives were started and not waited for",
                p.description
            ));
            self.world.fail(self.rank, error.to_string());
            return Err(error);
        }
        let member = &self.groups[p.group].0.members[p.collective.position];
        let slot = &member.slots[sequence as usize % DEPTH];
        slot.fingerprint.store(p.fingerprint, Ordering::Relaxed);
        slot.index.store(id.0, Ordering::Relaxed);
        slot.from.store(from.cast_mut(), Ordering::Relaxed);
        slot.to.store(to, Ordering::Relaxed);
        member.arrived.store(sequence + 1, Ordering::Release);
        self.groups[p.group].1 += 1;
        self.pending.push(Pending { id: id.0, sequence, shared: false });
        self.world.ring();
        Ok(())
    }

    fn wait(&mut self, id: CollectiveId) -> Result<(), RuntimeError> {
        let waiting = &self.world.ranks[self.rank].waiting;
        waiting.store(id.0 + 1, Ordering::Relaxed);
        let result = self.wait_for(id.0);
        if let Err(error) = &result {
            self.world.fail(self.rank, error.to_string());
        } else {
            self.world.ranks[self.rank].waiting.store(0, Ordering::Relaxed);
        }
        result
    }
}

/// One rank's share of a collective.
///
/// # Safety
/// The pointers are those of all ranks of the group, for the sizes of the collective; nobody writes
/// the sources or reads the targets meanwhile, except the other ranks' shares.
unsafe fn share(c: &Collective, combine: Option<Combine>, sources: &[*const u8], targets: &[*mut u8]) {
    let size = c.dtype.bytes();
    let (n, me) = (sources.len(), c.position);
    match &c.kind {
        CollectiveKind::AllReduce(_) => {
            // Pieces of whole cache lines.
            let elements = c.from.elements();
            let piece = elements.div_ceil(n).next_multiple_of(64 / size);
            let start = (piece * me).min(elements);
            let len = piece.min(elements - start);
            if let Some(combine) = combine {
                // SAFETY: the piece lies in all buffers, and is this rank's own.
                unsafe { combine(len, sources, targets, start * size, start * size) }
            }
        }
        CollectiveKind::AllGather { parts } => {
            // Every rank's shards lie side by side, so each peer has its own place for a part.
            let mut result = 0;
            for (p, Part { outer, lens, inner }) in parts.iter().enumerate() {
                let total: usize = lens.iter().sum();
                let mut offset = 0;
                for (peer, (source, &len)) in sources.iter().zip(lens).enumerate() {
                    let operand: usize = parts[..p].iter().map(|before| before.shard(peer)).sum();
                    let run = len * inner;
                    for o in 0..*outer {
                        let (from, to) = (operand + o * run, result + (o * total + offset) * inner);
                        // SAFETY: the run lies in the peer's operand and in this rank's result.
                        unsafe {
                            let to = targets[me].add(to * size);
                            std::ptr::copy_nonoverlapping(source.add(from * size), to, run * size);
                        }
                    }
                    offset += len;
                }
                result += parts[p].whole();
            }
        }
        CollectiveKind::ReduceScatter { parts, .. } => {
            let (mut operand, mut result) = (0, 0);
            for part in parts {
                let Part { outer, lens, inner } = part;
                let total: usize = lens.iter().sum();
                let offset: usize = lens[..me].iter().sum();
                let len = lens[me] * inner;
                for o in 0..*outer {
                    if let Some(combine) = combine {
                        let (from, to) = (operand + (o * total + offset) * inner, result + o * len);
                        // SAFETY: the piece lies in all operands and in this rank's result.
                        unsafe { combine(len, sources, &targets[me..=me], from * size, to * size) }
                    }
                }
                operand += part.whole();
                result += part.shard(me);
            }
        }
        CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } => {
            let product = |range: std::ops::Range<usize>| shape[range].iter().product::<usize>();
            let (a, b) = (*cut.min(join), *cut.max(join));
            let (before, between, behind) = (product(0..a), product(a + 1..b), product(b + 1..shape.len()));
            let (cut_total, join_total) = (shape[*cut], join_lens.iter().sum::<usize>());
            let cut_offset: usize = cut_lens[..me].iter().sum();
            let mut join_offset = 0;
            for (source, &joined) in sources.iter().zip(join_lens) {
                // (length of the piece, size and offset in the source, size and offset in the target)
                let of_cut = (cut_lens[me], cut_total, cut_offset, cut_lens[me], 0);
                let of_join = (joined, joined, 0, join_total, join_offset);
                let (first, second) = if cut < join { (of_cut, of_join) } else { (of_join, of_cut) };
                let run = second.0 * behind * size;
                for i in 0..before {
                    for x in 0..first.0 {
                        for j in 0..between {
                            let from = (((i * first.1 + first.2 + x) * between + j) * second.1 + second.2) * behind;
                            let to = (((i * first.3 + first.4 + x) * between + j) * second.3 + second.4) * behind;
                            // SAFETY: the run lies in the peer's operand and in this rank's result.
                            unsafe {
                                std::ptr::copy_nonoverlapping(source.add(from * size), targets[me].add(to * size), run);
                            }
                        }
                    }
                }
                join_offset += joined;
            }
        }
    }
}
