//! A trainer with running ranks: steps, evaluations, checkpoints.

use super::batch::{Example, Shapes, device, write};
use super::error::TrainerError;
use super::rates::Rates;
use super::source::{self, Gives, Record, Source};
use super::{Settings, explain, export, module, record};
use crate::capture::{BatchData, BatchFields, Captured, OptimizerStates, ResultValues, Results, TrainingCapture};
use crate::data;
use crate::error::Error;
use crate::feed::{seed_bytes, write_seed};
use crate::program::{CompileOptions, TrainingSession, Which, compile_inference_in, compile_step_in};
use crate::shared_session::{self, SessionPlacements, SharedSession, own_ranks};
use crate::together::all_lowered;
use burn::module::Module;
use burn::optim::OptimizerRecord;
use burn::tensor::{Device, TensorData};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use tpc_ir::program::RankPrograms;
use tpc_ir::{ModulePath, OutputKind};
use tpc_runtime::{ProgramId, Session};

/// The facts that all programs of one trainer share.
pub(super) struct Family<M> {
    pub(super) source: Rc<Source<M>>,
    pub(super) settings: Settings,
    /// The placements of parameters and state in the training step.
    pub(super) placements: SessionPlacements,
    /// The constants of all programs so far.
    pub(super) constants: HashMap<String, TensorData>,
    /// Alternative paths of tied parameters.
    pub(super) aliases: Vec<(ModulePath, ModulePath)>,
    /// The numbers of a step, identified by the operations that they come from.
    pub(super) scalars: String,
    /// The state that the optimizer keeps of each parameter.
    pub(super) states: OptimizerStates,
}

/// A trainer with running ranks.
///
/// With several processes, each has a trainer, and all make the same calls in the same order.
pub struct RunningTrainer<M, B, R: Results> {
    /// The number of this trainer in its process.
    number: u64,
    family: Family<M>,
    training: TrainingSession,
    record: Record<B, TrainingCapture, R::Form>,
    results: Gives<R::Form>,
    rates: Rates,
    example: Example,
    /// The programs for smaller batches: their shapes, and whether each is for a first step.
    smaller: Vec<(Shapes, Which, ProgramId)>,
    explained: String,
}

/// The result of a step.
#[derive(Clone, Debug)]
pub struct Step<V> {
    /// Number of finished steps, including this one.
    pub number: usize,
    /// The loss, before the update.
    pub loss: f64,
    /// The learning rate of the update, for parameters without a group.
    pub learning_rate: f64,
    /// The closure's further results, on the device of the batch.
    pub outputs: V,
}

/// A program that computes results from the trainer's parameters without changing them: see
/// [`RunningTrainer::evaluation`].
pub struct Evaluation<B, R: Results> {
    /// The trainer that compiled it.
    trainer: u64,
    record: Record<B, Captured, R::Form>,
    results: Gives<R::Form>,
    example: Example,
    /// The programs for the example's shapes, and for smaller batches.
    programs: Vec<(Shapes, ProgramId)>,
    explained: String,
}

impl<B, R: Results> Evaluation<B, R> {
    /// Describes what a run communicates and holds, as text.
    pub fn explain(&self) -> &str {
        &self.explained
    }
}

impl<M: Module + 'static, B: BatchData, R: Results> RunningTrainer<M, B, R> {
    pub(super) fn new(
        family: Family<M>,
        training: TrainingSession,
        record: Record<B, TrainingCapture, R::Form>,
        results: Gives<R::Form>,
        rates: Rates,
        example: Example,
        explained: String,
    ) -> Self {
        static TRAINERS: AtomicU64 = AtomicU64::new(0);
        let number = TRAINERS.fetch_add(1, Ordering::Relaxed);
        RunningTrainer { number, family, training, record, results, rates, example, smaller: Vec::new(), explained }
    }

    /// Trains on a batch: computes the loss and its gradients, and updates the parameters.
    ///
    /// A batch with fewer rows than the example is not padded: a separate program, which shares the parameters, is
    /// compiled when such a batch first occurs.
    ///
    /// # Errors
    /// A batch that does not match the example; a rank that fails, after which every step is an error.
    pub fn step(&mut self, batch: &B) -> Result<Step<R::Values>, Error> {
        let fields = BatchFields::of(batch);
        match self.example.smaller(&fields)? {
            None => self.training.turn()?,
            Some(shapes) => {
                let program = self.smaller(shapes, batch)?;
                self.training.session().select(program)?;
            }
        }
        write(self.training.session(), &fields)?;
        let (learning_rate, rates) = self.rates.next()?;
        let loss = self.training.run(&rates)?;
        let values = read(self.training.session(), &self.results.names)?;
        let outputs = R::restore(&self.results.form, &mut ResultValues::new(values, device(&fields)));
        Ok(Step { number: self.training.steps_done(), loss, learning_rate, outputs })
    }

    /// The program of the next step for a batch with these shapes.
    fn smaller(&mut self, shapes: Shapes, batch: &B) -> Result<ProgramId, Error> {
        let which = if self.training.steps_done() == 0 { Which::First } else { Which::Steady };
        let known = self.smaller.iter().find(|(known, step, _)| *known == shapes && *step == which);
        if let Some((.., program)) = known {
            return Ok(*program);
        }
        let capture = (self.record)(batch)?.capture;
        if format!("{:?}", capture.scalars) != self.family.scalars {
            return Err(TrainerError::OtherScalars.into());
        }
        let Settings { mesh, plan, compile, .. } = &self.family.settings;
        let mut options = compile.clone();
        // Fewer rows than micro-batches: one row in each.
        options.step.micro_batches = options.step.micro_batches.min(Example::rows(&shapes).unwrap_or(1));
        let session = self.family.shared(&self.training);
        let compiled = compile_step_in(&capture, which, mesh, plan, &options, &session);
        let (stages, constants) = all_lowered(&self.family.settings.launch, compiled)?;
        let program = self.family.add(&mut self.training, stages.ranks, constants)?;
        self.smaller.push((shapes, which, program));
        Ok(program)
    }

    /// Compiles a closure that computes results from the current parameters: an accuracy, a loss on other data, a
    /// prediction.
    ///
    /// The model is in evaluation mode. The evaluation is another program over the same parameters. It adds to each
    /// rank's memory its data, and the memory that its activations need beyond those of a training step; it copies no
    /// parameter and does not affect the training. Only the names, shapes and element types of `example` matter; it
    /// must be a batch of the largest size.
    ///
    /// # Errors
    /// The errors of [`Trainer::compile`](super::Trainer::compile); a computation that needs another placement of a
    /// parameter.
    pub fn evaluation<E, S, F>(&mut self, closure: F, example: &E) -> Result<Evaluation<E, S>, Error>
    where
        E: BatchData,
        S: Results,
        F: Fn(&M, E::Tensors) -> S + 'static,
    {
        let record = source::evaluation(self.family.source.clone(), closure);
        let fields = BatchFields::of(example);
        let recorded = record(example)?;
        let (program, ranks) = self.add_evaluation(&recorded.capture)?;
        let shapes = fields.list.iter().map(|field| field.shape.clone()).collect();
        let (results, example) = (recorded.results, Example::of("the evaluation", &fields));
        let explained = explain::step("an evaluation", &ranks);
        Ok(Evaluation { trainer: self.number, record, results, example, programs: vec![(shapes, program)], explained })
    }

    /// Computes an evaluation on a batch.
    ///
    /// # Errors
    /// An evaluation of another trainer; a batch that does not match the evaluation's example; a rank that fails.
    pub fn evaluate<E: BatchData, S: Results>(
        &mut self,
        evaluation: &mut Evaluation<E, S>,
        batch: &E,
    ) -> Result<S::Values, Error> {
        if evaluation.trainer != self.number {
            return Err(TrainerError::ForeignEvaluation.into());
        }
        let fields = BatchFields::of(batch);
        let program = match evaluation.example.smaller(&fields)? {
            None => evaluation.programs[0].1,
            Some(shapes) => match evaluation.programs.iter().find(|(known, _)| *known == shapes) {
                Some((_, program)) => *program,
                None => {
                    let program = self.add_evaluation(&(evaluation.record)(batch)?.capture)?.0;
                    evaluation.programs.push((shapes, program));
                    program
                }
            },
        };
        let seed = self.training.seed();
        let session = self.training.session();
        session.select(program)?;
        write_seed(session, &seed_bytes(seed, 0))?;
        write(session, &fields)?;
        session.step()?;
        let values = read(session, &evaluation.results.names)?;
        Ok(S::restore(&evaluation.results.form, &mut ResultValues::new(values, device(&fields))))
    }

    fn add_evaluation(&mut self, captured: &Captured) -> Result<(ProgramId, RankPrograms), Error> {
        let Settings { mesh, plan, compile, .. } = &self.family.settings;
        let options = CompileOptions { seed: self.training.seed(), ..compile.clone() };
        let session = self.family.shared(&self.training);
        let program = compile_inference_in(captured, mesh, plan, &options, &str::to_string, &session);
        let program = all_lowered(&self.family.settings.launch, program)?;
        let ranks = program.stages.ranks;
        Ok((self.family.add(&mut self.training, ranks.clone(), program.constants)?, ranks))
    }

    /// Number of finished steps.
    pub fn steps_done(&self) -> usize {
        self.training.steps_done()
    }

    /// The ranks' session: counters of collectives, memory, traces. The selected program is that of the latest call.
    pub fn session(&mut self) -> &mut Session {
        self.training.session()
    }

    /// The ranks' session with the program of the next training step selected, independent of the latest call: its
    /// counters are those of training.
    ///
    /// # Errors
    /// A program that cannot be loaded; a session that failed.
    pub fn training_session(&mut self) -> Result<&mut Session, Error> {
        self.training.turn()?;
        Ok(self.training.session())
    }

    /// Describes what a training step computes, communicates and holds, as text.
    pub fn explain(&self) -> &str {
        &self.explained
    }

    /// The trained model on a device of the user, with exactly the bits that the ranks hold. Ends the ranks.
    ///
    /// # Errors
    /// A model that is now built differently than when it was compiled; a session that failed.
    pub fn into_module(mut self, device: &Device) -> Result<M, Error> {
        let mut model = self.family.source.module(device);
        self.load_into(&mut model)?;
        Ok(model)
    }

    /// Writes the current parameters into a module, by path. On an error the module is unchanged.
    ///
    /// # Errors
    /// A module with other parameters; a session that failed.
    pub fn load_into<N: Module>(&mut self, model: &mut N) -> Result<(), Error> {
        self.training.turn()?;
        module::load(self.training.session(), &self.family.aliases, model)
    }

    /// Writes the current parameters to `model.safetensors` in a directory: whole tensors under the paths of the
    /// model's modules, in burn's layout. Of several processes, the first writes. Returns the file.
    ///
    /// # Errors
    /// A directory that rejects the file, on every process; an existing file is then unchanged.
    pub fn save(&mut self, dir: impl AsRef<Path>) -> Result<PathBuf, Error> {
        self.training.turn()?;
        export::save(self.training.session(), &self.family.aliases, dir.as_ref())
    }

    /// The current optimizer state as burn's record: the record of a `ModuleOptimizer` with the same optimizer that had
    /// trained `model`, whose parameters name the states. Every state has exactly the bits that the ranks hold. The
    /// record is empty before the first step.
    ///
    /// # Errors
    /// A model with other parameters; a session that failed.
    pub fn optimizer_record(&mut self, model: &impl Module) -> Result<OptimizerRecord, Error> {
        self.training.turn()?;
        record::write(&mut self.training, &self.family.states, &self.family.aliases, model)
    }

    /// Continues from an optimizer's state: one from [`RunningTrainer::optimizer_record`] on any mesh and plan, or from
    /// a `ModuleOptimizer` with the same optimizer. Parameters are unchanged. Returns the number of finished steps,
    /// from which the learning rate's scheduler also continues.
    ///
    /// The number of steps follows from the optimizer's counters in the record, such as Adam's time. With an optimizer
    /// that counts nothing (SGD) the trainer keeps its own number of steps, at least one.
    ///
    /// # Errors
    /// A record of another model or optimizer, after which the trainer is unchanged; a session that failed.
    pub fn load_optimizer_record(&mut self, model: &impl Module, record: OptimizerRecord) -> Result<usize, Error> {
        let steps = self.take_optimizer_record(model, record)?;
        self.rates.go_to(steps);
        Ok(steps)
    }

    /// [`RunningTrainer::load_optimizer_record`], with a scheduler that is already at that step.
    pub(crate) fn take_optimizer_record(
        &mut self,
        model: &impl Module,
        record: OptimizerRecord,
    ) -> Result<usize, Error> {
        self.training.turn()?;
        record::read(&mut self.training, &self.family.states, &self.family.aliases, model, record)
    }

    /// Writes parameters, optimizer state, step and seed as a checkpoint in a directory of checkpoints, on all ranks at
    /// once, and returns the checkpoint's own directory. The checkpoint can be resumed on any mesh and plan. In
    /// addition to the ranks' parts it contains `model.safetensors`, as written by [`RunningTrainer::save`]: a copy of
    /// the parameters in a file that burn's own store can read.
    ///
    /// # Errors
    /// A disk that rejects the data, a later checkpoint in the directory. Earlier checkpoints stay complete, and so
    /// does this one if only `model.safetensors` does not fit on the disk.
    pub fn checkpoint(&mut self, dir: impl AsRef<Path>) -> Result<PathBuf, Error> {
        self.training.turn()?;
        let own = self.training.save_checkpoint(dir.as_ref())?;
        export::save(self.training.session(), &self.family.aliases, &own)?;
        Ok(own)
    }

    /// Resumes from the latest checkpoint in a directory of checkpoints, or from `dir` itself if it is a checkpoint:
    /// sets parameters, optimizer state, step and seed, and the learning rate's scheduler to that step. Returns the
    /// number of finished steps.
    ///
    /// # Errors
    /// There is no checkpoint, it belongs to another model or optimizer, or it is damaged.
    pub fn resume(&mut self, dir: impl AsRef<Path>) -> Result<usize, Error> {
        let steps = self.training.resume(dir.as_ref())?;
        self.rates.go_to(steps);
        Ok(steps)
    }
}

impl<M> Family<M> {
    /// The programs of the session that a further program has to fit.
    fn shared<'a>(&'a self, training: &'a TrainingSession) -> SharedSession<'a> {
        SharedSession {
            placements: Some(&self.placements),
            constants: self.constants.clone(),
            programs: training.programs(),
            aim: None,
            ranks: own_ranks(&self.settings.launch, &self.settings.mesh),
        }
    }

    /// Adds a program to the session, and writes the constants that only this program has.
    fn add(
        &mut self,
        training: &mut TrainingSession,
        ranks: RankPrograms,
        constants: HashMap<String, TensorData>,
    ) -> Result<ProgramId, Error> {
        let program = shared_session::add(training.session(), &self.settings.launch, ranks, &constants)?;
        self.constants = constants;
        Ok(program)
    }
}

/// Reads whole outputs of the selected program.
fn read(session: &Session, names: &[String]) -> Result<Vec<TensorData>, Error> {
    let outputs = &session.interface().outputs;
    let read = |name: &String| {
        let kind = OutputKind::Result(name.clone());
        let bytes = session.read(&kind)?;
        let found = outputs.iter().find(|output| output.kind == kind).map(|output| &output.binding);
        let (dtype, layout) = found.map_or((tpc_ir::DType::U8, &[][..]), |b| (b.view.dtype, &b.layout[..]));
        Ok(data::of_bytes(dtype, layout, bytes))
    };
    names.iter().map(read).collect()
}
