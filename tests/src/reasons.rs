//! Derives what the reason of every collective of a placed program should be, from the program alone: cuts from the
//! indices of the operations, phases from what the loss and the gradients depend on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tpc_ir::reason::{Cause, Cut, Reason};
use tpc_ir::{AxisId, Graph, ModulePath, Op, OutputKind, Phase, Value, parse, text};
use tpc_passes::options::clip::GRAD_NORM;

/// Checks the reason, the phase and the module of every collective, and gives their number.
///
/// # Panics
/// If a reason, phase or module does not follow from the program.
pub fn check(graph: &Graph, what: &str) -> usize {
    Derived::of(graph).check(what)
}

/// A placed program and the facts that follow from it.
struct Derived<'a> {
    graph: &'a Graph,
    /// By axis and node: the inputs that are cut on the axis and reach the node through values that are cut on it, too.
    cut: HashMap<(AxisId, Value), BTreeSet<String>>,
    /// By input: the axes that cut it, and its reason.
    inputs: BTreeMap<String, (Vec<AxisId>, Reason)>,
    /// The first results of the nodes that the loss and the other results depend on, and of those that the gradients
    /// depend on if they are results.
    forward: HashSet<Value>,
    backward: Option<HashSet<Value>>,
}

impl<'a> Derived<'a> {
    fn of(graph: &'a Graph) -> Self {
        let input = |node| {
            let n = graph.node(node);
            (n.types[0].sharding.sharded_axes().iter().collect(), n.origin.reason.clone())
        };
        let inputs = graph.inputs().map(|(node, id)| (id.shown().to_string(), input(node))).collect();
        let mut cut: HashMap<(AxisId, Value), BTreeSet<String>> = HashMap::new();
        for axis in graph.mesh.axis_ids() {
            for node in graph.nodes() {
                if !graph.node(node).types.iter().any(|t| t.sharding.dim_of(axis).is_some()) {
                    continue;
                }
                let operands = graph.operands(node);
                let above = operands.iter().filter_map(|v| cut.get(&(axis, v.node.into())));
                let mut names: BTreeSet<String> = above.flatten().cloned().collect();
                if let Op::Input { id, .. } = &graph.node(node).op {
                    names.insert(id.shown().to_string());
                }
                // A gradient that is cut where it is computed has the placement of a parameter.
                let n = graph.node(node);
                if n.op.is_redistribution() && graph.ty(operands[0]).sharding.dim_of(axis).is_none() {
                    let dim = n.types[0].sharding.dim_of(axis);
                    let alike = graph.inputs().filter(|&(input, id)| {
                        let ty = &graph.node(input).types[0];
                        let lies = ty.shape == n.types[0].shape && ty.sharding.dim_of(axis) == dim;
                        id.is_parameter() && lies
                    });
                    names.extend(alike.map(|(_, id)| id.shown().to_string()));
                }
                cut.insert((axis, node.into()), names);
            }
        }
        let above = |wanted: &dyn Fn(&OutputKind) -> bool| {
            let mut seen = HashSet::new();
            let mut open: Vec<Value> =
                graph.outputs.iter().filter(|o| wanted(&o.kind)).map(|o| o.value.node.into()).collect();
            while let Some(v) = open.pop() {
                if seen.insert(v) {
                    open.extend(graph.operands(v.node).iter().map(|v| Value::from(v.node)));
                }
            }
            seen
        };
        // The norm of the gradients is a result of the backward pass.
        let forward = above(&|k| match k {
            OutputKind::Result(name) => name != GRAD_NORM,
            k => matches!(k, OutputKind::Loss),
        });
        let gradients = graph.outputs.iter().any(|o| matches!(o.kind, OutputKind::Gradient(_)));
        let backward = gradients.then(|| above(&|k| matches!(k, OutputKind::Gradient(_))));
        Derived { graph, cut, inputs, forward, backward }
    }

    fn cut(&self, value: Value, axis: AxisId) -> BTreeSet<String> {
        self.cut.get(&(axis, value.node.into())).cloned().unwrap_or_default()
    }

    /// The operations that make a value partial over an axis, with the operands whose summed index is cut.
    fn summed(&self, value: Value, axis: AxisId) -> Vec<Vec<Value>> {
        let (mut found, mut seen, mut open) = (Vec::new(), HashSet::new(), vec![value]);
        while let Some(v) = open.pop() {
            if !seen.insert(v) {
                continue;
            }
            let operands = self.graph.operands(v.node);
            let is_cut = |i: usize, d: usize| self.graph.ty(operands[i]).sharding.dims[d].contains(&axis);
            let cut: Vec<Value> = match self.graph.op(v) {
                Op::Einsum { subs } | Op::Reduce { subs, .. } => (0..operands.len())
                    .filter(|&i| {
                        let letters = subs.operands[i].iter().enumerate();
                        letters.filter(|(_, l)| !subs.result.contains(l)).any(|(d, _)| is_cut(i, d))
                    })
                    .map(|i| operands[i])
                    .collect(),
                Op::Take if is_cut(0, 0) => vec![operands[0]],
                Op::ScatterAdd if self.graph.ty(operands[0]).sharding.dim_of(axis).is_some() => operands.clone(),
                _ => Vec::new(),
            };
            if !cut.is_empty() {
                found.push(cut);
            }
            let partial = |v: &Value| self.graph.ty(*v).sharding.partial_axes().contains(axis);
            open.extend(operands.iter().copied().filter(partial));
        }
        found
    }

    /// The parameter that a value is a gathered, cut or converted form of.
    fn parameter(&self, value: Value) -> Option<&ModulePath> {
        match self.graph.op(value) {
            Op::Input { id, .. } => id.parameter(),
            Op::AllGather { .. } | Op::ShardSlice { .. } => self.parameter(self.graph.operands(value.node)[0]),
            Op::Map { .. } if self.graph.operands(value.node).len() == 1 => {
                self.parameter(self.graph.operands(value.node)[0])
            }
            _ => None,
        }
    }

    /// Whether a node may belong to a phase. If no gradients are among the results, the backward pass cannot be told
    /// from the optimizer.
    fn may_be(&self, node: Value, phase: Phase) -> bool {
        match (self.forward.contains(&node), &self.backward) {
            (true, _) => phase == Phase::Forward,
            (false, None) => phase != Phase::Forward,
            (false, Some(backward)) => (phase == Phase::Backward) == backward.contains(&node),
        }
    }

    /// Checks every collective, and gives their number.
    fn check(&self, what: &str) -> usize {
        let graph = self.graph;
        let names = text::number(graph);
        let mut count = 0;
        for node in graph.nodes().filter(|&n| graph.node(n).op.is_collective()) {
            let n = graph.node(node);
            let line = text::line(graph, node, &names);
            let operand = graph.operands(node)[0];
            let causes = n.origin.reason.causes();
            let reduces = matches!(n.op, Op::AllReduce { .. } | Op::ReduceScatter { .. });
            let cuts: Vec<&Cut> = causes
                .iter()
                .filter_map(|c| match c {
                    Cause::Summed(cut) if reduces => Some(cut),
                    Cause::Elsewhere(cut) if !reduces => Some(cut),
                    Cause::Summed(_) | Cause::Elsewhere(_) => panic!("{what}: {line}"),
                    _ => None,
                })
                .collect();
            let mut possible: BTreeSet<String> = BTreeSet::new();
            let mut needed: BTreeSet<String> = BTreeSet::new();
            for axis in n.op.axes().iter() {
                if reduces {
                    for operands in self.summed(operand, axis) {
                        possible.extend(operands.iter().flat_map(|&v| self.cut(v, axis)));
                        let direct: Vec<&ModulePath> = operands.iter().filter_map(|&v| self.parameter(v)).collect();
                        if let [only] = direct[..] {
                            needed.insert(only.to_string());
                        }
                    }
                } else {
                    possible.extend(self.cut(operand, axis));
                    needed.extend(self.parameter(operand).map(ToString::to_string));
                }
            }
            let named: BTreeSet<String> = cuts.iter().flat_map(|c| &c.tensors).map(|t| t.to_string()).collect();
            let others: usize = cuts.iter().map(|c| c.others).sum();
            assert!(!named.is_empty() || possible.is_empty(), "{what}: no cause\n{line}\n{possible:?}");
            assert!(others > 0 || needed.is_subset(&named), "{what}: {needed:?} cause it\n{line}");
            for cut in &cuts {
                for tensor in &cut.tensors {
                    match self.inputs.get(&tensor.to_string()) {
                        Some((axes, why)) => {
                            assert!(
                                possible.contains(&tensor.to_string()),
                                "{what}: {tensor} does not cause it\n{line}"
                            );
                            let common = axes.iter().copied().filter(|&a| n.op.axes().contains(a));
                            let mut demands = common.filter_map(|a| why.demand(graph.mesh.user_name(a)));
                            assert!(demands.any(|demand| *demand == cut.demand), "{what}: {line}");
                        }
                        // A value inside the model that the plan places.
                        None => {
                            assert!(cut.demand.to_string().contains(" is "), "{what}: {tensor} is no tensor\n{line}")
                        }
                    }
                }
            }
            assert!(self.may_be(node.into(), n.origin.phase), "{what}: {line}");
            for axis in graph.mesh.axis_ids().filter(|a| !n.op.axes().contains(*a)) {
                let over = format!("over `{}`", graph.mesh.user_name(axis));
                let other = graph.mesh.user_name(axis);
                let same = n.op.axes().iter().any(|a| graph.mesh.user_name(a) == other);
                assert!(
                    same || !cuts.iter().any(|cut| cut.demand.to_string().contains(&over)),
                    "{what}: another axis causes it\n{line}"
                );
            }
            let module = &n.origin.module;
            assert!(!module.is_root() || graph.ty(operand).rank() == 0 || others > 0, "{what}: no module\n{line}");
            if n.origin.phase == Phase::Backward && reduces && needed.len() == 1 {
                let owner = ModulePath::from(needed.iter().next().unwrap()).holder();
                assert_eq!(*module, owner, "{what}: {line}");
            }
            let gradients = graph.outputs.iter().filter(|o| o.value.node == node);
            for name in gradients.filter_map(|o| match &o.kind {
                OutputKind::Gradient(name) => Some(name),
                _ => None,
            }) {
                let tied = graph.outputs.iter().filter(|o| o.value.node == node).count() > 1;
                assert!(tied || *module == name.holder(), "{what}: gradient of {name}\n{line}");
            }
            count += 1;
        }
        let printed = text::print(graph);
        assert_eq!(text::print(&parse::parse(&printed).unwrap()), printed, "{what}");
        count
    }
}
