//! Lowers a placed graph to the program of each rank.
//!
//! 1. [`mod@attention`] is found, then [`group`] merges loops that share an iteration space into kernels (softmax,
//!    norms, losses and optimizer updates) and orders them;
//! 2. `recompute`: loops recompute values that are not worth keeping in memory;
//! 3. `epilogue`: elementwise work after a product becomes a part of it;
//! 4. `bucket`: collectives of the same kind become one;
//! 5. [`mod@schedule`]: collectives start early and are waited for late;
//! 6. `emit`: each rank gets local shapes, strides and offsets;
//! 7. `memory`: buffers get offsets in one arena, according to their lifetimes.
//!
//! Steps 1 to 5 depend on global types only and are the same for all ranks. A process that runs some of the ranks lowers
//! only these ([`lower_some`]).
//!
//! Two checks run on every program: [`contents`] proves for each rank, step by step, that its memory holds the values of
//! the placed program, and [`check_ranks`] proves that the collectives of the ranks fit together. Programs that different
//! processes lowered are compared when they are launched.
//!
//! Before: `%4 = mul %2, %3 : f32[16, 256@tp]`, `%5 = reduce_sum "ab->a" %4`.
//! After: `loop [16, 128]`: `r0 = load …`, `r1 = load …`, `r2 = mul r0, r1`,
//! `r3 = reduce_row sum r2`, `store r3 -> …`.

pub mod attention;
mod bucket;
pub mod check_ranks;
mod claims;
pub mod contents;
mod depend;
mod dependence_order;
mod emit;
mod epilogue;
pub mod events;
pub mod group;
pub mod kernel;
mod memory;
mod recompute;
pub mod saved;
pub mod schedule;
mod turn;

use crate::targets::Target;
use check_ranks::RankError;
pub use claims::Claims;
use contents::ContentsError;
use events::Schedule;
use fnv::FnvHasher;
use kernel::Kernel;
pub use memory::{Life, lives};
use std::hash::Hasher;
use std::ops::Range;
use tpc_ir::program::{PlacedEnds, RankProgram, RankPrograms};
use tpc_ir::{Graph, text};

/// Options of lowering.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowerOptions {
    /// The number of bytes at which a bucket is full (25 MiB, as in PyTorch's `DistributedDataParallel`). With 0, no
    /// collectives are merged.
    pub bucket_bytes: usize,
    /// Whether collectives overlap with other work.
    pub overlap: bool,
    /// The number of following kernels that are considered as work that hides a collective. With 0, kernels keep their
    /// order.
    pub window: usize,
    /// Whether attention becomes one kernel. Otherwise its scores are in memory.
    pub attention: bool,
    /// Whether loops recompute values that are cheaper to compute than to keep.
    pub recompute: bool,
    /// Whether elementwise work after a product becomes a part of it.
    pub epilogues: bool,
    /// The greatest number of collectives in flight at once, over all groups. The threads of the runtime allow 64
    /// (`DEPTH` in `comm/world.rs`).
    pub in_flight: usize,
    /// The fraction by which overlap may enlarge the arena of a rank.
    pub memory_growth: f64,
    /// Bytes that the arena of a rank may have. Overlap may use all of them, and nothing more if they do not suffice.
    pub memory: Option<usize>,
    /// Whether buckets may be smaller if the program would otherwise exceed `memory`.
    pub split_buckets: bool,
}

impl Default for LowerOptions {
    fn default() -> Self {
        LowerOptions {
            bucket_bytes: 25 << 20,
            overlap: true,
            window: 32,
            attention: true,
            recompute: true,
            epilogues: true,
            in_flight: 32,
            memory_growth: 0.1,
            memory: None,
            split_buckets: true,
        }
    }
}

impl LowerOptions {
    /// Options under which every collective is separate and waited for immediately.
    pub fn plain() -> Self {
        LowerOptions { bucket_bytes: 0, overlap: false, ..LowerOptions::default() }
    }
}

/// A lowered program does not compute its placed program. This is a bug of the compiler, which is found before anything
/// runs.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// A rank does not compute the placed program.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// The programs of the ranks do not fit together.
    #[error(transparent)]
    Ranks(#[from] RankError),
}

/// The programs of all ranks of a placed graph. The target determines how much work hides a collective.
///
/// # Errors
/// A bug of the compiler.
pub fn lower(graph: &Graph, target: &Target) -> Result<Vec<RankProgram>, LowerError> {
    lower_with(graph, target, &LowerOptions::default())
}

/// [`lower`] with options.
///
/// # Errors
/// The same as those of [`lower`].
pub fn lower_with(graph: &Graph, target: &Target, options: &LowerOptions) -> Result<Vec<RankProgram>, LowerError> {
    lower_ranks(graph, &schedule(graph, target, options))
}

/// The programs of some consecutive ranks of a placed graph: those of a process. A session executes them in turn with
/// those of `others`, which are of the same ranks. Inputs that the programs share, mainly parameters and state, have the
/// same offsets, and no program overwrites what another keeps.
///
/// # Errors
/// The same as those of [`lower`].
pub fn lower_some(
    graph: &Graph,
    target: &Target,
    options: &LowerOptions,
    ranks: Range<usize>,
    others: &[&RankPrograms],
) -> Result<RankPrograms, LowerError> {
    let schedule = schedule(graph, target, options);
    let others = |rank: usize| others.iter().filter_map(|programs| programs.get(rank)).collect::<Vec<_>>();
    let lower = |rank| lower_rank_sharing_inputs(graph, &schedule, rank, &others(rank));
    let programs = ranks.clone().map(lower).collect::<Result<Vec<_>, _>>()?;
    if ranks == (0..graph.mesh.ranks()) {
        check_ranks::check_ranks(&programs)?;
        return Ok(programs.into());
    }
    check_ranks::check_some(&programs)?;
    let inputs = graph.inputs().map(|(node, _)| graph.node(node).types[0].clone()).collect();
    let outputs = graph.outputs.iter().map(|output| graph.ty(output.value).clone()).collect();
    Ok(RankPrograms::of_some(programs, PlacedEnds { inputs, outputs, source: source(graph, target, options) }))
}

/// A digest of everything that the programs of all ranks follow from.
fn source(graph: &Graph, target: &Target, options: &LowerOptions) -> u64 {
    let mut hasher = FnvHasher::default();
    for part in [text::print(graph), format!("{target:?}"), format!("{options:?}")] {
        hasher.write(part.as_bytes());
    }
    hasher.finish()
}

/// The programs of all ranks, given the schedule that they have in common.
///
/// # Errors
/// The same as those of [`lower`].
pub fn lower_ranks(graph: &Graph, schedule: &Schedule) -> Result<Vec<RankProgram>, LowerError> {
    let ranks = (0..graph.mesh.ranks()).map(|rank| lower_rank(graph, schedule, rank)).collect::<Result<Vec<_>, _>>()?;
    check_ranks::check_ranks(&ranks)?;
    Ok(ranks)
}

/// The schedule that all ranks have in common. If the program exceeds [`LowerOptions::memory`], smaller buckets are tried: the
/// operands of a bucket are in memory until the last of them is computed.
pub fn schedule(graph: &Graph, target: &Target, options: &LowerOptions) -> Schedule {
    let kernels = kernels(graph, options);
    let merged = |kernels, merging| {
        let kernels = bucket::buckets(graph, kernels, target, options, merging);
        schedule::schedule(graph, kernels, target, options)
    };
    let [usual, smaller @ ..] = bucket::Merging::ALL;
    let Some(limit) = options.memory.filter(|_| options.split_buckets) else { return merged(kernels, usual) };
    let mut best = merged(kernels.clone(), usual);
    let mut least = schedule::arena(graph, &best);
    for merging in smaller {
        if least <= limit {
            break;
        }
        let tried = merged(kernels.clone(), merging);
        let bytes = schedule::arena(graph, &tried);
        if bytes < least {
            (best, least) = (tried, bytes);
        }
    }
    best
}

/// The kernels of a program, each collective alone.
fn kernels(graph: &Graph, options: &LowerOptions) -> Vec<Kernel> {
    let mut kernels = group::kernels(graph, options.attention);
    if options.recompute {
        kernels = recompute::recompute(graph, kernels);
    }
    if options.epilogues {
        kernels = epilogue::join(graph, kernels);
    }
    kernels
}

/// The kernels of a program, as far as they do not depend on a target: elementwise operations in loops, attention, and
/// products with what follows them.
pub(crate) fn fused(graph: &Graph) -> Vec<Kernel> {
    epilogue::join(graph, group::kernels(graph, true))
}

/// The program of one rank, given the common schedule.
///
/// # Errors
/// The same as those of [`lower`], except faults between ranks, which are not checked.
pub fn lower_rank(graph: &Graph, schedule: &Schedule, rank: usize) -> Result<RankProgram, LowerError> {
    lower_rank_sharing_inputs(graph, schedule, rank, &[])
}

fn lower_rank_sharing_inputs(
    graph: &Graph,
    schedule: &Schedule,
    rank: usize,
    others: &[&RankProgram],
) -> Result<RankProgram, LowerError> {
    let (program, claims) = claimed_sharing_inputs(graph, schedule, rank, others);
    contents::check(graph, &program, &claims)?;
    Ok(program)
}

/// The unchecked program of one rank, and the claims that [`contents::check`] proves.
pub fn claimed(graph: &Graph, schedule: &Schedule, rank: usize) -> (RankProgram, Claims) {
    claimed_sharing_inputs(graph, schedule, rank, &[])
}

fn claimed_sharing_inputs(
    graph: &Graph,
    schedule: &Schedule,
    rank: usize,
    others: &[&RankProgram],
) -> (RankProgram, Claims) {
    let (mut program, claims) = emit::emit(graph, schedule, rank);
    memory::plan(&mut program, others);
    (program, claims)
}
