//! The planner against brute force, and its programs on simulated ranks.
//!
//! The brute force shares the factor table and the cost model with the planner and nothing else: it tries every placement
//! of every value, and for each operation every placement of its operands that the factor table allows.

#[path = "../../ir/tests/generator/mod.rs"]
mod generator;
mod ranks;

use proptest::prelude::*;
use ranks::placements;
use std::collections::HashMap;
use tpc_ir::interpret::{Options, Tensor, interpret, simulate};
use tpc_ir::reason::Demand;
use tpc_ir::text;
use tpc_ir::{
    DType, Graph, InputId, InputKind, MapFn, Mesh, Op, Origin, Output, OutputKind, ReduceOp, Sharding, Type, Value,
};
use tpc_passes::check::check;
use tpc_passes::cost::seconds;
use tpc_passes::factors::{place_redistribution, result_sharding, row_of};
use tpc_passes::planner::kernels::Kernels;
use tpc_passes::planner::{Aim, Planned, Weights, plan, seconds as program_seconds};
use tpc_passes::propagate::propagate;
use tpc_passes::rebuild::{copy, rebuild};
use tpc_passes::redistribute::steps;
use tpc_passes::styles::annotations::{Annotation, Annotations};
use tpc_passes::targets::{Link, Target};

/// Targets on which different things are cheap.
fn targets() -> Vec<Target> {
    let cpu = Target::cpu().clone();
    let with = |latency: f64, bandwidth: f64, memory: f64| {
        let mut target = cpu.clone();
        target.links.default = Link { latency, bandwidth };
        target.device.memory = memory;
        target
    };
    // Everything by bytes, messages that cost their latency only, links that cost nothing, and the CPU.
    vec![with(1e-12, 1e3, 1e3), with(1e-3, 1e15, 1e6), with(1e-15, 1e18, 1e3), cpu]
}

/// Seconds of bringing a value from one placement to another.
fn travel(target: &Target, mesh: &Mesh, ty: &Type, from: &Sharding, to: &Sharding) -> f64 {
    let mut at = ty.placed(from.clone());
    let mut total = 0.0;
    for op in steps(from, to) {
        let Ok(sharding) = place_redistribution(&op, &at) else { return f64::INFINITY };
        let next = at.placed(sharding);
        total += seconds(target, &op, &[&at], &next, mesh);
        at = next;
    }
    if at.sharding == *to { total } else { f64::INFINITY }
}

/// A way to compute an operation: where the operands and the result lie, and what it costs.
type Way = (Vec<Sharding>, Sharding, f64);

/// Every way to compute an operation that the factor table allows.
fn ways(target: &Target, graph: &Graph, kernels: &Kernels, node: petgraph::graph::NodeIndex) -> Vec<Way> {
    let (n, mesh) = (graph.node(node), &graph.mesh);
    let operands: Vec<&Type> = graph.operands(node).into_iter().map(|v| graph.ty(v)).collect();
    let row = row_of(&n.op, &operands, &[&n.types[0]]);
    let mut combinations: Vec<Vec<Type>> = vec![Vec::new()];
    for ty in &operands {
        let all = placements(ty.rank(), mesh, &[ReduceOp::Sum]);
        let longer =
            |c: &Vec<Type>| all.iter().map(|s| [c.clone(), vec![ty.placed(s.clone())]].concat()).collect::<Vec<_>>();
        combinations = combinations.iter().flat_map(longer).collect();
    }
    let way = |types: Vec<Type>| {
        let read: Vec<&Type> = types.iter().collect();
        let at = result_sharding(&row, &read, None).ok()?;
        let work = kernels.seconds(target, node.index(), &n.op, &read, &[&n.types[0].placed(at.clone())], mesh);
        Some((types.into_iter().map(|ty| ty.sharding).collect(), at, work))
    };
    combinations.into_iter().filter_map(way).collect()
}

/// The least seconds of all programs that keep every value of a logical graph at one placement; its inputs lie `at` these,
/// and its output as `result`.
fn least(target: &Target, graph: &Graph, at: &HashMap<InputId, Sharding>, result: &Sharding) -> f64 {
    let mesh = &graph.mesh;
    let nodes: Vec<_> = graph.nodes().collect();
    let kernels = Kernels::of(graph);
    let all: Vec<Vec<Way>> = nodes.iter().map(|&node| ways(target, graph, &kernels, node)).collect();
    let between = |made: petgraph::graph::NodeIndex, ty: &Type, from: &Sharding, to: &Sharding| {
        let ends = [from, to].map(|at| ty.placed(at.clone()));
        let passes: f64 = ends.iter().map(|end| kernels.pass(target, made.index(), 0, end, mesh)).sum();
        travel(target, mesh, ty, from, to) + if from == to { 0.0 } else { passes }
    };
    // Where a value may be kept: anywhere, but partial only where it is made so.
    let kept = |i: usize| -> Vec<Sharding> {
        let mut found = placements(graph.node(nodes[i]).types[0].rank(), mesh, &[]);
        found.extend(all[i].iter().map(|(_, result, _)| result.clone()).filter(|s| s.partial.is_some()));
        found.sort();
        found.dedup();
        found
    };
    let states: Vec<Vec<Sharding>> = (0..nodes.len()).map(kept).collect();
    let outputs: Vec<Value> = graph.outputs.iter().map(|o| o.value).collect();
    // What a node costs when its operands and its result are kept at these states.
    let mut known: HashMap<(usize, Vec<usize>), f64> = HashMap::new();
    let mut cost = |i: usize, chosen: &[usize]| -> f64 {
        let node = nodes[i];
        let (n, operands) = (graph.node(node), graph.operands(node));
        let key: Vec<usize> = operands.iter().map(|v| chosen[v.node.index()]).chain([chosen[i]]).collect();
        *known.entry((i, key)).or_insert_with(|| {
            let (ty, here) = (&n.types[0], &states[i][chosen[i]]);
            let ends = outputs.iter().filter(|v| v.node == node);
            let ends: f64 = ends.map(|_| travel(target, mesh, ty, here, result)).sum();
            if let Op::Input { id, .. } = &n.op {
                return ends + travel(target, mesh, ty, &at[id], here);
            }
            let total = |(read, made, work): &Way| {
                let moves = operands.iter().zip(read).map(|(v, to)| {
                    let from = &states[v.node.index()][chosen[v.node.index()]];
                    between(v.node, graph.ty(*v), from, to)
                });
                work + moves.sum::<f64>() + between(node, ty, made, here)
            };
            ends + all[i].iter().map(total).fold(f64::INFINITY, f64::min)
        })
    };
    // Depth first; a beginning that costs more than the best whole program goes no further.
    let mut best = f64::INFINITY;
    let mut stack: Vec<(Vec<usize>, f64)> = vec![(Vec::new(), 0.0)];
    while let Some((chosen, so_far)) = stack.pop() {
        let i = chosen.len();
        if i == nodes.len() {
            best = best.min(so_far);
            continue;
        }
        for state in 0..states[i].len() {
            let longer = [&chosen[..], &[state]].concat();
            let total = so_far + cost(i, &longer);
            if total < best {
                stack.push((longer, total));
            }
        }
    }
    best
}

/// A logical graph of matrices and vectors, and where its inputs lie.
fn small(mesh: &str, operations: usize, choices: &[u16]) -> (Graph, HashMap<InputId, Sharding>) {
    let mut next = choices.iter().map(|&c| usize::from(c)).chain(std::iter::repeat(0));
    let mut below = |n: usize| next.next().unwrap_or(0) % n;
    let mut graph = Graph::new(Mesh::parse(mesh).unwrap());
    let mut at = HashMap::new();
    let sizes = [4, 6, 8];
    for i in 0..2 {
        let ty = Type::new(DType::F32, [sizes[below(3)], sizes[below(3)]]);
        let id = InputId::read(InputKind::Data, &format!("x{i}"));
        let all = placements(2, &graph.mesh, &[]);
        at.insert(id.clone(), all[below(all.len())].clone());
        graph.push(Op::Input { id, layout: ty.shape.clone(), unit: None }, &[], ty, &Origin::default());
    }
    for _ in 0..operations {
        let values: Vec<Value> = graph.nodes().map(Value::from).collect();
        let a = values[below(values.len())];
        let (rows, columns) = (graph.ty(a).shape[0], graph.ty(a).shape[1]);
        let origin = Origin::default();
        let fits: Vec<Value> = values.iter().copied().filter(|&v| graph.ty(v).shape[0] == columns).collect();
        let alike: Vec<Value> = values.iter().copied().filter(|&v| graph.ty(v).shape == graph.ty(a).shape).collect();
        match below(5) {
            0 if !fits.is_empty() => {
                let b = fits[below(fits.len())];
                let ty = Type::new(DType::F32, [rows, graph.ty(b).shape[1]]);
                let subs = tpc_ir::Subscripts::parse("ab,bc->ac").unwrap();
                graph.push(Op::Einsum { subs }, &[a, b], ty, &origin);
            }
            1 => {
                let ty = Type::new(DType::F32, [columns, rows]);
                let subs = tpc_ir::Subscripts::parse("ab->ba").unwrap();
                graph.push(Op::Map { f: MapFn::Identity, subs }, &[a], ty, &origin);
            }
            2 => {
                graph.map(MapFn::Mul, &[a, alike[below(alike.len())]], &origin);
            }
            3 => {
                graph.map(MapFn::Exp, &[a], &origin);
            }
            _ => {
                graph.map(MapFn::Add, &[a, alike[below(alike.len())]], &origin);
            }
        }
    }
    let last = graph.nodes().last().unwrap();
    let layout = graph.node(last).types[0].shape.clone();
    graph.outputs.push(Output { value: last.into(), kind: OutputKind::Result("y".into()), layout });
    (graph, at)
}

/// Plans a small graph and compares what the planner says it costs with brute force.
fn costs_least(mesh: &str, operations: usize, choices: &[u16]) -> Result<(), TestCaseError> {
    let (graph, at) = small(mesh, operations, choices);
    let annotation = |(id, sharding): (&InputId, &Sharding)| {
        (id.clone(), Annotation { sharding: sharding.clone(), why: Demand::Note("at random".into()).into() })
    };
    let inputs = at.iter().map(annotation).collect();
    let annotations = Annotations { mesh: graph.mesh.clone(), inputs, ..Annotations::default() };
    for target in targets() {
        let placed = propagate(&graph, &annotations, &target);
        let Planned { graph: planned, report } = plan(&placed, &target, Aim::Together(Weights::TIME));
        let result = &placed.ty(placed.outputs[0].value).sharding;
        let best = least(&target, &live(&graph), &at, result);
        let found = report.steps.last().unwrap().seconds;
        let shown = || text::print(planned.as_ref().unwrap_or(&placed));
        prop_assert!((found - best).abs() <= 2e-3 * best + 1e-10, "{found} instead of {best}: {}", shown());
        prop_assert!(report.gap().unwrap() <= 1e-3, "a gap of {:?}: {}", report.gap(), shown());
        prop_assert!(report.after <= report.before);
    }
    Ok(())
}

/// The graph without operations that its output does not depend on.
fn live(graph: &Graph) -> Graph {
    rebuild(graph, graph.mesh.clone(), |new, node, operands| copy(new, graph, node, &operands)).0
}

/// What the planner makes of a placed graph computes the same values on simulated ranks.
fn stays_what_it_is(graph: &Graph, inputs: &HashMap<InputId, Tensor>) -> Result<(), TestCaseError> {
    let wanted = interpret(graph, inputs, &Options::default()).unwrap();
    for target in targets() {
        let Planned { graph: planned, report } = plan(graph, &target, Aim::Together(Weights::TIME));
        prop_assert_eq!(planned.is_some(), report.taken);
        let Some(planned) = planned else { continue };
        let shown = || format!("{}\nbecame\n{}", text::print(graph), text::print(&planned));
        let found = simulate(&planned, inputs, &Options::default());
        prop_assert!(found.is_ok(), "{}\n{}", found.unwrap_err(), shown());
        let alike = wanted.iter().zip(&found.unwrap()).all(|(a, b)| ranks::same(a, b, 1e-9));
        prop_assert!(alike, "another value\n{}", shown());
        prop_assert!(program_seconds(&planned, &target) < program_seconds(graph, &target));
        prop_assert_eq!(
            text::print(&plan(graph, &target, Aim::Together(Weights::TIME)).graph.unwrap()),
            text::print(&planned)
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_axis_costs_least(operations in 1usize..7, choices in prop::collection::vec(any::<u16>(), 40)) {
        costs_least("a=2", operations, &choices)?;
    }

    #[test]
    fn random_graphs_stay_what_they_are(choices in prop::collection::vec(any::<u16>(), 40..160)) {
        let case = generator::build(&choices);
        prop_assume!(check(&case.graph).is_ok());
        stays_what_it_is(&case.graph, &case.inputs)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_axes_cost_least(operations in 1usize..4, choices in prop::collection::vec(any::<u16>(), 40)) {
        costs_least("a=2,b=3", operations, &choices)?;
    }
}
