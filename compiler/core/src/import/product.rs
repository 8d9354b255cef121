//! Matrix products, linear layers and embeddings.

use super::{Builder, Imports};
use burn_ir::{MatmulOpIr, ModuleOperationIr as M};
use tpc_ir::{MapFn, Op, ReduceOp, Subscripts, Type, Value};

impl Builder {
    /// An einsum with operands and result given by letters.
    pub(super) fn einsum(&mut self, a: Value, b: Value, rows: [&[u8]; 2], result: &[u8]) -> Value {
        let (left, right) = (self.graph.ty(a).clone(), self.graph.ty(b).clone());
        let size = |l: &u8| {
            let of = |row: &[u8], ty: &Type| row.iter().position(|m| m == l).map(|d| ty.shape[d]);
            of(rows[0], &left).or_else(|| of(rows[1], &right)).unwrap_or(1)
        };
        let shape: Vec<usize> = result.iter().map(size).collect();
        let subs = Subscripts::new(&[rows[0].to_vec(), rows[1].to_vec()], result);
        self.push(Op::Einsum { subs }, &[a, b], Type::new(left.dtype, shape))
    }

    /// `[…, m, k] · […, k, n]`; batch extents of 1 are repeated.
    pub(super) fn matmul(&mut self, o: &MatmulOpIr) -> Imports {
        let out = o.out.shape.to_vec();
        let rank = out.len();
        let (m, n, k) = (rank as u8 - 2, rank as u8 - 1, rank as u8);
        let mut values = Vec::new();
        let mut rows = Vec::new();
        for (t, matrix) in [(&o.lhs, [m, k]), (&o.rhs, [k, n])] {
            let v = self.get(t);
            let from = self.shape(v);
            let batch: Vec<usize> = (0..rank - 2).filter(|&d| from[d] == out[d]).collect();
            let narrow: Vec<usize> = batch.iter().copied().chain([rank - 2, rank - 1]).map(|d| from[d]).collect();
            values.push(self.reshaped(v, &narrow));
            rows.push(batch.iter().map(|&d| d as u8).chain(matrix).collect::<Vec<u8>>());
        }
        let result: Vec<u8> = (0..rank as u8).collect();
        let v = self.einsum(values[0], values[1], [&rows[0], &rows[1]], &result);
        self.set(&o.out, v)
    }

    pub(super) fn module(&mut self, op: &M) -> Imports {
        match op {
            M::Linear(o) => {
                let (x, w) = (self.get(&o.x), self.get(&o.weight));
                let lead: Vec<u8> = (0..self.shape(x).len() as u8 - 1).collect();
                let (i, j) = (lead.len() as u8, lead.len() as u8 + 1);
                let v = self.einsum(x, w, [&[&lead[..], &[i]].concat(), &[i, j]], &[&lead[..], &[j]].concat());
                let v = match &o.bias {
                    Some(b) => {
                        let b = self.get(b);
                        self.broadcast(MapFn::Add, &[v, b], &o.out.shape.to_vec())
                    }
                    None => v,
                };
                self.set(&o.out, v)
            }
            M::LinearXBackward(o) => {
                let (w, g) = (self.get(&o.weight), self.get(&o.output_grad));
                let lead: Vec<u8> = (0..self.shape(g).len() as u8 - 1).collect();
                let (i, j) = (lead.len() as u8, lead.len() as u8 + 1);
                let v = self.einsum(g, w, [&[&lead[..], &[j]].concat(), &[i, j]], &[&lead[..], &[i]].concat());
                self.set(&o.out, v)
            }
            M::LinearWeightBackward(o) => {
                let (x, g) = (self.get(&o.x), self.get(&o.output_grad));
                let lead: Vec<u8> = (0..self.shape(x).len() as u8 - 1).collect();
                let (i, j) = (lead.len() as u8, lead.len() as u8 + 1);
                let v = self.einsum(x, g, [&[&lead[..], &[i]].concat(), &[&lead[..], &[j]].concat()], &[i, j]);
                self.set(&o.out, v)
            }
            M::LinearBiasBackward(o) => {
                let g = self.get(&o.output_grad);
                let dims: Vec<usize> = (0..self.shape(g).len() - 1).collect();
                let v = self.reduced(g, ReduceOp::Sum, &dims);
                self.set(&o.out, v)
            }
            M::Embedding(o) => {
                let (table, index) = (self.get(&o.weights), self.get(&o.indices));
                let ty = self.ty(&o.out)?;
                let v = self.push(Op::Take, &[table, index], ty);
                self.set(&o.out, v)
            }
            M::EmbeddingBackward(o) => {
                let (index, update) = (self.get(&o.indices), self.get(&o.out_grad));
                let ty = self.ty(&o.out)?;
                let v = self.push(Op::ScatterAdd, &[index, update], ty);
                self.set(&o.out, v)
            }
            M::LayerNorm(o) => self.layer_norm(o),
            M::BatchNorm(o) => self.batch_norm(o),
            M::Attention(o) => self.attention(o),
            op => self.convolution(op),
        }
    }
}
