//! The operations of each module, phase by phase, and how their values are placed on the mesh.
//!
//! Modules that have the same place in equal elements of a list share a listing if their operations have the same types.
//! A listing shows one of them. Micro-batches are handled in the same way. A module may repeat operations itself: what
//! all layers do that belongs to none of them is listed once as well.

use super::modules::Modules;
use crate::summary::home;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::iter::repeat;
use tpc_ir::block::{Line, runs};
use tpc_ir::program::wire_bytes;
use tpc_ir::reason::Reason;
use tpc_ir::text::{is_inline, number, operation, value_text};
use tpc_ir::{Graph, Mesh, ModulePath, Op, Phase, Subscripts, Type, UnitId, Value};
use tpc_passes::cost::full_bytes;

/// A dimension of a value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dim {
    /// Its size, in elements.
    pub size: usize,
    /// The axes that shard it, major to minor, as positions in the mesh.
    pub axes: Vec<usize>,
}

/// How the ranks' terms of a value combine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartialSum {
    /// The reduction.
    pub op: &'static str,
    /// The axes along which ranks hold different terms.
    pub axes: Vec<usize>,
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Placed {
    /// The text form.
    pub text: String,
    /// The dimensions.
    pub dims: Vec<Dim>,
    /// How it is partial, if it is.
    pub partial: Option<PartialSum>,
    /// Bytes that the first rank holds.
    pub bytes: usize,
}

/// An operand; in JSON, a pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "(String, usize)")]
pub struct Operand {
    /// The name of the value, or a constant.
    pub name: String,
    /// The position of its type.
    pub ty: usize,
}

impl From<Operand> for (String, usize) {
    fn from(Operand { name, ty }: Operand) -> Self {
        (name, ty)
    }
}

/// What a collective sends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sent {
    /// The operation.
    pub kind: String,
    /// The axes, as positions in the mesh.
    pub axes: Vec<usize>,
    /// Bytes that a rank sends, by the ring algorithm.
    pub bytes: f64,
}

/// An operation of the placed program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operation {
    /// The number of its result in the text form.
    pub name: usize,
    /// How often it repeats in the module, together with the operations around it that repeat as often.
    pub times: usize,
    /// The mnemonic and the attributes.
    pub text: String,
    /// The operands.
    pub operands: Vec<Operand>,
    /// The positions of the types of its results.
    pub types: Vec<usize>,
    /// What it sends, if it is a collective.
    pub sent: Option<Sent>,
    /// The position of the reason for which it exists; none for an operation of the model.
    pub why: Option<usize>,
}

/// A part of a listing's module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// What the module owns: parameters and states.
    Inputs,
    /// Its forward pass.
    Forward,
    /// Its backward pass.
    Backward,
    /// The update of its parameters.
    Optimizer,
}

impl Section {
    fn of(phase: Phase) -> Self {
        match phase {
            Phase::Forward => Section::Forward,
            Phase::Backward => Section::Backward,
            Phase::Optimizer => Section::Optimizer,
        }
    }
}

/// The operations of modules that compute the same on the same placements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listing {
    /// The position of the module.
    pub module: usize,
    /// The part of it.
    pub section: Section,
    /// The path of the module that is shown.
    pub shown: String,
    /// The number of times that the program has these operations: by modules and micro-batches.
    pub count: usize,
    /// The operations, in the order of the program.
    pub operations: Vec<Operation>,
}

/// What makes two operations look the same. Names, numbers and reasons do not count.
#[derive(PartialEq, Eq, Hash)]
struct Look {
    op: Op,
    types: Vec<Type>,
    operands: Vec<Type>,
}

impl Look {
    fn of(graph: &Graph, Value { node, .. }: Value) -> Self {
        let n = graph.node(node);
        let mut op = n.op.clone();
        match &mut op {
            Op::Input { id, unit, .. } => {
                *id = id.map_path(|path| path.with_indices(&mut repeat(0)));
                *unit = unit.map(|_| UnitId(0));
            }
            Op::Random { stream, .. } => *stream = 0,
            _ => {}
        }
        let operands = graph.operands(node).into_iter().map(|v| graph.ty(v).clone()).collect();
        Look { op, types: n.types.clone(), operands }
    }
}

/// The types and the reasons of a program, each once.
struct Lists<'a> {
    mesh: &'a Mesh,
    types: Vec<Placed>,
    known: HashMap<Type, usize>,
    reasons: Vec<String>,
    reason: HashMap<Reason, usize>,
}

impl Lists<'_> {
    fn why(&mut self, reason: &Reason) -> Option<usize> {
        if reason.is_empty() {
            return None;
        }
        let next = self.reasons.len();
        let at = *self.reason.entry(reason.clone()).or_insert(next);
        if at == next {
            self.reasons.push(reason.to_string());
        }
        Some(at)
    }

    fn ty(&mut self, ty: &Type) -> usize {
        if let Some(&at) = self.known.get(ty) {
            return at;
        }
        let dims = ty.shape.iter().zip(&ty.sharding.dims);
        self.types.push(Placed {
            text: ty.display(self.mesh),
            dims: dims.map(|(&size, axes)| Dim { size, axes: axes.iter().map(|a| a.0.into()).collect() }).collect(),
            partial: ty.sharding.partial.map(|partial| PartialSum {
                op: partial.op.name(),
                axes: partial.axes.iter().map(|a| a.0.into()).collect(),
            }),
            bytes: ty.max_local_bytes(self.mesh),
        });
        self.known.insert(ty.clone(), self.types.len() - 1);
        self.types.len() - 1
    }
}

/// A module in one micro-batch, or outside of all.
type Instance = (ModulePath, Option<usize>);

/// The nodes of an instance, and their looks.
#[derive(Default)]
struct Part {
    nodes: Vec<Value>,
    looks: Vec<usize>,
}

/// The operations of a program.
pub(super) struct Listings {
    pub(super) types: Vec<Placed>,
    pub(super) reasons: Vec<String>,
    pub(super) listings: Vec<Listing>,
}

/// The types and the reasons of a program, and the listings of its modules.
pub(super) fn listings(graph: &Graph, modules: &Modules) -> Listings {
    let names = number(graph);
    let text = |value: Value| value_text(graph, value, &names);
    let mut lists = Lists {
        mesh: &graph.mesh,
        types: Vec::new(),
        known: HashMap::new(),
        reasons: Vec::new(),
        reason: HashMap::new(),
    };
    let mut listings = Vec::new();
    for ((module, section), instances) in parts(graph, modules) {
        for Alike { part: Part { nodes, looks }, path, count } in alike(instances) {
            let operation = |(at, times): (usize, usize)| {
                let name = names.get(&nodes[at].node).copied().unwrap_or_default();
                Operation { name, times, ..described(graph, nodes[at], &text, &mut lists) }
            };
            let operations = repeated(&looks).into_iter().map(operation).collect();
            listings.push(Listing { module, section, shown: path.to_string(), count, operations });
        }
    }
    Listings { types: lists.types, reasons: lists.reasons, listings }
}

/// The operations of every place in the tree and every section, by instance.
fn parts(graph: &Graph, modules: &Modules) -> BTreeMap<(usize, Section), BTreeMap<Instance, Part>> {
    let parameters: HashSet<&ModulePath> = graph.inputs().filter_map(|(_, id)| id.parameter()).collect();
    let mut looks: HashMap<Look, usize> = HashMap::new();
    let mut places: BTreeMap<(usize, Section), BTreeMap<Instance, Part>> = BTreeMap::new();
    for node in graph.nodes().filter(|&node| !is_inline(graph, node)).map(Value::from) {
        let n = graph.node(node.node);
        let (module, section) = match &n.op {
            Op::Input { id, .. } => (home(id, &parameters), Section::Inputs),
            _ => (n.origin.module.clone(), Section::of(n.origin.phase)),
        };
        let next = looks.len();
        let look = *looks.entry(Look::of(graph, node)).or_insert(next);
        let instances = places.entry((modules.at(&module), section)).or_default();
        let part = instances.entry((module, n.origin.micro_batch)).or_default();
        part.nodes.push(node);
        part.looks.push(look);
    }
    places
}

/// Instances with the same looks: one of them, its module, and their number.
struct Alike {
    part: Part,
    path: ModulePath,
    count: usize,
}

/// Groups instances by their looks. The instance in the middle of all is shown if it is in the group, so that the listings
/// of a block show one layer, which is neither the first nor the last.
fn alike(instances: BTreeMap<Instance, Part>) -> Vec<Alike> {
    let middle = instances.len() / 2;
    let mut groups: Vec<Alike> = Vec::new();
    let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
    for (at, ((path, _), part)) in instances.into_iter().enumerate() {
        let next = groups.len();
        let group = *known.entry(part.looks.clone()).or_insert(next);
        match groups.get_mut(group) {
            Some(Alike { count, .. }) if at != middle => *count += 1,
            Some(shown) => *shown = Alike { part, path, count: shown.count + 1 },
            None => groups.push(Alike { part, path, count: 1 }),
        }
    }
    groups
}

/// The fewest lines that a repetition has to save.
const SAVES: usize = 16;

/// The operations that are listed, each with the number of times for which it stands.
fn repeated(looks: &[usize]) -> Vec<(usize, usize)> {
    let lines: Vec<Line> = looks.iter().map(|&key| Line { key, numbers: Vec::new() }).collect();
    let (mut shown, mut at) = (Vec::new(), 0);
    for run in runs(&lines).into_iter().filter(|run| run.period * (run.count - 1) >= SAVES) {
        shown.extend((at..run.start).map(|at| (at, 1)));
        shown.extend((run.start..run.start + run.period).map(|at| (at, run.count)));
        at = run.end();
    }
    shown.extend((at..looks.len()).map(|at| (at, 1)));
    shown
}

/// The operation of a node, whose operands have the names that `text` gives them.
fn described(
    graph: &Graph,
    Value { node, .. }: Value,
    text: &dyn Fn(Value) -> String,
    lists: &mut Lists<'_>,
) -> Operation {
    let n = graph.node(node);
    let operands = graph.operands(node);
    let ranks: Vec<usize> = operands.iter().map(|&v| graph.ty(v).rank()).collect();
    let mnemonic = match &n.op {
        Op::Map { f, subs } if Subscripts::implied(&ranks, subs.result.len()).as_ref() == Some(subs) => f.name(),
        _ => operation(n, &graph.mesh),
    };
    let sent = operands.first().filter(|_| n.op.is_collective()).map(|&operand| {
        let kind = n.op.name();
        let full = full_bytes(&n.op, graph.ty(operand), &n.types[0], &graph.mesh);
        let bytes = wire_bytes(&kind, full, graph.mesh.group_size(n.op.axes()));
        Sent { axes: n.op.axes().iter().map(|a| a.0.into()).collect(), bytes, kind }
    });
    let operands = operands.into_iter().map(|v| Operand { name: text(v), ty: lists.ty(graph.ty(v)) }).collect();
    Operation {
        name: 0,
        times: 1,
        text: mnemonic,
        operands,
        types: n.types.iter().map(|ty| lists.ty(ty)).collect(),
        sent,
        why: lists.why(&n.origin.reason),
    }
}
