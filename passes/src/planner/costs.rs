//! What an operation, a move from one placement to another, and keeping a value cost.

use crate::cost::{Company, seconds, seconds_in};
use crate::redistribute::steps;
use crate::rules::place_redistribution;
use crate::targets::Target;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use tpc_ir::{Mesh, Op, Sharding, Type};

/// Added to every step of a move: of programs that cost the same, the one with fewer redistributions is taken.
const STEP: f64 = 1e-12;

/// Costs in seconds. Those of moves are computed once.
pub struct Costs<'a> {
    target: &'a Target,
    mesh: &'a Mesh,
    /// Seconds for each byte that a rank keeps from the forward to the backward pass.
    price: f64,
    moves: RefCell<FxHashMap<(Type, Sharding, bool), f64>>,
}

impl<'a> Costs<'a> {
    /// The costs on a target. `price` is what a byte costs that a rank keeps from the forward to the backward pass.
    pub fn new(target: &'a Target, mesh: &'a Mesh, price: f64) -> Self {
        Costs { target, mesh, price, moves: RefCell::default() }
    }

    /// An operation with operands and a result of these types.
    pub fn operation(&self, op: &Op, operands: &[&Type], result: &Type) -> f64 {
        seconds(self.target, op, operands, result, self.mesh)
    }

    /// Keeping a value of a type from the forward to the backward pass.
    pub fn saved(&self, ty: &Type) -> f64 {
        self.price * ty.max_local_bytes(self.mesh) as f64
    }

    /// Bringing a value of a type from one placement to another; infinite if no redistributions do. The reductions of
    /// gradients begin together, so that one more costs no latency.
    pub fn moved(&self, ty: &Type, from: &Sharding, to: &Sharding, gradient: bool) -> f64 {
        if from == to {
            return 0.0;
        }
        // A value that is partial under one reduction does not become partial under another.
        if let (Some(before), Some(after)) = (from.partial, to.partial)
            && before.op != after.op
        {
            return f64::INFINITY;
        }
        let key = (ty.placed(from.clone()), to.clone(), gradient);
        if let Some(&seconds) = self.moves.borrow().get(&key) {
            return seconds;
        }
        let mut at = key.0.clone();
        let mut total = 0.0;
        for op in steps(from, to) {
            let Ok(sharding) = place_redistribution(&op, &at) else { return f64::INFINITY };
            let next = at.placed(sharding);
            let reduces = matches!(op, Op::AllReduce { .. } | Op::ReduceScatter { .. });
            let company = if gradient && reduces { Company::Together } else { Company::Alone };
            total += seconds_in(company, self.target, &op, &[&at], &next, self.mesh) + STEP;
            at = next;
        }
        if at.sharding != *to {
            total = f64::INFINITY;
        }
        self.moves.borrow_mut().insert(key, total);
        total
    }
}
