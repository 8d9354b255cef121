//! Faults of a placed program, and where they are.

use super::flaw::{Flaw, Moved};
use petgraph::graph::NodeIndex;
use tpc_ir::verify::VerifyError;
use tpc_ir::{Graph, Type, text};

/// A fault of a placed program.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The program is not well formed, regardless of its placements.
    #[error(transparent)]
    Malformed(Box<VerifyError>),
    /// The operands cannot be combined as they are placed.
    #[error(
        "%{node} {op} in `{module}`: {source}\n  operands: {operands}\n  result:   {result}\n  a redistribution is missing before it"
    )]
    Misplaced {
        /// The number of the node.
        node: usize,
        /// The operation.
        op: String,
        /// The module.
        module: String,
        /// The types of the operands.
        operands: String,
        /// The declared types of the results.
        result: String,
        /// The fault.
        source: Box<Flaw>,
    },
    /// A redistribution does not give the value that its type says.
    #[error("%{node} {op} in `{module}`: {source}\n  operand: {operand}\n  result:  {result}")]
    Moved {
        /// The number of the node.
        node: usize,
        /// The operation.
        op: String,
        /// The module.
        module: String,
        /// The type of the operand.
        operand: String,
        /// The declared type of the result.
        result: String,
        /// The fault.
        source: Box<Moved>,
    },
    /// The declared placement of a result is not the one that follows from the operands.
    #[error("%{node} {op} in `{module}` is declared as {declared}, but its operands imply {derived}")]
    Declared {
        /// The number of the node.
        node: usize,
        /// The operation.
        op: String,
        /// The module.
        module: String,
        /// The type in the program.
        declared: String,
        /// The type that follows from the operands.
        derived: String,
    },
    /// An output is partial, or an update is not placed like its input.
    #[error("output {output} is {found}, expected {expected}")]
    Output {
        /// The output.
        output: String,
        /// Its type.
        found: String,
        /// The type it must have.
        expected: String,
    },
    /// A tensor is not placed as the plan demands.
    #[error("{tensor} in `{module}` is placed as {found}, but {why} demands {demanded}")]
    Annotation {
        /// The input, output or value.
        tensor: String,
        /// The module.
        module: String,
        /// The plan entry.
        why: String,
        /// The type in the program.
        found: String,
        /// A type that the plan allows.
        demanded: String,
    },
    /// A tensor that a plan places is not in the program.
    #[error("{tensor} is not in the program, but {why} places it")]
    Lost {
        /// The input, output or value.
        tensor: String,
        /// The plan entry.
        why: String,
    },
    /// The program is for another mesh than the plan.
    #[error("the program is for {found}, but its plan for {expected}")]
    Mesh {
        /// The mesh of the program.
        found: String,
        /// The mesh of the plan.
        expected: String,
    },
}

impl CheckError {
    /// The error of a node of a graph.
    pub(super) fn of(graph: &Graph, id: NodeIndex, flaw: Flaw) -> Self {
        let node = graph.node(id);
        let shown = |types: Vec<&Type>| types.iter().map(|t| t.display(&graph.mesh)).collect::<Vec<_>>().join(", ");
        let number = text::number(graph).get(&id).copied().unwrap_or(id.index());
        let (op, module) = (node.op.name(), node.origin.location());
        let operands = || shown(graph.operands(id).into_iter().map(|v| graph.ty(v)).collect());
        let results = || shown(node.types.iter().collect());
        match flaw {
            Flaw::Moved(moved) => CheckError::Moved {
                node: number,
                op,
                module,
                operand: operands(),
                result: results(),
                source: Box::new(moved),
            },
            Flaw::Declared { declared, implied, .. } => {
                CheckError::Declared { node: number, op, module, declared, derived: implied }
            }
            source => CheckError::Misplaced {
                node: number,
                op,
                module,
                operands: operands(),
                result: results(),
                source: Box::new(source),
            },
        }
    }
}
