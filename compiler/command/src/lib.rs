//! The `tpc` command: its arguments, its errors, and code that its subcommands share.
//!
//! | question | file |
//! |---|---|
//! | the model of a command, and how it is captured | [`subject`] |
//! | clipping, micro-batches, freezing, precision | [`options`] |
//! | batches from files of tensors | [`data`] |
//! | which files are read and written, and that no two are the same | [`files`] |
//! | which options were given without effect | [`given`] |
//! | ranks that repeat the work of others, or have no work | [`notes`] |
//! | how messages show user text | `messages` |
//! | stages of the compiler as text, collectives and memory as JSON | [`dump_ir`], [`report`] |
//! | `--plan auto` | `auto` |
//! | built-in plans in the order of what they are predicted to take | [`plans`] |
//! | what a plan costs, by module; where two plans differ | [`costs`], [`mod@diff`] |
//! | a step of all ranks, by kind of rank, and its trace | [`simulate`] |
//! | why a value lies where it does, and what the best program without it costs | [`mod@why`] |
//! | a page that shows what the compiler made of a program | [`mod@view`] |
//! | the step whose cost these six commands predict; tables as text | [`predicted`]; `columns` |
//! | options that are given once for two plans, or once for each | `compared` |
//! | checking a stored program; graphs in files | [`verify`], `graph_file` |
//! | a forward pass from files to a file | [`run`](mod@run) |
//! | training steps, and texts to train on | [`train`] |
//! | text generation from prompts | [`generate`] |
//! | training a tokenizer | [`tokenizer`] |
//! | the trace of each rank's actions | [`trace`] |
//! | measurements for the comparisons | [`mod@bench`] |
//! | measuring this machine as a target | [`calibrate`] |
//! | running a command as one process per rank | [`launch`] |
//! | settings that must be the same for all processes of a command | `settings` |

mod auto;
pub mod bench;
pub mod calibrate;
mod columns;
mod compared;
pub mod costs;
pub mod data;
pub mod diff;
pub mod dump_ir;
pub mod files;
pub mod generate;
pub mod given;
mod graph_file;
pub mod launch;
mod messages;
pub mod notes;
pub mod options;
pub mod plans;
pub mod predicted;
pub mod report;
pub mod run;
pub mod saving;
mod settings;
pub mod simulate;
pub mod subject;
pub mod tokenizer;
pub mod trace;
pub mod train;
pub mod verify;
pub mod view;
pub mod why;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use given::Given;
use options::{Chosen, Fp};
use std::any::Any;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tpc_compiler::error::Error;
use tpc_compiler::plans::Workload;
use tpc_compiler::program::CompileOptions;
use tpc_compiler::target;
use tpc_ir::Mesh;
use tpc_ir::quote::cut;
use tpc_passes::egraph::SearchOptions;
use tpc_passes::egraph::rules::{Rule, RuleId, Tag, all_rules};
use tpc_passes::lower::LowerOptions;
use tpc_passes::styles::Plan;
use tpc_passes::targets::Target;
use tpc_runtime::Settings;
use tpc_runtime::session::{Backend, MAX_RANKS};

/// Shards burn models over a mesh: shows what the compiler makes of them, runs and trains them.
#[derive(Debug, Parser)]
#[command(name = "tpc", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    DumpIr(dump_ir::DumpIr),
    Plans(plans::Plans),
    Costs(costs::Costs),
    Diff(diff::Diff),
    Simulate(simulate::Simulate),
    View(view::View),
    Why(why::Why),
    Verify(verify::Verify),
    Run(run::Run),
    Train(Box<train::Train>),
    Generate(generate::Generate),
    Tokenizer(tokenizer::Tokenizer),
    Bench(bench::Bench),
    Calibrate(calibrate::Calibrate),
    Launch(launch::Launch),
}

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// A message for the user.
    Message(String),
    /// A message with a specific exit code.
    Code(u8, String),
    /// A signal ended the command after it had finished its current work: the exit code, and a message.
    Stopped(u8, String),
    /// The reader of the output has closed it, which is not an error.
    Closed,
}

impl Failure {
    /// A failure with this message.
    pub fn new(message: impl Display) -> Self {
        Failure::Message(message.to_string())
    }

    /// A failure that concerns a file.
    pub fn at(file: &Path, problem: impl Display) -> Self {
        Failure::Message(format!("{}: {problem}", cut(&file.display().to_string())))
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::new(error)
    }
}

/// The result of a subcommand.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Where a command writes its results and messages.
pub struct Terminal<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// Another process prints the same output.
    silent: bool,
}

impl Terminal<'_> {
    /// Writes text to the standard output.
    ///
    /// # Errors
    /// An output that rejects the text.
    pub fn print(&mut self, text: impl Display) -> Outcome {
        if self.silent {
            return Ok(());
        }
        let written = self.out.write_all(text.to_string().as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::new(format!("the standard output: {e}")),
        })
    }

    /// Prints a note about something that the result does not show.
    pub fn note(&mut self, text: impl Display) {
        if self.silent {
            return;
        }
        // A note that cannot be written does not make the result wrong. It is written in one piece, because a launcher
        // that prefixes lines with the rank then prefixes it once.
        let text = messages::shown(&text.to_string(), &[]);
        let _ = self.err.write_all(format!("note: {text}\n").as_bytes());
    }

    /// Prints [`Terminal::note`] unless the text is empty.
    fn note_if_any(&mut self, text: &str) {
        if !text.is_empty() {
            self.note(text);
        }
    }
}

/// Runs a command line, with the program's name first, and returns the exit code: 0 for success, 1 for a failure, 2 for
/// arguments that do not parse.
pub fn run<I, T>(arguments: I, stdout: &mut dyn Write, stderr: &mut dyn Write) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let command = why::with_preset(Cli::command());
    let parsed = command.clone().try_get_matches_from(&arguments);
    let parsed = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let mut text = messages::shown(&error.render().to_string(), &arguments);
            let is_error = error.use_stderr();
            if let (true, Some(hint)) = (is_error, launch::hint(&arguments)) {
                text.push_str(&format!("\nnote: {hint}\n"));
            }
            // If standard error is closed, nothing can report this.
            let _ = if is_error { stderr.write_all(text.as_bytes()) } else { stdout.write_all(text.as_bytes()) };
            return if is_error { 2 } else { 0 };
        }
    };
    let mut terminal = Terminal { out: stdout, err: &mut *stderr, silent: false };
    let settings = |files: &Reads| settings::settings(&command, &matches, files);
    let given = given(&matches).on(&arguments);
    let outcome = catch_unwind(AssertUnwindSafe(|| execute(&cli.command, &settings, &given, &mut terminal)));
    let (code, mut message) = match outcome.unwrap_or_else(|panic| Err(internal(&*panic))) {
        Ok(()) | Err(Failure::Closed) => return 0,
        Err(Failure::Message(message)) => (1, message),
        Err(Failure::Code(code, message)) => (code, message),
        Err(Failure::Stopped(code, message)) => {
            terminal.note_if_any(&message);
            return code;
        }
    };
    message = messages::shown(&message, &arguments);
    if let Some(processes) = tpc_runtime::launch::joined() {
        processes.fail(processes.process(), &message);
        if let Some(record) = processes.written_record() {
            message.push_str(&format!("; flight record: {}", record.display()));
        }
    }
    // In one piece, because a launcher that prefixes lines with the rank then prefixes it once.
    let _ = stderr.write_all(format!("error: {message}\n").as_bytes());
    code
}

/// The options of the subcommand that were given.
fn given(matches: &ArgMatches) -> Given {
    matches.subcommand().map(|(_, matches)| Given::of(matches)).unwrap_or_default()
}

/// The names of all subcommands.
fn subcommands() -> Vec<String> {
    Cli::command().get_subcommands().map(|s| s.get_name().to_string()).collect()
}

/// Files that must be the same for all processes, with the option that names each.
type Reads = [(String, PathBuf)];

fn execute(
    command: &Command,
    settings: &dyn Fn(&Reads) -> Settings,
    given: &Given,
    terminal: &mut Terminal,
) -> Outcome {
    let joining = match command {
        Command::Run(arguments) => Some((&arguments.running, arguments.reads())),
        Command::Train(arguments) => Some((&arguments.running, arguments.reads())),
        Command::Generate(arguments) => Some((&arguments.running, arguments.reads())),
        Command::Bench(arguments) => Some((&arguments.running, Vec::new())),
        Command::DumpIr(_)
        | Command::Plans(_)
        | Command::Costs(_)
        | Command::Diff(_)
        | Command::Simulate(_)
        | Command::View(_)
        | Command::Why(_)
        | Command::Verify(_)
        | Command::Calibrate(_)
        | Command::Launch(_)
        | Command::Tokenizer(_) => None,
    };
    if let Some((running, files)) = joining {
        running.join(|| settings(&files), terminal)?;
        terminal.silent = !launch::leads();
    }
    match command {
        Command::Launch(arguments) => arguments.execute(terminal),
        Command::DumpIr(arguments) => arguments.execute(given, terminal),
        Command::Plans(arguments) => arguments.execute(given, terminal),
        Command::Costs(arguments) => arguments.execute(given, terminal),
        Command::Diff(arguments) => arguments.execute(given, terminal),
        Command::Simulate(arguments) => arguments.execute(given, terminal),
        Command::View(arguments) => arguments.execute(given, terminal),
        Command::Why(arguments) => arguments.execute(given, terminal),
        Command::Verify(arguments) => arguments.execute(terminal),
        Command::Run(arguments) => arguments.execute(given, terminal),
        Command::Train(arguments) => arguments.execute(given, terminal),
        Command::Generate(arguments) => arguments.execute(given, terminal),
        Command::Bench(arguments) => arguments.execute(given, terminal),
        Command::Calibrate(arguments) => arguments.execute(terminal),
        Command::Tokenizer(arguments) => arguments.execute(terminal),
    }
}

/// Where the process last panicked; only known after [`quiet_panics`].
static PANICKED_AT: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics from printing, because the command reports every panic as an error.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        *PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }));
}

fn internal(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let place = PANICKED_AT.lock().unwrap_or_else(PoisonError::into_inner).take();
    let place = place.map(|p| format!(" (at {p})")).unwrap_or_default();
    Failure::new(format!("internal error: {}{place}; please report it", text.unwrap_or("no message")))
}

/// A rule by its number on the command line.
fn known_rule(number: u32, verb: &str) -> Outcome<&'static Rule> {
    all_rules().iter().find(|rule| rule.id.number() == number).ok_or_else(|| {
        let known: Vec<String> = RuleId::all().map(|rule| rule.to_string()).collect();
        Failure::new(format!("there is no rule {number} to {verb}; the rules are {}", known.join(", ")))
    })
}

/// What a rule with this tag does.
fn does(tag: Tag) -> &'static str {
    match tag {
        Tag::Exact => "keeps every bit",
        Tag::Reassociates => "takes sums in another order",
        Tag::Precision => "computes in another precision",
    }
}

/// An error if so many ranks cannot be executed: more than one process runs as threads, or another number than processes were
/// launched.
fn check_executed(ranks: usize) -> Outcome {
    if launch::local_ranks(ranks)?.len() > MAX_RANKS {
        return Err(Failure::new(format!(
            "mesh has {ranks} ranks, but one process can run at most {MAX_RANKS} as threads: start one process per rank \
             (`tpc launch`, `mpirun`, `srun`); `tpc dump-ir` plans without running"
        )));
    }
    Ok(())
}

/// The target of a name or of a file; without one, that of the backend.
///
/// # Errors
/// A name that is neither built in nor a file, a file that is no target.
fn target_named(name: Option<&str>, backend: Backend) -> Outcome<Target> {
    let Some(name) = name else { return Ok(target::of_backend(backend).clone()) };
    let unknown = match Target::built_in(name) {
        Ok(found) => return Ok(found.clone()),
        Err(unknown) => unknown,
    };
    let file = Path::new(name);
    match std::fs::read_to_string(file) {
        Ok(text) => Target::from_json(&text).map_err(|e| Failure::at(file, e)),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(unknown.into()),
        Err(e) => Err(Failure::at(file, e)),
    }
}

/// The mesh that a program is compiled for, and how it is compiled.
#[derive(Debug, Args)]
pub struct Placement {
    /// Built-in plan (none, tp, tp-sp, ddp, fsdp, zero1, hsdp, 2d, or a combination: tp-ddp, tp-sp-fsdp, …), JSON
    /// file, or auto: the built-in plan that is predicted to be the fastest
    #[arg(long, default_value = "none")]
    pub plan: String,
    /// Mesh axes with their sizes: tp=2 or dp=2,tp=4; without it, one rank
    #[arg(long, default_value = "", hide_default_value = true)]
    pub mesh: String,
    /// Machine that programs are compiled for: a built-in target (cpu, h100-node, h200-node, ethernet) or a JSON file
    /// as written by tpc calibrate [default: the target of the device that runs the ranks]
    #[arg(long, value_name = "NAME|FILE")]
    pub target: Option<String>,
    /// What the rewrite rules of the e-graph may do to floating-point results
    #[arg(long, value_enum, value_name = "WHAT", default_value = "reassociate")]
    pub fp: Fp,
    /// Switch on a rewrite rule that is off, by its number in passes/src/egraph/rules/RULES.md; may be repeated
    #[arg(long, value_name = "N")]
    pub enable_rule: Vec<u32>,
    /// Disable a rewrite rule of the e-graph, by its number in passes/src/egraph/rules/RULES.md; may be repeated
    #[arg(long, value_name = "N")]
    pub disable_rule: Vec<u32>,
    /// What decides the placements that the plan leaves open
    #[arg(long, value_enum, value_name = "WHO", default_value = "given")]
    pub placements: Chosen,
    /// Memory of one rank that a program must fit into, such as 80GiB or 80GB [default: any]
    #[arg(long, value_name = "SIZE", value_parser = predicted::size)]
    pub memory_limit: Option<f64>,
}

impl Placement {
    /// The options that tell this program apart from others of the same step.
    pub fn flags(&self) -> String {
        let plan = format!("--plan {}", cut(&self.plan));
        let mesh = if self.mesh.is_empty() { String::new() } else { format!(" --mesh {}", cut(&self.mesh)) };
        let placements = match self.placements {
            Chosen::Given => "",
            Chosen::Planned => " --placements planned",
            Chosen::Auto => " --placements auto",
        };
        let limit = self.memory_limit.map(|bytes| format!(" --memory-limit {bytes}")).unwrap_or_default();
        let fp = if self.fp == Fp::Reassociate { String::new() } else { format!(" --fp {}", self.fp.name()) };
        let rules = |verb: &str, rules: &[u32]| rules.iter().map(|n| format!(" --{verb}-rule {n}")).collect::<String>();
        let (on, off) = (rules("enable", &self.enable_rule), rules("disable", &self.disable_rule));
        [plan, mesh, placements.into(), limit, fp, on, off].concat()
    }

    /// The mesh to plan for.
    ///
    /// # Errors
    /// A text that is not a mesh.
    pub fn mesh(&self) -> Outcome<Mesh> {
        Ok(Mesh::parse(&self.mesh)?)
    }

    /// The mesh to execute on, checked before the long part of compiling.
    ///
    /// # Errors
    /// A text that is not a mesh, more ranks than one process can run, or a number of ranks other than that of the
    /// launched processes.
    pub fn executed_mesh(&self) -> Outcome<Mesh> {
        let mesh = Mesh::parse(&self.mesh)?;
        check_executed(mesh.ranks())?;
        Ok(mesh)
    }

    /// The plan.
    ///
    /// # Errors
    /// A name that is neither built in nor a file, or a file that is not a plan.
    pub fn plan(&self) -> Outcome<Plan> {
        let unknown = match Plan::built_in(&self.plan) {
            Ok(plan) => return Ok(plan),
            Err(_) if self.plan == auto::AUTO => {
                return Err(Failure::new(
                    "--plan auto is for tpc train and tpc bench; tpc plans shows what it would choose for a model",
                ));
            }
            Err(unknown) => unknown,
        };
        let file = Path::new(&self.plan);
        match std::fs::read_to_string(file) {
            Ok(text) => Plan::from_json(&text).map_err(|e| Failure::at(file, e)),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(unknown.into()),
            Err(e) => Err(Failure::at(file, e)),
        }
    }

    /// The plan for a workload, with what `--placements auto` adds to it.
    ///
    /// # Errors
    /// The errors of [`Placement::plan`]; a plan that does not fit.
    pub fn completed(&self, workload: &Workload, mesh: &Mesh, options: &CompileOptions) -> Outcome<Plan> {
        let plan = self.plan()?;
        match self.placements {
            Chosen::Auto => workload.complete(mesh, &plan, options).map_err(|error| self.failure(error)),
            Chosen::Given | Chosen::Planned => Ok(plan),
        }
    }

    /// Refuses `--placements auto` for a command that compiles several programs, none of which is the one to plan for.
    ///
    /// # Errors
    /// The option is given.
    pub fn refuse_auto(&self) -> Outcome<()> {
        match self.placements {
            Chosen::Auto => Err(Failure::new(
                "--placements auto is for commands that compile one step; tpc plans --placements auto --export DIR writes \
                 the plans that it finds, and --plan FILE reads them",
            )),
            Chosen::Given | Chosen::Planned => Ok(()),
        }
    }

    /// The target that programs are compiled for: the named one, or that of the backend.
    ///
    /// # Errors
    /// A name that is neither built in nor a file, a file that is not a target, or a CPU target for CUDA.
    pub fn target(&self, backend: Backend) -> Outcome<Target> {
        let found = target_named(self.target.as_deref(), backend)?;
        target::check(&found, backend)?;
        Ok(found)
    }

    /// Adds the files of the plan and of the target to the files that are read.
    #[must_use]
    pub fn read(&self, mut files: files::Files) -> files::Files {
        if Plan::built_in(&self.plan).is_err() {
            files = files.reads("--plan", Path::new(&self.plan));
        }
        match &self.target {
            Some(name) if Target::built_in(name).is_err() => files.reads("--target", Path::new(name)),
            _ => files,
        }
    }

    /// The error of a compilation, with the plan's file if the plan caused it.
    pub fn failure(&self, error: Error) -> Failure {
        match error {
            Error::Style(problem) if Plan::built_in(&self.plan).is_err() => Failure::at(Path::new(&self.plan), problem),
            other => other.into(),
        }
    }

    /// The options of the search.
    ///
    /// # Errors
    /// A rule that does not exist, that is named twice, or that `--fp` forbids.
    pub fn search(&self) -> Outcome<SearchOptions> {
        let mut search =
            SearchOptions { fp: self.fp.into(), placements: self.placements.source(), ..SearchOptions::default() };
        let mut named = HashSet::new();
        let options = [(&self.enable_rule, "enable"), (&self.disable_rule, "disable")];
        for (&number, verb) in options.iter().flat_map(|(numbers, verb)| numbers.iter().map(move |n| (n, verb))) {
            let rule = known_rule(number, verb)?;
            if !named.insert(rule.id) {
                let is_both = self.enable_rule.contains(&number) && self.disable_rule.contains(&number);
                return Err(Failure::new(match is_both {
                    true => format!("rule {number} is both enabled and disabled"),
                    false => format!("--{verb}-rule {number} is given twice"),
                }));
            }
            if *verb == "disable" {
                search.disabled.insert(rule.id);
            } else if search.fp.allows(rule.tag) {
                search.disabled.remove(&rule.id);
            } else {
                let fp = self.fp.name();
                return Err(Failure::new(format!(
                    "--enable-rule {number} contradicts --fp {fp}: the rule {}",
                    does(rule.tag)
                )));
            }
        }
        Ok(search)
    }

    /// The options of lowering.
    pub fn lower(&self) -> LowerOptions {
        LowerOptions { memory: self.memory_limit.map(|bytes| bytes as usize), ..LowerOptions::default() }
    }

    /// The compiler's options for programs that run on a backend. `gradients` keeps the gradients as outputs; `seed` is
    /// the seed of random operations.
    ///
    /// # Errors
    /// The errors of [`Placement::search`] and [`Placement::target`].
    pub fn options(&self, backend: Backend, gradients: bool, seed: u64) -> Outcome<CompileOptions> {
        let (search, lower) = (self.search()?, self.lower());
        Ok(CompileOptions { search, lower, gradients, seed, ..CompileOptions::new(self.target(backend)?) })
    }
}
