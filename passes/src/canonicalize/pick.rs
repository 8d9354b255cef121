//! Turns a pick from log-probabilities into a pick from the scores, minus the logarithm that all of them share.
//!
//! A cross entropy that is written as `log_softmax` followed by `gather` reads `scores − log Σ exp` at the label. If
//! the scores are sharded over the vocabulary, the pick would wait until the sum of exponentials is reduced. After this
//! rewrite, the sum of exponentials and the picked score are reduced together. The result is exactly the same, because
//! only one term of the picking sum is not zero.
//!
//! Before: `%3 = sub "abc,ab->abc" %s, %l`, `%4 = eq "ab,c->abc" %label, iota`, `%5 = select %4, %3, 0`, `%6 =
//! reduce_sum "abc->ab" %5`. After: `%5 = select %4, %s, 0`, `%6 = reduce_sum "abc->ab" %5`, `%7 = ge %label, 0`, `%8 =
//! lt %label, c`, `%9 = and %7, %8`, `%10 = select %9, %l, 0`, `%11 = sub %6, %10`. (A label that is not an index picks
//! zero.)

use tpc_ir::subscripts::Letter;
use tpc_ir::{Graph, MapFn, Op, Origin, Subscripts, Type, Value};

/// An operand and the letters with which it is read.
type Read = (Value, Vec<Letter>);

/// The sum of `operand` over the letters that `subs` drops, rewritten. `None` if it is not such a pick.
pub(super) fn pick(new: &mut Graph, operand: Value, subs: &Subscripts, ty: &Type, origin: &Origin) -> Option<Value> {
    let row = &subs.operands[0];
    let mut summed = row.iter().copied().filter(|l| !subs.result.contains(l));
    let (Some(class), None) = (summed.next(), summed.next()) else { return None };
    let extent = row.iter().position(|&l| l == class).map(|d| new.ty(operand).shape[d])?;
    let [mask, chosen, otherwise] = read(new, (operand, row.clone()), MapFn::Select)?.try_into().ok()?;
    if new.fill_of(otherwise.0) != Some(0.0) {
        return None;
    }
    let [a, b] = read(new, mask.clone(), MapFn::Eq)?.try_into().ok()?;
    let is_class = |v: &Read| *new.op(v.0) == Op::Iota && v.1 == [class];
    let label = if is_class(&b) { a } else { Some(b).filter(|_| is_class(&a))? };
    let [scores, shared] = read(new, chosen, MapFn::Sub)?.try_into().ok()?;
    if label.1.contains(&class) || shared.1.contains(&class) || !scores.1.contains(&class) {
        return None;
    }
    let map = |new: &mut Graph, f: MapFn, operands: &[&Read], result: &[Letter], ty: Type| {
        let rows: Vec<Vec<Letter>> = operands.iter().map(|o| o.1.clone()).collect();
        let values: Vec<Value> = operands.iter().map(|o| o.0).collect();
        new.push(Op::Map { f, subs: Subscripts::new(&rows, result) }, &values, ty, origin)
    };
    let whole = new.ty(operand).clone();
    let picked = map(new, MapFn::Select, &[&mask, &scores, &otherwise], row, whole);
    let picked = new.push(Op::Reduce { op: tpc_ir::ReduceOp::Sum, subs: subs.clone() }, &[picked], ty.clone(), origin);
    // Whether the label is an index, with the letters of the label.
    let index = new.ty(label.0).clone();
    let truth = Type::new(tpc_ir::DType::Bool, index.shape.clone());
    let bound = |new: &mut Graph, x: usize| (new.scalar(index.dtype, x as f64, origin), Vec::new());
    let (zero, end) = (bound(new, 0), bound(new, extent));
    let above = map(new, MapFn::Ge, &[&label, &zero], &label.1, truth.clone());
    let below = map(new, MapFn::Lt, &[&label, &end], &label.1, truth.clone());
    let inside = map(new, MapFn::And, &[&(above, label.1.clone()), &(below, label.1.clone())], &label.1, truth);
    let nothing = (new.scalar(ty.dtype, 0.0, origin), Vec::new());
    let shared = map(new, MapFn::Select, &[&(inside, label.1), &shared, &nothing], &subs.result, ty.clone());
    let result = &subs.result.clone();
    Some(map(new, MapFn::Sub, &[&(picked, result.clone()), &(shared, result.clone())], result, ty.clone()))
}

/// The operands of a value that `f` computes, with the letters with which the value is read. `None` if another
/// operation computes it.
fn read(new: &Graph, (value, letters): Read, f: MapFn) -> Option<Vec<Read>> {
    let Op::Map { f: found, subs } = new.op(value) else { return None };
    if *found != f {
        return None;
    }
    let outer = |l: &Letter| subs.result.iter().position(|r| r == l).map(|d| letters[d]);
    let rows = subs.operands.iter().map(|row| row.iter().map(outer).collect::<Option<Vec<_>>>());
    new.operands(value.node).into_iter().zip(rows).map(|(v, row)| Some((v, row?))).collect()
}

#[cfg(test)]
mod tests {
    use crate::canonicalize::canonicalize;
    use std::collections::HashMap;
    use tpc_ir::interpret::{Options, Tensor, interpret};
    use tpc_ir::{DType, InputId, Op};

    /// Some labels are not indices, and the result has another order of letters.
    #[test]
    fn scores_are_picked_before_the_subtraction_with_equal_results() {
        let text = "mesh <>
%0 = input data \"scores\" : f32[2, 3, 5]
%1 = input data \"log_sum\" : f32[3, 2]
%2 = input data \"labels\" : i64[2, 3]
%3 = sub \"abc,ba->abc\" %0, %1 : f32[2, 3, 5]
%4 = iota : i64[5]
%5 = eq \"ab,c->abc\" %2, %4 : bool[2, 3, 5]
%6 = select %5, %3, f32:0.0 : f32[2, 3, 5]
%7 = reduce_sum \"abc->ba\" %6 : f32[3, 2]
output result \"picked\" %7
";
        let graph = tpc_ir::parse::parse(text).unwrap();
        let after = canonicalize(&graph);
        let subtracts = |t: &tpc_ir::Type| t.rank() == 3;
        let wide = after.nodes().filter(|&n| after.node(n).op.name() == "sub" && subtracts(&after.node(n).types[0]));
        assert_eq!(wide.count(), 0, "{}", tpc_ir::text::print(&after));
        assert!(after.nodes().any(|n| matches!(after.node(n).op, Op::Reduce { .. })));
        let tensor = |dtype, shape: &[usize], f: fn(usize) -> f64| {
            Tensor::new(dtype, shape.to_vec(), (0..shape.iter().product()).map(f).collect())
        };
        let inputs = HashMap::from([
            (InputId::Data("scores".into()), tensor(DType::F32, &[2, 3, 5], |i| (i * i % 17) as f64)),
            (InputId::Data("log_sum".into()), tensor(DType::F32, &[3, 2], |i| i as f64 - 2.0)),
            (InputId::Data("labels".into()), tensor(DType::I64, &[2, 3], |i| [0.0, -1.0, 4.0, 5.0, -100.0, 2.0][i])),
        ]);
        let run = |g| interpret(g, &inputs, &Options::exact()).unwrap().remove(0).data;
        assert_eq!(run(&graph), run(&after));
    }
}
