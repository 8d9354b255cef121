//! Checks that a placed program computes what its types say, and that what a plan demands holds of it.
//!
//! The check shares nothing with the passes that place values: neither the factor table nor the code that derives
//! placements from it. It has a description of its own of what every operation means (`meaning.rs`), from which it judges
//! whether the ranks, each with the parts or terms that it holds, compute the parts or terms that the declared types say
//! (`judge.rs`, `terms.rs`), and it follows the boxes that redistributions move (`moves.rs`). The tests of this module
//! execute operations on simulated ranks under every placement, and compare.
//!
//! Checked are: the form of the program ([`verify`]), every result of every operation, that every update is placed like
//! its input, that no output is partial, and the demands of the plan ([`obligations`]). Another proof,
//! [`denotes`](mod@crate::denotes), shows that the program without its redistributions is that of the model.

mod error;
mod flaw;
mod judge;
mod meaning;
mod moves;
pub mod obligations;
mod parts;
pub mod stored;
mod terms;

pub use error::CheckError;
pub use flaw::{Flaw, Moved};
pub use judge::judge;

use petgraph::graph::NodeIndex;
use rustc_hash::{FxHashMap, FxHasher};
use std::hash::{Hash, Hasher};
use tpc_ir::verify::{Malformed, VerifyError, verify};
use tpc_ir::{Graph, Op, OutputKind, Type};

/// What was found right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Operations, inputs included.
    pub operations: usize,
    /// Their results.
    pub results: usize,
    /// Those of the operations that only move a value.
    pub redistributions: usize,
    /// Outputs that are the next values of inputs, and lie like these.
    pub updates: usize,
    /// The other outputs.
    pub outputs: usize,
}

/// Checks every operation and output of a placed graph.
///
/// # Errors
/// The first violation.
pub fn check(graph: &Graph) -> Result<(), CheckError> {
    let Form { broken, misplaced } = Form::of(graph);
    broken.map_or(Ok(()), |e| Err(CheckError::Malformed(Box::new(e))))?;
    let mut known = Known::default();
    graph.nodes().try_for_each(|n| known.check_node(graph, n))?;
    outputs(graph).try_for_each(|checked| checked)?;
    misplaced.map_or(Ok(()), |e| Err(CheckError::Malformed(Box::new(e))))
}

/// Like [`check`], but goes on after a violation. Returns what is right, and all violations.
pub fn check_all(graph: &Graph) -> (Checked, Vec<CheckError>) {
    let Form { broken, misplaced } = Form::of(graph);
    if let Some(error) = broken {
        return (Checked::default(), vec![CheckError::Malformed(Box::new(error))]);
    }
    let (mut known, mut checked, mut errors) = (Known::default(), Checked::default(), Vec::new());
    for n in graph.nodes() {
        let node = graph.node(n);
        match known.check_node(graph, n) {
            Ok(()) => {
                checked.operations += 1;
                checked.results += node.types.len();
                checked.redistributions += usize::from(node.op.is_redistribution());
            }
            Err(error) => errors.push(error),
        }
    }
    for (output, found) in graph.outputs.iter().zip(outputs(graph)) {
        match (found, &output.kind) {
            (Err(error), _) => errors.push(error),
            (Ok(()), OutputKind::Update(_)) => checked.updates += 1,
            (Ok(()), _) => checked.outputs += 1,
        }
    }
    if let (Some(error), true) = (misplaced, errors.is_empty()) {
        errors.push(CheckError::Malformed(Box::new(error)));
    }
    (checked, errors)
}

/// Like [`verify`], but returns only the first error.
///
/// # Errors
/// The program is not well formed.
pub fn well_formed(graph: &Graph) -> Result<(), CheckError> {
    let first = |errors: Vec<VerifyError>| errors.into_iter().next().expect("a failed check has an error");
    verify(graph).map_err(|errors| CheckError::Malformed(Box::new(first(errors))))
}

/// The first faults in the form of a program: one that leaves its operations without a meaning, and one in the placements
/// of a redistribution, of which [`judge`] says more.
struct Form {
    broken: Option<VerifyError>,
    misplaced: Option<VerifyError>,
}

impl Form {
    fn of(graph: &Graph) -> Self {
        let of_placement = |e: &VerifyError| {
            matches!(
                e.fault,
                Malformed::NotPartial { .. }
                    | Malformed::NotInvariant(_)
                    | Malformed::NotMinorMost { .. }
                    | Malformed::OtherPartial { .. }
                    | Malformed::Placement { .. }
            )
        };
        let errors = verify(graph).err().unwrap_or_default();
        let (misplaced, broken): (Vec<_>, Vec<_>) = errors.into_iter().partition(of_placement);
        Form { broken: broken.into_iter().next(), misplaced: misplaced.into_iter().next() }
    }
}

/// Checks each output: an update is placed like its input, and nothing is partial.
fn outputs(graph: &Graph) -> impl Iterator<Item = Result<(), CheckError>> + '_ {
    let inputs = graph.inputs_by_id();
    graph.outputs.iter().map(move |output| {
        let ty = graph.ty(output.value);
        let input = match &output.kind {
            OutputKind::Update(id) => inputs.get(id).map(|&n| graph.node(n).types[0].clone()),
            _ => None,
        };
        let expected = input.unwrap_or_else(|| ty.placed(ty.sharding.reduced(ty.sharding.partial_axes())));
        if *ty == expected {
            return Ok(());
        }
        Err(CheckError::Output {
            output: format!("{:?}", output.kind),
            found: ty.display(&graph.mesh),
            expected: expected.display(&graph.mesh),
        })
    })
}

/// The operations of a graph that are known to be right, by their hash. Blocks of a model repeat, so most operations
/// equal an earlier one up to its operands, whose types alone matter.
#[derive(Default)]
struct Known {
    right: FxHashMap<u64, Vec<NodeIndex>>,
}

impl Known {
    fn check_node(&mut self, graph: &Graph, id: NodeIndex) -> Result<(), CheckError> {
        let node = graph.node(id);
        if matches!(node.op, Op::Input { .. }) {
            return Ok(());
        }
        let types = operand_types(graph, id);
        let mut hasher = FxHasher::default();
        (&node.op, &types, &node.types).hash(&mut hasher);
        let alike = self.right.entry(hasher.finish()).or_default();
        let same = |&other: &NodeIndex| {
            let n = graph.node(other);
            n.op == node.op && n.types == node.types && operand_types(graph, other) == types
        };
        if alike.iter().any(same) {
            return Ok(());
        }
        judge(&node.op, &types, &node.types, &graph.mesh).map_err(|flaw| CheckError::of(graph, id, flaw))?;
        alike.push(id);
        Ok(())
    }
}

fn operand_types(graph: &Graph, id: NodeIndex) -> Vec<&Type> {
    graph.operands(id).into_iter().map(|v| graph.ty(v)).collect()
}
