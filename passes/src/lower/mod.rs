//! From a placed graph to what each rank executes.
//!
//! 1. [`mod@attention`] is found, then [`group`]: loops that share an iteration space become one kernel (softmax, norms, losses and
//!    optimizer updates are found here), and kernels are ordered;
//! 2. `recompute`: loops recompute what is not worth keeping in memory;
//! 3. `epilogue`: elementwise work after a product becomes a part of it;
//! 4. `bucket`: collectives that are alike become one;
//! 5. [`mod@schedule`]: collectives start early and are waited for late;
//! 6. `emit`: for one rank, local shapes, strides and offsets;
//! 7. `memory`: buffers get places in one arena by their lives.
//!
//! Steps 1 to 5 look at global types only and are done once for all ranks. Two checks run on every program:
//! [`contents`] proves of one rank that its memory holds what the placed program says, step by step, and [`check_ranks`]
//! of all ranks that their collectives fit together.
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
pub mod group;
pub mod kernel;
pub mod launches;
mod memory;
mod recompute;
pub mod schedule;
mod turn;

use crate::targets::Target;
use check_ranks::RankError;
pub use claims::Claims;
use contents::ContentsError;
use launches::Schedule;
pub use memory::{Life, lives};
use tpc_ir::Graph;
use tpc_ir::program::RankProgram;

/// What bucketing and scheduling may cost and move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowerOptions {
    /// Bytes at which a bucket is full and starts (25 MiB, as PyTorch's `DistributedDataParallel`); 0
    /// puts nothing together.
    pub bucket_bytes: usize,
    /// Whether collectives travel while other work runs.
    pub overlap: bool,
    /// How many of the next kernels are looked at for work to do meanwhile; 0 keeps their order.
    pub window: usize,
    /// Whether attention is one kernel; otherwise its scores are in memory.
    pub attention: bool,
    /// Whether loops recompute what is cheaper to compute than to keep.
    pub recompute: bool,
    /// Whether elementwise work after a product is a part of it.
    pub epilogues: bool,
    /// Collectives that may be on their way at once, over all groups; the runtime's threads take 64
    /// (`DEPTH` in `comm/world.rs`).
    pub in_flight: usize,
    /// By which fraction overlap may make a rank's arena larger.
    pub memory_growth: f64,
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
        }
    }
}

impl LowerOptions {
    /// Every collective alone, waited for at once.
    pub fn plain() -> Self {
        LowerOptions { bucket_bytes: 0, overlap: false, ..LowerOptions::default() }
    }
}

/// A lowered program that does not compute its placed program: a bug of the compiler, found before anything runs.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// A rank does something else than the placed program says.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// The programs of the ranks do not fit together.
    #[error(transparent)]
    Ranks(#[from] RankError),
}

/// The programs of all ranks of a placed graph, for a target: what its operations cost says how much work hides a collective.
///
/// # Errors
/// A bug of the compiler.
pub fn lower(graph: &Graph, target: &Target) -> Result<Vec<RankProgram>, LowerError> {
    lower_with(graph, target, &LowerOptions::default())
}

/// [`lower`] with options.
///
/// # Errors
/// As [`lower`].
pub fn lower_with(graph: &Graph, target: &Target, options: &LowerOptions) -> Result<Vec<RankProgram>, LowerError> {
    lower_beside(graph, target, options, &[])
}

/// [`lower_with`] for a program that a session executes in turn with others, given by their ranks' programs: what they share, parameters
/// and state above all, lies at the same places, and none touches what another keeps.
///
/// # Errors
/// As [`lower`].
pub fn lower_beside(
    graph: &Graph,
    target: &Target,
    options: &LowerOptions,
    others: &[&[RankProgram]],
) -> Result<Vec<RankProgram>, LowerError> {
    let schedule = schedule(graph, target, options);
    let others = |rank: usize| others.iter().filter_map(|ranks| ranks.get(rank)).collect::<Vec<_>>();
    let lower = |rank| lower_rank_beside(graph, &schedule, rank, &others(rank));
    let ranks = (0..graph.mesh.ranks()).map(lower).collect::<Result<Vec<_>, _>>()?;
    check_ranks::check_ranks(&ranks)?;
    Ok(ranks)
}

/// The programs of all ranks, given what they have in common.
///
/// # Errors
/// As [`lower`].
pub fn lower_ranks(graph: &Graph, schedule: &Schedule) -> Result<Vec<RankProgram>, LowerError> {
    let ranks = (0..graph.mesh.ranks()).map(|rank| lower_rank(graph, schedule, rank)).collect::<Result<Vec<_>, _>>()?;
    check_ranks::check_ranks(&ranks)?;
    Ok(ranks)
}

/// What all ranks execute, in which order.
pub fn schedule(graph: &Graph, target: &Target, options: &LowerOptions) -> Schedule {
    let mut kernels = group::kernels(graph, options.attention);
    if options.recompute {
        kernels = recompute::recompute(graph, kernels);
    }
    if options.epilogues {
        kernels = epilogue::join(graph, kernels);
    }
    let kernels = bucket::buckets(graph, kernels, target, options);
    schedule::schedule(graph, kernels, target, options)
}

/// The program of one rank; the schedule is the same for all ranks.
///
/// # Errors
/// As [`lower`], but for how the ranks fit together.
pub fn lower_rank(graph: &Graph, schedule: &Schedule, rank: usize) -> Result<RankProgram, LowerError> {
    lower_rank_beside(graph, schedule, rank, &[])
}

fn lower_rank_beside(
    graph: &Graph,
    schedule: &Schedule,
    rank: usize,
    others: &[&RankProgram],
) -> Result<RankProgram, LowerError> {
    let (program, claims) = claimed_beside(graph, schedule, rank, others);
    contents::check(graph, &program, &claims)?;
    Ok(program)
}

/// The unchecked program of one rank, and what [`contents::check`] is to prove of it.
pub fn claimed(graph: &Graph, schedule: &Schedule, rank: usize) -> (RankProgram, Claims) {
    claimed_beside(graph, schedule, rank, &[])
}

fn claimed_beside(graph: &Graph, schedule: &Schedule, rank: usize, others: &[&RankProgram]) -> (RankProgram, Claims) {
    let (mut program, claims) = emit::emit(graph, schedule, rank);
    memory::plan(&mut program, others);
    (program, claims)
}
