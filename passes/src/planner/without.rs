//! The best program that keeps to some prohibitions, which answers what they forbid is worth.

use super::costs::{Costs, Weights};
use super::emit::emit;
use super::forbidden::{Bans, Forbidden};
use super::logical::{Logical, ValueId};
use super::{PlannerReport, ROUNDS, chosen, regathered, seconds};
use crate::check::check;
use crate::denotes::denotes;
use crate::reasons::explain;
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use tpc_ir::{Graph, Value};

/// What the planner found under prohibitions.
#[derive(Debug)]
pub enum Without {
    /// A program that keeps to them.
    Found {
        /// The program, which both proofs ([`check`], [`denotes`]) hold of.
        graph: Box<Graph>,
        /// How it was found.
        report: PlannerReport,
        /// The values of the program that the prohibitions concern, where they are computed.
        values: Vec<Value>,
        /// The collectives of the program that bring them elsewhere.
        collectives: Vec<NodeIndex>,
    },
    /// No choice of placements keeps to them.
    Impossible,
    /// The search found none.
    NotFound,
}

/// Plans a placed graph along all its axes, also to a program that costs more than the graph, so that it keeps to some
/// prohibitions. With none the result is what the planner finds best.
pub fn plan_without(graph: &Graph, target: &Target, weights: Weights, forbidden: &[Forbidden]) -> Without {
    let logical = Logical::of(graph);
    let costs = Costs::new(target, &logical, weights, bans(&logical, forbidden));
    let before = costs.program();
    let mut report = PlannerReport { before, after: before, ..PlannerReport::default() };
    let choice = chosen(&logical, &costs, ROUNDS, true, &mut report);
    match report.steps.last() {
        Some(_) if report.bound == Some(f64::INFINITY) => return Without::Impossible,
        Some(last) if !last.seconds.is_finite() => return Without::NotFound,
        _ => {}
    }
    let Some(mut planned) = emit(&logical, &choice) else { return Without::NotFound };
    explain(&mut planned);
    if check(&planned).is_err() || denotes(&planned, graph).is_err() {
        return Without::NotFound;
    }
    (report.after, report.taken) = (seconds(&planned, target), true);
    report.regathered = regathered(&logical, &choice);
    let (values, collectives) = concerned(&logical, &costs, &planned);
    Without::Found { graph: planned.into(), report, values, collectives }
}

/// The prohibitions by the values of a program that others are placed like.
fn bans(logical: &Logical, forbidden: &[Forbidden]) -> Bans {
    let of: FxHashMap<Value, ValueId> = logical.values.iter().enumerate().map(|(v, value)| (value.source, v)).collect();
    let mut bans = Bans::default();
    for Forbidden { value, ban } in forbidden {
        if let Some(&value) = of.get(&source(logical, *value)) {
            bans.add(logical.like(value), ban.clone());
        }
    }
    bans
}

/// A value before it was redistributed.
fn source(logical: &Logical, value: Value) -> Value {
    match logical.graph.op(value).is_redistribution() {
        true => source(logical, logical.graph.operands(value.node)[0]),
        false => value,
    }
}

/// The values of a planned program that prohibitions concern, and the collectives that bring them elsewhere. The planned
/// program has the operations of the logical one in its order, apart from constants, which it makes where they are read.
fn concerned(logical: &Logical, costs: &Costs, planned: &Graph) -> (Vec<Value>, Vec<NodeIndex>) {
    let after = Logical::of(planned);
    let made = |of: &Logical| -> Vec<(usize, usize)> {
        let operations = of.operations.iter().enumerate().filter(|(_, operation)| !of.is_constant(operation));
        operations.flat_map(|(o, operation)| (0..operation.results.len()).map(move |result| (o, result))).collect()
    };
    let concerned: Vec<ValueId> = made(logical)
        .into_iter()
        .zip(made(&after))
        .filter(|&((o, result), _)| costs.bars_some(logical.like(logical.operations[o].results[result])))
        .map(|(_, (o, result))| after.operations[o].results[result])
        .collect();
    let moves = after
        .moves
        .iter()
        .filter(|&&(node, value)| concerned.contains(&value) && planned.node(node).op.is_collective());
    let values = concerned.iter().map(|&value| after.values[value].source).collect();
    (values, moves.map(|&(node, _)| node).collect())
}
