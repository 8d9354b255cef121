//! Shared machinery of the tests: random inputs for a graph, and equality of stages.
// `!(x <= tolerance)` is intended: a NaN is wrong.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

pub mod block;
pub mod captured;
pub mod command;
pub mod device;
pub mod eager;
pub mod fuzz;
pub mod golden;
pub mod named;
pub mod reasons;
pub mod styles;
pub mod switches;
pub mod traffic;
pub mod training;

use std::collections::HashMap;
use tpc_ir::execute::execute;
use tpc_ir::interpret::{Options, Tensor, interpret, simulate};
use tpc_ir::{Graph, InputId, InputKind, Op};
use tpc_passes::targets::Target;

/// Reproducible values for every input of a graph: integers are below `limit`, and constants are taken from
/// `constants`.
pub fn inputs(graph: &Graph, limit: usize, constants: &HashMap<InputId, Tensor>) -> HashMap<InputId, Tensor> {
    let mut all = HashMap::new();
    for (node, id) in graph.inputs() {
        let Op::Input { layout, .. } = &graph.node(node).op else { continue };
        let dtype = graph.node(node).types[0].dtype;
        if let Some(t) = constants.get(id) {
            all.insert(id.clone(), t.clone());
            continue;
        }
        let mut state =
            id.to_string().bytes().fold(1469598103934665603u64, |h, b| (h ^ u64::from(b)).wrapping_mul(1099511628211));
        let tensor = Tensor::from_fn(dtype, layout.clone(), |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
            match (dtype.is_float(), id.kind()) {
                (false, _) => (unit * limit as f64).floor(),
                // Second moments and step scalars are positive.
                (true, InputKind::State | InputKind::Scalar) => 0.1 + unit,
                (true, _) => unit - 0.5,
            }
        });
        all.insert(id.clone(), tensor);
    }
    all
}

/// The largest difference between two programs' outputs, relative to the largest value of each.
pub fn difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut worst = 0.0f64;
    for (x, y) in a.iter().zip(b) {
        assert_eq!(x.data.len(), y.data.len());
        let scale = x.data.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
        for (u, v) in x.data.iter().zip(&y.data) {
            if (u.is_nan() && v.is_nan()) || u == v {
                continue;
            }
            worst = worst.max((u - v).abs() / scale);
        }
    }
    worst
}

/// Runs an unplaced graph.
pub fn reference(graph: &Graph, inputs: &HashMap<InputId, Tensor>) -> Vec<Tensor> {
    interpret(graph, inputs, &Options::exact()).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a placed graph on simulated ranks.
pub fn on_ranks(graph: &Graph, inputs: &HashMap<InputId, Tensor>) -> Vec<Tensor> {
    simulate(graph, inputs, &Options::exact()).unwrap_or_else(|e| panic!("{e}"))
}

/// Lowers a placed graph and runs it on real ranks.
pub fn executed(graph: &Graph, inputs: &HashMap<InputId, Tensor>) -> Vec<Tensor> {
    executed_programs(graph, tpc_passes::lower::lower(graph, Target::cpu()).unwrap_or_else(|e| panic!("{e}")), inputs)
}

/// Panics unless the rank programs compute the same as their placed graph on the reference executor. That executor
/// rounds nothing, so the two may differ only by the order of sums: by a small fraction of the largest value of all
/// outputs, since terms that cancel need not give exactly 0 in both.
pub fn means_the_same(graph: &Graph, programs: &[tpc_ir::program::RankProgram], inputs: &HashMap<InputId, Tensor>) {
    let found = execute(programs, inputs, &Options::real()).unwrap_or_else(|e| panic!("{e}"));
    let expected = simulate(graph, inputs, &Options::real()).unwrap_or_else(|e| panic!("{e}"));
    let values = inputs.values().chain(&expected).flat_map(|t| &t.data);
    let largest = values.filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    for (output, (e, f)) in graph.outputs.iter().zip(expected.iter().zip(&found)) {
        let is_near = |(e, f): (&f64, &f64)| e == f || e.is_nan() && f.is_nan() || (e - f).abs() <= 1e-9 * largest;
        let near = e.data.len() == f.data.len() && e.data.iter().zip(&f.data).all(is_near);
        assert!(near, "the rank programs mean something else: {:?}", output.kind);
    }
}

/// Runs the rank programs of a placed graph on real ranks and on the reference executor, as in [`means_the_same`].
pub fn executed_programs(
    graph: &Graph,
    programs: Vec<tpc_ir::program::RankProgram>,
    inputs: &HashMap<InputId, Tensor>,
) -> Vec<Tensor> {
    means_the_same(graph, &programs, inputs);
    let mut session = tpc_runtime::Session::launch(programs, Default::default()).unwrap_or_else(|e| panic!("{e}"));
    for (_, id) in graph.inputs() {
        session.write_f64((id.kind(), &*id.to_string()), &inputs[id].data).unwrap_or_else(|e| panic!("{e}"));
    }
    session.step().unwrap_or_else(|e| panic!("{e}"));
    let read = |o: &tpc_ir::Output| {
        let data = session.read_f64(&o.kind).unwrap_or_else(|e| panic!("{e}"));
        Tensor::new(graph.ty(o.value).dtype, o.layout.clone(), data)
    };
    graph.outputs.iter().map(read).collect()
}

/// Every output that differs by more than `tolerance` times its largest value, with the difference.
pub fn wrong(graph: &Graph, a: &[Tensor], b: &[Tensor], tolerance: f64) -> Vec<String> {
    let pairs = graph.outputs.iter().zip(a.iter().zip(b));
    pairs
        .map(|(o, (x, y))| (o, difference(std::slice::from_ref(x), std::slice::from_ref(y))))
        .filter(|(_, d)| !(*d <= tolerance))
        .map(|(o, d)| format!("{:?}: {d:e}", o.kind))
        .collect()
}
