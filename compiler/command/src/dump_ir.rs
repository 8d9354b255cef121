//! `tpc dump-ir`: prints a program at any stage of the compiler.

use crate::files::{self, Files};
use crate::given::Given;
use crate::graph_file;
use crate::notes::{has_idle_ranks, note_idle_ranks, note_search};
use crate::options::{Chosen, StepArguments};
use crate::report;
use crate::subject::{MLP, Optimizer, Shape, Step, Subject};
use crate::{Failure, Outcome, Placement, Terminal};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use tpc_compiler::capture::Captured;
use tpc_compiler::error::Error;
use tpc_compiler::explain::Facts;
use tpc_compiler::import::{Signature, import_with};
use tpc_compiler::parallel::both;
use tpc_compiler::plans::complete;
use tpc_compiler::program::{CompileOptions, compile_both, place_for};
use tpc_compiler::rename::renamed;
use tpc_compiler::short::{ShortPlan, is_possible, of_family};
use tpc_ir::program::RankProgram;
use tpc_ir::quote::cut;
use tpc_ir::size::addressable;
use tpc_ir::{Graph, Mesh, OutputKind, fold, text};
use tpc_passes::canonicalize::canonicalize;
use tpc_passes::check::obligations::Obligations;
use tpc_passes::check::{check, stored};
use tpc_passes::egraph::SearchReport;
use tpc_passes::lower::{LowerError, lower_rank, lower_ranks, lower_with, schedule};
use tpc_passes::options::{StepOptions, on_captured, on_logical};
use tpc_passes::planner::Aim;
use tpc_passes::styles::annotations::{Annotation, Annotations, Constraint};
use tpc_passes::styles::layout::OnAxes;
use tpc_passes::styles::{Plan, parallelize_module};
use tpc_passes::targets::{Link, Target};
use tpc_runtime::session::Backend;

/// A stage of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Stage {
    /// The operations that burn recorded, nearly one to one
    Captured,
    /// Canonical, without placements
    Logical,
    /// The logical graph with the placements that the plan demands of its inputs
    Annotated,
    /// The optimized program of all ranks
    Placed,
    /// The placed program from the view of one rank: local shapes and offsets
    Rank,
    /// The actions of one rank: kernels, collectives, buffers
    Scheduled,
}

impl Stage {
    /// Its name on the command line.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

/// The options of the search.
const SEARCH: [&str; 5] = ["fp", "enable_rule", "disable_rule", "placements", "memory_limit"];

/// Print a model, or a graph from a file, at a stage of the compiler.
#[derive(Debug, Args)]
pub struct DumpIr {
    /// Directory with a config.json (weights are not needed), or a graph in text form (.tpc) or as --store writes it
    #[arg(value_name = "MODEL_DIR|FILE.tpc", required_unless_present = "preset", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// A model without a directory: mlp, llama (as in the comparisons), gpt, gpt-learned
    #[arg(long)]
    preset: Option<String>,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    step: StepArguments,
    #[command(flatten)]
    shape: Shape,
    /// Show the training step instead of the forward pass (a later step; the first one also creates the optimizer's
    /// state)
    #[arg(long)]
    train: bool,
    /// Stage to print
    #[arg(long, value_enum, default_value = "placed")]
    stage: Stage,
    /// Rank to show at the stages rank and scheduled
    #[arg(long, default_value_t = 0)]
    rank: usize,
    /// Print the program's collectives and what each rank holds, as JSON, instead of the program
    #[arg(long)]
    json: bool,
    /// Print every line, including repetitions of blocks; FILE.tpc accepts both forms
    #[arg(long)]
    full: bool,
    /// Also write the placed program and what the plan demands of it to a file, as JSON, for tpc verify
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    #[command(flatten)]
    optimizer: Optimizer,
}

/// A program on its way through the compiler.
enum Program {
    Captured(Graph),
    /// A deep model that was placed with few of its layers.
    Short(Box<Staged>),
    Annotated(Box<(Graph, Annotations)>),
    Placed(Box<(Graph, Option<Obligations>)>),
}

impl DumpIr {
    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        if self.json {
            given
                .refuse(&["stage", "rank", "full"], "with --json, which reports on the placed program of all ranks")?;
        }
        let (stage, of_rank) = (self.stage.name(), self.stage >= Stage::Rank);
        match of_rank {
            false => given.refuse(&["rank"], &format!("at the stage {stage}, which is the same for all ranks"))?,
            true => given.refuse(&["full"], &format!("at the stage {stage}, which is always printed in full"))?,
        }
        if !self.json && self.stage < Stage::Placed {
            given.refuse(&["store"], &format!("at the stage {stage}, at which values are not placed yet"))?;
        }
        let read = self.model.as_deref().map_or_else(Files::default, |model| {
            let config = model.join("config.json");
            Files::default().reads("MODEL_DIR|FILE.tpc", if config.is_file() { &config } else { model })
        });
        self.placement.read(read).writes("--store", &self.store).check()?;
        let file = self.model.as_deref().filter(|path| path.is_file() || path.extension().is_some_and(|e| e == "tpc"));
        match file {
            Some(file) => self.graph_file(file, given, terminal),
            None => self.model(given, terminal),
        }
    }

    fn graph_file(&self, file: &Path, given: &Given, terminal: &mut Terminal) -> Outcome {
        const MODELS: [&str; 6] = ["batch", "seq", "train", "clip_norm", "micro_batches", "freeze"];
        given.refuse(
            &[&MODELS[..], &Optimizer::OPTIONS].concat(),
            "on a graph from a file, which is already captured",
        )?;
        let program = read(file)?;
        if let Program::Annotated(_) | Program::Placed(_) = program {
            if !self.placement.mesh.is_empty() {
                return Err(Failure::at(file, "the graph has its own mesh: leave --mesh out"));
            }
            given.refuse(&["plan", "precision", "reduce"], "on a graph from a file that already has placements")?;
        }
        if let Program::Placed(_) = program {
            given.refuse(&SEARCH, "on a graph from a file that is already placed")?;
            if !self.json && self.stage < Stage::Scheduled {
                given.refuse(&["target"], "on a graph from a file that is already placed, unless it is scheduled")?;
            }
        }
        self.show(vec![program], &Facts::default(), given, terminal)
    }

    fn model(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        self.optimizer.check_used(self.train, self.preset.as_deref(), given)?;
        let subject = Subject::of(self.preset.as_deref(), self.model.as_deref(), self.shape, terminal)?;
        // Report all errors in the mesh and the plan before the long part.
        self.placement.mesh()?;
        self.placement.plan()?;
        self.placement.target(Backend::Cpu)?;
        if let Some(programs) = self.with_few_layers(&subject, given)? {
            return self.show(programs, &Facts::default(), given, terminal);
        }
        let (captured, signature, facts) = self.captured(&subject)?;
        let step = self.step_options(given)?;
        let imported = |c: &Captured| {
            let graph = import(c, &signature, &facts)?;
            let graph = on_captured(&graph, &step).map_err(|error| facts.explain(error.into()))?.into_owned();
            Ok(Program::Captured(graph))
        };
        let programs = match &captured[..] {
            [shown, other] => {
                let (shown, other) = both(|| imported(shown), || imported(other));
                vec![shown?, other?]
            }
            captured => captured.iter().map(imported).collect::<Outcome<_>>()?,
        };
        self.show(programs, &facts, given, terminal)
    }

    /// The programs of a model, of which the first is shown.
    fn captured(&self, subject: &Subject) -> Outcome<(Vec<Captured>, Signature, Facts)> {
        let rename = subject.rename();
        let mut captured = match self.train {
            false => vec![subject.forward()?],
            true => match subject.step(&self.optimizer)? {
                Step::Training(step) => vec![step.steady, step.first],
                Step::Backward(step) => vec![*step],
            },
        };
        let facts = captured.first().map_or_else(Facts::default, |c| Facts::of(c, &rename));
        captured.iter_mut().for_each(|c| *c = renamed(c, &rename));
        let signature = Signature::of(&captured).map_err(Error::from)?;
        // The first step is a different program over the same arena: only the sizes of memory depend on it.
        if !self.json && self.stage < Stage::Scheduled {
            captured.truncate(1);
        }
        Ok((captured, signature, facts))
    }

    /// The programs of a deep model, placed with few of its layers. `None` if it must be compiled as a whole.
    fn with_few_layers(&self, subject: &Subject, given: &Given) -> Outcome<Option<Vec<Program>>> {
        let Some((few, deep)) = subject.with_few_layers() else { return Ok(None) };
        let options = self.options(given)?;
        if !is_possible(&options) || !self.json && self.stage < Stage::Placed {
            return Ok(None);
        }
        let Ok((captured, signature, facts)) = self.captured(&few) else { return Ok(None) };
        let (mesh, plan) = (self.placement.mesh()?, self.placement.plan()?);
        let is_folded = !self.json && !self.full && self.store.is_none() && self.stage == Stage::Placed;
        let placed = |captured: &Captured| {
            let graph = import(captured, &signature, &facts).ok()?;
            let short = ShortPlan::of(&of_family(deep, graph)?, &mesh, &plan, &options)?;
            let report = Some(short.report().clone());
            // A note about idle ranks counts the weights of all layers.
            let folded = (is_folded && !has_idle_ranks(short.short(), &plan)).then(|| short.to_text()).flatten();
            let (graph, obligations) = match folded {
                Some(_) => (short.short().clone(), None),
                None => short.placed().map(|(graph, obligations)| (graph, Some(obligations)))?,
            };
            Some(Program::Short(Box::new(Staged { graph, report, obligations, folded })))
        };
        Ok(match &captured[..] {
            [shown, other] => {
                let (shown, other) = both(|| placed(shown), || placed(other));
                shown.zip(other).map(|(shown, other)| vec![shown, other])
            }
            captured => captured.iter().map(placed).collect(),
        })
    }

    /// The options of the compiler.
    fn options(&self, given: &Given) -> Outcome<CompileOptions> {
        let (search, step) = (self.placement.search()?, self.step_options(given)?);
        // Nothing runs here, so a program may be planned for any device.
        let target = self.placement.target(Backend::Cpu)?;
        Ok(CompileOptions { search, step, lower: self.placement.lower(), ..CompileOptions::new(target) })
    }

    fn step_options(&self, given: &Given) -> Outcome<StepOptions> {
        self.step.options(self.train && self.preset.as_deref() != Some(MLP), given)
    }

    /// Notes options that only affect stages after the one that is shown.
    fn note_stage(&self, given: &Given, terminal: &mut Terminal) {
        if self.json {
            return;
        }
        let mut later: Vec<&str> = Vec::new();
        if self.stage < Stage::Logical {
            later.extend(["precision", "reduce", "micro_batches"]);
        }
        if self.stage < Stage::Annotated {
            later.extend(["plan", "mesh"]);
        }
        if self.stage < Stage::Placed {
            later.extend(SEARCH);
            later.push("target");
        }
        if let Some(option) = given.first(&later) {
            terminal.note(format!("{option} has no effect at the stage {}, which comes before it", self.stage.name()));
        }
    }

    /// Notes programs that need more memory than a rank of the named target has.
    fn note_capacity(&self, programs: &[RankProgram], target: &Target, terminal: &mut Terminal) {
        let needed = programs.iter().map(|program| program.arena_bytes).max().unwrap_or(0);
        if self.placement.target.is_some() && needed as f64 > target.device.capacity {
            terminal.note(format!(
                "a rank needs {needed} bytes, but a rank of the target {} has {}: use a smaller batch, --micro-batches, or a \
                 plan that shards more",
                cut(&target.name),
                target.device.capacity
            ));
        }
    }

    /// Shows the first of the programs, which share one arena.
    fn show(&self, programs: Vec<Program>, facts: &Facts, given: &Given, terminal: &mut Terminal) -> Outcome {
        let (mesh, plan, options) = (self.placement.mesh()?, self.placement.plan()?, self.options(given)?);
        let target = options.target.clone();
        let to = if self.json { Stage::Placed } else { self.stage };
        self.note_stage(given, terminal);
        let planned = !matches!(programs[..], [Program::Annotated(_) | Program::Placed(_), ..]);
        if to >= Stage::Annotated && planned {
            self.placement.note(&mesh, &plan, &target, terminal);
        }
        if to >= Stage::Placed && !self.json && self.placement.target.is_some() {
            terminal.note(described(&target));
        }
        let plan = match (self.placement.placements, &programs[..]) {
            (Chosen::Auto, [Program::Captured(graph), ..]) => {
                complete(graph, &mesh, &plan, &options).map_err(|e| self.placement.failure(facts.explain(e)))?
            }
            (Chosen::Auto, _) => return Err(Failure::new("--placements auto is for a model: the file has placements")),
            _ => plan,
        };
        let store = self.store.as_deref().map(files::output).transpose()?;
        let advanced = |program, aim| -> Outcome<Staged> {
            let advanced = advance(program, to, (&mesh, &plan), &options, aim)?;
            advanced.map_err(|error| self.placement.failure(facts.explain(error)))
        };
        let mut programs = programs.into_iter();
        let Some(shown) = programs.next() else { return Ok(()) };
        // The other program decides only how large the arenas are.
        let other = programs.next().filter(|_| self.json || to >= Stage::Scheduled);
        let (shown, other) = match other {
            None => (advanced(shown, None)?, None),
            Some(other) => {
                let aim = |shown: &Staged| shown.report.as_ref()?.aim();
                let (shown, other) = compile_both(options.search.placements, (shown, other), advanced, aim)?;
                (shown, Some(other))
            }
        };
        let Staged { graph: first, report, obligations, folded } = &shown;
        if let Some(store) = store {
            let stored = stored::to_json(first, obligations.as_ref());
            files::write(store, format!("{stored}\n").as_bytes())?;
        }
        if to >= Stage::Placed && planned {
            note_idle_ranks(first, &plan, self.step.micro_batches, terminal);
        }
        if let Some(report) = report {
            note_search(report, terminal);
        }
        if self.json {
            check_report(first)?;
            let scheduled = schedule(first, &target, &options.lower);
            let failed = |error: LowerError| self.placement.failure(error.into());
            let mut ranks = lower_ranks(first, &scheduled).map_err(failed)?;
            if let Some(other) = other {
                share_arenas(&mut ranks, &lower_with(&other.graph, &target, &options.lower).map_err(failed)?);
            }
            self.note_capacity(&ranks, &target, terminal);
            return terminal
                .print(format!("{:#}\n", report::json(first, &target, &scheduled, &ranks, report.as_ref())));
        }
        if self.stage >= Stage::Rank && self.rank >= first.mesh.ranks() {
            let (rank, ranks) = (self.rank, first.mesh.ranks());
            return Err(Failure::new(format!("there is no rank {rank}: {} has ranks 0 to {}", first.mesh, ranks - 1)));
        }
        match self.stage {
            Stage::Rank => terminal.print(report::rank_text(first, self.rank)),
            Stage::Scheduled => {
                let scheduled = |graph| {
                    let lowered = lower_rank(graph, &schedule(graph, &target, &options.lower), self.rank);
                    lowered.map_err(|error| self.placement.failure(error.into()))
                };
                let (program, other) =
                    both(|| scheduled(first), || other.as_ref().map(|other| scheduled(&other.graph)));
                let mut program = [program?];
                if let Some(other) = other {
                    share_arenas(&mut program, &[other?]);
                }
                self.note_capacity(&program, &target, terminal);
                terminal.print(program[0].to_text())
            }
            _ if self.full => terminal.print(text::print(first)),
            _ => terminal.print(folded.clone().unwrap_or_else(|| fold::print(first))),
        }
    }
}

/// Describes a target in one line.
fn described(target: &Target) -> String {
    let short = |x: f64| (x * 1e3).round() / 1e3;
    let link = |link: &Link| format!("{} GB/s after {} us", short(link.bandwidth / 1e9), short(link.latency * 1e6));
    let mut text = format!(
        "compiled for the target {}: {} TFLOP/s in f32, {} GB/s of memory, links of {}",
        cut(&target.name),
        short(target.device.products.f32 / 1e12),
        short(target.device.memory / 1e9),
        link(&target.links.default)
    );
    if let Some(node) = &target.links.node {
        text.push_str(&format!(", in nodes of {} ranks {}", node.ranks, link(&node.link)));
    }
    for (axis, named) in &target.links.axes {
        text.push_str(&format!(", along {axis} {}", link(named)));
    }
    text
}

/// Most bytes that the programs of all ranks may take in a report.
const MOST_REPORTED: usize = 2 << 30;
/// Approximate size of a rank's program per operation, in bytes.
const BYTES_OF_ACTION: usize = 1 << 10;

/// An error if the programs of all ranks cannot be held at once. Each program lists the members of its rank's groups.
fn check_report(placed: &Graph) -> Outcome {
    let members: usize = placed.nodes().map(|n| placed.mesh.group_size(placed.node(n).op.axes())).sum();
    let of_rank =
        members.saturating_mul(size_of::<usize>()).saturating_add(placed.len().saturating_mul(BYTES_OF_ACTION));
    let ranks = placed.mesh.ranks();
    let bytes = of_rank.saturating_mul(ranks);
    if bytes <= MOST_REPORTED {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the programs of all {ranks} ranks take about {} GiB, but a report may take at most {} GiB: \
         leave --json out, or show one rank with --stage scheduled --rank N",
        bytes >> 30,
        MOST_REPORTED >> 30
    )))
}

/// Gives programs that run alternately in the same arenas the size of the larger ones.
fn share_arenas(programs: &mut [RankProgram], others: &[RankProgram]) {
    for (program, other) in programs.iter_mut().zip(others) {
        program.arena_bytes = program.arena_bytes.max(other.arena_bytes);
    }
}

fn import(captured: &Captured, signature: &Signature, facts: &Facts) -> Outcome<Graph> {
    let graph = import_with(captured, signature).map_err(|error| facts.explain(error.into()))?.graph;
    addressable(&graph)?;
    Ok(graph)
}

/// Drops the gradients from the outputs of a program that updates parameters. The plan needs to know which values are
/// gradients, but the program does not keep them to its end.
fn without_gradients(graph: &mut Graph) {
    if graph.outputs.iter().any(|o| matches!(o.kind, OutputKind::Update(_))) {
        graph.outputs.retain(|o| !matches!(o.kind, OutputKind::Gradient(_)));
    }
}

/// Reads a graph and determines its stage.
fn read(file: &Path) -> Outcome<Program> {
    let (graph, obligations) = graph_file::read(file)?;
    if let Err(errors) = tpc_ir::verify::verify(&graph) {
        return Err(match errors.first() {
            Some(first) => Failure::at(file, first),
            None => Failure::at(file, "not a well-formed graph"),
        });
    }
    addressable(&graph).map_err(|e| Failure::at(file, e))?;
    if graph.mesh.axes().is_empty() {
        return Ok(Program::Captured(graph));
    }
    match check(&graph) {
        Ok(()) => Ok(Program::Placed(Box::new((graph, obligations)))),
        Err(_) if !graph.nodes().any(|n| graph.node(n).op.is_redistribution()) => {
            let annotations = annotations(&graph);
            Ok(Program::Annotated(Box::new((unplaced(&graph), annotations))))
        }
        Err(error) => Err(Failure::at(file, error)),
    }
}

/// Reads the annotations off an annotated graph.
fn annotations(graph: &Graph) -> Annotations {
    let mut found = Annotations { mesh: graph.mesh.clone(), ..Annotations::default() };
    for node in graph.nodes() {
        let n = graph.node(node);
        let sharding = n.types[0].sharding.clone();
        if !sharding.is_replicated() {
            let why = n.origin.reason.clone();
            match &n.op {
                tpc_ir::Op::Input { id, .. } => {
                    found.inputs.insert(id.clone(), Annotation { sharding, why });
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

/// Removes the placements of a graph.
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

/// Writes annotations into the types of a logical graph.
fn annotated(logical: &Graph, annotations: &Annotations) -> Graph {
    let mut graph = logical.clone();
    graph.mesh = annotations.mesh.clone();
    for node in logical.nodes() {
        let n = graph.node_mut(node);
        match &n.op {
            tpc_ir::Op::Input { id, .. } => {
                if let Some(Annotation { sharding, why }) = annotations.inputs.get(id) {
                    n.types[0].sharding = sharding.clone();
                    n.origin.reason = why.clone();
                }
            }
            _ => {
                for Constraint { at, why } in annotations.results.get(&node).into_iter().flatten() {
                    n.types[0].sharding = at.applied(&n.types[0].sharding);
                    n.origin.reason = why.clone();
                }
            }
        }
    }
    graph
}

/// A program at some stage; what the search says, if there was one, and what the plan demands, if that is known.
struct Staged {
    graph: Graph,
    report: Option<SearchReport>,
    obligations: Option<Obligations>,
    /// The folded text of a deep model. The graph then has few of its layers.
    folded: Option<String>,
}

impl From<Graph> for Staged {
    fn from(graph: Graph) -> Self {
        Staged { graph, report: None, obligations: None, folded: None }
    }
}

/// Takes a program to a stage, at most to the placed one, for what the planner was to do in the program before; a failure if
/// the program is past that stage already, an error if it does not compile.
fn advance(
    program: Program,
    to: Stage,
    (mesh, plan): (&Mesh, &Plan),
    options: &CompileOptions,
    aim: Option<Aim>,
) -> Outcome<Result<Staged, Error>> {
    let too_late =
        |stage: &str| Failure::new(format!("the graph in the file is already {stage}: choose a later --stage"));
    let (logical, annotations) = match program {
        Program::Captured(graph) if to == Stage::Captured => return Ok(Ok(graph.into())),
        Program::Captured(graph) => {
            if to == Stage::Logical {
                return Ok(Ok(on_logical(canonicalize(&graph), Annotations::default(), &options.step)?.0.into()));
            }
            match parallelize_module(&graph, mesh, plan.clone(), None) {
                Ok((mut logical, annotations)) => {
                    without_gradients(&mut logical);
                    on_logical(logical, annotations, &options.step)?
                }
                Err(error) => return Ok(Err(error.into())),
            }
        }
        Program::Short(staged) => return Ok(Ok(*staged)),
        Program::Annotated(..) if to < Stage::Annotated => return Err(too_late("annotated")),
        Program::Annotated(both) => *both,
        Program::Placed(_) if to < Stage::Placed => return Err(too_late("placed")),
        Program::Placed(both) => {
            let (graph, obligations) = *both;
            return Ok(Ok(Staged { obligations, ..graph.into() }));
        }
    };
    Ok(match to {
        Stage::Annotated => Ok(annotated(&logical, &annotations).into()),
        _ => place_for(&logical, &annotations, options, aim).map(|p| Staged {
            graph: p.placed,
            report: Some(p.report),
            obligations: Some(p.obligations),
            folded: None,
        }),
    })
}
