//! Compiles and executes a case with ranks as threads.

use super::case::Case;
use super::reference::{Outputs, Reference};
use super::verdict::{Fault, FaultKind, Verdict, judge};
use tpc_compiler::error::Error;
use tpc_compiler::program::{CompileOptions, Stages, compile_graph};
use tpc_ir::program::RankPrograms;
use tpc_ir::{Mesh, OutputKind, fold, parse, text};
use tpc_passes::lower::lower_with;
use tpc_runtime::{LaunchOptions, RuntimeError, Session};

/// Runs a case: the results of every step.
///
/// # Errors
/// The verdict on a case that has no results.
pub fn run(reference: &Reference, case: &Case) -> Result<Vec<Outputs>, Verdict> {
    let unexplained = |e: String| Verdict::Fault(Fault::new(FaultKind::Unexplained, e));
    let mesh = Mesh::parse(&case.mesh_text()).map_err(|e| unexplained(e.to_string()))?;
    let plan = case.plan.plan().map_err(|e| unexplained(e.to_string()))?;
    let options = CompileOptions {
        target: case.ways.target(&mesh),
        search: case.ways.search(),
        gradients: case.ways.gradients,
        step: case.ways.step(&case.subject.meaning),
        lower: case.ways.lower(),
        seed: 0,
    };
    let mut compiled: Vec<Stages> = Vec::new();
    for graph in &reference.steps {
        compiled.push(compile_graph(graph.clone(), &mesh, &plan, &options).map_err(|e| judge(&e))?);
    }
    if case.subject.values.is_multiple_of(8) {
        compiled.iter().try_for_each(|stages| reads_back(stages, &options))?;
    }
    let mut programs: Vec<&mut RankPrograms> = compiled.iter_mut().map(|stages| &mut stages.ranks).collect();
    RankPrograms::share_arenas(&mut programs);
    executed(reference, compiled).map_err(|e| judge(&Error::from(e)))
}

/// Checks that the text of the placed program parses to the same program.
fn reads_back(stages: &Stages, options: &CompileOptions) -> Result<(), Verdict> {
    let fault = |e: String| Verdict::Fault(Fault::new(FaultKind::Text, e));
    let printed = fold::print(&stages.placed);
    let again = parse::parse(&printed).map_err(|e| fault(format!("{e}\n{printed}")))?;
    let (before, after) = (text::print(&stages.placed), text::print(&again));
    if before != after {
        let line = before.lines().zip(after.lines()).find(|(a, b)| a != b);
        return Err(fault(format!("reads back as another program: {line:?}")));
    }
    match lower_with(&again, &options.target, &options.lower) {
        Ok(ranks) if ranks[..] == *stages.ranks => Ok(()),
        _ => Err(fault("a program that reads back lowers to another one".into())),
    }
}

fn executed(reference: &Reference, compiled: Vec<Stages>) -> Result<Vec<Outputs>, RuntimeError> {
    let mut programs = compiled.into_iter().map(|stages| stages.ranks);
    let first = programs.next().unwrap_or_else(|| Vec::new().into());
    let mut session = Session::launch(first, LaunchOptions::default())?;
    let inputs = session.program(0).inputs.clone();
    for input in &inputs {
        if let Some(value) = reference.given.get(&input.id()) {
            session.write_f64(input, &value.data)?;
        }
    }
    let mut all = Vec::new();
    for (step, scalars) in reference.scalars.iter().enumerate() {
        if step > 0
            && let Some(next) = programs.next()
        {
            session.switch_to(next)?;
        }
        for input in &inputs {
            if let Some(value) = scalars.get(&input.id()) {
                session.write_f64(input, &value.data)?;
            }
        }
        session.step()?;
        let kinds: Vec<OutputKind> = session.program(0).outputs.iter().map(|o| o.kind.clone()).collect();
        let mut outputs = Outputs::new();
        for kind in kinds {
            let values = session.read_f64(&kind)?;
            outputs.push((kind, values));
        }
        all.push(outputs);
    }
    Ok(all)
}
