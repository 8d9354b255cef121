//! The boundaries of modules: which values enter and leave the module of a path.
//!
//! A capture records no module calls. A region that the model marks (`tpc::scope`) is taken as it is;
//! otherwise the boundary follows from the uses of parameters in the captured graph, where it is
//! unambiguous: of a linear the product's other operand and the product with its bias, of an
//! embedding the look-up, of a norm what its last vector gives, of a subtree of linears the one value
//! that its first ones read and the one that its last one gives, unless a norm of the subtree comes
//! before or behind. burn's linear folds `[b, s, d]` to
//! `[b·s, d]` and back; the boundary is outside of that. What cannot be inferred is an error that
//! shows the call to add.

use super::modules::module_of;
use super::style::Side;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet};
use tpc_ir::{Boundary, Graph, InputKind, MapFn, Op, Phase, Region, Value};

/// The regions of a captured graph's modules.
pub struct Regions<'a> {
    graph: &'a Graph,
    /// Inferred from the module's own parameters; several if the module is called several times.
    own: BTreeMap<String, Vec<Region>>,
}

/// A use of a parameter: the operation behind reshapes and transposes, and which operand it is.
type Use = (NodeIndex, usize);

impl<'a> Regions<'a> {
    /// Infers what can be inferred.
    pub fn of(graph: &'a Graph) -> Self {
        let mut uses: BTreeMap<&str, Vec<Use>> = BTreeMap::new();
        for (node, kind, name) in graph.inputs() {
            if kind == InputKind::Parameter {
                uses.entry(module_of(name)).or_default().extend(through_views(graph, node));
            }
        }
        let mut own = BTreeMap::new();
        for (module, mut uses) in uses {
            uses.sort_unstable();
            let regions = inferred(graph, module, &uses);
            if !regions.is_empty() {
                own.insert(module.to_string(), regions);
            }
        }
        Regions { graph, own }
    }

    /// Every call of the module of that path, as far as that side of it is known.
    pub fn find(&self, path: &str, side: Side) -> Vec<Region> {
        let known = |r: &&Region| match side {
            Side::Arguments => !r.arguments.is_empty(),
            Side::Results => !r.results.is_empty(),
        };
        let marked: Vec<Region> = self.graph.regions.iter().filter(|r| r.path == path).filter(known).cloned().collect();
        if !marked.is_empty() {
            return marked;
        }
        let own: Vec<Region> = self.own.get(path).into_iter().flatten().filter(known).cloned().collect();
        if !own.is_empty() {
            return own;
        }
        self.subtree(path).iter().filter(known).cloned().collect()
    }

    /// The one value that the first linears below a path read, and the one that the last one gives.
    fn subtree(&self, path: &str) -> Option<Region> {
        let below = |p: &&String| path.is_empty() || p.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        let held = self.own.iter().filter(|(p, _)| below(p)).flat_map(|(_, r)| r);
        let (parts, vectors): (Vec<&Region>, Vec<&Region>) = held.partition(|r| !r.arguments.is_empty());
        let reads: Vec<Vec<bool>> = parts.iter().map(|r| ancestors(self.graph, r.arguments[0].value.node)).collect();
        let depends = |i: usize, j: usize| i != j && reads[i][parts[j].results[0].value.node.index()];
        let count = 0..parts.len();
        let first = count.clone().filter(|&i| count.clone().all(|j| !depends(i, j)));
        let last = count.clone().filter(|&i| count.clone().all(|j| !depends(j, i)));
        let only = |all: Vec<&Boundary>| {
            let distinct: BTreeSet<Value> = all.iter().map(|b| b.value).collect();
            if distinct.len() == 1 { all.first().map(|b| (*b).clone()) } else { None }
        };
        // A norm before the first linear or behind the last one is where the module begins or ends, and
        // what a norm reads its parameters do not show.
        let made_inside = |b: &Boundary| {
            let above = ancestors(self.graph, b.value.node);
            vectors.iter().any(|v| above[v.results[0].value.node.index()])
        };
        let read_inside =
            |b: &Boundary| vectors.iter().any(|v| ancestors(self.graph, v.results[0].value.node)[b.value.node.index()]);
        let arguments = only(first.map(|i| &parts[i].arguments[0]).collect()).filter(|b| !made_inside(b));
        let results = only(last.map(|i| &parts[i].results[0]).collect()).filter(|b| !read_inside(b));
        Some(Region {
            path: path.into(),
            arguments: arguments.into_iter().collect(),
            results: results.into_iter().collect(),
        })
    }
}

/// Whether each node is `node` or one that it depends on.
pub fn ancestors(graph: &Graph, node: NodeIndex) -> Vec<bool> {
    let mut seen = vec![false; graph.len()];
    let mut stack = vec![node];
    while let Some(n) = stack.pop() {
        if !std::mem::replace(&mut seen[n.index()], true) {
            stack.extend(graph.operands(n).iter().map(|v| v.node));
        }
    }
    seen
}

fn is_view(op: &Op) -> bool {
    matches!(op, Op::Reshape | Op::Map { f: MapFn::Identity, .. })
}

/// The forward operations that read a parameter, also through reshapes and transposes.
fn through_views(graph: &Graph, input: NodeIndex) -> Vec<Use> {
    let (mut uses, mut stack) = (Vec::new(), vec![input]);
    while let Some(node) = stack.pop() {
        for (user, edge) in graph.users(node) {
            if graph.node(user).origin.phase != Phase::Forward {
                continue;
            }
            if is_view(&graph.node(user).op) {
                stack.push(user);
            } else {
                uses.push((user, edge.operand as usize));
            }
        }
    }
    uses
}

fn boundary(graph: &Graph, value: Value) -> Boundary {
    Boundary { value, layout: graph.ty(value).shape.clone() }
}

/// The regions that a module's own parameters show.
fn inferred(graph: &Graph, module: &str, uses: &[Use]) -> Vec<Region> {
    let region = |arguments: Vec<Boundary>, results: Vec<Boundary>| Region { path: module.into(), arguments, results };
    let tables = uses.iter().filter(|(n, at)| graph.node(*n).op == Op::Take && *at == 0);
    let look_ups: Vec<Region> = tables
        .map(|&(node, _)| region(vec![boundary(graph, graph.operands(node)[1])], vec![boundary(graph, node.into())]))
        .collect();
    if !look_ups.is_empty() {
        return look_ups;
    }
    let products: Vec<Region> = uses
        .iter()
        .filter(|(n, _)| matches!(graph.node(*n).op, Op::Einsum { .. }))
        .map(|&(node, at)| linear(graph, module, node, at, uses))
        .collect();
    if !products.is_empty() {
        return products;
    }
    // A module of vectors: what its last one gives.
    let last = uses.iter().filter(|(n, _)| matches!(graph.node(*n).op, Op::Map { .. })).map(|u| u.0).max();
    last.map(|node| region(vec![], vec![boundary(graph, node.into())])).into_iter().collect()
}

/// The call of a linear whose weight is operand `at` of a product.
fn linear(graph: &Graph, module: &str, product: NodeIndex, at: usize, uses: &[Use]) -> Region {
    let mut argument = graph.operands(product)[1 - at];
    let folded = |v: Value| {
        let from = *graph.operands(v.node).first()?;
        let (wide, flat) = (&graph.ty(from).shape, &graph.ty(v).shape);
        let folds = matches!(graph.op(v), Op::Reshape) && flat.len() == 2 && wide.len() > 2;
        (folds && wide.last() == flat.last()).then_some(from)
    };
    let outside = folded(argument);
    argument = outside.unwrap_or(argument);
    let mut result = Value::from(product);
    let only_reader = |v: Value| {
        let mut readers = graph.users(v.node).filter(|(u, _)| graph.node(*u).origin.phase == Phase::Forward);
        let reader = readers.next()?.0;
        readers.next().is_none().then_some(reader)
    };
    let adds_bias = |n: &NodeIndex| {
        matches!(graph.node(*n).op, Op::Map { f: MapFn::Add, .. }) && uses.iter().any(|(user, _)| user == n)
    };
    if let Some(sum) = only_reader(result).filter(adds_bias) {
        result = sum.into();
    }
    if outside.is_some()
        && let Some(reader) = only_reader(result).filter(|&n| graph.node(n).op == Op::Reshape)
    {
        let (lead, shape) = (&graph.ty(argument).shape, &graph.node(reader).types[0].shape);
        if shape.len() == lead.len() && shape[..shape.len() - 1] == lead[..lead.len() - 1] {
            result = reader.into();
        }
    }
    Region { path: module.into(), arguments: vec![boundary(graph, argument)], results: vec![boundary(graph, result)] }
}
