//! Checks a placed program against the factor table alone.
//!
//! The check shares nothing with the rewriting. The program must be well formed ([`verify`]), the placement of every
//! result must be the one that follows from the types of the operands, and every update must be placed like its input.

use crate::rules::{Misplaced, place, place_redistribution, rule};
use petgraph::graph::NodeIndex;
use tpc_ir::verify::{VerifyError, verify};
use tpc_ir::{Graph, Op, OutputKind, Type};

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
        /// The declared type of the result.
        result: String,
        /// The fault.
        source: Misplaced,
    },
    /// The declared placement is not the one that follows from the operands.
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
}

/// Checks every node and output of a placed graph, including the types of the inputs.
///
/// # Errors
/// The first violation.
pub fn check(graph: &Graph) -> Result<(), CheckError> {
    well_formed(graph)?;
    graph.nodes().try_for_each(|n| check_node(graph, n))?;
    let inputs = graph.inputs_by_id();
    for output in &graph.outputs {
        let ty = graph.ty(output.value);
        let expected = match &output.kind {
            OutputKind::Update(id) => inputs.get(id).map(|&n| graph.node(n).types[0].clone()),
            _ => None,
        };
        let expected = expected.unwrap_or_else(|| ty.placed(ty.sharding.reduced(ty.sharding.partial_axes())));
        if *ty != expected {
            return Err(CheckError::Output {
                output: format!("{:?}", output.kind),
                found: ty.display(&graph.mesh),
                expected: expected.display(&graph.mesh),
            });
        }
    }
    Ok(())
}

/// Like [`verify`], but returns only the first error.
///
/// # Errors
/// The program is not well formed.
pub fn well_formed(graph: &Graph) -> Result<(), CheckError> {
    let first = |errors: Vec<VerifyError>| errors.into_iter().next().expect("a failed check has an error");
    verify(graph).map_err(|errors| CheckError::Malformed(Box::new(first(errors))))
}

fn check_node(graph: &Graph, id: NodeIndex) -> Result<(), CheckError> {
    let node = graph.node(id);
    let operands = graph.operands(id);
    let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
    if matches!(node.op, Op::Input { .. }) {
        return Ok(());
    }
    let derived = if node.op.is_redistribution() {
        place_redistribution(&node.op, types[0])
    } else {
        let rule = rule(&node.op, &types, &node.types.iter().collect::<Vec<_>>());
        place(&rule, &types, Some(&node.types[0].sharding))
    };
    let show = |t: &Type| t.display(&graph.mesh);
    match derived {
        Err(source) => Err(CheckError::Misplaced {
            node: id.index(),
            op: node.op.name(),
            module: node.origin.location(),
            operands: types.iter().map(|t| show(t)).collect::<Vec<_>>().join(", "),
            result: show(&node.types[0]),
            source,
        }),
        Ok(s) if s != node.types[0].sharding => Err(CheckError::Declared {
            node: id.index(),
            op: node.op.name(),
            module: node.origin.location(),
            declared: show(&node.types[0]),
            derived: show(&node.types[0].placed(s)),
        }),
        Ok(_) => Ok(()),
    }
}
