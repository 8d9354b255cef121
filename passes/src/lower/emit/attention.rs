//! Emits attention, forward and backward.

use super::super::attention::{self, Attention, Stats};
use super::super::claims::Claim;
use super::emitter::Emitter;
use petgraph::graph::NodeIndex;
use tpc_ir::program::Action;
use tpc_ir::{Type, Value};

impl Emitter<'_> {
    pub(super) fn attention(&mut self, a: &Attention, nodes: &[NodeIndex], reads: &[Value]) {
        let graph = self.graph;
        let last = *nodes.last().expect("an attention has members");
        let phase = graph.node(last).origin.phase;
        for &v in reads {
            self.view(v, phase);
        }
        for v in a.results() {
            self.define(v);
        }
        let product = self.shape(&graph.node(a.pair()).types[0]);
        let rows: Vec<usize> = a.row_dims().iter().map(|d| d.map_or(1, |d| product[d])).collect();
        let real = |shape: &[usize]| Type::new(a.real(), shape.to_vec());
        let row = real(&rows);
        if !a.is_backward() {
            let max = self.buffer(&row, rows.clone(), false, "attention max");
            let sum = self.buffer(&row, rows.clone(), false, "attention sum");
            self.stats.insert(a.pair(), Stats { max, sum });
        }
        let (block, columns) = attention::tile(*rows.last().unwrap_or(&1), product[a.columns()]);
        let tile = real(&[1 + usize::from(a.is_backward()), block, columns]);
        let tile = self.buffer(&tile, tile.shape.clone(), false, "attention tile");
        let room = a.is_backward().then(|| {
            let sums = real(&[a.summed(graph, &product, &|ty| self.shape(ty))]);
            let delta = self.buffer(&row, rows, false, "attention delta");
            [delta, self.buffer(&sums, sums.shape.clone(), false, "attention sums")]
        });
        let stats = &self.stats[&a.pair()];
        let rank = attention::Rank {
            graph,
            view: &|v| self.views[&v].clone(),
            offsets: &|ty| ty.local(&graph.mesh, &self.coords).iter().map(|c| c.offset).collect(),
        };
        let action = attention::action(a, &rank, &product, stats, tile, room);
        let label = if a.is_backward() { "attention backward" } else { "attention" };
        let (operands, results) = (a.operands(), a.results());
        let claim = Claim::Attention { product: a.pair(), operands, reads: reads.to_vec(), results };
        self.push(Action::Attention(Box::new(action)), claim, phase, label);
    }
}
