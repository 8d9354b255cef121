//! The update of one parameter, reduced to the properties that must agree across steps, learning rates and parameters.

use std::collections::HashMap;

use burn_ir::{OperationIr, ScalarIr};

use super::operation;

/// The operations of one update.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    /// The name and the operands of every operation, without shapes and scalars.
    pub(super) skeleton: Vec<String>,
    pub(super) sites: Vec<Site>,
}

/// A scalar in an update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) at: ScalarIndex,
    pub(super) value: f64,
}

/// The position of a scalar: the index of the operation in the update, and that of the scalar in the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ScalarIndex {
    pub(super) operation: usize,
    pub(super) slot: usize,
}

impl Trace {
    pub(super) fn of(operations: &[OperationIr]) -> Self {
        let mut names = HashMap::new();
        let mut trace = Self { skeleton: Vec::new(), sites: Vec::new() };
        for (position, op) in operations.iter().enumerate() {
            let mut line = operation::name(op);
            for tensor in op.inputs() {
                // Inputs are not distinguished: at step 2 of AMSGrad, two states are still the same tensor.
                line.push_str(names.get(&tensor.id).map_or(" in", String::as_str));
            }
            for (index, tensor) in op.outputs().enumerate() {
                names.insert(tensor.id, format!(" %{position}.{index}"));
            }
            trace.skeleton.push(line);
            let site = |(slot, scalar)| Site { at: ScalarIndex { operation: position, slot }, value: number(scalar) };
            trace.sites.extend(operation::scalars(op).into_iter().enumerate().map(site));
        }
        trace
    }

    /// Pairs the scalars of two updates that end with the same operations.
    ///
    /// A first update creates its states differently and then proceeds like every later one.
    pub(super) fn align(&self, other: &Trace) -> HashMap<ScalarIndex, ScalarIndex> {
        let head = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
        let mine = self.skeleton.iter().rev().map(head);
        let theirs = other.skeleton.iter().rev().map(head);
        let common = mine.zip(theirs).take_while(|(a, b)| a == b).count();
        let (from, to) = (self.skeleton.len() - common, other.skeleton.len() - common);
        let pair = |site: &Site| {
            let operation = site.at.operation.checked_sub(from)? + to;
            Some((site.at, ScalarIndex { operation, ..site.at }))
        };
        self.sites.iter().filter_map(pair).collect()
    }

    pub(super) fn value(&self, at: ScalarIndex) -> Option<f64> {
        self.sites.iter().find(|site| site.at == at).map(|site| site.value)
    }
}

fn number(scalar: ScalarIr) -> f64 {
    match scalar {
        ScalarIr::Float(value) => value,
        ScalarIr::Int(value) => value as f64,
        ScalarIr::UInt(value) => value as f64,
        ScalarIr::Bool(value) => f64::from(u8::from(value)),
    }
}
