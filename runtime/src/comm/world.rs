//! The shared state of the ranks of one session: the words in which they publish their arrivals, and their arenas.
//!
//! The words are a block of memory whose layout every process knows: a word for each rank, and for each group one member for
//! each rank, of which those in the group use theirs. Groups are numbered in the order in which the programs of a process
//! have them. Where each process has one rank, its groups get the numbers that those of all other ranks get, because all
//! ranks start the same collectives along the same axes.
//! ```text
//! [ steps done by rank 0 ] … [ group 0 of rank 0 ][ group 0 of rank 1 ] … [ group 1 of rank 0 ] …
//! ```
//! Buffers are published as offsets into the arena of the rank, because each process has mapped it at a different
//! address.

use super::control::Control;
use super::shared_memory::{Growth, Region};
use super::{collective, groups};
use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tpc_ir::program::{RankProgram, RankPrograms};

/// Number of collectives of one group that a rank may have started and not yet waited for.
pub(super) const DEPTH: usize = 64;

/// What one rank publishes about one collective, at the index given by the sequence number modulo [`DEPTH`].
#[repr(C)]
pub(super) struct Slot {
    pub(super) fingerprint: AtomicU64,
    /// The index of the collective in the rank's program.
    pub(super) index: AtomicU64,
    pub(super) from: AtomicU64,
    pub(super) to: AtomicU64,
    /// One more than the sequence number of the collective whose share is done.
    pub(super) done: AtomicU64,
}

/// One rank of a group. Zeroed memory is a rank that has done nothing.
#[repr(C, align(128))]
pub(super) struct Member {
    /// One more than the sequence number of the latest collective that was started.
    pub(super) arrived: AtomicU64,
    pub(super) slots: [Slot; DEPTH],
}

#[repr(C, align(128))]
struct Steps(AtomicU64);

/// The shared state of one session's ranks.
pub struct World {
    pub(super) control: Arc<Control>,
    words: Region,
    /// The ranks of each group, in order.
    groups: Vec<Vec<usize>>,
    arenas: Vec<Arc<Arena>>,
    pub(super) programs: Arc<RankPrograms>,
    pub(super) deadline: Duration,
    /// Whether every rank has its own core.
    pub(super) spin: bool,
}

impl World {
    /// Bytes of the words in which these ranks publish.
    pub(super) fn bytes(programs: &RankPrograms) -> usize {
        (size_of::<Steps>() + size_of::<Member>() * groups(programs).len()) * programs.ranks()
    }

    /// A world over zeroed words of [`World::bytes`] and the arenas of all ranks.
    pub(super) fn new(
        control: Arc<Control>,
        words: Region,
        arenas: Vec<Arc<Arena>>,
        programs: Arc<RankPrograms>,
        deadline: Duration,
    ) -> Self {
        let ranks = programs.ranks();
        debug_assert!(words.bytes() == World::bytes(&programs) && arenas.len() == ranks);
        // Each process may be bound to its own core, as MPI's launchers do.
        let mine = std::thread::available_parallelism().map_or(1, usize::from);
        let bound = control.is_shared() && mine < ranks;
        let cores = if bound { control.cpus() } else { mine };
        let spin = ranks <= cores;
        World { control, words, groups: groups(&programs), arenas, programs, deadline, spin }
    }

    /// A world of threads.
    ///
    /// # Errors
    /// Too little memory.
    pub(super) fn of_threads(
        control: Arc<Control>,
        arenas: Option<Vec<Arc<Arena>>>,
        programs: Arc<RankPrograms>,
        deadline: Duration,
    ) -> Result<Self, RuntimeError> {
        let arena = |p: &RankProgram| {
            let (rank, bytes) = (p.rank, p.arena_bytes);
            match &arenas {
                Some(arenas) => grown(&arenas[rank], rank, bytes),
                None => Arena::private(bytes).map(Arc::new).ok_or(RuntimeError::OutOfMemory { rank, bytes }),
            }
        };
        let arenas = programs.iter().map(arena).collect::<Result<_, _>>()?;
        let words = Region::private(World::bytes(&programs), Growth::Fixed).map_err(out_of_memory)?;
        Ok(World::new(control, words, arenas, programs, deadline))
    }

    pub(super) fn arenas(&self) -> &[Arc<Arena>] {
        &self.arenas
    }

    pub(super) fn group(&self, ranks: &[usize]) -> Option<usize> {
        self.groups.iter().position(|group| group == ranks)
    }

    pub(super) fn ranks_of(&self, group: usize) -> &[usize] {
        &self.groups[group]
    }

    /// What a rank publishes about the collectives of a group.
    pub(super) fn member(&self, group: usize, rank: usize) -> &Member {
        let ranks = self.ranks();
        assert!(group < self.groups.len() && rank < ranks);
        let before = size_of::<Steps>() * ranks;
        // SAFETY: `new` was given words for all groups; they are aligned to pages, were zeroed, and are only used as
        // atomic words.
        unsafe { &*self.words.base().add(before).cast::<Member>().add(group * ranks + rank) }
    }

    /// What each rank of a group publishes about its collectives, in the order of the group.
    pub(super) fn members(&self, group: usize) -> impl Iterator<Item = &Member> {
        self.groups[group].iter().map(move |&rank| self.member(group, rank))
    }

    /// Number of ranks.
    pub(super) fn ranks(&self) -> usize {
        self.arenas.len()
    }

    /// Number of steps that a rank has finished.
    pub(super) fn steps_done(&self, rank: usize) -> &AtomicU64 {
        assert!(rank < self.ranks());
        // SAFETY: as above; the steps of all ranks come first.
        unsafe { &(*self.words.base().cast::<Steps>().add(rank)).0 }
    }

    /// Describes the collective with this index in a rank's program, which the rank has announced with a fingerprint.
    pub(super) fn describe(&self, rank: usize, index: usize, announced: u64) -> String {
        let collective = collective(&self.programs, rank, index, announced);
        collective.map_or_else(|| "another operation".into(), super::describe)
    }
}

/// The arena of a rank, grown to at least this many bytes.
pub(super) fn grown(arena: &Arc<Arena>, rank: usize, bytes: usize) -> Result<Arc<Arena>, RuntimeError> {
    match arena.grow(bytes) {
        true => Ok(arena.clone()),
        false => Err(RuntimeError::OutOfMemory { rank, bytes }),
    }
}

pub(super) fn out_of_memory(error: io::Error) -> RuntimeError {
    RuntimeError::Launch(format!("no memory for the communication of the ranks: {error}"))
}
