//! Finds the module of operations of which the capture knows none: all of the backward pass and of the optimizer, and those
//! of the forward pass outside of marked modules.
//!
//! 1. An operation that reads a parameter belongs to the module that uses the parameter in the forward pass.
//! 2. An operation of the optimizer belongs to the module of the parameter that it updates. In the backward pass a product
//!    belongs to the module whose gradients are computed from it, and any other operation to the one whose values of the
//!    forward pass it reads; without such a module, the other of the two. An operation that reads a parameter ends the
//!    search for these gradients, because what it makes is for the modules before.
//! 3. Any other operation belongs to the innermost module that all its operands come from.
//! 4. A reduction belongs to the module of its terms, any other redistribution to that of its first reader, if that module
//!    is inside the one that is known to need it.
//! 5. A redistribution that places a value like a parameter belongs to the module of that parameter, whichever tensor made
//!    it necessary: the batch is sharded, and so each gradient is reduced in its own module, not in that of the embedding.
//!
//! Before: `%9 = einsum "ac,bc->ab" %8, %1 ; backward`, where `%1` is `up.weight`. After: `… ; backward in up`.

use std::collections::HashMap;
use tpc_ir::reason::Cause;
use tpc_ir::{Graph, MapFn, ModulePath, Op, Phase, Value};

/// The module that uses each parameter in the forward pass.
type Owners = HashMap<ModulePath, ModulePath>;

/// Gives every operation a module, if one can be found.
pub(crate) fn attribute(graph: &mut Graph) {
    let owners = owners(graph);
    let goals = goals(graph, &owners);
    let nodes: Vec<Value> = graph.nodes().map(Value::from).collect();
    let (moves, others): (Vec<Value>, Vec<Value>) = nodes.into_iter().partition(|&v| graph.op(v).is_redistribution());
    for node in others {
        if known(graph, node).is_none() {
            let module = found(graph, node, &owners, goals[node.node.index()].as_ref());
            refine(graph, node, module);
        }
    }
    let reduces = |graph: &Graph, node| matches!(graph.op(node), Op::AllReduce { .. } | Op::ReduceScatter { .. });
    for &node in &moves {
        if let Some(module) = like(graph, node, &owners) {
            graph.node_mut(node.node).origin.module = module;
        } else if reduces(graph, node) {
            let module = known(graph, graph.operands(node.node)[0]);
            refine(graph, node, module);
        }
    }
    for &node in moves.iter().rev() {
        if !reduces(graph, node) && like(graph, node, &owners).is_none() {
            let first = graph.users(node.node).map(|(user, _)| user).min();
            let module = first.and_then(|user| known(graph, user.into()));
            refine(graph, node, module);
        }
    }
}

/// The module of the parameter like which a redistribution places a value.
fn like(graph: &Graph, node: Value, owners: &Owners) -> Option<ModulePath> {
    let causes = graph.node(node.node).origin.reason.causes();
    causes.iter().find_map(|cause| match cause {
        Cause::Like(parameter) => owners.get(parameter).cloned(),
        _ => None,
    })
}

/// Gives a node a module inside the one that it has.
fn refine(graph: &mut Graph, node: Value, module: Option<ModulePath>) {
    let origin = &mut graph.node_mut(node.node).origin;
    if let Some(inner) = module.filter(|module| module.is_below(&origin.module)) {
        origin.module = inner;
    }
}

/// The module of the operation that makes a value.
fn known(graph: &Graph, value: Value) -> Option<ModulePath> {
    let module = &graph.node(value.node).origin.module;
    (!module.is_root()).then(|| module.clone())
}

/// The innermost module that all of them are in.
fn common(modules: impl Iterator<Item = ModulePath>) -> Option<ModulePath> {
    modules.reduce(|a, b| a.common(&b))
}

/// The parameter that a value is, whatever its placement and its precision.
fn parameter(graph: &Graph, value: Value) -> Option<&ModulePath> {
    match graph.op(value) {
        Op::Input { id, .. } => id.parameter(),
        op if op.is_redistribution() || matches!(op, Op::Map { f: MapFn::Cast(_) | MapFn::Identity, .. }) => {
            parameter(graph, graph.operands(value.node)[0])
        }
        _ => None,
    }
}

/// The modules that use each parameter in the forward pass: the innermost one that all of them are in. A parameter that no
/// marked module uses belongs to the module that holds it.
fn owners(graph: &Graph) -> Owners {
    let mut owners = Owners::new();
    for node in graph.nodes().filter(|&node| graph.node(node).origin.phase == Phase::Forward) {
        let Some(module) = known(graph, node.into()) else { continue };
        for path in graph.operands(node).into_iter().filter_map(|v| parameter(graph, v)) {
            let owner = owners.entry(path.clone()).or_insert_with(|| module.clone());
            *owner = owner.common(&module);
        }
    }
    for path in graph.inputs().filter_map(|(_, id)| id.parameter()) {
        owners.entry(path.clone()).or_insert_with(|| path.holder());
    }
    owners
}

/// The module of the parameters that an operation reads.
fn reads(graph: &Graph, node: Value, owners: &Owners) -> Option<ModulePath> {
    common(graph.operands(node.node).into_iter().filter_map(|v| owners.get(parameter(graph, v)?).cloned()))
}

/// By node: the module of the parameters whose gradients or next values are computed from it. A scalar (a rate, the factor
/// of clipping) is for all parameters.
fn goals(graph: &Graph, owners: &Owners) -> Vec<Option<ModulePath>> {
    let mut goals: Vec<Option<ModulePath>> = vec![None; graph.len()];
    let join = |goal: &mut Option<ModulePath>, module: &ModulePath| {
        *goal = common(goal.take().into_iter().chain([module.clone()]));
    };
    for output in &graph.outputs {
        let Some((_, parameter)) = output.kind.trained() else { continue };
        owners.get(&parameter).into_iter().for_each(|owner| join(&mut goals[output.value.node.index()], owner));
    }
    for node in graph.nodes().collect::<Vec<_>>().into_iter().rev() {
        let Some(goal) = goals[node.index()].clone() else { continue };
        if graph.node(node).origin.phase != Phase::Optimizer && reads(graph, node.into(), owners).is_some() {
            continue;
        }
        for v in graph.operands(node).into_iter().filter(|&v| graph.ty(v).rank() > 0) {
            join(&mut goals[v.node.index()], &goal);
        }
    }
    goals
}

/// The module of an operation that is no redistribution.
fn found(graph: &Graph, node: Value, owners: &Owners, goal: Option<&ModulePath>) -> Option<ModulePath> {
    if matches!(graph.op(node), Op::Input { .. }) {
        return None;
    }
    let operands: Vec<Value> = graph.operands(node.node).into_iter().map(|v| source(graph, v)).collect();
    let of_operands = |select: &dyn Fn(Phase) -> bool| {
        let selected = operands.iter().filter(|v| select(graph.node(v.node).origin.phase));
        common(selected.filter_map(|&v| known(graph, v)))
    };
    let first = match graph.node(node.node).origin.phase {
        Phase::Forward => reads(graph, node, owners),
        Phase::Backward => reads(graph, node, owners).or_else(|| {
            let saved = of_operands(&|phase| phase == Phase::Forward);
            let is_product = matches!(graph.op(node), Op::Einsum { .. } | Op::ScatterAdd);
            // A goal around the module of the saved values is that of several parameters.
            let exact = goal.filter(|goal| is_product && !saved.as_ref().is_some_and(|saved| saved.is_below(goal)));
            exact.cloned().or(saved).or(goal.cloned())
        }),
        Phase::Optimizer => goal.cloned(),
    };
    first.filter(|module| !module.is_root()).or_else(|| of_operands(&|_| true))
}

/// What a value was before redistributions.
fn source(graph: &Graph, value: Value) -> Value {
    match graph.op(value).is_redistribution() {
        true => source(graph, graph.operands(value.node)[0]),
        false => value,
    }
}
