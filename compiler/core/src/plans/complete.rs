//! Completes a plan: chooses where the parameters, states and data are stored of which it says nothing.
//!
//! Data, tensor, sequence and sharded-data parallelism and their mixtures are outcomes: they differ in where inputs are
//! stored, and the planner places everything in between. What a plan says is kept. The result is a plan as well, with an
//! entry for each input that is cut, so that all programs of a model agree on it and a file can hold it.
//!
//! Before: a plan without entries, `dp=4,tp=2`.
//! After: `{"placements": {"data": {"input_ids": ["dp"]}, "parameters": {"layers.*.w1.weight": [null, "tp"], …}}}`.

use super::Workload;
use crate::candidate::{Start, candidate};
use crate::error::Error;
use crate::place::fastest;
use crate::prepare::{Prepared, prepare};
use crate::program::CompileOptions;
use crate::shared_session::SharedSession;
use std::collections::HashSet;
use tpc_ir::{Graph, InputId, InputKind, Mesh};
use tpc_passes::planner::{Aim, PlacementSource, Weights, storage};
use tpc_passes::styles::Plan;
use tpc_passes::styles::storage::listed;

impl Workload {
    /// The plan with entries for the inputs of which it says nothing, so that a step takes the least time on the target, as
    /// far as the planner finds it and a simulation of the first rank confirms it. The options must have planned
    /// placements, whose limit on memory holds for the result.
    ///
    /// # Errors
    /// The errors of [`Workload::predict`].
    pub fn complete(&self, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Plan, Error> {
        let options = self.options(options);
        complete(&self.steady, mesh, plan, &options).map_err(|error| self.facts.explain(error))
    }
}

/// [`Workload::complete`] for an imported program.
///
/// # Errors
/// The errors of [`Workload::predict`].
pub fn complete(captured: &Graph, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Plan, Error> {
    if options.search.placements == PlacementSource::Given {
        return Ok(plan.clone());
    }
    let plan = &Plan { allow_unused_axes: true, ..plan.clone() };
    let prepared = |plan: &Plan| prepare(captured.clone(), mesh, plan, options, &SharedSession::default());
    let Prepared { logical, annotations, .. } = prepared(plan)?;
    let start = Start::of(&logical, &annotations, options)?;
    let propagated = &start.propagated;
    let is_free = |id: &&InputId| {
        matches!(id.kind(), InputKind::Parameter | InputKind::State | InputKind::Data)
            && !annotations.inputs.contains_key(*id)
    };
    let free: HashSet<InputId> = propagated.inputs().map(|(_, id)| id).filter(is_free).cloned().collect();
    let find = |weights: Weights| {
        let stored = storage(propagated, &options.target, weights, &free);
        let mut plan = plan.clone();
        plan.storage.extend(listed(propagated, &stored));
        let Prepared { logical, annotations, .. } = prepared(&plan)?;
        let start = Start::of(&logical, &annotations, options)?;
        let taken = candidate(&start, Aim::Apart(weights))?.0.measured(&start)?.1;
        Ok(((plan, taken), taken.seconds))
    };
    let last = |_: &[_]| {
        let taken = candidate(&start, Aim::AsGiven)?.0.measured(&start)?.1;
        Ok(Some(((plan.clone(), taken), taken.seconds)))
    };
    let measure = |(plan, taken)| Ok(((plan, taken), taken));
    let found = match fastest(options, options.lower.memory, find, last, measure) {
        // The fastest plan may fit if its program computes values a second time.
        Err(Error::Budget(_)) => fastest(options, None, find, last, measure),
        found => found,
    };
    found.map(|((plan, _), _)| plan)
}
