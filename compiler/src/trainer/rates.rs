//! Learning rates, one for each step.

use super::error::TrainerError;
use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::ParamId;

/// A scheduler and its beginning, to begin again.
pub(super) struct Rates {
    beginning: ModuleLrScheduler,
    now: ModuleLrScheduler,
    /// The parameters that are trained.
    parameters: Vec<(ParamId, String)>,
}

impl Rates {
    pub(super) fn new(scheduler: ModuleLrScheduler) -> Self {
        Rates { beginning: scheduler.clone(), now: scheduler, parameters: Vec::new() }
    }

    /// The same rates for these parameters.
    ///
    /// # Errors
    /// A parameter with another rate than the others in the first step.
    pub(super) fn of(self, parameters: Vec<(ParamId, String)>) -> Result<Self, TrainerError> {
        let rates = Rates { parameters, ..self };
        rates.common(&rates.beginning.clone().step())?;
        Ok(rates)
    }

    /// The rate of the next step.
    ///
    /// # Errors
    /// A parameter with another rate than the others: the compiled step has one.
    pub(super) fn next(&mut self) -> Result<f64, TrainerError> {
        let rate = self.now.step();
        self.common(&rate)
    }

    fn common(&self, rate: &ModuleLearningRate) -> Result<f64, TrainerError> {
        let base = rate.base();
        let is_other = |(id, path): &&(ParamId, String)| rate.lr_from_param(*id, Some(path)) != base;
        match self.parameters.iter().find(is_other) {
            Some((_, path)) => Err(TrainerError::RateGroup { parameter: path.clone() }),
            None => Ok(base),
        }
    }

    /// Goes to where the scheduler is after so many steps.
    pub(super) fn go_to(&mut self, steps: usize) {
        self.now = self.beginning.clone();
        (0..steps).for_each(|_| _ = self.now.step());
    }
}
