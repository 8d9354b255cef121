//! Clipping by global norm, as in `torch.nn.utils.clip_grad_norm_`: all gradients are scaled by `min(1, max_norm /
//! (norm + 1e-6))`, where `norm` is the L2 norm of one vector that holds all gradients.
//!
//! The pass adds only plain reductions to the unplaced graph, so the norm is correct under every plan: the sum of
//! squares of a sharded gradient is a partial sum, that of a replicated gradient is counted once, and the sum over all
//! parameters is one n-ary sum, whose reductions the e-graph merges (rule 7). Gradient outputs remain those before
//! clipping; the optimizer reads the scaled ones. The norm becomes the result [`GRAD_NORM`].
//!
//! Before: `%9 = mul %7, %lr` with `gradient "w" %7`.
//! After: `%8 = mul %7, %7`, `%9 = reduce_sum "ab->" %8`, `%10 = add %9, …`, `%11 = sqrt %10`,
//! `%12 = add %11, 1e-6`, `%13 = div max_norm, %12`, `%14 = min %13, 1.0`,
//! `%15 = mul "ab,->ab" %7, %14`, `%16 = mul %15, %lr`.

use super::OptionError;
use crate::rebuild::{Mapping, copy, live};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::reason::Demand;
use tpc_ir::{
    DType, Graph, MapFn, ModulePath, Op, Origin, Output, OutputKind, Phase, ReduceOp, Subscripts, Type, Value,
};

/// The name of the result with the norm of all gradients before clipping.
pub const GRAD_NORM: &str = "grad_norm";

/// The number that PyTorch adds to the norm before dividing by it.
const EPSILON: f64 = 1e-6;

/// Scales the gradients that the optimizer reads. Gradients must be outputs.
///
/// # Errors
/// The program has no gradients, or a result with this name, or gradients that depend on the optimizer; or the norm is
/// not a finite number above 0.
pub fn clip(graph: &Graph, max_norm: f64) -> Result<Graph, OptionError> {
    if !(max_norm > 0.0 && max_norm.is_finite()) {
        return Err(OptionError::ClipNorm(max_norm));
    }
    let gradients: Vec<(&ModulePath, Value)> = graph
        .outputs
        .iter()
        .filter_map(|o| match &o.kind {
            OutputKind::Gradient(name) => Some((name, o.value)),
            _ => None,
        })
        .collect();
    if gradients.is_empty() {
        return Err(OptionError::NoGradients("clipping"));
    }
    if graph.outputs.iter().any(|o| o.kind == OutputKind::Result(GRAD_NORM.into())) {
        return Err(OptionError::Taken(GRAD_NORM));
    }
    let late = optimizer(graph);
    if let Some((name, _)) = gradients.iter().find(|(_, g)| late[g.node.index()]) {
        return Err(OptionError::LateGradient((*name).clone()));
    }
    // The norm needs all gradients, so everything that does not depend on the optimizer comes first, then the norm,
    // then the optimizer.
    let live = live(graph);
    let (after, before): (Vec<NodeIndex>, Vec<NodeIndex>) =
        graph.nodes().filter(|n| live[n.index()]).partition(|n| late[n.index()]);
    let mut new = Graph::new(graph.mesh.clone());
    let mut map = Mapping::default();
    for node in before {
        let operands: Vec<Value> = graph.operands(node).iter().map(|v| map[v]).collect();
        keep(&mut map, node, copy(&mut new, graph, node, &operands));
    }
    let values: Vec<Value> = gradients.iter().map(|(_, g)| map[g]).collect();
    let (norm, coefficient) = coefficient(&mut new, &values, max_norm);
    let scaled: HashMap<Value, Value> = scaled(&mut new, &values, coefficient);
    let read: HashSet<Value> = gradients.iter().map(|(_, g)| *g).collect();
    for node in after {
        let operand = |v: &Value| if read.contains(v) { scaled[&map[v]] } else { map[v] };
        let operands: Vec<Value> = graph.operands(node).iter().map(operand).collect();
        keep(&mut map, node, copy(&mut new, graph, node, &operands));
    }
    // An optimizer may keep the gradient itself as its state.
    new.outputs = graph
        .outputs
        .iter()
        .map(|o| {
            let value = map[&o.value];
            let updated = matches!(o.kind, OutputKind::Update(_)) && read.contains(&o.value);
            Output { value: if updated { scaled[&value] } else { value }, ..o.clone() }
        })
        .collect();
    new.outputs.push(Output { kind: OutputKind::Result(GRAD_NORM.into()), value: norm, layout: Vec::new() });
    Ok(new)
}

fn keep(map: &mut Mapping, node: NodeIndex, results: Vec<Value>) {
    map.extend(results.into_iter().enumerate().map(|(i, v)| (Value { node, result: i as u32 }, v)));
}

/// For each node, whether it belongs to the optimizer or depends on it.
fn optimizer(graph: &Graph) -> Vec<bool> {
    let mut late = vec![false; graph.len()];
    for node in graph.nodes() {
        late[node.index()] = graph.node(node).origin.phase == Phase::Optimizer
            || graph.operands(node).iter().any(|v| late[v.node.index()]);
    }
    late
}

fn origin() -> Origin {
    Origin { phase: Phase::Optimizer, reason: Demand::Clipping.into(), ..Origin::default() }
}

/// The norm of all gradients, and the number that scales them.
fn coefficient(new: &mut Graph, gradients: &[Value], max_norm: f64) -> (Value, Value) {
    let origin = origin();
    let squares: Vec<Value> = gradients
        .iter()
        .map(|&g| {
            let g = widened(new, g, &origin);
            let square = new.map(MapFn::Mul, &[g, g], &origin);
            let dims: Vec<usize> = (0..new.ty(g).rank()).collect();
            match new.ty(g).dtype {
                DType::F64 => {
                    let sum = summed(new, square, &dims, &origin);
                    new.map(MapFn::Cast(DType::F32), &[sum], &origin)
                }
                _ => summed(new, square, &dims, &origin),
            }
        })
        .collect();
    let total = match squares.as_slice() {
        [one] => *one,
        many => {
            let subs = Subscripts::elementwise(many.len(), 0);
            new.push(Op::Map { f: MapFn::Add, subs }, many, Type::new(DType::F32, []), &origin)
        }
    };
    let norm = new.map(MapFn::Sqrt, &[total], &origin);
    let epsilon = new.scalar(DType::F32, EPSILON, &origin);
    let above = new.map(MapFn::Add, &[norm, epsilon], &origin);
    let limit = new.scalar(DType::F32, max_norm, &origin);
    let ratio = new.map(MapFn::Div, &[limit, above], &origin);
    let one = new.scalar(DType::F32, 1.0, &origin);
    (norm, new.map(MapFn::Min, &[ratio, one], &origin))
}

fn summed(new: &mut Graph, v: Value, dims: &[usize], origin: &Origin) -> Value {
    if dims.is_empty() { v } else { new.reduce(ReduceOp::Sum, v, dims, origin) }
}

/// Casts a short float to f32. Squares of short floats have neither the range nor the precision to be added.
fn widened(new: &mut Graph, v: Value, origin: &Origin) -> Value {
    match new.ty(v).dtype {
        DType::BF16 | DType::F16 => new.map(MapFn::Cast(DType::F32), &[v], origin),
        _ => v,
    }
}

fn scaled(new: &mut Graph, gradients: &[Value], coefficient: Value) -> HashMap<Value, Value> {
    let origin = origin();
    let mut scaled = HashMap::new();
    for &g in gradients {
        let dtype = new.ty(g).dtype;
        scaled.entry(g).or_insert_with(|| {
            let by = match dtype {
                DType::F32 => coefficient,
                other => new.map(MapFn::Cast(other), &[coefficient], &origin),
            };
            new.map(MapFn::Mul, &[g, by], &origin)
        });
    }
    scaled
}
