//! The communicator of one rank in a [`World`], for a thread or a process.
//!
//! A collective synchronizes twice. A rank *arrives* when it starts: it publishes its buffers and a fingerprint of the
//! operation under a sequence number of the group. It computes nothing yet. Once all have arrived, every rank that waits
//! computes its share (`share`), reading its peers' buffers directly: of an all-reduce it combines one piece for all ranks,
//! and of any other collective its own result. A rank is *done* when it has computed its share, and its wait returns when
//! all ranks are done.
//!
//! A rank that waits also computes its share of every other collective that it has started, so no order of waits can
//! deadlock. It spins for a moment, then yields, then sleeps. It never waits longer than the deadline, and gives up at
//! once when a peer fails, leaves, loses its process, or starts another operation.

use super::control::Control;
use super::reduce::{self, Combine};
use super::share::share;
use super::wait::{Awaited, Stop, wait};
use super::world::{DEPTH, Member, World};
use super::{CollectiveId, Communicator, check, describe, fingerprint};
use crate::error::RuntimeError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tpc_ir::program::{Collective, CollectiveKind};

struct Prepared {
    collective: Collective,
    /// Index among the rank's groups.
    group: usize,
    fingerprint: u64,
    combine: Option<Combine>,
}

#[derive(Clone, Copy)]
struct Pending {
    id: usize,
    sequence: u64,
    /// Whether this rank's share is computed.
    share_done: bool,
}

/// The communicator of one rank in a world.
pub struct Ranks {
    world: Arc<World>,
    rank: usize,
    /// The groups in the world, and the sequence number of the next collective in each.
    groups: Vec<(usize, u64)>,
    prepared: Vec<Prepared>,
    pending: Vec<Pending>,
    sources: Vec<*const u8>,
    targets: Vec<*mut u8>,
}

// SAFETY: the pointers are only kept between the start and the end of a rank's share.
unsafe impl Send for Ranks {}

impl Ranks {
    /// The communicator of a rank.
    pub(super) fn new(world: Arc<World>, rank: usize) -> Self {
        Ranks {
            world,
            rank,
            groups: Vec::new(),
            prepared: Vec::new(),
            pending: Vec::with_capacity(DEPTH),
            sources: Vec::new(),
            targets: Vec::new(),
        }
    }

    fn description(&self, id: usize) -> String {
        describe(&self.prepared[id].collective)
    }

    fn peer_failed(&self, id: usize) -> RuntimeError {
        let (peer, reason) = self.world.control.failure().unwrap_or((self.rank, "unknown".into()));
        RuntimeError::PeerFailed { rank: self.rank, operation: self.description(id), peer, reason }
    }

    /// The ranks of a collective's group, with what each of them publishes.
    fn members(&self, id: usize) -> impl Iterator<Item = (usize, &Member)> {
        let group = self.groups[self.prepared[id].group].0;
        self.world.ranks_of(group).iter().copied().zip(self.world.members(group))
    }

    /// Computes this rank's share of every started collective for which all ranks have arrived.
    fn compute_shares(&mut self) -> Result<(), RuntimeError> {
        for i in 0..self.pending.len() {
            let Pending { id, sequence, share_done } = self.pending[i];
            if share_done {
                continue;
            }
            let p = &self.prepared[id];
            let group = self.groups[p.group].0;
            let place = sequence as usize % DEPTH;
            let mut all = true;
            for (q, member) in self.world.members(group).enumerate() {
                if member.arrived.load(Ordering::Acquire) <= sequence {
                    all = false;
                    continue;
                }
                let announced = member.slots[place].fingerprint.load(Ordering::Relaxed);
                if announced != p.fingerprint {
                    let peer = self.world.ranks_of(group)[q];
                    let index = member.slots[place].index.load(Ordering::Relaxed) as usize;
                    return Err(RuntimeError::Desynchronized {
                        rank: self.rank,
                        mine: self.description(id),
                        peer,
                        theirs: self.world.describe(peer, index, announced),
                    });
                }
            }
            if !all {
                continue;
            }
            self.sources.clear();
            self.targets.clear();
            let arenas = self.world.arenas();
            for (member, &rank) in self.world.members(group).zip(self.world.ranks_of(group)) {
                let base = arenas[rank].base();
                let at = |offset: u64| base.wrapping_add(offset as usize);
                self.sources.push(at(member.slots[place].from.load(Ordering::Relaxed)));
                self.targets.push(at(member.slots[place].to.load(Ordering::Relaxed)));
            }
            // SAFETY: all ranks have started this collective (equal fingerprints imply equal sizes) with buffers in
            // their arenas. The arenas stay mapped as long as the world, and the buffers are unused until all are done;
            // each rank writes elements that no other rank writes.
            unsafe { share(&p.collective, p.combine, &self.sources, &self.targets) }
            let mine = &self.world.member(group, self.rank).slots[place];
            mine.done.store(sequence + 1, Ordering::Release);
            self.pending[i].share_done = true;
            self.world.control.ring();
        }
        Ok(())
    }

    fn finished(&self, pending: Pending) -> bool {
        let place = pending.sequence as usize % DEPTH;
        let is_done = |m: &Member| m.slots[place].done.load(Ordering::Acquire) > pending.sequence;
        pending.share_done && self.members(pending.id).all(|(_, m)| is_done(m))
    }

    /// The ranks that have not arrived or, if all have, are not done.
    fn missing(&self, pending: Pending) -> Vec<usize> {
        let place = pending.sequence as usize % DEPTH;
        let late = |late: &dyn Fn(&Member) -> bool| -> Vec<usize> {
            self.members(pending.id).filter(|(_, m)| late(m)).map(|(r, _)| r).collect()
        };
        let absent = late(&|m| m.arrived.load(Ordering::Acquire) <= pending.sequence);
        match absent.is_empty() {
            true => late(&|m| m.slots[place].done.load(Ordering::Acquire) <= pending.sequence),
            false => absent,
        }
    }

    /// Whether a rank has finished the step without starting the collective.
    fn left(&self, pending: Pending) -> bool {
        let steps = self.world.steps_done(self.rank).load(Ordering::Relaxed);
        self.members(pending.id).any(|(r, m)| {
            self.world.steps_done(r).load(Ordering::Acquire) > steps
                && m.arrived.load(Ordering::Acquire) <= pending.sequence
        })
    }
}

/// A collective that a rank waits for.
struct Finish<'a> {
    ranks: &'a mut Ranks,
    id: usize,
}

impl Finish<'_> {
    fn pending(&self) -> Option<Pending> {
        self.ranks.pending.iter().find(|p| p.id == self.id).copied()
    }
}

impl Awaited<RuntimeError> for Finish<'_> {
    fn control(&self) -> &Control {
        &self.ranks.world.control
    }

    fn look(&mut self) -> Result<Option<()>, RuntimeError> {
        self.ranks.compute_shares()?;
        let Some(at) = self.ranks.pending.iter().position(|p| p.id == self.id) else { return Ok(Some(())) };
        if self.ranks.finished(self.ranks.pending[at]) {
            self.ranks.pending.remove(at);
            return Ok(Some(()));
        }
        Ok(None)
    }

    fn is_hopeless(&mut self) -> Option<RuntimeError> {
        let pending = self.pending()?;
        self.ranks.left(pending).then(|| RuntimeError::Left {
            rank: self.ranks.rank,
            operation: self.ranks.description(self.id),
            missing: self.ranks.missing(pending),
        })
    }

    fn missing(&mut self) -> Vec<usize> {
        self.pending().map_or_else(Vec::new, |pending| self.ranks.missing(pending))
    }

    fn progress(&mut self) -> u64 {
        // A deadline of a collective is strict: no work of a peer extends it.
        0
    }
}

impl Communicator for Ranks {
    fn prepare(&mut self, collective: &Collective) -> Result<CollectiveId, RuntimeError> {
        let group = self.world.group(&collective.group);
        let fits = collective.group.get(collective.position) == Some(&self.rank)
            && collective.group.iter().all(|&r| r < self.world.ranks());
        let checked = match (fits, group) {
            (false, _) => Err(format!("rank {} is not at its position", self.rank)),
            (true, None) => Err("no program of the session has this group".into()),
            (true, Some(group)) => check(collective).map(|()| group),
        };
        let group = checked.map_err(|e| RuntimeError::Launch(format!("{}: {e}", describe(collective))))?;
        let known = self.groups.iter().position(|g| g.0 == group);
        let group = known.unwrap_or_else(|| {
            self.groups.push((group, 0));
            self.groups.len() - 1
        });
        let members = collective.group.len();
        self.sources.reserve(members);
        self.targets.reserve(members);
        let combine = match &collective.kind {
            CollectiveKind::AllReduce(op) | CollectiveKind::ReduceScatter { op, .. } => {
                Some(reduce::kernel(*op, collective.dtype))
            }
            _ => None,
        };
        let fingerprint = fingerprint(collective);
        self.prepared.push(Prepared { fingerprint, collective: collective.clone(), group, combine });
        Ok(CollectiveId(self.prepared.len() - 1))
    }

    unsafe fn start(&mut self, id: CollectiveId, from: *const u8, to: *mut u8) -> Result<(), RuntimeError> {
        let p = &self.prepared[id.0];
        if self.world.control.has_failed() {
            return Err(self.peer_failed(id.0));
        }
        let (group, sequence) = self.groups[p.group];
        let oldest = self.pending.iter().filter(|x| self.prepared[x.id].group == p.group).map(|x| x.sequence).min();
        if self.pending.len() == DEPTH || oldest.is_some_and(|o| sequence - o >= DEPTH as u64) {
            let reason =
                format!("{}: more than {DEPTH} collectives were started and not waited for", describe(&p.collective));
            return Err(RuntimeError::Launch(reason));
        }
        let base = self.world.arenas()[self.rank].base() as usize;
        let member = self.world.member(group, self.rank);
        let slot = &member.slots[sequence as usize % DEPTH];
        slot.fingerprint.store(p.fingerprint, Ordering::Relaxed);
        slot.index.store(id.0 as u64, Ordering::Relaxed);
        // Both are in this rank's arena, as the trait demands; other processes have mapped it at other addresses.
        slot.from.store((from as usize).wrapping_sub(base) as u64, Ordering::Relaxed);
        slot.to.store((to as usize).wrapping_sub(base) as u64, Ordering::Relaxed);
        member.arrived.store(sequence + 1, Ordering::Release);
        self.groups[p.group].1 += 1;
        self.pending.push(Pending { id: id.0, sequence, share_done: false });
        self.world.control.ring();
        Ok(())
    }

    fn wait(&mut self, id: CollectiveId) -> Result<(), RuntimeError> {
        let (deadline, spin) = (self.world.deadline, self.world.spin);
        let Err(stop) = wait(deadline, spin, &mut Finish { ranks: self, id: id.0 }) else { return Ok(()) };
        let (rank, operation) = (self.rank, self.description(id.0));
        Err(match stop {
            Stop::Error(error) => error,
            Stop::Failed => self.peer_failed(id.0),
            Stop::Gone(missing) => RuntimeError::Gone { rank, operation, missing },
            Stop::Late => {
                let pending = self.pending.iter().find(|p| p.id == id.0).copied();
                let missing = pending.map_or_else(Vec::new, |p| self.missing(p));
                let states = self.world.control.states(&missing);
                RuntimeError::Deadline { rank, operation, missing, states, deadline }
            }
        })
    }
}
