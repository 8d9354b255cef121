//! A program as a dataflow graph on petgraph: nodes are operations, edges are uses.
//!
//! Every pass adds nodes after their operands, so the order of nodes is always topological.

use crate::input::InputId;
use crate::mesh::Mesh;
use crate::op::{Op, Scalar, UnitId};
use crate::path::ModulePath;
use crate::reason::Reason;
use crate::sharding::Type;
use crate::subscripts::Subscripts;
use crate::{MapFn, ReduceOp};
use petgraph::Direction;
use petgraph::graph::{DiGraph, EdgeReference, NodeIndex};
use petgraph::visit::EdgeRef;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// One result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    /// The node.
    pub node: NodeIndex,
    /// The index of the result.
    pub result: u32,
}

impl From<NodeIndex> for Value {
    fn from(node: NodeIndex) -> Self {
        Value { node, result: 0 }
    }
}

/// An edge: a result of the source node is an operand of the target node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The index among the operands of the target.
    pub operand: u32,
    /// The index among the results of the source.
    pub result: u32,
}

/// The part of a training step that a node belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Phase {
    #[default]
    Forward,
    Backward,
    Optimizer,
}

impl Phase {
    /// Every phase in order.
    pub const ALL: [Phase; 3] = [Phase::Forward, Phase::Backward, Phase::Optimizer];

    /// The phase with a name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Phase::ALL.into_iter().find(|p| p.name() == name)
    }

    /// The name used in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
            Phase::Optimizer => "optimizer",
        }
    }
}

/// The origin of a node, and the reason for which it exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The phase of the step.
    pub phase: Phase,
    /// The micro-batch that it belongs to; `None` if it is not repeated per micro-batch.
    pub micro_batch: Option<usize>,
    /// The module that it belongs to; the root if it is unknown.
    pub module: ModulePath,
    /// Why a pass added it; empty for the operations of the model.
    pub reason: Reason,
}

impl Origin {
    /// The micro-batch and the module as text; empty if neither is known.
    pub fn location(&self) -> String {
        location(self.micro_batch, &self.module)
    }
}

/// A micro-batch and a module as text; empty if neither is known.
pub(crate) fn location(micro_batch: Option<usize>, module: &ModulePath) -> String {
    let module = (!module.is_root()).then(|| module.to_string());
    let micro_batch = micro_batch.map(|n| format!("micro-batch {n}"));
    micro_batch.into_iter().chain(module).collect::<Vec<_>>().join(", ")
}

/// An operation with its result types and provenance.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// One type per result.
    pub types: Vec<Type>,
    /// The origin of the node.
    pub origin: Origin,
}

/// The kind of an output of a program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutputKind {
    /// A named result of the forward pass.
    Result(String),
    /// The loss.
    Loss,
    /// The gradient of a parameter.
    Gradient(ModulePath),
    /// The next value of an input, which is a parameter or a state.
    Update(InputId),
}

impl OutputKind {
    /// The input of which this is the next value or the gradient, and the parameter or module that the input belongs
    /// to.
    pub fn trained(&self) -> Option<(InputId, ModulePath)> {
        match self {
            OutputKind::Update(id) => Some((id.clone(), id.path()?.clone())),
            OutputKind::Gradient(path) => Some((InputId::Parameter(path.clone()), path.clone())),
            OutputKind::Result(_) | OutputKind::Loss => None,
        }
    }
}

/// A program output.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The kind of the output.
    pub kind: OutputKind,
    /// The value.
    pub value: Value,
    /// Its shape as the model knows it.
    pub layout: Vec<usize>,
}

/// A value that crosses the boundary of a region.
#[derive(Clone, Debug, PartialEq)]
pub struct Boundary {
    /// The value.
    pub value: Value,
    /// Its shape as the model knows it. The layouts of styles refer to these dimensions.
    pub layout: Vec<usize>,
}

impl Boundary {
    /// The boundary at a value of a captured graph, whose shapes are those of the model.
    pub fn of(graph: &Graph, value: Value) -> Self {
        Boundary { value, layout: graph.ty(value).shape.clone() }
    }
}

/// A module region: the values that enter and leave it, in order. Styles place them.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// The module.
    pub path: ModulePath,
    /// Tensor arguments.
    pub arguments: Vec<Boundary>,
    /// Tensor results.
    pub results: Vec<Boundary>,
}

impl Region {
    /// Every value that enters or leaves the region.
    pub fn values(&self) -> impl Iterator<Item = Value> + '_ {
        self.arguments.iter().chain(&self.results).map(|b| b.value)
    }
}

/// A program: one SPMD dataflow graph over a mesh.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The mesh that the program runs on.
    pub mesh: Mesh,
    /// The outputs, in order.
    pub outputs: Vec<Output>,
    /// The module regions that are known.
    pub regions: Vec<Region>,
    dag: DiGraph<Node, Use>,
}

/// Two graphs are equal if they have the same operations in the same order with the same operands.
impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.mesh == other.mesh
            && self.outputs == other.outputs
            && self.regions == other.regions
            && self.len() == other.len()
            && self.nodes().all(|n| self.node(n) == other.node(n) && self.operands(n) == other.operands(n))
    }
}

impl Graph {
    /// An empty program on a mesh.
    pub fn new(mesh: Mesh) -> Self {
        Graph { mesh, ..Graph::default() }
    }

    /// An empty program on a mesh with room for as many nodes as another one has, so that a pass that rebuilds a program
    /// allocates its lists once.
    pub fn with_room_for(mesh: Mesh, other: &Graph) -> Self {
        Graph { mesh, dag: DiGraph::with_capacity(other.dag.node_count(), other.dag.edge_count()), ..Graph::default() }
    }

    /// The same program with other regions.
    #[must_use]
    pub fn with_regions(mut self, regions: Vec<Region>) -> Self {
        self.regions = regions;
        self
    }

    /// The underlying petgraph graph, for its algorithms.
    pub fn dag(&self) -> &DiGraph<Node, Use> {
        &self.dag
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a node after its operands.
    ///
    /// # Panics
    /// If an operand does not exist, which is a bug of the calling pass.
    pub fn add(&mut self, op: Op, operands: &[Value], types: Vec<Type>, origin: Origin) -> NodeIndex {
        let node = self.dag.add_node(Node { op, types, origin });
        for (i, v) in operands.iter().enumerate() {
            assert!(v.node < node, "operand of {node:?} does not exist yet");
            self.dag.add_edge(v.node, node, Use { operand: i as u32, result: v.result });
        }
        node
    }

    /// Adds a node with one result.
    pub fn push(&mut self, op: Op, operands: &[Value], ty: Type, origin: &Origin) -> Value {
        self.add(op, operands, vec![ty], origin.clone()).into()
    }

    /// Every node in topological order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeIndex> + use<> {
        (0..self.dag.node_count()).map(NodeIndex::new)
    }

    /// A node.
    pub fn node(&self, node: NodeIndex) -> &Node {
        &self.dag[node]
    }

    /// A node, whose provenance and types may be changed in place.
    pub fn node_mut(&mut self, node: NodeIndex) -> &mut Node {
        &mut self.dag[node]
    }

    /// The operation that defines a value.
    pub fn op(&self, value: Value) -> &Op {
        &self.dag[value.node].op
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &Type {
        &self.dag[value.node].types[value.result as usize]
    }

    /// The operands of a node in order.
    pub fn operands(&self, node: NodeIndex) -> Vec<Value> {
        // petgraph lists incoming edges latest first.
        let edges = self.dag.edges_directed(node, Direction::Incoming);
        let operand = |e: EdgeReference<'_, Use>| Value { node: e.source(), result: e.weight().result };
        // The latest edge belongs to the last operand, so its number is known before the others are visited.
        let count = edges.clone().next().map_or(0, |last| last.weight().operand as usize + 1);
        let mut operands = Vec::with_capacity(count);
        operands.extend(edges.map(operand));
        operands.reverse();
        operands
    }

    /// The uses of the results of a node: for each, the node that reads the result, and the edge.
    pub fn users(&self, node: NodeIndex) -> impl Iterator<Item = (NodeIndex, Use)> + '_ {
        self.dag.edges_directed(node, Direction::Outgoing).map(|e| (e.target(), *e.weight()))
    }

    /// The inputs in order.
    pub fn inputs(&self) -> impl Iterator<Item = (NodeIndex, &InputId)> {
        self.nodes().filter_map(|n| match &self.node(n).op {
            Op::Input { id, .. } => Some((n, id)),
            _ => None,
        })
    }

    /// The node of every input.
    pub fn inputs_by_id(&self) -> FxHashMap<&InputId, NodeIndex> {
        self.inputs().map(|(node, id)| (id, node)).collect()
    }

    /// The unit that an input belongs to, if it is an input and has one.
    pub fn unit_of(&self, input: NodeIndex) -> Option<UnitId> {
        match &self.node(input).op {
            Op::Input { unit, .. } => *unit,
            _ => None,
        }
    }

    /// The scalar that a value is filled with, if it is a constant.
    pub fn fill_of(&self, value: Value) -> Option<f64> {
        match self.op(value) {
            Op::Fill(s) => Some(s.as_f64()),
            _ => None,
        }
    }

    /// Adds a scalar constant.
    pub fn scalar(&mut self, dtype: crate::DType, x: f64, origin: &Origin) -> Value {
        self.push(Op::Fill(Scalar::of(dtype, x)), &[], Type::new(dtype, []), origin)
    }

    /// Adds an elementwise operation. Each operand has the shape of the result or is a scalar.
    pub fn map(&mut self, f: MapFn, operands: &[Value], origin: &Origin) -> Value {
        let rank = operands.iter().map(|&v| self.ty(v).rank()).max().unwrap_or(0);
        let letters: Vec<u8> = (0..rank as u8).collect();
        let rows: Vec<Vec<u8>> =
            operands.iter().map(|&v| if self.ty(v).rank() == rank { letters.clone() } else { Vec::new() }).collect();
        let wide = operands.iter().copied().find(|&v| self.ty(v).rank() == rank);
        let shape = wide.map_or(Vec::new(), |v| self.ty(v).shape.clone());
        let dtypes: Vec<_> = operands.iter().map(|&v| self.ty(v).dtype).collect();
        let ty = Type::new(f.result_dtype(&dtypes), shape);
        self.push(Op::Map { f, subs: Subscripts::new(&rows, &letters) }, operands, ty, origin)
    }

    /// Adds a reduction over some dimensions, which the result does not have.
    pub fn reduce(&mut self, op: ReduceOp, operand: Value, dims: &[usize], origin: &Origin) -> Value {
        let ty = self.ty(operand).clone();
        let all: Vec<usize> = (0..ty.rank()).collect();
        let kept: Vec<usize> = all.iter().copied().filter(|d| !dims.contains(d)).collect();
        let shape: Vec<usize> = kept.iter().map(|&d| ty.shape[d]).collect();
        self.push(
            Op::Reduce { op, subs: Subscripts::new(&[all], &kept) },
            &[operand],
            Type::new(ty.dtype, shape),
            origin,
        )
    }
}
