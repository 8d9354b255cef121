//! Runs one model under one plan and records where its values are placed, what its ranks executed, and what they
//! computed.

use crate::eager::{numbers, train};
use crate::traffic::over;
use crate::training::{Named, Run, differences, mesh};
use burn::module::Module;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, Tensor, TensorData};
use std::collections::BTreeMap;
use tpc_compiler::capture::{Batch, capture_training, named};
use tpc_compiler::error::Error;
use tpc_compiler::program::{CompileOptions, TrainingProgram, compile_training};
use tpc_ir::{Graph, OutputKind, Phase};
use tpc_passes::styles::Plan;
use tpc_runtime::{LaunchOptions, Session};

/// A model and its batch. The loss is a fixed function of the output whose gradient differs for every element.
pub struct Case<M, B, const D: usize> {
    /// The model with its parameter values.
    pub model: M,
    /// The tensors of the batch, in order.
    pub data: Vec<TensorData>,
    /// Builds the batch on a device.
    pub batch: fn(&[TensorData], &Device) -> B,
    /// The forward pass.
    pub forward: fn(&M, B) -> Tensor<D>,
}

/// How often each collective was executed: by phase, axes, name, and bytes of the whole value.
pub type Executed = Vec<(Phase, String, String, usize, u64)>;

/// What was recorded of a step under a plan.
pub struct Seen {
    /// The type of every input, and of the output `y`, in the placed program.
    pub types: BTreeMap<String, String>,
    /// The collectives that rank 0 executed.
    pub executed: Executed,
    /// The values of the output.
    pub output: Vec<f64>,
    /// Loss, gradients, and parameters after the step.
    pub run: Run,
    /// The compiled first step.
    pub placed: Graph,
}

const RATE: f64 = 0.01;

fn loss<const D: usize>(y: &Tensor<D>) -> Tensor<1> {
    (y.clone().square() * 0.5 + y.clone().sin() - y.clone() * 0.3).mean()
}

impl<M: Module, B: Batch<Tensors = B>, const D: usize> Case<M, B, D> {
    /// One eager step of burn on its own CPU backend.
    pub fn eager(&self) -> (Vec<f64>, Run) {
        let output = (self.forward)(&self.model, (self.batch)(&self.data, &Device::flex()));
        let optimizer = AdamWConfig::new().init();
        let step = |m: &M, device: &Device| loss(&(self.forward)(m, (self.batch)(&self.data, device)));
        (numbers(output.into_data()), train(&self.model, optimizer, &[RATE], step))
    }

    /// Compiles a training step.
    ///
    /// # Errors
    /// If the plan does not fit the model.
    pub fn compiled(&self, plan: &Plan, on: &str, options: &CompileOptions) -> Result<TrainingProgram, Error> {
        let batch = (self.batch)(&self.data, &Device::flex());
        let capture = capture_training(&self.model, &AdamWConfig::new().build(), batch, |m: &M, b: B| {
            let y = (self.forward)(m, b);
            (loss(&y), named("y", y))
        });
        compile_training(capture?, &mesh(on), plan, options, &|p| p.to_string())
    }

    /// Runs a step.
    ///
    /// # Panics
    /// If the step does not compile or a rank fails.
    pub fn seen(&self, plan: &Plan, on: &str) -> Seen {
        let options = CompileOptions { gradients: true, ..CompileOptions::for_cpu() };
        let program = self.compiled(plan, on, &options).unwrap_or_else(|e| panic!("{on}: {e}"));
        seen(program, |session| self.write(session))
    }

    /// Writes the batch.
    ///
    /// # Panics
    /// If an input is refused.
    pub fn write(&self, session: &mut Session) {
        for (i, data) in self.data.iter().enumerate() {
            let name = format!("input{i}");
            if session.program(0).inputs.iter().any(|input| input.name == name) {
                session.write_f64(&name, &numbers(data.clone())).unwrap_or_else(|e| panic!("{e}"));
            }
        }
    }

    /// Checks that the plan computes on every mesh what burn computes eagerly, and gives the records.
    ///
    /// # Panics
    /// If the results differ.
    pub fn equal(&self, plan: &Plan, meshes: &[&str]) -> Vec<Seen> {
        let expected = self.eager();
        meshes.iter().map(|on| self.equals(&expected, plan, on)).collect()
    }

    /// Checks that the plan on one mesh computes the expected results.
    ///
    /// # Panics
    /// If the results differ.
    pub fn equals(&self, expected: &(Vec<f64>, Run), plan: &Plan, on: &str) -> Seen {
        let seen = self.seen(plan, on);
        let scale = expected.0.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert_eq!(seen.output.len(), expected.0.len());
        for (i, (f, e)) in seen.output.iter().zip(&expected.0).enumerate() {
            assert!((f - e).abs() <= 1e-5 * scale, "{on}: y[{i}] is {f}, expected {e}, under {plan:?}");
        }
        let wrong = differences(&seen.run, &expected.1);
        assert!(wrong.is_empty(), "{on}, {plan:?}:\n{}", wrong.join("\n"));
        seen
    }
}

/// Runs one step of a compiled program.
///
/// # Panics
/// If a rank fails or the ranks execute different collectives.
pub fn seen(program: TrainingProgram, write: impl FnOnce(&mut Session)) -> Seen {
    for stages in [&program.first, &program.steady] {
        assert_eq!(stages.report.declined, None, "what was found is slower than {}", stages.report.before);
    }
    let placed = program.first.placed.clone();
    let mut types = types(&placed);
    for output in &placed.outputs {
        if let OutputKind::Result(name) = &output.kind {
            types.insert(name.clone(), placed.ty(output.value).display(&placed.mesh));
        }
    }
    let mut training = program.launch(LaunchOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    write(training.session());
    let losses = vec![training.step(RATE).unwrap_or_else(|e| panic!("{e}"))];
    let session = training.session();
    let executed: Vec<_> = (0..session.ranks()).map(|rank| executed(session, rank)).collect();
    for (rank, other) in executed.iter().enumerate() {
        assert_eq!(kinds(other), kinds(&executed[0]), "rank {rank}");
    }
    let mut gradients = Named::new();
    let kinds: Vec<OutputKind> = session.program(0).outputs.iter().map(|o| o.kind.clone()).collect();
    let mut output = Vec::new();
    for kind in kinds {
        let read = || session.read_f64(&kind).unwrap_or_else(|e| panic!("{e}"));
        match &kind {
            OutputKind::Gradient(name) => drop(gradients.insert(name.to_string(), read())),
            OutputKind::Result(_) => output = read(),
            _ => {}
        }
    }
    let parameters = session.program(0).inputs.iter().filter(|i| i.kind == tpc_ir::InputKind::Parameter);
    let parameters: Vec<String> = parameters.map(|i| i.name.clone()).collect();
    let read = |name: &String| session.read_input_f64(name).unwrap_or_else(|e| panic!("{e}"));
    let parameters = parameters.iter().map(|name| (name.clone(), read(name))).collect();
    let run = Run { losses, gradients, parameters };
    Seen { types, executed: executed.into_iter().next().unwrap_or_default(), output, run, placed }
}

/// The collectives without their bytes, which differ between ranks for an uneven value.
fn kinds(executed: &Executed) -> BTreeMap<(Phase, &str, &str), u64> {
    let mut kinds = BTreeMap::new();
    executed.iter().for_each(|c| *kinds.entry((c.0, c.1.as_str(), c.2.as_str())).or_default() += c.4);
    kinds
}

/// The types of a program's inputs.
pub fn types(placed: &Graph) -> BTreeMap<String, String> {
    placed.inputs().map(|(n, id)| (id.to_string(), placed.node(n).types[0].display(&placed.mesh))).collect()
}

/// The collectives that a rank has executed so far.
pub fn executed(session: &Session, rank: usize) -> Executed {
    let all = session.collectives(rank).into_iter();
    all.map(|c| (c.phase, c.axes.to_string(), c.name.to_string(), c.full_bytes, c.count)).collect()
}

impl Seen {
    /// The number of executed reductions over the axis of values with at least `at_least` bytes, in halves: an
    /// all-reduce is a reduce-scatter and an all-gather.
    pub fn halves(&self, phase: Phase, axis: &str, at_least: usize) -> u64 {
        let large =
            self.executed.iter().filter(|(p, a, _, bytes, _)| *p == phase && over(a, axis) && *bytes >= at_least);
        large.map(|(_, _, name, _, count)| if name == "all_reduce" { 2 * count } else { *count }).sum()
    }

    /// The number of executed collectives of values with fewer bytes.
    pub fn small(&self, phase: Phase, axis: &str, below: usize) -> u64 {
        let small = self.executed.iter().filter(|(p, a, _, bytes, _)| *p == phase && over(a, axis) && *bytes < below);
        small.map(|c| c.4).sum()
    }

    /// Checks that the forward and the backward pass execute at most these numbers of halves over `tp`, and the
    /// optimizer none, because parameters, gradients and states have the same placement.
    ///
    /// # Panics
    /// If the step executes more.
    pub fn at_most(&self, bytes: usize, forward: u64, backward: u64) {
        let found = [Phase::Forward, Phase::Backward].map(|p| self.halves(p, "tp", bytes));
        let optimizer = self.halves(Phase::Optimizer, "tp", 0);
        assert!(
            found[0] <= forward && found[1] <= backward && optimizer == 0,
            "{found:?} halves, allowed {forward} and {backward}; {optimizer} in the optimizer\n{}",
            self.list()
        );
    }

    /// Checks that the forward and the backward pass together execute at most this number of halves: where a demand of
    /// the plan places a value, the search may spend in one pass what it saves in the other.
    ///
    /// # Panics
    /// If the step executes more.
    pub fn together(&self, bytes: usize, both: u64) {
        let found = [Phase::Forward, Phase::Backward].map(|p| self.halves(p, "tp", bytes));
        let optimizer = self.halves(Phase::Optimizer, "tp", 0);
        assert!(
            found[0] + found[1] <= both && optimizer == 0,
            "{found:?} halves, allowed {both}; {optimizer} in the optimizer\n{}",
            self.list()
        );
    }

    /// Checks the types of inputs and of the output.
    ///
    /// # Panics
    /// If a type differs.
    pub fn lies(&self, expected: &[(&str, &str)]) {
        for (name, ty) in expected {
            assert_eq!(self.types.get(*name).map(String::as_str), Some(*ty), "{name} of {:#?}", self.types);
        }
    }

    /// The executed collectives as text.
    pub fn list(&self) -> String {
        let line = |c: &(Phase, String, String, usize, u64)| {
            format!("{} {} {}: {} bytes × {}", c.0.name(), c.2, c.1, c.3, c.4)
        };
        self.executed.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Reproducible numbers between -0.5 and 0.5.
pub fn floats(name: &str, shape: &[usize]) -> TensorData {
    let mut draw = crate::training::uniform(name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw() as f32 - 0.5).collect();
    TensorData::new(values, shape.to_vec())
}

/// Reproducible integers below a limit.
pub fn integers(name: &str, shape: &[usize], limit: usize) -> TensorData {
    let mut draw = crate::training::uniform(name);
    let values: Vec<i64> = (0..shape.iter().product()).map(|_| (draw() * limit as f64) as i64).collect();
    TensorData::new(values, shape.to_vec())
}
