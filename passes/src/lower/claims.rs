//! What every step of a rank program is said to do, in terms of the placed program.
//!
//! Lowering writes a claim beside every step that it emits; [`super::contents`] proves the claims from the steps and the
//! placed program alone. A claim names values and never where they lie: a rank program that reads the wrong memory,
//! too early or too late, has claims that do not hold.

use super::kernel::LoopDim;
use petgraph::graph::NodeIndex;
use tpc_ir::Value;

/// What a register or a piece of memory holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// A rank's part of a value.
    Value(Value),
    /// The sum of these products, which are terms of one sum.
    Terms(Vec<NodeIndex>),
    /// The largest score of each row of the attention that begins with this product.
    Max(NodeIndex),
    /// The sum of exponentials of each row of that attention.
    Sum(NodeIndex),
}

/// What a register of a body holds.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// The register.
    pub(super) register: usize,
    /// What it holds.
    pub(super) content: Content,
    /// The dimension of the loop that each dimension of the content runs along.
    pub(super) along: Vec<LoopDim>,
}

/// What a body does.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    /// Its registers, in the order in which they are made. A register may hold several values that are the same.
    pub(super) registers: Vec<Named>,
    /// Its stores, by their index, and the value that each writes.
    pub(super) stores: Vec<(usize, Value)>,
}

/// What each step of a rank program is said to do. Only lowering makes them.
#[derive(Clone, Debug, Default)]
pub struct Claims(pub(super) Vec<Claim>);

impl Claims {
    /// Takes away the claim of a step that is taken out of the program.
    pub fn remove(&mut self, step: usize) {
        self.0.remove(step);
    }

    /// Exchanges the claims of two steps that are exchanged in the program.
    pub fn swap(&mut self, a: usize, b: usize) {
        self.0.swap(a, b);
    }
}

/// What a step does.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// A loop.
    Loop(Body),
    /// A product of the last of these nodes, added to the sum of the others, which lies where it is written.
    Terms(Vec<NodeIndex>),
    /// A product and its epilogue.
    Product(NodeIndex, Body),
    /// An operation that has an action of its own.
    Operation(NodeIndex),
    /// The border of a padded value, which its operand is copied into next.
    Border(NodeIndex),
    /// An operand of a concatenation or of a padded value, at its place.
    Piece(NodeIndex, usize),
    /// A value at another place.
    Copy(Value),
    /// Attention that begins with this product, the values that it reads and those that it makes.
    Attention {
        /// The product of queries and keys.
        product: NodeIndex,
        /// Its operands, in the order of [`tpc_ir::attention::Attention::operands`].
        operands: Vec<Value>,
        /// All values that it reads.
        reads: Vec<Value>,
        /// What it makes, in the order of [`tpc_ir::attention::Attention::results`].
        results: Vec<Value>,
    },
    /// The start of a collective of these nodes.
    Start(Vec<NodeIndex>),
    /// The wait for a collective.
    Wait,
}
