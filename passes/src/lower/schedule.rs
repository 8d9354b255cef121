//! In which order every rank runs its kernels, starts its collectives and waits for them.
//!
//! A collective starts as soon as its operands are there, and is waited for right before its first
//! reader. What lies between runs while it travels; where that is too little, kernels that do not
//! depend on it are taken from a window of the next ones.
//!
//! ```text
//! before (grouped)                      after
//! %1 = einsum dy, w   ; input gradient  run %1
//! %2 = all_reduce %1                    start %2
//! %3 = mul %2, g                        run %4     ; the weight gradient, while %2 travels
//! %4 = einsum x, dy   ; weight gradient wait %2
//!                                       run %3
//! ```
//!
//! Two moves, both within [`LowerOptions::window`] kernels: a kernel that is ready goes ahead of one that would
//! have to wait; and kernels that a collective needs go ahead of others that it does not, if it
//! would find too little work behind it otherwise.
//!
//! **Gathers of inputs** could start at the beginning of the step, which would hold all parameters at
//! once. Each starts when the one before it over the same axes has arrived: one block ahead, so that
//! at most two blocks are held.
//!
//! Memory: a schedule may need at most `1 + memory_growth` times the arena of the same program with
//! nothing overlapped, measured exactly on rank 0, which holds the largest shards. Otherwise a
//! smaller window is tried, then none, then no prefetch, then no overlap.
//!
//! The order depends on global types only: all ranks start the same collectives in the same order
//! (`check_ranks.rs` proves it of what was emitted). At most [`LowerOptions::in_flight`] are in flight.

use super::bucket::gathers_input;
use super::depend::Dependences;
use super::kernel::Kernel;
use super::launches::{Launch, Schedule};
use super::{LowerOptions, emit, memory};
use crate::cost;
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet};
use tpc_ir::{AxisSet, Graph, Type};

/// How much a schedule may move.
#[derive(Clone, Copy)]
struct Freedom {
    window: usize,
    prefetch: bool,
}

/// Orders kernels and collectives.
pub(super) fn schedule(graph: &Graph, kernels: Vec<Kernel>, target: &Target, options: &LowerOptions) -> Schedule {
    let order = adjacent(&kernels);
    let mut best = Schedule { kernels, order };
    if !options.overlap || best.order.len() == best.kernels.len() {
        return best;
    }
    let arena = |schedule: &Schedule| {
        let (mut program, _) = emit::emit(graph, schedule, 0);
        memory::plan(&mut program, &[]);
        program.arena_bytes
    };
    let bound = (arena(&best) as f64 * (1.0 + options.memory_growth)) as usize;
    let found = Dependences::new(graph, &best.kernels);
    let costs: Vec<f64> = best.kernels.iter().map(|k| seconds(graph, k, target)).collect();
    let mut tries: Vec<Freedom> = Vec::new();
    for (window, prefetch) in [(options.window, true), (options.window / 4, true), (0, true), (0, false)] {
        if tries.last().is_none_or(|t| (t.window, t.prefetch) != (window, prefetch)) {
            tries.push(Freedom { window, prefetch });
        }
    }
    for freedom in tries {
        let order = Walk::new(graph, &best.kernels, &found, &costs, options, freedom).run();
        let tried = Schedule { order, kernels: best.kernels };
        if arena(&tried) <= bound {
            return tried;
        }
        best.kernels = tried.kernels;
    }
    best
}

/// Every collective waited for at once.
fn adjacent(kernels: &[Kernel]) -> Vec<Launch> {
    let launches = kernels.iter().enumerate().flat_map(|(k, kernel)| match kernel {
        Kernel::Collective(_) => vec![Launch::Start(k), Launch::Wait(k)],
        _ => vec![Launch::Run(k)],
    });
    launches.collect()
}

/// A collective on its way.
struct Flight {
    kernel: usize,
    /// Its number among those over its axes.
    sequence: usize,
    /// Seconds that it still travels.
    left: f64,
}

struct Walk<'a> {
    options: &'a LowerOptions,
    freedom: Freedom,
    found: &'a Dependences,
    users: Vec<Vec<usize>>,
    collective: Vec<bool>,
    /// Gathers of inputs, and the one before over the same axes.
    gathers: BTreeMap<usize, Option<usize>>,
    axes: Vec<AxisSet>,
    seconds: &'a [f64],
    /// Whether the work behind a collective is too little to hide it.
    exposed: Vec<bool>,
    /// How many kernels each one still waits for.
    missing: Vec<usize>,
    done: Vec<bool>,
    /// Collectives whose operands are there, not yet started.
    startable: BTreeSet<usize>,
    /// Collectives that have not started.
    ahead: BTreeSet<usize>,
    flying: Vec<Flight>,
    started: BTreeMap<AxisSet, usize>,
    order: Vec<Launch>,
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
        let (mut gathers, mut last) = (BTreeMap::new(), BTreeMap::new());
        for k in (0..n).filter(|&k| collective[k] && gathers_input(graph, &kernels[k])) {
            gathers.insert(k, last.insert(axes[k], k));
        }
        let work = |range: std::ops::Range<usize>| range.filter(|&k| !collective[k]).map(|k| seconds[k]).sum::<f64>();
        let exposed = (0..n).map(|k| {
            let reader = found.readers[k].first().copied().unwrap_or(n);
            collective[k] && !gathers.contains_key(&k) && work(k..reader.max(k)) < seconds[k]
        });
        let exposed = exposed.collect();
        Walk {
            options,
            freedom,
            found,
            users,
            startable: (0..n).filter(|&k| collective[k] && found.needs[k].is_empty()).collect(),
            ahead: (0..n).filter(|&k| collective[k]).collect(),
            collective,
            gathers,
            axes,
            seconds,
            exposed,
            missing: found.needs.iter().map(Vec::len).collect(),
            done: vec![false; n],
            flying: Vec::new(),
            started: BTreeMap::new(),
            order: Vec::with_capacity(n),
        }
    }

    fn run(mut self) -> Vec<Launch> {
        let mut rest: Vec<usize> = (0..self.done.len()).filter(|&k| !self.collective[k]).rev().collect();
        while let Some(&head) = rest.last() {
            self.start_ready();
            let at = self.choose(&rest);
            let next = rest.remove(rest.len() - 1 - at);
            debug_assert!(at == 0 || self.missing[next] == 0);
            for &need in &self.found.needs[next] {
                self.finish(need);
            }
            // What waited for those: the next gather travels while this kernel reads the last one.
            self.start_ready();
            debug_assert!(at != 0 || next == head);
            self.order.push(Launch::Run(next));
            self.complete(next);
            let mut worked = self.seconds[next];
            for flight in &mut self.flying {
                let hidden = worked.min(flight.left);
                flight.left -= hidden;
                worked -= hidden;
            }
        }
        while let Some(&k) = self.ahead.first() {
            self.start(k);
        }
        while let Some(flight) = self.flying.first() {
            self.finish(flight.kernel);
        }
        self.order
    }

    /// Which of the next kernels runs: its distance from the first.
    fn choose(&self, rest: &[usize]) -> usize {
        let head = rest[rest.len() - 1];
        let window = || rest.iter().rev().copied().enumerate().take(self.freedom.window);
        if self.missing[head] > 0 {
            // A wait that is over costs nothing; otherwise whatever is ready comes first.
            let flying = |need: usize| self.flying.iter().find(|f| f.kernel == need);
            let waits = self.found.needs[head]
                .iter()
                .any(|&need| !self.done[need] && flying(need).is_none_or(|f| f.left > 0.0));
            let ready = window().find(|&(_, k)| self.missing[k] == 0);
            return if waits { ready.map_or(0, |(at, _)| at) } else { 0 };
        }
        // With nothing in flight, go straight to the next collective that needs company.
        if self.flying.iter().any(|f| f.left > 0.0) {
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

    /// The kernels that must still run before a collective can start, if all of them are near and it
    /// waits for no other.
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

    /// Starts what can start without holding too much.
    fn start_ready(&mut self) {
        for k in self.startable.clone() {
            let due = match self.gathers.get(&k) {
                None => true,
                Some(before) => self.freedom.prefetch && before.is_none_or(|b| self.done[b]),
            };
            if due && self.flying.len() < self.options.in_flight {
                self.start(k);
            }
        }
    }

    /// Starts a collective; those that it needs are waited for first.
    fn start(&mut self, k: usize) {
        for &need in &self.found.needs[k] {
            self.finish(need);
        }
        let limit = self.options.in_flight.max(1);
        let sequence = self.started.get(&self.axes[k]).copied().unwrap_or(0);
        // Never too many at once, nor too far ahead of the oldest of the group.
        while let Some(oldest) = self.flying.first().filter(|_| self.flying.len() >= limit) {
            self.finish(oldest.kernel);
        }
        loop {
            let late = |f: &&Flight| self.axes[f.kernel] == self.axes[k] && sequence - f.sequence >= limit;
            let Some(oldest) = self.flying.iter().find(late) else { break };
            self.finish(oldest.kernel);
        }
        self.startable.remove(&k);
        self.ahead.remove(&k);
        self.started.insert(self.axes[k], sequence + 1);
        self.flying.push(Flight { kernel: k, sequence, left: self.seconds[k] });
        self.order.push(Launch::Start(k));
    }

    /// Makes sure that a kernel's result is there.
    fn finish(&mut self, k: usize) {
        if self.done[k] || !self.collective[k] {
            debug_assert!(self.done[k], "kernel {k} has not run");
            return;
        }
        if self.ahead.contains(&k) {
            self.start(k);
        }
        self.flying.retain(|f| f.kernel != k);
        self.order.push(Launch::Wait(k));
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

/// Estimated seconds of a kernel on the slowest rank. A collective of several values pays its latency
/// once.
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
