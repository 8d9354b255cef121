//! The action that one rank executes for an attention.

use super::Attention;
use super::expression::{Expression, instructions};
use super::operand::{Dim, Operand};
use tpc_ir::attention as ir;
use tpc_ir::program::View;
use tpc_ir::{DType, Graph, Type, Value};

/// The greatest number of elements in a block of rows, 2 MiB, on devices without fast memory of their own.
const TILE: usize = 1 << 19;
/// The smallest and the greatest number of rows of a block. With more rows, key and value are read less often; with
/// fewer, more of a mask is skipped. `runtime/examples/kernels.rs attention` measures it.
const ROWS: (usize, usize) = (32, 64);

/// The numbers of each row that the forward kernel leaves to the backward kernel.
pub(crate) struct Stats {
    pub(crate) max: View,
    pub(crate) sum: View,
}

/// The graph and its memory on one rank.
pub(crate) struct Rank<'a> {
    pub(crate) graph: &'a Graph,
    /// The view of a value.
    pub(crate) view: &'a dyn Fn(Value) -> View,
    /// The first global index in each dimension of the box of a type.
    pub(crate) offsets: &'a dyn Fn(&Type) -> Vec<usize>,
}

impl Attention {
    /// Whether this is the backward half.
    pub(crate) fn is_backward(&self) -> bool {
        self.backward.is_some()
    }

    /// The node that identifies the pair of a forward and a backward half.
    pub(crate) fn pair(&self) -> petgraph::graph::NodeIndex {
        self.product
    }

    /// The values that other kernels read.
    pub(crate) fn results(&self) -> Vec<Value> {
        match &self.backward {
            None => vec![self.out.value],
            Some(b) => [&b.grad_query, &b.grad_key, &b.grad_value].into_iter().flatten().map(|s| s.value).collect(),
        }
    }

    /// The values of the operands, in the order of [`ir::Attention::operands`].
    pub(crate) fn operands(&self) -> Vec<Value> {
        let forward = [&self.query, &self.key, &self.value];
        let backward = self.backward.iter().flat_map(|b| [&self.out, &b.grad_out]);
        forward.into_iter().chain(backward).map(|s| s.value).collect()
    }

    /// The element type of scores: f32 or f64.
    pub(crate) fn real(&self) -> DType {
        self.real
    }

    /// The dimensions of the result of the first product in the order of the action, except the columns. `None` stands
    /// for a single row.
    pub(crate) fn row_dims(&self) -> Vec<Option<usize>> {
        self.batch.iter().map(|&d| Some(d)).chain([self.rows]).collect()
    }

    /// The number of elements of the gradients that are summed in a wider type than their own; see
    /// [`ir::Backward::sums`].
    pub(crate) fn summed(&self, graph: &Graph, product: &[usize], shape: &dyn Fn(&Type) -> Vec<usize>) -> usize {
        let Some(b) = &self.backward else { return 0 };
        let common = |d: usize| product[d] == 1 || [&self.query, &self.key, &self.value].iter().all(|s| s.has(d));
        let narrow = |s: &&Operand| graph.ty(s.value).dtype != self.real;
        let of = |s: &Operand| -> usize {
            let counts = |p: &Dim| match p {
                Dim::Score(d) => !self.batch.contains(d) || !common(*d),
                Dim::Own(_) => true,
            };
            let sizes = shape(graph.ty(s.value));
            s.dims.iter().zip(sizes).filter(|(p, _)| counts(p)).map(|(_, n)| n).product()
        };
        let all = [&b.grad_query, &b.grad_key, &b.grad_value];
        all.into_iter().flatten().filter(narrow).map(of).sum()
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }
}

/// The rows and columns of the scratch memory for a block of rows.
pub(crate) fn tile(rows: usize, columns: usize) -> (usize, usize) {
    let fits = (TILE / columns.max(1)).clamp(ROWS.0, ROWS.1);
    (fits.min(rows), columns)
}

/// The action on one rank. `product` is the local shape of the first product; `room` is the scratch memory of the
/// backward half for `delta` and `sums`.
pub(crate) fn action(
    a: &Attention,
    rank: &Rank<'_>,
    product: &[usize],
    stats: &Stats,
    tile: View,
    room: Option<[View; 2]>,
) -> ir::Attention {
    let order: Vec<Option<usize>> = a.row_dims().into_iter().chain([Some(a.columns)]).collect();
    let position = |d: usize| order.iter().position(|o| *o == Some(d)).expect("every dimension has a position");
    let dims: Vec<usize> = order.iter().map(|d| d.map_or(1, |d| product[d])).collect();
    let own = |s: &Operand| s.dims.iter().filter(|p| matches!(p, Dim::Own(_))).count();
    let extents = |s: &Operand| {
        let view = (rank.view)(s.value);
        let mut sizes = vec![1; own(s)];
        for (p, &n) in s.dims.iter().zip(&view.shape) {
            if let Dim::Own(o) = p {
                sizes[*o] = n;
            }
        }
        sizes
    };
    let operand = |s: &Operand| {
        let view = (rank.view)(s.value);
        let mut all = ir::Operand { dims: vec![0; order.len()], own: vec![0; own(s)], view };
        for (p, &stride) in s.dims.iter().zip(&all.view.strides) {
            match p {
                Dim::Score(d) => all.dims[position(*d)] += stride,
                Dim::Own(o) => all.own[*o] += stride,
            }
        }
        all
    };
    let body = |e: &Expression| instructions(e, rank.graph, order.len(), &position, rank.view, rank.offsets);
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
