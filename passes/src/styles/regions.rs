//! The boundaries of modules: which values enter and leave the module at a path.
//!
//! A capture records no module calls. A region that the program names (marked by the model with `tpc::scope`, or the
//! only operation of a convolution) is used as it is. Otherwise the boundary is inferred from the uses of parameters in
//! the captured graph, if it is unambiguous. For a linear, the argument is the other operand of the product, and the
//! result is the product with its bias. For an embedding, they are those of the lookup. For a norm, the result is that
//! of the operation on its last vector in every call; its argument is not known. For a module that contains such
//! modules, they are the only value that its first modules read and the only value that leaves it. burn's linear folds
//! `[b, s, d]` to `[b·s, d]` and back; the boundary is outside these reshapes. A boundary that cannot be inferred is an
//! error that shows the call to add.

use super::dataflow::{ancestors, depends_on_data, is_view};
use super::subtree::boundary_of;
use petgraph::graph::NodeIndex;
use std::collections::{BTreeMap, BTreeSet};
use tpc_ir::reason::Side;
use tpc_ir::{Boundary, Graph, MapFn, ModulePath, Op, Phase, Region, Value};

/// The regions of the modules of a captured graph.
pub struct Regions<'a> {
    graph: &'a Graph,
    /// The regions that are inferred from the parameters of a module itself, one per call.
    own: BTreeMap<ModulePath, Vec<Region>>,
    /// Modules with parameters whose regions cannot be inferred.
    unknown: BTreeSet<ModulePath>,
}

/// A use of a parameter: the operation after reshapes and transposes, and the index of the operand.
type Use = (NodeIndex, usize);

impl<'a> Regions<'a> {
    /// Infers the regions that can be inferred.
    pub fn of(graph: &'a Graph) -> Self {
        let mut uses: BTreeMap<ModulePath, Vec<Vec<Use>>> = BTreeMap::new();
        for (node, id) in graph.inputs() {
            if let Some(parameter) = id.parameter() {
                let mut of_one = through_views(graph, node);
                of_one.sort_unstable();
                uses.entry(parameter.holder()).or_default().push(of_one);
            }
        }
        let (mut own, mut unknown) = (BTreeMap::new(), BTreeSet::new());
        for (module, uses) in uses {
            let named = graph.regions.iter().filter(|r| r.path == module);
            let whole = named.filter(|r| !r.arguments.is_empty() && !r.results.is_empty());
            let mut regions: Vec<Region> = whole.cloned().collect();
            if regions.is_empty() {
                regions = inferred(graph, &module, &uses);
            }
            if !regions.is_empty() {
                own.insert(module, regions);
            } else if uses.iter().any(|of_one| !of_one.is_empty()) {
                unknown.insert(module);
            }
        }
        Regions { graph, own, unknown }
    }

    /// The calls of the module at a path whose boundary is known on the given side.
    pub fn find(&self, path: &ModulePath, side: Side) -> Vec<Region> {
        let known = |r: &&Region| match side {
            Side::Arguments => !r.arguments.is_empty(),
            Side::Results => !r.results.is_empty(),
        };
        let marked: Vec<Region> =
            self.graph.regions.iter().filter(|r| r.path == *path).filter(known).cloned().collect();
        if !marked.is_empty() {
            return marked;
        }
        if !self.own.keys().chain(&self.unknown).any(|p| p.is_below(path)) {
            return self.own.get(path).into_iter().flatten().filter(known).cloned().collect();
        }
        self.subtree(path).iter().filter(known).cloned().collect()
    }

    /// The region of a module that contains other modules: the only value that its first modules read, and the only
    /// value that leaves it.
    fn subtree(&self, path: &ModulePath) -> Option<Region> {
        if self.unknown.iter().any(|p| p.is_in(path)) {
            return None;
        }
        let held: Vec<&Vec<Region>> = self.own.iter().filter(|(p, _)| p.is_in(path)).map(|(_, r)| r).collect();
        // A module that contains a module with a single call was called once. If every module inside has several calls,
        // the module itself was called several times, or it calls each of them several times, and only a mark can tell
        // which.
        if held.iter().all(|calls| calls.len() > 1) {
            return None;
        }
        let parts: Vec<&Region> = held.into_iter().flatten().collect();
        Some(boundary_of(self.graph, path, &parts))
    }
}

/// The forward operations that read a parameter, directly or through reshapes and transposes.
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

/// The regions that are inferred from the parameters of a module itself. `parameters` has the uses of each parameter,
/// in order.
fn inferred(graph: &Graph, module: &ModulePath, parameters: &[Vec<Use>]) -> Vec<Region> {
    let mut uses = parameters.concat();
    uses.sort_unstable();
    let region = |arguments: Vec<Boundary>, results: Vec<Boundary>| Region { path: module.clone(), arguments, results };
    let tables = uses.iter().filter(|(n, at)| graph.node(*n).op == Op::Take && *at == 0);
    let lookups: Vec<Region> = tables
        .map(|&(node, _)| {
            region(vec![Boundary::of(graph, graph.operands(node)[1])], vec![Boundary::of(graph, node.into())])
        })
        .collect();
    if !lookups.is_empty() {
        return lookups;
    }
    let products: Vec<(NodeIndex, (Region, NodeIndex))> = uses
        .iter()
        .filter(|(n, _)| matches!(graph.node(*n).op, Op::Einsum { .. }))
        .map(|&(node, at)| (node, linear(graph, module, node, at, &uses)))
        .collect();
    if !products.is_empty() {
        // The module may only have one weight and a bias. Otherwise it has more than this product.
        let multiplies = |of_one: &&Vec<Use>| of_one.iter().any(|(n, _)| products.iter().any(|p| p.0 == *n));
        let adds = |(n, _): &Use| products.iter().any(|(product, (_, sum))| n == product || n == sum);
        let plain = parameters.iter().filter(multiplies).count() == 1 && uses.iter().all(adds);
        return products.into_iter().filter(|_| plain).map(|(_, (region, _))| region).collect();
    }
    let ends = vector_calls(graph, parameters);
    ends.into_iter().map(|node| region(vec![], vec![Boundary::of(graph, node.into())])).collect()
}

/// For a module of vectors (a norm, a scale), the result of the operation on its last vector in every call, in order.
/// Empty unless every call uses each vector once and its result depends on all of them.
fn vector_calls(graph: &Graph, parameters: &[Vec<Use>]) -> Vec<NodeIndex> {
    let used: Vec<&Vec<Use>> = parameters.iter().filter(|uses| !uses.is_empty()).collect();
    let calls = used.first().map_or(0, |uses| uses.len());
    let vector = |(node, _): &Use| matches!(graph.node(*node).op, Op::Map { .. });
    if used.iter().any(|uses| uses.len() != calls || !uses.iter().all(vector)) {
        return Vec::new();
    }
    let end = |call: usize| {
        let end = used.iter().map(|uses| uses[call].0).max()?;
        let above = ancestors(graph, end);
        let is_result = used.iter().all(|uses| above[uses[call].0.index()]) && depends_on_data(graph, end.into());
        is_result.then_some(end)
    };
    (0..calls).map(end).collect::<Option<Vec<NodeIndex>>>().unwrap_or_default()
}

/// The region of a linear whose weight is operand `at` of a product, and the node of the product or of its sum with the
/// bias.
fn linear(graph: &Graph, module: &ModulePath, product: NodeIndex, at: usize, uses: &[Use]) -> (Region, NodeIndex) {
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
    let last = result.node;
    if outside.is_some()
        && let Some(reader) = only_reader(result).filter(|&n| graph.node(n).op == Op::Reshape)
    {
        let (lead, shape) = (&graph.ty(argument).shape, &graph.node(reader).types[0].shape);
        if shape.len() == lead.len() && shape[..shape.len() - 1] == lead[..lead.len() - 1] {
            result = reader.into();
        }
    }
    let (arguments, results) = (vec![Boundary::of(graph, argument)], vec![Boundary::of(graph, result)]);
    (Region { path: module.clone(), arguments, results }, last)
}
