//! Which saved values are worth dropping, in which order.
//!
//! Values that are alike in the blocks of a model are one [`Candidate`]: they have the same operation and types, and
//! their modules differ in the indices of lists only. Candidates are taken by their price: the seconds that the copies
//! take more, for each byte that is saved more, given those that were taken before. So a value that is cheap to compute
//! from others comes before a product, and a product before the collective that it needs.

use super::{Dropped, copied};
use crate::cost;
use crate::lower::saved::Saved;
use crate::planner::kernels::Kernels;
use crate::targets::Target;
use petgraph::graph::NodeIndex;
use rustc_hash::FxHashMap;
use tpc_ir::path::Segment;
use tpc_ir::{Graph, ModulePath, Type};

/// A candidate that saves less than this share of what is saved is left out.
const LEAST: f64 = 2e-3;

/// Saved values that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The nodes of each occurrence, in the order of the program: one for every micro-batch.
    pub occurrences: Vec<Vec<NodeIndex>>,
    /// The bytes that the values of all occurrences take on the first rank.
    pub bytes: usize,
}

impl Candidate {
    /// The nodes of the first occurrences.
    pub fn nodes(&self, occurrences: usize) -> impl Iterator<Item = NodeIndex> + '_ {
        self.occurrences.iter().take(occurrences).flatten().copied()
    }
}

/// What makes two values alike: the module without the indices of lists, the operation, and the types.
type Like = (Vec<Option<Segment>>, String, Vec<Type>);

/// The saved values that are worth dropping, alike ones together, in the order of the program.
pub fn candidates(graph: &Graph, saved: &Saved) -> Vec<Candidate> {
    // A value is known by what it is like, and by its number among the values of a module and micro-batch that are so.
    let mut counts: FxHashMap<(ModulePath, Option<usize>, Like), usize> = FxHashMap::default();
    let mut known: FxHashMap<(Like, usize), usize> = FxHashMap::default();
    let mut found: Vec<(Candidate, Vec<ModulePath>)> = Vec::new();
    let bytes = |node: NodeIndex| graph.ty(node.into()).max_local_bytes(&graph.mesh);
    for &node in &saved.nodes {
        let n = graph.node(node);
        let name = |segment: &Segment| (!matches!(segment, Segment::Index(_))).then(|| segment.clone());
        let like: Like = (n.origin.module.segments().iter().map(name).collect(), n.op.name(), n.types.clone());
        let count = counts.entry((n.origin.module.clone(), n.origin.micro_batch, like.clone())).or_default();
        let class = *known.entry((like, *count)).or_insert_with(|| {
            found.push((Candidate { occurrences: Vec::new(), bytes: 0 }, Vec::new()));
            found.len() - 1
        });
        *count += 1;
        let (candidate, modules) = &mut found[class];
        candidate.bytes += bytes(node);
        match modules.iter().position(|module| *module == n.origin.module) {
            Some(at) => candidate.occurrences[at].push(node),
            None => {
                modules.push(n.origin.module.clone());
                candidate.occurrences.push(vec![node]);
            }
        }
    }
    let all: usize = found.iter().map(|(candidate, _)| candidate.bytes).sum();
    let counts = |candidate: &Candidate| candidate.bytes as f64 >= LEAST * all as f64;
    found.into_iter().map(|(candidate, _)| candidate).filter(counts).collect()
}

/// What computing values a second time costs, by the cost model.
pub struct Prices<'a> {
    graph: &'a Graph,
    saved: &'a Saved,
    /// The seconds of every node.
    seconds: Vec<f64>,
}

impl<'a> Prices<'a> {
    /// The prices of a placed program on a target.
    pub fn of(graph: &'a Graph, saved: &'a Saved, target: &Target) -> Self {
        let kernels = Kernels::of(graph);
        let seconds = graph.nodes().map(|node| {
            let n = graph.node(node);
            let operands = graph.operands(node);
            let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
            match n.op.is_redistribution() {
                true => cost::seconds(target, &n.op, &types, &n.types[0], &graph.mesh),
                false => {
                    let results: Vec<&Type> = n.types.iter().collect();
                    kernels.seconds(target, node.index(), &n.op, &types, &results, &graph.mesh)
                }
            }
        });
        Prices { graph, saved, seconds: seconds.collect() }
    }

    /// The seconds that the copies take, and the bytes that the first rank no longer saves, if some values are dropped.
    fn of_dropping(&self, dropped: &Dropped) -> (f64, usize) {
        let copied = copied(self.graph, self.saved, dropped);
        let seconds = self.seconds.iter().zip(&copied).filter(|(_, copied)| **copied).map(|(seconds, _)| seconds).sum();
        let gone = self.saved.nodes.iter().filter(|&&n| copied[n.index()] || dropped.has(n));
        let bytes = gone.map(|&n| self.graph.ty(n.into()).max_local_bytes(&self.graph.mesh)).sum();
        (seconds, bytes)
    }

    /// Which of some candidates is the cheapest to drop in addition to others, for each byte that it saves.
    pub fn cheapest(&self, open: &[&Candidate], dropped: &Dropped) -> Option<usize> {
        let (seconds, bytes) = self.of_dropping(dropped);
        let price = |candidate: &Candidate| {
            let (with, saves) = self.of_dropping(&dropped.with(candidate.nodes(usize::MAX)));
            (saves > bytes).then(|| (with - seconds) / (saves - bytes) as f64)
        };
        let prices = open.iter().enumerate().filter_map(|(i, candidate)| Some((i, price(candidate)?)));
        prices.min_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(i, _)| i)
    }
}
