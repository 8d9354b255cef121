//! What the best program costs that does not have a collective, or does not have a value where it lies.
//!
//! The planner searches all placements of the values inside the program, from the placed program on, with what is asked
//! about ruled out in all modules of the subject at once. Inputs and results stay where they are. The rules of the e-graph
//! are not applied to what it finds, since they could put back what was ruled out; so the program is an upper bound on what
//! there is.

use super::{Explainer, Subject};
use crate::budget::{BudgetError, Taken, within};
use crate::error::Error;
use crate::place::shares;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use tpc_ir::program::{CollectiveOp, RankProgram, wire_bytes};
use tpc_ir::reason::Cause;
use tpc_ir::text::operation;
use tpc_ir::{Graph, InputId, Op, Value};
use tpc_passes::cost;
use tpc_passes::lower::{lower_rank, schedule};
use tpc_passes::planner::{self, Ban, Forbidden, Weights, Without, kind, plan_without};
use tpc_passes::reshard::reshard_after_forward;
use tpc_passes::simulate::simulate;
use tpc_passes::targets::Target;

/// What the planner says of a program that it found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proof {
    /// Seconds of the solution, nothing overlapped.
    pub seconds: f64,
    /// No program that keeps to the same prohibitions takes fewer; none with more axes than are planned together.
    pub bound: Option<f64>,
}

/// What a program costs the first rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Program {
    /// Duration of the simulated step in seconds.
    pub seconds: f64,
    /// Seconds by the cost model, nothing overlapped.
    pub model: f64,
    /// Bytes that the rank sends.
    pub sent: f64,
    /// Bytes of its arena.
    pub arena_bytes: usize,
    /// What the planner says of it, if the planner found it by time alone.
    pub proof: Option<Proof>,
}

impl Program {
    pub(super) fn of(graph: &Graph, rank: &RankProgram, target: &Target) -> Self {
        let timeline = simulate(rank, target);
        Program {
            seconds: timeline.seconds,
            model: planner::seconds(graph, target),
            sent: timeline.sent,
            arena_bytes: rank.arena_bytes,
            proof: None,
        }
    }
}

/// What a program is without.
#[derive(Clone, Debug, PartialEq)]
pub enum Barred {
    /// This kind of collective over these axes for the value.
    Collective(CollectiveOp, String),
    /// Any collective over these axes for the value.
    Communication(String),
    /// The value at this type.
    Placement(String),
    /// The second gather of a parameter, which is kept instead.
    SecondGather,
}

impl fmt::Display for Barred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Barred::Collective(op, axes) => write!(f, "without {} of it over {axes}", op.name()),
            Barred::Communication(axes) => write!(f, "without collectives of it over {axes}"),
            Barred::Placement(ty) => write!(f, "without it at {ty}"),
            Barred::SecondGather => f.write_str("gathered once and kept"),
        }
    }
}

/// What there is without a subject.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// A program.
    Program {
        /// What it costs.
        program: Program,
        /// The collectives that it has for the values instead, with their number.
        collectives: Vec<(String, usize)>,
        /// The types at which it computes the values.
        types: Vec<String>,
    },
    /// No choice of placements inside the program goes without it.
    Impossible,
    /// No program was found that goes without it, or none that fits into the memory that the program may take.
    Nothing,
}

/// What there is without a subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// What is ruled out.
    pub barred: Barred,
    /// What was found.
    pub found: Found,
}

/// The bytes of the whole value that a collective carries.
pub(super) fn full_bytes(graph: &Graph, collective: Value) -> usize {
    let operand = graph.operands(collective.node)[0];
    cost::full_bytes(graph.op(collective), graph.ty(operand), graph.ty(collective), &graph.mesh)
}

/// The bytes that a rank sends in a collective.
pub(super) fn sent(graph: &Graph, collective: Value) -> f64 {
    let op = graph.op(collective);
    wire_bytes(&op.name(), full_bytes(graph, collective), graph.mesh.group_size(op.axes()))
}

/// The cheapest program that the planner finds if nothing is forbidden, or the program itself.
pub(super) fn best(why: &Explainer) -> Result<Option<Program>, Error> {
    let found = planned(why, &[], &HashSet::new())?;
    Ok(match found {
        Found::Program { program, .. } => Some(program),
        Found::Impossible | Found::Nothing => None,
    })
}

pub(super) fn alternatives(why: &Explainer, subject: &Subject) -> Result<Vec<Alternative>, Error> {
    let graph = &why.graph;
    let (first, axes) = (graph.node(subject.values[0].node), graph.op(subject.values[0]).axes());
    let names = axes.iter().map(|axis| graph.mesh.name(axis)).collect::<Vec<_>>().join(",");
    let all = |ban: Ban| -> Vec<Forbidden> {
        subject.values.iter().map(|&value| Forbidden { value, ban: ban.clone() }).collect()
    };
    let none = HashSet::new();
    let mut asked = Vec::new();
    match kind(&first.op) {
        Some(_) if first.origin.reason.causes().contains(&Cause::SecondGather) => {
            let inputs: HashSet<InputId> = subject.values.iter().filter_map(|&value| input(graph, value)).collect();
            asked.push((Barred::SecondGather, planned(why, &[], &inputs)?));
            let banned = all(Ban::Communication(axes));
            asked.push((Barred::Communication(names), planned(why, &banned, &none)?));
        }
        Some(op) => {
            let found = planned(why, &all(Ban::Collective(op, axes)), &none)?;
            // A program that has no other collective of the value either is the answer to both questions.
            let has_another = !matches!(&found, Found::Program { collectives, .. } if collectives.is_empty());
            asked.push((Barred::Collective(op, names.clone()), found));
            if has_another {
                let banned = all(Ban::Communication(axes));
                asked.push((Barred::Communication(names), planned(why, &banned, &none)?));
            }
        }
        None => {
            let ty = graph.ty(subject.values[0]);
            let banned = all(Ban::Placement(ty.sharding.clone()));
            asked.push((Barred::Placement(ty.display(&graph.mesh)), planned(why, &banned, &none)?));
        }
    }
    Ok(asked.into_iter().map(|(barred, found)| Alternative { barred, found }).collect())
}

/// The input that a value was before redistributions and conversions.
fn input(graph: &Graph, value: Value) -> Option<InputId> {
    match graph.op(value) {
        Op::Input { id, .. } => Some(id.clone()),
        op if op.is_redistribution() || matches!(op, Op::Map { .. }) => {
            input(graph, graph.operands(value.node).first().copied()?)
        }
        _ => None,
    }
}

/// The fastest program that keeps to prohibitions, by a simulation of the first rank, for any of the planner's weights.
/// Parameters of `kept` are not gathered a second time.
fn planned(why: &Explainer, forbidden: &[Forbidden], kept: &HashSet<InputId>) -> Result<Found, Error> {
    let limit = why.options.lower.memory.unwrap_or(usize::MAX);
    let mut best: Option<(f64, Found)> = None;
    let mut impossible = false;
    for &hidden in shares(&why.options) {
        let sized = |byte| {
            let found = program(why, Weights { byte, hidden }, forbidden, kept)?;
            let taken = match &found {
                Found::Program { program, .. } => Taken { bytes: program.arena_bytes, seconds: program.seconds },
                Found::Impossible | Found::Nothing => Taken { bytes: 0, seconds: f64::INFINITY },
            };
            Ok::<_, Error>((found, taken))
        };
        let found = within(limit, sized).map(|(found, _)| found);
        match found {
            Ok(found @ Found::Program { program: Program { seconds, .. }, .. }) => {
                if best.as_ref().is_none_or(|(known, _)| seconds < *known) {
                    best = Some((seconds, found));
                }
            }
            Ok(Found::Impossible) => impossible = true,
            Ok(Found::Nothing) | Err(Error::Budget(BudgetError { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(match best {
        Some((_, found)) => found,
        None if impossible => Found::Impossible,
        None => Found::Nothing,
    })
}

/// What the planner finds for some weights.
fn program(
    why: &Explainer,
    weights: Weights,
    forbidden: &[Forbidden],
    kept: &HashSet<InputId>,
) -> Result<Found, Error> {
    let options = &why.options;
    let (graph, report, values, collectives) = match plan_without(&why.graph, &options.target, weights, forbidden) {
        Without::Found { graph, report, values, collectives } => (graph, report, values, collectives),
        Without::Impossible => return Ok(Found::Impossible),
        Without::NotFound => return Ok(Found::Nothing),
    };
    let mut instead: BTreeMap<String, usize> = BTreeMap::new();
    for node in collectives {
        *instead.entry(operation(graph.node(node), &graph.mesh)).or_default() += 1;
    }
    let types: BTreeSet<String> = values.into_iter().map(|v| graph.ty(v).display(&graph.mesh)).collect();
    let regathered = report.regathered.iter().filter(|_| weights.byte > 0.0);
    let gathered = why.gathered.iter().chain(regathered).filter(|id| !kept.contains(id)).collect();
    let graph = reshard_after_forward(&graph, &gathered);
    let scheduled = schedule(&graph, &options.target, &options.lower);
    let rank = lower_rank(&graph, &scheduled, 0)?;
    let mut program = Program::of(&graph, &rank, &options.target);
    if weights == Weights::TIME {
        program.proof = Some(Proof { seconds: report.cost, bound: report.bound });
    }
    Ok(Found::Program { program, collectives: instead.into_iter().collect(), types: types.into_iter().collect() })
}
