//! What an operation needs of an operand, so that it cannot take it as it was before a redistribution.

use std::fmt;
use tpc_ir::reason::Cause;
use tpc_ir::{Graph, Value};
use tpc_passes::factors::{FactorKind, row_of};
use tpc_passes::reasons::Followed;

/// Why a reader takes an operand as it is and not as it was.
#[derive(Clone, Debug, PartialEq)]
pub enum Need {
    /// The operation does not distribute over the terms of a sum.
    Sum,
    /// The operation needs a dimension whole.
    Whole(usize),
    /// Nothing: it could take the operand as it was.
    Nothing,
    /// An operand that shares an index with it, or uses the axis for another one, lies so.
    Beside {
        /// The operand.
        operand: String,
        /// Its type.
        ty: String,
        /// What it is placed like.
        cause: Option<Cause>,
    },
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Sum => f.write_str("it needs the sum, not the terms of each rank"),
            Need::Nothing => f.write_str("it could also take it as it was before"),
            Need::Whole(dim) => write!(f, "it needs dimension {dim} whole"),
            Need::Beside { operand, ty, cause: None } => write!(f, "with {operand} : {ty}"),
            Need::Beside { operand, ty, cause: Some(cause) } => write!(f, "with {operand} : {ty}, where {cause}"),
        }
    }
}

/// What an operation needs of the result of a redistribution, for the axes over which that communicates.
pub(super) fn needs(
    graph: &Graph,
    followed: &Followed,
    name: &dyn Fn(Value) -> String,
    moved: Value,
    reader: Value,
) -> Vec<Need> {
    let n = graph.node(reader.node);
    let (Some(&before), axes) = (graph.operands(moved.node).first(), graph.op(moved).axes()) else { return Vec::new() };
    let operands = graph.operands(reader.node);
    let types: Vec<_> = operands.iter().map(|&v| graph.ty(v)).collect();
    let row = row_of(&n.op, &types, &n.types.iter().collect::<Vec<_>>());
    let from = &graph.ty(before).sharding;
    let mut needs = Vec::new();
    let mut add = |need: Need| {
        if !needs.contains(&need) {
            needs.push(need);
        }
    };
    for slot in (0..operands.len()).filter(|&slot| operands[slot] == moved) {
        for axis in axes.iter() {
            if from.partial_axes().contains(axis) && row.linear_set(slot).is_none() {
                add(Need::Sum);
            }
            if let Some(dim) = from.dim_of(axis)
                && row.factors[row.operands[slot][dim]].kind == FactorKind::Whole
            {
                add(Need::Whole(dim));
            }
            for (other, &value) in
                operands.iter().enumerate().filter(|&(other, &value)| other != slot && value != moved)
            {
                // An operand that the axis does not cut forces nothing, unless it has the index that the axis cut before.
                let ty = graph.ty(value);
                let shares =
                    from.dim_of(axis).is_some_and(|dim| row.operands[other].contains(&row.operands[slot][dim]));
                if !ty.sharding.is_invariant(axis) || shares {
                    let cause = followed.value(value).into_iter().find(|&(along, _)| along == axis);
                    add(Need::Beside {
                        operand: name(value),
                        ty: ty.display(&graph.mesh),
                        cause: cause.and_then(|(_, cause)| cause),
                    });
                }
            }
        }
    }
    if needs.is_empty() {
        needs.push(Need::Nothing);
    }
    needs
}
