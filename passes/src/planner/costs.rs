//! What an operation, a move from one placement to another, and keeping a value cost.

use super::forbidden::Bans;
use super::kernels::Kernels;
use super::logical::{Goal, Logical, OperationId, Role, ValueId};
use crate::cost::{Company, Gradients, seconds_in};
use crate::factors::place_redistribution;
use crate::redistribute::steps;
use crate::targets::Target;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use tpc_ir::{Mesh, Op, OutputKind, Sharding, Type};

/// Added to every step of a move: of programs that cost the same, the one with fewer redistributions is taken.
const STEP: f64 = 1e-12;

/// Costs in seconds. Those of moves are computed once.
pub struct Costs<'a> {
    target: &'a Target,
    logical: &'a Logical<'a>,
    kernels: Kernels,
    weights: Weights,
    bans: Bans,
    moves: RefCell<FxHashMap<(Type, Sharding, Role), f64>>,
}

/// What counts as much as seconds in which a rank works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Seconds for each byte that a rank keeps from the forward to the backward pass, or stores of an input that it may
    /// store anywhere. The higher they are, the less memory the program takes and the more time, so with a price a result may
    /// take longer than what it was made from.
    pub byte: f64,
    /// The share of its time that counts of a collective that other work can hide: of gathers of parameters, which can
    /// begin early, and of reductions of gradients, which can end late.
    pub hidden: f64,
}

impl Weights {
    /// Time only, and nothing overlaps.
    pub const TIME: Weights = Weights { byte: 0.0, hidden: 1.0 };
}

impl<'a> Costs<'a> {
    /// The costs on a target, of programs that keep to some prohibitions.
    pub fn new(target: &'a Target, logical: &'a Logical<'a>, weights: Weights, bans: Bans) -> Self {
        Costs { target, logical, kernels: Kernels::of(&logical.bare()), weights, bans, moves: RefCell::default() }
    }

    /// Whether there are prohibitions for a value that others are placed like.
    pub fn bars_some(&self, value: ValueId) -> bool {
        self.bans.concern(value)
    }

    fn mesh(&self) -> &Mesh {
        &self.logical.graph.mesh
    }

    /// An operation with operands and results of these types.
    pub fn operation(&self, operation: OperationId, operands: &[&Type], results: &[&Type]) -> f64 {
        let op = &self.logical.graph.node(self.logical.operations[operation].node).op;
        self.kernels.seconds(self.target, operation, op, operands, results, self.mesh())
    }

    /// Bringing a value from one placement to another between two operations, with the passes through memory that this
    /// adds to their kernels.
    pub fn brought(&self, value: ValueId, from: &Sharding, to: &Sharding) -> f64 {
        if self.bans.bar(value, from, to) {
            return f64::INFINITY;
        }
        if from == to {
            return 0.0;
        }
        let (ty, (maker, result)) = (self.logical.ty(value), self.logical.makers[value]);
        let ends = [from, to].map(|at| ty.placed(at.clone()));
        let passes = self.kernels.passes(self.target, maker, result, [&ends[0], &ends[1]], self.mesh());
        passes + self.moved(ty, from, to, self.logical.values[value].role)
    }

    /// Bringing a value to where an output of the program wants it.
    pub fn output(&self, value: ValueId, from: &Sharding, goal: &Goal, role: Role) -> f64 {
        let copied = if goal.is_update { self.copied(self.logical.ty(value), from, &goal.at) } else { 0.0 };
        self.at_end(value, from, &goal.at, role) + copied
    }

    /// Bringing a value to where the input is stored that it replaces.
    pub fn replaced(&self, value: ValueId, from: &Sharding, to: &Sharding) -> f64 {
        self.brought(value, from, to) + self.copied(self.logical.ty(value), from, to)
    }

    /// What computes a value writes it over the input that it replaces. A collective cannot, so its result is copied there.
    fn copied(&self, ty: &Type, from: &Sharding, to: &Sharding) -> f64 {
        let bytes = ty.placed(to.clone()).max_local_bytes(self.mesh()) as f64;
        if from == to { 0.0 } else { 2.0 * bytes / self.target.device.memory }
    }

    /// The whole placed program, nothing overlapped.
    pub fn program(&self) -> f64 {
        let graph = self.logical.graph;
        let gradients = Gradients::as_lowered(graph);
        let operations = self.logical.operations.iter().enumerate().map(|(o, operation)| {
            let operands: Vec<&Type> = graph.operands(operation.node).into_iter().map(|v| graph.ty(v)).collect();
            self.operation(o, &operands, &graph.node(operation.node).types.iter().collect::<Vec<_>>())
        });
        let moves = self.logical.moves.iter().map(|&(node, value)| {
            let n = graph.node(node);
            let (from, to) = (graph.ty(graph.operands(node)[0]), &n.types[0]);
            let company = gradients.company(&n.op, &gradients.role(node));
            let (maker, result) = self.logical.makers[value];
            seconds_in(company, self.target, &n.op, &[from], to, self.mesh())
                + self.kernels.passes(self.target, maker, result, [from, to], self.mesh())
        });
        let copies = graph.outputs.iter().filter(|output| {
            matches!(output.kind, OutputKind::Update(_)) && graph.op(output.value).is_redistribution()
        });
        let copies = copies.map(|output| {
            let from = graph.ty(graph.operands(output.value.node)[0]);
            self.copied(from, &from.sharding, &graph.ty(output.value).sharding)
        });
        operations.sum::<f64>() + moves.sum::<f64>() + copies.sum::<f64>()
    }

    /// Keeping a value of a type from the forward to the backward pass.
    pub fn saved(&self, ty: &Type) -> f64 {
        self.weights.byte * ty.max_local_bytes(self.mesh()) as f64
    }

    /// Bringing a value from where an input is stored, or to where an output is; infinite if no redistributions do, or may.
    pub fn at_end(&self, value: ValueId, from: &Sharding, to: &Sharding, role: Role) -> f64 {
        if self.bans.bar(value, from, to) {
            return f64::INFINITY;
        }
        self.moved(self.logical.ty(value), from, to, role)
    }

    /// Bringing a value of a type from one placement to another; infinite if no redistributions do.
    pub fn moved(&self, ty: &Type, from: &Sharding, to: &Sharding, role: Role) -> f64 {
        if from == to {
            return 0.0;
        }
        // A value that is partial under one reduction does not become partial under another.
        if let (Some(before), Some(after)) = (from.partial, to.partial)
            && before.op != after.op
        {
            return f64::INFINITY;
        }
        let key = (ty.placed(from.clone()), to.clone(), role);
        if let Some(&seconds) = self.moves.borrow().get(&key) {
            return seconds;
        }
        let mut at = key.0.clone();
        let mut total = 0.0;
        for op in steps(from, to) {
            let Ok(sharding) = place_redistribution(&op, &at) else { return f64::INFINITY };
            let next = at.placed(sharding);
            let reduces = matches!(op, Op::AllReduce { .. } | Op::ReduceScatter { .. });
            let (company, share) = match role {
                Role::Gradient if reduces => (Company::Together, self.weights.hidden),
                Role::Parameter if op.is_collective() => (Company::Alone, self.weights.hidden),
                _ => (Company::Alone, 1.0),
            };
            total += share * seconds_in(company, self.target, &op, &[&at], &next, self.mesh()) + STEP;
            at = next;
        }
        if at.sharding != *to {
            total = f64::INFINITY;
        }
        self.moves.borrow_mut().insert(key, total);
        total
    }
}
