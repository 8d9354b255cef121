//! Compile, launch, step: the front door.
//!
//! ```text
//! capture → import → canonicalize → annotate → propagate → e-graph → lower → session
//! ```

use crate::capture::{Captured, Init, StepScalars, TrainingCapture};
use crate::import::{ImportError, Imported, SEED, Signature, import_with};
use burn::tensor::TensorData;
use std::collections::{HashMap, HashSet};
use tpc_ir::program::RankProgram;
use tpc_ir::{Graph, InputKind, Mesh, OutputKind};
use tpc_passes::canonicalize::canonicalize;
use tpc_passes::check::{CheckError, check};
use tpc_passes::egraph::{SearchOptions, SearchReport, optimize};
use tpc_passes::lower::lower;
use tpc_passes::options::{OptionError, StepOptions, accumulate::running_sums, on_captured, on_logical};
use tpc_passes::propagate::{Annotations, propagate};
use tpc_passes::reshard::reshard_after_forward;
use tpc_passes::styles::{Plan, StyleError, annotate, boundary_regions};
use tpc_runtime::RuntimeError;
use tpc_runtime::session::{LaunchOptions, Session};

/// Why a program could not be compiled or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be recorded.
    #[error(transparent)]
    Capture(#[from] crate::capture::CaptureError),
    /// The recording has an operation without a counterpart.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The plan does not fit the model or the mesh.
    #[error(transparent)]
    Style(Box<StyleError>),
    /// An option does not fit the program.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The compiler made a program that its own checker rejects.
    #[error("internal error: the compiled program does not pass its check; please report it\n{0}")]
    Check(#[from] CheckError),
    /// The program failed while loading or running.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// An input was never given.
    #[error("input `{name}` has no value: give it with `{how}`")]
    Missing {
        /// The input.
        name: String,
        /// What to call.
        how: &'static str,
    },
}

impl From<StyleError> for Error {
    fn from(error: StyleError) -> Self {
        Error::Style(Box::new(error))
    }
}

/// Choices for compiling.
#[derive(Clone, Debug, Default)]
pub struct CompileOptions {
    /// The e-graph search.
    pub search: SearchOptions,
    /// Whether gradients are outputs; they then live to the end of the step.
    pub gradients: bool,
    /// Clipping, micro-batches, freezing, precision.
    pub step: StepOptions,
}

/// Every stage of one program.
#[derive(Clone, Debug)]
pub struct Stages {
    /// What burn recorded, nearly one to one, without what is frozen and with clipping.
    pub captured: Graph,
    /// Canonical, unplaced, in its precision and micro-batches.
    pub logical: Graph,
    /// What the plan demands.
    pub annotations: Annotations,
    /// First placement.
    pub propagated: Graph,
    /// The optimized SPMD program.
    pub placed: Graph,
    /// What the search bought.
    pub report: SearchReport,
    /// Per rank, scheduled.
    pub ranks: Vec<RankProgram>,
}

/// Compiles an imported program; inputs may first be renamed, to the names of a model's files.
///
/// # Errors
/// A plan that does not fit.
pub fn compile_graph(captured: Graph, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Stages, Error> {
    let mut captured = on_captured(&captured, &options.step)?.into_owned();
    // Which value is a parameter's gradient matters to the plan, also where nobody reads it.
    let (mut logical, annotations) = annotated(&captured, mesh, plan)?;
    if !options.gradients {
        captured.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
        logical.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
    }
    let (logical, annotations) = on_logical(logical, annotations, &options.step)?;
    let Placed { propagated, placed, report } = place(&logical, &annotations, &options.search, &options.step)?;
    let ranks = lower(&placed);
    Ok(Stages { captured, logical, annotations, propagated, placed, report, ranks })
}

/// A program with every value placed.
pub struct Placed {
    /// First placement.
    pub propagated: Graph,
    /// The optimized SPMD program.
    pub placed: Graph,
    /// What the search bought.
    pub report: SearchReport,
}

/// Places every value of a logical program and optimizes its collectives; each program passes its check.
///
/// # Errors
/// A program that does not pass: a bug of the compiler.
pub fn place(
    logical: &Graph,
    annotations: &Annotations,
    search: &SearchOptions,
    step: &StepOptions,
) -> Result<Placed, CheckError> {
    let propagated = propagate(logical, annotations, &search.cost);
    check(&propagated)?;
    let (mut optimized, report) = optimize(&propagated, search);
    if step.micro_batches > 1 {
        optimized = running_sums(&optimized);
    }
    check(&optimized)?;
    let gathered: HashSet<&str> = annotations.gathered.keys().map(String::as_str).collect();
    let placed = reshard_after_forward(&optimized, &gathered);
    check(&placed)?;
    Ok(Placed { propagated, placed, report })
}

/// The canonical program and what a plan demands of it. Module boundaries at which the plan places
/// values keep a value of their own; all others dissolve.
///
/// # Errors
/// A plan that does not fit.
pub fn annotated(captured: &Graph, mesh: &Mesh, plan: &Plan) -> Result<(Graph, Annotations), StyleError> {
    let canonical = |regions| canonicalize(&captured.clone().with_regions(regions));
    let mut logical = canonical(Vec::new());
    let regions = boundary_regions(captured, &logical, plan)?;
    if !regions.is_empty() {
        logical = canonical(regions);
    }
    let annotations = annotate(&logical, mesh, plan)?;
    Ok((logical, annotations))
}

/// A compiled training step: its peeled first step and the steady one.
pub struct TrainingProgram {
    /// The step that creates the optimizer's state.
    pub first: Stages,
    /// Every later step.
    pub steady: Stages,
    /// How parameters are initialized when the model was captured by its shapes.
    pub init: HashMap<String, Init>,
    scalars: StepScalars,
    constants: HashMap<String, TensorData>,
    values: std::sync::Arc<HashMap<String, TensorData>>,
}

/// A compiled forward pass.
pub struct InferenceProgram {
    /// Its stages.
    pub stages: Stages,
    constants: HashMap<String, TensorData>,
    values: std::sync::Arc<HashMap<String, TensorData>>,
}

/// How parameters are called: burn's module path to the name that plans and files use.
pub type Rename<'a> = &'a dyn Fn(&str) -> String;

/// Renames the parameters of a captured program.
pub(crate) fn renamed(captured: &Captured, rename: Rename) -> Captured {
    use crate::capture::{InputKind as I, OutputKind as O};
    let mut c = captured.clone();
    for input in &mut c.inputs {
        match &mut input.kind {
            I::Parameter { path } => *path = rename(path),
            I::State { parameter, .. } => *parameter = rename(parameter),
            _ => {}
        }
    }
    for output in &mut c.outputs {
        match &mut output.kind {
            O::Parameter { path } | O::Gradient { path } => *path = rename(path),
            O::State { parameter, .. } => *parameter = rename(parameter),
            _ => {}
        }
    }
    c.init = captured.init.iter().map(|(k, v)| (rename(k), v.clone())).collect();
    c.values = std::sync::Arc::new(captured.values.iter().map(|(k, v)| (rename(k), v.clone())).collect());
    c
}

/// The type of every module by the path that plans use.
fn module_kinds(captured: &Captured, rename: Rename) -> HashMap<String, String> {
    use crate::capture::InputKind as I;
    let module_of = |p: &str| p.rsplit_once('.').map_or("", |(m, _)| m).to_string();
    let parameters = captured.inputs.iter().filter_map(|i| match &i.kind {
        I::Parameter { path } => Some(path.as_str()),
        _ => None,
    });
    // A module is called in files as its own parameters say.
    let called: HashMap<String, String> = parameters.map(|p| (module_of(p), module_of(&rename(p)))).collect();
    let kind = |m: &crate::capture::ModuleInfo| {
        let path = called.get(&m.path).unwrap_or(&m.path).clone();
        (path, m.container.rsplit(':').next().unwrap_or_default().to_string())
    };
    captured.modules.iter().map(kind).collect()
}

/// An error about a module, with the module's type.
fn with_kind(error: Error, kinds: &HashMap<String, String>) -> Error {
    match error {
        Error::Style(mut style) => {
            if let StyleError::Nothing { module, kind, .. } = &mut *style {
                let known = kinds.get(module).filter(|k| !k.is_empty());
                *kind = known.map(|k| format!("a {k}"));
            }
            Error::Style(style)
        }
        other => other,
    }
}

/// Compiles a captured training step for a mesh and a plan.
///
/// # Errors
/// Operations without a counterpart, a plan that does not fit.
pub fn compile_training(
    capture: TrainingCapture,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
) -> Result<TrainingProgram, Error> {
    let (first, steady) = (renamed(&capture.first, rename), renamed(&capture.steady, rename));
    // Both programs keep parameters and state in the same place.
    let signature = Signature::of([&steady, &first])?;
    let steady_import = import_with(&steady, &signature)?;
    let first_import = import_with(&first, &signature)?;
    let constants = steady_import.constants.clone();
    let kinds = module_kinds(&capture.steady, rename);
    let compile = |graph| compile_graph(graph, mesh, plan, options).map_err(|e| with_kind(e, &kinds));
    let mut steady_stages = compile(steady_import.graph)?;
    let mut first_stages = compile(first_import.graph)?;
    for (a, b) in first_stages.ranks.iter_mut().zip(&mut steady_stages.ranks) {
        let bytes = a.arena_bytes.max(b.arena_bytes);
        (a.arena_bytes, b.arena_bytes) = (bytes, bytes);
    }
    Ok(TrainingProgram {
        first: first_stages,
        steady: steady_stages,
        init: first.init,
        scalars: capture.scalars,
        constants,
        values: first.values,
    })
}

/// Compiles a captured forward pass.
///
/// # Errors
/// Operations without a counterpart, a plan that does not fit.
pub fn compile_inference(
    captured: &Captured,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
) -> Result<InferenceProgram, Error> {
    let kinds = module_kinds(captured, rename);
    let captured = renamed(captured, rename);
    let Imported { graph, constants } = import_with(&captured, &Signature::of([&captured])?)?;
    let options = CompileOptions { step: options.step.of_inference(), ..options.clone() };
    let stages = compile_graph(graph, mesh, plan, &options).map_err(|e| with_kind(e, &kinds))?;
    Ok(InferenceProgram { stages, constants, values: captured.values })
}

/// The elements of tensor data as floats.
fn data_f64(data: &TensorData) -> Vec<f64> {
    data.clone().convert::<f64>().try_to_vec::<f64>().unwrap_or_default()
}

fn feed(session: &mut Session, kind: InputKind, values: &HashMap<String, TensorData>) -> Result<(), RuntimeError> {
    let names: Vec<String> =
        session.program(0).inputs.iter().filter(|i| i.kind == kind).map(|i| i.name.clone()).collect();
    for name in names {
        if let Some(data) = values.get(&name) {
            session.write_f64(&name, &data_f64(data))?;
        }
    }
    Ok(())
}

/// A running training program.
pub struct TrainingSession {
    session: Option<Session>,
    next: Option<Vec<RankProgram>>,
    scalars: StepScalars,
    seed: u64,
    step: usize,
}

impl TrainingProgram {
    /// Starts one thread per rank with the captured parameter values (if the model had any).
    ///
    /// # Errors
    /// Too many ranks, too little memory.
    pub fn launch(self, options: LaunchOptions) -> Result<TrainingSession, Error> {
        let mut session = Session::launch(self.first.ranks, options)?;
        feed(&mut session, InputKind::Constant, &self.constants)?;
        feed(&mut session, InputKind::Parameter, &self.values)?;
        Ok(TrainingSession {
            session: Some(session),
            next: Some(self.steady.ranks),
            scalars: self.scalars,
            seed: 0,
            step: 0,
        })
    }
}

impl TrainingSession {
    /// The ranks' session, to write inputs and read outputs.
    pub fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("a session between steps")
    }

    /// Number of steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Runs one step with a learning rate on the batch that was written, and returns the loss.
    ///
    /// # Errors
    /// A rank that fails.
    pub fn step(&mut self, learning_rate: f64) -> Result<f64, Error> {
        if self.step == 1
            && let (Some(session), Some(next)) = (self.session.take(), self.next.take())
        {
            self.session = Some(session.succeed(next)?);
        }
        self.step += 1;
        let values = self.scalars.values(self.step, learning_rate)?;
        let (step, seed) = (self.step as u64, self.seed);
        let session = self.session();
        let names: Vec<String> =
            session.program(0).inputs.iter().filter(|i| i.kind == InputKind::Scalar).map(|i| i.name.clone()).collect();
        for name in names {
            let value = match name.strip_prefix("step.").and_then(|i| i.parse::<usize>().ok()) {
                Some(i) => values[i],
                None => (seed.wrapping_mul(1 << 20) + step) as f64,
            };
            debug_assert!(name == SEED || name.starts_with("step."));
            session.write_f64(&name, &[value])?;
        }
        session.step()?;
        Ok(session.read_f64(&OutputKind::Loss)?[0])
    }
}

impl InferenceProgram {
    /// Starts one thread per rank with the captured parameter values (if the model had any).
    ///
    /// # Errors
    /// Too many ranks, too little memory.
    pub fn launch(self, options: LaunchOptions) -> Result<Session, Error> {
        let mut session = Session::launch(self.stages.ranks, options)?;
        feed(&mut session, InputKind::Constant, &self.constants)?;
        feed(&mut session, InputKind::Parameter, &self.values)?;
        if session.program(0).inputs.iter().any(|i| i.name == SEED) {
            session.write_f64(SEED, &[0.0])?;
        }
        Ok(session)
    }
}
