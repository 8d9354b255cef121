//! Emits products and their epilogues.

use super::super::claims::Claim;
use super::super::epilogue::result;
use super::super::kernel::{LoopDim, Nest};
use super::emitter::Emitter;
use super::loops::{Writes, loop_label};
use super::views::store;
use petgraph::graph::NodeIndex;
use tpc_ir::program::{Action, Contract, ContractDim, Instruction, View};
use tpc_ir::{MapFn, Op};

impl Emitter<'_> {
    /// The action of a product that is written to `out`, which has the dimensions of the result of the node. Also
    /// returns, for each dimension of the result of the action, the dimension of the result of the node.
    pub(super) fn contract(&mut self, node: NodeIndex, out: View) -> (Contract, Vec<usize>) {
        let n = self.graph.node(node);
        let Op::Einsum { subs } = &n.op else { unreachable!("{} is no product", n.op.name()) };
        let operands = self.graph.operands(node);
        let [left, right] = [0, 1].map(|i| self.view(operands[i], n.origin.phase));
        let epilogue = Vec::new();
        let mut c = Contract { left, right, out, batch: vec![], m: vec![], n: vec![], k: vec![], scale: 1.0, epilogue };
        let mut order = [Vec::new(), Vec::new(), Vec::new()];
        let position = |row: &Vec<u8>, l: usize| row.iter().position(|&x| x as usize == l);
        for l in 0..subs.letters() {
            let at = (position(&subs.operands[0], l), position(&subs.operands[1], l), position(&subs.result, l));
            let stride = |v: &View, d: Option<usize>| d.map_or(0, |d| v.strides[d]);
            let size = at.0.map(|d| c.left.shape[d]).or(at.1.map(|d| c.right.shape[d])).unwrap_or(1);
            let dim = ContractDim {
                size,
                left: stride(&c.left, at.0),
                right: stride(&c.right, at.1),
                out: stride(&c.out, at.2),
            };
            let group = match (at.0.is_some(), at.1.is_some(), at.2) {
                (true, true, Some(d)) => (&mut c.batch, Some((0, d))),
                (true, false, Some(d)) => (&mut c.m, Some((1, d))),
                (false, true, Some(d)) => (&mut c.n, Some((2, d))),
                _ => (&mut c.k, None),
            };
            group.0.push(dim);
            if let Some((of, d)) = group.1 {
                order[of].push(d);
            }
        }
        (c, order.concat())
    }

    /// Emits products whose sum is the operand of an epilogue. Each product but the last is added to the sum of those
    /// before it.
    pub(super) fn products(&mut self, products: &[NodeIndex], epilogue: &Nest) {
        let graph = self.graph;
        let [terms @ .., host] = products else { unreachable!("there is a product") };
        let phase = graph.node(*host).origin.phase;
        let written: Vec<NodeIndex> = epilogue.nodes.iter().copied().filter(|n| self.stored[n.index()]).collect();
        let result = result(graph, epilogue, &written, *host, &epilogue.dims[host]);
        let result = result.expect("an epilogue has a result like the product's");
        let out = match self.overwritable_operand(epilogue, result).filter(|_| terms.is_empty()) {
            Some(sum) => self.views[&sum].clone(),
            None => self.define(result.into()),
        };
        self.views.insert(result.into(), out.clone());
        for (i, &term) in terms.iter().enumerate() {
            let (mut product, order) = self.contract(term, out.clone());
            if i > 0 {
                let strides: Vec<isize> = order.iter().map(|&d| out.strides[d]).collect();
                let before = Instruction::Load { view: out.clone(), strides: strides.clone() };
                let dtype = out.dtype;
                let sum = Instruction::Map { f: MapFn::Add, args: vec![0, 1], dtype };
                product.epilogue = vec![Instruction::Given { index: 0, dtype }, before, sum, store(&out, strides, 2)];
            }
            let claim = Claim::Terms(terms[..=i].to_vec());
            self.push(Action::Contract(product), claim, phase, graph.node(term).op.name());
        }
        let members = epilogue.members();
        self.operands(epilogue, &members, phase);
        let (mut product, order) = self.contract(*host, out);
        let order: Vec<LoopDim> = order.iter().map(|&d| epilogue.dims[host][d]).collect();
        let (instructions, body) = self.body(epilogue, &members, &order, Writes::AfterProducts { products, result });
        product.epilogue = instructions;
        let label = format!("{} + {}", graph.node(*host).op.name(), loop_label(graph, &epilogue.nodes));
        self.push(Action::Contract(product), Claim::Product(*host, body), phase, label);
    }
}
