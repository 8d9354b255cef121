//! What the planner may not do, so that one can ask what a program would cost without it.
//!
//! A prohibition concerns one value, wherever it lies, and all values that are placed like it. The costs make every move
//! infinite that breaks it, so no solution of the cost network does, and the bound is one on all programs without it.
//!
//! Before: `%40 = all_reduce tp sum %39`. With [`Ban::Collective`] of an all-reduce over `tp` for `%39`:
//! `%40 = reduce_scatter tp sum dim=1 %39`, or products that leave no partial sum.

use crate::redistribute::steps;
use rustc_hash::FxHashMap;
use tpc_ir::program::CollectiveOp;
use tpc_ir::{AxisSet, Op, Sharding, Value};

/// What is not to happen to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ban {
    /// A collective of this kind over one of the axes brings it elsewhere.
    Collective(CollectiveOp, AxisSet),
    /// Any collective over one of the axes brings it elsewhere.
    Communication(AxisSet),
    /// It is computed, kept or read at this placement.
    Placement(Sharding),
}

/// What is not to happen to a value of a placed graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The value, before or after redistributions.
    pub value: Value,
    /// What is not to happen to it.
    pub ban: Ban,
}

/// The kind of a collective; none of another operation.
pub fn kind(op: &Op) -> Option<CollectiveOp> {
    match op {
        Op::AllReduce { .. } => Some(CollectiveOp::AllReduce),
        Op::AllGather { .. } => Some(CollectiveOp::AllGather),
        Op::ReduceScatter { .. } => Some(CollectiveOp::ReduceScatter),
        Op::AllToAll { .. } => Some(CollectiveOp::AllToAll),
        _ => None,
    }
}

impl Ban {
    /// Whether bringing a value from one placement to another breaks it.
    fn bars(&self, from: &Sharding, to: &Sharding) -> bool {
        let over = |op: &Op, axes: AxisSet| !op.axes().intersection(axes).is_empty();
        // No redistribution makes a term of one reduction a term of another; the costs say so.
        let is_possible = from.partial.is_none_or(|before| to.partial.is_none_or(|after| before.op == after.op));
        match self {
            Ban::Placement(at) => from == at || to == at,
            _ if from == to || !is_possible => false,
            Ban::Collective(banned, axes) => {
                steps(from, to).iter().any(|op| kind(op) == Some(*banned) && over(op, *axes))
            }
            Ban::Communication(axes) => steps(from, to).iter().any(|op| op.is_collective() && over(op, *axes)),
        }
    }
}

/// The prohibitions by the index of a value, for the values that others are placed like.
#[derive(Debug, Default)]
pub struct Bans(FxHashMap<usize, Vec<Ban>>);

impl Bans {
    /// Adds one, unless it is there already.
    pub fn add(&mut self, value: usize, ban: Ban) {
        let all = self.0.entry(value).or_default();
        if !all.contains(&ban) {
            all.push(ban);
        }
    }

    /// Whether bringing a value from one placement to another breaks one of them. The value is one that others are placed
    /// like.
    pub fn bar(&self, value: usize, from: &Sharding, to: &Sharding) -> bool {
        self.0.get(&value).is_some_and(|bans| bans.iter().any(|ban| ban.bars(from, to)))
    }

    /// Whether there are some for a value that others are placed like.
    pub fn concern(&self, value: usize) -> bool {
        self.0.contains_key(&value)
    }
}
