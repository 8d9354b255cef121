//! What every operation means, as a function of indices.
//!
//! The description follows the documentation of [`Op`]. It gives the operation a list of indices and says for every
//! dimension of every operand and result which index its positions are, or that an element of the result may need all of
//! its positions. It also says how an element of a result depends on elements of the operands ([`Body`]). Nothing here
//! knows of meshes and placements.
//!
//! The product `"ab,bc->ac"` has the indices `a`, `b` and `c`. The results have `a` and `c`; over `b` they are sums.
//! `take` has an index `v` of its table that only the table has: a row that is not there counts as zeros, so a result
//! is a sum over `v` as well.

use tpc_ir::{MapFn, Op, ReduceOp, Scalar, Subscripts, Type};

/// What becomes of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Every element of a result belongs to one value of the index.
    Each,
    /// An element of a result combines what all values of the index give.
    Folded(ReduceOp),
}

/// How a dimension of a tensor is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The positions are the values of an index.
    At(usize),
    /// One element may need every position, or the position follows from another one.
    Whole,
}

/// How an element of a result depends on elements of the operands.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Body {
    /// Not at all: it follows from its position and from operands that are the same for all elements. The scalar is
    /// given if all elements are equal.
    Made(Option<Scalar>),
    /// A function of one element of each operand.
    Function(MapFn),
    /// The product of one element of each of two operands, or a sum of such products.
    Product,
    /// A reduction of elements of the only operand.
    Fold(ReduceOp),
    /// A sum of elements of one operand, chosen by positions or by another operand.
    SumOf(usize),
    /// One element of some of the operands, chosen by positions or by the other operands; or a border, if there is one.
    OneOf(Vec<usize>, Option<Scalar>),
    /// The rank of an element among others, or the element of a rank.
    Order,
}

/// The meaning of an operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meaning {
    /// What becomes of each index.
    pub indices: Vec<Role>,
    /// For every operand, how each dimension is read.
    pub operands: Vec<Vec<Access>>,
    /// For every result, how each dimension is written.
    pub results: Vec<Vec<Access>>,
    /// How an element of a result depends on elements of the operands.
    pub body: Body,
}

use Access::{At, Whole};

/// The meaning of an operation on operands and results of some shapes, which fit it. `None` for a redistribution, which
/// leaves every element as it is.
pub(super) fn meaning(op: &Op, operands: &[&Type], results: &[Type]) -> Option<Meaning> {
    let to = &results[0];
    let each = |n: usize| vec![Role::Each; n];
    let straight = |rank: usize| (0..rank).map(At).collect::<Vec<Access>>();
    // All operands and results have the same dimensions, one of which is needed whole.
    let except = |dim: usize, n: usize, body: Body| {
        let access: Vec<Access> = (0..to.rank()).map(|d| if d == dim { Whole } else { At(d) }).collect();
        let results = vec![access.clone(); results.len()];
        Meaning { indices: each(to.rank()), operands: vec![access; n], results, body }
    };
    Some(match op {
        // `0, 1, 2, …`, a scalar, a function of the global index: an element depends on its position alone.
        Op::Input { .. } | Op::Iota => made(to, 0, None),
        Op::Fill(scalar) => made(to, 0, Some(*scalar)),
        Op::Random { .. } => made(to, 1, None),
        Op::Map { f, subs } => with_letters(subs, ReduceOp::Sum, Body::Function(*f)),
        Op::Einsum { subs } => with_letters(subs, ReduceOp::Sum, Body::Product),
        Op::Reduce { op, subs } => with_letters(subs, *op, Body::Fold(*op)),
        Op::Reshape => reshape(&operands[0].shape, &to.shape),
        Op::Slice { dim, .. } => except(*dim, 1, Body::OneOf(vec![0], None)),
        Op::Pad { dim, value, .. } => except(*dim, 1, Body::OneOf(vec![0], Some(*value))),
        Op::Concat { dim } => except(*dim, operands.len(), Body::OneOf((0..operands.len()).collect(), None)),
        Op::CumSum { dim } => except(*dim, 1, Body::SumOf(0)),
        // The largest of a row, in order, and where they were.
        Op::TopK => except(to.rank() - 1, 1, Body::Order),
        // The result lacks the dimension.
        Op::Index { dim, .. } => {
            let at = |d: usize| if d < *dim { At(d) } else { At(d - 1) };
            let read = (0..=to.rank()).map(|d| if d == *dim { Whole } else { at(d) }).collect();
            let body = Body::OneOf(vec![0], None);
            Meaning { indices: each(to.rank()), operands: vec![read], results: vec![straight(to.rank())], body }
        }
        // `table[v, h…], index[t…] -> [t…, h…]`: of all rows, the one with the number is read, and others give 0.
        Op::Take => {
            let (t, h) = (operands[1].rank(), operands[0].rank() - 1);
            let v = t + h;
            let mut indices = each(t + h);
            indices.push(Role::Folded(ReduceOp::Sum));
            let table = std::iter::once(At(v)).chain((t..t + h).map(At)).collect();
            let body = Body::OneOf(vec![0], Some(Scalar::float(0.0)));
            Meaning { indices, operands: vec![table, straight(t)], results: vec![straight(t + h)], body }
        }
        // `index[t…], update[t…, h…] -> [v, h…]`: a row is the sum of the updates with its number.
        Op::ScatterAdd => {
            let (t, h) = (operands[0].rank(), to.rank() - 1);
            let v = t + h;
            let mut indices = vec![Role::Folded(ReduceOp::Sum); t];
            indices.extend(each(h + 1));
            let rows = std::iter::once(At(v)).chain((t..t + h).map(At)).collect();
            let operands = vec![straight(t), straight(t + h)];
            Meaning { indices, operands, results: vec![rows], body: Body::SumOf(1) }
        }
        // `table[v, h…], index[t…], rows[t…, h…] -> [v, h…]`: a row of the table, or the last of `rows` with its number,
        // for which all numbers have to be known.
        Op::Put => {
            let (t, rank) = (operands[1].rank(), to.rank());
            let rows = std::iter::repeat_n(Whole, t).chain((1..rank).map(At)).collect();
            let operands = vec![straight(rank), vec![Whole; t], rows];
            Meaning {
                indices: each(rank),
                operands,
                results: vec![straight(rank)],
                body: Body::OneOf(vec![0, 2], None),
            }
        }
        Op::AllReduce { .. }
        | Op::AllGather { .. }
        | Op::ReduceScatter { .. }
        | Op::AllToAll { .. }
        | Op::ShardSlice { .. }
        | Op::ToPartial { .. } => return None,
    })
}

/// A tensor whose elements follow from their positions, and from `operands` scalars.
fn made(to: &Type, operands: usize, all: Option<Scalar>) -> Meaning {
    Meaning {
        indices: vec![Role::Each; to.rank()],
        operands: vec![Vec::new(); operands],
        results: vec![(0..to.rank()).map(At).collect()],
        body: Body::Made(all),
    }
}

/// An operation with subscripts, whose letters are its indices. What the result lacks is folded.
fn with_letters(subs: &Subscripts, fold: ReduceOp, body: Body) -> Meaning {
    let role = |l: usize| if subs.result.iter().any(|&r| r as usize == l) { Role::Each } else { Role::Folded(fold) };
    let access = |letters: &Vec<u8>| letters.iter().map(|&l| At(l as usize)).collect();
    Meaning {
        indices: (0..subs.letters()).map(role).collect(),
        operands: subs.operands.iter().map(access).collect(),
        results: vec![access(&subs.result)],
        body,
    }
}

/// A reshape keeps the row-major number of every element. A dimension of extent n and stride s has, at the element with
/// number i, the position (i / s) mod n, so dimensions of equal extent and stride are one index. An element of the other
/// dimensions may be anywhere.
fn reshape(from: &[usize], to: &[usize]) -> Meaning {
    let strides = |shape: &[usize]| -> Vec<(usize, usize)> {
        let mut stride = 1;
        let mut all: Vec<(usize, usize)> = Vec::new();
        for &extent in shape.iter().rev() {
            all.push((extent, stride));
            stride *= extent;
        }
        all.reverse();
        all
    };
    let (read, written) = (strides(from), strides(to));
    let mut index_of: Vec<Option<usize>> = vec![None; to.len()];
    let mut operand = vec![Whole; from.len()];
    let mut count = 0;
    for (d, dim) in read.iter().enumerate().filter(|(_, (extent, _))| *extent != 1) {
        let alike = (0..to.len()).find(|&e| written[e] == *dim && index_of[e].is_none());
        if let Some(e) = alike {
            (operand[d], index_of[e]) = (At(count), Some(count));
            count += 1;
        }
    }
    let result = index_of.into_iter().map(|index| index.map_or(Whole, At)).collect();
    let body = Body::OneOf(vec![0], None);
    Meaning { indices: vec![Role::Each; count], operands: vec![operand], results: vec![result], body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reshape_keeps_the_dimensions_with_equal_strides() {
        let m = reshape(&[4, 6, 5], &[4, 30]);
        assert_eq!((m.operands, m.results), (vec![vec![At(0), Whole, Whole]], vec![vec![At(0), Whole]]));
        let m = reshape(&[3, 1, 2], &[1, 3, 2]);
        assert_eq!((m.operands, m.results), (vec![vec![At(0), Whole, At(1)]], vec![vec![Whole, At(0), At(1)]]));
        let m = reshape(&[6, 4], &[3, 2, 4]);
        assert_eq!((m.operands, m.results), (vec![vec![Whole, At(0)]], vec![vec![Whole, Whole, At(0)]]));
        let m = reshape(&[0, 3], &[3, 0]);
        assert_eq!((m.operands, m.results), (vec![vec![Whole, Whole]], vec![vec![Whole, Whole]]));
    }
}
