//! `tpc dump-ir`: a program at any stage of the compiler.

use super::options::StepArguments;
use super::report;
use super::subject::{Optimizer, Step, Subject};
use super::{Failure, Outcome, Placement, Terminal};
use crate::capture::Captured;
use crate::import::{Signature, import_with};
use crate::program::{Error, place, renamed};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use tpc_ir::program::RankProgram;
use tpc_ir::{Graph, Mesh, OutputKind, fold, text};
use tpc_passes::canonicalize::canonicalize;
use tpc_passes::check::check;
use tpc_passes::egraph::SearchOptions;
use tpc_passes::lower::{LowerOptions, lower, lower_rank, lower_ranks, schedule};
use tpc_passes::options::{StepOptions, on_captured, on_logical};
use tpc_passes::propagate::{Annotation, Annotations, Constraint};
use tpc_passes::styles::layout::OnAxes;
use tpc_passes::styles::{Plan, parallelize_module};

/// A stage of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Stage {
    /// What burn recorded, nearly one to one
    Captured,
    /// Canonical, unplaced
    Logical,
    /// The logical graph with what the plan says of its inputs
    Annotated,
    /// The optimized program of all ranks
    Placed,
    /// The same as one rank sees it: local shapes and offsets
    Rank,
    /// What one rank executes: kernels, collectives, buffers
    Scheduled,
}

/// Print a model, or a graph from a file, at a stage of the compiler.
#[derive(Debug, Args)]
pub struct DumpIr {
    /// Directory with a config.json (weights are not needed), or a graph in text form (.tpc)
    #[arg(value_name = "MODEL_DIR|FILE.tpc", required_unless_present = "preset", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// A model that needs no directory: mlp, llama (those of the comparisons), gpt, gpt-learned
    #[arg(long)]
    preset: Option<String>,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    step: StepArguments,
    /// Sequences in a batch [default: 4]
    #[arg(long)]
    batch: Option<usize>,
    /// Tokens in a sequence [default: 256, or as many as the model has positions]
    #[arg(long)]
    seq: Option<usize>,
    /// The training step (a later one; the first only creates the optimizer's state), not the forward pass
    #[arg(long)]
    train: bool,
    /// Stage
    #[arg(long, value_enum, default_value = "placed")]
    stage: Stage,
    /// Rank to show of the stages rank and scheduled
    #[arg(long, default_value_t = 0)]
    rank: usize,
    /// Instead of the program: its collectives, and what each rank holds
    #[arg(long)]
    json: bool,
    /// Every line, also of blocks that repeat; FILE.tpc takes both forms
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    optimizer: Optimizer,
}

/// A program on its way through the compiler.
enum Program {
    Captured(Graph),
    Annotated(Box<(Graph, Annotations)>),
    Placed(Graph),
}

impl DumpIr {
    pub(super) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        let file = self.model.as_deref().filter(|path| path.is_file() || path.extension().is_some_and(|e| e == "tpc"));
        match file {
            Some(file) => self.graph_file(file, terminal),
            None => self.model(terminal),
        }
    }

    fn graph_file(&self, file: &Path, terminal: &mut Terminal) -> Outcome {
        let program = read(file)?;
        if let Program::Annotated(..) | Program::Placed(_) = program
            && !self.placement.mesh.is_empty()
        {
            return Err(Failure::at(file, "the graph has a mesh of its own: leave --mesh away"));
        }
        self.show(vec![program], terminal)
    }

    fn model(&self, terminal: &mut Terminal) -> Outcome {
        self.optimizer.check()?;
        let subject = match (&self.preset, &self.model) {
            (Some(name), _) => Subject::preset(name, self.batch, self.seq)?,
            (None, Some(dir)) => Subject::of_dir(dir, self.batch, self.seq)?,
            (None, None) => return Err(Failure::new("a model is needed: MODEL_DIR, FILE.tpc or --preset")),
        };
        // Everything that can be wrong with the mesh and the plan is said before the long part.
        self.placement.mesh()?;
        self.placement.plan()?;
        let rename = subject.rename();
        let mut captured = match self.train {
            false => vec![subject.forward()?],
            true => match subject.step(&self.optimizer)? {
                Step::Training(step) => vec![step.steady, step.first],
                Step::Backward(step) => vec![*step],
            },
        };
        captured.iter_mut().for_each(|c| *c = renamed(c, &rename));
        let signature = Signature::of(&captured).map_err(Error::from)?;
        // The first step is another program over the same arena: only sizes of memory depend on it.
        if !self.json && self.stage < Stage::Scheduled {
            captured.truncate(1);
        }
        let step = self.step.options(self.train && self.preset.as_deref() != Some("mlp"))?;
        let imported = captured.iter().map(|c| Ok(Program::Captured(import(c, &signature, &step)?)));
        self.show(imported.collect::<Outcome<_>>()?, terminal)
    }

    /// Shows the first of the programs, which share one arena.
    fn show(&self, programs: Vec<Program>, terminal: &mut Terminal) -> Outcome {
        let (mesh, plan, search) = (self.placement.mesh()?, self.placement.plan()?, self.placement.search()?);
        let to = if self.json { Stage::Placed } else { self.stage };
        let step = self.step.options(self.train && self.preset.as_deref() != Some("mlp"))?;
        let staged = programs.into_iter().map(|program| {
            let advanced = advance(program, to, &mesh, &plan, &search, &step)?;
            advanced.map_err(|error| self.placement.failure(error))
        });
        let staged: Vec<Graph> = staged.collect::<Outcome<_>>()?;
        let [first, others @ ..] = &staged[..] else { return Ok(()) };
        if self.json {
            let scheduled = schedule(first, &LowerOptions::default());
            let mut ranks = lower_ranks(first, &scheduled);
            for other in others {
                share_arenas(&mut ranks, &lower(other));
            }
            return terminal.print(format!("{:#}\n", report::json(first, &scheduled, &ranks)));
        }
        if self.stage >= Stage::Rank && self.rank >= first.mesh.ranks() {
            let (rank, ranks) = (self.rank, first.mesh.ranks());
            return Err(Failure::new(format!("there is no rank {rank}: {} has ranks 0 to {}", first.mesh, ranks - 1)));
        }
        match self.stage {
            Stage::Rank => terminal.print(report::rank_text(first, self.rank)),
            Stage::Scheduled => {
                let scheduled = |graph| lower_rank(graph, &schedule(graph, &LowerOptions::default()), self.rank);
                let mut program = [scheduled(first)];
                for other in others {
                    share_arenas(&mut program, &[scheduled(other)]);
                }
                terminal.print(program[0].to_text())
            }
            _ if self.full => terminal.print(text::print(first)),
            _ => terminal.print(fold::print(first)),
        }
    }
}

/// Programs that run one after the other in the same arenas need the larger ones.
fn share_arenas(programs: &mut [RankProgram], others: &[RankProgram]) {
    for (program, other) in programs.iter_mut().zip(others) {
        program.arena_bytes = program.arena_bytes.max(other.arena_bytes);
    }
}

fn import(captured: &Captured, signature: &Signature, step: &StepOptions) -> Outcome<Graph> {
    let graph = import_with(captured, signature).map_err(Error::from)?.graph;
    Ok(on_captured(&graph, step)?.into_owned())
}

/// Drops the gradients of a program that updates parameters: which values they are matters to the
/// plan, but such a program does not keep them to its end.
fn without_gradients(graph: &mut Graph) {
    if graph.outputs.iter().any(|o| matches!(o.kind, OutputKind::Update(_))) {
        graph.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
    }
}

/// Reads a graph and finds out how far it is.
fn read(file: &Path) -> Outcome<Program> {
    let source = std::fs::read_to_string(file).map_err(|e| Failure::at(file, e))?;
    let graph = tpc_ir::parse::parse(&source).map_err(|e| Failure::at(file, e))?;
    if let Err(errors) = tpc_ir::verify::verify(&graph) {
        return Err(match errors.first() {
            Some(first) => Failure::at(file, first),
            None => Failure::at(file, "not a well-formed graph"),
        });
    }
    if graph.mesh.axes().is_empty() {
        return Ok(Program::Captured(graph));
    }
    match check(&graph) {
        Ok(()) => Ok(Program::Placed(graph)),
        Err(_) if !graph.nodes().any(|n| graph.node(n).op.is_redistribution()) => {
            let annotations = annotations(&graph);
            Ok(Program::Annotated(Box::new((unplaced(&graph), annotations))))
        }
        Err(error) => Err(Failure::at(file, error)),
    }
}

/// What an annotated graph says of its values.
fn annotations(graph: &Graph) -> Annotations {
    let mut found = Annotations { mesh: graph.mesh.clone(), ..Annotations::default() };
    for node in graph.nodes() {
        let n = graph.node(node);
        let sharding = n.types[0].sharding.clone();
        if !sharding.is_replicated() {
            let why = std::sync::Arc::from(n.origin.why.to_string());
            match &n.op {
                tpc_ir::Op::Input { name, .. } => {
                    found.inputs.insert(name.clone(), Annotation { sharding, why });
                }
                _ => {
                    let at = OnAxes { axes: sharding.sharded_axes().iter().collect(), dims: sharding.dims };
                    found.results.insert(node, vec![Constraint { at, why }]);
                }
            }
        }
    }
    found
}

/// A graph without its placements.
fn unplaced(graph: &Graph) -> Graph {
    let mut logical = graph.clone();
    logical.mesh = Mesh::single();
    for node in graph.nodes() {
        for ty in &mut logical.node_mut(node).types {
            *ty = tpc_ir::Type::new(ty.dtype, ty.shape.clone());
        }
    }
    logical
}

/// A logical graph with its annotations as types.
fn annotated(logical: &Graph, annotations: &Annotations) -> Graph {
    let mut graph = logical.clone();
    graph.mesh = annotations.mesh.clone();
    for node in logical.nodes() {
        let n = graph.node_mut(node);
        match &n.op {
            tpc_ir::Op::Input { name, .. } => {
                if let Some(Annotation { sharding, why }) = annotations.inputs.get(name) {
                    n.types[0].sharding = sharding.clone();
                    n.origin.why = why.into();
                }
            }
            _ => {
                for Constraint { at, why } in annotations.results.get(&node).into_iter().flatten() {
                    n.types[0].sharding = at.applied(&n.types[0].sharding);
                    n.origin.why = why.into();
                }
            }
        }
    }
    graph
}

/// Takes a program to a stage, at most to the placed one; a failure if it is behind that stage
/// already, an error if it does not compile.
fn advance(
    program: Program,
    to: Stage,
    mesh: &Mesh,
    plan: &Plan,
    search: &SearchOptions,
    step: &StepOptions,
) -> Outcome<Result<Graph, Error>> {
    let behind =
        |stage: &str| Failure::new(format!("the graph of the file is {stage} already: choose a later --stage"));
    let (logical, annotations) = match program {
        Program::Captured(graph) if to == Stage::Captured => return Ok(Ok(graph)),
        Program::Captured(graph) => {
            if to == Stage::Logical {
                return Ok(Ok(on_logical(canonicalize(&graph), Annotations::default(), step)?.0));
            }
            match parallelize_module(&graph, mesh, plan.clone(), None) {
                Ok((mut logical, annotations)) => {
                    without_gradients(&mut logical);
                    on_logical(logical, annotations, step)?
                }
                Err(error) => return Ok(Err(error.into())),
            }
        }
        Program::Annotated(..) if to < Stage::Annotated => return Err(behind("annotated")),
        Program::Annotated(both) => *both,
        Program::Placed(_) if to < Stage::Placed => return Err(behind("placed")),
        Program::Placed(graph) => return Ok(Ok(graph)),
    };
    Ok(match to {
        Stage::Annotated => Ok(annotated(&logical, &annotations)),
        _ => place(&logical, &annotations, search, step).map(|p| p.placed),
    })
}
