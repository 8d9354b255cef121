//! Schedules kernels, and the starts and waits of collectives, in an order that all ranks follow.
//!
//! A collective starts as soon as its operands are computed, and is waited for right before its first reader. The
//! kernels between the two hide it. If there are too few, kernels that do not depend on it are taken from a window of
//! the next ones.
//!
//! ```text
//! before (grouped)                      after
//! %1 = einsum dy, w   ; input gradient  run %1
//! %2 = all_reduce %1                    start %2
//! %3 = mul %2, g                        run %4     ; the weight gradient, while %2 is in flight
//! %4 = einsum x, dy   ; weight gradient wait %2
//!                                       run %3
//! ```
//!
//! Two kinds of moves are made, both within [`LowerOptions::window`] kernels. A kernel that is ready moves before one
//! that would have to wait. And kernels that a collective needs move before those that it does not need, if otherwise
//! too little work would come after the start of the collective.
//!
//! **Gathers of inputs**, converted to another element type or not, could start at the beginning of the step, but then
//! all parameters would be in memory at once, and a collective that a kernel waits for would queue after them. Each
//! starts when a kernel has waited for the one that is read before it over the same axes, so that at most two blocks
//! are in memory. Where collectives overlap with kernels, it also starts when nothing is in flight and its reader is
//! within the window. **Collectives of the backward pass on values of the forward pass**, such as those that are computed a
//! second time ([`crate::rematerialize`]), could start long before they are needed as well. Each starts when its reader is
//! within the window and the one before it over the same axes is done.
//!
//! Memory: a schedule may need at most `1 + memory_growth` times the arena of the same program without overlap,
//! measured exactly on rank 0, which has the largest shards. Otherwise a smaller window is tried, then none, then as many
//! bytes in flight as the arena may grow by, then no prefetch, and then no overlap. Where memory has a limit
//! ([`LowerOptions::memory`]), a schedule may need that much, and each of these is also tried with collectives that are waited
//! for as soon as they should be complete, which frees what they read. If all of that does not suffice, buckets become smaller
//! ([`super::schedule()`]).
//!
//! The order depends on global types only, so all ranks start the same collectives in the same order (`check_ranks.rs`
//! proves that for the emitted programs). At most [`LowerOptions::in_flight`] collectives are in flight.

use super::bucket::gathers;
use super::depend::{Dependences, is_converted_input, source};
use super::events::{Event, Schedule};
use super::kernel::Kernel;
use super::{LowerOptions, emit, memory};
use crate::cost;
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet};
use tpc_ir::{AxisSet, Graph, Phase, Type};

/// The moves that a schedule may make.
#[derive(Clone, Copy, PartialEq)]
struct Freedom {
    window: usize,
    prefetch: bool,
    /// Whether a gather of an input may also start because nothing is in flight. Where nothing overlaps, it would only take
    /// memory earlier.
    idle: bool,
    /// Most bytes of operands and results that may be in flight at once before a kernel needs the results.
    bytes: usize,
    /// Whether a collective is waited for as soon as it has had the time that it takes, not only before its first reader. What
    /// it reads is then free.
    prompt: bool,
}

/// Orders kernels and collectives.
pub(super) fn schedule(graph: &Graph, kernels: Vec<Kernel>, target: &Target, options: &LowerOptions) -> Schedule {
    let order = adjacent(&kernels);
    let mut best = Schedule { kernels, order };
    if !options.overlap || best.order.len() == best.kernels.len() {
        return best;
    }
    let least = arena(graph, &best);
    let growth = match options.memory {
        Some(limit) => limit.saturating_sub(least),
        None => (least as f64 * options.memory_growth) as usize,
    };
    let found = Dependences::new(graph, &best.kernels);
    let costs: Vec<f64> = best.kernels.iter().map(|k| seconds(graph, k, target)).collect();
    let idle = target.device.kind.overlaps();
    let freedom = |window, prefetch, bytes| Freedom { window, prefetch, idle, bytes, prompt: false };
    let mut tries = vec![
        freedom(options.window, true, usize::MAX),
        freedom(options.window / 4, true, usize::MAX),
        freedom(0, true, usize::MAX),
        freedom(options.window / 4, true, 2 * growth),
        freedom(options.window / 4, true, growth),
        freedom(0, true, growth),
        freedom(0, false, usize::MAX),
        freedom(0, false, growth),
    ];
    // Where nothing overlaps, a few more bytes in flight gain nothing.
    tries.retain(|freedom| idle || freedom.bytes == usize::MAX);
    if idle && options.memory.is_some() {
        let fewer = [growth / 2, growth / 4].map(|bytes| freedom(options.window / 4, true, bytes));
        tries.extend(fewer);
        tries = tries.into_iter().flat_map(|freedom| [freedom, Freedom { prompt: true, ..freedom }]).collect();
    }
    tries.dedup();
    for freedom in tries {
        let order = Walk::new(graph, &best.kernels, &found, &costs, options, freedom).run();
        let tried = Schedule { order, kernels: best.kernels };
        if arena(graph, &tried) <= least + growth {
            return tried;
        }
        best.kernels = tried.kernels;
    }
    best
}

/// The bytes of the first rank's arena.
pub(super) fn arena(graph: &Graph, schedule: &Schedule) -> usize {
    let (mut program, _) = emit::emit(graph, schedule, 0);
    memory::plan(&mut program, &[]);
    program.arena_bytes
}

/// The order in which every collective is waited for immediately.
fn adjacent(kernels: &[Kernel]) -> Vec<Event> {
    let events = kernels.iter().enumerate().flat_map(|(k, kernel)| match kernel {
        Kernel::Collective(_) => vec![Event::Start(k), Event::Wait(k)],
        _ => vec![Event::Run(k)],
    });
    events.collect()
}

/// A collective in flight.
struct Flight {
    kernel: usize,
    /// Its number among those over its axes.
    sequence: usize,
    /// The seconds that it still takes.
    left: f64,
    /// The bytes of its operands and results on the first rank.
    bytes: usize,
}

/// The state of scheduling, kernel by kernel.
struct Walk<'a> {
    options: &'a LowerOptions,
    freedom: Freedom,
    found: &'a Dependences,
    users: Vec<Vec<usize>>,
    collective: Vec<bool>,
    /// The gathers of inputs and the repeated collectives, each with the previous one over the same axes.
    gathers: BTreeMap<usize, Option<usize>>,
    /// Collectives of the backward pass on values of the forward pass.
    repeated: BTreeSet<usize>,
    axes: Vec<AxisSet>,
    seconds: &'a [f64],
    /// The bytes of the operands and results of each collective on the first rank.
    bytes: Vec<usize>,
    /// Whether the work between a collective and its first reader is too little to hide it.
    exposed: Vec<bool>,
    /// The number of kernels that each kernel still waits for.
    missing: Vec<usize>,
    done: Vec<bool>,
    /// Collectives that have not started but whose operands are computed.
    startable: BTreeSet<usize>,
    /// Collectives that have not started.
    ahead: BTreeSet<usize>,
    in_flight: Vec<Flight>,
    started: BTreeMap<AxisSet, usize>,
    order: Vec<Event>,
}

impl<'a> Walk<'a> {
    fn new(
        graph: &Graph,
        kernels: &[Kernel],
        found: &'a Dependences,
        seconds: &'a [f64],
        options: &'a LowerOptions,
        freedom: Freedom,
    ) -> Self {
        let n = kernels.len();
        let mut users = vec![Vec::new(); n];
        for (k, needs) in found.needs.iter().enumerate() {
            needs.iter().for_each(|&p| users[p].push(k));
        }
        let collective: Vec<bool> = kernels.iter().map(|k| k.as_collective().is_some()).collect();
        let axes: Vec<AxisSet> = kernels.iter().map(|k| graph.node(k.first()).op.axes()).collect();
        let repeated: BTreeSet<usize> = (0..n).filter(|&k| is_repeated(graph, &kernels[k])).collect();
        let is_early = |&k: &usize| gathers(graph, &kernels[k], is_converted_input) || repeated.contains(&k);
        let mut early: Vec<usize> = (0..n).filter(is_early).collect();
        early.sort_by_key(|&k| found.readers[k].first());
        let (mut gathers, mut last) = (BTreeMap::new(), BTreeMap::new());
        for k in early {
            gathers.insert(k, last.insert(axes[k], k));
        }
        let work = |range: std::ops::Range<usize>| range.filter(|&k| !collective[k]).map(|k| seconds[k]).sum::<f64>();
        let exposed = (0..n).map(|k| {
            let reader = found.readers[k].first().copied().unwrap_or(n);
            collective[k] && !gathers.contains_key(&k) && work(k..reader.max(k)) < seconds[k]
        });
        let exposed = exposed.collect();
        let bytes = kernels.iter().map(|k| k.as_collective().map_or(0, |values| bytes(graph, values))).collect();
        Walk {
            options,
            freedom,
            found,
            users,
            startable: (0..n).filter(|&k| collective[k] && found.needs[k].is_empty()).collect(),
            ahead: (0..n).filter(|&k| collective[k]).collect(),
            collective,
            gathers,
            repeated,
            axes,
            seconds,
            bytes,
            exposed,
            missing: found.needs.iter().map(Vec::len).collect(),
            done: vec![false; n],
            in_flight: Vec::new(),
            started: BTreeMap::new(),
            order: Vec::with_capacity(n),
        }
    }

    fn run(mut self) -> Vec<Event> {
        let mut rest: Vec<usize> = (0..self.done.len()).filter(|&k| !self.collective[k]).rev().collect();
        while let Some(&head) = rest.last() {
            self.start_ready(head);
            let at = self.choose(&rest);
            let next = rest.remove(rest.len() - 1 - at);
            debug_assert!(at == 0 || self.missing[next] == 0);
            for &need in &self.found.needs[next] {
                self.finish(need);
            }
            // A gather may start now: it is in flight while this kernel reads the previous one.
            self.start_ready(head);
            debug_assert!(at != 0 || next == head);
            self.order.push(Event::Run(next));
            self.complete(next);
            let mut worked = self.seconds[next];
            for flight in &mut self.in_flight {
                let hidden = worked.min(flight.left);
                flight.left -= hidden;
                worked -= hidden;
            }
            if self.freedom.prompt {
                let complete: Vec<usize> = self.in_flight.iter().filter(|f| f.left <= 0.0).map(|f| f.kernel).collect();
                complete.into_iter().for_each(|k| self.finish(k));
            }
        }
        while let Some(&k) = self.ahead.first() {
            self.start(k);
        }
        while let Some(flight) = self.in_flight.first() {
            self.finish(flight.kernel);
        }
        self.order
    }

    /// Chooses which of the next kernels runs. Returns its distance from the first.
    fn choose(&self, rest: &[usize]) -> usize {
        let head = rest[rest.len() - 1];
        let window = || rest.iter().rev().copied().enumerate().take(self.freedom.window);
        if self.missing[head] > 0 {
            // A wait for a collective that has finished costs nothing. Otherwise a kernel that is ready comes first.
            let in_flight = |need: usize| self.in_flight.iter().find(|f| f.kernel == need);
            let waits = self.found.needs[head]
                .iter()
                .any(|&need| !self.done[need] && in_flight(need).is_none_or(|f| f.left > 0.0));
            let ready = window().find(|&(_, k)| self.missing[k] == 0);
            return if waits { ready.map_or(0, |(at, _)| at) } else { 0 };
        }
        // If nothing is in flight, prefer the kernels that the next collective needs, if it is exposed.
        if self.in_flight.iter().any(|f| f.left > 0.0) {
            return 0;
        }
        let Some(&goal) = self.ahead.iter().find(|k| !self.gathers.contains_key(k)) else { return 0 };
        if !self.exposed[goal] {
            return 0;
        }
        let near: BTreeSet<usize> = window().map(|(_, k)| k).collect();
        let Some(needed) = self.needed(goal, &near).filter(|needed| !needed.contains(&head)) else { return 0 };
        window().find(|(_, k)| needed.contains(k) && self.missing[*k] == 0).map_or(0, |(at, _)| at)
    }

    /// The kernels that must still run before a collective can start. `None` if one of them is not near.
    fn needed(&self, goal: usize, near: &BTreeSet<usize>) -> Option<BTreeSet<usize>> {
        let (mut needed, mut stack) = (BTreeSet::new(), vec![goal]);
        while let Some(k) = stack.pop() {
            for &need in self.found.needs[k].iter().filter(|&&n| !self.done[n]) {
                if !near.contains(&need) {
                    return None;
                }
                if needed.insert(need) {
                    stack.push(need);
                }
            }
        }
        Some(needed)
    }

    /// Whether the first reader of a collective is among the kernels of the window that begins with the next one.
    fn is_near(&self, k: usize, head: usize) -> bool {
        self.found.readers[k].first().is_some_and(|&reader| reader < head + self.freedom.window)
    }

    /// Starts the collectives that can start, subject to the limits on prefetch and on collectives in flight.
    fn start_ready(&mut self, head: usize) {
        for k in self.startable.clone() {
            let due = match self.gathers.get(&k) {
                None => true,
                Some(before) if self.repeated.contains(&k) => {
                    self.freedom.prefetch && before.is_none_or(|b| self.done[b]) && self.is_near(k, head)
                }
                Some(before) => {
                    let idle =
                        || self.freedom.idle && self.in_flight.iter().all(|f| f.left <= 0.0) && self.is_near(k, head);
                    self.freedom.prefetch && (before.is_none_or(|b| self.done[b]) || idle())
                }
            };
            let bytes = self.in_flight.iter().map(|f| f.bytes).sum::<usize>() + self.bytes[k];
            if due && self.in_flight.len() < self.options.in_flight && bytes <= self.freedom.bytes {
                self.start(k);
            }
        }
    }

    /// Starts a collective. The collectives that it needs are waited for first.
    fn start(&mut self, k: usize) {
        for &need in &self.found.needs[k] {
            self.finish(need);
        }
        let limit = self.options.in_flight.max(1);
        let sequence = self.started.get(&self.axes[k]).copied().unwrap_or(0);
        // The number of collectives in flight is limited, and so is the distance to the oldest one of the group.
        while let Some(oldest) = self.in_flight.first().filter(|_| self.in_flight.len() >= limit) {
            self.finish(oldest.kernel);
        }
        loop {
            let late = |f: &&Flight| self.axes[f.kernel] == self.axes[k] && sequence - f.sequence >= limit;
            let Some(oldest) = self.in_flight.iter().find(late) else { break };
            self.finish(oldest.kernel);
        }
        self.startable.remove(&k);
        self.ahead.remove(&k);
        self.started.insert(self.axes[k], sequence + 1);
        self.in_flight.push(Flight { kernel: k, sequence, left: self.seconds[k], bytes: self.bytes[k] });
        self.order.push(Event::Start(k));
    }

    /// Ensures that the result of a kernel is available.
    fn finish(&mut self, k: usize) {
        if self.done[k] || !self.collective[k] {
            debug_assert!(self.done[k], "kernel {k} has not run");
            return;
        }
        if self.ahead.contains(&k) {
            self.start(k);
        }
        self.in_flight.retain(|f| f.kernel != k);
        self.order.push(Event::Wait(k));
        self.complete(k);
    }

    fn complete(&mut self, k: usize) {
        self.done[k] = true;
        for &user in &self.users[k] {
            self.missing[user] -= 1;
            if self.missing[user] == 0 && self.collective[user] && self.ahead.contains(&user) {
                self.startable.insert(user);
            }
        }
    }
}

/// Whether a kernel is a collective of a later phase on values that the forward pass computes.
fn is_repeated(graph: &Graph, kernel: &Kernel) -> bool {
    let phase = |node: NodeIndex| graph.node(node).origin.phase;
    let repeats = |&n: &NodeIndex| {
        let operand = source(graph, graph.operands(n)[0].node);
        phase(n) != Phase::Forward && phase(operand) == Phase::Forward && !is_converted_input(graph, operand)
    };
    kernel.as_collective().is_some_and(|nodes| nodes.iter().all(repeats))
}

/// The bytes that the first rank holds for a collective in flight: of its operands and its results.
fn bytes(graph: &Graph, values: &[NodeIndex]) -> usize {
    let held = |&n: &NodeIndex| [graph.ty(graph.operands(n)[0]), &graph.node(n).types[0]];
    values.iter().flat_map(held).map(|ty| ty.max_local_bytes(&graph.mesh)).sum()
}

/// The estimated seconds of a kernel on the slowest rank. The latency of a collective of several values counts once.
fn seconds(graph: &Graph, kernel: &Kernel, target: &Target) -> f64 {
    let one = |&node: &NodeIndex| {
        let n = graph.node(node);
        let operands = graph.operands(node);
        let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
        cost::seconds(target, &n.op, &types, &n.types[0], &graph.mesh)
    };
    let latency = |node| target.links.group(&graph.mesh, graph.node(node).op.axes()).latency;
    let spared = kernel.as_collective().map_or(0.0, |values| latency(values[0]) * (values.len() - 1) as f64);
    kernel.nodes().iter().map(one).sum::<f64>() - spared
}
