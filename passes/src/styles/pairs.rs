//! Finds the pairs of linears in a module: linears that are cut by columns, and those that read their results, which
//! are cut by rows.
//!
//! The module tree is traversed from the inside out. In each module, the linears that do not belong to a pair yet are
//! considered in dataflow order. A linear begins a pair if all linears that read its result are among them and none of
//! these reads the result of another. Everything that it computes then stays on the rank that computed it, until the
//! rows are summed. Query, key and value thus pair with the output of their attention, and gate and up with down; two
//! linears of an MLP that are in separate modules pair in the module that contains both. A patch embedding stays alone:
//! through the residual stream, every block reads it, and their linears already belong to pairs. Of three linears in a
//! row, the first two are a pair, and the third stays alone.
//!
//! ```text
//! vit { patches, blocks.0 { attn { q, k, v, o }, up, down }, head }
//! blocks.0.attn  { q, k, v } → { o }
//! blocks.0       { up } → { down }
//! vit            patches and head stay alone
//! ```
//!
//! A linear whose result is also read outside the module of a style still pairs with the linears inside.

use super::modules::{Role, Weight, paths};
use petgraph::graph::NodeIndex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tpc_ir::{Graph, ModulePath, Op, Phase, Segment};

/// Linears that are cut together, so that nothing is communicated between the two sides.
#[derive(Clone, Debug)]
pub struct Pair<'a> {
    /// The linears that are cut by columns, in dataflow order.
    pub columns: Vec<&'a Weight>,
    /// The linears that read their results and are cut by rows, in dataflow order.
    pub rows: Vec<&'a Weight>,
}

impl Pair<'_> {
    /// Whether a weight belongs to the pair.
    pub fn holds(&self, weight: &Weight) -> bool {
        self.columns.iter().chain(&self.rows).any(|other| other.input == weight.input)
    }
}

/// The pairs of the module at a path, those of inner modules first.
pub(super) fn pairs<'a>(graph: &Graph, all: &'a BTreeMap<ModulePath, Weight>, path: &ModulePath) -> Vec<Pair<'a>> {
    let read = Reads::of(graph, all, path);
    let mut modules: Vec<ModulePath> = paths(graph).into_iter().filter(|m| m.is_in(path)).collect();
    modules.sort_by_key(|module| Reverse(module.segments().len()));
    let mut free: BTreeSet<usize> = (0..read.linears.len()).collect();
    // The linears below each module, in dataflow order.
    let mut below: HashMap<&[Segment], Vec<usize>> = HashMap::new();
    for (linear, weight) in read.linears.iter().enumerate() {
        let segments = weight.name.segments();
        (0..segments.len()).for_each(|depth| below.entry(&segments[..depth]).or_default().push(linear));
    }
    let mut found = Vec::new();
    for module in modules {
        let below = below.get(module.segments()).into_iter().flatten();
        let inside: Vec<usize> = below.copied().filter(|linear| free.contains(linear)).collect();
        for &first in &inside {
            let candidates: BTreeSet<usize> = inside.iter().copied().filter(|linear| free.contains(linear)).collect();
            let Some((columns, rows)) = read.pair(first, &candidates) else { continue };
            columns.iter().chain(&rows).for_each(|linear| _ = free.remove(linear));
            let weights = |side: Vec<usize>| side.into_iter().map(|linear| read.linears[linear]).collect();
            found.push(Pair { columns: weights(columns), rows: weights(rows) });
        }
    }
    found
}

/// The linears of a module, and which linears read their results.
struct Reads<'a> {
    /// The linears, in dataflow order.
    linears: Vec<&'a Weight>,
    /// For each linear, those that read its result without another product with a weight in between.
    readers: Vec<BTreeSet<usize>>,
    /// For each linear, whether its result also reaches a product with a table, such as that of a tied head.
    reaches_table: Vec<bool>,
}

impl<'a> Reads<'a> {
    fn of(graph: &Graph, all: &'a BTreeMap<ModulePath, Weight>, path: &ModulePath) -> Self {
        let mut linears: Vec<&Weight> =
            all.values().filter(|w| w.role == Role::Linear && w.name.is_below(path)).collect();
        linears.sort_by_key(|w| w.user);
        // All products of the forward pass with a weight, which may be used several times.
        let mut products: HashMap<NodeIndex, Factor> = HashMap::new();
        let mut of_input: HashMap<NodeIndex, usize> = HashMap::new();
        for (linear, weight) in linears.iter().enumerate() {
            of_input.entry(weight.input).or_insert(linear);
        }
        for weight in all.values() {
            let factor = match of_input.get(&weight.input) {
                Some(&linear) => Factor::Linear(linear),
                None if weight.name.is_below(path) => Factor::Table,
                None => Factor::Outside,
            };
            products.extend(uses(graph, weight.input).map(|product| (product, factor)));
        }
        let mut reads = Reads { readers: Vec::new(), reaches_table: Vec::new(), linears };
        // The last linear whose result was followed to a node.
        let mut followed: Vec<Option<usize>> = vec![None; graph.len()];
        for (linear, weight) in reads.linears.iter().enumerate() {
            let (mut readers, mut reaches_table) = (BTreeSet::new(), false);
            let mut open: Vec<NodeIndex> = uses(graph, weight.input).collect();
            while let Some(node) = open.pop() {
                for (user, _) in graph.users(node).filter(|(user, _)| is_forward(graph, *user)) {
                    match products.get(&user) {
                        Some(Factor::Linear(reader)) => {
                            readers.insert(*reader);
                        }
                        Some(Factor::Outside) => {}
                        Some(Factor::Table) => reaches_table = true,
                        None if followed[user.index()].replace(linear) != Some(linear) => open.push(user),
                        None => {}
                    }
                }
            }
            reads.readers.push(readers);
            reads.reaches_table.push(reaches_table);
        }
        reads
    }

    /// Whether a result of one of some linears reaches another one.
    fn follow_each_other(&self, linears: &BTreeSet<usize>) -> bool {
        let Some(last) = linears.last() else { return false };
        linears.iter().any(|first| {
            let mut seen = BTreeSet::new();
            let mut open = vec![*first];
            // Linears after the last of them do not lead back to one.
            while let Some(linear) = open.pop() {
                open.extend(self.readers[linear].range(..=last).copied().filter(|reader| seen.insert(*reader)));
            }
            seen.iter().any(|reader| reader != first && linears.contains(reader))
        })
    }

    /// The pair that a linear begins: the linears to cut by columns and by rows, which are all among the candidates.
    fn pair(&self, first: usize, candidates: &BTreeSet<usize>) -> Option<(Vec<usize>, Vec<usize>)> {
        let rows = &self.readers[first];
        if rows.is_empty() || rows.contains(&first) || !rows.is_subset(candidates) || self.follow_each_other(rows) {
            return None;
        }
        let begins = |&linear: &usize| {
            let readers = &self.readers[linear];
            let only_rows = !readers.is_empty() && readers.is_subset(rows) && !self.reaches_table[linear];
            only_rows && !rows.contains(&linear)
        };
        let columns: Vec<usize> = candidates.iter().copied().filter(begins).collect();
        columns.contains(&first).then(|| (columns, rows.iter().copied().collect()))
    }
}

/// The weight of a product.
#[derive(Clone, Copy)]
enum Factor {
    /// A linear, by its number.
    Linear(usize),
    /// The table of an embedding of the module.
    Table,
    /// A weight outside the module.
    Outside,
}

fn is_forward(graph: &Graph, node: NodeIndex) -> bool {
    graph.node(node).origin.phase == Phase::Forward
}

/// The products of the forward pass that a weight is a factor of.
fn uses(graph: &Graph, weight: NodeIndex) -> impl Iterator<Item = NodeIndex> + '_ {
    let users = graph.users(weight).map(|(user, _)| user);
    users.filter(|&user| is_forward(graph, user) && matches!(graph.node(user).op, Op::Einsum { .. }))
}
