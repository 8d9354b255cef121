//! Runs a case through the `tpc` command and files: `run`, `train` and `dump-ir` with equivalent flags.

use super::case::{Case, Steps, Subject, Through};
use super::compare::difference;
use super::options::{Descent, Types, Ways};
use super::plan::PlanChoice;
use super::reference::Reference;
use super::verdict::{Fault, FaultKind, Verdict};
use crate::command::{Scratch, tpc as run_here};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tpc_compiler::models::{WeightMap, Weights, weight_map, write_weights};
use tpc_ir::interpret::Tensor;
use tpc_ir::{InputId, OutputKind, parse};
use tpc_runtime::output::Output;

/// Time limit of a process.
const LIMIT: Duration = Duration::from_secs(150);

type Fallible<T> = Result<T, Box<dyn Error>>;

/// The path of the `tpc` binary that was built next to this program, if it exists.
pub fn binary() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    here.ancestors().skip(1).take(2).map(|dir| dir.join("tpc")).find(|file| file.is_file())
}

/// Whether flags can express the case: the lowering options have no flags, and the precision flags apply to training
/// only.
fn can_be_said(case: &Case) -> bool {
    let Case { subject, ways, .. } = case;
    let trains = subject.descent.is_some() || subject.meaning.types == Types::F32;
    let ranks: usize = case.mesh.iter().map(|(_, size)| size).product();
    let begins = subject.descent.is_none() || subject.steps != Steps::Later;
    trains && begins && ways.disabled.contains(&1) && ways.disabled.contains(&25) && ranks >= 1
}

/// The verdict on a case that was equal through the API. Also [`Verdict::Equal`] for a case that flags cannot express.
pub fn through(reference: &Reference, case: &Case) -> Verdict {
    if case.through == Through::Api || !can_be_said(case) {
        return Verdict::Equal;
    }
    let verdict = match case.through {
        Through::Dumps => dumped(reference, case),
        _ => executed(reference, case),
    };
    let unexplained = |e| Verdict::Fault(Fault::new(FaultKind::Unexplained, format!("{:?}: {e}", case.through)));
    verdict.unwrap_or_else(unexplained)
}

fn executed(reference: &Reference, case: &Case) -> Fallible<Verdict> {
    let scratch = Scratch::new("fuzz");
    let map = weight_map(&reference.config);
    write_model(reference, &map, &scratch.0)?;
    for arguments in command_lines(case, &scratch)? {
        if let Err(fault) = tpc(case, &arguments)? {
            return Ok(Verdict::Fault(fault));
        }
    }
    let found = match case.subject.descent {
        Some(_) => match trained(reference, case, &map, &scratch)? {
            Ok(parts) => parts,
            Err(fault) => return Ok(Verdict::Fault(fault)),
        },
        None => forwarded(case, &scratch)?,
    };
    let wrong = found.iter().find_map(|(step, output, values)| difference(reference, *step, output, values));
    Ok(match wrong {
        Some(wrong) => Verdict::Fault(Fault::new(FaultKind::Numbers, format!("{:?}: {wrong}", case.through))),
        None => Verdict::Equal,
    })
}

/// The command lines of a case, which run one after the other.
fn command_lines(case: &Case, scratch: &Scratch) -> Fallible<Vec<Vec<String>>> {
    if case.subject.descent.is_none() {
        return Ok(vec![[run(scratch), placement(case, scratch)?].concat()]);
    }
    let flags = |flags: &[&str]| flags.iter().map(ToString::to_string).collect::<Vec<_>>();
    let metrics = flags(&["--metrics", &scratch.path("metrics.jsonl")]);
    let grads = match case.ways.gradients {
        true => flags(&["--grads", &scratch.path("grads.safetensors")]),
        false => Vec::new(),
    };
    let save = flags(&["--save", &scratch.path("saved")]);
    if case.subject.steps != Steps::Both || case.through != Through::Resumed {
        let steps = if case.subject.steps == Steps::Both { "2" } else { "1" };
        return Ok(vec![[train(case, scratch, steps), placement(case, scratch)?, metrics, grads, save].concat()]);
    }
    let checkpoint = scratch.path("checkpoint");
    let before = flags(&["--checkpoint", &checkpoint, "--metrics", &scratch.path("first.jsonl")]);
    let after = flags(&["--checkpoint", &checkpoint, "--resume"]);
    Ok(vec![
        [train(case, scratch, "1"), before, grads].concat(),
        [train(case, scratch, "2"), placement(case, scratch)?, after, metrics, save].concat(),
    ])
}

/// Writes `config.json`, weights and inputs.
fn write_model(reference: &Reference, map: &WeightMap, dir: &Path) -> Fallible<()> {
    let values =
        |name: &str| reference.given.get(&InputId::Parameter(name.into())).map_or_else(Vec::new, |t| t.data.clone());
    std::fs::write(dir.join("config.json"), reference.subject.model.json().to_string())?;
    write_weights(Output::at(&dir.join("model.safetensors"))?, map, |entry| {
        Ok(values(&entry.hf_name).into_iter().map(|v| v as f32).collect())
    })?;
    let shape = vec![reference.subject.batch.rows, reference.subject.batch.seq];
    let mut tensors: Vec<(&'static str, Vec<u8>)> = Vec::new();
    for name in ["input_ids", "labels", "attention_mask", "token_type_ids"] {
        if let Some(tensor) = reference.given.get(&InputId::Data(name.into())) {
            tensors.push((name, tensor.data.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect()));
        }
    }
    let mut views = Vec::new();
    for (name, data) in &tensors {
        views.push((*name, TensorView::new(Dtype::I64, shape.clone(), data)?));
    }
    std::fs::write(dir.join("inputs.safetensors"), safetensors::serialize(views, None)?)?;
    Ok(())
}

/// Plan, mesh and rules as flags.
fn placement(case: &Case, scratch: &Scratch) -> Fallible<Vec<String>> {
    let plan = match &case.plan {
        PlanChoice::BuiltIn(name) => name.clone(),
        PlanChoice::File(file) => {
            std::fs::write(scratch.path("plan.json"), file.text())?;
            scratch.path("plan.json")
        }
    };
    let mut flags = vec!["--plan".into(), plan, "--mesh".into(), case.mesh_text()];
    let usual = Ways::usual(false).disabled;
    for number in case.ways.disabled.iter().filter(|n| !usual.contains(n)) {
        flags.extend(["--disable-rule".into(), number.to_string()]);
    }
    Ok(flags)
}

fn run(scratch: &Scratch) -> Vec<String> {
    let output = scratch.path("output.safetensors");
    ["run", &scratch.path(""), "--inputs", &scratch.path("inputs.safetensors"), "--output", &output]
        .map(String::from)
        .to_vec()
}

fn train(case: &Case, scratch: &Scratch, steps: &str) -> Vec<String> {
    let Subject { descent, meaning, .. } = &case.subject;
    let inputs = scratch.path("inputs.safetensors");
    let mut flags: Vec<String> =
        ["train", &scratch.path(""), "--inputs", &inputs, "--steps", steps].map(Into::into).into();
    let mut flag = |words: &[&str]| flags.extend(words.iter().map(|w| (*w).to_string()));
    if let Some(descent) = descent {
        flag(&["--lr", &descent.rate().to_string()]);
        match descent {
            Descent::Sgd => flag(&["--optimizer", "sgd"]),
            Descent::Momentum => flag(&["--optimizer", "sgd", "--momentum", "0.5"]),
            Descent::Nesterov => flag(&["--optimizer", "sgd", "--momentum", "0.5", "--nesterov"]),
            Descent::Adam | Descent::Adamw => {
                let name = if *descent == Descent::Adam { "adam" } else { "adamw" };
                flag(&[
                    "--optimizer",
                    name,
                    "--beta2",
                    "0.95",
                    "--eps",
                    "1e-2",
                    "--weight-decay",
                    "0.1",
                    "--decay-all",
                ]);
            }
        }
    }
    if let Some(norm) = meaning.clip {
        flag(&["--clip-norm", &norm.to_string()]);
    }
    if case.ways.micro_batches > 1 {
        flag(&["--micro-batches", &case.ways.micro_batches.to_string()]);
    }
    meaning.freeze.iter().for_each(|glob| flag(&["--freeze", glob]));
    match meaning.types {
        Types::F32 => {}
        Types::Bf16 => flag(&["--precision", "bf16"]),
        Types::Bf16ReducedInF32 => flag(&["--precision", "bf16", "--reduce", "f32"]),
    }
    flags
}

/// Runs the command; the inner error says why it failed.
fn tpc(case: &Case, arguments: &[String]) -> Fallible<Result<(), Fault>> {
    let through = case.through;
    let said = |code: i32, err: &str| {
        let kind = match () {
            () if err.contains("please report") || err.contains("internal error") => FaultKind::Internal,
            () if err.contains("panicked") => FaultKind::Panic,
            () => FaultKind::Unexplained,
        };
        Fault::new(kind, format!("{through:?}: exit code {code}: {err}\n{}", arguments.join(" ")))
    };
    let program = match (through, binary()) {
        (Through::Command | Through::Resumed, _) | (_, None) => {
            let (code, _, err) = run_here(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            return Ok(if code == 0 { Ok(()) } else { Err(said(code.into(), &err)) });
        }
        (_, Some(program)) => program,
    };
    let mut command = Command::new(program);
    if through == Through::Launch {
        let ranks: usize = case.mesh.iter().map(|(_, size)| size).product();
        command.args(["launch", "--ranks", &ranks.to_string(), "--"]);
    }
    let scratch = Scratch::new("fuzz");
    let err = scratch.path("stderr");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&err)?);
    let mut child = command.spawn()?;
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            let err = std::fs::read_to_string(&err).unwrap_or_default();
            return Ok(if status.success() { Ok(()) } else { Err(said(status.code().unwrap_or(-1), &err)) });
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return Ok(Err(Fault::new(FaultKind::Hang, format!("{through:?}: not done after {LIMIT:?}"))));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

type Part = (usize, OutputKind, Vec<f64>);

fn widened(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// Reads logits and loss from the files that the command wrote.
fn forwarded(case: &Case, scratch: &Scratch) -> Fallible<Vec<Part>> {
    let output = Weights::open_file(Path::new(&scratch.path("output.safetensors")))?;
    let names = if case.subject.batch.labels { &["logits", "loss"][..] } else { &["logits"] };
    let part = |name: &&str| -> Fallible<Part> {
        Ok((0, OutputKind::Result((*name).into()), widened(output.read_f32(name)?)))
    };
    names.iter().map(part).collect()
}

/// Reads losses, gradients and trained weights from the files that the command wrote. A weight that the program does
/// not read is saved unchanged.
fn trained(
    reference: &Reference,
    case: &Case,
    map: &WeightMap,
    scratch: &Scratch,
) -> Fallible<Result<Vec<Part>, Fault>> {
    let mut parts = Vec::new();
    let last = if case.subject.steps == Steps::Both { 1 } else { 0 };
    let metrics = std::fs::read_to_string(scratch.path("metrics.jsonl"))?;
    for line in metrics.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let step = line["step"].as_u64().and_then(|step| step.checked_sub(1)).ok_or("a line without a step")?;
        parts.push((step as usize, OutputKind::Loss, vec![line["loss"].as_f64().ok_or("a line without a loss")?]));
    }
    let saved = Weights::open_dir(Path::new(&scratch.path("saved")))?;
    let grads = match case.ways.gradients {
        true => Some(Weights::open_file(Path::new(&scratch.path("grads.safetensors")))?),
        false => None,
    };
    let frozen = |name: &str| {
        let patterns = &case.subject.meaning.freeze;
        !patterns.is_empty() && !grads.as_ref().is_none_or(|g| g.contains(name))
    };
    let given = Weights::open_dir(Path::new(&scratch.path("")))?;
    for entry in &map.entries {
        let update = OutputKind::Update(InputId::Parameter(entry.hf_name.as_str().into()));
        let is_read = reference.exact[last].iter().any(|(output, _)| *output == update);
        if !is_read && case.subject.meaning.freeze.is_empty() {
            if entry.read(&saved)? != entry.read(&given)? {
                let text = format!("{} is read by no operation, and saved with other values", entry.hf_name);
                return Ok(Err(Fault::new(FaultKind::Numbers, text)));
            }
            continue;
        }
        if let Some(grads) = grads.as_ref().filter(|g| g.contains(&entry.hf_name)) {
            parts.push((0, OutputKind::Gradient(entry.hf_name.as_str().into()), widened(entry.read(grads)?)));
        }
        // Parameters that are not trained have no update to compare with.
        if case.subject.meaning.freeze.is_empty() || grads.is_some() && !frozen(&entry.hf_name) {
            parts.push((last, update, widened(entry.read(&saved)?)));
        }
    }
    Ok(Ok(parts))
}

/// Dumps the captured and the placed program of a case, and executes the placed text, which must mean what the captured
/// text means.
fn dumped(reference: &Reference, case: &Case) -> Fallible<Verdict> {
    let scratch = Scratch::new("fuzz");
    let Subject { model, batch, .. } = &reference.subject;
    std::fs::write(scratch.path("config.json"), model.json().to_string())?;
    let (rows, seq) = (batch.rows.to_string(), batch.seq.to_string());
    let dump = |arguments: &[&str]| -> Fallible<Result<String, Fault>> {
        let (code, out, err) = run_here(&[&["dump-ir"], arguments].concat());
        let fault = || Fault::new(FaultKind::Unexplained, format!("dump-ir: exit code {code}: {err}"));
        Ok(if code == 0 { Ok(out) } else { Err(fault()) })
    };
    let dir = scratch.path("");
    let mut common = vec![dir.as_str(), "--batch", &rows, "--seq", &seq];
    if case.subject.descent.is_some() {
        common.extend(["--train", "--optimizer", "sgd", "--momentum", "0.5"]);
    }
    let placement = placement(case, &scratch)?;
    let placement: Vec<&str> = placement.iter().map(String::as_str).collect();
    let captured = match dump(&[&common[..], &["--stage", "captured"]].concat())? {
        Ok(text) => parse::parse(&text)?,
        Err(fault) => return Ok(Verdict::Fault(fault)),
    };
    let text = match dump(&[&common[..], &placement, &["--stage", "placed"]].concat())? {
        Ok(text) => text,
        // Without labels there are no logits to keep sharded, although the plan was right for the case's own program.
        Err(fault) if fault.text.contains("loss_parallel") => return Ok(Verdict::Equal),
        Err(fault) => return Ok(Verdict::Fault(fault)),
    };
    let placed = parse::parse(&text)?;
    std::fs::write(scratch.path("placed.tpc"), &text)?;
    if let Err(fault) = dump(&[&scratch.path("placed.tpc"), "--stage", "scheduled"])? {
        return Ok(Verdict::Fault(fault));
    }
    // Small indices, because every table has at least two rows.
    let inputs = crate::inputs(&captured, 2, &HashMap::new());
    // The captured program has gradients as outputs, too.
    let all = captured.outputs.iter().map(|o| o.kind.clone()).zip(crate::reference(&captured, &inputs));
    let all: HashMap<OutputKind, Tensor> = all.collect();
    let want: Option<Vec<Tensor>> = placed.outputs.iter().map(|o| all.get(&o.kind).cloned()).collect();
    let want = want.ok_or("the placed program has an output that the captured one lacks")?;
    let found = crate::executed(&placed, &inputs);
    let finite = want.iter().all(|t| t.data.iter().all(|v| v.is_finite()));
    let wrong = if finite { crate::wrong(&placed, &found, &want, 1e-2) } else { Vec::new() };
    Ok(match wrong.first() {
        Some(wrong) => Verdict::Fault(Fault::new(FaultKind::Numbers, format!("dump-ir: {wrong}"))),
        None => Verdict::Equal,
    })
}
