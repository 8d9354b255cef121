//! Checks a placed program against the factor table alone.
//!
//! Shares nothing with the rewriting: the program must be well formed ([`verify`]), every node's result placement is
//! derived again from its operands' types, and every update must lie where its input lies.

use crate::rules::{Misplaced, place, place_redistribution, rule};
use petgraph::graph::NodeIndex;
use tpc_ir::verify::{VerifyError, verify};
use tpc_ir::{Graph, Op, OutputKind, Type};

/// What is wrong with a placed program.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The program is not well formed, whatever its placements.
    #[error(transparent)]
    Malformed(Box<VerifyError>),
    /// The operands cannot be combined where they lie.
    #[error(
        "%{node} {op} in `{module}`: {source}\n  operands: {operands}\n  result:   {result}\n  a redistribution is missing before it"
    )]
    Misplaced {
        /// Node number.
        node: usize,
        /// Operation.
        op: String,
        /// Module path.
        module: String,
        /// Operand types.
        operands: String,
        /// Declared result type.
        result: String,
        /// What is wrong.
        source: Misplaced,
    },
    /// The declared placement is not the one that follows.
    #[error("%{node} {op} in `{module}` is declared {declared}, but its operands give {derived}")]
    Declared {
        /// Node number.
        node: usize,
        /// Operation.
        op: String,
        /// Module path.
        module: String,
        /// The type in the program.
        declared: String,
        /// The type that follows.
        derived: String,
    },
    /// An output is partial, or an update lies elsewhere than its input.
    #[error("output {output} is {found}, expected {expected}")]
    Output {
        /// Which output.
        output: String,
        /// Its type.
        found: String,
        /// The type it must have.
        expected: String,
    },
}

/// Checks every node and output of a placed graph, its inputs' types included.
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

/// [`verify`] with the first of its errors.
///
/// # Errors
/// A program that is not well formed.
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
            module: node.origin.place(),
            operands: types.iter().map(|t| show(t)).collect::<Vec<_>>().join(", "),
            result: show(&node.types[0]),
            source,
        }),
        Ok(s) if s != node.types[0].sharding => Err(CheckError::Declared {
            node: id.index(),
            op: node.op.name(),
            module: node.origin.place(),
            declared: show(&node.types[0]),
            derived: show(&node.types[0].placed(s)),
        }),
        Ok(_) => Ok(()),
    }
}
