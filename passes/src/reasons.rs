//! Determines why every redistribution exists: the sharded tensor that causes it with its plan entry or data mode, the
//! phase of the step, and the module.
//!
//! All of this follows from the placed program, regardless of how it was rewritten. A reduction exists because some
//! tensor is sharded along a summed index, and a gather exists because a sharded tensor is needed whole. Starting at
//! the inputs, `Sources` tracks which input shards a value over which axis, and which shardings made it partial. Causes
//! that do not follow from the program are kept: the demands of a plan at the boundary of a module, and the rules that
//! moved an operation. The pass is idempotent.
//!
//! Before: `%5 = all_reduce tp sum %4 ; backward why: rule 7`.
//! After: `%5 = all_reduce tp sum %4 ; backward in mlp why: mlp.up.weight is cut along the summed index (plan "tp");
//! rule 7`.

use crate::factors::{FactorKind, FactorRow, row_of};
use crate::shorten::{Extents, Shortened};
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use tpc_ir::input::Shown;
use tpc_ir::reason::{Cause, Cut, Demand, Reason};
use tpc_ir::{AxisId, Graph, InputId, MapFn, ModulePath, Op, Phase, Value};

/// Sets the reason, the phase and the module of every redistribution.
pub fn explain(graph: &mut Graph) {
    explain_as(graph, None);
}

/// [`explain`] for a program that was made from a short one: a reason counts the tensors of the long one. `None` if the
/// blocks of the short one are not found in it.
pub fn explain_short(graph: &mut Graph, short: &Shortened) -> Option<()> {
    let extents = short.extents(graph)?;
    explain_as(graph, Some(&extents));
    Some(())
}

fn explain_as(graph: &mut Graph, extents: Option<&Extents>) {
    let phases = phases(graph);
    for (node, phase) in graph.nodes().zip(phases) {
        graph.node_mut(node).origin.phase = phase;
    }
    let moves: Vec<NodeIndex> = graph.nodes().filter(|&n| graph.node(n).op.is_redistribution()).collect();
    let sources = Sources::of(graph, extents);
    let goals = goals(graph);
    let explained: Vec<(ModulePath, Reason)> = moves
        .iter()
        .map(|&node| {
            let causes = sources.causes(graph, node);
            (module(graph, node, &causes, &goals), reason(graph, node, causes))
        })
        .collect();
    for (node, (module, reason)) in moves.into_iter().zip(explained) {
        let micro_batch = graph.node(neighbor(graph, node)).origin.micro_batch;
        let origin = &mut graph.node_mut(node).origin;
        (origin.micro_batch, origin.module, origin.reason) = (micro_batch, module, reason);
    }
}

fn is_reduction(op: &Op) -> bool {
    matches!(op, Op::AllReduce { .. } | Op::ReduceScatter { .. })
}

/// The phase of every node. An operation is never in a later phase than its first reader. A collective has the phase of
/// its first reader; but a reduction that only the optimizer reads, and any collective on a gradient that only the
/// optimizer reads, has the phase of its operand. A slice keeps its phase, within these bounds.
fn phases(graph: &Graph) -> Vec<Phase> {
    let mut needed: Vec<Option<Phase>> = vec![None; graph.len()];
    let mut phase: Vec<Phase> = graph.nodes().map(|n| graph.node(n).origin.phase).collect();
    let moves = |n: NodeIndex| graph.node(n).op.is_redistribution();
    for node in graph.nodes().collect::<Vec<_>>().into_iter().rev() {
        let i = node.index();
        let first = match needed[i] {
            _ if matches!(graph.node(node).op, Op::Input { .. }) => continue,
            needed if moves(node) => needed,
            needed => {
                phase[i] = needed.map_or(phase[i], |n| n.min(phase[i]));
                Some(phase[i])
            }
        };
        for v in graph.operands(node) {
            let needed = &mut needed[v.node.index()];
            *needed = needed.iter().chain(&first).min().copied();
        }
    }
    // For a redistribution, the phase that computes the redistributed value.
    let mut made = phase.clone();
    for node in graph.nodes().filter(|&n| moves(n)) {
        let i = node.index();
        let (op, operand) = (&graph.node(node).op, graph.operands(node)[0].node);
        let input = matches!(graph.node(operand).op, Op::Input { .. });
        made[i] = if input { Phase::Forward } else { made[operand.index()] };
        phase[i] = match needed[i] {
            None => made[i],
            Some(needed) if !op.is_collective() => phase[i].min(needed).max(made[i]),
            Some(Phase::Optimizer) if is_reduction(op) || made[i] == Phase::Backward => made[i],
            Some(needed) => needed.max(made[i]),
        };
    }
    phase
}

/// A tensor whose sharding does not follow from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Tensor {
    Input(InputId),
    /// A value that a plan places at the boundary of a module.
    OfModule(ModulePath),
}

/// A tensor that is sharded, and the demand that shards it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Source {
    tensor: Tensor,
    demand: Demand,
}

impl Source {
    /// The module of the tensor, if it is a parameter.
    fn owner(&self) -> Option<ModulePath> {
        match &self.tensor {
            Tensor::Input(InputId::Parameter(path)) => Some(path.holder()),
            _ => None,
        }
    }

    fn shown(&self) -> Shown {
        match &self.tensor {
            Tensor::Input(id) => id.shown(),
            Tensor::OfModule(path) => InputId::Parameter(path.clone()).shown(),
        }
    }
}

/// The number of a source.
type SourceId = u32;

/// How a sharded tensor causes a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The sharded index is summed.
    Summed,
    /// The value is needed whole, or with another sharding.
    Elsewhere,
}

/// For each result, the source for each axis that shards it; and for each axis over which the first result is partial,
/// the sources that made it partial.
type Found = (Vec<Vec<(AxisId, SourceId)>>, Vec<(AxisId, BTreeSet<SourceId>)>);

/// Tracks which source shards a value over which axis, and which sources made it partial.
struct Sources<'a> {
    list: Vec<Source>,
    /// For each source, the number of tensors that it stands for.
    counts: Vec<usize>,
    /// What the nodes stand for, unless each stands for itself.
    extents: Option<&'a Extents>,
    ids: FxHashMap<Source, SourceId>,
    inputs: FxHashMap<&'a InputId, NodeIndex>,
    /// By node and result: the source for each axis that shards the value; none if the compiler chose to shard it.
    cut: Vec<Vec<Vec<(AxisId, SourceId)>>>,
    /// By node: for each axis over which its result is partial, the sources that shard summed indices.
    summed: Vec<Vec<(AxisId, BTreeSet<SourceId>)>>,
}

impl<'a> Sources<'a> {
    fn of(graph: &'a Graph, extents: Option<&'a Extents>) -> Self {
        let mut found = Sources {
            list: Vec::new(),
            counts: Vec::new(),
            extents,
            ids: FxHashMap::default(),
            inputs: graph.inputs_by_id(),
            cut: Vec::new(),
            summed: Vec::new(),
        };
        for node in graph.nodes() {
            let (cut, summed) = match &graph.node(node).op {
                Op::Input { .. } => (vec![found.input(graph, node)], Vec::new()),
                op if op.is_redistribution() => found.moved(graph, node),
                _ => found.computed(graph, node),
            };
            found.cut.push(cut);
            found.summed.push(summed);
        }
        found
    }

    /// Adds the source that a node is, or that it introduces.
    fn add(&mut self, source: Source, node: NodeIndex) -> SourceId {
        *self.ids.entry(source).or_insert_with_key(|source| {
            self.list.push(source.clone());
            self.counts.push(self.extents.map_or(1, |extents| extents.times[node.index()] as usize));
            (self.list.len() - 1) as SourceId
        })
    }

    fn input(&mut self, graph: &Graph, node: NodeIndex) -> Vec<(AxisId, SourceId)> {
        let n = graph.node(node);
        let Op::Input { id, .. } = &n.op else { return Vec::new() };
        let axes: Vec<AxisId> = n.types[0].sharding.sharded_axes().iter().collect();
        if axes.is_empty() {
            return Vec::new();
        }
        let source = |axis| Source { tensor: Tensor::Input(id.clone()), demand: demand(graph, node, axis) };
        axes.into_iter().map(|axis| (axis, self.add(source(axis), node))).collect()
    }

    /// The source that shards a value over an axis.
    fn cut(&self, value: Value, axis: AxisId) -> Option<SourceId> {
        let cuts = &self.cut[value.node.index()][value.result as usize];
        cuts.iter().find(|c| c.0 == axis).map(|c| c.1)
    }

    /// The sources that made a value partial over an axis.
    fn summed(&self, value: Value, axis: AxisId) -> impl Iterator<Item = SourceId> + '_ {
        self.summed[value.node.index()].iter().filter(move |s| s.0 == axis).flat_map(|s| s.1.iter().copied())
    }

    fn moved(&mut self, graph: &Graph, node: NodeIndex) -> Found {
        let operand = graph.operands(node)[0];
        let n = graph.node(node);
        let mut cuts = Vec::new();
        for axis in n.types[0].sharding.sharded_axes().iter() {
            let source = match graph.ty(operand).sharding.dim_of(axis) {
                Some(_) => self.cut(operand, axis),
                None => self.chosen(graph, node, axis),
            };
            cuts.extend(source.map(|s| (axis, s)));
        }
        let partial = n.types[0].sharding.partial_axes();
        let summed = self.summed[operand.node.index()].iter().filter(|s| partial.contains(s.0)).cloned().collect();
        (vec![cuts], summed)
    }

    /// The source of a sharding that a redistribution introduces: the demand of a plan, or the parameter like which the
    /// value is placed.
    fn chosen(&mut self, graph: &Graph, node: NodeIndex, axis: AxisId) -> Option<SourceId> {
        let n = graph.node(node);
        let found = n.origin.reason.causes().iter().find_map(|cause| match cause {
            Cause::Demanded(demand) => {
                let module = n.origin.module.clone();
                Some((!module.is_root()).then(|| Source { tensor: Tensor::OfModule(module), demand: demand.clone() }))
            }
            Cause::Like(parameter) => {
                let id = InputId::Parameter(parameter.clone());
                let input = *self.inputs.get(&id)?;
                Some(Some(Source { tensor: Tensor::Input(id), demand: demand(graph, input, axis) }))
            }
            _ => None,
        });
        found.flatten().map(|source| self.add(source, node))
    }

    fn computed(&self, graph: &Graph, node: NodeIndex) -> Found {
        let n = graph.node(node);
        let operands = graph.operands(node);
        let types: Vec<_> = operands.iter().map(|&v| graph.ty(v)).collect();
        let row = row_of(&n.op, &types, &n.types.iter().collect::<Vec<_>>());
        let mut cut = Vec::new();
        for (ty, dims) in n.types.iter().zip(&row.results) {
            let axes = ty.sharding.dims.iter().zip(dims).flat_map(|(axes, &f)| axes.iter().map(move |&a| (a, f)));
            let source = |(a, f)| Some((a, self.of_factor(graph, &operands, &row, f, a, false)?));
            cut.push(axes.filter_map(source).collect());
        }
        let mut summed = Vec::new();
        for axis in n.types[0].sharding.partial_axes().iter() {
            let mut sources: BTreeSet<SourceId> = operands.iter().flat_map(|&v| self.summed(v, axis)).collect();
            let reduced = (0..row.factors.len()).filter(|&f| matches!(row.factors[f].kind, FactorKind::Reduce(_)));
            sources.extend(reduced.filter_map(|f| self.of_factor(graph, &operands, &row, f, axis, true)));
            summed.push((axis, sources));
        }
        (cut, summed)
    }

    /// The source that shards an index of an operation. It is taken from the operand with most dimensions (a bias is
    /// placed like the value to which it is added), then from the earliest operand. For a summed index, a parameter
    /// comes first.
    fn of_factor(
        &self,
        graph: &Graph,
        operands: &[Value],
        row: &FactorRow,
        factor: usize,
        axis: AxisId,
        summed: bool,
    ) -> Option<SourceId> {
        let found = operands.iter().enumerate().filter_map(|(i, &v)| {
            let dim = row.operand_dim(i, factor)?;
            let source = self.cut(v, axis).filter(|_| graph.ty(v).sharding.dims[dim].contains(&axis))?;
            let indirect = !(summed && is_parameter(graph, v));
            Some(((indirect, Reverse(graph.ty(v).rank()), v), source))
        });
        found.min_by_key(|&(rank, _)| rank).map(|(_, source)| source)
    }

    /// The sources that cause a collective, each with the number of tensors that it stands for.
    fn causes(&self, graph: &Graph, node: NodeIndex) -> Vec<(How, &Source, usize)> {
        let op = &graph.node(node).op;
        if !op.is_collective() {
            return Vec::new();
        }
        let operand = graph.operands(node)[0];
        let mut causes = Vec::new();
        for axis in op.axes().iter() {
            if is_reduction(op) {
                causes.extend(self.summed(operand, axis).map(|s| (How::Summed, s)));
            } else {
                causes.extend(self.cut(operand, axis).map(|s| (How::Elsewhere, s)));
            }
        }
        let mut seen = BTreeSet::new();
        causes.retain(|&(_, source)| seen.insert(source));
        // What repeats is caused by the tensors of its own occurrence.
        let repeats = self.extents.is_some_and(|extents| extents.repeats[node.index()]);
        let count = |s: SourceId| if repeats { 1 } else { self.counts[s as usize] };
        causes.into_iter().map(|(how, s)| (how, &self.list[s as usize], count(s))).collect()
    }
}

/// Which tensors the values of a placed program are placed like.
pub struct Followed<'a> {
    graph: &'a Graph,
    sources: Sources<'a>,
}

impl<'a> Followed<'a> {
    /// Those of a placed program that [`explain`] has seen.
    pub fn of(graph: &'a Graph) -> Self {
        Followed { graph, sources: Sources::of(graph, None) }
    }

    /// For each axis that cuts a value, and for each over which it is partial, the tensors because of which it does; none
    /// if the compiler chose it.
    pub fn value(&self, value: Value) -> Vec<(AxisId, Option<Cause>)> {
        let sharding = &self.graph.ty(value).sharding;
        let one = |source: SourceId| {
            let source = &self.sources.list[source as usize];
            Cut { tensors: vec![source.shown()], others: 0, demand: source.demand.clone() }
        };
        let cuts = sharding.sharded_axes();
        let cuts = cuts.iter().map(|axis| (axis, self.sources.cut(value, axis).map(|s| Cause::Elsewhere(one(s)))));
        let partial = sharding.partial_axes();
        let partial = partial.iter().map(|axis| {
            let mut terms = self.sources.summed(value, axis);
            let first = terms.next().map(one);
            (axis, first.map(|first| Cause::Summed(Cut { others: terms.count(), ..first })))
        });
        cuts.chain(partial).collect()
    }
}

/// Whether a value is a parameter, possibly gathered, sliced or converted.
fn is_parameter(graph: &Graph, value: Value) -> bool {
    match graph.op(value) {
        Op::Input { id, .. } => id.is_parameter(),
        Op::Map { f: MapFn::Cast(_) | MapFn::Identity, .. } | Op::AllGather { .. } | Op::ShardSlice { .. } => {
            is_parameter(graph, graph.operands(value.node)[0])
        }
        _ => false,
    }
}

/// The demand that shards an input along an axis.
fn demand(graph: &Graph, input: NodeIndex, axis: AxisId) -> Demand {
    let said = graph.node(input).origin.reason.demand(graph.mesh.user_name(axis)).cloned();
    said.unwrap_or_else(|| Demand::Note("".into()))
}

/// By node: the innermost module that contains all parameters whose updates depend on the node. Scalars (a learning
/// rate, the factor of clipping) are not followed, because all parameters depend on them.
fn goals(graph: &Graph) -> Vec<Option<ModulePath>> {
    let mut goals: Vec<Option<ModulePath>> = vec![None; graph.len()];
    let join = |goal: &mut Option<ModulePath>, module: &ModulePath| match goal {
        Some(known) => *known = known.common(module),
        None => *goal = Some(module.clone()),
    };
    for output in &graph.outputs {
        let Some((_, parameter)) = output.kind.trained() else { continue };
        join(&mut goals[output.value.node.index()], &parameter.holder());
    }
    for node in graph.nodes().collect::<Vec<_>>().into_iter().rev() {
        let Some(goal) = goals[node.index()].clone() else { continue };
        for v in graph.operands(node).into_iter().filter(|&v| graph.ty(v).rank() > 0) {
            join(&mut goals[v.node.index()], &goal);
        }
    }
    goals
}

/// The module of a redistribution. For a reduction, it is that of the terms, otherwise that of the first reader. If
/// these have none, as in the backward pass and in the optimizer, it is the module of the parameters that cause it,
/// otherwise that of the parameters that it serves.
fn module(
    graph: &Graph,
    node: NodeIndex,
    causes: &[(How, &Source, usize)],
    goals: &[Option<ModulePath>],
) -> ModulePath {
    let known = &graph.node(neighbor(graph, node)).origin.module;
    if !known.is_root() {
        return known.clone();
    }
    let cause = causes.iter().filter_map(|(_, source, _)| source.owner()).reduce(|a, b| a.common(&b));
    let goal = goals[node.index()].clone();
    // A gathered gradient belongs to the module of its own parameter, whichever parameter causes the gather. A gathered
    // parameter belongs to its own module.
    let gathers_input = matches!(graph.node(source(graph, node)).op, Op::Input { .. });
    let by_cause = is_reduction(&graph.node(node).op) || gathers_input;
    let (first, second) = if by_cause { (cause, goal) } else { (goal, cause) };
    first.filter(|module| !module.is_root()).or(second).unwrap_or_default()
}

/// The node to which a redistribution belongs: for a reduction, the one that computes the terms, otherwise the first
/// reader.
fn neighbor(graph: &Graph, node: NodeIndex) -> NodeIndex {
    let n = graph.node(node);
    let mut at = Some(node);
    while let Some(next) = at.filter(|&at| graph.node(at).op.is_redistribution()) {
        at = if is_reduction(&n.op) {
            Some(graph.operands(next)[0].node)
        } else {
            let mut readers: Vec<NodeIndex> = graph.users(next).map(|(user, _)| user).collect();
            readers.sort_unstable();
            let first = readers.iter().find(|&&r| graph.node(r).origin.phase == n.origin.phase);
            first.or(readers.first()).copied()
        };
    }
    at.unwrap_or_else(|| source(graph, node))
}

/// The node whose result a redistribution moves, before any other redistributions.
fn source(graph: &Graph, node: NodeIndex) -> NodeIndex {
    let mut at = node;
    while graph.node(at).op.is_redistribution() {
        at = graph.operands(at)[0].node;
    }
    at
}

/// The reason of a redistribution: its causes, and those causes of the previous reason that do not follow from the
/// program.
fn reason(graph: &Graph, node: NodeIndex, causes: Vec<(How, &Source, usize)>) -> Reason {
    let n = graph.node(node);
    let mut cuts: Vec<(How, Cut)> = Vec::new();
    for (how, source, count) in causes {
        let known = cuts.iter_mut().find(|(h, cut)| *h == how && cut.demand == source.demand);
        match known {
            Some((_, cut)) if cut.tensors.len() < Cut::NAMED => {
                cut.tensors.push(source.shown());
                cut.others += count - 1;
            }
            Some((_, cut)) => cut.others += count,
            None => {
                let tensors = vec![source.shown()];
                cuts.push((how, Cut { tensors, others: count - 1, demand: source.demand.clone() }));
            }
        }
    }
    // Only its terms are the cause of an all-reduce.
    let whole = matches!(n.op, Op::AllReduce { .. }) && !cuts.is_empty();
    let gathers = matches!(n.op, Op::AllGather { .. });
    let over = |axis: &str| n.op.axes().iter().any(|a| graph.mesh.user_name(a) == axis);
    let kept = n.origin.reason.causes().iter().filter(|cause| match cause {
        Cause::Summed(_) | Cause::Elsewhere(_) => false,
        Cause::On { axis, .. } if !over(axis) => false,
        Cause::Demanded(demand) | Cause::On { demand, .. } => {
            let said = gathers && cuts.iter().any(|(_, cut)| cut.demand == *demand);
            !whole && !said
        }
        Cause::Together(_) | Cause::Like(_) => !whole,
        Cause::Rule(_) | Cause::SecondGather | Cause::Recomputed => true,
    });
    let kept: Vec<Cause> = kept.cloned().collect();
    let cuts = cuts.into_iter().map(|(how, cut)| match how {
        How::Summed => Cause::Summed(cut),
        How::Elsewhere => Cause::Elsewhere(cut),
    });
    cuts.chain(kept).collect()
}
