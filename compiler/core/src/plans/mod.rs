//! The built-in plans for a number of ranks, and what each of them costs on a target. Nothing is executed.
//!
//! A prediction is based on the compiled program of the first rank, which holds the largest shards: the size of its arena
//! is the memory that a rank needs, and a simulation of its steps gives the time ([`simulate`]).

mod complete;
mod error;

pub use complete::complete;
pub use error::ChoiceError;

use crate::capture::{Captured, TrainingCapture};
use crate::error::Error;
use crate::explain::Facts;
use crate::import::{Signature, import_with};
use crate::parallel::in_parallel;
use crate::prepare::Planned;
use crate::program::{CompileOptions, Placed, plan_graph};
use crate::rename::{Rename, renamed};
use crate::shared_session::SharedSession;
use crate::simulation::{Kind, Simulation};
use crate::summary::{Summary, attribute};
use crate::view::{Sources, View};
use crate::why::Explainer;
use std::cmp::Ordering::Equal;
use std::iter::once;
use tpc_ir::program::RankProgram;
use tpc_ir::{Graph, InputId, Mesh};
use tpc_passes::cost::product_flops;
use tpc_passes::kinds::kinds;
use tpc_passes::lower::events::Schedule;
use tpc_passes::lower::{lower_rank, schedule};
use tpc_passes::planner::Aim;
use tpc_passes::rematerialize::report::RecomputeReport;
use tpc_passes::simulate::{Timeline, simulate};
use tpc_passes::styles::Plan;
use tpc_passes::styles::plan::BUILT_IN;

/// A built-in plan on a mesh.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The plan's name.
    pub name: &'static str,
    /// The plan.
    pub plan: Plan,
    /// The mesh, which has the axes that the plan uses.
    pub mesh: Mesh,
    /// Whether the planner completes the plan ([`Workload::complete`]).
    pub open: bool,
}

impl Candidate {
    /// The options of the command that compile it.
    pub fn flags(&self) -> String {
        let axes =
            self.mesh.axes().iter().map(|axis| format!("{}={}", axis.name, axis.size)).collect::<Vec<_>>().join(",");
        let mesh = if axes.is_empty() { String::new() } else { format!(" --mesh {axes}") };
        let placements = if self.open { " --placements auto" } else { "" };
        format!("--plan {}{mesh}{placements}", self.name)
    }
}

/// Every built-in plan on every mesh that has this number of ranks and exactly the plan's axes, each of size at least 2. The
/// plan `none` is the only candidate for one rank, and no candidate for several ranks, all of which would do the same work.
pub fn candidates(ranks: usize) -> Vec<Candidate> {
    let mut found = Vec::new();
    for &name in BUILT_IN.iter().filter(|&&name| name != SAME_AS_TP_FSDP) {
        let Ok(plan) = Plan::built_in(name) else { continue };
        let axes = axes(&plan);
        for sizes in factorizations(ranks, axes.len()) {
            if let Ok(mesh) = Mesh::new(axes.iter().cloned().zip(sizes)) {
                found.push(Candidate { name, plan: plan.clone(), mesh, open: false });
            }
        }
    }
    found
}

/// The empty plan on every mesh of one or two axes that has this number of ranks, for the planner to complete. On these axes
/// the planner proves how far from the best it is.
pub fn open_candidates(ranks: usize) -> Vec<Candidate> {
    let Ok(plan) = Plan::built_in(OPEN) else { return Vec::new() };
    let sizes = [1, 2].into_iter().flat_map(|axes| factorizations(ranks, axes));
    let mesh = |sizes: Vec<usize>| Mesh::new(["x", "y"].into_iter().zip(sizes)).ok();
    let candidate = |mesh: Mesh| Candidate { name: OPEN, plan: plan.clone(), mesh, open: true };
    sizes.filter_map(mesh).map(candidate).collect()
}

/// The plan that says nothing.
const OPEN: &str = "none";

/// A second name of the plan `tp-fsdp`.
const SAME_AS_TP_FSDP: &str = "2d";

/// The axes that a built-in plan uses. The axis with the most communication comes last: its groups consist of neighboring ranks.
fn axes(plan: &Plan) -> Vec<String> {
    plan.data_axes().into_iter().map(String::from).chain(plan.axis.as_ref().map(ToString::to_string)).collect()
}

/// All lists of `count` factors, each at least 2, whose product is `n`, in lexicographic order. The empty product is 1.
fn factorizations(n: usize, count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return if n == 1 { vec![Vec::new()] } else { Vec::new() };
    }
    let first = (2..=n).filter(|first| n.is_multiple_of(*first));
    let all = first.flat_map(|first| factorizations(n / first, count - 1).into_iter().map(move |rest| (first, rest)));
    all.map(|(first, rest)| [vec![first], rest].concat()).collect()
}

/// The predicted cost of a step on a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The simulated execution on the first rank.
    pub timeline: Timeline,
    /// Size of the first rank's arena in bytes, which holds everything that the rank ever needs.
    pub arena_bytes: usize,
    /// Floating-point operations of the model's products in a step, independent of the mesh.
    pub flops: f64,
    /// What is computed a second time, so that the program fits into memory.
    pub recomputed: Option<RecomputeReport>,
}

impl Prediction {
    /// The model's products as a share of what the devices can compute in the time of a step, where `rate` is the number of
    /// operations per second of one device (MFU; Chowdhery et al., "PaLM: scaling language modeling with pathways").
    pub fn utilization(&self, ranks: usize, rate: f64) -> f64 {
        utilization(self.flops, self.timeline.seconds, ranks, rate)
    }
}

/// [`Prediction::utilization`] of so many operations in so many seconds.
pub fn utilization(flops: f64, seconds: f64, ranks: usize, rate: f64) -> f64 {
    flops / (seconds * ranks as f64 * rate)
}

/// A captured program, imported once, for which plans are predicted.
pub struct Workload {
    /// The program that is simulated.
    steady: Graph,
    /// The program of the first step, which creates the optimizer's state. Only its memory counts.
    first: Option<Graph>,
    facts: Facts,
}

impl Workload {
    /// A captured training step. The predicted time is that of every step but the first.
    ///
    /// # Errors
    /// Operations without a counterpart.
    pub fn of_training(capture: &TrainingCapture, rename: Rename) -> Result<Self, Error> {
        let [steady, first] = [&capture.steady, &capture.first].map(|captured| renamed(captured, rename));
        let signature = Signature::of([&steady, &first])?;
        let import = |captured| Ok::<_, Error>(import_with(captured, &signature)?.graph);
        Ok(Workload {
            steady: import(&steady)?,
            first: Some(import(&first)?),
            facts: Facts::of(&capture.steady, rename),
        })
    }

    /// A captured forward pass.
    ///
    /// # Errors
    /// Operations without a counterpart.
    pub fn of_inference(captured: &Captured, rename: Rename) -> Result<Self, Error> {
        let facts = Facts::of(captured, rename);
        let captured = renamed(captured, rename);
        let steady = import_with(&captured, &Signature::of([&captured])?)?.graph;
        Ok(Workload { steady, first: None, facts })
    }

    /// Predicts the cost of a plan.
    ///
    /// # Errors
    /// As [`compile_training`](crate::program::compile_training).
    pub fn predict(&self, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Prediction, Error> {
        let Compiled { program, first, flops, placed } = self.compiled(mesh, plan, options)?;
        let arena_bytes = first.map_or(0, |first| first.arena_bytes).max(program.arena_bytes);
        let timeline = simulate(&program, &options.target);
        Ok(Prediction { timeline, arena_bytes, flops, recomputed: placed.report.recomputed })
    }

    /// What the compiler makes of the program under a plan, as seen by the first rank.
    ///
    /// # Errors
    /// As [`Workload::predict`].
    pub fn view(&self, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<View, Error> {
        let Compiled { program, first, flops, placed: Placed { placed, report, .. } } =
            self.compiled(mesh, plan, options)?;
        let target = &options.target;
        let (placed, report, program) = (&placed, &report, &program);
        Ok(View::of(&Sources { placed, report, program, first: first.as_ref(), target, flops }))
    }

    /// What a plan costs the first rank, by module.
    ///
    /// # Errors
    /// As [`Workload::predict`].
    pub fn summarize(&self, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Summary, Error> {
        let Compiled { program, first, placed, .. } = self.compiled(mesh, plan, options)?;
        let recomputed = placed.report.recomputed;
        Ok(Summary { recomputed, ..Summary::of(&program, first.as_ref(), &options.target) })
    }

    /// The program under a plan, to ask why its values lie where they do.
    ///
    /// # Errors
    /// As [`Workload::predict`].
    pub fn why(&self, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Explainer, Error> {
        let options = self.options(options);
        let scheduled = scheduled(self.steady.clone(), mesh, plan, &options, None);
        let Scheduled { placed: Placed { placed, report, .. }, gathered, .. } =
            scheduled.map_err(|error| self.facts.explain(error))?;
        Explainer::of(placed, report, gathered, options)
    }

    /// Simulates a step of all ranks.
    ///
    /// # Errors
    /// As [`Workload::predict`].
    pub fn simulate(&self, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Simulation, Error> {
        let (steady, first) = self.scheduled(mesh, plan, options)?;
        let graphs: Vec<&Graph> = once(&steady).chain(&first).map(|scheduled| &scheduled.placed.placed).collect();
        let kinds = kinds(&graphs).into_iter().map(|ranks| {
            let of = |scheduled: &Scheduled| scheduled.rank(ranks[0]);
            let (program, first) = (of(&steady)?, first.as_ref().map(of).transpose()?);
            Ok(Kind::of(ranks, program, first.as_ref(), &options.target))
        });
        let kinds = kinds.collect::<Result<Vec<_>, Error>>()?;
        Ok(Simulation { mesh: mesh.clone(), kinds, flops: steady.flops, device: options.target.device.kind })
    }

    /// The options for compiling the step.
    fn options(&self, options: &CompileOptions) -> CompileOptions {
        let step = if self.first.is_some() { options.step.clone() } else { options.step.of_inference() };
        CompileOptions { step, ..options.clone() }
    }

    /// What all ranks have in common in the program that is simulated, and in that of the first step.
    fn scheduled(
        &self,
        mesh: &Mesh,
        plan: &Plan,
        options: &CompileOptions,
    ) -> Result<(Scheduled, Option<Scheduled>), Error> {
        let options = self.options(options);
        let of = |graph: &Graph, aim| {
            scheduled(graph.clone(), mesh, plan, &options, aim).map_err(|error| self.facts.explain(error))
        };
        let steady = of(&self.steady, None)?;
        let aim = steady.placed.report.aim();
        let first = self.first.as_ref().map(|first| of(first, aim)).transpose()?;
        Ok((steady, first))
    }

    fn compiled(&self, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Compiled, Error> {
        let (steady, first) = self.scheduled(mesh, plan, options)?;
        let first = first.map(|first| first.rank(0)).transpose()?;
        Ok(Compiled { program: steady.rank(0)?, first, flops: steady.flops, placed: steady.placed })
    }
}

/// The programs of the first rank.
struct Compiled {
    program: RankProgram,
    /// That of the first step.
    first: Option<RankProgram>,
    /// Floating-point operations of the model's products in a step.
    flops: f64,
    /// The placed program, in which every operation has a module.
    placed: Placed,
}

/// A program as far as all ranks have it in common.
struct Scheduled {
    /// The placed program, in which every operation has a module.
    placed: Placed,
    schedule: Schedule,
    /// Floating-point operations of the products of the whole program.
    flops: f64,
    /// The parameters that the plan gathers separately for the forward and the backward pass.
    gathered: Vec<InputId>,
}

impl Scheduled {
    /// The program of a rank.
    fn rank(&self, rank: usize) -> Result<RankProgram, Error> {
        Ok(lower_rank(&self.placed.placed, &self.schedule, rank)?)
    }
}

/// A candidate with its prediction, or the reason why it cannot be compiled.
pub struct Ranked {
    /// The plan and its mesh.
    pub candidate: Candidate,
    /// The predicted cost.
    pub predicted: Result<Prediction, Error>,
}

/// The order of candidates: those that fit, then those that do not fit, then those that cannot be compiled.
#[derive(PartialEq, PartialOrd)]
enum Merit {
    /// It fits; by the duration of a step in seconds.
    Fits(f64),
    /// It does not fit; by the memory of a rank in bytes.
    TooLarge(usize),
    /// It cannot be compiled.
    Impossible,
}

impl Ranked {
    /// Whether its program fits into `memory` bytes per rank.
    pub fn fits(&self, memory: f64) -> bool {
        matches!(self.merit(memory), Merit::Fits(_))
    }

    fn merit(&self, memory: f64) -> Merit {
        match &self.predicted {
            Ok(predicted) if predicted.arena_bytes as f64 <= memory => Merit::Fits(predicted.timeline.seconds),
            Ok(predicted) => Merit::TooLarge(predicted.arena_bytes),
            Err(_) => Merit::Impossible,
        }
    }
}

/// Predicts candidates on all cores and sorts them, best first: those that fit into `memory` bytes per rank by the duration of
/// a step, then the others by the memory that they need. Equally good candidates keep their order.
pub fn ranked(workload: &Workload, candidates: Vec<Candidate>, options: &CompileOptions, memory: f64) -> Vec<Ranked> {
    let predicted = in_parallel(&candidates, |candidate| {
        let plan = match candidate.open {
            true => workload.complete(&candidate.mesh, &candidate.plan, options)?,
            false => candidate.plan.clone(),
        };
        let predicted = workload.predict(&candidate.mesh, &plan, options)?;
        Ok((plan, predicted))
    });
    let row = |(candidate, predicted): (Candidate, Result<(Plan, Prediction), Error>)| match predicted {
        Ok((plan, predicted)) => Ranked { candidate: Candidate { plan, ..candidate }, predicted: Ok(predicted) },
        Err(error) => Ranked { candidate, predicted: Err(error) },
    };
    let mut rows: Vec<Ranked> = candidates.into_iter().zip(predicted).map(row).collect();
    rows.sort_by(|a, b| a.merit(memory).partial_cmp(&b.merit(memory)).unwrap_or(Equal));
    rows
}

/// The candidate with the fastest predicted step among those that fit into the memory of the target's ranks.
///
/// # Errors
/// [`ChoiceError`]: there are no candidates, or none fits, or none can be compiled.
pub fn fastest(
    workload: &Workload,
    candidates: Vec<Candidate>,
    options: &CompileOptions,
) -> Result<(Candidate, Prediction), ChoiceError> {
    let (plans, memory) = (candidates.len(), options.target.device.capacity);
    let best = ranked(workload, candidates, options, memory).into_iter().next();
    let Some(best) = best else { return Err(ChoiceError::NoMesh) };
    let (fits, flags) = (best.fits(memory), best.candidate.flags());
    match best.predicted {
        Ok(predicted) if fits => Ok((best.candidate, predicted)),
        Ok(predicted) => {
            Err(ChoiceError::TooLarge { plans, memory: memory as u64, flags, least: predicted.arena_bytes })
        }
        Err(error) => Err(ChoiceError::Impossible { plans, flags, problem: error.to_string() }),
    }
}

/// Places and schedules a program, for what the planner was to do in another program of the step, if there is one.
fn scheduled(
    graph: Graph,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    aim: Option<Aim>,
) -> Result<Scheduled, Error> {
    let session = SharedSession { aim, ..SharedSession::default() };
    let Planned { logical, annotations, mut placed, .. } = plan_graph(graph, mesh, plan, options, &session)?;
    attribute(&mut placed.placed);
    let schedule = schedule(&placed.placed, &options.target, &options.lower);
    let gathered = annotations.gathered.into_keys().collect();
    Ok(Scheduled { flops: product_flops(&logical), placed, schedule, gathered })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ranks: usize) -> Vec<String> {
        candidates(ranks).iter().map(Candidate::flags).collect()
    }

    #[test]
    fn every_candidate_has_the_ranks_and_the_axes_of_its_plan() {
        for ranks in [1, 2, 6, 7, 8, 12] {
            for Candidate { name, plan, mesh, .. } in candidates(ranks) {
                assert_eq!(mesh.ranks(), ranks, "{name} on {mesh}");
                let axes = axes(&plan);
                assert!(axes.iter().all(|axis| mesh.axis(axis).is_some()), "{name} on {mesh}");
                assert_eq!(axes.len(), mesh.axes().len(), "{name} on {mesh}");
            }
        }
    }

    #[test]
    fn one_rank_has_nothing_to_plan() {
        assert_eq!(shown(1), ["--plan none"]);
    }

    #[test]
    fn two_ranks_have_one_axis() {
        let expected = [("tp", "tp"), ("tp-sp", "tp"), ("ddp", "dp"), ("fsdp", "dp"), ("zero1", "dp")];
        assert_eq!(shown(2), expected.map(|(plan, axis)| format!("--plan {plan} --mesh {axis}=2")));
    }

    #[test]
    fn an_axis_may_have_any_share_of_the_ranks() {
        let of = |plan: &str| -> Vec<Vec<usize>> {
            let sizes = |c: Candidate| c.mesh.axes().iter().map(|axis| axis.size).collect();
            candidates(12).into_iter().filter(|c| c.name == plan).map(sizes).collect()
        };
        assert_eq!(of("tp-ddp").len(), 4);
        assert_eq!(of("hsdp"), [[2, 6], [3, 4], [4, 3], [6, 2]]);
        assert_eq!(of("tp-sp-hsdp").len(), 3);
    }
}
