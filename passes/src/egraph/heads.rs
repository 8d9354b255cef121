//! Kinds of operations, as far as rules tell them apart: rules are dispatched on the kind of a term.

use tpc_ir::{MapFn, Op};

/// A set of kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads(u16);

impl Heads {
    /// How many kinds there are.
    pub const COUNT: usize = 15;

    /// No kind.
    pub const NONE: Heads = Heads(0);
    /// Functions of corresponding elements, except casts and transposes.
    pub const ELEMENTWISE: Heads = Heads(1);
    /// Casts.
    pub const CAST: Heads = Heads(1 << 1);
    /// Transposes and broadcasts.
    pub const TRANSPOSE: Heads = Heads(1 << 2);
    /// Products that sum over an index.
    pub const EINSUM: Heads = Heads(1 << 3);
    /// Reductions of dimensions.
    pub const REDUCE: Heads = Heads(1 << 4);
    /// Sums of rows by their index.
    pub const SCATTER_ADD: Heads = Heads(1 << 5);
    /// Rows of a table.
    pub const TAKE: Heads = Heads(1 << 6);
    /// Other operations that compute.
    pub const OTHER: Heads = Heads(1 << 7);
    /// Inputs of the program.
    pub const INPUT: Heads = Heads(1 << 8);
    /// All-reduces.
    pub const ALL_REDUCE: Heads = Heads(1 << 9);
    /// All-gathers.
    pub const ALL_GATHER: Heads = Heads(1 << 10);
    /// Reduce-scatters.
    pub const REDUCE_SCATTER: Heads = Heads(1 << 11);
    /// All-to-alls.
    pub const ALL_TO_ALL: Heads = Heads(1 << 12);
    /// Slices of what all ranks hold.
    pub const SHARD_SLICE: Heads = Heads(1 << 13);
    /// Values that become one of several terms.
    pub const TO_PARTIAL: Heads = Heads(1 << 14);

    /// Operations that compute.
    pub const COMPUTES: Heads = Heads((1 << 8) - 1);
    /// Operations that communicate.
    pub const COLLECTIVES: Heads =
        Heads::ALL_REDUCE.or(Heads::ALL_GATHER).or(Heads::REDUCE_SCATTER).or(Heads::ALL_TO_ALL);
    /// Redistributions.
    pub const MOVES: Heads = Heads::COLLECTIVES.or(Heads::SHARD_SLICE).or(Heads::TO_PARTIAL);
    /// All kinds.
    pub const ANY: Heads = Heads::COMPUTES.or(Heads::INPUT).or(Heads::MOVES);

    /// The kind of an operation.
    pub fn of(op: &Op) -> Self {
        match op {
            Op::Map { f: MapFn::Cast(_), .. } => Heads::CAST,
            Op::Map { f: MapFn::Identity, .. } => Heads::TRANSPOSE,
            Op::Map { .. } => Heads::ELEMENTWISE,
            Op::Einsum { .. } => Heads::EINSUM,
            Op::Reduce { .. } => Heads::REDUCE,
            Op::ScatterAdd => Heads::SCATTER_ADD,
            Op::Take => Heads::TAKE,
            Op::Input { .. } => Heads::INPUT,
            Op::AllReduce { .. } => Heads::ALL_REDUCE,
            Op::AllGather { .. } => Heads::ALL_GATHER,
            Op::ReduceScatter { .. } => Heads::REDUCE_SCATTER,
            Op::AllToAll { .. } => Heads::ALL_TO_ALL,
            Op::ShardSlice { .. } => Heads::SHARD_SLICE,
            Op::ToPartial { .. } => Heads::TO_PARTIAL,
            _ => Heads::OTHER,
        }
    }

    /// The kinds of both sets.
    #[must_use]
    pub const fn or(self, other: Heads) -> Self {
        Heads(self.0 | other.0)
    }

    /// The kinds that the sets have in common.
    #[must_use]
    pub const fn common(self, other: Heads) -> Self {
        Heads(self.0 & other.0)
    }

    /// Whether the sets have a kind in common.
    pub const fn meets(self, other: Heads) -> bool {
        self.0 & other.0 != 0
    }

    /// The number of the first kind of the set, below [`Heads::COUNT`].
    pub const fn index(self) -> usize {
        self.0.trailing_zeros() as usize
    }

    /// The kinds, each as a set of its own.
    pub fn each() -> impl Iterator<Item = Heads> {
        (0..Heads::COUNT).map(|i| Heads(1 << i))
    }
}
