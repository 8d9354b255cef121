//! The state of emitting the program of one rank.

use super::super::attention::Stats;
use super::super::claims::Claim;
use super::super::depend;
use super::super::kernel::Kernel;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tpc_ir::program::{Action, Buffer, BufferId, RankProgram, Step, View};
use tpc_ir::{Graph, ModulePath, Phase, Type, Value};

/// The program of one rank under construction.
pub(super) struct Emitter<'a> {
    pub(super) graph: &'a Graph,
    pub(super) rank: usize,
    pub(super) coords: Vec<usize>,
    pub(super) program: RankProgram,
    /// The claim of each step.
    pub(super) claims: Vec<Claim>,
    /// The micro-batch and the module of the current kernel.
    location: (Option<usize>, ModulePath),
    /// The view of every value that is in memory.
    pub(super) views: HashMap<Value, View>,
    /// The tag of every collective that was started, by the number of its kernel.
    pub(super) tags: Vec<u32>,
    /// How many collectives were started.
    pub(super) started: u32,
    /// The buffer for the operands of every collective of several values, by the number of its kernel.
    pub(super) bucket_buffers: HashMap<usize, BufferId>,
    /// Values that are computed directly in the buffer of a bucket.
    pub(super) in_buckets: HashMap<Value, BufferPosition>,
    /// The nodes whose values are outputs of the program.
    pub(super) output_nodes: HashSet<NodeIndex>,
    /// Whether each value of a loop or an epilogue is read by other kernels.
    pub(super) stored: Vec<bool>,
    /// Nodes whose memory kernels read in order to recompute other values.
    pub(super) recomputing: HashSet<NodeIndex>,
    /// The statistics that the forward half of an attention passes to the backward half, by their first product.
    pub(super) stats: HashMap<NodeIndex, Stats>,
}

/// The position of a value in the buffer of a bucket.
#[derive(Clone, Copy)]
pub(super) struct BufferPosition {
    pub(super) buffer: BufferId,
    /// In elements.
    pub(super) offset: usize,
}

impl<'a> Emitter<'a> {
    /// The empty program of a rank. `stored` has for each node whether other kernels than its own read it.
    pub(super) fn new(graph: &'a Graph, kernels: &[Kernel], stored: Vec<bool>, rank: usize) -> Self {
        Emitter {
            graph,
            rank,
            coords: graph.mesh.coords(rank),
            program: RankProgram { mesh: graph.mesh.clone(), rank, ..RankProgram::default() },
            claims: Vec::new(),
            location: Default::default(),
            views: HashMap::new(),
            tags: vec![0; kernels.len()],
            started: 0,
            bucket_buffers: HashMap::new(),
            in_buckets: HashMap::new(),
            output_nodes: graph.outputs.iter().map(|output| output.value.node).collect(),
            stored,
            recomputing: depend::recomputing(graph, kernels).into_keys().collect(),
            stats: HashMap::new(),
        }
    }

    /// Declares that the following steps belong to these nodes, and so to the innermost module that all of them are in.
    pub(super) fn enter(&mut self, nodes: &[NodeIndex]) {
        let origins = nodes.iter().map(|&node| &self.graph.node(node).origin);
        let locations = origins.map(|origin| (origin.micro_batch, origin.module.clone()));
        let common = locations.reduce(|(a, module), (b, other)| (a.filter(|_| a == b), module.common(&other)));
        self.location = common.unwrap_or_default();
    }

    pub(super) fn shape(&self, ty: &Type) -> Vec<usize> {
        ty.local_shape(&self.graph.mesh, &self.coords)
    }

    pub(super) fn buffer(&mut self, ty: &Type, shape: Vec<usize>, persistent: bool, label: &str) -> View {
        let id = BufferId(self.program.buffers.len() as u32);
        let bytes = shape.iter().product::<usize>() * ty.dtype.bytes();
        self.program.buffers.push(Buffer { offset: 0, bytes, persistent, label: label.into() });
        View::dense(id, ty.dtype, shape)
    }

    /// Allocates memory for a value.
    pub(super) fn define(&mut self, value: Value) -> View {
        let ty = self.graph.ty(value).clone();
        let label = self.graph.op(value).name();
        let view = match self.in_buckets.get(&value) {
            Some(at) => View { offset: at.offset, ..View::dense(at.buffer, ty.dtype, self.shape(&ty)) },
            None => self.buffer(&ty, self.shape(&ty), false, &label),
        };
        self.views.insert(value, view.clone());
        view
    }

    pub(super) fn push(&mut self, action: Action, claim: Claim, phase: Phase, label: impl Into<Arc<str>>) {
        let step = self.step(action, phase, label);
        self.program.steps.push(step);
        self.claims.push(claim);
    }

    pub(super) fn step(&self, action: Action, phase: Phase, label: impl Into<Arc<str>>) -> Step {
        let (micro_batch, module) = self.location.clone();
        Step { action, phase, label: label.into(), micro_batch, module }
    }
}
