//! Attention that burn records as one operation.

use super::{Builder, Imports, scalar};
use burn_ir::AttentionOpIr;
use tpc_ir::{DType, MapFn, ReduceOp, Value};

/// Letters of batch, heads, queries, keys and features.
const SCORES: [u8; 4] = [0, 1, 2, 3];

impl Builder {
    /// `softmax(q·kᵀ·scale)·v` with a soft cap, masks and a bias; a fully masked row gives zeros, as in burn.
    pub(super) fn attention(&mut self, o: &AttentionOpIr) -> Imports {
        let [q, k, v] = [&o.query, &o.key, &o.value].map(|t| self.get(t));
        let features = self.shape(q)[3] as f64;
        let mut scores = self.einsum(q, k, [&[0, 1, 2, 4], &[0, 1, 3, 4]], &SCORES);
        let shape = self.shape(scores);
        scores = self.with(MapFn::Mul, scores, o.options.scale.as_ref().map_or(1.0 / features.sqrt(), scalar));
        if let Some(cap) = &o.options.softcap {
            scores = self.with(MapFn::Div, scores, scalar(cap));
            scores = self.map(MapFn::Tanh, &[scores]);
            scores = self.with(MapFn::Mul, scores, scalar(cap));
        }
        if let Some(mask) = &o.mask {
            let mask = self.get(mask);
            scores = self.masked(mask, scores, &shape);
        }
        if o.options.is_causal {
            let future = self.future(&shape);
            scores = self.masked(future, scores, &shape);
        }
        if let Some(bias) = &o.attn_bias {
            let bias = self.get(bias);
            scores = self.broadcast(MapFn::Add, &[scores, bias], &shape);
        }
        let (least, smallest) = match self.graph.ty(scores).dtype {
            DType::F64 => (f64::MIN, f64::MIN_POSITIVE),
            DType::F16 => (-65504.0, 2f64.powi(-14)),
            _ => (f64::from(f32::MIN), f64::from(f32::MIN_POSITIVE)),
        };
        let max = self.reduced(scores, ReduceOp::Max, &[3]);
        let max = self.with(MapFn::Max, max, least);
        let scores = self.broadcast(MapFn::Sub, &[scores, max], &shape);
        let weights = self.map(MapFn::Exp, &[scores]);
        let sum = self.reduced(weights, ReduceOp::Sum, &[3]);
        let sum = self.with(MapFn::Max, sum, smallest);
        let weights = self.broadcast(MapFn::Div, &[weights, sum], &shape);
        let v = self.einsum(weights, v, [&SCORES, &[0, 1, 3, 4]], &[0, 1, 2, 4]);
        self.set(&o.out, v)
    }

    /// Replaces masked scores by −∞.
    fn masked(&mut self, mask: Value, scores: Value, shape: &[usize]) -> Value {
        let nothing = self.constant(self.graph.ty(scores).dtype, f64::NEG_INFINITY);
        self.broadcast(MapFn::Select, &[mask, nothing, scores], shape)
    }

    /// Whether a key comes after the query; the last key belongs to the last query.
    fn future(&mut self, shape: &[usize]) -> Value {
        let (rows, columns) = (self.iota(DType::I64, shape, 2), self.iota(DType::I64, shape, 3));
        let rows = self.with(MapFn::Add, rows, shape[3] as f64 - shape[2] as f64);
        let rows = self.reshaped(rows, &[shape[2], 1]);
        let columns = self.reshaped(columns, &[1, shape[3]]);
        self.broadcast(MapFn::Lt, &[rows, columns], &shape[2..])
    }
}
