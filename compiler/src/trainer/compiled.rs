//! A compiled training step, before its ranks run.

use super::batch::Example;
use super::rates::Rates;
use super::running::{Family, RunningTrainer};
use super::source::{Gives, Record, Recorded, Source};
use super::{Settings, explain};
use crate::beside::Kept;
use crate::capture::{BatchData, BatchFields, Init, OptimizerStates, Results, TrainingCapture};
use crate::pretrained::initialise;
use crate::program::{Error, Stages, TrainingProgram, compile_training};
use burn::module::Module;
use std::rc::Rc;
use std::sync::Arc;
use tpc_ir::program::RankProgram;

/// A training step that was compiled for a mesh and a plan.
pub struct CompiledTrainer<M, B, R: Results> {
    source: Rc<Source<M>>,
    record: Record<B, TrainingCapture, R::Form>,
    results: Gives<R::Form>,
    aliases: Vec<(String, String)>,
    states: OptimizerStates,
    program: TrainingProgram,
    rates: Rates,
    settings: Settings,
    example: Example,
    warnings: Vec<String>,
}

impl<M: Module + 'static, B: BatchData, R: Results> CompiledTrainer<M, B, R> {
    pub(super) fn compile(
        source: Rc<Source<M>>,
        record: Record<B, TrainingCapture, R::Form>,
        rates: Rates,
        settings: Settings,
        example: &B,
    ) -> Result<Self, Error> {
        let Recorded { mut capture, results } = record(example)?;
        if let Some(values) = source.values()? {
            capture.first.values = Arc::new(values);
        }
        let (aliases, states) = (capture.first.aliases.clone(), capture.states.clone());
        let warnings = warnings(&capture);
        let Settings { mesh, plan, compile, .. } = &settings;
        let program = compile_training(capture, mesh, plan, compile, &str::to_string)?;
        let example = Example::of("the training step", &BatchFields::of(example));
        Ok(CompiledTrainer { source, record, results, aliases, states, program, rates, settings, example, warnings })
    }

    /// What a step computes, communicates and holds, in words.
    pub fn explain(&self) -> String {
        explain::step("a training step", &self.program.steady.ranks, &self.warnings)
    }

    /// The stages of the program that every step but the first executes.
    pub fn stages(&self) -> &Stages {
        &self.program.steady
    }

    /// The program of each rank.
    pub fn ranks(&self) -> &[RankProgram] {
        &self.program.steady.ranks
    }

    /// What was guessed: initializers that are not drawn as the module says.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Starts the ranks. Parameters get the values that the model holds, or are initialized.
    ///
    /// # Errors
    /// Too many ranks, too little memory, processes that do not come or run other programs.
    pub fn launch(self) -> Result<RunningTrainer<M, B, R>, Error> {
        let explained = self.explain();
        let CompiledTrainer { source, record, results, aliases, states, program, rates, settings, example, .. } = self;
        let kept = Kept::of(&program.steady);
        let (init, constants) = (program.init.clone(), program.constants.clone());
        let scalars = format!("{:?}", program.scalars);
        let mut training = program.launch(settings.launch.clone())?;
        if matches!(*source, Source::Build(_)) {
            initialise(training.session(), &init, settings.compile.seed)?;
        }
        let family = Family { source, settings, kept, constants, aliases, scalars, states };
        Ok(RunningTrainer::new(family, training, record, results, rates, example, explained))
    }
}

/// Initializers that are computed by several operations are replaced by a normal distribution.
fn warnings(capture: &TrainingCapture) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (path, init) in &capture.first.init {
        if let Init::Computed(operations) = init {
            let operations = operations.join(", ");
            found.push(format!(
                "`{path}` is drawn from a normal distribution of deviation 0.02: its initializer ({operations}) is not a single draw"
            ));
        }
    }
    found.sort_unstable();
    found
}
