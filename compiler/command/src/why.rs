//! `tpc why`: from a value or a collective of the placed program to its causes, and what the best program without it costs.

use crate::columns::{Unit, aligned};
use crate::given::Given;
use crate::plans::axes;
use crate::predicted::{FIRST_RANK, Predicted};
use crate::{Failure, Outcome, Placement, Terminal};
use clap::Args;
use serde_json::{Value as Json, json};
use tpc_compiler::program::CompileOptions;
use tpc_compiler::why::{Alternative, Because, Explained, Explainer, Found, Program, Reader, Subject, Traffic, What};
use tpc_ir::InputId;
use tpc_ir::program::CollectiveOp;
use tpc_ir::quote::cut;
use tpc_passes::egraph::rules::Tag;
use tpc_passes::styles::pattern::Pattern;
use tpc_runtime::session::Backend;

/// Most subjects that are explained at once.
const MOST: usize = 8;

/// Most readers of a value that are shown.
const READERS: usize = 4;

/// Explain a value or a collective: why it is there, what reads it, and what the best program without it costs
#[derive(Debug, Args)]
pub struct Why {
    #[command(flatten)]
    predicted: Predicted,
    /// What to explain: %N as dump-ir --stage placed numbers it, a kind of collective with or without its axes
    /// (all_reduce tp), a parameter or another input, or a module; paths may be patterns (layers.*.attention)
    #[arg(value_name = "WHAT", index = 2)]
    what: Vec<String>,
    #[command(flatten)]
    placement: Placement,
}

/// The subcommand, in which MODEL_DIR is a part of WHAT if a preset is named.
pub(crate) fn with_preset(command: clap::Command) -> clap::Command {
    let free = |arg: clap::Arg| arg.index(1).conflicts_with(clap::builder::Resettable::Reset);
    command.mut_subcommand("why", |why| why.mut_arg("model", free))
}

impl Why {
    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        let words: Vec<String> = self.predicted.after_preset().into_iter().chain(self.what.iter().cloned()).collect();
        // Report all errors in the question, the mesh and the plan before the long part.
        let (mesh, what) = (self.placement.mesh()?, read(&words)?);
        self.placement.plan()?;
        let prepared = self.predicted.prepare(self.placement.options(Backend::Cpu, false, 0)?, given, terminal)?;
        let options = CompileOptions {
            search: self.placement.search()?,
            lower: self.placement.lower(),
            ..prepared.options.clone()
        };
        let plan = self.placement.completed(&prepared.workload, &mesh, &options)?;
        self.placement.note(&mesh, &plan, &options.target, terminal);
        let why = prepared.workload.why(&mesh, &plan, &options);
        let why = why.map_err(|error| self.placement.failure(error))?;
        let subjects = found(&why, what)?;
        if subjects.len() > MOST {
            return Err(too_many(&why, &subjects, &words));
        }
        let mut answers = Vec::new();
        for subject in &subjects {
            answers.push((why.explain(subject), why.without(subject)?));
        }
        let costs = Costs { program: *why.program(), best: why.best()?.copied(), known: known(&answers) };
        if self.predicted.json {
            let mut report = self.predicted.report(&prepared);
            report["plan"] = json!(self.placement.plan);
            report["mesh"] = axes(&mesh);
            report["placements"] = json!(self.placement.placements.name());
            report["program"] = program_json(&costs.program);
            report["best"] = program_json(&costs.best());
            report["values"] = answers.iter().map(|(explained, without)| answer_json(explained, without)).collect();
            return terminal.print(format!("{report:#}\n"));
        }
        let mut text = format!("{}\n{}\n", self.predicted.described(&prepared, FIRST_RANK), self.placement.flags());
        for (explained, without) in &answers {
            text += &format!("\n{}\n{}", explained_text(explained, &costs.program), costs.table(without));
        }
        terminal.print(text)
    }
}

/// What a question names. A question that is no number and no kind of collective is a name.
///
/// # Errors
/// No words, too many words, a number or a pattern that is none.
fn read(words: &[String]) -> Outcome<Named> {
    let words: Vec<&str> = words.iter().flat_map(|word| word.split_whitespace()).collect();
    let kind = |name: &str| CollectiveOp::ALL.into_iter().find(|op| op.name() == name);
    match words[..] {
        [] => Err(Failure::new(
            "what is to be explained? %N, a kind of collective such as all_reduce tp, a parameter or a module",
        )),
        [one] if one.starts_with('%') => {
            let mut parts = one[1..].splitn(2, '.');
            let number = parts.next().and_then(|number| number.parse().ok());
            let result = parts.next().map_or(Some(0), |result| result.parse().ok());
            let (Some(number), Some(result)) = (number, result) else {
                return Err(Failure::new(format!(
                    "{} is not a value: write %40, or %40.1 for its second result",
                    cut(one)
                )));
            };
            Ok(Named::What(What::Number(number, result)))
        }
        [one] => match kind(one) {
            Some(op) => Ok(Named::What(What::Collective(op, None))),
            None => Ok(Named::Name(Pattern::new(one)?, one.to_string())),
        },
        [op, axes] => match kind(op) {
            Some(op) => Ok(Named::What(What::Collective(op, Some(axes.split(',').map(String::from).collect())))),
            None => Err(several(&words)),
        },
        _ => Err(several(&words)),
    }
}

fn several(words: &[&str]) -> Failure {
    Failure::new(format!("{} is more than one name", cut(&words.join(" "))))
}

/// A question as it was written.
enum Named {
    What(What),
    /// The name of an input, or a pattern of paths.
    Name(Pattern, String),
}

fn found(why: &Explainer, named: Named) -> Outcome<Vec<Subject>> {
    match named {
        Named::What(what) => Ok(why.find(&what)?),
        Named::Name(pattern, text) => {
            // Data and states have names that are no paths.
            let id = [InputId::Data(text.as_str().into()), InputId::kept(&text)];
            let input =
                id.into_iter().find(|id| !id.is_parameter() && why.graph().inputs().any(|(_, known)| known == id));
            Ok(why.find(&input.map_or(What::Pattern(pattern, text), What::Input))?)
        }
    }
}

fn numbers(explained: &Explained) -> String {
    match explained.numbers[..] {
        [first, .., last] => format!("%{first} … %{last}, {} values", explained.numbers.len()),
        [one] => format!("%{one}"),
        [] => String::new(),
    }
}

fn too_many(why: &Explainer, subjects: &[Subject], words: &[String]) -> Failure {
    let shown = subjects.iter().take(3 * MOST).map(|subject| {
        let explained = why.explain(subject);
        let modules = explained.modules.to_string();
        [format!("  {}", explained.operation), explained.phase.name().to_string(), modules]
    });
    let shown: Vec<[String; 3]> = shown.collect();
    let (others, count) = (subjects.len() - shown.len(), subjects.len());
    let others = if others > 0 { format!("  and {others} more\n") } else { String::new() };
    Failure::new(format!(
        "{} matches {count} values, and at most {MOST} are explained at once; name one by its number, as in `tpc why … %{}`:\n{}{others}",
        cut(&words.join(" ")),
        why.explain(&subjects[0]).numbers.first().copied().unwrap_or_default(),
        aligned(&shown, &[0, 1, 2]),
    ).trim_end())
}

/// The programs that an answer compares.
struct Costs {
    program: Program,
    best: Option<Program>,
    /// The programs that were found without something.
    known: Vec<Program>,
}

fn known(answers: &[(Explained, Vec<Alternative>)]) -> Vec<Program> {
    let alternatives = answers.iter().flat_map(|(_, alternatives)| alternatives);
    let program = |alternative: &Alternative| match &alternative.found {
        Found::Program { program, .. } => Some(*program),
        Found::Impossible | Found::Nothing => None,
    };
    alternatives.filter_map(program).collect()
}

impl Costs {
    /// The fastest program that was found.
    fn best(&self) -> Program {
        let others = self.best.iter().chain(&self.known);
        others.fold(self.program, |best, other| if other.seconds < best.seconds { *other } else { best })
    }

    fn table(&self, alternatives: &[Alternative]) -> String {
        let mut cells = vec![["", "step", "", "sent", "", "memory", "instead"].map(String::from)];
        let mut add = |words: String, program: &Program, instead: String| {
            let change = |unit: Unit, of: fn(&Program) -> f64| unit.change([of(&self.program), of(program)]);
            cells.push([
                format!("  {words}"),
                Unit::Seconds.text(program.seconds),
                change(Unit::Seconds, |program| program.seconds),
                Unit::Bytes.text(program.sent),
                change(Unit::Bytes, |program| program.sent),
                Unit::Bytes.text(program.arena_bytes as f64),
                instead,
            ]);
        };
        add("this program".into(), &self.program, String::new());
        let best = self.best();
        let is_best = best.seconds >= self.program.seconds;
        if !is_best {
            add("the best that the planner found".into(), &best, String::new());
        }
        for Alternative { barred, found } in alternatives {
            if let Found::Program { program, collectives, types } = found {
                add(barred.to_string(), program, instead(collectives, types));
            }
        }
        let mut text = aligned(&cells, &[0, 6]);
        if is_best {
            text += "  the planner found nothing faster\n";
        }
        for Alternative { barred, found } in alternatives {
            text += &match found {
                Found::Program { .. } => continue,
                Found::Impossible => {
                    format!("  {barred}: impossible while inputs and results lie where the plan has them\n")
                }
                Found::Nothing => format!("  {barred}: no such program was found\n"),
            };
        }
        text
    }
}

/// What a program has for values, in words.
fn instead(collectives: &[(String, usize)], types: &[String]) -> String {
    let one = |(text, count): &(String, usize)| if *count > 1 { format!("{text} ×{count}") } else { text.clone() };
    let all: Vec<String> = collectives.iter().map(one).collect();
    if all.is_empty() { format!("no collective of it, as {}", types.join(" or ")) } else { all.join(", ") }
}

fn explained_text(explained: &Explained, program: &Program) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut add = |word: &str, text: String| rows.push([format!("  {word}"), text]);
    let Explained { modules, phase, operation, before, ty, traffic, because, maker, readers, .. } = explained;
    match before {
        Some(before) => add("type", format!("{before} → {ty}")),
        None => add("type", ty.clone()),
    }
    add("module", format!("{modules}, {}", phase.name()));
    if explained.numbers.len() > 1 {
        add("values", numbers(explained));
    }
    if let Some(traffic) = traffic {
        traffic_rows(traffic, program).into_iter().for_each(|(word, text)| add(word, text));
    }
    for (i, because) in because.iter().enumerate() {
        add(if i == 0 { "because" } else { "" }, because_text(because));
    }
    if let Some(maker) = maker {
        add("made by", format!("{} : {}", maker.operation, maker.ty));
        for (operand, ty) in &maker.cut {
            add("", format!("from {operand} : {ty}"));
        }
    }
    for (i, Reader { operation, ty, module, needs }) in readers.iter().take(READERS).enumerate() {
        let module = if module.is_empty() { String::new() } else { format!("  in {module}") };
        add(if i == 0 { "read by" } else { "" }, format!("{operation} : {ty}{module}"));
        for need in needs {
            add("", format!("  {need}"));
        }
    }
    if readers.len() > READERS {
        add("", format!("and {} more", readers.len() - READERS));
    }
    format!("{operation}\n{}", aligned(&rows, &[0, 1]))
}

fn traffic_rows(traffic: &Traffic, program: &Program) -> Vec<(&'static str, String)> {
    let Traffic { count, sent, alone, seconds, of_step, company } = *traffic;
    let each = |unit: Unit, total: f64| match count {
        1 => unit.text(total),
        _ => format!("{} ({count} times {})", unit.text(total), unit.text(total / count as f64)),
    };
    let company = if company > 1 { format!(", up to {company} values in one collective") } else { String::new() };
    vec![
        ("sends", each(Unit::Bytes, sent)),
        (
            "time",
            format!(
                "{} by the cost model; simulated {}{company}; adds {}, {:.1}% of the step",
                each(Unit::Seconds, alone),
                Unit::Seconds.text(seconds),
                Unit::Seconds.text(of_step),
                100.0 * of_step / program.seconds
            ),
        ),
    ]
}

fn because_text(because: &Because) -> String {
    match because {
        Because::Rule(rule) if rule.tag == Tag::Exact => format!("{because}, which keeps every bit"),
        Because::Rule(_) => format!("{because}, which takes sums in another order"),
        _ => because.to_string(),
    }
}

fn program_json(program: &Program) -> Json {
    let mut json = json!({
        "seconds": program.seconds, "model_seconds": program.model, "sent_bytes": Unit::Bytes.json(program.sent),
        "arena_bytes": program.arena_bytes,
    });
    if let Some(proof) = program.proof {
        json["planner"] = json!({ "seconds": proof.seconds, "bound": proof.bound });
    }
    json
}

fn answer_json(explained: &Explained, without: &[Alternative]) -> Json {
    let paths = explained.modules.paths().iter().map(ToString::to_string);
    let because = explained.because.iter().map(|because| match because {
        Because::Rule(rule) => json!({
            "text": because.to_string(), "rule": rule.id.number(), "name": rule.name, "equality": rule.equality,
            "exact": rule.tag == Tag::Exact,
        }),
        _ => json!({ "text": because.to_string() }),
    });
    let traffic = explained.traffic.map(|traffic| {
        json!({
            "count": traffic.count, "sent_bytes": Unit::Bytes.json(traffic.sent), "model_seconds": traffic.alone,
            "seconds": traffic.seconds, "seconds_of_step": traffic.of_step, "company": traffic.company,
        })
    });
    let maker = explained.maker.as_ref().map(|maker| {
        let cut = maker.cut.iter().map(|(operand, ty)| json!({ "operand": operand, "type": ty }));
        json!({ "operation": maker.operation, "type": maker.ty, "from": cut.collect::<Vec<_>>() })
    });
    let readers = explained.readers.iter().map(|reader| {
        let needs: Vec<String> = reader.needs.iter().map(ToString::to_string).collect();
        json!({ "operation": reader.operation, "type": reader.ty, "module": reader.module, "needs": needs })
    });
    let without = without.iter().map(|Alternative { barred, found }| match found {
        Found::Program { program, collectives, types } => {
            let instead = collectives.iter().map(|(text, count)| json!({ "operation": text, "count": count }));
            json!({
                "without": barred.to_string(), "found": true, "program": program_json(program),
                "instead": instead.collect::<Vec<_>>(), "types": types,
            })
        }
        Found::Impossible => json!({ "without": barred.to_string(), "found": false, "impossible": true }),
        Found::Nothing => json!({ "without": barred.to_string(), "found": false, "impossible": false }),
    });
    json!({
        "numbers": explained.numbers, "operation": explained.operation, "module": explained.modules.to_string(),
        "modules": paths.collect::<Vec<_>>(), "phase": explained.phase.name(), "before": explained.before,
        "type": explained.ty, "traffic": traffic, "because": because.collect::<Vec<_>>(), "made_by": maker,
        "read_by": readers.collect::<Vec<_>>(), "without": without.collect::<Vec<_>>(),
    })
}
