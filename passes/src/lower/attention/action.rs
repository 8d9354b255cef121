//! The action of one rank.

use super::Attention;
use super::expression::{Expression, instructions};
use super::strand::{Place, Strand};
use tpc_ir::attention::{self as ir, Operand};
use tpc_ir::program::View;
use tpc_ir::{DType, Graph, Type, Value};

/// Elements of a block of rows that devices without fast memory of their own take at a time: 2 MiB.
const TILE: usize = 1 << 19;
/// Rows of a block, at least and at most. More rows read key and value less often, fewer skip more of a mask
/// (`runtime/examples/kernels.rs attention` measures it).
const ROWS: (usize, usize) = (32, 64);

/// Buffers of a pair of forward and backward kernel.
pub(crate) struct Stats {
    pub(crate) max: View,
    pub(crate) sum: View,
}

/// What an emitter of one rank knows.
pub(crate) struct Rank<'a> {
    pub(crate) graph: &'a Graph,
    /// Where a value lies.
    pub(crate) view: &'a dyn Fn(Value) -> View,
    /// First global index of each dimension of a type's box.
    pub(crate) offsets: &'a dyn Fn(&Type) -> Vec<usize>,
}

impl Attention {
    /// Whether it is the backward half.
    pub(crate) fn is_backward(&self) -> bool {
        self.backward.is_some()
    }

    /// What forward and backward half have in common.
    pub(crate) fn pair(&self) -> petgraph::graph::NodeIndex {
        self.product
    }

    /// What others read.
    pub(crate) fn results(&self) -> Vec<Value> {
        match &self.backward {
            None => vec![self.out.value],
            Some(b) => [&b.grad_query, &b.grad_key, &b.grad_value].into_iter().flatten().map(|s| s.value).collect(),
        }
    }

    /// The values that the action's operands are, in the order of [`ir::Attention::operands`].
    pub(crate) fn operands(&self) -> Vec<Value> {
        let forward = [&self.query, &self.key, &self.value];
        let backward = self.backward.iter().flat_map(|b| [&self.out, &b.grad_out]);
        forward.into_iter().chain(backward).map(|s| s.value).collect()
    }

    /// f32 or f64.
    pub(crate) fn real(&self) -> DType {
        self.real
    }

    /// Dimensions of the first product's result in the order of the action, but the columns; none is a single row.
    pub(crate) fn row_dims(&self) -> Vec<Option<usize>> {
        self.batch.iter().map(|&d| Some(d)).chain([self.rows]).collect()
    }

    /// Elements of the gradients that are summed in a wider type than they have, see [`ir::Backward::sums`].
    pub(crate) fn summed(&self, graph: &Graph, product: &[usize], shape: &dyn Fn(&Type) -> Vec<usize>) -> usize {
        let Some(b) = &self.backward else { return 0 };
        let common = |d: usize| product[d] == 1 || [&self.query, &self.key, &self.value].iter().all(|s| s.has(d));
        let narrow = |s: &&Strand| graph.ty(s.value).dtype != self.real;
        let of = |s: &Strand| -> usize {
            let counts = |p: &Place| match p {
                Place::Score(d) => !self.batch.contains(d) || !common(*d),
                Place::Own(_) => true,
            };
            let sizes = shape(graph.ty(s.value));
            s.places.iter().zip(sizes).filter(|(p, _)| counts(p)).map(|(_, n)| n).product()
        };
        let all = [&b.grad_query, &b.grad_key, &b.grad_value];
        all.into_iter().flatten().filter(narrow).map(of).sum()
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }
}

/// Rows and columns of the scratch for blocks of rows.
pub(crate) fn tile(rows: usize, columns: usize) -> (usize, usize) {
    let fits = (TILE / columns.max(1)).clamp(ROWS.0, ROWS.1);
    (fits.min(rows), columns)
}

/// The action: `product` is the local shape of the first product; of the backward half, `room` is that for delta and
/// sums.
pub(crate) fn action(
    a: &Attention,
    rank: &Rank<'_>,
    product: &[usize],
    stats: &Stats,
    tile: View,
    room: Option<[View; 2]>,
) -> ir::Attention {
    let order: Vec<Option<usize>> = a.row_dims().into_iter().chain([Some(a.columns)]).collect();
    let place = |d: usize| order.iter().position(|o| *o == Some(d)).expect("every dimension has a place");
    let dims: Vec<usize> = order.iter().map(|d| d.map_or(1, |d| product[d])).collect();
    let own = |s: &Strand| s.places.iter().filter(|p| matches!(p, Place::Own(_))).count();
    let extents = |s: &Strand| {
        let view = (rank.view)(s.value);
        let mut sizes = vec![1; own(s)];
        for (p, &n) in s.places.iter().zip(&view.shape) {
            if let Place::Own(o) = p {
                sizes[*o] = n;
            }
        }
        sizes
    };
    let operand = |s: &Strand| {
        let view = (rank.view)(s.value);
        let mut all = Operand { dims: vec![0; order.len()], own: vec![0; own(s)], view };
        for (p, &stride) in s.places.iter().zip(&all.view.strides) {
            match p {
                Place::Score(d) => all.dims[place(*d)] += stride,
                Place::Own(o) => all.own[*o] += stride,
            }
        }
        all
    };
    let body = |e: &Expression| instructions(e, rank.graph, order.len(), &place, rank.view, rank.offsets);
    let backward = a.backward.as_ref().zip(room).map(|(b, [delta, sums])| ir::Backward {
        grad_out: operand(&b.grad_out),
        gradient: b.gradient.as_ref().map(body).unwrap_or_default(),
        grad_query: b.grad_query.as_ref().map(operand),
        grad_key: b.grad_key.as_ref().map(operand),
        grad_value: b.grad_value.as_ref().map(operand),
        delta,
        sums,
    });
    ir::Attention {
        dims,
        inner: extents(&a.key),
        width: extents(&a.value),
        query: operand(&a.query),
        key: operand(&a.key),
        value: operand(&a.value),
        out: operand(&a.out),
        max: stats.max.clone(),
        sum: stats.sum.clone(),
        keep: a.keep,
        score: body(&a.score),
        weight: a.weight.as_ref().map(body).unwrap_or_default(),
        tile,
        backward,
    }
}
