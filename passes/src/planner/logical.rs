//! A placed graph without its redistributions: what it computes, and the placements of its inputs and outputs.
//!
//! A redistribution does not change a value, so a value and everything that redistributions make of it are one
//! [`LogicalValue`]. Layers that repeat are alike: all occurrences of a block are placed like one of them, so that the
//! search is as large as one layer however deep the model is.

use crate::factors::{FactorRow, row_of};
use crate::rebuild::live;
use crate::shorten::once;
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use std::collections::{BTreeSet, HashSet};
use tpc_ir::block::Lines;
use tpc_ir::{Graph, InputId, MapFn, Op, Output, OutputKind, Phase, Sharding, Type, Value};

/// Index of a logical value.
pub type ValueId = usize;

/// Index of an operation.
pub type OperationId = usize;

/// An operation with its operands and results.
#[derive(Debug)]
pub struct Operation {
    /// The operation in the placed graph.
    pub node: NodeIndex,
    /// What it reads.
    pub operands: Vec<ValueId>,
    /// What it computes, one value for each result.
    pub results: Vec<ValueId>,
    /// Its row of the factor table; an input of the program has none.
    pub rule: Option<FactorRow>,
    /// The operation that it is placed like, which may be itself.
    pub like: OperationId,
}

/// What an output of the program wants of a value.
#[derive(Clone, Debug)]
pub struct Goal {
    /// Where it wants the value.
    pub at: Sharding,
    /// Whether the value replaces an input.
    pub is_update: bool,
}

/// What a value is in a step, as far as it decides what its collectives cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Its collectives are waited for at once.
    Activation,
    /// Other work can hide its gathers.
    Parameter,
    /// Other work can hide its reductions, which begin together, so that one more costs no latency.
    Gradient,
}

/// A value, wherever it lies.
#[derive(Debug)]
pub struct LogicalValue {
    /// What the placed graph computes.
    pub source: Value,
    /// Where the placed graph has it: where it is computed, and where redistributions bring it.
    pub versions: Vec<Sharding>,
    /// The outputs of the program that it is.
    pub outputs: Vec<Goal>,
    /// What it is in a step. A gradient is what the forward or backward pass computes and only the optimizer reads.
    pub role: Role,
    /// Whether the forward pass has it, and a later part of the step reads it, too: it is kept in between.
    pub saved: bool,
    /// Whether it is made wherever it is read, since making it costs nothing.
    pub constant: bool,
    /// Whether it is an input that may be stored anywhere.
    pub free: bool,
    /// The inputs of which it is the next value, if these may be stored anywhere.
    pub updates: Vec<ValueId>,
}

impl LogicalValue {
    /// Whether it replaces an input.
    pub fn is_update(&self) -> bool {
        !self.updates.is_empty() || self.outputs.iter().any(|goal| goal.is_update)
    }
}

/// The operations and values of a placed graph without its redistributions.
#[derive(Debug)]
pub struct Logical<'a> {
    /// The placed graph.
    pub graph: &'a Graph,
    /// The operations; those that make operands come first.
    pub operations: Vec<Operation>,
    /// The redistributions of the placed graph, and what each of them brings elsewhere.
    pub moves: Vec<(NodeIndex, ValueId)>,
    /// The values.
    pub values: Vec<LogicalValue>,
    /// The value of every output of the program.
    pub outputs: Vec<ValueId>,
    /// The operation that makes each value, and which of its results the value is.
    pub makers: Vec<(OperationId, usize)>,
    /// For every node of the placed graph, how often it counts.
    times: Vec<f64>,
}

impl<'a> Logical<'a> {
    /// What a placed graph computes.
    pub fn of(graph: &'a Graph) -> Self {
        Logical::counted(graph, once(graph))
    }

    /// What a placed graph computes, whose nodes count so many times.
    pub fn counted(graph: &'a Graph, times: Vec<f64>) -> Self {
        let live = live(graph);
        let mut values: Vec<LogicalValue> = Vec::new();
        let mut logical = Logical {
            graph,
            operations: Vec::new(),
            moves: Vec::new(),
            values: Vec::new(),
            outputs: Vec::new(),
            makers: Vec::new(),
            times,
        };
        let mut of: FxHashMap<Value, ValueId> = FxHashMap::default();
        for node in graph.nodes().filter(|n| live[n.index()]) {
            let n = graph.node(node);
            let operands: Vec<ValueId> = graph.operands(node).iter().map(|v| of[v]).collect();
            if n.op.is_redistribution() {
                of.insert(node.into(), operands[0]);
                logical.moves.push((node, operands[0]));
                values[operands[0]].versions.push(n.types[0].sharding.clone());
                continue;
            }
            let like = logical.operations.len();
            let result = |(i, ty): (usize, &Type)| {
                let source = Value { node, result: i as u32 };
                of.insert(source, values.len());
                logical.makers.push((like, i));
                values.push(LogicalValue {
                    source,
                    versions: vec![ty.sharding.clone()],
                    outputs: Vec::new(),
                    role: Role::Activation,
                    saved: false,
                    constant: matches!(n.op, Op::Fill(_) | Op::Iota),
                    free: false,
                    updates: Vec::new(),
                });
                values.len() - 1
            };
            let results = n.types.iter().enumerate().map(result).collect();
            let types: Vec<&Type> = graph.operands(node).into_iter().map(|v| graph.ty(v)).collect();
            let computes = !matches!(n.op, Op::Input { .. });
            let rule = computes.then(|| row_of(&n.op, &types, &n.types.iter().collect::<Vec<_>>()));
            logical.operations.push(Operation { node, operands, results, rule, like });
        }
        for output in &graph.outputs {
            let value = of[&output.value];
            logical.outputs.push(value);
            let at = graph.ty(output.value).sharding.clone();
            values[value].outputs.push(Goal { at, is_update: matches!(output.kind, OutputKind::Update(_)) });
        }
        logical.values = values;
        logical.find_readers();
        logical.find_parameters();
        logical.find_likes();
        logical
    }

    /// Lets inputs be stored anywhere; what updates them is stored alike.
    pub fn set_free(&mut self, inputs: &HashSet<InputId>) {
        let mut free: FxHashMap<&InputId, ValueId> = FxHashMap::default();
        for operation in &self.operations {
            if let Op::Input { id, .. } = &self.graph.node(operation.node).op
                && inputs.contains(id)
            {
                free.insert(id, operation.results[0]);
            }
        }
        for (output, &value) in self.graph.outputs.iter().zip(&self.outputs) {
            let updated = match &output.kind {
                OutputKind::Update(id) => free.get(id),
                _ => None,
            };
            let Some(&input) = updated else { continue };
            let goals = &mut self.values[value].outputs;
            goals.swap_remove(goals.iter().position(|goal| goal.is_update).expect("the value is an update"));
            self.values[value].updates.push(input);
        }
        free.into_values().for_each(|v| self.values[v].free = true);
    }

    /// The type of a value, where the placed graph computes it.
    pub fn ty(&self, value: ValueId) -> &'a Type {
        self.graph.ty(self.values[value].source)
    }

    /// The program without placements: a node for each operation, in order.
    pub fn bare(&self) -> Graph {
        let mut bare = Graph::new(self.graph.mesh.clone());
        let mut of: Vec<Value> = Vec::with_capacity(self.values.len());
        for operation in &self.operations {
            let n = self.graph.node(operation.node);
            let operands: Vec<Value> = operation.operands.iter().map(|&v| of[v]).collect();
            let types = n.types.iter().map(|ty| ty.placed(Sharding::replicated(ty.rank()))).collect();
            let node = bare.add(n.op.clone(), &operands, types, n.origin.clone());
            of.extend((0..operation.results.len()).map(|i| Value { node, result: i as u32 }));
        }
        for (output, &v) in self.graph.outputs.iter().zip(&self.outputs) {
            bare.outputs.push(Output { value: of[v], ..output.clone() });
        }
        bare
    }

    /// The types of values.
    pub fn types(&self, values: &[ValueId]) -> Vec<&'a Type> {
        values.iter().map(|&v| self.ty(v)).collect()
    }

    /// How often an operation of the placed graph counts.
    pub fn times(&self, node: NodeIndex) -> f64 {
        self.times[node.index()]
    }

    /// Whether an operation makes a constant, which its readers make themselves.
    pub fn is_constant(&self, operation: &Operation) -> bool {
        operation.results.iter().any(|&value| self.values[value].constant)
    }

    /// The value that a value is placed like.
    pub fn like(&self, value: ValueId) -> ValueId {
        let (maker, result) = self.makers[value];
        self.operations[self.operations[maker].like].results[result]
    }

    /// Finds out which values are gradients or parameters, and which are saved.
    fn find_readers(&mut self) {
        let mut readers: Vec<BTreeSet<Phase>> = vec![BTreeSet::new(); self.values.len()];
        for operation in &self.operations {
            let phase = self.graph.node(operation.node).origin.phase;
            operation.operands.iter().for_each(|&value| {
                readers[value].insert(phase);
            });
        }
        for (value, readers) in self.values.iter_mut().zip(readers) {
            let n = self.graph.node(value.source.node);
            let (is_input, made) = (matches!(n.op, Op::Input { .. }), n.origin.phase);
            let only_optimizer = readers.iter().eq([&Phase::Optimizer]) && value.outputs.is_empty();
            if !is_input && made != Phase::Optimizer && only_optimizer {
                value.role = Role::Gradient;
            }
            // An input is in memory anyway; the forward pass keeps the copy of it that lies elsewhere.
            let forward = if is_input { readers.contains(&Phase::Forward) } else { made == Phase::Forward };
            value.saved = forward && readers.contains(&Phase::Backward);
        }
    }

    /// The parameter that a value is, converted and transposed or not.
    pub fn parameter(&self, value: ValueId) -> Option<ValueId> {
        if self.values[value].role != Role::Parameter {
            return None;
        }
        let source = self.operations[self.makers[value].0].operands.first();
        source.map_or(Some(value), |&source| self.parameter(source))
    }

    /// Finds out which values are parameters, converted and transposed or not.
    fn find_parameters(&mut self) {
        for operation in &self.operations {
            let is_parameter = match &self.graph.node(operation.node).op {
                Op::Input { id, .. } => id.is_parameter(),
                Op::Map { f: MapFn::Cast(_) | MapFn::Identity, .. } => {
                    self.values[operation.operands[0]].role == Role::Parameter
                }
                _ => false,
            };
            if is_parameter {
                self.values[operation.results[0]].role = Role::Parameter;
            }
        }
    }

    /// Places the occurrences of every block like one in the middle.
    fn find_likes(&mut self) {
        let at: FxHashMap<NodeIndex, OperationId> =
            self.operations.iter().enumerate().map(|(i, operation)| (operation.node, i)).collect();
        let lines = Lines::of(self.graph);
        for run in lines.blocks().iter().flat_map(|block| &block.regions).map(|region| region.run) {
            let middle = lines.occurrence(&run, run.count / 2);
            for which in 0..run.count {
                for (node, model) in lines.occurrence(&run, which).iter().zip(middle) {
                    if let (Some(&this), Some(&model)) = (at.get(node), at.get(model))
                        && self.has_shapes_of(this, model)
                    {
                        self.operations[this].like = model;
                        self.liken_inputs(this, model);
                    }
                }
            }
        }
    }

    /// Stores the inputs that an operation reads like those of the operation that it is placed like.
    fn liken_inputs(&mut self, this: OperationId, model: OperationId) {
        for (i, &model) in self.operations[model].operands.clone().iter().enumerate() {
            let this = self.operations[this].operands[i];
            let ([a, b], types) = ([this, model].map(|v| self.makers[v].0), [this, model].map(|v| self.ty(v)));
            let is_input = |o: OperationId| self.operations[o].operands.is_empty() && self.operations[o].rule.is_none();
            let (is_free, is_model) = (self.operations[a].like == a, self.operations[b].like == b);
            if is_input(a) && is_input(b) && is_free && is_model && types[0] == types[1] {
                self.operations[a].like = b;
            }
        }
    }

    fn has_shapes_of(&self, a: OperationId, b: OperationId) -> bool {
        let shapes = |o: OperationId| {
            let types = self.types(&self.operations[o].operands).into_iter();
            types.map(|ty| (ty.dtype, &ty.shape)).collect::<Vec<_>>()
        };
        shapes(a) == shapes(b)
    }
}
