//! What a plan obliges a placed program to, and whether the program meets it.
//!
//! | what the plan places | what must hold of the final program |
//! |---|---|
//! | an input (parameter, state, data) | the input with this id has exactly this placement; every other input is replicated |
//! | the update of an input, the gradient of a parameter | the output lies like the input |
//! | a result of the program, by the layout of the module that gives it | the output lies so on the axes of the style |
//! | a value inside the program | nothing: the search may leave out a redistribution that changes no result. What it keeps is an obligation from then on |
//!
//! Identity is typed: an input by its [`InputId`], an output by its [`OutputKind`], a value inside the program by its node.
//!
//! Before: `{"up": ColwiseParallel}` annotates `input parameter "up.weight"` as `f32[64, 256@tp]`. After the search the
//! program must have `input parameter "up.weight" : f32[64, 256@tp]`.

use super::error::CheckError;
use crate::denotes::SameValues;
use crate::styles::annotations::{Annotations, Constraint};
use crate::styles::layout::OnAxes;
use petgraph::graph::NodeIndex;
use rustc_hash::{FxHashMap, FxHashSet};
use tpc_ir::block::Resized;
use tpc_ir::reason::{Cause, Reason};
use tpc_ir::{AxisId, Graph, InputId, Mesh, ModulePath, OutputKind, Sharding, Type, Value, text};

/// What an obligation is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// An input.
    Input(InputId),
    /// An output.
    Output(OutputKind),
    /// A value inside the program.
    Value(Value),
}

/// A placement that a tensor of the program must have.
#[derive(Clone, Debug, PartialEq)]
pub struct Obligation {
    /// The tensor.
    pub subject: Subject,
    /// The placement, on the axes that the plan speaks of.
    pub at: OnAxes,
    /// The plan entry; empty for an input that no entry shards.
    pub why: Reason,
}

/// What a plan obliges a program to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Obligations {
    /// The mesh of the program.
    pub mesh: Mesh,
    /// The placements.
    pub list: Vec<Obligation>,
    /// The number of placements of values inside the program that the search has given up.
    pub given_up: usize,
}

impl Obligations {
    /// The obligations for the inputs and outputs of a logical program.
    pub fn of(logical: &Graph, annotations: &Annotations) -> Self {
        let mesh = &annotations.mesh;
        let all: Vec<AxisId> = mesh.axis_ids().collect();
        let mut inputs: FxHashMap<&InputId, Obligation> = FxHashMap::default();
        let mut list = Vec::new();
        for (node, id) in logical.inputs() {
            let annotation = annotations.inputs.get(id);
            let rank = logical.node(node).types[0].rank();
            let dims = annotation.map_or_else(|| Sharding::replicated(rank).dims, |a| a.sharding.dims.clone());
            let why = annotation.map_or_else(Reason::default, |a| a.why.clone());
            let at = OnAxes { axes: all.clone(), dims };
            let obligation = Obligation { subject: Subject::Input(id.clone()), at, why };
            inputs.insert(id, obligation.clone());
            list.push(obligation);
        }
        for output in &logical.outputs {
            let subject = Subject::Output(output.kind.clone());
            let like = output.kind.trained().and_then(|(id, owner)| Some((inputs.get(&id)?, owner)));
            if let Some((input, owner)) = like {
                let at = input.at.clone();
                list.push(Obligation { subject, at, why: Cause::Like(owner).into() });
                continue;
            }
            let constraints = annotations.results.get(&output.value.node).map_or(&[][..], Vec::as_slice);
            list.extend(lasting(constraints).map(|c| Obligation {
                subject: subject.clone(),
                at: c.at.clone(),
                why: c.why.clone(),
            }));
        }
        Obligations { mesh: mesh.clone(), list, given_up: 0 }
    }

    /// These obligations and those for values inside a placed program that it meets. The others are counted.
    #[must_use]
    pub fn with_values(
        mut self,
        placed: &Graph,
        logical: &Graph,
        annotations: &Annotations,
        same: &SameValues,
    ) -> Self {
        let wanted = wanted(logical, annotations);
        if wanted.is_empty() {
            return self;
        }
        let copies = same.by_value();
        for (value, reader, Constraint { at, why }) in wanted {
            let candidates = copies(value);
            let is_read = |v: Value| {
                let Some(reader) = reader else { return true };
                copies(reader).iter().any(|r| placed.operands(r.node).contains(&v))
            };
            let kept = candidates.iter().find(|&&v| is_met(at, &placed.ty(v).sharding) && is_read(v));
            match kept {
                Some(&v) => {
                    self.list.push(Obligation { subject: Subject::Value(v), at: at.clone(), why: why.clone() });
                }
                None => self.given_up += 1,
            }
        }
        self
    }

    /// The obligations of a program that was made longer. `logical` and `annotations` are those of the long program, and
    /// `placed` is the long program itself, made from the one that meets these obligations.
    #[must_use]
    pub fn lengthened(&self, logical: &Graph, annotations: &Annotations, placed: &Resized) -> Obligations {
        let mut found = Obligations::of(logical, annotations);
        let mut values: FxHashMap<Value, Vec<Obligation>> = FxHashMap::default();
        for obligation in &self.list {
            if let Subject::Value(value) = &obligation.subject {
                values.entry(*value).or_default().push(obligation.clone());
            }
        }
        let results = values.keys().map(|value| value.result + 1).max().unwrap_or(0);
        for result in 0..results {
            let of = |node: NodeIndex| values.get(&Value { node, result }).map_or(&[][..], Vec::as_slice);
            for (node, said) in placed.continued(of, |obligation| &mut obligation.why) {
                let subject = Subject::Value(Value { node, result });
                found.list.extend(said.into_iter().map(|said| Obligation { subject: subject.clone(), ..said }));
            }
        }
        let kept = found.list.iter().filter(|o| matches!(o.subject, Subject::Value(_))).count();
        found.given_up = wanted(logical, annotations).len().saturating_sub(kept);
        found
    }

    /// Whether a placed program meets all of them.
    ///
    /// # Errors
    /// The first that it does not meet.
    pub fn check(&self, placed: &Graph) -> Result<(), CheckError> {
        self.violations(placed).next().map_or(Ok(()), Err)
    }

    /// Those that a placed program does not meet.
    pub fn violations<'a>(&'a self, placed: &'a Graph) -> impl Iterator<Item = CheckError> + 'a {
        let other_mesh = (placed.mesh != self.mesh)
            .then(|| CheckError::Mesh { found: placed.mesh.to_string(), expected: self.mesh.to_string() });
        let list = if other_mesh.is_some() { &[][..] } else { &self.list };
        let inputs = placed.inputs_by_id();
        let outputs: FxHashMap<&OutputKind, Value> = placed.outputs.iter().map(|o| (&o.kind, o.value)).collect();
        let violation = move |obligation: &Obligation| {
            let value = match &obligation.subject {
                Subject::Input(id) => inputs.get(id).map(|&node| node.into()),
                Subject::Output(kind) => outputs.get(kind).copied(),
                Subject::Value(v) => Some(*v).filter(|v| is_in(*v, placed)),
            };
            if value.is_some_and(|v| is_met(&obligation.at, &placed.ty(v).sharding)) {
                return None;
            }
            let why = if obligation.why.is_empty() { "the plan".into() } else { obligation.why.to_string() };
            let tensor = shown(&obligation.subject, placed);
            let Some(value) = value else { return Some(CheckError::Lost { tensor, why }) };
            let ty = placed.ty(value);
            Some(CheckError::Annotation {
                tensor,
                module: module(&obligation.subject, placed, value).to_string(),
                why,
                found: ty.display(&placed.mesh),
                demanded: demanded(ty, &obligation.at, &placed.mesh),
            })
        };
        other_mesh.into_iter().chain(list.iter().filter_map(violation))
    }
}

/// The placements that a plan demands of values inside a logical program: each value, what reads it if that matters, and the
/// placement.
fn wanted<'a>(logical: &Graph, annotations: &'a Annotations) -> Vec<(Value, Option<Value>, &'a Constraint)> {
    let outputs: FxHashSet<Value> = logical.outputs.iter().map(|o| o.value).collect();
    let (mut results, mut uses): (Vec<_>, Vec<_>) =
        (annotations.results.iter().collect(), annotations.uses.iter().collect());
    results.sort_by_key(|(node, _)| **node);
    uses.sort_by_key(|(reader, _)| **reader);
    let mut wanted: Vec<(Value, Option<Value>, &Constraint)> = Vec::new();
    for (&node, constraints) in results {
        if !outputs.contains(&node.into()) {
            wanted.extend(lasting(constraints).map(|c| (Value::from(node), None, c)));
        }
    }
    for (&(node, operand), constraints) in uses {
        let read = logical.operands(node).get(operand as usize).copied();
        wanted.extend(read.into_iter().flat_map(|v| lasting(constraints).map(move |c| (v, Some(node.into()), c))));
    }
    wanted
}

/// The constraints on a value that no later one overrides. They are applied one after the other, each to its axes.
fn lasting(constraints: &[Constraint]) -> impl Iterator<Item = &Constraint> {
    constraints.iter().enumerate().filter_map(|(i, constraint)| {
        let overridden = constraints[i + 1..].iter().any(|c| c.at.axes.iter().any(|a| constraint.at.axes.contains(a)));
        (!overridden).then_some(constraint)
    })
}

/// Whether a placement is as wanted on some axes.
fn is_met(at: &OnAxes, sharding: &Sharding) -> bool {
    let concerned = |axis: &&AxisId| at.axes.contains(axis);
    sharding.dims.len() == at.dims.len()
        && sharding.dims.iter().zip(&at.dims).all(|(found, wanted)| found.iter().filter(concerned).eq(wanted))
        && at.axes.iter().all(|&axis| !sharding.partial_axes().contains(axis))
}

/// The type that would meet an obligation.
fn demanded(ty: &Type, at: &OnAxes, mesh: &Mesh) -> String {
    if ty.rank() != at.dims.len() {
        return format!("one of {} dimensions", at.dims.len());
    }
    let set = at.axes.iter().copied().collect();
    ty.placed(at.applied(&ty.sharding.reduced(set))).display(mesh)
}

fn is_in(value: Value, graph: &Graph) -> bool {
    value.node.index() < graph.len() && (value.result as usize) < graph.node(value.node).types.len()
}

/// The name of a tensor in a message.
fn shown(subject: &Subject, graph: &Graph) -> String {
    match subject {
        Subject::Input(id) => format!("{} {:?}", id.kind().name(), id.to_string()),
        Subject::Output(kind) => format!("output {}", text::output_name(kind)),
        Subject::Value(v) if is_in(*v, graph) => text::value_text(graph, *v, &text::number(graph)),
        Subject::Value(v) => format!("value {} of node {}", v.result, v.node.index()),
    }
}

/// The module that a tensor belongs to.
fn module(subject: &Subject, graph: &Graph, value: Value) -> ModulePath {
    match subject {
        Subject::Input(id) => id.path().map(ModulePath::holder).unwrap_or_default(),
        _ => graph.node(value.node).origin.module.clone(),
    }
}
