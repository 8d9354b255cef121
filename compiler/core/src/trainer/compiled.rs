//! A compiled training step, before its ranks are launched.

use super::batch::Example;
use super::rates::Rates;
use super::running::{Family, RunningTrainer};
use super::source::{Gives, Record, Recorded, Source};
use super::{Settings, explain, pretrained};
use crate::capture::{BatchData, BatchFields, OptimizerStates, Results, TrainingCapture, initial_values};
use crate::error::Error;
use crate::plans::{Workload, candidates, fastest, open_candidates};
use crate::pretrained::initialize_with;
use crate::program::{Stages, TrainingProgram, compile_training_for};
use crate::shared_session::{SessionPlacements, own_ranks};
use crate::together::all_lowered;
use burn::module::Module;
use std::rc::Rc;
use std::sync::Arc;
use tpc_ir::ModulePath;
use tpc_ir::program::RankPrograms;
use tpc_passes::planner::PlacementSource;
use tpc_passes::styles::Plan;

/// A training step compiled for a mesh and a plan.
pub struct CompiledTrainer<M, B, R: Results> {
    source: Rc<Source<M>>,
    record: Record<B, TrainingCapture, R::Form>,
    results: Gives<R::Form>,
    aliases: Vec<(ModulePath, ModulePath)>,
    states: OptimizerStates,
    program: TrainingProgram,
    rates: Rates,
    settings: Settings,
    example: Example,
}

impl<M: Module + 'static, B: BatchData, R: Results> CompiledTrainer<M, B, R> {
    pub(super) fn compile(
        source: Rc<Source<M>>,
        record: Record<B, TrainingCapture, R::Form>,
        rates: Rates,
        mut settings: Settings,
        example: &B,
    ) -> Result<Self, Error> {
        let Recorded { mut capture, results } = record(example)?;
        rates.groups().check()?;
        if let Some(values) = source.values()? {
            capture.first.values = Arc::new(values);
        }
        let (aliases, states) = (capture.first.aliases.clone(), capture.states.clone());
        if settings.complete && settings.compile.search.placements == PlacementSource::Given {
            settings.compile.search.placements = PlacementSource::Planned;
        }
        if settings.auto.is_some() || settings.complete {
            let workload = Workload::of_training(&capture, &str::to_string)?;
            if let Some(ranks) = settings.auto {
                let open = settings.complete.then(|| open_candidates(ranks));
                let all = candidates(ranks).into_iter().chain(open.into_iter().flatten()).collect();
                let (best, _) = fastest(&workload, all, &settings.compile)?;
                (settings.mesh, settings.plan) = (best.mesh, best.plan);
            } else {
                settings.plan = workload.complete(&settings.mesh, &settings.plan, &settings.compile)?;
            }
        }
        let Settings { mesh, plan, compile, .. } = &settings;
        let ranks = own_ranks(&settings.launch, mesh);
        let program = compile_training_for(capture, mesh, plan, compile, &str::to_string, ranks);
        let program = all_lowered(&settings.launch, program)?;
        let example = Example::of("the training step", &BatchFields::of(example));
        Ok(CompiledTrainer { source, record, results, aliases, states, program, rates, settings, example })
    }

    /// The plan: the given one, or the one that was chosen or completed.
    pub fn plan(&self) -> &Plan {
        &self.settings.plan
    }

    /// Describes what a step computes, communicates and holds, as text. Of several processes, each describes the memory of its
    /// own ranks.
    pub fn explain(&self) -> String {
        explain::step("a training step", &self.program.steady.ranks)
    }

    /// The stages of the program that all steps but the first execute.
    pub fn stages(&self) -> &Stages {
        &self.program.steady
    }

    /// The program of each rank, or of each rank of this process, if it is one of several.
    pub fn ranks(&self) -> &RankPrograms {
        &self.program.steady.ranks
    }

    /// Starts the ranks. Parameters get the model's values if it has any, and are initialized otherwise.
    ///
    /// # Errors
    /// Too many ranks, too little memory, processes that do not respond or run other programs.
    pub fn launch(self) -> Result<RunningTrainer<M, B, R>, Error> {
        let explained = self.explain();
        let CompiledTrainer { source, record, results, aliases, states, program, rates, settings, example, .. } = self;
        let placements = SessionPlacements::of(&program.steady.placed);
        let (init, constants) = (program.init.clone(), program.constants.clone());
        let scalars = format!("{:?}", program.scalars);
        let mut training = program.launch(settings.launch.clone())?;
        match &*source {
            Source::Build(build) => {
                let seed = settings.compile.seed;
                let computed = initial_values(build, &init, seed)?;
                initialize_with(training.session(), &init, &computed, seed)?;
            }
            Source::Files(dir, _) => pretrained::load(training.session(), dir, &init, settings.compile.seed)?,
            // The program contains its values.
            Source::Module(_) => {}
        }
        let family = Family { source, settings, placements, constants, aliases, scalars, states };
        Ok(RunningTrainer::new(family, training, record, results, rates, example, explained))
    }
}
