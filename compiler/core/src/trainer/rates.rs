//! Learning rates: one for each step and each group of parameters.
//!
//! burn's schedulers give the rate of each parameter, but not the groups of parameters. Parameters with the same rates
//! in many steps ahead are treated as a group, and a step in which their rates differ is an error.

use super::error::TrainerError;
use burn::lr_scheduler::DynLrScheduler;
use burn::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler};
use burn::module::{ParamGroup, ParamId};
use std::cell::RefCell;
use std::rc::Rc;

/// Number of steps in which parameters are compared.
const AHEAD: usize = 256;

/// A source of learning rates, step by step.
pub(crate) trait Schedule {
    /// The rates of the next step.
    fn step(&mut self) -> ModuleLearningRate;

    /// A copy that continues independently from here.
    fn fork(&self) -> Box<dyn Schedule>;
}

impl Schedule for ModuleLrScheduler {
    fn step(&mut self) -> ModuleLearningRate {
        ModuleLrScheduler::step(self)
    }

    fn fork(&self) -> Box<dyn Schedule> {
        Box::new(self.clone())
    }
}

/// A schedule, and the groups of parameters with separate rates that the trainer was given.
struct Grouped {
    base: Box<dyn Schedule>,
    groups: Vec<(ParamGroup, DynLrScheduler)>,
}

/// The rates of one step.
struct StepRates {
    base: ModuleLearningRate,
    groups: Vec<(ParamGroup, f64)>,
}

impl Grouped {
    fn step(&mut self) -> StepRates {
        let groups = self.groups.iter_mut().map(|(group, scheduler)| (group.clone(), scheduler.step()));
        StepRates { groups: groups.collect(), base: self.base.step() }
    }

    fn fork(&self) -> Self {
        Grouped { base: self.base.fork(), groups: self.groups.clone() }
    }
}

impl StepRates {
    /// The rate of a parameter; if it is in several groups, the last one counts.
    fn of(&self, id: ParamId, path: &str) -> f64 {
        let group = self.groups.iter().rev().find(|(group, _)| group.matches(&id, Some(path)));
        group.map_or_else(|| self.base.lr_from_param(id, Some(path)), |(_, rate)| *rate)
    }
}

/// A scheduler and a copy of its initial state, to start over.
pub(super) struct Rates {
    beginning: Grouped,
    now: Grouped,
    steps: usize,
    groups: Rc<RateGroups>,
}

/// Parameters with the same rates.
pub(super) struct RateGroups {
    ahead: Vec<StepRates>,
    found: RefCell<Vec<RateGroup>>,
}

struct RateGroup {
    /// The bits of the rates ahead.
    rates: Vec<u64>,
    members: Vec<(ParamId, String)>,
}

impl RateGroups {
    /// The group of a parameter.
    pub(super) fn of(&self, id: ParamId, path: &str) -> usize {
        let rates: Vec<u64> = self.ahead.iter().map(|rates| rates.of(id, path).to_bits()).collect();
        let mut found = self.found.borrow_mut();
        let group = found.iter().position(|group| group.rates == rates).unwrap_or_else(|| {
            found.push(RateGroup { rates, members: Vec::new() });
            found.len() - 1
        });
        let members = &mut found[group].members;
        // A model that is built for each recording has the same paths each time, but different ids.
        if !members.iter().any(|(_, known)| known == path) {
            members.push((id, path.to_owned()));
        }
        group
    }

    /// Checks that every group that the trainer was given has a parameter.
    ///
    /// # Errors
    /// A group without parameters.
    pub(super) fn check(&self) -> Result<(), TrainerError> {
        let found = self.found.borrow();
        let trained = || found.iter().flat_map(|group| &group.members);
        let given = self.ahead.first().map_or(&[][..], |rates| &rates.groups);
        let is_empty = |(group, _): &(ParamGroup, f64)| !trained().any(|(id, path)| group.matches(id, Some(path)));
        let Some(empty) = given.iter().position(is_empty) else { return Ok(()) };
        let mut trained: Vec<String> = trained().map(|(_, path)| path.clone()).collect();
        trained.sort_unstable();
        Err(TrainerError::EmptyRateGroup { number: empty + 1, trained })
    }
}

impl Rates {
    pub(super) fn new(base: Box<dyn Schedule>, groups: Vec<(ParamGroup, DynLrScheduler)>) -> Self {
        let now = Grouped { base, groups };
        let mut future = now.fork();
        let ahead = (0..AHEAD).map(|_| future.step()).collect();
        let groups = Rc::new(RateGroups { ahead, found: RefCell::default() });
        Rates { beginning: now.fork(), now, steps: 0, groups }
    }

    /// The groups, which are known once the training step has been recorded.
    pub(super) fn groups(&self) -> Rc<RateGroups> {
        self.groups.clone()
    }

    /// The rate of parameters without a group in the next step, and the rates of all groups.
    ///
    /// # Errors
    /// Parameters of one group with different rates.
    pub(super) fn next(&mut self) -> Result<(f64, Vec<f64>), TrainerError> {
        let step = self.now.step();
        self.steps += 1;
        let rate = |(id, path): &(ParamId, String)| step.of(*id, path);
        let mut rates = Vec::new();
        for RateGroup { members, .. } in &*self.groups.found.borrow() {
            let Some(first) = members.first() else { continue };
            if let Some(other) = members.iter().find(|member| rate(member) != rate(first)) {
                let (first, second, step) = (first.1.clone(), other.1.clone(), self.steps);
                return Err(TrainerError::RatesComeApart { first, second, step, ahead: AHEAD });
            }
            rates.push(rate(first));
        }
        Ok((step.base.base(), rates))
    }

    /// Moves the scheduler to its state after this many steps.
    pub(super) fn go_to(&mut self, steps: usize) {
        (self.now, self.steps) = (self.beginning.fork(), steps);
        (0..steps).for_each(|_| _ = self.now.step());
    }
}
