//! What a question may be about: the values of a placed program, those of equal modules together.

use crate::summary::Modules;
use std::collections::{BTreeSet, HashMap};
use tpc_ir::program::CollectiveOp;
use tpc_ir::quote::cut;
use tpc_ir::reason::Reason;
use tpc_ir::text::number;
use tpc_ir::{Graph, InputId, ModulePath, Op, Phase, Type, Value};
use tpc_passes::planner::kind;
use tpc_passes::styles::pattern::{Pattern, nearest};

/// What a question names.
#[derive(Clone, Debug)]
pub enum What {
    /// The value with a number in the text form, and its position among the results of its operation.
    Number(usize, u32),
    /// The collectives of a kind, over some axes if these are named.
    Collective(CollectiveOp, Option<Vec<String>>),
    /// An input of the program.
    Input(InputId),
    /// The parameters whose path a pattern matches, otherwise the collectives of the modules that it matches, otherwise the
    /// results of these modules.
    Pattern(Pattern, String),
}

/// A question that names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhatError {
    /// A number that no value has.
    #[error("there is no %{0}: the program has %0 to %{1}, as `tpc dump-ir --stage placed` prints it")]
    NoNumber(usize, usize),
    /// A kind of collective that the program does not have.
    #[error("the program has no {named}; it has {}", listed(.has))]
    NoCollective {
        /// What was asked for.
        named: String,
        /// What there is.
        has: Vec<String>,
    },
    /// A name that nothing has.
    #[error("no parameter, no other input and no module matches {}; the nearest are {}", cut(.named), .nearest.join(", "))]
    NoName {
        /// What was asked for.
        named: String,
        /// Names that are similar.
        nearest: Vec<String>,
    },
}

fn listed(kinds: &[String]) -> String {
    if kinds.is_empty() { "no collectives".into() } else { kinds.join(", ") }
}

/// A value of a placed program, and the values of other modules that look like it: the same operation on the same types, in
/// the same place of modules that differ in their indices, for reasons that differ in their indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The values, in the order of the program; at least one. The first one is shown.
    pub values: Vec<Value>,
    /// The modules that they are in.
    pub modules: Modules,
}

/// What makes two operations look the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Look {
    op: Op,
    operands: Vec<Type>,
    types: Vec<Type>,
    phase: Phase,
    module: ModulePath,
    reason: Reason,
}

fn without_indices(path: &ModulePath) -> ModulePath {
    path.with_indices(&mut std::iter::repeat(0))
}

impl Look {
    fn of(graph: &Graph, value: Value) -> Look {
        let n = graph.node(value.node);
        let op = match &n.op {
            Op::Input { id, layout, .. } => {
                Op::Input { id: id.map_path(without_indices), layout: layout.clone(), unit: None }
            }
            op => op.clone(),
        };
        Look {
            op,
            operands: graph.operands(value.node).into_iter().map(|v| graph.ty(v).clone()).collect(),
            types: n.types.clone(),
            phase: n.origin.phase,
            module: without_indices(&n.origin.module),
            reason: n.origin.reason.map_paths(without_indices),
        }
    }
}

/// The values of one look.
#[derive(Default)]
struct Alike {
    /// The subjects that have it.
    subjects: Vec<usize>,
    /// How many of its values each module and micro-batch has so far.
    seen: HashMap<(ModulePath, Option<usize>), usize>,
}

/// The subjects of some values. Equal values of one module are different subjects.
fn grouped(graph: &Graph, values: impl Iterator<Item = Value>) -> Vec<Subject> {
    let mut subjects: Vec<(Vec<Value>, Vec<ModulePath>)> = Vec::new();
    let mut known: HashMap<Look, Alike> = HashMap::new();
    for value in values {
        let origin = &graph.node(value.node).origin;
        let Alike { subjects: alike, seen } = known.entry(Look::of(graph, value)).or_default();
        // An input has no module of its own.
        let module = match graph.op(value) {
            Op::Input { id, .. } => id.path().map(ModulePath::holder).unwrap_or_default(),
            _ => origin.module.clone(),
        };
        let which = seen.entry((module.clone(), origin.micro_batch)).or_default();
        if *which == alike.len() {
            alike.push(subjects.len());
            subjects.push((Vec::new(), Vec::new()));
        }
        let (values, modules) = &mut subjects[alike[*which]];
        *which += 1;
        values.push(value);
        if !modules.contains(&module) {
            modules.push(module);
        }
    }
    let subject = |(values, mut modules): (Vec<Value>, Vec<ModulePath>)| {
        modules.sort();
        Subject { values, modules: Modules::of(modules) }
    };
    subjects.into_iter().map(subject).collect()
}

/// All collectives of a placed program.
pub fn collectives(graph: &Graph) -> Vec<Subject> {
    grouped(graph, graph.nodes().filter(|&n| graph.node(n).op.is_collective()).map(Value::from))
}

/// What a question is about; at least one subject.
///
/// # Errors
/// The program has nothing of that kind.
pub fn find(graph: &Graph, what: &What) -> Result<Vec<Subject>, WhatError> {
    match what {
        What::Number(wanted, result) => {
            let names = number(graph);
            let node = names.iter().find(|&(_, n)| n == wanted).map(|(&node, _)| node);
            let node = node.filter(|&node| (*result as usize) < graph.node(node).types.len());
            let last = names.len().saturating_sub(1);
            let value = Value { node: node.ok_or(WhatError::NoNumber(*wanted, last))?, result: *result };
            let look = Look::of(graph, value);
            let all = graph.nodes().map(|node| Value { node, result: *result });
            let alike = all.filter(|v| graph.op(*v).results() == look.op.results() && Look::of(graph, *v) == look);
            Ok(grouped(graph, alike).into_iter().filter(|subject| subject.values.contains(&value)).collect())
        }
        What::Collective(op, axes) => {
            let of = |subject: &Subject| {
                let op = graph.op(subject.values[0]);
                let axes: Vec<&str> = op.axes().iter().map(|axis| graph.mesh.name(axis)).collect();
                (kind(op), axes)
            };
            let all = collectives(graph);
            let is_meant = |subject: &&Subject| {
                let (kind, over) = of(subject);
                kind == Some(*op) && axes.as_ref().is_none_or(|axes| *axes == over)
            };
            let found: Vec<Subject> = all.iter().filter(is_meant).cloned().collect();
            if !found.is_empty() {
                return Ok(found);
            }
            let has = |subject: &Subject| {
                let (kind, axes) = of(subject);
                format!("{} {}", kind.map_or("", CollectiveOp::name), axes.join(","))
            };
            let has: BTreeSet<String> = all.iter().map(has).collect();
            let named = axes.iter().fold(op.name().to_string(), |text, axes| format!("{text} {}", axes.join(",")));
            Err(WhatError::NoCollective { named, has: has.into_iter().collect() })
        }
        What::Input(id) => {
            let found = graph.inputs().find(|&(_, known)| known == id);
            let (node, _) = found.ok_or_else(|| no_name(graph, &id.to_string()))?;
            Ok(grouped(graph, std::iter::once(node.into())))
        }
        What::Pattern(pattern, text) => {
            let is_meant = |path: &ModulePath| pattern.matches(path);
            let parameters = graph.inputs().filter(|(_, id)| id.parameter().is_some_and(is_meant));
            let mut found = grouped(graph, parameters.map(|(node, _)| node.into()));
            if found.is_empty() {
                let all = collectives(graph).into_iter();
                found = all.filter(|subject| subject.modules.paths().iter().any(is_meant)).collect();
            }
            if found.is_empty() {
                found = grouped(graph, results(graph, is_meant));
            }
            if found.is_empty() { Err(no_name(graph, text)) } else { Ok(found) }
        }
    }
}

/// What the forward pass of some modules computes for others.
fn results(graph: &Graph, is_meant: impl Fn(&ModulePath) -> bool) -> impl Iterator<Item = Value> {
    graph.nodes().map(Value::from).filter(move |&value| {
        let origin = &graph.node(value.node).origin;
        let leaves = || {
            let mut users = graph.users(value.node);
            users.any(|(user, _)| {
                let reader = &graph.node(user).origin;
                reader.phase == Phase::Forward && reader.module != origin.module
            })
        };
        origin.phase == Phase::Forward && is_meant(&origin.module) && leaves()
    })
}

fn no_name(graph: &Graph, text: &str) -> WhatError {
    let mut names: BTreeSet<ModulePath> = graph.inputs().filter_map(|(_, id)| id.parameter().cloned()).collect();
    names.extend(graph.nodes().map(|n| graph.node(n).origin.module.clone()).filter(|module| !module.is_root()));
    WhatError::NoName { named: text.to_string(), nearest: nearest(text, &names) }
}
