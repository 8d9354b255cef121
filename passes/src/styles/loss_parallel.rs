//! Loss parallelism: logits stay sharded over the vocabulary through the cross entropy.

use super::annotations::{Annotations, Constraint};
use super::dataflow::ancestors;
use super::error::StyleError;
use super::layout::OnAxes;
use super::modules::{Weight, biases};
use petgraph::graph::NodeIndex;
use std::collections::BTreeMap;
use tpc_ir::reason::Demand;
use tpc_ir::{AxisId, Graph, InputId, ModulePath, Op, Phase};

/// Constrains the cross entropy to read the logits as the column-wise last linears leave them, even if a layout gathers
/// the output of the model.
pub(super) fn loss_parallel(
    graph: &Graph,
    weights: &BTreeMap<ModulePath, Weight>,
    parts: &[AxisId],
    found: &mut Annotations,
) -> Result<(), StyleError> {
    // All products with a weight, including the second use of a tied table.
    let products: Vec<(NodeIndex, u32, &Weight)> = weights
        .values()
        .flat_map(|w| graph.users(w.input).map(move |(user, edge)| (user, edge.operand, w)))
        .filter(|(user, ..)| {
            let n = graph.node(*user);
            n.origin.phase == Phase::Forward && matches!(n.op, Op::Einsum { .. })
        })
        .collect();
    let mut heads = 0;
    for &(product, operand, weight) in &products {
        let followed = products.iter().any(|p| p.0 != product && ancestors(graph, p.0)[product.index()]);
        let Op::Einsum { subs } = &graph.node(product).op else { continue };
        let id = InputId::Parameter(weight.name.clone());
        let Some(cut) = found.inputs.get(&id).filter(|_| !followed) else { continue };
        let mut dims = vec![Vec::new(); subs.result.len()];
        for (letter, axes) in subs.operands[operand as usize].iter().zip(&cut.sharding.dims) {
            if let Some(d) = subs.result.iter().position(|l| l == letter) {
                dims[d].clone_from(axes);
            }
        }
        if dims.iter().all(Vec::is_empty) {
            continue;
        }
        heads += 1;
        // The logits include the bias.
        let (mut node, mut at) = (product, OnAxes { axes: parts.to_vec(), dims });
        let bias = biases(graph, weights, weight).first().map(|b| weights[b].user);
        if let Some(sum) = bias
            && let Op::Map { subs, .. } = &graph.node(sum).op
            && let Some(i) = graph.operands(sum).iter().position(|v| v.node == node)
        {
            let of = |l: &u8| subs.operands[i].iter().position(|r| r == l).map_or(Vec::new(), |d| at.dims[d].clone());
            (node, at) = (sum, OnAxes { axes: at.axes.clone(), dims: subs.result.iter().map(of).collect() });
        }
        for (user, edge) in graph.users(node).filter(|(user, _)| graph.node(*user).origin.phase == Phase::Forward) {
            let constraint = Constraint { at: at.clone(), why: Demand::LossParallel.into() };
            found.uses.entry((user, edge.operand)).or_default().push(constraint);
        }
    }
    if heads == 0 { Err(StyleError::LossParallel) } else { Ok(()) }
}
