//! Slicing a result is computing less of it: rule 17.

use super::site::Site;
use egg::Id;
use tpc_ir::Op;

/// Rule 17: the slice of an operation's result is the operation on slices of the operands that have the index. Constants
/// and broadcasts are made smaller where only they have it.
pub fn distribute(site: &mut Site) -> Vec<Id> {
    let key = site.key();
    let Op::ShardSlice { dim, axes } = &key.op else { return vec![] };
    let mut equal = Vec::new();
    for (inner, row) in site.computed(site.term.children[0]) {
        let factor = row.results[0][*dim];
        if !site.moves_along(&row, factor) {
            continue;
        }
        site.through(&inner);
        let mut operands = Vec::new();
        let mut found = false;
        for (j, &other) in inner.children.iter().enumerate() {
            let part = match row.operand_dim(j, factor) {
                None => Some(other),
                Some(d) => {
                    found = true;
                    site.redistribute(Op::ShardSlice { dim: d, axes: axes.clone() }, other)
                }
            };
            operands.extend(part);
        }
        if operands.len() == inner.children.len() {
            let made = if found { site.again_inner(&inner, operands) } else { site.again_cut(&inner, *dim, axes) };
            equal.extend(made);
        }
    }
    equal
}
