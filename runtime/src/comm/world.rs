//! The shared state of the ranks of one session: the words in which they publish their arrivals, and their arenas.
//!
//! The words are a block of memory whose layout every process knows, because every process knows all rank programs:
//! ```text
//! [ steps done by rank 0 ] … [ group 0: member 0, member 1, … ][ group 1: … ] …
//! ```
//! Buffers are published as offsets into the arena of the rank, because each process has mapped it at a different
//! address.

use super::control::Control;
use super::shared_memory::{Growth, Region};
use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tpc_ir::program::RankProgram;

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

/// A group of ranks, in order.
struct Group {
    ranks: Vec<usize>,
    /// Number of members of the groups before it.
    first: usize,
}

/// The shared state of one session's ranks.
pub struct World {
    pub(super) control: Arc<Control>,
    words: Region,
    groups: Vec<Group>,
    arenas: Vec<Arc<Arena>>,
    pub(super) programs: Arc<[RankProgram]>,
    pub(super) deadline: Duration,
    /// Whether every rank has its own core.
    pub(super) spin: bool,
}

fn groups(programs: &[RankProgram]) -> Vec<Group> {
    let (mut groups, mut seen) = (Vec::new(), HashSet::new());
    let mut first = 0;
    for collective in programs.iter().flat_map(RankProgram::collectives) {
        if seen.insert(&collective.group) {
            groups.push(Group { ranks: collective.group.clone(), first });
            first += collective.group.len();
        }
    }
    groups
}

impl World {
    /// Bytes of the words in which these ranks publish.
    pub(super) fn bytes(programs: &[RankProgram]) -> usize {
        let members: usize = groups(programs).iter().map(|g| g.ranks.len()).sum();
        size_of::<Steps>() * programs.len() + size_of::<Member>() * members
    }

    /// A world over zeroed words of [`World::bytes`] and the arenas of all ranks.
    pub(super) fn new(
        control: Arc<Control>,
        words: Region,
        arenas: Vec<Arc<Arena>>,
        programs: Arc<[RankProgram]>,
        deadline: Duration,
    ) -> Self {
        debug_assert!(words.bytes() == World::bytes(&programs) && arenas.len() == programs.len());
        // Each process may be bound to its own core, as MPI's launchers do.
        let mine = std::thread::available_parallelism().map_or(1, usize::from);
        let bound = control.is_shared() && mine < programs.len();
        let cores = if bound { control.cpus() } else { mine };
        let spin = programs.len() <= cores;
        World { control, words, groups: groups(&programs), arenas, programs, deadline, spin }
    }

    /// A world of threads.
    ///
    /// # Errors
    /// Too little memory.
    pub(super) fn of_threads(
        control: Arc<Control>,
        arenas: Option<Vec<Arc<Arena>>>,
        programs: Arc<[RankProgram]>,
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
        self.groups.iter().position(|g| g.ranks == ranks)
    }

    pub(super) fn ranks_of(&self, group: usize) -> &[usize] {
        &self.groups[group].ranks
    }

    pub(super) fn members(&self, group: usize) -> &[Member] {
        let Group { ranks, first } = &self.groups[group];
        let before = size_of::<Steps>() * self.programs.len();
        // SAFETY: `new` was given words for all groups; they are aligned to pages, were zeroed, and are only used as
        // atomic words.
        unsafe {
            let members = self.words.base().add(before).cast::<Member>().add(*first);
            std::slice::from_raw_parts(members, ranks.len())
        }
    }

    /// Number of steps that a rank has finished.
    pub(super) fn steps_done(&self, rank: usize) -> &AtomicU64 {
        assert!(rank < self.programs.len());
        // SAFETY: as above; the steps of all ranks come first.
        unsafe { &(*self.words.base().cast::<Steps>().add(rank)).0 }
    }

    /// Describes the collective with this index in a rank's program.
    pub(super) fn describe(&self, rank: usize, index: usize) -> String {
        let collective = self.programs[rank].collectives().nth(index);
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
