//! Finds the scores of an attention that are one constant for all operands, because a positional mask hides them.
//! Devices need not compute them where they are so small that they add exactly zero.
//!
//! The body of the score is evaluated on intervals: an index is known to be in its range, a comparison of disjoint
//! intervals is decided, and a `select` with a decided condition is one of its operands.

use std::ops::Range;
use tpc_ir::attention::Attention;
use tpc_ir::program::Instruction;
use tpc_ir::{DType, MapFn};

/// The visible columns of some rows, or the visible rows of some columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Visible {
    /// A range that contains all visible indices.
    pub seen: Range<usize>,
    /// The largest score outside of it; −∞ if there is nothing outside.
    pub masked: f64,
}

/// The columns that some rows see, in any batch.
pub fn columns(a: &Attention, rows: Range<usize>) -> Visible {
    hull(a.columns(), &|columns| constant(a, rows.clone(), columns))
}

/// The rows that see some columns, in any batch.
pub fn rows(a: &Attention, columns: Range<usize>) -> Visible {
    hull(a.rows(), &|rows| constant(a, rows, columns.clone()))
}

/// The score of all these rows and columns in all batches, if it is certain.
pub fn constant(a: &Attention, rows: Range<usize>, columns: Range<usize>) -> Option<f64> {
    let known = registers(a, &a.score, rows, columns);
    known.last()?.filter(|(low, high)| low == high).map(|(low, _)| low)
}

/// For each instruction of a body: whether it is a `select` whose condition is certain for all these rows and columns
/// in all batches, and if so, whether the condition holds.
pub fn decided(a: &Attention, body: &[Instruction], rows: Range<usize>, columns: Range<usize>) -> Vec<Option<bool>> {
    let known = registers(a, body, rows, columns);
    let of = |instruction: &Instruction| match instruction {
        Instruction::Map { f: MapFn::Select, args, .. } => match truth(known[args[0]]) {
            (true, true) => None,
            (_, yes) => Some(yes),
        },
        _ => None,
    };
    body.iter().map(of).collect()
}

/// What is known about every register of a body.
fn registers(a: &Attention, body: &[Instruction], rows: Range<usize>, columns: Range<usize>) -> Vec<Known> {
    let nb = a.batch();
    let within = |dim: usize| match dim {
        d if d == nb => rows.clone(),
        d if d == nb + 1 => columns.clone(),
        d => 0..a.dims[d],
    };
    let mut known: Vec<Known> = Vec::new();
    for instruction in body {
        let value = evaluate(instruction, &known, &within);
        known.push(value);
    }
    known
}

/// The smallest range that contains everything that is not known to be masked.
fn hull(n: usize, masked: &dyn Fn(Range<usize>) -> Option<f64>) -> Visible {
    let mut largest = f64::NEG_INFINITY;
    let Some(first) = edge(0..n, false, masked, &mut largest) else {
        return Visible { seen: 0..0, masked: largest };
    };
    let last = edge(first..n, true, masked, &mut largest).unwrap_or(first);
    Visible { seen: first..last + 1, masked: largest }
}

/// The first index that is not known to be masked, or the last, and the largest score before or after it.
fn edge(
    range: Range<usize>,
    last: bool,
    masked: &dyn Fn(Range<usize>) -> Option<f64>,
    largest: &mut f64,
) -> Option<usize> {
    if range.is_empty() {
        return None;
    }
    if let Some(score) = masked(range.clone()) {
        *largest = largest.max(score);
        return None;
    }
    if range.len() == 1 {
        return Some(range.start);
    }
    let middle = range.start + range.len() / 2;
    let halves = [range.start..middle, middle..range.end];
    let [near, far] = if last { [halves[1].clone(), halves[0].clone()] } else { halves };
    edge(near, last, masked, largest).or_else(|| edge(far, last, masked, largest))
}

/// The smallest and the largest value that a register may have, never NaN; `None` if any value is possible.
type Known = Option<(f64, f64)>;

fn exactly(x: f64) -> Known {
    Some((x, x)).filter(|_| !x.is_nan())
}

fn evaluate(instruction: &Instruction, known: &[Known], within: &dyn Fn(usize) -> Range<usize>) -> Known {
    match instruction {
        Instruction::Constant(scalar, dtype) => rounded(exactly(scalar.as_f64()), *dtype),
        Instruction::Index { dim, offset, dtype } => {
            let range = within(*dim);
            let last = range.end.checked_sub(1)?.max(range.start);
            rounded(Some(((range.start + offset) as f64, (last + offset) as f64)), *dtype)
        }
        Instruction::Map { f, args, dtype } => {
            let args: Vec<Known> = args.iter().map(|&a| known.get(a).copied().flatten()).collect();
            rounded(function(*f, &args, *dtype), *dtype)
        }
        _ => None,
    }
}

/// Rounding is monotone, so it may be applied to both ends.
fn rounded(x: Known, dtype: DType) -> Known {
    let (low, high) = x?;
    let ends = match dtype {
        DType::Bool if low > 0.0 || high < 0.0 => (1.0, 1.0),
        DType::Bool if low == high => (0.0, 0.0),
        DType::Bool => (0.0, 1.0),
        // Larger integers are not exact as f64, and might overflow.
        DType::I64 if low.abs().max(high.abs()) > 1e15 => return None,
        d => (d.round(low), d.round(high)),
    };
    Some(ends).filter(|(low, high)| !low.is_nan() && !high.is_nan())
}

/// A truth value: false, true, or either.
fn truth(x: Known) -> (bool, bool) {
    match rounded(x, DType::Bool) {
        Some((low, high)) => (low == 0.0, high == 1.0),
        None => (true, true),
    }
}

/// The interval of a truth value, given whether it may be false and whether it may be true.
fn either(may_be_false: bool, may_be_true: bool) -> Known {
    Some((f64::from(!may_be_false), f64::from(may_be_true)))
}

fn function(f: MapFn, x: &[Known], dtype: DType) -> Known {
    match f {
        MapFn::Identity | MapFn::Cast(_) => {
            let x = x[0];
            return if let MapFn::Cast(d) = f { rounded(x, d) } else { x };
        }
        MapFn::Not => {
            let (no, yes) = truth(x[0]);
            return either(yes, no);
        }
        MapFn::And | MapFn::Or => {
            let (a, b) = (truth(x[0]), truth(x[1]));
            return if f == MapFn::And { either(a.0 || b.0, a.1 && b.1) } else { either(a.0 && b.0, a.1 || b.1) };
        }
        MapFn::Select => {
            return match truth(x[0]) {
                (false, _) => x[1],
                (_, false) => x[2],
                _ => {
                    let (a, b) = (x[1]?, x[2]?);
                    Some((a.0.min(b.0), a.1.max(b.1)))
                }
            };
        }
        _ => {}
    }
    let x: Vec<(f64, f64)> = x.iter().copied().collect::<Option<_>>()?;
    let integer = !dtype.is_float();
    let singles = x.iter().all(|(low, high)| low == high);
    match f {
        MapFn::Lt | MapFn::Le | MapFn::Gt | MapFn::Ge | MapFn::Eq | MapFn::Ne => Some(compare(f, x[0], x[1])),
        // Integer quotients and similar functions differ from the functions of reals.
        _ if singles && !integer => exactly(f.eval(&x.iter().map(|x| x.0).collect::<Vec<_>>())),
        MapFn::Max => Some((x[0].0.max(x[1].0), x[0].1.max(x[1].1))),
        MapFn::Min => Some((x[0].0.min(x[1].0), x[0].1.min(x[1].1))),
        // Sums of infinities might be NaN in between.
        _ if x.iter().any(|(low, high)| low.is_infinite() || high.is_infinite()) => None,
        MapFn::Neg => Some((-x[0].1, -x[0].0)),
        MapFn::Add => Some(x[1..].iter().fold(x[0], |a, b| (a.0 + b.0, a.1 + b.1))),
        MapFn::Sub => Some((x[0].0 - x[1].1, x[0].1 - x[1].0)),
        MapFn::Mul => {
            let ends = [x[0].0 * x[1].0, x[0].0 * x[1].1, x[0].1 * x[1].0, x[0].1 * x[1].1];
            Some((
                ends.iter().copied().fold(f64::INFINITY, f64::min),
                ends.into_iter().fold(f64::NEG_INFINITY, f64::max),
            ))
        }
        _ => None,
    }
}

fn compare(f: MapFn, a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let (always, never) = match f {
        MapFn::Lt => (a.1 < b.0, a.0 >= b.1),
        MapFn::Le => (a.1 <= b.0, a.0 > b.1),
        MapFn::Gt => (a.0 > b.1, a.1 <= b.0),
        MapFn::Ge => (a.0 >= b.1, a.1 < b.0),
        _ => {
            let same = a.0 == a.1 && a == b;
            let apart = a.1 < b.0 || b.1 < a.0;
            if f == MapFn::Eq { (same, apart) } else { (apart, same) }
        }
    };
    (f64::from(always), f64::from(!never))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::Scalar;
    use tpc_ir::attention::Operand;
    use tpc_ir::program::{BufferId, View};

    fn index(dim: usize, offset: usize) -> Instruction {
        Instruction::Index { dim, offset, dtype: DType::I64 }
    }

    fn map(f: MapFn, args: &[usize], dtype: DType) -> Instruction {
        Instruction::Map { f, args: args.to_vec(), dtype }
    }

    /// One batch dimension of 3; register 0 is the product.
    fn attention(rows: usize, columns: usize, rest: Vec<Instruction>) -> Attention {
        let view = View::dense(BufferId(0), DType::F32, vec![]);
        let operand = Operand { view: view.clone(), dims: vec![0; 3], own: vec![] };
        let [query, key, value, out] = [0; 4].map(|_| operand.clone());
        let score = [vec![Instruction::Given { index: 0, dtype: DType::F32 }], rest].concat();
        Attention {
            dims: vec![3, rows, columns],
            inner: vec![],
            width: vec![],
            query,
            key,
            value,
            out,
            max: view.clone(),
            sum: view.clone(),
            keep: false,
            score,
            weight: vec![],
            tile: view,
            backward: None,
        }
    }

    fn masked(rows: usize, columns: usize, condition: Vec<Instruction>, constant: f64) -> Attention {
        let n = condition.len();
        let select = vec![
            Instruction::Constant(Scalar::float(constant), DType::F32),
            map(MapFn::Select, &[n, n + 1, 0], DType::F32),
        ];
        attention(rows, columns, [condition, select].concat())
    }

    fn causal(rows: usize, columns: usize, offset: usize) -> Attention {
        masked(rows, columns, vec![index(2, 0), index(1, offset), map(MapFn::Gt, &[1, 2], DType::Bool)], -1e30)
    }

    /// The visible range, by trying every pair of row and column.
    fn slowly(a: &Attention, rows: Range<usize>) -> Range<usize> {
        let seen = |c: &usize| rows.clone().any(|r| constant(a, r..r + 1, *c..*c + 1).is_none());
        let all: Vec<usize> = (0..a.columns()).filter(seen).collect();
        all.first().map_or(0..0, |&first| first..all[all.len() - 1] + 1)
    }

    #[test]
    fn causal_masks() {
        let c = f64::from(-1e30f32);
        let a = causal(100, 100, 0);
        assert_eq!(columns(&a, 0..16), Visible { seen: 0..16, masked: c });
        assert_eq!(columns(&a, 96..100), Visible { seen: 0..100, masked: f64::NEG_INFINITY });
        assert_eq!(rows(&a, 32..48), Visible { seen: 32..100, masked: c });
        let a = causal(10, 30, 20);
        assert_eq!(columns(&a, 0..4).seen, 0..24);
        assert_eq!(rows(&a, 0..8).seen, 0..10);
        assert_eq!(constant(&a, 0..4, 24..30), Some(c));
        assert_eq!(constant(&a, 0..4, 23..30), None);
    }

    #[test]
    fn windows_and_rows_that_see_nothing() {
        let condition = vec![
            index(2, 0),
            index(1, 0),
            map(MapFn::Gt, &[1, 2], DType::Bool),
            Instruction::Constant(Scalar::Int(7), DType::I64),
            map(MapFn::Sub, &[2, 4], DType::I64),
            map(MapFn::Lt, &[1, 5], DType::Bool),
            map(MapFn::Or, &[3, 6], DType::Bool),
        ];
        let a = masked(90, 60, condition, f64::NEG_INFINITY);
        for first in [0, 5, 40, 50, 63, 64, 66, 70, 89] {
            for n in [1, 8, 16] {
                let rows = first..(first + n).min(90);
                assert_eq!(columns(&a, rows.clone()).seen, slowly(&a, rows));
            }
        }
        assert_eq!(columns(&a, 70..80), Visible { seen: 0..0, masked: f64::NEG_INFINITY });
        assert_eq!(rows(&a, 0..10).seen, 0..17);
    }

    #[test]
    fn what_depends_on_memory_or_the_batch_is_seen() {
        let nothing = Visible { seen: 0..50, masked: f64::NEG_INFINITY };
        assert_eq!(columns(&attention(50, 50, vec![]), 0..8), nothing);
        let of_batch = vec![index(2, 0), index(0, 0), map(MapFn::Gt, &[1, 2], DType::Bool)];
        // Batch 2 sees columns 0, 1 and 2.
        assert_eq!(columns(&masked(50, 50, of_batch, -1e30), 0..8).seen, 0..3);
        let view = View::dense(BufferId(0), DType::Bool, vec![]);
        let load = Instruction::Load { view, strides: vec![0; 3] };
        let both = [
            index(2, 0),
            index(1, 0),
            map(MapFn::Gt, &[1, 2], DType::Bool),
            load,
            map(MapFn::And, &[3, 4], DType::Bool),
        ];
        assert_eq!(columns(&masked(50, 50, both.to_vec(), -1e30), 0..8), nothing);
        let mut any = both.to_vec();
        any[4] = map(MapFn::Or, &[3, 4], DType::Bool);
        assert_eq!(columns(&masked(50, 50, any, -1e30), 0..8).seen, 0..8);
    }

    #[test]
    fn what_follows_the_select_counts() {
        // (select(column > row, -2, x) · 3) + 1
        let mut a = causal(20, 20, 0);
        let float = |x: f64| Instruction::Constant(Scalar::float(x), DType::F32);
        a.score[4] = float(-2.0);
        let tail = [float(3.0), map(MapFn::Mul, &[5, 6], DType::F32), float(1.0), map(MapFn::Add, &[7, 8], DType::F32)];
        a.score.extend(tail);
        assert_eq!(columns(&a, 0..5), Visible { seen: 0..5, masked: -5.0 });
    }
}
