//! A trainer whose ranks run: steps, evaluations, checkpoints.

use super::batch::{Example, Shapes, device, write};
use super::error::TrainerError;
use super::rates::Rates;
use super::source::{self, Gives, Record, Source};
use super::{Settings, explain, export, module, record};
use crate::beside::{self, Beside, Kept};
use crate::capture::{BatchData, BatchFields, Captured, OptimizerStates, ResultValues, Results, TrainingCapture};
use crate::data;
use crate::error::Error;
use crate::feed::{seed_bytes, write_seed};
use crate::program::{CompileOptions, TrainingSession, Which, compile_inference_beside, compile_step_beside};
use burn::module::Module;
use burn::optim::OptimizerRecord;
use burn::tensor::{Device, TensorData};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use tpc_ir::program::RankProgram;
use tpc_ir::{ModulePath, OutputKind};
use tpc_runtime::{ProgramId, Session};

/// What all programs of one trainer are made of.
pub(super) struct Family<M> {
    pub(super) source: Rc<Source<M>>,
    pub(super) settings: Settings,
    /// Where the training step has parameters and state.
    pub(super) kept: Kept,
    /// The constants of all programs so far.
    pub(super) constants: HashMap<String, TensorData>,
    /// Further paths of tied parameters.
    pub(super) aliases: Vec<(ModulePath, ModulePath)>,
    /// The numbers of a step, by the operations that they come from.
    pub(super) scalars: String,
    /// What the optimizer keeps of each parameter.
    pub(super) states: OptimizerStates,
}

/// A trainer whose ranks run.
///
/// Of several processes each has one, and all make the same calls in the same order.
pub struct RunningTrainer<M, B, R: Results> {
    /// Which trainer of this process it is.
    number: u64,
    family: Family<M>,
    training: TrainingSession,
    record: Record<B, TrainingCapture, R::Form>,
    results: Gives<R::Form>,
    rates: Rates,
    example: Example,
    /// The programs of smaller batches: their shapes, and whether it is that of a first step.
    smaller: Vec<(Shapes, Which, ProgramId)>,
    explained: String,
}

/// What a step gave.
#[derive(Clone, Debug)]
pub struct Step<V> {
    /// Number of steps that were done, with this one.
    pub number: usize,
    /// The loss, before the update.
    pub loss: f64,
    /// The learning rate of the update, of parameters that have none of their own.
    pub learning_rate: f64,
    /// The closure's further results, on the device of the batch.
    pub outputs: V,
}

/// A program that computes something from the trainer's parameters and changes nothing: see [`RunningTrainer::evaluation`].
pub struct Evaluation<B, R: Results> {
    /// The trainer that compiled it.
    trainer: u64,
    record: Record<B, Captured, R::Form>,
    results: Gives<R::Form>,
    example: Example,
    /// The program for the example's shapes, and those of smaller batches.
    programs: Vec<(Shapes, ProgramId)>,
    explained: String,
}

impl<B, R: Results> Evaluation<B, R> {
    /// What a run communicates and holds, in words.
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

    /// Trains on a batch: the loss, its gradients and the update.
    ///
    /// A batch with fewer rows than the example's is trained on as it is, by a program of its own that is compiled when such a batch
    /// first comes and shares the parameters.
    ///
    /// # Errors
    /// A batch that is not like the example; a rank that fails, after which every step is an error.
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

    /// The program of the next step for a batch of these shapes.
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
        let beside = self.family.beside(&self.training);
        let (stages, constants) = compile_step_beside(&capture, which, mesh, plan, &options, &beside)?;
        let program = self.family.add(&mut self.training, stages.ranks, constants)?;
        self.smaller.push((shapes, which, program));
        Ok(program)
    }

    /// Compiles what a closure computes from the parameters as they are: an accuracy, a loss on other data, a prediction.
    ///
    /// The model is in evaluation mode. It is another program over the same parameters: it adds to each rank's memory its data, and what its
    /// activations need beyond those of a training step; it copies no parameter and changes nothing of the training. Of `example` only
    /// names, shapes and element types matter; it is a batch of the largest size that will come.
    ///
    /// # Errors
    /// As [`Trainer::compile`](super::Trainer::compile); a computation that would need a parameter cut in another way.
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

    /// Computes an evaluation of a batch.
    ///
    /// # Errors
    /// An evaluation of another trainer; a batch that is not like the evaluation's example; a rank that fails.
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

    fn add_evaluation(&mut self, captured: &Captured) -> Result<(ProgramId, Vec<RankProgram>), Error> {
        let Settings { mesh, plan, compile, .. } = &self.family.settings;
        let options = CompileOptions { seed: self.training.seed(), ..compile.clone() };
        let beside = self.family.beside(&self.training);
        let program = compile_inference_beside(captured, mesh, plan, &options, &str::to_string, &beside)?;
        let ranks = program.stages.ranks;
        Ok((self.family.add(&mut self.training, ranks.clone(), program.constants)?, ranks))
    }

    /// Steps that were done.
    pub fn steps_done(&self) -> usize {
        self.training.steps_done()
    }

    /// The ranks' session: counters of collectives, memory, traces. The program that is selected is that of the latest call.
    pub fn session(&mut self) -> &mut Session {
        self.training.session()
    }

    /// The ranks' session with the program of the next training step selected, whatever ran last: its counters are those of training.
    ///
    /// # Errors
    /// A program that cannot be loaded; a session that failed.
    pub fn training_session(&mut self) -> Result<&mut Session, Error> {
        self.training.turn()?;
        Ok(self.training.session())
    }

    /// What a training step computes, communicates and holds, in words.
    pub fn explain(&self) -> &str {
        &self.explained
    }

    /// The trained model, on a device of the user's: every parameter has exactly the bits that the ranks hold. Ends the ranks.
    ///
    /// # Errors
    /// A model that is built otherwise than when it was compiled; a session that failed.
    pub fn into_module(mut self, device: &Device) -> Result<M, Error> {
        let mut model = self.family.source.module(device);
        self.load_into(&mut model)?;
        Ok(model)
    }

    /// Writes the parameters, as they are now, into a module, by path. On an error the module is as it was.
    ///
    /// # Errors
    /// A module with other parameters; a session that failed.
    pub fn load_into<N: Module>(&mut self, model: &mut N) -> Result<(), Error> {
        self.training.turn()?;
        module::load(self.training.session(), &self.family.aliases, model)
    }

    /// Writes the parameters, as they are now, to `model.safetensors` in a directory: whole tensors under the paths of the model's modules,
    /// in burn's layout. Of several processes the first writes. Gives the file.
    ///
    /// # Errors
    /// A directory that takes no file, on every process; a file that was there is then as it was.
    pub fn save(&mut self, dir: impl AsRef<Path>) -> Result<PathBuf, Error> {
        self.training.turn()?;
        export::save(self.training.session(), &self.family.aliases, dir.as_ref())
    }

    /// The optimizer's state, as it is now, as a record of burn's: what a `ModuleOptimizer` of the same optimizer would give that had trained
    /// `model`, whose parameters name the states in it. Every state has exactly the bits that the ranks hold. Empty before the first step.
    ///
    /// # Errors
    /// A model with other parameters; a session that failed.
    pub fn optimizer_record(&mut self, model: &impl Module) -> Result<OptimizerRecord, Error> {
        self.training.turn()?;
        record::write(&mut self.training, &self.family.states, &self.family.aliases, model)
    }

    /// Goes on from an optimizer's state: one that [`RunningTrainer::optimizer_record`] gave, on any mesh and plan, or a `ModuleOptimizer` of
    /// the same optimizer. Parameters stay as they are. Gives the number of steps done, from which the learning
    /// rate's scheduler also goes on.
    ///
    /// A record says how many steps were done by what the optimizer counts, as the time of Adam. With an optimizer that counts nothing (SGD)
    /// the trainer keeps its own number of steps, at least one.
    ///
    /// # Errors
    /// A record of another model or optimizer, after which the trainer is as it was; a session that failed.
    pub fn load_optimizer_record(&mut self, model: &impl Module, record: OptimizerRecord) -> Result<usize, Error> {
        let steps = self.take_optimizer_record(model, record)?;
        self.rates.go_to(steps);
        Ok(steps)
    }

    /// [`RunningTrainer::load_optimizer_record`], with a scheduler that has gone on already.
    pub(crate) fn take_optimizer_record(
        &mut self,
        model: &impl Module,
        record: OptimizerRecord,
    ) -> Result<usize, Error> {
        self.training.turn()?;
        record::read(&mut self.training, &self.family.states, &self.family.aliases, model, record)
    }

    /// Writes parameters, optimizer state, step and seed as a checkpoint in a directory of checkpoints, all ranks at once, and gives the
    /// checkpoint's own directory. It can be resumed on any mesh and plan. Beside the ranks' parts stands `model.safetensors`, as
    /// [`RunningTrainer::save`] writes it: the parameters once more, in a file that burn's own store reads.
    ///
    /// # Errors
    /// A disk that does not take it, a later checkpoint in the directory. Earlier checkpoints stay whole, and so does this one where only
    /// `model.safetensors` finds no room.
    pub fn checkpoint(&mut self, dir: impl AsRef<Path>) -> Result<PathBuf, Error> {
        self.training.turn()?;
        let own = self.training.save_checkpoint(dir.as_ref())?;
        export::save(self.training.session(), &self.family.aliases, &own)?;
        Ok(own)
    }

    /// Goes on from the latest checkpoint in a directory of checkpoints, or from the checkpoint that `dir` itself is: parameters, optimizer
    /// state, step and seed, and the learning rate's scheduler at that step. Gives the number of steps done.
    ///
    /// # Errors
    /// No checkpoint, one of another model or optimizer, a damaged one.
    pub fn resume(&mut self, dir: impl AsRef<Path>) -> Result<usize, Error> {
        let steps = self.training.resume(dir.as_ref())?;
        self.rates.go_to(steps);
        Ok(steps)
    }
}

impl<M> Family<M> {
    /// What another program of the session has to fit.
    fn beside<'a>(&'a self, training: &'a TrainingSession) -> Beside<'a> {
        Beside { kept: Some(&self.kept), constants: self.constants.clone(), programs: training.programs() }
    }

    /// Loads a program beside the others, and writes the constants that it alone has.
    fn add(
        &mut self,
        training: &mut TrainingSession,
        ranks: Vec<RankProgram>,
        constants: HashMap<String, TensorData>,
    ) -> Result<ProgramId, Error> {
        let program = beside::add(training.session(), &self.settings.launch, ranks, &constants)?;
        self.constants = constants;
        Ok(program)
    }
}

/// Reads outputs of the selected program, whole.
fn read(session: &Session, names: &[String]) -> Result<Vec<TensorData>, Error> {
    let outputs = &session.program(0).outputs;
    let read = |name: &String| {
        let kind = OutputKind::Result(name.clone());
        let bytes = session.read(&kind)?;
        let found = outputs.iter().find(|output| output.kind == kind).map(|output| &output.binding);
        let (dtype, layout) = found.map_or((tpc_ir::DType::U8, &[][..]), |b| (b.view.dtype, &b.layout[..]));
        Ok(data::of_bytes(dtype, layout, bytes))
    };
    names.iter().map(read).collect()
}
