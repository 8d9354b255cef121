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
use tpc_ir::{DType, Mesh, Op, OutputKind, Sharding, Type};

/// Added to every step of a move: of programs that cost the same, the one with fewer redistributions is taken.
const STEP: f64 = 1e-12;

/// Costs in seconds. Those of moves are computed once.
pub struct Costs<'a> {
    target: &'a Target,
    logical: &'a Logical<'a>,
    kernels: Kernels,
    weights: Weights,
    bans: Bans,
    numbers: RefCell<Numbers>,
    moves: RefCell<FxHashMap<Move, f64>>,
}

/// A value of a type and a role that is brought from one placement to another, all by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Move {
    ty: u32,
    role: Role,
    from: u32,
    to: u32,
}

/// Numbers of types and placements, which are compared faster.
#[derive(Debug, Default)]
struct Numbers {
    types: FxHashMap<(DType, Vec<usize>), u32>,
    placements: FxHashMap<Sharding, u32>,
}

impl Numbers {
    /// The number of a type, whatever its placement is.
    fn ty(&mut self, ty: &Type) -> u32 {
        let next = self.types.len() as u32;
        *self.types.entry((ty.dtype, ty.shape.clone())).or_insert(next)
    }

    fn placement(&mut self, at: &Sharding) -> u32 {
        if let Some(&number) = self.placements.get(at) {
            return number;
        }
        let next = self.placements.len() as u32;
        self.placements.insert(at.clone(), next);
        next
    }
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
        Costs {
            target,
            logical,
            kernels: Kernels::of(&logical.bare()),
            weights,
            bans,
            numbers: RefCell::default(),
            moves: RefCell::default(),
        }
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

    /// Bringing a value from each of some placements to each of others between two operations, with the passes through memory
    /// that this adds to their kernels. For each placement that it is brought from, the costs for each that it is brought to.
    pub fn brought(&self, value: ValueId, from: &[&Sharding], to: &[&Sharding]) -> Vec<f64> {
        let (ty, (maker, result)) = (self.logical.ty(value), self.logical.makers[value]);
        let role = self.logical.values[value].role;
        let passes =
            |at: &&Sharding| self.kernels.pass(self.target, maker, result, &ty.placed((*at).clone()), self.mesh());
        let passes: [Vec<f64>; 2] = [from, to].map(|ends| ends.iter().map(passes).collect());
        let (ty_number, numbers) = {
            let mut numbers = self.numbers.borrow_mut();
            let ends = [from, to].map(|ends| ends.iter().map(|at| numbers.placement(at)).collect::<Vec<u32>>());
            (numbers.ty(ty), ends)
        };
        let mut costs = Vec::with_capacity(from.len() * to.len());
        for (i, &from) in from.iter().enumerate() {
            for (j, &to) in to.iter().enumerate() {
                let key = Move { ty: ty_number, role, from: numbers[0][i], to: numbers[1][j] };
                costs.push(if self.bans.bar(value, from, to) {
                    f64::INFINITY
                } else if key.from == key.to {
                    0.0
                } else {
                    passes[0][i] + passes[1][j] + self.known(key, ty, from, to)
                });
            }
        }
        costs
    }

    /// Bringing a value to where an output of the program wants it.
    pub fn output(&self, value: ValueId, from: &Sharding, goal: &Goal, role: Role) -> f64 {
        let copied = if goal.is_update { self.copied(self.logical.ty(value), from, &goal.at) } else { 0.0 };
        self.at_end(value, from, &goal.at, role) + copied
    }

    /// Like [`Costs::brought`], to where the input is stored that the value replaces.
    pub fn replaced(&self, value: ValueId, from: &[&Sharding], to: &[&Sharding]) -> Vec<f64> {
        let ty = self.logical.ty(value);
        let copies = from.iter().flat_map(|from| to.iter().map(move |to| self.copied(ty, from, to)));
        self.brought(value, from, to).into_iter().zip(copies).map(|(brought, copied)| brought + copied).collect()
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
            let results: Vec<&Type> = graph.node(operation.node).types.iter().collect();
            self.logical.times(operation.node) * self.operation(o, &operands, &results)
        });
        let moves = self.logical.moves.iter().map(|&(node, value)| {
            let n = graph.node(node);
            let (from, to) = (graph.ty(graph.operands(node)[0]), &n.types[0]);
            let company = gradients.company(&n.op, &gradients.role(node));
            let (maker, result) = self.logical.makers[value];
            let collective = seconds_in(company, self.target, &n.op, &[from], to, self.mesh());
            let pass = |end| self.kernels.pass(self.target, maker, result, end, self.mesh());
            let passes = pass(from) + pass(to);
            self.logical.times(node) * (collective + passes)
        });
        let copies = graph.outputs.iter().filter(|output| {
            matches!(output.kind, OutputKind::Update(_)) && graph.op(output.value).is_redistribution()
        });
        let copies = copies.map(|output| {
            let from = graph.ty(graph.operands(output.value.node)[0]);
            self.logical.times(output.value.node) * self.copied(from, &from.sharding, &graph.ty(output.value).sharding)
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
        let key = {
            let mut numbers = self.numbers.borrow_mut();
            Move { ty: numbers.ty(ty), role, from: numbers.placement(from), to: numbers.placement(to) }
        };
        self.known(key, ty, from, to)
    }

    /// A move, whose costs are computed once.
    fn known(&self, key: Move, ty: &Type, from: &Sharding, to: &Sharding) -> f64 {
        let known = self.moves.borrow().get(&key).copied();
        known.unwrap_or_else(|| {
            let seconds = self.of_steps(ty, from, to, key.role);
            self.moves.borrow_mut().insert(key, seconds);
            seconds
        })
    }

    /// The redistributions of a move; infinite if none make it.
    fn of_steps(&self, ty: &Type, from: &Sharding, to: &Sharding, role: Role) -> f64 {
        // A value that is partial under one reduction does not become partial under another.
        if let (Some(before), Some(after)) = (from.partial, to.partial)
            && before.op != after.op
        {
            return f64::INFINITY;
        }
        let mut at = ty.placed(from.clone());
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
        if at.sharding == *to { total } else { f64::INFINITY }
    }
}
