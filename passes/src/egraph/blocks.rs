//! What repeats is searched once. A program of many layers is shortened to a few ([`tpc_ir::block`]), the short program is
//! searched, and its middle layers, which came out alike, are repeated as often as before.
//!
//! The long program is only taken if both proofs hold of it: its ranks compute what its types say ([`check`]), and
//! it denotes the program that came in ([`denotes`]). Otherwise the whole program is searched. So what is here does not
//! have to be right about every model, only about most.
//!
//! Before: 80 layers, each `…, %12 = all_reduce …, %13 = all_reduce …, %14 = add %12, %13`.
//! Searched: 6 of them. After: 80 layers, each `…, %12 = add …, %13 = all_reduce …  why: … rule 7`.

use super::Found;
use super::options::SearchOptions;
use crate::check::check;
use crate::cost::graph_seconds;
use crate::denotes::denotes;
use crate::targets::Target;
use tpc_ir::block::{Block, Lines};
use tpc_ir::{Graph, Type, UnitId};

/// How many occurrences are searched. Those at the ends may come out different, and what moves across the border of an
/// occurrence makes the run of equal ones shorter; two of these are needed to see how the run goes on.
const KEPT: usize = 6;

/// Searches a program with few occurrences of its largest block; `None` if nothing repeats, or if the
/// result does not repeat in the same way.
pub(super) fn search(graph: &Graph, target: &Target, options: &SearchOptions) -> Option<Found> {
    let lines = Lines::of(graph);
    lines.blocks().iter().filter(|b| b.count > KEPT).find_map(|block| once(graph, &lines, block, target, options))
}

fn once(graph: &Graph, lines: &Lines, block: &Block, target: &Target, options: &SearchOptions) -> Option<Found> {
    let fewer = (block.count - KEPT) as i64;
    let short = lines.resized(block, -fewer)?.graph;
    // Another block of the program is shortened in turn.
    let mut found = super::search(&short, target, options);
    let lines = Lines::of(&found.graph);
    let blocks = lines.blocks();
    let long = lines.resized(blocks.iter().find(|b| b.path == block.path)?, fewer)?;
    let cheaper = graph_seconds(target, &long.graph) <= graph_seconds(target, graph);
    let proven = cheaper
        && ends(&long.graph) == ends(graph)
        && check(&long.graph).is_ok()
        && denotes(&long.graph, graph).is_ok();
    let due = long.source.iter().map(|node| node.and_then(|n| found.due[n.index()])).collect();
    found.blocks.push((block.path.clone(), block.count));
    proven.then_some(Found { graph: long.graph, due, ..found })
}

/// Where inputs and outputs lie, and the units of inputs.
fn ends(graph: &Graph) -> Vec<(&Type, Option<UnitId>)> {
    let inputs = graph.inputs().map(|(n, _)| (&graph.node(n).types[0], graph.unit_of(n)));
    inputs.chain(graph.outputs.iter().map(|o| (graph.ty(o.value), None))).collect()
}
