//! Private parts of a learner: its scheduler and its optimizer's state.

use crate::trainer::Schedule;
use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::OptimizerRecord;
use burn::train::checkpoint::{
    AsyncCheckpointer, Checkpoint, Checkpointer, CheckpointerError, CheckpointingAction, CheckpointingStrategy,
};
use burn::train::metric::store::EventStoreClient;
use burn::train::{Learner, LearnerModel, LearningCheckpointer};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// A learner's scheduler. It is called through the learner, so that its record counts the finished steps.
pub(super) struct LearnersSchedule<M: LearnerModel>(pub(super) Rc<RefCell<Learner<M>>>);

impl<M: LearnerModel> Schedule for LearnersSchedule<M> {
    fn step(&mut self) -> ModuleLearningRate {
        let mut learner = self.0.borrow_mut();
        learner.lr_step();
        learner.lr_current()
    }

    fn fork(&self) -> Box<dyn Schedule> {
        let mut learner = self.0.borrow().clone();
        // Its state would be held for as long as the fork lives.
        learner.load_optim(OptimizerRecord::default());
        Box::new(LearnersSchedule(Rc::new(RefCell::new(learner))))
    }
}

/// The state of a learner's optimizer, which a learner only shows to its checkpointer.
pub(super) fn optimizer_record<M: LearnerModel>(learner: &Learner<M>, store: &EventStoreClient) -> OptimizerRecord {
    let shown = Shown::default();
    let mut checkpointer = LearningCheckpointer::new(
        AsyncCheckpointer::new(Unseen),
        AsyncCheckpointer::new(shown.clone()),
        AsyncCheckpointer::new(Unseen),
        Box::new(Save),
    );
    checkpointer.checkpoint(learner, 0, store);
    // It saves in a thread; dropping it waits for the thread.
    drop(checkpointer);
    std::mem::take(&mut *shown.0.lock().unwrap_or_else(PoisonError::into_inner))
}

struct Save;

impl CheckpointingStrategy for Save {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}

#[derive(Clone, Default)]
struct Shown(Arc<Mutex<OptimizerRecord>>);

impl Checkpointer<OptimizerRecord> for Shown {
    fn save(&self, _: usize, record: OptimizerRecord) -> Result<(), CheckpointerError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = record;
        Ok(())
    }

    fn delete(&self, _: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, _: usize) -> Result<OptimizerRecord, CheckpointerError> {
        nothing()
    }
}

struct Unseen;

impl<R: Checkpoint> Checkpointer<R> for Unseen {
    fn save(&self, _: usize, _: R) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn delete(&self, _: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, _: usize) -> Result<R, CheckpointerError> {
        nothing()
    }
}

fn nothing<R>() -> Result<R, CheckpointerError> {
    Err(CheckpointerError::Unknown("nothing was saved".into()))
}
