//! The strategy: burn's own loop of epochs and batches, with steps and validation on the ranks.

use super::learner::{LearnersSchedule, optimizer_record};
use super::model::ShardedModel;
use super::{agree, step};
use crate::error::Error;
use crate::trainer::{Evaluation, RunningTrainer, Trainer, TrainerError};
use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::optim::Optimizer;
use burn::tensor::Device;
use burn::train::metric::store::EventStoreClient;
use burn::train::train::WorkerFailure;
use burn::train::{
    CloneEarlyStoppingStrategy, EventProcessorTraining, InferenceStep, Interrupter, Learner, LearnerEvent,
    LearningCheckpointer, SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainStep,
    TrainingComponents, TrainingError, TrainingItem, TrainingStrategy, ValidLoader,
};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// A burn-train strategy that trains on a mesh of ranks: see [the module](super).
pub struct Sharded<M, O> {
    optimizer: O,
    options: Box<Options<M, O>>,
    failure: Mutex<Option<Arc<Error>>>,
}

/// Sets the options of a trainer before it compiles.
type Options<M, O> = dyn Fn(Trainer<M, O>) -> Trainer<M, O> + Send + Sync;

impl<M: ShardedModel, O: Optimizer> Sharded<M, O> {
    /// A strategy for a learner with this optimizer. `options` sets the mesh, the plan, clipping, micro-batches,
    /// precision and processes.
    ///
    /// The learner provides the learning rate.
    pub fn new(optimizer: O, options: impl Fn(Trainer<M, O>) -> Trainer<M, O> + Send + Sync + 'static) -> Self {
        Sharded { optimizer, options: Box::new(options), failure: Mutex::default() }
    }

    /// The error that ended the latest training; [`LearningResult::error`](burn::train::LearningResult) has its text.
    /// To call this after the training, keep the strategy: pass `TrainingStrategy::Custom(sharded.clone())`, where
    /// `sharded` is an `Arc`.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, error: Error, interrupter: &Interrupter) {
        let error = Arc::new(error);
        interrupter.fail(TrainingError::Workers(vec![WorkerFailure { device_id: 0, message: error.to_string() }]));
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

impl<M: ShardedModel, O: Optimizer> From<Sharded<M, O>> for TrainingStrategy<M> {
    fn from(sharded: Sharded<M, O>) -> Self {
        TrainingStrategy::Custom(Arc::new(sharded))
    }
}

type TrainInput<M> = <M as TrainStep>::Input;
type TrainOutput<M> = <M as TrainStep>::Output;
type ValidInput<M> = <M as InferenceStep>::Input;
type ValidOutput<M> = <M as InferenceStep>::Output;

impl<M: ShardedModel, O: Optimizer> SupervisedLearningStrategy<M> for Sharded<M, O> {
    fn fit(
        &self,
        components: TrainingComponents<M>,
        learner: Learner<M>,
        train: TrainLoader<M>,
        valid: ValidLoader<M>,
        starting_epoch: usize,
    ) -> (M, SupervisedTrainingEventProcessor<M>) {
        let TrainingComponents { num_epochs, grad_accumulation, interrupter, event_processor, event_store, .. } =
            components;
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // The batches stay on the host: each rank receives the part that it reads.
        let device = learner.model().devices().first().map_or_else(Device::default, |device| device.clone().inner());
        let mut training = Training {
            sharded: self,
            learner: Rc::new(RefCell::new(learner)),
            ranks: None,
            events: event_processor,
            store: event_store,
            interrupter,
            checkpointer: components.checkpointer,
            early_stopping: components.early_stopping,
        };
        let fitted = match grad_accumulation.filter(|batches| *batches > 1) {
            Some(batches) => Err(TrainerError::Accumulation { batches }.into()),
            None => training.epochs(starting_epoch..=num_epochs, &train.to_device(&device), &valid.to_device(&device)),
        };
        let model = fitted.and_then(|()| training.model()).unwrap_or_else(|error| {
            self.fail(error, &training.interrupter);
            training.learner.borrow().model()
        });
        (model, training.events)
    }
}

/// The next batch, and the loader's progress. `None` at the end, and if the loader fails, which stops the training.
fn next<T>(batches: &mut dyn DataLoaderIterator<T>, interrupter: &Interrupter) -> Option<(T, Progress)> {
    match batches.next()? {
        Ok(batch) => Some((batch, batches.progress())),
        Err(error) => {
            interrupter.fail(error);
            None
        }
    }
}

/// A training in progress.
struct Training<'a, M: ShardedModel, O> {
    sharded: &'a Sharded<M, O>,
    learner: Rc<RefCell<Learner<M>>>,
    /// Set at the first batch.
    ranks: Option<Ranks<M>>,
    events: SupervisedTrainingEventProcessor<M>,
    store: Arc<EventStoreClient>,
    interrupter: Interrupter,
    checkpointer: Option<LearningCheckpointer<M>>,
    early_stopping: Option<Box<dyn CloneEarlyStoppingStrategy>>,
}

/// Running ranks.
struct Ranks<M: ShardedModel> {
    trainer: RunningTrainer<M, TrainInput<M>, TrainOutput<M>>,
    /// Set at the first batch of the validation.
    validation: Option<Evaluation<ValidInput<M>, ValidOutput<M>>>,
}

impl<M: ShardedModel, O: Optimizer> Training<'_, M, O> {
    /// The loop of burn's own strategy, event by event.
    fn epochs(
        &mut self,
        epochs: RangeInclusive<usize>,
        train: &TrainLoader<M>,
        valid: &ValidLoader<M>,
    ) -> Result<(), Error> {
        for epoch_number in epochs {
            self.tell_train(LearnerEvent::StartSplit { epoch_number, total_items: train.num_items() });
            self.train(train)?;
            self.tell_train(LearnerEvent::EndSplit(epoch_number));
            if self.interrupter.should_stop() {
                break;
            }
            self.tell_valid(LearnerEvent::StartSplit { epoch_number, total_items: valid.num_items() });
            self.validate(valid)?;
            self.tell_valid(LearnerEvent::EndSplit(epoch_number));
            self.tell_train(LearnerEvent::EndEpoch(epoch_number));
            if self.checkpointer.is_some() || self.early_stopping.is_some() {
                // The metrics that they decide by must be present.
                self.interrupter.fail_on_error(self.events.flush());
            }
            if self.interrupter.should_stop() {
                break;
            }
            self.checkpoint(epoch_number)?;
            if self.early_stopping.as_mut().is_some_and(|strategy| strategy.should_stop(epoch_number, &self.store)) {
                break;
            }
        }
        Ok(())
    }

    fn tell_train(&mut self, event: LearnerEvent<TrainOutput<M>>) {
        self.interrupter.fail_on_error(self.events.process_train(event));
    }

    fn tell_valid(&mut self, event: LearnerEvent<ValidOutput<M>>) {
        self.interrupter.fail_on_error(self.events.process_valid(event));
    }

    fn train(&mut self, loader: &TrainLoader<M>) -> Result<(), Error> {
        let mut batches = loader.iter();
        let mut iteration = 0;
        while let Some((batch, progress)) = next(&mut *batches, &self.interrupter) {
            iteration += 1;
            let ranks = match &mut self.ranks {
                Some(ranks) => ranks,
                none => none.insert(self.sharded.start(&self.learner, &batch, &self.store)?),
            };
            let output = ranks.trainer.step(&batch)?.outputs;
            let rate = self.learner.borrow().lr_current();
            self.tell_train(LearnerEvent::ProcessedItem(TrainingItem::new(
                output,
                progress,
                Some(iteration),
                Some(rate),
            )));
            if self.interrupter.should_stop() {
                break;
            }
        }
        Ok(())
    }

    fn validate(&mut self, loader: &ValidLoader<M>) -> Result<(), Error> {
        let mut batches = loader.iter();
        let mut iteration = 0;
        while let Some((batch, progress)) = next(&mut *batches, &self.interrupter) {
            iteration += 1;
            let Ranks { trainer, validation } = self.ranks.as_mut().ok_or(TrainerError::NoBatch)?;
            let validation = match validation {
                Some(validation) => validation,
                none => none.insert(trainer.evaluation(step::infer::<M>, &batch)?),
            };
            let output = trainer.evaluate(validation, &batch)?;
            self.tell_valid(LearnerEvent::ProcessedItem(TrainingItem::new(output, progress, Some(iteration), None)));
            if self.interrupter.should_stop() {
                break;
            }
        }
        Ok(())
    }

    /// Passes the learner to its checkpointer, with the values that the ranks hold.
    fn checkpoint(&mut self, epoch: usize) -> Result<(), Error> {
        let Some(checkpointer) = &mut self.checkpointer else { return Ok(()) };
        if let Some(Ranks { trainer, .. }) = &mut self.ranks {
            let mut model = self.learner.borrow().model();
            trainer.load_into(&mut model)?;
            let record = trainer.optimizer_record(&model)?;
            let mut learner = self.learner.borrow_mut();
            learner.load_model(model.into_record());
            learner.load_optim(record);
        }
        checkpointer.checkpoint(&self.learner.borrow(), epoch, &self.store);
        if self.ranks.is_some() {
            // The ranks have the state.
            self.learner.borrow_mut().load_optim(Default::default());
        }
        Ok(())
    }

    /// The model with the values that the ranks hold, on the learner's device.
    fn model(&mut self) -> Result<M, Error> {
        let mut model = self.learner.borrow().model();
        if let Some(Ranks { trainer, .. }) = &mut self.ranks {
            trainer.load_into(&mut model)?;
        }
        Ok(model)
    }
}

impl<M: ShardedModel, O: Optimizer> Sharded<M, O> {
    /// Compiles the step for a batch like this one, and starts the ranks with the learner's model and optimizer state.
    fn start(
        &self,
        learner: &Rc<RefCell<Learner<M>>>,
        example: &TrainInput<M>,
        store: &EventStoreClient,
    ) -> Result<Ranks<M>, Error> {
        let model = learner.borrow().model();
        let trainer = (self.options)(Trainer::of(model.clone(), self.optimizer.clone()));
        if trainer.has_rates() {
            return Err(TrainerError::LearnersRates.into());
        }
        if !model.devices().iter().all(Device::is_autodiff) {
            return Err(TrainerError::NotAutodiff.into());
        }
        agree::check(&learner.borrow(), &self.optimizer, trainer.clipping())?;
        let trainer = trainer.scheduled(Box::new(LearnersSchedule(learner.clone())));
        let mut trainer = trainer.compile(example, step::train::<M>)?.launch()?;
        let state = optimizer_record(&learner.borrow(), store);
        if !state.is_empty() {
            trainer.take_optimizer_record(&model, state)?;
            learner.borrow_mut().load_optim(Default::default());
        }
        Ok(Ranks { trainer, validation: None })
    }
}
