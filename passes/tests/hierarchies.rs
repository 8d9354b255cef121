//! Reductions over axes of different speeds: the search splits them if one axis of the target is slower (rule 25).

use std::collections::BTreeSet;
use tpc_ir::reason::Reason;
use tpc_ir::{Graph, InputId, Mesh, Op, Sharding, parse};
use tpc_passes::check::check;
use tpc_passes::cost::graph_seconds;
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::rules::RuleId;
use tpc_passes::egraph::{SearchOptions, improve};
use tpc_passes::propagate::propagate;
use tpc_passes::styles::annotations::{Annotation, Annotations};
use tpc_passes::targets::{Link, Node, Target};

/// The target for CPUs, with `ranks` ranks in a node. The link between nodes is 10 times slower.
fn nodes_of(ranks: usize) -> Target {
    let mut target = Target::cpu().clone();
    let inner = target.links.default;
    target.links.node = Some(Node { ranks, link: inner });
    target.links.default = Link { bandwidth: inner.bandwidth / 10.0, ..inner };
    target
}

/// A step of gradient descent on two layers, whose batch is sharded over all axes, before and after the search.
fn step(target: &Target, mesh: &str, disabled: &[u32]) -> (Graph, Graph) {
    let source = "mesh <>
        %0 = input data \"x\" : f32[4096, 128]
        %1 = input parameter \"w1\" : f32[128, 192]
        %2 = input parameter \"w2\" : f32[192, 64]
        %3 = einsum \"ab,bc->ac\" %0, %1 : f32[4096, 192]  ; forward
        %4 = tanh %3 : f32[4096, 192]  ; forward
        %5 = einsum \"ab,bc->ac\" %4, %2 : f32[4096, 64]  ; forward
        %6 = einsum \"ab,cb->ac\" %5, %2 : f32[4096, 192]  ; backward
        %7 = einsum \"ab,ac->bc\" %4, %5 : f32[192, 64]  ; backward
        %8 = einsum \"ab,ac->bc\" %0, %6 : f32[128, 192]  ; backward
        %9 = sub %1, %8 : f32[128, 192]  ; optimizer
        %10 = sub %2, %7 : f32[192, 64]  ; optimizer
        output update \"w1\" %9
        output update \"w2\" %10";
    let logical = parse::parse(source).unwrap();
    let mesh = Mesh::parse(mesh).unwrap();
    let sharding = mesh.axis_ids().fold(Sharding::replicated(2), |s, axis| s.pushed(0, axis));
    let batch = (InputId::Data("x".into()), Annotation { sharding, why: Reason::read("the batch") });
    let annotations = Annotations { mesh, inputs: [batch].into_iter().collect(), ..Annotations::default() };
    let propagated = propagate(&logical, &annotations, target);
    let mut options = SearchOptions::default();
    options.disabled.extend(disabled.iter().map(|&number| RuleId::try_from(number).unwrap()));
    let (placed, report) = improve(&propagated, target, &options);
    check(&placed).unwrap();
    denotes(&placed, &logical).unwrap();
    assert_eq!((report.declined, report.unfinished()), (None, None));
    (propagated, placed)
}

/// The mnemonics and axes of the collectives of a program.
fn collectives(graph: &Graph) -> Vec<String> {
    let shown = |op: &Op| {
        let axes: Vec<&str> = op.axes().iter().map(|axis| graph.mesh.name(axis)).collect();
        format!("{} {}", op.name(), axes.join(","))
    };
    graph.nodes().map(|n| &graph.node(n).op).filter(|op| op.is_collective()).map(shown).collect()
}

#[test]
fn gradients_are_reduced_inside_the_nodes_first() {
    let target = nodes_of(4);
    let (before, after) = step(&target, "out=2,in=4", &[]);
    assert_eq!(collectives(&before), ["all_reduce out,in"; 2]);
    let found: BTreeSet<String> = collectives(&after).into_iter().collect();
    let expected = ["reduce_scatter in", "all_reduce out", "all_gather in"].map(String::from);
    assert_eq!(collectives(&after).len(), 6, "{:?}", collectives(&after));
    assert_eq!(found, BTreeSet::from(expected));
    // Of S bytes, 2 · 7/8 · S cross the slow link before the search. After it, 2 · 1/2 · S/4 cross the slow link and
    // twice 3/4 · S the fast one. A bucket costs one launch for each value. The search gains a little more, because
    // each rank updates a part of the weights and gathers them.
    let bytes = (128 * 192 + 192 * 64) as f64 * 4.0;
    let (slow, fast) = (target.links.default.bandwidth, target.links.node.unwrap().link.bandwidth);
    let (whole, apart) = (1.75 * bytes / slow, 1.5 * bytes / fast + 0.25 * bytes / slow);
    let gain = graph_seconds(&target, &before) - graph_seconds(&target, &after);
    let expected = whole - apart - 4.0 * target.device.launch;
    assert!(gain > expected * (1.0 - 1e-6) && gain < 1.1 * expected, "{gain} instead of {expected}");
}

/// With three speeds, the value is scattered over the fastest axis first, then over the second, and an eighth of it
/// crosses the slowest.
#[test]
fn hierarchies_have_as_many_levels_as_there_are_speeds() {
    let mut target = nodes_of(8);
    let inner = target.links.node.unwrap().link;
    target.links.axes.insert("in".into(), Link { bandwidth: 10.0 * inner.bandwidth, ..inner });
    let (_, after) = step(&target, "out=2,mid=2,in=4", &[]);
    let found = collectives(&after);
    for expected in ["reduce_scatter in", "reduce_scatter mid", "all_reduce out", "all_gather mid", "all_gather in"] {
        assert_eq!(found.iter().filter(|c| *c == expected).count(), 2, "{expected} in {found:?}");
    }
    assert_eq!(found.len(), 10);
}

#[test]
fn reductions_are_not_split_if_all_links_are_equal_or_the_rule_is_disabled() {
    for (target, mesh, disabled) in [
        (Target::cpu().clone(), "out=2,in=4", &[][..]),
        (nodes_of(8), "out=2,in=4", &[]),
        (nodes_of(2), "out=2,in=4", &[]),
        (nodes_of(4), "out=2,in=4", &[25]),
    ] {
        let (before, after) = step(&target, mesh, disabled);
        assert_eq!(collectives(&after), collectives(&before));
    }
}

/// The cost of a small value is dominated by latency, so three collectives are not better than one.
#[test]
fn a_small_value_alone_is_reduced_at_once() {
    let target = nodes_of(4);
    let source = "mesh <out=2, in=4>
        %0 = input data \"x\" : f32[64@(out,in), 8]
        %1 = reduce_sum \"ab->b\" %0 : f32[8] +sum@(out,in)  ; forward
        %2 = all_reduce (out,in) sum %1 : f32[8]  ; forward
        output result \"y\" %2";
    let graph = parse::parse(source).unwrap();
    let (placed, _) = improve(&graph, &target, &SearchOptions::default());
    assert_eq!(collectives(&placed), ["all_reduce out,in"]);
}
