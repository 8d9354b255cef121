//! Normalizations that burn records as one operation.

use super::{Builder, Imports, scalar};
use burn_ir::{BatchNormOpIr, LayerNormOpIr};
use tpc_ir::{MapFn, ReduceOp};

impl Builder {
    pub(super) fn layer_norm(&mut self, o: &LayerNormOpIr) -> Imports {
        let x = self.get(&o.input);
        let shape = self.shape(x);
        let last = shape.len() - 1;
        let count = shape[last] as f64;
        let sum = self.reduced(x, ReduceOp::Sum, &[last]);
        let mean = self.with(MapFn::Div, sum, count);
        let centered = self.broadcast(MapFn::Sub, &[x, mean], &shape);
        let square = self.map(MapFn::Mul, &[centered, centered]);
        let sum = self.reduced(square, ReduceOp::Sum, &[last]);
        let variance = self.with(MapFn::Div, sum, count);
        let variance = self.with(MapFn::Add, variance, scalar(&o.epsilon));
        let deviation = self.map(MapFn::Sqrt, &[variance]);
        let normal = self.broadcast(MapFn::Div, &[centered, deviation], &shape);
        let gamma = self.get(&o.gamma);
        let mut v = self.broadcast(MapFn::Mul, &[normal, gamma], &shape);
        if let Some(beta) = &o.beta {
            let beta = self.get(beta);
            v = self.broadcast(MapFn::Add, &[v, beta], &shape);
        }
        self.set(&o.out, v)
    }

    /// A batch norm with given statistics, which does not train.
    pub(super) fn batch_norm(&mut self, o: &BatchNormOpIr) -> Imports {
        let [x, mean, variance] = [&o.x, &o.mean, &o.variance].map(|t| self.get(t));
        let centered = self.per_channel(MapFn::Sub, x, mean);
        let variance = self.with(MapFn::Add, variance, scalar(&o.epsilon));
        let deviation = self.map(MapFn::Sqrt, &[variance]);
        let normal = self.per_channel(MapFn::Div, centered, deviation);
        let [gamma, beta] = [&o.gamma, &o.beta].map(|t| self.get(t));
        let v = self.per_channel(MapFn::Mul, normal, gamma);
        let v = self.per_channel(MapFn::Add, v, beta);
        self.set(&o.out, v)
    }
}
