//! Communicators: collectives between the ranks of a group, started and waited for; processes, and exchanges between
//! their host sides.
//!
//! Each kind of world, MPI for example, implements [`Processes`], which opens [`Communicators`] for a session, which
//! give each rank its [`Communicator`]. No other code depends on the kind.
//!
//! | question | file |
//! |---|---|
//! | cooperation of the host sides of all processes | [`processes`] |
//! | processes on one host, and threads of one process | [`local`] |
//! | failures, activities, mailboxes | [`control`] |
//! | shared words and arenas of a session's ranks | [`world`] |
//! | the communicator of a rank: arrivals, deadlines, disagreement, aborts | [`ranks`] |
//! | what a rank computes and copies in a collective | `share`, `reduce` |
//! | waiting with a deadline | `wait`, `futex` |
//! | MPI processes, with the feature `mpi` | `mpi` |
//! | shared memory, and texts in it | [`shared_memory`], [`text`] |
//!
//! Every implementation keeps these promises: results are bitwise equal on all ranks of a group and from run to run; a
//! collective that cannot finish is an error on every rank, never a hang; if ranks start different operations, the
//! error names these.

pub mod control;
mod futex;
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod processes;
pub mod ranks;
pub(crate) mod reduce;
mod share;
pub mod shared_memory;
pub mod text;
mod wait;
pub mod world;

pub use processes::Processes;

use crate::device::cpu::arena::Arena;
use crate::error::RuntimeError;
use fnv::FnvHasher;
use std::collections::HashSet;
use std::hash::Hasher;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tpc_ir::program::{Collective, CollectiveKind, Part, RankProgram, RankPrograms};

/// A prepared collective: its index among the collectives of its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectiveId(pub usize);

/// The communicator of one rank.
pub trait Communicator {
    /// Announces a collective of the program, in program order, when the program is loaded.
    ///
    /// # Errors
    /// Sizes that contradict each other.
    fn prepare(&mut self, collective: &Collective) -> Result<CollectiveId, RuntimeError>;

    /// Starts a collective with dense buffers of the announced sizes, which are in the rank's arena.
    ///
    /// # Safety
    /// `from` must stay readable and unchanged, and `to` writable and unused, until [`wait`] has returned for the same
    /// collective, or the communicator has failed and all its ranks know.
    ///
    /// # Errors
    /// The group has failed.
    ///
    /// [`wait`]: Communicator::wait
    unsafe fn start(&mut self, id: CollectiveId, from: *const u8, to: *mut u8) -> Result<(), RuntimeError>;

    /// Waits until a collective is finished on this rank and no rank uses its buffers any more.
    ///
    /// # Errors
    /// Missing ranks, different operations, failed peers.
    fn wait(&mut self, id: CollectiveId) -> Result<(), RuntimeError>;
}

/// The communication of the ranks of one session.
pub trait Communicators: Send + Sync {
    /// The communicator of a rank of this process.
    fn communicator(self: Arc<Self>, rank: usize) -> Box<dyn Communicator>;

    /// The arena of a rank of this process.
    fn arena(&self, rank: usize) -> Arc<Arena>;

    /// Tells all ranks that one has finished a step.
    fn finish_step(&self, rank: usize);

    /// Communicators for other programs over the same arenas; `local` are the ranks of this process.
    ///
    /// # Errors
    /// Too little memory, or a process that does not respond.
    fn switch_to(
        &self,
        programs: Arc<RankPrograms>,
        local: Range<usize>,
        deadline: Duration,
    ) -> Result<Arc<dyn Communicators>, RuntimeError>;
}

/// The groups of ranks in some programs, in the order in which they first occur.
pub(crate) fn groups(programs: &[RankProgram]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut seen: HashSet<&[usize]> = HashSet::new();
    for Collective { group, .. } in programs.iter().flat_map(RankProgram::collectives) {
        if seen.insert(group) {
            groups.push(group.clone());
        }
    }
    groups
}

/// The collective with this index in a rank's program, which the rank has announced with a fingerprint. If the program is not
/// here, that of another rank stands for it, because all ranks are to start the same collectives.
fn collective(programs: &RankPrograms, rank: usize, index: usize, announced: u64) -> Option<&Collective> {
    let found = programs.get(rank).or(programs.first())?.collectives().nth(index);
    found.filter(|collective| fingerprint(collective) == announced)
}

/// What a collective is and why it exists, for error messages.
pub fn describe(c: &Collective) -> String {
    let detail = match &c.kind {
        CollectiveKind::AllReduce(op) => format!("{} of {} elements", op.name(), c.from.elements()),
        CollectiveKind::AllGather { parts } => describe_parts(parts),
        CollectiveKind::ReduceScatter { op, parts } => format!("{} of {}", op.name(), describe_parts(parts)),
        CollectiveKind::AllToAll { shape, cut, join, .. } => format!("{shape:?} cut {cut} join {join}"),
    };
    let why = if c.why.is_empty() { String::new() } else { format!(", why: {}", c.why) };
    format!("`{} {}` #{} ({} {detail}, {}, ranks {:?}{why})", c.name(), c.axes, c.tag, c.dtype, c.phase.name(), c.group)
}

/// The sizes of the first part, and the number of further parts.
fn describe_parts(parts: &[Part]) -> String {
    let first = parts.first().map_or(String::new(), |p| format!("[{}, {:?}, {}]", p.outer, p.lens, p.inner));
    if parts.len() > 1 { format!("{first} and {} more", parts.len() - 1) } else { first }
}

/// A number that is equal on all ranks of a group that start the same collective.
pub fn fingerprint(c: &Collective) -> u64 {
    let mut hasher = FnvHasher::default();
    let mut add = |x: u64| hasher.write(&x.to_le_bytes());
    add(u64::from(c.tag));
    add(c.dtype as u64);
    add(c.phase as u64);
    let lens = |add: &mut dyn FnMut(u64), lens: &[usize]| {
        add(lens.len() as u64);
        lens.iter().for_each(|&l| add(l as u64));
    };
    match &c.kind {
        CollectiveKind::AllReduce(op) => {
            add(1);
            add(*op as u64);
            add(c.from.elements() as u64);
        }
        CollectiveKind::AllGather { parts } | CollectiveKind::ReduceScatter { parts, .. } => {
            match &c.kind {
                CollectiveKind::ReduceScatter { op, .. } => {
                    add(3);
                    add(*op as u64);
                }
                _ => add(2),
            }
            add(parts.len() as u64);
            for part in parts {
                lens(&mut add, &part.lens);
                add(part.outer as u64);
                add(part.inner as u64);
            }
        }
        CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } => {
            add(4);
            add(*cut as u64);
            add(*join as u64);
            lens(&mut add, cut_lens);
            lens(&mut add, join_lens);
            // The joined dimension may differ from rank to rank.
            for (d, &n) in shape.iter().enumerate() {
                add(if d == *join { 0 } else { n as u64 });
            }
        }
    }
    hasher.finish()
}

/// Checks that the sizes of a collective fit together and fit its views.
pub(crate) fn check(c: &Collective) -> Result<(), String> {
    let n = c.group.len();
    let me = c.position;
    if me >= n {
        return Err(format!("position {me} in a group of {n}"));
    }
    let (from, to) = match &c.kind {
        CollectiveKind::AllReduce(_) => (c.from.elements(), c.from.elements()),
        CollectiveKind::AllGather { parts } | CollectiveKind::ReduceScatter { parts, .. } => {
            if let Some(part) = parts.iter().find(|p| p.lens.len() != n) {
                return Err(format!("{} pieces for {n} ranks", part.lens.len()));
            }
            let piece = parts.iter().map(|p| p.shard(me)).sum::<usize>();
            let all = parts.iter().map(Part::whole).sum::<usize>();
            if matches!(c.kind, CollectiveKind::AllGather { .. }) { (piece, all) } else { (all, piece) }
        }
        CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } => {
            let fits = cut_lens.len() == n
                && join_lens.len() == n
                && cut != join
                && *cut < shape.len()
                && *join < shape.len()
                && shape[*cut] == cut_lens.iter().sum::<usize>()
                && shape[*join] == join_lens[me];
            if !fits {
                return Err(format!("{shape:?} cannot be cut into {cut_lens:?} and joined from {join_lens:?}"));
            }
            let rest: usize = shape.iter().enumerate().filter(|(d, _)| d != cut && d != join).map(|(_, n)| n).product();
            (shape.iter().product(), rest * cut_lens[me] * join_lens.iter().sum::<usize>())
        }
    };
    if c.from.elements() != from || c.to.elements() != to {
        return Err(format!(
            "views of {} and {} elements, where {from} and {to} are needed",
            c.from.elements(),
            c.to.elements()
        ));
    }
    Ok(())
}
