//! What it costs to bring a value from one placement to another.

use crate::cost::{Company, seconds_in};
use crate::redistribute::steps;
use crate::rules::place_redistribution;
use crate::targets::Target;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use tpc_ir::{Mesh, Op, Sharding, Type};

/// Seconds of moves, each computed once.
pub struct Moves<'a> {
    target: &'a Target,
    mesh: &'a Mesh,
    known: RefCell<FxHashMap<(Type, Sharding, bool), f64>>,
}

/// Of programs that cost the same, the one with fewer operations is taken.
pub const STEP: f64 = 1e-12;

impl<'a> Moves<'a> {
    /// No moves yet.
    pub fn new(target: &'a Target, mesh: &'a Mesh) -> Self {
        Moves { target, mesh, known: RefCell::default() }
    }

    /// Seconds of bringing a value of a type from one placement to another. The reductions of a gradient begin together
    /// with others.
    pub fn seconds(&self, ty: &Type, from: &Sharding, to: &Sharding, gradient: bool) -> f64 {
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
        if let Some(&seconds) = self.known.borrow().get(&key) {
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
        self.known.borrow_mut().insert(key, total);
        total
    }
}
