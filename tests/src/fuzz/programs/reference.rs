//! Computes what a subject should give: in double precision on the reference interpreter, and on one rank.
//!
//! The difference between the two is the effect of rounding on each tensor. `compare.rs` derives from it how far the
//! results of many ranks may differ.

use super::case::{Case, Steps, Subject};
use super::compare;
use super::dice::Dice;
use super::modules::Modules;
use super::options::Ways;
use super::run::run;
use super::verdict::{Fault, FaultKind, Verdict, judge};
use crate::captured::tensor;
use std::collections::HashMap;
use tpc_compiler::capture::{Captured, InputKind as In, OutputKind as Out};
use tpc_compiler::error::Error;
use tpc_compiler::import::{Signature, import_with};
use tpc_compiler::models::ModelConfig;
use tpc_compiler::pretrained::{capture_forward, names};
use tpc_ir::interpret::{Options, Tensor, interpret};
use tpc_ir::{Graph, InputId, InputKind, ModulePath, OutputKind};
use tpc_passes::options::on_captured;

/// The outputs of one step, in the order of the program.
pub type Outputs = Vec<(OutputKind, Vec<f64>)>;

/// A subject with everything that its cases share.
#[derive(Clone)]
pub struct Reference {
    /// The subject.
    pub subject: Subject,
    /// The configuration.
    pub config: ModelConfig,
    /// The modules.
    pub modules: Modules,
    /// The captured program of every step.
    pub steps: Vec<Graph>,
    /// The parameters, tokens and constants.
    pub given: HashMap<InputId, Tensor>,
    /// The scalars of every step.
    pub scalars: Vec<HashMap<InputId, Tensor>>,
    /// The results of every step in double precision.
    pub exact: Vec<Outputs>,
    /// The results of every step on one rank.
    pub one: Vec<Outputs>,
}

impl Reference {
    /// Captures a subject and computes its results.
    ///
    /// # Errors
    /// If the subject's options are rejected or one rank fails.
    pub fn of(subject: &Subject) -> Result<Self, Verdict> {
        let unexplained = |e: String| Verdict::Fault(Fault::new(FaultKind::Unexplained, e));
        let config = subject.model.config().map_err(unexplained)?;
        let (steps, scalars, constants) = captured(subject, &config).map_err(|e| judge(&e))?;
        let mut given = values(subject, &steps[0]);
        given.extend(constants);
        let modules = Modules::of(&config);
        let mut reference = Reference {
            subject: subject.clone(),
            config,
            modules,
            steps,
            given,
            scalars,
            exact: Vec::new(),
            one: Vec::new(),
        };
        reference.exact = reference.interpreted()?;
        let usual = Case::alone(subject).ways;
        reference.with_ways(&usual)
    }

    /// This reference with the results of one rank recomputed under these options.
    ///
    /// # Errors
    /// If one rank fails.
    pub fn with_ways(&self, ways: &Ways) -> Result<Self, Verdict> {
        let alone = Case::alone(&self.subject);
        let alone = Case { ways: Ways { gradients: alone.ways.gradients, ..ways.clone() }, ..alone };
        let reference = Reference { one: run(self, &alone)?, ..self.clone() };
        match compare::one_rank(&reference) {
            Some(text) => Err(Verdict::Fault(Fault::new(FaultKind::OneRank, text))),
            None => Ok(reference),
        }
    }

    fn interpreted(&self) -> Result<Vec<Outputs>, Verdict> {
        let options = Ways::plain().step(&self.subject.meaning);
        let mut held = self.given.clone();
        let mut all = Vec::new();
        for (graph, scalars) in self.steps.iter().zip(&self.scalars) {
            let graph = on_captured(graph, &options).map_err(|e| judge(&e.into()))?;
            let mut inputs = HashMap::new();
            for (node, id) in graph.inputs() {
                let ty = &graph.node(node).types[0];
                let value = scalars.get(id).or_else(|| held.get(id)).cloned();
                // The first step has the optimizer's state as an input but does not read it.
                let value = value.unwrap_or_else(|| Tensor::from_fn(ty.dtype, ty.shape.clone(), |_| 0.0));
                inputs.insert(id.clone(), value);
            }
            let tensors = interpret(&graph, &inputs, &Options::exact());
            let tensors = tensors.map_err(|e| Verdict::Fault(Fault::new(FaultKind::Internal, e)))?;
            let mut outputs = Outputs::new();
            for (output, tensor) in graph.outputs.iter().zip(tensors) {
                if let OutputKind::Update(id) = &output.kind {
                    held.insert(id.clone(), tensor.clone());
                }
                outputs.push((output.kind.clone(), tensor.data));
            }
            all.push(outputs);
        }
        Ok(all)
    }
}

type Programs = (Vec<Graph>, Vec<HashMap<InputId, Tensor>>, HashMap<InputId, Tensor>);

/// The programs of all steps, their scalars, and the constants.
fn captured(subject: &Subject, config: &ModelConfig) -> Result<Programs, Error> {
    let tokens = subject.batch.tokens();
    let names = names(config);
    let Some(descent) = subject.descent else {
        let forward = renamed(capture_forward(config, tokens, subject.batch.labels)?, &names);
        let imported = import_with(&forward, &Signature::of([&forward])?)?;
        let constants = imported.constants.iter().map(constant).collect();
        return Ok((vec![imported.graph], vec![HashMap::new()], constants));
    };
    let mut capture = descent.optimizer().capture(config, tokens)?;
    let numbers = match subject.steps {
        Steps::First => 1..=1,
        Steps::Later => 2..=2,
        Steps::Both => 1..=2,
    };
    let mut scalars = Vec::new();
    for step in numbers.clone() {
        let values = capture.scalars.values(step, descent.rate())?;
        let named = values.iter().enumerate();
        let scalar = |x: f64| Tensor::new(tpc_ir::DType::F32, [1], vec![tpc_ir::DType::F32.round(x)]);
        scalars
            .push(named.map(|(i, x)| (InputId::read(InputKind::Scalar, &format!("step.{i}")), scalar(*x))).collect());
    }
    let (first, steady) = (renamed(capture.first, &names), renamed(capture.steady, &names));
    let signature = Signature::of([&steady, &first])?;
    let (steady, first) = (import_with(&steady, &signature)?, import_with(&first, &signature)?);
    let constants = steady.constants.iter().map(constant).collect();
    let graph = |number| if number == 1 { first.graph.clone() } else { steady.graph.clone() };
    Ok((numbers.map(graph).collect(), scalars, constants))
}

fn constant((name, data): (&String, &burn::tensor::TensorData)) -> (InputId, Tensor) {
    (InputId::read(InputKind::Constant, name), tensor(data))
}

/// A program whose parameters have the names of the model's files.
fn renamed(mut captured: Captured, names: &HashMap<String, String>) -> Captured {
    let rename = |path: &mut ModulePath| {
        if let Some(name) = names.get(&path.to_string()) {
            *path = name.into();
        }
    };
    for input in &mut captured.inputs {
        if let In::Parameter { path, .. } | In::State { parameter: path, .. } = &mut input.kind {
            rename(path);
        }
    }
    for output in &mut captured.outputs {
        if let Out::Parameter { path } | Out::Gradient { path } | Out::State { parameter: path, .. } = &mut output.kind
        {
            rename(path);
        }
    }
    captured
}

/// Parameters that are large enough for every weight to matter, tokens, and the optimizer's state if no earlier step
/// creates it.
fn values(subject: &Subject, graph: &Graph) -> HashMap<InputId, Tensor> {
    let mut given = HashMap::new();
    let parameters = graph.inputs().filter(|(_, id)| id.is_parameter());
    for (number, (node, id)) in parameters.enumerate() {
        let ty = &graph.node(node).types[0];
        let mut dice = Dice::new(subject.values, 3, number as u64);
        let gain = ty.shape.len() == 1 && id.to_string().ends_with("weight");
        let draw = |_| if gain { 0.7 + 0.6 * dice.unit() } else { dice.unit() - 0.5 };
        given.insert(id.clone(), Tensor::from_fn(ty.dtype, ty.shape.clone(), draw));
    }
    if subject.steps == Steps::Later {
        let states = graph.inputs().filter(|(_, id)| id.kind() == InputKind::State);
        for (number, (node, id)) in states.enumerate() {
            let ty = &graph.node(node).types[0];
            let mut dice = Dice::new(subject.values, 5, number as u64);
            // Second moments are positive.
            let lowest = if id.to_string().ends_with("moment_2") { 0.0 } else { -0.05 };
            given.insert(id.clone(), Tensor::from_fn(ty.dtype, ty.shape.clone(), |_| lowest + 0.1 * dice.unit()));
        }
    }
    let shape = [subject.batch.rows, subject.batch.seq];
    for (name, tokens) in subject.batch.tensors(&subject.model, &mut Dice::new(subject.values, 4, 0)) {
        let data = tokens.iter().map(|t| *t as f64).collect();
        given.insert(InputId::Data(name.into()), Tensor::new(tpc_ir::DType::I64, shape, data));
    }
    given
}
