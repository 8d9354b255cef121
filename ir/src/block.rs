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
//! occurrences: [`Lines::resized`].
//!
//! Before: the three lines `%3 = mul %2, %0`, `%4 = mul %3, %0`, `%5 = mul %4, %0`. Resized by 2: five such lines, and
//! a later reader of `%5` reads `%7`.

use crate::graph::{Graph, Node, Origin, Output, OutputKind, Phase, Value};
use crate::op::{Op, Scalar, UnitId};
use crate::path::{ModulePath, Segment};
use crate::reason::Reason;
use crate::sharding::Type;
use crate::{DType, text};
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The longest period of a run, in lines.
const LONGEST_PERIOD: usize = 4_000;

/// The maximum number of times that runs are aligned with each other.
const ROUNDS: usize = 8;

/// The number of later lines with the same key that are tried as the next occurrence of a line.
const OCCURRENCES: usize = 64;

/// A stretch of lines that occurs `count` times, one right after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The first line.
    pub start: usize,
    /// The number of lines of one occurrence.
    pub period: usize,
    /// The number of occurrences.
    pub count: usize,
}

impl Run {
    /// The line after the last one of the run.
    pub fn end(&self) -> usize {
        self.start + self.period * self.count
    }
}

/// A line as its key and the numbers in it that may move from occurrence to occurrence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Two lines have the same key if they differ in their numbers only.
    pub key: usize,
    /// The numbers.
    pub numbers: Vec<i64>,
}

/// The things that a number in a path, an origin or an input counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Label<'a> {
    /// The elements of a list, named by the segments between the previous index of the path and this one.
    Elements(&'a [Segment]),
    /// The micro-batches.
    MicroBatches,
    /// The random streams of the program.
    Streams,
    /// The units of parameters.
    Units,
}

impl Label<'_> {
    /// The name of a block whose occurrences are told apart by this label.
    fn title(self) -> String {
        match self {
            Label::Elements(list) => {
                let one = |segment: &Segment| match segment {
                    Segment::Name(_) => segment.to_string(),
                    Segment::Index(_) => String::new(),
                };
                list.iter().map(one).collect::<Vec<_>>().join(".")
            }
            Label::MicroBatches => "micro".into(),
            Label::Streams => "stream".into(),
            Label::Units => "unit".into(),
        }
    }

    /// The labels of the indices of a path, in order.
    fn of(path: &ModulePath) -> impl Iterator<Item = Label<'_>> {
        let mut from = 0;
        path.segments().iter().enumerate().filter_map(move |(at, segment)| match segment {
            Segment::Index(_) => Some(Label::Elements(&path.segments()[std::mem::replace(&mut from, at)..at])),
            Segment::Name(_) => None,
        })
    }
}

/// The path with zeros for its indices, which are appended to `numbers`.
fn without_indices(path: &ModulePath, numbers: &mut Vec<i64>) -> ModulePath {
    numbers.extend(path.indices().map(|i| i64::try_from(i).unwrap_or(i64::MAX)));
    path.with_indices(&mut std::iter::repeat(0))
}

/// The path with the next numbers as its indices, the inverse of [`without_indices`]. `None` if there are too few, or
/// one is negative.
fn with_indices(path: &ModulePath, numbers: &mut impl Iterator<Item = i64>) -> Option<ModulePath> {
    let count = path.indices().count();
    let indices = numbers.take(count).map(usize::try_from).collect::<Result<Vec<_>, _>>().ok()?;
    (indices.len() == count).then(|| path.with_indices(&mut indices.into_iter()))
}

/// The reason with zeros for the indices in its paths, which are appended to `numbers`.
fn reason_without_indices(reason: &Reason, numbers: &mut Vec<i64>) -> Reason {
    reason.map_paths(|path| without_indices(path, numbers))
}

/// An operand of a line: a result of another line, by its number among that line's results, or a scalar constant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum OperandKey {
    Line(u32),
    Scalar(DType, Scalar),
}

/// A line of the list of nodes, without its numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NodeKey {
    op: Op,
    types: Vec<Type>,
    phase: Phase,
    in_micro_batch: bool,
    operands: Vec<OperandKey>,
    module: ModulePath,
    /// Present only if lines are compared in order to be printed.
    reason: Option<Reason>,
}

/// A line of the list of outputs, without its numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct OutputKey {
    kind: OutputKind,
    layout: Vec<usize>,
    operand: OperandKey,
}

/// The meaning of a number in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Number<'a> {
    /// The line of a node, by its index.
    Line,
    /// A count of something.
    Label(Label<'a>),
}

/// A graph as lines, with the runs among them.
#[derive(Debug)]
pub struct Lines<'a> {
    graph: &'a Graph,
    /// The node of every line, in order. Scalar constants are not lines.
    nodes: Vec<NodeIndex>,
    keys: Vec<NodeKey>,
    lines: Vec<Line>,
    runs: Vec<Run>,
    output_keys: Vec<OutputKey>,
    output_lines: Vec<Line>,
    output_runs: Vec<Run>,
}

/// Runs that repeat together: the layers of a model, each with its parameters, its part of every phase and its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The name of the list whose index tells occurrences apart: `model.layers`.
    pub path: String,
    /// The number of occurrences of the run that has most of them.
    pub count: usize,
    /// Its runs among the nodes, in the order of the program.
    pub regions: Vec<BlockRegion>,
    /// Its runs among the outputs.
    pub outputs: Vec<Run>,
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

/// A resized graph, and for every node the node of the original graph that it copies.
#[derive(Clone, Debug)]
pub struct Resized {
    /// The graph.
    pub graph: Graph,
    /// By node index; `None` for scalar constants.
    pub source: Vec<Option<NodeIndex>>,
}

fn intern<K: Clone + Eq + std::hash::Hash>(known: &mut FxHashMap<K, usize>, list: &mut Vec<K>, key: K) -> usize {
    if let Some(&id) = known.get(&key) {
        return id;
    }
    list.push(key.clone());
    known.insert(key, list.len() - 1);
    list.len() - 1
}

impl<'a> Lines<'a> {
    /// The lines and runs of a graph.
    pub fn of(graph: &'a Graph) -> Self {
        Lines::compared(graph, false)
    }

    /// The lines and runs of a graph as they are printed: here lines with different reasons are different.
    pub fn printed(graph: &'a Graph) -> Self {
        Lines::compared(graph, true)
    }

    fn compared(graph: &'a Graph, with_reasons: bool) -> Self {
        let names = text::number(graph);
        let nodes: Vec<NodeIndex> = graph.nodes().filter(|n| names.contains_key(n)).collect();
        let operand = |v: Value| match (names.get(&v.node), graph.op(v)) {
            (None, Op::Fill(s)) => (OperandKey::Scalar(graph.ty(v).dtype, *s), None),
            (line, _) => (OperandKey::Line(v.result), line.map(|&l| l as i64)),
        };
        let (mut known, mut keys, mut lines) = (FxHashMap::default(), Vec::new(), Vec::new());
        for &node in &nodes {
            let n = graph.node(node);
            let (operands, at): (Vec<_>, Vec<_>) = graph.operands(node).into_iter().map(operand).unzip();
            let mut numbers: Vec<i64> = at.into_iter().flatten().collect();
            let mut op = n.op.clone();
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
            let key = NodeKey { op, types, phase, in_micro_batch, operands, module, reason };
            lines.push(Line { key: intern(&mut known, &mut keys, key), numbers });
        }
        let (mut known, mut output_keys, mut output_lines) = (FxHashMap::default(), Vec::new(), Vec::new());
        for o in &graph.outputs {
            let (operand, at) = operand(o.value);
            let mut numbers: Vec<i64> = at.into_iter().collect();
            let kind =
                map_path(&o.kind, |path| Some(without_indices(path, &mut numbers))).unwrap_or_else(|| o.kind.clone());
            let key = OutputKey { kind, layout: o.layout.clone(), operand };
            output_lines.push(Line { key: intern(&mut known, &mut output_keys, key), numbers });
        }
        let (runs, output_runs) = (runs(&lines), self::runs(&output_lines));
        let mut found = Lines { graph, nodes, keys, lines, runs, output_keys, output_lines, output_runs };
        // If every layer has a state but only every second layer has a gate, one occurrence has two states.
        for _ in 0..ROUNDS {
            if !found.align() {
                break;
            }
        }
        found
    }

    /// Calls `look` with every moving number of every run that has more than two occurrences: the index of the run
    /// (runs of outputs after those of nodes), what the number stands for, its step, and its value in the middle
    /// occurrence.
    fn each_moving<'s>(&'s self, mut look: impl FnMut(usize, Number<'s>, i64, i64)) {
        let nodes = self.runs.iter().map(|r| (r, true));
        let all = nodes.chain(self.output_runs.iter().map(|r| (r, false)));
        for (i, (run, is_node)) in all.enumerate().filter(|(_, (r, _))| r.count > 2) {
            let lines = if is_node { &self.lines } else { &self.output_lines };
            for line in run.start..run.start + run.period {
                let kinds =
                    if is_node { Self::kinds(self.key(line)) } else { Self::output_kinds(self.output_key(line)) };
                let middle = &lines[line + run.count / 2 * run.period].numbers;
                let numbers = kinds.into_iter().zip(moves(lines, run, line)).zip(middle);
                for ((kind, step), &middle) in numbers.filter(|((_, step), _)| *step != 0) {
                    look(i, kind, step, middle);
                }
            }
        }
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
                if let Some(other) = self.run_at(middle).filter(|&o| self.runs[o].count > 2) {
                    let period = self.runs[other].period as i64;
                    scale(run, period, step.abs());
                    scale(other, step.abs(), period);
                }
            }
        });
        let mut changed = false;
        let outputs = self.runs.len();
        for (run, factor) in factors {
            let run = if run < outputs { &mut self.runs[run] } else { &mut self.output_runs[run - outputs] };
            if run.count / factor as usize > 2 {
                *run = Run { period: run.period * factor as usize, count: run.count / factor as usize, ..*run };
                changed = true;
            }
        }
        changed
    }

    /// The runs among the lines of nodes, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    fn key(&self, line: usize) -> &NodeKey {
        &self.keys[self.lines[line].key]
    }

    fn output_key(&self, line: usize) -> &OutputKey {
        &self.output_keys[self.output_lines[line].key]
    }

    /// The meanings of the numbers in a line.
    fn kinds(key: &NodeKey) -> Vec<Number<'_>> {
        let operands = key.operands.iter().filter(|o| matches!(o, OperandKey::Line(_))).map(|_| Number::Line);
        let id = match &key.op {
            Op::Input { id, .. } => id.path(),
            _ => None,
        };
        let micro_batch = key.in_micro_batch.then_some(Label::MicroBatches);
        let before = id.into_iter().flat_map(Label::of).chain(micro_batch).chain(Label::of(&key.module));
        let reason = key.reason.iter().flat_map(Reason::paths).flat_map(Label::of);
        let stream = matches!(key.op, Op::Random { .. }).then_some(Label::Streams);
        let unit = matches!(key.op, Op::Input { unit: Some(_), .. }).then_some(Label::Units);
        operands.chain(before.chain(reason).chain(stream).chain(unit).map(Number::Label)).collect()
    }

    fn output_kinds(key: &OutputKey) -> Vec<Number<'_>> {
        let operand = matches!(key.operand, OperandKey::Line(_)).then_some(Number::Line);
        let path = match &key.kind {
            OutputKind::Gradient(path) => Some(path),
            OutputKind::Update(id) => id.path(),
            OutputKind::Result(_) | OutputKind::Loss => None,
        };
        operand.into_iter().chain(path.into_iter().flat_map(Label::of).map(Number::Label)).collect()
    }

    /// The index of the run that contains a line.
    fn run_at(&self, line: i64) -> Option<usize> {
        let at = self.runs.partition_point(|r| r.end() as i64 <= line);
        self.runs.get(at).filter(|r| r.start as i64 <= line).map(|_| at)
    }

    /// The blocks, largest first. A run with fewer than three occurrences belongs to none.
    pub fn blocks(&self) -> Vec<Block> {
        // Runs belong together if they count along the same label, or if the operands of one walk along the other.
        let outputs = self.runs.len();
        let mut group: Vec<usize> = (0..outputs + self.output_runs.len()).collect();
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
        let mut paths: Vec<BTreeMap<Label, usize>> = vec![BTreeMap::new(); outputs + self.output_runs.len()];
        self.each_moving(|run, kind, step, middle| match kind {
            Number::Label(Label::Streams | Label::Units) => {}
            Number::Label(label) => {
                *paths[run].entry(label).or_default() += 1;
                join(run, *counted.entry(label).or_insert(run));
            }
            // Only steps of one whole occurrence count: query, key and value of one layer walk along its weights too.
            Number::Line => {
                let along = |&o: &usize| self.runs[o].count > 2 && self.runs[o].period as i64 == step.abs();
                if let Some(other) = self.run_at(middle).filter(along) {
                    join(run, other);
                }
            }
        });
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for i in 0..group.len() {
            let run = self.runs.get(i).unwrap_or_else(|| &self.output_runs[i - outputs]);
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
        let path = votes.iter().max_by_key(|(p, n)| (**n, std::cmp::Reverse(*p))).map(|(p, _)| p.title());
        let region = |run: Run| {
            let key = self.key(run.start);
            BlockRegion { inputs: matches!(key.op, Op::Input { .. }), phase: key.phase, run }
        };
        let regions: Vec<BlockRegion> = members.iter().filter_map(|&m| self.runs.get(m)).map(|&r| region(r)).collect();
        let outputs = members.iter().filter_map(|&m| m.checked_sub(self.runs.len())).map(|m| self.output_runs[m]);
        let count = regions.iter().map(|r| r.run.count).max()?;
        Some(Block { path: path.unwrap_or_default(), count, regions, outputs: outputs.collect() })
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

    /// The graph with `by` more occurrences (fewer, if `by` is negative) in every run of a block. Operands, indices of
    /// paths and streams continue their steps. `None` if the graph does not determine the result: a run is too short,
    /// operands do not move by one occurrence at a time, or the graph has regions.
    pub fn resized(&self, block: &Block, by: i64) -> Option<Resized> {
        if !self.graph.regions.is_empty() {
            return None;
        }
        let resizing = Resizing::new(self, block, by)?;
        let mut built = Built { graph: Graph::with_room_for(self.graph.mesh.clone(), self.graph), ..Built::default() };
        let reasons = Reasons::new(self, &resizing);
        resizing.each(&self.lines, &resizing.runs, |copy, numbers| {
            built.node(self, copy.of, &numbers, reasons.of(&resizing, copy))
        })?;
        resizing.each(&self.output_lines, &resizing.outputs, |copy, numbers| built.output(self, copy.of, &numbers))?;
        Some(Resized { graph: built.graph, source: built.source })
    }
}

/// The output with its path replaced by the result of `change`; `None` if `change` returns `None`.
fn map_path(kind: &OutputKind, change: impl FnOnce(&ModulePath) -> Option<ModulePath>) -> Option<OutputKind> {
    Some(match kind {
        OutputKind::Gradient(path) => OutputKind::Gradient(change(path)?),
        OutputKind::Update(id) => match id.path() {
            Some(path) => {
                let changed = change(path)?;
                OutputKind::Update(id.map_path(|_| changed))
            }
            None => kind.clone(),
        },
        OutputKind::Result(_) | OutputKind::Loss => kind.clone(),
    })
}

/// By how much the numbers of a line move from one occurrence to the next.
fn moves(lines: &[Line], run: &Run, line: usize) -> Vec<i64> {
    delta(&lines[line], &lines[line + run.period])
}

fn delta(a: &Line, b: &Line) -> Vec<i64> {
    a.numbers.iter().zip(&b.numbers).map(|(a, b)| b - a).collect()
}

/// Where lines move when the runs of a block are resized.
struct Resizing<'a> {
    of: &'a Lines<'a>,
    by: i64,
    runs: BTreeMap<usize, Run>,
    outputs: BTreeMap<usize, Run>,
    /// For each label along which the block counts: its step, and its number in the middle occurrence.
    labels: HashMap<Label<'a>, (i64, i64)>,
}

impl<'a> Resizing<'a> {
    fn new(of: &'a Lines<'a>, block: &Block, by: i64) -> Option<Self> {
        let runs: BTreeMap<usize, Run> = block.regions.iter().map(|r| (r.run.start, r.run)).collect();
        let outputs: BTreeMap<usize, Run> = block.outputs.iter().map(|r| (r.start, *r)).collect();
        if runs.values().chain(outputs.values()).any(|r| (r.count as i64) + by < 2) {
            return None;
        }
        let mut resizing = Resizing { of, by, runs, outputs, labels: HashMap::new() };
        // The middle of a label is that of its longest run. All runs must have the same step.
        let mut longest: HashMap<Label, usize> = HashMap::new();
        for run in block.regions.iter().map(|r| &r.run) {
            for line in run.start..run.start + run.period {
                let middle = &of.lines[line + run.count / 2 * run.period].numbers;
                let steps = moves(&of.lines, run, line);
                for (n, kind) in Lines::kinds(of.key(line)).into_iter().enumerate() {
                    let (Number::Label(label), step) = (kind, steps[n].abs()) else { continue };
                    if step == 0 {
                        continue;
                    }
                    let known = resizing.labels.entry(label).or_insert((step, middle[n]));
                    if known.0 != step {
                        return None;
                    }
                    let length = longest.entry(label).or_insert(run.count);
                    if run.count > *length {
                        (*length, *known) = (run.count, (step, middle[n]));
                    }
                }
            }
        }
        Some(resizing)
    }

    /// The new number of a line that is outside the block or in an occurrence near one of its ends.
    fn moved(&self, line: i64) -> i64 {
        let before = self.runs.values().take_while(|r| r.start as i64 <= line);
        let shift: i64 = before
            .map(|r| {
                let middle = (r.start + r.count / 2 * r.period) as i64;
                if line >= middle { self.by * r.period as i64 } else { 0 }
            })
            .sum();
        line + shift
    }

    /// The new value of a number that does not move in its run.
    fn still(&self, n: i64, kind: &Number) -> i64 {
        match kind {
            Number::Line => self.moved(n),
            Number::Label(label) => self.labeled(n, label),
        }
    }

    /// The new value of a count that does not move in its run.
    fn labeled(&self, n: i64, label: &Label) -> i64 {
        match self.labels.get(label) {
            Some((step, middle)) if n >= *middle => n + self.by * step,
            _ => n,
        }
    }

    /// Calls `add` with every line of the resized list and its numbers. `None` as soon as a call returns `None`.
    fn each(
        &self,
        lines: &[Line],
        runs: &BTreeMap<usize, Run>,
        mut add: impl FnMut(Copied, Vec<i64>) -> Option<()>,
    ) -> Option<()> {
        let is_output = std::ptr::eq(lines, self.of.output_lines.as_slice());
        let kinds = |line: usize| {
            if is_output { Lines::output_kinds(self.of.output_key(line)) } else { Lines::kinds(self.of.key(line)) }
        };
        let mut line = 0;
        while line < lines.len() {
            let Some(run) = runs.get(&line) else {
                let numbers = lines[line].numbers.iter().zip(kinds(line));
                add(Copied { of: line, within: None }, numbers.map(|(&n, kind)| self.still(n, &kind)).collect())?;
                line += 1;
                continue;
            };
            let first: Vec<(Vec<i64>, Vec<i64>)> = (run.start..run.start + run.period)
                .map(|l| self.first(lines, run, l, kinds(l)))
                .collect::<Option<_>>()?;
            let half = (run.count / 2) as i64;
            for occurrence in 0..run.count as i64 + self.by {
                // Occurrences near the ends are copies of themselves, those in between are copies of a middle one.
                let like = occurrence.min(half).max(occurrence - self.by) as usize;
                for (l, (start, steps)) in first.iter().enumerate() {
                    let numbers = start.iter().zip(steps).map(|(n, step)| n + occurrence * step).collect();
                    let of = run.start + like * run.period + l;
                    add(Copied { of, within: Some((*run, occurrence)) }, numbers)?;
                }
            }
            line = run.end();
        }
        Some(())
    }

    /// The numbers of a line in the first occurrence of the resized run, and their steps.
    fn first(&self, lines: &[Line], run: &Run, line: usize, kinds: Vec<Number>) -> Option<(Vec<i64>, Vec<i64>)> {
        let steps = moves(lines, run, line);
        let half = (run.count / 2) as i64;
        let middle = &lines[line + half as usize * run.period].numbers;
        let mut start = Vec::new();
        for ((&n, &step), kind) in middle.iter().zip(&steps).zip(kinds) {
            // A number that counts down starts higher in a longer program.
            let later = if step < 0 { -step * self.by } else { 0 };
            start.push(match kind {
                kind if step == 0 => self.still(n, &kind),
                Number::Label(_) => n - half * step + later,
                Number::Line => {
                    let other = self.of.run_at(n).map(|r| self.of.runs[r])?;
                    let (period, resized) = (other.period as i64, self.runs.contains_key(&other.start));
                    if !resized || step.abs() != period {
                        return None;
                    }
                    let at = self.moved(other.start as i64) + (n - other.start as i64);
                    at - half * step + later
                }
            });
        }
        Some((start, steps))
    }
}

/// A line of a resized list.
#[derive(Clone, Copy)]
struct Copied {
    /// The line that it copies.
    of: usize,
    /// The run that contains it, and the number of its occurrence.
    within: Option<(Run, i64)>,
}

/// The reasons of lines. They follow the lines that they explain and decide nothing.
struct Reasons {
    /// By line: the reason without its indices, and the indices.
    list: Vec<(Reason, Vec<i64>)>,
    by: i64,
}

impl Reasons {
    fn new(of: &Lines, resizing: &Resizing) -> Self {
        let split = |&node: &NodeIndex| {
            let mut numbers = Vec::new();
            let reason = reason_without_indices(&of.graph.node(node).origin.reason, &mut numbers);
            (reason, numbers)
        };
        Reasons { list: of.nodes.iter().map(split).collect(), by: resizing.by }
    }

    /// The reason of a copied line: indices that move in its run continue their steps, others move as the labels of the
    /// block do.
    fn of(&self, resizing: &Resizing, copy: Copied) -> Reason {
        let (reason, numbers) = &self.list[copy.of];
        let moving = copy.within.and_then(|(run, occurrence)| self.moving(reason, copy.of, run, occurrence));
        let labels = reason.paths().flat_map(Label::of);
        let still = numbers.iter().zip(labels).map(|(&n, label)| resizing.labeled(n, &label));
        let moved = still.enumerate().map(|(i, n)| moving.as_ref().and_then(|m| m[i]).unwrap_or(n));
        let mut indices = moved.map(|n| usize::try_from(n).unwrap_or_default());
        reason.map_paths(|path| path.with_indices(&mut indices))
    }

    /// The new values of the indices that move in a run, `None` for those that do not. `None` as a whole if the reasons
    /// of two occurrences in the middle differ in more than indices.
    fn moving(&self, reason: &Reason, line: usize, run: Run, occurrence: i64) -> Option<Vec<Option<i64>>> {
        let half = run.count / 2;
        let at = |which: usize| &self.list[run.start + which * run.period + (line - run.start) % run.period];
        let ((like, middle), (next, after)) = (at(half), at(half + 1));
        let one = |(&n, &m): (&i64, &i64)| {
            let step = m - n;
            let later = if step < 0 { -step * self.by } else { 0 };
            (step != 0).then_some(n + (occurrence - half as i64) * step + later)
        };
        (half + 1 < run.count && like == reason && next == reason).then(|| middle.iter().zip(after).map(one).collect())
    }
}

/// A graph under construction, line by line.
#[derive(Default)]
struct Built {
    graph: Graph,
    source: Vec<Option<NodeIndex>>,
    nodes: Vec<NodeIndex>,
    scalars: FxHashMap<(DType, Scalar), Value>,
}

impl Built {
    fn value(&mut self, operand: &OperandKey, numbers: &mut impl Iterator<Item = i64>) -> Option<Value> {
        match operand {
            OperandKey::Line(result) => {
                let line = usize::try_from(numbers.next()?).ok()?;
                let node = *self.nodes.get(line)?;
                (self.graph.node(node).types.len() > *result as usize).then_some(Value { node, result: *result })
            }
            OperandKey::Scalar(dtype, s) => {
                let (graph, source) = (&mut self.graph, &mut self.source);
                Some(*self.scalars.entry((*dtype, *s)).or_insert_with(|| {
                    source.push(None);
                    graph.push(Op::Fill(*s), &[], Type::new(*dtype, []), &Origin::default())
                }))
            }
        }
    }

    fn node(&mut self, of: &Lines, line: usize, numbers: &[i64], reason: Reason) -> Option<()> {
        let key = of.key(line);
        let mut numbers = numbers.iter().copied();
        let operands: Vec<Value> = key.operands.iter().map(|o| self.value(o, &mut numbers)).collect::<Option<_>>()?;
        let mut op = key.op.clone();
        if let Op::Input { id, .. } = &mut op
            && let Some(path) = id.path()
        {
            let path = with_indices(path, &mut numbers)?;
            *id = id.map_path(|_| path);
        }
        let micro_batch = if key.in_micro_batch { Some(usize::try_from(numbers.next()?).ok()?) } else { None };
        let module = with_indices(&key.module, &mut numbers)?;
        match &mut op {
            Op::Input { unit: Some(unit), .. } => *unit = UnitId(u32::try_from(numbers.next()?).ok()?),
            Op::Random { stream, .. } => {
                if let Some(n) = numbers.next() {
                    *stream = u64::try_from(n).ok()?;
                }
            }
            _ => {}
        }
        let origin = Origin { phase: key.phase, micro_batch, module, reason };
        let Node { types, .. } = of.graph.node(of.nodes[line]);
        self.nodes.push(self.graph.add(op, &operands, types.clone(), origin));
        self.source.push(Some(of.nodes[line]));
        Some(())
    }

    fn output(&mut self, of: &Lines, line: usize, numbers: &[i64]) -> Option<()> {
        let key = of.output_key(line);
        let mut numbers = numbers.iter().copied();
        let value = self.value(&key.operand, &mut numbers)?;
        let kind = map_path(&key.kind, |path| with_indices(path, &mut numbers))?;
        self.graph.outputs.push(Output { kind, value, layout: key.layout.clone() });
        Some(())
    }
}

/// The lines `from..to`. From each line, its numbers move to those of the line `period` later by the same steps as from
/// that one to the next.
struct Stretch {
    from: usize,
    to: usize,
    period: usize,
}

/// The runs of a list of lines, in order and disjoint. The run that saves most lines is taken first, then the best ones
/// before and after it.
pub fn runs(lines: &[Line]) -> Vec<Run> {
    let stretches = stretches(lines);
    let mut found = Vec::new();
    let mut open = vec![(0, lines.len())];
    while let Some((from, to)) = open.pop() {
        let clipped = stretches.iter().filter_map(|s| {
            let (start, end) = (s.from.max(from), s.to.min(to));
            let count = end.saturating_sub(start) / s.period;
            let run = Run { start, period: s.period, count };
            // A run must be worth its braces when it is printed: a single line that occurs twice is not.
            (count > 2 && s.period * count > 3 || count == 2 && s.period > 7).then_some(run)
        });
        // Two occurrences may be a coincidence, so runs with more of them are preferred.
        let size = |r: &Run| (r.count > 2, r.period * (r.count - 1), std::cmp::Reverse((r.period, r.start)));
        if let Some(best) = clipped.max_by_key(size) {
            open.push((from, best.start));
            open.push((best.end(), to));
            found.push(best);
        }
    }
    found.sort_unstable();
    found
}

/// All stretches of at least two periods.
fn stretches(lines: &[Line]) -> Vec<Stretch> {
    let mut next: FxHashMap<usize, usize> = FxHashMap::default();
    let mut after: Vec<Option<usize>> = vec![None; lines.len()];
    for (i, line) in lines.iter().enumerate().rev() {
        after[i] = next.insert(line.key, i);
    }
    let mut pairs = vec![0; LONGEST_PERIOD + 1];
    for i in 0..lines.len() {
        let mut at = i;
        for _ in 0..OCCURRENCES {
            let Some(later) = after[at].filter(|l| l - i <= LONGEST_PERIOD) else { break };
            pairs[later - i] += 1;
            at = later;
        }
    }
    let mut found = Vec::new();
    for (period, _) in pairs.into_iter().enumerate().filter(|&(period, pairs)| pairs >= period.max(1)) {
        let equal = |i: usize| i + period < lines.len() && lines[i].key == lines[i + period].key;
        let even = |i: usize| {
            let (a, b) = (&lines[i].numbers, &lines[i + period].numbers);
            let c = &lines[i + 2 * period].numbers;
            (0..a.len()).all(|n| b[n] - a[n] == c[n] - b[n])
        };
        let mut from = 0;
        while from + period < lines.len() {
            let mut to = from;
            while equal(to) && (to < from + period || even(to - period)) {
                to += 1;
            }
            if to - from >= period {
                found.push(Stretch { from, to: to + period, period });
            }
            // The line that ended this stretch may belong to the next one, which starts at most one period before it.
            from = if to >= from + period { to - period + 1 } else { to + 1 };
        }
    }
    found
}
