//! Emits rank programs as CUDA C and lists of launches: text only, no device is needed.
//!
//! | question | file |
//! |---|---|
//! | kernels without duplicates, and launches | `kernels` |
//! | the beginning of every kernel: types, conversions, functions, random numbers | `prelude.cuh` |
//! | merging, reordering and splitting dimensions into indices | `space` |
//! | splitting a fused loop into kernels | `fused` |
//! | nodes of loops as C | `body` |
//! | loops without sums, loops with sums, and loops that must keep their order | `pointwise`, `rows`, `ordered` |
//! | copies, rows of tables, prefix sums and the k largest elements | `copy`, `table`, `scan` |
//! | matrix products for a library, and other matrix products | `product`, `contract` |
//! | attention: its engines, its masks, its three kinds of kernels | `attention/` |
//! | collectives between ranks on one device, and between devices | `collective`, `wire` |

mod attention;
mod body;
mod collective;
mod contract;
mod copy;
mod fused;
mod kernels;
mod ordered;
mod part;
mod pointwise;
mod product;
mod rank;
mod rows;
mod scan;
mod space;
mod table;
mod wire;

pub(crate) use kernels::fnv;
pub use kernels::{Kernel, Kernels, Launch, PRELUDE};
pub use product::Product;
pub use wire::{Call, Wire};

use crate::error::RuntimeError;
use rank::Rank;
use tpc_ir::program::{Action, Collective, RankProgram};

/// One entry of the list that a rank's streams execute.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A kernel.
    Launch(Launch),
    /// A matrix product, in all the ways in which it can be computed.
    Product {
        /// The library's products, the best first: the product with its epilogue, then the product alone.
        library: Vec<Product>,
        /// The generated kernels, if the library refuses all of these.
        kernels: Vec<Launch>,
    },
    /// Starts a collective, by its index in the plan of the rank.
    Start(usize),
    /// Waits for a collective.
    Wait(usize),
}

/// A collective of one rank, and the offsets of its operands in the device allocation.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The collective.
    pub collective: Collective,
    /// Offset of this rank's contribution.
    pub from: i64,
    /// Offset of the result.
    pub to: i64,
    /// Kernels that compute it for the whole group, if all of its ranks are in the plan; launched once, by the member
    /// at position 0.
    pub local: Vec<Launch>,
    /// The calls to a library that communicates between devices.
    pub wire: Wire,
}

/// The actions of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct RankPlan {
    /// The rank's offset in the device allocation.
    pub base: usize,
    /// Bytes of its arena and scratch.
    pub bytes: usize,
    /// Bytes of the scratch alone, including the staging area of collectives.
    pub scratch_bytes: usize,
    /// `(step of the program, action)`, in order.
    pub items: Vec<(usize, Item)>,
    /// Its collectives, in program order.
    pub collectives: Vec<Placed>,
}

/// Programs of ranks that share a device, as kernels and lists of actions.
#[derive(Clone, Debug, Default)]
pub struct DevicePlan {
    /// All kernels.
    pub kernels: Kernels,
    /// The ranks, in the order given.
    pub ranks: Vec<RankPlan>,
    /// Bytes of the device allocation.
    pub bytes: usize,
}

/// Ranks begin at multiples of this in the allocation.
const ALIGN: usize = 1 << 12;

/// Plans the programs of the ranks that share a device. `kernels` are the kernels of other programs in the same module,
/// if any.
///
/// # Errors
/// An action that cannot be executed: views out of bounds, shapes that do not fit.
pub fn plan(programs: &[RankProgram], kernels: Kernels) -> Result<DevicePlan, RuntimeError> {
    plan_at(programs, kernels, &[])
}

/// Like [`plan`], with ranks at these offsets in the allocation; further ranks follow the last of these.
///
/// # Errors
/// The errors of [`plan`].
pub fn plan_at(programs: &[RankProgram], kernels: Kernels, bases: &[usize]) -> Result<DevicePlan, RuntimeError> {
    let mut plan = DevicePlan { kernels, ..DevicePlan::default() };
    for (at, program) in programs.iter().enumerate() {
        let base = bases.get(at).copied().unwrap_or(plan.bytes.next_multiple_of(ALIGN));
        let mut rank = Rank::new(program, base, &mut plan.kernels);
        let mut items = Vec::new();
        let mut collectives: Vec<Placed> = Vec::new();
        for (i, step) in program.steps.iter().enumerate() {
            let fail = |reason: String| RuntimeError::Load {
                rank: program.rank,
                step: i,
                label: step.label.to_string(),
                reason,
            };
            rank.free_scratch();
            let made = action(&mut rank, &step.action, &mut collectives).map_err(fail)?;
            items.extend(made.into_iter().map(|item| (i, item)));
        }
        let stage = rank.at(rank.bytes());
        let mut staging = 0;
        for placed in &mut collectives {
            let (wire, bytes) = wire::emit(&mut rank, &placed.collective, (placed.from, placed.to), stage)
                .map_err(RuntimeError::Launch)?;
            placed.wire = wire;
            staging = staging.max(bytes);
        }
        let bytes = rank.bytes() + staging;
        let scratch_bytes = bytes - program.arena_bytes.next_multiple_of(256);
        plan.bytes = base + bytes;
        plan.ranks.push(RankPlan { base, bytes, scratch_bytes, items, collectives });
    }
    local_collectives(&mut plan, programs);
    Ok(plan)
}

fn action(rank: &mut Rank<'_>, action: &Action, collectives: &mut Vec<Placed>) -> Result<Vec<Item>, String> {
    let launches = match action {
        Action::Loop(l) => fused::emit(rank, l)?,
        Action::Copy { from, to } => copy::emit(rank, from, to)?,
        Action::Take { table, index, out, first_row } => table::take(rank, table, index, out, *first_row)?,
        Action::ScatterAdd { index, update, out, first_row } => {
            table::scatter_add(rank, index, update, out, *first_row)?
        }
        Action::Put { table, index, rows, first_row } => table::put(rank, table, index, rows, *first_row)?,
        Action::CumSum { from, to, dim } => scan::cumsum(rank, from, to, *dim)?,
        Action::TopK { from, values, indices } => scan::top_k(rank, from, values, indices)?,
        Action::Contract(c) => {
            return Ok(product::emit(rank, c)?.into_iter().collect());
        }
        Action::Attention(a) => attention::emit(rank, a)?,
        Action::Start(c) => {
            let dense = |v: &tpc_ir::program::View| {
                if v.dtype != c.dtype || !v.is_dense() {
                    return Err(format!("{} takes dense {} views", c.name(), c.dtype));
                }
                rank.view(v)
            };
            let (from, to) = (dense(&c.from)?, dense(&c.to)?);
            let in_place = matches!(c.kind, tpc_ir::program::CollectiveKind::AllReduce(_)) && from == to;
            if from.overlaps(&to) && !in_place {
                return Err(format!("the result of {} overlaps its operand", c.name()));
            }
            if collectives.iter().any(|x| x.collective.tag == c.tag) {
                return Err(format!("tag #{} is used by two collectives", c.tag));
            }
            crate::comm::check(c)?;
            let (from, to) = (rank.at(from.base), rank.at(to.base));
            let (local, wire) = (Vec::new(), Wire::default());
            collectives.push(Placed { collective: (**c).clone(), from, to, local, wire });
            return Ok(vec![Item::Start(collectives.len() - 1)]);
        }
        Action::Wait { tag } => {
            let of_tag = collectives.iter().position(|c| c.collective.tag == *tag);
            let id = of_tag.ok_or_else(|| format!("no collective with tag #{tag} was started before"))?;
            return Ok(vec![Item::Wait(id)]);
        }
    };
    Ok(launches.into_iter().map(Item::Launch).collect())
}

/// Adds kernels for the collectives of groups whose ranks are all in the plan.
fn local_collectives(plan: &mut DevicePlan, programs: &[RankProgram]) {
    for r in 0..programs.len() {
        for i in 0..plan.ranks[r].collectives.len() {
            let placed = &plan.ranks[r].collectives[i];
            if placed.collective.position != 0 {
                continue;
            }
            let member = |rank: &usize| -> Option<&Placed> {
                let at = programs.iter().position(|p| p.rank == *rank)?;
                let same = |c: &&Placed| {
                    c.collective.tag == placed.collective.tag && c.collective.group == placed.collective.group
                };
                plan.ranks[at].collectives.iter().find(same)
            };
            let Some(members) = placed.collective.group.iter().map(member).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let places: Vec<(i64, i64)> = members.iter().map(|m| (m.from, m.to)).collect();
            let all: Vec<Collective> = members.iter().map(|m| m.collective.clone()).collect();
            let local = collective::emit(&mut plan.kernels, &all[0], &places, &all);
            plan.ranks[r].collectives[i].local = local;
        }
    }
}
