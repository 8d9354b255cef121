//! The planner chooses where every value lies and how every operation is computed, so that the whole program costs least.
//!
//! The rules of the e-graph ([`egraph`](crate::egraph)) move, merge and remove the redistributions of a program. They do not
//! change the placement of a whole residual stream, since every single step towards that costs more. The planner does. It
//! leaves the redistributions out (`logical.rs`). For every value it lists the placements, and for every operation the
//! strategies, that the factor table allows along one mesh axis (`strategy.rs`, `space.rs`). It finds the cheapest
//! combination and a bound that no combination costs less than (`solve.rs`). With several axes it plans one after the other
//! until none of them changes anything, and then every two of them together. Parameters, states and the outputs of the
//! program stay where the plan has them, unless the planner is asked where to store them ([`storage`]).
//!
//! An operation costs what it adds to its kernel (`kernels.rs`), and a collective what [`cost`](crate::cost) says; nothing
//! overlaps, but [`Weights`] let collectives that other work can hide count less. A value is kept at one placement, and
//! layers that repeat are placed alike; the bound holds for all choices of that kind.
//!
//! Before, under the plan `tp`: every norm on every rank, `%40 = all_reduce tp sum %39`, `%41 = add %30, %40`.
//! After: `%40 = reduce_scatter tp sum dim=1 %39`, `%41 = add %30, %40 : f32[8, 512@tp, 512]`, norms on one part of the
//! sequence, `%60 = all_gather tp dim=1 %59`: sequence parallelism, which the plan does not ask for.
//!
//! Alpa (Zheng et al., 2022) and Meta's autoparallel solve the same problem as an integer program.

mod costs;
mod eliminate;
mod emit;
mod forbidden;
pub mod kernels;
mod logical;
mod network;
mod shift;
mod solve;
mod space;
mod strategy;
mod without;

use crate::check::check;
use crate::denotes::denotes;
use crate::reasons::explain;
use crate::shorten::{Extent, once};
use crate::targets::Target;
use costs::Costs;
pub use costs::Weights;
use emit::emit;
use forbidden::Bans;
pub use forbidden::{Ban, Forbidden, kind};
use logical::{Logical, ValueId};
use network::Solved;
use rustc_hash::FxHashSet;
use solve::{Effort, solve};
use space::{Choice, Space};
use std::collections::{HashMap, HashSet};
use tpc_ir::{AxisId, Graph, InputId, Op, Sharding, Type};
pub use without::{Without, plan_without};

/// What decides the placements that a plan leaves open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PlacementSource {
    /// They follow from the placements that the plan gives. The rules of the e-graph change them, and the planner does only
    /// where these leave equal layers in different placements.
    #[default]
    Given,
    /// The planner chooses them. What the plan says of values inside the program is only where the planner begins;
    /// parameters, states, data and results stay where the plan has them.
    Planned,
}

/// What the planner is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Aim {
    /// Every value stays where it is; only layers that repeat become alike.
    #[default]
    AsGiven,
    /// The placements that cost least, found for one axis after the other.
    Apart(Weights),
    /// The same, and then for the axes together, with a bound on all placements.
    Together(Weights),
}

impl Aim {
    /// Whether memory counts.
    pub fn prices_memory(self) -> bool {
        matches!(self, Aim::Apart(weights) | Aim::Together(weights) if weights.byte > 0.0)
    }
}

/// Most times that every axis is planned alone.
const ROUNDS: usize = 6;

/// An improvement below this share of the cost ends the rounds.
const SETTLED: f64 = 1e-6;

/// Most axes that are planned together, since the number of states is a power of it.
const TOGETHER: usize = 2;

/// One axis alone.
const ALONE: Effort = Effort { rounds: 16, gap: 1e-6 };

/// All axes together.
const COMPLETE: Effort = Effort { rounds: 16, gap: 1e-3 };

/// Two axes of more.
const PAIR: Effort = Effort { rounds: 3, gap: 1e-3 };

/// What planning along some axes found, while the other axes stayed as they were.
#[derive(Clone, Debug, PartialEq)]
pub struct AxesReport {
    /// The axes.
    pub axes: Vec<AxisId>,
    /// Variables of the cost network.
    pub variables: usize,
    /// States of all variables.
    pub states: usize,
    /// What the solution costs, in seconds, as the [`Weights`] count them.
    pub seconds: f64,
    /// No solution takes fewer seconds, counted in the same way.
    pub bound: f64,
}

impl AxesReport {
    /// The share of the cost by which a better solution could be cheaper.
    pub fn gap(&self) -> f64 {
        if self.seconds > 0.0 { (self.seconds - self.bound) / self.seconds } else { 0.0 }
    }
}

/// Why the planner chose placements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlannerCause {
    /// The search was asked for planned placements.
    #[default]
    Asked,
    /// The rules alone place equal layers differently ([`optimize_short`](crate::optimize::optimize_short)).
    UnlikeLayers,
}

impl PlannerCause {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            PlannerCause::Asked => "asked",
            PlannerCause::UnlikeLayers => "unlike_layers",
        }
    }
}

/// What the planner did. Its seconds are those of the cost model, nothing overlapped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlannerReport {
    /// Why it chose placements.
    pub cause: PlannerCause,
    /// What it was to do.
    pub aim: Aim,
    /// Predicted seconds of the program before.
    pub before: f64,
    /// Predicted seconds after.
    pub after: f64,
    /// The simulated seconds of a step with the placements that follow from the plan and with those that are taken, where
    /// both were simulated.
    pub simulated: Option<[f64; 2]>,
    /// What was planned, in order.
    pub steps: Vec<AxesReport>,
    /// What the program costs, in seconds, as the [`Weights`] count them.
    pub cost: f64,
    /// No placements cost less, counted in the same way; unknown with more axes than are planned together.
    pub bound: Option<f64>,
    /// Whether the program has the placements that the planner found. Otherwise they cost more than those of the program
    /// before, or a simulation says that they take longer.
    pub taken: bool,
    /// The parameters that the program does not keep gathered from the forward to the backward pass.
    pub regathered: Vec<InputId>,
}

impl PlannerReport {
    /// The share of the cost by which other placements could be cheaper.
    pub fn gap(&self) -> Option<f64> {
        Some(if self.cost > 0.0 { ((self.cost - self.bound?) / self.cost).max(0.0) } else { 0.0 })
    }
}

/// What the planner made of a placed graph.
#[derive(Debug)]
pub struct Planned {
    /// The planned graph; none if the planner finds nothing that costs less than the graph that came in, or if one of the
    /// proofs ([`check`], [`denotes`]) does not hold of what it finds.
    pub graph: Option<Graph>,
    /// What it did.
    pub report: PlannerReport,
}

/// Plans a placed graph for a target.
pub fn plan(graph: &Graph, target: &Target, aim: Aim) -> Planned {
    plan_as(graph, Extent::Whole, target, aim).expect("a whole program stands for itself")
}

/// [`plan`] for a program that may stand for a longer one. `None` if the planned graph does not repeat as the graph does.
pub fn plan_as(graph: &Graph, extent: Extent, target: &Target, aim: Aim) -> Option<Planned> {
    let (weights, rounds) = match aim {
        Aim::AsGiven => (Weights::TIME, 0),
        Aim::Apart(weights) | Aim::Together(weights) => (weights, ROUNDS),
    };
    let logical = Logical::counted(graph, extent.times(graph)?);
    let costs = Costs::new(target, &logical, weights, Bans::default());
    let before = costs.program();
    let mut report = PlannerReport { aim, before, after: before, cost: before, ..PlannerReport::default() };
    let choice = chosen(&logical, &costs, rounds, matches!(aim, Aim::Together(_)), &mut report);
    if let Some(mut planned) = emit(&logical, &choice) {
        explain(&mut planned);
        let after = seconds_counted(&planned, extent.times(&planned)?, target);
        let may_cost_more = aim == Aim::AsGiven || weights != Weights::TIME;
        if (after < before || may_cost_more) && check(&planned).is_ok() && denotes(&planned, graph).is_ok() {
            (report.after, report.taken) = (after, aim != Aim::AsGiven);
            report.regathered = regathered(&logical, &choice);
            return Some(Planned { graph: Some(planned), report });
        }
    }
    Some(Planned { graph: None, report })
}

/// Where the free inputs of a placed graph are best stored, with everything else placed for that; the others stay where they
/// are. The dimensions of an input that are cut are those that the model knows.
pub fn storage(
    graph: &Graph,
    target: &Target,
    weights: Weights,
    free: &HashSet<InputId>,
) -> HashMap<InputId, Sharding> {
    let mut logical = Logical::of(graph);
    logical.set_free(free);
    let costs = Costs::new(target, &logical, weights, Bans::default());
    let choice = chosen(&logical, &costs, ROUNDS, true, &mut PlannerReport::default());
    let stored = logical.operations.iter().filter_map(|operation| match &graph.node(operation.node).op {
        Op::Input { id, .. } if free.contains(id) => {
            Some((id.clone(), choice.kept[logical.like(operation.results[0])].clone()))
        }
        _ => None,
    });
    stored.collect()
}

/// The placements that cost least, found for one axis after the other, and then for the axes together if they are to be.
fn chosen(logical: &Logical, costs: &Costs, rounds: usize, together: bool, report: &mut PlannerReport) -> Choice {
    let mesh = &logical.graph.mesh;
    let mut choice = Choice::of(logical);
    let axes: Vec<AxisId> = mesh.axis_ids().filter(|&axis| mesh.size(axis) > 1).collect();
    let mut step = |axes: &[AxisId], effort: Effort| {
        let space = Space::along(axes, logical, &choice, costs);
        let Solved { states, cost, bound } = solve(&space.network, effort);
        choice = space.chosen(&states, &choice);
        let (variables, states) = (space.network.unary.len(), space.network.unary.iter().map(Vec::len).sum());
        report.steps.push(AxesReport { axes: axes.to_vec(), variables, states, seconds: cost, bound });
        cost
    };
    // One axis after the other is fast and comes near; planning them together then changes little. Once every other axis was
    // planned without a gain, an axis would be planned for what it was planned for before.
    let (mut last, mut unchanged) = (f64::INFINITY, 0);
    for (turn, &axis) in axes.iter().cycle().take(rounds * axes.len()).enumerate() {
        let now = step(&[axis], ALONE);
        let gains = turn < axes.len() || now < last * (1.0 - SETTLED);
        (last, unchanged) = (now, if gains { 0 } else { unchanged + 1 });
        if unchanged + 1 >= axes.len() {
            break;
        }
    }
    let effort = if axes.len() <= TOGETHER { COMPLETE } else { PAIR };
    for (i, &major) in axes.iter().enumerate().filter(|_| together) {
        for &minor in &axes[i + 1..] {
            step(&[major, minor], effort);
        }
    }
    if let Some(last) = report.steps.last() {
        report.cost = last.seconds;
        report.bound = (axes.len() <= if together { TOGETHER } else { 1 }).then_some(last.bound);
    }
    choice
}

/// The predicted seconds of a placed program on its slowest rank: every kernel passes through memory once, and nothing
/// overlaps.
pub fn seconds(graph: &Graph, target: &Target) -> f64 {
    seconds_counted(graph, once(graph), target)
}

/// [`seconds`] of a program each node of which counts so many times.
pub(crate) fn seconds_counted(graph: &Graph, times: Vec<f64>, target: &Target) -> f64 {
    let logical = Logical::counted(graph, times);
    Costs::new(target, &logical, Weights::TIME, Bans::default()).program()
}

/// The parameters that are kept where they are stored, as are the conversions and transposes of them alone. What gathers them
/// gathers them for one part of the step.
fn regathered(logical: &Logical, choice: &Choice) -> Vec<InputId> {
    let size = |ty: &Type| ty.max_local_shape(&logical.graph.mesh).iter().product::<usize>();
    let is_gathered = |&(value, parameter): &(ValueId, ValueId)| {
        let kept = logical.ty(value).placed(choice.kept[logical.like(value)].clone());
        size(&kept) > size(logical.ty(parameter))
    };
    let parameters = || (0..logical.values.len()).filter_map(|value| Some((value, logical.parameter(value)?)));
    let gathered: FxHashSet<ValueId> = parameters().filter(is_gathered).map(|(_, parameter)| parameter).collect();
    let id = |(value, parameter): (ValueId, ValueId)| match &logical.graph.node(logical.values[value].source.node).op {
        Op::Input { id, .. } if !gathered.contains(&parameter) => Some(id.clone()),
        _ => None,
    };
    parameters().filter_map(id).collect()
}
