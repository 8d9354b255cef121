//! The rows of the factor table, one match arm per operation. A new operation gets its placements, its rewrites and its
//! validation from its arm.

use super::{Factor, FactorKind, FactorRow, aligned};
use tpc_ir::{DType, MapFn, Op, ReduceOp, Type};

use FactorKind::{Pass, Reduce, Whole};

/// The row of an operation. `operands` and `results` give the shapes; their placements are ignored.
///
/// The row of a redistribution is trivial, because the rules of the e-graph move redistributions.
pub fn row_of(op: &Op, operands: &[&Type], results: &[&Type]) -> FactorRow {
    let mut row = Row::default();
    let same = |row: &mut Row, n: usize, whole: Option<usize>| {
        // All operands and results have the same dimensions, of which one may have to stay whole.
        let dims: Vec<usize> = (0..results[0].rank())
            .map(|d| row.factor(if whole == Some(d) { Whole } else { Pass }, results[0].shape[d]))
            .collect();
        row.operands = vec![dims.clone(); n];
        row.results = vec![dims];
    };
    match op {
        // The subscripts are the rule: a letter that the result lacks is reduced.
        Op::Map { subs, .. } | Op::Einsum { subs } | Op::Reduce { subs, .. } => {
            let shapes: Vec<&[usize]> = operands.iter().map(|t| t.shape.as_slice()).collect();
            let sizes = subs.sizes(&shapes, Some(&results[0].shape)).unwrap_or_default();
            let reduction = if let Op::Reduce { op, .. } = op { *op } else { ReduceOp::Sum };
            for (letter, &size) in sizes.iter().enumerate() {
                let kept = subs.result.contains(&(letter as u8));
                row.factor(if kept { Pass } else { Reduce(reduction) }, size);
            }
            let ids = |letters: &Vec<u8>| letters.iter().map(|&l| l as usize).collect::<Vec<_>>();
            row.operands = subs.operands.iter().map(ids).collect();
            row.results = vec![ids(&subs.result)];
            match op {
                Op::Map { f, .. } if f.is_sum() => row.linear = vec![(0..operands.len()).collect()],
                Op::Map { f, .. } if is_linear_over(*f, operands[0].dtype) => {
                    row.linear = f.linear().iter().map(|s| s.to_vec()).collect();
                }
                Op::Einsum { .. } => row.linear = vec![vec![0], vec![1]],
                Op::Reduce { op: ReduceOp::Sum, .. } => row.linear = vec![vec![0]],
                _ => {}
            }
            row.increasing = matches!(op, Op::Map { f, .. } if f.is_increasing() && operands.len() == 1);
        }
        // Only the result has dimensions, and each rank computes its own chunk.
        Op::Input { .. } | Op::Fill(_) | Op::Iota => same(&mut row, 0, None),
        Op::Random { .. } => {
            same(&mut row, 0, None);
            row.operands = vec![Vec::new()]; // The seed is a scalar.
        }
        Op::Slice { dim, .. } | Op::Pad { dim, .. } => {
            same(&mut row, 1, Some(*dim));
            row.linear = vec![vec![0]];
            row.increasing = true; // Elements are kept, or are the same border on every rank.
            if matches!(op, Op::Pad { value, .. } if value.as_f64() != 0.0) {
                row.linear.clear(); // A nonzero border would be added once per rank.
            }
        }
        Op::Index { dim, .. } => {
            let dims: Vec<usize> = (0..operands[0].rank())
                .map(|d| row.factor(if d == *dim { Whole } else { Pass }, operands[0].shape[d]))
                .collect();
            row.results = vec![dims.iter().copied().filter(|d| d != dim).collect()];
            row.operands = vec![dims];
            row.linear = vec![vec![0]];
            row.increasing = true;
        }
        Op::Concat { dim } => {
            same(&mut row, operands.len(), Some(*dim));
            row.linear = vec![(0..operands.len()).collect()];
        }
        Op::CumSum { dim } => {
            same(&mut row, 1, Some(*dim));
            row.linear = vec![vec![0]];
        }
        Op::TopK => {
            let last = operands[0].rank() - 1;
            same(&mut row, 1, Some(last));
            row.results = vec![row.results[0].clone(); 2];
        }
        // [v, h…], [t…] -> [t…, h…]; v is summed, since rows of other ranks give 0.
        Op::Take => {
            let v = row.factor(Reduce(ReduceOp::Sum), operands[0].shape[0]);
            let h = row.factors(Pass, &operands[0].shape[1..]);
            let t = row.factors(Pass, &operands[1].shape);
            row.operands = vec![[vec![v], h.clone()].concat(), t.clone()];
            row.results = vec![[t, h].concat()];
            row.linear = vec![vec![0]];
        }
        // [t…], [t…, h…] -> [v, h…]; t is summed, and the index refers to v.
        Op::ScatterAdd => {
            let v = row.factor(Pass, results[0].shape[0]);
            let h = row.factors(Pass, &results[0].shape[1..]);
            let t = row.factors(Reduce(ReduceOp::Sum), &operands[0].shape);
            row.operands = vec![t.clone(), [t, h.clone()].concat()];
            row.results = vec![[vec![v], h].concat()];
            row.linear = vec![vec![1]];
        }
        // [v, h…], [t…], [t…, h…] -> [v, h…]; the index refers to v, and the order of t matters.
        Op::Put => {
            let v = row.factor(Pass, operands[0].shape[0]);
            let h = row.factors(Pass, &operands[0].shape[1..]);
            let t = row.factors(Whole, &operands[1].shape);
            let table = [vec![v], h.clone()].concat();
            row.operands = vec![table.clone(), t.clone(), [t, h].concat()];
            row.results = vec![table];
            row.linear = vec![vec![0, 2]];
        }
        // A reshape that factored dimensions could not express needs its dimensions whole, except those that are
        // neither merged nor split.
        Op::Reshape => reshape(&mut row, &operands[0].shape, &results[0].shape),
        Op::AllReduce { .. }
        | Op::AllGather { .. }
        | Op::ReduceScatter { .. }
        | Op::AllToAll { .. }
        | Op::ShardSlice { .. }
        | Op::ToPartial { .. } => same(&mut row, 1, None),
    }
    FactorRow {
        factors: row.all,
        operands: row.operands,
        results: row.results,
        linear: row.linear,
        increasing: row.increasing,
    }
}

/// A row under construction.
#[derive(Default)]
struct Row {
    all: Vec<Factor>,
    operands: Vec<Vec<usize>>,
    results: Vec<Vec<usize>>,
    linear: Vec<Vec<usize>>,
    increasing: bool,
}

impl Row {
    fn factor(&mut self, kind: FactorKind, size: usize) -> usize {
        self.all.push(Factor { kind, size });
        self.all.len() - 1
    }

    fn factors(&mut self, kind: FactorKind, sizes: &[usize]) -> Vec<usize> {
        sizes.iter().map(|&n| self.factor(kind, n)).collect()
    }
}

/// Whether [`tpc_ir::MapFn::linear`] holds for an element type. Quotients of integers are rounded, and types without
/// negative numbers cannot represent every difference.
fn is_linear_over(f: MapFn, dtype: DType) -> bool {
    match f {
        MapFn::Div => dtype.is_float(),
        MapFn::Sub => !matches!(dtype, DType::U8 | DType::Bool),
        _ => true,
    }
}

/// Aligns both shapes. A dimension that is aligned with one of the same size passes; dimensions that are merged or
/// split stay whole. Dimensions of size 1 are aligned with nothing.
fn reshape(row: &mut Row, from: &[usize], to: &[usize]) {
    row.linear = vec![vec![0]];
    row.increasing = true;
    let (mut operand, mut result) = (Vec::new(), Vec::new());
    for (a, b) in aligned(from, to) {
        if (a.len(), b.len()) == (1, 1) && from[a.start] == to[b.start] {
            let f = row.factor(Pass, from[a.start]);
            operand.push(f);
            result.push(f);
        } else {
            operand.extend(row.factors(Whole, &from[a]));
            result.extend(row.factors(Whole, &to[b]));
        }
    }
    row.operands = vec![operand];
    row.results = vec![result];
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::Subscripts;

    #[test]
    fn a_product_reduces_the_letter_that_the_result_lacks() {
        let (x, w, y) = (Type::new(DType::F32, [2, 3]), Type::new(DType::F32, [3, 5]), Type::new(DType::F32, [2, 5]));
        let r = row_of(&Op::Einsum { subs: Subscripts::parse("ij,jk->ik").unwrap() }, &[&x, &w], &[&y]);
        assert_eq!(r.factors[1], Factor { kind: Reduce(ReduceOp::Sum), size: 3 });
        assert_eq!((r.operands, r.results), (vec![vec![0, 1], vec![1, 2]], vec![vec![0, 2]]));
    }

    #[test]
    fn a_reshape_passes_unchanged_dimensions() {
        let (x, y) = (Type::new(DType::F32, [4, 6, 5]), Type::new(DType::F32, [4, 30]));
        let r = row_of(&Op::Reshape, &[&x], &[&y]);
        assert_eq!(r.factors.iter().map(|f| f.kind).collect::<Vec<_>>(), [Pass, Whole, Whole, Whole]);
    }
}
