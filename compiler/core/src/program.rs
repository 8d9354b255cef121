//! Compiling, launching and stepping programs.
//!
//! | step | function |
//! |---|---|
//! | captured programs to imported graphs | `import_with`, in [`compile_training`] and [`compile_inference`] |
//! | freezing and clipping; the canonical graph and what the plan demands of it; precision and micro-batches | `prepare` |
//! | the first placement of every value, the planner, the e-graph | [`place`] |
//! | the programs of the ranks of this process | `lower_some`, in [`compile_graph`] |
//! | a session | `launch` of the compiled program |

use crate::budget::BudgetError;
use crate::capture::{Captured, Init, Number, StepScalars, TrainingCapture};
pub use crate::compile_options::CompileOptions;
use crate::error::Error;
use crate::explain::Facts;
use crate::feed::{check_memory, feed, seed_bytes, write_seed};
use crate::import::{Imported, Signature, import_with, step_scalar};
pub use crate::place::{Placed, compile_both, place, place_for};
use crate::prepare::{Planned, Prepared, prepare};
use crate::rename::{Rename, renamed};
use crate::shared_session::{SessionPlacements, SharedSession, own_ranks};
use crate::short::{ShortPlan, is_possible};
use crate::target;
use crate::together;
use burn::tensor::TensorData;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tpc_ir::program::{InputBinding, RankPrograms};
use tpc_ir::{Graph, InputId, InputKind, Mesh, OutputKind};
use tpc_passes::check::obligations::Obligations;
use tpc_passes::egraph::SearchReport;
use tpc_passes::lower::lower_some;
use tpc_passes::short_model::ShortModel;
use tpc_passes::styles::{Annotations, Plan};
use tpc_passes::targets::Target;
use tpc_runtime::RuntimeError;
use tpc_runtime::checkpoint::{self, Checkpoint, SaveOptions};
use tpc_runtime::session::{LaunchOptions, ProgramId, Session};

/// All stages of one program.
#[derive(Clone, Debug)]
pub struct Stages {
    /// The operations that burn recorded, nearly one to one, without frozen parameters' gradients and with clipping.
    pub captured: Graph,
    /// Canonical and without placements, with precision and micro-batches applied.
    pub logical: Graph,
    /// The placements that the plan demands.
    pub annotations: Annotations,
    /// The program with the initial placements.
    pub propagated: Graph,
    /// The optimized SPMD program.
    pub placed: Graph,
    /// What the plan obliges the optimized program to, which meets it.
    pub obligations: Obligations,
    /// The report of the search.
    pub report: SearchReport,
    /// The scheduled program of each rank, or of each rank of this process, if it is one of several.
    pub ranks: RankPrograms,
}

/// Compiles an imported program, whose inputs may first be renamed to the names in a model's files.
///
/// # Errors
/// A plan that does not fit.
pub fn compile_graph(captured: Graph, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Result<Stages, Error> {
    compile_graph_in(captured, mesh, plan, options, &SharedSession::default())
}

/// [`compile_graph`] for a program that a session executes in turn with others.
///
/// # Errors
/// The errors of [`compile_graph`]; a parameter that needs another placement than in the other programs.
pub(crate) fn compile_graph_in(
    captured: Graph,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    session: &SharedSession<'_>,
) -> Result<Stages, Error> {
    let Planned { captured, logical, annotations, placed: Placed { propagated, placed, obligations, report } } =
        plan_graph(captured, mesh, plan, options, session)?;
    let ranks = lowered(&placed, options, session.ranks.clone(), &session.programs)?;
    session.check(&ranks)?;
    Ok(Stages { captured, logical, annotations, propagated, placed, obligations, report, ranks })
}

/// The programs of some ranks of a placed program, or of all, each of which fits into the memory that it may have. The first
/// rank, which decided on the plan, usually has the largest shards.
///
/// # Errors
/// A program that fails the check of its lowering; a rank that needs more memory.
fn lowered(
    placed: &Graph,
    options: &CompileOptions,
    ranks: Option<Range<usize>>,
    others: &[&RankPrograms],
) -> Result<RankPrograms, Error> {
    let ranks = ranks.unwrap_or(0..placed.mesh.ranks());
    let programs = lower_some(placed, &options.target, &options.lower, ranks, others)?;
    let least = programs.iter().map(|rank| rank.arena_bytes).max().unwrap_or(0);
    match options.lower.memory {
        Some(limit) if limit < least => Err(BudgetError { limit, least }.into()),
        _ => Ok(programs),
    }
}

/// Takes a program to where every value is placed.
///
/// # Errors
/// As [`compile_graph`].
pub(crate) fn plan_graph(
    captured: Graph,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    session: &SharedSession<'_>,
) -> Result<Planned, Error> {
    if session.placements.is_none()
        && is_possible(options)
        && let Some(model) = ShortModel::captured(&captured)
        && let Some(planned) = ShortPlan::of(&model, mesh, plan, options).and_then(ShortPlan::whole)
    {
        return Ok(planned);
    }
    let Prepared { captured, logical, annotations } = prepare(captured, mesh, plan, options, session)?;
    let placed = place_for(&logical, &annotations, options, session.aim)?;
    Ok(Planned { captured, logical, annotations, placed })
}

/// A compiled training step: its first step and the steady program.
pub struct TrainingProgram {
    /// The first step, which creates the optimizer's state.
    pub first: Stages,
    /// Every later step.
    pub steady: Stages,
    /// How parameters are initialized if the model was captured from shapes.
    pub init: HashMap<String, Init>,
    pub(crate) scalars: StepScalars,
    pub(crate) constants: HashMap<String, TensorData>,
    pub(crate) values: std::sync::Arc<HashMap<String, TensorData>>,
    target: Target,
    seed: u64,
}

/// A compiled forward pass.
pub struct InferenceProgram {
    /// Its stages.
    pub stages: Stages,
    pub(crate) constants: HashMap<String, TensorData>,
    values: std::sync::Arc<HashMap<String, TensorData>>,
    target: Target,
    seed: u64,
}

/// A training step that is ready to be launched: the result of [`compile_training_together`] on every process.
pub struct CompiledTraining {
    /// How parameters are initialized if the model was captured from shapes.
    pub init: HashMap<String, Init>,
    ranks: TrainingRanks,
    scalars: StepScalars,
    constants: HashMap<String, TensorData>,
    values: std::sync::Arc<HashMap<String, TensorData>>,
    target: Target,
    seed: u64,
}

/// The rank programs of a training step.
struct TrainingRanks {
    first: RankPrograms,
    steady: RankPrograms,
    /// A program that evaluates the parameters between steps.
    evaluation: Option<RankPrograms>,
}

impl TrainingRanks {
    /// Lowers the placed programs of a training step, and of an evaluation if there is one, for some ranks.
    ///
    /// # Errors
    /// A program that fails the check of its lowering; a rank that needs more memory than it may have.
    fn lower(placed: &[Graph], options: &CompileOptions, ranks: &Option<Range<usize>>) -> Result<Self, Error> {
        let [first, steady, evaluation @ ..] = placed else { return Err(together::incomplete().into()) };
        let lower = |graph: &Graph, others: &[&RankPrograms]| lowered(graph, options, ranks.clone(), others);
        let (mut first, mut steady) = (lower(first, &[])?, lower(steady, &[])?);
        RankPrograms::share_arenas(&mut [&mut first, &mut steady]);
        let evaluation = evaluation.first().map(|graph| lower(graph, &[&first, &steady])).transpose()?;
        Ok(TrainingRanks { first, steady, evaluation })
    }
}

/// A forward pass that is ready to be launched: the result of [`compile_inference_together`] on every process.
pub struct CompiledInference {
    ranks: RankPrograms,
    constants: HashMap<String, TensorData>,
    values: std::sync::Arc<HashMap<String, TensorData>>,
    target: Target,
    seed: u64,
}

impl TrainingProgram {
    /// What is launched, and the placed programs that it was lowered from.
    fn split(self) -> (CompiledTraining, Vec<Graph>) {
        let TrainingProgram { first, steady, init, scalars, constants, values, target, seed } = self;
        let ranks = TrainingRanks { first: first.ranks, steady: steady.ranks, evaluation: None };
        let compiled = CompiledTraining { init, ranks, scalars, constants, values, target, seed };
        (compiled, vec![first.placed, steady.placed])
    }
}

impl InferenceProgram {
    /// What is launched, and the placed program that it was lowered from.
    fn split(self) -> (CompiledInference, Vec<Graph>) {
        let InferenceProgram { stages, constants, values, target, seed } = self;
        (CompiledInference { ranks: stages.ranks, constants, values, target, seed }, vec![stages.placed])
    }
}

impl From<TrainingProgram> for CompiledTraining {
    fn from(program: TrainingProgram) -> Self {
        program.split().0
    }
}

impl From<InferenceProgram> for CompiledInference {
    fn from(program: InferenceProgram) -> Self {
        program.split().0
    }
}

/// Compiles a captured training step for a mesh and a plan.
///
/// # Errors
/// Operations that the IR lacks, or a plan that does not fit.
pub fn compile_training(
    capture: TrainingCapture,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
) -> Result<TrainingProgram, Error> {
    compile_training_for(capture, mesh, plan, options, rename, None)
}

/// [`compile_training`] for some ranks, or for all.
///
/// # Errors
/// The errors of [`compile_training`].
pub(crate) fn compile_training_for(
    capture: TrainingCapture,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
    ranks: Option<Range<usize>>,
) -> Result<TrainingProgram, Error> {
    let (first, steady) = (renamed(&capture.first, rename), renamed(&capture.steady, rename));
    // Both programs keep parameters and state in the same place.
    let signature = Signature::of([&steady, &first])?;
    let steady_import = import_with(&steady, &signature)?;
    let first_import = import_with(&first, &signature)?;
    let constants = steady_import.constants.clone();
    let facts = Facts::of(&capture.steady, rename);
    let compile = |graph, aim| {
        let session = SharedSession { aim, ranks: ranks.clone(), ..SharedSession::default() };
        compile_graph_in(graph, mesh, plan, options, &session).map_err(|e| facts.explain(e))
    };
    let graphs = (steady_import.graph, first_import.graph);
    let (mut steady_stages, mut first_stages) =
        compile_both(options.search.placements, graphs, compile, |steady| steady.report.aim())?;
    RankPrograms::share_arenas(&mut [&mut first_stages.ranks, &mut steady_stages.ranks]);
    Ok(TrainingProgram {
        first: first_stages,
        steady: steady_stages,
        init: first.init,
        scalars: capture.scalars,
        constants,
        values: first.values,
        target: options.target.clone(),
        seed: options.seed,
    })
}

/// One of the two programs of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The program of the first step, which creates the optimizer's state.
    First,
    /// The program of all later steps.
    Steady,
}

/// Compiles one of the two programs of a captured training step for a session that executes several programs in turn. Returns its stages and
/// the constants of all programs of the session.
///
/// # Errors
/// The errors of [`compile_training`]; a parameter that needs another placement than in the other programs.
pub(crate) fn compile_step_in(
    capture: &TrainingCapture,
    which: Which,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    session: &SharedSession<'_>,
) -> Result<(Stages, HashMap<String, TensorData>), Error> {
    let signature = Signature::with_constants(session.constants.clone(), [&capture.steady, &capture.first])?;
    let captured = if which == Which::First { &capture.first } else { &capture.steady };
    let Imported { graph, constants } = import_with(captured, &signature)?;
    let facts = Facts::of(captured, &str::to_string);
    let stages = compile_graph_in(graph, mesh, plan, options, session).map_err(|e| facts.explain(e))?;
    Ok((stages, constants))
}

/// Compiles a captured forward pass.
///
/// # Errors
/// Operations that the IR lacks, or a plan that does not fit.
pub fn compile_inference(
    captured: &Captured,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
) -> Result<InferenceProgram, Error> {
    compile_inference_in(captured, mesh, plan, options, rename, &SharedSession::default())
}

/// [`compile_inference`] for a program that a session executes in turn with others.
///
/// # Errors
/// The errors of [`compile_inference`]; a parameter that needs another placement than in the other programs.
pub(crate) fn compile_inference_in(
    captured: &Captured,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
    session: &SharedSession<'_>,
) -> Result<InferenceProgram, Error> {
    let facts = Facts::of(captured, rename);
    let captured = renamed(captured, rename);
    let signature = Signature::with_constants(session.constants.clone(), [&captured])?;
    let Imported { graph, constants } = import_with(&captured, &signature)?;
    let options = CompileOptions { step: options.step.of_inference(), ..options.clone() };
    let stages = compile_graph_in(graph, mesh, plan, &options, session).map_err(|e| facts.explain(e))?;
    Ok(InferenceProgram { stages, constants, values: captured.values, target: options.target, seed: options.seed })
}

/// [`compile_training`] by one process for all: the first process places the program and sends it to the others, and every
/// process lowers its own ranks. Every process makes this call with the same arguments. On the process that compiles, `look`
/// receives the program, with the rank programs of this process. `evaluation` is a forward pass that computes a loss of the
/// same parameters, for [`TrainingSession::evaluate`]; its parameters stay where training has them.
///
/// # Errors
/// The errors of [`compile_training`], on all processes; a process that does not respond; an evaluation that needs another
/// placement of a parameter.
pub fn compile_training_together(
    (capture, evaluation): (TrainingCapture, Option<&Captured>),
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
    launch: &LaunchOptions,
    look: impl FnOnce(&TrainingProgram),
) -> Result<CompiledTraining, Error> {
    let ranks = own_ranks(launch, mesh);
    let compile = |capture| {
        let program = compile_training_for(capture, mesh, plan, options, rename, ranks.clone())?;
        look(&program);
        let evaluation = match evaluation {
            Some(captured) => {
                let (placements, constants) =
                    (SessionPlacements::of(&program.steady.placed), program.constants.clone());
                let programs = vec![&program.first.ranks, &program.steady.ranks];
                let (placements, ranks) = (Some(&placements), ranks.clone());
                let session = SharedSession { placements, constants, programs, aim: None, ranks };
                Some(compile_inference_in(captured, mesh, plan, options, rename, &session)?)
            }
            None => None,
        };
        let (mut compiled, mut placed) = program.split();
        if let Some(evaluation) = evaluation {
            placed.push(evaluation.stages.placed);
            compiled.constants = evaluation.constants;
            compiled.ranks.evaluation = Some(evaluation.stages.ranks);
        }
        Ok((compiled, placed))
    };
    if together::compiles(launch) {
        return together::hand_out(launch, compile(capture));
    }
    let (first, steady) = (renamed(&capture.first, rename), renamed(&capture.steady, rename));
    let mut constants = import_with(&steady, &Signature::of([&steady, &first])?)?.constants;
    if let Some(captured) = evaluation {
        let captured = renamed(captured, rename);
        constants = import_with(&captured, &Signature::with_constants(constants, [&captured])?)?.constants;
    }
    let ranks = together::receive(launch, |placed| TrainingRanks::lower(placed, options, &ranks))?;
    let (scalars, target, seed) = (capture.scalars, options.target.clone(), options.seed);
    Ok(CompiledTraining { init: first.init, ranks, scalars, constants, values: first.values, target, seed })
}

/// [`compile_inference`] by one process for all, like [`compile_training_together`].
///
/// # Errors
/// The errors of [`compile_inference`], on all processes; a process that does not respond.
pub fn compile_inference_together(
    captured: &Captured,
    mesh: &Mesh,
    plan: &Plan,
    options: &CompileOptions,
    rename: Rename,
    launch: &LaunchOptions,
    look: impl FnOnce(&InferenceProgram),
) -> Result<CompiledInference, Error> {
    let ranks = own_ranks(launch, mesh);
    let compile = || {
        let session = SharedSession { ranks: ranks.clone(), ..SharedSession::default() };
        let program = compile_inference_in(captured, mesh, plan, options, rename, &session)?;
        look(&program);
        Ok(program.split())
    };
    if together::compiles(launch) {
        return together::hand_out(launch, compile());
    }
    let captured = renamed(captured, rename);
    let constants = import_with(&captured, &Signature::of([&captured])?)?.constants;
    let ranks = together::receive(launch, |placed| {
        lowered(placed.first().ok_or_else(together::incomplete)?, options, ranks, &[])
    })?;
    let (target, seed) = (options.target.clone(), options.seed);
    Ok(CompiledInference { ranks, constants, values: captured.values, target, seed })
}

/// The name of an evaluation's result.
pub const EVALUATION: &str = "loss";

/// A running training program.
pub struct TrainingSession {
    session: Session,
    /// The training step among the programs of the session.
    program: ProgramId,
    /// The steady program, until it replaces the first one.
    next: Option<RankPrograms>,
    /// The program of [`TrainingSession::evaluate`].
    evaluation: Option<ProgramId>,
    scalars: StepScalars,
    seed: u64,
    step: usize,
}

impl TrainingProgram {
    /// Starts the ranks, as threads or in the processes of the options, with the captured parameter values, if the
    /// model had any.
    ///
    /// # Errors
    /// Too many ranks, too little memory, processes that do not respond or run other programs; a program for a CPU
    /// target on CUDA.
    pub fn launch(self, options: LaunchOptions) -> Result<TrainingSession, Error> {
        CompiledTraining::from(self).launch(options)
    }

    /// [`TrainingProgram::launch`], then [`TrainingSession::resume`].
    ///
    /// # Errors
    /// The errors of both.
    pub fn launch_resumed(self, options: LaunchOptions, dir: &Path) -> Result<TrainingSession, Error> {
        let mut training = self.launch(options)?;
        training.resume(dir)?;
        Ok(training)
    }
}

impl CompiledTraining {
    /// See [`TrainingProgram::launch`].
    ///
    /// # Errors
    /// The errors of [`TrainingProgram::launch`].
    pub fn launch(self, options: LaunchOptions) -> Result<TrainingSession, Error> {
        target::check(&self.target, options.backend)?;
        check_memory(&self.ranks.first, &options, |_| 0)?;
        let limits = options.clone();
        let mut session = Session::launch(self.ranks.first, options)?;
        feed(&mut session, InputKind::Constant, &self.constants)?;
        feed(&mut session, InputKind::Parameter, &self.values)?;
        let next = Some(self.ranks.steady);
        let program = session.selected();
        let evaluation = match self.ranks.evaluation {
            Some(ranks) => {
                check_memory(&ranks, &limits, |rank| session.allocated_bytes(rank))?;
                let evaluation = session.add(ranks)?;
                session.select(evaluation)?;
                feed(&mut session, InputKind::Constant, &self.constants)?;
                session.select(program)?;
                Some(evaluation)
            }
            None => None,
        };
        Ok(TrainingSession { session, program, next, evaluation, scalars: self.scalars, seed: self.seed, step: 0 })
    }
}

impl TrainingSession {
    /// The ranks' session, to write inputs and read outputs.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Number of finished steps.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Seed of the random operations: [`CompileOptions::seed`], or the seed of the resumed checkpoint.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The programs of the ranks that share the arenas: the loaded ones, and the one that replaces the program of the
    /// first step.
    pub(crate) fn programs(&self) -> Vec<&RankPrograms> {
        self.session.programs().chain(&self.next).collect()
    }

    /// Switches to the steady program, if it is not active yet.
    fn take_steady(&mut self) -> Result<(), Error> {
        match self.next.take() {
            Some(next) => Ok(self.session.switch_to(next)?),
            None => Ok(()),
        }
    }

    /// Runs one step with a learning rate on the written batch, and returns the loss.
    ///
    /// # Errors
    /// An input that was never written, a rank that fails.
    pub fn step(&mut self, learning_rate: f64) -> Result<f64, Error> {
        self.turn()?;
        self.run(&[learning_rate])
    }

    /// The loss of the evaluation on a batch, which `feed` writes to the session, with the current parameters. The
    /// training is not affected. NaN if the training was compiled without an evaluation.
    ///
    /// # Errors
    /// An input that was never written, a rank that fails.
    pub fn evaluate(&mut self, feed: impl FnOnce(&mut Session) -> Result<(), RuntimeError>) -> Result<f64, Error> {
        let Some(program) = self.evaluation else { return Ok(f64::NAN) };
        self.session.select(program)?;
        write_seed(&mut self.session, &seed_bytes(self.seed, 0))?;
        feed(&mut self.session)?;
        self.session.step()?;
        let loss = self.session.read_f64(&OutputKind::Result(EVALUATION.into()))?;
        self.session.select(self.program)?;
        Ok(loss.first().copied().unwrap_or(f64::NAN))
    }

    /// Selects the program of the next step: that of the first step, or that of all later ones.
    pub(crate) fn turn(&mut self) -> Result<(), Error> {
        self.session.select(self.program)?;
        if self.step > 0 {
            self.take_steady()?;
        }
        Ok(())
    }

    /// Runs one step with the selected program, with a learning rate for each group of parameters.
    pub(crate) fn run(&mut self, rates: &[f64]) -> Result<f64, Error> {
        let step = self.step + 1;
        let values = self.scalars.values_of_groups(step, &|group| rates[group])?;
        let (seed, session) = (self.seed, &mut self.session);
        session.must_agree("the step", step);
        for (group, rate) in rates.iter().enumerate() {
            match group {
                0 => session.must_agree("the learning rate", rate),
                _ => session.must_agree(&format!("the learning rate of group {group}"), rate),
            }
        }
        session.must_agree("the seed", seed);
        let scalars: Vec<InputId> =
            session.interface().inputs.iter().filter(|i| i.kind == InputKind::Scalar).map(InputBinding::id).collect();
        for id in scalars {
            if let Some(i) = step_scalar(&id) {
                session.write_f64((InputKind::Scalar, &*id.to_string()), &[values[i]])?;
            }
        }
        write_seed(session, &seed_bytes(seed, step as u64))?;
        session.step()?;
        self.step = step;
        Ok(self.session.read_f64(&OutputKind::Loss)?[0])
    }

    /// The numbers in the optimizer's state for the parameters of a class after this many steps, at least one.
    pub(crate) fn state_numbers(&mut self, class: usize, steps: usize) -> Result<Vec<Number>, Error> {
        Ok(self.scalars.state_numbers(class, steps)?)
    }

    /// Continues after this many steps, at least one, from an optimizer state, given as the bytes of its inputs.
    pub(crate) fn go_on(&mut self, steps: usize, states: &[(String, Cow<'_, [u8]>)]) -> Result<(), Error> {
        self.session.select(self.program)?;
        self.take_steady()?;
        for (name, bytes) in states {
            self.session.write_bytes((InputKind::State, name.as_str()), bytes)?;
        }
        self.session.compare_again();
        self.step = steps;
        Ok(())
    }

    /// Writes parameters, optimizer state, step and seed as a checkpoint in a directory of checkpoints, on all ranks at
    /// once, and returns the checkpoint's own directory. The checkpoint can be resumed on any mesh and plan.
    ///
    /// # Errors
    /// A session that failed, a disk that rejects the data, a later checkpoint in the directory. Earlier checkpoints
    /// stay complete.
    pub fn save_checkpoint(&self, dir: &Path) -> Result<PathBuf, Error> {
        self.save_checkpoint_with(dir, &SaveOptions::default())
    }

    /// [`TrainingSession::save_checkpoint`] with options: how many to keep.
    ///
    /// # Errors
    /// The errors of [`TrainingSession::save_checkpoint`].
    pub fn save_checkpoint_with(&self, dir: &Path, options: &SaveOptions) -> Result<PathBuf, Error> {
        debug_assert!(self.session.selected() == self.program, "a checkpoint belongs to the training step");
        Ok(checkpoint::save(&self.session, dir, self.step as u64, self.seed, options)?)
    }

    /// Resumes from the latest checkpoint in a directory of checkpoints, or from `dir` itself if it is a checkpoint:
    /// sets parameters, optimizer state, step and seed. Returns the number of finished steps. The batch has to be
    /// written before the next step.
    ///
    /// # Errors
    /// There is no checkpoint, it belongs to another model or optimizer, or it is damaged.
    pub fn resume(&mut self, dir: &Path) -> Result<usize, Error> {
        self.resume_from(&Checkpoint::latest(dir)?)
    }

    /// [`TrainingSession::resume`] from an opened checkpoint.
    ///
    /// # Errors
    /// The errors of [`TrainingSession::resume`]; a checkpoint of step 0 for a session that has passed the first step.
    pub fn resume_from(&mut self, checkpoint: &Checkpoint) -> Result<usize, Error> {
        self.session.select(self.program)?;
        // The program of the first step creates the state, all later ones read it.
        match checkpoint.step() {
            0 if self.next.is_none() => {
                let reason = "a checkpoint of step 0 needs the program of the first step, which has already run; launch a new session";
                return Err(RuntimeError::Launch(reason.into()).into());
            }
            0 => {}
            _ => self.take_steady()?,
        }
        checkpoint::load(&mut self.session, checkpoint)?;
        self.session.compare_again();
        self.step = checkpoint.step() as usize;
        self.seed = checkpoint.seed();
        Ok(self.step)
    }
}

impl InferenceProgram {
    /// Starts the ranks, as threads or in the processes of the options, with the captured parameter values, if the
    /// model had any.
    ///
    /// # Errors
    /// Too many ranks, too little memory, processes that do not respond or run other programs; a program for a CPU
    /// target on CUDA.
    pub fn launch(self, options: LaunchOptions) -> Result<Session, Error> {
        CompiledInference::from(self).launch(options)
    }
}

impl CompiledInference {
    /// See [`InferenceProgram::launch`].
    ///
    /// # Errors
    /// The errors of [`InferenceProgram::launch`].
    pub fn launch(self, options: LaunchOptions) -> Result<Session, Error> {
        target::check(&self.target, options.backend)?;
        check_memory(&self.ranks, &options, |_| 0)?;
        let mut session = Session::launch(self.ranks, options)?;
        feed(&mut session, InputKind::Constant, &self.constants)?;
        feed(&mut session, InputKind::Parameter, &self.values)?;
        write_seed(&mut session, &seed_bytes(self.seed, 0))?;
        Ok(session)
    }
}
