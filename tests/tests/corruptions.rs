//! Five hundred placed programs with one fault each: the checker refuses them all.
//!
//! A fault is put into a golden program under some plan and mesh: a reduction left out, an axis swapped, another dimension,
//! another reduction or collective, another declared placement, an update or a result elsewhere, a parameter that lies
//! otherwise than the plan says. Some faults change nothing. Whether one does, is decided by executing the program on
//! simulated ranks, where the inputs arrive and the outputs are read as the plan places them: every value of every rank
//! must be the part or the term of the right value that its type says. The checker takes no part in that.

#[path = "../../passes/tests/ranks/mod.rs"]
mod ranks;

use petgraph::graph::NodeIndex;
use ranks::{Ranks, cut, denoted, dice, local, logical};
use std::collections::HashMap;
use std::rc::Rc;
use tpc_compiler::program::CompileOptions;
use tpc_ir::interpret::Tensor;
use tpc_ir::verify::redistributed;
use tpc_ir::{AxisId, AxisSet, Graph, InputId, Op, OutputKind, ReduceOp, Sharding, Type, Value, text};
use tpc_passes::check::obligations::{Obligation, Obligations, Subject};
use tpc_passes::check::{CheckError, check};
use tpc_passes::egraph::SearchOptions;
use tpc_passes::planner::PlacementSource;
use tpc_passes::rebuild::{copy, rebuild};
use tpc_tests::golden::{Feed, MODELS};
use tpc_tests::inputs;

/// The plans and meshes of the programs.
const PLANS: [(&str, &str); 9] = [
    ("tp", "tp=2"),
    ("tp", "tp=3"),
    ("tp-sp", "tp=2"),
    ("ddp", "dp=2"),
    ("fsdp", "dp=2"),
    ("zero1", "dp=2"),
    ("tp-ddp", "dp=2,tp=2"),
    ("tp-sp-fsdp", "dp=2,tp=2"),
    ("hsdp", "rep=2,dp=2"),
];

/// A placed program, what its plan obliges it to, and values for its inputs.
struct Program {
    name: String,
    is_planned: bool,
    placed: Graph,
    obligations: Obligations,
    feed: Feed,
}

/// Every golden model under every plan, with placements that follow from the plan and with planned ones.
fn programs() -> Vec<Program> {
    let mut all = Vec::new();
    for model in MODELS {
        for (i, (plan, mesh)) in PLANS.into_iter().enumerate() {
            let mut options = CompileOptions::for_cpu();
            options.gradients = i % 2 == 1;
            let is_planned = i % 3 == 2;
            if is_planned {
                options.search = SearchOptions { placements: PlacementSource::Planned, ..SearchOptions::default() };
            }
            let (stages, constants) = (model.compile)(plan, mesh, &options);
            let feed = inputs(&stages.captured, 8, &constants);
            let name = format!("{} under {plan} on {mesh}", model.name);
            all.push(Program { name, is_planned, placed: stages.placed, obligations: stages.obligations, feed });
        }
    }
    all
}

/// The placements that the plan gives to inputs and outputs.
struct Interface<'a> {
    inputs: HashMap<&'a InputId, &'a Obligation>,
    outputs: HashMap<&'a OutputKind, Vec<&'a Obligation>>,
}

impl<'a> Interface<'a> {
    fn of(obligations: &'a Obligations) -> Self {
        let (mut inputs, mut outputs) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for o in &obligations.list {
            match &o.subject {
                Subject::Input(id) => _ = inputs.insert(id, o),
                Subject::Output(kind) => outputs.entry(kind).or_default().push(o),
                Subject::Value(_) => {}
            }
        }
        Interface { inputs, outputs }
    }
}

/// Whether two tensors are equal up to rounding.
fn near(a: &Tensor, b: &Tensor) -> bool {
    let scale = a.data.iter().filter(|x| x.is_finite()).fold(1e-9f64, |m, x| m.max(x.abs()));
    let alike = |(x, y): (&f64, &f64)| x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= 1e-4 * scale;
    a.shape == b.shape && a.data.iter().zip(&b.data).all(alike)
}

/// Executes a program on ranks. The error is the first value that is not what its type says, or the first output that is
/// not where the plan reads it.
fn executed(graph: &Graph, interface: &Interface, feed: &Feed) -> Result<(), String> {
    let mesh = &graph.mesh;
    let mut truths: HashMap<Value, Rc<Tensor>> = HashMap::new();
    let mut held: HashMap<Value, Ranks> = HashMap::new();
    for node in graph.nodes() {
        let n = graph.node(node);
        let operands = graph.operands(node);
        let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
        let failed = |what: &str| format!("%{} {}: {what}", node.index(), n.op.name());
        let (truth, made): (Vec<Rc<Tensor>>, Vec<Ranks>) = if let Op::Input { id, .. } = &n.op {
            let ty = &n.types[0];
            let whole = Tensor { shape: ty.shape.clone(), ..feed[id].clone() };
            // It arrives as the plan places it.
            let at = Sharding { dims: interface.inputs[id].at.dims.clone(), partial: None };
            let at = ty.placed(at);
            let parts = (0..mesh.ranks()).map(|r| Rc::new(cut(&whole, &at.local(mesh, &mesh.coords(r))))).collect();
            (vec![Rc::new(whole)], vec![parts])
        } else {
            let whole: Vec<Rc<Tensor>> = operands.iter().map(|v| Rc::clone(&truths[v])).collect();
            let truth = match n.op.is_redistribution() {
                true => vec![Rc::clone(&whole[0])],
                false => {
                    let refs: Vec<&Tensor> = whole.iter().map(|t| &**t).collect();
                    let results = logical(&n.op, &types, &n.types, &refs).map_err(|e| failed(&e.to_string()))?;
                    results.into_iter().map(Rc::new).collect()
                }
            };
            let parts: Vec<&Ranks> = operands.iter().map(|v| &held[v]).collect();
            (truth, local(&n.op, &types, &n.types, &parts, mesh).map_err(|(_, e)| failed(&e.to_string()))?)
        };
        for (result, (truth, made)) in truth.into_iter().zip(made).enumerate() {
            let value = Value { node, result: result as u32 };
            match denoted(&n.types[result], &made, mesh) {
                Some(found) if near(&truth, &found) => {}
                Some(_) => return Err(failed("another value")),
                None => return Err(failed("parts of other shapes, or replicas that differ")),
            }
            truths.insert(value, truth);
            held.insert(value, made);
        }
    }
    for output in &graph.outputs {
        let ty = graph.ty(output.value);
        let mut read = ty.placed(ty.sharding.reduced(ty.sharding.partial_axes()));
        for o in interface.outputs.get(&output.kind).into_iter().flatten() {
            read.sharding = o.at.applied(&read.sharding);
        }
        let found = denoted(&read, &held[&output.value], mesh);
        if !found.is_some_and(|found| near(&truths[&output.value], &found)) {
            return Err(format!("{} is not where it is read", text::output_name(&output.kind)));
        }
    }
    Ok(())
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    DroppedReduction,
    DroppedMove,
    SwappedAxis,
    OtherDimension,
    OtherReduction,
    OtherCollective,
    OtherDeclaration,
    MovedOutput,
    MovedUpdate,
    LostParameter,
}

/// The number of corruptions that change what a program computes.
const CORRUPTIONS: usize = 500;

const KINDS: [Kind; 10] = [
    Kind::DroppedReduction,
    Kind::DroppedMove,
    Kind::SwappedAxis,
    Kind::OtherDimension,
    Kind::OtherReduction,
    Kind::OtherCollective,
    Kind::OtherDeclaration,
    Kind::MovedOutput,
    Kind::MovedUpdate,
    Kind::LostParameter,
];

/// Reproducible choices.
struct Dice {
    seed: u64,
    thrown: usize,
}

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.thrown += 1;
        dice(self.seed, self.thrown, n)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }
}

/// A program with a fault, and its obligations: those of the program without it, for the values that took the places.
type Corrupted = (Graph, Obligations);

/// Puts a fault into a program; `None` if it has no place for one of this kind.
fn corrupted(program: &Program, kind: Kind, dice: &mut Dice) -> Option<Corrupted> {
    let mut graph = program.placed.clone();
    let same = |graph: Graph| Some((graph, program.obligations.clone()));
    let moves: Vec<NodeIndex> = graph.nodes().filter(|&n| graph.node(n).op.is_redistribution()).collect();
    let reduces = |op: &Op| matches!(op, Op::AllReduce { .. } | Op::ReduceScatter { .. });
    match kind {
        Kind::DroppedReduction | Kind::DroppedMove => {
            let wanted = kind == Kind::DroppedReduction;
            let nodes: Vec<_> = moves.into_iter().filter(|&n| reduces(&graph.node(n).op) == wanted).collect();
            let dropped = dice.of(&nodes)?;
            Some(rebuilt(program, |new, node, operands| match node == dropped {
                true => vec![operands[0]],
                false => copy(new, &program.placed, node, &operands),
            }))
        }
        Kind::SwappedAxis => {
            let axes: Vec<AxisId> = graph.mesh.axis_ids().collect();
            let (x, y) = (dice.of(&axes)?, dice.of(&axes)?);
            let swap = move |a: AxisId| {
                if a == x {
                    y
                } else if a == y {
                    x
                } else {
                    a
                }
            };
            let concerns = |t: &Type| t.sharding.sharded_axes().union(t.sharding.partial_axes()).contains(x);
            let nodes: Vec<_> = graph
                .nodes()
                .filter(|&n| graph.node(n).op.axes().contains(x) || graph.node(n).types.iter().any(concerns))
                .collect();
            let node = dice.of(&nodes).filter(|_| x != y)?;
            let (of_op, of_type) = dice.of(&[(true, false), (false, true), (true, true)])?;
            let n = graph.node_mut(node);
            if of_op {
                n.op = with_axes(&n.op, &swap);
            }
            if of_type {
                n.types.iter_mut().for_each(|t| t.sharding = with_swapped(&t.sharding, &swap));
            }
            same(graph)
        }
        Kind::OtherDimension | Kind::OtherReduction | Kind::OtherCollective => {
            let change = |op: &Op, rank: usize, dice: &mut Dice| match kind {
                Kind::OtherDimension => other_dimension(op, rank, dice),
                Kind::OtherReduction => other_reduction(op, dice),
                _ => other_collective(op, rank, dice),
            };
            let node = dice.of(&moves)?;
            let operand = graph.ty(graph.operands(node)[0]).clone();
            let op = change(&graph.node(node).op, operand.rank(), dice).filter(|op| *op != graph.node(node).op)?;
            // Half of the time the operation alone is right, and what reads it is not.
            let ty = redistributed(&op, &operand, &graph.mesh).ok().filter(|_| dice.below(2) == 0);
            let n = graph.node_mut(node);
            n.op = op;
            if let Some(ty) = ty {
                n.types[0] = ty;
            }
            same(graph)
        }
        Kind::OtherDeclaration => {
            let nodes: Vec<_> = graph.nodes().filter(|&n| !matches!(graph.node(n).op, Op::Input { .. })).collect();
            let node = dice.of(&nodes)?;
            let axes: Vec<AxisId> = graph.mesh.axis_ids().collect();
            let types = &mut graph.node_mut(node).types;
            let result = dice.below(types.len());
            let other =
                other_placement(&types[result].sharding, &axes, dice).filter(|s| *s != types[result].sharding)?;
            types[result].sharding = other;
            same(graph)
        }
        Kind::MovedOutput | Kind::MovedUpdate => {
            let is_update = |i: &usize| matches!(graph.outputs[*i].kind, OutputKind::Update(_));
            let outputs: Vec<usize> =
                (0..graph.outputs.len()).filter(|i| is_update(i) == (kind == Kind::MovedUpdate)).collect();
            let output = dice.of(&outputs)?;
            let value = graph.outputs[output].value;
            graph.outputs[output].value = moved(&mut graph, value, dice)?;
            same(graph)
        }
        Kind::LostParameter => lost_parameter(program, dice),
    }
}

/// A program built from another one, with the obligations for the values that took the places.
fn rebuilt(program: &Program, visit: impl FnMut(&mut Graph, NodeIndex, Vec<Value>) -> Vec<Value>) -> Corrupted {
    let (graph, mapping) = rebuild(&program.placed, program.placed.mesh.clone(), visit);
    let mut obligations = program.obligations.clone();
    for o in &mut obligations.list {
        if let Subject::Value(v) = &mut o.subject {
            *v = mapping[v];
        }
    }
    (graph, obligations)
}

/// The value after one move that does not change it.
fn moved(graph: &mut Graph, value: Value, dice: &mut Dice) -> Option<Value> {
    let ty = graph.ty(value).clone();
    let axes: Vec<AxisId> = graph.mesh.axis_ids().collect();
    let dim = (ty.rank() > 0).then(|| dice.below(ty.rank()))?;
    let ops = [Op::ShardSlice { dim, axes: vec![dice.of(&axes)?] }, Op::AllGather { dim, axes: vec![dice.of(&axes)?] }];
    let legal = ops.into_iter().filter_map(|op| Some((redistributed(&op, &ty, &graph.mesh).ok()?, op)));
    let legal: Vec<(Type, Op)> = legal.collect();
    let (to, op) = legal.get(dice.below(legal.len().max(1)))?.clone();
    Some(graph.push(op, &[value], to, &Default::default()))
}

/// An input that is stored elsewhere and moved to its place at once; its update is moved like it.
fn lost_parameter(program: &Program, dice: &mut Dice) -> Option<Corrupted> {
    let old = &program.placed;
    let inputs: Vec<NodeIndex> = old.inputs().map(|(n, _)| n).filter(|&n| old.node(n).types[0].rank() > 0).collect();
    let input = dice.of(&inputs)?;
    let (ty, mesh) = (old.node(input).types[0].clone(), old.mesh.clone());
    let dim = dice.below(ty.rank());
    let (away, back, at) = match ty.sharding.dims[dim].last() {
        Some(&axis) => {
            let (slice, gather) = (Op::ShardSlice { dim, axes: vec![axis] }, Op::AllGather { dim, axes: vec![axis] });
            let at = redistributed(&gather, &ty, &mesh).ok()?;
            (gather, slice, at)
        }
        None => {
            let axes: Vec<AxisId> = mesh.axis_ids().filter(|&a| ty.sharding.is_invariant(a)).collect();
            let axis = dice.of(&axes)?;
            let (slice, gather) = (Op::ShardSlice { dim, axes: vec![axis] }, Op::AllGather { dim, axes: vec![axis] });
            let at = redistributed(&slice, &ty, &mesh).ok()?;
            (slice, gather, at)
        }
    };
    let Op::Input { id, .. } = &old.node(input).op else { return None };
    let (mut graph, obligations) = rebuilt(program, |new, node, operands| {
        let n = old.node(node);
        if node != input {
            return copy(new, old, node, &operands);
        }
        let stored = new.push(n.op.clone(), &[], at.clone(), &n.origin);
        vec![new.push(back.clone(), &[stored], ty.clone(), &n.origin)]
    });
    for i in 0..graph.outputs.len() {
        if graph.outputs[i].kind == OutputKind::Update(id.clone()) {
            graph.outputs[i].value =
                graph.push(away.clone(), &[graph.outputs[i].value], at.clone(), &Default::default());
        }
    }
    Some((graph, obligations))
}

fn with_axes(op: &Op, swap: &dyn Fn(AxisId) -> AxisId) -> Op {
    let mut op = op.clone();
    match &mut op {
        Op::AllReduce { axes, .. } | Op::ToPartial { axes, .. } => *axes = axes.iter().map(swap).collect(),
        Op::AllGather { axes, .. }
        | Op::ReduceScatter { axes, .. }
        | Op::AllToAll { axes, .. }
        | Op::ShardSlice { axes, .. } => axes.iter_mut().for_each(|a| *a = swap(*a)),
        _ => {}
    }
    op
}

fn with_swapped(sharding: &Sharding, swap: &dyn Fn(AxisId) -> AxisId) -> Sharding {
    let mut s = sharding.clone();
    s.dims.iter_mut().flatten().for_each(|a| *a = swap(*a));
    if let Some(p) = &mut s.partial {
        p.axes = p.axes.iter().map(swap).collect();
    }
    s
}

fn other_dimension(op: &Op, rank: usize, dice: &mut Dice) -> Option<Op> {
    let mut op = op.clone();
    let other = (rank > 0).then(|| dice.below(rank))?;
    match &mut op {
        Op::AllGather { dim, .. } | Op::ReduceScatter { dim, .. } | Op::ShardSlice { dim, .. } => *dim = other,
        Op::AllToAll { from, to, .. } => *dice.of(&[true, false]).map(|f| if f { from } else { to })? = other,
        _ => return None,
    }
    Some(op)
}

fn other_reduction(op: &Op, dice: &mut Dice) -> Option<Op> {
    let mut changed = op.clone();
    match &mut changed {
        Op::AllReduce { op, .. } | Op::ReduceScatter { op, .. } | Op::ToPartial { op, .. } => {
            *op = dice.of(&ReduceOp::ALL)?;
        }
        _ => return None,
    }
    Some(changed)
}

fn other_collective(op: &Op, rank: usize, dice: &mut Dice) -> Option<Op> {
    let axes: Vec<AxisId> = match op {
        Op::AllGather { axes, .. }
        | Op::ReduceScatter { axes, .. }
        | Op::AllToAll { axes, .. }
        | Op::ShardSlice { axes, .. } => axes.clone(),
        other => other.axes().iter().collect(),
    };
    let set: AxisSet = axes.iter().copied().collect();
    let dim = (rank > 0).then(|| dice.below(rank))?;
    let sum = ReduceOp::Sum;
    Some(match dice.below(6) {
        0 => Op::AllReduce { op: sum, axes: set },
        1 => Op::AllGather { dim, axes },
        2 => Op::ReduceScatter { op: sum, dim, axes },
        3 => Op::AllToAll { from: dim, to: dice.below(rank), axes },
        4 => Op::ShardSlice { dim, axes },
        _ => Op::ToPartial { op: sum, axes: set },
    })
}

/// A placement that differs in one axis.
fn other_placement(sharding: &Sharding, axes: &[AxisId], dice: &mut Dice) -> Option<Sharding> {
    let mut s = sharding.clone();
    let axis = dice.of(axes)?;
    let was = s.dim_of(axis);
    let was_partial = s.partial_axes().contains(axis);
    s.dims.iter_mut().for_each(|d| d.retain(|&a| a != axis));
    s = s.reduced(AxisSet::one(axis));
    // Nothing, a dimension, or terms, other than before.
    match dice.below(s.dims.len() + 2) {
        0 => {}
        1 if !was_partial => s = s.with_partial(ReduceOp::Sum, AxisSet::one(axis))?,
        1 => {}
        d => {
            if was == Some(d - 2) && s.dims[d - 2].is_empty() {
                return None;
            }
            let at = dice.below(s.dims[d - 2].len() + 1);
            s.dims[d - 2].insert(at, axis);
        }
    }
    Some(s)
}

/// What the checker says of a program.
fn verdict((graph, obligations): &Corrupted) -> Result<(), CheckError> {
    check(graph).and_then(|()| obligations.check(graph))
}

#[test]
fn every_program_is_accepted_and_five_hundred_corruptions_are_refused() {
    let programs = programs();
    let (mut inputs, mut outputs, mut values, mut given_up) = (0, 0, 0, 0);
    for Program { name, is_planned, placed, obligations, feed } in &programs {
        verdict(&(placed.clone(), obligations.clone())).unwrap_or_else(|e| panic!("{name}: {e}"));
        executed(placed, &Interface::of(obligations), feed).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Placements that follow from the plan give up none of it; planned ones begin with it.
        assert!(*is_planned || obligations.given_up == 0, "{name}: {} given up", obligations.given_up);
        given_up += obligations.given_up;
        for o in &obligations.list {
            match o.subject {
                Subject::Input(_) => inputs += 1,
                Subject::Output(_) => outputs += 1,
                Subject::Value(_) => values += 1,
            }
        }
    }
    println!(
        "{} programs: {inputs} inputs, {outputs} outputs, {values} values inside; {given_up} values given up",
        programs.len()
    );

    let mut accepted = Vec::new();
    let mut wrong = 0;
    for kind in KINDS {
        let (mut found, mut seed) = (0, 0);
        // Changes that leave a right program, and how many of these the checker accepts.
        let (mut harmless, mut fine) = (0, 0);
        while found < CORRUPTIONS / KINDS.len() {
            seed += 1;
            assert!(seed < 5_000, "too few corruptions of the kind {kind:?}");
            let mut dice = Dice { seed, thrown: 0 };
            let program = &programs[dice.below(programs.len())];
            let Some(corrupted) = corrupted(program, kind, &mut dice) else { continue };
            let verdict = verdict(&corrupted);
            match executed(&corrupted.0, &Interface::of(&program.obligations), &program.feed) {
                Ok(()) => (harmless, fine) = (harmless + 1, fine + usize::from(verdict.is_ok())),
                Err(what) => {
                    found += 1;
                    if verdict.is_ok() {
                        accepted.push(format!("{kind:?} {seed} of {}: {what}", program.name));
                    }
                }
            }
        }
        println!("{kind:?}: {found} wrong; {harmless} harmless, of which {fine} are accepted");
        wrong += found;
    }
    assert_eq!(accepted, Vec::<String>::new());
    assert_eq!(wrong, CORRUPTIONS);
}
