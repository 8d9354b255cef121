//! Makes a program longer or shorter by whole occurrences of a block.

use super::keys::{BoundaryKey, Key, Number, OperandKey, TermKey, map_path};
use super::label::{Label, reason_without_indices, with_indices};
use super::list::List;
use super::runs::Run;
use super::{Block, Lines};
use crate::DType;
use crate::graph::{Boundary, Graph, Node, Origin, Output, Region, Value};
use crate::op::{Op, Scalar, UnitId};
use crate::reason::Reason;
use crate::sharding::Type;
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, HashMap};

/// A resized graph, and where its nodes come from.
#[derive(Debug)]
pub struct Resized<'a> {
    /// The graph.
    pub graph: Graph,
    /// By node index, the node of the original graph that the node copies; `None` for scalar constants.
    pub source: Vec<Option<NodeIndex>>,
    resizing: Resizing<'a>,
    /// By line of the resized graph.
    copied: Vec<Copied>,
}

impl Resized<'_> {
    /// What is said of nodes of the original graph, said of the nodes that copy them, in order. Paths in the reasons continue
    /// their steps. `why` is the reason of a statement.
    pub fn continued<'t, T: Clone + 't>(
        &self,
        said: impl Fn(NodeIndex) -> &'t [T],
        why: impl for<'a> Fn(&'a mut T) -> &'a mut Reason,
    ) -> Vec<(NodeIndex, Vec<T>)> {
        let mut found: Vec<(NodeIndex, Vec<T>)> =
            self.copies().map(|(node, source)| (node, said(source).to_vec())).collect();
        let most = found.iter().map(|(_, said)| said.len()).max().unwrap_or(0);
        for i in 0..most {
            let reason = |node| said(node).get(i).map(|one| why(&mut one.clone()).clone()).unwrap_or_default();
            let reasons = Reasons::new(&self.resizing, reason);
            for ((_, all), &copy) in found.iter_mut().zip(&self.copied) {
                if let Some(one) = all.get_mut(i) {
                    *why(one) = reasons.of(&self.resizing, copy);
                }
            }
        }
        found.retain(|(_, said)| !said.is_empty());
        found
    }

    /// The nodes that copy nodes of the original graph, in order, each with the one that it copies.
    pub fn copies(&self) -> impl Iterator<Item = (NodeIndex, NodeIndex)> + '_ {
        self.graph.nodes().zip(&self.source).filter_map(|(node, source)| Some((node, (*source)?)))
    }
}

impl<'a> Lines<'a> {
    /// The graph with `by` more occurrences (fewer, if `by` is negative) in every run of a block. Operands, indices of
    /// paths and streams continue their steps. `None` if the graph does not determine the result: a run is too short, or
    /// operands do not move by one occurrence at a time.
    pub fn resized(&'a self, block: &Block, by: i64) -> Option<Resized<'a>> {
        let resizing = Resizing::new(self, block, by)?;
        let mut built = Built { graph: Graph::with_room_for(self.graph.mesh.clone(), self.graph), ..Built::default() };
        let reasons = Reasons::new(&resizing, |node| self.graph.node(node).origin.reason.clone());
        let mut copied = Vec::new();
        resizing.each(&self.terms, &resizing.terms, |copy, mut numbers| {
            let sum = numbers.remove(0);
            built.terms.entry(sum).or_default().push((copy.of, numbers));
            Some(())
        })?;
        resizing.each(&self.operations, &resizing.runs, |copy, numbers| {
            copied.push(copy);
            built.node(self, copy.of, &numbers, reasons.of(&resizing, copy))
        })?;
        resizing.each(&self.regions, &resizing.regions, |copy, numbers| built.region(self, copy.of, &numbers))?;
        resizing.each(&self.outputs, &resizing.outputs, |copy, numbers| built.output(self, copy.of, &numbers))?;
        Some(Resized { graph: built.graph, source: built.source, resizing, copied })
    }
}

/// Where lines move when the runs of a block are resized.
#[derive(Debug)]
struct Resizing<'a> {
    of: &'a Lines<'a>,
    by: i64,
    /// The runs of the block by their first line: of operations, of module regions, of outputs and of the terms of sums.
    runs: BTreeMap<usize, Run>,
    regions: BTreeMap<usize, Run>,
    outputs: BTreeMap<usize, Run>,
    terms: BTreeMap<usize, Run>,
    /// For each label along which the block counts: its step, and its number in the middle occurrence.
    labels: HashMap<Label<'a>, (i64, i64)>,
}

impl<'a> Resizing<'a> {
    fn new(of: &'a Lines<'a>, block: &Block, by: i64) -> Option<Self> {
        let by_line = |runs: &mut dyn Iterator<Item = &Run>| runs.map(|r| (r.start, *r)).collect::<BTreeMap<_, _>>();
        let runs = by_line(&mut block.regions.iter().map(|r| &r.run));
        let (regions, outputs) = (by_line(&mut block.module_regions.iter()), by_line(&mut block.outputs.iter()));
        let terms = by_line(&mut block.terms.iter());
        let mut all = runs.values().chain(regions.values()).chain(outputs.values()).chain(terms.values());
        if all.any(|r| (r.count as i64) + by < 2) {
            return None;
        }
        let mut resizing = Resizing { of, by, runs, regions, outputs, terms, labels: HashMap::new() };
        // The middle of a label is that of its longest run. All runs must have the same step.
        let mut longest: HashMap<Label, usize> = HashMap::new();
        for run in block.regions.iter().map(|r| &r.run) {
            for line in run.start..run.start + run.period {
                let middle = &of.operations.lines[line + run.count / 2 * run.period].numbers;
                let steps = of.operations.steps(run, line);
                for (n, kind) in of.operations.key(line).kinds().into_iter().enumerate() {
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
    fn each<K: Key>(
        &self,
        list: &List<K>,
        runs: &BTreeMap<usize, Run>,
        mut add: impl FnMut(Copied, Vec<i64>) -> Option<()>,
    ) -> Option<()> {
        let lines = &list.lines;
        let mut line = 0;
        while line < lines.len() {
            let Some(run) = runs.get(&line) else {
                let numbers = lines[line].numbers.iter().zip(list.key(line).kinds());
                add(Copied { of: line, within: None }, numbers.map(|(&n, kind)| self.still(n, &kind)).collect())?;
                line += 1;
                continue;
            };
            let first: Vec<(Vec<i64>, Vec<i64>)> =
                (run.start..run.start + run.period).map(|l| self.first(list, run, l)).collect::<Option<_>>()?;
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
    fn first<K: Key>(&self, list: &List<K>, run: &Run, line: usize) -> Option<(Vec<i64>, Vec<i64>)> {
        let steps = list.steps(run, line);
        let half = (run.count / 2) as i64;
        let middle = &list.lines[line + half as usize * run.period].numbers;
        let mut start = Vec::new();
        for ((&n, &step), kind) in middle.iter().zip(&steps).zip(list.key(line).kinds()) {
            // A number that counts down starts higher in a longer program.
            let later = if step < 0 { -step * self.by } else { 0 };
            start.push(match kind {
                kind if step == 0 => self.still(n, &kind),
                Number::Label(_) => n - half * step + later,
                Number::Line => {
                    let other = self.of.run_at(n).map(|r| self.of.operations.runs[r])?;
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
#[derive(Clone, Copy, Debug)]
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
    fn new(resizing: &Resizing, of: impl Fn(NodeIndex) -> Reason) -> Self {
        let split = |&node: &NodeIndex| {
            let mut numbers = Vec::new();
            let reason = reason_without_indices(&of(node), &mut numbers);
            (reason, numbers)
        };
        Reasons { list: resizing.of.nodes.iter().map(split).collect(), by: resizing.by }
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

    /// The new values of the indices that move in a run, `None` for those that do not. `None` as a whole if the reason of
    /// the middle occurrence differs from those of both of its neighbors in more than indices.
    fn moving(&self, reason: &Reason, line: usize, run: Run, occurrence: i64) -> Option<Vec<Option<i64>>> {
        let half = run.count / 2;
        let at = |which: usize| &self.list[run.start + which * run.period + (line - run.start) % run.period];
        let (like, middle) = at(half);
        let neighbors = [(half + 1, 1), (half.wrapping_sub(1), -1)];
        let mut neighbors = neighbors.into_iter().filter(|&(which, _)| which < run.count);
        let (which, direction) = neighbors.find(|&(which, _)| at(which).0 == *like)?;
        let one = |(&n, &m): (&i64, &i64)| {
            let step = (m - n) * direction;
            let later = if step < 0 { -step * self.by } else { 0 };
            (step != 0).then_some(n + (occurrence - half as i64) * step + later)
        };
        (like == reason).then(|| middle.iter().zip(&at(which).1).map(one).collect())
    }
}

/// A graph under construction, line by line.
#[derive(Default)]
struct Built {
    graph: Graph,
    source: Vec<Option<NodeIndex>>,
    nodes: Vec<NodeIndex>,
    scalars: FxHashMap<(DType, Scalar), Value>,
    /// By the lines of long sums: their terms, each with its line in the list of terms and its numbers without that of the sum.
    terms: FxHashMap<i64, Vec<(usize, Vec<i64>)>>,
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
        let key = of.operations.key(line);
        let mut numbers = numbers.iter().copied();
        let mut operands: Vec<Value> =
            key.operands.iter().map(|o| self.value(o, &mut numbers)).collect::<Option<_>>()?;
        let mut op = key.op.clone();
        if let Op::Map { subs, .. } = &mut op
            && key.is_long_sum()
        {
            for (term, numbers) in self.terms.remove(&(self.nodes.len() as i64)).unwrap_or_default() {
                let TermKey { operand, letters } = of.terms.key(term);
                operands.push(self.value(operand, &mut numbers.into_iter())?);
                subs.operands.push(letters.clone());
            }
        }
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

    fn boundaries(&mut self, keys: &[BoundaryKey], numbers: &mut impl Iterator<Item = i64>) -> Option<Vec<Boundary>> {
        let mut boundary =
            |key: &BoundaryKey| Some(Boundary { value: self.value(&key.value, numbers)?, layout: key.layout.clone() });
        keys.iter().map(&mut boundary).collect()
    }

    fn region(&mut self, of: &Lines, line: usize, numbers: &[i64]) -> Option<()> {
        let key = of.regions.key(line);
        let mut numbers = numbers.iter().copied();
        let arguments = self.boundaries(&key.arguments, &mut numbers)?;
        let results = self.boundaries(&key.results, &mut numbers)?;
        let path = with_indices(&key.path, &mut numbers)?;
        self.graph.regions.push(Region { path, arguments, results });
        Some(())
    }

    fn output(&mut self, of: &Lines, line: usize, numbers: &[i64]) -> Option<()> {
        let key = of.outputs.key(line);
        let mut numbers = numbers.iter().copied();
        let value = self.value(&key.operand, &mut numbers)?;
        let kind = map_path(&key.kind, |path| with_indices(path, &mut numbers))?;
        self.graph.outputs.push(Output { kind, value, layout: key.layout.clone() });
        Some(())
    }
}
