//! Claims: what each step of a rank program computes, in terms of the placed program.
//!
//! Lowering adds a claim for every step that it emits, and [`super::contents`] proves the claims from the steps and the
//! placed program alone. A claim names values, but not where they are stored, so the claims of a rank program that
//! reads the wrong memory, or reads it too early or too late, do not hold.

use super::kernel::LoopDim;
use petgraph::graph::NodeIndex;
use tpc_ir::Value;

/// The contents of a register or of a view of memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// The local tensor of a value.
    Value(Value),
    /// The sum of some products, which are terms of one sum.
    Terms(Vec<NodeIndex>),
    /// The largest score of each row of the attention that begins with a product.
    Max(NodeIndex),
    /// The sum of exponentials of each row of the attention that begins with a product.
    Sum(NodeIndex),
}

/// The content of a register of a body.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// The register.
    pub(super) register: usize,
    /// The content.
    pub(super) content: Content,
    /// For each dimension of the content, the dimension of the loop that it runs along.
    pub(super) along: Vec<LoopDim>,
}

/// The claim of a body.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    /// The contents of registers, in the order in which they are computed. A register may hold several equal values.
    pub(super) registers: Vec<Named>,
    /// The indices of stores, and the value that each writes.
    pub(super) stores: Vec<(usize, Value)>,
}

/// The claims of all steps of a rank program. Only lowering creates them.
#[derive(Clone, Debug, Default)]
pub struct Claims(pub(super) Vec<Claim>);

impl Claims {
    /// Removes the claim of a step that is removed from the program.
    pub fn remove(&mut self, step: usize) {
        self.0.remove(step);
    }

    /// Exchanges the claims of two steps that are exchanged in the program.
    pub fn swap(&mut self, a: usize, b: usize) {
        self.0.swap(a, b);
    }
}

/// The claim of a step.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// A loop.
    Loop(Body),
    /// The product of the last node, added to the sum of the others, which is stored where the result is written.
    Terms(Vec<NodeIndex>),
    /// A product and its epilogue.
    Product(NodeIndex, Body),
    /// An operation with its own kind of action.
    Operation(NodeIndex),
    /// The border of a padded value. The next step copies the operand into it.
    Border(NodeIndex),
    /// A copy of an operand, given by its index, to its position in a concatenation or in a padded value.
    Piece(NodeIndex, usize),
    /// A copy of a value to another view.
    Copy(Value),
    /// An attention, with the values that it reads and computes.
    Attention {
        /// The product of queries and keys.
        product: NodeIndex,
        /// Its operands, in the order of [`tpc_ir::attention::Attention::operands`].
        operands: Vec<Value>,
        /// All values that it reads.
        reads: Vec<Value>,
        /// Its results, in the order of [`tpc_ir::attention::Attention::results`].
        results: Vec<Value>,
    },
    /// The start of a collective of some nodes.
    Start(Vec<NodeIndex>),
    /// The wait for a collective.
    Wait,
}
