//! Finds the blocks of a program that occur several times, and makes the program longer or shorter by whole
//! occurrences.
//!
//! A program is a list of lines that contain numbers: operands, indices of paths (`layers.3.mlp`), micro-batches,
//! random streams, units of parameters. A line consists of an operation, types, operands and a module. The reason of an
//! operation is not a part of its line, so reasons never decide what repeats. A stretch of lines that occurs several
//! times in a row, with every number moving by the same step from one occurrence to the next, is a [`Run`]. Nothing is
//! assumed about the model. The forward, the backward and the optimizer part of one layer are occurrences of three runs
//! whose operands walk along each other (those of the backward run in the other direction); such runs together are a
//! [`Block`]. All numbers are linear in the occurrence, so they determine the same program with more or fewer
//! occurrences: [`Lines::resized`]. The norm of all gradients is a sum that has more terms in a deeper model, so the terms
//! of long sums are lines of a list of their own.
//!
//! Before: the three lines `%3 = mul %2, %0`, `%4 = mul %3, %0`, `%5 = mul %4, %0`. Resized by 2: five such lines, and
//! a later reader of `%5` reads `%7`.

mod keys;
mod label;
mod list;
mod resize;
mod runs;

pub use resize::Resized;
pub use runs::{Line, Run, runs};

use crate::graph::{Graph, Phase, Value};
use crate::op::{Op, UnitId};
use crate::path::{ModulePath, Segment};
use crate::subscripts::Letter;
use crate::{MapFn, graph, text};
use keys::{BoundaryKey, NodeKey, Number, OperandKey, OutputKey, RegionKey, TermKey, map_path};
use label::{Label, reason_without_indices, without_indices};
use list::List;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The largest number of operands with which a sum is one line.
const SHORT_SUM: usize = 4;

/// The maximum number of times that runs are aligned with each other.
const ROUNDS: usize = 8;

/// A graph as lines, with the runs among them.
#[derive(Debug)]
pub struct Lines<'a> {
    graph: &'a Graph,
    /// The node of every line of an operation, in order. Scalar constants are not lines.
    nodes: Vec<NodeIndex>,
    operations: List<NodeKey>,
    regions: List<RegionKey>,
    outputs: List<OutputKey>,
    /// The terms of long sums, in the order of these.
    terms: List<TermKey>,
}

/// Runs that repeat together: the layers of a model, each with its parameters, its part of every phase and its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The name of the list whose index tells occurrences apart: `model.layers`.
    pub path: String,
    /// The lists whose elements it counts, each as the segments between the index before its own, if there is one, and its
    /// own; indices are zero.
    lists: Vec<Vec<Segment>>,
    /// The number of occurrences of the run that has most of them.
    pub count: usize,
    /// Its runs among the nodes, in the order of the program.
    pub regions: Vec<BlockRegion>,
    /// Its runs among the module regions.
    pub module_regions: Vec<Run>,
    /// Its runs among the outputs.
    pub outputs: Vec<Run>,
    /// Its runs among the terms of long sums.
    terms: Vec<Run>,
}

/// A run of a block: inputs that it reads, or the operations of one phase of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRegion {
    /// Whether these are inputs (parameters, states, constants) of the program.
    pub inputs: bool,
    /// The phase.
    pub phase: Phase,
    /// The lines.
    pub run: Run,
}

/// The values that cross the boundary of one occurrence of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Values of other lines that it reads, except inputs of the program.
    pub arguments: Vec<Value>,
    /// Inputs of the program that it reads.
    pub owned: Vec<Value>,
    /// Its values that other lines of the same phase read, or that are outputs.
    pub results: Vec<Value>,
    /// Its values that a later phase reads, for example those saved for the backward pass.
    pub saved: Vec<Value>,
}

impl Block {
    /// The number of lists whose elements it counts.
    pub fn lists(&self) -> usize {
        self.lists.len()
    }

    /// Whether this is a block of another program that counts the same: the elements of the same list, or the same other thing.
    pub fn counts_like(&self, other: &Block) -> bool {
        self.lists.iter().any(|list| other.lists.contains(list))
            || self.lists.is_empty() && other.lists.is_empty() && self.path == other.path
    }

    /// The element to which a path belongs, of the first list of the block that the path goes through; `None` if it goes
    /// through none.
    pub fn element(&self, path: &ModulePath) -> Option<usize> {
        path.indices().nth(self.position(path)?)
    }

    /// The path of the same thing in another element of that list.
    pub fn in_element(&self, path: &ModulePath, element: usize) -> Option<ModulePath> {
        let position = self.position(path)?;
        let mut indices = path.indices().enumerate().map(|(i, index)| if i == position { element } else { index });
        Some(path.with_indices(&mut indices))
    }

    /// The number of the index of a path that counts the elements of a list of the block.
    fn position(&self, path: &ModulePath) -> Option<usize> {
        let plain = without_indices(path, &mut Vec::new());
        let is_counted =
            |label| matches!(label, Label::Elements(list) if self.lists.iter().any(|counted| counted == list));
        Label::of(&plain).position(is_counted)
    }
}

impl<'a> Lines<'a> {
    /// The lines and runs of a graph. Reasons are not compared.
    pub fn of(graph: &'a Graph) -> Self {
        Lines::compared(graph, false)
    }

    /// Whether a graph consists of these lines, apart from reasons.
    pub fn are_those_of(&self, graph: &Graph) -> bool {
        let other = Lines::unfolded(graph, false);
        self.operations.has_the_lines_of(&other.operations)
            && self.regions.has_the_lines_of(&other.regions)
            && self.outputs.has_the_lines_of(&other.outputs)
            && self.terms.has_the_lines_of(&other.terms)
    }

    /// The lines and runs of a graph as they are printed: here lines with different reasons are different.
    pub fn printed(graph: &'a Graph) -> Self {
        Lines::compared(graph, true)
    }

    fn compared(graph: &'a Graph, with_reasons: bool) -> Self {
        let mut found = Lines::unfolded(graph, with_reasons);
        found.operations.find_runs();
        found.regions.find_runs();
        found.outputs.find_runs();
        found.terms.find_runs();
        // If every layer has a state but only every second layer has a gate, one occurrence has two states.
        for _ in 0..ROUNDS {
            if !found.align() {
                break;
            }
        }
        found
    }

    /// The lines of a graph, without the runs among them.
    fn unfolded(graph: &'a Graph, with_reasons: bool) -> Self {
        let names = text::number(graph);
        let nodes: Vec<NodeIndex> = graph.nodes().filter(|n| names.contains_key(n)).collect();
        // The key of an operand. If it is the result of a line, the number of this line is appended to `numbers`.
        let operand = |v: Value, numbers: &mut Vec<i64>| match (names.get(&v.node), graph.op(v)) {
            (None, Op::Fill(s)) => OperandKey::Scalar(graph.ty(v).dtype, *s),
            (line, _) => {
                numbers.extend(line.map(|&line| line as i64));
                OperandKey::Line(v.result)
            }
        };
        // Printed sums have their terms in one line.
        let is_long = |op: &Op| matches!(op, Op::Map { f: MapFn::Add, subs } if subs.operands.len() > SHORT_SUM);
        let is_long_sum = |node: NodeIndex| !with_reasons && is_long(&graph.node(node).op);
        let operations = List::of(nodes.iter().map(|&node| {
            let n = graph.node(node);
            let (mut op, mut numbers) = (n.op.clone(), Vec::new());
            let operands = match &mut op {
                Op::Map { subs, .. } if is_long_sum(node) => {
                    subs.operands.clear();
                    Vec::new()
                }
                _ => graph.operands(node).into_iter().map(|v| operand(v, &mut numbers)).collect(),
            };
            if let Op::Input { id, .. } = &mut op {
                *id = id.map_path(|path| without_indices(path, &mut numbers));
            }
            numbers.extend(n.origin.micro_batch.and_then(|n| i64::try_from(n).ok()));
            let module = without_indices(&n.origin.module, &mut numbers);
            let reason = with_reasons.then(|| reason_without_indices(&n.origin.reason, &mut numbers));
            if let Op::Random { stream, .. } = &mut op
                && let Ok(n) = i64::try_from(*stream)
            {
                numbers.push(n);
                *stream = 0;
            }
            if let Op::Input { unit: Some(unit), .. } = &mut op {
                numbers.push(unit.0.into());
                *unit = UnitId(0);
            }
            let (types, phase, in_micro_batch) = (n.types.clone(), n.origin.phase, n.origin.micro_batch.is_some());
            (NodeKey { op, types, phase, in_micro_batch, operands, module, reason }, numbers)
        }));
        let regions = List::of(graph.regions.iter().map(|region| {
            let mut numbers = Vec::new();
            let mut keys = |boundaries: &[graph::Boundary]| {
                let key = |b: &graph::Boundary| BoundaryKey {
                    value: operand(b.value, &mut numbers),
                    layout: b.layout.clone(),
                };
                boundaries.iter().map(key).collect()
            };
            let (arguments, results) = (keys(&region.arguments), keys(&region.results));
            (RegionKey { path: without_indices(&region.path, &mut numbers), arguments, results }, numbers)
        }));
        let outputs = List::of(graph.outputs.iter().map(|o| {
            let mut numbers = Vec::new();
            let operand = operand(o.value, &mut numbers);
            let kind =
                map_path(&o.kind, |path| Some(without_indices(path, &mut numbers))).unwrap_or_else(|| o.kind.clone());
            (OutputKey { kind, layout: o.layout.clone(), operand }, numbers)
        }));
        let sums = nodes.iter().enumerate().filter(|(_, node)| is_long_sum(**node));
        let terms = List::of(sums.flat_map(|(line, &node)| {
            let letters = match &graph.node(node).op {
                Op::Map { subs, .. } => subs.operands.clone(),
                _ => Vec::new(),
            };
            let term = move |(v, letters): (Value, Vec<Letter>)| {
                let mut numbers = vec![line as i64];
                (TermKey { operand: operand(v, &mut numbers), letters }, numbers)
            };
            graph.operands(node).into_iter().zip(letters).map(term)
        }));
        Lines { graph, nodes, operations, regions, outputs, terms }
    }

    /// Calls `look` with every moving number of every run that has more than two occurrences: the index of the run (runs
    /// of module regions after those of operations, then those of outputs and of terms), what the number stands for, its
    /// step, and its value in the middle occurrence.
    fn each_moving<'s>(&'s self, mut look: impl FnMut(usize, Number<'s>, i64, i64)) {
        let operations = self.operations.runs.len();
        let regions = operations + self.regions.runs.len();
        let outputs = regions + self.outputs.runs.len();
        self.operations.each_moving(&mut look);
        self.regions.each_moving(|run, kind, step, middle| look(operations + run, kind, step, middle));
        self.outputs.each_moving(|run, kind, step, middle| look(regions + run, kind, step, middle));
        self.terms.each_moving(|run, kind, step, middle| look(outputs + run, kind, step, middle));
    }

    /// All runs, in the order of [`Lines::each_moving`].
    fn all_runs(&self) -> impl Iterator<Item = &Run> {
        self.operations.runs.iter().chain(&self.regions.runs).chain(&self.outputs.runs).chain(&self.terms.runs)
    }

    /// Merges several occurrences of a run into one where runs that belong together take larger steps. Returns whether
    /// anything changed.
    fn align(&mut self) -> bool {
        let mut largest: HashMap<Label, i64> = HashMap::new();
        self.each_moving(|_, kind, step, _| {
            if let Number::Label(label) = kind
                && label != Label::Units
            {
                let known = largest.entry(label).or_default();
                *known = step.abs().max(*known);
            }
        });
        let mut factors: BTreeMap<usize, i64> = BTreeMap::new();
        let mut scale = |run: usize, whole: i64, part: i64| {
            if whole > part && whole % part == 0 {
                let factor = factors.entry(run).or_insert(1);
                *factor = (*factor).max(whole / part);
            }
        };
        self.each_moving(|run, kind, step, middle| match kind {
            Number::Label(Label::Units) => {}
            Number::Label(label) => scale(run, largest[&label], step.abs()),
            Number::Line => {
                if let Some(other) = self.run_at(middle).filter(|&o| self.operations.runs[o].count > 2) {
                    let period = self.operations.runs[other].period as i64;
                    scale(run, period, step.abs());
                    scale(other, step.abs(), period);
                }
            }
        });
        let mut changed = false;
        let runs = self.operations.runs.iter_mut().chain(&mut self.regions.runs).chain(&mut self.outputs.runs);
        let runs = runs.chain(&mut self.terms.runs);
        for (i, run) in runs.enumerate() {
            let factor = factors.get(&i).copied().unwrap_or(1);
            if factor > 1 && run.count / factor as usize > 2 {
                *run = Run { period: run.period * factor as usize, count: run.count / factor as usize, ..*run };
                changed = true;
            }
        }
        changed
    }

    /// The runs among the lines of nodes, in order.
    pub fn runs(&self) -> &[Run] {
        &self.operations.runs
    }

    /// The index of the run of operations that contains a line.
    fn run_at(&self, line: i64) -> Option<usize> {
        let runs = &self.operations.runs;
        let at = runs.partition_point(|r| r.end() as i64 <= line);
        runs.get(at).filter(|r| r.start as i64 <= line).map(|_| at)
    }

    /// The blocks, largest first. A run with fewer than three occurrences belongs to none.
    pub fn blocks(&self) -> Vec<Block> {
        // Runs belong together if they count along the same label, or if the operands of one walk along the other.
        let runs: Vec<&Run> = self.all_runs().collect();
        let mut group: Vec<usize> = (0..runs.len()).collect();
        fn root(group: &[usize], mut i: usize) -> usize {
            while group[i] != i {
                i = group[i];
            }
            i
        }
        let mut join = |a: usize, b: usize| {
            let (a, b) = (root(&group, a), root(&group, b));
            group[a.max(b)] = a.min(b);
        };
        let mut counted: BTreeMap<Label, usize> = BTreeMap::new();
        let mut paths: Vec<BTreeMap<Label, usize>> = vec![BTreeMap::new(); runs.len()];
        self.each_moving(|run, kind, step, middle| match kind {
            Number::Label(Label::Streams | Label::Units) => {}
            Number::Label(label) => {
                *paths[run].entry(label).or_default() += 1;
                join(run, *counted.entry(label).or_insert(run));
            }
            // Only steps of one whole occurrence count: query, key and value of one layer walk along its weights too.
            Number::Line => {
                let along = |&o: &usize| runs[o].count > 2 && runs[o].period as i64 == step.abs();
                if let Some(other) = self.run_at(middle).filter(along) {
                    join(run, other);
                }
            }
        });
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, run) in runs.iter().enumerate() {
            if run.count > 2 {
                members.entry(root(&group, i)).or_default().push(i);
            }
        }
        let mut blocks: Vec<Block> = members.into_values().filter_map(|m| self.block(&m, &paths)).collect();
        let lines = |b: &Block| b.regions.iter().map(|r| r.run.period * r.run.count).sum::<usize>();
        blocks.sort_by_key(|b| std::cmp::Reverse(lines(b)));
        blocks
    }

    fn block(&self, members: &[usize], paths: &[BTreeMap<Label, usize>]) -> Option<Block> {
        let mut votes: BTreeMap<Label, usize> = BTreeMap::new();
        for (label, n) in members.iter().flat_map(|&m| &paths[m]) {
            *votes.entry(*label).or_default() += n;
        }
        let label = votes.iter().max_by_key(|(label, n)| (**n, std::cmp::Reverse(*label))).map(|(label, _)| *label);
        let lists =
            votes.keys().filter_map(|label| if let Label::Elements(list) = label { Some(list.to_vec()) } else { None });
        let lists = lists.collect();
        let region = |run: Run| {
            let key = self.operations.key(run.start);
            BlockRegion { inputs: matches!(key.op, Op::Input { .. }), phase: key.phase, run }
        };
        // The members among the runs of one list, of which the first has the number `first`.
        let among = |runs: &[Run], first: usize| {
            let run = |&member: &usize| runs.get(member.checked_sub(first)?).copied();
            members.iter().filter_map(run).collect::<Vec<Run>>()
        };
        let mut first = 0;
        let mut next = |runs: &[Run]| {
            let found = among(runs, first);
            first += runs.len();
            found
        };
        let regions: Vec<BlockRegion> = next(&self.operations.runs).into_iter().map(region).collect();
        let module_regions = next(&self.regions.runs);
        let (outputs, terms) = (next(&self.outputs.runs), next(&self.terms.runs));
        let count = regions.iter().map(|r| r.run.count).max()?;
        Some(Block {
            path: label.map(Label::title).unwrap_or_default(),
            lists,
            count,
            regions,
            module_regions,
            outputs,
            terms,
        })
    }

    /// The nodes of one occurrence of a run. Nodes at the same position in two occurrences correspond.
    pub fn occurrence(&self, run: &Run, which: usize) -> &[NodeIndex] {
        &self.nodes[run.start + which * run.period..][..run.period]
    }

    /// The values that an occurrence of a run reads, and those of its values that are read outside it.
    pub fn boundary(&self, run: &Run, which: usize) -> Boundary {
        let own: BTreeSet<NodeIndex> = self.occurrence(run, which).iter().copied().collect();
        let mut found = Boundary::default();
        let outputs: BTreeSet<Value> = self.graph.outputs.iter().map(|o| o.value).collect();
        let add = |list: &mut Vec<Value>, v: Value| {
            if !list.contains(&v) {
                list.push(v);
            }
        };
        for &node in &own {
            let phase = self.graph.node(node).origin.phase;
            for v in self.graph.operands(node).into_iter().filter(|v| !own.contains(&v.node)) {
                match self.graph.op(v) {
                    Op::Input { .. } => add(&mut found.owned, v),
                    _ if text::is_inline(self.graph, v.node) => {}
                    _ => add(&mut found.arguments, v),
                }
            }
            for result in 0..self.graph.node(node).types.len() as u32 {
                let v = Value { node, result };
                let users = self.graph.users(node).filter(|(n, u)| u.result == result && !own.contains(n));
                let phases: BTreeSet<Phase> = users.map(|(n, _)| self.graph.node(n).origin.phase).collect();
                if outputs.contains(&v) || phases.contains(&phase) {
                    add(&mut found.results, v);
                }
                if phases.iter().any(|p| *p > phase) {
                    add(&mut found.saved, v);
                }
            }
        }
        found
    }
}
