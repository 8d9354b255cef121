//! Computes with burn on its own CPU backend, for comparison.

use crate::training::{Run, uniform};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};

/// Converts burn's data to numbers.
///
/// # Panics
/// On an element type that has no numbers.
pub fn numbers(data: TensorData) -> Vec<f64> {
    data.convert::<f64>().try_into_vec().expect("converted to f64")
}

#[derive(Default)]
struct Visitor<'a> {
    path: Vec<String>,
    gradients: Option<&'a GradientsParams>,
    run: Run,
}

impl ModuleVisitor for Visitor<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        if let Some(gradient) = self.gradients.and_then(|g| g.get::<D>(param.id)) {
            self.run.gradients.insert(path.clone(), numbers(gradient.into_data()));
        }
        self.run.parameters.insert(path, numbers(param.val().into_data()));
    }
}

struct Fill {
    path: Vec<String>,
    scale: f64,
}

impl ModuleMapper for Fill {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (path, id, shape) = (self.path.join("."), param.id, param.val().dims());
        let mut draw = uniform(&path);
        let middle = if path.ends_with("gamma") { 1.0 } else { 0.0 };
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| (middle + self.scale * (draw() - 0.5)) as f32).collect();
        let value = Tensor::from_data(TensorData::new(values, shape), &param.val().device());
        param.transform_for_load(value, id)
    }
}

/// Draws all parameters from their paths, gains of norms around 1, uniform over `scale`: the same in every run.
pub fn filled<M: Module>(model: M, scale: f64) -> M {
    model.map(&mut Fill { path: Vec::new(), scale })
}

/// Trains eagerly on flex with a learning rate per step.
pub fn train<M: Module>(
    model: &M,
    mut optimizer: ModuleOptimizer,
    rates: &[f64],
    loss: impl Fn(&M, &Device) -> Tensor<1>,
) -> Run {
    let device = Device::flex().autodiff();
    let mut model = model.clone().train();
    let mut run = Run::default();
    for (i, &rate) in rates.iter().enumerate() {
        let value = loss(&model, &device);
        run.losses.push(numbers(value.clone().into_data())[0]);
        let gradients = GradientsParams::from_grads(value.backward(), &model);
        if i == 0 {
            let mut visitor = Visitor { gradients: Some(&gradients), ..Visitor::default() };
            model.visit(&mut visitor);
            run.gradients = visitor.run.gradients;
        }
        model = optimizer.step(rate, model, gradients);
    }
    // A running state adopts its latest update when the mode changes.
    let mut visitor = Visitor::default();
    model.valid().visit(&mut visitor);
    run.parameters = visitor.run.parameters;
    run
}
