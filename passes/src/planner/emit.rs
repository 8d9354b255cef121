//! Writes the placed program of a choice: every operation with its strategy, and redistributions between where a value is
//! computed, where it is kept and where it is read. A value is brought to a placement once. A parameter is brought to where
//! it is kept before it is first read, so that the gathers of all parameters do not begin the program.

use super::logical::{Logical, Role, ValueId};
use super::space::Choice;
use crate::redistribute::{redistribute, reduced};
use rustc_hash::FxHashMap;
use tpc_ir::{Graph, Origin, Output, Sharding, Value};

/// The placed program of a choice; `None` if the factor table does not allow a strategy.
pub fn emit(logical: &Logical, choice: &Choice) -> Option<Graph> {
    let old = logical.graph;
    let mut new = Graph::new(old.mesh.clone());
    let mut at = Kept { values: Vec::new(), moved: FxHashMap::default() };
    for operation in &logical.operations {
        let n = old.node(operation.node);
        let origin = &n.origin;
        let kept = |v: ValueId| &choice.kept[logical.like(v)];
        let (Some(row), Some(strategy)) = (&operation.rule, &choice.strategies[operation.like]) else {
            let value = new.push(n.op.clone(), &[], n.types[0].clone(), origin);
            at.values.push(Some(value));
            at.keep(logical, &mut new, operation.results[0], kept(operation.results[0]), origin);
            continue;
        };
        if logical.is_constant(operation) {
            at.values.push(None);
            continue;
        }
        let results = logical.types(&operation.results);
        let placed = strategy.placed(row, &logical.types(&operation.operands), &results)?;
        let mut operands = Vec::with_capacity(operation.operands.len());
        for (&v, to) in operation.operands.iter().zip(&placed.operands) {
            operands.push(at.read(logical, &mut new, v, kept(v), to, origin));
        }
        let types = results.iter().zip(&placed.results).map(|(ty, to)| ty.placed(to.clone())).collect();
        let node = new.add(n.op.clone(), &operands, types, origin.clone());
        for (i, &v) in operation.results.iter().enumerate() {
            at.values.push(Some(Value { node, result: i as u32 }));
            at.keep(logical, &mut new, v, kept(v), origin);
        }
    }
    for (output, &v) in old.outputs.iter().zip(&logical.outputs) {
        let origin = &old.node(output.value.node).origin;
        let kept = &choice.kept[logical.like(v)];
        let value = at.read(logical, &mut new, v, kept, &old.ty(output.value).sharding, origin);
        new.outputs.push(Output { value, ..output.clone() });
    }
    Some(new)
}

/// The values of the new program.
struct Kept {
    /// Each logical value where it is kept, or where it is computed until it is first read; none of a constant.
    values: Vec<Option<Value>>,
    /// Values that are brought to another placement, and constants by the number of the logical value.
    moved: FxHashMap<(Result<Value, ValueId>, Sharding), Value>,
}

impl Kept {
    /// Brings the last value to where it is kept, unless it is a parameter.
    fn keep(&mut self, logical: &Logical, new: &mut Graph, v: ValueId, to: &Sharding, origin: &Origin) {
        if logical.values[v].role != Role::Parameter {
            self.values[v] = self.values[v].map(|value| redistribute(new, value, to, origin));
        }
    }

    /// A value, kept at a placement, at another one.
    fn read(
        &mut self,
        logical: &Logical,
        new: &mut Graph,
        v: ValueId,
        kept: &Sharding,
        to: &Sharding,
        origin: &Origin,
    ) -> Value {
        if let Some(value) = self.values[v].filter(|&value| new.ty(value).sharding != *kept) {
            self.values[v] = Some(redistribute(new, value, kept, origin));
        }
        let key = (self.values[v].ok_or(v), to.clone());
        *self.moved.entry(key).or_insert_with_key(|(from, to)| {
            let whole = from.unwrap_or_else(|v| {
                let source = logical.values[v].source;
                let n = logical.graph.node(source.node);
                new.push(n.op.clone(), &[], n.types[0].placed(reduced(to)), &n.origin)
            });
            redistribute(new, whole, to, origin)
        })
    }
}
