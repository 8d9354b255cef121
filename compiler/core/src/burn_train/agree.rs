//! Checks that the learner's optimizer equals the one that trains.
//!
//! A learner hides its optimizer, so both optimizers update the parameters with the same test gradients, three times,
//! because the first update of Adam does not depend on its decay rates. The gradients are small, large and small:
//! clipping shows in the second update, a maximum (AMSGrad) in the third.

use crate::trainer::TrainerError;
use burn::grad_clipping::{GradientClipping, GradientClippingConfig};
use burn::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, Optimizer, OptimizerRecord};
use burn::tensor::{Tensor, TensorData};
use burn::train::{Learner, LearnerModel};
use std::collections::{HashMap, HashSet};

/// Number of elements that are updated at once, which bounds the memory for gradients and states.
const AT_ONCE: usize = 1 << 24;
/// Number of scheduler steps that are searched for the highest rate, at which updates are largest.
const AHEAD: usize = 64;
/// The norms of the gradients: unclipped, clipped, unclipped and falling.
const SIZES: [f64; 3] = [0.01, 1000.0, 0.001];

/// Checks that a learner's optimizer computes the same updates as another one with clipping of each gradient.
///
/// # Errors
/// The first parameter with a different update.
pub(super) fn check<M: LearnerModel, O: Optimizer>(
    learner: &Learner<M>,
    optimizer: &O,
    clipping: Option<&GradientClippingConfig>,
) -> Result<(), TrainerError> {
    let mut fresh = learner.clone();
    fresh.load_optim(OptimizerRecord::default());
    go_to_highest_rate(&mut fresh);
    let clipping = clipping.map(GradientClippingConfig::init);
    let mut trained = Trained::default();
    fresh.model().valid().visit(&mut trained);
    let mut rest = &trained.list[..];
    while !rest.is_empty() {
        let mut elements = 0;
        let fits = |(_, size): &&(ParamId, usize)| {
            elements += size;
            elements <= AT_ONCE
        };
        let (some, others) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = others;
        let mut updates = Updates {
            some: some.iter().map(|(id, _)| *id).collect(),
            optimizer,
            clipping: clipping.as_ref(),
            rates: fresh.lr_current(),
            path: Vec::new(),
            gradients: SIZES.map(|_| GradientsParams::new()),
            expected: HashMap::new(),
        };
        let mut own = fresh.clone();
        own.model().visit(&mut updates);
        let Updates { gradients, expected, .. } = updates;
        gradients.into_iter().for_each(|gradients| own.optimizer_step(gradients));
        let mut compared = Compared { expected, path: Vec::new(), differs: None };
        own.model().visit(&mut compared);
        if let Some(parameter) = compared.differs {
            return Err(TrainerError::OtherOptimizer { parameter });
        }
    }
    Ok(())
}

fn go_to_highest_rate<M: LearnerModel>(learner: &mut Learner<M>) {
    let mut ahead = learner.clone();
    let rates: Vec<f64> = std::iter::repeat_with(|| {
        ahead.lr_step();
        ahead.lr_current().base()
    })
    .take(AHEAD)
    .collect();
    let highest = (0..AHEAD).rev().max_by(|a, b| rates[*a].total_cmp(&rates[*b])).unwrap_or(0);
    (0..=highest).for_each(|_| learner.lr_step());
}

/// The trained parameters, with their sizes.
#[derive(Default)]
struct Trained {
    list: Vec<(ParamId, usize)>,
    seen: HashSet<ParamId>,
}

impl ModuleVisitor for Trained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // A plain tensor does not tell whether its parameter is frozen; putting a copy into training mode does.
        if self.seen.insert(param.id) && param.clone().train().is_require_grad() {
            self.list.push((param.id, param.base().dims().iter().product()));
        }
    }
}

/// Computes an optimizer's updates of some parameters.
struct Updates<'a, O> {
    some: HashSet<ParamId>,
    optimizer: &'a O,
    clipping: Option<&'a GradientClipping>,
    rates: ModuleLearningRate,
    path: Vec<String>,
    gradients: [GradientsParams; SIZES.len()],
    expected: HashMap<ParamId, Expected>,
}

/// A parameter before and after the updates.
struct Expected {
    before: TensorData,
    after: TensorData,
}

impl<O: Optimizer> ModuleVisitor for Updates<'_, O> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.some.contains(&param.id) || self.expected.contains_key(&param.id) {
            return;
        }
        let rate = self.rates.lr_from_param(param.id, Some(&self.path.join(".")));
        let mut value = param.base().without_autodiff();
        let before = value.to_data();
        let mut state = None;
        for (size, gradients) in SIZES.into_iter().zip(&mut self.gradients) {
            let gradient = gradient(&value, size);
            gradients.register(param.id, gradient.clone());
            let gradient = match self.clipping {
                Some(clipping) => clipping.clip_gradient(gradient),
                None => gradient,
            };
            (value, state) = self.optimizer.step(rate, value, gradient, state);
        }
        self.expected.insert(param.id, Expected { before, after: value.into_data() });
    }
}

/// A gradient with the given norm, whose elements have both signs.
fn gradient<const D: usize>(like: &Tensor<D>, size: f64) -> Tensor<D> {
    let elements = like.dims().iter().product::<usize>();
    let wave = (0..elements).map(|i| (size * (1.0 + (i as f64 + size).sin() / 2.0) * [1.0, -1.0][i % 2]) as f32);
    let data = TensorData::new(wave.collect(), like.dims()).convert_dtype(like.dtype());
    Tensor::from_data(data, (&like.device(), like.dtype()))
}

/// Finds the first parameter with an unexpected value.
struct Compared {
    expected: HashMap<ParamId, Expected>,
    path: Vec<String>,
    differs: Option<String>,
}

impl ModuleVisitor for Compared {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // burn updates the first of tied parameters.
        let Some(expected) = self.expected.remove(&param.id) else { return };
        if !expected.is(param.base().into_data()) {
            self.differs.get_or_insert(self.path.join("."));
        }
    }
}

impl Expected {
    /// Whether a value is the expected one, except for the effects of another order of sums.
    fn is(self, found: TensorData) -> bool {
        let read = |data: TensorData| data.convert::<f64>().try_into_vec::<f64>().unwrap_or_default();
        let (before, after, found) = (read(self.before), read(self.after), read(found));
        let near = |((before, after), found): ((&f64, &f64), &f64)| {
            let update = (after - before).abs();
            (after - found).abs() <= 1e-5 * update + 1e-6 * after.abs() || after.to_bits() == found.to_bits()
        };
        found.len() == after.len() && before.iter().zip(&after).zip(&found).all(near)
    }
}
